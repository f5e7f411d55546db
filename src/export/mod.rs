//! Models of other libraries: written for them (`sae export`) and read from them (`sae import`).
//!
//! One file a format, each with the source that it follows. What they share:
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | the formats, an exported folder written whole |
//! | [`import`] | which format a folder or file is in, and a `model.safetensors` from it |
//! | [`foreign`] | a model as other libraries have it, folded into ours |
//! | [`tensors`] | tensors and settings read from files that are not ours |
//! | [`pt`], [`pickle`] | PyTorch's `.pt` without Python |
//!
//! Every format here computes `z = W_enc (x - b) + b_enc`, a top k or a relu, and `W_dec h + b`, so no bias has to
//! be folded on the way out. They differ in normalisation: SAELens and InterProt have our LayerNorm (unbiased
//! standard deviation, 1e-5 added to it), OpenAI has it beside a top k alone, sparsify and dictionary_learning have
//! none. Where a library cannot do what the model does, [`Exported::warning`] and `README.txt` say so.

mod dictionary_learning;
pub mod foreign;
pub mod import;
mod interprot;
mod openai;
pub mod pickle;
pub mod pt;
mod saelens;
mod sparsify;
pub mod tensors;

use crate::analysis::{Source, codes, load_model};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt::check_flag;
use crate::model::Params;
use crate::model::file::ModelMeta;
use crate::spec::{Activation, Inference, NORM_EPS, choices};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// In every exported folder: what the other formats have no place for, so that import gives the same model again.
const SIDECAR: &str = "topk_sae.json";

const README: &str = "README.txt";

/// Every file that an export writes.
const NAMES: [&str; 11] = [
    SIDECAR,
    README,
    saelens::CONFIG,
    saelens::WEIGHTS,
    saelens::SPARSITY,
    sparsify::CONFIG,
    sparsify::WEIGHTS,
    dictionary_learning::CONFIG,
    dictionary_learning::WEIGHTS,
    interprot::WEIGHTS,
    openai::WEIGHTS,
];

choices! {
    /// A library whose models are written and read.
    pub enum Format {
        /// SAELens 6: `SAE.load_from_disk(DIR)`
        Saelens = "saelens",
        /// EleutherAI's sparsify: `SparseCoder.load_from_disk(DIR)`
        Sparsify = "sparsify",
        /// dictionary_learning: `load_dictionary(DIR, device)`
        DictionaryLearning = "dictionary-learning",
        /// InterProt's `SparseAutoencoder`
        Interprot = "interprot",
        /// OpenAI's sparse_autoencoder: `Autoencoder.from_state_dict`
        Openai = "openai",
    }
}

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The model, and rows to count firing rates on: none (no data) where they are not wanted. Only SAELens has a place
    /// for them.
    pub source: Source,
    /// For which library.
    pub format: Format,
    /// Folder to make.
    pub out: PathBuf,
    /// Replace a folder that an export made.
    pub overwrite: bool,
}

/// What was written.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// For which library.
    pub format: Format,
    /// The folder.
    #[serde(serialize_with = "files::path_as_text")]
    pub folder: PathBuf,
    /// Names in it, sorted.
    pub files: Vec<String>,
    /// Python that loads it.
    pub load: String,
    /// What the library does not do by itself, and what the caller has to do for it.
    pub warning: Option<String>,
}

/// How a library loads the folder, and what it cannot do.
struct Notes {
    load: String,
    warning: Option<String>,
}

/// Kept beside the exported model.
#[derive(Debug, Serialize, Deserialize)]
struct Sidecar {
    format: Format,
    model: ModelMeta,
}

/// Writes a model for another library, the whole folder or nothing.
///
/// # Errors
/// No such model; a folder that is there already and may not be replaced; data for a format that has no place for
/// firing rates, or what [`codes::walk`] meets in them; as the disk gives them.
pub fn export(request: &ExportRequest, stop: &AtomicBool) -> Result<Exported> {
    let out = &crate::run::check_folder("--out", &request.out, &request.source.inputs())?;
    let (params, meta) = load_model(&request.source.model)?;
    if meta.architecture.forward.activation == Activation::AbsTopk && request.format != Format::Sparsify {
        return Err(Error::Usage(format!(
            "--format {} has no codes with signs, which --activation abs-topk gives; use --format sparsify",
            request.format
        )));
    }
    if meta.architecture.forward.has_threshold() {
        return Err(Error::Usage(format!(
            "--format {} has no thresholds, by which --activation {} makes its codes; `sae encode` writes these",
            request.format, meta.architecture.forward.activation
        )));
    }
    let old = check_target(out, request.overwrite)?;
    let rates = match (request.format, request.source.data.is_empty()) {
        (_, true) => None,
        (Format::Saelens, false) => Some(codes::firing_rates(&request.source, (&params, &meta), stop)?),
        (other, false) => {
            return Err(Error::Usage(format!(
                "--data: {other} has no place for firing rates; leave it out, or use --format saelens"
            )));
        }
    };
    check_flag(stop)?;
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent, "make"))?;
    // Deleted with what is left in it: an old export, or a new one that failed.
    let temporary = files::temporary_folder(parent).map_err(Error::io(parent, "write"))?;
    let new = temporary.path().join("new");
    fs::create_dir(&new).map_err(Error::io(&new, "write"))?;
    let fill = || -> Result<Notes> {
        let notes = match request.format {
            Format::Saelens => saelens::write(&new, &params, &meta, rates.as_deref()),
            Format::Sparsify => sparsify::write(&new, &params, &meta),
            Format::DictionaryLearning => dictionary_learning::write(&new, &params, &meta),
            Format::Interprot => interprot::write(&new, &params, &meta),
            Format::Openai => openai::write(&new, &params, &meta),
        }?;
        write_json(&new.join(SIDECAR), &Sidecar { format: request.format, model: meta.clone() })?;
        files::write_whole(&new.join(README), readme(request.format, &params, &meta, &notes).as_bytes())?;
        Ok(notes)
    };
    let notes = fill().map_err(|e| e.renamed(&new, out))?;
    let kept = temporary.path().join("old");
    if old {
        fs::rename(out, &kept).map_err(Error::io(out, "replace"))?;
    }
    if let Err(e) = fs::rename(&new, out) {
        if old {
            // Best effort: the error that matters is the one reported.
            let _ = fs::rename(&kept, out);
        }
        return Err(Error::io(out, "write")(e));
    }
    let mut files = vec![];
    for entry in fs::read_dir(out).map_err(Error::io(out, "list"))? {
        files.push(entry.map_err(Error::io(out, "list"))?.file_name().to_string_lossy().into_owned());
    }
    files.sort();
    let Notes { load, warning } = notes;
    let load = load
        .replace("\"DIR/", &format!("\"{}/", request.out.display()))
        .replace("DIR", &format!("{:?}", request.out.display().to_string()));
    Ok(Exported { format: request.format, folder: request.out.clone(), files, load, warning })
}

/// Whether there is a folder to replace. Only what an export made is replaced: `-o .` must not empty a home folder.
fn check_target(out: &Path, overwrite: bool) -> Result<bool> {
    if !out.exists() {
        return Ok(false);
    }
    let refused = |what: &str| Err(Error::Usage(format!("--out {} {what}", out.display())));
    let mut foreign = None;
    let mut empty = true;
    for entry in fs::read_dir(out).map_err(Error::io(out, "list"))? {
        let entry = entry.map_err(Error::io(out, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        empty = false;
        if !NAMES.contains(&name.as_str()) || entry.path().is_dir() {
            foreign = Some(name);
        }
    }
    match foreign {
        _ if empty => Ok(false),
        Some(name) => {
            refused(&format!("holds {name}, which no export made; name another folder or move it away"))
        }
        None if !out.join(SIDECAR).is_file() => {
            refused("holds a model of another program and not an export of sae; name another folder")
        }
        None if !overwrite => {
            refused("holds an export already; name another folder, or replace it with --overwrite")
        }
        None => Ok(true),
    }
}

fn readme(format: Format, params: &Params, meta: &ModelMeta, notes: &Notes) -> String {
    let mut text = format!(
        "A sparse autoencoder in the format of {format}, written by sae {}.\nD = {}, M = {}, {}.\n\nLoad it (DIR is this folder):\n\n{}\n",
        env!("CARGO_PKG_VERSION"),
        params.d_in,
        params.n_latents,
        match (meta.architecture.forward.inference, meta.architecture.forward.activation) {
            (Inference::Topk, Activation::AbsTopk) => {
                format!(
                    "codes: the {} scores of largest magnitude, with their signs",
                    meta.architecture.forward.k
                )
            }
            (Inference::Topk, _) => {
                format!("codes: relu of the {} largest scores", meta.architecture.forward.k)
            }
            (Inference::Relu, _) => "codes: relu of all scores".to_owned(),
            (Inference::Threshold, _) => "codes: scores above the latents' thresholds".to_owned(),
        },
        notes.load.lines().map(|line| format!("    {line}\n")).collect::<String>()
    );
    if let Some(warning) = &notes.warning {
        text.push_str(&format!("Note: {warning}.\n\n"));
    }
    text.push_str(&format!("{SIDECAR} is for `sae import`; {format} does not read it.\n"));
    text
}

/// Active latents of a library that has a top k alone: all M for a model that uses relu of all scores, as a top k
/// of all of them is that.
fn top(meta: &ModelMeta) -> usize {
    match meta.architecture.forward.inference {
        Inference::Topk => meta.architecture.forward.k,
        Inference::Relu | Inference::Threshold => meta.architecture.n_latents,
    }
}

/// What to do by hand where the library does not normalise and the model wants it.
fn by_hand(library: &str, meta: &ModelMeta) -> String {
    format!(
        "{library} does not normalise: normalise rows first, (x - mean) / (std + {:e}) of each row with the unbiased \
         std, then multiply its reconstruction by std and add mean",
        meta.architecture.forward.norm_eps
    )
}

/// What differs where the library normalises: it adds 1e-5 to a row's deviation, whatever the model was trained with.
fn other_eps(library: &str, meta: &ModelMeta) -> Option<String> {
    let factor = NORM_EPS / meta.architecture.forward.norm_eps;
    (meta.architecture.forward.normalize && meta.architecture.forward.norm_eps != NORM_EPS).then(|| {
        format!(
            "{library} adds {NORM_EPS:e} to each row's standard deviation, and this model, whose rows are small, was \
             trained with {:e}: multiply rows by {factor:.3e} before the library sees them and divide its \
             reconstruction by as much, or its codes are not the model's",
            meta.architecture.forward.norm_eps
        )
    })
}

/// (`rows`, `columns`) to (`columns`, `rows`), row-major.
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = vec![0.0; values.len()];
    // Blocks, so that both sides stay in the cache.
    const BLOCK: usize = 64;
    for r0 in (0..rows).step_by(BLOCK) {
        for c0 in (0..columns).step_by(BLOCK) {
            for r in r0..(r0 + BLOCK).min(rows) {
                for c in c0..(c0 + BLOCK).min(columns) {
                    out[c * rows + r] = values[r * columns + c];
                }
            }
        }
    }
    out
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut json = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Failed(format!("{} cannot be written as JSON: {e}", path.display())))?;
    json.push('\n');
    files::write_whole(path, json.as_bytes())
}

/// safetensors with the metadata that PyTorch's own writer gives.
fn write_tensors(path: &Path, tensors: &[files::Tensor<'_>]) -> Result<()> {
    files::write_safetensors(path, tensors, [("format", "pt".into())])
}
