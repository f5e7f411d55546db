//! `model.safetensors`: the trained model as other programs read it.
//!
//! Tensors, float32, row-major: `w_enc` (M, D), `w_dec` (M, D; written out in a tied model too), `b_pre` (D),
//! `b_lat` (M). The metadata's `config` is JSON, see [`ModelMeta`].

use crate::backend::{Inference, ModelSpec};
use crate::config::{Config, Options, Preset};
use crate::error::{Error, Result};
use crate::files::{self, Tensor};
use crate::model::Params;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::path::Path;

const KEY: &str = "config";

/// What has to be known to use a model, and where it came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelMeta {
    /// Program and version that wrote it.
    pub version: String,
    /// Preset it was trained with.
    pub preset: Preset,
    /// D.
    pub d_in: usize,
    /// M.
    pub n_latents: usize,
    /// k.
    pub k: usize,
    /// True: `w_dec` equals `w_enc`.
    pub tied: bool,
    /// True: rows are normalised before, and their scale and mean given back after.
    pub normalize: bool,
    /// Added to a row's standard deviation.
    pub norm_eps: f64,
    /// `topk` or `relu`.
    pub inference: Inference,
    /// Seed of start, order and noise.
    pub seed: u64,
    /// Training steps done.
    pub steps: u64,
    /// Mean row of the training split (D): FVU is measured against it. Empty in a model that was trained elsewhere.
    pub train_mean: Vec<f32>,
    /// All options of the run.
    pub options: Options,
}

impl ModelMeta {
    /// Of a run that has done `steps` steps.
    pub fn new(config: &Config, steps: u64, train_mean: &[f64]) -> Self {
        Self {
            version: format!("sae {}", env!("CARGO_PKG_VERSION")),
            preset: config.preset,
            d_in: config.d_in,
            n_latents: config.n_latents,
            k: config.spec.k,
            tied: config.tied,
            normalize: config.spec.normalize,
            norm_eps: config.spec.norm_eps,
            inference: config.spec.inference,
            seed: config.seed,
            steps,
            train_mean: train_mean.iter().map(|&v| v as f32).collect(),
            options: config.to_options(),
        }
    }

    /// The seed of the split that the model was trained with.
    pub fn split_seed(&self) -> u64 {
        self.options.split_seed.unwrap_or(self.seed)
    }

    /// What a backend needs for evaluation; the training options are those of the run.
    ///
    /// # Errors
    /// Options that do not make sense together: the file was altered.
    pub fn spec(&self) -> Result<ModelSpec> {
        // The number of training rows is not known here. It bounds the batch, which evaluation has no use for.
        let options = Options { batch_size: None, ..self.options.clone() };
        Ok(ModelSpec { norm_eps: self.norm_eps, ..Config::resolve(&options, self.d_in, 1)?.spec })
    }
}

/// Writes a model, whole or not at all.
///
/// # Errors
/// As the disk gives them.
pub fn save(path: &Path, params: &Params, meta: &ModelMeta) -> Result<()> {
    let matrix = || vec![params.n_latents, params.d_in];
    let tensors = [
        Tensor::f32("w_enc".into(), matrix(), &params.w_enc),
        Tensor::f32("w_dec".into(), matrix(), params.decoder()),
        Tensor::f32("b_pre".into(), vec![params.d_in], &params.b_pre),
        Tensor::f32("b_lat".into(), vec![params.n_latents], &params.b_lat),
    ];
    let json = serde_json::to_string(meta)
        .map_err(|e| Error::Failed(format!("the model's configuration cannot be written: {e}")))?;
    files::write_safetensors(path, &tensors, KEY, json)
}

/// Reads a model.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Model`] if it is no model of this program, cut or altered.
pub fn load(path: &Path) -> Result<(Params, ModelMeta)> {
    let wrong = |what: String| Error::Model {
        path: path.to_owned(),
        what: format!(
            "is not a model of sae, or is damaged ({what}); give a run folder or its model.safetensors"
        ),
    };
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
    let entry = header.metadata().as_ref().and_then(|map| map.get(KEY));
    let json = entry.ok_or_else(|| wrong("no `config` in its metadata".into()))?;
    let meta: ModelMeta = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let view = file.tensor(name).map_err(|e| wrong(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return Err(wrong(format!("{name} is {:?} {:?}, not F32 {shape:?}", view.dtype(), view.shape())));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let (d, m) = (meta.d_in, meta.n_latents);
    let w_dec = read("w_dec", &[m, d])?;
    let params = Params {
        d_in: d,
        n_latents: m,
        w_enc: read("w_enc", &[m, d])?,
        w_dec: (!meta.tied).then_some(w_dec),
        b_pre: read("b_pre", &[d])?,
        b_lat: read("b_lat", &[m])?,
    };
    if meta.k == 0 || meta.k > m || d == 0 || ![0, d].contains(&meta.train_mean.len()) {
        return Err(wrong("its sizes do not fit together".into()));
    }
    Ok((params, meta))
}
