//! What is measured, and `metrics.csv`.
//!
//! With `mean` the mean row of the training split:
//! FVU = sum (y - x)^2 / sum (x - mean)^2, over the rows and values of the split in question.

use crate::backend::{Backend, EvalSums, StepStats};
use crate::error::{Error, Result};
use crate::model::Weights;
use crate::rows::{RowSource, variance_about};
use crate::spec::MOST_PREFIXES;
use serde::{Deserialize, Serialize};

/// Quality on one split. A value that does not exist is NaN, and `null` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Mean squared error over N D values, squared data units.
    #[serde(deserialize_with = "null_is_nan")]
    pub mse: f64,
    /// Mean absolute error over N D values, data units.
    #[serde(deserialize_with = "null_is_nan")]
    pub mae: f64,
    /// Fraction of variance unexplained, against the mean of the training split.
    #[serde(deserialize_with = "null_is_nan")]
    pub fvu: f64,
    /// Active latents per row.
    #[serde(deserialize_with = "null_is_nan")]
    pub l0: f64,
    /// Mean cosine of row and reconstruction.
    #[serde(deserialize_with = "null_is_nan")]
    pub cosine: f64,
    /// Rows measured.
    pub rows: u64,
    /// FVU of the reconstruction by each prefix; empty where only all latents reconstruct.
    #[serde(default, skip_serializing_if = "ByPrefix::is_empty")]
    pub fvu_by_prefix: ByPrefix,
}

/// A figure for each prefix of a Matryoshka model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Vec<Option<f64>>", into = "Vec<Option<f64>>")]
pub struct ByPrefix {
    values: [f64; MOST_PREFIXES],
    len: usize,
}

impl ByPrefix {
    /// True where there are no prefixes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The figures.
    pub fn values(&self) -> &[f64] {
        &self.values[..self.len]
    }
}

impl FromIterator<f64> for ByPrefix {
    /// Of at most [`MOST_PREFIXES`] figures; more are left out.
    fn from_iter<T: IntoIterator<Item = f64>>(figures: T) -> Self {
        let mut all = Self::default();
        for (to, value) in all.values.iter_mut().zip(figures) {
            *to = value;
            all.len += 1;
        }
        all
    }
}

impl From<Vec<Option<f64>>> for ByPrefix {
    fn from(figures: Vec<Option<f64>>) -> Self {
        figures.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect()
    }
}

impl From<ByPrefix> for Vec<Option<f64>> {
    fn from(figures: ByPrefix) -> Self {
        figures.values().iter().map(|&v| v.is_finite().then_some(v)).collect()
    }
}

impl Quality {
    /// From sums over rows of `d_in` values whose sum of squares about the training mean is `variance`.
    pub fn new(sums: &EvalSums, d_in: usize, variance: f64) -> Self {
        let rows = sums.rows as f64;
        let values = rows * d_in as f64;
        let finite = |v: f64| if v.is_finite() { v } else { f64::NAN };
        Self {
            mse: finite(sums.squared / values),
            mae: finite(sums.absolute / values),
            fvu: finite(sums.squared / variance),
            l0: finite(sums.active as f64 / rows),
            cosine: finite(sums.cosine / rows),
            rows: sums.rows,
            fvu_by_prefix: sums.by_prefix[..sums.prefixes].iter().map(|v| finite(v / variance)).collect(),
        }
    }
}

/// Reads `null`, which is what JSON has for a number that is not finite, as NaN.
pub(crate) fn null_is_nan<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// At most `limit` of `rows`, spread evenly over them (all, where there are no more).
pub(super) fn spread(rows: &[u32], limit: usize) -> Vec<u32> {
    let n = rows.len().min(limit);
    (0..n).map(|i| rows[i * rows.len() / n]).collect()
}

/// A set of rows to be measured again and again, with its variance about the training mean.
pub struct EvalSet {
    pub(super) rows: Vec<u32>,
    variance: f64,
}

impl EvalSet {
    /// Of these rows.
    ///
    /// # Errors
    /// What the rows' source gives.
    pub fn new(data: &dyn RowSource, rows: Vec<u32>, mean: &[f64]) -> Result<Self> {
        let variance = variance_about(data, &rows, mean)?;
        Ok(Self { rows, variance })
    }

    /// `None` where the split has no rows. `fired` (M) counts the rows on which each latent is active. `check` is asked
    /// now and then, and may end it.
    pub fn measure(
        &self,
        backend: &mut dyn Backend,
        d_in: usize,
        fired: &mut [u64],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Quality>> {
        if self.rows.is_empty() {
            return Ok(None);
        }
        let sums = backend.evaluate_checked(&self.rows, Weights::Averaged, fired, check)?;
        Ok(Some(Quality::new(&sums, d_in, self.variance)))
    }
}

/// Share of latents that fired on no row.
pub fn dead_fraction(fired: &[u64]) -> f64 {
    fired.iter().filter(|&&n| n == 0).count() as f64 / fired.len() as f64
}

/// What the training loss is made of, and the gradient: means over the steps since the last line, before their weights.
/// `None` for a part that the loss does not have, and in lines that version 0.1.0 wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LossParts {
    /// Mean squared error over N D values, squared data units.
    pub recon: Option<f64>,
    /// Mean absolute code over N M values, units of the model's input.
    pub l1: Option<f64>,
    /// Mean squared error that dead latents leave of what the others left, squared data units.
    pub aux: Option<f64>,
    /// Global norm of the gradient before it is clipped.
    pub grad_norm: Option<f64>,
}

/// Which parts a loss has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HasParts {
    /// There is a weight on the mean absolute code.
    pub l1: bool,
    /// There is an auxiliary loss.
    pub aux: bool,
    /// Gradients are clipped, for which their norm is needed.
    pub grad_norm: bool,
}

/// Sums of [`LossParts`] over steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PartSums {
    steps: u64,
    #[serde(deserialize_with = "null_is_nan")]
    recon: f64,
    #[serde(deserialize_with = "null_is_nan")]
    l1: f64,
    #[serde(deserialize_with = "null_is_nan")]
    aux: f64,
    /// Sum of the norms that are finite, and their number.
    grad_norm: (f64, u64),
}

impl PartSums {
    /// Adds a step.
    pub fn add(&mut self, stats: &StepStats) {
        self.steps += 1;
        self.recon += stats.mse;
        self.l1 += stats.l1;
        self.aux += stats.aux;
        if stats.grad_norm.is_finite() {
            self.grad_norm = (self.grad_norm.0 + stats.grad_norm, self.grad_norm.1 + 1);
        }
    }

    /// Means over `steps` steps; none where it is not they that were added: a run that goes on from a checkpoint of
    /// version 0.1.0 has not seen the parts of the steps before.
    pub fn means(&self, steps: u64, has: HasParts) -> LossParts {
        if self.steps != steps || steps == 0 {
            return LossParts::default();
        }
        let mean = |sum: f64, has: bool| has.then_some(sum / steps as f64).filter(|v| v.is_finite());
        let (norms, count) = self.grad_norm;
        LossParts {
            recon: mean(self.recon, true),
            l1: mean(self.l1, has.l1),
            aux: mean(self.aux, has.aux),
            grad_norm: (has.grad_norm && count > 0).then_some(norms / count as f64),
        }
    }
}

/// One evaluation on the way: a line of `metrics.csv`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetricRow {
    /// Steps done.
    pub step: u64,
    /// Passes over the training rows.
    #[serde(deserialize_with = "null_is_nan")]
    pub epoch: f64,
    /// Temperature of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub tau: f64,
    /// Share of the hard code at the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub alpha: f64,
    /// Learning rate of the last step.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    /// Training rows per second since the last line; step time alone.
    #[serde(deserialize_with = "null_is_nan")]
    pub rows_per_second: f64,
    /// Mean training loss since the last line (before each update, with the mix of that step).
    pub train_loss: Option<f64>,
    /// Its parts.
    #[serde(default)]
    pub parts: LossParts,
    /// Training split.
    pub train: Option<Quality>,
    /// Validation split.
    pub val: Option<Quality>,
    /// Test split: shown, never used to choose anything.
    pub test: Option<Quality>,
    /// Share of latents active on no training row that was measured.
    #[serde(deserialize_with = "null_is_nan")]
    pub dead_fraction: f64,
}

const HEADER: [&str; 27] = [
    "step",
    "epoch",
    "tau",
    "alpha",
    "lr",
    "rows_per_second",
    "train_loss",
    "loss_recon",
    "loss_l1",
    "loss_aux",
    "grad_norm",
    "train_mse",
    "train_mae",
    "train_fvu",
    "train_l0",
    "train_cosine",
    "val_mse",
    "val_mae",
    "val_fvu",
    "val_l0",
    "val_cosine",
    "test_mse",
    "test_mae",
    "test_fvu",
    "test_l0",
    "test_cosine",
    "dead_fraction",
];

impl MetricRow {
    /// The figures beside the step, in the order of `metrics.csv`, with their names there; `None` is one that does not exist,
    /// as those of a split without rows.
    pub fn figures(&self) -> [(&'static str, Option<f64>); HEADER.len() - 1] {
        let LossParts { recon, l1, aux, grad_norm } = self.parts;
        let quality = |q: &Option<Quality>| match q {
            Some(q) => [q.mse, q.mae, q.fvu, q.l0, q.cosine].map(Some),
            None => [None; 5],
        };
        let steps = [self.epoch, self.tau, self.alpha, self.lr, self.rows_per_second].map(Some);
        let values = [
            &steps[..],
            &[self.train_loss, recon, l1, aux, grad_norm],
            &quality(&self.train),
            &quality(&self.val),
            &quality(&self.test),
            &[Some(self.dead_fraction)],
        ]
        .concat();
        std::array::from_fn(|at| (HEADER[at + 1], values[at]))
    }
}

/// The whole of `metrics.csv`. A value that does not exist (a split without rows) is an empty field.
///
/// # Errors
/// None in practice: writing to memory.
pub fn to_csv(rows: &[MetricRow]) -> Result<Vec<u8>> {
    let failed = |e: csv::Error| Error::Failed(format!("metrics.csv cannot be formatted: {e}"));
    let mut writer = csv::Writer::from_writer(vec![]);
    writer.write_record(HEADER).map_err(failed)?;
    for row in rows {
        let figures = row.figures().map(|(_, value)| value.map_or(String::new(), |value| value.to_string()));
        let fields: Vec<String> = [row.step.to_string()].into_iter().chain(figures).collect();
        writer.write_record(&fields).map_err(failed)?;
    }
    writer.into_inner().map_err(|e| Error::Failed(format!("metrics.csv cannot be formatted: {e}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::rows::{Resident, Values, mean_row};

    #[test]
    fn fvu_of_the_training_mean_is_one_and_of_the_data_zero() {
        let rows = vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 9.0];
        let data = Resident::new(Values::F32(rows.into()), 2).unwrap();
        let mean = mean_row(&data, &[0, 1, 2]).unwrap();
        assert_eq!(mean, [3.0, 5.0]);
        let variance = variance_about(&data, &[0, 1, 2], &mean).unwrap();
        assert_eq!(variance, 4.0 + 9.0 + 0.0 + 1.0 + 4.0 + 16.0);
        let sums = EvalSums { rows: 3, squared: variance, ..EvalSums::default() };
        assert_eq!(Quality::new(&sums, 2, variance).fvu, 1.0);
        let exact = EvalSums { rows: 3, ..EvalSums::default() };
        assert_eq!(Quality::new(&exact, 2, variance).fvu, 0.0);
    }

    #[test]
    fn every_figure_that_is_not_finite_is_read_back_from_json() {
        let none = f64::NAN;
        let quality = Quality {
            mse: none,
            mae: none,
            fvu: none,
            l0: none,
            cosine: none,
            rows: 4,
            fvu_by_prefix: Default::default(),
        };
        let row = MetricRow {
            step: 10,
            epoch: none,
            tau: none,
            alpha: none,
            lr: none,
            rows_per_second: none,
            train_loss: None,
            parts: LossParts::default(),
            train: Some(quality),
            val: None,
            test: Some(quality),
            dead_fraction: none,
        };
        let back: MetricRow = serde_json::from_str(&serde_json::to_string(&row).unwrap()).unwrap();
        assert_eq!(to_csv(&[back]).unwrap(), to_csv(&[row]).unwrap());
        let mut sums = PartSums::default();
        sums.add(&StepStats { loss: 1.0, mse: none, l1: f64::INFINITY, aux: none, grad_norm: none });
        let back: PartSums = serde_json::from_str(&serde_json::to_string(&sums).unwrap()).unwrap();
        let all = HasParts { l1: true, aux: true, grad_norm: true };
        assert_eq!(back.means(1, all), LossParts::default());
    }

    #[test]
    fn every_line_of_the_csv_has_as_many_fields_as_the_header() {
        let quality = Quality {
            mse: 1.0,
            mae: 2.0,
            fvu: 0.5,
            l0: 3.0,
            cosine: 0.9,
            rows: 4,
            fvu_by_prefix: [0.75, 0.5].into_iter().collect(),
        };
        let row = MetricRow {
            step: 10,
            epoch: 0.5,
            tau: 1.0,
            alpha: 0.0,
            lr: 1e-3,
            rows_per_second: 100.0,
            train_loss: None,
            parts: LossParts { l1: Some(0.125), ..LossParts::default() },
            train: Some(quality),
            val: None,
            test: Some(quality),
            dead_fraction: 0.25,
        };
        let text = String::from_utf8(to_csv(&[row]).unwrap()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.split(',').count() == HEADER.len()), "{text}");
        assert!(lines[1].contains(",100,,,0.125,,,1,2,") && lines[1].ends_with(",0.25"), "{text}");
    }

    #[test]
    fn parts_are_means_over_the_steps_of_a_line_and_empty_where_there_are_none() {
        let step = |mse, grad_norm| StepStats { loss: 9.0, mse, l1: 2.0 * mse, aux: 3.0 * mse, grad_norm };
        let mut sums = PartSums::default();
        sums.add(&step(1.0, 5.0));
        sums.add(&step(2.0, f64::INFINITY));
        let all = HasParts { l1: true, aux: true, grad_norm: true };
        let want = LossParts { recon: Some(1.5), l1: Some(3.0), aux: Some(4.5), grad_norm: Some(5.0) };
        assert_eq!(sums.means(2, all), want);
        let none = HasParts { l1: false, aux: false, grad_norm: false };
        assert_eq!(sums.means(2, none), LossParts { recon: Some(1.5), ..LossParts::default() });
        assert_eq!(sums.means(3, all), LossParts::default(), "a step before was not added");
        assert_eq!(PartSums::default().means(0, all), LossParts::default());
    }

    #[test]
    fn a_line_of_version_0_1_0_is_read() {
        let old = r#"{"step":10,"epoch":0.5,"tau":1.0,"alpha":0.0,"lr":0.001,"rows_per_second":100.0,"train_loss":0.5,
            "train":null,"val":null,"test":null,"dead_fraction":0.25}"#;
        let row: MetricRow = serde_json::from_str(old).unwrap();
        assert_eq!((row.train_loss, row.parts), (Some(0.5), LossParts::default()));
    }
}
