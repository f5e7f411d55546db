//! A pass laid open for tests: what the sparse and dense parts of the fast path amount to.

use super::block::{latents_in_block, weight_blocks};
use super::fast::{FastCpu, ForwardPass, encode, shared};
use super::relax::Mode;
use super::sparse::ROWS;
use crate::backend::{Pass, StepPlan};
use crate::error::Result;

impl FastCpu {
    /// See [`crate::backend::Look::inspect`].
    pub(super) fn look(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        let mut pre_acts = vec![];
        self.work.batch.load(
            self.data.as_ref(),
            rows,
            self.spec.forward.row_eps(),
            &self.state.params.b_pre,
        )?;
        encode(&self.work.batch.input, &self.state.params, &mut pre_acts);
        let forward = self.forward(rows, plan)?;
        let mut stats = forward.stats;
        stats.grad_norm = self.backward(rows, plan, &forward, true);
        let (n, d, m) = (rows.len(), self.state.params.d_in, self.state.params.n_latents);
        let (code, grad_pre_acts) = self.dense_view(plan, &forward, n, m);
        let work = &self.work;
        // y = x + (y - x), with y - x taken back from dy', which is what entries of the last segment meet.
        let parts = self.spec.forward.prefixes.parts();
        let factor = |row: usize| {
            f64::from(work.batch.std[row]) * 2.0 / (n * d * parts) as f64 * self.spec.objective.loss_scale
        };
        let recon = (0..n * d).map(|i| {
            let f = factor(i / d);
            let miss =
                if f > 0.0 { f64::from(work.recon[((i / d + 1) * parts - 1) * d + i % d]) / f } else { 0.0 };
            (f64::from(work.batch.centered[i]) + f64::from(work.batch.mean[i / d]) + miss) as f32
        });
        let recon = recon.collect();
        let grads = self.work.grads.clone();
        let grads = grads.unwrap_or_else(|| self.state.params.zeros_like());
        Ok(Pass { stats, pre_acts, code, recon, grad_pre_acts, grad_code: None, grads })
    }

    /// The (N, M) code and gradient of the scores that the sparse and dense parts amount to.
    fn dense_view(
        &self,
        plan: &StepPlan<'_>,
        forward: &ForwardPass,
        n: usize,
        m: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let work = &self.work;
        let mut code = vec![0.0f32; n * m];
        let mut grad = vec![0.0f32; n * m];
        if forward.mode != Mode::Hard {
            let shared = shared(work, n, &self.state.params, &self.spec, plan, forward);
            for block in weight_blocks(&self.state.params, latents_in_block(forward.mode)) {
                let scores = &mut vec![];
                let count = block.w_enc.len() / self.state.params.d_in;
                shared.score_gradients(&block, scores, None);
                for (row, part) in scores.chunks_exact(count).enumerate() {
                    grad[row * m + block.first..][..count].copy_from_slice(part);
                }
            }
        }
        for (i, code) in code.iter_mut().enumerate() {
            if forward.mode == Mode::Dense {
                let soft = work.softmax[i / m];
                *code = (1.0 - plan.alpha) as f32 * soft.sum * soft.inv_total * work.scores[i];
            }
            if forward.mode == Mode::DenseCode {
                *code = work.code[i];
            }
        }
        let all = work.codes.iter().map(|c| (c, true)).chain(work.aux_codes.iter().map(|c| (c, false)));
        for (c, (chunk, main)) in all.enumerate() {
            let first = (c % work.codes.len()) * ROWS;
            for i in 0..chunk.ends.len() {
                for entry in chunk.row(i) {
                    let place = (first + i) * m + chunk.index[entry] as usize;
                    if main {
                        code[place] += chunk.value[entry];
                    }
                    if !main || forward.mode == Mode::Hard {
                        grad[place] += chunk.grad[entry];
                    }
                }
            }
        }
        (code, grad)
    }
}
