//! The sparse code of every row, block by block, in memory that does not grow with the rows' values.

use super::splits::RunSplits;
use super::{Source, check_width};
use crate::backend::{self, Backend, Codes, DeviceChoice};
use crate::console;
use crate::console::progress::Spinner;
use crate::data::{self, DataFiles, Embeddings, Skipped};
use crate::error::{Error, Result};
use crate::interrupt::check_flag;
use crate::model::file::ModelMeta;
use crate::model::{Params, TrainState, Weights};
use crate::rows::{Part, RowSource};
use crate::run::warn_of;
use crate::spec::{ModelSpec, Precision};
use crate::text::thousands;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Bytes of values read at a time.
const BLOCK_BYTES: usize = 16 << 20;
/// Rows encoded at a time: bounds the memory of codes that are not sparse.
const CALL_ROWS: usize = 1024;

/// What a walk has seen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Walked {
    /// Rows encoded.
    pub rows: u64,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
    /// Rows that are in the split asked for by the hash of their ids alone: the run has never seen them.
    pub hashed_rows: u64,
}

/// The names of some rows.
#[derive(Debug, Clone)]
pub struct RowNames<'a> {
    /// Id of each row: `id:residue` in per-residue files ([`crate::rows::RowIndex::row_id`]).
    pub ids: Vec<String>,
    /// Id of each row's group, which the split keeps together: its protein in per-residue files, else its own id.
    pub groups: Vec<&'a str>,
}

/// Gives `take` the names and inference codes of every row of a split (`None` is all rows), some at a time, in the
/// order of the files.
///
/// Values are in the model's own units: relu of the scores. The split of an id is the one in the run's `splits.tsv`; an
/// id that the run has never seen is put into one by its hash, with a warning.
/// The rows' values are read in blocks of 16 MiB; their ids stay in memory.
///
/// # Errors
/// Data of another width than the model's; no rows in the split; scores that are not finite; [`Error::Interrupted`]
/// once `stop` is set; what the device or disk refuses; what `take` refuses.
pub fn walk(
    source: &Source,
    (params, meta): (Params, &ModelMeta),
    split: Option<Part>,
    stop: &AtomicBool,
    mut take: impl FnMut(&RowNames<'_>, &Codes) -> Result<()>,
) -> Result<Walked> {
    let device = source.device.select(source.quiet)?;
    let files = match &source.given {
        Some(_) => None,
        None => Some(DataFiles::open(&source.data, &source.reading)?),
    };
    if !source.quiet {
        files.iter().flat_map(DataFiles::warnings).for_each(console::warn);
        source.given.iter().for_each(|rows| warn_of(rows));
    }
    let mut blocks = match (&source.given, &files) {
        (None, Some(files)) => Blocks::Files(files.blocks(BLOCK_BYTES)?),
        (Some(rows), _) => Blocks::Given { rows, done: false },
        (None, None) => return Err(Error::Usage("no data: name one or more files of embeddings".into())),
    };
    check_width(source.place(), blocks.d_in(), &source.model, meta.architecture.d_in)?;
    let spec = ModelSpec::to_run(meta.architecture.forward);
    let spinner = Spinner::new("encoding", source.quiet);
    let mut state = Some(TrainState::start(params, false));
    let mut opened: Option<Box<dyn Backend>> = None;
    let splits =
        split.map(|part| RunSplits::of(&source.model, meta).map(|splits| (part, splits))).transpose()?;
    let (mut n_rows, mut hashed_rows) = (0, 0);
    while let Some(data) = blocks.next_block()? {
        let mut rows: Vec<u32> = (0..data.n_rows() as u32).collect();
        if let Some((part, splits)) = &splits {
            rows.retain(|&row| {
                let (of, by_hash) = splits.of_id(data.index().group_id(data.index().group_of(row as usize)));
                hashed_rows += u64::from(of == *part && by_hash);
                of == *part
            });
        }
        let backend = match (&mut opened, state.take()) {
            (Some(backend), _) => {
                backend.set_data(data.clone())?;
                backend
            }
            (none, Some(state)) => {
                none.insert(backend::open(device, data.clone(), spec.clone(), Precision::F32, state)?)
            }
            (None, None) => {
                return Err(Error::Failed("a second backend was asked for; please report this".into()));
            }
        };
        let why = |row: u32| {
            let id = data.index().row_id(row as usize);
            format!(
                "a score of the row \"{id}\" is not finite: its values are too large for this model; look at them with `sae inspect`"
            )
        };
        encode_rows(backend.as_mut(), &rows, why, stop, |rows, codes| {
            let names = RowNames {
                ids: rows.iter().map(|&row| data.index().row_id(row as usize)).collect(),
                groups: rows
                    .iter()
                    .map(|&row| data.index().group_id(data.index().group_of(row as usize)))
                    .collect(),
            };
            n_rows += rows.len() as u64;
            take(&names, codes)
        })?;
        let (done, all) = blocks.progress();
        spinner.update(&format!("{} of {} rows", thousands(done), thousands(all)));
    }
    if n_rows == 0 {
        return Err(match (blocks.skipped().examples.first(), split) {
            (_, Some(_)) => Error::Usage("that split has no rows in these data; use --split all".into()),
            (Some(example), None) => {
                let what = format!("no usable row is left: all were skipped, first {example}");
                Error::data(source.place(), "", what)
            }
            (None, None) => Error::data(source.place(), "", "holds no rows; give a file with embeddings"),
        });
    }
    spinner.finish(&format!("{} rows", thousands(n_rows)));
    if !source.quiet {
        if let Blocks::Files(files) = &blocks {
            files.skipped().warn();
        }
        let told = splits.and_then(|(part, splits)| splits.warning(part, n_rows, hashed_rows));
        told.into_iter().for_each(console::warn);
    }
    Ok(Walked { rows: n_rows, skipped_rows: blocks.skipped().total(), hashed_rows })
}

/// Rows of files, block by block, or those in memory as one block.
enum Blocks<'a> {
    Files(data::Blocks<'a>),
    Given { rows: &'a Arc<Embeddings>, done: bool },
}

impl Blocks<'_> {
    fn d_in(&self) -> usize {
        match self {
            Self::Files(files) => files.d_in(),
            Self::Given { rows, .. } => rows.d_in(),
        }
    }

    fn next_block(&mut self) -> Result<Option<Arc<Embeddings>>> {
        match self {
            Self::Files(files) => Ok(files.next_block()?.map(Arc::new)),
            Self::Given { rows, done } => Ok((!std::mem::replace(done, true)).then(|| rows.clone())),
        }
    }

    /// Rows that were given out or dropped, and all there are.
    fn progress(&self) -> (u64, u64) {
        match self {
            Self::Files(files) => (files.rows_done() as u64, files.n_rows() as u64),
            Self::Given { rows, done } => {
                (if *done { rows.n_rows() as u64 } else { 0 }, rows.n_rows() as u64)
            }
        }
    }

    fn skipped(&self) -> &Skipped {
        match self {
            Self::Files(files) => files.skipped(),
            Self::Given { rows, .. } => rows.skipped(),
        }
    }
}

/// The inference codes of `rows`, `CALL_ROWS` at a time, to `take` with the numbers of their rows. `why` is the error for a
/// row with a score that is not finite.
///
/// # Errors
/// Scores that are not finite; [`Error::Interrupted`] once `stop` is set; what the device refuses; what `take` refuses.
pub fn encode_rows(
    backend: &mut dyn Backend,
    rows: &[u32],
    why: impl Fn(u32) -> String,
    stop: &AtomicBool,
    mut take: impl FnMut(&[u32], &Codes) -> Result<()>,
) -> Result<()> {
    for rows in rows.chunks(CALL_ROWS) {
        check_flag(stop)?;
        let codes = backend.encode(rows, Weights::Last)?;
        if let Some(bad) = codes.bad {
            return Err(Error::Failed(why(rows[bad])));
        }
        take(rows, &codes)?;
    }
    Ok(())
}

/// The inference codes of all of `rows`, in memory; their entries are in the order of the latents.
///
/// # Errors
/// Rows of another width than the model's; as [`encode_rows`].
pub fn encode_all(
    (params, meta): (&Params, &ModelMeta),
    rows: Arc<dyn RowSource>,
    device: DeviceChoice,
    stop: &AtomicBool,
) -> Result<Codes> {
    let (d_in, width) = (meta.architecture.d_in, rows.d_in());
    if width != d_in {
        return Err(Error::Usage(format!("the rows have {width} values and the model takes {d_in}")));
    }
    let spec = ModelSpec::to_run(meta.architecture.forward);
    let state = TrainState::start(params.clone(), false);
    let mut backend = backend::open(device.select(true)?, rows.clone(), spec, Precision::F32, state)?;
    let all: Vec<u32> = (0..rows.n_rows() as u32).collect();
    let mut codes = Codes::default();
    encode_rows(
        backend.as_mut(),
        &all,
        |row| {
            let row = rows.describe(row);
            format!(
                "a score of {row} is not finite: the row has values that are not finite or too large for this model"
            )
        },
        stop,
        |_, part| {
            for row in 0..part.n_rows() {
                let (latents, values) = part.row(row);
                codes.push_row(latents.iter().copied().zip(values.iter().copied()), true);
            }
            Ok(())
        },
    )?;
    Ok(codes)
}

/// How often and how strongly each latent was active on some rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Firing {
    /// Rows, N.
    pub rows: u64,
    /// Rows that each latent is active on (M).
    pub fired: Vec<u64>,
    /// Largest activation of each latent (M), 0 where there is none.
    pub largest: Vec<f32>,
}

/// Counts on all rows of `source` how often each latent is active, and finds its largest activation.
///
/// # Errors
/// As [`walk`].
pub fn firing(source: &Source, (params, meta): (&Params, &ModelMeta), stop: &AtomicBool) -> Result<Firing> {
    let m = meta.architecture.n_latents;
    let (mut fired, mut largest) = (vec![0u64; m], vec![0f32; m]);
    let walked = walk(source, (params.clone(), meta), None, stop, |_, codes| {
        for (&latent, &value) in codes.indices.iter().zip(&codes.values) {
            fired[latent as usize] += 1;
            largest[latent as usize] = largest[latent as usize].max(value);
        }
        Ok(())
    })?;
    Ok(Firing { rows: walked.rows, fired, largest })
}
