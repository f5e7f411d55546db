//! The unit of the data: training does not depend on it, except in the presets that repeat published models.

use super::start::start_rows;
use crate::config::{Config, Options, Preset};
use crate::error::Result;
use crate::rows::{Moments, RowSource, Split, hash_rows, mean_row, variance_about};
use crate::spec::NORM_EPS;
use std::cell::OnceCell;

/// What is added to a row's deviation is at most this share of the usual one; more of it would change rows.
const MOST: f64 = 1e-3;
/// The share where it would be more: what 1e-5 is of the deviation of most embeddings, 0.05.
const SHARE: f64 = 2e-4;
/// Variances between which a literal preset is as published: its embeddings and activations are of about unit scale.
const USUAL: std::ops::RangeInclusive<f64> = 1e-4..=1e4;

/// Settles options for rows: what follows the unit of the data from the training rows, all else by [`Config::resolve`].
///
/// # Errors
/// [`Error::Usage`](crate::error::Error::Usage) for options that do not fit; what the source of the rows gives.
pub fn resolve(options: &Options, rows: &dyn RowSource, split: &Split) -> Result<Config> {
    resolve_known(options, &TrainRows::new(rows, split))
}

/// As [`resolve`], of training rows about which something may be known.
pub(crate) fn resolve_known(options: &Options, train: &TrainRows<'_>) -> Result<Config> {
    let mut options = options.clone();
    settle(&mut options, train)?;
    Config::resolve(&options, train.source.d_in(), train.rows.len())
}

/// The training rows, whose moments are found once: each takes a pass over all of them.
pub(crate) struct TrainRows<'a> {
    source: &'a dyn RowSource,
    rows: &'a [u32],
    mean: OnceCell<Vec<f64>>,
    variance: OnceCell<f64>,
}

impl<'a> TrainRows<'a> {
    pub(crate) fn new(source: &'a dyn RowSource, split: &'a Split) -> Self {
        Self { source, rows: &split.train, mean: OnceCell::new(), variance: OnceCell::new() }
    }

    /// Of rows about which this is known.
    pub(crate) fn knowing(self, moments: Option<Moments>) -> Self {
        if let Some(Moments { mean, variance, .. }) = moments {
            let _ = (self.mean.set(mean), self.variance.set(variance));
        }
        self
    }

    /// What is known of them by now: mean and variance together.
    pub(crate) fn moments(&self) -> Option<Moments> {
        let (mean, &variance) = (self.mean.get()?.clone(), self.variance.get()?);
        Some(Moments { rows: hash_rows(self.rows), mean, variance })
    }

    /// Their mean (D).
    pub(crate) fn mean(&self) -> Result<&[f64]> {
        match self.mean.get() {
            Some(mean) => Ok(mean),
            None => {
                let mean = mean_row(self.source, self.rows)?;
                Ok(self.mean.get_or_init(|| mean))
            }
        }
    }

    /// The mean, where it was asked for before.
    pub(crate) fn into_mean(self) -> Option<Vec<f64>> {
        self.mean.into_inner()
    }

    /// Mean squared distance of a value to the mean row.
    fn variance(&self) -> Result<f64> {
        if let Some(&variance) = self.variance.get() {
            return Ok(variance);
        }
        let sum = variance_about(self.source, self.rows, self.mean()?)?;
        let variance = sum / (self.rows.len() * self.source.d_in()).max(1) as f64;
        Ok(*self.variance.get_or_init(|| variance))
    }
}

/// Settles what follows the data's unit, where it was left open and the preset is not a literal one: the loss is divided
/// by the variance of the training rows, and what is added to a row's deviation is small beside it.
fn settle(options: &mut Options, train: &TrainRows<'_>) -> Result<()> {
    if options.preset.unwrap_or(Preset::DEFAULT).is_literal() {
        return Ok(());
    }
    if options.loss_scale.is_none() {
        let variance = train.variance()?;
        // Rows that are all alike have no scale; float32 holds no factor beyond its own range.
        let scale = (1.0 / variance).clamp(f64::from(f32::MIN_POSITIVE), f64::from(f32::MAX));
        options.loss_scale = Some(if variance > 0.0 && scale.is_finite() { scale } else { 1.0 });
    }
    if options.norm_eps.is_none() {
        let usual = usual_deviation(train.source, train.rows)?;
        let small = usual > 0.0 && NORM_EPS > MOST * usual;
        // A row of zeros is divided by this alone.
        let share = (SHARE * usual).max(f64::from(f32::MIN_POSITIVE));
        options.norm_eps = Some(if small { share } else { NORM_EPS });
    }
    Ok(())
}

/// A warning where constants meet data of a scale that they are not meant for: a literal preset, or a loss scale that was
/// given, or found for other data.
pub(crate) fn unit_warning(config: &Config, train: &TrainRows<'_>) -> Result<Option<String>> {
    let variance = train.variance()?;
    let scaled = variance * config.spec.objective.loss_scale;
    if USUAL.contains(&scaled) || !(variance > 0.0 && variance.is_finite()) {
        return Ok(None);
    }
    let deviation = variance.sqrt();
    if !config.preset.is_literal() {
        let mut best = Options::default();
        settle(&mut best, train)?;
        let (scale, eps) = (best.loss_scale.unwrap_or(1.0), best.norm_eps.unwrap_or(NORM_EPS));
        return Ok(Some(format!(
            "--loss-scale {:e} does not go with these data, whose values have a standard deviation of {deviation:.1e}: \
             give `--loss-scale {:e} --norm-eps {:e}`, or leave both out, of a --config too",
            config.spec.objective.loss_scale, scale, eps
        )));
    }
    Ok(Some(format!(
        "the values of the training rows have a standard deviation of {deviation:.1e}, and this preset repeats a \
         published model whose constants (Adam's epsilon, the 1e-5 beside a row's deviation, the L1 weight) are meant \
         for about 1: multiply the data by {:.0e}, or take `--preset data-topk`, which does not depend on the unit",
        1.0 / deviation
    )))
}

/// Median of the standard deviations of training rows, some thousand of them, that have one; 0 where none has.
fn usual_deviation(data: &dyn RowSource, train: &[u32]) -> Result<f64> {
    let rows = start_rows(train);
    let mut values = vec![0.0f32; rows.len() * data.d_in()];
    data.read(&rows, &mut values)?;
    let mut deviations = vec![];
    for row in values.chunks_exact(data.d_in()) {
        let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / row.len() as f64;
        let squares: f64 = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum();
        let deviation = (squares / (row.len() as f64 - 1.0).max(1.0)).sqrt();
        if deviation > 0.0 && deviation.is_finite() {
            deviations.push(deviation);
        }
    }
    deviations.sort_by(f64::total_cmp);
    Ok(deviations.get(deviations.len() / 2).copied().unwrap_or(0.0))
}
