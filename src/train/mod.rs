//! A training run from data to run folder.

pub mod checkpoint;
mod explain;
pub mod folder;
mod lock;
mod memory;
pub mod metrics;
pub mod outputs;
mod queue;
mod recover;
mod trainer;
mod unit;
mod weights;

use crate::backend::{self, Backend, DeviceChoice, Selected};
use crate::config::{Config, Options, Settings};
use crate::console;
use crate::data::{Embeddings, LoadOptions, Split};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt;
use crate::model::{TrainState, make_unit_rows};
use crate::report::progress::Phase;
pub use memory::Memory;

use checkpoint::Progress;
use folder::{RunFolder, names};
use outputs::Summary;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use trainer::Trainer;
use weights::start_state;

/// Where a run computes, how it talks and is stopped.
pub struct Session<'a> {
    /// What `--device` asks for.
    pub device: DeviceChoice,
    /// No progress, no warnings.
    pub quiet: bool,
    /// Set by a signal that asks to stop.
    pub stop: &'a AtomicBool,
}

/// Data with a settled configuration: what `--dry-run` shows and what training starts from.
pub struct Prepared {
    /// The rows.
    pub data: Arc<Embeddings>,
    /// Who is in which split.
    pub split: Split,
    /// Everything settled.
    pub config: Config,
    /// What will compute.
    pub device: Selected,
}

/// Loads data files, telling progress and skipped rows unless `quiet`.
///
/// # Errors
/// As [`Embeddings::load`].
pub fn load(paths: &[PathBuf], options: &LoadOptions, quiet: bool) -> Result<Embeddings> {
    let phase = Phase::new("loading", quiet);
    let data = Embeddings::load(paths, options)?;
    interrupt::check()?;
    phase.finish(&format!("{} rows of {} {}", data.n_rows(), data.d_in(), data.dtype()));
    if !quiet {
        data.skipped().warn();
    }
    Ok(data)
}

/// Settles the device, loads the data that `options` name and settles everything else.
///
/// # Errors
/// Data or a device that cannot be used, options that do not fit them.
pub fn prepare(options: &Options, session: &Session<'_>) -> Result<Prepared> {
    Loaded::new(options, session)?.settle()
}

/// Data whose configuration is not settled yet.
struct Loaded {
    options: Options,
    data: Embeddings,
    split: Split,
    device: Selected,
}

impl Loaded {
    fn new(options: &Options, session: &Session<'_>) -> Result<Self> {
        // Before minutes of loading.
        options.check_ranges()?;
        let mut options = options.clone();
        let paths = options.data.clone().unwrap_or_default();
        if paths.is_empty() {
            return Err(Error::Usage("no data: name one or more HDF5 files".into()));
        }
        // Absolute, so that the run can be resumed from anywhere.
        let absolute = paths.iter().map(|p| std::path::absolute(p).map_err(Error::io(p, "find")));
        let absolute: Vec<PathBuf> = absolute.collect::<Result<_>>()?;
        if let Some(path) = absolute.iter().find(|path| path.to_str().is_none()) {
            return Err(Error::Usage(format!(
                "{}: this path is not UTF-8, and the run's config.toml, which is, could not name its data; rename it, or train from a link to it (`ln -s`)",
                path.display()
            )));
        }
        let device = session.device.select(session.quiet)?;
        let how = LoadOptions {
            dataset: options.dataset.clone(),
            skip_bad_rows: options.skip_bad_rows.unwrap_or(false),
        };
        let data = load(&paths, &how, session.quiet)?;
        options.data = Some(absolute);
        let split = Split::new(&data, options.seed_of_split());
        if split.val.is_empty() {
            // A preset stops early where it can; only a person's own wish for it is refused below.
            options.early_stop.get_or_insert(0);
        }
        Ok(Self { options, data, split, device })
    }

    fn settle(self) -> Result<Prepared> {
        let Self { mut options, data, split, device } = self;
        unit::settle(&mut options, &data, &split.train);
        let config = Config::resolve(&options, data.d_in(), split.train.len())?;
        device.check(config.precision)?;
        if config.early_stop > 0 && split.val.is_empty() {
            return Err(Error::Usage(
                "--early-stop needs a validation split, and it has no rows: more data are needed".into(),
            ));
        }
        Ok(Prepared { data: Arc::new(data), split, config, device })
    }
}

/// Trains from the start into the folder `out`.
///
/// # Errors
/// Everything that can go wrong with data, options, disk and loss; [`Error::Interrupted`] after a checkpoint.
pub fn start(options: &Options, out: &Path, overwrite: bool, session: &Session<'_>) -> Result<Summary> {
    let out = &files::check_folder("--out", out, options.data.as_deref().unwrap_or_default())?;
    RunFolder::check_free(out, overwrite)?;
    let prepared = prepare(options, session)?;
    memory::check(&prepared)?;
    // Before the folder, which may replace a run: a device may not have the memory.
    let backend = open_backend(&prepared, start_state(&prepared))?;
    interrupt::check_flag(session.stop)?;
    if !session.quiet
        && let Some(warning) = unit::warning(&prepared)
    {
        console::warn(format_args!("{warning}"));
    }
    let splits = prepared.split.to_tsv(&prepared.data);
    let folder = RunFolder::create(out, overwrite, &prepared.config.to_toml()?, &splits)?;
    warn_if_unlocked(&folder, session);
    let progress = Progress::start(Settings::of(&prepared.config), prepared.data.fingerprint());
    let root = folder.root().to_owned();
    Trainer::new(prepared, folder, backend, progress).run(session).map_err(|e| e.in_run(&root))
}

/// Goes on with the run in `root` from its last good checkpoint, or from the start if it has none yet.
///
/// # Errors
/// As [`start`]; also data or options that are no longer those of the run.
pub fn resume(root: &Path, session: &Session<'_>) -> Result<Summary> {
    let folder = RunFolder::open(root)?;
    warn_if_unlocked(&folder, session);
    let mut options = Options::from_toml(&folder.path(names::CONFIG))?;
    options.settle_as_0_1_0();
    let loaded = Loaded::new(&options, session)?;
    let data = loaded.data.fingerprint();
    // First, for data of other sizes make every other check speak of something else.
    recover::same_data(&folder, &loaded, data)?;
    let prepared = loaded.settle()?;
    memory::check(&prepared)?;
    let settings = Settings::of(&prepared.config);
    let c = &prepared.config;
    let zeros = || TrainState::zeros(c.d_in, c.n_latents, c.tied, c.spec.optimizer.ema.is_some());
    let (state, progress) = match recover::last_good_checkpoint(&folder, zeros, session.quiet)? {
        Some((mut state, progress)) => {
            let average = state.ema.as_mut().filter(|_| c.spec.optimizer.unit_norm_decoder);
            if let Some(average) = average {
                // Version 0.1.0 left them shorter.
                make_unit_rows(average.w_dec.as_mut().unwrap_or(&mut average.w_enc), c.d_in);
            }
            (state, progress)
        }
        None => (start_state(&prepared), Progress::start(settings.clone(), data)),
    };
    let differences = progress.settings.differences(&settings);
    if !differences.is_empty() {
        let path = folder.path(names::CONFIG).display().to_string();
        return Err(Error::Usage(format!(
            "{path} was changed since the run's checkpoints were made ({}); put it back, or train anew with `sae train --config {path}`",
            differences.join("; ")
        )));
    }
    let backend = open_backend(&prepared, state)?;
    let (before, now) = (&progress.device, backend.device());
    if !before.is_empty() && !same_card(before, &now) && !session.quiet {
        console::warn(format_args!(
            "the run was computed on {before} until now and goes on with {now}: other bits are to be expected"
        ));
    }
    Trainer::new(prepared, folder, backend, progress).run(session).map_err(|e| e.in_run(root))
}

fn warn_if_unlocked(folder: &RunFolder, session: &Session<'_>) {
    if !folder.locked() && !session.quiet {
        let root = folder.root().display();
        console::warn(format_args!(
            "the file system of {root} has no locks: see to it that no second process trains there"
        ));
    }
}

/// Whether two devices give the same bits: `cuda:0 NVIDIA H100` and `cuda:1 NVIDIA H100` do.
fn same_card(a: &str, b: &str) -> bool {
    let card = |device: &str| device.split_once(' ').map_or(device.to_owned(), |(_, name)| name.to_owned());
    card(a) == card(b)
}

fn open_backend(prepared: &Prepared, state: TrainState) -> Result<Box<dyn Backend>> {
    let Prepared { data, config, device, .. } = prepared;
    backend::open(*device, data.clone(), config.spec.clone(), config.precision, state)
}

/// Where a run goes when no folder is named: `<first file's stem>-sae`.
pub fn default_out(data: &[PathBuf]) -> PathBuf {
    let stem = data.first().and_then(|p| p.file_stem()).unwrap_or_default();
    PathBuf::from(format!("{}-sae", stem.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_kind_of_device_is_told_by_its_name() {
        assert!(same_card("cpu", "cpu"));
        assert!(same_card("cuda:0 NVIDIA H100", "cuda:3 NVIDIA H100"));
        assert!(!same_card("cuda:0 NVIDIA H100", "cuda:0 NVIDIA A100"));
        assert!(!same_card("cpu", "cuda:0 NVIDIA H100"));
    }
}
