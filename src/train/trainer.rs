//! The training loop: it queues steps, and waits for them only where their results are needed.

use super::metrics::{EvalSet, HasParts, MetricRow, PartSums, Quality, dead_fraction, spread};
use super::observer::{Observer, StepReport, Warning};
use super::progress::Progress;
use super::queue::Queue;
use super::start::start_state;
use super::store::{BestInMemory, Store};
use crate::backend::{self, Asks, Backend, Selected, StepPlan};
use crate::error::{Error, Result};
use crate::model::{Params, Weights};
use crate::noise::Noise;
use crate::rows::{BatchOrder, Part, RowSource, Split, mean_row};
use crate::schedule::{anneal_fraction, l1_share, learning_rate, penalty_share, temperature};
use crate::spec::{Activation, Training};
use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A training under way: from rows to a model, without a folder, a terminal or a file.
///
/// What it does is reported to its [`Observer`]s; its states go to its [`Store`].
pub struct Trainer<'a> {
    training: Training,
    rows: Arc<dyn RowSource>,
    split: Split,
    backend: Box<dyn Backend>,
    order: BatchOrder,
    /// Blocks of rows that are in memory, and those on their way, where not all rows are.
    held: (Vec<u32>, Vec<u32>),
    /// Mean training row (D); `None` until it is needed.
    mean: Option<Vec<f64>>,
    /// Where the training is, without the steps that are queued.
    progress: Progress,
    queue: Queue,
    observers: Vec<&'a mut dyn Observer>,
    store: Box<dyn Store + 'a>,
    /// Splits (train, val, test) whose figures were not finite, and were explained: once is enough.
    explained: [bool; 3],
}

/// Says whether a training is to stop.
pub trait Stop {
    /// Asked before each step, of every training of the same rows and settings alike. `done` has all queued steps computed: for
    /// whoever waits here for others, whose steps may need those of this device.
    ///
    /// # Errors
    /// What `done` gives, and what else there is.
    fn before_step(&mut self, done: &mut dyn FnMut() -> Result<()>) -> Result<bool>;

    /// Asked every few hundred rows of an evaluation.
    fn within_evaluation(&mut self) -> bool;
}

/// Stops once a flag is set.
struct Told<'a>(&'a AtomicBool);

impl Stop for Told<'_> {
    fn before_step(&mut self, _: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
        Ok(self.within_evaluation())
    }

    fn within_evaluation(&mut self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What came of a training.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Rows of the training split, at most the final rows.
    pub train: Option<Quality>,
    /// The same of the validation split.
    pub val: Option<Quality>,
    /// The same of the test split.
    pub test: Option<Quality>,
    /// Rows that the splits have: train, val, test.
    pub split_rows: [usize; 3],
    /// Share of latents active on none of the training rows that were measured.
    pub dead_fraction: f64,
    /// Training rows per second in steps alone, without start and evaluations.
    pub rows_per_second: f64,
    /// Steps of the model that was kept.
    pub steps: u64,
    /// Step of the best validation FVU seen on the way.
    pub best_step: Option<u64>,
    /// What computed.
    pub device: String,
    /// Mean row of the training split (D), against which FVU is measured.
    pub train_mean: Vec<f64>,
    /// The evaluations on the way.
    pub metrics: Vec<MetricRow>,
}

/// Rows at most that a calibration looks at.
const CALIBRATION_ROWS: usize = 4096;
/// How far above k the active latents of training rows may be for a model to be compared with others by its FVU.
const NEAR_K: f64 = 1.05;

impl<'a> Trainer<'a> {
    /// A training from the start: finds start weights from the training rows and puts them on `device`.
    ///
    /// # Errors
    /// [`Error::Failed`] where `training`, `rows` and `split` do not go together; what the rows or the device give.
    pub fn new(training: Training, rows: Arc<dyn RowSource>, split: Split, device: Selected) -> Result<Self> {
        check(&training, rows.as_ref(), &split)?;
        let state = start_state(&training, rows.as_ref(), &split.train)?;
        let backend = backend::open(device, rows.clone(), training.model.clone(), training.precision, state)?;
        Self::checked(training, rows, split, backend, Progress::default())
    }

    /// A training that goes on where `progress` is, with the state that `backend` holds.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn go_on(
        training: Training,
        rows: Arc<dyn RowSource>,
        split: Split,
        backend: Box<dyn Backend>,
        progress: Progress,
    ) -> Result<Self> {
        check(&training, rows.as_ref(), &split)?;
        Self::checked(training, rows, split, backend, progress)
    }

    /// As [`Trainer::go_on`], of parts that go together.
    fn checked(
        training: Training,
        rows: Arc<dyn RowSource>,
        split: Split,
        backend: Box<dyn Backend>,
        mut progress: Progress,
    ) -> Result<Self> {
        progress.device = backend.device();
        Ok(Self {
            order: order_of(rows.as_ref(), &split, &training),
            held: Default::default(),
            mean: None,
            training,
            rows,
            split,
            backend,
            progress,
            queue: Queue::default(),
            observers: vec![],
            store: Box::new(BestInMemory::default()),
            explained: [false; 3],
        })
    }

    /// The mean training row, where it is known already: finding it takes a pass over all of them.
    #[must_use]
    pub(crate) fn with_mean(mut self, mean: Option<Vec<f64>>) -> Self {
        self.mean = mean;
        self
    }

    /// Adds an observer; they are called in the order in which they were added.
    #[must_use]
    pub fn observe(mut self, observer: &'a mut dyn Observer) -> Self {
        self.observers.push(observer);
        self
    }

    /// Keeps states in `store`, in place of the best one in memory.
    #[must_use]
    pub fn keep_in(mut self, store: impl Store + 'a) -> Self {
        self.store = Box::new(store);
        self
    }

    /// Computes all steps that are left, and the final figures. The weights are then those of [`Trainer::weights`].
    ///
    /// # Errors
    /// [`Error::NonFinite`] where the loss is not finite; [`Error::Interrupted`] once `stop` is set, after the state was
    /// kept; what the device, the rows, an observer or the store give.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<Trained> {
        self.run_until(&mut Told(stop))
    }

    /// As [`Trainer::run`]; `stop` says whether to stop.
    ///
    /// # Errors
    /// As for [`Trainer::run`]; what `stop` gives.
    pub fn run_until(&mut self, stop: &mut dyn Stop) -> Result<Trained> {
        if self.mean.is_none() {
            self.mean = Some(mean_row(self.rows.as_ref(), &self.split.train)?);
        }
        let sets = self.eval_sets(self.training.eval_rows, usize::MAX)?;
        let done = self.steps(&sets, stop);
        if matches!(done, Ok(()) | Err(Error::Interrupted(_))) {
            self.observers.iter_mut().for_each(|observer| observer.steps_ended());
        }
        done?;
        self.finish(stop)
    }

    /// The weights: the moving average, where there is one.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn weights(&mut self) -> Result<Cow<'_, Params>> {
        Ok(match self.backend.state()? {
            Cow::Borrowed(state) => Cow::Borrowed(state.weights(Weights::Averaged)),
            Cow::Owned(state) => Cow::Owned(state.into_weights(Weights::Averaged)),
        })
    }

    /// All steps that are left, with their evaluations and checkpoints.
    fn steps(&mut self, sets: &[EvalSet; 3], stop: &mut dyn Stop) -> Result<()> {
        if self.owes_evaluation() {
            self.after_step(sets, stop)?;
        }
        while self.progress.step < self.training.schedule.steps && !self.stopped_early() {
            if stop.before_step(&mut || self.collect())? {
                self.collect()?;
                return self.interrupted();
            }
            let done = match self.queue_step() {
                // Reading rows, which may take much longer than a step, was told to stop.
                Err(Error::Interrupted(_)) => {
                    self.collect()?;
                    return self.interrupted();
                }
                other => other?,
            };
            let due = self.measures_after(done) || self.saves_after(done);
            if !due && let Err(error) = self.expect_step(done) {
                // As above; the step itself is queued.
                if !matches!(error, Error::Interrupted(_)) {
                    return Err(error);
                }
                self.collect()?;
                return self.interrupted();
            }
            if due || self.queue.is_due() {
                self.collect()?;
            }
            if due {
                self.after_step(sets, stop)?;
            }
        }
        Ok(())
    }

    fn measures_after(&self, step: u64) -> bool {
        step == self.training.schedule.steps || step.is_multiple_of(self.training.eval_every)
    }

    fn saves_after(&self, step: u64) -> bool {
        step == self.training.schedule.steps || step.is_multiple_of(self.training.checkpoint_every)
    }

    /// Whether a signal ended the evaluation that belongs to the last step.
    fn owes_evaluation(&self) -> bool {
        let step = self.progress.step;
        let measured = self.progress.metrics.last().map_or(0, |row| row.step);
        step > 0 && self.measures_after(step) && measured != step
    }

    /// Evaluation and checkpoint, as far as they are due.
    fn after_step(&mut self, sets: &[EvalSet; 3], stop: &mut dyn Stop) -> Result<()> {
        let step = self.progress.step;
        let improved = self.measures_after(step)
            && match self.evaluate(sets, stop) {
                // Nothing of it is kept: the training that goes on from here evaluates first.
                Err(Error::Interrupted(_)) => return self.interrupted(),
                other => other?,
            };
        if improved || self.saves_after(step) || self.stopped_early() {
            self.save()?;
        }
        Ok(())
    }

    /// Keeps the state for a training that goes on from here.
    fn interrupted(&mut self) -> Result<()> {
        self.save()?;
        Err(Error::Interrupted(format!("interrupted at step {}", self.progress.step)))
    }

    fn save(&mut self) -> Result<()> {
        let state = self.backend.state()?;
        self.store.save(&state, &self.progress)
    }

    /// False while no evaluation has a finite figure: there is nothing to stop by.
    fn stopped_early(&self) -> bool {
        let Progress { best, waited, .. } = self.progress;
        self.training.early_stop > 0 && best.is_some() && waited >= self.training.early_stop
    }

    /// At most `rows` rows of each split. They are read once, where there are at most `most` in all.
    fn eval_sets(&self, rows: usize, most: usize) -> Result<[EvalSet; 3]> {
        let mean = self.mean.as_deref().unwrap_or_default();
        let parts = [&self.split.train, &self.split.val, &self.split.test].map(|part| spread(part, rows));
        let again = parts.concat();
        if self.reads_windows() && again.len() <= most {
            self.rows.keep(&again)?;
        }
        let [train, val, test] = parts.map(|part| EvalSet::new(self.rows.as_ref(), part, mean));
        Ok([train?, val?, test?])
    }

    /// Temperature, share of the hard code, learning rate and L1 weight of a step.
    fn plan(&self, step: u64) -> StepPlan<'static> {
        let s = &self.training.schedule;
        let alpha = anneal_fraction(step, s.anneal_steps);
        let epoch = self.order.epoch_of(step) as u64;
        StepPlan {
            step,
            alpha,
            tau: temperature(alpha, s.tau_start, s.tau_end),
            lr: learning_rate(step, s.steps, s.lr, s.lr_warmup, s.lr_schedule),
            l1: s.l1 * l1_share(epoch, s.l1_warmup) * penalty_share(step, s.l0_warmup),
            noise: Noise::Philox { seed: self.training.seed },
        }
    }

    /// Queues the next step; returns the number of steps done once it is.
    fn queue_step(&mut self) -> Result<u64> {
        self.queue.begin();
        let step = self.progress.step + self.queue.waiting();
        self.hold_rows(step)?;
        let plan = self.plan(step);
        self.backend.step(self.order.batch(step), &plan)?;
        self.queue.add();
        Ok(step + 1)
    }

    /// Has the rows of the step after those that are queued brought while these are computed.
    fn expect_step(&mut self, step: u64) -> Result<()> {
        if self.backend.asks_for_rows() != Asks::Ahead {
            return Ok(());
        }
        self.hold_rows(step)?;
        self.backend.expect(self.order.batch(step))
    }

    /// Whether steps read windows of the rows: not where the backend has them all.
    fn reads_windows(&self) -> bool {
        self.rows.window().is_some() && self.backend.asks_for_rows() != Asks::Never
    }

    /// Sees to it that the rows of a step are in memory, and that those after them come.
    fn hold_rows(&mut self, step: u64) -> Result<()> {
        if !self.reads_windows() {
            return Ok(());
        }
        let blocks = self.order.blocks(step, self.training.schedule.steps);
        if blocks != self.held {
            let began = Instant::now();
            self.rows.hold(&blocks.0, &blocks.1)?;
            let others = self.rows.let_others();
            self.queue.leave_out(others);
            let began = began + others;
            // A device that has steps to compute meanwhile tells itself when it has no more.
            if self.queue.waiting() == 0 || self.backend.asks_for_rows() == Asks::InStep {
                self.queue.waited_since(began);
            }
            self.held = blocks;
        }
        Ok(())
    }

    /// Waits for the queued steps and takes their losses up, one by one in their order, so that no bit of the
    /// sum depends on when this is called.
    fn collect(&mut self) -> Result<()> {
        if self.queue.waiting() == 0 {
            return Ok(());
        }
        let all = self.backend.collect()?;
        let (steps, seconds) = self.queue.finish();
        let waiting = self.queue.share_waited(seconds, self.backend.idle()?);
        if all.len() as u64 != steps {
            let n = all.len();
            return Err(Error::Failed(format!("{n} of {steps} steps were reported; please report this")));
        }
        for stats in &all {
            if !stats.loss.is_finite() {
                let step = self.progress.step;
                return Err(Error::NonFinite { step, loss: stats.loss, kept: self.store.kept() });
            }
            let p = &mut self.progress;
            p.step += 1;
            p.loss = (p.loss.0 + stats.loss, p.loss.1 + 1);
            p.parts.add(stats);
        }
        let p = &mut self.progress;
        p.seconds = (p.seconds.0 + seconds, p.seconds.1 + seconds);
        let Some(last) = all.last() else { return Ok(()) };
        let report = StepReport {
            done: p.step,
            total: self.training.schedule.steps,
            loss: last.loss,
            rows_per_second: (steps * self.training.schedule.batch_size as u64) as f64 / seconds.max(1e-9),
            warming_up: self.plan(self.progress.step - 1).soft(),
            waiting,
        };
        self.observers.iter_mut().for_each(|observer| observer.stepped(&report));
        Ok(())
    }

    /// Figures of all splits; `fired` (M) counts the training rows on which each latent is active.
    fn measure(
        &mut self,
        sets: &[EvalSet; 3],
        fired: &mut [u64],
        check: &mut dyn FnMut() -> Result<()>,
    ) -> Result<[Option<Quality>; 3]> {
        let d = self.training.d_in;
        let mut ignored = vec![0u64; fired.len()];
        let backend = self.backend.as_mut();
        let train = sets[0].measure(backend, d, fired, check)?;
        let val = sets[1].measure(backend, d, &mut ignored, check)?;
        let test = sets[2].measure(backend, d, &mut ignored, check)?;
        self.explain(sets, [train, val, test])?;
        Ok([train, val, test])
    }

    /// Adds a line to the metrics; true where validation is the best so far. Nothing is changed where `stop` ends it.
    fn evaluate(&mut self, sets: &[EvalSet; 3], stop: &mut dyn Stop) -> Result<bool> {
        if self.training.model.forward.activation == Activation::BatchTopk {
            calibrate(self.backend.as_mut(), sets)?;
        }
        let mut fired = vec![0u64; self.training.n_latents];
        let [train, val, test] = self.measure(sets, &mut fired, &mut || match stop.within_evaluation() {
            false => Ok(()),
            true => Err(Error::Interrupted("interrupted in an evaluation".into())),
        })?;
        let plan = self.plan(self.progress.step - 1);
        let p = &mut self.progress;
        let rows = p.loss.1 as f64 * self.training.schedule.batch_size as f64;
        p.metrics.push(MetricRow {
            step: p.step,
            epoch: self.order.epoch_of(p.step),
            tau: plan.tau,
            alpha: plan.alpha,
            lr: plan.lr,
            rows_per_second: if p.seconds.0 > 0.0 { rows / p.seconds.0 } else { 0.0 },
            train_loss: (p.loss.1 > 0).then(|| p.loss.0 / p.loss.1 as f64),
            parts: p.parts.means(p.loss.1, parts_of(&self.training)),
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
        let done_warming = p.step >= self.training.schedule.anneal_steps;
        // Nor while it has more active latents than are wanted, which any FVU is better with.
        let spec = &self.training.model;
        let most = NEAR_K * spec.forward.k as f64;
        let sparse = !spec.seeks_k() || train.is_none_or(|q| q.l0 <= most);
        if let Some(fvu) = val.map(|q| q.fvu).filter(|_| done_warming && sparse) {
            improved = is_better(fvu, p.best);
            if improved {
                p.best = Some((p.step, fvu));
                p.waited = 0;
            } else if p.best.is_some() {
                p.waited += 1;
            }
        }
        for observer in &mut self.observers {
            observer.evaluated(&self.progress.metrics)?;
        }
        Ok(improved)
    }

    /// Warns of figures that are not finite, the first time that those of a split are not.
    fn explain(&mut self, sets: &[EvalSet; 3], measured: [Option<Quality>; 3]) -> Result<()> {
        let parts = [Part::Train, Part::Val, Part::Test];
        for (i, (set, quality)) in sets.iter().zip(measured).enumerate() {
            let Some(quality) = quality.filter(|_| !self.explained[i]) else { continue };
            let (backend, m) = (self.backend.as_mut(), self.training.n_latents);
            let Some(why) = set.explain(&quality, parts[i].rows(), self.rows.as_ref(), backend, m)? else {
                continue;
            };
            self.explained[i] = true;
            let warning = Warning::NotFinite { part: parts[i], why };
            self.observers.iter_mut().for_each(|observer| observer.warned(&warning));
        }
        Ok(())
    }

    /// The best state, where training stopped early, and the final figures.
    fn finish(&mut self, stop: &mut dyn Stop) -> Result<Trained> {
        let mut steps = self.progress.step;
        let best_step = self.progress.best.map(|(step, _)| step);
        if self.training.early_stop > 0 && best_step.is_some_and(|best| best != steps) {
            steps = self.store.restore_best(self.backend.as_mut())?;
        }
        let mut fired = vec![0u64; self.training.n_latents];
        if self.reads_windows() {
            // No step needs its window any more: others may use the memory, and go on first.
            self.rows.hold(&[], &[])?;
            self.held = Default::default();
        }
        let sets = self.eval_sets(self.training.final_rows, self.rows.window().unwrap_or(usize::MAX))?;
        // The last state is kept already.
        let check = &mut || match stop.within_evaluation() {
            false => Ok(()),
            true => Err(Error::Interrupted("interrupted in the final evaluation; all steps are done".into())),
        };
        // Others than those of a batch's places were trained towards k; this takes them there on rows they have not seen.
        calibrate(self.backend.as_mut(), &sets)?;
        let [train, val, test] = self.measure(&sets, &mut fired, check)?;
        let done = self.progress.step as f64 * self.training.schedule.batch_size as f64;
        Ok(Trained {
            train,
            val,
            test,
            split_rows: [&self.split.train, &self.split.val, &self.split.test].map(Vec::len),
            dead_fraction: dead_fraction(&fired),
            rows_per_second: done / self.progress.seconds.1.max(1e-9),
            steps,
            best_step,
            device: self.progress.device.clone(),
            train_mean: self.mean.clone().unwrap_or_default(),
            metrics: self.progress.metrics.clone(),
        })
    }
}

/// The order of the training rows: in windows, where they do not all fit into memory.
fn order_of(rows: &dyn RowSource, split: &Split, training: &Training) -> BatchOrder {
    let (train, batch_size, seed) = (split.train.clone(), training.schedule.batch_size, training.seed);
    match rows.window() {
        Some(window) => BatchOrder::in_windows(train, batch_size, seed, window, |row| rows.block_of(row)),
        None => BatchOrder::new(train, batch_size, seed),
    }
}

/// Fails where a training cannot be one of these rows.
fn check(training: &Training, rows: &dyn RowSource, split: &Split) -> Result<()> {
    let (d, wanted) = (rows.d_in(), training.d_in);
    if d != wanted {
        return Err(Error::Failed(format!("the rows have {d} values, and the model takes {wanted}")));
    }
    if split.train.is_empty() {
        return Err(Error::Failed("the training split is empty: there is nothing to train on".into()));
    }
    let n = rows.n_rows();
    let beyond =
        [&split.train, &split.val, &split.test].into_iter().flatten().find(|row| **row as usize >= n);
    match beyond {
        Some(row) => Err(Error::Failed(format!("the split names row {row}, and there are {n} rows, from 0"))),
        None => Ok(()),
    }
}

/// Gives the weights that are evaluated k active latents per row on validation rows: training rows have fewer than rows that
/// were not trained on. On training rows where there are no others.
fn calibrate(backend: &mut dyn Backend, sets: &[EvalSet; 3]) -> Result<()> {
    let rows = if sets[1].rows.is_empty() { &sets[0].rows } else { &sets[1].rows };
    backend.calibrate(&spread(rows, CALIBRATION_ROWS), Weights::Averaged)
}

/// Which parts the loss of a training has.
fn parts_of(training: &Training) -> HasParts {
    HasParts {
        // A weight that seeks k is a factor in the schedule.
        l1: training.schedule.l1 > 0.0,
        aux: training.model.objective.aux_k > 0,
        grad_norm: training.model.optimizer.clip_norm.is_some(),
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
