//! What host and kernels exchange: plain structs, field by field as in `kernels/common.cuh`.

use super::ranks::{GROUP, Shard};
use crate::backend::penalty::furthest_move;
use crate::backend::{StepPlan, ema_decay};
use crate::noise::Noise;
use crate::spec::{MOST_PREFIXES, ModelSpec, Penalty};
use bytemuck::{Pod, Zeroable};

/// `Step`: all numbers of one step.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct StepParams {
    /// Key of the noise.
    pub seed: u64,
    /// Step from 0.
    pub step: u64,
    /// Weight of the penalty in the loss in the data's unit.
    pub l1: f64,
    /// Weight of the auxiliary loss.
    pub aux_coef: f64,
    /// Largest gradient norm; 0 is none.
    pub clip_norm: f64,
    /// Gradients are those of this many times the loss.
    pub loss_scale: f64,
    /// Weight of the penalty in `loss_scale` times the loss; a factor on one that is carried.
    pub weight: f64,
    /// Share of the hard code.
    pub alpha: f32,
    /// `1 - alpha`.
    pub rest: f32,
    /// Temperature.
    pub tau: f32,
    /// `l1 / (N M)`.
    pub sparsity: f32,
    /// Adam's decay of the first moment.
    pub beta1: f32,
    /// Adam's decay of the second moment.
    pub beta2: f32,
    /// `1 - beta1`, rounded once.
    pub one_minus_beta1: f32,
    /// `1 - beta2`, rounded once.
    pub one_minus_beta2: f32,
    /// `lr / (1 - beta1^t)`.
    pub rate: f32,
    /// `1 / (1 - beta2^t)`.
    pub fix2: f32,
    /// Outside the root.
    pub adam_eps: f32,
    /// `1 - lr * weight_decay`.
    pub keep: f32,
    /// Decay of the moving average at this step.
    pub ema_keep: f32,
    /// `1 / tau`.
    pub inv_tau: f32,
    /// N.
    pub n_rows: u32,
    /// Rows without firing after which a latent is dead.
    pub dead_after: u32,
    /// Place in the ring of outcomes.
    pub slot: u32,
    /// Entries a row may hold.
    pub active: u32,
    /// Active latents a row is to have.
    pub k: u32,
    /// Which penalty: its number among [`Penalty`].
    pub penalty: u32,
    /// Half the width of the kernel of thresholds.
    pub reach: f32,
    /// 1 / its width.
    pub inv_bandwidth: f32,
    /// The furthest that all thresholds move together, or 0.
    pub furthest: f32,
    /// Groups of 128 latents before the first of the device.
    pub group: u32,
}

/// Numbers as in `kernels/common.cuh`.
fn number(penalty: Penalty) -> u32 {
    match penalty {
        Penalty::MeanCode => 0,
        Penalty::L1 => 1,
        Penalty::L0Target => 2,
        Penalty::L0 => 3,
        Penalty::L0Rows => 4,
    }
}

impl StepParams {
    /// The numbers of `plan` for a batch of `n_rows` rows of `d_in` values on a device that has `shard`; its outcome goes to
    /// `slot`.
    pub fn new(
        spec: &ModelSpec,
        plan: &StepPlan<'_>,
        n_rows: usize,
        (d_in, shard): (usize, &Shard),
        slot: u32,
    ) -> Self {
        // As on the CPU: powers and quotients in float64, rounded once.
        let t = (plan.step + 1) as i32;
        let seed = if let Noise::Philox { seed } = plan.noise { seed } else { 0 };
        let alpha = plan.alpha.min(1.0);
        Self {
            seed,
            step: plan.step,
            l1: plan.l1 / spec.objective.loss_scale,
            aux_coef: spec.objective.aux_coef,
            clip_norm: spec.optimizer.clip_norm.unwrap_or(0.0),
            loss_scale: spec.objective.loss_scale,
            weight: plan.l1,
            alpha: alpha as f32,
            rest: (1.0 - alpha) as f32,
            tau: plan.tau as f32,
            sparsity: (plan.l1 / (n_rows * shard.all) as f64) as f32,
            beta1: spec.optimizer.beta1 as f32,
            beta2: spec.optimizer.beta2 as f32,
            one_minus_beta1: (1.0 - spec.optimizer.beta1) as f32,
            one_minus_beta2: (1.0 - spec.optimizer.beta2) as f32,
            rate: (plan.lr / (1.0 - spec.optimizer.beta1.powi(t))) as f32,
            fix2: (1.0 / (1.0 - spec.optimizer.beta2.powi(t))) as f32,
            adam_eps: spec.optimizer.adam_eps as f32,
            keep: (1.0 - plan.lr * spec.optimizer.weight_decay) as f32,
            ema_keep: spec.optimizer.ema.map_or(0.0, |decay| ema_decay(decay, plan.step)) as f32,
            inv_tau: (1.0 / plan.tau) as f32,
            n_rows: n_rows as u32,
            dead_after: spec.objective.dead_after,
            slot,
            active: spec.candidates(plan) as u32,
            k: spec.forward.k as u32,
            penalty: number(spec.objective.penalty),
            reach: 0.5 * spec.objective.bandwidth as f32,
            inv_bandwidth: (1.0 / spec.objective.bandwidth) as f32,
            furthest: furthest_move(spec, d_in) as f32,
            group: (shard.latents().start / GROUP) as u32,
        }
    }
}

/// `Outcome`: what a step reports.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct Outcome {
    /// The whole loss.
    pub loss: f64,
    /// Mean squared error.
    pub mse: f64,
    /// Mean absolute code.
    pub l1: f64,
    /// Auxiliary loss before its weight.
    pub aux: f64,
    /// Global gradient norm; NaN where it was not needed.
    pub grad_norm: f64,
}

/// `Control`: facts that kernels of a step hand to later ones.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct Control {
    /// Not 0 once a loss was not finite.
    pub stopped: u32,
    /// Latents that the auxiliary loss may use.
    pub n_dead: u32,
    /// The gradient's factor from clipping.
    pub clip: f32,
    /// What an active latent's dh gets, times the length of its decoder row.
    pub per_entry: f32,
    /// The penalty's gradient by a row's number of active latents.
    pub slope: f64,
    /// What is added to it times that number less k.
    pub slope_rows: f64,
    /// The carried weight after this step.
    pub carried: f32,
    /// What is added to every threshold.
    pub common: f32,
}

/// Bytes of `Control::n_dead` in [`Control`].
pub const N_DEAD: std::ops::Range<usize> = 4..8;

/// `SoftRow`: the softmax of a row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct SoftRow {
    /// Largest perturbed score.
    pub max: f32,
    /// `1 / total`.
    pub inv_total: f32,
    /// `S`.
    pub sum: f32,
    /// The constant `c`.
    pub c: f32,
}

/// `RowLoss` and `RowQuality` as the host sees them: bytes of one row.
pub const ROW_LOSS: usize = 24;
/// See [`ROW_LOSS`].
pub const ROW_QUALITY: usize = 32;

/// `Quality`: running sums of an evaluation.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct QualitySums {
    /// Squared errors.
    pub squared: f64,
    /// Absolute errors.
    pub absolute: f64,
    /// Cosines.
    pub cosine: f64,
    /// Active latents.
    pub active: u64,
    /// Squared errors by each prefix.
    pub by_prefix: [f64; MOST_PREFIXES],
}

/// `Tensor`: addresses of weights, moments and average; 0 where there is none.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct TensorView {
    /// Weights.
    pub w: u64,
    /// First moment.
    pub m: u64,
    /// Second moment.
    pub v: u64,
    /// Moving average.
    pub e: u64,
}

/// `Model`: addresses of all tensors.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Default, Pod, Zeroable)]
pub struct ModelView {
    /// (M, pitch).
    pub enc: TensorView,
    /// (M, pitch); all 0 when tied.
    pub dec: TensorView,
    /// (M).
    pub lat: TensorView,
    /// (pitch).
    pub pre: TensorView,
    /// (M); all 0 where the model has no thresholds.
    pub threshold: TensorView,
    /// bfloat16 copy of the encoder, or 0.
    pub enc_copy: u64,
    /// bfloat16 copy of the decoder, or 0.
    pub dec_copy: u64,
}
