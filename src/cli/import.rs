//! `sae import`.

use super::options::choice;
use super::{Global, json, print_apart};
use crate::error::Result;
use crate::export::Format;
use crate::export::import::{ImportRequest, import};
use crate::spec::Inference;
use std::path::PathBuf;

/// Arguments of `sae import`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder or file of a model trained elsewhere
    #[arg(value_name = "DIR|FILE")]
    from: PathBuf,
    /// Library that wrote it [default: found from the names in it]
    #[arg(long, value_parser = choice::<Format>())]
    format: Option<Format>,
    /// Active latents per row, where the files do not say
    #[arg(short, long, value_name = "K")]
    k: Option<usize>,
    /// Its rows were normalised before the library saw them: (x - mean) / (std + 1e-5) of each
    #[arg(long)]
    normalize: bool,
    /// Settings and tensors to leave out that are not understood here, if they do not change the codes
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Model to write, model.safetensors
    #[arg(short, long, value_name = "MODEL")]
    out: PathBuf,
    /// Replace it
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<()> {
    let Args { from, format, k, normalize, ignore, out, overwrite } = args;
    let done = import(&ImportRequest { from, format, k, normalize, ignore, out, overwrite })?;
    if global.json {
        return print_apart(&[&done.model], &json(&done)?);
    }
    let text = format!(
        "{}: from {}, D = {}, M = {}, {}, {}{}\n",
        done.model.display(),
        done.format,
        done.d_in,
        done.n_latents,
        match done.inference {
            Inference::Topk => format!("k = {}", done.k),
            Inference::Relu => "relu of all scores".into(),
            Inference::Threshold => "scores above the latents' thresholds".into(),
        },
        if done.normalize { "rows normalised" } else { "rows as they are" },
        if done.own { ", as sae exported it" } else { "" }
    );
    print_apart(&[&done.model], &text)
}
