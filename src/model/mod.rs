//! The tensors of the autoencoder. The formulas are in [`crate::backend`]; here are shapes and starts.
//!
//! | tensor | shape | meaning |
//! | --- | --- | --- |
//! | `w_enc` | (M, D) | encoder, one row per latent |
//! | `w_dec` | (M, D) | decoder, one row per latent; absent in a tied model, where it *is* `w_enc` |
//! | `b_pre` | (D) | subtracted before the encoder, added after the decoder |
//! | `b_lat` | (M) | bias of each latent |
//! | `threshold` | (M) | a score above it is active; in models whose codes are made so |

pub mod file;
pub mod shard;

pub use file::ModelMeta;

use crate::error::{Error, Result};
use crate::spec::{Init, PreBias, Training};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::ops::Range;

/// One set of the model's tensors: the weights themselves, a moment of Adam, a gradient or an average.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// Inputs, D.
    pub d_in: usize,
    /// Latents, M.
    pub n_latents: usize,
    /// (M, D), row-major.
    pub w_enc: Vec<f32>,
    /// (M, D), row-major; `None` when tied.
    pub w_dec: Option<Vec<f32>>,
    /// (D).
    pub b_pre: Vec<f32>,
    /// (M).
    pub b_lat: Vec<f32>,
    /// (M), at least 0; `None` where no code is made by thresholds.
    pub threshold: Option<Vec<f32>>,
}

impl Params {
    /// Those of some latents; b_pre, which all of them share, is whole.
    pub fn of_latents(&self, latents: Range<usize>) -> Self {
        let rows = latents.start * self.d_in..latents.end * self.d_in;
        Self {
            d_in: self.d_in,
            n_latents: latents.len(),
            w_enc: self.w_enc[rows.clone()].to_vec(),
            w_dec: self.w_dec.as_ref().map(|w| w[rows].to_vec()),
            b_pre: self.b_pre.clone(),
            b_lat: self.b_lat[latents.clone()].to_vec(),
            threshold: self.threshold.as_ref().map(|t| t[latents].to_vec()),
        }
    }

    /// All zeros.
    pub fn zeros(d_in: usize, n_latents: usize, tied: bool) -> Self {
        Self {
            d_in,
            n_latents,
            w_enc: vec![0.0; n_latents * d_in],
            w_dec: (!tied).then(|| vec![0.0; n_latents * d_in]),
            b_pre: vec![0.0; d_in],
            b_lat: vec![0.0; n_latents],
            threshold: None,
        }
    }

    /// All zeros, of the shapes of these.
    #[must_use]
    pub fn zeros_like(&self) -> Self {
        let threshold = self.threshold.as_ref().map(|t| vec![0.0; t.len()]);
        Self { threshold, ..Self::zeros(self.d_in, self.n_latents, self.tied()) }
    }

    /// True when decoder and encoder are one tensor.
    pub fn tied(&self) -> bool {
        self.w_dec.is_none()
    }

    /// The decoder (M, D): `w_enc` when tied.
    pub fn decoder(&self) -> &[f32] {
        self.w_dec.as_deref().unwrap_or(&self.w_enc)
    }

    /// Number of values in all tensors.
    pub fn len(&self) -> usize {
        self.tensors().iter().map(|(_, _, t)| t.len()).sum()
    }

    /// True when there is nothing in it (a model has at least one latent, so never in practice).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Name, shape and values of each tensor that is stored, in the order of the files.
    pub fn tensors(&self) -> Vec<(&'static str, Vec<usize>, &[f32])> {
        let matrix = vec![self.n_latents, self.d_in];
        let mut all = vec![("w_enc", matrix.clone(), self.w_enc.as_slice())];
        if let Some(w_dec) = &self.w_dec {
            all.push(("w_dec", matrix, w_dec));
        }
        all.push(("b_pre", vec![self.d_in], &self.b_pre));
        all.push(("b_lat", vec![self.n_latents], &self.b_lat));
        if let Some(threshold) = &self.threshold {
            all.push(("threshold", vec![self.n_latents], threshold));
        }
        all
    }

    /// The same tensors to write into, in the same order.
    pub fn tensors_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        let mut all = vec![("w_enc", self.w_enc.as_mut_slice())];
        if let Some(w_dec) = &mut self.w_dec {
            all.push(("w_dec", w_dec));
        }
        all.push(("b_pre", &mut self.b_pre));
        all.push(("b_lat", &mut self.b_lat));
        if let Some(threshold) = &mut self.threshold {
            all.push(("threshold", threshold));
        }
        all
    }

    /// Start weights. `b_lat` is 0 and `b_pre` is `b_pre` in every case.
    ///
    /// * `linear`: what PyTorch gives a linear layer: encoder uniform in +-1/sqrt(D), decoder uniform in +-1/sqrt(M).
    /// * `xavier`: encoder uniform in +-gain * sqrt(6 / (D + M)); the decoder starts as the encoder.
    /// * `unit-norm`: encoder rows drawn on the unit sphere; the decoder starts as the encoder.
    /// * `data`: the same here; training replaces the rows by rows of the data.
    pub fn init(d_in: usize, n_latents: usize, tied: bool, init: &Init, seed: u64) -> Self {
        Self::init_part(d_in, n_latents, 0..n_latents, tied, init, seed)
    }

    /// Those of some of the latents that [`Params::init`] gives: no others are drawn.
    pub fn init_part(
        d_in: usize,
        n_latents: usize,
        latents: Range<usize>,
        tied: bool,
        init: &Init,
        seed: u64,
    ) -> Self {
        let mut params = Self::zeros(d_in, latents.len(), tied);
        let rng = ChaCha8Rng::seed_from_u64(seed ^ 0x1217_5ae5_eed5_0001);
        let (d, m) = (d_in as f32, n_latents as f32);
        // A uniform value takes a word of the stream, and a normal one four. Uniform values of the encoder come first, whether they are
        // used or not, and after them what else is drawn.
        let (before, all) = ((latents.start * d_in) as u128, (n_latents * d_in) as u128);
        let uniform = |values: &mut [f32], bound: f32, from| {
            draw(values, &rng, (from, 1), |rng| rng.random_range(-bound..=bound));
        };
        match init {
            Init::Linear => uniform(&mut params.w_enc, 1.0 / d.sqrt(), before),
            Init::Xavier { gain } => uniform(&mut params.w_enc, gain * (6.0 / (d + m)).sqrt(), before),
            Init::UnitNorm | Init::Data => {
                // Normal rows, normalised, lie uniformly on the sphere; uniform ones would favour the corners.
                draw(&mut params.w_enc, &rng, (all + 4 * before, 4), standard_normal);
                params.w_enc.par_chunks_exact_mut(d_in).for_each(normalize);
            }
        }
        if let Some(w_dec) = &mut params.w_dec {
            match init {
                Init::Linear => uniform(w_dec, 1.0 / m.sqrt(), all + before),
                Init::Xavier { .. } | Init::UnitNorm | Init::Data => w_dec.copy_from_slice(&params.w_enc),
            }
        }
        params
    }
}

/// Values drawn from a stream, of which they take `words` each from the word `from` on.
fn draw(
    values: &mut [f32],
    stream: &ChaCha8Rng,
    (from, words): (u128, u128),
    one: impl Fn(&mut ChaCha8Rng) -> f32 + Sync,
) {
    const TOGETHER: usize = 1 << 14;
    values.par_chunks_mut(TOGETHER).enumerate().for_each(|(chunk, values)| {
        let mut rng = stream.clone();
        rng.set_word_pos(from + words * (chunk * TOGETHER) as u128);
        values.iter_mut().for_each(|value| *value = one(&mut rng));
    });
}

/// Box-Muller.
fn standard_normal(rng: &mut ChaCha8Rng) -> f32 {
    let u: f64 = 1.0 - rng.random::<f64>();
    let v: f64 = rng.random();
    ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
}

/// Scales `row` to length 1; a zero row stays zero.
pub fn normalize(row: &mut [f32]) {
    let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        for value in row {
            *value = (f64::from(*value) / norm) as f32;
        }
    }
}

/// Scales rows of `d` values to length 1. Rows that have it, up to rounding, keep their bits; zero rows stay zero.
pub fn make_unit_rows(rows: &mut [f32], d: usize) {
    for row in rows.chunks_exact_mut(d) {
        let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if (norm - 1.0).abs() > 1e-5 {
            normalize(row);
        }
    }
}

/// Start of `b_pre` from rows (in the model's input space, after normalisation): zero, mean or geometric median.
///
/// The geometric median minimises the sum of distances (Weiszfeld 1937, at most 100 rounds,
/// stopped once it moves by less than 1e-6 of its length).
pub fn pre_bias_start(kind: PreBias, d_in: usize, rows: &[f32]) -> Vec<f32> {
    let n_rows = rows.len() / d_in;
    if matches!(kind, PreBias::None | PreBias::Zero) || n_rows == 0 {
        return vec![0.0; d_in];
    }
    let mut center = vec![0.0f64; d_in];
    for row in rows.chunks_exact(d_in) {
        for (c, &x) in center.iter_mut().zip(row) {
            *c += f64::from(x) / n_rows as f64;
        }
    }
    if kind == PreBias::Median {
        for _ in 0..100 {
            if weiszfeld(&mut center, rows) < 1e-6 {
                break;
            }
        }
    }
    center.iter().map(|&c| c as f32).collect()
}

/// One Weiszfeld round; returns the move relative to the new length.
fn weiszfeld(center: &mut [f64], rows: &[f32]) -> f64 {
    let mut sum = vec![0.0f64; center.len()];
    let mut weights = 0.0;
    for row in rows.chunks_exact(center.len()) {
        let pairs = row.iter().zip(center.iter());
        let dist2: f64 = pairs.map(|(&x, &c)| (f64::from(x) - c).powi(2)).sum();
        let weight = 1.0 / dist2.sqrt().max(1e-12);
        weights += weight;
        for (s, &x) in sum.iter_mut().zip(row) {
            *s += weight * f64::from(x);
        }
    }
    let (mut moved, mut length) = (0.0, 0.0);
    for (c, s) in center.iter_mut().zip(sum) {
        let new = s / weights;
        moved += (new - *c).powi(2);
        length += new * new;
        *c = new;
    }
    (moved / length.max(1e-30)).sqrt()
}

/// Which of a state's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weights {
    /// As trained.
    Last,
    /// The moving average, where there is one; else as trained.
    Averaged,
}

/// Everything a training run carries from one step to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainState {
    /// Steps done.
    pub step: u64,
    /// Weights.
    pub params: Params,
    /// Adam's first moment.
    pub m: Params,
    /// Adam's second moment.
    pub v: Params,
    /// Exponential moving average of the weights, where asked for.
    pub ema: Option<Params>,
    /// Rows seen since each latent was last active in training (M).
    pub idle_rows: Vec<u32>,
    /// Weight of the penalty (1 value) where it follows the codes, else empty.
    pub penalty_weight: Vec<f32>,
}

/// Whether a tensor of a state or a model has no row for each latent: where latents are shared out, every rank has all of it.
pub fn is_of_all_latents(name: &str) -> bool {
    matches!(name.rsplit('.').next(), Some("b_pre" | "penalty_weight" | "train_mean"))
}

/// Gives a tensor of a [`TrainState`]: writes its values, in native bytes, to a place of their size. Names are those of
/// a checkpoint: `w_enc`, `w_dec`, `b_pre`, `b_lat`, `threshold`; with `m.`, `v.` and `ema.` before them;
/// `penalty_weight` and `idle_rows`.
pub type Fill<'a> = dyn FnMut(&str, &mut [u8]) -> Result<()> + 'a;

/// What stands before a tensor's name: of the weights, Adam's moments, the moving average.
pub const SETS: [&str; 4] = ["", "m.", "v.", "ema."];

impl TrainState {
    /// The state of some latents, and what all of them share.
    pub fn of_latents(&self, latents: Range<usize>) -> Self {
        let of = |params: &Params| params.of_latents(latents.clone());
        Self {
            step: self.step,
            params: of(&self.params),
            m: of(&self.m),
            v: of(&self.v),
            ema: self.ema.as_ref().map(of),
            idle_rows: self.idle_rows[latents.clone()].to_vec(),
            penalty_weight: self.penalty_weight.clone(),
        }
    }

    /// Everything at 0.
    pub fn zeros(d_in: usize, n_latents: usize, tied: bool, with_ema: bool) -> Self {
        Self::start(Params::zeros(d_in, n_latents, tied), with_ema)
    }

    /// Everything at 0, of the shapes of a training.
    pub fn zeros_of(t: &Training) -> Self {
        let threshold = t.model.forward.has_threshold().then(|| vec![0.0; t.n_latents]);
        let params = Params { threshold, ..Params::zeros(t.d_in, t.n_latents, t.tied) };
        let mut state = Self::start(params, t.model.optimizer.ema.is_some());
        state.penalty_weight = if t.model.objective.seeks_k { vec![0.0] } else { vec![] };
        state
    }

    /// Overwrites all tensors in place; no second state is in memory meanwhile.
    ///
    /// # Errors
    /// What `fill` gives; some tensors are overwritten then.
    pub fn fill(&mut self, fill: &mut Fill<'_>) -> Result<()> {
        let Self { params, m, v, ema, .. } = self;
        for (prefix, params) in SETS.into_iter().zip([Some(params), Some(m), Some(v), ema.as_mut()]) {
            for (name, values) in params.into_iter().flat_map(Params::tensors_mut) {
                fill(&format!("{prefix}{name}"), bytemuck::cast_slice_mut(values))?;
            }
        }
        if !self.penalty_weight.is_empty() {
            fill("penalty_weight", bytemuck::cast_slice_mut(&mut self.penalty_weight))?;
        }
        fill("idle_rows", bytemuck::cast_slice_mut(&mut self.idle_rows))
    }

    /// All tensors with their names and shapes, without `idle_rows`.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>, &[f32])> {
        let sets = [Some(&self.params), Some(&self.m), Some(&self.v), self.ema.as_ref()];
        let mut all = vec![];
        for (prefix, params) in SETS.into_iter().zip(sets) {
            for (name, shape, values) in params.into_iter().flat_map(Params::tensors) {
                all.push((format!("{prefix}{name}"), shape, values));
            }
        }
        if !self.penalty_weight.is_empty() {
            all.push(("penalty_weight".into(), vec![1], self.penalty_weight.as_slice()));
        }
        all
    }

    /// Copies one tensor, as [`Fill`] asks for it.
    ///
    /// # Errors
    /// No such tensor, or one of another size.
    pub fn copy_to(&self, name: &str, out: &mut [u8]) -> Result<()> {
        let found = self.tensors().into_iter().find(|(n, ..)| n == name);
        let values = match &found {
            Some((_, _, values)) => bytemuck::cast_slice(values),
            None if name == "idle_rows" => bytemuck::cast_slice(&self.idle_rows),
            None => &[],
        };
        if values.len() != out.len() {
            return Err(Error::Failed(format!("the state has no {name} of that size; please report this")));
        }
        out.copy_from_slice(values);
        Ok(())
    }

    /// The weights that `which` names.
    pub fn weights(&self, which: Weights) -> &Params {
        match (which, &self.ema) {
            (Weights::Averaged, Some(ema)) => ema,
            _ => &self.params,
        }
    }

    /// The same to write into.
    pub fn weights_mut(&mut self, which: Weights) -> &mut Params {
        match (which, &mut self.ema) {
            (Weights::Averaged, Some(ema)) => ema,
            _ => &mut self.params,
        }
    }

    /// The weights that `which` names, without the rest.
    pub fn into_weights(self, which: Weights) -> Params {
        match (which, self.ema) {
            (Weights::Averaged, Some(ema)) => ema,
            _ => self.params,
        }
    }

    /// A run at step 0 from start weights.
    pub fn start(params: Params, with_ema: bool) -> Self {
        let zeros = params.zeros_like();
        Self {
            step: 0,
            m: zeros.clone(),
            v: zeros,
            ema: with_ema.then(|| params.clone()),
            idle_rows: vec![0; params.n_latents],
            penalty_weight: vec![],
            params,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The stream of numbers that starts have been drawn from since the first version, one after another.
    fn drawn_in_turn(d: usize, m: usize, tied: bool, init: &Init, seed: u64) -> Params {
        let mut params = Params::zeros(d, m, tied);
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x1217_5ae5_eed5_0001);
        let bound = match init {
            Init::Xavier { gain } => gain * (6.0 / (d + m) as f32).sqrt(),
            _ => 1.0 / (d as f32).sqrt(),
        };
        params.w_enc.iter_mut().for_each(|value| *value = rng.random_range(-bound..=bound));
        if matches!(init, Init::UnitNorm | Init::Data) {
            params.w_enc.iter_mut().for_each(|value| *value = standard_normal(&mut rng));
            params.w_enc.chunks_exact_mut(d).for_each(normalize);
        }
        if let Some(w_dec) = &mut params.w_dec {
            w_dec.copy_from_slice(&params.w_enc);
            if *init == Init::Linear {
                let bound = 1.0 / (m as f32).sqrt();
                w_dec.iter_mut().for_each(|value| *value = rng.random_range(-bound..=bound));
            }
        }
        params
    }

    #[test]
    fn a_part_of_a_start_is_that_of_the_whole_which_is_drawn_in_turn() {
        for init in [Init::Linear, Init::Xavier { gain: 0.7 }, Init::UnitNorm, Init::Data] {
            for (d, m, tied) in [(5, 7, false), (133, 300, true), (133, 300, false), (1, 1, false)] {
                let whole = Params::init(d, m, tied, &init, 9);
                assert_eq!(whole, drawn_in_turn(d, m, tied, &init, 9), "{init:?}");
                for cut in [0, m / 3, m / 2 + 1, m] {
                    for part in [0..cut, cut..m] {
                        let made = Params::init_part(d, m, part.clone(), tied, &init, 9);
                        assert_eq!(made, whole.of_latents(part), "{init:?} {cut}");
                    }
                }
            }
        }
    }

    #[test]
    fn unit_norm_start_has_rows_of_length_one_and_an_equal_decoder() {
        let p = Params::init(7, 5, false, &Init::UnitNorm, 3);
        for row in p.w_enc.chunks_exact(7) {
            let norm: f32 = row.iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-5);
        }
        assert_eq!(p.w_dec.as_ref().unwrap(), &p.w_enc);
    }

    #[test]
    fn rows_of_length_one_keep_their_bits_and_shorter_ones_become_as_long() {
        let mut unit = [0.3f32, -0.7, 0.2, 0.9];
        normalize(&mut unit);
        let short = unit.map(|v| 0.97 * v);
        let mut rows = [unit, short, [0.0; 4]].concat();
        make_unit_rows(&mut rows, 4);
        assert_eq!(rows[..4], unit);
        assert!(rows[4..8].iter().zip(unit).all(|(got, want)| (got - want).abs() < 1e-6), "{rows:?}");
        assert_eq!(rows[8..], [0.0; 4]);
    }

    #[test]
    fn linear_start_stays_inside_its_bounds_and_fills_them() {
        let p = Params::init(64, 256, false, &Init::Linear, 3);
        let max = |t: &[f32]| t.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        assert!(max(&p.w_enc) <= 0.125 && max(&p.w_enc) > 0.12);
        assert!(max(p.decoder()) <= 0.0625 && max(p.decoder()) > 0.06);
        assert!(p.b_lat.iter().chain(&p.b_pre).all(|&b| b == 0.0));
    }

    #[test]
    fn geometric_median_ignores_a_far_outlier_that_moves_the_mean() {
        let mut rows = vec![0.0f32; 2 * 21];
        for i in 0..20 {
            rows[2 * i] = 1.0 + 0.01 * (i as f32 - 9.5);
            rows[2 * i + 1] = -2.0;
        }
        rows[40] = 1000.0;
        let mean = pre_bias_start(PreBias::Mean, 2, &rows);
        let median = pre_bias_start(PreBias::Median, 2, &rows);
        assert!(mean[0] > 40.0);
        assert!((median[0] - 1.0).abs() < 0.2 && (median[1] + 2.0).abs() < 0.2, "{median:?}");
    }
}
