//! The training loop: it queues steps, and waits for them only where their results are needed.

use super::checkpoint::{self, Progress, Stored};
use super::folder::{RunFolder, names};
use super::metrics::{self, EvalSet, HasParts, MetricRow, PartSums, Quality, dead_fraction, mean_row};
use super::outputs::{self, Summary};
use super::queue::Queue;
use super::recover;
use super::{Prepared, Session};
use crate::backend::{Backend, StepPlan};
use crate::config::Config;
use crate::console;
use crate::data::{BatchOrder, Embeddings, Part, Split};
use crate::error::{Error, Result};
use crate::files;
use crate::interrupt::check_flag;
use crate::model::{Weights, make_unit_rows};
use crate::model_file::{self, ModelMeta};
use crate::noise::Noise;
use crate::report::progress::Progress as Display;
use crate::schedule::{anneal_fraction, l1_share, learning_rate, temperature};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run under way.
pub(super) struct Trainer {
    config: Config,
    data: Arc<Embeddings>,
    split: Split,
    folder: RunFolder,
    backend: Box<dyn Backend>,
    order: BatchOrder,
    mean: Vec<f64>,
    /// Where the run is, without the steps that are queued.
    progress: Progress,
    queue: Queue,
    /// Splits (train, val, test) whose figures were not finite, and were explained: once is enough.
    explained: [bool; 3],
    /// Warnings that are not printed yet.
    warnings: Vec<String>,
}

impl Trainer {
    pub(super) fn new(
        prepared: Prepared,
        folder: RunFolder,
        backend: Box<dyn Backend>,
        mut progress: Progress,
    ) -> Self {
        let Prepared { data, split, config, .. } = prepared;
        progress.device = backend.device();
        Self {
            order: BatchOrder::new(split.train.clone(), config.schedule.batch_size, config.seed),
            mean: mean_row(&data, &split.train),
            backend,
            config,
            data,
            split,
            folder,
            progress,
            queue: Queue::default(),
            explained: [false; 3],
            warnings: vec![],
        }
    }

    pub(super) fn run(mut self, session: &Session<'_>) -> Result<Summary> {
        // A run killed between a save and its link goes on without the link; see `link_best`. Killed right after, it has
        // one checkpoint too many, which the last save of a run would leave.
        self.link_best()?;
        if self.progress.step > 0 {
            self.folder.prune(self.config.keep_checkpoints, self.progress.step)?;
        }
        let sets = self.eval_sets(self.config.eval_rows);
        let mut display = Display::new(self.config.schedule.steps, self.progress.step, session.quiet);
        let done = self.steps(&sets, &mut display, session.stop);
        if matches!(done, Ok(()) | Err(Error::Interrupted(_))) {
            display.finish();
        }
        done?;
        self.finish(session)
    }

    /// All steps that are left, with their evaluations and checkpoints.
    fn steps(&mut self, sets: &[EvalSet; 3], display: &mut Display, stop: &AtomicBool) -> Result<()> {
        if self.owes_evaluation() {
            self.after_step(sets, display, stop)?;
        }
        while self.progress.step < self.config.schedule.steps && !self.stopped_early() {
            if stop.load(Ordering::Relaxed) {
                self.collect(display)?;
                return self.interrupted();
            }
            let done = self.queue_step()?;
            let due = self.measures_after(done) || self.saves_after(done);
            if due || self.queue.is_due() {
                self.collect(display)?;
            }
            if due {
                self.after_step(sets, display, stop)?;
            }
        }
        Ok(())
    }

    fn measures_after(&self, step: u64) -> bool {
        step == self.config.schedule.steps || step.is_multiple_of(self.config.eval_every)
    }

    fn saves_after(&self, step: u64) -> bool {
        step == self.config.schedule.steps || step.is_multiple_of(self.config.checkpoint_every)
    }

    /// Whether a signal ended the evaluation that belongs to the last step.
    fn owes_evaluation(&self) -> bool {
        let step = self.progress.step;
        let measured = self.progress.metrics.last().map_or(0, |row| row.step);
        step > 0 && self.measures_after(step) && measured != step
    }

    /// Evaluation and checkpoint, as far as they are due.
    fn after_step(&mut self, sets: &[EvalSet; 3], display: &mut Display, stop: &AtomicBool) -> Result<()> {
        let step = self.progress.step;
        let improved = self.measures_after(step)
            && match self.evaluate(sets, stop) {
                // Nothing of it is kept: the run that goes on from here evaluates first.
                Err(Error::Interrupted(_)) => return self.interrupted(),
                other => other?,
            };
        for warning in self.warnings.drain(..) {
            display.message(&format!("warning: {warning}"));
        }
        if improved || self.saves_after(step) || self.stopped_early() {
            self.save_checkpoint()?;
        }
        Ok(())
    }

    /// Leaves a checkpoint for the run that goes on from here.
    fn interrupted(&mut self) -> Result<()> {
        self.save_checkpoint()?;
        let (step, root) = (self.progress.step, self.folder.root().display());
        Err(Error::Interrupted(format!(
            "interrupted at step {step}; a checkpoint is on disk: go on with `sae train --resume {root}`"
        )))
    }

    /// False while no evaluation has a finite figure: there is nothing to stop by.
    fn stopped_early(&self) -> bool {
        let Progress { best, waited, .. } = self.progress;
        self.config.early_stop > 0 && best.is_some() && waited >= self.config.early_stop
    }

    /// At most `rows` rows of each split.
    fn eval_sets(&self, rows: usize) -> [EvalSet; 3] {
        let parts = [&self.split.train, &self.split.val, &self.split.test];
        parts.map(|part| EvalSet::new(&self.data, part, rows, &self.mean))
    }

    /// Temperature, share of the hard code, learning rate and L1 weight of a step.
    fn plan(&self, step: u64) -> StepPlan<'static> {
        let c = &self.config;
        let alpha = anneal_fraction(step, c.schedule.anneal_steps);
        let epoch = self.order.epoch_of(step) as u64;
        StepPlan {
            step,
            alpha,
            tau: temperature(alpha, c.schedule.tau_start, c.schedule.tau_end),
            lr: learning_rate(
                step,
                c.schedule.steps,
                c.schedule.lr,
                c.schedule.lr_warmup,
                c.schedule.lr_schedule,
            ),
            l1: c.schedule.l1 * l1_share(epoch, c.schedule.l1_warmup),
            noise: Noise::Philox { seed: c.seed },
        }
    }

    /// Queues the next step; returns the number of steps done once it is.
    fn queue_step(&mut self) -> Result<u64> {
        self.queue.begin();
        let step = self.progress.step + self.queue.waiting();
        let plan = self.plan(step);
        self.backend.step(self.order.batch(step), &plan)?;
        self.queue.add();
        Ok(step + 1)
    }

    /// Waits for the queued steps and takes their losses up, one by one in their order, so that no bit of the
    /// sum depends on when this is called.
    fn collect(&mut self, display: &mut Display) -> Result<()> {
        if self.queue.waiting() == 0 {
            return Ok(());
        }
        let all = self.backend.collect()?;
        let (steps, seconds) = self.queue.finish();
        if all.len() as u64 != steps {
            let n = all.len();
            return Err(Error::Failed(format!("{n} of {steps} steps were reported; please report this")));
        }
        for stats in &all {
            if !stats.loss.is_finite() {
                let step = self.progress.step;
                return Err(Error::NonFinite { step, loss: stats.loss, kept: self.kept() });
            }
            let p = &mut self.progress;
            p.step += 1;
            p.loss = (p.loss.0 + stats.loss, p.loss.1 + 1);
            p.parts.add(stats);
        }
        let p = &mut self.progress;
        p.seconds = (p.seconds.0 + seconds, p.seconds.1 + seconds);
        let rate = (steps * self.config.schedule.batch_size as u64) as f64 / seconds.max(1e-9);
        let done = p.step;
        if let Some(stats) = all.last() {
            let note = if self.plan(done - 1).soft() { "annealing" } else { "" };
            display.step(done, stats.loss, rate, note);
        }
        Ok(())
    }

    fn kept(&self) -> String {
        match checkpoint::list(&self.folder.checkpoints()).ok().and_then(|all| all.last().cloned()) {
            Some((step, path)) => format!("the checkpoint of step {step} is kept ({})", path.display()),
            None => "there was no checkpoint yet".into(),
        }
    }

    /// Adds a line to the metrics; true where validation is the best so far. Nothing is changed where `stop` ends it.
    fn evaluate(&mut self, sets: &[EvalSet; 3], stop: &AtomicBool) -> Result<bool> {
        let (d, m) = (self.config.d_in, self.config.n_latents);
        let mut fired = vec![0u64; m];
        let backend = self.backend.as_mut();
        let check = &mut || check_flag(stop);
        let train = sets[0].measure(backend, d, &mut fired, check)?;
        let mut ignored = vec![0u64; m];
        let val = sets[1].measure(backend, d, &mut ignored, check)?;
        let test = sets[2].measure(backend, d, &mut ignored, check)?;
        self.explain(sets, [train, val, test])?;
        let plan = self.plan(self.progress.step - 1);
        let p = &mut self.progress;
        let rows = p.loss.1 as f64 * self.config.schedule.batch_size as f64;
        p.metrics.push(MetricRow {
            step: p.step,
            epoch: self.order.epoch_of(p.step),
            tau: plan.tau,
            alpha: plan.alpha,
            lr: plan.lr,
            rows_per_second: if p.seconds.0 > 0.0 { rows / p.seconds.0 } else { 0.0 },
            train_loss: (p.loss.1 > 0).then(|| p.loss.0 / p.loss.1 as f64),
            parts: p.parts.means(p.loss.1, parts_of(&self.config)),
            train,
            val,
            test,
            dead_fraction: dead_fraction(&fired),
        });
        p.loss = (0.0, 0);
        p.parts = PartSums::default();
        p.seconds.0 = 0.0;
        let mut improved = false;
        // Before the warm-up ends the model is not yet the one that is trained for.
        if let Some(fvu) = val.map(|q| q.fvu).filter(|_| p.step >= self.config.schedule.anneal_steps) {
            improved = is_better(fvu, p.best);
            if improved {
                p.best = Some((p.step, fvu));
                p.waited = 0;
            } else if p.best.is_some() {
                p.waited += 1;
            }
        }
        files::write_whole(&self.folder.path(names::METRICS), &metrics::to_csv(&self.progress.metrics)?)?;
        Ok(improved)
    }

    /// Makes a warning of figures that are not finite, the first time that those of a split are not.
    fn explain(&mut self, sets: &[EvalSet; 3], measured: [Option<Quality>; 3]) -> Result<()> {
        let parts = [Part::Train, Part::Val, Part::Test];
        for (i, (set, quality)) in sets.iter().zip(measured).enumerate() {
            let Some(quality) = quality.filter(|_| !self.explained[i]) else { continue };
            let (backend, m) = (self.backend.as_mut(), self.config.n_latents);
            let Some(mut why) = set.explain(&quality, parts[i].rows(), &self.data, backend, m)? else {
                continue;
            };
            self.explained[i] = true;
            if i == 1 {
                why.push_str("; where no evaluation has a finite validation FVU, the last checkpoint becomes the model");
            }
            self.warnings.push(why);
        }
        Ok(())
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let path = self.folder.checkpoints().join(checkpoint::name(self.progress.step));
        let state = self.backend.state()?;
        checkpoint::save(&path, &state, &self.progress)?;
        drop(state);
        self.link_best()?;
        self.folder.prune(self.config.keep_checkpoints, self.progress.step)
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

    /// Takes the best checkpoint up, in the memory that the model has; its step.
    fn load_best(&mut self) -> Result<u64> {
        let mut best = Stored::open(&self.folder.best())?;
        let (step, config) = (best.progress().step, &self.config);
        self.backend.set_state(step, &mut |name, out| {
            best.read(name, out)?;
            if config.unit_average() == Some(name)
                && let Ok(rows) = bytemuck::try_cast_slice_mut(out)
            {
                // Version 0.1.0 left them shorter.
                make_unit_rows(rows, config.d_in);
            }
            Ok(())
        })?;
        Ok(step)
    }

    /// Final figures, model, curves; the summary comes last.
    fn finish(mut self, session: &Session<'_>) -> Result<Summary> {
        let mut steps = self.progress.step;
        let best = self.progress.best.map(|(step, _)| step);
        if self.config.early_stop > 0 && best.is_some_and(|best| best != steps) {
            steps =
                self.load_best().map_err(|e| recover::lost(&self.folder, "the best model is lost", &e))?;
        }
        let (d, m) = (self.config.d_in, self.config.n_latents);
        let mut fired = vec![0u64; m];
        let mut ignored = vec![0u64; m];
        let sets = self.eval_sets(usize::MAX);
        let backend = self.backend.as_mut();
        // The last checkpoint is on the disk already.
        let root = self.folder.root().display();
        let check = &mut || match session.stop.load(Ordering::Relaxed) {
            false => Ok(()),
            true => Err(Error::Interrupted(format!(
                "interrupted in the final evaluation; all steps are done and on disk: finish with `sae train --resume {root}`"
            ))),
        };
        let train = sets[0].measure(backend, d, &mut fired, check)?;
        let val = sets[1].measure(backend, d, &mut ignored, check)?;
        let test = sets[2].measure(backend, d, &mut ignored, check)?;
        self.explain(&sets, [train, val, test])?;
        for warning in self.warnings.drain(..).filter(|_| !session.quiet) {
            console::warn(warning);
        }
        let state = self.backend.state()?;
        let params = state.weights(Weights::Averaged);
        let meta = ModelMeta::new(&self.config, steps, &self.mean);
        model_file::save(&self.folder.path(names::MODEL), params, &meta)?;
        drop(state);
        // Plots need memory of their own, and the weights are on the disk.
        drop(self.backend);
        files::write_whole(&self.folder.path(names::METRICS), &metrics::to_csv(&self.progress.metrics)?)?;
        outputs::write_plots(&self.folder, &self.config, &self.progress.metrics)?;
        let done = self.progress.step as f64 * self.config.schedule.batch_size as f64;
        let summary = Summary {
            train,
            val,
            test,
            dead_fraction: dead_fraction(&fired),
            rows_per_second: done / self.progress.seconds.1.max(1e-9),
            steps,
            device: self.progress.device.clone(),
            precision: self.config.precision.to_string(),
            seed: self.config.seed,
            version: env!("CARGO_PKG_VERSION").into(),
            n_latents: m,
            k: self.config.spec.forward.k,
            best_step: best,
        };
        outputs::write_summary(&self.folder, &summary)?;
        Ok(summary)
    }
}

/// Which parts the loss of a run has.
fn parts_of(config: &Config) -> HasParts {
    let spec = &config.spec;
    HasParts {
        l1: config.schedule.l1 > 0.0,
        aux: spec.objective.aux_k > 0,
        grad_norm: spec.optimizer.clip_norm.is_some(),
    }
}

/// Whether a validation FVU takes the place of the best one so far: a finite one of any that is not.
fn is_better(fvu: f64, best: Option<(u64, f64)>) -> bool {
    fvu.is_finite() && best.is_none_or(|(_, best)| !best.is_finite() || fvu < best)
}

#[cfg(test)]
mod tests {
    use super::is_better;

    #[test]
    fn a_finite_figure_beats_one_that_is_not_and_never_loses_to_it() {
        for none in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert!(is_better(0.5, Some((3, none))));
            assert!(!is_better(none, Some((3, 0.5))) && !is_better(none, None));
        }
        assert!(is_better(0.5, None) && is_better(0.4, Some((3, 0.5))) && !is_better(0.5, Some((3, 0.5))));
    }
}
