//! Evaluation: both codes, both weights, and in parts.

use crate::case::{Case, Check};
use crate::common;
use topk_sae::backend::cpu::fast::FastCpu;
use topk_sae::backend::{Backend, Codes, EvalSums};
use topk_sae::model::{Params, Weights};
use topk_sae::spec::{Activation, Inference, Penalty, Prefixes, Relaxation};

#[test]
fn evaluation_agrees_with_the_reference_for_both_codes_and_both_weights() {
    for (d, m, k) in [(33, 257, 9), (2, 7, 7), (100, 1000, 33)] {
        for (inference, tied, normalize) in
            [(Inference::Topk, false, true), (Inference::Relu, true, true), (Inference::Relu, false, false)]
        {
            // More rows than are evaluated at a time.
            let mut case = Case::new(300, d, m, k);
            case.tied = tied;
            (case.spec.forward.inference, case.spec.forward.normalize, case.spec.optimizer.ema) =
                (inference, normalize, Some(0.99));
            let (data, mut state) = case.start();
            state.ema = Some(common::random_params(d, m, tied, 900));
            let sums = common::backends(&data, &case.spec, &state).into_iter().map(|(_, mut backend)| {
                [Weights::Last, Weights::Averaged].map(|weights| {
                    let mut fired = vec![0; m];
                    let sums = backend.evaluate(&case.rows(), weights, &mut fired).unwrap();
                    (sums, fired)
                })
            });
            let sums: Vec<_> = sums.collect();
            for ((want, fired), (got, got_fired)) in sums[0].iter().zip(&sums[1]) {
                let check = Check { what: format!("{} {inference:?}", case.name()), c: 64.0 };
                assert_eq!(got.rows, 300);
                check.number("squared", got.squared, want.squared);
                check.number("absolute", got.absolute, want.absolute);
                // A cosine is at most 1, so its sum is known to the number of rows.
                check.number("cosine", got.cosine + 300.0, want.cosine + 300.0);
                // Of 300 M scores a few lie within rounding of 0 or of a tie, and may go either way.
                let apart: u64 = got_fired.iter().zip(fired).map(|(a, b)| a.abs_diff(*b)).sum();
                assert!(apart <= 4, "{}: {apart} of {} counts", check.what, want.active);
                assert_eq!(got.active, got_fired.iter().sum::<u64>(), "{}", check.what);
            }
            let ((last, _), (averaged, _)) = (&sums[1][0], &sums[1][1]);
            assert!(
                (last.squared / averaged.squared - 1.0).abs() > 1e-3,
                "the average must be another model"
            );
        }
    }
}

#[test]
fn evaluation_in_parts_adds_up_to_evaluation_at_once() {
    let case = Case::new(600, 33, 257, 9);
    let (data, state) = case.start();
    let mut fast = FastCpu::new(data, case.spec.clone(), state);
    let rows = case.rows();
    let mut evaluate = |parts: &[&[u32]]| {
        let (mut fired, mut total) = (vec![0; case.m], EvalSums::default());
        for part in parts {
            let sums = fast.evaluate(part, Weights::Last, &mut fired).unwrap();
            total.rows += sums.rows;
            total.active += sums.active;
            total.squared += sums.squared;
            total.absolute += sums.absolute;
            total.cosine += sums.cosine;
        }
        (total, fired)
    };
    let (once, once_fired) = evaluate(&[&rows]);
    for cuts in [vec![1, 17, 600], vec![256, 512, 600], vec![100, 101, 600], vec![0, 599, 600]] {
        let mut first = 0;
        let mut parts = vec![];
        for end in cuts {
            parts.push(&rows[first..end]);
            first = end;
        }
        let (sums, fired) = evaluate(&parts);
        assert_eq!((sums.rows, sums.active), (once.rows, once.active));
        assert_eq!(fired, once_fired);
        // A product of another shape may add in another order.
        let check = Check { what: "parts".into(), c: 4.0 };
        check.number("squared", sums.squared, once.squared);
        check.number("absolute", sums.absolute, once.absolute);
        check.number("cosine", sums.cosine, once.cosine);
    }
}

/// Fails unless two backends give the same codes, but for entries within rounding of 0 or of a tie.
pub fn same_codes(what: &str, got: &Codes, want: &Codes) {
    assert_eq!((got.n_rows(), got.bad), (want.n_rows(), want.bad), "{what}");
    let mut apart = 0;
    for i in 0..want.n_rows() {
        let ((latents, values), (want_latents, want_values)) = (got.row(i), want.row(i));
        assert!(latents.windows(2).all(|pair| pair[0] < pair[1]), "{what}: row {i} is not ascending");
        assert!(values.iter().all(|v| *v > 0.0), "{what}: row {i} has an entry that is not active");
        if latents != want_latents {
            apart += latents.iter().filter(|j| !want_latents.contains(j)).count();
            apart += want_latents.iter().filter(|j| !latents.contains(j)).count();
            continue;
        }
        for (got, want) in values.iter().zip(want_values) {
            // Sums of some hundred float32 products.
            assert!((got - want).abs() <= 1e-4 * want.abs().max(1.0), "{what}: row {i}: {got} {want}");
        }
    }
    assert!(apart <= 8, "{what}: {apart} entries are in one code only");
}

#[test]
fn codes_agree_with_the_reference_and_with_the_evaluation() {
    for (d, m, k) in [(33, 257, 9), (2, 7, 7), (100, 1000, 33)] {
        for (inference, normalize) in
            [(Inference::Topk, true), (Inference::Relu, true), (Inference::Relu, false)]
        {
            let mut case = Case::new(300, d, m, k);
            (case.spec.forward.inference, case.spec.forward.normalize, case.spec.optimizer.ema) =
                (inference, normalize, Some(0.99));
            let (data, mut state) = case.start();
            state.ema = Some(common::random_params(d, m, case.tied, 900));
            let rows: Vec<u32> = case.rows().into_iter().rev().collect();
            for weights in [Weights::Last, Weights::Averaged] {
                let mut all = common::backends(&data, &case.spec, &state);
                let codes: Vec<Codes> =
                    all.iter_mut().map(|(_, backend)| backend.encode(&rows, weights).unwrap()).collect();
                let what = format!("{} {inference:?} {weights:?}", case.name());
                same_codes(&what, &codes[1], &codes[0]);
                let mut fired = vec![0; m];
                let sums = all[1].1.evaluate(&rows, weights, &mut fired).unwrap();
                assert_eq!(codes[1].indices.len() as u64, sums.active, "{what}");
                codes[1].indices.iter().for_each(|&j| fired[j as usize] -= 1);
                assert!(fired.iter().all(|&n| n == 0), "{what}");
            }
        }
    }
}

#[test]
fn a_row_whose_scores_are_not_finite_is_named() {
    let mut case = Case::new(40, 8, 33, 3);
    case.spec.forward.normalize = false;
    case.edit = |_, x| x[21 * 8..22 * 8].fill(3e38);
    let (data, state) = case.start();
    let mut fast = FastCpu::new(data, case.spec.clone(), state);
    assert_eq!(fast.encode(&case.rows(), Weights::Last).unwrap().bad, Some(21));
}

#[test]
fn other_data_of_the_same_kind_take_the_place_of_the_first() {
    let case = Case::new(50, 33, 257, 9);
    let (data, state) = case.start();
    let mut values = vec![0.0; 20 * 33];
    (0..20).for_each(|n| data.row_into(30 + n, &mut values[n * 33..(n + 1) * 33]));
    let last = common::embeddings(33, values);
    for (_, mut backend) in common::backends(&data, &case.spec, &state) {
        let want = backend.encode(&(30..50).collect::<Vec<u32>>(), Weights::Last).unwrap();
        backend.set_data(last.clone()).unwrap();
        let got = backend.encode(&(0..20).collect::<Vec<u32>>(), Weights::Last).unwrap();
        same_codes("other data", &got, &want);
        assert!(backend.set_data(common::embeddings(3, vec![0.0; 6])).is_err());
    }
}

/// Cases of 300 rows whose codes come from thresholds, and of all kinds with prefixes.
fn thresholded() -> Vec<Case> {
    let mut cases = vec![];
    for activation in [Activation::BatchTopk, Activation::JumpRelu, Activation::Relu, Activation::Topk] {
        for prefixed in [false, true] {
            let mut case = Case::new(300, 33, 257, 9);
            case.spec.forward.activation = activation;
            case.spec.forward.inference = activation.inference();
            case.spec.warmup.relaxation = Relaxation::None;
            case.spec.optimizer.ema = Some(0.99);
            if prefixed {
                case.spec.forward.prefixes = Prefixes::of(257);
            }
            cases.push(case);
        }
    }
    cases
}

#[test]
fn codes_by_thresholds_and_errors_by_prefixes_agree_with_the_reference() {
    for case in thresholded() {
        let (data, state) = case.start();
        let mut all: Vec<_> =
            common::cpu_backends(&data, &case.spec, &state).into_iter().map(|(_, backend)| backend).collect();
        let sums = all.iter_mut().map(|backend| {
            let mut fired = vec![0; case.m];
            let sums = backend.evaluate(&case.rows(), Weights::Last, &mut fired).unwrap();
            assert_eq!(sums.active, fired.iter().sum::<u64>());
            (sums, backend.encode(&case.rows(), Weights::Last).unwrap())
        });
        let sums: Vec<(EvalSums, Codes)> = sums.collect();
        let [(want, want_codes), (got, codes)] = &sums[..] else { panic!("two backends") };
        let check = Check { what: case.name(), c: 64.0 };
        check.number("squared", got.squared, want.squared);
        same_codes(&check.what, codes, want_codes);
        assert_eq!(got.active, codes.indices.len() as u64);
        let parts = case.spec.forward.prefixes.len();
        for (p, (got, want)) in got.by_prefix.iter().zip(want.by_prefix).enumerate() {
            check.number(&format!("prefix {p}"), *got, want);
            assert_eq!(*got > 0.0, p < parts, "{}: prefix {p}", check.what);
        }
        if parts > 0 {
            assert_eq!(got.by_prefix[parts - 1], got.squared);
        }
    }
}

#[test]
fn a_code_outside_training_depends_on_its_own_row_alone() {
    for case in thresholded() {
        let (data, state) = case.start();
        for (name, mut backend) in common::cpu_backends(&data, &case.spec, &state) {
            let all = backend.encode(&case.rows(), Weights::Last).unwrap();
            for row in [0u32, 150, 299] {
                let one = backend.encode(&[row], Weights::Last).unwrap();
                assert_eq!(one.row(0).0, all.row(row as usize).0, "{name} {}: row {row}", case.name());
            }
        }
    }
}

#[test]
fn one_number_gives_the_weights_it_is_for_k_active_latents_per_row() {
    for mut case in thresholded().into_iter().filter(|case| !case.spec.forward.activation.is_per_row()) {
        case.n = 700;
        case.spec.objective.penalty = case.spec.forward.activation.penalty();
        case.spec.objective.seeks_k = case.spec.forward.activation == Activation::Relu;
        let (data, mut state) = case.start();
        let threshold = state.params.threshold.clone();
        state.ema = Some(Params { threshold, ..common::random_params(33, 257, false, 900) });
        let mut found = vec![];
        for (name, mut backend) in common::cpu_backends(&data, &case.spec, &state) {
            let mut of = |weights| {
                backend.calibrate(&case.rows(), weights).unwrap();
                let sums = backend.evaluate(&case.rows(), weights, &mut vec![0; case.m]).unwrap();
                let l0 = sums.active as f64 / 700.0;
                assert!((l0 - 9.0).abs() < 0.02, "{name} {}: {l0}", case.name());
                let state = backend.state().unwrap();
                let params = state.weights(weights);
                (
                    params.b_lat[5],
                    params.threshold.as_ref().map_or(0.0, |t| t.iter().fold(0.0f32, |a, t| a.max(*t))),
                )
            };
            let [averaged, last] = [Weights::Averaged, Weights::Last].map(&mut of);
            assert_ne!(averaged, last, "two models have two numbers");
            found.push((averaged, last));
        }
        let far = |a: (f32, f32), b: (f32, f32)| (a.0 - b.0).abs().max((a.1 - b.1).abs());
        assert!(far(found[0].0, found[1].0) < 1e-4 && far(found[0].1, found[1].1) < 1e-4, "{found:?}");
    }
    // Fewer positive scores than places: all of them are active. A weight that does not aim at k is left alone.
    let mut case = thresholded().remove(0);
    case.spec.forward.k = 257;
    let (data, state) = case.start();
    for (name, mut backend) in common::cpu_backends(&data, &case.spec, &state) {
        backend.calibrate(&case.rows(), Weights::Last).unwrap();
        assert_eq!(backend.state().unwrap().params.threshold.as_ref().unwrap()[0], 0.0, "{name}");
    }
    case.spec.forward.activation = Activation::JumpRelu;
    case.spec.objective.penalty = Penalty::L0;
    for (name, mut backend) in common::cpu_backends(&data, &case.spec, &state) {
        backend.calibrate(&case.rows(), Weights::Last).unwrap();
        assert_eq!(backend.state().unwrap().params.threshold, state.params.threshold, "{name}");
    }
}
