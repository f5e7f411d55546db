//! Biohub's sparse autoencoders of ESMC: `config.json` and one `layer_{i}.safetensors` per layer of the protein language
//! model, read by `EsmcSaeModel.from_pretrained(DIR)` (`esm/models/esmc/sae.py` of esm 3.4.1).
//!
//! `W_enc` (D, M), `W_dec` (M, D), `b_dec` (D), `idf` (M), `max` (M). With x' our normalised row, codes are the k largest of
//! `relu((x' - b_dec) W_enc)`; what they decode to, `h W_dec + b_dec`, is compared with x' and never put back to x. `idf`
//! and `max` are no part of that: where its caller asks for `normalize_sae`, the language model multiplies codes by
//! `idf / max` afterwards.
//!
//! There is no bias of latents. A normalised row sums to zero, so that adding one number c to all values of a column of
//! `W_enc` changes its score by `-c sum(b_dec)` and by nothing else: see `fold_latent_bias`.

use super::foreign::{Foreign, ForeignActivation};
use super::tensors::{ForeignSettings, Tensors, wrong};
use super::{Notes, other_eps, top, transpose, write_json, write_tensors};
use crate::analysis::codes::Firing;
use crate::error::{Error, Result};
use crate::files::Tensor;
use crate::model::Params;
use crate::model::file::ModelMeta;
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) const CONFIG: &str = "config.json";
const MODEL_TYPE: &str = "esmc_sae";
/// Least magnitude of the mean of `b_dec` that a bias of latents is folded with. Every value of the reconstruction of x',
/// whose variance is 1, moves by at most as much: 4e-6 more mean squared error. The smaller it is, the larger the numbers
/// that cancel in a score; this one leaves codes exact to float32, and to bfloat16 where ESMC is run in that.
const LEAST_MEAN: f64 = 0.002;

/// What the format says of the rows, which a model of ours does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Index i of the hidden state h\[i\] of ESMC that rows are taken from.
    pub layer: u32,
    /// Rows are `h[i] - h[i - 1]` instead (h\[0\] at layer 0).
    pub residual_updates: bool,
}

impl Origin {
    /// Which rows the model takes.
    pub fn rows(self) -> String {
        match (self.residual_updates, self.layer) {
            (true, layer @ 1..) => format!("residual updates h[{layer}] - h[{}] of ESMC", layer - 1),
            (_, layer) => format!("hidden states h[{layer}] of ESMC"),
        }
    }
}

/// The file of a layer.
pub(super) fn weights(layer: u32) -> String {
    format!("layer_{layer}.safetensors")
}

/// The layer of a file named as [`weights`] does.
pub(super) fn layer_of(name: &str) -> Option<u32> {
    let layer = name.strip_prefix("layer_")?.strip_suffix(".safetensors")?.parse().ok()?;
    (weights(layer) == name).then_some(layer)
}

/// Layers whose files are in a folder, rising.
pub(super) fn layers_in(folder: &Path) -> Vec<u32> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut layers: Vec<u32> =
        entries.filter_map(|entry| layer_of(&entry.file_name().to_string_lossy())).collect();
    layers.sort_unstable();
    layers
}

/// Whether a folder's `config.json` calls itself a model of this format.
pub(super) fn is_one(folder: &Path) -> bool {
    let kind = ForeignSettings::read(&folder.join(CONFIG)).and_then(|config| config.text("model_type"));
    kind.ok().flatten().is_some_and(|kind| kind == MODEL_TYPE)
}

/// Refuses a model that the format cannot hold.
pub(super) fn check(meta: &ModelMeta) -> Result<()> {
    if meta.architecture.forward.normalize {
        return Ok(());
    }
    Err(Error::Usage(
        "--format esmc: ESMC normalises every row, and this model takes rows as they are (--no-normalize); use --format \
         saelens, or train it without --no-normalize"
            .into(),
    ))
}

/// `firing`: what rows of data showed of the latents; without it `idf` and `max` are 1, as in `EsmcSaeLayer` itself, and
/// change nothing.
pub(super) fn write(
    folder: &Path,
    params: &Params,
    meta: &ModelMeta,
    origin: Origin,
    firing: Option<&Firing>,
) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let config = json!({
        "model_type": MODEL_TYPE,
        "d_model": d,
        "codebook_dim": m,
        "k": top(meta),
        "available_layers": [origin.layer],
        "use_residual_update_instead_of_states": origin.residual_updates,
    });
    write_json(&folder.join(CONFIG), &config)?;
    let Folded { w_enc, b_dec, shift } = fold_latent_bias(params);
    let w_enc = transpose(&w_enc, m, d);
    let (idf, max) = firing.map_or_else(|| (vec![1.0; m], vec![1.0; m]), idf_and_max);
    write_tensors(
        &folder.join(weights(origin.layer)),
        &[
            Tensor::f32("W_enc".into(), vec![d, m], &w_enc),
            Tensor::f32("W_dec".into(), vec![m, d], params.decoder()),
            Tensor::f32("b_dec".into(), vec![d], &b_dec),
            Tensor::f32("idf".into(), vec![m], &idf),
            Tensor::f32("max".into(), vec![m], &max),
        ],
    )?;
    let folded = (shift != 0.0).then(|| {
        format!(
            "ESMC has no bias of latents: it is folded into W_enc, which leaves the codes as they are, and every value of \
             its reconstruction of a normalised row moves by {shift:.4}"
        )
    });
    let warning: Vec<String> = [folded, other_eps("ESMC", meta)].into_iter().flatten().collect();
    Ok(Notes {
        load: format!(
            "from esm.models.esmc import EsmcSaeModel\nsae = EsmcSaeModel.from_pretrained(DIR)\n\
             codes = sae(x).feature_magnitudes  # x: rows (N, {d}), {}",
            origin.rows()
        ),
        warning: (!warning.is_empty()).then(|| warning.join("; ")),
    })
}

/// An encoder without a bias of latents.
struct Folded {
    /// (M, D).
    w_enc: Vec<f32>,
    /// (D).
    b_dec: Vec<f32>,
    /// What was added to each value of the bias, and so to each of the reconstruction.
    shift: f64,
}

/// The same scores without `b_lat`. With b' = b + t and w' = w + c (t and c added to every value), and rows x' that sum to
/// zero,
///
/// `(x' - b') w' = (x' - b) w - t sum(w) - c sum(b')`,  so  `c = -(b_lat + t sum(w)) / sum(b')`.
///
/// t is 0 where the mean of b is large enough to divide by, and else what makes it [`LEAST_MEAN`].
fn fold_latent_bias(params: &Params) -> Folded {
    let sum = |values: &[f32]| values.iter().map(|&v| f64::from(v)).sum::<f64>();
    let d = params.d_in;
    let (mut w_enc, mut b_dec) = (params.w_enc.clone(), params.b_pre.clone());
    if params.b_lat.iter().all(|&bias| bias == 0.0) {
        return Folded { w_enc, b_dec, shift: 0.0 };
    }
    let mean = sum(&b_dec) / d as f64;
    let shift = if mean.abs() < LEAST_MEAN { LEAST_MEAN.copysign(mean) - mean } else { 0.0 };
    for value in &mut b_dec {
        *value = (f64::from(*value) + shift) as f32;
    }
    let total = sum(&b_dec);
    for (row, &bias) in w_enc.chunks_exact_mut(d).zip(&params.b_lat) {
        let c = -(f64::from(bias) + shift * sum(row)) / total;
        for value in row {
            *value = (f64::from(*value) + c) as f32;
        }
    }
    Folded { w_enc, b_dec, shift }
}

/// `ln(rows / rows that the latent is active on)` and its largest activation. A latent that was never active counts as active
/// on one row, with 1: `idf / max` has to be finite.
fn idf_and_max(firing: &Firing) -> (Vec<f32>, Vec<f32>) {
    let idf = firing.fired.iter().map(|&n| (firing.rows as f64 / n.max(1) as f64).ln() as f32).collect();
    let max = firing.largest.iter().map(|&most| if most > 0.0 { most } else { 1.0 }).collect();
    (idf, max)
}

/// Settings that change no code: what Hugging Face's libraries add.
const HARMLESS: [&str; 6] =
    ["_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"];

/// `place` is the folder, or the file of a layer in it.
pub(super) fn read(place: &Path, layer: Option<u32>, ignored: &[String]) -> Result<(Foreign, Origin)> {
    let folder = if place.is_dir() { place } else { place.parent().unwrap_or(Path::new("")) };
    let path = folder.join(CONFIG);
    if !path.is_file() {
        let what =
            format!("has no {CONFIG}, which says how many latents are active; put the model's beside it");
        return Err(wrong(place, what));
    }
    let config = ForeignSettings::read(&path)?;
    if let Some(other) = config.text("model_type")?.filter(|kind| kind != MODEL_TYPE) {
        return Err(wrong(&path, format!("has model_type `{other}`, not {MODEL_TYPE}; is --format right?")));
    }
    let used = ["available_layers", "codebook_dim", "d_model", "k", "model_type", RESIDUAL];
    config.nothing_else(&[&HARMLESS[..], &used].concat(), ignored)?;
    let count = |key: &str| {
        config.count(key)?.ok_or_else(|| wrong(&path, format!("has no `{key}`, which the format requires")))
    };
    let (d, m, k) = (count("d_model")?, count("codebook_dim")?, count("k")?);
    let (layer, weights) = choose(place, folder, &config, layer)?;
    let mut tensors = Tensors::read(&weights)?;
    let w_enc = tensors.take("W_enc", &[d, m])?;
    let b_dec = tensors.take("b_dec", &[d])?;
    let model = Foreign {
        d_in: d,
        n_latents: m,
        w_enc: transpose(&w_enc, d, m),
        w_dec: tensors.take("W_dec", &[m, d])?,
        b_enc: vec![0.0; m],
        b_in: b_dec.clone(),
        b_dec,
        activation: ForeignActivation::Topk(Some(k)),
        threshold: None,
        prefixes: vec![],
        normalize: Some(true),
    };
    tensors.nothing_left(&["idf", "max"], ignored)?;
    Ok((model, Origin { layer, residual_updates: config.flag(RESIDUAL)?.unwrap_or(false) }))
}

const RESIDUAL: &str = "use_residual_update_instead_of_states";

/// The layer to read and its file: the one asked for, the one that `place` is, or the only one that is there.
fn choose(
    place: &Path,
    folder: &Path,
    config: &ForeignSettings,
    asked: Option<u32>,
) -> Result<(u32, PathBuf)> {
    let path = folder.join(CONFIG);
    if place.is_file() {
        let layer = place.file_name().and_then(|name| layer_of(&name.to_string_lossy()));
        return match (layer, asked) {
            (Some(layer), None) => Ok((layer, place.to_owned())),
            (Some(layer), Some(asked)) if layer == asked => Ok((layer, place.to_owned())),
            (None, Some(asked)) => Ok((asked, place.to_owned())),
            (Some(layer), Some(asked)) => Err(Error::Usage(format!(
                "{} is layer {layer} by its name and --layer says {asked}; leave one out",
                place.display()
            ))),
            (None, None) => Err(Error::Usage(format!(
                "{} is not named layer_I.safetensors; add --layer I, the layer of ESMC that its rows are of",
                place.display()
            ))),
        };
    }
    // The library's default where the key is missing.
    let listed = config.counts("available_layers")?.unwrap_or_else(|| vec![0]);
    let here: Vec<u32> =
        layers_in(folder).into_iter().filter(|layer| listed.contains(&(*layer as usize))).collect();
    let names = |layers: &[u32]| layers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    match (asked, &here[..]) {
        (Some(asked), _) if here.contains(&asked) => Ok((asked, folder.join(weights(asked)))),
        (None, [layer]) => Ok((*layer, folder.join(weights(*layer)))),
        (_, []) => {
            let listed: Vec<String> = listed.iter().map(usize::to_string).collect();
            let what = format!(
                "lists layers {}, and no layer_I.safetensors of one of these is beside it; download one into {}",
                listed.join(", "),
                folder.display()
            );
            Err(wrong(&path, what))
        }
        (Some(asked), _) if listed.contains(&(asked as usize)) => Err(wrong(
            &path,
            format!(
                "lists layer {asked}, and {} is not beside it; download it, or choose from --layer {}",
                weights(asked),
                names(&here)
            ),
        )),
        (Some(asked), _) => {
            Err(Error::Usage(format!("{} has no layer {asked}, but {}", folder.display(), names(&here))))
        }
        (None, [first, ..]) => Err(Error::Usage(format!(
            "{} has layers {}; choose one: `sae import {} --layer {first} -o model.safetensors`",
            folder.display(),
            names(&here),
            folder.display()
        ))),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Scores (M) of one normalised row, in float64.
    fn scores(w_enc: &[f32], b: &[f32], b_lat: &[f32], x: &[f64]) -> Vec<f64> {
        let rows = w_enc.chunks_exact(x.len()).zip(b_lat);
        let score = |(w, &bias): (&[f32], &f32)| {
            let products = w.iter().zip(x).zip(b).map(|((&w, x), &b)| f64::from(w) * (x - f64::from(b)));
            f64::from(bias) + products.sum::<f64>()
        };
        rows.map(score).collect()
    }

    #[test]
    fn a_bias_of_latents_is_folded_whatever_the_mean_of_the_other_bias() {
        let params = |b_pre: [f32; 4], b_lat: [f32; 3]| Params {
            d_in: 4,
            n_latents: 3,
            w_enc: vec![0.5, -0.25, 1.0, 0.75, -0.5, 0.5, 0.25, 0.125, 1.0, 0.0, -1.0, 0.5],
            w_dec: None,
            b_pre: b_pre.to_vec(),
            b_lat: b_lat.to_vec(),
            threshold: None,
        };
        let x = [1.0, -0.5, 0.25, -0.75];
        for b_pre in [[0.5, -0.5, 0.25, -0.25], [0.5, 0.5, -0.25, 0.25], [-0.001, 0.0, 0.0, 0.0]] {
            let params = params(b_pre, [0.5, -0.25, 0.0]);
            let want = scores(&params.w_enc, &params.b_pre, &params.b_lat, &x);
            let folded = fold_latent_bias(&params);
            let mean = folded.b_dec.iter().map(|&b| f64::from(b)).sum::<f64>() / 4.0;
            assert!(mean.abs() > 0.99 * LEAST_MEAN && folded.shift.abs() < 1.1 * LEAST_MEAN, "{mean}");
            assert!(folded.shift == 0.0 || mean.abs() < 1.01 * LEAST_MEAN);
            for (got, want) in scores(&folded.w_enc, &folded.b_dec, &[0.0; 3], &x).iter().zip(want) {
                // Values of the encoder grow to some ten, of which float32 drops 1e-6.
                assert!((got - want).abs() < 1e-5, "{b_pre:?}: {got} {want}");
            }
        }
        let none = params([0.5, -0.5, 0.25, -0.25], [0.0; 3]);
        let folded = fold_latent_bias(&none);
        assert!(folded.shift == 0.0 && folded.w_enc == none.w_enc && folded.b_dec == none.b_pre);
    }

    #[test]
    fn idf_and_max_are_finite_where_a_latent_never_fires() {
        let firing = Firing { rows: 8, fired: vec![8, 2, 0], largest: vec![3.0, 0.5, 0.0] };
        let (idf, max) = idf_and_max(&firing);
        assert_eq!(idf, [0.0, 4f32.ln(), 8f32.ln()]);
        assert_eq!(max, [3.0, 0.5, 1.0]);
    }

    #[test]
    fn layers_are_known_by_the_exact_name_of_their_file() {
        assert_eq!(layer_of("layer_12.safetensors"), Some(12));
        for name in ["layer_012.safetensors", "layer_.safetensors", "layer_+1.safetensors", "layer_1.pt"] {
            assert_eq!(layer_of(name), None, "{name}");
        }
    }

    #[test]
    fn rows_are_said_as_the_layer_takes_them() {
        let rows = |layer, residual_updates| Origin { layer, residual_updates }.rows();
        assert_eq!(rows(3, true), "residual updates h[3] - h[2] of ESMC");
        assert_eq!(rows(3, false), "hidden states h[3] of ESMC");
        // As `_get_sae_outputs` does: there is nothing before the first state.
        assert_eq!(rows(0, true), "hidden states h[0] of ESMC");
    }
}
