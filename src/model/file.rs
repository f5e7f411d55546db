//! `model.safetensors`: the trained model as other programs read it, and as every later version of this one does.
//!
//! Tensors, float32, row-major: `w_enc` (M, D), `w_dec` (M, D; written out in a tied model too), `b_pre` (D),
//! `b_lat` (M), `threshold` (M) where codes are made by thresholds, and `train_mean` (D) where the model was trained here. The
//! metadata, all of them texts:
//!
//! | key | holds |
//! | --- | --- |
//! | `schema` | the number of this format, [`SCHEMA`] |
//! | `architecture` | JSON of [`Architecture`]: what is needed to run the model, and nothing else |
//! | `provenance` | JSON of [`Provenance`]: where the model came from; shown, and never needed to run it |
//!
//! Version 0.1.0 wrote one key, `config`, with everything in it (schema 1). Models of thresholds, and of activations or
//! prefixes that schema 2 does not know, are of schema 3; all others are written as schema 2, for earlier versions to read.

use super::Params;
use crate::error::{Error, Result};
use crate::files::{self, Tensor};
use crate::spec::{Activation, Architecture, Forward, Inference, NORM_EPS, Prefixes};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// The newest format that this version reads.
pub const SCHEMA: u32 = 3;
/// Keys of the metadata, of this format and of that of version 0.1.0.
const SCHEMA_KEY: &str = "schema";
const ARCHITECTURE_KEY: &str = "architecture";
const PROVENANCE_KEY: &str = "provenance";
const OLD_KEY: &str = "config";

/// Where a model came from.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Provenance {
    /// Program and version that wrote it.
    pub version: String,
    /// Preset it was trained with.
    pub preset: String,
    /// Seed of start, order and noise.
    pub seed: u64,
    /// Seed of the split, where it is known.
    pub split_seed: Option<u64>,
    /// Training steps done.
    pub steps: u64,
    /// All options of the run, as its program named them.
    pub options: serde_json::Map<String, serde_json::Value>,
}

impl Provenance {
    /// From JSON, whatever another version put there: what is not understood is left out.
    fn from_json(value: serde_json::Value) -> Self {
        let serde_json::Value::Object(mut map) = value else { return Self::default() };
        let text =
            |value: Option<&serde_json::Value>| value.and_then(|v| v.as_str()).unwrap_or_default().to_owned();
        let number = |value: Option<&serde_json::Value>| value.and_then(serde_json::Value::as_u64);
        let options = match map.remove("options") {
            Some(serde_json::Value::Object(options)) => options,
            _ => serde_json::Map::new(),
        };
        Self {
            version: text(map.get("version")),
            preset: text(map.get("preset")),
            seed: number(map.get("seed")).unwrap_or(0),
            // Version 0.1.0 kept it among the options.
            split_seed: number(map.get("split_seed")).or_else(|| number(options.get("split-seed"))),
            steps: number(map.get("steps")).unwrap_or(0),
            options,
        }
    }
}

/// All of a model but its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub struct ModelMeta {
    /// What it takes to run it.
    pub architecture: Architecture,
    /// Where it came from.
    pub provenance: Provenance,
    /// Mean row of the training split (D): FVU is measured against it. Empty in a model that was trained elsewhere.
    pub train_mean: Vec<f32>,
}

impl ModelMeta {
    /// The seed of the split that the model was trained with.
    pub fn split_seed(&self) -> u64 {
        self.provenance.split_seed.unwrap_or(self.provenance.seed)
    }
}

/// What version 0.1.0 kept under `config`, as far as it takes to run the model.
#[derive(Deserialize)]
struct Config010 {
    d_in: usize,
    n_latents: usize,
    k: usize,
    tied: bool,
    normalize: bool,
    #[serde(default = "norm_eps")]
    norm_eps: f64,
    inference: Inference,
    #[serde(default)]
    train_mean: Vec<f32>,
}

fn norm_eps() -> f64 {
    NORM_EPS
}

impl TryFrom<serde_json::Value> for ModelMeta {
    type Error = serde_json::Error;

    /// From the JSON that an export keeps, of this version or of 0.1.0.
    fn try_from(mut json: serde_json::Value) -> serde_json::Result<Self> {
        if json.get(ARCHITECTURE_KEY).is_none() {
            return Self::from_0_1_0(json);
        }
        Ok(Self {
            architecture: serde_json::from_value(json[ARCHITECTURE_KEY].take())?,
            provenance: Provenance::from_json(json[PROVENANCE_KEY].take()),
            train_mean: serde_json::from_value(json["train_mean"].take()).unwrap_or_default(),
        })
    }
}

impl ModelMeta {
    /// From the JSON that version 0.1.0 wrote.
    fn from_0_1_0(json: serde_json::Value) -> serde_json::Result<Self> {
        let old: Config010 = serde_json::from_value(json.clone())?;
        let Config010 { d_in, n_latents, k, tied, normalize, norm_eps, inference, train_mean } = old;
        let (activation, prefixes) = (Activation::Topk, Prefixes::default());
        let forward = Forward { k, activation, inference, normalize, norm_eps, prefixes };
        let architecture = Architecture { d_in, n_latents, tied, forward };
        let provenance = Provenance::from_json(json);
        Ok(Self { architecture, provenance, train_mean })
    }
}

/// The format that a model is written in.
fn schema_of(forward: &Forward) -> u32 {
    if forward.activation.is_per_row() && forward.prefixes.is_empty() { 2 } else { 3 }
}

/// Writes a model, whole or not at all.
///
/// # Errors
/// As the disk gives them.
pub fn save(path: &Path, params: &Params, meta: &ModelMeta) -> Result<()> {
    let (tensors, metadata) = contents(params, meta)?;
    files::write_safetensors(path, &tensors, metadata)
}

/// What the file of a model holds: its tensors, and keys and texts of its metadata.
///
/// # Errors
/// None in practice: what it says can be said in JSON.
#[allow(clippy::type_complexity)]
pub fn contents<'a>(
    params: &'a Params,
    meta: &'a ModelMeta,
) -> Result<(Vec<Tensor<'a>>, [(&'static str, String); 3])> {
    let (d, m) = (params.d_in, params.n_latents);
    let mut tensors = vec![
        Tensor::f32("w_enc".into(), vec![m, d], &params.w_enc),
        Tensor::f32("w_dec".into(), vec![m, d], params.decoder()),
        Tensor::f32("b_pre".into(), vec![d], &params.b_pre),
        Tensor::f32("b_lat".into(), vec![m], &params.b_lat),
    ];
    if let Some(threshold) = &params.threshold {
        tensors.push(Tensor::f32("threshold".into(), vec![m], threshold));
    }
    if !meta.train_mean.is_empty() {
        tensors.push(Tensor::f32("train_mean".into(), vec![d], &meta.train_mean));
    }
    let cannot = |e| Error::Failed(format!("the model's metadata cannot be written: {e}"));
    let metadata = [
        (SCHEMA_KEY, schema_of(&meta.architecture.forward).to_string()),
        (ARCHITECTURE_KEY, serde_json::to_string(&meta.architecture).map_err(cannot)?),
        (PROVENANCE_KEY, serde_json::to_string(&meta.provenance).map_err(cannot)?),
    ];
    Ok((tensors, metadata))
}

/// What the metadata say. The error is a sentence without the file's name: of a newer format, or what is wrong.
fn read_meta(metadata: &HashMap<String, String>) -> std::result::Result<ModelMeta, Problem> {
    let wrong = |e: &dyn std::fmt::Display| Problem::Wrong(e.to_string());
    let Some(schema) = metadata.get(SCHEMA_KEY) else {
        let json = metadata.get(OLD_KEY).ok_or_else(|| wrong(&"no `schema` in its metadata"))?;
        return serde_json::from_str(json).and_then(ModelMeta::from_0_1_0).map_err(|e| wrong(&e));
    };
    let schema: u64 = schema.parse().map_err(|_| wrong(&format!("schema {schema:?}")))?;
    if schema > u64::from(SCHEMA) {
        return Err(Problem::Newer(schema));
    }
    let json = metadata.get(ARCHITECTURE_KEY).ok_or_else(|| wrong(&"no `architecture` in its metadata"))?;
    let architecture = serde_json::from_str(json).map_err(|e| wrong(&e))?;
    let provenance = metadata.get(PROVENANCE_KEY).and_then(|json| serde_json::from_str(json).ok());
    Ok(ModelMeta {
        architecture,
        provenance: Provenance::from_json(provenance.unwrap_or_default()),
        train_mean: vec![],
    })
}

enum Problem {
    Newer(u64),
    Wrong(String),
}

/// Reads a model of this version or an earlier one.
///
/// # Errors
/// [`Error::Io`] if it cannot be read; [`Error::Model`] if it is no model of this program, of a newer format, cut or
/// altered.
pub fn load(path: &Path) -> Result<(Params, ModelMeta)> {
    let wrong = |what: String| Error::Model {
        path: path.to_owned(),
        what: format!(
            "is not a model of sae, or is damaged ({what}); give a run folder or its model.safetensors"
        ),
    };
    let bytes = std::fs::read(path).map_err(Error::io(path, "read"))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
    let none = HashMap::new();
    let mut meta =
        read_meta(header.metadata().as_ref().unwrap_or(&none)).map_err(|problem| match problem {
            Problem::Newer(schema) => Error::Newer { path: path.to_owned(), schema, known: SCHEMA },
            Problem::Wrong(what) => wrong(what),
        })?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let view = file.tensor(name).map_err(|e| wrong(e.to_string()))?;
        if view.dtype() != Dtype::F32 || view.shape() != shape {
            return Err(wrong(format!("{name} is {:?} {:?}, not F32 {shape:?}", view.dtype(), view.shape())));
        }
        Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    };
    let Architecture { d_in: d, n_latents: m, tied, forward } = meta.architecture;
    let w_dec = read("w_dec", &[m, d])?;
    let params = Params {
        d_in: d,
        n_latents: m,
        w_enc: read("w_enc", &[m, d])?,
        w_dec: (!tied).then_some(w_dec),
        b_pre: read("b_pre", &[d])?,
        b_lat: read("b_lat", &[m])?,
        threshold: if forward.has_threshold() { Some(read("threshold", &[m])?) } else { None },
    };
    if params.threshold.iter().flatten().any(|t| !(*t >= 0.0 && t.is_finite())) {
        return Err(wrong("a threshold is negative or not finite".into()));
    }
    if file.names().contains(&"train_mean") {
        meta.train_mean = read("train_mean", &[d])?;
    }
    let all = forward.prefixes.ends().last().is_none_or(|&last| last as usize == m);
    let sizes_fit =
        forward.k > 0 && forward.k <= m && d > 0 && all && [0, d].contains(&meta.train_mean.len());
    // What makes no code of an activation: a threshold per row's place, places without a number.
    let codes_fit = forward.inference == forward.activation.inference()
        || (forward.activation, forward.inference) == (Activation::Topk, Inference::Relu);
    if !sizes_fit
        || !codes_fit
        || (forward.normalize && !(forward.norm_eps > 0.0 && forward.norm_eps.is_finite()))
    {
        return Err(wrong("its architecture does not fit together".into()));
    }
    Ok((params, meta))
}
