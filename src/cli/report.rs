//! `sae report`.

use super::features::LabelArgs;
use super::{DataArgs, Global, MemoryArg, SplitArg, json, print_apart};
use crate::analysis::features::FeaturesRequest;
use crate::console;
use crate::error::Result;
use crate::report::request::{ReportRequest, report};
use crate::text::{bytes, thousands};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run folder, or a model.safetensors
    #[arg(value_name = "RUN|MODEL")]
    run: PathBuf,
    /// Files or folders of embeddings [default: those that the run was trained on; a model needs them]
    #[arg(value_name = "DATA")]
    data: Vec<PathBuf>,
    /// File that is made [default: report.html in the run folder; a model needs it]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
    /// Rows to look at
    #[arg(long, default_value = "all")]
    split: SplitArg,
    /// Latents in the table, the strongest
    #[arg(long, default_value_t = 500, value_name = "N")]
    features: usize,
    /// Ids per latent: those that fire it most
    #[arg(long, default_value_t = 8, value_name = "N")]
    top: usize,
    /// Nearest latents by cosine of decoder rows; 0 leaves them out
    #[arg(long, default_value_t = 3, value_name = "N")]
    neighbours: usize,
    #[command(flatten)]
    labels: LabelArgs,
    #[command(flatten)]
    memory: MemoryArg,
    #[command(flatten)]
    how: DataArgs,
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let request = ReportRequest {
        features: FeaturesRequest {
            split: args.split.part(),
            pool: args.labels.pool(),
            top: args.top,
            neighbours: args.neighbours,
            labels: args.labels.resolve(),
            memory: args.memory.bytes(),
            outputs: vec![],
            source: global.source(args.run, args.data, args.how),
        },
        shown: args.features,
        out: args.out,
        overwrite: args.overwrite,
    };
    let done = report(&request, stop)?;
    if !global.quiet {
        done.features.warnings().iter().for_each(console::warn);
    }
    let text = if global.json {
        json(&done)?
    } else {
        format!(
            "{}: {}, {} of {} latents that fire; open it in a browser\n",
            done.path.display(),
            bytes(done.bytes as u64),
            thousands(done.shown as u64),
            thousands(done.features.alive as u64)
        )
    };
    print_apart(&[&done.path], &text)
}
