//! Weights before the first step, where they depend on the rows.

use super::metrics::spread;
use crate::backend::cpu::linalg::{View, parallel_product};
use crate::backend::cpu::{Batch, select};
use crate::backend::largest::Largest;
use crate::error::{Error, Result};
use crate::model::{Params, TrainState, normalize, pre_bias_start};
use crate::rows::RowSource;
use crate::spec::{Activation, Forward, Init, PreBias, Training, row_length};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use std::ops::Range;

/// Training rows that a start is taken from.
const START_ROWS: usize = 8192;
/// Rows on which the scale of a start from rows is found.
const SCALE_ROWS: usize = 128;
/// Parts of the latents that start one after the other.
const STAGES: usize = 4;
/// Rows whose scores are held at once.
const BLOCK_ROWS: usize = 256;
/// Active latents of a row under the first thresholds, as a multiple of k: few enough for sparse steps, and enough that no
/// latent is shut off before it has learned anything.
const START_ACTIVE: usize = 4;
/// Length of the random part of a latent beside that of its row.
const RANDOM_SHARE: f32 = 0.25;

/// Bytes of memory that [`start_state`] takes at its peak with `n_train` training rows, before there are moments.
pub(crate) fn start_bytes(t: &Training, n_train: usize) -> u64 {
    let [d, m, rows] = [t.d_in, t.n_latents, n_train.min(START_ROWS)].map(|v| v as u64);
    let (from_rows, from_mean) =
        (t.init == Init::Data, matches!(t.pre_bias, PreBias::Mean | PreBias::Median));
    let batch = if from_rows || from_mean { 2 * rows * d } else { 0 };
    let left = if from_rows { rows.min(m / STAGES as u64) * d } else { 0 };
    let scores = if from_rows { BLOCK_ROWS as u64 * (m - m / STAGES as u64) } else { 0 };
    4 * (t.n_params() + batch + left + scores)
}

/// Training rows from which a start is taken, spread evenly over all of them.
pub(crate) fn start_rows(train: &[u32]) -> Vec<u32> {
    spread(train, START_ROWS)
}

/// Whether each latent's start is drawn without the others: not where it is what others leave of a row, nor where all share a
/// threshold that all of their scores decide.
pub(crate) fn starts_apart(t: &Training) -> bool {
    t.init != Init::Data && t.model.forward.activation != Activation::JumpRelu
}

/// The state at step 0, from the training rows `train`.
pub(crate) fn start_state(t: &Training, data: &dyn RowSource, train: &[u32]) -> Result<TrainState> {
    Ok(state_of(t, start_weights(t, data, train, 0..t.n_latents)?))
}

/// The state at step 0 with these weights.
pub(crate) fn state_of(t: &Training, params: Params) -> TrainState {
    let mut state = TrainState::start(params, t.model.optimizer.ema.is_some());
    if t.model.objective.seeks_k {
        state.penalty_weight = vec![first_weight(t)];
    }
    state
}

/// Weights before the first step, from the training rows `train`: of all latents, or of some where [`starts_apart`].
pub(crate) fn start_weights(
    t: &Training,
    data: &dyn RowSource,
    train: &[u32],
    latents: Range<usize>,
) -> Result<Params> {
    let count = latents.len();
    if count < t.n_latents && !starts_apart(t) {
        return Err(Error::Failed("a start of all latents is asked for in parts; please report this".into()));
    }
    let eps = t.model.forward.row_eps();
    let mut params = Params::init_part(t.d_in, t.n_latents, latents, t.tied, &t.init, t.seed);
    let from_rows = t.init == Init::Data;
    if from_rows || matches!(t.pre_bias, PreBias::Mean | PreBias::Median) {
        let rows = start_rows(train);
        let mut batch = Batch::default();
        batch.load(data, &rows, eps, &params.b_pre)?;
        params.b_pre = pre_bias_start(t.pre_bias, t.d_in, &batch.input);
        if from_rows {
            batch.load(data, &rows, eps, &params.b_pre)?;
            let unit = t.model.optimizer.unit_norm_decoder;
            latents_from_rows(&mut params, &batch.input, &t.model.forward, unit, t.seed);
        }
    }
    if t.model.forward.has_threshold() {
        let start = if t.model.forward.activation == Activation::JumpRelu {
            first_threshold(t, &params, data, train)?
        } else {
            0.0
        };
        params.threshold = Some(vec![start; count]);
    }
    Ok(params)
}

/// The threshold at which rows start with [`START_ACTIVE`] k active latents, and at least half its kernel's width, so that no
/// score at or below 0 is within reach of it.
fn first_threshold(t: &Training, params: &Params, data: &dyn RowSource, train: &[u32]) -> Result<f32> {
    let rows = spread(train, BLOCK_ROWS);
    let (d, m, n) = (t.d_in, t.n_latents, rows.len());
    let mut batch = Batch::default();
    batch.load(data, &rows, t.model.forward.row_eps(), &params.b_pre)?;
    let mut scores = vec![0.0; n * m];
    let encoder = View::new(&params.w_enc, m, d, d).t();
    parallel_product(&mut scores, View::new(&batch.input, n, d, d), encoder, (256, 256));
    let mut largest = Largest::above(0.0, n * (START_ACTIVE * t.model.forward.k).min(m));
    largest.add(&scores);
    Ok(largest.next().max(0.5 * t.model.objective.bandwidth as f32))
}

/// Where a weight that seeks k starts. One more latent of k that a row of length r takes part in explains about `r^2 / k` of
/// its square, `1 / k` of the variance, for `r / sqrt k` of code: a weight of `1 / (r sqrt k)` is what balances the two, and a
/// tenth of it keeps the first steps to the rows.
fn first_weight(t: &Training) -> f32 {
    let length = row_length(t.d_in, t.model.forward.normalize, t.model.objective.loss_scale);
    (0.1 / (length * (t.model.forward.k as f64).sqrt())) as f32
}

/// Starts latents as what rows hold: directions in which there are data, where a random one may miss all of them.
///
/// The first quarter of the encoder's rows are training rows in random order, as K-SVD starts its atoms (Aharon, Elad &
/// Bruckstein 2006); each further quarter is what the top k of the latents so far leave of other rows, so that the k
/// parts of a code can add up instead of all being the row again. The decoder starts as the encoder, and both as long
/// as makes the first reconstructions fit best in the least squares. Where decoder rows are kept at length 1
/// (`unit`), the encoder takes the whole factor. A tied model has none to give then: its latents would add up to many
/// times the row, and it keeps its random start.
///
/// `input` holds rows `x' - b_pre` (n, D), `params` a random start of rows of length 1.
fn latents_from_rows(params: &mut Params, input: &[f32], forward: &Forward, unit: bool, seed: u64) {
    if unit && params.tied() {
        return;
    }
    let (d, m) = (params.d_in, params.n_latents);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xda7a_57a2_7000_0001);
    let n = input.len() / d;
    let mut order: Vec<usize> = (0..n).collect();
    order.shuffle(&mut rng);
    let mut order = order.into_iter().cycle();
    for stage in 0..STAGES {
        let (from, to) = (m * stage / STAGES, m * (stage + 1) / STAGES);
        let (before, latents) = params.w_enc[..to * d].split_at_mut(from * d);
        let scale = best_scale(before, input, d, forward);
        // Rows come again where there are more latents than rows: what is left of each is found once.
        let picked: Vec<usize> = order.by_ref().take((to - from).min(n)).collect();
        order.by_ref().take((to - from) - picked.len()).for_each(drop);
        let mut left: Vec<f32> = picked.iter().flat_map(|row| &input[row * d..][..d]).copied().collect();
        for rows in left.chunks_mut(BLOCK_ROWS * d) {
            let explained = reconstruct(rows, before, d, forward);
            rows.iter_mut().zip(explained).for_each(|(x, y)| *x -= scale * y);
            rows.chunks_exact_mut(d).for_each(normalize);
        }
        latents.par_chunks_exact_mut(d).enumerate().for_each(|(latent, values)| {
            let row = &left[latent % picked.len() * d..][..d];
            // Two latents of one row must differ, or they would get the same gradient forever.
            values.iter_mut().zip(row).for_each(|(random, &x)| *random = x + RANDOM_SHARE * *random);
            normalize(values);
        });
    }
    let scale = best_scale(&params.w_enc, input, d, forward);
    let (encoder, decoder) = if unit { (scale, 1.0) } else { (scale.sqrt(), scale.sqrt()) };
    if let Some(w_dec) = &mut params.w_dec {
        w_dec.iter_mut().zip(&params.w_enc).for_each(|(dec, enc)| *dec = decoder * enc);
    }
    params.w_enc.iter_mut().for_each(|w| *w *= encoder);
}

/// `h W` (n, D) for `rows` (n, D) and `latents` W (m, D), with `h` the code of the scores `rows W^T`.
fn reconstruct(rows: &[f32], latents: &[f32], d: usize, forward: &Forward) -> Vec<f32> {
    let (n, m) = (rows.len() / d, latents.len() / d);
    let mut out = vec![0.0; n * d];
    if m == 0 {
        return out;
    }
    let mut scores = vec![0.0; n * m];
    parallel_product(&mut scores, View::new(rows, n, d, d), View::new(latents, m, d, d).t(), (256, 256));
    out.par_chunks_exact_mut(d).zip(scores.par_chunks_exact(m)).for_each_init(
        || (select::Scratch::default(), vec![]),
        |(scratch, top), (y, z)| {
            select::top(forward.activation, z, forward.k, scratch, top);
            for &(j, h) in top.iter() {
                let latent = &latents[j as usize * d..][..d];
                y.iter_mut().zip(latent).for_each(|(y, &w)| *y += h * w);
            }
        },
    );
    out
}

/// The factor that brings [`reconstruct`] nearest to rows of `input` (n, D); 1 where there is none.
fn best_scale(latents: &[f32], input: &[f32], d: usize, forward: &Forward) -> f32 {
    let all = input.len() / d;
    let n = all.min(SCALE_ROWS);
    let rows: Vec<f32> = (0..n).flat_map(|i| &input[i * all / n * d..][..d]).copied().collect();
    let (mut along, mut square) = (0.0, 0.0);
    for (&x, y) in rows.iter().zip(reconstruct(&rows, latents, d, forward)) {
        along += f64::from(x) * f64::from(y);
        square += f64::from(y).powi(2);
    }
    let scale = (along / square) as f32;
    if scale > 0.0 && scale.is_finite() { scale } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::ModelSpec;
    use rand::RngExt;

    fn start(tied: bool, unit: bool) -> (Params, Vec<f32>) {
        let d = 6;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut rows: Vec<f32> = (0..40 * d).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        rows[..d].fill(0.0);
        let mut params = Params::init(d, 24, tied, &Init::Data, 7);
        latents_from_rows(&mut params, &rows, &ModelSpec::plain(3).forward, unit, 7);
        (params, rows)
    }

    /// Squared error of the first reconstructions with weights `factor` times as long.
    fn error(params: &Params, rows: &[f32], factor: f64) -> f64 {
        let d = params.d_in;
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
        let mut sum = 0.0;
        for x in rows.chunks_exact(d) {
            let mut z: Vec<(f64, usize)> =
                params.w_enc.chunks_exact(d).enumerate().map(|(j, w)| (dot(x, w), j)).collect();
            z.sort_by(|a, b| b.0.total_cmp(&a.0));
            for i in 0..d {
                let y: f64 =
                    z[..3].iter().map(|&(h, j)| h.max(0.0) * f64::from(params.w_enc[j * d + i])).sum();
                sum += (y * factor * factor - f64::from(x[i])).powi(2);
            }
        }
        sum
    }

    #[test]
    fn latents_that_start_from_rows_point_at_rows_and_are_as_long_as_fits_best() {
        for tied in [false, true] {
            let (params, rows) = start(tied, false);
            assert_eq!(params.decoder(), params.w_enc);
            let cosine = |a: &[f32], b: &[f32]| {
                let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-9)
            };
            // The first quarter, less a row of zeros; the random share turns them by at most asin(1/4).
            let at_a_row = |w: &&[f32]| rows.chunks_exact(6).any(|x| cosine(w, x) > 0.968);
            let pointing = params.w_enc.chunks_exact(6).take(6).filter(at_a_row).count();
            assert!(pointing >= 5, "{pointing} of 6");
            let best = error(&params, &rows, 1.0);
            for factor in [0.97, 1.03] {
                assert!(error(&params, &rows, factor) > best, "{factor}");
            }
        }
    }

    #[test]
    fn decoder_rows_that_stay_at_length_one_start_there_and_the_first_codes_fit_as_well() {
        let (free, _) = start(false, false);
        let (unit, _) = start(false, true);
        let pairs = free.w_enc.iter().zip(free.decoder()).zip(unit.w_enc.iter().zip(unit.decoder()));
        for ((e, d), (ue, ud)) in pairs {
            assert!((e * d - ue * ud).abs() < 1e-5, "{e} {d} {ue} {ud}");
        }
        for row in unit.decoder().chunks_exact(6).chain(start(true, true).0.decoder().chunks_exact(6)) {
            let norm: f32 = row.iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        }
    }

    #[test]
    fn latents_of_the_same_row_differ() {
        let mut params = Params::init(4, 64, false, &Init::Data, 3);
        latents_from_rows(
            &mut params,
            &[1.0, 2.0, -1.0, 0.5, 0.0, 1.0, 3.0, -2.0],
            &ModelSpec::plain(2).forward,
            false,
            3,
        );
        let latents: Vec<&[f32]> = params.w_enc.chunks_exact(4).collect();
        for (i, a) in latents.iter().enumerate() {
            assert!(latents[..i].iter().all(|b| a != b), "{i}: {a:?}");
        }
    }

    #[test]
    fn what_the_first_latents_leave_starts_the_others() {
        // All rows are nearly one direction: latents that all were rows would hold nothing else.
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut rows: Vec<f32> = (0..60 * 8).map(|_| rng.random_range(-0.1f32..0.1)).collect();
        rows.chunks_exact_mut(8).for_each(|row| row[0] += 1.0);
        let mut params = Params::init(8, 32, false, &Init::Data, 7);
        latents_from_rows(&mut params, &rows, &ModelSpec::plain(4).forward, false, 7);
        let along: Vec<f32> = params
            .w_enc
            .chunks_exact(8)
            .map(|w| (w[0] / w.iter().map(|v| v * v).sum::<f32>().sqrt()).abs())
            .collect();
        let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
        assert!(mean(&along[..8]) > 0.9 && mean(&along[8..]) < 0.6, "{along:?}");
    }

    #[test]
    fn rows_of_zeros_leave_a_start_of_length_one() {
        let mut params = Params::init(4, 5, false, &Init::Data, 3);
        latents_from_rows(&mut params, &[0.0; 40], &ModelSpec::plain(2).forward, false, 3);
        for row in params.w_enc.chunks_exact(4) {
            let norm: f32 = row.iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        }
    }
}
