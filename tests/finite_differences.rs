//! The reference's gradients against central differences of its float64 loss, and against cases worked by hand.
#![allow(clippy::unwrap_used)]

#[path = "finite_differences/by_hand.rs"]
mod by_hand;
mod common;

use common::{embeddings, random_params, spec, values};
use std::sync::Arc;
use topk_sae::backend::cpu::reference::Reference;
use topk_sae::backend::{Look, Pass, StepPlan};
use topk_sae::data::Embeddings;
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::Noise;
use topk_sae::schedule::temperature;
use topk_sae::spec::{Activation, ModelSpec, NORM_EPS, Prefixes, Relaxation};

/// Weights are multiples of 2^-12 below 2, so that adding or taking this leaves exact float32 values.
const STEP: f32 = 1.0 / 65536.0;

/// A central difference is off by `STEP^2 / 6` times the third derivative (below 2000 of the gradient's size at
/// tau = 0.08: 8e-8) and by the loss's rounding over the step (1e-16 / 1.5e-5 = 1e-11); the gradients are stored
/// as float32 (6e-8). All relative to the tensor's largest gradient.
const TOLERANCE: f64 = 1e-6;

#[derive(Clone)]
struct Case {
    n: usize,
    d: usize,
    m: usize,
    tied: bool,
    t: f64,
    l1: f64,
    spec: ModelSpec,
}

impl Case {
    fn data(&self) -> Arc<Embeddings> {
        embeddings(self.d, values(self.n * self.d, 41))
    }

    fn params(&self, seed: u32) -> Params {
        let mut params = random_params(self.d, self.m, self.tied, seed);
        for (_, tensor) in params.tensors_mut() {
            tensor.iter_mut().for_each(|v| *v = (*v * 4096.0).round() / 4096.0);
        }
        params
    }

    fn state(&self, params: &Params) -> TrainState {
        let mut state = TrainState::start(params.clone(), false);
        // Every other latent is dead to the auxiliary loss.
        state.idle_rows.iter_mut().step_by(2).for_each(|idle| *idle = 1000);
        state
    }

    fn plan(&self) -> StepPlan<'static> {
        let tau = temperature(self.t, 1.0, 0.05);
        StepPlan { step: 4, alpha: self.t, tau, lr: 0.0, l1: self.l1, noise: Noise::Philox { seed: 3 } }
    }

    fn pass(&self, params: &Params) -> Pass {
        let mut backend = Reference::new(self.data(), self.spec.clone(), self.state(params));
        let rows: Vec<u32> = (0..self.n as u32).collect();
        backend.inspect(&rows, &self.plan()).unwrap()
    }

    /// Weights whose scores stay on their side of relu and of the top k while a weight moves by a step: that
    /// moves a score by at most a few steps, the largest normalised input being below 6.
    fn settled(&self) -> Params {
        let margin = 12.0 * STEP;
        let far = |z: &[f32], k: usize| {
            let rank = |z: &f32| self.spec.forward.activation.rank(f64::from(*z)) as f32;
            let mut sorted: Vec<f32> = z.iter().map(rank).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            z.iter().all(|z| z.abs() > margin)
                && (k == 0 || k >= sorted.len() || sorted[k - 1] - sorted[k] > margin)
        };
        let good = |params: &Params| {
            self.pass(params).pre_acts.chunks_exact(self.m).all(|z| {
                let dead: Vec<f32> = z.iter().copied().step_by(2).collect();
                let candidates = self.spec.candidates(&self.plan());
                far(z, self.spec.forward.k) && far(z, candidates) && far(&dead, self.spec.objective.aux_k)
            })
        };
        (0..100).map(|seed| self.params(10 * seed)).find(good).expect("weights away from kinks")
    }
}

/// Central differences of `loss` at `params` for every value of tensor number `tensor`.
fn differences(params: &Params, tensor: usize, loss: &dyn Fn(&Params) -> f64) -> Vec<f64> {
    let count = params.tensors()[tensor].2.len();
    let moved = |i: usize, by: f32| {
        let mut moved = params.clone();
        moved.tensors_mut()[tensor].1[i] += by;
        let at = f64::from(moved.tensors()[tensor].2[i]);
        (at, loss(&moved))
    };
    (0..count)
        .map(|i| {
            let ((high, up), (low, down)) = (moved(i, STEP), moved(i, -STEP));
            assert_eq!(high - low, 2.0 * f64::from(STEP), "the step must be exact");
            (up - down) / (high - low)
        })
        .collect()
}

/// Largest miss over the largest gradient, over all tensors.
fn worst(params: &Params, grads: &Params, loss: &dyn Fn(&Params) -> f64) -> (String, f64) {
    let mut worst = (String::new(), 0.0);
    for (t, (name, _, grad)) in grads.tensors().iter().enumerate() {
        let want = differences(params, t, loss);
        assert!(want.iter().any(|g| *g != 0.0), "{name}: nothing to check");
        let error = common::relative_error(grad, &want);
        if error.is_nan() || error > worst.1 {
            worst = ((*name).to_owned(), error);
        }
    }
    worst
}

fn check(what: &str, case: &Case) {
    let params = case.settled();
    let (name, error) = worst(&params, &case.pass(&params).grads, &|p| case.pass(p).stats.loss);
    assert!(error <= TOLERANCE, "{what}: {name} is off by {error:.1e}");
}

#[test]
fn gradients_of_the_relaxed_model_are_slopes_of_its_loss_throughout_the_warm_up() {
    for t in [0.0, 0.35, 0.8, 0.97, 1.0] {
        for tied in [false, true] {
            for normalize in [false, true] {
                let spec = spec(3).with(|spec| {
                    spec.forward.normalize = normalize;
                });
                let case = Case { n: 4, d: 5, m: 9, tied, t, l1: 0.0, spec };
                check(&format!("t {t}, tied {tied}, normalize {normalize}"), &case);
            }
        }
    }
}

#[test]
fn gradients_of_every_relaxation_are_slopes_of_its_loss_throughout_the_warm_up() {
    for relaxation in [Relaxation::Lapsum, Relaxation::AnnealK] {
        for t in [0.0, 0.35, 0.8, 0.97, 1.0] {
            for (tied, normalize, l1) in [(false, true, 0.0), (true, true, 0.7), (false, false, 0.7)] {
                let spec = spec(2).with(|spec| {
                    spec.forward.normalize = normalize;
                    spec.warmup.relaxation = relaxation;
                    spec.warmup.pool = 6;
                });
                let case = Case { n: 4, d: 5, m: 14, tied, t, l1, spec };
                check(&format!("{relaxation:?}, t {t}, tied {tied}, normalize {normalize}"), &case);
            }
        }
    }
}

#[test]
fn gradients_of_codes_with_signs_are_slopes_of_their_loss() {
    for (tied, normalize, l1) in [(false, true, 0.7), (true, true, 0.0), (false, false, 0.7)] {
        let spec = spec(3).with(|spec| {
            spec.forward.activation = Activation::AbsTopk;
            spec.forward.normalize = normalize;
            spec.warmup.relaxation = Relaxation::None;
        });
        let case = Case { n: 4, d: 5, m: 9, tied, t: 1.0, l1, spec };
        check(&format!("tied {tied}, normalize {normalize}, l1 {l1}"), &case);
    }
}

/// Whether every score is far from its threshold, and from the last place of a batch.
fn clear(case: &Case, params: &Params) -> bool {
    let margin = 40.0 * STEP;
    let scores = case.pass(params).pre_acts;
    let beside = |i: usize| params.threshold.as_ref().map_or(0.0, |t| t[i % case.m]);
    let mut sorted = scores.clone();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let places = case.n * case.spec.forward.k;
    scores.iter().enumerate().all(|(i, z)| (z - beside(i)).abs() > margin && z.abs() > margin)
        && sorted[places - 1] - sorted[places] > margin
}

/// The kind of code that `activation` makes, with and without prefixes.
fn unplaced(activation: Activation, prefixed: bool, tied: bool) -> Case {
    let spec = spec(3).with(|spec| {
        spec.forward.activation = activation;
        spec.forward.inference = activation.inference();
        spec.objective.penalty = activation.penalty();
        spec.warmup.relaxation = Relaxation::None;
        if prefixed {
            spec.forward.prefixes = Prefixes::new(&[2, 3, 9]).unwrap();
        }
    });
    // The penalty of thresholds has no slope but that of its kernel.
    let l1 = if activation == Activation::JumpRelu { 0.0 } else { 0.7 };
    Case { n: 4, d: 5, m: 9, tied, t: 1.0, l1, spec }
}

#[test]
fn gradients_of_codes_without_places_per_row_and_of_prefixes_are_slopes_of_their_loss() {
    for activation in [Activation::Topk, Activation::BatchTopk, Activation::JumpRelu, Activation::Relu] {
        for (prefixed, tied) in [(false, false), (false, true), (true, false), (true, true)] {
            let case = unplaced(activation, prefixed, tied);
            let with_threshold = |mut params: Params| {
                if case.spec.forward.has_threshold() {
                    params.threshold = Some((0..9).map(|j| 0.125 * (j % 3) as f32).collect());
                }
                params
            };
            let good = |params: &Params| clear(&case, params);
            let params =
                (0..200).map(|seed| with_threshold(case.params(10 * seed))).find(good).expect("no kinks");
            let mut pass = case.pass(&params);
            // No slope: what is not in the loss, or goes through the kernel alone.
            let no_threshold = |p: &Params| Params { threshold: None, ..p.clone() };
            let loss = |p: &Params| {
                let p = Params { threshold: params.threshold.clone(), ..p.clone() };
                case.pass(&p).stats.loss
            };
            pass.grads = no_threshold(&pass.grads);
            let (name, error) = worst(&no_threshold(&params), &pass.grads, &loss);
            let what = format!("{activation} prefixed {prefixed} tied {tied}");
            assert!(error <= TOLERANCE, "{what}: {name} is off by {error:.1e}");
        }
    }
}

#[test]
fn the_squared_error_with_prefixes_is_the_mean_of_theirs() {
    let case = unplaced(Activation::Topk, true, false);
    let params = case.settled();
    let pass = case.pass(&params);
    let mut own = 0.0;
    for end in [2, 3, 9] {
        // The same code, cut off: latents beyond the prefix decode to nothing.
        let mut cut = params.clone();
        cut.w_dec.as_mut().unwrap()[end * 5..].fill(0.0);
        let plain = Case {
            spec: case.spec.clone().with(|s| s.forward.prefixes = Prefixes::default()),
            ..case.clone()
        };
        own += plain.pass(&cut).stats.mse / 3.0;
    }
    assert!((own - pass.stats.mse).abs() < 1e-12 * own, "{own} {}", pass.stats.mse);
}

#[test]
fn gradients_of_the_sparse_model_are_slopes_of_its_loss() {
    for tied in [false, true] {
        let case = Case {
            n: 4,
            d: 5,
            m: 9,
            tied,
            t: 1.0,
            l1: 0.7,
            spec: spec(3).with(|spec| {
                spec.forward.normalize = false;
            }),
        };
        check(&format!("L1, tied {tied}"), &case);
    }
}

#[test]
fn gradients_with_an_l1_weight_during_the_warm_up_are_slopes_too() {
    for t in [0.0, 0.5, 0.97] {
        let case = Case { n: 4, d: 5, m: 9, tied: t > 0.4, t, l1: 0.7, spec: spec(3) };
        check(&format!("L1, t {t}"), &case);
    }
}

#[test]
fn a_scale_of_the_loss_multiplies_gradients_and_leaves_the_loss_in_the_data_s_unit() {
    for (t, aux_k) in [(1.0, 3), (0.4, 0)] {
        let spec = spec(3).with(|spec| {
            spec.objective.aux_k = aux_k;
            spec.objective.aux_coef = 4.0;
        });
        let plain = Case { n: 4, d: 5, m: 9, tied: false, t, l1: 0.7, spec };
        // The L1 weight is one of the scaled loss. A power of two rounds nothing.
        let scaled = Case {
            l1: 0.7 * 64.0,
            spec: plain.spec.clone().with(|spec| {
                spec.objective.loss_scale = 64.0;
            }),
            ..plain
        };
        let params = plain.settled();
        let (plain, scaled) = (plain.pass(&params), scaled.pass(&params));
        assert_eq!(plain.stats.loss, scaled.stats.loss);
        assert_eq!(plain.stats.aux, scaled.stats.aux);
        for ((name, _, plain), (_, _, scaled)) in plain.grads.tensors().iter().zip(scaled.grads.tensors()) {
            assert!(plain.iter().zip(scaled).all(|(p, s)| p * 64.0 == *s), "t {t}: {name}");
            assert!(plain.iter().any(|p| *p != 0.0), "t {t}: {name} has no gradient");
        }
    }
}

/// The auxiliary loss with the residual `miss` = x - y held where it was, straight from its formula in float64.
fn aux_loss(case: &Case, params: &Params, miss: &[f64]) -> f64 {
    let (d, m) = (case.d, case.m);
    let wide = |t: &[f32]| t.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
    let (w_enc, w_dec) = (wide(&params.w_enc), wide(params.decoder()));
    let (b_pre, b_lat) = (wide(&params.b_pre), wide(&params.b_lat));
    let mut total = 0.0;
    for (n, x) in wide(&values(case.n * d, 41)).chunks_exact(d).enumerate() {
        let mean = x.iter().sum::<f64>() / d as f64;
        let std = (x.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (d as f64 - 1.0)).sqrt();
        let input: Vec<f64> = x.iter().zip(&b_pre).map(|(v, b)| (v - mean) / (std + NORM_EPS) - b).collect();
        let score = |j: usize| b_lat[j] + (0..d).map(|i| input[i] * w_enc[j * d + i]).sum::<f64>();
        let mut dead: Vec<(usize, f64)> = (0..m).step_by(2).map(|j| (j, score(j))).collect();
        dead.sort_by(|a, b| b.1.total_cmp(&a.1));
        for i in 0..d {
            let used = dead.iter().take(case.spec.objective.aux_k).filter(|(_, z)| *z > 0.0);
            let recon: f64 = used.map(|(j, z)| z * w_dec[j * d + i]).sum();
            total += (recon * std - miss[n * d + i]).powi(2);
        }
    }
    total / (case.n * d) as f64
}

#[test]
fn gradients_of_the_auxiliary_loss_are_its_slopes_with_the_residual_held() {
    for (aux_k, tied) in [(2, false), (2, true), (50, false)] {
        let spec = spec(3).with(|spec| {
            spec.objective.aux_k = aux_k;
            spec.objective.aux_coef = 4.0;
        });
        let case = Case { n: 4, d: 5, m: 9, tied, t: 1.0, l1: 0.0, spec };
        let plain = Case {
            spec: case.spec.clone().with(|spec| {
                spec.objective.aux_coef = 0.0;
            }),
            ..case
        };
        let params = case.settled();
        let pass = case.pass(&params);
        let x = values(case.n * case.d, 41);
        let miss: Vec<f64> = x.iter().zip(&pass.recon).map(|(&x, &y)| f64::from(x) - f64::from(y)).collect();
        let aux = aux_loss(&case, &params, &miss);
        assert!((aux - pass.stats.aux).abs() < 1e-6 * aux && aux > 0.0, "{aux} {}", pass.stats.aux);
        let held = |p: &Params| plain.pass(p).stats.loss + 4.0 * aux_loss(&case, p, &miss);
        let (name, error) = worst(&params, &pass.grads, &held);
        assert!(error <= TOLERANCE, "aux_k {aux_k}, tied {tied}: {name} is off by {error:.1e}");
        // A control: without the residual held, or without the auxiliary part, the slopes are others.
        for other in [&case, &plain] {
            let (_, error) = worst(&params, &pass.grads, &|p| other.pass(p).stats.loss);
            assert!(error > 1e-3, "aux_k {aux_k}, tied {tied}: {error:.1e}");
        }
    }
}

#[test]
fn a_gradient_that_is_slightly_off_is_noticed() {
    let case = Case { n: 4, d: 5, m: 9, tied: false, t: 0.35, l1: 0.0, spec: spec(3) };
    let params = case.settled();
    let pass = case.pass(&params);
    for tensor in 0..4 {
        let mut grads = pass.grads.clone();
        let values = &mut grads.tensors_mut()[tensor].1[..];
        let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        values[1] += 1e-5 * largest;
        let (_, error) = worst(&params, &grads, &|p| case.pass(p).stats.loss);
        assert!(error > TOLERANCE, "tensor {tensor}: {error:.1e}");
    }
}
