//! `sae features`: what each latent fires on, and which labels it predicts.

pub mod associate;
pub mod by_latent;
pub mod firing;
pub mod gather;
pub mod neighbours;
pub mod tables;
pub mod track;

use super::Source;
use super::labels::choose::{Label, LabelOptions, RowLabels, Told};
use super::labels::{LabelTable, UnknownCells};
use crate::error::{Error, Result};
use crate::interrupt::check_flag;
use crate::rows::Part;
use crate::text::thousands;
use associate::{Association, associate};
use by_latent::ByLatent;
use gather::{Gathered, Keep, gather};
use neighbours::{Neighbour, neighbours};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A finding is counted as one where its false discovery rate is below this.
pub const Q_LIMIT: f64 = 0.05;

/// What is asked of the latents.
#[derive(Debug, Clone)]
pub struct FeaturesRequest {
    /// Model and data.
    pub source: Source,
    /// Rows of one split; `None` is all rows.
    pub split: Option<Part>,
    /// Take an id's rows together: a latent's activation is the largest over them.
    pub pool: bool,
    /// Ids per latent, at most.
    pub top: usize,
    /// Neighbours per latent, at most.
    pub neighbours: usize,
    /// Table of labels, and how to read it.
    pub labels: Option<(PathBuf, LabelOptions)>,
    /// Bytes of memory that codes may take; `None` is half of what is free. Those that need more go to a temporary file.
    pub memory: Option<u64>,
    /// Files that will be made from the result: that temporary file may lie beside them.
    pub outputs: Vec<PathBuf>,
}

/// A row that fires a latent.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopRow {
    /// Its id; `id:residue` in per-residue files.
    pub id: String,
    /// Its activation.
    pub activation: f32,
}

/// What a latent does.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Feature {
    /// Latent, from 0.
    pub latent: u32,
    /// Rows that it is active on.
    pub active_rows: u64,
    /// The same as a share of all rows.
    pub firing_rate: f64,
    /// Mean activation over the rows that it is active on; `None` for a latent that fires on none.
    pub mean_activation: Option<f64>,
    /// Largest activation.
    pub max_activation: Option<f32>,
    /// The ids that fire it most, each with its highest row; falling, equal ones in the order of the data.
    pub top: Vec<TopRow>,
    /// Latents with the nearest decoder rows.
    pub neighbours: Vec<Neighbour>,
    /// The label that it predicts best: the highest [`Association::gain`] on the first half.
    pub best: Option<Finding>,
}

/// An association in words; figures are those of the second half of the ids.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// Column of the label.
    pub column: String,
    /// The label.
    pub label: String,
    /// Activation from which on a row is predicted; chosen on the first half.
    pub threshold: f32,
    /// F1 on the first half.
    pub chosen_f1: f64,
    /// Share of predicted rows that bear the label.
    pub precision: f64,
    /// Share of rows with the label that are predicted.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Area under the ROC curve.
    pub auroc: f64,
    /// Predicted, and with the label.
    pub true_positives: u64,
    /// Predicted, and known to be without it.
    pub false_positives: u64,
    /// Not predicted, but with the label.
    pub false_negatives: u64,
    /// Neither.
    pub true_negatives: u64,
    /// p of Fisher's exact test, one-sided.
    pub p: f64,
    /// False discovery rate over all tests (Benjamini and Hochberg).
    pub q: f64,
}

/// What was found with labels.
#[derive(Debug, Clone, Serialize)]
pub struct LabelResult {
    /// The table.
    pub path: String,
    /// The labels tested.
    pub labels: Vec<Label>,
    /// Pairs of latent and label that were tested.
    pub n_tests: usize,
    /// Tests with q below [`Q_LIMIT`].
    pub n_found: usize,
    /// Latents in them.
    pub n_latents_found: usize,
    /// What was met on the way.
    #[serde(flatten)]
    pub told: Told,
    /// All tests.
    #[serde(skip)]
    pub associations: Vec<Association>,
}

/// What all latents do.
#[derive(Debug, Clone, Serialize)]
pub struct Features {
    /// The model as it was named.
    pub model: String,
    /// Rows encoded: ids where they were pooled.
    pub rows: u64,
    /// Ids: fewer than rows where an id has several.
    pub ids: u64,
    /// Bad rows that were dropped.
    pub skipped_rows: usize,
    /// Latents, M.
    pub width: usize,
    /// Latents that are active on some row.
    pub alive: usize,
    /// What was found with labels.
    pub labels: Option<LabelResult>,
    /// All latents by number.
    pub latents: Vec<Feature>,
}

impl Features {
    /// What was left out, and what to know of the figures.
    pub fn warnings(&self) -> Vec<String> {
        let Some(labels) = &self.labels else { return vec![] };
        let (path, told) = (&labels.path, &labels.told);
        let mut all: Vec<String> =
            told.unknown_cells.iter().map(|unknown| format!("{path}: {}", unknown.text())).collect();
        let passed = told.passed_over.iter();
        all.extend(passed.map(|p| format!("{path}: the column {} is skipped: {}", p.column, p.why)));
        if let Some(first) = &told.first_unknown_id {
            let n = thousands(told.unknown_ids);
            all.push(format!("{path}: {n} ids are not among the rows, the first: {first}"));
        }
        if told.ids_without_labels > 0 {
            let (n, ids) = (thousands(told.ids_without_labels), thousands(self.ids));
            all.push(format!("{n} of {ids} ids have no line in {path}"));
        }
        if self.ids < self.rows {
            all.push(
                "an id has several rows, which tests take for independent: p and q are too small; test ids with --pool"
                    .into(),
            );
        }
        all
    }
}

/// Works out what each latent does on the rows of a split, or on all.
///
/// Nothing is kept of a row but, where there are labels, its codes, and those that need more than `memory` go to a
/// temporary file in the run folder. Beside that the ids of the files stay in memory ([`super::codes::walk`]), and the codes
/// of a single latent are looked at together, with what its tests need: about 20 bytes per row that it is active on.
///
/// # Errors
/// As [`super::codes::walk`] and [`LabelTable::read`]; a table of labels none of which can be tested; what the disk
/// refuses; [`crate::error::Error::Interrupted`] once `stop` is set.
pub fn features(request: &FeaturesRequest, stop: &AtomicBool) -> Result<Features> {
    Ok(features_of(request, Keep::Labelled, stop)?.0)
}

/// As [`features`], with what was gathered for it: the codes that `keep` says.
///
/// # Errors
/// As [`features`].
pub fn features_of(request: &FeaturesRequest, keep: Keep, stop: &AtomicBool) -> Result<(Features, Gathered)> {
    // Read first: a mistake in a small file is reported before minutes of encoding.
    let table = match &request.labels {
        Some((path, options)) => Some((LabelTable::read(path)?, options)),
        None => None,
    };
    let mut labels = match &table {
        Some((table, options)) => Some(RowLabels::new(table, options)?),
        None => None,
    };
    let mut gathered = gather(request, labels.as_mut(), keep, stop)?;
    let near = neighbours(&gathered.params, request.neighbours, request.source.quiet, stop)?;
    let firing = std::mem::take(&mut gathered.firing);
    let mut latents: Vec<Feature> = (0u32..)
        .zip(firing.into_iter().zip(near))
        .map(|(j, (firing, neighbours))| Feature { neighbours, ..firing.feature(j, gathered.rows) })
        .collect();
    let labels = match (&table, labels) {
        (Some((table, _)), Some(rows)) => {
            Some(with_labels(table.path(), rows, &gathered.codes, &mut latents, stop)?)
        }
        _ => None,
    };
    check_flag(stop)?;
    let features = Features {
        model: request.source.model.display().to_string(),
        rows: gathered.rows,
        ids: gathered.ids,
        skipped_rows: gathered.skipped_rows,
        width: latents.len(),
        alive: latents.iter().filter(|f| f.active_rows > 0).count(),
        labels,
        latents,
    };
    Ok((features, gathered))
}

/// Tests all latents for all labels, and gives each latent its best.
fn with_labels(
    path: &Path,
    rows: RowLabels<'_>,
    codes: &ByLatent,
    latents: &mut [Feature],
    stop: &AtomicBool,
) -> Result<LabelResult> {
    let labelled = rows.finish()?;
    if labelled.labels.is_empty() {
        return Err(no_labels(path, &labelled.told));
    }
    let associations = associate(codes, &labelled, stop)?;
    for of_latent in associations.chunk_by(|a, b| a.latent == b.latent) {
        // The first of equals: labels are in the table's order.
        let gain = |a: &Association| a.gain(&labelled);
        let best = of_latent.iter().reduce(|a, b| if gain(b) > gain(a) { b } else { a });
        latents[of_latent[0].latent as usize].best = best.map(|a| Finding::new(a, &labelled.labels));
    }
    let found = || associations.iter().filter(|a| a.q < Q_LIMIT);
    let mut latents_found: Vec<u32> = found().map(|a| a.latent).collect();
    latents_found.dedup();
    Ok(LabelResult {
        path: path.display().to_string(),
        n_tests: associations.len(),
        n_found: found().count(),
        n_latents_found: latents_found.len(),
        labels: labelled.labels,
        told: labelled.told,
        associations,
    })
}

fn no_labels(path: &Path, told: &Told) -> Error {
    let mut why: Vec<String> = told.passed_over.iter().map(|p| format!("{}: {}", p.column, p.why)).collect();
    why.extend(told.unknown_cells.iter().map(UnknownCells::text));
    let what = format!("gives no label that can be tested ({})", why.join(". "));
    Error::data(path, "", what)
}

impl Finding {
    /// An association with the names of its label.
    pub fn new(of: &Association, labels: &[Label]) -> Self {
        let label = &labels[of.label as usize];
        Self {
            column: label.column_name.clone(),
            label: label.value.clone(),
            threshold: of.threshold,
            chosen_f1: of.chosen_f1,
            precision: of.counts.precision(),
            recall: of.counts.recall(),
            f1: of.counts.f1(),
            auroc: of.auroc,
            true_positives: of.counts.tp,
            false_positives: of.counts.fp,
            false_negatives: of.counts.missed,
            true_negatives: of.counts.tn,
            p: of.p,
            q: of.q,
        }
    }
}
