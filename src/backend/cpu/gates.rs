//! Weights of a row's candidates and their gradient; formulas in [`crate::backend::relaxation`]. Float64: the work is
//! O(P) per row beside O(P D) for everything else.

use crate::backend::StepPlan;
use crate::spec::ModelSpec;

/// What the weights of a step are made from.
#[derive(Debug, Clone, Copy)]
pub struct GateRule {
    /// k.
    pub k: usize,
    /// Temperature.
    pub tau: f64,
}

impl GateRule {
    /// Of one step.
    pub fn new(spec: &ModelSpec, plan: &StepPlan<'_>) -> Self {
        Self { k: spec.forward.k, tau: plan.tau }
    }
}

/// Rounds of the search for LapSum's threshold: bisection alone gets below float64's step in 60.
const ROUNDS: usize = 60;

/// Weights of one row, and what their gradient needs. Kept from row to row for its memory.
#[derive(Debug, Default)]
pub struct Gates {
    /// Weight of each candidate.
    pub weights: Vec<f64>,
    /// Standardised scores u.
    scores: Vec<f64>,
    /// 1 / sd r; 0 where there is no spread.
    inv_sd: f64,
    /// LapSum's slopes f.
    slopes: Vec<f64>,
    grad: Vec<f64>,
}

impl Gates {
    /// Weights of candidates with positive scores `z` (P values).
    pub fn forward(&mut self, rule: GateRule, z: impl Iterator<Item = f32>) {
        self.scores.clear();
        self.scores.extend(z.map(f64::from));
        self.slopes.clear();
        self.weights.clear();
        let p = self.scores.len();
        self.weights.resize(p, 1.0);
        if p <= rule.k {
            return;
        }
        let mean = self.scores.iter().sum::<f64>() / p as f64;
        let variance = self.scores.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / p as f64;
        self.inv_sd = if variance > 0.0 { 1.0 / variance.sqrt() } else { 0.0 };
        self.scores.iter_mut().for_each(|r| *r = (*r - mean) * self.inv_sd);
        let (p, k) = (p as f64, rule.k as f64);
        let distance = |u: f64, b: f64| (u - b) / rule.tau;
        let half = |x: f64| 0.5 * (-x.abs()).exp();
        // At the ends of this bracket the sum is above and below k, since half(ln P) = 1 / (2 P).
        let fold = |f: fn(f64, f64) -> f64| self.scores.iter().copied().reduce(f).unwrap_or(0.0);
        let (mut low, mut high) = (fold(f64::min) - rule.tau * p.ln(), fold(f64::max) + rule.tau * p.ln());
        let mut b = 0.5 * (low + high);
        for _ in 0..ROUNDS {
            let (mut sum, mut slope) = (0.0, 0.0);
            for &u in &self.scores {
                let x = distance(u, b);
                let tail = half(x);
                sum += if x > 0.0 { 1.0 - tail } else { tail };
                slope += tail;
            }
            if sum > k {
                low = b;
            } else {
                high = b;
            }
            // Newton's step, or the middle where that leaves the bracket.
            let next = b + rule.tau * (sum - k) / slope;
            let next = if next > low && next < high { next } else { 0.5 * (low + high) };
            let moved = (next - b).abs();
            b = next;
            if moved <= 1e-14 * rule.tau {
                break;
            }
        }
        self.slopes.extend(self.scores.iter().map(|&u| half(distance(u, b))));
        for ((w, &u), &f) in self.weights.iter_mut().zip(&self.scores).zip(&self.slopes) {
            *w = if u > b { 1.0 - f } else { f };
        }
    }

    /// Gradient of the scores through the weights of the last [`Gates::forward`], from the gradient `v` of the
    /// weights (P values each).
    pub fn backward(&mut self, rule: GateRule, v: &[f64]) -> &[f64] {
        let p = v.len();
        self.grad.clear();
        self.grad.resize(p, 0.0);
        if p <= rule.k || self.inv_sd == 0.0 {
            return &self.grad;
        }
        let along: f64 = self.slopes.iter().zip(v).map(|(f, v)| f * v).sum();
        let middle = along / self.slopes.iter().sum::<f64>();
        for ((g, f), v) in self.grad.iter_mut().zip(&self.slopes).zip(v) {
            *g = f * (v - middle) / rule.tau;
        }
        let mean = self.grad.iter().sum::<f64>() / p as f64;
        let along = self.grad.iter().zip(&self.scores).map(|(g, u)| g * u).sum::<f64>() / p as f64;
        for (g, u) in self.grad.iter_mut().zip(&self.scores) {
            *g = (*g - mean - u * along) * self.inv_sd;
        }
        &self.grad
    }
}
