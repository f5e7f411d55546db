//! What is asked of a trained model.

pub mod codes;
pub mod compare;
pub mod encode;
pub mod features;
pub mod labels;
pub mod overlap;
pub mod report;
pub mod sink;
pub mod statistics;

use crate::backend::{self, DeviceChoice};
use crate::config::Precision;
use crate::data::{LoadOptions, Part, Split};
use crate::error::{Error, Result};
use crate::model::{Params, TrainState};
use crate::model_file::{self, ModelMeta};
use crate::train;
use crate::train::folder::{files_of, names};
use crate::train::metrics::{EvalSet, Quality, dead_fraction, mean_row};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// Dataset or group in them.
    pub dataset: Option<String>,
    /// Drop bad rows.
    pub skip_bad_rows: bool,
    /// Where to compute.
    pub device: DeviceChoice,
    /// No progress, no warnings.
    pub quiet: bool,
}

impl Source {
    /// The files that are read, so that no output takes the place of one.
    pub fn inputs(&self) -> Vec<PathBuf> {
        let model = if self.model.is_dir() { files_of(&self.model) } else { vec![self.model.clone()] };
        self.data.iter().cloned().chain(model).collect()
    }
}

/// Quality on some rows.
#[derive(Debug, Clone, Serialize)]
pub struct EvalResult {
    /// `train`, `val`, `test` or `all`.
    pub split: String,
    /// The figures.
    #[serde(flatten)]
    pub quality: Quality,
    /// Share of latents active on none of these rows.
    pub dead_fraction: f64,
}

/// Measures a model on the named splits (`None` is all rows) of the data; splits without rows are left out.
///
/// The split is the one that the model was trained with: it depends on id and seed alone. A model that was trained
/// elsewhere has no mean of its training rows: FVU is then against that of these data. The arithmetic is
/// float32 whatever the model was trained in: its weights are float32.
///
/// # Errors
/// A device that cannot be used; data of another width than the model's; no rows in any split asked for.
pub fn evaluate(request: &Source, splits: &[Option<Part>]) -> Result<Vec<EvalResult>> {
    let (params, meta) = load_model(&request.model)?;
    let device = request.device.select(request.quiet)?;
    let options = LoadOptions { dataset: request.dataset.clone(), skip_bad_rows: request.skip_bad_rows };
    let data = Arc::new(train::load(&request.data, &options, request.quiet)?);
    check_width(&request.data[0], data.d_in(), &request.model, meta.d_in)?;
    let (d, m) = (meta.d_in, meta.n_latents);
    let split = Split::new(&data, meta.split_seed());
    let all: Vec<u32> = (0..data.n_rows() as u32).collect();
    let mean: Vec<f64> = if meta.train_mean.is_empty() {
        mean_row(&data, if split.train.is_empty() { &all } else { &split.train })
    } else {
        meta.train_mean.iter().map(|&v| f64::from(v)).collect()
    };
    let spec = backend::ModelSpec { ema: None, ..meta.spec()? };
    let state = TrainState::start(params, false);
    let mut backend = backend::open(device, data.clone(), spec, Precision::F32, state)?;
    let mut results = vec![];
    for part in splits {
        let rows = part.map_or(all.as_slice(), |part| split.rows(part));
        let mut fired = vec![0u64; m];
        let set = EvalSet::new(&data, rows, usize::MAX, &mean);
        if let Some(quality) = set.measure(backend.as_mut(), d, &mut fired)? {
            let split = part.map_or("all".to_owned(), |part| part.to_string());
            results.push(EvalResult { split, quality, dead_fraction: dead_fraction(&fired) });
        }
    }
    if results.is_empty() {
        return Err(Error::Usage("that split has no rows in these data; use --split all".into()));
    }
    Ok(results)
}
