//! The CPU backend that trains. A step:
//!
//! 1. Rows are gathered and normalised (`norm`).
//! 2. `z`, the one dense product of the hard phase, into the only (N, M) buffer ([`super::linalg`]).
//! 3. Row by row: selection, softmax in place ([`super::relax`]), reconstruction, loss, dy', dh and dz of the
//!    sparse entries ([`super::sparse`]).
//! 4. Block of latents by block: gradients in scratch memory and Adam on them at once (`block`), so
//!    that no gradient of the size of the weights exists. Only clipping by the global norm needs one.
//!
//! Every sum has a fixed order: the same seed gives the same bits whatever the number of threads.

use super::above::Above;
use super::batch::BatchTop;
use super::block::{Pool, StepInputs, StepOptimizer, blocks, grad_blocks, latents_in_block, weight_blocks};
use super::evaluate::{encode_rows, evaluate_rows};
use super::gates::GateRule;
use super::linalg::{View, parallel_product};
use super::norm::Batch;
use super::relax::{DENSEST, Mode, RowScratch, RowSoftmax, add_support, candidate_row, hard_row, soften_row};
use super::rows::{RowMath, RowSums};
use super::simd;
use super::sparse::{ByLatent, CodeChunk, ROWS};
use crate::backend::calibrate::Calibration;
use crate::backend::penalty::{Sparsity, common_move};
use crate::backend::{Backend, Codes, EvalSums, Look, Pass, Phase, StepPlan, StepStats, check_same_kind};
use crate::error::Result;
use crate::model::{Fill, Params, TrainState, Weights};
use crate::rows::RowSource;
use crate::schedule::next_weight;
use crate::spec::{Activation, ModelSpec, Penalty};
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::Arc;

/// Rows evaluated at a time.
pub(super) const EVAL_ROWS: usize = 256;

/// The fast CPU backend.
pub struct FastCpu {
    pub(super) data: Arc<dyn RowSource>,
    pub(super) spec: ModelSpec,
    pub(super) state: TrainState,
    pub(super) work: Work,
    /// Statistics of steps that were not collected yet.
    done: Vec<StepStats>,
    /// A loss was not finite: nothing is changed any more.
    stopped: bool,
}

/// Buffers kept from step to step.
#[derive(Default)]
pub(super) struct Work {
    pub(super) batch: Batch,
    /// (N, M): scores, then exponentials while the softmax plays a part.
    pub(super) scores: Vec<f32>,
    /// (N, M): a code that many latents take part in.
    pub(super) code: Vec<f32>,
    /// (N, P, D): y' by each of P prefixes, then the gradient that each segment's entries meet.
    pub(super) recon: Vec<f32>,
    /// (N, D): dense decoder product, then dy' scaled for dW_dec.
    pub(super) dense: Vec<f32>,
    /// (N, D): gradient of the auxiliary reconstruction.
    pub(super) aux_recon: Vec<f32>,
    pub(super) softmax: Vec<RowSoftmax>,
    pub(super) c: Vec<f32>,
    pub(super) codes: Vec<CodeChunk>,
    pub(super) aux_codes: Vec<CodeChunk>,
    pub(super) entries: ByLatent,
    pub(super) aux_entries: ByLatent,
    /// (N) active latents of each row, where they are not the same for all.
    pub(super) active: Vec<u32>,
    /// (M) lengths of the decoder's rows, where the penalty needs them.
    pub(super) lengths: Vec<f32>,
    batch_top: BatchTop,
    pub(super) pool: Pool,
    /// Gradients of all parameters, where clipping needs them.
    pub(super) grads: Option<Params>,
    /// How the last forward pass held its code.
    pub(super) mode: Option<Mode>,
}

/// What the forward pass leaves beside the buffers.
pub(super) struct ForwardPass {
    pub(super) mode: Mode,
    pub(super) stats: StepStats,
    pub(super) has_aux: bool,
    pub(super) sparsity: Sparsity,
}

impl FastCpu {
    /// A backend over `data` that goes on from `state`.
    pub fn new(data: Arc<dyn RowSource>, spec: ModelSpec, state: TrainState) -> Self {
        Self { data, spec, state, work: Work::default(), done: vec![], stopped: false }
    }

    /// How the last training pass held its code; `None` before the first.
    pub fn last_mode(&self) -> Option<Mode> {
        self.work.mode
    }

    pub(super) fn forward(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<ForwardPass> {
        let params = &self.state.params;
        let (n, d, m) = (rows.len(), params.d_in, params.n_latents);
        let work = &mut self.work;
        work.batch.load(self.data.as_ref(), rows, self.spec.forward.row_eps(), &params.b_pre)?;
        encode(&work.batch.input, params, &mut work.scores);
        let parts = self.spec.forward.prefixes.parts();
        make_room(&mut work.recon, n * parts * d);
        let chunks = n.div_ceil(ROWS);
        work.codes.resize_with(chunks, CodeChunk::default);
        let dead = dead_latents(&self.spec, &self.state.idle_rows);
        let has_aux = !dead.is_empty();
        work.aux_codes.resize_with(if has_aux { chunks } else { 0 }, CodeChunk::default);
        let (mut mode, finite) = select_codes(work, &self.spec, plan, params);
        let finite = select_dead(work, &self.spec, m, &dead) && finite;
        if self.spec.phase(plan) == Phase::Softmax {
            mode = soften(work, plan, n, m);
        }
        work.mode = Some(mode);
        if matches!(mode, Mode::Dense | Mode::DenseCode) {
            make_room(&mut work.dense, n * d);
            let code = if mode == Mode::Dense { &work.scores } else { &work.code };
            let decoder = View::new(params.decoder(), m, d, d);
            parallel_product(&mut work.dense, View::new(code, n, m, m), decoder, (256, 256));
        }
        work.lengths.clear();
        if self.spec.objective.penalty == Penalty::L1 {
            let length = |row: &[f32]| simd::sum_of_squares(row).sqrt() as f32;
            work.lengths.par_extend(params.decoder().par_chunks_exact(d).map(length));
        }
        let active = work.active.iter().map(|&l0| u64::from(l0)).sum();
        let sparsity = Sparsity::new(&self.spec, plan, &self.state, n, active);
        let sums = self.reconstruct(plan, mode, has_aux, &sparsity);
        let values = (n * d) as f64;
        let mut stats = StepStats {
            mse: sums.0 / values,
            l1: sparsity.value(sums.1 + self.dense_code_sum(mode), &self.work.active),
            aux: sums.2 / values,
            grad_norm: f64::NAN,
            loss: 0.0,
        };
        stats.loss = self.spec.loss(sparsity.weight, stats.mse, stats.l1, stats.aux);
        if !finite {
            stats.loss = f64::NAN;
        }
        Ok(ForwardPass { mode, stats, has_aux, sparsity })
    }

    /// The part of the penalty that grows with the values of a code that is held as a matrix.
    fn dense_code_sum(&self, mode: Mode) -> f64 {
        if mode != Mode::DenseCode || self.spec.objective.penalty != Penalty::L1 {
            return 0.0;
        }
        let lengths = &self.work.lengths;
        let row = |h: &[f32]| h.iter().zip(lengths).map(|(&h, &l)| f64::from(h) * f64::from(l)).sum::<f64>();
        let rows: Vec<f64> = self.work.code.par_chunks_exact(lengths.len()).map(row).collect();
        rows.iter().sum()
    }

    /// Reconstruction, loss and the gradients of the sparse entries, row by row.
    fn reconstruct(
        &mut self,
        plan: &StepPlan<'_>,
        mode: Mode,
        has_aux: bool,
        sparsity: &Sparsity,
    ) -> RowSums {
        let params = &self.state.params;
        let d = params.d_in;
        let Work {
            batch,
            scores,
            recon,
            dense,
            aux_recon,
            softmax,
            c,
            codes,
            aux_codes,
            lengths,
            active,
            ..
        } = &mut self.work;
        let n = batch.std.len();
        let dense_active = matches!(mode, Mode::Dense | Mode::DenseCode);
        dense.resize(if dense_active { n * d } else { 0 }, 0.0);
        make_room(aux_recon, if has_aux { n * d } else { 0 });
        c.resize(n, 0.0);
        let rows = RowMath {
            params,
            decoder: params.decoder(),
            batch,
            softmax,
            scores,
            gates: (self.spec.phase(plan) == Phase::Weighed).then(|| GateRule::new(&self.spec, plan)),
            plan,
            mode,
            sparsity,
            lengths,
            active,
            ends: self.spec.forward.prefixes.ends(),
            per_value: 2.0 / (n * d) as f64 * self.spec.objective.loss_scale,
            aux_coef: self.spec.objective.aux_coef,
        };
        // A buffer that is not in use becomes empty chunks.
        let dense_chunk = if dense_active { ROWS * d } else { 1 };
        let mut dense: Vec<&mut [f32]> = dense.chunks_mut(dense_chunk).collect();
        dense.resize_with(codes.len(), || &mut []);
        let mut aux: Vec<(&mut [f32], Option<&mut CodeChunk>)> = if has_aux {
            aux_recon.chunks_mut(ROWS * d).zip(aux_codes.iter_mut().map(Some)).collect()
        } else {
            vec![]
        };
        aux.resize_with(codes.len(), || (&mut [], None));
        let sums: Vec<RowSums> = codes
            .par_iter_mut()
            .zip(recon.par_chunks_mut(ROWS * self.spec.forward.prefixes.parts() * d))
            .zip(c.par_chunks_mut(ROWS))
            .zip(dense.into_par_iter().zip(aux))
            .enumerate()
            .map(|(chunk, (((codes, recon), c), (dense, (aux_recon, aux_codes))))| {
                rows.chunk(chunk * ROWS, codes, recon, c, dense, aux_recon, aux_codes)
            })
            .collect();
        sums.iter().fold((0.0, 0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1, a.2 + b.2))
    }

    /// Gradients and update of all latents.
    pub(super) fn backward(
        &mut self,
        rows: &[u32],
        plan: &StepPlan<'_>,
        forward: &ForwardPass,
        keep: bool,
    ) -> f64 {
        let m = self.state.params.n_latents;
        self.work.entries.build(&self.work.codes, m);
        if forward.has_aux {
            self.work.aux_entries.build(&self.work.aux_codes, m);
        }
        let spec = self.spec.clone();
        if !keep && spec.optimizer.clip_norm.is_none() {
            self.fused_update(rows.len(), plan, forward);
            return f64::NAN;
        }
        // A look shows the gradient itself; the constraint is part of the update.
        self.store_gradients(rows.len(), plan, forward, !keep && spec.optimizer.unit_norm_decoder);
        let Some(grads) = self.work.grads.as_mut() else { return f64::NAN };
        if !spec.optimizer.train_pre_bias {
            grads.b_pre.fill(0.0);
        }
        let norm = global_norm(grads);
        if !keep {
            let clip = spec.optimizer.clip_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
            let common = common_move(&spec, grads.d_in, forward.sparsity.mean_l0());
            let optimizer = StepOptimizer::new(&spec, plan, clip, common);
            let d = grads.d_in;
            let state = &mut self.state;
            let b_pre = grads.b_pre.clone();
            let latents = latents_in_block(forward.mode);
            let (states, mut pre) =
                blocks(&mut state.params, &mut state.m, &mut state.v, state.ema.as_mut(), latents);
            let pairs = states.into_par_iter().zip(grad_blocks(grads, latents));
            pairs.for_each(|(mut block, grads)| optimizer.block(&mut block, &grads, d));
            if spec.optimizer.train_pre_bias {
                optimizer.bias(&mut pre, &b_pre);
            }
        }
        norm
    }

    /// Gradient and Adam in one visit of each block.
    fn fused_update(&mut self, n: usize, plan: &StepPlan<'_>, forward: &ForwardPass) {
        let Self { spec, state, work, .. } = self;
        let d = state.params.d_in;
        let shared = shared(work, n, &state.params, spec, plan, forward);
        let optimizer = StepOptimizer::new(spec, plan, 1.0, common_move(spec, d, forward.sparsity.mean_l0()));
        let latents = latents_in_block(forward.mode);
        let (states, mut pre) =
            blocks(&mut state.params, &mut state.m, &mut state.v, state.ema.as_mut(), latents);
        let parts: Vec<Vec<f32>> = states
            .into_par_iter()
            .map(|mut block| work.pool.with(|scratch| optimizer.fused(&shared, &mut block, scratch)))
            .collect();
        if spec.optimizer.train_pre_bias {
            let grad = pre_bias_gradient(&shared, &parts, d);
            optimizer.bias(&mut pre, &grad);
        }
    }

    /// Gradients of all parameters into `work.grads`.
    fn store_gradients(&mut self, n: usize, plan: &StepPlan<'_>, forward: &ForwardPass, unit_norm: bool) {
        let Self { spec, state, work, .. } = self;
        let params = &state.params;
        let mut grads = work.grads.take().unwrap_or_else(|| params.zeros_like());
        let shared = shared(work, n, params, spec, plan, forward);
        let latents = latents_in_block(forward.mode);
        let parts: Vec<Vec<f32>> = weight_blocks(params, latents)
            .into_par_iter()
            .zip(grad_blocks(&mut grads, latents))
            .map(|(weights, mut grads)| {
                work.pool
                    .with(|scratch| shared.gradients(&weights, &mut grads, &mut scratch.scores, unit_norm))
            })
            .collect();
        grads.b_pre = pre_bias_gradient(&shared, &parts, params.d_in);
        work.grads = Some(grads);
    }

    fn count_idle(&mut self, n: usize) {
        let idle = &mut self.state.idle_rows;
        idle.iter_mut().for_each(|rows| *rows = rows.saturating_add(n as u32));
        for chunk in &self.work.codes {
            chunk.fired.iter().for_each(|&j| idle[j as usize] = 0);
        }
    }
}

/// `len` values that are all written before they are read. Where there is no room, the old ones go first: buffers of the
/// size of a batch of scores are not held twice.
pub(super) fn make_room<T: Copy + Default>(values: &mut Vec<T>, len: usize) {
    if values.capacity() < len {
        *values = vec![];
        values.reserve_exact(len);
    }
    values.resize(len, T::default());
}

/// `z = input W_enc^T + b_lat` into `scores` (N, M).
pub(super) fn encode(input: &[f32], params: &Params, scores: &mut Vec<f32>) {
    let (d, m) = (params.d_in, params.n_latents);
    let n = input.len() / d;
    make_room(scores, n * m);
    let encoder = View::new(&params.w_enc, m, d, d).t();
    parallel_product(scores, View::new(input, n, d, d), encoder, (512, 256));
    scores.par_chunks_exact_mut(m).for_each(|row| simd::axpy(1.0, &params.b_lat, row));
}

/// Latents that the auxiliary loss may use now.
fn dead_latents(spec: &ModelSpec, idle: &[u32]) -> Vec<u32> {
    if spec.objective.aux_k == 0 {
        return vec![];
    }
    let numbered = idle.iter().enumerate();
    numbered.filter(|&(_, &rows)| rows >= spec.objective.dead_after).map(|(j, _)| j as u32).collect()
}

/// The codes of all rows, the hard ones where a softmax plays a part: how they are held, and false where a score is not
/// finite.
fn select_codes(work: &mut Work, spec: &ModelSpec, plan: &StepPlan<'_>, params: &Params) -> (Mode, bool) {
    let (m, k) = (params.n_latents, spec.forward.k);
    let Work { scores, codes, code, active, batch_top, .. } = work;
    active.clear();
    match spec.forward.activation {
        Activation::Topk | Activation::AbsTopk => (Mode::Hard, select_rows(codes, scores, spec, plan, m)),
        Activation::BatchTopk => {
            let n = scores.len() / m;
            (Mode::Hard, batch_top.select(scores, m, n * spec.candidates(plan), n * k, codes))
        }
        Activation::JumpRelu | Activation::Relu => {
            above(spec, params).batch(scores, m, spec.forward.prefixes.is_empty(), codes, code, active)
        }
    }
}

/// The codes of rows that each have k places; false where a score is not finite.
fn select_rows(
    codes: &mut [CodeChunk],
    scores: &[f32],
    spec: &ModelSpec,
    plan: &StepPlan<'_>,
    m: usize,
) -> bool {
    let scale = plan.alpha.min(1.0) as f32;
    codes
        .par_iter_mut()
        .zip(scores.par_chunks(ROWS * m))
        .map_init(RowScratch::default, |scratch, (codes, scores)| {
            codes.clear();
            let mut finite = true;
            for z in scores.chunks_exact(m) {
                finite &= if spec.phase(plan).has_candidates() {
                    candidate_row(spec, plan, z, scratch, codes)
                } else {
                    hard_row(spec.forward.activation, z, spec.forward.k, scale, scratch, codes)
                };
            }
            finite
        })
        .reduce(|| true, |a, b| a && b)
}

/// The codes of the dead latents, where there are any; false where a score of theirs is not finite.
fn select_dead(work: &mut Work, spec: &ModelSpec, m: usize, dead: &[u32]) -> bool {
    let Work { aux_codes, scores, .. } = work;
    aux_codes
        .par_iter_mut()
        .zip(scores.par_chunks(ROWS * m))
        .map_init(RowScratch::default, |scratch, (aux, scores)| {
            aux.clear();
            let mut finite = true;
            let mut masked = vec![0.0; dead.len()];
            for z in scores.chunks_exact(m) {
                dead.iter().zip(&mut masked).for_each(|(&j, out)| *out = z[j as usize]);
                let (activation, k) = (spec.forward.activation, spec.objective.aux_k);
                finite &= hard_row(activation, &masked, k, 1.0, scratch, aux);
            }
            aux.index.iter_mut().for_each(|j| *j = dead[*j as usize]);
            finite
        })
        .reduce(|| true, |a, b| a && b)
}

/// Softmax in place of the scores, and the choice of how to go on.
fn soften(work: &mut Work, plan: &StepPlan<'_>, n: usize, m: usize) -> Mode {
    work.softmax.clear();
    work.softmax.resize(n, RowSoftmax::default());
    work.scores.par_chunks_exact_mut(m).zip(work.softmax.par_iter_mut()).enumerate().for_each_init(
        RowScratch::default,
        |scratch, (row, (z, softmax))| {
            *softmax = soften_row(plan, row, z, scratch);
        },
    );
    let support: usize = work.softmax.iter().map(|s| s.support).sum();
    if support * DENSEST > n * m {
        return Mode::Dense;
    }
    work.codes
        .par_iter_mut()
        .zip(work.softmax.par_chunks(ROWS))
        .zip(work.scores.par_chunks(ROWS * m))
        .for_each(|((codes, softmax), e)| add_support(codes, softmax, plan.alpha, e, m));
    Mode::Support
}

pub(super) fn shared<'a>(
    work: &'a Work,
    n: usize,
    params: &Params,
    spec: &ModelSpec,
    plan: &StepPlan<'_>,
    forward: &'a ForwardPass,
) -> StepInputs<'a> {
    StepInputs {
        n_rows: n,
        d_in: params.d_in,
        n_latents: params.n_latents,
        mode: forward.mode,
        rest: (1.0 - plan.alpha) as f32,
        tau: plan.tau as f32,
        sparsity: &forward.sparsity,
        lengths: &work.lengths,
        active: &work.active,
        reach: 0.5 * spec.objective.bandwidth as f32,
        prefixes: spec.forward.prefixes,
        input: &work.batch.input,
        grad_recon: &work.recon,
        grad_scaled: &work.dense,
        scores: if forward.mode == Mode::Hard { &[] } else { &work.scores },
        code: &work.code,
        softmax: &work.softmax,
        c: &work.c,
        entries: &work.entries,
        aux: forward.has_aux.then_some((&work.aux_entries, work.aux_recon.as_slice())),
    }
}

/// Which scores are active, where thresholds or 0 decide it.
fn above<'a>(spec: &ModelSpec, params: &'a Params) -> Above<'a> {
    let thresholds = params.threshold.as_deref();
    let reach = if thresholds.is_some() { 0.5 * spec.objective.bandwidth as f32 } else { 0.0 };
    Above { thresholds, reach }
}

/// `sum_n G_1 - db_lat W_enc` from the blocks' parts.
fn pre_bias_gradient(inputs: &StepInputs<'_>, parts: &[Vec<f32>], d: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; d];
    let stride = inputs.prefixes.parts() * d;
    if stride == d {
        simd::add_rows(inputs.grad_recon, &mut sum);
    } else {
        inputs.grad_recon.chunks_exact(stride).for_each(|row| simd::add_rows(&row[..d], &mut sum));
    }
    for part in parts {
        for (s, &p) in sum.iter_mut().zip(part) {
            *s -= f64::from(p);
        }
    }
    sum.into_iter().map(|s| s as f32).collect()
}

/// Global L2 norm: float64 partial sums of fixed runs.
fn global_norm(grads: &Params) -> f64 {
    let tensor =
        |t: &[f32]| t.par_chunks(1 << 16).map(simd::sum_of_squares).collect::<Vec<f64>>().iter().sum::<f64>();
    grads.tensors().iter().map(|(_, _, t)| tensor(t)).sum::<f64>().sqrt()
}

impl Look for FastCpu {
    fn inspect(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        self.look(rows, plan)
    }
}

impl Backend for FastCpu {
    fn device(&self) -> String {
        "cpu".into()
    }

    fn step(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<()> {
        let forward = self.forward(rows, plan)?;
        let mut stats = forward.stats;
        self.stopped |= !stats.loss.is_finite();
        if !self.stopped {
            stats.grad_norm = self.backward(rows, plan, &forward, false);
            self.count_idle(rows.len());
            for carried in &mut self.state.penalty_weight {
                *carried = next_weight(*carried, forward.sparsity.mean_l0(), self.spec.forward.k);
            }
            self.state.step = plan.step + 1;
        }
        self.done.push(stats);
        Ok(())
    }

    fn collect(&mut self) -> Result<Vec<StepStats>> {
        Ok(std::mem::take(&mut self.done))
    }

    fn evaluate_checked(
        &mut self,
        rows: &[u32],
        weights: Weights,
        fired: &mut [u64],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<EvalSums> {
        let params = self.state.weights(weights);
        let mut sums = EvalSums::default();
        for rows in rows.chunks(EVAL_ROWS) {
            check()?;
            evaluate_rows(self.data.as_ref(), &self.spec, params, rows, &mut self.work, fired, &mut sums)?;
        }
        Ok(sums)
    }

    fn encode(&mut self, rows: &[u32], weights: Weights) -> Result<Codes> {
        let params = self.state.weights(weights);
        let mut codes = Codes::default();
        for rows in rows.chunks(EVAL_ROWS) {
            encode_rows(self.data.as_ref(), &self.spec, params, rows, &mut self.work, &mut codes)?;
        }
        Ok(codes)
    }

    fn calibrate(&mut self, rows: &[u32], weights: Weights) -> Result<()> {
        let Self { data, spec, state, work, .. } = self;
        let Some(mut calibration) = Calibration::new(spec, rows.len()) else { return Ok(()) };
        let params = state.weights_mut(weights);
        for rows in rows.chunks(EVAL_ROWS) {
            work.batch.load(data.as_ref(), rows, spec.forward.row_eps(), &params.b_pre)?;
            encode(&work.batch.input, params, &mut work.scores);
            calibration.add(&work.scores, params.threshold.as_deref());
        }
        calibration.apply(&mut params.b_lat, params.threshold.as_deref_mut());
        Ok(())
    }

    fn set_data(&mut self, data: Arc<dyn RowSource>) -> Result<()> {
        check_same_kind(self.data.as_ref(), data.as_ref())?;
        self.data = data;
        Ok(())
    }

    fn state(&mut self) -> Result<Cow<'_, TrainState>> {
        Ok(Cow::Borrowed(&self.state))
    }

    fn set_state(&mut self, step: u64, fill: &mut Fill<'_>) -> Result<()> {
        self.state.fill(fill)?;
        self.state.step = step;
        self.stopped = false;
        Ok(())
    }
}
