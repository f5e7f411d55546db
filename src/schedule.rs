//! Pure functions from a step to what holds at it.

use crate::spec::LrSchedule;

/// Fraction of the warm-up done: `min(s, T) / T`, and 1 where T is 0.
pub fn anneal_fraction(step: u64, anneal_steps: u64) -> f64 {
    if anneal_steps == 0 { 1.0 } else { step.min(anneal_steps) as f64 / anneal_steps as f64 }
}

/// Temperature at a fraction of the warm-up: linear from `start` to `end`.
pub fn temperature(fraction: f64, start: f64, end: f64) -> f64 {
    start * (1.0 - fraction) + end * fraction
}

/// Learning rate at `step` of `total`: a linear rise over `warmup` steps (the first step has `lr / warmup`),
/// then `shape` from the end of the rise to the last step.
pub fn learning_rate(step: u64, total: u64, lr: f64, warmup: u64, shape: LrSchedule) -> f64 {
    if step < warmup {
        return lr * (step + 1) as f64 / warmup as f64;
    }
    let span = total.saturating_sub(warmup).max(1) as f64;
    let done = ((step - warmup) as f64 / span).min(1.0);
    lr * match shape {
        LrSchedule::Constant => 1.0,
        LrSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        LrSchedule::Linear => 1.0 - done,
    }
}

/// `2e-4 / sqrt(M / 2^14)`, the learning rate that fits M latents (Gao et al. 2024).
pub fn auto_learning_rate(n_latents: usize) -> f64 {
    2e-4 / (n_latents as f64 / 16384.0).sqrt()
}

/// Share of the L1 weight in epoch `e` (from 0): `min(1, e / warmup)`, and 1 without a warm-up.
pub fn l1_share(epoch: u64, warmup_epochs: u64) -> f64 {
    if warmup_epochs == 0 { 1.0 } else { (epoch as f64 / warmup_epochs as f64).min(1.0) }
}

/// Share of the penalty's weight at `step` of a warm-up of so many steps: a linear rise, and 1 without one.
pub fn penalty_share(step: u64, warmup: u64) -> f64 {
    if step < warmup { (step + 1) as f64 / warmup as f64 } else { 1.0 }
}

/// How far a batch is from the number of active latents that is sought: `ln(l0 / k)`, held between -1 and 1.
fn distance(l0: f64, k: usize) -> f64 {
    (l0 / k as f64).ln().clamp(-1.0, 1.0)
}

/// The weight of a step's penalty that seeks k, from the one that is carried from step to step (`carried`) and the mean
/// number of active latents of the step's batch: `carried e^distance`. Going with the batch itself damps the swings that
/// following it alone would have.
pub fn seeking_weight(carried: f32, l0: f64, k: usize) -> f64 {
    f64::from(carried) * distance(l0, k).exp()
}

/// What a step carries on: `carried e^(rate distance)`.
pub fn next_weight(carried: f32, l0: f64, k: usize) -> f32 {
    (f64::from(carried) * (SEEKING_RATE * distance(l0, k)).exp()) as f32
}

/// Most that the logarithm of a seeking weight moves in a step.
const SEEKING_RATE: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_starts_at_the_first_step_and_ends_exactly_at_its_length() {
        assert_eq!(anneal_fraction(0, 2000), 0.0);
        assert_eq!(anneal_fraction(1000, 2000), 0.5);
        assert!(anneal_fraction(1999, 2000) < 1.0);
        assert_eq!(anneal_fraction(2000, 2000), 1.0);
        assert_eq!(anneal_fraction(0, 0), 1.0);
        assert_eq!(temperature(0.0, 1.0, 0.05), 1.0);
        assert_eq!(temperature(1.0, 1.0, 0.05), 0.05);
    }

    #[test]
    fn cosine_without_warm_up_is_pytorchs_schedule_stepped_once_an_epoch() {
        // CosineAnnealingLR, T_max = 200: epoch e trains at lr (1 + cos(pi e / 200)) / 2.
        for e in [0u64, 1, 50, 100, 199] {
            let expected = 5e-4 * (1.0 + (std::f64::consts::PI * e as f64 / 200.0).cos()) / 2.0;
            let got = learning_rate(e, 200, 5e-4, 0, LrSchedule::Cosine);
            assert!((got - expected).abs() < 1e-18);
        }
    }

    #[test]
    fn learning_rate_rises_to_its_value_and_then_falls_to_nothing() {
        let at = |s| learning_rate(s, 110, 1.0, 10, LrSchedule::Linear);
        assert!((at(0) - 0.1).abs() < 1e-12);
        assert!((at(9) - 1.0).abs() < 1e-12);
        assert!((at(10) - 1.0).abs() < 1e-12);
        assert!((at(60) - 0.5).abs() < 1e-12);
        assert!(at(110) == 0.0);
    }

    #[test]
    fn l1_weight_grows_by_epoch() {
        assert_eq!(l1_share(0, 50), 0.0);
        assert_eq!(l1_share(25, 50), 0.5);
        assert_eq!(l1_share(80, 50), 1.0);
        assert_eq!(l1_share(0, 0), 1.0);
    }
}
