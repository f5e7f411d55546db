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

use super::block::{Pool, StepInputs, StepOptimizer, blocks, grad_blocks, latents_in_block, weight_blocks};
use super::evaluate::{encode_rows, evaluate_rows};
use super::gates::GateRule;
use super::linalg::{View, parallel_product};
use super::norm::Batch;
use super::relax::{DENSEST, Mode, RowScratch, RowSoftmax, add_support, candidate_row, hard_row, soften_row};
use super::rows::{RowMath, RowSums};
use super::simd;
use super::sparse::{ByLatent, CodeChunk, ROWS};
use crate::backend::{Backend, Codes, EvalSums, Look, Pass, Phase, StepPlan, StepStats, check_same_kind};
use crate::error::Result;
use crate::model::{Fill, Params, TrainState, Weights};
use crate::rows::RowSource;
use crate::spec::ModelSpec;
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
    /// (N, D): y', then dy'.
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
        make_room(&mut work.recon, n * d);
        let chunks = n.div_ceil(ROWS);
        work.codes.resize_with(chunks, CodeChunk::default);
        let dead = dead_latents(&self.spec, &self.state.idle_rows);
        let has_aux = !dead.is_empty();
        work.aux_codes.resize_with(if has_aux { chunks } else { 0 }, CodeChunk::default);
        let finite = select_codes(work, &self.spec, plan, m, &dead);
        let mode = soften(work, &self.spec, plan, n, m);
        work.mode = Some(mode);
        if mode == Mode::Dense {
            make_room(&mut work.dense, n * d);
            let e = View::new(&work.scores, n, m, m);
            let decoder = View::new(params.decoder(), m, d, d);
            parallel_product(&mut work.dense, e, decoder, (256, 256));
        }
        let sums = self.reconstruct(plan, mode, has_aux);
        let values = (n * d) as f64;
        let mut stats = StepStats {
            mse: sums.0 / values,
            l1: sums.1 / (n * m) as f64,
            aux: sums.2 / values,
            grad_norm: f64::NAN,
            loss: 0.0,
        };
        stats.loss = self.spec.loss(plan, stats.mse, stats.l1, stats.aux);
        if !finite {
            stats.loss = f64::NAN;
        }
        Ok(ForwardPass { mode, stats, has_aux })
    }

    /// Reconstruction, loss and the gradients of the sparse entries, row by row.
    fn reconstruct(&mut self, plan: &StepPlan<'_>, mode: Mode, has_aux: bool) -> RowSums {
        let params = &self.state.params;
        let (d, m) = (params.d_in, params.n_latents);
        let Work { batch, scores, recon, dense, aux_recon, softmax, c, codes, aux_codes, .. } =
            &mut self.work;
        let n = batch.std.len();
        let dense_active = mode == Mode::Dense;
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
            sparsity: (plan.l1 / (n * m) as f64) as f32,
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
            .zip(recon.par_chunks_mut(ROWS * d))
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
            let optimizer = StepOptimizer::new(&spec, plan, clip);
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
        let shared = shared(work, n, &state.params, plan, forward);
        let optimizer = StepOptimizer::new(spec, plan, 1.0);
        let latents = latents_in_block(forward.mode);
        let (states, mut pre) =
            blocks(&mut state.params, &mut state.m, &mut state.v, state.ema.as_mut(), latents);
        let parts: Vec<Vec<f32>> = states
            .into_par_iter()
            .map(|mut block| work.pool.with(|scratch| optimizer.fused(&shared, &mut block, scratch)))
            .collect();
        if spec.optimizer.train_pre_bias {
            let grad = pre_bias_gradient(shared.grad_recon, &parts, d);
            optimizer.bias(&mut pre, &grad);
        }
    }

    /// Gradients of all parameters into `work.grads`.
    fn store_gradients(&mut self, n: usize, plan: &StepPlan<'_>, forward: &ForwardPass, unit_norm: bool) {
        let Self { state, work, .. } = self;
        let params = &state.params;
        let zeros = || Params::zeros(params.d_in, params.n_latents, params.tied());
        let mut grads = work.grads.take().unwrap_or_else(zeros);
        let shared = shared(work, n, params, plan, forward);
        let latents = latents_in_block(forward.mode);
        let parts: Vec<Vec<f32>> = weight_blocks(params, latents)
            .into_par_iter()
            .zip(grad_blocks(&mut grads, latents))
            .map(|(weights, mut grads)| {
                work.pool
                    .with(|scratch| shared.gradients(&weights, &mut grads, &mut scratch.scores, unit_norm))
            })
            .collect();
        grads.b_pre = pre_bias_gradient(shared.grad_recon, &parts, params.d_in);
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

/// The hard codes of all rows, and those of dead latents; false where a score is not finite.
fn select_codes(work: &mut Work, spec: &ModelSpec, plan: &StepPlan<'_>, m: usize, dead: &[u32]) -> bool {
    let scale = plan.alpha.min(1.0) as f32;
    let mut aux: Vec<Option<&mut CodeChunk>> = work.aux_codes.iter_mut().map(Some).collect();
    aux.resize_with(work.codes.len(), || None);
    work.codes
        .par_iter_mut()
        .zip(work.scores.par_chunks(ROWS * m))
        .zip(aux)
        .map_init(RowScratch::default, |scratch, ((codes, scores), aux)| {
            codes.clear();
            let mut finite = true;
            for z in scores.chunks_exact(m) {
                finite &= if spec.phase(plan).has_candidates() {
                    candidate_row(spec, plan, z, scratch, codes)
                } else {
                    hard_row(spec.forward.activation, z, spec.forward.k, scale, scratch, codes)
                };
            }
            if let Some(aux) = aux {
                aux.clear();
                let mut masked = vec![0.0; dead.len()];
                for z in scores.chunks_exact(m) {
                    dead.iter().zip(&mut masked).for_each(|(&j, out)| *out = z[j as usize]);
                    let (activation, k) = (spec.forward.activation, spec.objective.aux_k);
                    finite &= hard_row(activation, &masked, k, 1.0, scratch, aux);
                }
                aux.index.iter_mut().for_each(|j| *j = dead[*j as usize]);
            }
            finite
        })
        .reduce(|| true, |a, b| a && b)
}

/// Softmax in place of the scores, and the choice of how to go on.
fn soften(work: &mut Work, spec: &ModelSpec, plan: &StepPlan<'_>, n: usize, m: usize) -> Mode {
    work.softmax.clear();
    if spec.phase(plan) != Phase::Softmax {
        return Mode::Hard;
    }
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
    plan: &StepPlan<'_>,
    forward: &ForwardPass,
) -> StepInputs<'a> {
    StepInputs {
        n_rows: n,
        d_in: params.d_in,
        n_latents: params.n_latents,
        mode: forward.mode,
        rest: (1.0 - plan.alpha) as f32,
        tau: plan.tau as f32,
        sparsity: (plan.l1 / (n * params.n_latents) as f64) as f32,
        input: &work.batch.input,
        grad_recon: &work.recon,
        grad_scaled: &work.dense,
        exponentials: if forward.mode == Mode::Hard { &[] } else { &work.scores },
        softmax: &work.softmax,
        c: &work.c,
        entries: &work.entries,
        aux: forward.has_aux.then_some((&work.aux_entries, work.aux_recon.as_slice())),
    }
}

/// `sum_n dy' - db_lat W_enc` from the blocks' parts.
fn pre_bias_gradient(grad_recon: &[f32], parts: &[Vec<f32>], d: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; d];
    simd::add_rows(grad_recon, &mut sum);
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
