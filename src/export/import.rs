//! `sae import`: a `model.safetensors` from a model of another library.

use super::foreign::{Foreign, ForeignActivation, fresh_meta};
use super::tensors::wrong;
use super::{
    Format, SIDECAR, Sidecar, dictionary_learning, esmc, gemma_scope, interprot, openai, saelens, sparsify,
};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt;
use crate::model::Params;
use crate::model::file::{self as model_file, ModelMeta};
use crate::run::{Kind, Output, Outputs};
use crate::spec::{Activation, Inference};
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// Folder or file.
    pub from: PathBuf,
    /// Its format; found from names where not given.
    pub format: Option<Format>,
    /// Active latents, where the file does not say.
    pub k: Option<usize>,
    /// The model was trained on rows normalised outside the library.
    pub normalize: bool,
    /// Which layer, of a folder of ESMC with several; an error for other formats.
    pub layer: Option<u32>,
    /// Settings and tensors that are not understood and may be left out: a person has looked at them.
    pub ignore: Vec<String>,
    /// `model.safetensors` to write.
    pub out: PathBuf,
    /// Replace it.
    pub overwrite: bool,
}

/// What was read and written.
#[derive(Debug, Clone, Serialize)]
pub struct Imported {
    /// Format it was in.
    pub format: Format,
    /// The file written.
    #[serde(serialize_with = "crate::files::path_as_text")]
    pub model: PathBuf,
    /// D.
    pub d_in: usize,
    /// M.
    pub n_latents: usize,
    /// Active latents of a row; M where it is relu of all scores.
    pub k: usize,
    /// `topk` or `relu`.
    pub inference: Inference,
    /// Whether rows are normalised.
    pub normalize: bool,
    /// Which rows the model takes, where the files say it.
    pub rows: Option<String>,
    /// True where the folder came from `sae export`, with everything that was known there.
    pub own: bool,
}

/// Reads a foreign model and writes it as ours.
///
/// # Errors
/// A format that is not recognised; what our model cannot represent; a file in the way.
pub fn import(request: &ImportRequest) -> Result<Imported> {
    let (from, out) = (&request.from, &request.out);
    let inputs = inputs(from);
    let file = Output { flag: "--out", path: out, kind: Kind::Safetensors };
    Outputs { files: &[file], inputs: &inputs, overwrite: request.overwrite, ..Default::default() }
        .check()?;
    let (params, meta, imported) = read(request)?;
    interrupt::check()?;
    model_file::save(out, &params, &meta)?;
    Ok(imported)
}

/// Reads a foreign model, and writes nothing.
///
/// # Errors
/// As [`import`], but for those about the output.
pub fn read(request: &ImportRequest) -> Result<(Params, ModelMeta, Imported)> {
    let (format, place) = find(&request.from, request.format)?;
    let ignored = &request.ignore;
    if request.layer.is_some() && format != Format::Esmc {
        let what =
            format!("--layer is for esmc, and {} is of {format}; leave it out", request.from.display());
        return Err(Error::Usage(what));
    }
    let mut rows = None;
    let mut foreign = match format {
        Format::Saelens => saelens::read(&place, ignored),
        Format::Sparsify => sparsify::read(&place, ignored),
        Format::DictionaryLearning => dictionary_learning::read(&place, ignored),
        Format::Interprot => interprot::read(&place, ignored),
        Format::Openai => openai::read(&place, ignored),
        Format::GemmaScope => gemma_scope::read(&place, ignored),
        Format::Esmc => esmc::read(&place, request.layer, ignored).map(|(foreign, origin)| {
            rows = Some(origin.rows());
            foreign
        }),
    }?;
    let own = own(&place, format, &foreign);
    let relu = foreign.activation == ForeignActivation::Relu;
    if format == Format::DictionaryLearning && relu && own.is_none() && !foreign.has_unit_decoder() {
        // As the library's `AutoEncoder.from_pretrained` does.
        foreign.fold_decoder_norms();
    }
    let (activation, normalize) = (foreign.activation, foreign.normalize);
    let prefixes = std::mem::take(&mut foreign.prefixes);
    let params = foreign.into_params();
    let m = params.n_latents;
    let mut meta = match &own {
        Some(meta) => meta.clone(),
        None => {
            let topk = Activation::Topk;
            let (code, k) = match activation {
                ForeignActivation::Relu => ((topk, Inference::Relu), m),
                ForeignActivation::AbsTopk(k) => ((Activation::AbsTopk, Inference::Topk), k),
                // The thresholds decide; k is what the model was trained for, where somebody knows it.
                ForeignActivation::JumpRelu(k) => {
                    ((Activation::JumpRelu, Inference::Threshold), k.or(request.k).unwrap_or(m))
                }
                ForeignActivation::BatchTopk(k) => {
                    ((Activation::BatchTopk, Inference::Threshold), k.or(request.k).unwrap_or(m))
                }
                ForeignActivation::Topk(k) => {
                    let missing =
                        format!("{} does not say how many latents are active; give --k", place.display());
                    ((topk, Inference::Topk), k.or(request.k).ok_or(Error::Usage(missing))?)
                }
            };
            let normalize = normalize.unwrap_or(false) || request.normalize;
            let origin = rows.iter().fold(format.to_string(), |format, rows| format!("{format}, {rows}"));
            fresh_meta(&params, k, code, &prefixes, normalize, &origin)?
        }
    };
    meta.architecture.tied = params.tied();
    let imported = Imported {
        format,
        model: request.out.clone(),
        d_in: params.d_in,
        n_latents: m,
        k: meta.architecture.forward.k,
        inference: meta.architecture.forward.inference,
        normalize: meta.architecture.forward.normalize,
        rows,
        own: own.is_some(),
    };
    Ok((params, meta, imported))
}

/// What may be read where a model is at `from`, a folder or a file with others beside it.
fn inputs(from: &Path) -> Vec<PathBuf> {
    let folder = if from.is_dir() { from } else { from.parent().unwrap_or(Path::new("")) };
    let layers = esmc::layers_in(folder).into_iter().map(esmc::weights);
    let more = layers.chain(gemma_scope::WEIGHTS.map(str::to_owned)).map(|name| folder.join(name));
    super::NAMES.iter().map(|name| folder.join(name)).chain(more).chain([from.to_owned()]).collect()
}

/// What our own export kept beside the weights, if it is of this model: the same format, sizes, and k.
fn own(place: &Path, format: Format, foreign: &Foreign) -> Option<ModelMeta> {
    let folder = if place.is_dir() { place } else { place.parent()? };
    let kept: Sidecar = serde_json::from_slice(&std::fs::read(folder.join(SIDECAR)).ok()?).ok()?;
    let meta = kept.model;
    let signed = meta.architecture.forward.activation == Activation::AbsTopk;
    let same_k = match foreign.activation {
        ForeignActivation::AbsTopk(k) => signed && k == super::top(&meta),
        ForeignActivation::Topk(k) => !signed && k.is_none_or(|k| k == super::top(&meta)),
        ForeignActivation::Relu => meta.architecture.forward.inference == Inference::Relu,
        // A constant threshold can be of either kind, and what it is of is in the file.
        ForeignActivation::JumpRelu(k) | ForeignActivation::BatchTopk(k) => {
            meta.architecture.forward.has_threshold() && k.is_none_or(|k| k == meta.architecture.forward.k)
        }
    };
    let sizes = (meta.architecture.d_in, meta.architecture.n_latents) == (foreign.d_in, foreign.n_latents);
    let ends = meta.architecture.forward.prefixes.ends().iter().map(|&end| end as usize);
    let same_prefixes = foreign.prefixes.is_empty() || foreign.prefixes.iter().copied().eq(ends);
    (kept.format == format && sizes && same_k && same_prefixes).then_some(meta)
}

/// The format of a folder or file, and what its reader takes: the folder, or the file of weights.
fn find(from: &Path, asked: Option<Format>) -> Result<(Format, PathBuf)> {
    if !from.exists() {
        return Err(Error::io(from, "read")(std::io::ErrorKind::NotFound.into()));
    }
    let folder =
        if from.is_dir() { from.to_owned() } else { from.parent().unwrap_or(Path::new("")).to_owned() };
    let in_folder = |format, name: &str| (format, from.join(name));
    let found = if from.is_dir() {
        let holds = |name: &str| from.join(name).is_file();
        match asked {
            Some(Format::Interprot) => Some(in_folder(Format::Interprot, interprot::WEIGHTS)),
            Some(Format::Openai) => Some(in_folder(Format::Openai, openai::WEIGHTS)),
            Some(Format::GemmaScope) => {
                let [first, second] = gemma_scope::WEIGHTS.map(|name| from.join(name));
                Some((Format::GemmaScope, if first.is_file() { first } else { second }))
            }
            Some(format) => Some((format, from.to_owned())),
            None if holds(saelens::WEIGHTS) && holds(saelens::CONFIG) => {
                Some((Format::Saelens, from.to_owned()))
            }
            None if holds(sparsify::WEIGHTS) && holds(sparsify::CONFIG) => {
                Some((Format::Sparsify, from.to_owned()))
            }
            None if holds(dictionary_learning::WEIGHTS) => {
                Some((Format::DictionaryLearning, from.to_owned()))
            }
            None if esmc::is_one(from) => Some((Format::Esmc, from.to_owned())),
            None if holds(interprot::WEIGHTS) => Some(in_folder(Format::Interprot, interprot::WEIGHTS)),
            None if holds(openai::WEIGHTS) => Some(in_folder(Format::Openai, openai::WEIGHTS)),
            None => gemma_scope::weights_in(from).map(|path| (Format::GemmaScope, path)),
        }
    } else {
        asked.or_else(|| by_names(from)).map(|format| match format {
            Format::Saelens | Format::Sparsify => (format, folder),
            _ => (format, from.to_owned()),
        })
    };
    found.ok_or_else(|| {
        wrong(
            from,
            "is in no format that is recognised; give --format, or `sae import --help` names them".into(),
        )
    })
}

/// By the names of the tensors in a file.
fn by_names(file: &Path) -> Option<Format> {
    if file.extension().is_some_and(|e| e == "pt" || e == "pth") {
        let found = super::pt::read(file).ok()?;
        let openai = found.tensors.contains_key("latent_bias");
        return Some(if openai { Format::Openai } else { Format::DictionaryLearning });
    }
    if file.extension().is_some_and(|e| e == "npz") {
        return Some(Format::GemmaScope);
    }
    let (header, _) = files::safetensors_header(file, &File::open(file).ok()?).ok()?;
    let has = |name: &str| header.tensors().contains_key(name);
    if has("w_enc") && has("threshold") {
        return Some(Format::GemmaScope);
    }
    [
        ("idf", Format::Esmc),
        ("group_sizes", Format::DictionaryLearning),
        ("W_enc", Format::Saelens),
        ("W_dec", Format::Sparsify),
        ("w_enc", Format::Interprot),
        ("latent_bias", Format::Openai),
        ("decoder.weight", Format::DictionaryLearning),
    ]
    .into_iter()
    .find_map(|(name, format)| has(name).then_some(format))
}
