//! `sae features`: what each latent fires on, and which labels it predicts.

pub mod associate;
pub mod gather;
pub mod neighbours;
pub mod tables;

use super::Source;
use super::labels::choose::{Label, LabelOptions, Labelled, Told};
use super::labels::{LabelTable, UnknownCells};
use crate::error::{Error, Result};
use crate::rows::Part;
use crate::text::thousands;
use associate::{Association, associate};
use gather::{ByLatent, Gathered, Names, gather};
use neighbours::{Neighbour, neighbours};
use rayon::prelude::*;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

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
/// The codes stay in memory, k entries of 8 bytes per row, and so do the ids.
///
/// # Errors
/// As [`super::codes::walk`] and [`LabelTable::read`]; a table of labels none of which can be tested;
/// [`Error::Interrupted`] once `stop` is set.
pub fn features(request: &FeaturesRequest, stop: &AtomicBool) -> Result<Features> {
    Ok(features_of(request, stop)?.0)
}

/// As [`features`], with the codes that it was worked out from.
pub fn features_of(request: &FeaturesRequest, stop: &AtomicBool) -> Result<(Features, Gathered)> {
    // Read first: a mistake in a small file is reported before minutes of encoding.
    let table = match &request.labels {
        Some((path, options)) => Some((LabelTable::read(path)?, options)),
        None => None,
    };
    let gathered = gather(&request.source, request.split, request.pool, stop)?;
    let (names, codes) = (&gathered.names, &gathered.codes);
    let mut near = neighbours(&gathered.params, request.neighbours, request.source.quiet, stop)?;
    let mut latents: Vec<Feature> = near
        .par_iter_mut()
        .enumerate()
        .map(|(j, near)| Feature {
            neighbours: std::mem::take(near),
            ..feature(codes, names, j, request.top)
        })
        .collect();
    let labels = match table {
        Some((table, options)) => Some(with_labels(&table, &gathered, options, &mut latents)?),
        None => None,
    };
    if stop.load(Ordering::Relaxed) {
        return Err(Error::Interrupted("interrupted; nothing was written".into()));
    }
    let features = Features {
        model: request.source.model.display().to_string(),
        rows: names.n_rows() as u64,
        ids: names.group_ids.len() as u64,
        skipped_rows: gathered.skipped_rows,
        width: codes.n_latents(),
        alive: latents.iter().filter(|f| f.active_rows > 0).count(),
        labels,
        latents,
    };
    Ok((features, gathered))
}

/// What latent `j` does, without neighbours and labels.
fn feature(codes: &ByLatent, names: &Names, j: usize, top: usize) -> Feature {
    let (rows, values) = codes.latent(j);
    let n = rows.len();
    let sum: f64 = values.iter().map(|&v| f64::from(v)).sum();
    Feature {
        latent: j as u32,
        active_rows: n as u64,
        firing_rate: n as f64 / codes.n_rows as f64,
        mean_activation: (n > 0).then(|| sum / n as f64),
        max_activation: values.iter().copied().reduce(f32::max),
        top: top_rows(rows, values, names, top),
        neighbours: vec![],
        best: None,
    }
}

/// The ids with the highest activations, each with its highest row.
fn top_rows(rows: &[u32], values: &[f32], names: &Names, count: usize) -> Vec<TopRow> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let falling = |a: &usize, b: &usize| values[*b].total_cmp(&values[*a]).then(a.cmp(b));
    // Where each row is an id, the first `count` are enough: no need to sort all.
    if !names.grouped() && count > 0 && order.len() > count {
        order.select_nth_unstable_by(count - 1, falling);
        order.truncate(count);
    }
    order.sort_unstable_by(falling);
    let mut groups: Vec<u32> = Vec::with_capacity(count.min(rows.len()));
    let mut top = vec![];
    for at in order {
        if top.len() == count {
            break;
        }
        let row = rows[at] as usize;
        if !groups.contains(&names.group_of[row]) {
            groups.push(names.group_of[row]);
            top.push(TopRow { id: names.row_id(row).to_owned(), activation: values[at] });
        }
    }
    top
}

/// Tests all latents for all labels, and gives each latent its best.
fn with_labels(
    table: &LabelTable,
    gathered: &Gathered,
    options: &LabelOptions,
    latents: &mut [Feature],
) -> Result<LabelResult> {
    let labelled = Labelled::new(table, &gathered.names, options)?;
    if labelled.labels.is_empty() {
        return Err(no_labels(table.path(), &labelled.told));
    }
    let associations = associate(&gathered.codes, &labelled);
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
        path: table.path().display().to_string(),
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
