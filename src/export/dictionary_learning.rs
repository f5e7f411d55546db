//! dictionary_learning: `ae.pt` and `config.json`, read by `dictionary_learning.utils.load_dictionary`
//! (`dictionary.py`, `trainers/top_k.py`, `batch_top_k.py`, `matryoshka_batch_top_k.py` of 0.1). No normalisation of rows.
//!
//! | class | tensors | codes |
//! | --- | --- | --- |
//! | `AutoEncoderTopK` | `b_dec` (D), `k` (int32, no dimensions), `threshold` (float32, no dimensions, -1 is unset), `encoder.weight` (M, D), `encoder.bias` (M), `decoder.weight` (D, M) | the k largest of relu; the threshold is used where a caller asks for it |
//! | `BatchTopKSAE` | the same | relu above the threshold |
//! | `MatryoshkaBatchTopKSAE` | `W_enc` (D, M), `b_enc` (M), `W_dec` (M, D), `b_dec`, `k`, `threshold`, `group_sizes` (int64, one number per prefix: the latents that it adds) | likewise |
//! | `JumpReluAutoEncoder` | `W_enc`, `b_enc`, `W_dec`, `b_dec`, `threshold` (M) | relu above the thresholds; `b_dec` is not subtracted from the input |
//! | `AutoEncoder` | `bias` (D) in the place of `b_dec`, no k | relu; the loader scales decoder rows to length 1, and codes with them |

use super::foreign::{Foreign, ForeignActivation};
use super::pt::{self, Item};
use super::tensors::{ForeignSettings, Tensors, not_representable, wrong};
use super::{Notes, by_hand, constant_threshold, transpose, write_json};
use crate::error::{Error, Result};
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::{Activation, Inference};
use safetensors::Dtype;
use serde_json::json;
use std::path::Path;

pub(super) const CONFIG: &str = "config.json";
pub(super) const WEIGHTS: &str = "ae.pt";

/// A class of the library; names are Python's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    AutoEncoder,
    AutoEncoderTopK,
    BatchTopKSAE,
    MatryoshkaBatchTopKSAE,
    JumpReluAutoEncoder,
}

impl Class {
    const ALL: [Self; 5] = [
        Self::AutoEncoder,
        Self::AutoEncoderTopK,
        Self::BatchTopKSAE,
        Self::MatryoshkaBatchTopKSAE,
        Self::JumpReluAutoEncoder,
    ];

    fn name(self) -> String {
        format!("{self:?}")
    }

    /// For a model of ours, with the one threshold of all latents where its class has one.
    fn of(params: &Params, meta: &ModelMeta) -> (Self, Option<f32>) {
        let forward = &meta.architecture.forward;
        match (forward.inference, constant_threshold(params)) {
            (Inference::Relu, _) => (Self::AutoEncoder, None),
            (Inference::Topk, _) => (Self::AutoEncoderTopK, None),
            (Inference::Threshold, Some(threshold)) if forward.activation == Activation::BatchTopk => {
                let flat = forward.prefixes.is_empty();
                (if flat { Self::BatchTopKSAE } else { Self::MatryoshkaBatchTopKSAE }, Some(threshold))
            }
            (Inference::Threshold, _) => (Self::JumpReluAutoEncoder, None),
        }
    }

    /// By the names of its tensors, those that tell most first.
    fn by_names(tensors: &Tensors) -> Self {
        let has = |name: &str| tensors.tensors.contains_key(name);
        match () {
            () if has("group_sizes") => Self::MatryoshkaBatchTopKSAE,
            () if has("W_enc") => Self::JumpReluAutoEncoder,
            () if has("bias") => Self::AutoEncoder,
            () => Self::AutoEncoderTopK,
        }
    }
}

/// Trainers of the classes that are told by their tensors alone; the first names are those of version 0.1, the last of before
/// it.
const TRAINERS: [&str; 7] = [
    "TopKTrainer",
    "StandardTrainer",
    "StandardTrainerAprilUpdate",
    "PAnnealTrainer",
    "JumpReluTrainer",
    "MatryoshkaBatchTopKTrainer",
    "TrainerTopK",
];

/// What a file of tensors needs to be borrowed from.
struct Parts {
    w_enc: Vec<f32>,
    w_dec: Vec<f32>,
    b_enc: Vec<f32>,
    k: [u8; 4],
    threshold: Vec<f32>,
    group_sizes: Vec<u8>,
}

pub(super) fn write(folder: &Path, params: &Params, meta: &ModelMeta) -> Result<Notes> {
    let (d, m) = (params.d_in, params.n_latents);
    let (class, threshold) = Class::of(params, meta);
    let parts = parts(class, threshold, params, meta)?;
    let mut trainer = json!({
        "trainer_class": "sae",
        "dict_class": class.name(),
        "activation_dim": d,
        "dict_size": m,
        "steps": meta.provenance.steps,
        "seed": meta.provenance.seed,
        // SAELens' reader of this format asks for them.
        "layer": null,
        "lm_name": "",
    });
    let (matrices, thresholds) = match class {
        Class::AutoEncoder => (linear(class, params, &parts), vec![]),
        Class::AutoEncoderTopK | Class::BatchTopKSAE => {
            (linear(class, params, &parts), vec![("threshold", Item::f32(vec![], &parts.threshold))])
        }
        Class::MatryoshkaBatchTopKSAE => {
            let sizes = Item::Tensor(Dtype::I64, vec![parts.group_sizes.len() / 8], &parts.group_sizes);
            let threshold = Item::f32(vec![], &parts.threshold);
            (plain(params, &parts), vec![("threshold", threshold), ("group_sizes", sizes)])
        }
        Class::JumpReluAutoEncoder => {
            (plain(params, &parts), vec![("threshold", Item::f32(vec![m], &parts.threshold))])
        }
    };
    let mut items = matrices;
    items.extend(thresholds);
    if !matches!(class, Class::AutoEncoder | Class::JumpReluAutoEncoder) {
        trainer["k"] = json!(meta.architecture.forward.k);
        items.push(("k", Item::Tensor(Dtype::I32, vec![], &parts.k)));
    }
    write_json(&folder.join(CONFIG), &json!({ "trainer": trainer, "buffer": { "ctx_len": null } }))?;
    pt::write(&folder.join(WEIGHTS), &items)?;
    let relu = class == Class::AutoEncoder;
    let loaded = match relu {
        false => {
            "from dictionary_learning.utils import load_dictionary\nae, config = load_dictionary(DIR, \"cpu\")"
        }
        // The loader of relu models scales decoder rows to norm 1, and with them the codes, unless told not to.
        true => {
            "from dictionary_learning import AutoEncoder\n\
             ae = AutoEncoder.from_pretrained(\"DIR/ae.pt\", normalize_decoder=False)"
        }
    };
    let scaled = "load_dictionary multiplies the codes of a relu model by the norms of its decoder rows (the \
                  reconstruction stays); load it with AutoEncoder.from_pretrained and normalize_decoder=False";
    let notes = [
        relu.then(|| scaled.to_owned()),
        meta.architecture.forward.normalize.then(|| by_hand("dictionary_learning", meta)),
    ];
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    Ok(Notes {
        load: format!("{loaded}\ncodes = ae.encode(x); recon = ae.decode(codes)"),
        warning: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

fn parts(class: Class, threshold: Option<f32>, params: &Params, meta: &ModelMeta) -> Result<Parts> {
    let (d, m) = (params.d_in, params.n_latents);
    let linear = matches!(class, Class::AutoEncoder | Class::AutoEncoderTopK | Class::BatchTopKSAE);
    let forward = &meta.architecture.forward;
    let k = i32::try_from(forward.k)
        .map_err(|_| Error::Usage("k is too large for dictionary_learning".into()))?;
    Ok(Parts {
        w_enc: if linear { params.w_enc.clone() } else { transpose(&params.w_enc, m, d) },
        w_dec: if linear { transpose(params.decoder(), m, d) } else { params.decoder().to_vec() },
        b_enc: match class {
            Class::JumpReluAutoEncoder => without_input_bias(params),
            _ => params.b_lat.clone(),
        },
        k: k.to_le_bytes(),
        threshold: match (class, &params.threshold) {
            (Class::JumpReluAutoEncoder, Some(thresholds)) => thresholds.clone(),
            _ => vec![threshold.unwrap_or(-1.0)],
        },
        group_sizes: forward
            .prefixes
            .segments(m)
            .iter()
            .flat_map(|s| (s.len() as i64).to_le_bytes())
            .collect(),
    })
}

/// `b_lat - W_enc b_pre`: the bias of latents (M) where the input's bias is not subtracted.
fn without_input_bias(params: &Params) -> Vec<f32> {
    let rows = params.w_enc.chunks_exact(params.d_in).zip(&params.b_lat);
    let moved = |(row, &bias): (&[f32], &f32)| {
        let moved: f64 = row.iter().zip(&params.b_pre).map(|(&w, &b)| f64::from(w) * f64::from(b)).sum();
        (f64::from(bias) - moved) as f32
    };
    rows.map(moved).collect()
}

/// The tensors of PyTorch's linear layers.
fn linear<'a>(class: Class, params: &'a Params, parts: &'a Parts) -> Vec<(&'static str, Item<'a>)> {
    let (d, m) = (params.d_in, params.n_latents);
    vec![
        (if class == Class::AutoEncoder { "bias" } else { "b_dec" }, Item::f32(vec![d], &params.b_pre)),
        ("encoder.weight", Item::f32(vec![m, d], &parts.w_enc)),
        ("encoder.bias", Item::f32(vec![m], &parts.b_enc)),
        ("decoder.weight", Item::f32(vec![d, m], &parts.w_dec)),
    ]
}

/// The tensors of classes with matrices of their own.
fn plain<'a>(params: &'a Params, parts: &'a Parts) -> Vec<(&'static str, Item<'a>)> {
    let (d, m) = (params.d_in, params.n_latents);
    vec![
        ("W_enc", Item::f32(vec![d, m], &parts.w_enc)),
        ("b_enc", Item::f32(vec![m], &parts.b_enc)),
        ("W_dec", Item::f32(vec![m, d], &parts.w_dec)),
        ("b_dec", Item::f32(vec![d], &params.b_pre)),
    ]
}

/// `path` is the folder, or the file of weights (`.pt`, or the same tensors as safetensors).
pub(super) fn read(path: &Path, ignored: &[String]) -> Result<Foreign> {
    let weights = if path.is_dir() { path.join(WEIGHTS) } else { path.to_owned() };
    let ignores = |setting: &str| ignored.iter().any(|name| name == setting);
    let config = weights.with_file_name(CONFIG);
    // The library's own loader looks at these two settings alone, so that no other one changes a code. Where there is no
    // class, the trainer tells.
    let (mut k, mut named) = (None, None);
    if config.is_file()
        && let Some(trainer) = ForeignSettings::read(&config)?.inner("trainer")?
    {
        k = trainer.count("k")?;
        named = match trainer.text("dict_class")? {
            None => None,
            Some(name) => {
                let class = Class::ALL.into_iter().find(|class| class.name() == name);
                Some(class.ok_or_else(|| not_representable(&config, &format!("dict_class `{name}`")))?)
            }
        };
        let other = trainer.text("trainer_class")?.filter(|name| !TRAINERS.contains(&name.as_str()));
        if let Some(other) = other.filter(|_| named.is_none() && !ignores("trainer_class")) {
            let what = format!(
                "has trainer_class `{other}` and no dict_class, so it may be no AutoEncoderTopK; add `--ignore \
                 trainer_class` if it is one"
            );
            return Err(wrong(&config, what));
        }
    }
    let mut tensors = Tensors::read(&weights)?;
    let found = Class::by_names(&tensors);
    // Two classes have the same tensors.
    let class = match named {
        Some(Class::BatchTopKSAE) if found == Class::AutoEncoderTopK => Class::BatchTopKSAE,
        Some(named) if named != found => {
            let what = format!(
                "has dict_class `{}`, whose tensors are not those of {}",
                named.name(),
                weights.display()
            );
            return Err(wrong(&config, what));
        }
        _ => found,
    };
    let stored_k = tensors.scalar("k").map(|k| k as usize);
    if let (Some(k), Some(stored)) = (k, stored_k)
        && k != stored
    {
        let what = format!("does not go with {}: k is {k} here, and {stored} there", weights.display());
        return Err(wrong(&config, what));
    }
    let mut model = match class {
        Class::MatryoshkaBatchTopKSAE | Class::JumpReluAutoEncoder => read_plain(&mut tensors)?,
        _ => read_linear(&mut tensors, class)?,
    };
    let m = model.n_latents;
    let k = stored_k.or(k);
    (model.activation, model.threshold) = match class {
        Class::AutoEncoder => (ForeignActivation::Relu, None),
        Class::AutoEncoderTopK => {
            // Its encode uses no threshold unless its caller asks for it; a BatchTopK model has the same tensors and does,
            // and without a configuration nothing says which it is.
            let threshold = tensors.scalar("threshold").filter(|threshold| *threshold >= 0.0);
            if named.is_none() && threshold.is_some() && !ignores("threshold") {
                let what = "has a threshold and no config.json that names its dict_class, so it may be a BatchTopKSAE; put \
                            the config.json beside it, or add `--ignore threshold` if it is an AutoEncoderTopK";
                return Err(wrong(&weights, what.into()));
            }
            (ForeignActivation::Topk(k), None)
        }
        Class::BatchTopKSAE | Class::MatryoshkaBatchTopKSAE => {
            let threshold = tensors.take("threshold", &[])?[0];
            if threshold < 0.0 {
                let what = format!(
                    "has the threshold {threshold}, which is unset: codes were relu of all scores; train it beyond \
                     threshold_start_step, or set ae.threshold and save it again"
                );
                return Err(wrong(&weights, what));
            }
            (ForeignActivation::BatchTopk(k), Some(vec![threshold; m]))
        }
        Class::JumpReluAutoEncoder => {
            model.b_in = vec![0.0; model.d_in];
            (ForeignActivation::JumpRelu(k), Some(tensors.take("threshold", &[m])?))
        }
    };
    if class == Class::MatryoshkaBatchTopKSAE {
        model.prefixes = prefixes(&mut tensors, m)?;
    }
    tensors.nothing_left(&[], ignored)?;
    Ok(model)
}

/// Numbers of latents of each prefix, from the sizes of the groups.
fn prefixes(tensors: &mut Tensors, m: usize) -> Result<Vec<usize>> {
    let name = "group_sizes";
    let count = tensors.tensors.get(name).map_or(0, |sizes| sizes.values.len());
    let sizes = tensors.take(name, &[count])?;
    let ends: Vec<usize> = sizes
        .iter()
        .scan(0, |end, &size| {
            *end += size as usize;
            Some(*end)
        })
        .collect();
    if ends.last() != Some(&m) {
        return Err(wrong(&tensors.path, format!("{name} are {sizes:?}, which do not sum to {m} latents")));
    }
    Ok(ends)
}

fn read_linear(tensors: &mut Tensors, class: Class) -> Result<Foreign> {
    let (m, d, w_enc) = tensors.matrix("encoder.weight")?;
    let b_dec = tensors.take(if class == Class::AutoEncoder { "bias" } else { "b_dec" }, &[d])?;
    let w_dec = tensors.take("decoder.weight", &[d, m])?;
    Ok(Foreign {
        d_in: d,
        n_latents: m,
        w_enc,
        w_dec: transpose(&w_dec, d, m),
        b_enc: tensors.take("encoder.bias", &[m])?,
        b_in: b_dec.clone(),
        b_dec,
        activation: ForeignActivation::Relu,
        threshold: None,
        prefixes: vec![],
        normalize: None,
    })
}

fn read_plain(tensors: &mut Tensors) -> Result<Foreign> {
    let (d, m, w_enc) = tensors.matrix("W_enc")?;
    let b_dec = tensors.take("b_dec", &[d])?;
    Ok(Foreign {
        d_in: d,
        n_latents: m,
        w_enc: transpose(&w_enc, d, m),
        w_dec: tensors.take("W_dec", &[m, d])?,
        b_enc: tensors.take("b_enc", &[m])?,
        b_in: b_dec.clone(),
        b_dec,
        activation: ForeignActivation::Relu,
        threshold: None,
        prefixes: vec![],
        normalize: None,
    })
}
