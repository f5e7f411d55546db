//! `sae encode`: the sparse code of every row into a file, in memory that does not grow with the rows' values.

use super::codes::{self, Walked};
use super::sink::{CodeFormat, Shape, Sink};
use super::{Source, load_model};
use crate::error::Result;
use crate::files;
use crate::rows::Part;
use crate::run::{Kind, Output, Outputs};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// What to encode, and where to.
#[derive(Debug, Clone)]
pub struct EncodeRequest {
    /// Model and data.
    pub source: Source,
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
    /// Active latents per row.
    pub l0: f64,
    /// Latents, M.
    pub width: usize,
    /// Most active latents per row; `None` where the model keeps all positive scores.
    pub k: Option<usize>,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
}

/// Encodes every row of a split (or of all data) into one file, written whole or not at all.
///
/// Values are in the model's own units: relu of the scores. The split is that of [`codes::walk`].
/// The rows' values are read in blocks of 16 MiB; their ids stay in memory.
///
/// # Errors
/// An output that is there already, or is one of the inputs; data of another width than the model's; no rows in the
/// split; scores that are not finite; [`crate::error::Error::Interrupted`] once `stop` is set; what the device or disk refuses.
pub fn encode(request: &EncodeRequest, stop: &AtomicBool) -> Result<Encoded> {
    let kind = if request.format == CodeFormat::H5 { Kind::Hdf5 } else { Kind::Text };
    Outputs {
        files: &[Output { flag: "--out", path: &request.out, kind }],
        inputs: &request.source.inputs(),
        overwrite: request.overwrite,
        ..Default::default()
    }
    .check()?;
    let (params, meta) = load_model(&request.source.model)?;
    let shape = Shape::new(&meta, request.source.model.display().to_string());
    let mut walked = Walked::default();
    let mut active = 0;
    let fill = |mut sink: Sink| {
        walked = codes::walk(&request.source, (params, &meta), request.split, stop, |names, codes| {
            sink.add(&names.ids, codes)
        })?;
        active = sink.finish()?.1;
        Ok(())
    };
    match request.format {
        CodeFormat::H5 => {
            files::write_by_name(&request.out, |path| fill(Sink::hdf5(path, &request.out, &shape)?))
        }
        CodeFormat::Tsv => files::write_with(&request.out, |file| fill(Sink::table(file, &request.out)?)),
    }?;
    Ok(Encoded {
        path: request.out.display().to_string(),
        rows: walked.rows,
        active,
        l0: active as f64 / walked.rows as f64,
        width: meta.architecture.n_latents,
        k: shape.k,
        skipped_rows: walked.skipped_rows,
    })
}
