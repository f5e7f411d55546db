//! Golden tensors, computed in float64 by another implementation from the same formulas. `SAE_GOLDENS=DIR`
//! reads other files of the same kind; every parameter of a case comes from the file's metadata.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Golden, Kind, backends, close, embeddings, goldens, spec};
use topk_sae::backend::{Look, Pass, StepPlan};
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::Noise;
use topk_sae::schedule::{anneal_fraction, temperature};
use topk_sae::spec::{ModelSpec, NORM_EPS};

const PASS_TOLERANCE: f64 = 1e-5;
const TRAJECTORY_TOLERANCE: f64 = 1e-4;

fn start(golden: &Golden, d: usize, m: usize, tied: bool) -> TrainState {
    let or_zero = |key: &str, n: usize| golden.tensors.get(key).map_or(vec![0.0; n], |_| golden.f32(key));
    let params = Params {
        d_in: d,
        n_latents: m,
        w_enc: golden.f32("w_enc"),
        w_dec: (!tied).then(|| golden.f32("w_dec")),
        b_pre: or_zero("b_pre", d),
        b_lat: or_zero("b_lat", m),
        threshold: None,
    };
    TrainState::start(params, false)
}

fn compare(what: &str, golden: &Golden, plan: &StepPlan<'_>, pass: &Pass) {
    let check = |key: &str, got: &[f32]| {
        if let Some(want) = golden.tensors.get(key) {
            close(&format!("{what}: {key}"), got, want, PASS_TOLERANCE);
        }
    };
    check("loss", &[pass.stats.loss as f32]);
    check("mse", &[pass.stats.mse as f32]);
    if plan.l1 > 0.0 {
        // Where no weight is on it, no backend forms it.
        check("l1", &[pass.stats.l1 as f32]);
    }
    check("z", &pass.pre_acts);
    check("h", &pass.code);
    check("y", &pass.recon);
    check("grad_z", &pass.grad_pre_acts);
    if let Some(grad) = &pass.grad_code {
        check("grad_h", grad);
    }
    check("grad_w_enc", &pass.grads.w_enc);
    if let Some(grad) = &pass.grads.w_dec {
        check("grad_w_dec", grad);
    }
    check("grad_b_pre", &pass.grads.b_pre);
    check("grad_b_lat", &pass.grads.b_lat);
}

fn one_pass(golden: &Golden, spec: ModelSpec, plan: &StepPlan<'_>) {
    let (n, d, m): (usize, usize, usize) = (golden.num("N"), golden.num("D"), golden.num("M"));
    if golden.meta.contains_key("eps") {
        assert_eq!(golden.num::<f64>("eps"), NORM_EPS, "{}: `eps` is another", golden.name);
    }
    let data = embeddings(d, golden.f32("x"));
    let state = start(golden, d, m, golden.flag("tied"));
    let rows: Vec<u32> = (0..n as u32).collect();
    for (name, mut backend) in backends(&data, &spec, &state) {
        let pass = backend.inspect(&rows, plan).unwrap();
        compare(&format!("{} ({name})", golden.name), golden, plan, &pass);
    }
}

#[test]
fn relaxed_top_k_agrees_with_the_golden_tensors() {
    for golden in goldens(Kind::Relaxed) {
        let t: f64 = golden.num("t");
        let uniform = golden.f32("uniform");
        let spec = spec(golden.num("k")).with(|spec| {
            spec.forward.normalize = golden.flag("normalize");
        });
        let noise = Noise::Given(&uniform);
        let plan = StepPlan { step: 0, alpha: t, tau: temperature(t, 1.0, 0.05), lr: 0.0, l1: 0.0, noise };
        one_pass(&golden, spec, &plan);
    }
}

#[test]
fn sparse_l1_agrees_with_the_golden_tensors() {
    for golden in goldens(Kind::SparseL1) {
        let l1 = golden.num::<f64>("beta") * golden.num::<f64>("l1");
        let spec = spec(golden.num("k")).with(|spec| {
            spec.forward.normalize = false;
            spec.optimizer.train_pre_bias = false;
        });
        let noise = Noise::Given(&[]);
        let plan = StepPlan { step: 0, alpha: 1.0, tau: 0.05, lr: 0.0, l1, noise };
        one_pass(&golden, spec, &plan);
    }
}

#[test]
fn eight_steps_of_adam_follow_the_golden_trajectories() {
    for golden in goldens(Kind::Trajectory) {
        let (n, d, m): (usize, usize, usize) = (golden.num("N"), golden.num("D"), golden.num("M"));
        let (steps, warmup): (u64, u64) = (golden.num("steps"), golden.num("warmup"));
        let clip_norm = (golden.meta["clip"] != "None").then(|| golden.num("clip"));
        let spec = spec(golden.num("k")).with(|spec| {
            spec.optimizer.clip_norm = clip_norm;
        });
        let data = embeddings(d, golden.f32("x"));
        let state = start(&golden, d, m, golden.flag("tied"));
        let uniform = golden.f32("uniform");
        let rows: Vec<u32> = (0..n as u32).collect();
        for (name, mut backend) in backends(&data, &spec, &state) {
            let what = |key: &str| format!("{} ({name}): {key}", golden.name);
            let (mut losses, mut norms) = (vec![], vec![]);
            for step in 0..steps {
                let t = anneal_fraction(step, warmup);
                let first = step as usize * n * m;
                let noise = Noise::Given(&uniform[first..first + n * m]);
                let tau = temperature(t, 1.0, 0.05);
                let plan = StepPlan { step, alpha: t, tau, lr: golden.num("lr"), l1: 0.0, noise };
                let stats = backend.step_now(&rows, &plan).unwrap();
                losses.push(stats.loss as f32);
                norms.push(stats.grad_norm as f32);
            }
            close(&what("losses"), &losses, golden.tensor("losses"), TRAJECTORY_TOLERANCE);
            if norms.iter().all(|norm| !norm.is_nan()) {
                close(&what("grad_norms"), &norms, golden.tensor("grad_norms"), TRAJECTORY_TOLERANCE);
            }
            check_final(&golden, backend.as_mut(), &what);
        }
    }
}

fn check_final(golden: &Golden, backend: &mut dyn Look, what: &dyn Fn(&str) -> String) {
    let state = backend.state().unwrap();
    for (key, _, values) in state.params.tensors() {
        let key = format!("final_{key}");
        close(&what(&key), values, golden.tensor(&key), TRAJECTORY_TOLERANCE);
    }
}

#[test]
fn the_kind_of_a_case_comes_from_its_metadata_and_one_that_is_not_known_fails() {
    let golden = |model: &str, tensor: &str| Golden {
        name: "relaxed_misleading.safetensors".into(),
        meta: [("model".to_owned(), model.to_owned())].into(),
        tensors: [(tensor.to_owned(), vec![1.0])].into(),
    };
    assert_eq!(golden("sparse-l1", "loss").kind(), Kind::SparseL1);
    assert_eq!(golden("relaxed-topk", "loss").kind(), Kind::Relaxed);
    assert_eq!(golden("relaxed-topk", "losses").kind(), Kind::Trajectory);
    for (model, tensor) in [("gated", "loss"), ("relaxed-topk", "y"), ("sparse-l1", "losses")] {
        let panic = std::panic::catch_unwind(|| golden(model, tensor).kind()).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().starts_with("relaxed_misleading"));
    }
}

#[test]
#[should_panic(expected = "relative error")]
fn the_comparison_rejects_a_value_that_is_slightly_off() {
    let want = [1.0f64, -2.0, 0.5];
    close("control", &[1.0, -2.0001, 0.5], &want, PASS_TOLERANCE);
}

#[test]
#[should_panic(expected = "relative error")]
fn the_comparison_rejects_nan() {
    close("control", &[1.0, f32::NAN], &[1.0, 1.0], PASS_TOLERANCE);
}
