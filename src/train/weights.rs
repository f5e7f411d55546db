//! Weights before the first step, where they depend on the rows.

use super::Prepared;
use crate::backend::cpu::linalg::{View, parallel_product};
use crate::backend::cpu::{Batch, select};
use crate::config::{Init, PreBias};
use crate::model::{Params, TrainState, normalize, pre_bias_start};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Training rows that a start is taken from.
const START_ROWS: usize = 8192;
/// Rows on which the scale of a start from rows is found.
const SCALE_ROWS: usize = 128;

/// The state at step 0.
pub(super) fn start_state(prepared: &Prepared) -> TrainState {
    let Prepared { data, split, config, .. } = prepared;
    let mut params = Params::init(config.d_in, config.n_latents, config.tied, &config.init, config.seed);
    let from_rows = config.init == Init::Data;
    if from_rows || matches!(config.pre_bias, PreBias::Mean | PreBias::Median) {
        let n = split.train.len().min(START_ROWS);
        let rows: Vec<u32> = (0..n).map(|i| split.train[i * split.train.len() / n]).collect();
        let mut batch = Batch::default();
        batch.load(data, &rows, config.spec.normalize, &params.b_pre);
        params.b_pre = pre_bias_start(config.pre_bias_init(), config.d_in, &batch.input);
        if from_rows {
            batch.load(data, &rows, config.spec.normalize, &params.b_pre);
            let unit = config.spec.unit_norm_decoder;
            latents_from_rows(&mut params, &batch.input, config.spec.k, unit, config.seed);
        }
    }
    TrainState::start(params, config.spec.ema.is_some())
}

/// Makes each latent's encoder row a training row drawn at random, as K-SVD starts its atoms (Aharon, Elad &
/// Bruckstein 2006): a direction in which there are data, where a random one may miss all of them. The decoder
/// starts as the encoder, and both as long as makes the first reconstructions fit best in the least squares. Where
/// decoder rows are kept at length 1 (`unit`), the encoder takes the whole factor, or none in a tied model.
///
/// `input` holds rows `x' - b_pre` (n, D). A row of zeros leaves its latents their random start, of length 1.
fn latents_from_rows(params: &mut Params, input: &[f32], k: usize, unit: bool, seed: u64) {
    let (d, n) = (params.d_in, input.len() / params.d_in);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0xda7a_57a2_7000_0001);
    for latent in params.w_enc.chunks_exact_mut(d) {
        let row = rng.random_range(0..n);
        let row = &input[row * d..(row + 1) * d];
        if row.iter().any(|&x| x != 0.0) {
            latent.copy_from_slice(row);
            normalize(latent);
        }
    }
    let scale = best_scale(params, input, k);
    let (encoder, decoder) = if unit { (scale, 1.0) } else { (scale.sqrt(), scale.sqrt()) };
    if let Some(w_dec) = &mut params.w_dec {
        w_dec.iter_mut().zip(&params.w_enc).for_each(|(dec, enc)| *dec = decoder * enc);
    }
    if !(unit && params.tied()) {
        params.w_enc.iter_mut().for_each(|w| *w *= encoder);
    }
}

/// The factor `s` that makes `s h W` come nearest to the rows, with `h` the top k of `input W^T`; 1 where there is none.
fn best_scale(params: &Params, input: &[f32], k: usize) -> f32 {
    let (d, m) = (params.d_in, params.n_latents);
    let all = input.len() / d;
    let n = all.min(SCALE_ROWS);
    let rows: Vec<f32> = (0..n).flat_map(|i| &input[i * all / n * d..][..d]).copied().collect();
    let mut scores = vec![0.0; n * m];
    parallel_product(
        &mut scores,
        View::new(&rows, n, d, d),
        View::new(&params.w_enc, m, d, d).t(),
        (256, 256),
    );
    let (mut scratch, mut top) = (select::Scratch::default(), vec![]);
    let (mut along, mut square) = (0.0, 0.0);
    for (x, z) in rows.chunks_exact(d).zip(scores.chunks_exact(m)) {
        select::top_k(z, k, &mut scratch, &mut top);
        let mut recon = vec![0.0f64; d];
        for &(j, h) in &top {
            let latent = &params.w_enc[j as usize * d..][..d];
            recon.iter_mut().zip(latent).for_each(|(y, &w)| *y += f64::from(h) * f64::from(w));
        }
        along += x.iter().zip(&recon).map(|(&x, y)| f64::from(x) * y).sum::<f64>();
        square += recon.iter().map(|y| y * y).sum::<f64>();
    }
    let scale = (along / square) as f32;
    if scale > 0.0 && scale.is_finite() { scale } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(tied: bool, unit: bool) -> (Params, Vec<f32>) {
        let d = 6;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut rows: Vec<f32> = (0..40 * d).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        rows[..d].fill(0.0);
        let mut params = Params::init(d, 24, tied, &Init::Data, 7);
        latents_from_rows(&mut params, &rows, 3, unit, 7);
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
            let at_a_row = |w: &&[f32]| rows.chunks_exact(6).any(|x| cosine(w, x) > 0.9999);
            let pointing = params.w_enc.chunks_exact(6).filter(at_a_row).count();
            assert!(pointing >= 22, "{pointing} of 24");
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
    fn rows_of_zeros_leave_a_start_of_length_one() {
        let mut params = Params::init(4, 5, false, &Init::Data, 3);
        latents_from_rows(&mut params, &[0.0; 40], 2, false, 3);
        for row in params.w_enc.chunks_exact(4) {
            let norm: f32 = row.iter().map(|v| v * v).sum();
            assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        }
    }
}
