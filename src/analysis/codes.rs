//! The sparse code of every row, block by block, in memory that does not grow with the rows' values.

use super::splits::RunSplits;
use super::{Source, check_width};
use crate::backend::{self, Backend, Codes};
use crate::console;
use crate::console::progress::Spinner;
use crate::data::DataFiles;
use crate::error::{Error, Result};
use crate::model::file::ModelMeta;
use crate::model::{Params, TrainState, Weights};
use crate::rows::Part;
use crate::spec::{ModelSpec, Precision};
use crate::text::thousands;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of values read at a time.
const BLOCK_BYTES: usize = 64 << 20;
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
/// The rows' values are read in blocks of 64 MiB; their ids stay in memory.
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
    let files = DataFiles::open(&source.data, &source.reading)?;
    if !source.quiet {
        files.warnings().for_each(console::warn);
    }
    let mut blocks = files.blocks(BLOCK_BYTES)?;
    check_width(&source.data[0], blocks.d_in(), &source.model, meta.architecture.d_in)?;
    let spec = ModelSpec::to_run(meta.architecture.forward);
    let spinner = Spinner::new("encoding", source.quiet);
    let mut state = Some(TrainState::start(params, false));
    let mut opened: Option<Box<dyn Backend>> = None;
    let splits =
        split.map(|part| RunSplits::of(&source.model, meta).map(|splits| (part, splits))).transpose()?;
    let (mut n_rows, mut hashed_rows) = (0, 0);
    while let Some(block) = blocks.next_block()? {
        let data = Arc::new(block);
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
        for rows in rows.chunks(CALL_ROWS) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted("interrupted; nothing was written".into()));
            }
            let codes = backend.encode(rows, Weights::Last)?;
            let names = RowNames {
                ids: rows.iter().map(|&row| data.index().row_id(row as usize)).collect(),
                groups: rows
                    .iter()
                    .map(|&row| data.index().group_id(data.index().group_of(row as usize)))
                    .collect(),
            };
            if let Some(bad) = codes.bad {
                return Err(Error::Failed(format!(
                    "a score of the row \"{}\" is not finite: its values are too large for this model; look at them with `sae inspect`",
                    names.ids[bad]
                )));
            }
            n_rows += rows.len() as u64;
            take(&names, &codes)?;
        }
        let (done, all) = (blocks.rows_done() as u64, blocks.n_rows() as u64);
        spinner.update(&format!("{} of {} rows", thousands(done), thousands(all)));
    }
    if n_rows == 0 {
        return Err(match (blocks.skipped().examples.first(), split) {
            (_, Some(_)) => Error::Usage("that split has no rows in these data; use --split all".into()),
            (Some(example), None) => {
                let what = format!("no usable row is left: all were skipped, first {example}");
                Error::data(&source.data[0], "", what)
            }
            (None, None) => Error::data(&source.data[0], "", "holds no rows; give a file with embeddings"),
        });
    }
    spinner.finish(&format!("{} rows", thousands(n_rows)));
    if !source.quiet {
        blocks.skipped().warn();
        let told = splits.and_then(|(part, splits)| splits.warning(part, n_rows, hashed_rows));
        told.into_iter().for_each(console::warn);
    }
    Ok(Walked { rows: n_rows, skipped_rows: blocks.skipped().total(), hashed_rows })
}

/// Share of all rows that activate each latent (M).
///
/// # Errors
/// As [`walk`].
pub fn firing_rates(
    source: &Source,
    (params, meta): (&Params, &ModelMeta),
    stop: &AtomicBool,
) -> Result<Vec<f64>> {
    let mut fired = vec![0u64; meta.architecture.n_latents];
    let walked = walk(source, (params.clone(), meta), None, stop, |_, codes| {
        for latent in &codes.indices {
            fired[*latent as usize] += 1;
        }
        Ok(())
    })?;
    Ok(fired.into_iter().map(|n| n as f64 / walked.rows as f64).collect())
}
