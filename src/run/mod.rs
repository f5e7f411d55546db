//! A training run in a folder: from options and data files to a run folder that can be gone on with.
//!
//! [`crate::train`] trains; here is what lies around it: data that are loaded and split, options that are settled, the
//! folder with its checkpoints as the training's store, and what a finished run leaves.

mod check;
pub mod checkpoint;
mod events;
pub mod folder;
mod lock;
mod memory;
pub mod outputs;
mod recover;
mod rows;
mod store;
pub mod sweep;
mod team;
mod terminal;
mod turns;

pub use check::{Kind, Output, Outputs, check_folder};
pub use memory::{Memory, PLOTS};
pub use rows::load;
pub(crate) use rows::warn_of;
pub use turns::Turn;

use crate::backend::{self, Backend, DeviceChoice, Selected};
use crate::config::{Config, Options, RowMemory};
use crate::console::{self, progress::Spinner};
use crate::data::{Embeddings, FoundFiles};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt;
use crate::model::file as model_file;
use crate::model::shard::Shard;
use crate::model::{TrainState, make_unit_rows};
use crate::peers::Place;
use crate::rows::{RowSource, Split};
use crate::spec::Training;
use crate::text::bytes;
use crate::train::metrics::{self, MetricRow};
use crate::train::{
    Observer, Progress, StepReport, TrainRows, Trained, Trainer, Warning, resolve_known, start_rows,
    start_weights, starts_apart, state_of, unit_warning,
};
use checkpoint::RunId;
use events::EventFile;
use folder::{RunFolder, names};
use outputs::Summary;
use rows::{
    Reading, find, given_split, grouped, keep_known_rows, loaded, memory_of, tables_of_split, training_rows,
};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use store::FolderStore;
use team::Team;
use terminal::{MetricsFile, Terminal};
use turns::InTurn;

/// Draws the curves of a run into its folder.
pub type Draw = fn(&Path, &Config, &[MetricRow]) -> Result<()>;

/// Where a run computes, how it talks and is stopped.
pub struct Session<'a> {
    /// What `--device` asks for.
    pub device: DeviceChoice,
    /// No progress, no warnings.
    pub quiet: bool,
    /// Set by a signal that asks to stop.
    pub stop: &'a AtomicBool,
    /// Draws the curves once the model is there; without it there are none.
    pub draw: Option<Draw>,
    /// Hears of steps and evaluations too.
    pub observer: Option<&'a Mutex<dyn Observer + Send + 'a>>,
    /// Which of several processes this is that train one model together; `None` where it is alone.
    pub place: Option<&'a Place>,
}

impl Session<'_> {
    /// That of a rank: the first one shows and draws for all.
    fn of(&self, team: &Team) -> Self {
        match team.is_first() {
            true => Self { ..*self },
            false => Self { quiet: true, draw: None, observer: None, ..*self },
        }
    }
}

/// An observer that its owner keeps.
struct Lent<'a>(&'a Mutex<dyn Observer + Send + 'a>);

impl<'a> Lent<'a> {
    /// One that panicked earlier goes on to hear.
    fn get(&self) -> MutexGuard<'_, dyn Observer + Send + 'a> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Lent<'_> {
    fn stepped(&mut self, report: &StepReport) {
        self.get().stepped(report);
    }

    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        self.get().evaluated(rows)
    }

    fn warned(&mut self, warning: &Warning) {
        self.get().warned(warning);
    }

    fn steps_ended(&mut self) {
        self.get().steps_ended();
    }
}

/// Rows that are there before a run asks for them.
pub enum Rows {
    /// Of no file: whoever resumes the run must bring them again.
    Memory(Box<Embeddings>),
    /// Of the files that the options name, read for several runs, with their groups; of runs that take turns on them, the
    /// turn of this one.
    Files(Arc<Embeddings>, Option<Turn>),
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
    /// Among how many devices the latents are shared out.
    pub ranks: usize,
    /// The mean training row, if something that was settled depends on it.
    mean: Option<Vec<f64>>,
    /// The run takes turns with others on the same rows.
    turn: Option<Arc<Turn>>,
    /// The data's unit does not go with the options.
    warning: Option<String>,
}

/// Settles the device, loads the data that `options` name and settles everything else, for a run of so many ranks.
///
/// # Errors
/// Data or a device that cannot be used, options that do not fit them.
pub fn prepare(options: &Options, ranks: usize, session: &Session<'_>) -> Result<Prepared> {
    let team = Team::planned(ranks);
    let prepared = Loaded::new(options, None, None, &team, session)?.settle(&team, session, false)?;
    Shard::of(0, ranks, prepared.config.n_latents)?;
    Ok(prepared)
}

/// Data whose configuration is not settled yet.
struct Loaded {
    options: Options,
    data: Arc<Embeddings>,
    split: Split,
    device: Selected,
    turn: Option<Arc<Turn>>,
    /// Nobody said how much memory the rows may take.
    by_default: bool,
}

impl Loaded {
    /// `run`: the folder of the run, where there is one.
    fn new(
        options: &Options,
        given: Option<Rows>,
        run: Option<&Path>,
        team: &Team,
        session: &Session<'_>,
    ) -> Result<Self> {
        // Before minutes of loading.
        options.check_ranges()?;
        let mut options = options.clone();
        let of_files = !matches!(given, Some(Rows::Memory(_)));
        let found = if of_files { find(&mut options)? } else { FoundFiles::default() };
        let device = team.device(session.device, session.quiet)?;
        let (groups, splits) = tables_of_split(&mut options)?;
        let by_default = options.memory.is_none() && given.is_none();
        // Those on one machine share what is free. All go through the rows in the same order, and so in windows of one size.
        let share = if by_default { team.on_this_node() as u64 } else { 1 };
        let memory = team.least(memory_of(&options) / share)?;
        let mut turn = None;
        let data = match given {
            Some(Rows::Files(data, of_run)) => {
                turn = of_run.map(Arc::new);
                data
            }
            Some(Rows::Memory(mut data)) => {
                let spinner = Spinner::new("loading", session.quiet);
                grouped(&mut data, groups.as_deref(), &options)?;
                loaded(spinner, &data, session.quiet)?;
                Arc::new(*data)
            }
            None => {
                let (groups, quiet) = (groups.as_deref(), session.quiet);
                let reading = Reading { options: &options, groups, memory, run, team, quiet };
                Arc::new(
                    reading
                        .read(found, |data| Ok(vec![training_rows(data, splits.as_deref(), &options)?]))?,
                )
            }
        };
        options.memory = data.is_streamed().then_some(RowMemory::Bytes(memory));
        let split = match &splits {
            Some(path) => given_split(path, &data, session.quiet)?,
            None => Split::new(data.index(), options.seed_of_split()),
        };
        if data.index().has_clusters() && !session.quiet {
            let share = |rows: &[u32]| format!("{:.1} %", 100.0 * rows.len() as f64 / data.n_rows() as f64);
            let (train, val, test) = (share(&split.train), share(&split.val), share(&split.test));
            console::tell(format_args!("split by groups: {train} of the rows train, {val} val, {test} test"));
        }
        if split.val.is_empty() {
            // A preset stops early where it can; only a person's own wish for it is refused below.
            options.early_stop.get_or_insert(0);
        }
        Ok(Self { options, data, split, device, turn, by_default })
    }

    /// `resumes`: the run was warned of its unit when it began.
    fn settle(self, team: &Team, session: &Session<'_>, resumes: bool) -> Result<Prepared> {
        let Self { options, data, split, device, turn, by_default } = self;
        if data.is_streamed() && !resumes {
            // Read for the usual deviation of a row, and again for the start.
            data.keep(&start_rows(&split.train))?;
        }
        let train = TrainRows::new(data.as_ref(), &split).knowing(data.moments(&split.train));
        let config = resolve_known(&options, &train)?;
        let warning = if session.quiet || resumes { None } else { unit_warning(&config, &train)? };
        train.moments().into_iter().for_each(|moments| data.know(moments));
        if team.count() > 1 {
            // Every rank asks for the same, or none of them has it.
            train.mean()?;
        }
        let mean = train.into_mean();
        device.check(config.precision)?;
        if config.early_stop > 0 && split.val.is_empty() {
            return Err(Error::Usage(
                "--early-stop needs a validation split, and it has no rows: more data are needed".into(),
            ));
        }
        let ranks = team.count();
        let mut prepared = Prepared { data, split, config, device, ranks, mean, turn, warning };
        if by_default && memory::make_room(&mut prepared, team)? && !session.quiet {
            let rows = bytes(prepared.data.bytes() as u64);
            console::tell(format_args!("{rows} of rows at a time in memory: the model needs the rest"));
        }
        Ok(prepared)
    }
}

/// Trains from the start into the folder `out`: from the files that `options` name, or from `given` rows.
///
/// # Errors
/// Everything that can go wrong with data, options, disk and loss; [`Error::Interrupted`] after a checkpoint.
pub fn start(
    options: &Options,
    given: Option<Rows>,
    out: &Path,
    overwrite: bool,
    session: &Session<'_>,
) -> Result<Summary> {
    let team = &Team::join(session.place, out, &format!("{options:?}"))?;
    let session = &session.of(team);
    let started = || {
        let out = &check_folder("--out", out, options.data.as_deref().unwrap_or_default())?;
        if team.is_first() {
            RunFolder::check_free(out, overwrite)?;
        }
        let prepared = Loaded::new(options, given, Some(out), team, session)?.settle(team, session, false)?;
        memory::check(&prepared, team)?;
        // Before the folder, which may replace a run: a device may not have the memory.
        let id = RunId::of(&prepared.config, prepared.data.fingerprint()?);
        let state = own_start(&prepared, out, &id, team)?;
        let backend = open_backend(&prepared, state, &id, team)?;
        interrupt::check_flag(session.stop)?;
        prepared.warning.iter().for_each(console::warn);
        let splits = prepared.split.to_tsv(prepared.data.index());
        let folder = if team.is_first() {
            let folder = RunFolder::create(out, overwrite, &prepared.config.to_toml()?, &splits)?;
            warn_if_unlocked(&folder, session);
            keep_known_rows(&folder.path(names::ROWS), &prepared.data)?;
            folder
        } else {
            RunFolder::of_another(out)
        };
        let progress = Progress::default();
        finish(prepared, &folder, id, backend, progress, team, session).map_err(|e| e.in_run(folder.root()))
    };
    team.told(started())
}

/// Goes on with the run in `root` from its last good checkpoint, or from the start if it has none yet. A run of rows in
/// memory needs them `given` again.
///
/// # Errors
/// As [`start`]; also data or options that are no longer those of the run.
pub fn resume(root: &Path, given: Option<Rows>, session: &Session<'_>) -> Result<Summary> {
    let team = &Team::join(session.place, root, "")?;
    let session = &session.of(team);
    team.told(resume_as(team, root, given, session))
}

fn resume_as(team: &Team, root: &Path, given: Option<Rows>, session: &Session<'_>) -> Result<Summary> {
    let folder = if team.is_first() { RunFolder::open(root)? } else { RunFolder::of_another(root) };
    team.meet()?;
    if team.is_first() {
        warn_if_unlocked(&folder, session);
    }
    let mut options = Options::from_toml(&folder.path(names::CONFIG))?;
    options.settle_as_0_1_0();
    let of_files = options.data.as_ref().is_some_and(|data| !data.is_empty());
    if of_files == matches!(given, Some(Rows::Memory(_))) {
        let root = root.display();
        return Err(Error::Usage(if of_files {
            format!("{root} was trained from files, which it reads again; leave the rows out")
        } else {
            format!(
                "{root} was trained from an array, which no file holds; go on in Python with `topk_sae.resume(\"{root}\", x)`"
            )
        }));
    }
    let loaded = Loaded::new(&options, given, Some(folder.root()), team, session)?;
    let data = loaded.data.fingerprint()?;
    // First, for data of other sizes make every other check speak of something else.
    recover::same_data(&folder, &loaded, data)?;
    let prepared = loaded.settle(team, session, true)?;
    memory::check(&prepared, team)?;
    let c = &prepared.config;
    let id = RunId::of(c, data);
    let own = team.shard(c.n_latents)?.latents().len();
    let zeros = || TrainState::zeros_of(&Training { n_latents: own, ..c.training() });
    let (state, progress) = match recover::last_good_checkpoint(
        &folder,
        team,
        c.n_latents,
        zeros,
        session.quiet,
    )? {
        Some((mut state, of, progress)) => {
            let differences = of.settings.differences(&id.settings);
            if !differences.is_empty() {
                let path = folder.path(names::CONFIG).display().to_string();
                return Err(Error::Usage(format!(
                    "{path} was changed since the run's checkpoints were made ({}); put it back, or train anew with `sae train --config {path}`",
                    differences.join("; ")
                )));
            }
            let average = state.ema.as_mut().filter(|_| c.spec.optimizer.unit_norm_decoder);
            if let Some(average) = average {
                // Version 0.1.0 left them shorter.
                make_unit_rows(average.w_dec.as_mut().unwrap_or(&mut average.w_enc), c.d_in);
            }
            (state, progress)
        }
        None => (own_start(&prepared, root, &id, team)?, Progress::default()),
    };
    let backend = open_backend(&prepared, state, &id, team)?;
    let (before, now) = (&progress.device, backend.device());
    if !before.is_empty() && !same_card(before, &now) && !session.quiet {
        console::warn(format_args!(
            "the run was computed on {before} until now and continues on {now}: expect other bits"
        ));
    }
    finish(prepared, &folder, id, backend, progress, team, session).map_err(|e| e.in_run(root))
}

/// Trains to the end, and writes what a finished run leaves; the summary comes last.
fn finish(
    prepared: Prepared,
    folder: &RunFolder,
    id: RunId,
    backend: Box<dyn Backend>,
    progress: Progress,
    team: &Team,
    session: &Session<'_>,
) -> Result<Summary> {
    let Prepared { data, split, config, mean, turn, .. } = prepared;
    let store = FolderStore::new(folder, &config, id, team);
    store.tidy(&progress)?;
    // Runs that take turns are shown together.
    let shown = !session.quiet && turn.is_none();
    let mut terminal = Terminal::new(config.schedule.steps, progress.step, shown, session.quiet);
    let mut file = MetricsFile(folder.path(names::METRICS));
    let events =
        (config.tensorboard && team.is_first()).then(|| EventFile::open(&folder.path(names::EVENTS)));
    let mut events = events.transpose()?;
    let mut lent = session.observer.map(Lent);
    let rows: Arc<dyn RowSource> = match turn {
        Some(turn) => Arc::new(InTurn::new(data, turn)),
        None => team.share(data),
    };
    let mut trainer =
        Trainer::go_on(config.training(), rows, split, backend, progress)?.with_mean(mean).keep_in(store);
    if team.is_first() {
        trainer = trainer.observe(&mut file).observe(&mut terminal);
    }
    if let Some(events) = &mut events {
        trainer = trainer.observe(events);
    }
    if let Some(lent) = &mut lent {
        trainer = trainer.observe(lent);
    }
    let trained = match to_the_end(&mut trainer, &config, folder, team, session) {
        Ok(done) => done,
        Err(error) => {
            if team.count() > 1 && !matches!(error, Error::Interrupted(_)) {
                // The device may wait for ranks that are told to end now, and would be waited for.
                std::mem::forget(trainer);
            }
            return Err(error);
        }
    };
    // Plots need memory of their own, and the weights are on the disk.
    drop(trainer);
    let summary = Summary::new(&config, &trained);
    if team.is_first() {
        files::write_whole(&folder.path(names::METRICS), &metrics::to_csv(&trained.metrics)?)?;
        if let Some(draw) = session.draw {
            draw(folder.root(), &config, &trained.metrics)?;
        }
        outputs::write_summary(folder, &summary)?;
    }
    team.finish()?;
    Ok(summary)
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
    let card = |device: &str| match device.split_once(' ') {
        Some((number, name)) if number.starts_with("cuda:") => name.to_owned(),
        _ => device.to_owned(),
    };
    card(a) == card(b)
}

/// This rank's part of the state at step 0 of the run in the folder `run`.
fn own_start(prepared: &Prepared, run: &Path, id: &RunId, team: &Team) -> Result<TrainState> {
    let Prepared { data, split, config, .. } = prepared;
    let t = config.training();
    let own = team.shard(t.n_latents)?.latents();
    let made = |latents| start_weights(&t, data.as_ref(), &split.train, latents);
    let weights = if starts_apart(&t) || team.count() == 1 {
        made(own)?
    } else {
        let all = t.n_latents;
        let zeros = TrainState::zeros_of(&Training { n_latents: own.len(), ..t.clone() }).params;
        team.of_whole(run, id, all, zeros, || made(0..all))?
    };
    Ok(state_of(&t, weights))
}

/// The device, with this rank's part of the state.
fn open_backend(prepared: &Prepared, state: TrainState, id: &RunId, team: &Team) -> Result<Box<dyn Backend>> {
    let Prepared { data, config, device, mean, .. } = prepared;
    let (data, spec, precision) = (data.clone(), config.spec.clone(), config.precision);
    let Some(peers) = team.peers() else { return backend::open(*device, data, spec, precision, state) };
    // From what decides about all latents, every rank goes on in the same way.
    let shared = serde_json::to_vec(&(id, &state.params.b_pre, &state.penalty_weight, mean));
    team.agree(
        "options, rows, or figures computed of them,",
        &shared.map_err(|e| Error::Failed(e.to_string()))?,
    )?;
    backend::open_rank(*device, data, spec, precision, &state, config.n_latents, peers.clone())
}

/// All steps, the final figures, and the model's file.
fn to_the_end(
    trainer: &mut Trainer<'_>,
    config: &Config,
    folder: &RunFolder,
    team: &Team,
    session: &Session<'_>,
) -> Result<Trained> {
    if team.count() > 1 {
        interrupt::leave_to_flag();
    }
    let mut stop = team.stop(session.stop);
    let trained = match trainer.run_until(&mut stop) {
        Ok(trained) => trained,
        // Heeded by all ranks at once: from here on none needs the others.
        Err(Error::Interrupted(what)) => {
            team.finish()?;
            let root = folder.root().display();
            let how = if config.data.is_empty() {
                format!("topk_sae.resume(\"{root}\", x)")
            } else {
                format!("sae train --resume {root}")
            };
            return Err(Error::Interrupted(format!(
                "{what}; a checkpoint is on disk: continue with `{how}`"
            )));
        }
        Err(other) => return team.told(Err(other)),
    };
    let meta = config.model_meta(trained.steps, &trained.train_mean);
    let weights = trainer.weights()?;
    let (tensors, metadata) = model_file::contents(&weights, &meta)?;
    team.told(team.write(&folder.path(names::MODEL), &tensors, config.n_latents, metadata))?;
    Ok(trained)
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
        assert!(!same_card("2 ranks of NVIDIA H100", "3 ranks of NVIDIA H100"));
        assert!(same_card("2 ranks of NVIDIA H100", "2 ranks of NVIDIA H100"));
    }
}
