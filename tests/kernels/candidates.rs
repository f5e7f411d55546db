//! Warm-ups over candidates: the whole engine beside the reference.

use crate::case::{self, Case};
use crate::common::device;
use crate::engine::ours;
use topk_sae::backend::{Backend, Look};
use topk_sae::spec::Relaxation;

const ALL: [Relaxation; 2] = [Relaxation::Lapsum, Relaxation::AnnealK];

/// A case for each relaxation, tied and untied in turn.
fn each(base: &Case, pool: usize, t: f64) -> impl Iterator<Item = Case> {
    ALL.into_iter().enumerate().map(move |(i, relaxation)| {
        let mut case = base.clone();
        (case.t, case.tied) = (t, i % 2 == 0);
        (case.spec.warmup.relaxation, case.spec.warmup.pool) = (relaxation, pool);
        case
    })
}

fn agrees(base: &Case, pool: usize, t: f64) {
    for (i, case) in each(base, pool, t).enumerate() {
        case.agree_with(ours(i as u64), |_| ());
    }
}

#[test]
fn every_relaxation_over_candidates_agrees_at_awkward_sizes_and_with_options() {
    for (i, case) in case::over_candidates(&[0.0, 0.3, 0.7, 0.97]).into_iter().enumerate() {
        case.agree_with(ours(i as u64), |_| ());
    }
}

#[test]
fn as_many_candidates_as_the_kernels_hold_agree() {
    // Four candidates per thread.
    let mut case = Case::new(2, 5, 1100, 40);
    case.steps = 1;
    case.edit = |params, _| params.b_lat.fill(4.0);
    agrees(&case, 1024, 0.4);
}

#[test]
fn one_softmax_and_all_latents_but_one_agree() {
    for (k, pool) in [(1, 33), (32, 33), (33, 33)] {
        let mut case = Case::new(17, 9, 33, k);
        case.edit = |params, _| params.b_lat.fill(4.0);
        agrees(&case, pool, 0.3);
    }
}

#[test]
fn rows_with_few_positive_scores_or_none_agree() {
    let mut case = Case::new(33, 31, 130, 9);
    // Some rows have more positive scores than k, some fewer.
    case.edit = |params, _| params.b_lat.iter_mut().for_each(|b| *b -= 1.2);
    let (data, state) = case.start();
    let pass = ours(0)(data, case.spec.clone(), state).inspect(&case.rows(), &case.plan(0, &[])).unwrap();
    let positive: Vec<usize> =
        pass.pre_acts.chunks_exact(130).map(|z| z.iter().filter(|&&z| z > 0.0).count()).collect();
    assert!(positive.iter().any(|&p| p < 9) && positive.iter().any(|&p| p > 9), "{positive:?}");
    agrees(&case, 40, 0.5);
    case.edit = |params, _| params.b_lat.fill(-100.0);
    agrees(&case, 40, 0.5);
}

#[test]
fn ties_go_to_the_lowest_latent_and_equal_scores_have_no_spread() {
    let mut case = case::with_ties();
    agrees(&case, 25, 0.5);
    // All scores of a row are the same: the first latents are the candidates, and their weights have no slope.
    case.edit = |params, _| {
        params.w_enc.fill(0.0);
        params.b_lat.fill(0.7);
    };
    for t in [0.0, 0.5] {
        agrees(&case, 25, t);
    }
}

/// Scores that lie far apart. One of `outliers`: three of each row, so that the weights are 0 and 1 and no slope is left
/// between them; or 33 whose weights are shares of k = 3, so that Newton's step from the middle leaves the bracket.
pub fn far_apart(outliers: usize) -> Case {
    let mut case = Case::new(17, 31, 130, 3);
    (case.t, case.spec.warmup.pool) = (0.97, 60);
    case.edit = match outliers {
        3 => |params, _| (0..3).for_each(|j| params.b_lat[40 * j + 7] = 500.0),
        _ => |params, _| params.b_lat.iter_mut().step_by(4).for_each(|b| *b = 50.0),
    };
    case.steps = 1;
    case
}

#[test]
fn scores_that_lie_far_apart_agree() {
    for outliers in [3, 33] {
        agrees(&far_apart(outliers), 60, 0.97);
    }
}

#[test]
fn a_warm_up_that_ends_leaves_the_hard_phase_as_it_is() {
    // Lists change their width, and the annealed k its size, within work that is recorded once.
    for (i, mut case) in each(&Case::new(33, 31, 257, 5), 60, 0.0).enumerate() {
        // Adam's rounding adds up over the steps: a decision may hang on it, so that only losses are compared.
        let (data, state) = case.start();
        let mut engine = ours(i as u64)(data.clone(), case.spec.clone(), state.clone());
        let mut reference = topk_sae::backend::cpu::reference::Reference::new(data, case.spec.clone(), state);
        for step in 0..9 {
            case.t = [0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.0, 0.5][step as usize];
            let plan = case.plan(step, &[]);
            let got = engine.step_now(&case.rows(), &plan).unwrap().loss;
            let want = reference.step_now(&case.rows(), &plan).unwrap().loss;
            assert!(
                (got / want - 1.0).abs() < 1e-4,
                "{:?} step {step}: {got} {want}",
                case.spec.warmup.relaxation
            );
        }
    }
}

#[test]
fn scores_that_are_not_finite_stop_all_later_steps() {
    let mut case = Case::new(9, 8, 33, 3);
    case.spec.forward.normalize = false;
    case.edit = |_, x| x[3 * 8..4 * 8].fill(3e38);
    for case in each(&case, 20, 0.5) {
        let (data, state) = case.start();
        let mut engine = ours(1)(data, case.spec.clone(), state.clone());
        for step in 0..2 {
            let stats = engine.step_now(&case.rows(), &case.plan(step, &[])).unwrap();
            assert!(!stats.loss.is_finite(), "{stats:?}");
        }
        assert_eq!(engine.state().unwrap().params, state.params);
    }
}

#[test]
fn more_candidates_than_the_kernels_hold_are_refused() {
    let mut case = Case::new(4, 8, 3000, 5);
    (case.spec.warmup.relaxation, case.spec.warmup.pool) = (Relaxation::Lapsum, 1025);
    let refused = |case: &Case| {
        let (data, state) = case.start();
        let device = device::device(0);
        let precision = topk_sae::spec::Precision::F32;
        topk_sae::backend::cuda::engine::Engine::new(
            "engine".into(),
            device,
            data,
            case.spec.clone(),
            precision,
            &state,
        )
        .err()
        .map(|e| e.to_string())
    };
    let told = refused(&case).unwrap();
    assert!(told.contains("--pool 1025") && told.contains("1024"), "{told}");
    // Without candidates nobody asks for them.
    case.spec.warmup.relaxation = Relaxation::Softmax;
    assert_eq!(refused(&case), None);
}
