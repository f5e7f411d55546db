//! The fast CPU backend against the reference, over shapes, phases, options and adversarial input.
#![allow(clippy::unwrap_used)]

#[path = "backends/case.rs"]
mod case;
mod common;
#[path = "backends/evaluation.rs"]
mod evaluation;
#[path = "backends/steadiness.rs"]
mod steadiness;

use case::{Case, Check};
use rayon::prelude::*;
use topk_sae::backend::cpu::{fast::FastCpu, relax::Mode};
use topk_sae::backend::{Backend, Look, Pass};
use topk_sae::spec::{Activation, Relaxation};

const PHASES: [f64; 5] = [1.0, 0.0, 0.3, 0.7, 0.97];

fn count(modes: &[Mode], mode: Mode) -> usize {
    modes.iter().filter(|&&m| m == mode).count()
}

/// All M, k and phases, tied or not; N, D, normalisation and noise take turns.
fn table() -> Vec<Case> {
    let mut cases = vec![];
    for (m, k) in sizes() {
        for t in PHASES {
            for tied in [false, true] {
                // A pair (M, k) has ten cases: the turns shift by one from pair to pair, so that they do not
                // stay with one phase.
                let i = cases.len();
                let shift = i / 10;
                let n = [1, 15, 16, 17, 33][(i + shift) % 5];
                let d = [2, 3, 31, 32, 33, 100][(i + shift) % 6];
                let mut case = Case::new(n, d, m, k);
                (case.t, case.tied, case.philox) = (t, tied, i % 3 > 0);
                case.spec.forward.normalize = i / 7 % 3 > 0;
                cases.push(case);
            }
        }
    }
    cases
}

fn sizes() -> Vec<(usize, usize)> {
    let mut sizes = vec![];
    for m in [1, 7, 31, 32, 33, 255, 256, 257, 1000] {
        let mut ks = [1, 2, 31, 32, 33, m];
        ks.sort_unstable();
        sizes.extend(ks.into_iter().filter(|&k| k <= m).map(|k| (m, k)));
    }
    sizes.dedup();
    sizes
}

#[test]
fn the_table_of_shapes_meets_every_phase_with_every_size() {
    let cases = table();
    let different = |key: &dyn Fn(&Case) -> [usize; 3]| {
        let mut keys: Vec<[usize; 3]> = cases.iter().map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.len()
    };
    let phase = |c: &Case| 2 * PHASES.iter().position(|&t| t == c.t).unwrap() + usize::from(c.tied);
    assert_eq!(different(&|c| [c.m, c.spec.forward.k, phase(c)]), 400);
    assert_eq!(different(&|c| [c.n, phase(c), 0]), 5 * 10);
    assert_eq!(different(&|c| [c.d, phase(c), 0]), 6 * 10);
    assert_eq!(different(&|c| [c.n, c.m, 0]), 5 * 9);
    assert_eq!(different(&|c| [c.n, c.d, usize::from(c.spec.forward.normalize)]), 60);
    assert_eq!(different(&|c| [usize::from(c.spec.forward.normalize), usize::from(c.philox), phase(c)]), 40);
}

#[test]
fn fast_agrees_with_the_reference_at_awkward_shapes_in_every_phase() {
    let modes: Vec<Mode> = table().into_par_iter().flat_map_iter(Case::agree).collect();
    // The test is void unless all three ways of holding a code were taken.
    for mode in [Mode::Hard, Mode::Support, Mode::Dense] {
        assert!(count(&modes, mode) > 50, "{mode:?}: {}", count(&modes, mode));
    }
}

#[test]
fn fast_agrees_with_the_reference_beyond_32768_latents() {
    for (t, k, mode) in [
        (1.0, 33, Mode::Hard),
        (0.0, 1, Mode::Dense),
        (0.7, 32, Mode::Support),
        (0.97, 32_773, Mode::Support),
    ] {
        let mut case = Case::new(2, 3, 32_768 + 5, k);
        (case.t, case.steps, case.l1) = (t, 1, 0.3);
        assert_eq!(case.agree(), [mode], "t = {t}");
    }
}

#[test]
fn every_relaxation_over_candidates_agrees_at_awkward_sizes_and_with_options() {
    let cases = case::over_candidates(&PHASES);
    let modes: Vec<Mode> = cases.into_par_iter().flat_map_iter(Case::agree).collect();
    assert_eq!(count(&modes, Mode::Hard), modes.len());
}

#[test]
fn every_option_agrees_alone_and_with_the_others_in_every_phase() {
    type Option = (&'static str, fn(&mut Case));
    let options: [Option; 10] = [
        ("l1", |c| c.l1 = 0.4),
        ("aux", |c| (c.spec.objective.aux_k, c.dead_every) = (3, Some(4))),
        ("aux with fewer dead latents than it wants", |c| {
            (c.spec.objective.aux_k, c.dead_every) = (200, Some(9))
        }),
        ("aux without dead latents", |c| c.spec.objective.aux_k = 3),
        ("unit norm", |c| c.spec.optimizer.unit_norm_decoder = true),
        ("weight decay", |c| c.spec.optimizer.weight_decay = 0.5),
        ("clipping", |c| c.spec.optimizer.clip_norm = Some(1e-3)),
        ("average", |c| c.spec.optimizer.ema = Some(0.99)),
        ("fixed pre-bias", |c| c.spec.optimizer.train_pre_bias = false),
        ("scales", |c| (c.spec.objective.loss_scale, c.spec.forward.norm_eps) = (20.0, 0.25)),
    ];
    let mut modes = vec![];
    for t in PHASES {
        for tied in [false, true] {
            let base = |m: usize| {
                let mut case = Case::new(17, 33, m, 5);
                (case.t, case.tied, case.steps) = (t, tied, 3);
                case
            };
            for (_, set) in options {
                let mut case = base(257);
                set(&mut case);
                modes.extend(case.agree());
            }
            for without_clipping in [false, true] {
                let mut case = base(300);
                for (_, set) in options.iter().filter(|(name, _)| *name != "aux without dead latents") {
                    set(&mut case);
                }
                if without_clipping {
                    (case.spec.optimizer.clip_norm, case.spec.objective.aux_k) = (None, 2);
                }
                modes.extend(case.agree());
            }
        }
    }
    for mode in [Mode::Hard, Mode::Support, Mode::Dense] {
        assert!(count(&modes, mode) > 20, "{mode:?}: {}", count(&modes, mode));
    }
}

#[test]
fn clipping_bites_where_it_is_meant_to() {
    let mut case = Case::new(17, 33, 257, 5);
    case.spec.optimizer.clip_norm = Some(1e-3);
    let (clipped, norm) = first_moment(&case);
    case.spec.optimizer.clip_norm = Some(1e3);
    let (free, _) = first_moment(&case);
    assert!(norm > 2e-3, "{norm}");
    let want: Vec<f32> = free.iter().map(|g| (f64::from(*g) * 1e-3 / (norm + 1e-6)) as f32).collect();
    Check { what: "clipped".into(), c: 4.0 }.tensor("moment", &clipped, &want);
}

/// Adam's first moment of w_enc after one step, and the gradient norm.
fn first_moment(case: &Case) -> (Vec<f32>, f64) {
    let (data, state) = case.start();
    let mut fast = FastCpu::new(data, case.spec.clone(), state);
    let stats = fast.step_now(&case.rows(), &case.plan(0, &[])).unwrap();
    (fast.state().unwrap().m.w_enc.clone(), stats.grad_norm)
}

fn in_every_phase(base: &Case) -> Vec<Mode> {
    let mut modes = vec![];
    for t in PHASES {
        for tied in [false, true] {
            for aux_k in [0, 4] {
                let mut case = base.clone();
                (case.t, case.tied, case.l1) = (t, tied, 0.1);
                (case.spec.objective.aux_k, case.dead_every) = (aux_k, (aux_k > 0).then_some(3));
                modes.extend(case.agree());
            }
        }
    }
    modes
}

#[test]
fn constant_rows_zero_rows_and_huge_offsets_agree() {
    let mut case = Case::new(18, 33, 65, 6);
    case.edit = |_, x| {
        for (n, row) in x.chunks_exact_mut(33).enumerate() {
            match n % 4 {
                0 => row.fill(0.1 * n as f32),
                1 => row.fill(0.0),
                2 => row.iter_mut().for_each(|v| *v += 1e5),
                _ => {}
            }
        }
    };
    in_every_phase(&case);
}

#[test]
fn rows_on_which_every_score_is_negative_agree() {
    let mut case = Case::new(17, 31, 65, 6);
    case.edit = |params, _| params.b_lat.fill(-100.0);
    in_every_phase(&case);
}

#[test]
fn one_latent_active_on_every_row_agrees() {
    for k in [1, 32] {
        let mut case = Case::new(33, 32, 257, k);
        case.edit = |params, _| params.b_lat[200] = 6.0;
        in_every_phase(&case);
    }
}

#[test]
fn exact_ties_agree_and_go_to_the_lowest_latent() {
    let case = case::with_ties();
    in_every_phase(&case);

    let (data, state) = case.start();
    for (name, mut backend) in common::backends(&data, &case.spec, &state) {
        let Pass { pre_acts, code, .. } = backend.inspect(&case.rows(), &case.plan(0, &[])).unwrap();
        for (z, h) in pre_acts.chunks_exact(70).zip(code.chunks_exact(70)) {
            let mut order: Vec<usize> = (0..70).collect();
            order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
            let (inside, outside) = (z[order[8]], z[order[9]]);
            assert_eq!(inside, outside, "the cut must fall inside a tie");
            for (j, &h) in h.iter().enumerate() {
                let want = if order[..9].contains(&j) { z[j] } else { 0.0 };
                assert_eq!(h, want, "{name}: latent {j}");
            }
        }
    }
}

#[test]
fn denormal_rows_and_weights_agree() {
    for scale in [1e-30f32, 1e-36, 1e-38, 1e-42] {
        let mut case = Case::new(17, 33, 65, 6);
        case.edit = match scale {
            1e-30 => |_, x| x.iter_mut().for_each(|v| *v *= 1e-30),
            1e-36 => |_, x| x.iter_mut().for_each(|v| *v *= 1e-36),
            1e-38 => |_, x| x.iter_mut().for_each(|v| *v *= 1e-38),
            _ => |params, _| params.w_enc[..330].iter_mut().for_each(|v| *v *= 1e-42),
        };
        in_every_phase(&case);
    }
}

#[test]
fn the_comparison_refuses_a_pass_that_is_slightly_off() {
    // The same pass with one score's gradient dropped, or one code entry doubled, is refused.
    let case = Case::new(15, 31, 33, 5);
    let (data, state) = case.start();
    let spec = case.spec.clone().with(|spec| {
        spec.forward.normalize = true;
    });
    let mut both = common::backends(&data, &spec, &state);
    let pass = both[0].1.inspect(&case.rows(), &case.plan(0, &[])).unwrap();
    let check = Check { what: "control".into(), c: 24.0 };
    check.pass(&pass, &pass);
    let refused = |edit: &dyn Fn(&mut Pass)| {
        let mut wrong = pass.clone();
        edit(&mut wrong);
        std::panic::catch_unwind(|| check.pass(&wrong, &pass)).is_err()
    };
    let largest = |t: &[f32]| (0..t.len()).max_by(|&a, &b| t[a].abs().total_cmp(&t[b].abs())).unwrap();
    let (g, h) = (largest(&pass.grad_pre_acts), largest(&pass.code));
    assert!(refused(&|p| p.grad_pre_acts[g] = 0.0));
    assert!(refused(&|p| p.code[h] *= 1.0001));
    assert!(refused(&|p| p.recon[7] = f32::NAN));
    assert!(refused(&|p| p.stats.loss *= 1.0001));
    assert!(refused(&|p| p.grads.b_pre[3] += 1e-3 * p.grads.b_pre[0].abs().max(1e-2)));
}

#[test]
fn codes_with_signs_agree() {
    for case in case::signed() {
        case.agree();
    }
}

#[test]
fn codes_with_signs_have_both_and_are_the_largest_in_magnitude() {
    let case = case::signed().into_iter().find(|case| case.m == 257).unwrap();
    let (data, state) = case.start();
    for (name, mut backend) in common::backends(&data, &case.spec, &state) {
        let pass = backend.inspect(&case.rows(), &case.plan(0, &[])).unwrap();
        let (mut positive, mut negative) = (0, 0);
        for (z, h) in pass.pre_acts.chunks_exact(257).zip(pass.code.chunks_exact(257)) {
            let least =
                z.iter().zip(h).filter(|(_, h)| **h != 0.0).map(|(z, _)| z.abs()).fold(f32::MAX, f32::min);
            assert_eq!(h.iter().filter(|h| **h != 0.0).count(), 5, "{name}");
            assert!(
                z.iter().zip(h).all(|(z, h)| if *h == 0.0 { z.abs() <= least } else { z == h }),
                "{name}"
            );
            positive += h.iter().filter(|h| **h > 0.0).count();
            negative += h.iter().filter(|h| **h < 0.0).count();
        }
        assert!(positive > 0 && negative > 0, "{name}: {positive} {negative}");
        let codes = backend.encode(&case.rows(), topk_sae::model::Weights::Last).unwrap();
        assert_eq!(codes.values.len(), 5 * case.n, "{name}");
        assert!(codes.values.iter().any(|v| *v < 0.0), "{name}");
    }
}

#[test]
fn every_activation_without_places_per_row_agrees_at_awkward_sizes_and_with_options() {
    for activation in [Activation::BatchTopk, Activation::JumpRelu, Activation::Relu] {
        let cases = case::unplaced(activation);
        let modes: Vec<Mode> = cases.into_par_iter().flat_map_iter(Case::agree).collect();
        let [sparse, dense] = [Mode::Hard, Mode::DenseCode].map(|mode| count(&modes, mode));
        assert_eq!(sparse + dense, modes.len());
        // The test is void unless both ways of holding a code were taken.
        let least = if activation == Activation::BatchTopk { 0 } else { 8 };
        assert!(sparse > 8 && dense >= least, "{activation}: {sparse} {dense}");
    }
}

#[test]
fn few_scores_above_thresholds_are_held_as_entries_without_prefixes_too() {
    let mut modes = vec![];
    for (activation, i) in [(Activation::JumpRelu, 0), (Activation::JumpRelu, 1), (Activation::Relu, 2)] {
        let mut case = Case::new(17, 33, 300, 5);
        (case.l1, case.steps) = (0.3, 3);
        case.spec.forward.activation = activation;
        case.spec.forward.inference = activation.inference();
        case.spec.warmup.relaxation = Relaxation::None;
        case.spec.objective.penalty = activation.penalty();
        case.spec.optimizer.clip_norm = (i == 1).then_some(1e-3);
        // Scores spread over about one, so that a bias of minus two leaves few of them.
        case.edit = |params, _| params.b_lat.iter_mut().for_each(|b| *b -= 2.0);
        modes.extend(case.agree());
    }
    assert_eq!(count(&modes, Mode::Hard), 9, "{modes:?}");
}

#[test]
fn prefixes_agree_with_places_per_row_and_over_candidates() {
    let mut cases = case::over_candidates(&[0.0, 0.7]);
    cases.extend(case::signed());
    cases.extend(sizes().into_iter().map(|(m, k)| Case::new(17, 33, m, k)));
    for (i, case) in cases.iter_mut().enumerate() {
        case.spec.forward.prefixes = case::with_ends(case.m, i);
    }
    let modes: Vec<Mode> = cases.into_par_iter().flat_map_iter(Case::agree).collect();
    assert_eq!(count(&modes, Mode::Hard), modes.len());
}

#[test]
fn a_larger_k_of_a_batch_that_falls_to_k_agrees() {
    for t in PHASES {
        for (m, k, pool) in [(7, 1, 3), (257, 5, 40), (1000, 32, 96)] {
            let mut case = Case::new(17, 33, m, k);
            case.t = t;
            case.spec.forward.activation = Activation::BatchTopk;
            case.spec.forward.inference = Activation::BatchTopk.inference();
            (case.spec.warmup.relaxation, case.spec.warmup.pool) = (Relaxation::AnnealK, pool);
            case.agree();
        }
    }
}
