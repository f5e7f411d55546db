//! Types of rows and operands, data that do not fit on the device, and the order of work: what may change the
//! rounding, and what may not change a bit.

use crate::case::Case;
use crate::common::device::{device_for, emulator, of_nvrtc, on_card};
use crate::common::emulator::Emulator;
use crate::common::relative_error;
use crate::engine::ours;
use crate::thread_ranks::Together;
use cuda_on_cpu::sanitizer;
use std::collections::BTreeSet;
use topk_sae::backend::cpu::reference::Reference;
use topk_sae::backend::cuda::device::Device;
use topk_sae::backend::cuda::engine::Engine;
use topk_sae::backend::{Backend, Look};
use topk_sae::model::{TrainState, Weights};
use topk_sae::rows::Dtype;
use topk_sae::spec::{Activation, Inference, Precision, Prefixes, Relaxation};

const TYPES: [Dtype; 4] = [Dtype::F16, Dtype::Bf16, Dtype::F32, Dtype::F64];

fn engine(case: &Case, device: Box<dyn Device>, precision: Precision) -> Engine {
    let (data, state) = case.start();
    Engine::new("device".into(), device, data, case.spec.clone(), precision, &state).unwrap()
}

#[test]
fn rows_of_every_stored_type_agree() {
    for (i, dtype) in TYPES.into_iter().enumerate() {
        for t in [1.0, 0.6] {
            let mut case = Case::new(17, 33, 129, 5);
            (case.dtype, case.t, case.tied) = (dtype, t, i % 2 == 0);
            case.agree_with(ours(i as u64), |_| ());
        }
    }
}

#[test]
fn rows_that_travel_with_each_batch_give_the_bits_of_rows_on_the_device() {
    for dtype in TYPES {
        let mut case = Case::new(19, 33, 65, 5);
        case.dtype = dtype;
        let train = |free: Option<u64>| {
            let mut engine = engine(&case, device_for(Precision::F32, 0, free), Precision::F32);
            for step in 0..3u64 {
                let rows: Vec<u32> = (0..7).map(|i| (5 * i + step as u32) % 19).collect();
                engine.step(&rows, &case.plan(step, &[])).unwrap();
            }
            engine.state().unwrap().into_owned()
        };
        // With a byte of memory told, the data are not put on the device.
        assert_eq!(train(None), train(Some(1)), "{dtype}");
    }
}

/// Values that bfloat16 operands move by at most some of their eight bits.
#[test]
fn bfloat16_operands_stay_within_their_rounding() {
    let softmax = [1.0, 1.0, 0.5, 0.9].map(|t| (t, Relaxation::Softmax));
    let over_candidates = [(0.0, Relaxation::Lapsum)];
    for (i, (t, relaxation)) in softmax.into_iter().chain(over_candidates).enumerate() {
        // All scores are positive and all are selected, so that no decision hangs on rounding; where all are weighed,
        // the top k have no share yet.
        let mut case = Case::new(33, 48, 96, if relaxation.is_gated() { 12 } else { 96 });
        (case.spec.warmup.relaxation, case.spec.warmup.pool) = (relaxation, 96);
        case.edit = |params, _| params.b_lat.fill(6.0);
        (case.t, case.tied, case.l1, case.dtype) = (t, i % 2 == 0, 0.1, TYPES[i % 3]);
        (case.spec.objective.aux_k, case.dead_every) = (96, Some(3));
        let (data, state) = case.start();
        let mut reference = Reference::new(data, case.spec.clone(), state);
        let want = reference.inspect(&case.rows(), &case.plan(0, &[])).unwrap();
        let got = engine(&case, device_for(Precision::Bf16, 0, None), Precision::Bf16)
            .inspect(&case.rows(), &case.plan(0, &[]))
            .unwrap();
        // Operands of 8 bits, three roundings after one another; the softmax turns a score's error into e^(error / tau).
        let allowed = if t < 1.0 { 0.1 } else { 0.02 };
        assert!(
            (got.stats.loss / want.stats.loss - 1.0).abs() < allowed,
            "{} {}",
            got.stats.loss,
            want.stats.loss
        );
        let close = |name: &str, got: &[f32], want: &[f32]| {
            let wide: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
            let error = relative_error(got, &wide);
            assert!(error < allowed, "t {t} {name}: {error}");
        };
        close("z", &got.pre_acts, &want.pre_acts);
        close("y", &got.recon, &want.recon);
        for ((name, _, got), (_, _, want)) in got.grads.tensors().iter().zip(want.grads.tensors()) {
            close(name, got, want);
        }
    }
}

/// As above, of activations without places and of prefixes; in training and in an evaluation.
#[test]
fn bfloat16_operands_of_other_kinds_stay_within_their_rounding() {
    for (i, activation) in [Activation::Topk, Activation::BatchTopk, Activation::JumpRelu, Activation::Relu]
        .into_iter()
        .enumerate()
    {
        let mut case = Case::new(33, 48, 96, 96);
        (case.spec.forward.activation, case.spec.forward.inference) = (activation, activation.inference());
        (case.spec.warmup.relaxation, case.spec.objective.penalty) = (Relaxation::None, activation.penalty());
        case.spec.forward.prefixes = Prefixes::new(&[8, 40, 96]).unwrap();
        case.edit = |params, _| params.b_lat.fill(6.0);
        (case.l1, case.tied) = (0.1, i % 2 == 0);
        let (data, state) = case.start();
        let mut reference = Reference::new(data, case.spec.clone(), state);
        let mut engine = engine(&case, device_for(Precision::Bf16, 0, None), Precision::Bf16);
        let [want, got] = [&mut reference as &mut dyn Look, &mut engine].map(|backend| {
            let pass = backend.inspect(&case.rows(), &case.plan(0, &[])).unwrap();
            let sums = backend.evaluate(&case.rows(), Weights::Last, &mut vec![0; 96]).unwrap();
            (pass, sums)
        });
        let close = |name: &str, got: &[f32], want: &[f32]| {
            let wide: Vec<f64> = want.iter().map(|&v| f64::from(v)).collect();
            let error = relative_error(got, &wide);
            assert!(error < 0.02, "{activation} {name}: {error}");
        };
        close("z", &got.0.pre_acts, &want.0.pre_acts);
        close("y", &got.0.recon, &want.0.recon);
        for ((name, _, got), (_, _, want)) in got.0.grads.tensors().iter().zip(want.0.grads.tensors()) {
            close(name, got, want);
        }
        let errors = |sums: &topk_sae::backend::EvalSums| sums.by_prefix.map(|e| e as f32);
        close("squared errors", &errors(&got.1), &errors(&want.1));
    }
}

#[test]
fn steps_with_rounded_operands_learn_as_those_in_float32() {
    for (tied, t) in [(true, 1.0), (false, 1.0), (false, 0.95)] {
        let mut case = Case::new(64, 32, 128, 8);
        (case.tied, case.t) = (tied, t);
        let loss = |precision| {
            let mut engine = engine(&case, device_for(precision, 0, None), precision);
            for step in 0..12 {
                engine.step(&case.rows(), &case.plan(step, &[])).unwrap();
            }
            let mut fired = vec![0; 128];
            let sums = engine.evaluate(&case.rows(), Weights::Last, &mut fired).unwrap();
            assert!(fired.iter().any(|&f| f > 0));
            sums.squared
        };
        let single = loss(Precision::F32);
        // On the emulation TF32 computes as float32 does.
        for precision in on_card().then_some(Precision::Tf32).into_iter().chain([Precision::Bf16]) {
            let rounded = loss(precision);
            assert!(
                (rounded / single - 1.0).abs() < 0.01,
                "{precision} tied {tied} t {t}: {rounded} {single}"
            );
        }
    }
}

/// Everything that training may use at once, a few steps.
fn train(case: &Case, device: Box<dyn Device>, precision: Precision) -> (TrainState, Vec<u64>) {
    trained(case, engine(case, device, precision))
}

fn trained(case: &Case, mut engine: impl Backend) -> (TrainState, Vec<u64>) {
    for step in 0..3 {
        engine.step(&case.rows(), &case.plan(step, &[])).unwrap();
    }
    let mut bits: Vec<u64> = engine.collect().unwrap().iter().map(|s| s.loss.to_bits()).collect();
    let mut fired = vec![0; case.m];
    for weights in [Weights::Last, Weights::Averaged] {
        let sums = engine.evaluate(&case.rows(), weights, &mut fired).unwrap();
        bits.extend([sums.squared.to_bits(), sums.cosine.to_bits(), sums.active]);
    }
    bits.extend(fired);
    let state = engine.state().unwrap().into_owned();
    (state, bits)
}

#[test]
fn the_same_bits_come_again_whatever_the_order_and_every_kernel_is_launched() {
    let mut launched = vec![];
    // On the emulation TF32 computes as float32 does.
    let tf32 = on_card().then_some(Precision::Tf32);
    for precision in [Precision::F32, Precision::Bf16].into_iter().chain(tf32) {
        for dtype in TYPES {
            use Activation::{AbsTopk, BatchTopk, JumpRelu, Relu, Topk};
            use Relaxation::{AnnealK, Lapsum, Softmax};
            let phases = [
                (1.0, Softmax, Topk),
                (0.8, Softmax, Topk),
                (0.8, Lapsum, Topk),
                (0.3, AnnealK, Topk),
                (1.0, Relaxation::None, AbsTopk),
                (1.0, Relaxation::None, BatchTopk),
                (0.3, AnnealK, BatchTopk),
                (1.0, Relaxation::None, JumpRelu),
                (1.0, Relaxation::None, Relu),
            ];
            // The type of the rows is nothing to candidates, nor to other activations.
            for &(t, relaxation, activation) in &phases[..if dtype == Dtype::F16 { 9 } else { 2 }] {
                let mut case = Case::new(70, 40, 300, 6);
                case.spec.warmup.relaxation = relaxation;
                case.spec.forward.activation = activation;
                case.spec.forward.inference = activation.inference();
                case.spec.objective.penalty = activation.penalty();
                case.spec.objective.seeks_k = activation == Relu;
                if !activation.is_per_row() {
                    case.spec.forward.prefixes = Prefixes::of(300);
                }
                (case.t, case.dtype, case.l1, case.tied) = (t, dtype, 0.1, dtype == Dtype::F16);
                (case.spec.objective.aux_k, case.dead_every, case.spec.optimizer.ema) =
                    (4, Some(3), Some(0.9));
                (case.spec.optimizer.clip_norm, case.spec.optimizer.unit_norm_decoder) =
                    (Some(1e-2), precision == Precision::F32);
                if dtype == Dtype::F32 {
                    case.spec.forward.inference = Inference::Relu;
                }
                // A latent of every row makes long lists in the inverted index.
                case.edit = |params, _| params.b_lat[200] = 6.0;
                let mut run = |seed: u64| {
                    if on_card() {
                        return train(&case, device_for(precision, 0, None), precision);
                    }
                    let device = emulator(seed);
                    launched.push(device.launched());
                    train(&case, Box::new(device), precision)
                };
                let first = run(1);
                // The sanitizers are slow, and bits are not what they look for; PTX is slow too.
                let others = if sanitizer::inside() { 0 } else { 2 - u64::from(of_nvrtc()) };
                for seed in 2..2 + others {
                    assert!(
                        first == run(seed),
                        "{precision} {dtype} t {t} {relaxation:?} {activation} seed {seed}"
                    );
                }
            }
        }
    }
    for precision in [Precision::F32, Precision::Bf16] {
        for (t, relaxation) in [(0.8, Relaxation::Softmax), (1.0, Relaxation::None)] {
            let mut case = Case::new(40, 24, 300, 6);
            (case.t, case.spec.warmup.relaxation) = (t, relaxation);
            (case.spec.objective.aux_k, case.dead_every, case.spec.optimizer.ema) = (4, Some(3), Some(0.9));
            let mut run = |seed: u64| {
                let devices = [seed, seed + 1].map(|seed| {
                    if on_card() {
                        return device_for(precision, 0, None);
                    }
                    let device = emulator(seed);
                    launched.push(device.launched());
                    Box::new(device) as Box<dyn Device>
                });
                let (data, state) = case.start();
                let ranks = Together::new(devices.into(), &data, &case.spec, precision, &state, |_| {});
                trained(&case, ranks.unwrap())
            };
            assert!(run(1) == run(3), "ranks, {precision} t {t}");
        }
    }
    if !on_card() {
        let all: BTreeSet<&str> = Emulator::new().kernels().collect();
        let launched: BTreeSet<&str> =
            launched.iter().flat_map(|names| names.lock().unwrap().clone()).collect();
        assert_eq!(launched, all);
    }
}
