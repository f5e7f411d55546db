//! How the code of the warm-up differs from the exact top k.
//!
//! [`Relaxation::Softmax`] is the mix of [`crate::backend`]. The others keep a row's code sparse: only its P
//! *candidates*, the positive ones among its `pool` largest scores, take part, and all are k-hot in the limit. With
//! `r = relu(z)`, `t` the done share of the warm-up, `alpha = t`, and weights `w` of the candidates that sum to k:
//!
//! ```text
//! h_j = r_j D_j,   D_j = (1 - alpha) w_j + alpha [j in top k]      for candidates, else 0
//! u_j = (r_j - mean r) / sd r                                      over the P candidates; sd with divisor P
//! w   = weights(u, tau)                                            below; w = 1 where P <= k
//! ```
//!
//! Standardised scores make one temperature mean the same at every D, M, k and scale of the data: it is measured in
//! the spread of the scores that compete. Backwards, with `v_j = (1 - alpha) r_j dh_j` the gradient of `w_j`:
//!
//! ```text
//! dz_j = dh_j D_j + (G_j - mean G - u_j mean(G u)) / sd r,   G = (dw / du)^T v    over the candidates
//! ```
//!
//! (the gradient of a standardisation). Where all candidates are equal, `u` is 0 and `w = k / P` has no slope.
//!
//! **LapSum** (Struski et al., *LapSum: one method to differentiate them all*, ICML 2025, arXiv 2503.06242): with the
//! Laplace distribution's `F(x) = e^x / 2` for `x <= 0`, else `1 - e^-x / 2`,
//!
//! ```text
//! w_j = F((u_j - b) / tau),   b such that sum_j w_j = k
//! G_j = f_j (v_j - sum_i f_i v_i / sum_i f_i) / tau,   f_j = F'((u_j - b) / tau) = e^-|u_j - b|/tau / 2
//! ```
//!
//! **Annealed k**: the exact top `k_t` with `k_t` falling from `pool` to k by equal factors, `D = 1`:
//! `k_t = round(k (pool / k)^(1 - t))`.

use super::StepPlan;
use crate::spec::{ModelSpec, Relaxation};

/// What a training step's code is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The top k.
    Hard,
    /// The top k, and a softmax over all latents.
    Softmax,
    /// Candidates with weights.
    Weighed,
    /// The top of a larger k.
    LargerK,
}

impl Phase {
    /// True where a row's largest scores beyond the top k take part.
    pub fn has_candidates(self) -> bool {
        matches!(self, Self::Weighed | Self::LargerK)
    }
}

impl ModelSpec {
    /// What the code of a step is made of.
    pub fn phase(&self, plan: &StepPlan<'_>) -> Phase {
        match self.warmup.relaxation {
            _ if !plan.soft() => Phase::Hard,
            Relaxation::Softmax => Phase::Softmax,
            Relaxation::Lapsum => Phase::Weighed,
            Relaxation::AnnealK => Phase::LargerK,
            Relaxation::None => Phase::Hard,
        }
    }

    /// Entries per row that may carry value in a training step: k, or more during a warm-up over candidates.
    pub fn candidates(&self, plan: &StepPlan<'_>) -> usize {
        let (k, pool) = (self.forward.k, self.warmup.pool.max(self.forward.k));
        match self.phase(plan) {
            Phase::Hard | Phase::Softmax => k,
            Phase::Weighed => pool,
            Phase::LargerK => {
                let ratio = pool as f64 / k as f64;
                (k as f64 * ratio.powf(1.0 - plan.alpha)).round() as usize
            }
        }
    }
}
