//! The number that a model gets at the end so that it has k active latents per row; see [`super::Backend::calibrate`].

use super::largest::Largest;
use crate::spec::{Activation, ModelSpec};

/// Looks at scores of rows, and then sets what decides which of them are active.
#[derive(Debug)]
pub struct Calibration {
    activation: Activation,
    largest: Largest,
    above: Vec<f32>,
}

impl Calibration {
    /// For `n_rows` rows; `None` where the model has k places per row, or does not aim at k.
    pub fn new(spec: &ModelSpec, n_rows: usize) -> Option<Self> {
        let places = n_rows * spec.forward.k;
        let largest = match spec.forward.activation {
            _ if !spec.seeks_k() => return None,
            // Biases can be raised as well as lowered, and thresholds.
            Activation::Relu | Activation::JumpRelu => Largest::above(f32::NEG_INFINITY, places),
            _ => Largest::above(0.0, places),
        };
        Some(Self { activation: spec.forward.activation, largest, above: vec![] })
    }

    /// Looks at scores (rows, M) of a model with these thresholds (M), if it has any.
    pub fn add(&mut self, scores: &[f32], thresholds: Option<&[f32]>) {
        let (Activation::JumpRelu, Some(thresholds)) = (self.activation, thresholds) else {
            return self.largest.add(scores);
        };
        for z in scores.chunks_exact(thresholds.len()) {
            self.above.clear();
            // Thresholds stay at 0 or above.
            self.above.extend(z.iter().zip(thresholds).filter(|(z, _)| **z > 0.0).map(|(z, t)| z - t));
            self.largest.add(&self.above);
        }
    }

    /// The scores that may decide, as many for every set of latents: those of some latents, for [`Calibration::join`].
    pub fn kept(&mut self) -> Vec<f32> {
        self.largest.take()
    }

    /// Looks at what was kept of other latents.
    pub fn join(&mut self, kept: &[f32]) {
        self.largest.add(kept);
    }

    /// Sets the one threshold, or moves the model's thresholds or the biases of its latents (M each).
    pub fn apply(self, b_lat: &mut [f32], thresholds: Option<&mut [f32]>) {
        let first = self.largest.next();
        if !first.is_finite() {
            // Fewer positive scores than places: all of them are active with thresholds of 0.
            if let (Activation::JumpRelu, Some(thresholds)) = (self.activation, thresholds) {
                thresholds.fill(0.0);
            }
            return;
        }
        match (self.activation, thresholds) {
            (Activation::Relu, _) => b_lat.iter_mut().for_each(|b| *b -= first),
            (Activation::JumpRelu, Some(thresholds)) => {
                thresholds.iter_mut().for_each(|t| *t = (*t + first).max(0.0))
            }
            (_, Some(thresholds)) => thresholds.fill(first.max(0.0)),
            (_, None) => {}
        }
    }
}
