//! The whole engine beside the reference: passes, steps, evaluations, over shapes, phases, options, bad input.

use crate::case::Case;
use crate::common::emulator::Emulator;
use crate::common::{self, device};
use cuda_on_cpu::sanitizer;
use std::sync::Arc;
use topk_sae::backend::cpu::reference::Reference;
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::backend::cuda::work::STATIC_SHARED;
use topk_sae::backend::{Backend, Look};
use topk_sae::data::Embeddings;
use topk_sae::error::Error;
use topk_sae::model::{TrainState, Weights};
use topk_sae::spec::{Activation, Inference, ModelSpec, Precision, Relaxation};

/// The engine in float32; on the emulation with another order of blocks and threads for each `seed`.
pub fn ours(seed: u64) -> impl FnOnce(Arc<Embeddings>, ModelSpec, TrainState) -> Engine {
    on(device::device(seed))
}

/// The engine in float32 on `device`.
pub fn on(device: Box<dyn Device>) -> impl FnOnce(Arc<Embeddings>, ModelSpec, TrainState) -> Engine {
    move |data, spec, state| Engine::new("device".into(), device, data, spec, Precision::F32, &state).unwrap()
}

const PHASES: [f64; 4] = [1.0, 0.0, 0.7, 0.97];

#[test]
fn the_engine_agrees_with_the_reference_at_awkward_shapes_in_every_phase() {
    let mut i = 0;
    for m in [1, 7, 31, 32, 33, 129, 257, 1000, 384] {
        for k in [1, 2, 31, 32, 33, m] {
            if k > m {
                continue;
            }
            let mut case = Case::new([1, 15, 16, 17, 33][i % 5], [2, 3, 31, 32, 33, 100][i % 6], m, k);
            (case.t, case.tied, case.philox) = (PHASES[i % 4], i / 4 % 2 == 0, i % 3 > 0);
            case.spec.forward.normalize = i % 7 > 1;
            case.agree_with(ours(i as u64), |_| ());
            i += 1;
        }
    }
    assert!(i > 30, "{i}");
}

#[test]
fn the_engine_agrees_with_the_reference_over_several_tiles_and_beyond_32768_latents() {
    for (n, d, m, k, t) in [(3, 17, 4200, 65, 0.5), (2, 3, 32_773, 33, 1.0), (2, 3, 32_773, 600, 0.9)] {
        let mut case = Case::new(n, d, m, k);
        (case.t, case.steps, case.l1) = (t, 1, 0.3);
        case.agree_with(ours(m as u64), |_| ());
    }
}

/// The selection goes over chunks of 2048 scores: what comes after the first adds nothing here.
#[test]
fn rows_whose_top_k_stand_in_front_agree_in_the_warm_up() {
    let mut case = Case::new(5, 17, 2500, 3);
    (case.t, case.steps) = (0.5, 1);
    case.edit = |params, _| params.b_lat[..3].fill(20.0);
    case.agree_with(ours(0), |_| ());
}

#[test]
fn rows_wider_than_a_block_of_threads_agree() {
    for (i, t) in [1.0, 0.4, 1.0].into_iter().enumerate() {
        let mut case = Case::new(5, 1100 + i, 40, 7);
        (case.t, case.tied, case.steps) = (t, i == 0, 1);
        (case.spec.objective.aux_k, case.dead_every, case.spec.optimizer.unit_norm_decoder) =
            (3, Some(4), i == 2);
        case.agree_with(ours(i as u64), |_| ());
    }
}

/// As wide as the residual streams of the largest language models: on cards whose blocks have more shared memory than a desktop's.
#[test]
fn rows_of_twelve_thousand_values_agree_on_an_h100() {
    if device::on_card() {
        return eprintln!("NOT HERE: whether such rows fit depends on the card");
    }
    for (t, activation) in [(1.0, Activation::Topk), (0.4, Activation::Topk), (1.0, Activation::JumpRelu)] {
        let mut case = Case::new(3, 12_288, 140, 7);
        (case.t, case.steps, case.spec.forward.activation) = (t, 1, activation);
        case.spec.forward.inference = activation.inference();
        if activation == Activation::JumpRelu {
            case.spec.warmup.relaxation = Relaxation::None;
        }
        let mut device = device::emulator(1);
        device.shared = 227 << 10;
        case.agree_with(on(Box::new(device)), |_| ());
    }
}

/// More entries than the rows that a block holds of the decoder, of several slabs, with signs or with an auxiliary loss.
pub fn many_entries(signs: bool) -> Case {
    let mut case = Case::new(3, 300, 200, 75);
    (case.l1, case.steps) = (0.4, 2);
    if signs {
        case.spec.forward.activation = Activation::AbsTopk;
        case.spec.warmup.relaxation = Relaxation::None;
    } else {
        (case.spec.objective.aux_k, case.dead_every) = (90, Some(2));
    }
    case
}

#[test]
fn rows_of_more_entries_than_a_block_holds_agree() {
    for signs in [false, true] {
        many_entries(signs).agree_with(ours(1), |_| ());
    }
}

#[test]
fn the_widest_rows_that_a_card_holds_train_and_wider_ones_are_told() {
    let most = device::device(0).facts().unwrap().shared as usize;
    let widest = (most - STATIC_SHARED) / 12 / 8 * 8;
    for aux_k in [0, 3] {
        let mut case = Case::new(2, widest, 9, 3);
        (case.steps, case.spec.objective.aux_k, case.dead_every) = (1, aux_k, Some(4));
        case.agree_with(ours(aux_k as u64), |_| ());
    }
    let case = Case::new(2, widest + 1, 9, 3);
    let (data, state) = case.start();
    let refused =
        Engine::new("device".into(), device::device(0), data, case.spec, Precision::F32, &state).err();
    let text = refused.unwrap().to_string();
    assert!(
        text.contains(&format!("rows of {} values", widest + 1)) && text.contains("--device cpu"),
        "{text}"
    );
}

#[test]
fn every_option_agrees_alone_and_with_the_others() {
    type Option = fn(&mut Case);
    let options: [Option; 9] = [
        |c| c.l1 = 0.4,
        |c| (c.spec.objective.aux_k, c.dead_every) = (3, Some(4)),
        |c| (c.spec.objective.aux_k, c.dead_every) = (200, Some(9)),
        |c| c.spec.optimizer.unit_norm_decoder = true,
        |c| c.spec.optimizer.weight_decay = 0.5,
        |c| c.spec.optimizer.clip_norm = Some(1e-3),
        |c| c.spec.optimizer.ema = Some(0.99),
        |c| c.spec.optimizer.train_pre_bias = false,
        |c| (c.spec.objective.loss_scale, c.spec.forward.norm_eps) = (20.0, 0.25),
    ];
    let mut seed = 0;
    for t in PHASES {
        for tied in [false, true] {
            let base = || {
                let mut case = Case::new(17, 33, 257, 5);
                (case.t, case.tied, case.steps) = (t, tied, 2);
                case
            };
            seed += 1;
            // One option alone each time, so that all meet some phase, and all together.
            let mut alone = base();
            options[seed as usize % 9](&mut alone);
            alone.agree_with(ours(seed), |_| ());
            let mut all = base();
            options.iter().for_each(|set| set(&mut all));
            (all.spec.objective.aux_k, all.steps) = (3, 3);
            all.agree_with(ours(seed), |_| ());
        }
    }
}

fn in_every_phase(base: &Case) {
    for (i, t) in PHASES.into_iter().enumerate() {
        let mut case = base.clone();
        (case.t, case.tied, case.l1) = (t, i % 2 == 0, 0.1);
        (case.spec.objective.aux_k, case.dead_every) = (4, Some(3));
        case.agree_with(ours(i as u64), |_| ());
    }
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
    let mut case = Case::new(70, 32, 257, 4);
    case.edit = |params, _| params.b_lat[200] = 6.0;
    in_every_phase(&case);
}

/// A latent that more rows activate than the kernel brings to shared memory at once.
pub fn crowded(tied: bool) -> Case {
    let mut case = Case::new(600, 9, 40, 3);
    (case.tied, case.steps) = (tied, 1);
    case.edit = |params, _| params.b_lat[20] = 9.0;
    case
}

#[test]
fn a_latent_of_more_entries_than_are_staged_at_once_agrees() {
    // As in `evaluation_agrees_with_the_reference`.
    if sanitizer::inside() {
        return;
    }
    for tied in [true, false] {
        let case = crowded(tied);
        let (data, state) = case.start();
        let code = ours(0)(data, case.spec.clone(), state).encode(&case.rows(), Weights::Last).unwrap();
        assert!(code.indices.iter().filter(|&&j| j == 20).count() > 512);
        case.agree_with(ours(1), |_| ());
    }
}

#[test]
fn a_norm_is_clipped_where_it_is_above_the_limit_alone() {
    for ratio in [0.5, 1.5] {
        clips(device::device(0), ratio);
    }
}

/// Fails where a step whose norm is limited to `ratio` times what it is differs from the reference's.
pub fn clips(device: Box<dyn Device>, ratio: f64) {
    let mut case = Case::new(17, 31, 65, 6);
    case.spec.optimizer.clip_norm = Some(1e6);
    let (data, state) = case.start();
    let mut free = Reference::new(data, case.spec.clone(), state);
    let norm = free.step_now(&case.rows(), &case.plan(0, &[])).unwrap().grad_norm;
    (case.spec.optimizer.clip_norm, case.steps) = (Some(ratio * norm), 1);
    case.agree_with(on(device), |_| ());
}

/// What a checker of memory and races is run on: small, and every kind of step in it.
#[test]
fn a_small_step_of_each_kind_agrees() {
    for (i, t) in [1.0, 0.5].into_iter().enumerate() {
        let mut case = Case::new(17, 40, 300, 6);
        (case.t, case.tied, case.steps) = (t, i == 0, 1);
        (case.spec.objective.aux_k, case.dead_every, case.spec.optimizer.ema) = (4, Some(3), Some(0.9));
        (case.spec.optimizer.clip_norm, case.spec.optimizer.unit_norm_decoder) = (Some(1e-2), true);
        case.edit = |params, _| params.b_lat[200] = 6.0;
        case.agree_with(ours(i as u64), |_| ());
    }
    for (i, relaxation) in [Relaxation::Lapsum, Relaxation::AnnealK].into_iter().enumerate() {
        let mut case = Case::new(17, 40, 300, 6);
        (case.t, case.tied, case.steps) = (0.5, i == 0, 1);
        (case.spec.warmup.relaxation, case.spec.warmup.pool) = (relaxation, 60);
        case.agree_with(ours(i as u64), |_| ());
    }
    for activation in [Activation::BatchTopk, Activation::JumpRelu, Activation::Relu] {
        for case in crate::case::unplaced(activation).into_iter().skip(14).take(2) {
            case.agree_with(ours(3), |_| ());
        }
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_all_later_steps() {
    let mut case = Case::new(9, 8, 33, 3);
    case.spec.forward.normalize = false;
    case.edit = |_, x| x[3 * 8..4 * 8].fill(3e38);
    let (data, state) = case.start();
    let mut engine = ours(1)(data, case.spec.clone(), state.clone());
    let good: Vec<u32> = vec![0, 1, 2, 4];
    for (step, rows) in [&good, &case.rows(), &good].into_iter().enumerate() {
        engine.step(rows, &case.plan(step as u64, &[])).unwrap();
        if step == 0 {
            assert!(engine.collect().unwrap()[0].loss.is_finite());
        }
    }
    let before = engine.state().unwrap().into_owned();
    let after = engine.collect().unwrap();
    assert!(after.len() == 2 && after.iter().all(|s| !s.loss.is_finite()), "{after:?}");
    engine.step(&good, &case.plan(3, &[])).unwrap();
    assert_eq!(engine.state().unwrap().params, before.params);
    assert_ne!(before.params, state.params);
}

#[test]
fn evaluation_agrees_with_the_reference() {
    for inference in [Inference::Topk, Inference::Relu] {
        for normalize in [true, false] {
            // More rows than the block that sums them has threads; more latents than a block of a tile takes.
            for sizes in [(20, 1300), (1100, 40)] {
                // The sanitizers take a second for a hundred rows.
                if sanitizer::inside() && sizes.0 > 1000 {
                    continue;
                }
                evaluation_agrees(device::device(0), sizes, inference, normalize);
            }
        }
    }
}

/// Fails where an evaluation of N rows and M latents differs from the reference's.
pub fn evaluation_agrees(
    device: Box<dyn Device>,
    (n, m): (usize, usize),
    inference: Inference,
    normalize: bool,
) {
    let mut case = Case::new(n, 9, m, 4);
    (case.spec.forward.inference, case.spec.forward.normalize, case.spec.optimizer.ema) =
        (inference, normalize, Some(0.9));
    let (data, mut state) = case.start();
    let average = state.ema.as_mut().unwrap();
    average.w_enc.iter_mut().for_each(|w| *w *= 0.5);
    let mut engine = on(device)(data.clone(), case.spec.clone(), state.clone());
    let mut reference = Reference::new(data, case.spec.clone(), state);
    // Makes room for all rows at once, where an evaluation alone goes by 256.
    let got = engine.inspect(&case.rows(), &case.plan(0, &[])).unwrap().stats.loss;
    let want = reference.inspect(&case.rows(), &case.plan(0, &[])).unwrap().stats.loss;
    assert!((got - want).abs() <= 1e-5 * want, "{got} {want}");
    for weights in [Weights::Last, Weights::Averaged] {
        let (mut fired, mut want_fired) = (vec![7u64; m], vec![7u64; m]);
        let got = engine.evaluate(&case.rows(), weights, &mut fired).unwrap();
        let want = reference.evaluate(&case.rows(), weights, &mut want_fired).unwrap();
        assert_eq!((got.rows, got.active), (want.rows, want.active));
        assert_eq!(fired, want_fired);
        for (got, want) in
            [(got.squared, want.squared), (got.absolute, want.absolute), (got.cosine, want.cosine)]
        {
            assert!((got - want).abs() <= 1e-5 * want.abs(), "{got} {want}");
        }
    }
}

#[test]
fn codes_agree_with_the_reference() {
    for (i, inference) in [Inference::Topk, Inference::Relu].into_iter().enumerate() {
        for weights in [Weights::Last, Weights::Averaged] {
            let mut case = Case::new(300, 9, 150, 4);
            (case.spec.forward.inference, case.spec.optimizer.ema) = (inference, Some(0.9));
            let (data, mut state) = case.start();
            state.ema.as_mut().unwrap().w_enc.iter_mut().for_each(|w| *w *= 0.5);
            let mut engine = ours(i as u64)(data.clone(), case.spec.clone(), state.clone());
            let mut reference = Reference::new(data, case.spec.clone(), state);
            let got = engine.encode(&case.rows(), weights).unwrap();
            let want = reference.encode(&case.rows(), weights).unwrap();
            assert_eq!((&got.indptr, &got.indices, got.bad), (&want.indptr, &want.indices, None));
            for (got, want) in got.values.iter().zip(&want.values) {
                assert!((got - want).abs() <= 1e-5 * want.abs().max(1.0), "{got} {want}");
            }
        }
    }
}

#[test]
fn other_data_take_the_place_of_the_first() {
    let case = Case::new(50, 9, 150, 4);
    let (data, state) = case.start();
    let mut values = vec![0.0; 20 * 9];
    (0..20).for_each(|n| data.row_into(30 + n, &mut values[n * 9..(n + 1) * 9]));
    let mut engine = ours(3)(data, case.spec.clone(), state);
    let want = engine.encode(&(30..50).collect::<Vec<u32>>(), Weights::Last).unwrap();
    engine.set_data(crate::common::embeddings(9, values)).unwrap();
    let got = engine.encode(&(0..20).collect::<Vec<u32>>(), Weights::Last).unwrap();
    assert_eq!((&got.indptr, &got.indices), (&want.indptr, &want.indices));
    assert!(engine.set_data(crate::common::embeddings(3, vec![0.0; 6])).is_err());
}

/// The state that `state` gives after `step` steps, set in `backend`.
fn set(backend: &mut dyn Look, state: &TrainState) {
    backend.set_state(state.step, &mut |name, out| state.copy_to(name, out)).unwrap();
}

#[test]
fn another_state_takes_the_place_of_the_first_in_the_same_memory() {
    if device::emulation_only("the memory of a state that takes another's place") {
        return;
    }
    for (d, tied, precision) in
        [(9, false, Precision::F32), (16, true, Precision::F32), (9, false, Precision::Bf16)]
    {
        let mut case = Case::new(24, d, 40, 4);
        (case.tied, case.spec.optimizer.ema, case.spec.optimizer.clip_norm) = (tied, Some(0.9), Some(0.5));
        (case.spec.objective.aux_k, case.dead_every, case.spec.forward.normalize) = (3, Some(4), false);
        // A row that stops all steps until another state is set.
        case.edit = |_, x| {
            let d = x.len() / 24;
            x[23 * d..].fill(3e38);
        };
        let (data, start) = case.start();
        let good: Vec<u32> = (0..23).collect();
        let emulator = Emulator::new();
        let live = emulator.live();
        let open = |device, state: &TrainState| {
            Engine::new("e".into(), device, data.clone(), case.spec.clone(), precision, state).unwrap()
        };
        let run = |backend: &mut dyn Look, steps: std::ops::Range<u64>| {
            for step in steps {
                backend.step(&good, &case.plan(step, &[])).unwrap();
            }
            let losses: Vec<f64> = backend.collect().unwrap().iter().map(|s| s.loss).collect();
            let mut fired = vec![0; 40];
            let sums = backend.evaluate(&good, Weights::Averaged, &mut fired).unwrap();
            (losses, sums, fired, backend.state().unwrap().into_owned())
        };
        let mut engine = open(Box::new(emulator), &start);
        let (.., later) = run(&mut engine, 0..3);
        engine.step(&case.rows(), &case.plan(3, &[])).unwrap();
        assert!(!engine.collect().unwrap()[0].loss.is_finite());
        let memory = live.lock().unwrap().clone();
        set(&mut engine, &later);
        assert!(*live.lock().unwrap() == memory, "memory was taken or given back");
        let want = run(&mut open(device::device(1), &later), 3..6);
        assert_eq!(run(&mut engine, 3..6), want);
        if precision == Precision::F32 {
            let fresh = common::cpu_backends(&data, &case.spec, &later);
            let used = common::cpu_backends(&data, &case.spec, &start);
            for ((name, mut fresh), (_, mut used)) in fresh.into_iter().zip(used) {
                run(used.as_mut(), 0..3);
                used.step_now(&case.rows(), &case.plan(3, &[])).unwrap();
                set(used.as_mut(), &later);
                assert_eq!(run(used.as_mut(), 3..6), run(fresh.as_mut(), 3..6), "{name}");
            }
        }
        // A source that fails is told.
        let failed = engine.set_state(0, &mut |name, _| Err(Error::Failed(name.to_owned())));
        assert_eq!(failed.unwrap_err().to_string(), "w_enc");
    }
}
