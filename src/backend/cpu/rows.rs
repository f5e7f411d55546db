//! The row pass: reconstruction, loss, and the gradients of a row's sparse entries.

use super::gates::{GateRule, Gates};
use super::norm::Batch;
use super::relax::{Mode, RowSoftmax};
use super::simd;
use super::sparse::CodeChunk;
use crate::backend::StepPlan;
use crate::model::Params;

/// Loss parts of a few rows: squared error, code sum, auxiliary squared error.
pub type RowSums = (f64, f64, f64);

/// What the row pass reads.
pub struct RowMath<'a> {
    /// The weights.
    pub params: &'a Params,
    /// (M, D).
    pub decoder: &'a [f32],
    /// The rows.
    pub batch: &'a Batch,
    /// (N), where it plays a part.
    pub softmax: &'a [RowSoftmax],
    /// (N, M) scores; empty unless `gates` is set.
    pub scores: &'a [f32],
    /// How candidates are weighed, where they are.
    pub gates: Option<GateRule>,
    /// The step.
    pub plan: &'a StepPlan<'a>,
    /// How the code is held.
    pub mode: Mode,
    /// L1 weight of one active entry.
    pub sparsity: f32,
    /// `2 / (N D)`.
    pub per_value: f64,
    /// Weight of the auxiliary loss.
    pub aux_coef: f64,
}

impl RowMath<'_> {
    #[allow(clippy::too_many_arguments)]
    /// All of it for the rows of one chunk, the first of which is row `first` of the batch. `recon` holds nothing
    /// and becomes dy'; `dense` holds the dense decoder product and becomes dy' scaled for dW_dec.
    pub fn chunk(
        &self,
        first: usize,
        codes: &mut CodeChunk,
        recon: &mut [f32],
        c: &mut [f32],
        dense: &mut [f32],
        aux_recon: &mut [f32],
        mut aux: Option<&mut CodeChunk>,
    ) -> RowSums {
        let d = self.params.d_in;
        let mut sums = (0.0, 0.0, 0.0);
        let mut gates = Gates::default();
        for (i, recon) in recon.chunks_exact_mut(d).enumerate() {
            let n = first + i;
            recon.copy_from_slice(&self.params.b_pre);
            codes.decode(i, self.decoder, recon);
            let mut code_sum: f64 = codes.value[codes.row(i)].iter().map(|&v| f64::from(v.abs())).sum();
            if self.mode == Mode::Dense {
                let soft = self.softmax[n];
                let rest = (1.0 - self.plan.alpha) as f32;
                simd::axpy(rest * soft.sum * soft.inv_total, &dense[i * d..(i + 1) * d], recon);
                code_sum += f64::from(rest * soft.sum);
            }
            sums.1 += code_sum;
            sums.0 += self.loss(n, recon);
            if let Some(aux) = aux.as_deref_mut() {
                sums.2 += self.aux_row(n, i, recon, &mut aux_recon[i * d..(i + 1) * d], aux);
            }
            self.entry_gradients(n, i, codes, recon, &mut c[i], dense);
            if let Some(rule) = self.gates {
                self.gate_gradients(rule, n, i, codes, &mut gates);
            }
        }
        sums
    }

    /// Squared error of a row; `y'` becomes dy'.
    fn loss(&self, n: usize, recon: &mut [f32]) -> f64 {
        let d = recon.len();
        let (std, target) = (self.batch.std[n], &self.batch.centered[n * d..(n + 1) * d]);
        let factor = (f64::from(std) * self.per_value) as f32;
        let mut squared = 0.0;
        for (y, &x) in recon.iter_mut().zip(target) {
            let miss = *y * std - x;
            squared += f64::from(miss) * f64::from(miss);
            *y = miss * factor;
        }
        squared
    }

    /// dh of the row's entries, the constant c, and what the entries add to dz beyond c.
    fn entry_gradients(
        &self,
        n: usize,
        i: usize,
        codes: &mut CodeChunk,
        dy: &[f32],
        c: &mut f32,
        dense: &mut [f32],
    ) {
        let d = dy.len();
        let rest = (1.0 - self.plan.alpha) as f32;
        let range = codes.row(i);
        for entry in range.clone() {
            let j = codes.index[entry] as usize;
            codes.grad[entry] =
                simd::dot(dy, &self.decoder[j * d..(j + 1) * d]) + self.sparsity.copysign(codes.value[entry]);
        }
        if self.gates.is_some() {
            return;
        }
        *c = match self.mode {
            Mode::Hard => 0.0,
            Mode::Dense => {
                let soft = self.softmax[n];
                let dense = &mut dense[i * d..(i + 1) * d];
                let c = rest * (simd::dot(dy, dense) * soft.inv_total + self.sparsity);
                let scale = rest * soft.sum * soft.inv_total;
                dense.iter_mut().zip(dy).for_each(|(out, &dy)| *out = scale * dy);
                c
            }
            Mode::Support => {
                let parts = codes.share[range.clone()].iter().zip(&codes.grad[range.clone()]);
                rest * parts.map(|(p, dh)| p.abs() * dh).sum::<f32>()
            }
        };
        for entry in range {
            let dh = codes.grad[entry];
            let share = codes.share[entry];
            let soft = if share > 0.0 {
                share * self.softmax[n].sum * (rest * dh - *c) / self.plan.tau as f32
            } else {
                0.0
            };
            codes.grad[entry] = soft + codes.direct[entry] * dh;
        }
    }

    /// dh of the row's candidates becomes dz.
    fn gate_gradients(&self, rule: GateRule, n: usize, i: usize, codes: &mut CodeChunk, gates: &mut Gates) {
        let m = self.params.n_latents;
        let range = codes.row(i);
        let z = &self.scores[n * m..(n + 1) * m];
        let index = &codes.index[range.clone()];
        let candidates: Vec<(u32, f32)> = index.iter().map(|&j| (j, z[j as usize])).collect();
        // Weighed a second time: cheaper than keeping the slopes.
        gates.forward(rule, candidates.iter().map(|&(_, z)| z));
        let rest = 1.0 - self.plan.alpha;
        let grads = codes.grad[range.clone()].iter();
        let v: Vec<f64> =
            grads.zip(&candidates).map(|(&dh, &(_, r))| rest * f64::from(r) * f64::from(dh)).collect();
        let through = gates.backward(rule, &v);
        for ((dh, &direct), through) in
            codes.grad[range.clone()].iter_mut().zip(&codes.direct[range]).zip(through)
        {
            *dh = direct * *dh + *through as f32;
        }
    }

    /// The auxiliary loss of a row: its gradient into `recon` and the entries; returns its squared error.
    fn aux_row(&self, n: usize, i: usize, dy: &[f32], recon: &mut [f32], codes: &mut CodeChunk) -> f64 {
        let d = dy.len();
        recon.fill(0.0);
        codes.decode(i, self.decoder, recon);
        let std = self.batch.std[n];
        // dy' = 2 (y - x) std / (N D), so y - x = dy' / that factor; a constant row has std 0 and nothing to
        // explain. Below the normal range 1 / factor would be infinite and 0 times it NaN.
        let factor = (f64::from(std) * self.per_value) as f32;
        let back = if factor >= f32::MIN_POSITIVE { 1.0 / factor } else { 0.0 };
        let scale = (self.aux_coef * f64::from(std) * self.per_value) as f32;
        let mut squared = 0.0;
        for (y, &dy) in recon.iter_mut().zip(dy) {
            let miss = *y * std + dy * back;
            squared += f64::from(miss) * f64::from(miss);
            *y = miss * scale;
        }
        for entry in codes.row(i) {
            let j = codes.index[entry] as usize;
            codes.grad[entry] = simd::dot(recon, &self.decoder[j * d..(j + 1) * d]);
        }
        squared
    }
}
