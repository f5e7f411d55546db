//! Which latent predicts which label.
//!
//! For a latent j and a label l (a value of a column c) rows are those with a value in c; a row is true if it bears l,
//! and predicted if its activation of j is at least a threshold t > 0.
//!
//! 1. On the first half of the ids, every observed activation is tried as t, and the one with the highest F1 taken (the
//!    highest such). t itself is then moved halfway down to the next lower activation, or to 0 where there is none: the
//!    first half cannot tell these apart, and the middle misses fewer rows of the second.
//! 2. On the second half, precision, recall and F1 are measured at that t, AUROC over all activations, and Fisher's
//!    exact test, one-sided, says how likely so many or more true among the predicted are by chance.
//! 3. Each pair (j, l) that got a threshold is one test: the first half alone decides that, so that p values of the
//!    second stay what they claim to be. Their q values are Benjamini and Hochberg's.
//!
//! The procedure, with halves for choosing and for reporting, is that of Simon and Zou, *InterPLM: discovering
//! interpretable features in protein language models via sparse autoencoders* (2024, bioRxiv 2024.11.14.623630), who scale
//! each latent by its largest activation and try a few fixed shares of it. Scaling a latent does not change which sets of
//! rows a threshold can cut off, and all of these are tried here.
//!
//! Activations of 0 are one tied group that no threshold predicts, so that the work is one sort of a latent's active
//! rows and one step for each of their labels: it grows with the entries of the codes and not with N M L.

use super::by_latent::{ByLatent, Entries};
use crate::analysis::labels::choose::{Labelled, untagged};
use crate::analysis::statistics::{Confusion, benjamini_hochberg};
use crate::error::Result;
use crate::interrupt::check_flag;
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

/// How well a latent predicts a label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Association {
    /// Latent, from 0.
    pub latent: u32,
    /// Label, as a place in [`Labelled::labels`].
    pub label: u32,
    /// The activation from which on a row is predicted.
    pub threshold: f32,
    /// F1 on the first half, which the threshold was chosen on.
    pub chosen_f1: f64,
    /// Counts on the second half.
    pub counts: Confusion,
    /// Area under the ROC curve on the second half: the chance that a row with the label has a higher activation than
    /// one without, ties counted half.
    pub auroc: f64,
    /// p of Fisher's exact test on the second half, one-sided.
    pub p: f64,
    /// The same after correction for all tests.
    pub q: f64,
}

impl Association {
    /// How far F1 on the first half is above that of predicting every row, 2 T / (T + N), as a share of what is possible:
    /// 1 for a perfect latent, 0 or less for one that predicts nothing. For rare labels it is F1 itself; a label that nearly
    /// all rows bear has a high F1 with any latent that fires often.
    pub fn gain(&self, labels: &Labelled) -> f64 {
        let label = &labels.labels[self.label as usize];
        let (rows, known) = (label.rows[0] as f64, labels.known[label.column][0] as f64);
        let all = 2.0 * rows / (rows + known);
        (self.chosen_f1 - all) / (1.0 - all)
    }
}

/// All tests, by latent and then by label.
///
/// # Errors
/// As [`ByLatent::read`]; [`crate::error::Error::Interrupted`] once `stop` is set.
pub fn associate(codes: &ByLatent, labels: &Labelled, stop: &AtomicBool) -> Result<Vec<Association>> {
    let mut found: Vec<Association> = vec![];
    // `Sweep` has an activation and a profile for each, and the activation once more in each column.
    for latents in codes.ranges(8 + 4 * labels.columns.len() as u64) {
        let entries = codes.read(latents.clone())?;
        let tests = latents.into_par_iter().map_init(
            || Sweep::new(labels),
            |sweep, latent| match stop.load(Ordering::Relaxed) {
                true => vec![],
                false => sweep.latent(&entries, latent),
            },
        );
        found.par_extend(tests.flatten_iter());
    }
    check_flag(stop)?;
    let p: Vec<f64> = found.iter().map(|a| a.p).collect();
    for (association, q) in found.iter_mut().zip(benjamini_hochberg(&p)) {
        association.q = q;
    }
    Ok(found)
}

/// A threshold and its F1.
#[derive(Debug, Clone, Copy, Default)]
struct Chosen {
    threshold: f32,
    f1: f64,
}

/// Sums over the rows of the second half that bear a label and are active.
#[derive(Debug, Clone, Copy, Default)]
struct Positives {
    n: u64,
    predicted: u64,
    /// Of ranks by falling activation, ties in the middle.
    ranks: f64,
}

/// Working space for one latent after another.
struct Sweep<'a> {
    labels: &'a Labelled,
    /// Active rows of a half by falling activation, (activation, profile).
    active: Vec<(f32, u32)>,
    /// Rows seen with a value in each column, before and after the group of ties at hand.
    before: Vec<u64>,
    after: Vec<u64>,
    /// Rows seen that bear each label.
    true_seen: Vec<u64>,
    choices: Vec<Chosen>,
    positives: Vec<Positives>,
    /// Activations seen in each column, falling.
    seen: Vec<Vec<f32>>,
}

impl<'a> Sweep<'a> {
    fn new(labels: &'a Labelled) -> Self {
        let (n_columns, n_labels) = (labels.columns.len(), labels.labels.len());
        Self {
            labels,
            active: vec![],
            before: vec![0; n_columns],
            after: vec![0; n_columns],
            true_seen: vec![0; n_labels],
            choices: vec![Chosen::default(); n_labels],
            positives: vec![Positives::default(); n_labels],
            seen: vec![vec![]; n_columns],
        }
    }

    fn latent(&mut self, entries: &Entries<'_>, latent: usize) -> Vec<Association> {
        self.take_half(entries, latent, false);
        if self.active.is_empty() {
            return vec![];
        }
        self.choose();
        self.take_half(entries, latent, true);
        self.measure();
        (0..self.choices.len()).filter_map(|label| self.association(latent, label)).collect()
    }

    /// Fills `active`.
    fn take_half(&mut self, entries: &Entries<'_>, latent: usize, second: bool) {
        let labels = self.labels;
        let known = |(tag, value)| {
            let (profile, half) = untagged(tag);
            let known = half == second && !labels.profiles[profile as usize].columns.is_empty();
            known.then_some((value, profile))
        };
        self.active.clear();
        self.active.extend(entries.latent(latent).filter_map(known));
        self.active.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    }

    /// The best threshold of each label on the first half.
    ///
    /// F1 = 2 TP / (predicted + true) can only rise where a true row is added: other places need no look.
    fn choose(&mut self) {
        let labels = self.labels;
        self.after.fill(0);
        self.true_seen.fill(0);
        self.choices.fill(Chosen::default());
        self.seen.iter_mut().for_each(Vec::clear);
        for ties in self.active.chunk_by(|a, b| a.0 == b.0) {
            for (_, profile) in ties {
                let profile = &labels.profiles[*profile as usize];
                for &column in &profile.columns {
                    self.after[column as usize] += 1;
                    self.seen[column as usize].push(ties[0].0);
                }
                profile.labels.iter().for_each(|&l| self.true_seen[l as usize] += 1);
            }
            for &label in ties.iter().flat_map(|(_, profile)| &labels.profiles[*profile as usize].labels) {
                let at = label as usize;
                let of = &labels.labels[at];
                let f1 = 2.0 * self.true_seen[at] as f64 / (self.after[of.column] + of.rows[0]) as f64;
                if f1 > self.choices[at].f1 {
                    self.choices[at] = Chosen { threshold: ties[0].0, f1 };
                }
            }
        }
        for (choice, label) in self.choices.iter_mut().zip(&labels.labels).filter(|(c, _)| c.f1 > 0.0) {
            let seen = &self.seen[label.column];
            let next = seen.get(seen.partition_point(|&value| value >= choice.threshold)).unwrap_or(&0.0);
            let middle = next + (choice.threshold - next) / 2.0;
            // Neighbouring float32 numbers have no middle.
            choice.threshold = if middle > *next { middle } else { choice.threshold };
        }
    }

    /// What the second half says of each label at its threshold.
    fn measure(&mut self) {
        let labels = self.labels;
        self.before.fill(0);
        self.after.fill(0);
        self.positives.fill(Positives::default());
        self.seen.iter_mut().for_each(Vec::clear);
        for ties in self.active.chunk_by(|a, b| a.0 == b.0) {
            let value = ties[0].0;
            let profiles = || ties.iter().map(|(_, profile)| &labels.profiles[*profile as usize]);
            for &column in profiles().flat_map(|p| &p.columns) {
                self.after[column as usize] += 1;
                self.seen[column as usize].push(value);
            }
            for &label in profiles().flat_map(|p| &p.labels) {
                let column = labels.labels[label as usize].column;
                let sums = &mut self.positives[label as usize];
                sums.n += 1;
                sums.predicted += u64::from(value >= self.choices[label as usize].threshold);
                // The ties at hand have the ranks before + 1 ..= after.
                sums.ranks += (self.before[column] + self.after[column] + 1) as f64 / 2.0;
            }
            for &column in profiles().flat_map(|p| &p.columns) {
                self.before[column as usize] = self.after[column as usize];
            }
        }
    }

    /// The test of a label that got a threshold; q is still 1.
    fn association(&self, latent: usize, label: usize) -> Option<Association> {
        let Chosen { threshold, f1 } = self.choices[label];
        if f1 == 0.0 {
            return None;
        }
        let of = &self.labels.labels[label];
        let (n, n_true) = (self.labels.known[of.column][1], of.rows[1]);
        let sums = self.positives[label];
        let seen = &self.seen[of.column];
        let predicted = seen.partition_point(|&value| value >= threshold) as u64;
        let fp = predicted - sums.predicted;
        let counts =
            Confusion { tp: sums.predicted, fp, missed: n_true - sums.predicted, tn: n - n_true - fp };
        // The rows that are not active share the ranks seen + 1 ..= n.
        let silent = (n_true - sums.n) as f64 * (seen.len() as u64 + n + 1) as f64 / 2.0;
        let (t, f) = (n_true as f64, (n - n_true) as f64);
        // Mann and Whitney's U from ranks that fall with activation.
        let auroc = (t * f + t * (t + 1.0) / 2.0 - sums.ranks - silent) / (t * f);
        let (latent, label) = (latent as u32, label as u32);
        let p = counts.fisher();
        Some(Association { latent, label, threshold, chosen_f1: f1, counts, auroc, p, q: 1.0 })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
