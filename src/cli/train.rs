//! `sae train`.

use super::options::Flags;
use super::{Global, print, print_json};
use crate::backend::{OnPaper, on_paper};
use crate::config::{Config, Options};
use crate::console;
use crate::error::{Error, Result};
use crate::model::shard::Shard;
use crate::peers::{Place, per_node, world_size};
use crate::run::{self, Memory, Prepared, Session};
use crate::text::{bytes, table, thousands};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae train`. A flag given twice counts as given last, so that scripts can be overridden.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, allow_negative_numbers = true)]
pub struct Args {
    /// Files or folders of embeddings (HDF5, .npy, .safetensors); several are one data set
    #[arg(value_name = "DATA", conflicts_with = "resume")]
    data: Vec<PathBuf>,
    /// Folder of the run [default: the first file's name with -sae]
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Continue the run in this folder from where it stopped, with its configuration
    #[arg(long, value_name = "RUN")]
    resume: Option<PathBuf>,
    /// Options from a TOML file, such as a run's config.toml; flags win
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    config: Option<PathBuf>,
    /// Print the resolved configuration, sizes and memory, and stop (TOML; JSON with --json)
    #[arg(long, conflicts_with = "resume")]
    dry_run: bool,
    /// Replace a run that is in the folder already
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    #[command(flatten)]
    flags: Flags,
}

impl Args {
    /// Flags over file.
    fn options(&self) -> Result<Options> {
        let mut flags = self.flags.0.clone();
        flags.data = (!self.data.is_empty()).then(|| self.data.clone());
        match &self.config {
            Some(path) => Ok(flags.or(Options::from_toml(path)?)),
            None => Ok(flags),
        }
    }
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    // A plan may be made for ranks that nobody has started.
    let place = if args.dry_run { Place::of(&variable).unwrap_or_default() } else { Place::of(&variable)? };
    let prints = place.as_ref().is_none_or(|place| place.rank == 0);
    let session = Session { place: place.as_ref(), ..global.session(stop) };
    let (summary, folder) = if let Some(run) = &args.resume {
        if args.flags.0 != Options::default() {
            return Err(Error::Usage(
                "--resume takes the run's own config.toml and no other training options; leave them out, or start a new run with --config".into(),
            ));
        }
        (run::resume(run, None, &session)?, run.clone())
    } else {
        let options = args.options()?;
        let data = options.data.clone().unwrap_or_default();
        if data.is_empty() {
            return Err(Error::Usage("no data: `sae train FILE.h5`, or `sae train --resume RUN`".into()));
        }
        if args.dry_run {
            if !prints {
                return Ok(());
            }
            let prepared = run::prepare(&options, world_size(&variable)?, &session)?;
            let plan = Plan::new(&prepared, per_node(&variable)?)?;
            return if global.json { print_json(&plan) } else { print(&plan.toml(&prepared.config)?) };
        }
        let out = args.out.unwrap_or_else(|| run::default_out(&data));
        (run::start(&options, None, &out, args.overwrite, &session)?, out)
    };
    if !prints {
        return Ok(());
    }
    if global.json {
        return print_json(&summary);
    }
    print(&format!("{}run folder: {}\n", summary.table(), folder.display()))?;
    for warning in [summary.fvu_warning(), summary.dead_warning()].into_iter().flatten() {
        if !global.quiet {
            console::warn(warning);
        }
    }
    Ok(())
}

/// What `--dry-run` prints.
#[derive(Debug, Serialize)]
struct Plan {
    config: Options,
    device: String,
    rows: Rows,
    d_in: usize,
    parameters: u64,
    epochs: f64,
    memory_bytes: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<Ranks>,
}

/// What each of several processes has, as far as `--dry-run` can tell.
#[derive(Debug, Serialize)]
struct Ranks {
    count: usize,
    /// Of the first; others may have 128 more.
    latents: usize,
    on_paper: Option<OnPaper>,
}

impl Ranks {
    fn new(prepared: &Prepared, per_node: usize) -> Result<Option<Self>> {
        let (count, config) = (prepared.ranks, &prepared.config);
        if count < 2 {
            return Ok(None);
        }
        let latents = Shard::of(0, count, config.n_latents)?.latents().len();
        let on_paper = on_paper(&config.training(), prepared.data.as_ref(), count, per_node);
        Ok(Some(Self { count, latents, on_paper }))
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines =
            vec![("ranks, latents of each", format!("{}, {}", self.count, thousands(self.latents as u64)))];
        if let Some(OnPaper { sent_bytes, step_seconds, exchange_seconds }) = self.on_paper {
            let (ms, share) = (1e3 * step_seconds, 100.0 * exchange_seconds / step_seconds);
            lines.push(("sent by each rank, per step", bytes(sent_bytes)));
            lines.push(("step on H100s, on paper", format!("{ms:.2} ms, {share:.0} % of it exchanging")));
        }
        lines
    }
}

#[derive(Debug, Serialize)]
struct Rows {
    all: usize,
    train: usize,
    val: usize,
    test: usize,
}

impl Plan {
    fn new(prepared: &Prepared, per_node: usize) -> Result<Self> {
        let Prepared { data, split, config: c, device, .. } = prepared;
        Ok(Self {
            ranks: Ranks::new(prepared, per_node)?,
            config: c.to_options(),
            device: if prepared.ranks > 1 { "cuda".into() } else { device.to_string() },
            rows: Rows {
                all: data.n_rows(),
                train: split.train.len(),
                val: split.val.len(),
                test: split.test.len(),
            },
            d_in: c.d_in,
            parameters: c.training().n_params(),
            epochs: c.schedule.steps as f64 * c.schedule.batch_size as f64 / c.n_train as f64,
            memory_bytes: Memory::new(prepared),
        })
    }

    /// As TOML, with the sizes as comments, so that it can be used as a configuration.
    fn toml(&self, c: &Config) -> Result<String> {
        let Rows { all, train, val, test } = self.rows;
        let (data, training) = match self.ranks {
            Some(_) => ("memory of the data, each", "memory of training, each"),
            None => ("memory of the data", "memory of training, about"),
        };
        let rows: Vec<Vec<String>> = [
            ("rows (train, val, test)", format!("{all} ({train}, {val}, {test})")),
            ("inputs D, latents M, active k", format!("{}, {}, {}", c.d_in, c.n_latents, c.spec.forward.k)),
            ("parameters", thousands(self.parameters)),
            ("steps, epochs", format!("{}, {:.1}", c.schedule.steps, self.epochs)),
            ("device, precision", format!("{}, {}", self.device, c.precision)),
            (data, bytes(self.memory_bytes.data)),
            (training, bytes(self.memory_bytes.training)),
        ]
        .into_iter()
        .chain(self.ranks.iter().flat_map(Ranks::lines))
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
        let sizes: String = table(&["size", ""], &rows).lines().map(|line| format!("# {line}\n")).collect();
        Ok(format!("{}\n{sizes}", c.to_toml()?))
    }
}
