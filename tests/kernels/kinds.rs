//! Activations without places per row, and prefixes: the whole engine beside the reference, the selection over a batch
//! against a full sort.

use crate::case::{self, Case};
use crate::common::device;
use crate::engine::{on, ours};
use crate::topk::{rows, select};
use cuda_on_cpu::sanitizer;
use std::sync::Arc;
use topk_sae::backend::cpu::fast::FastCpu;
use topk_sae::backend::cpu::reference::{self, Reference};
use topk_sae::backend::cuda::device::{Device, Element};
use topk_sae::backend::{Backend, Look};
use topk_sae::data::Embeddings;
use topk_sae::model::{TrainState, Weights};
use topk_sae::spec::{Activation, ModelSpec, Prefixes, Relaxation};

pub const UNPLACED: [Activation; 3] = [Activation::BatchTopk, Activation::JumpRelu, Activation::Relu];

/// The case with another activation.
fn with(mut case: Case, activation: Activation) -> Case {
    case.spec.forward.activation = activation;
    case.spec.forward.inference = activation.inference();
    case.spec.warmup.relaxation = Relaxation::None;
    case.spec.objective.penalty = activation.penalty();
    case.spec.objective.bandwidth = 0.3;
    case
}

#[test]
fn activations_without_places_agree_at_awkward_sizes_and_with_options() {
    for activation in UNPLACED {
        for (i, case) in case::unplaced(activation).into_iter().enumerate() {
            case.agree_with(ours(i as u64), |_| ());
        }
    }
}

#[test]
fn prefixes_agree_with_places_per_row_and_over_candidates() {
    let mut cases = case::over_candidates(&[0.0, 0.7]);
    cases.extend(case::signed());
    cases.extend([(1, 1), (33, 5), (257, 32), (1000, 9)].map(|(m, k)| Case::new(17, 33, m, k)));
    for (i, mut case) in cases.into_iter().enumerate() {
        case.spec.forward.prefixes = case::with_ends(case.m, i);
        case.agree_with(ours(i as u64), |_| ());
    }
}

#[test]
fn a_larger_k_of_a_batch_that_falls_to_k_agrees() {
    for t in [1.0, 0.0, 0.7] {
        for (m, k, pool) in [(7, 1, 3), (257, 5, 40), (1000, 32, 96)] {
            let mut case = with(Case::new(17, 33, m, k), Activation::BatchTopk);
            case.t = t;
            (case.spec.warmup.relaxation, case.spec.warmup.pool) = (Relaxation::AnnealK, pool);
            case.agree_with(ours(m as u64), |_| ());
        }
    }
}

/// Several tiles of latents, several groups of runs, more rows than a block of warps has.
#[test]
fn wide_codes_agree() {
    for (i, activation) in UNPLACED.into_iter().enumerate() {
        let mut case = with(Case::new(11, 17, 4200, 9), activation);
        (case.steps, case.l1, case.tied) = (1, 0.2, i == 0);
        case.spec.forward.prefixes = [Prefixes::default(), Prefixes::of(4200)][i % 2];
        case.agree_with(ours(i as u64), |_| ());
    }
}

/// One row takes most places of the batch: more entries than a block has in shared memory at a time.
pub fn crowded_row(prefixes: &[u32]) -> Case {
    let mut case = with(Case::new(70, 9, 300, 4), Activation::BatchTopk);
    (case.steps, case.spec.forward.normalize) = (1, false);
    case.spec.forward.prefixes = Prefixes::new(prefixes).unwrap();
    case.edit = |params, x| {
        params.b_lat.fill(0.0);
        x[3 * 9..4 * 9].iter_mut().for_each(|x| *x *= 6.0);
    };
    case
}

#[test]
fn a_row_of_more_entries_than_are_staged_at_once_agrees() {
    for (i, prefixes) in [&[][..], &[1, 40, 300]].into_iter().enumerate() {
        let case = crowded_row(prefixes);
        let (data, state) = case.start();
        let pass = topk_sae::backend::Look::inspect(
            &mut ours(0)(data, case.spec.clone(), state),
            &case.rows(),
            &case.plan(0, &[]),
        );
        let row = &pass.unwrap().code[3 * 300..4 * 300];
        assert!(row.iter().filter(|&&h| h > 0.0).count() > 4 * 16, "the test is void");
        case.agree_with(ours(i as u64), |_| ());
    }
}

#[test]
fn batches_with_ties_and_with_few_positive_scores_agree() {
    with(case::with_ties(), Activation::BatchTopk).agree_with(ours(1), |_| ());
    for low in [-1.5, -100.0] {
        for activation in UNPLACED {
            let mut case = with(Case::new(33, 31, 130, 9), activation);
            case.l1 = 0.1;
            case.edit = if low < -2.0 {
                |params, _| params.b_lat.fill(-100.0)
            } else {
                |params, _| params.b_lat.iter_mut().for_each(|b| *b -= 1.5)
            };
            case.agree_with(ours(2), |_| ());
        }
    }
}

/// Fails where the selection over a batch and a full sort differ, for a batch of rows that are meant to break it.
pub fn check_batch(device: &mut dyn Device, element: Element, m: usize, k: usize) {
    let mut scores = rows(m);
    // Scores that are no normal numbers come after all others, and need not be told apart.
    for v in scores.iter_mut().flatten() {
        *v = if element == Element::Bf16 { half::bf16::from_f32(*v).to_f32() } else { *v };
        *v = if v.is_normal() { *v } else { 0.0 };
    }
    let got = select(device, element, Activation::BatchTopk, &scores, &vec![0.0; m], k);
    assert_eq!(got.bad, vec![0; scores.len()]);
    let wide: Vec<f64> = scores.iter().flatten().map(|&v| f64::from(v)).collect();
    let mut want = vec![vec![]; scores.len()];
    let mut places = reference::top_k(&wide, k * scores.len());
    places.sort_unstable();
    for at in places {
        if wide[at] > 0.0 {
            want[at / m].push(((at % m) as u32, wide[at] as f32));
        }
    }
    assert_eq!(got.rows, want, "{element:?} M {m} k {k}");
}

#[test]
fn the_places_of_a_batch_equal_a_full_sort() {
    for element in [Element::F32, Element::Bf16] {
        for m in [1, 7, 31, 32, 33, 127, 1000, 1023, 1024, 1025, 4101] {
            let mut ks = vec![1, 2, 33, 300, 1024, m];
            ks.retain(|&k| k <= m.min(1024));
            if sanitizer::inside() {
                ks.truncate(2);
            }
            for k in ks {
                check_batch(device::device((m + k) as u64).as_mut(), element, m, k);
            }
        }
    }
}

#[test]
fn scores_that_are_not_finite_are_told_row_by_row() {
    let m = 300;
    let mut scores = vec![vec![0.25f32; m]; 5];
    for (row, bad) in [(1, f32::NAN), (2, f32::INFINITY), (4, f32::NEG_INFINITY)] {
        scores[row][299 - row] = bad;
    }
    let got =
        select(device::device(0).as_mut(), Element::F32, Activation::BatchTopk, &scores, &vec![0.0; m], 8);
    assert_eq!(got.bad, [0, 1, 1, 0, 1]);
}

/// What the next tests look at: each activation, with prefixes and without.
pub fn evaluated() -> Vec<Case> {
    let mut cases = vec![];
    for (i, activation) in [Activation::Topk].into_iter().chain(UNPLACED).enumerate() {
        for prefixes in [Prefixes::default(), Prefixes::new(&[1, 40, 41, 150]).unwrap()] {
            let mut case = with(Case::new(300, 9, 150, 4), activation);
            (case.spec.optimizer.ema, case.tied) = (Some(0.9), i % 2 == 0);
            case.spec.objective.seeks_k = activation == Activation::Relu;
            case.spec.forward.prefixes = prefixes;
            cases.push(case);
        }
    }
    cases
}

/// Fails where an evaluation, the codes (where there are `codes`) or the calibration differ from the reference's.
pub fn evaluation_agrees<B: Look>(
    case: &Case,
    codes: bool,
    make: impl FnOnce(Arc<Embeddings>, ModelSpec, TrainState) -> B,
) {
    let (data, mut state) = case.start();
    state.ema.as_mut().unwrap().w_enc.iter_mut().for_each(|w| *w *= 0.5);
    let mut engine = make(data.clone(), case.spec.clone(), state.clone());
    let mut cpu = FastCpu::new(data.clone(), case.spec.clone(), state.clone());
    let mut reference = Reference::new(data, case.spec.clone(), state);
    for calibrated in [false, true] {
        for weights in [Weights::Last, Weights::Averaged] {
            if calibrated {
                for backend in [&mut engine as &mut dyn Backend, &mut cpu, &mut reference] {
                    backend.calibrate(&case.rows(), weights).unwrap();
                }
            }
            let (mut fired, mut want_fired) = (vec![7u64; case.m], vec![7u64; case.m]);
            let got = engine.evaluate(&case.rows(), weights, &mut fired).unwrap();
            let want = reference.evaluate(&case.rows(), weights, &mut want_fired).unwrap();
            let what = format!("{} calibrated {calibrated} {weights:?}", case.name());
            // A calibrated threshold is a score, so that one score may lie on either side of it.
            let apart: u64 = fired.iter().zip(&want_fired).map(|(a, b)| a.abs_diff(*b)).sum();
            assert!(apart <= u64::from(calibrated), "{what}: {apart}");
            assert_eq!((got.rows, got.prefixes), (want.rows, want.prefixes), "{what}");
            if calibrated && case.spec.seeks_k() {
                assert!((got.active as i64 - 4 * case.n as i64).abs() <= 1, "{what}: {}", got.active);
            }
            let mut pairs =
                vec![(got.squared, want.squared), (got.absolute, want.absolute), (got.cosine, want.cosine)];
            pairs.extend(got.by_prefix.into_iter().zip(want.by_prefix));
            for (got, want) in pairs {
                let allowed = if apart > 0 { 1e-2 } else { 1e-5 };
                assert!((got - want).abs() <= allowed * want.abs(), "{what}: {got} {want}");
            }
            if calibrated || !codes {
                continue;
            }
            let (got, want) = (
                engine.encode(&case.rows(), weights).unwrap(),
                reference.encode(&case.rows(), weights).unwrap(),
            );
            assert_eq!((&got.indptr, &got.indices, got.bad), (&want.indptr, &want.indices, None), "{what}");
            for (got, want) in got.values.iter().zip(&want.values) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{what}: {got} {want}");
            }
        }
    }
    // The weights themselves follow those of the fast backend, whose scores are rounded as often.
    let (got, want) = (engine.state().unwrap().into_owned(), cpu.state().unwrap().into_owned());
    for (got, want) in [(&got.params, &want.params), (&got.ema.unwrap(), &want.ema.unwrap())] {
        for ((name, _, got), (_, _, want)) in got.tensors().iter().zip(want.tensors()) {
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
            assert!(got.iter().zip(want).all(close), "{} {name}", case.name());
        }
    }
}

#[test]
fn evaluations_codes_and_calibration_agree_with_the_reference() {
    for (i, case) in evaluated().iter().enumerate() {
        // The sanitizers take a second for a hundred rows.
        if !sanitizer::inside() || i % 3 == 2 {
            evaluation_agrees(case, true, on(device::device(i as u64)));
        }
    }
}

/// Cases in which planted defects show.
pub fn telling() -> Vec<Case> {
    let mut cases: Vec<Case> =
        UNPLACED.into_iter().flat_map(|kind| case::unplaced(kind).into_iter().skip(12).take(6)).collect();
    cases.push(crowded_row(&[1, 40, 300]));
    cases.push(with(case::with_ties(), Activation::BatchTopk));
    let mut annealed = with(Case::new(17, 33, 257, 5), Activation::BatchTopk);
    annealed.t = 0.5;
    (annealed.spec.warmup.relaxation, annealed.spec.warmup.pool) = (Relaxation::AnnealK, 40);
    cases.push(annealed);
    cases.push(case::signed_with_prefixes());
    // Rows have far fewer active latents than k, which takes thresholds down to 0 and no further.
    let mut low = with(Case::new(17, 33, 257, 250), Activation::JumpRelu);
    low.l1 = 0.3;
    low.edit = |params, _| params.threshold.iter_mut().for_each(|all| all.fill(1e-4));
    cases.push(low);
    cases
}
