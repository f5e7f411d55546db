//! `sae sweep`.

use super::options::Grid;
use super::{Global, compare, json, print};
use crate::analysis::compare::compare as rows_of;
use crate::config::Options;
use crate::error::{Error, Result};
use crate::peers::Place;
use crate::run::sweep::sweep;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sae sweep`. Options of the model, its training and its run take several values, separated by commas.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true, allow_negative_numbers = true)]
pub struct Args {
    /// Files or folders of embeddings (HDF5, .npy, .safetensors); several are one data set
    #[arg(value_name = "DATA", required = true)]
    data: Vec<PathBuf>,
    /// Folder of the runs, each in a folder named by what it has of its own; the same command again resumes it
    #[arg(long, value_name = "SWEEP")]
    out: PathBuf,
    /// Options from a TOML file; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    grid: Grid,
}

/// Runs the command.
pub fn run(args: Args, global: &Global, stop: &AtomicBool) -> Result<()> {
    if let Some(place) = Place::of(&|name| std::env::var(name).ok())? {
        return Err(Error::Usage(format!(
            "a sweep is one process with one GPU, and {} started {}: start it once, or share out single runs with `sae train`",
            place.launcher, place.count
        )));
    }
    let session = global.session(stop);
    let mut base = args.grid.common.clone();
    base.data = Some(args.data);
    if let Some(path) = &args.config {
        base = base.or(Options { data: None, ..Options::from_toml(path)? });
    }
    let members = sweep(&base, &args.grid.several, &args.out, &session)?;
    let done: Vec<PathBuf> =
        members.iter().filter(|member| member.outcome.is_ok()).map(|member| member.folder.clone()).collect();
    let rows = rows_of(&done)?;
    if !rows.is_empty() {
        #[cfg(feature = "plots")]
        compare::draw(&rows, &args.out.join("frontier.png"))?;
        print(&if global.json { json(&rows)? } else { compare::table_of(&rows) })?;
    }
    let failed: Vec<String> = members
        .iter()
        .filter_map(|member| Some(format!("{}: {}", member.name, member.outcome.as_ref().err()?)))
        .collect();
    match failed.first() {
        None => Ok(()),
        Some(first) => Err(Error::Failed(format!(
            "{} of {} runs failed, the first {first}; the same command tries them again",
            failed.len(),
            members.len()
        ))),
    }
}
