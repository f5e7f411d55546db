//! `sae inspect`.

use super::{DataArgs, Global, print, print_json};
use crate::analysis::load_model;
use crate::data::{FileSummary, inspect};
use crate::error::Result;
use crate::files;
use crate::model::file::ModelMeta;
use crate::run::folder::names;
use crate::spec::Activation;
use crate::text::{bytes, number, thousands};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Arguments of `sae inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file of embeddings or a folder of them, a model.safetensors, or a run folder
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    how: DataArgs,
}

/// Runs the command.
pub fn run(args: &Args, global: &Global) -> Result<()> {
    if is_model(&args.file) {
        let (params, mut meta) = load_model(&args.file)?;
        if global.json {
            return print_json(&meta);
        }
        meta.train_mean.clear();
        return print(&describe_model(&meta, params.len() as u64));
    }
    let summary = inspect(&args.file, &args.how.clone().reading())?;
    if global.json { print_json(&summary) } else { print(&describe_data(&summary)) }
}

/// Whether `path` is a run folder or a model, not data.
fn is_model(path: &Path) -> bool {
    if path.is_dir() {
        return [names::MODEL, names::CONFIG].iter().any(|name| path.join(name).is_file());
    }
    path.extension().is_some_and(|e| e == "safetensors") && has_model(path)
}

fn has_model(path: &Path) -> bool {
    let header = File::open(path).map(|file| files::safetensors_header(path, &file));
    header.is_ok_and(|header| header.is_ok_and(|(header, _)| files::is_model(&header)))
}

/// `1 dataset`, `2 datasets`.
fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", thousands(n as u64), if n == 1 { "" } else { "s" })
}

fn describe_model(meta: &ModelMeta, n_params: u64) -> String {
    let ModelMeta { architecture: a, provenance: p, .. } = meta;
    let preset = if p.preset.is_empty() { String::new() } else { format!("{}, ", p.preset) };
    let mut text = format!(
        "model        {preset}D = {}, M = {}, {}k = {}, {}, {}{}\nparameters   {}\nwritten by   {}, after {} steps, seed {}\n",
        a.d_in,
        a.n_latents,
        if a.forward.activation == Activation::Topk {
            String::new()
        } else {
            format!("{}, ", a.forward.activation)
        },
        a.forward.k,
        if a.tied { "tied" } else { "untied" },
        if a.forward.normalize { "rows normalised" } else { "rows as they are" },
        if a.forward.prefixes.is_empty() {
            String::new()
        } else {
            format!(", prefixes {}", a.forward.prefixes)
        },
        thousands(n_params),
        p.version,
        p.steps,
        p.seed,
    );
    if !p.options.is_empty() {
        text.push_str("options\n");
    }
    for (key, value) in p.options.iter().filter(|(_, value)| !value.is_null()) {
        text.push_str(&format!("  {key} = {value}\n"));
    }
    text
}

fn describe_data(s: &FileSummary) -> String {
    let lines = [
        (
            "layout",
            format!(
                "{} ({}, {}{})",
                s.layout,
                s.storage,
                counted(s.n_datasets, "dataset"),
                if s.n_files > 1 {
                    format!(" in {} files", thousands(s.n_files as u64))
                } else {
                    String::new()
                }
            ),
        ),
        ("reading", s.reason.clone()),
        (
            "rows",
            format!(
                "{} of {} ids, {} values each, {}",
                thousands(s.n_rows as u64),
                thousands(s.n_ids as u64),
                s.d_in,
                s.dtype
            ),
        ),
        ("first ids", s.first_ids.join(", ")),
        ("size", format!("{} on disk, {} in memory", bytes(s.file_bytes), bytes(s.value_bytes as u64))),
        (
            "values",
            format!(
                "{} to {}, mean {}, standard deviation {}",
                number(f64::from(s.min)),
                number(f64::from(s.max)),
                number(s.mean),
                number(s.std)
            ),
        ),
        (
            "mean row",
            format!(
                "{} of the squared norm; column {} is the farthest off zero, by {} of its standard deviations",
                format_args!("{:.1} %", 100.0 * s.mean_share),
                s.outlier_column,
                number(s.outlier_severity)
            ),
        ),
        (
            "constant",
            format!(
                "{} columns; {} rows, {} of them zeros",
                s.constant_columns, s.constant_rows, s.zero_rows
            ),
        ),
        ("repeated", format!("{} rows have the values of a row before", s.duplicate_rows)),
        (
            "bad",
            format!(
                "{} rows not finite, {} with an id seen before, {} with a bad id",
                s.non_finite_rows, s.duplicate_id_rows, s.bad_id_rows
            ),
        ),
    ];
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    for example in s.examples.iter().chain(&s.warnings) {
        text.push_str(&format!("  {example}\n"));
    }
    text
}
