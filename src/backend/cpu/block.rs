//! The backward pass of a block of latents: their gradients in scratch memory, and the optimizer's step on
//! them while they are in cache. Blocks are independent of each other and of the number of threads.

use super::above::Above;
use super::linalg::{View, product};
use super::relax::{Mode, RowSoftmax};
use super::simd::{self, AdamStep};
use super::sparse::{ByLatent, Rows, gather_rows};
use crate::backend::penalty::Sparsity;
use crate::backend::{StepPlan, ema_decay};
use crate::model::Params;
use crate::spec::{Activation, ModelSpec, Penalty, Prefixes};
use std::sync::{Mutex, PoisonError};

/// Latents in a block: large where dense products run on it, so that their operands are packed less often;
/// small in the hard phase, where a block's gradients then stay in the first caches until Adam has used them.
pub fn latents_in_block(mode: Mode) -> usize {
    if mode == Mode::Hard { 16 } else { 512 }
}

/// Memory of one task, kept from step to step.
#[derive(Debug, Default)]
pub struct Scratch {
    w_enc: Vec<f32>,
    w_dec: Vec<f32>,
    b_lat: Vec<f32>,
    threshold: Vec<f32>,
    /// For (N, B) scores.
    pub scores: Vec<f32>,
}

/// The memory of all tasks that run at the same time.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Vec<Scratch>>);

impl Pool {
    /// Runs `task` with memory that no other task uses meanwhile. What it holds is left from an earlier task.
    pub fn with<R>(&self, task: impl FnOnce(&mut Scratch) -> R) -> R {
        // A poisoned lock guards nothing that a panic could have left half done: plain buffers.
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = lock().pop().unwrap_or_default();
        let result = task(&mut scratch);
        lock().push(scratch);
        result
    }
}

/// What the backward pass of a batch reads; the same for all blocks.
pub struct StepInputs<'a> {
    /// N.
    pub n_rows: usize,
    /// D.
    pub d_in: usize,
    /// M.
    pub n_latents: usize,
    /// How the code is held.
    pub mode: Mode,
    /// Factor of the soft branch, `1 - alpha`.
    pub rest: f32,
    /// Temperature.
    pub tau: f32,
    /// The penalty.
    pub sparsity: &'a Sparsity,
    /// (M) lengths of decoder rows, where the penalty needs them.
    pub lengths: &'a [f32],
    /// (N) active latents of each row, where the penalty needs them.
    pub active: &'a [u32],
    /// Half the width of the kernel of thresholds.
    pub reach: f32,
    /// Which latents reconstruct on their own.
    pub prefixes: Prefixes,
    /// (N, D) `x' - b_pre`.
    pub input: &'a [f32],
    /// (N, P, D): what the entries of each segment meet, dy' where there is one.
    pub grad_recon: &'a [f32],
    /// (N, D) dy' times each row's `(1 - alpha) S / total`; empty unless dense.
    pub grad_scaled: &'a [f32],
    /// (N, M) exponentials with the mask, or the scores of a dense code; empty in the hard mode.
    pub scores: &'a [f32],
    /// (N, M) a dense code without a softmax; of no use in other modes.
    pub code: &'a [f32],
    /// (N) of the softmax.
    pub softmax: &'a [RowSoftmax],
    /// (N) the constant c.
    pub c: &'a [f32],
    /// The sparse entries.
    pub entries: &'a ByLatent,
    /// The auxiliary loss: its entries and its (N, D) gradient of the reconstruction.
    pub aux: Option<(&'a ByLatent, &'a [f32])>,
}

/// The weights of a block of latents.
pub struct BlockWeights<'a> {
    /// First latent.
    pub first: usize,
    /// (B, D).
    pub w_enc: &'a [f32],
    /// (B, D); `None` when tied.
    pub w_dec: Option<&'a [f32]>,
    /// (B), where the model has thresholds.
    pub threshold: Option<&'a [f32]>,
}

/// Where a block's gradients go; (B, D), (B, D) unless tied, (B).
pub struct BlockGrads<'a> {
    /// Encoder; of both uses when tied.
    pub w_enc: &'a mut [f32],
    /// Decoder.
    pub w_dec: Option<&'a mut [f32]>,
    /// Biases.
    pub b_lat: &'a mut [f32],
    /// (B) thresholds, where the model has them.
    pub threshold: Option<&'a mut [f32]>,
}

impl StepInputs<'_> {
    /// Fills `grads`; returns `db_lat W_enc` of the block (D), the part of b_pre's gradient that goes through
    /// the encoder. `scores` is scratch memory for (N, B) values.
    pub fn gradients(
        &self,
        weights: &BlockWeights<'_>,
        grads: &mut BlockGrads<'_>,
        scores: &mut Vec<f32>,
        unit_norm_decoder: bool,
    ) -> Vec<f32> {
        let d = self.d_in;
        let count = weights.w_enc.len() / d;
        let decoder = weights.w_dec.unwrap_or(weights.w_enc);
        self.decoder_gradient(weights.first, decoder, grads.w_dec.as_deref_mut().unwrap_or(grads.w_enc));
        if let Some(grad) = &mut grads.w_dec {
            if self.mode == Mode::Hard {
                grads.w_enc.fill(0.0);
            }
            if unit_norm_decoder {
                project(grad, decoder, d);
            }
        }
        grads.b_lat.fill(0.0);
        if let Some(threshold) = &mut grads.threshold {
            threshold.fill(0.0);
            if !self.entries.edge.is_empty() {
                for (j, grad) in threshold.iter_mut().enumerate() {
                    *grad = self.entries.edge[self.entries.latent(weights.first + j)].iter().sum();
                }
            }
        }
        if self.mode == Mode::Hard {
            for j in 0..count {
                let range = self.entries.latent(weights.first + j);
                let (grad, row) = (&self.entries.grad[range.clone()], &self.entries.row[range]);
                let input = Rows { values: self.input, stride: d };
                gather_rows(grad, row, input, &mut grads.w_enc[j * d..(j + 1) * d]);
                grads.b_lat[j] += grad.iter().sum::<f32>();
            }
        } else {
            self.score_gradients(weights, scores, grads.threshold.as_deref_mut());
            let dz = View::new(scores, self.n_rows, count, count);
            // A tied model adds to what the decoder's use left there.
            let add = grads.w_dec.is_none();
            product(grads.w_enc, d, dz.t(), View::new(self.input, self.n_rows, d, d), add);
            for row in scores.chunks_exact(count) {
                simd::axpy(1.0, row, grads.b_lat);
            }
        }
        self.aux_encoder_gradient(weights.first, grads);
        if unit_norm_decoder && grads.w_dec.is_none() {
            // Tied: one tensor, one constraint on the sum of both uses.
            project(grads.w_enc, decoder, d);
        }
        let mut through_encoder = vec![0.0; d];
        for (&g, row) in grads.b_lat.iter().zip(weights.w_enc.chunks_exact(d)) {
            simd::axpy(g, row, &mut through_encoder);
        }
        through_encoder
    }

    /// dW_dec of the block: overwritten, not added to.
    fn decoder_gradient(&self, first: usize, decoder: &[f32], out: &mut [f32]) {
        let d = self.d_in;
        let count = out.len() / d;
        let (code, grad) = match self.mode {
            Mode::Dense => (self.scores, self.grad_scaled),
            Mode::DenseCode => (self.code, self.grad_recon),
            Mode::Hard | Mode::Support => (&[][..], &[][..]),
        };
        if code.is_empty() {
            out.fill(0.0);
        } else {
            let code = View::new(&code[first..], self.n_rows, count, self.n_latents);
            product(out, d, code.t(), View::new(grad, self.n_rows, d, d), false);
        }
        let stride = self.prefixes.parts() * d;
        for (j, out) in out.chunks_exact_mut(d).enumerate() {
            let range = self.entries.latent(first + j);
            let from = self.prefixes.segment(first + j) * d;
            let grad_recon = Rows { values: &self.grad_recon[from..], stride };
            gather_rows(&self.entries.value[range.clone()], &self.entries.row[range], grad_recon, out);
            if let Some((aux, grad)) = self.aux {
                let range = aux.latent(first + j);
                let grad = Rows { values: grad, stride: d };
                gather_rows(&aux.value[range.clone()], &aux.row[range], grad, out);
            }
        }
        if self.sparsity.penalty == Penalty::L1 {
            self.length_gradient(first, decoder, out);
        }
    }

    /// What the lengths of decoder rows (B, D) add to their gradient, where the penalty has them.
    fn length_gradient(&self, first: usize, decoder: &[f32], out: &mut [f32]) {
        let d = self.d_in;
        let count = out.len() / d;
        let mut sums = vec![0.0f64; count];
        if self.mode == Mode::DenseCode {
            for row in self.code.chunks_exact(self.n_latents) {
                row[first..first + count].iter().zip(&mut sums).for_each(|(&h, sum)| *sum += f64::from(h));
            }
        } else {
            for (j, sum) in sums.iter_mut().enumerate() {
                let values = &self.entries.value[self.entries.latent(first + j)];
                *sum = values.iter().map(|&h| f64::from(h)).sum();
            }
        }
        let rows = out.chunks_exact_mut(d).zip(decoder.chunks_exact(d));
        for ((out, weights), (sum, &length)) in rows.zip(sums.into_iter().zip(&self.lengths[first..])) {
            if length > 0.0 {
                simd::axpy((self.sparsity.per_entry() * sum / f64::from(length)) as f32, weights, out);
            }
        }
    }

    fn aux_encoder_gradient(&self, first: usize, grads: &mut BlockGrads<'_>) {
        let Some((aux, _)) = self.aux else { return };
        let d = self.d_in;
        for (j, out) in grads.w_enc.chunks_exact_mut(d).enumerate() {
            let range = aux.latent(first + j);
            let (grad, row) = (&aux.grad[range.clone()], &aux.row[range]);
            gather_rows(grad, row, Rows { values: self.input, stride: d }, out);
            grads.b_lat[j] += grad.iter().sum::<f32>();
        }
    }

    /// dz of the block (N, B) while the code is not held as entries alone, into `out`. Adds to the gradient of the block's
    /// thresholds (B), where there are any.
    pub fn score_gradients(
        &self,
        weights: &BlockWeights<'_>,
        out: &mut Vec<f32>,
        mut threshold: Option<&mut [f32]>,
    ) {
        let (n, d, first) = (self.n_rows, self.d_in, weights.first);
        let decoder = weights.w_dec.unwrap_or(weights.w_enc);
        let count = decoder.len() / d;
        out.resize(n * count, 0.0);
        if matches!(self.mode, Mode::Dense | Mode::DenseCode) {
            let grad = View::new(self.grad_recon, n, d, d);
            product(out, count, grad, View::new(decoder, count, d, d).t(), false);
        }
        let per_entry = self.sparsity.per_entry() as f32;
        for (row, out) in out.chunks_exact_mut(count).enumerate() {
            let scores = &self.scores[row * self.n_latents + first..][..count];
            match self.mode {
                Mode::Dense => {
                    let soft = self.softmax[row];
                    let a = soft.inv_total * soft.sum / self.tau;
                    if per_entry > 0.0 {
                        out.iter_mut().for_each(|dh| *dh += per_entry);
                    }
                    simd::softmax_backward(a, self.rest, self.c[row], scores, out);
                }
                Mode::DenseCode => self.masked(row, weights, scores, out, threshold.as_deref_mut()),
                Mode::Hard | Mode::Support => simd::masked_constant(self.c[row], scores, out),
            }
        }
        for j in 0..count {
            for entry in self.entries.latent(first + j) {
                out[self.entries.row[entry] as usize * count + j] += self.entries.grad[entry];
            }
        }
    }

    /// dh of the squared error becomes dz, for the scores `z` of a row of a dense code.
    fn masked(
        &self,
        row: usize,
        weights: &BlockWeights<'_>,
        z: &[f32],
        out: &mut [f32],
        threshold: Option<&mut [f32]>,
    ) {
        let above = Above { thresholds: weights.threshold, reach: self.reach };
        if let (Some(grads), Some(thresholds)) = (threshold, weights.threshold) {
            let slope = self.sparsity.slope(self.active[row]) as f32;
            for (j, grad) in grads.iter_mut().enumerate() {
                if above.is_edge(j, z[j]) {
                    *grad -= (thresholds[j] * out[j] + slope) * self.sparsity.inv_bandwidth;
                }
            }
        }
        let per_entry = self.sparsity.per_entry() as f32;
        for (j, (dh, &z)) in out.iter_mut().zip(z).enumerate() {
            let length = self.lengths.get(weights.first + j).copied().unwrap_or(0.0);
            *dh = if above.is_active(j, z) { *dh + per_entry * length } else { 0.0 };
        }
    }
}

/// Takes from each gradient row its part along the weight row, which has length 1.
fn project(grads: &mut [f32], weights: &[f32], d: usize) {
    for (grad, weight) in grads.chunks_exact_mut(d).zip(weights.chunks_exact(d)) {
        simd::axpy(-simd::dot(grad, weight), weight, grad);
    }
}

/// The optimizer at one step.
#[derive(Debug, Clone, Copy)]
pub struct StepOptimizer {
    matrix: AdamStep,
    bias: AdamStep,
    keep: Option<f32>,
    unit_norm_decoder: bool,
    trains_thresholds: bool,
    /// Of all thresholds.
    common_move: f32,
}

impl StepOptimizer {
    /// With gradients multiplied by `clip`, and thresholds moved by `common_move`.
    pub fn new(spec: &ModelSpec, plan: &StepPlan<'_>, clip: f64, common_move: f64) -> Self {
        let t = (plan.step + 1) as f64;
        let bias = AdamStep {
            beta1: spec.optimizer.beta1 as f32,
            beta2: spec.optimizer.beta2 as f32,
            one_minus_beta1: (1.0 - spec.optimizer.beta1) as f32,
            one_minus_beta2: (1.0 - spec.optimizer.beta2) as f32,
            rate: (plan.lr / (1.0 - spec.optimizer.beta1.powf(t))) as f32,
            fix2: (1.0 / (1.0 - spec.optimizer.beta2.powf(t))) as f32,
            eps: spec.optimizer.adam_eps as f32,
            keep: 1.0,
            clip: clip as f32,
        };
        Self {
            matrix: AdamStep { keep: (1.0 - plan.lr * spec.optimizer.weight_decay) as f32, ..bias },
            bias,
            keep: spec.optimizer.ema.map(|decay| ema_decay(decay, plan.step) as f32),
            unit_norm_decoder: spec.optimizer.unit_norm_decoder,
            trains_thresholds: spec.forward.activation == Activation::JumpRelu,
            common_move: common_move as f32,
        }
    }

    /// One step on a bias: weights, moments, average, gradient.
    pub fn bias(&self, t: &mut Slot<'_>, grad: &[f32]) {
        simd::adam(self.bias, t.w, t.m, t.v, grad);
        self.average(t);
    }

    /// One step on rows of `d` values: all that happens to a row while it is in the first cache.
    fn matrix(&self, t: &mut Slot<'_>, grad: &[f32], d: usize, unit_rows: bool) {
        let mut averages = t.ema.as_deref_mut().map(|average| average.chunks_exact_mut(d));
        let moments = t.m.chunks_exact_mut(d).zip(t.v.chunks_exact_mut(d));
        for ((w, (m, v)), grad) in t.w.chunks_exact_mut(d).zip(moments).zip(grad.chunks_exact(d)) {
            simd::adam(self.matrix, w, m, v, grad);
            if unit_rows {
                simd::to_unit_length(w);
            }
            if let (Some(keep), Some(average)) = (self.keep, averages.as_mut().and_then(Iterator::next)) {
                simd::average(keep, average, w);
                // The mean of rows of length 1 is shorter than that.
                if unit_rows {
                    simd::to_unit_length(average);
                }
            }
        }
    }

    fn average(&self, t: &mut Slot<'_>) {
        if let (Some(keep), Some(average)) = (self.keep, t.ema.as_deref_mut()) {
            simd::average(keep, average, t.w);
        }
    }

    /// Gradient and step of a block in one visit; returns what [`StepInputs::gradients`] does.
    pub fn fused(
        &self,
        shared: &StepInputs<'_>,
        block: &mut BlockState<'_>,
        scratch: &mut Scratch,
    ) -> Vec<f32> {
        let Scratch { w_enc, w_dec, b_lat, threshold, scores } = scratch;
        let (count, tied) = (block.b_lat.w.len(), block.w_dec.is_none());
        let thresholds = block.threshold.is_some();
        w_enc.resize(count * shared.d_in, 0.0);
        w_dec.resize(if tied { 0 } else { count * shared.d_in }, 0.0);
        b_lat.resize(count, 0.0);
        threshold.resize(count, 0.0);
        let (w_dec, threshold) =
            ((!tied).then_some(&mut w_dec[..]), thresholds.then_some(&mut threshold[..]));
        let mut grads = BlockGrads { w_enc, w_dec, b_lat, threshold };
        let part = shared.gradients(&block.weights(), &mut grads, scores, self.unit_norm_decoder);
        self.block(block, &grads, shared.d_in);
        part
    }

    /// One step on all tensors of a block.
    pub fn block(&self, block: &mut BlockState<'_>, grads: &BlockGrads<'_>, d: usize) {
        let unit = self.unit_norm_decoder;
        let tied = block.w_dec.is_none();
        self.matrix(&mut block.w_enc, grads.w_enc, d, unit && tied);
        if let (Some(slot), Some(grad)) = (&mut block.w_dec, &grads.w_dec) {
            self.matrix(slot, grad, d, unit);
        }
        self.bias(&mut block.b_lat, grads.b_lat);
        if let (Some(slot), Some(grad)) = (&mut block.threshold, &grads.threshold) {
            self.threshold(slot, grad);
        }
    }

    /// One step on thresholds, which stay at 0 or above. The one of a batch's places is found, not trained.
    fn threshold(&self, t: &mut Slot<'_>, grad: &[f32]) {
        if !self.trains_thresholds {
            return;
        }
        simd::adam(self.bias, t.w, t.m, t.v, grad);
        t.w.iter_mut().for_each(|w| *w = (*w + self.common_move).max(0.0));
        self.average(t);
    }
}

/// A run of values of one tensor with its moments and average.
pub struct Slot<'a> {
    /// Weights.
    pub w: &'a mut [f32],
    /// First moment.
    pub m: &'a mut [f32],
    /// Second moment.
    pub v: &'a mut [f32],
    /// Moving average.
    pub ema: Option<&'a mut [f32]>,
}

/// All that belongs to a block of latents.
pub struct BlockState<'a> {
    /// First latent.
    pub first: usize,
    /// (B, D).
    pub w_enc: Slot<'a>,
    /// (B, D); `None` when tied.
    pub w_dec: Option<Slot<'a>>,
    /// (B).
    pub b_lat: Slot<'a>,
    /// (B), where the model has thresholds.
    pub threshold: Option<Slot<'a>>,
}

impl BlockState<'_> {
    /// The weights alone.
    pub fn weights(&self) -> BlockWeights<'_> {
        BlockWeights {
            first: self.first,
            w_enc: self.w_enc.w,
            w_dec: self.w_dec.as_ref().map(|slot| &*slot.w),
            threshold: self.threshold.as_ref().map(|slot| &*slot.w),
        }
    }
}

/// Cuts one tensor, its moments and its average into slots of `size` values.
fn slots<'a>(
    w: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    ema: Option<&'a mut [f32]>,
    size: usize,
) -> Vec<Slot<'a>> {
    let mut averages = ema.map(|ema| ema.chunks_mut(size));
    let parts = w.chunks_mut(size).zip(m.chunks_mut(size)).zip(v.chunks_mut(size));
    let mut next = || averages.as_mut().and_then(Iterator::next);
    parts.map(|((w, m), v)| Slot { w, m, v, ema: next() }).collect()
}

/// Cuts the latents of a state into blocks; b_pre comes as a slot of its own.
pub fn blocks<'a>(
    w: &'a mut Params,
    m: &'a mut Params,
    v: &'a mut Params,
    ema: Option<&'a mut Params>,
    latents: usize,
) -> (Vec<BlockState<'a>>, Slot<'a>) {
    let size = latents * w.d_in;
    let (mut e_enc, mut e_dec, mut e_pre, mut e_lat, mut e_threshold) = (None, None, None, None, None);
    if let Some(ema) = ema {
        e_threshold = ema.threshold.as_deref_mut();
        e_enc = Some(ema.w_enc.as_mut_slice());
        e_dec = ema.w_dec.as_deref_mut();
        (e_pre, e_lat) = (Some(ema.b_pre.as_mut_slice()), Some(ema.b_lat.as_mut_slice()));
    }
    let enc = slots(&mut w.w_enc, &mut m.w_enc, &mut v.w_enc, e_enc, size);
    let dec = match (&mut w.w_dec, &mut m.w_dec, &mut v.w_dec) {
        (Some(w), Some(m), Some(v)) => slots(w, m, v, e_dec, size),
        _ => vec![],
    };
    let lat = slots(&mut w.b_lat, &mut m.b_lat, &mut v.b_lat, e_lat, latents);
    let thresholds = match (&mut w.threshold, &mut m.threshold, &mut v.threshold) {
        (Some(w), Some(m), Some(v)) => slots(w, m, v, e_threshold, latents),
        _ => vec![],
    };
    let (mut dec, mut thresholds) = (dec.into_iter(), thresholds.into_iter());
    let blocks = enc.into_iter().zip(lat).enumerate();
    let blocks = blocks
        .map(|(i, (w_enc, b_lat))| {
            let (w_dec, threshold) = (dec.next(), thresholds.next());
            BlockState { first: i * latents, w_enc, w_dec, b_lat, threshold }
        })
        .collect();
    (blocks, Slot { w: &mut w.b_pre, m: &mut m.b_pre, v: &mut v.b_pre, ema: e_pre })
}

/// Cuts gradients that are kept (for clipping or for a look) into the same blocks.
pub fn grad_blocks(grads: &mut Params, latents: usize) -> Vec<BlockGrads<'_>> {
    let size = latents * grads.d_in;
    let mut dec = grads.w_dec.as_mut().map(|t| t.chunks_mut(size));
    let mut threshold = grads.threshold.as_mut().map(|t| t.chunks_mut(latents));
    let parts = grads.w_enc.chunks_mut(size).zip(grads.b_lat.chunks_mut(latents));
    parts
        .map(|(w_enc, b_lat)| BlockGrads {
            w_enc,
            w_dec: dec.as_mut().and_then(Iterator::next),
            b_lat,
            threshold: threshold.as_mut().and_then(Iterator::next),
        })
        .collect()
}

/// Cuts weights into the same blocks.
pub fn weight_blocks(params: &Params, latents: usize) -> Vec<BlockWeights<'_>> {
    let size = latents * params.d_in;
    let mut dec = params.w_dec.as_ref().map(|t| t.chunks(size));
    let mut threshold = params.threshold.as_ref().map(|t| t.chunks(latents));
    let parts = params.w_enc.chunks(size).enumerate();
    parts
        .map(|(i, w_enc)| BlockWeights {
            first: i * latents,
            w_enc,
            w_dec: dec.as_mut().and_then(Iterator::next),
            threshold: threshold.as_mut().and_then(Iterator::next),
        })
        .collect()
}
