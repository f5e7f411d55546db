//! What is asked of a trained model.

pub mod codes;
pub mod compare;
pub mod encode;
pub mod features;
pub mod labels;
pub mod overlap;
pub mod sink;
pub mod spill;
pub mod splits;
pub mod statistics;

use crate::backend::{self, DeviceChoice};
use crate::console;
use crate::data::{self, Embeddings, LoadOptions, data_files};
use crate::error::{Error, Result};
use crate::interrupt::check_flag;
use crate::model::ModelMeta;
use crate::model::file as model_file;
use crate::model::{Params, TrainState};
use crate::rows::{Part, mean_row};
use crate::run;
use crate::run::folder::{files_of, names};
use crate::run::outputs;
use crate::spec::ModelSpec;
use crate::spec::{Precision, Prefixes};
use crate::train::metrics::{EvalSet, Quality, dead_fraction};
use serde::Serialize;
use splits::RunSplits;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A model named by its run folder or its file.
///
/// # Errors
/// A run that has no model yet (the message says how to get one); a file that is no model.
pub fn load_model(path: &Path) -> Result<(Params, ModelMeta)> {
    if !path.is_dir() {
        return model_file::load(path);
    }
    let file = path.join(names::MODEL);
    if !file.is_file() && path.join(names::CONFIG).is_file() {
        return Err(Error::Usage(format!(
            "{} has no {} yet; finish the run with `sae train --resume {}`",
            path.display(),
            names::MODEL,
            path.display()
        )));
    }
    model_file::load(&file)
}

/// Data and model must be of one width.
fn check_width(data: &Path, width: usize, model: &Path, d_in: usize) -> Result<()> {
    if width == d_in {
        return Ok(());
    }
    let what = format!(
        "has rows of {width} values, the model {} takes {d_in}; give embeddings of the same kind",
        model.display()
    );
    Err(Error::data(data, "", what))
}

/// A model, and the rows that it is asked about.
#[derive(Debug, Clone)]
pub struct Source {
    /// Run folder or model file.
    pub model: PathBuf,
    /// Data files.
    pub data: Vec<PathBuf>,
    /// Rows in memory, in place of files.
    pub given: Option<Arc<Embeddings>>,
    /// How they are read.
    pub reading: LoadOptions,
    /// Where to compute.
    pub device: DeviceChoice,
    /// No progress, no warnings.
    pub quiet: bool,
}

impl Source {
    /// What messages on the rows as a whole name: the first file.
    fn place(&self) -> &Path {
        self.data.first().map_or(Path::new(data::GIVEN), PathBuf::as_path)
    }

    /// The files that are read, so that no output takes the place of one.
    pub fn inputs(&self) -> Vec<PathBuf> {
        let model = if self.model.is_dir() { files_of(&self.model) } else { vec![self.model.clone()] };
        // What cannot be found is told of where it is read.
        let data = data_files(&self.data).map_or_else(|_| self.data.clone(), |found| found.paths);
        data.into_iter().chain(model).collect()
    }
}

/// Which rows to measure on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvalRows {
    /// Those of each split of the run, those that are in none, and all.
    Each,
    /// Those of one split.
    Split(Part),
    /// All.
    All,
}

/// Name of rows that are in no split of the run, where others are.
pub const NEW: &str = "new";

/// Quality on some rows.
#[derive(Debug, Clone, Serialize)]
pub struct EvalResult {
    /// `train`, `val`, `test`: rows that the run put there; [`NEW`]: rows that it has never seen; `all`.
    pub split: String,
    /// The figures.
    #[serde(flatten)]
    pub quality: Quality,
    /// Share of latents active on none of these rows.
    pub dead_on_these_rows: f64,
    /// Share of latents active on no training row, as the run's `summary.json` says; `None` where there is none.
    pub dead_on_training_rows: Option<f64>,
    /// Prefixes of the latents that reconstruct on their own: those of `fvu_by_prefix`.
    #[serde(skip_serializing_if = "Prefixes::is_empty")]
    pub prefixes: Prefixes,
    /// [`EvalResult::dead_on_these_rows`] under its older name.
    pub dead_fraction: f64,
}

/// Measures a model on rows of the data; splits without rows are left out.
///
/// With [`EvalRows::Each`] a row is in a split only if `splits.tsv` of the run folder names its id. With
/// [`EvalRows::Split`] other ids are put into a split by their hash, with a warning. A model that was trained
/// elsewhere has no mean of its training rows: FVU is then against that of all these rows. The arithmetic is
/// float32 whatever the model was trained in: its weights are float32.
///
/// # Errors
/// A device that cannot be used; data of another width than the model's; no rows in the split asked for;
/// [`Error::Interrupted`] once `stop` is set.
pub fn evaluate(request: &Source, wanted: EvalRows, stop: &AtomicBool) -> Result<Vec<EvalResult>> {
    let (params, meta) = load_model(&request.model)?;
    let device = request.device.select(request.quiet)?;
    let data = match &request.given {
        Some(rows) => {
            if !request.quiet {
                run::warn_of(rows);
            }
            rows.clone()
        }
        None => Arc::new(run::load(&request.data, &request.reading, &request.model, request.quiet)?),
    };
    check_width(request.place(), data.d_in(), &request.model, meta.architecture.d_in)?;
    let (d, m) = (meta.architecture.d_in, meta.architecture.n_latents);
    let all: Vec<u32> = (0..data.n_rows() as u32).collect();
    let sets = sets(request, &data, &RunSplits::of(&request.model, &meta)?, wanted);
    let mean: Vec<f64> = if meta.train_mean.is_empty() {
        mean_row(data.as_ref(), &all)?
    } else {
        meta.train_mean.iter().map(|&v| f64::from(v)).collect()
    };
    // A summary that cannot be read is no reason to measure nothing.
    let summary = outputs::read_summary(&request.model.join(names::SUMMARY)).unwrap_or(None);
    let dead_on_training_rows = summary.map(|s| s.dead_fraction);
    let spec = ModelSpec::to_run(meta.architecture.forward);
    let state = TrainState::start(params, false);
    let mut backend = backend::open(device, data.clone(), spec, Precision::F32, state)?;
    let mut results = vec![];
    for (split, rows) in sets {
        let mut fired = vec![0u64; m];
        let set = EvalSet::new(data.as_ref(), rows, &mean)?;
        if let Some(quality) = set.measure(backend.as_mut(), d, &mut fired, &mut || check_flag(stop))? {
            let parts = [Part::Train, Part::Val, Part::Test];
            let part = parts.into_iter().find(|part| part.to_string() == split);
            let which = part.map_or(if split == NEW { NEW } else { "data" }, Part::rows);
            let why = set.explain(&quality, which, data.as_ref(), backend.as_mut(), m)?;
            why.into_iter().filter(|_| !request.quiet).for_each(console::warn);
            let dead = dead_fraction(&fired);
            results.push(EvalResult {
                split,
                quality,
                dead_on_these_rows: dead,
                dead_on_training_rows,
                prefixes: meta.architecture.forward.prefixes,
                dead_fraction: dead,
            });
        }
    }
    if results.is_empty() {
        return Err(Error::Usage("that split has no rows in these data; use --split all".into()));
    }
    Ok(results)
}

/// Rows to measure on, by name.
fn sets(
    request: &Source,
    data: &Embeddings,
    splits: &RunSplits,
    wanted: EvalRows,
) -> Vec<(String, Vec<u32>)> {
    let all = || (0..data.n_rows() as u32).collect::<Vec<u32>>();
    let id = |row: u32| data.index().group_id(data.index().group_of(row as usize));
    match wanted {
        EvalRows::All => vec![("all".to_owned(), all())],
        EvalRows::Split(part) => {
            let mut hashed = 0;
            let mut rows = all();
            rows.retain(|&row| {
                let (of, by_hash) = splits.of_id(id(row));
                hashed += u64::from(of == part && by_hash);
                of == part
            });
            if let Some(warning) = splits.warning(part, rows.len() as u64, hashed).filter(|_| !request.quiet)
            {
                console::warn(warning);
            }
            vec![(part.to_string(), rows)]
        }
        EvalRows::Each => {
            let mut sets: Vec<(String, Vec<u32>)> =
                ["train", "val", "test", NEW].map(|name| (name.to_owned(), vec![])).into();
            for row in all() {
                let at = splits.of_run(id(row)).map_or(3, |part| part as usize);
                sets[at].1.push(row);
            }
            if sets[3].1.len() == data.n_rows() {
                sets.clear();
            }
            sets.push(("all".to_owned(), all()));
            sets
        }
    }
}
