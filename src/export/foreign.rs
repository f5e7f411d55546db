//! A model as other libraries have it, with an input bias of its own, and its way into ours.

use crate::error::{Error, Result};
use crate::model::Params;
use crate::model::file::{ModelMeta, Provenance};
use crate::spec::{Activation, Architecture, Forward, Inference, NORM_EPS, Prefixes};

/// Codes of a foreign model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForeignActivation {
    /// relu of the k largest scores; `None` where the file does not say how many.
    Topk(Option<usize>),
    /// The k scores of largest magnitude, with their signs.
    AbsTopk(usize),
    /// relu of all scores.
    Relu,
}

/// `h = activation((x' - b_in) W_enc^T + b_enc)`, `y' = h W_dec + b_dec`, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Foreign {
    /// D.
    pub d_in: usize,
    /// M.
    pub n_latents: usize,
    /// (M, D).
    pub w_enc: Vec<f32>,
    /// (M, D).
    pub w_dec: Vec<f32>,
    /// (M), added to the scores.
    pub b_enc: Vec<f32>,
    /// (D), subtracted from the input.
    pub b_in: Vec<f32>,
    /// (D), added to the reconstruction.
    pub b_dec: Vec<f32>,
    /// How scores become codes.
    pub activation: ForeignActivation,
    /// Whether the library normalises each row; `None` where it has no such thing and the caller may do it.
    pub normalize: Option<bool>,
}

impl Foreign {
    /// Whether the decoder's rows have length 1, up to rounding.
    pub fn has_unit_decoder(&self) -> bool {
        self.w_dec.chunks_exact(self.d_in).all(|row| {
            let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
            (squares.sqrt() - 1.0).abs() < 1e-5
        })
    }

    /// Folds SAELens' `rescale_acts_by_decoder_norm`: scores are multiplied by the norms of the decoder's rows n,
    /// codes divided by them before decoding. Encoder rows and biases times n, decoder rows over n, is the same.
    pub fn fold_decoder_norms(&mut self) {
        let d = self.d_in;
        for j in 0..self.n_latents {
            let row = &mut self.w_dec[j * d..(j + 1) * d];
            let norm = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            // A zero row decodes to nothing, and its score becomes zero either way.
            for value in row {
                *value = if norm > 0.0 { (f64::from(*value) / norm) as f32 } else { 0.0 };
            }
            for value in &mut self.w_enc[j * d..(j + 1) * d] {
                *value = (f64::from(*value) * norm) as f32;
            }
            self.b_enc[j] = (f64::from(self.b_enc[j]) * norm) as f32;
        }
    }

    /// Our tensors. We have one pre-bias for both sides, the decoder's:
    /// `(x' - b_in) W^T + b_enc = (x' - b_dec) W^T + (b_enc + W (b_dec - b_in))`.
    pub fn into_params(self) -> Params {
        let mut b_lat = self.b_enc;
        if self.b_in != self.b_dec {
            for (bias, row) in b_lat.iter_mut().zip(self.w_enc.chunks_exact(self.d_in)) {
                let moved: f64 = (row.iter().zip(&self.b_dec).zip(&self.b_in))
                    .map(|((&w, &to), &from)| f64::from(w) * (f64::from(to) - f64::from(from)))
                    .sum();
                *bias = (f64::from(*bias) + moved) as f32;
            }
        }
        let tied = self.w_dec == self.w_enc;
        Params {
            d_in: self.d_in,
            n_latents: self.n_latents,
            w_enc: self.w_enc,
            w_dec: (!tied).then_some(self.w_dec),
            b_pre: self.b_dec,
            b_lat,
            threshold: None,
        }
    }
}

/// Metadata of an imported model that nothing of ours is known about. Its `train_mean` is empty: evaluation takes
/// the mean of the rows that it is given.
///
/// # Errors
/// A k that does not fit, or rows of one value that are to be normalised.
pub fn fresh_meta(
    params: &Params,
    k: usize,
    (activation, inference): (Activation, Inference),
    normalize: bool,
    origin: &str,
) -> Result<ModelMeta> {
    let (d_in, n_latents) = (params.d_in, params.n_latents);
    if k == 0 || k > n_latents {
        return Err(Error::Usage(format!(
            "--k {k} must lie between 1 and the number of latents, {n_latents}: give the k that the model was trained with"
        )));
    }
    if normalize && d_in < 2 {
        return Err(Error::Usage("rows of one value cannot be normalised: leave --normalize out".into()));
    }
    let prefixes = Prefixes::default();
    let forward = Forward { k, activation, inference, normalize, norm_eps: NORM_EPS, prefixes };
    Ok(ModelMeta {
        architecture: Architecture { d_in, n_latents, tied: params.tied(), forward },
        provenance: Provenance {
            version: format!("sae {}, imported from {origin}", env!("CARGO_PKG_VERSION")),
            ..Provenance::default()
        },
        train_mean: vec![],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(model: &Foreign, x: &[f32]) -> Vec<f32> {
        let shifted: Vec<f32> = x.iter().zip(&model.b_in).map(|(x, b)| x - b).collect();
        let rows = model.w_enc.chunks_exact(model.d_in).zip(&model.b_enc);
        rows.map(|(w, b)| b + w.iter().zip(&shifted).map(|(w, x)| w * x).sum::<f32>()).collect()
    }

    fn model() -> Foreign {
        Foreign {
            d_in: 2,
            n_latents: 3,
            w_enc: vec![1.0, 2.0, -1.0, 0.5, 3.0, -2.0],
            w_dec: vec![3.0, 4.0, 0.0, 2.0, -5.0, 12.0],
            b_enc: vec![0.5, -0.25, 1.0],
            b_in: vec![0.0, 1.0],
            b_dec: vec![2.0, -1.0],
            activation: ForeignActivation::Relu,
            normalize: None,
        }
    }

    #[test]
    fn another_input_bias_is_folded_into_the_latents_bias() {
        let (x, foreign) = ([0.75, -1.5], model());
        let want = scores(&foreign, &x);
        let params = foreign.clone().into_params();
        assert_eq!(params.b_pre, vec![2.0, -1.0]);
        assert_ne!(params.b_lat, foreign.b_enc);
        let ours = Foreign { b_in: params.b_pre.clone(), b_enc: params.b_lat, ..foreign };
        // All values are small multiples of 1/8: no rounding.
        assert_eq!(scores(&ours, &x), want);
    }

    #[test]
    fn decoder_norms_are_folded_into_both_sides() {
        let (x, before) = ([0.75, -1.5], model());
        let mut after = before.clone();
        after.fold_decoder_norms();
        let norms = [5.0, 2.0, 13.0];
        let want: Vec<f32> = scores(&before, &x).iter().zip(norms).map(|(z, n)| z * n).collect();
        for (got, want) in scores(&after, &x).iter().zip(&want) {
            assert!((got - want).abs() < 1e-5, "{got} {want}");
        }
        assert_eq!(after.w_dec, vec![0.6, 0.8, 0.0, 1.0, -5.0 / 13.0, 12.0 / 13.0]);
    }
}
