//! `sae export`.

use super::{Global, print, print_json};
use crate::error::Result;
use crate::export::{ExportRequest, Format, export};
use std::path::PathBuf;

/// Arguments of `sae export`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, or a model.safetensors
    #[arg(value_name = "RUN|MODEL")]
    model: PathBuf,
    /// Library to write it for
    #[arg(long)]
    format: Format,
    /// Folder to make
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Replace a folder that an export made
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global) -> Result<()> {
    let Args { model, format, out, overwrite } = args;
    let done = export(&ExportRequest { model, format, out, overwrite })?;
    if let Some(warning) = done.warning.as_ref().filter(|_| !global.quiet) {
        eprintln!("warning: {warning}");
    }
    if global.json {
        return print_json(&done);
    }
    print(&format!("{} holds {}\n{}\n", done.folder.display(), done.files.join(", "), done.load))
}
