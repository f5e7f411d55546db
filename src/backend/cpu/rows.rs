//! The row pass: reconstruction, loss, and the gradients of a row's sparse entries.

use super::gates::{GateRule, Gates};
use super::norm::Batch;
use super::relax::{Mode, RowSoftmax};
use super::simd;
use super::sparse::CodeChunk;
use crate::backend::StepPlan;
use crate::backend::penalty::Sparsity;
use crate::model::Params;
use crate::spec::Penalty;
use std::ops::Range;

/// Loss parts of a few rows: squared error, penalty, auxiliary squared error.
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
    /// The penalty.
    pub sparsity: &'a Sparsity,
    /// (M) lengths of decoder rows, where the penalty needs them.
    pub lengths: &'a [f32],
    /// (N) active latents of each row.
    pub active: &'a [u32],
    /// Where the segments of latents end that reconstruct on their own; empty where there is one.
    pub ends: &'a [u32],
    /// `2 / (N D)` times the scale of the loss.
    pub per_value: f64,
    /// Weight of the auxiliary loss.
    pub aux_coef: f64,
}

impl RowMath<'_> {
    #[allow(clippy::too_many_arguments)]
    /// All of it for the rows of one chunk, the first of which is row `first` of the batch. `recon` (rows, P, D) holds nothing
    /// and becomes the gradient that the entries of each of P segments meet; `dense` holds the dense decoder product and
    /// becomes dy' scaled for dW_dec.
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
        let parts = self.ends.len().max(1);
        let mut sums = (0.0, 0.0, 0.0);
        let mut gates = Gates::default();
        for (i, recon) in recon.chunks_exact_mut(parts * d).enumerate() {
            let n = first + i;
            let segments: Vec<Range<usize>> = codes.segments(i, self.ends).collect();
            self.decode(codes, &segments, recon);
            match self.mode {
                Mode::Dense => {
                    let soft = self.softmax[n];
                    let rest = (1.0 - self.plan.alpha) as f32;
                    simd::axpy(rest * soft.sum * soft.inv_total, &dense[i * d..(i + 1) * d], recon);
                    sums.1 += f64::from(rest * soft.sum);
                }
                Mode::DenseCode => simd::axpy(1.0, &dense[i * d..(i + 1) * d], recon),
                Mode::Hard | Mode::Support => {}
            }
            sums.1 += self.code_sum(codes, codes.row(i));
            for recon in recon.chunks_exact_mut(d) {
                sums.0 += self.loss(n, recon) / parts as f64;
            }
            // From the errors of all prefixes to what each segment meets.
            for s in (1..parts).rev() {
                let (before, after) = recon.split_at_mut(s * d);
                simd::axpy(1.0, &after[..d], &mut before[(s - 1) * d..]);
            }
            if let Some(aux) = aux.as_deref_mut() {
                sums.2 +=
                    self.aux_row(n, i, &recon[(parts - 1) * d..], &mut aux_recon[i * d..(i + 1) * d], aux);
            }
            for (segment, dy) in segments.into_iter().zip(recon.chunks_exact(d)) {
                self.entry_gradients(n, i, segment, codes, dy, &mut c[i], dense);
            }
            if let Some(rule) = self.gates {
                self.gate_gradients(rule, n, i, codes, &mut gates);
            }
        }
        sums
    }

    /// The part of the penalty that grows with the values of entries.
    fn code_sum(&self, codes: &CodeChunk, entries: Range<usize>) -> f64 {
        let value = |entry: usize| f64::from(codes.value[entry].abs());
        match self.sparsity.penalty {
            Penalty::MeanCode => entries.map(value).sum(),
            Penalty::L1 => {
                entries.map(|entry| value(entry) * f64::from(self.lengths[codes.index[entry] as usize])).sum()
            }
            Penalty::L0Target | Penalty::L0 | Penalty::L0Rows => 0.0,
        }
    }

    /// The reconstructions y' of a row by each prefix.
    fn decode(&self, codes: &CodeChunk, segments: &[Range<usize>], recon: &mut [f32]) {
        let d = self.params.d_in;
        recon[..d].copy_from_slice(&self.params.b_pre);
        for (s, segment) in segments.iter().enumerate() {
            if s > 0 {
                recon.copy_within((s - 1) * d..s * d, s * d);
            }
            codes.decode(segment.clone(), self.decoder, &mut recon[s * d..(s + 1) * d]);
        }
    }

    /// Squared error of a row; `y'` becomes dy'.
    fn loss(&self, n: usize, recon: &mut [f32]) -> f64 {
        let d = recon.len();
        let (std, target) = (self.batch.std[n], &self.batch.centered[n * d..(n + 1) * d]);
        let factor = (f64::from(std) * self.per_value / self.ends.len().max(1) as f64) as f32;
        let mut squared = 0.0;
        for (y, &x) in recon.iter_mut().zip(target) {
            let miss = *y * std - x;
            squared += f64::from(miss) * f64::from(miss);
            *y = miss * factor;
        }
        squared
    }

    /// dh of some entries of the row, the constant c, and what the entries add to dz beyond c.
    #[allow(clippy::too_many_arguments)]
    fn entry_gradients(
        &self,
        n: usize,
        i: usize,
        range: Range<usize>,
        codes: &mut CodeChunk,
        dy: &[f32],
        c: &mut f32,
        dense: &mut [f32],
    ) {
        let d = dy.len();
        let rest = (1.0 - self.plan.alpha) as f32;
        let per_entry = self.sparsity.per_entry() as f32;
        let slope = self.sparsity.slope(self.active.get(n).copied().unwrap_or(0)) as f32;
        for entry in range.clone() {
            let j = codes.index[entry] as usize;
            let dh = simd::dot(dy, &self.decoder[j * d..(j + 1) * d]);
            if let Some(edge) = codes.edge.get_mut(entry) {
                let threshold = self.params.threshold.as_ref().map_or(0.0, |t| t[j]);
                *edge *= -(threshold * dh + slope) * self.sparsity.inv_bandwidth;
            }
            let length = self.lengths.get(j).copied().unwrap_or(1.0);
            codes.grad[entry] = dh + (per_entry * length).copysign(codes.value[entry]);
        }
        if self.gates.is_some() {
            return;
        }
        *c = match self.mode {
            Mode::Hard | Mode::DenseCode => 0.0,
            Mode::Dense => {
                let soft = self.softmax[n];
                let dense = &mut dense[i * d..(i + 1) * d];
                let c = rest * (simd::dot(dy, dense) * soft.inv_total + per_entry);
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
        codes.decode(codes.row(i), self.decoder, recon);
        let std = self.batch.std[n];
        // dy' = 2 (y - x) std / (N D P), so y - x = dy' / that factor; a constant row has std 0 and nothing to
        // explain. Below the normal range 1 / factor would be infinite and 0 times it NaN.
        let factor = (f64::from(std) * self.per_value / self.ends.len().max(1) as f64) as f32;
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
