//! `sae export`.

use super::options::choice;
use super::{DataArgs, Global, print, print_json};
use crate::console;
use crate::error::Result;
use crate::export::{ExportRequest, Format, export};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, or a model.safetensors
    #[arg(value_name = "RUN|MODEL")]
    model: PathBuf,
    /// Library to write it for
    #[arg(long, value_parser = choice::<Format>())]
    format: Format,
    /// Folder to make
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Files of embeddings to see the latents on: firing rates for saelens' sparsity.safetensors [default: no such
    /// file], and esmc's idf and max [default: 1, which change nothing]
    #[arg(long, value_name = "DATA", num_args = 1..)]
    data: Vec<PathBuf>,
    /// The layer of ESMC that rows are taken from, for --format esmc [default: 0]
    #[arg(long, value_name = "I")]
    layer: Option<u32>,
    /// Rows are the residual updates of that layer of ESMC and not its hidden states, for --format esmc
    #[arg(long)]
    residual_updates: bool,
    /// Replace a folder that an export made
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    how: DataArgs,
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let Args { model, format, out, data, layer, residual_updates, overwrite, how } = args;
    let source = global.source(model, data, how);
    let done = export(&ExportRequest { source, format, layer, residual_updates, out, overwrite }, stop)?;
    if let Some(warning) = done.warning.as_ref().filter(|_| !global.quiet) {
        console::warn(warning);
    }
    if global.json {
        return print_json(&done);
    }
    print(&format!("{} holds {}\n{}\n", done.folder.display(), done.files.join(", "), done.load))
}
