//! Latents along the rows of one id, and the structure that shows one of them.

use super::{Data, json, source};
use crate::errors::UsageError;
use crate::worker;
use pyo3::prelude::*;
use std::path::PathBuf;
use topk_sae::analysis::features::track::{TrackRequest, track};
use topk_sae::analysis::structure::{Matching, Structure};
use topk_sae::files;
use topk_sae::run::{Kind, Output, Outputs};

/// Latents along the rows of an id, as JSON.
#[pyfunction(name = "track")]
#[allow(clippy::too_many_arguments)]
pub fn track_of(
    py: Python<'_>,
    model: PathBuf,
    data: Data,
    id: String,
    latents: Option<Vec<u32>>,
    tokens: (u32, u32),
    options: super::Texts,
    device: &str,
) -> PyResult<String> {
    let (source, _) = source(model, data, options, device)?;
    let request = TrackRequest { source, id, latents, tokens };
    worker::run(py, false, None, |stop, _| json(&track(&request, stop)?))
}

/// Writes a copy of a structure whose B-factors are `values`, one per row of `id`; what became of it, as JSON.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn colour(
    py: Python<'_>,
    structure: PathBuf,
    out: PathBuf,
    id: &str,
    values: Vec<f64>,
    chains: Vec<String>,
    matching: &str,
    overwrite: bool,
) -> PyResult<String> {
    let matching: Matching = matching.parse().map_err(|why| UsageError::new_err(format!("match: {why}")))?;
    worker::run(py, false, None, |_, _| {
        let files = [Output { flag: "out", path: &out, kind: Kind::Text }];
        let inputs = [structure.clone()];
        Outputs { files: &files, inputs: &inputs, overwrite, ..Default::default() }.check()?;
        let structure = Structure::read(&structure)?;
        structure.check_copy("out", &out)?;
        let placed = structure.place((id, values.len()), &chains, matching)?;
        files::write_whole(&out, &structure.with_b_factors(&placed, &values))?;
        json(&placed)
    })
}
