//! EleutherAI's sparsify: `cfg.json` and `sae.safetensors`, read by `SparseCoder.load_from_disk`
//! (`sparsify/sparse_coder.py` of 1.3).
//!
//! `encoder.weight` (M, D), `encoder.bias` (M), `W_dec` (M, D), `b_dec` (D). The encoder sees `x - b_dec`, codes are
//! the k largest of relu. No normalisation of rows.

use super::foreign::{Foreign, ForeignActivation};
use super::tensors::{ForeignSettings, Tensors, not_representable};
use super::{Notes, by_hand, top, write_json, write_tensors};
use crate::error::Result;
use crate::files::Tensor;
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::Activation;
use serde_json::json;
use std::path::Path;

pub(super) const CONFIG: &str = "cfg.json";
pub(super) const WEIGHTS: &str = "sae.safetensors";

/// What to do about codes with signs.
const OLD: &str = "only older versions of sparsify know `signed` codes: newer ones take relu of them, which are other codes";

pub(super) fn write(folder: &Path, params: &Params, meta: &ModelMeta) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let mut config = json!({
        "activation": "topk",
        // Only read where num_latents is 0.
        "expansion_factor": m.div_ceil(d),
        "normalize_decoder": meta.provenance.options.get("unit-norm-decoder").is_some_and(|kept| kept == true),
        "num_latents": m,
        "k": top(meta),
        "multi_topk": false,
        "skip_connection": false,
        "transcode": false,
        "d_in": d,
    });
    if signed(meta) {
        // Of older versions; newer ones leave it out of their settings.
        config["signed"] = true.into();
    }
    write_json(&folder.join(CONFIG), &config)?;
    write_tensors(
        &folder.join(WEIGHTS),
        &[
            Tensor::f32("encoder.weight".into(), vec![m, d], &params.w_enc),
            Tensor::f32("encoder.bias".into(), vec![m], &params.b_lat),
            Tensor::f32("W_dec".into(), vec![m, d], params.decoder()),
            Tensor::f32("b_dec".into(), vec![d], &params.b_pre),
        ],
    )?;
    let load = "from sparsify import SparseCoder\nsae = SparseCoder.load_from_disk(DIR)\nvalues, indices, _ = sae.encode(x); recon = sae.decode(values, indices)";
    Ok(Notes {
        load: load.into(),
        warning: match (meta.architecture.forward.normalize, signed(meta)) {
            (true, false) => Some(by_hand("sparsify", meta)),
            (false, true) => Some(OLD.into()),
            (true, true) => Some(format!("{OLD}; {}", by_hand("sparsify", meta))),
            (false, false) => None,
        },
    })
}

/// Whether codes have signs: `signed` of older versions of sparsify, whose newer ones cannot run such a model.
fn signed(meta: &ModelMeta) -> bool {
    meta.architecture.forward.activation == Activation::AbsTopk
}

/// Settings that change no code: of training, and sizes that the tensors have. `multi_topk` is a second loss.
const HARMLESS: [&str; 5] = ["d_in", "expansion_factor", "multi_topk", "normalize_decoder", "num_latents"];

pub(super) fn read(folder: &Path, ignored: &[String]) -> Result<Foreign> {
    let path = folder.join(CONFIG);
    let config = ForeignSettings::read(&path)?;
    if let Some(other) = config.text("activation")?.filter(|a| a != "topk") {
        return Err(not_representable(&path, &format!("activation `{other}`")));
    }
    // Scores otherwise, in older versions.
    for key in ["skip_connection", "transcode", "gram_lookup"] {
        if config.flag(key)?.unwrap_or(false) {
            return Err(not_representable(&path, key));
        }
    }
    let used = ["activation", "k", "skip_connection", "transcode", "signed", "gram_lookup"];
    config.nothing_else(&[&HARMLESS[..], &used].concat(), ignored)?;
    // 32 is the library's default.
    let k = config.count("k")?.unwrap_or(32);
    let mut tensors = Tensors::read(&folder.join(WEIGHTS))?;
    let (m, d, w_enc) = tensors.matrix("encoder.weight")?;
    let b_dec = tensors.take("b_dec", &[d])?;
    let model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc,
        w_dec: tensors.take("W_dec", &[m, d])?,
        b_enc: tensors.take("encoder.bias", &[m])?,
        b_in: b_dec.clone(),
        b_dec,
        activation: if config.flag("signed")?.unwrap_or(false) {
            ForeignActivation::AbsTopk(k)
        } else {
            ForeignActivation::Topk(Some(k))
        },
        threshold: None,
        prefixes: vec![],
        normalize: None,
    };
    tensors.nothing_left(&[], ignored)?;
    Ok(model)
}
