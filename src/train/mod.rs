//! A training run from data to run folder.

pub mod checkpoint;
pub mod folder;
pub mod metrics;
pub mod outputs;

use crate::backend::cpu::fast::FastCpu;
use crate::backend::{Backend, StepPlan, Weights};
use crate::config::{Config, Options, PreBias};
use crate::data::{BatchOrder, Embeddings, LoadOptions, Split};
use crate::error::{Error, Result};
use crate::files;
use crate::model::{Params, TrainState, pre_bias_start};
use crate::model_file::{self, ModelMeta};
use crate::noise::Noise;
use crate::report::progress::Progress as Display;
use crate::schedule::{anneal_fraction, l1_share, learning_rate, temperature};
use checkpoint::Progress;
use folder::{RunFolder, names};
use metrics::{EvalSet, MetricRow, dead_fraction, mean_row};
use outputs::Summary;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Rows that the start of the pre-bias is taken from.
const PRE_BIAS_ROWS: usize = 8192;

/// How a run talks and is stopped.
pub struct Session<'a> {
    /// No progress, no warnings.
    pub quiet: bool,
    /// Set by SIGINT and SIGTERM.
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
}

/// Loads the data that `options` name and settles everything.
///
/// # Errors
/// Data that cannot be used, options that do not fit them.
pub fn prepare(options: &Options, session: &Session<'_>) -> Result<Prepared> {
    let mut options = options.clone();
    let paths = options.data.clone().unwrap_or_default();
    if paths.is_empty() {
        return Err(Error::Usage("no data: name one or more HDF5 files".into()));
    }
    let phase = crate::report::progress::Phase::new("loading", session.quiet);
    let load = LoadOptions {
        dataset: options.dataset.clone(),
        skip_bad_rows: options.skip_bad_rows.unwrap_or(false),
    };
    let data = Embeddings::load(&paths, &load)?;
    phase.finish(&format!("{} rows of {} {}", data.n_rows(), data.d_in(), data.dtype()));
    if data.skipped().total() > 0 && !session.quiet {
        let example = data.skipped().examples.first().map_or(String::new(), |e| format!("; the first: {e}"));
        eprintln!("warning: {}{example}", data.skipped());
    }
    // Absolute, so that the run can be resumed from anywhere.
    let absolute = paths.iter().map(|p| std::path::absolute(p).map_err(Error::io(p, "find")));
    options.data = Some(absolute.collect::<Result<_>>()?);
    let split = Split::new(&data, options.seed.unwrap_or(0));
    let config = Config::resolve(&options, data.d_in(), split.train.len())?;
    if config.early_stop > 0 && split.val.is_empty() {
        return Err(Error::Usage(
            "--early-stop needs a validation split, and it has no rows: more data are needed".into(),
        ));
    }
    Ok(Prepared { data: Arc::new(data), split, config })
}

/// Trains from the start into the folder `out`.
///
/// # Errors
/// Everything that can go wrong with data, options, disk and loss; [`Error::Interrupted`] after a checkpoint.
pub fn start(options: &Options, out: &Path, overwrite: bool, session: &Session<'_>) -> Result<Summary> {
    RunFolder::check_free(out, overwrite)?;
    let prepared = prepare(options, session)?;
    let splits = prepared.split.to_tsv(&prepared.data);
    let folder = RunFolder::create(out, &prepared.config.to_toml()?, &splits)?;
    let state = start_state(&prepared);
    let progress = Progress::start(fingerprint(&prepared.config)?, prepared.data.fingerprint());
    Trainer::new(prepared, folder, state, progress).run(session)
}

/// Goes on with the run in `root` from its last good checkpoint, or from the start if it has none yet.
///
/// # Errors
/// As [`start`]; also data or options that are no longer those of the run.
pub fn resume(root: &Path, session: &Session<'_>) -> Result<Summary> {
    let folder = RunFolder::open(root)?;
    let options = Options::from_toml(&folder.path(names::CONFIG))?;
    let prepared = prepare(&options, session)?;
    let config = fingerprint(&prepared.config)?;
    let data = prepared.data.fingerprint();
    let like = start_state(&prepared);
    let (state, progress) = match last_good_checkpoint(&folder, &like)? {
        Some(good) => good,
        None => (like, Progress::start(config.clone(), data)),
    };
    if progress.config != config {
        let path = folder.path(names::CONFIG).display().to_string();
        return Err(Error::Usage(format!(
            "{path} was changed since the run's checkpoints were made; put it back, or train anew with `sae train --config {path}`"
        )));
    }
    if progress.data != data {
        return Err(Error::Usage(format!(
            "the data of {} are not those the run was started with (ids or values differ); put them back, or train anew",
            root.display()
        )));
    }
    let trainer = Trainer::new(prepared, folder, state, progress);
    trainer.folder_split_unchanged()?;
    trainer.run(session)
}

/// The newest checkpoint that is whole; `None` if the run was stopped before its first. A damaged one is
/// passed over with a warning, but if all are damaged that is the error: starting over is not for us to decide.
fn last_good_checkpoint(folder: &RunFolder, like: &TrainState) -> Result<Option<(TrainState, Progress)>> {
    let mut damage = None;
    for (_, path) in checkpoint::list(&folder.checkpoints())?.into_iter().rev() {
        match checkpoint::load(&path, like) {
            Ok(good) => return Ok(Some(good)),
            Err(error @ Error::Model { .. }) => {
                eprintln!("warning: {error}");
                damage = Some(error);
            }
            Err(other) => return Err(other),
        }
    }
    damage.map_or(Ok(None), Err)
}

/// The configuration without the place of the data, which may move.
fn fingerprint(config: &Config) -> Result<String> {
    Config { data: vec![], ..config.clone() }.to_toml()
}

/// Weights before the first step.
fn start_state(prepared: &Prepared) -> TrainState {
    let Prepared { data, split, config } = prepared;
    let mut params = Params::init(config.d_in, config.n_latents, config.tied, &config.init, config.seed);
    if matches!(config.pre_bias, PreBias::Mean | PreBias::Median) {
        let n = split.train.len().min(PRE_BIAS_ROWS);
        let rows: Vec<u32> = (0..n).map(|i| split.train[i * split.train.len() / n]).collect();
        let mut batch = crate::backend::cpu::Batch::default();
        batch.load(data, &rows, config.spec.normalize, &params.b_pre);
        params.b_pre = pre_bias_start(config.pre_bias_init(), config.d_in, &batch.input);
    }
    TrainState::start(params, config.spec.ema.is_some())
}

struct Trainer {
    config: Config,
    data: Arc<Embeddings>,
    split: Split,
    folder: RunFolder,
    backend: Box<dyn Backend>,
    order: BatchOrder,
    mean: Vec<f64>,
    progress: Progress,
}

impl Trainer {
    fn new(prepared: Prepared, folder: RunFolder, state: TrainState, progress: Progress) -> Self {
        let Prepared { data, split, config } = prepared;
        Self {
            order: BatchOrder::new(split.train.clone(), config.batch_size, config.seed),
            mean: mean_row(&data, &split.train),
            backend: Box::new(FastCpu::new(data.clone(), config.spec.clone(), state)),
            config,
            data,
            split,
            folder,
            progress,
        }
    }

    /// The run's table of splits must be the one that its seed gives: a resumed run may not mix them.
    fn folder_split_unchanged(&self) -> Result<()> {
        let path = self.folder.path(names::SPLITS);
        let stored = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        if stored != self.split.to_tsv(&self.data) {
            return Err(Error::data(
                &path,
                "",
                "was changed since the run was started; put it back to resume",
            ));
        }
        Ok(())
    }

    fn run(mut self, session: &Session<'_>) -> Result<Summary> {
        // A run killed between a save and its link goes on without the link; see `link_best`.
        self.link_best()?;
        let sets = self.eval_sets();
        let steps = self.config.steps;
        let mut display = Display::new(steps, self.progress.step, session.quiet);
        while self.progress.step < steps && !self.stopped_early() {
            if session.stop.load(Ordering::Relaxed) {
                self.save_checkpoint()?;
                display.finish();
                let (step, root) = (self.progress.step, self.folder.root().display());
                return Err(Error::Interrupted(format!(
                    "interrupted at step {step}; a checkpoint is on disk: go on with `sae train --resume {root}`"
                )));
            }
            self.step(&mut display)?;
            let step = self.progress.step;
            let last = step == steps;
            let improved = if step.is_multiple_of(self.config.eval_every) || last {
                self.evaluate(&sets)?
            } else {
                false
            };
            if improved || last || step.is_multiple_of(self.config.checkpoint_every) || self.stopped_early() {
                self.save_checkpoint()?;
            }
        }
        display.finish();
        self.finish()
    }

    fn stopped_early(&self) -> bool {
        self.config.early_stop > 0 && self.progress.waited >= self.config.early_stop
    }

    fn eval_sets(&self) -> [EvalSet; 3] {
        let parts = [&self.split.train, &self.split.val, &self.split.test];
        parts.map(|rows| EvalSet::new(&self.data, rows, self.config.eval_rows, &self.mean))
    }

    /// Temperature, share of the hard code, learning rate and L1 weight of a step.
    fn plan(&self, step: u64) -> StepPlan<'static> {
        let c = &self.config;
        let alpha = anneal_fraction(step, c.anneal_steps);
        let epoch = self.order.epoch_of(step) as u64;
        StepPlan {
            step,
            alpha,
            tau: temperature(alpha, c.tau_start, c.tau_end),
            lr: learning_rate(step, c.steps, c.lr, c.lr_warmup, c.lr_schedule),
            l1: c.l1 * l1_share(epoch, c.l1_warmup),
            noise: Noise::Philox { seed: c.seed },
        }
    }

    fn step(&mut self, display: &mut Display) -> Result<()> {
        let step = self.progress.step;
        let plan = self.plan(step);
        let began = Instant::now();
        let stats = self.backend.step(self.order.batch(step), &plan)?;
        let seconds = began.elapsed().as_secs_f64();
        if !stats.loss.is_finite() {
            return Err(Error::NonFinite { step, loss: stats.loss, kept: self.kept() });
        }
        let p = &mut self.progress;
        p.step += 1;
        p.loss = (p.loss.0 + stats.loss, p.loss.1 + 1);
        p.seconds = (p.seconds.0 + seconds, p.seconds.1 + seconds);
        let rate = self.config.batch_size as f64 / seconds;
        let note = if plan.soft() { "annealing" } else { "" };
        display.step(p.step, stats.loss, rate, note);
        Ok(())
    }

    fn kept(&self) -> String {
        match checkpoint::list(&self.folder.checkpoints()).ok().and_then(|all| all.last().cloned()) {
            Some((step, path)) => format!("the checkpoint of step {step} is kept ({})", path.display()),
            None => "there was no checkpoint yet".into(),
        }
    }

    /// Adds a line to the metrics; true where validation is the best so far.
    fn evaluate(&mut self, sets: &[EvalSet; 3]) -> Result<bool> {
        let (d, m) = (self.config.d_in, self.config.n_latents);
        let mut fired = vec![0u64; m];
        let backend = self.backend.as_mut();
        let train = sets[0].measure(backend, d, &mut fired)?;
        let mut ignored = vec![0u64; m];
        let val = sets[1].measure(backend, d, &mut ignored)?;
        let test = sets[2].measure(backend, d, &mut ignored)?;
        let plan = self.plan(self.progress.step - 1);
        let p = &mut self.progress;
        let rows = p.loss.1 as f64 * self.config.batch_size as f64;
        p.metrics.push(MetricRow {
            step: p.step,
            epoch: self.order.epoch_of(p.step),
            tau: plan.tau,
            alpha: plan.alpha,
            lr: plan.lr,
            rows_per_second: if p.seconds.0 > 0.0 { rows / p.seconds.0 } else { 0.0 },
            train_loss: (p.loss.1 > 0).then(|| p.loss.0 / p.loss.1 as f64),
            train,
            val,
            test,
            dead_fraction: dead_fraction(&fired),
        });
        p.loss = (0.0, 0);
        p.seconds.0 = 0.0;
        let mut improved = false;
        // Before the warm-up ends the model is not yet the one that is trained for.
        if let Some(fvu) = val.map(|q| q.fvu).filter(|_| p.step >= self.config.anneal_steps) {
            improved = p.best.is_none_or(|(_, best)| fvu < best);
            if improved {
                p.best = Some((p.step, fvu));
                p.waited = 0;
            } else {
                p.waited += 1;
            }
        }
        files::write_whole(&self.folder.path(names::METRICS), &metrics::to_csv(&self.progress.metrics)?)?;
        Ok(improved)
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let path = self.folder.checkpoints().join(checkpoint::name(self.progress.step));
        let state = self.backend.state()?;
        checkpoint::save(&path, &state, &self.progress)?;
        drop(state);
        self.link_best()?;
        self.folder.prune(self.config.keep_checkpoints)
    }

    /// Gives the checkpoint of the best step its second name. Done after every save, and once more when a run
    /// goes on, which may have been killed between the two.
    fn link_best(&self) -> Result<()> {
        match self.progress.best {
            Some((best, _)) if best == self.progress.step => {
                let from = self.folder.checkpoints().join(checkpoint::name(best));
                files::link_whole(&from, &self.folder.best())
            }
            _ => Ok(()),
        }
    }

    /// Final figures, model, curves; the summary comes last.
    fn finish(mut self) -> Result<Summary> {
        let mut steps = self.progress.step;
        let best = self.progress.best.map(|(step, _)| step);
        if self.config.early_stop > 0 && best.is_some_and(|best| best != steps) {
            let state = self.backend.state()?.into_owned();
            let (state, progress) = checkpoint::load(&self.folder.best(), &state)?;
            steps = progress.step;
            self.backend = Box::new(FastCpu::new(self.data.clone(), self.config.spec.clone(), state));
        }
        let (d, m) = (self.config.d_in, self.config.n_latents);
        let mut fired = vec![0u64; m];
        let mut measure = |rows: &[u32], fired: &mut [u64]| {
            EvalSet::new(&self.data, rows, usize::MAX, &self.mean).measure(self.backend.as_mut(), d, fired)
        };
        let mut ignored = vec![0u64; m];
        let train = measure(&self.split.train, &mut fired)?;
        let val = measure(&self.split.val, &mut ignored)?;
        let test = measure(&self.split.test, &mut ignored)?;
        let state = self.backend.state()?;
        let params = state.weights(Weights::Averaged);
        let meta = ModelMeta::new(&self.config, steps, &self.mean);
        model_file::save(&self.folder.path(names::MODEL), params, &meta)?;
        files::write_whole(&self.folder.path(names::METRICS), &metrics::to_csv(&self.progress.metrics)?)?;
        outputs::write_plots(&self.folder, &self.config, &self.progress.metrics)?;
        let done = self.progress.step as f64 * self.config.batch_size as f64;
        let summary = Summary {
            train,
            val,
            test,
            dead_fraction: dead_fraction(&fired),
            rows_per_second: done / self.progress.seconds.1.max(1e-9),
            steps,
            device: "cpu".into(),
            precision: self.config.precision.to_string(),
            seed: self.config.seed,
            version: env!("CARGO_PKG_VERSION").into(),
            n_latents: m,
            k: self.config.spec.k,
            best_step: best,
        };
        outputs::write_summary(&self.folder, &summary)?;
        Ok(summary)
    }
}

/// Where a run goes when no folder is named: `<first file's stem>-sae`.
pub fn default_out(data: &[PathBuf]) -> PathBuf {
    let stem = data.first().and_then(|p| p.file_stem()).unwrap_or_default();
    PathBuf::from(format!("{}-sae", stem.to_string_lossy()))
}
