//! OpenAI's sparse_autoencoder: `autoencoder.pt`, the state dict of `Autoencoder` (`sparse_autoencoder/model.py`).
//!
//! `pre_bias` (D), `latent_bias` (M), `encoder.weight` (M, D), `decoder.weight` (D, M), the buffers `stats_last_nonzero`
//! (M) int64, `latents_activation_frequency` and `latents_mean_square` (M); `activation`, the name of its class, and
//! `activation_state_dict`. `from_state_dict` switches LayerNorm (ours) on where the activation is `TopK` and off
//! where it is not.

use super::foreign::{Foreign, ForeignActivation};
use super::pt::{self, Item};
use super::tensors::{Tensors, not_representable};
use super::{Notes, other_eps, top, transpose};
use crate::error::Result;
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::Inference;
use safetensors::Dtype;
use std::path::Path;

pub(super) const WEIGHTS: &str = "autoencoder.pt";

pub(super) fn write(folder: &Path, params: &Params, meta: &ModelMeta) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let w_dec = transpose(params.decoder(), m, d);
    let (zeros, ones, last_nonzero) = (vec![0.0; m], vec![1.0; m], vec![0u8; 8 * m]);
    // A relu of all scores with LayerNorm is a top k of all, because TopK alone switches LayerNorm on.
    let relu = meta.architecture.forward.inference == Inference::Relu && !meta.architecture.forward.normalize;
    let topk = vec![("k", Item::Int(top(meta))), ("postact_fn", Item::Text("ReLU"))];
    let items = [
        ("pre_bias", Item::f32(vec![d], &params.b_pre)),
        ("latent_bias", Item::f32(vec![m], &params.b_lat)),
        ("stats_last_nonzero", Item::Tensor(Dtype::I64, vec![m], &last_nonzero)),
        ("latents_activation_frequency", Item::f32(vec![m], &ones)),
        ("latents_mean_square", Item::f32(vec![m], &zeros)),
        ("encoder.weight", Item::f32(vec![m, d], &params.w_enc)),
        ("decoder.weight", Item::f32(vec![d, m], &w_dec)),
        ("activation", Item::Text(if relu { "ReLU" } else { "TopK" })),
        ("activation_state_dict", Item::Dict(if relu { vec![] } else { topk })),
    ];
    pt::write(&folder.join(WEIGHTS), &items)?;
    let load = format!(
        "import torch\nfrom sparse_autoencoder.model import Autoencoder\n\
         sae = Autoencoder.from_state_dict(torch.load(\"DIR/{WEIGHTS}\"))\n\
         codes, info = sae.encode(x); recon = sae.decode(codes, info)"
    );
    let warning = (!meta.architecture.forward.normalize && !relu).then(|| {
        "OpenAI's from_state_dict normalises rows for every top-k model, and this one was trained without: set \
         `sae.normalize = False` after loading"
            .to_owned()
    });
    Ok(Notes { load, warning: warning.or_else(|| other_eps("OpenAI's Autoencoder", meta)) })
}

pub(super) fn read(path: &Path, ignored: &[String]) -> Result<Foreign> {
    let mut tensors = Tensors::read(path)?;
    let (activation, normalize) = match tensors.texts.get("activation").map(String::as_str) {
        Some("ReLU") => (ForeignActivation::Relu, Some(false)),
        Some("TopK") => {
            let k = tensors.numbers.get("activation_state_dict.k");
            let after = tensors.texts.get("activation_state_dict.postact_fn");
            if let Some(other) = after.filter(|f| *f != "ReLU") {
                return Err(not_representable(path, &format!("postact_fn `{other}`")));
            }
            (ForeignActivation::Topk(k.and_then(|&k| usize::try_from(k).ok())), Some(true))
        }
        Some(other) => return Err(not_representable(path, &format!("activation `{other}`"))),
        None => (ForeignActivation::Topk(None), None),
    };
    let (m, d, w_enc) = tensors.matrix("encoder.weight")?;
    let pre_bias = tensors.take("pre_bias", &[d])?;
    let w_dec = match tensors.tensors.contains_key("decoder.weight") {
        true => transpose(&tensors.take("decoder.weight", &[d, m])?, d, m),
        // Tied: the library's TiedTranspose has the encoder's weights under this name.
        false => tensors.take("decoder.linear.weight", &[m, d])?,
    };
    let model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc,
        w_dec,
        b_enc: tensors.take("latent_bias", &[m])?,
        b_in: pre_bias.clone(),
        b_dec: pre_bias,
        activation,
        threshold: None,
        prefixes: vec![],
        normalize,
    };
    let used = ["activation", "activation_state_dict.k", "activation_state_dict.postact_fn"];
    let harmless = ["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"];
    tensors.nothing_left(&[used, harmless].concat(), ignored)?;
    Ok(model)
}
