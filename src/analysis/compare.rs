//! `sae compare`: several runs side by side.

use crate::config::{Options, Preset};
use crate::error::{Error, Result};
use crate::run::folder::names;
use crate::run::outputs::Summary;
use crate::spec::Activation;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A run as the table shows it.
#[derive(Debug, Clone, Serialize)]
pub struct RunRow {
    /// The folder as it was named.
    pub run: String,
    /// Preset it was trained with.
    pub preset: Option<Preset>,
    /// What makes its codes, `prefixes` where some latents reconstruct on their own.
    pub activation: String,
    /// Decoder and encoder are one tensor.
    pub tied: bool,
    /// Latents, M.
    pub n_latents: Option<usize>,
    /// Active latents, k.
    pub k: Option<usize>,
    /// Steps done: of the model that was kept, or, where the run is not finished, at its last evaluation.
    pub steps: u64,
    /// False: the figures are those of the last line of `metrics.csv`, on the rows measured there.
    pub finished: bool,
    /// FVU on the validation split.
    pub val_fvu: Option<f64>,
    /// Active latents per row on the validation split.
    pub val_l0: Option<f64>,
    /// Share of latents that are active on no training row.
    pub dead_fraction: Option<f64>,
    /// Training rows per second, steps alone.
    pub rows_per_second: Option<f64>,
}

/// The figures of `runs`, the lowest validation FVU first; runs without one last.
///
/// # Errors
/// A folder that is no run, or a run without an evaluation; files of it that cannot be read.
pub fn compare(runs: &[PathBuf]) -> Result<Vec<RunRow>> {
    let mut rows = runs.iter().map(|run| read(run)).collect::<Result<Vec<_>>>()?;
    let rank = |row: &RunRow| row.val_fvu.unwrap_or(f64::INFINITY);
    rows.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
    Ok(rows)
}

fn read(run: &Path) -> Result<RunRow> {
    let config = run.join(names::CONFIG);
    if !config.is_file() {
        return Err(Error::Usage(format!(
            "{} is not a run folder (it has no {}); name folders that `sae train` made",
            run.display(),
            names::CONFIG
        )));
    }
    let options = Options::of_run(&config)?;
    let base = RunRow {
        run: run.display().to_string(),
        preset: options.preset,
        activation: kind(&options),
        tied: options.tied.unwrap_or(false),
        n_latents: options.latents,
        k: options.k,
        steps: 0,
        finished: false,
        val_fvu: None,
        val_l0: None,
        dead_fraction: None,
        rows_per_second: None,
    };
    let summary = run.join(names::SUMMARY);
    if !summary.is_file() {
        return last_line(&run.join(names::METRICS), base);
    }
    let text = std::fs::read_to_string(&summary).map_err(Error::io(&summary, "read"))?;
    let s: Summary = serde_json::from_str(&text).map_err(|e| Error::Model {
        path: summary.clone(),
        what: format!("is damaged or of another version ({e}); run `sae train --resume` on its folder"),
    })?;
    Ok(RunRow {
        n_latents: Some(s.n_latents),
        k: Some(s.k),
        steps: s.steps,
        finished: true,
        val_fvu: s.val.and_then(|q| finite(q.fvu)),
        val_l0: s.val.and_then(|q| finite(q.l0)),
        dead_fraction: finite(s.dead_fraction),
        rows_per_second: finite(s.rows_per_second),
        ..base
    })
}

/// As in `batch-topk, prefixes`.
fn kind(options: &Options) -> String {
    let activation = options.activation.unwrap_or(Activation::Topk);
    format!("{activation}{}", if options.prefixes.is_some() { ", prefixes" } else { "" })
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Figures of a run that is not finished.
fn last_line(path: &Path, base: RunRow) -> Result<RunRow> {
    let none = || Error::Data {
        path: path.to_owned(),
        place: String::new(),
        what: "has no evaluation yet; wait for the run, or leave it out".into(),
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(none()),
        Err(e) => return Err(Error::io(path, "read")(e)),
    };
    let mut reader = csv::Reader::from_reader(text.as_slice());
    let damaged = |e: csv::Error| Error::data(path, "", format!("is not a table of metrics ({e})"));
    let header = reader.headers().map_err(damaged)?.clone();
    let last = reader.records().last().ok_or_else(none)?.map_err(damaged)?;
    let get = |name: &str| -> Option<f64> {
        let column = header.iter().position(|field| field == name)?;
        last.get(column)?.parse().ok().and_then(finite)
    };
    let steps = get("step").ok_or_else(none)? as u64;
    Ok(RunRow {
        steps,
        val_fvu: get("val_fvu"),
        val_l0: get("val_l0"),
        dead_fraction: get("dead_fraction"),
        rows_per_second: get("rows_per_second"),
        ..base
    })
}
