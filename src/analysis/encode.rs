//! `sae encode`: the sparse code of every row into a file, in memory that does not grow with the rows' values.

use super::codes::{self, Walked};
use super::sink::{CodeFormat, Shape, Sink};
use super::{Source, load_model};
use crate::backend::Codes;
use crate::error::{Error, Result};
use crate::files;
use crate::model::ModelMeta;
use crate::rows::Part;
use crate::run::{Kind, Output, Outputs};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// What to encode, and where to.
#[derive(Debug, Clone)]
pub struct EncodeRequest {
    /// Model and data.
    pub source: Source,
    /// Rows of one split; `None` is all rows.
    pub split: Option<Part>,
    /// Number of a prefix, from 1, whose latents are kept alone; `None` is all latents.
    pub prefix: Option<usize>,
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
    /// Most active latents per row; `None` where the model has no places per row.
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
    let prefix = request.prefix.map(|number| latents_of(&request.source.model, &meta, number)).transpose()?;
    let shape = Shape::new(&meta, request.source.model.display().to_string(), prefix);
    let mut walked = Walked::default();
    let mut active = 0;
    let fill = |mut sink: Sink| {
        walked =
            codes::walk(
                &request.source,
                (params, &meta),
                request.split,
                stop,
                |names, codes| match prefix {
                    None => sink.add(&names.ids, codes),
                    Some(latents) => sink.add(&names.ids, &first_latents(codes, latents)),
                },
            )?;
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

/// Latents of prefix `number` (from 1) of the model at `path`.
fn latents_of(path: &Path, meta: &ModelMeta, number: usize) -> Result<usize> {
    let prefixes = meta.architecture.forward.prefixes;
    let latents = number.checked_sub(1).and_then(|at| prefixes.ends().get(at));
    latents.map(|&latents| latents as usize).ok_or_else(|| {
        let there = if prefixes.is_empty() {
            "has no prefixes: leave --prefix out, or train with --prefixes".to_owned()
        } else {
            format!(
                "has {} prefixes, of {prefixes} latents: give --prefix 1 to {}",
                prefixes.len(),
                prefixes.len()
            )
        };
        Error::Usage(format!("--prefix {number}: {} {there}", path.display()))
    })
}

/// The entries of the first latents alone.
fn first_latents(codes: &Codes, latents: usize) -> Codes {
    let mut first = Codes::default();
    for row in 0..codes.n_rows() {
        let (indices, values) = codes.row(row);
        let end = indices.partition_point(|&j| (j as usize) < latents);
        first.push_row(indices[..end].iter().copied().zip(values[..end].iter().copied()), true);
    }
    first
}
