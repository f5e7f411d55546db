//! `sae train`.

use super::{Global, print, print_json};
use crate::backend;
use crate::config::{Config, Options};
use crate::error::{Error, Result};
use crate::report::table::{bytes, table, thousands};
use crate::train::{self, Prepared, Session};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae train`. A flag given twice counts as given last, so that scripts can be overridden.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    /// HDF5 files of embeddings; several are one data set
    #[arg(value_name = "DATA", conflicts_with = "resume")]
    data: Vec<PathBuf>,
    /// Folder of the run [default: the first file's name with -sae]
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder where it stopped; its configuration holds
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Options from a TOML file, such as a run's config.toml; flags win
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Print the resolved configuration, sizes and memory, and stop
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Replace a run that is in the folder already
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Decoder and encoder are one tensor
    #[arg(long, conflicts_with = "untied")]
    tied: bool,
    /// Decoder and encoder are two tensors (default)
    #[arg(long)]
    untied: bool,
    /// Train on rows as they are, without LayerNorm
    #[arg(long, conflicts_with = "normalize")]
    no_normalize: bool,
    /// Normalise each row before the encoder (default, except in sparse-l1)
    #[arg(long)]
    normalize: bool,
    /// Drop and count rows that are not finite, of another width, or have an id seen before
    #[arg(long)]
    skip_bad_rows: bool,
    #[command(flatten)]
    options: Options,
}

impl Args {
    /// Flags over file.
    fn options(&self) -> Result<Options> {
        let mut flags = self.options.clone();
        flags.data = (!self.data.is_empty()).then(|| self.data.clone());
        flags.tied = if self.tied { Some(true) } else { self.untied.then_some(false) };
        flags.normalize = if self.no_normalize { Some(false) } else { self.normalize.then_some(true) };
        flags.skip_bad_rows = self.skip_bad_rows.then_some(true);
        match &self.config {
            Some(path) => Ok(flags.or(Options::from_toml(path)?)),
            None => Ok(flags),
        }
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let session = Session { device: global.device, quiet: global.quiet, stop };
    let (summary, folder) = if let Some(run) = &args.resume {
        if args.options != Options::default()
            || args.tied
            || args.untied
            || args.no_normalize
            || args.normalize
            || args.skip_bad_rows
        {
            return Err(Error::Usage(
                "--resume takes the run's own config.toml and no other training options; leave them out, or start a new run with --config".into(),
            ));
        }
        (train::resume(run, &session)?, run.clone())
    } else {
        let options = args.options()?;
        let data = options.data.clone().unwrap_or_default();
        if data.is_empty() {
            return Err(Error::Usage("no data: `sae train FILE.h5`, or `sae train --resume RUN`".into()));
        }
        if args.dry_run {
            let prepared = train::prepare(&options, &session)?;
            return print(&plan(&prepared)?);
        }
        let out = args.out.unwrap_or_else(|| train::default_out(&data));
        (train::start(&options, &out, args.overwrite, &session)?, out)
    };
    if global.json {
        return print_json(&summary);
    }
    print(&format!("{}run folder: {}\n", summary.table(), folder.display()))
}

/// What `--dry-run` prints: TOML, with the sizes as comments, so that it can be used as a configuration.
fn plan(prepared: &Prepared) -> Result<String> {
    let c: &Config = &prepared.config;
    let matrices = if c.tied { 1 } else { 2 };
    let params = (matrices * c.n_latents * c.d_in + c.n_latents + c.d_in) as u64;
    let device = prepared.device;
    let memory = backend::memory(device, &c.spec, c.d_in, c.n_latents, c.tied, c.batch_size, c.precision);
    let split = &prepared.split;
    let data = prepared.data.bytes() as u64;
    let rows: Vec<Vec<String>> = [
        (
            "rows (train, val, test)",
            format!(
                "{} ({}, {}, {})",
                prepared.data.n_rows(),
                split.train.len(),
                split.val.len(),
                split.test.len()
            ),
        ),
        ("inputs D, latents M, active k", format!("{}, {}, {}", c.d_in, c.n_latents, c.spec.k)),
        ("parameters", thousands(params)),
        (
            "steps, epochs",
            format!("{}, {:.1}", c.steps, c.steps as f64 * c.batch_size as f64 / c.n_train as f64),
        ),
        ("device, precision", format!("{device}, {}", c.precision)),
        ("memory of the data", bytes(data)),
        ("memory of training, about", bytes(memory)),
    ]
    .map(|(name, value)| vec![name.to_owned(), value])
    .to_vec();
    let sizes: String = table(&["size", ""], &rows).lines().map(|line| format!("# {line}\n")).collect();
    Ok(format!("{}\n{sizes}", c.to_toml()?))
}
