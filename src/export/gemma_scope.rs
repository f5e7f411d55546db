//! Gemma Scope, read alone: `params.npz` of the first (`W_enc` (D, M), `W_dec` (M, D), `b_enc` (M), `b_dec` (D),
//! `threshold` (M)), `params.safetensors` of the second with the same in lower case, and a `config.json` beside it
//! (`sae_lens/loading/pretrained_sae_loaders.py` of SAELens 6.54, `gemma_2_sae_huggingface_loader` and
//! `gemma_3_sae_huggingface_loader`).
//!
//! `z = W_enc x + b_enc`, `h = z` where `z > threshold`, `y = h W_dec + b_dec`: nothing is subtracted from the input, and rows
//! are not normalised.

use super::foreign::{Foreign, ForeignActivation};
use super::tensors::{ForeignSettings, Tensors, not_representable, wrong};
use super::transpose;
use crate::error::Result;
use std::path::{Path, PathBuf};

/// Of the first and of the second.
pub(super) const WEIGHTS: [&str; 2] = ["params.npz", "params.safetensors"];
const CONFIG: &str = "config.json";
/// Settings that change no code; `hf_hook_point_out` and `type` are looked at.
const HARMLESS: [&str; 4] = ["hf_hook_point_in", "l0", "model_name", "width"];
const USED: [&str; 5] =
    ["affine_connection", "apply_b_dec_to_input", "architecture", "hf_hook_point_out", "type"];

/// The weights in a folder, if there are some.
pub(super) fn weights_in(folder: &Path) -> Option<PathBuf> {
    WEIGHTS.iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

/// The setting of the second's `config.json` that this is no such autoencoder by; else the mean number of active latents
/// that it was trained for.
fn settings(path: &Path, ignored: &[String]) -> Result<(Option<usize>, bool)> {
    let config = ForeignSettings::read(path)?;
    let refuse = |what: String| Err(not_representable(path, &what));
    if let Some(other) = config.text("architecture")?.filter(|name| name != "jump_relu") {
        return refuse(format!("architecture `{other}`"));
    }
    if let Some(other) = config.text("type")?.filter(|kind| kind != "sae") {
        return refuse(format!("type `{other}`"));
    }
    let (from, to) = (config.text("hf_hook_point_in")?, config.text("hf_hook_point_out")?);
    if to.is_some() && to != from {
        return refuse("another hf_hook_point_out than hf_hook_point_in: a transcoder".into());
    }
    if config.flag("affine_connection")?.unwrap_or(false) {
        return refuse("an affine_connection".into());
    }
    config.nothing_else(&[&HARMLESS[..], &USED].concat(), ignored)?;
    Ok((
        config.number("l0")?.map(|l0| l0.ceil() as usize),
        config.flag("apply_b_dec_to_input")?.unwrap_or(false),
    ))
}

/// `path` is the file of weights.
pub(super) fn read(path: &Path, ignored: &[String]) -> Result<Foreign> {
    let config = path.with_file_name(CONFIG);
    let (l0, subtracted) = if config.is_file() { settings(&config, ignored)? } else { (None, false) };
    let mut tensors = Tensors::read(path)?;
    let lower = tensors.tensors.contains_key("w_enc");
    let [w_enc, w_dec] = if lower { ["w_enc", "w_dec"] } else { ["W_enc", "W_dec"] };
    if tensors.tensors.contains_key("affine_skip_connection") {
        return Err(not_representable(path, "an affine_skip_connection"));
    }
    let (d, m, encoder) = tensors.matrix(w_enc)?;
    if let Some(decoder) = tensors.tensors.get(w_dec).filter(|decoder| decoder.shape != [m, d]) {
        let what = format!(
            "{w_dec} is {:?}, not [{m}, {d}]: a transcoder reconstructs other rows than it reads",
            decoder.shape
        );
        return Err(wrong(path, what));
    }
    let factors = "scaling_factor";
    if tensors.tensors.contains_key(factors)
        && tensors.take(factors, &[m])?.iter().any(|factor| *factor != 1.0)
    {
        return Err(not_representable(path, "a scaling_factor of codes other than 1"));
    }
    let b_dec = tensors.take("b_dec", &[d])?;
    let model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc: transpose(&encoder, d, m),
        w_dec: tensors.take(w_dec, &[m, d])?,
        b_enc: tensors.take("b_enc", &[m])?,
        b_in: if subtracted { b_dec.clone() } else { vec![0.0; d] },
        b_dec,
        activation: ForeignActivation::JumpRelu(l0),
        threshold: Some(tensors.take("threshold", &[m])?),
        prefixes: vec![],
        normalize: Some(false),
    };
    tensors.nothing_left(&[], ignored)?;
    Ok(model)
}
