//! The command line: clap alone, one file a command. Arguments become requests of the library, results become
//! text; nothing is computed here.

mod compare;
#[cfg(feature = "cuda")]
mod devices;
mod encode;
mod eval;
mod export;
mod features;
mod import;
mod inspect;
mod options;
mod overlap;
mod report;
mod sweep;
mod track;
mod train;

use crate::analysis::Source;
use crate::backend::DeviceChoice;
use crate::config::RowMemory;
use crate::console::{self, print};
use crate::data::{AxisPicks, BadRows, LoadOptions};
use crate::error::{Error, Result};
use crate::interrupt;
use crate::report::curves::write_plots;
use crate::rows::Part;
use crate::run::{Draw, Session};
use crate::text::thousands;
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Starting many more threads than there are cores takes minutes and helps nobody.
const MAX_THREADS: usize = 1024;

/// Train sparse autoencoders on embeddings.
#[derive(Debug, Parser)]
#[command(name = "sae", version, max_term_width = 110, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// Where to compute: auto (the first GPU that can be used, else the CPU), cpu, cuda or cuda:N
    #[arg(long, global = true, default_value = "auto", value_name = "DEVICE")]
    device: DeviceChoice,
    /// Threads to compute with, at most 1024 [default: all cores]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// No progress and no warnings
    #[arg(long, global = true)]
    quiet: bool,
    /// Print the result as JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model from embeddings into a run folder, or continue a run
    ///
    /// Several processes that torchrun, srun or mpirun start train one model, each a part of its latents on a GPU of its own.
    Train(Box<train::Args>),
    /// Train every combination of some options on rows that are read once, and compare the runs
    Sweep(Box<sweep::Args>),
    /// Measure a model: MSE, MAE, FVU, L0, cosine, dead latents
    Eval(eval::Args),
    /// Write the sparse code of every row with its id: HDF5 or a table
    Encode(encode::Args),
    /// Show what each latent fires on, which labels it predicts, or how latents run along one protein
    Features(Box<features::Args>),
    /// Put a run, or a model, on one HTML page: settings, curves, figures, latents with their ids and labels
    Report(report::Args),
    /// Compare the latents of labelled groups of rows: specific, shared, and what chance would give
    Overlap(Box<overlap::Args>),
    /// Set runs side by side, the best validation FVU first
    Compare(compare::Args),
    /// Write a model for SAELens, sparsify, dictionary_learning, InterProt or OpenAI's code
    Export(export::Args),
    /// Make a model.safetensors from a model of one of these
    Import(import::Args),
    /// Show what a data file, a model or a run holds
    Inspect(inspect::Args),
    #[cfg(feature = "cuda")]
    /// Show devices and CUDA libraries, and where each was looked for
    Devices,
}

/// Arguments that say how data files are read.
#[derive(Debug, Clone, clap::Args)]
pub struct DataArgs {
    /// Dataset or group inside the files that holds the rows; `*` stands for one component of a path [default: found by
    /// itself]
    #[arg(long, value_name = "PATTERN")]
    dataset: Option<String>,
    /// Ids of the rows: a dataset beside the matrix, @ and an attribute, a .txt file with one on each line, a .npy array,
    /// `row` for row numbers, or `file` for the file's name [default: found by itself]
    #[arg(long, value_name = "NAME")]
    ids: Option<String>,
    /// Take an axis at one index, as in 0=33 (both count from 0); several with commas
    #[arg(long, value_name = "AXIS=I")]
    index: Option<AxisPicks>,
    /// Rows are the last axis of a matrix
    #[arg(long)]
    transpose: bool,
    /// What integers of 16 bits stand for
    #[arg(long, value_name = "TYPE", value_parser = ["bfloat16"])]
    stored_as: Option<String>,
    /// Drop and count rows that are not finite or have an id seen before: up to a tenth of all, or `all` that there are
    #[arg(long, value_name = "all", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    skip_bad_rows: Option<BadRows>,
}

impl DataArgs {
    fn reading(self) -> LoadOptions {
        LoadOptions {
            dataset: self.dataset,
            ids: self.ids,
            index: self.index.unwrap_or_default(),
            transpose: self.transpose,
            bfloat16: self.stored_as.is_some(),
            group_by: None,
            bad_rows: self.skip_bad_rows.unwrap_or_default(),
        }
    }
}

/// A model and the rows that it is asked about.
#[derive(Debug, clap::Args)]
pub struct SourceArgs {
    /// Run folder, or a model.safetensors
    #[arg(value_name = "RUN|MODEL")]
    model: PathBuf,
    /// Files or folders of embeddings (HDF5, .npy, .safetensors)
    #[arg(value_name = "DATA", required = true)]
    data: Vec<PathBuf>,
    #[command(flatten)]
    how: DataArgs,
}

/// Memory for codes.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct MemoryArg {
    /// Memory for codes, such as 8G, or `all`; what needs more goes to a temporary file in the run folder [default: half of
    /// what is free]
    #[arg(long, value_name = "SIZE")]
    memory: Option<RowMemory>,
}

impl MemoryArg {
    /// Bytes; `None` is the default.
    fn bytes(self) -> Option<u64> {
        self.memory.map(RowMemory::bytes)
    }
}

/// A split, or all rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SplitArg {
    /// Training rows.
    Train,
    /// Validation rows.
    Val,
    /// Test rows.
    Test,
    /// All rows.
    All,
}

impl SplitArg {
    /// The split; `None` is all rows.
    fn part(self) -> Option<Part> {
        match self {
            Self::Train => Some(Part::Train),
            Self::Val => Some(Part::Val),
            Self::Test => Some(Part::Test),
            Self::All => None,
        }
    }
}

impl Global {
    /// A run's view of these: where it computes and how it talks.
    fn session<'a>(&self, stop: &'a AtomicBool) -> Session<'a> {
        let draw = cfg!(feature = "plots").then_some(write_plots as Draw);
        Session { device: self.device, quiet: self.quiet, stop, draw, observer: None, place: None }
    }

    fn source_of(&self, args: SourceArgs) -> Source {
        self.source(args.model, args.data, args.how)
    }

    fn source(&self, model: PathBuf, data: Vec<PathBuf>, how: DataArgs) -> Source {
        Source { model, data, given: None, reading: how.reading(), device: self.device, quiet: self.quiet }
    }
}

impl Cli {
    /// Runs the command; results go to standard output.
    ///
    /// # Errors
    /// Whatever the command meets; `main` prints it and exits with its status.
    pub fn run(self, stop: &AtomicBool) -> Result<()> {
        let Self { global, command } = self;
        start_threads(global.threads)?;
        let done = match command {
            Command::Train(args) => train::run(*args, &global, stop),
            Command::Sweep(args) => sweep::run(*args, &global, stop),
            Command::Eval(args) => eval::run(args, &global, stop),
            Command::Encode(args) => encode::run(args, &global, stop),
            Command::Features(args) => features::run(*args, &global, stop),
            Command::Report(args) => report::run(args, &global, stop),
            Command::Overlap(args) => overlap::run(*args, &global, stop),
            Command::Compare(args) => compare::run(&args, &global),
            Command::Export(args) => export::run(args, &global, stop),
            Command::Import(args) => import::run(args, &global),
            Command::Inspect(args) => inspect::run(&args, &global),
            #[cfg(feature = "cuda")]
            Command::Devices => devices::run(&global),
        };
        match done {
            // The reader of an output has gone away (`-o /dev/stdout | head`), so nothing is left to do.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

/// Runs the command line `args`, the program's name first: parses, runs, prints one error at most. Gives the documented
/// exit status.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    keep_freed_memory();
    match Cli::try_parse_from(args) {
        Ok(cli) => finish(run_with_signals(cli)),
        Err(error) => {
            let printed = error.print().and_then(|()| std::io::stdout().flush());
            match error.exit_code() {
                // Help or version, on standard output.
                0 => finish(console::written(printed)),
                // It is lost where standard error cannot be written; the status is not.
                status => status as u8,
            }
        }
    }
}

fn run_with_signals(cli: Cli) -> Result<()> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let stop = interrupt::watch().unwrap_or_else(|e| {
        console::warn(format_args!("signals will end sae at once, without a checkpoint: {e}"));
        &NEVER
    });
    // Where files may not grow (`ulimit -f`) the write is to fail, which gives an error of one line, and not the process.
    // The handler does nothing; that there is one is enough.
    if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()) {
        console::warn(format_args!("a limit on the size of files will end sae without a message: {e}"));
    }
    cli.run(stop)
}

/// Has the allocator keep some freed memory: HDF5 frees a buffer for each chunk that it unpacks, and where that buffer is
/// the last one glibc gives its pages back each time, which takes an eighth of the time of reading gzipped proteins.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` takes two numbers and changes nothing but when memory is given back.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 16 << 20);
    }
}

/// The status of a command that is done, whose error is told.
fn finish(result: Result<()>) -> u8 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            console::tell(format_args!("error: {error}"));
            error.exit_status()
        }
    }
}

/// Starts as many threads as are asked for, with the option or with the variables that rayon goes by.
fn start_threads(asked: Option<usize>) -> Result<()> {
    let of_variable = |name| Some((name, std::env::var(name).ok()?.parse().ok()?));
    let (name, threads) = match asked {
        Some(threads) => ("--threads", threads),
        None => match ["RAYON_NUM_THREADS", "RAYON_RS_NUM_CPUS"].into_iter().find_map(of_variable) {
            Some((name, threads)) if threads > 0 => (name, threads),
            _ => return Ok(()),
        },
    };
    if threads == 0 || threads > MAX_THREADS {
        let cores =
            std::thread::available_parallelism().map_or("an unknown number of".to_owned(), |n| n.to_string());
        return Err(Error::Usage(format!(
            "{name} {threads}: give 1 to {}; this machine has {cores} cores",
            thousands(MAX_THREADS as u64)
        )));
    }
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|e| {
        Error::Failed(format!("{threads} threads cannot be started: {e}; give fewer with --threads"))
    })
}

/// Prints a result where it does not mix with the command's own outputs: to standard error where one of them is
/// standard output.
fn print_apart(outputs: &[&Path], text: &str) -> Result<()> {
    if outputs.iter().any(|path| crate::files::is_stdout(path)) {
        console::tell(text.trim_end());
        return Ok(());
    }
    print(text)
}

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    let json = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Failed(format!("the result cannot be printed as JSON: {e}")))?;
    Ok(format!("{json}\n"))
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<()> {
    print(&json(value)?)
}
