//! Where a training is, beside its tensors.

use super::metrics::{MetricRow, PartSums};
use serde::{Deserialize, Serialize};

/// Everything but the tensors that a training needs to go on to the same bits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Evaluations so far.
    pub metrics: Vec<MetricRow>,
    /// Sum of the training loss since the last evaluation, and its steps.
    pub loss: (f64, u64),
    /// Sums of its parts over these steps; nothing in checkpoints of version 0.1.0.
    #[serde(default)]
    pub parts: PartSums,
    /// Seconds spent in steps since the last evaluation, and since the start.
    pub seconds: (f64, f64),
    /// Step and validation FVU of the best evaluation, of those whose FVU is finite.
    #[serde(deserialize_with = "finite_best")]
    pub best: Option<(u64, f64)>,
    /// Evaluations since the best one.
    pub waited: u64,
    /// What computed, as [`crate::backend::Backend::device`] names it; empty where it is not known.
    #[serde(default)]
    pub device: String,
}

/// Reads the best evaluation. Version 0.1.0 let one whose FVU is not finite, `null` in JSON, be the best: that is none.
fn finite_best<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<(u64, f64)>, D::Error> {
    let best = Option::<(u64, Option<f64>)>::deserialize(deserializer)?;
    Ok(best.and_then(|(step, fvu)| Some((step, fvu?))))
}
