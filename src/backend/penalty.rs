//! What the penalty adds to the gradients; the formulas are in [`crate::backend`].

use super::StepPlan;
use crate::model::TrainState;
use crate::schedule::seeking_weight;
use crate::spec::{ModelSpec, Penalty, row_length};

/// The furthest that all thresholds move together in a step, as a share of the length of a row.
const COMMON_SHARE: f64 = 0.01;

/// What the update adds to every threshold of a model of `d_in` inputs after a batch with `mean_l0` active latents per row, in
/// units of the scores: `0.01 row length clamp(ln(mean L0 / k), -1, 1)` where the penalty aims at k, and else 0.
///
/// Adam moves all weights of the encoder by the learning rate, and so scores by far more than the kernel is wide: within one
/// step they can fall below all thresholds, where no gradient brings these back. The unit is not the kernel's width, which
/// may be a small part of such a fall.
pub fn common_move(spec: &ModelSpec, d_in: usize, mean_l0: f64) -> f64 {
    match furthest_move(spec, d_in) {
        0.0 => 0.0,
        furthest => furthest * (mean_l0 / spec.forward.k as f64).ln().clamp(-1.0, 1.0),
    }
}

/// The largest [`common_move`] of such a model; 0 where its thresholds do not move together.
pub fn furthest_move(spec: &ModelSpec, d_in: usize) -> f64 {
    match spec.objective.penalty {
        Penalty::L0Target | Penalty::L0Rows => {
            COMMON_SHARE * row_length(d_in, spec.forward.normalize, spec.objective.loss_scale)
        }
        Penalty::L0 | Penalty::MeanCode | Penalty::L1 => 0.0,
    }
}

/// The penalty of a step, once the codes of its batch are known.
#[derive(Debug, Clone, Copy)]
pub struct Sparsity {
    /// Which.
    pub penalty: Penalty,
    /// Its weight.
    pub weight: f64,
    /// 1 / eps.
    pub inv_bandwidth: f32,
    n_rows: f64,
    n_latents: f64,
    k: f64,
    mean_l0: f64,
}

impl Sparsity {
    /// Of a batch of `n_rows` rows with `active` active latents in all.
    pub fn new(
        spec: &ModelSpec,
        plan: &StepPlan<'_>,
        state: &TrainState,
        n_rows: usize,
        active: u64,
    ) -> Self {
        let (k, mean_l0) = (spec.forward.k, active as f64 / n_rows as f64);
        let carried = state.penalty_weight.first();
        Self {
            penalty: spec.objective.penalty,
            weight: plan.l1 * carried.map_or(1.0, |&w| seeking_weight(w, mean_l0, k)),
            inv_bandwidth: (1.0 / spec.objective.bandwidth) as f32,
            n_rows: n_rows as f64,
            n_latents: state.params.n_latents as f64,
            k: k as f64,
            mean_l0,
        }
    }

    /// Active latents per row of the batch.
    pub fn mean_l0(&self) -> f64 {
        self.mean_l0
    }

    /// What an entry's dh gets, times the length of its decoder row where the penalty is [`Penalty::L1`].
    pub fn per_entry(&self) -> f64 {
        match self.penalty {
            Penalty::MeanCode => self.weight / (self.n_rows * self.n_latents),
            Penalty::L1 => self.weight / self.n_rows,
            Penalty::L0Target | Penalty::L0 | Penalty::L0Rows => 0.0,
        }
    }

    /// `c_n`: the gradient by a row's number of active latents.
    pub fn slope(&self, active: u32) -> f64 {
        let Self { weight, n_rows, k, mean_l0, .. } = *self;
        match self.penalty {
            Penalty::MeanCode | Penalty::L1 => 0.0,
            Penalty::L0Target => weight * 2.0 * (mean_l0 / k - 1.0) / (k * n_rows),
            Penalty::L0 => weight / n_rows,
            Penalty::L0Rows => weight * 4.0 * (f64::from(active) - k) / (k * n_rows),
        }
    }

    /// The penalty before its weight, from what the values of entries add up to and the number of active latents of each
    /// row.
    pub fn value(&self, code_sum: f64, active: &[u32]) -> f64 {
        let square = |&l0: &u32| (f64::from(l0) - self.k).powi(2);
        match self.penalty {
            Penalty::MeanCode => code_sum / (self.n_rows * self.n_latents),
            Penalty::L1 => code_sum / self.n_rows,
            Penalty::L0Target => (self.mean_l0 / self.k - 1.0).powi(2),
            Penalty::L0 => self.mean_l0,
            Penalty::L0Rows => 2.0 / self.k * active.iter().map(square).sum::<f64>() / self.n_rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_move_together_towards_k_where_the_penalty_aims_at_it() {
        let spec = |penalty| {
            ModelSpec::plain(8).with(|spec| {
                spec.objective.penalty = penalty;
                spec.forward.normalize = false;
                // Of rows with a variance of 1/4, which are sqrt(16 / 4) long.
                spec.objective.loss_scale = 4.0;
            })
        };
        for penalty in [Penalty::L0Target, Penalty::L0Rows] {
            let at = |mean_l0| common_move(&spec(penalty), 16, mean_l0);
            assert_eq!([0.0, 0.01, 8.0, 100.0].map(at), [-0.02, -0.02, 0.0, 0.02]);
            assert!((at(10.0) - 0.02 * 1.25f64.ln()).abs() < 1e-15);
        }
        for penalty in [Penalty::L0, Penalty::L1, Penalty::MeanCode] {
            assert_eq!(common_move(&spec(penalty), 16, 0.0), 0.0, "{penalty}");
        }
    }
}
