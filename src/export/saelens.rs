//! SAELens 6: `cfg.json` and `sae_weights.safetensors`, read by `SAE.load_from_disk` (`sae_lens/saes/sae.py`,
//! `topk_sae.py`, `standard_sae.py` of 6.54).
//!
//! `W_enc` (D, M), `W_dec` (M, D), `b_dec` (D), `b_enc` (M). Its `layer_norm` is our normalisation: unbiased standard
//! deviation, 1e-5 added to it, and the standard deviation without it on the way back.

use super::foreign::{Activation, Foreign};
use super::tensors::{Settings, Tensors, not_representable};
use super::{Notes, transpose, write_json, write_tensors};
use crate::backend::Inference;
use crate::error::Result;
use crate::files::Tensor;
use crate::model::Params;
use crate::model_file::ModelMeta;
use serde_json::json;
use std::path::Path;

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae_weights.safetensors";
/// Log10 of the firing rates, tensor `sparsity` (M): optional, next to a model that SAELens trained itself.
pub(super) const SPARSITY: &str = "sparsity.safetensors";
/// Added to a rate before its logarithm (`sae_lens/training/sae_trainer.py`): a latent that never fires has -10.
const RATE_EPS: f64 = 1e-10;
/// Version of the format: without one of at least 6 SAELens takes its reader of old models.
const VERSION: &str = "6.18.0";

/// Writes the folder; `firing_rates` (M), if known, into `sparsity.safetensors`.
pub(super) fn write(
    folder: &Path,
    params: &Params,
    meta: &ModelMeta,
    firing_rates: Option<&[f64]>,
) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let mut config = json!({
        "architecture": "topk",
        "d_in": d,
        "d_sae": m,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": true,
        "normalize_activations": if meta.normalize { "layer_norm" } else { "none" },
        "reshape_activations": "none",
        "metadata": { "sae_lens_version": VERSION, "sae_lens_training_version": VERSION },
    });
    match meta.inference {
        Inference::Topk => {
            config["k"] = json!(meta.k);
            config["rescale_acts_by_decoder_norm"] = json!(false);
        }
        Inference::Relu => config["architecture"] = json!("standard"),
    }
    write_json(&folder.join(CONFIG), &config)?;
    let w_enc = transpose(&params.w_enc, m, d);
    write_tensors(
        &folder.join(WEIGHTS),
        &[
            Tensor::f32("W_enc".into(), vec![d, m], &w_enc),
            Tensor::f32("W_dec".into(), vec![m, d], params.decoder()),
            Tensor::f32("b_enc".into(), vec![m], &params.b_lat),
            Tensor::f32("b_dec".into(), vec![d], &params.b_pre),
        ],
    )?;
    if let Some(rates) = firing_rates {
        let logs: Vec<f32> = rates.iter().map(|rate| (rate + RATE_EPS).log10() as f32).collect();
        write_tensors(&folder.join(SPARSITY), &[Tensor::f32("sparsity".into(), vec![m], &logs)])?;
    }
    let load = "from sae_lens import SAE\nsae = SAE.load_from_disk(DIR)\ncodes = sae.encode(x); recon = sae.decode(codes)";
    Ok(Notes { load: load.into(), warning: None })
}

pub(super) fn read(folder: &Path) -> Result<Foreign> {
    let path = folder.join(CONFIG);
    let config = Settings::read(&path)?;
    let refuse = |what: String| Err(not_representable(&path, &what));
    let architecture = config.text("architecture")?.unwrap_or_default();
    let activation = match architecture.as_str() {
        "topk" => Activation::Topk(config.count("k")?),
        "standard" => Activation::Relu,
        other => return refuse(format!("architecture `{other}`; only topk and standard can be read")),
    };
    for key in ["activation_fn_str", "activation_fn"] {
        if let Some(name) = config.text(key)?.filter(|name| name != "relu" && name != "topk") {
            return refuse(format!("{key} `{name}`"));
        }
    }
    let normalize = match config.text("normalize_activations")?.as_deref() {
        None | Some("none") => false,
        Some("layer_norm") => true,
        Some(other) => return refuse(format!("normalize_activations `{other}`")),
    };
    if let Some(reshape) = config.text("reshape_activations")?.filter(|r| r != "none") {
        return refuse(format!("reshape_activations `{reshape}`"));
    }
    let mut tensors = Tensors::read(&folder.join(WEIGHTS))?;
    let (d, m, w_enc) = tensors.matrix("W_enc")?;
    let mut model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc: transpose(&w_enc, d, m),
        w_dec: tensors.take("W_dec", &[m, d])?,
        b_enc: tensors.take("b_enc", &[m])?,
        b_in: vec![0.0; d],
        b_dec: tensors.take("b_dec", &[d])?,
        activation,
        normalize: Some(normalize),
    };
    if config.flag("apply_b_dec_to_input")?.unwrap_or(true) {
        model.b_in.clone_from(&model.b_dec);
    }
    if config.flag("rescale_acts_by_decoder_norm")?.unwrap_or(false) {
        model.fold_decoder_norms();
    }
    tensors.nothing_left(&[])?;
    Ok(model)
}
