//! dictionary_learning: `ae.pt` and `config.json`, read by `dictionary_learning.utils.load_dictionary`
//! (`trainers/top_k.py`, `dictionary.py` of 0.1).
//!
//! `AutoEncoderTopK`: `b_dec` (D), `k` (int32, no dimensions), `threshold` (float32, no dimensions, -1 is unset),
//! `encoder.weight` (M, D), `encoder.bias` (M), `decoder.weight` (D, M). The encoder sees `x - b_dec`; codes are the k
//! largest of relu. `AutoEncoder` (relu): `bias` (D) in the place of `b_dec`, no k; its loader scales decoder rows to
//! length 1, and codes with them. No normalisation of rows.

use super::foreign::{Foreign, ForeignActivation};
use super::pt::{self, Item};
use super::tensors::{ForeignSettings, Tensors, not_representable, wrong};
use super::{Notes, by_hand, transpose, write_json};
use crate::error::Result;
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::Inference;
use safetensors::Dtype;
use serde_json::json;
use std::path::Path;

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "ae.pt";
const TOPK: &str = "AutoEncoderTopK";
const RELU: &str = "AutoEncoder";
/// Trainers of these two classes; the first names are those of version 0.1, the last of before it.
const TRAINERS: [&str; 5] =
    ["TopKTrainer", "StandardTrainer", "StandardTrainerAprilUpdate", "PAnnealTrainer", "TrainerTopK"];

pub(super) fn write(folder: &Path, params: &Params, meta: &ModelMeta) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let topk = meta.architecture.forward.inference == Inference::Topk;
    let mut trainer = json!({
        "trainer_class": "sae",
        "dict_class": if topk { TOPK } else { RELU },
        "activation_dim": d,
        "dict_size": m,
        "steps": meta.provenance.steps,
        "seed": meta.provenance.seed,
    });
    let w_dec = transpose(params.decoder(), m, d);
    let mut items = vec![
        (if topk { "b_dec" } else { "bias" }, Item::f32(vec![d], &params.b_pre)),
        ("encoder.weight", Item::f32(vec![m, d], &params.w_enc)),
        ("encoder.bias", Item::f32(vec![m], &params.b_lat)),
        ("decoder.weight", Item::f32(vec![d, m], &w_dec)),
    ];
    let k = (meta.architecture.forward.k as i32).to_le_bytes();
    if topk {
        trainer["k"] = json!(meta.architecture.forward.k);
        items.push(("k", Item::Tensor(Dtype::I32, vec![], &k)));
        items.push(("threshold", Item::f32(vec![], &[-1.0])));
    }
    write_json(&folder.join(CONFIG), &json!({ "trainer": trainer, "buffer": {} }))?;
    pt::write(&folder.join(WEIGHTS), &items)?;
    let loaded = match topk {
        true => {
            "from dictionary_learning.utils import load_dictionary\nae, config = load_dictionary(DIR, \"cpu\")"
        }
        // The loader of relu models scales decoder rows to norm 1, and with them the codes, unless told not to.
        false => {
            "from dictionary_learning import AutoEncoder\n\
             ae = AutoEncoder.from_pretrained(\"DIR/ae.pt\", normalize_decoder=False)"
        }
    };
    let scaled = "load_dictionary multiplies the codes of a relu model by the norms of its decoder rows (the \
                  reconstruction stays); load it with AutoEncoder.from_pretrained and normalize_decoder=False";
    let notes = [
        (!topk).then(|| scaled.to_owned()),
        meta.architecture.forward.normalize.then(|| by_hand("dictionary_learning", meta)),
    ];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    Ok(Notes {
        load: format!("{loaded}\ncodes = ae.encode(x); recon = ae.decode(codes)"),
        warning: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

/// `path` is the folder, or the file of weights (`.pt`, or the same tensors as safetensors).
pub(super) fn read(path: &Path, ignored: &[String]) -> Result<Foreign> {
    let weights = if path.is_dir() { path.join(WEIGHTS) } else { path.to_owned() };
    let ignores = |setting: &str| ignored.iter().any(|name| name == setting);
    let config = weights.with_file_name(CONFIG);
    // The library's own loader looks at these two settings alone, so that no other one changes a code. Where there is no
    // class, the trainer tells.
    let (mut k, mut class) = (None, None);
    if config.is_file()
        && let Some(trainer) = ForeignSettings::read(&config)?.inner("trainer")?
    {
        k = trainer.count("k")?;
        class = trainer.text("dict_class")?;
        if let Some(class) = class.as_ref().filter(|c| *c != TOPK && *c != RELU) {
            return Err(not_representable(&config, &format!("dict_class `{class}`")));
        }
        let other = trainer.text("trainer_class")?.filter(|name| !TRAINERS.contains(&name.as_str()));
        if let Some(other) = other.filter(|_| class.is_none() && !ignores("trainer_class")) {
            let what = format!(
                "has trainer_class `{other}` and no dict_class, so it may be no {TOPK}; add `--ignore trainer_class` if it is one"
            );
            return Err(wrong(&config, what));
        }
    }
    let mut tensors = Tensors::read(&weights)?;
    let (m, d, w_enc) = tensors.matrix("encoder.weight")?;
    let relu = tensors.tensors.contains_key("bias");
    let b_dec = tensors.take(if relu { "bias" } else { "b_dec" }, &[d])?;
    if let Some(class) = class.as_ref().filter(|class| relu != (*class == RELU)) {
        let what = format!("has dict_class `{class}`, whose tensors are not those of {}", weights.display());
        return Err(wrong(&config, what));
    }
    let stored_k = tensors.scalar("k").map(|k| k as usize);
    if let (Some(k), Some(stored)) = (k, stored_k)
        && k != stored
    {
        let what = format!("does not go with {}: k is {k} here, and {stored} there", weights.display());
        return Err(wrong(&config, what));
    }
    let activation = if relu { ForeignActivation::Relu } else { ForeignActivation::Topk(stored_k.or(k)) };
    let w_dec = tensors.take("decoder.weight", &[d, m])?;
    let model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc,
        w_dec: transpose(&w_dec, d, m),
        b_enc: tensors.take("encoder.bias", &[m])?,
        b_in: b_dec.clone(),
        b_dec,
        activation,
        normalize: None,
    };
    // A top-k model's encode uses no threshold unless its caller asks for it; a BatchTopK model has the same tensors and
    // does, and without a configuration nothing says which it is.
    let threshold = tensors.scalar("threshold").filter(|threshold| *threshold >= 0.0);
    if !relu && class.is_none() && threshold.is_some() && !ignores("threshold") {
        let what = "has a threshold and no config.json that names its dict_class, so it may be a BatchTopKSAE; put the \
                    config.json beside it, or add `--ignore threshold` if it is an AutoEncoderTopK";
        return Err(wrong(&weights, what.into()));
    }
    tensors.nothing_left(&[], ignored)?;
    Ok(model)
}
