//! `sae encode`: the sparse code of every row into a file, in memory that does not grow with the rows' values.

use super::load_model;
use super::sink::{CodeFormat, Shape, Sink};
use crate::backend::{self, Backend, DeviceChoice, Weights};
use crate::config::Precision;
use crate::data::{Blocks, DataFiles, Embeddings, LoadOptions, Part, part_of_id};
use crate::error::{Error, Result};
use crate::files;
use crate::model::TrainState;
use crate::model_file::ModelMeta;
use crate::report::progress::Phase;
use crate::report::table::thousands;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of values read at a time.
const BLOCK_BYTES: usize = 64 << 20;
/// Rows encoded at a time: bounds the memory of codes that are not sparse.
const CALL_ROWS: usize = 1024;

/// What to encode, and where to.
#[derive(Debug, Clone)]
pub struct EncodeRequest {
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
    /// Rows of one split; `None` is all rows.
    pub split: Option<Part>,
    /// The file that is made.
    pub out: PathBuf,
    /// What is written into it.
    pub format: CodeFormat,
    /// Replace a file that is there.
    pub overwrite: bool,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Encoded {
    /// The file.
    pub path: String,
    /// Rows encoded.
    pub rows: u64,
    /// Active latents, summed over rows.
    pub active: u64,
    /// Active latents a row.
    pub l0: f64,
    /// Latents, M.
    pub width: usize,
    /// Most active latents a row; `None` where the model keeps all positive scores.
    pub k: Option<usize>,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
}

/// Encodes every row of a split (or of all data) into one file, written whole or not at all.
///
/// Values are in the model's own units: relu of the scores. The split is the one that the model was trained with.
/// The rows' values are read in blocks of 64 MiB; their ids stay in memory.
///
/// # Errors
/// An output that is there already, or is one of the inputs; data of another width than the model's; no rows in the
/// split; scores that are not finite; [`Error::Interrupted`] once `stop` is set; what the device or disk refuses.
pub fn encode(request: &EncodeRequest, stop: &AtomicBool) -> Result<Encoded> {
    check_out(request)?;
    let (params, meta) = load_model(&request.model)?;
    let device = request.device.select(request.quiet)?;
    let options = LoadOptions { dataset: request.dataset.clone(), skip_bad_rows: request.skip_bad_rows };
    let files = DataFiles::open(&request.data, &options)?;
    let mut blocks = files.blocks(BLOCK_BYTES)?;
    super::check_width(&request.data[0], blocks.d_in(), &request.model, meta.d_in)?;
    let spec = backend::ModelSpec { ema: None, ..meta.spec()? };
    let mut state = Some(TrainState::start(params, false));
    let mut open = |data| match state.take() {
        Some(state) => backend::open(device, data, spec.clone(), Precision::F32, state),
        None => Err(Error::Failed("a second backend was asked for; please report this".into())),
    };
    let model = request.model.display().to_string();
    let shape = Shape::new(&meta, model);
    let (mut rows, mut active) = (0, 0);
    let phase = Phase::new("encoding", request.quiet);
    files::write_whole_with(&request.out, |temporary| {
        let mut sink = Sink::create(temporary, &request.out, request.format, &shape)?;
        write_all(request, &meta, &mut blocks, &mut open, &mut sink, &|state| phase.update(state), stop)?;
        (rows, active) = sink.finish()?;
        if rows > 0 {
            return Ok(());
        }
        Err(match (blocks.skipped().examples.first(), request.split) {
            (_, Some(_)) => Error::Usage("that split has no rows in these data; use --split all".into()),
            (Some(example), None) => {
                let what = format!("no usable row is left: all were skipped, first {example}");
                Error::data(&request.data[0], "", what)
            }
            (None, None) => Error::data(&request.data[0], "", "holds no rows; give a file with embeddings"),
        })
    })?;
    phase.finish(&format!("{} rows", thousands(rows)));
    if !request.quiet {
        blocks.skipped().warn();
    }
    Ok(Encoded {
        path: request.out.display().to_string(),
        rows,
        active,
        l0: active as f64 / rows as f64,
        width: meta.n_latents,
        k: shape.k,
        skipped_rows: blocks.skipped().total(),
    })
}

type Open<'a> = dyn FnMut(Arc<Embeddings>) -> Result<Box<dyn Backend>> + 'a;

/// Encodes block after block into `sink`.
fn write_all(
    request: &EncodeRequest,
    meta: &ModelMeta,
    blocks: &mut Blocks<'_>,
    open: &mut Open<'_>,
    sink: &mut Sink,
    progress: &dyn Fn(&str),
    stop: &AtomicBool,
) -> Result<()> {
    let mut backend: Option<Box<dyn Backend>> = None;
    while let Some(block) = blocks.next_block()? {
        let data = Arc::new(block);
        let wanted = |row: &u32| {
            let id = data.group_id(data.group_of(*row as usize));
            request.split.is_none_or(|part| part_of_id(id, meta.seed) == part)
        };
        let rows: Vec<u32> = (0..data.n_rows() as u32).filter(wanted).collect();
        let backend = match &mut backend {
            Some(backend) => {
                backend.set_data(data.clone())?;
                backend
            }
            none => none.insert(open(data.clone())?),
        };
        for rows in rows.chunks(CALL_ROWS) {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted(format!(
                    "interrupted; {} was not written",
                    request.out.display()
                )));
            }
            let codes = backend.encode(rows, Weights::Last)?;
            let ids: Vec<String> = rows.iter().map(|&row| data.row_id(row as usize)).collect();
            if let Some(bad) = codes.bad {
                return Err(Error::Failed(format!(
                    "a score of the row \"{}\" is not finite: its values are too large for this model; look at them with `sae inspect`",
                    ids[bad]
                )));
            }
            sink.add(&ids, &codes)?;
        }
        let (done, all) = (blocks.rows_done() as u64, blocks.n_rows() as u64);
        progress(&format!("{} of {} rows", thousands(done), thousands(all)));
    }
    Ok(())
}

/// Refuses an output that is there already, and one that would replace what is read.
fn check_out(request: &EncodeRequest) -> Result<()> {
    let out = &request.out;
    let shown = out.display();
    if out.file_name().is_none() || out.is_dir() {
        return Err(Error::Usage(format!("--out {shown} is a folder; name a file, as in codes.h5")));
    }
    let same = |path: &Path| match (path.canonicalize(), out.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    };
    if request.data.iter().chain([&request.model]).any(|path| same(path)) {
        return Err(Error::Usage(format!("--out {shown} is an input as well; name another file")));
    }
    if out.exists() && !request.overwrite {
        return Err(Error::Usage(format!(
            "--out {shown} is there already; name another file, or replace it with --overwrite"
        )));
    }
    Ok(())
}
