//! Cases small enough to work on paper; each runs on both backends.

use crate::common::{backends, cpu_backends, embeddings, spec};
use topk_sae::backend::{Pass, StepPlan};
use topk_sae::model::{Params, TrainState};
use topk_sae::noise::Noise;
use topk_sae::spec::{Activation, Inference, ModelSpec, Penalty};

fn plan(alpha: f64, tau: f64, noise: Noise<'_>) -> StepPlan<'_> {
    StepPlan { step: 0, alpha, tau, lr: 0.1, l1: 0.0, noise }
}

const SILENT: Noise<'_> = Noise::Given(&[]);

fn model(w_enc: &[f32], w_dec: Option<&[f32]>, b_pre: &[f32], b_lat: &[f32]) -> TrainState {
    let params = Params {
        d_in: b_pre.len(),
        n_latents: b_lat.len(),
        w_enc: w_enc.to_vec(),
        w_dec: w_dec.map(<[f32]>::to_vec),
        b_pre: b_pre.to_vec(),
        b_lat: b_lat.to_vec(),
        threshold: None,
    };
    TrainState::start(params, false)
}

/// The pass of each backend on all of `x`.
fn passes(x: &[f32], spec: &ModelSpec, state: &TrainState, plan: &StepPlan<'_>) -> Vec<(&'static str, Pass)> {
    let d = state.params.d_in;
    let rows: Vec<u32> = (0..(x.len() / d) as u32).collect();
    let both = backends(&embeddings(d, x.to_vec()), spec, state);
    both.into_iter().map(|(name, mut backend)| (name, backend.inspect(&rows, plan).unwrap())).collect()
}

fn raw(k: usize) -> ModelSpec {
    spec(k).with(|spec| {
        spec.forward.normalize = false;
    })
}

/// Every number here is a sum of few powers of two: no rounding, so equality.
#[test]
fn one_row_through_the_hard_code_is_as_worked_on_paper() {
    // x' - b_pre = (1, 2) - (1/2, 0) = (1/2, 2)
    // z = (1/2 + 2, 1/2 - 2 + 1/4) = (5/2, -5/4);  k = 1: h = (5/2, 0)
    // y = 5/2 (1/2, 1) + b_pre = (7/4, 5/2);  y - x = (3/4, 1/2);  loss = (9/16 + 1/4) / 2 = 13/32
    // dy = 2 (y - x) / 2 = (3/4, 1/2);  dh_0 = 3/8 + 1/2 = 7/8;  dz = (7/8, 0)
    // dW_dec_0 = 5/2 dy = (15/8, 5/4);  dW_enc_0 = 7/8 (1/2, 2) = (7/16, 7/4)
    // db_pre = dy - 7/8 (1, 1) = (-1/8, -3/8)
    let state = model(&[1.0, 1.0, 1.0, -1.0], Some(&[0.5, 1.0, 3.0, 3.0]), &[0.5, 0.0], &[0.0, 0.25]);
    for (name, pass) in passes(&[1.0, 2.0], &raw(1), &state, &plan(1.0, 0.05, SILENT)) {
        assert_eq!(pass.pre_acts, [2.5, -1.25], "{name}");
        assert_eq!(pass.code, [2.5, 0.0], "{name}");
        assert_eq!(pass.recon, [1.75, 2.5], "{name}");
        assert_eq!(pass.stats.loss, 0.40625, "{name}");
        assert_eq!(pass.grad_pre_acts, [0.875, 0.0], "{name}");
        assert_eq!(pass.grads.w_dec.unwrap(), [1.875, 1.25, 0.0, 0.0], "{name}");
        assert_eq!(pass.grads.w_enc, [0.4375, 1.75, 0.0, 0.0], "{name}");
        assert_eq!(pass.grads.b_lat, [0.875, 0.0], "{name}");
        assert_eq!(pass.grads.b_pre, [-0.125, -0.375], "{name}");
    }
}

#[test]
fn equal_scores_with_equal_noise_share_the_soft_code_as_worked_on_paper() {
    // Tied, W = identity, x = (1, 1): z = (1, 1), r = z, equal noise: p = (1/2, 1/2), S = 2, soft = (1, 1).
    // k = 1, the lowest latent wins the tie: hard = (1, 0).  alpha = 1/2: h = (1, 1/2) = y.
    // y - x = (0, -1/2), loss = 1/8, dy = dh = (0, -1/2)
    // c = 1/2 (1/2 * 0 + 1/2 * -1/2) = -1/8
    // dz_0 = 1/2 2 (0 + 1/8) / tau + c + 1/2 0 = 1/4 - 1/8 = 1/8          with tau = 1/2
    // dz_1 = 1/2 2 (-1/4 + 1/8) / tau + c     = -1/4 - 1/8 = -3/8
    // dW = h^T dy + dz^T x = ((0, -1/2), (0, -1/4)) + ((1/8, 1/8), (-3/8, -3/8))
    // db_pre = dy - (1/8, -3/8) W = (-1/8, -1/8)
    let state = model(&[1.0, 0.0, 0.0, 1.0], None, &[0.0, 0.0], &[0.0, 0.0]);
    let noise = Noise::Given(&[0.5, 0.5]);
    for (name, pass) in passes(&[1.0, 1.0], &raw(1), &state, &plan(0.5, 0.5, noise)) {
        // The sign of a score is kept in the last bit of its exponential: two units there.
        let close = |what: &str, got: &[f32], want: &[f32]| {
            crate::common::close32(&format!("{name}: {what}"), got, want, 4.0 * f64::from(f32::EPSILON));
        };
        close("h", &pass.code, &[1.0, 0.5]);
        close("loss", &[pass.stats.loss as f32], &[0.125]);
        close("grad_z", &pass.grad_pre_acts, &[0.125, -0.375]);
        close("w", &pass.grads.w_enc, &[0.125, -0.375, -0.375, -0.625]);
        close("b_lat", &pass.grads.b_lat, &[0.125, -0.375]);
        close("b_pre", &pass.grads.b_pre, &[-0.125, -0.125]);
    }
}

#[test]
fn a_normalised_row_of_two_values_is_as_worked_on_paper() {
    // x = (1, 3): mu = 2, std = sqrt(2 / 1) = 1.41421356;  x' = (-q, q), q = 1 / (std + 1e-5) = 0.70710178
    // W_enc rows (0, 1), (-1, 0), (1, 0): z = (q, q, -q); k = 2 takes the first two.
    // W_dec rows (1, 0), (0, 1): y' = (q, q), y = (2 + q std, 2 + q std), q std = 0.99999293
    // y - x = (1 + q std, -1 + q std) = (1.99999293, -7.0710e-6);  loss = 1.99998586
    // dy' = (y - x) std: dh_0 = 1.99999293 std = 2.82841712, dh_1 = -7.0710e-6 std = -1.0000e-5 = dz_1
    // dW_dec_0 = q dy' = q std (y - x) = (1.99997879, -7.0710e-6);  dW_enc_0 = dz_0 (-q, q)
    let state =
        model(&[0.0, 1.0, -1.0, 0.0, 1.0, 0.0], Some(&[1.0, 0.0, 0.0, 1.0, 5.0, 5.0]), &[0.0; 2], &[0.0; 3]);
    for (name, pass) in passes(&[1.0, 3.0], &spec(2), &state, &plan(1.0, 0.05, SILENT)) {
        // Eight digits were worked out.
        let close = |what: &str, got: &[f32], want: &[f32]| {
            crate::common::close32(&format!("{name}: {what}"), got, want, 3e-7);
        };
        close("z", &pass.pre_acts, &[0.70710178, 0.70710178, -0.70710178]);
        close("y", &pass.recon, &[2.9999929, 2.9999929]);
        close("loss", &[pass.stats.loss as f32], &[1.9999859]);
        close("grad_z", &pass.grad_pre_acts, &[2.828_417, -1.0e-5, 0.0]);
        close("w_dec", &pass.grads.w_dec.unwrap()[..2], &[1.9999788, -7.071e-6]);
        close("w_enc", &pass.grads.w_enc[..2], &[-1.9999788, 1.9999788]);
    }
}

#[test]
fn a_dead_latent_explains_the_residual_as_worked_on_paper() {
    // W_enc = identity, W_dec = half of it, x = z = (1, 2), k = 1: h = (0, 2), y = (0, 1), e = x - y = (1, 1).
    // mse = 1.  Latent 0 is dead: h_aux = (1, 0), its part (1/2, 0) - e = (-1/2, -1), aux = (1/4 + 1) / 2 = 5/8.
    // aux_coef = 1/2: loss = 1 + 5/16.
    // dy = y - x = (-1, -1), dz_1 = dh_1 = -1/2;  d aux part = 1/2 (-1/2, -1) = (-1/4, -1/2), dz_0 = -1/8
    // dW_dec = ((-1/4, -1/2), 2 (-1, -1));  dW_enc = (-1/8 (1, 2), -1/2 (1, 2))
    // db_pre = dy - (-1/8, -1/2) = (-7/8, -1/2)
    let mut state = model(&[1.0, 0.0, 0.0, 1.0], Some(&[0.5, 0.0, 0.0, 0.5]), &[0.0; 2], &[0.0; 2]);
    state.idle_rows[0] = 100;
    let spec = raw(1).with(|spec| {
        spec.objective.aux_k = 1;
        spec.objective.aux_coef = 0.5;
    });
    for (name, pass) in passes(&[1.0, 2.0], &spec, &state, &plan(1.0, 0.05, SILENT)) {
        assert_eq!((pass.stats.mse, pass.stats.aux, pass.stats.loss), (1.0, 0.625, 1.3125), "{name}");
        assert_eq!(pass.grad_pre_acts, [-0.125, -0.5], "{name}");
        assert_eq!(pass.grads.w_dec.unwrap(), [-0.25, -0.5, -2.0, -2.0], "{name}");
        assert_eq!(pass.grads.w_enc, [-0.125, -0.25, -0.5, -1.0], "{name}");
        assert_eq!(pass.grads.b_pre, [-0.875, -0.5], "{name}");
    }
}

/// With every latent silent the loss is mean (b_pre - x)^2 and the gradient of b_pre is b_pre - x at D = 2.
fn silent() -> TrainState {
    model(&[1.0, 0.5], Some(&[0.5, -2.0]), &[0.0, 0.0], &[-100.0])
}

#[test]
fn two_steps_of_adam_are_as_worked_on_paper() {
    // x = (1, -3), lr = 1/10.
    // Step 1: g = (-1, 3); with the bias corrected m = g and v = g^2: b_pre moves by -lr sign g to (0.1, -0.1).
    // Step 2: g = (-0.9, 2.9).
    //   m = 0.9 (-0.1) + 0.1 (-0.9) = -0.18;   / (1 - 0.9^2)   = -0.9473684
    //   v = 0.999 0.001 + 0.001 0.81 = 0.001809; / (1 - 0.999^2) = 0.9049525, root 0.9512900; quotient -0.9958776
    //   m = 0.9 0.3 + 0.1 2.9 = 0.56;          / 0.19          = 2.9473684
    //   v = 0.999 0.009 + 0.001 8.41 = 0.017401; / 0.001999    = 8.7048524, root 2.9503987; quotient 0.9989729
    //   b_pre = (0.1 + 0.09958776, -0.1 - 0.09989729)
    let data = embeddings(2, vec![1.0, -3.0]);
    for (name, mut backend) in backends(&data, &raw(1), &silent()) {
        let first = backend.step_now(&[0], &plan(1.0, 0.05, SILENT)).unwrap();
        assert_eq!(first.loss, 5.0, "{name}");
        backend.step_now(&[0], &StepPlan { step: 1, ..plan(1.0, 0.05, SILENT) }).unwrap();
        let state = backend.state().unwrap();
        let close = |what: &str, got: &[f32], want: &[f32]| {
            crate::common::close32(&format!("{name}: {what}"), got, want, 3e-7);
        };
        close("b_pre", &state.params.b_pre, &[0.19958776, -0.19989729]);
        close("m", &state.m.b_pre, &[-0.18, 0.56]);
        close("v", &state.v.b_pre, &[0.001809, 0.017401]);
        assert_eq!(state.params.w_enc, [1.0, 0.5], "{name}: without a gradient nothing moves");
        assert_eq!((state.step, &state.idle_rows[..]), (2, &[2u32][..]), "{name}");
    }
}

#[test]
fn clipping_decay_unit_rows_and_the_average_are_as_worked_on_paper() {
    // g = (-1, 3): norm 3.16227766; clip_norm = 1: factor 1 / 3.16227866; m = 0.1 g factor.
    // Decay 1/2, lr 1/10: the encoder (no gradient) shrinks by 1 - 1/20. The decoder row (0.5, -2) does too and
    // is then scaled to length 1: / sqrt(4.25) = 2.06155281. Biases do not decay.
    // The average at step 0 keeps min(0.9, 1 / 10) = 0.1 of the start: w_enc 0.1 + 0.9 0.95 = 0.955 of it.
    let spec = raw(1).with(|spec| {
        spec.optimizer.clip_norm = Some(1.0);
        spec.optimizer.weight_decay = 0.5;
        spec.optimizer.unit_norm_decoder = true;
        spec.optimizer.ema = Some(0.9);
    });
    let data = embeddings(2, vec![1.0, -3.0]);
    let start = TrainState::start(silent().params, true);
    for (name, mut backend) in backends(&data, &spec, &start) {
        let stats = backend.step_now(&[0], &plan(1.0, 0.05, SILENT)).unwrap();
        assert!((stats.grad_norm - 10f64.sqrt()).abs() < 1e-6, "{name}: {}", stats.grad_norm);
        let state = backend.state().unwrap();
        let close = |what: &str, got: &[f32], want: &[f32]| {
            crate::common::close32(&format!("{name}: {what}"), got, want, 3e-7);
        };
        close("m", &state.m.b_pre, &[-0.031622767, 0.094_868_3]);
        close("w_enc", &state.params.w_enc, &[0.95, 0.475]);
        close("w_dec", state.params.decoder(), &[0.24253563, -0.970_142_5]);
        close("average", &state.ema.as_ref().unwrap().w_enc, &[0.955, 0.4775]);
        close("b_lat", &state.params.b_lat, &[-100.0]);
        close("b_pre", &state.params.b_pre, &[0.1, -0.1]);
    }
}

#[test]
fn thresholds_get_the_gradient_of_their_kernel_as_worked_on_paper() {
    // As above, but b_lat_1 = 9/4, so that z = (5/2, 3/4). Thresholds (9/4, 1), eps = 1: both scores are within 1/2 of
    // theirs, and h = (5/2, 0). L0 = 1.
    // dh = (7/8, 3 * 3/4 + 3 * 1/2) = (7/8, 15/4);  dz = (7/8, 0)
    // dt_j = -(t_j dh_j + c): with a weight of 1/2 on L0, c = 1/2: -(63/32 + 1/2), -(15/4 + 1/2)
    // with (L0 / k - 1)^2 and k = 2: c = 1/2 * 2 (1/2 - 1) / 2 = -1/4;  with 2/k (L0 - k)^2: c = 1/2 * 4 (1 - 2) / 2 = -1
    let mut state = model(&[1.0, 1.0, 1.0, -1.0], Some(&[0.5, 1.0, 3.0, 3.0]), &[0.5, 0.0], &[0.0, 2.25]);
    let params = Params { threshold: Some(vec![2.25, 1.0]), ..state.params };
    state = TrainState::start(params, false);
    for (penalty, k, c, value) in
        [(Penalty::L0, 1, 0.5, 1.0), (Penalty::L0Target, 2, -0.25, 0.25), (Penalty::L0Rows, 2, -1.0, 1.0)]
    {
        let spec = raw(k).with(|spec| {
            spec.forward.activation = Activation::JumpRelu;
            spec.forward.inference = Inference::Threshold;
            (spec.objective.penalty, spec.objective.bandwidth) = (penalty, 1.0);
        });
        let plan = StepPlan { l1: 0.5, ..plan(1.0, 0.05, SILENT) };
        for (name, mut backend) in cpu_backends(&embeddings(2, vec![1.0, 2.0]), &spec, &state) {
            let pass = backend.inspect(&[0], &plan).unwrap();
            assert_eq!(pass.code, [2.5, 0.0], "{name}");
            assert_eq!(pass.grad_pre_acts, [0.875, 0.0], "{name}");
            assert_eq!(pass.stats.l1, value, "{name} {penalty}");
            assert_eq!(pass.stats.loss, 0.40625 + 0.5 * value, "{name} {penalty}");
            assert_eq!(pass.grads.threshold.unwrap(), [-1.96875 - c, -3.75 - c], "{name} {penalty}");
        }
        // Adam's first step is the learning rate, up where the gradient falls. Where k is the aim, all move by
        // 1/100 sqrt(D) ln(L0 / k) = 0.0141421 ln(1/2) = -0.0098026 as well.
        let common = if penalty == Penalty::L0 { 0.0 } else { -0.0098026 };
        for (name, mut backend) in cpu_backends(&embeddings(2, vec![1.0, 2.0]), &spec, &state) {
            backend.step_now(&[0], &plan).unwrap();
            let after = backend.state().unwrap().params.threshold.clone().unwrap();
            crate::common::close32(name, &after, &[2.35 + common, 1.1 + common], 1e-6);
        }
        // Thresholds above all scores have no gradient, and fall together by 1/100 sqrt(D).
        let high = Params { threshold: Some(vec![20.0, 10.0]), ..state.params.clone() };
        let common = if penalty == Penalty::L0 { 0.0 } else { -0.0141421 };
        for (name, mut backend) in
            cpu_backends(&embeddings(2, vec![1.0, 2.0]), &spec, &TrainState::start(high.clone(), false))
        {
            backend.step_now(&[0], &plan).unwrap();
            let after = backend.state().unwrap().params.threshold.clone().unwrap();
            crate::common::close32(name, &after, &[20.0 + common, 10.0 + common], 2e-7);
        }
        // The update keeps them at 0 or above; Adam's first step is the learning rate, down where the gradient rises.
        let low = Params { threshold: Some(vec![0.05, 0.05]), ..state.params.clone() };
        let low = TrainState::start(low, false);
        for (name, mut backend) in cpu_backends(&embeddings(2, vec![1.0, 2.0]), &spec, &low) {
            let falling = StepPlan { l1: -50.0, ..plan };
            backend.step_now(&[0], &falling).unwrap();
            let after = backend.state().unwrap().params.threshold.clone().unwrap();
            assert!(after.iter().all(|t| *t >= 0.0), "{name}: {after:?}");
        }
    }
}
