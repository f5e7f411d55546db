//! The same bits for any number of threads and however steps are collected; no harm from a batch whose loss is
//! not finite.

use crate::case::Case;
use crate::common;
use topk_sae::backend::cpu::{fast::FastCpu, relax::Mode};
use topk_sae::backend::{Backend, Look, StepPlan, StepStats};
use topk_sae::model::{Params, TrainState, Weights};
use topk_sae::noise::Noise;

/// Three ways to hold a code, each with every part of the loss.
fn all_modes() -> Vec<(Mode, Case)> {
    let phases = [(1.0, Mode::Hard), (0.97, Mode::Support), (0.1, Mode::Dense)];
    let cases = phases.map(|(t, mode)| {
        let mut case = Case::new(33, 33, 1000, 9);
        (case.t, case.l1, case.spec.objective.aux_k, case.dead_every) = (t, 0.2, 4, Some(5));
        case.spec.optimizer.ema = Some(0.99);
        (mode, case)
    });
    cases.into()
}

fn bits(params: &Params) -> Vec<u32> {
    params.tensors().iter().flat_map(|(_, _, t)| t.iter().map(|v| v.to_bits())).collect()
}

/// The state as bits, so that NaN equals NaN.
fn state_bits(state: &TrainState) -> Vec<Vec<u32>> {
    let mut all = vec![bits(&state.params), bits(&state.m), bits(&state.v), state.idle_rows.clone()];
    all.extend(state.ema.as_ref().map(bits));
    all.push(vec![state.step as u32]);
    all
}

#[test]
fn the_same_seed_gives_the_same_bits_whatever_the_number_of_threads() {
    for (mode, mut case) in all_modes() {
        for clip_norm in [None, Some(0.01)] {
            case.spec.optimizer.clip_norm = clip_norm;
            let run = |threads: usize, noise_seed: u64| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let (data, state) = case.start();
                    let mut fast = FastCpu::new(data, case.spec.clone(), state);
                    let mut losses = vec![];
                    for step in 0..3 {
                        let noise = Noise::Philox { seed: noise_seed };
                        let stats =
                            fast.step_now(&case.rows(), &StepPlan { noise, ..case.plan(step, &[]) }).unwrap();
                        losses.push((stats.loss.to_bits(), stats.grad_norm.to_bits()));
                        assert_eq!(fast.last_mode(), Some(mode));
                    }
                    let mut fired = vec![0; case.m];
                    let sums = fast.evaluate(&case.rows(), Weights::Averaged, &mut fired).unwrap();
                    (state_bits(&fast.state().unwrap()), losses, sums.squared.to_bits(), fired)
                })
            };
            let first = run(1, 5);
            for threads in [1, 2, 3] {
                assert!(run(threads, 5) == first, "{mode:?}, {threads} threads, clipping {clip_norm:?}");
            }
            // A control: another seed must show wherever there is noise.
            assert_eq!(run(2, 6) == first, mode == Mode::Hard, "{mode:?}");
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_leaves_the_state_as_it_was() {
    type Place = (&'static str, fn(&mut Params, &mut [f32], f32));
    let places: [Place; 5] = [
        ("w_enc", |p, _, bad| p.w_enc[5 * 33 + 2] = bad),
        // Latent 5 is active on every row; a decoder row that no code touches does no harm.
        ("w_dec", |p, _, bad| p.w_dec.as_mut().unwrap()[5 * 33 + 2] = bad),
        ("b_pre", |p, _, bad| p.b_pre[3] = bad),
        ("b_lat", |p, _, bad| p.b_lat[7] = bad),
        ("a row", |_, x, bad| x[4 * 33 + 9] = bad),
    ];
    for (mode, case) in all_modes() {
        for (place, spoil) in places {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for normalize in [false, true] {
                    let spec = case.spec.clone().with(|spec| {
                        spec.forward.normalize = normalize;
                    });
                    let (_, mut state) = case.start();
                    let mut x = common::values(case.n * case.d, 16);
                    state.params.b_lat[5] = 6.0;
                    spoil(&mut state.params, &mut x, bad);
                    let data = common::embeddings(case.d, x);
                    for (name, mut backend) in common::backends(&data, &spec, &state) {
                        let what = format!("{name}, {mode:?}: {bad} in {place}, normalize {normalize}");
                        let stats = backend.step_now(&case.rows(), &case.plan(0, &[])).unwrap();
                        assert!(!stats.loss.is_finite(), "{what}: loss {}", stats.loss);
                        assert!(state_bits(&backend.state().unwrap()) == state_bits(&state), "{what}: state");
                    }
                }
            }
        }
    }
}

#[test]
fn after_a_loss_that_is_not_finite_steps_are_reported_and_change_nothing() {
    let stats_bits = |s: &StepStats| [s.loss, s.mse, s.l1, s.aux].map(f64::to_bits);
    for (mode, case) in all_modes() {
        let (_, state) = case.start();
        let mut x = common::values(case.n * case.d, 16);
        x.extend(vec![f32::NAN; case.d]);
        let data = common::embeddings(case.d, x);
        let with_the_bad_row: Vec<u32> = (0..=case.n as u32).collect();
        let good = case.plan(0, &[]);
        // The CUDA engine reports NaN for all later steps (tests/kernels/engine.rs).
        let fresh = common::cpu_backends(&data, &case.spec, &state);
        for ((name, mut backend), (_, mut fresh)) in
            common::cpu_backends(&data, &case.spec, &state).into_iter().zip(fresh)
        {
            let what = format!("{name}, {mode:?}");
            backend.step(&with_the_bad_row, &good).unwrap();
            backend.step(&case.rows(), &good).unwrap();
            let all = backend.collect().unwrap();
            assert!(all.len() == 2 && all[0].loss.is_nan(), "{what}: {all:?}");
            // The bad row left nothing behind in the buffers, and being collected is no new start.
            let want = stats_bits(&fresh.step_now(&case.rows(), &good).unwrap());
            assert_eq!(stats_bits(&all[1]), want, "{what}");
            assert_eq!(stats_bits(&backend.step_now(&case.rows(), &good).unwrap()), want, "{what}");
            assert!(state_bits(&backend.state().unwrap()) == state_bits(&state), "{what}");
            assert!(state_bits(&fresh.state().unwrap()) != state_bits(&state), "{what}: a control");
        }
    }
}

#[test]
fn steps_that_wait_report_the_same_as_steps_collected_one_by_one() {
    for (mode, case) in all_modes() {
        let (data, state) = case.start();
        let one_by_one = common::backends(&data, &case.spec, &state);
        let waiting = common::backends(&data, &case.spec, &state);
        for ((name, mut a), (_, mut b)) in one_by_one.into_iter().zip(waiting) {
            let plan = |step| StepPlan { noise: Noise::Philox { seed: 3 }, ..case.plan(step, &[]) };
            let want: Vec<u64> =
                (0..3).map(|s| a.step_now(&case.rows(), &plan(s)).unwrap().loss.to_bits()).collect();
            (0..3).for_each(|s| b.step(&case.rows(), &plan(s)).unwrap());
            // Looked at before they are collected, all steps are done.
            assert!(state_bits(&a.state().unwrap()) == state_bits(&b.state().unwrap()), "{name}, {mode:?}");
            let got: Vec<u64> = b.collect().unwrap().iter().map(|s| s.loss.to_bits()).collect();
            assert_eq!(got, want, "{name}, {mode:?}");
            assert!(want[0] != want[1] && b.collect().unwrap().is_empty(), "{name}, {mode:?}");
            b.step(&case.rows(), &plan(3)).unwrap();
            assert!(b.step_now(&case.rows(), &plan(4)).is_err(), "{name}: two steps are not one");
        }
    }
}
