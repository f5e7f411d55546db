//! Plain loops with float64 sums, one after the other as the formulas of [`crate::backend`] stand. Slow on
//! purpose: everything else is checked against this file, and this file against golden tensors, hand-worked
//! cases and finite differences.

mod gates;

use crate::backend::{
    Backend, Codes, EvalSums, Look, Pass, Phase, StepPlan, StepStats, check_same_kind, ema_decay,
};
use crate::error::Result;
use crate::model::{Fill, Params, TrainState, Weights};
use crate::noise::gumbel_f64;
use crate::rows::RowSource;
use crate::spec::{Inference, ModelSpec, Relaxation};
use std::borrow::Cow;
use std::sync::Arc;

/// The reference backend.
pub struct Reference {
    data: Arc<dyn RowSource>,
    spec: ModelSpec,
    state: TrainState,
    /// Statistics of steps that were not collected yet.
    done: Vec<StepStats>,
    /// A loss was not finite: nothing is changed any more.
    stopped: bool,
}

/// A float64 copy of the weights, decoder always written out.
struct Wide {
    w_enc: Vec<f64>,
    w_dec: Vec<f64>,
    b_pre: Vec<f64>,
    b_lat: Vec<f64>,
}

/// One row through the model: what the backward pass needs of it.
struct RowPass {
    x: Vec<f64>,
    x_norm: Vec<f64>,
    std: f64,
    z: Vec<f64>,
    soft: Option<Soft>,
    gates: Option<Gated>,
    /// True for the k largest z.
    top: Vec<bool>,
    h: Vec<f64>,
    y: Vec<f64>,
    aux: Vec<f64>,
    aux_recon: Vec<f64>,
}

/// A row's candidates: latents, weights, and the slopes of the weights (`slope[i][j] = d w_i / d r_j`).
struct Gated {
    latents: Vec<usize>,
    weights: Vec<f64>,
    slope: Vec<Vec<f64>>,
}

struct Soft {
    p: Vec<f64>,
    sum: f64,
}

/// Indices of the `k` largest values; the lowest index wins a tie. NaN counts as largest, so that it shows.
pub fn top_k(values: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    let rank = |v: f64| if v.is_nan() { f64::INFINITY } else { v };
    order.sort_by(|&a, &b| rank(values[b]).total_cmp(&rank(values[a])).then(a.cmp(&b)));
    order.truncate(k);
    order
}

fn relu(z: f64) -> f64 {
    if z > 0.0 || z.is_nan() { z } else { 0.0 }
}

impl Reference {
    /// A backend over `data` that goes on from `state`.
    pub fn new(data: Arc<dyn RowSource>, spec: ModelSpec, state: TrainState) -> Self {
        Self { data, spec, state, done: vec![], stopped: false }
    }

    fn wide(params: &Params) -> Wide {
        let f = |t: &[f32]| t.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        Wide {
            w_enc: f(&params.w_enc),
            w_dec: f(params.decoder()),
            b_pre: f(&params.b_pre),
            b_lat: f(&params.b_lat),
        }
    }

    /// `x`, its normalised form, mean and standard deviation.
    fn normalized(&self, row: u32) -> Result<(Vec<f64>, Vec<f64>, f64, f64)> {
        let d = self.data.d_in();
        let mut stored = vec![0.0f32; d];
        self.data.read(&[row], &mut stored)?;
        let x: Vec<f64> = stored.into_iter().map(f64::from).collect();
        if !self.spec.forward.normalize {
            return Ok((x.clone(), x, 0.0, 1.0));
        }
        let mean = x.iter().sum::<f64>() / d as f64;
        let squares: f64 = x.iter().map(|v| (v - mean).powi(2)).sum();
        let std = (squares / (d as f64 - 1.0)).sqrt();
        let x_norm = x.iter().map(|v| (v - mean) / (std + self.spec.forward.norm_eps)).collect();
        Ok((x, x_norm, mean, std))
    }

    fn scores(&self, w: &Wide, x_norm: &[f64]) -> Vec<f64> {
        let d = x_norm.len();
        let one = |(j, bias): (usize, &f64)| {
            let weights = &w.w_enc[j * d..(j + 1) * d];
            let dot: f64 = (0..d).map(|i| (x_norm[i] - w.b_pre[i]) * weights[i]).sum();
            dot + bias
        };
        w.b_lat.iter().enumerate().map(one).collect()
    }

    /// The k latents with a place in the code.
    fn top(&self, z: &[f64]) -> Vec<usize> {
        let ranks: Vec<f64> = z.iter().map(|&z| self.spec.forward.activation.rank(z)).collect();
        top_k(&ranks, self.spec.forward.k)
    }

    /// The value of a score that has a place.
    fn value(&self, z: f64) -> f64 {
        self.spec.forward.activation.value(z)
    }

    /// The code outside training (M).
    fn inference_code(&self, z: &[f64]) -> Vec<f64> {
        let mut h = vec![0.0; z.len()];
        match self.spec.forward.inference {
            Inference::Topk => self.top(z).into_iter().for_each(|j| h[j] = self.value(z[j])),
            Inference::Relu => (0..z.len()).for_each(|j| h[j] = relu(z[j])),
        }
        h
    }

    /// `code W_dec` (D).
    fn decode(w: &Wide, code: &[f64], d: usize) -> Vec<f64> {
        let mut y = vec![0.0; d];
        for (j, &h) in code.iter().enumerate() {
            if h != 0.0 {
                for i in 0..d {
                    y[i] += h * w.w_dec[j * d + i];
                }
            }
        }
        y
    }

    fn forward(&self, w: &Wide, n: usize, row: u32, plan: &StepPlan<'_>) -> Result<RowPass> {
        let (d, m) = (self.data.d_in(), w.b_lat.len());
        let (x, x_norm, mean, std) = self.normalized(row)?;
        let z = self.scores(w, &x_norm);
        let mut top = vec![false; m];
        for j in self.top(&z) {
            top[j] = true;
        }
        let phase = self.spec.phase(plan);
        let gates = phase.has_candidates().then(|| self.gates(&z, plan));
        let soft = (phase == Phase::Softmax).then(|| {
            let noise = |j| gumbel_f64(plan.noise.uniform(plan.step, n, j, m));
            let e: Vec<f64> = (0..m).map(|j| (relu(z[j]) + noise(j)) / plan.tau).collect();
            let max = e.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let exp: Vec<f64> = e.iter().map(|v| (v - max).exp()).collect();
            let total: f64 = exp.iter().sum();
            Soft { p: exp.iter().map(|v| v / total).collect(), sum: z.iter().map(|&v| relu(v)).sum() }
        });
        let h: Vec<f64> = (0..m)
            .map(|j| {
                let hard = if top[j] { self.value(z[j]) } else { 0.0 };
                match (&soft, &gates) {
                    (Some(s), _) => (1.0 - plan.alpha) * s.p[j] * s.sum + plan.alpha * hard,
                    (_, Some(gates)) => relu(z[j]) * self.direct(gates, &top, j, plan),
                    _ => hard,
                }
            })
            .collect();
        let recon = Self::decode(w, &h, d);
        let y = (0..d).map(|i| (recon[i] + w.b_pre[i]) * std + mean).collect();
        let aux = self.aux_code(&z);
        let aux_recon = Self::decode(w, &aux, d);
        Ok(RowPass { x, x_norm, std, z, soft, gates, top, h, y, aux, aux_recon })
    }

    /// The candidates of a row.
    fn gates(&self, z: &[f64], plan: &StepPlan<'_>) -> Gated {
        let mut latents = top_k(z, self.spec.candidates(plan));
        latents.retain(|&j| z[j] > 0.0 || z[j].is_nan());
        let r: Vec<f64> = latents.iter().map(|&j| z[j]).collect();
        let (weights, slope) = gates::weights(self.spec.warmup.relaxation, self.spec.forward.k, plan.tau, &r);
        Gated { latents, weights, slope }
    }

    /// The factor D of a latent's score in a code of candidates.
    fn direct(&self, gates: &Gated, top: &[bool], j: usize, plan: &StepPlan<'_>) -> f64 {
        let Some(i) = gates.latents.iter().position(|&l| l == j) else { return 0.0 };
        if self.spec.warmup.relaxation == Relaxation::AnnealK {
            return 1.0;
        }
        (1.0 - plan.alpha) * gates.weights[i] + if top[j] { plan.alpha } else { 0.0 }
    }

    /// The `aux_k` largest positive scores among dead latents (M values).
    fn aux_code(&self, z: &[f64]) -> Vec<f64> {
        let mut code = vec![0.0; z.len()];
        if self.spec.objective.aux_k > 0 {
            let dead = |j: usize| self.state.idle_rows[j] >= self.spec.objective.dead_after;
            let masked: Vec<f64> =
                (0..z.len()).map(|j| if dead(j) { self.value(z[j]) } else { 0.0 }).collect();
            let ranks: Vec<f64> = masked.iter().map(|&z| self.spec.forward.activation.rank(z)).collect();
            for j in top_k(&ranks, self.spec.objective.aux_k) {
                code[j] = masked[j];
            }
        }
        code
    }

    fn pass(&self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        let params = &self.state.params;
        let (n_rows, d, m) = (rows.len(), params.d_in, params.n_latents);
        let w = Self::wide(params);
        let passes: Vec<RowPass> =
            rows.iter().enumerate().map(|(n, &row)| self.forward(&w, n, row, plan)).collect::<Result<_>>()?;
        let mut grads = Wide {
            w_enc: vec![0.0; m * d],
            w_dec: vec![0.0; m * d],
            b_pre: vec![0.0; d],
            b_lat: vec![0.0; m],
        };
        let (mut all_dh, mut all_dz) = (vec![], vec![]);
        let (mut mse, mut l1, mut aux) = (0.0, 0.0, 0.0);
        let per_value = 1.0 / (n_rows * d) as f64;
        for pass in &passes {
            mse += pass.y.iter().zip(&pass.x).map(|(y, x)| (y - x).powi(2)).sum::<f64>() * per_value;
            l1 += pass.h.iter().map(|h| h.abs()).sum::<f64>() / (n_rows * m) as f64;
            let (dh, dz, aux_loss) = self.backward(&w, pass, plan, n_rows, &mut grads);
            aux += aux_loss;
            all_dh.extend(dh);
            all_dz.extend(dz);
        }
        // The part of b_pre that goes through the encoder.
        for j in 0..m {
            for i in 0..d {
                grads.b_pre[i] -= grads.b_lat[j] * w.w_enc[j * d + i];
            }
        }
        let narrow = |t: &[f64]| t.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        // A score of minus infinity would be skipped by relu; it is as much a failure as the others.
        let finite = passes.iter().all(|pass| pass.z.iter().all(|z| z.is_finite()));
        let loss = self.spec.loss(plan, mse, l1, aux);
        let tied = params.tied();
        if tied {
            for (enc, dec) in grads.w_enc.iter_mut().zip(&grads.w_dec) {
                *enc += dec;
            }
        }
        if !self.spec.optimizer.train_pre_bias {
            grads.b_pre.fill(0.0);
        }
        let rows_of =
            |f: fn(&RowPass) -> &Vec<f64>| -> Vec<f32> { passes.iter().flat_map(|p| narrow(f(p))).collect() };
        Ok(Pass {
            stats: StepStats {
                loss: if finite { loss } else { f64::NAN },
                mse,
                l1,
                aux,
                grad_norm: f64::NAN,
            },
            pre_acts: rows_of(|p| &p.z),
            code: rows_of(|p| &p.h),
            recon: rows_of(|p| &p.y),
            grad_pre_acts: narrow(&all_dz),
            grad_code: Some(narrow(&all_dh)),
            grads: Params {
                d_in: d,
                n_latents: m,
                w_enc: narrow(&grads.w_enc),
                w_dec: (!tied).then(|| narrow(&grads.w_dec)),
                b_pre: narrow(&grads.b_pre),
                b_lat: narrow(&grads.b_lat),
            },
        })
    }

    /// Adds one row's gradients to `grads`; returns dh (M), dz (M) and the row's share of the auxiliary loss.
    fn backward(
        &self,
        w: &Wide,
        pass: &RowPass,
        plan: &StepPlan<'_>,
        n_rows: usize,
        grads: &mut Wide,
    ) -> (Vec<f64>, Vec<f64>, f64) {
        let (d, m) = (pass.x.len(), pass.z.len());
        let per_value = 1.0 / (n_rows * d) as f64;
        let factor = self.spec.objective.loss_scale * pass.std * per_value;
        let dy: Vec<f64> = (0..d).map(|i| 2.0 * (pass.y[i] - pass.x[i]) * factor).collect();
        let back = |dy: &[f64], j: usize| -> f64 { (0..d).map(|i| dy[i] * w.w_dec[j * d + i]).sum() };
        let sparsity = plan.l1 / (n_rows * m) as f64;
        let dh: Vec<f64> = (0..m)
            .map(|j| back(&dy, j) + if pass.h[j] != 0.0 { sparsity * pass.h[j].signum() } else { 0.0 })
            .collect();
        let mut dz: Vec<f64> =
            (0..m).map(|j| if pass.top[j] && self.value(pass.z[j]) != 0.0 { dh[j] } else { 0.0 }).collect();
        if let Some(soft) = &pass.soft {
            let rest = 1.0 - plan.alpha;
            let c: f64 = (0..m).map(|j| soft.p[j] * rest * dh[j]).sum();
            for j in 0..m {
                let through_p = soft.p[j] * soft.sum * (rest * dh[j] - c) / plan.tau;
                let hard = plan.alpha * dz[j];
                dz[j] = if pass.z[j] > 0.0 { through_p + c + hard } else { 0.0 };
            }
        }
        if let Some(gates) = &pass.gates {
            let v = |l: usize| (1.0 - plan.alpha) * relu(pass.z[l]) * dh[l];
            for j in 0..m {
                dz[j] = dh[j] * self.direct(gates, &pass.top, j, plan);
            }
            for (at, &j) in gates.latents.iter().enumerate() {
                let through = |(i, &l): (usize, &usize)| gates.slope[i][at] * v(l);
                dz[j] += gates.latents.iter().enumerate().map(through).sum::<f64>();
            }
        }
        for j in 0..m {
            for i in 0..d {
                grads.w_dec[j * d + i] += pass.h[j] * dy[i];
            }
        }
        let aux_loss = self.aux_backward(w, pass, per_value, &mut dz, grads);
        for j in 0..m {
            for i in 0..d {
                grads.w_enc[j * d + i] += dz[j] * (pass.x_norm[i] - w.b_pre[i]);
            }
            grads.b_lat[j] += dz[j];
        }
        for i in 0..d {
            grads.b_pre[i] += dy[i];
        }
        (dh, dz, aux_loss)
    }

    fn aux_backward(
        &self,
        w: &Wide,
        pass: &RowPass,
        per_value: f64,
        dz: &mut [f64],
        grads: &mut Wide,
    ) -> f64 {
        let dead = |&idle: &u32| idle >= self.spec.objective.dead_after;
        if self.spec.objective.aux_k == 0 || !self.state.idle_rows.iter().any(dead) {
            return 0.0;
        }
        let d = pass.x.len();
        let miss: Vec<f64> = (0..d).map(|i| pass.aux_recon[i] * pass.std - (pass.x[i] - pass.y[i])).collect();
        let scale =
            self.spec.objective.loss_scale * self.spec.objective.aux_coef * 2.0 * pass.std * per_value;
        for (j, &h) in pass.aux.iter().enumerate() {
            if h != 0.0 {
                for i in 0..d {
                    dz[j] += scale * miss[i] * w.w_dec[j * d + i];
                    grads.w_dec[j * d + i] += scale * miss[i] * h;
                }
            }
        }
        miss.iter().map(|v| v * v).sum::<f64>() * per_value
    }

    /// Clip, Adam, decay, unit norm, average: on one tensor after the other.
    fn update(&mut self, pass: &Pass, plan: &StepPlan<'_>) -> f64 {
        let mut grads = pass.grads.clone();
        let (d, unit) = (grads.d_in, self.spec.optimizer.unit_norm_decoder);
        if unit {
            let decoder = self.state.params.decoder().to_vec();
            let rows = grads.w_dec.as_mut().unwrap_or(&mut grads.w_enc).chunks_exact_mut(d);
            for (grad, weight) in rows.zip(decoder.chunks_exact(d)) {
                let along: f64 = grad.iter().zip(weight).map(|(&g, &w)| f64::from(g) * f64::from(w)).sum();
                for (g, &w) in grad.iter_mut().zip(weight) {
                    *g = (f64::from(*g) - along * f64::from(w)) as f32;
                }
            }
        }
        let squares = |t: &[f32]| t.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        let norm = grads.tensors().iter().map(|(_, _, t)| squares(t)).sum::<f64>().sqrt();
        let clip = self.spec.optimizer.clip_norm.map_or(1.0, |max| (max / (norm + 1e-6)).min(1.0));
        let spec = self.spec.clone();
        let t = (plan.step + 1) as i32;
        let (fix1, fix2) = (1.0 - spec.optimizer.beta1.powi(t), 1.0 - spec.optimizer.beta2.powi(t));
        let state = &mut self.state;
        let tensors = state.params.tensors_mut().into_iter().zip(grads.tensors());
        let moments = state.m.tensors_mut().into_iter().zip(state.v.tensors_mut());
        for (((name, weights), (_, _, grads)), ((_, ms), (_, vs))) in tensors.zip(moments) {
            if name == "b_pre" && !spec.optimizer.train_pre_bias {
                continue;
            }
            let decay = if name.starts_with("w_") { plan.lr * spec.optimizer.weight_decay } else { 0.0 };
            for i in 0..weights.len() {
                let g = f64::from(grads[i]) * clip;
                let m = spec.optimizer.beta1 * f64::from(ms[i]) + (1.0 - spec.optimizer.beta1) * g;
                let v = spec.optimizer.beta2 * f64::from(vs[i]) + (1.0 - spec.optimizer.beta2) * g * g;
                let old = f64::from(weights[i]);
                let step = plan.lr * (m / fix1) / ((v / fix2).sqrt() + spec.optimizer.adam_eps);
                (ms[i], vs[i]) = (m as f32, v as f32);
                weights[i] = (old - decay * old - step) as f32;
            }
        }
        if unit {
            let params = &mut state.params;
            for row in params.w_dec.as_mut().unwrap_or(&mut params.w_enc).chunks_exact_mut(d) {
                crate::model::normalize(row);
            }
        }
        if let (Some(ema), Some(decay)) = (&mut state.ema, spec.optimizer.ema) {
            let keep = ema_decay(decay, plan.step);
            for ((_, average), (_, _, new)) in ema.tensors_mut().into_iter().zip(state.params.tensors()) {
                for (a, &w) in average.iter_mut().zip(new) {
                    *a = (keep * f64::from(*a) + (1.0 - keep) * f64::from(w)) as f32;
                }
            }
            if unit {
                ema.w_dec
                    .as_mut()
                    .unwrap_or(&mut ema.w_enc)
                    .chunks_exact_mut(d)
                    .for_each(crate::model::normalize);
            }
        }
        norm
    }

    fn count_idle(&mut self, pass: &Pass, n_rows: usize) {
        let m = self.state.params.n_latents;
        let mut fired = vec![false; m];
        for z in pass.pre_acts.chunks_exact(m) {
            let z: Vec<f64> = z.iter().map(|&v| f64::from(v)).collect();
            for j in self.top(&z) {
                fired[j] |= self.value(z[j]) != 0.0;
            }
        }
        for (idle, fired) in self.state.idle_rows.iter_mut().zip(fired) {
            *idle = if fired { 0 } else { idle.saturating_add(n_rows as u32) };
        }
    }
}

impl Look for Reference {
    fn inspect(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        self.pass(rows, plan)
    }
}

impl Backend for Reference {
    fn device(&self) -> String {
        "cpu".into()
    }

    fn step(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<()> {
        let pass = self.pass(rows, plan)?;
        let mut stats = pass.stats;
        self.stopped |= !stats.loss.is_finite();
        if !self.stopped {
            stats.grad_norm = self.update(&pass, plan);
            self.count_idle(&pass, rows.len());
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
        let w = Self::wide(params);
        let d = params.d_in;
        let mut sums = EvalSums::default();
        for &row in rows {
            check()?;
            let (x, x_norm, mean, std) = self.normalized(row)?;
            let z = self.scores(&w, &x_norm);
            let h = self.inference_code(&z);
            let recon = Self::decode(&w, &h, d);
            let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
            for i in 0..d {
                let y = (recon[i] + w.b_pre[i]) * std + mean;
                sums.squared += (y - x[i]).powi(2);
                sums.absolute += (y - x[i]).abs();
                (xx, yy, xy) = (xx + x[i] * x[i], yy + y * y, xy + x[i] * y);
            }
            if !z.iter().all(|z| z.is_finite()) {
                sums.squared = f64::NAN;
            }
            sums.cosine += if xx > 0.0 && yy > 0.0 { xy / (xx * yy).sqrt() } else { 0.0 };
            for (j, &h) in h.iter().enumerate() {
                if h != 0.0 {
                    sums.active += 1;
                    fired[j] += 1;
                }
            }
            sums.rows += 1;
        }
        Ok(sums)
    }

    fn encode(&mut self, rows: &[u32], weights: Weights) -> Result<Codes> {
        let w = Self::wide(self.state.weights(weights));
        let mut codes = Codes::default();
        for &row in rows {
            let z = self.scores(&w, &self.normalized(row)?.1);
            let active = self.inference_code(&z).into_iter().enumerate().filter(|(_, h)| *h != 0.0);
            let finite = z.iter().all(|z| z.is_finite());
            codes.push_row(active.map(|(j, h)| (j as u32, h as f32)), finite);
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
