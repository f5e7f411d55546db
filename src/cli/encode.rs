//! `sae encode`.

use super::options::choice;
use super::{Global, SourceArgs, SplitArg, json, print_apart};
use crate::analysis::encode::{EncodeRequest, encode};
use crate::analysis::sink::CodeFormat;
use crate::error::Result;
use crate::text::{number, thousands};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae encode`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: SourceArgs,
    /// File that is made
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Rows to encode
    #[arg(long, default_value = "all")]
    split: SplitArg,
    /// Keep the latents of one prefix of a Matryoshka model alone: its number, from 1
    #[arg(long, value_name = "I")]
    prefix: Option<usize>,
    /// h5: ids, and (N, k) indices and values or compressed sparse rows; tsv: id, latent, value
    #[arg(long, default_value = "h5", value_parser = choice::<CodeFormat>())]
    format: CodeFormat,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let request = EncodeRequest {
        split: args.split.part(),
        prefix: args.prefix,
        source: global.source_of(args.source),
        out: args.out,
        format: args.format,
        overwrite: args.overwrite,
    };
    let done = encode(&request, stop)?;
    let text = if global.json {
        json(&done)?
    } else {
        format!(
            "{}: {} rows, {} of {} latents active per row\n",
            done.path,
            thousands(done.rows),
            number(done.l0),
            thousands(done.width as u64)
        )
    };
    print_apart(&[&request.out], &text)
}
