//! Plain loops with float64 sums, one after the other as the formulas of [`crate::backend`] stand. Slow on
//! purpose: everything else is checked against this file, and this file against golden tensors, hand-worked
//! cases and finite differences.

mod gates;

use crate::backend::penalty::common_move;
use crate::backend::{
    Backend, Codes, EvalSums, Look, Pass, Phase, StepPlan, StepStats, check_same_kind, ema_decay,
};
use crate::error::Result;
use crate::model::{Fill, Params, TrainState, Weights};
use crate::noise::gumbel_f64;
use crate::rows::RowSource;
use crate::schedule::{next_weight, seeking_weight};
use crate::spec::{Activation, Inference, ModelSpec, Penalty, Relaxation};
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
    /// Latents that fired in the last pass (M).
    fired: Vec<bool>,
    /// Mean number of active latents in the last pass.
    l0: f64,
}

/// A float64 copy of the weights, decoder always written out.
struct Wide {
    w_enc: Vec<f64>,
    w_dec: Vec<f64>,
    b_pre: Vec<f64>,
    b_lat: Vec<f64>,
    /// Zeros where the model has none.
    threshold: Vec<f64>,
}

/// One row through the model: what the backward pass needs of it.
struct RowPass {
    x: Vec<f64>,
    x_norm: Vec<f64>,
    std: f64,
    z: Vec<f64>,
    soft: Option<Soft>,
    gates: Option<Gated>,
    /// True for scores with a place in the hard code.
    top: Vec<bool>,
    h: Vec<f64>,
    /// The reconstruction by each prefix, the last of which is that by all latents.
    ys: Vec<Vec<f64>>,
    aux: Vec<f64>,
    aux_recon: Vec<f64>,
}

/// A row's candidates: latents, weights, and the slopes of the weights (`slope[i][j] = d w_i / d r_j`).
struct Gated {
    latents: Vec<usize>,
    weights: Vec<f64>,
    slope: Vec<Vec<f64>>,
}

/// What the gradient of a row's penalty depends on.
struct Sparsity {
    weight: f64,
    n_rows: f64,
    /// Active latents of the row, and the mean of its batch.
    l0: f64,
    mean_l0: f64,
}

impl Wide {
    /// |W_dec_j|.
    fn length(&self, j: usize) -> f64 {
        let d = self.b_pre.len();
        self.w_dec[j * d..(j + 1) * d].iter().map(|w| w * w).sum::<f64>().sqrt()
    }
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
        Self { data, spec, state, done: vec![], stopped: false, fired: vec![], l0: 0.0 }
    }

    fn wide(params: &Params) -> Wide {
        let f = |t: &[f32]| t.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        Wide {
            w_enc: f(&params.w_enc),
            w_dec: f(params.decoder()),
            b_pre: f(&params.b_pre),
            b_lat: f(&params.b_lat),
            threshold: params.threshold.as_deref().map_or(vec![0.0; params.n_latents], f),
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

    /// The latents with a place in the code, for rows of scores: those of the activation, `k` on average where it has
    /// places.
    fn places(&self, w: &Wide, rows: &[Vec<f64>], k: usize) -> Vec<Vec<bool>> {
        let m = w.b_lat.len();
        let activation = self.spec.forward.activation;
        let mut top = vec![vec![false; m]; rows.len()];
        match activation {
            Activation::Topk | Activation::AbsTopk => {
                for (top, z) in top.iter_mut().zip(rows) {
                    let ranks: Vec<f64> = z.iter().map(|&z| activation.rank(z)).collect();
                    top_k(&ranks, k).into_iter().for_each(|j| top[j] = true);
                }
            }
            Activation::BatchTopk => {
                // Row by row, so that the lowest row, then the lowest latent, wins a tie.
                for at in top_k(&rows.concat(), rows.len() * k) {
                    top[at / m][at % m] = true;
                }
            }
            Activation::JumpRelu => {
                for (top, z) in top.iter_mut().zip(rows) {
                    (0..m).for_each(|j| top[j] = z[j] > w.threshold[j] || z[j].is_nan());
                }
            }
            Activation::Relu => top.iter_mut().for_each(|top| top.fill(true)),
        }
        top
    }

    /// The value of a score that has a place.
    fn value(&self, z: f64) -> f64 {
        self.spec.forward.activation.value(z)
    }

    /// The code outside training (M).
    fn inference_code(&self, w: &Wide, z: &[f64]) -> Vec<f64> {
        let m = z.len();
        match self.spec.forward.inference {
            Inference::Topk => {
                let top = self.places(w, &[z.to_vec()], self.spec.forward.k).remove(0);
                (0..m).map(|j| if top[j] { self.value(z[j]) } else { 0.0 }).collect()
            }
            Inference::Relu => z.iter().map(|&z| relu(z)).collect(),
            Inference::Threshold => {
                (0..m).map(|j| if z[j] > w.threshold[j] || z[j].is_nan() { z[j] } else { 0.0 }).collect()
            }
        }
    }

    /// The reconstruction `(sum over j < m_p of code_j W_dec_j + b_pre) std + mean` (D) by each prefix p.
    fn reconstructions(&self, w: &Wide, code: &[f64], std: f64, mean: f64) -> Vec<Vec<f64>> {
        let d = w.b_pre.len();
        let segments = self.spec.forward.prefixes.segments(code.len());
        let by = |end: usize| -> Vec<f64> {
            let y = Self::decode(w, &code[..end], d);
            (0..d).map(|i| (y[i] + w.b_pre[i]) * std + mean).collect()
        };
        segments.into_iter().map(|segment| by(segment.end)).collect()
    }

    /// `code W_dec` (D), of the first latents.
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

    /// The rows of a batch: x, x', std, mean and scores of each, and who has a place in its code.
    fn forward_all(
        &self,
        w: &Wide,
        rows: &[u32],
        plan: &StepPlan<'_>,
    ) -> Result<(Vec<RowPass>, Vec<Vec<bool>>)> {
        let normalized: Vec<_> = rows.iter().map(|&row| self.normalized(row)).collect::<Result<_>>()?;
        let scores: Vec<Vec<f64>> = normalized.iter().map(|(_, x_norm, ..)| self.scores(w, x_norm)).collect();
        let fired = self.places(w, &scores, self.spec.forward.k);
        let batch = self.spec.forward.activation == Activation::BatchTopk;
        let held = if batch { self.places(w, &scores, self.spec.candidates(plan)) } else { fired.clone() };
        let parts = normalized.into_iter().zip(scores).zip(held).enumerate();
        let passes = parts.map(|(n, ((row, z), top))| self.forward(w, n, row, z, top, plan)).collect();
        Ok((passes, fired))
    }

    /// One row `(x, x', mean, std)` with scores `z`, whose places in the hard code are `top`.
    fn forward(
        &self,
        w: &Wide,
        n: usize,
        (x, x_norm, mean, std): (Vec<f64>, Vec<f64>, f64, f64),
        z: Vec<f64>,
        top: Vec<bool>,
        plan: &StepPlan<'_>,
    ) -> RowPass {
        let (d, m) = (x.len(), z.len());
        let phase = self.spec.phase(plan);
        // Places of a batch have no candidates per row.
        let per_row = self.spec.forward.activation.is_per_row();
        let gates = (per_row && phase.has_candidates()).then(|| self.gates(&z, plan));
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
        let ys = self.reconstructions(w, &h, std, mean);
        let aux = self.aux_code(&z);
        let aux_recon = Self::decode(w, &aux, d);
        RowPass { x, x_norm, std, z, soft, gates, top, h, ys, aux, aux_recon }
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

    fn pass(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass> {
        let params = &self.state.params;
        let (n_rows, d, m) = (rows.len(), params.d_in, params.n_latents);
        let w = Self::wide(params);
        let (passes, fired) = self.forward_all(&w, rows, plan)?;
        let active = |h: &Vec<f64>| h.iter().filter(|&&h| h != 0.0).count() as f64;
        let l0: Vec<f64> = passes.iter().map(|pass| active(&pass.h)).collect();
        let mean_l0 = l0.iter().sum::<f64>() / n_rows as f64;
        let weight = self.weight(plan, mean_l0);
        let mut grads = Wide {
            w_enc: vec![0.0; m * d],
            w_dec: vec![0.0; m * d],
            b_pre: vec![0.0; d],
            b_lat: vec![0.0; m],
            threshold: vec![0.0; m],
        };
        let (mut all_dh, mut all_dz) = (vec![], vec![]);
        let (mut mse, mut aux) = (0.0, 0.0);
        let per_value = 1.0 / (n_rows * d) as f64;
        let parts = self.spec.forward.prefixes.parts() as f64;
        for (pass, &row_l0) in passes.iter().zip(&l0) {
            for y in &pass.ys {
                mse += y.iter().zip(&pass.x).map(|(y, x)| (y - x).powi(2)).sum::<f64>() * per_value / parts;
            }
            let sparsity = Sparsity { weight, n_rows: n_rows as f64, l0: row_l0, mean_l0 };
            let (dh, dz, aux_loss) = self.backward(&w, pass, plan, &sparsity, &mut grads);
            aux += aux_loss;
            all_dh.extend(dh);
            all_dz.extend(dz);
        }
        let penalty = self.penalty(&w, &passes, &l0);
        // The part of b_pre that goes through the encoder.
        for j in 0..m {
            for i in 0..d {
                grads.b_pre[i] -= grads.b_lat[j] * w.w_enc[j * d + i];
            }
        }
        let narrow = |t: &[f64]| t.iter().map(|&v| v as f32).collect::<Vec<f32>>();
        // A score of minus infinity would be skipped by relu; it is as much a failure as the others.
        let finite = passes.iter().all(|pass| pass.z.iter().all(|z| z.is_finite()));
        let loss = self.spec.loss(weight, mse, penalty, aux);
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
        let fires = |p: &RowPass, j: usize| self.value(p.z[j]) != 0.0;
        let fired = (0..m).map(|j| passes.iter().zip(&fired).any(|(p, f)| f[j] && fires(p, j))).collect();
        let pass = Pass {
            stats: StepStats {
                loss: if finite { loss } else { f64::NAN },
                mse,
                l1: penalty,
                aux,
                grad_norm: f64::NAN,
            },
            pre_acts: rows_of(|p| &p.z),
            code: rows_of(|p| &p.h),
            recon: rows_of(|p| &p.ys[p.ys.len() - 1]),
            grad_pre_acts: narrow(&all_dz),
            grad_code: Some(narrow(&all_dh)),
            grads: Params {
                d_in: d,
                n_latents: m,
                w_enc: narrow(&grads.w_enc),
                w_dec: (!tied).then(|| narrow(&grads.w_dec)),
                b_pre: narrow(&grads.b_pre),
                b_lat: narrow(&grads.b_lat),
                threshold: params.threshold.as_ref().map(|_| narrow(&grads.threshold)),
            },
        };
        (self.fired, self.l0) = (fired, mean_l0);
        Ok(pass)
    }

    /// The weight of a step's penalty.
    fn weight(&self, plan: &StepPlan<'_>, mean_l0: f64) -> f64 {
        let carried = self.state.penalty_weight.first();
        carried.map_or(plan.l1, |&w| plan.l1 * seeking_weight(w, mean_l0, self.spec.forward.k))
    }

    /// The penalty before its weight.
    fn penalty(&self, w: &Wide, passes: &[RowPass], l0: &[f64]) -> f64 {
        let (n, m, k) = (passes.len() as f64, w.b_lat.len(), self.spec.forward.k as f64);
        let over_rows = |f: &dyn Fn(&RowPass) -> f64| passes.iter().map(f).sum::<f64>();
        let mean_l0 = l0.iter().sum::<f64>() / n;
        match self.spec.objective.penalty {
            Penalty::MeanCode => over_rows(&|p| p.h.iter().map(|h| h.abs()).sum::<f64>()) / (n * m as f64),
            Penalty::L1 => over_rows(&|p| (0..m).map(|j| p.h[j] * w.length(j)).sum::<f64>()) / n,
            Penalty::L0Target => (mean_l0 / k - 1.0).powi(2),
            Penalty::L0 => mean_l0,
            Penalty::L0Rows => 2.0 / k * l0.iter().map(|l0| (l0 - k).powi(2)).sum::<f64>() / n,
        }
    }

    /// Adds one row's gradients to `grads`; returns dh (M), dz (M) and the row's share of the auxiliary loss.
    fn backward(
        &self,
        w: &Wide,
        pass: &RowPass,
        plan: &StepPlan<'_>,
        sparsity: &Sparsity,
        grads: &mut Wide,
    ) -> (Vec<f64>, Vec<f64>, f64) {
        let (d, m) = (pass.x.len(), pass.z.len());
        let prefixes = self.spec.forward.prefixes;
        let per_value = 1.0 / (sparsity.n_rows * d as f64);
        let factor = self.spec.objective.loss_scale * pass.std * per_value / prefixes.parts() as f64;
        // G_s: the gradient that an entry of segment s meets.
        let mut by_segment = vec![vec![0.0; d]; pass.ys.len()];
        for (p, y) in pass.ys.iter().enumerate() {
            for by in &mut by_segment[..=p] {
                for i in 0..d {
                    by[i] += 2.0 * (y[i] - pass.x[i]) * factor;
                }
            }
        }
        let dy = |j: usize| &by_segment[prefixes.segment(j)];
        let back = |j: usize| -> f64 { (0..d).map(|i| dy(j)[i] * w.w_dec[j * d + i]).sum() };
        let squared: Vec<f64> = (0..m).map(back).collect();
        let direct = |j: usize| match self.spec.objective.penalty {
            _ if pass.h[j] == 0.0 => 0.0,
            Penalty::MeanCode => sparsity.weight / (sparsity.n_rows * m as f64) * pass.h[j].signum(),
            Penalty::L1 => sparsity.weight / sparsity.n_rows * w.length(j),
            _ => 0.0,
        };
        let dh: Vec<f64> = (0..m).map(|j| squared[j] + direct(j)).collect();
        if self.spec.forward.activation == Activation::JumpRelu {
            let (eps, slope) = (self.spec.objective.bandwidth, self.count_slope(sparsity));
            for j in 0..m {
                let t = w.threshold[j];
                if ((pass.z[j] - t) / eps).abs() < 0.5 {
                    grads.threshold[j] -= (t * squared[j] + slope) / eps;
                }
            }
        }
        if self.spec.objective.penalty == Penalty::L1 {
            for j in (0..m).filter(|&j| pass.h[j] > 0.0 && w.length(j) > 0.0) {
                let along = sparsity.weight / sparsity.n_rows * pass.h[j] / w.length(j);
                for i in 0..d {
                    grads.w_dec[j * d + i] += along * w.w_dec[j * d + i];
                }
            }
        }
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
                grads.w_dec[j * d + i] += pass.h[j] * dy(j)[i];
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
            grads.b_pre[i] += by_segment[0][i];
        }
        (dh, dz, aux_loss)
    }

    /// The gradient of the weighted penalty by a row's number of active latents.
    fn count_slope(&self, s: &Sparsity) -> f64 {
        let k = self.spec.forward.k as f64;
        match self.spec.objective.penalty {
            Penalty::MeanCode | Penalty::L1 => 0.0,
            Penalty::L0Target => s.weight * 2.0 * (s.mean_l0 / k - 1.0) / (k * s.n_rows),
            Penalty::L0 => s.weight / s.n_rows,
            Penalty::L0Rows => s.weight * 4.0 * (s.l0 - k) / (k * s.n_rows),
        }
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
        let (d, y) = (pass.x.len(), &pass.ys[pass.ys.len() - 1]);
        let miss: Vec<f64> = (0..d).map(|i| pass.aux_recon[i] * pass.std - (pass.x[i] - y[i])).collect();
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
        let common = common_move(&spec, d, self.l0);
        let state = &mut self.state;
        let tensors = state.params.tensors_mut().into_iter().zip(grads.tensors());
        let moments = state.m.tensors_mut().into_iter().zip(state.v.tensors_mut());
        for (((name, weights), (_, _, grads)), ((_, ms), (_, vs))) in tensors.zip(moments) {
            if name == "b_pre" && !spec.optimizer.train_pre_bias {
                continue;
            }
            // The one threshold of a batch's places is found, not trained.
            if name == "threshold" && spec.forward.activation != Activation::JumpRelu {
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
                let new = old - decay * old - step;
                weights[i] = if name == "threshold" { (new + common).max(0.0) } else { new } as f32;
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
            for ((name, average), (_, _, new)) in ema.tensors_mut().into_iter().zip(state.params.tensors()) {
                if name == "threshold" && spec.forward.activation != Activation::JumpRelu {
                    continue;
                }
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

    fn count_idle(&mut self, n_rows: usize) {
        for (idle, &fired) in self.state.idle_rows.iter_mut().zip(&self.fired) {
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
            self.count_idle(rows.len());
            for carried in &mut self.state.penalty_weight {
                *carried = next_weight(*carried, self.l0, self.spec.forward.k);
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
        let w = Self::wide(params);
        let d = params.d_in;
        let mut sums = EvalSums { prefixes: self.spec.forward.prefixes.len(), ..EvalSums::default() };
        for &row in rows {
            check()?;
            let (x, x_norm, mean, std) = self.normalized(row)?;
            let z = self.scores(&w, &x_norm);
            let h = self.inference_code(&w, &z);
            let ys = self.reconstructions(&w, &h, std, mean);
            if !self.spec.forward.prefixes.is_empty() {
                for (sum, y) in sums.by_prefix.iter_mut().zip(&ys) {
                    *sum += y.iter().zip(&x).map(|(y, x)| (y - x).powi(2)).sum::<f64>();
                }
            }
            let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
            for i in 0..d {
                let y = ys[ys.len() - 1][i];
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
            let active = self.inference_code(&w, &z).into_iter().enumerate().filter(|(_, h)| *h != 0.0);
            let finite = z.iter().all(|z| z.is_finite());
            codes.push_row(active.map(|(j, h)| (j as u32, h as f32)), finite);
        }
        Ok(codes)
    }

    fn calibrate(&mut self, rows: &[u32], weights: Weights) -> Result<()> {
        let (activation, k) = (self.spec.forward.activation, self.spec.forward.k);
        if !self.spec.seeks_k() {
            return Ok(());
        }
        let w = Self::wide(self.state.weights(weights));
        let mut all: Vec<f64> = vec![];
        for &row in rows {
            let z = self.scores(&w, &self.normalized(row)?.1);
            for (&z, &t) in z.iter().zip(&w.threshold) {
                match activation {
                    Activation::Relu => all.push(z),
                    _ if z <= 0.0 => {}
                    Activation::JumpRelu => all.push(z - t),
                    _ => all.push(z),
                }
            }
        }
        all.sort_by(|a, b| b.total_cmp(a));
        // The largest score that has no place any more.
        let first = all.get(rows.len() * k).map(|&first| first as f32);
        let params = self.state.weights_mut(weights);
        match activation {
            Activation::Relu => params.b_lat.iter_mut().for_each(|b| *b -= first.unwrap_or(0.0)),
            Activation::JumpRelu => {
                let moved = |t: f32| first.map_or(0.0, |first| (t + first).max(0.0));
                params.threshold.iter_mut().flatten().for_each(|t| *t = moved(*t));
            }
            _ => params.threshold.iter_mut().for_each(|t| t.fill(first.unwrap_or(0.0))),
        }
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
