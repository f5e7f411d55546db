//! `sae report`: a run and its latents on one page.

use super::curves::{LOSS_TITLE, loss_curves};
use crate::analysis::features::associate::Association;
use crate::analysis::features::by_latent::ByLatent;
use crate::analysis::features::gather::Keep;
use crate::analysis::features::{Feature, Features, FeaturesRequest, Finding, Q_LIMIT, features_of};
use crate::analysis::labels::LabelTable;
use crate::config::Options;
use crate::error::{Error, Result};
use crate::files;
use crate::report::html::chart::Histogram;
use crate::report::html::{IdLabel, Page, Shown, render};
use crate::report::views::{Curve, CurvePlot};
use crate::rows::Part;
use crate::run::folder::names;
use crate::run::outputs::read_summary;
use crate::run::{Kind, Output, Outputs};
use crate::text::thousands;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Bars of a histogram.
const BINS: usize = 40;

/// A run, and what is asked about it.
#[derive(Debug, Clone)]
pub struct ReportRequest {
    /// Data, split, labels. No data are those that the run was trained on. The model is the run folder.
    pub features: FeaturesRequest,
    /// Latents in the table, at most.
    pub shown: usize,
    /// The file that is made; `None` is `report.html` in the run folder.
    pub out: Option<PathBuf>,
    /// Replace a file that is there.
    pub overwrite: bool,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Reported {
    /// The file.
    #[serde(serialize_with = "files::path_as_text")]
    pub path: PathBuf,
    /// Its size.
    pub bytes: usize,
    /// Latents in the table.
    pub shown: usize,
    /// What was found of the latents, without the latents themselves.
    #[serde(flatten)]
    pub features: Features,
}

/// Writes the page of a run, whole or not at all.
///
/// # Errors
/// A folder that is no run, or a run without a model; an output that is there already; a run that does not say where its
/// data are; as [`features_of`].
pub fn report(request: &ReportRequest, stop: &AtomicBool) -> Result<Reported> {
    let run = &request.features.source.model;
    if !run.join(names::CONFIG).is_file() {
        return Err(Error::Usage(format!(
            "{} is not a run folder (it has no {}); name a folder that `sae train` made",
            run.display(),
            names::CONFIG
        )));
    }
    let options = Options::of_run(&run.join(names::CONFIG))?;
    let mut wanted = with_defaults(&request.features, &options)?;
    let out = request.out.clone().unwrap_or_else(|| run.join(names::REPORT));
    let mut inputs = wanted.source.inputs();
    inputs.extend(wanted.labels.iter().map(|(path, _)| path.clone()));
    Outputs {
        files: &[Output { flag: "--out", path: &out, kind: Kind::Text }],
        inputs: &inputs,
        overwrite: request.overwrite,
        report_of: Some(run),
    }
    .check()?;
    let summary = read_summary(&run.join(names::SUMMARY))?;
    let curves = curves(&run.join(names::METRICS), options.anneal_steps)?;
    wanted.outputs.push(out.clone());
    let (features, gathered) = features_of(&wanted, Keep::All, stop)?;
    let histograms = histograms(&features, &gathered.codes, wanted.pool, stop)?;
    let table = match &wanted.labels {
        Some((path, options)) => Some((LabelTable::read(path)?, options.unknown.as_slice())),
        None => None,
    };
    let shown = shown(&features, table.as_ref().map(|(table, unknown)| (table, *unknown)), request.shown);
    let page = Page {
        title: run
            .canonicalize()
            .ok()
            .as_deref()
            .unwrap_or(run)
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        about: format!(
            "{} autoencoder, D = {}, M = {}, k = {}, {}, {} steps",
            gathered.meta.provenance.preset,
            gathered.meta.architecture.d_in,
            gathered.meta.architecture.n_latents,
            gathered.meta.architecture.forward.k,
            if gathered.meta.architecture.tied { "tied" } else { "untied" },
            gathered.meta.provenance.steps
        ),
        options: listed(&options)?,
        summary,
        curves,
        histograms,
        linked: shown.iter().map(|s| s.at as u32).collect(),
        shown,
        by_label: by_label(&features),
        rows: rows_in_words(&features, &wanted, gathered.hashed_rows),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        features,
    };
    let html = render(&page);
    files::write_whole(&out, html.as_bytes())?;
    let Page { shown, mut features, .. } = page;
    features.latents.clear();
    Ok(Reported { path: out, bytes: html.len(), shown: shown.len(), features })
}

/// What the run itself says of its data, where the request does not.
fn with_defaults(request: &FeaturesRequest, options: &Options) -> Result<FeaturesRequest> {
    let mut wanted = request.clone();
    if wanted.source.data.is_empty() && wanted.source.given.is_none() {
        let run = request.source.model.display();
        let data = options.data.clone().filter(|data| !data.is_empty()).ok_or_else(|| {
            Error::Usage(format!(
                "{run} does not say what it was trained on; name the data: `sae report {run} DATA`"
            ))
        })?;
        if let Some(gone) = data.iter().find(|path| !path.exists()) {
            return Err(Error::Usage(format!(
                "{}, which the run was trained on, is no longer there; name the data: `sae report {run} DATA`",
                gone.display()
            )));
        }
        wanted.source.data = data;
        wanted.source.reading = wanted.source.reading.or(options.reading());
    }
    Ok(wanted)
}

/// The curves of `metrics.csv`; none where there is no such file.
fn curves(path: &Path, anneal_steps: Option<u64>) -> Result<Vec<CurvePlot>> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => return Err(Error::io(path, "read")(e)),
    };
    let mut reader = csv::Reader::from_reader(text.as_slice());
    let damaged = |e: csv::Error| {
        Error::data(path, "", format!("is not a table of metrics ({e}); leave it as `sae train` wrote it"))
    };
    let header = reader.headers().map_err(damaged)?.clone();
    let records = reader.records().collect::<csv::Result<Vec<_>>>().map_err(damaged)?;
    let points = |column: &str| -> Vec<(f64, f64)> {
        let at = |name: &str| header.iter().position(|field| field == name);
        let (Some(step), Some(value)) = (at("step"), at(column)) else { return vec![] };
        let number = |record: &csv::StringRecord, at: usize| record.get(at)?.parse::<f64>().ok();
        records.iter().filter_map(|r| Some((number(r, step)?, number(r, value)?))).collect()
    };
    let annealed_until = anneal_steps.filter(|t| *t > 0);
    let plot = |title: &str, must_show: &'static [f64], curves: Vec<Curve>| CurvePlot {
        title: title.to_owned(),
        y_label: String::new(),
        annealed_until,
        must_show,
        curves: curves.into_iter().filter(|c| !c.points.is_empty()).collect(),
    };
    let splits = |of: &str| {
        [("train", "train"), ("validation", "val"), ("test", "test")]
            .map(|(name, split)| Curve { name, points: points(&format!("{split}_{of}")) })
            .into()
    };
    let alive = points("dead_fraction").into_iter().map(|(step, dead)| (step, 1.0 - dead)).collect();
    let part = |name, column| Curve { name, points: points(column) };
    let loss = loss_curves(
        part("total", "train_loss"),
        part("reconstruction", "loss_recon"),
        part("penalty", "loss_l1"),
        part("AuxK", "loss_aux"),
    );
    let all = vec![
        plot("FVU: fraction of variance unexplained", &[], splits("fvu")),
        plot("MSE, squared data units", &[], splits("mse")),
        plot("Active latents per row, L0", &[], splits("l0")),
        plot("Share of latents alive", &[0.0, 1.0], vec![Curve { name: "alive", points: alive }]),
        plot(&format!("{LOSS_TITLE}, before their weights"), &[], loss),
    ];
    Ok(all.into_iter().filter(|plot| !plot.curves.is_empty()).collect())
}

/// Firing rates of the latents that fire, and activations.
fn histograms(
    features: &Features,
    codes: &ByLatent,
    pooled: bool,
    stop: &AtomicBool,
) -> Result<Vec<Histogram>> {
    let of = if pooled {
        "share of ids that a latent is active on"
    } else {
        "share of rows that a latent is active on"
    };
    let mut rates = Histogram::new(1.0 / features.rows.max(2) as f64, 1.0, BINS);
    features.latents.iter().map(|f| f.firing_rate).filter(|rate| *rate > 0.0).for_each(|v| rates.add(v));
    let most = features.latents.iter().filter_map(|f| f.max_activation).fold(0.0, f32::max);
    let mut values = Histogram::new(0.0, if most > 0.0 { f64::from(most) } else { 1.0 }, BINS);
    codes.each_value(stop, |value| values.add(f64::from(value)))?;
    Ok(vec![
        rates.labelled("Firing rates", of, "latents"),
        values.labelled("Activations", "activation, in the model's units", "activations above 0"),
    ])
}

/// The latents of the table: those that predict a label by falling F1, then the others by falling activation.
fn shown(features: &Features, table: Option<(&LabelTable, &[String])>, count: usize) -> Vec<Shown> {
    let f1 = |f: &Feature| f.best.as_ref().filter(|b| b.q < Q_LIMIT).map_or(-1.0, |b| b.f1);
    let max = |f: &Feature| f.max_activation.unwrap_or(0.0);
    let mut order: Vec<usize> =
        (0..features.latents.len()).filter(|&j| features.latents[j].active_rows > 0).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&features.latents[a], &features.latents[b]);
        f1(b).total_cmp(&f1(a)).then(max(b).total_cmp(&max(a)))
    });
    order.truncate(count);
    let first_column =
        features.labels.as_ref().and_then(|l| l.labels.first()).map(|l| l.column_name.as_str());
    let shown = |at: usize| {
        let feature = &features.latents[at];
        let column = feature.best.as_ref().map(|b| b.column.as_str()).or(first_column);
        let label = |id: &str| -> Option<IdLabel> {
            let (table, unknown) = table?;
            let column = table.columns().iter().position(|name| Some(name.as_str()) == column)?;
            let lines = [table.line_of(id), id.rsplit_once(':').and_then(|(id, _)| table.line_of(id))];
            let values = lines.into_iter().flatten().map(|line| table.values(line, column, unknown));
            let values = values.into_iter().find(|values| !values.is_empty())?;
            let borne = feature.best.as_ref().is_some_and(|best| values.iter().any(|v| *v == best.label));
            Some(IdLabel { text: values.join("; "), borne })
        };
        Shown { at, labels_of_ids: feature.top.iter().map(|t| label(&t.id).unwrap_or_default()).collect() }
    };
    order.into_iter().map(shown).collect()
}

/// For each label the latent with the highest F1 on the first half of the ids.
fn by_label(features: &Features) -> Vec<(u32, Finding)> {
    let Some(labels) = &features.labels else { return vec![] };
    let mut best: Vec<Option<&Association>> = vec![None; labels.labels.len()];
    for test in &labels.associations {
        let best = &mut best[test.label as usize];
        if best.is_none_or(|b| test.chosen_f1 > b.chosen_f1) {
            *best = Some(test);
        }
    }
    best.into_iter().flatten().map(|test| (test.latent, Finding::new(test, &labels.labels))).collect()
}

fn rows_in_words(features: &Features, wanted: &FeaturesRequest, hashed: u64) -> String {
    let split = match wanted.split {
        None => String::new(),
        Some(Part::Train) => "training ".into(),
        Some(Part::Val) => "validation ".into(),
        Some(Part::Test) => "test ".into(),
    };
    let what = if wanted.pool { "ids" } else { "rows" };
    let paths: Vec<String> = wanted.source.data.iter().map(|p| p.display().to_string()).collect();
    let paths = if paths.is_empty() { "an array in memory".into() } else { paths.join(", ") };
    let seen = match hashed {
        0 => String::new(),
        n => {
            format!(" ({} rows of them by the hash of their ids: the run has never seen them)", thousands(n))
        }
    };
    format!("{} {split}{what} of {paths}{seen}", thousands(features.rows))
}

/// Options as the run folder has them.
fn listed(options: &Options) -> Result<Vec<(String, String)>> {
    let failed = |e: toml::ser::Error| Error::Failed(format!("the run's options cannot be shown: {e}"));
    let table = toml::Table::try_from(options).map_err(failed)?;
    let text = |value: &toml::Value| match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    Ok(table.iter().map(|(name, value)| (name.clone(), text(value))).collect())
}

/// A value as a person would write it.
fn text_of(value: &impl Serialize) -> String {
    match toml::Value::try_from(value) {
        Ok(toml::Value::String(text)) => text,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}
