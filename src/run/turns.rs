//! Runs that take turns on the same rows, so that each window of rows is read once for all of them.

use crate::console::progress::StepBar;
use crate::data::Embeddings;
use crate::error::Result;
use crate::rows::{RowSource, left_to};
use crate::train::metrics::MetricRow;
use crate::train::{Observer, StepReport, Warning};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Whose turn it is: that of the run that has begun the fewest windows.
struct Turns {
    state: Mutex<State>,
    passed: Condvar,
}

struct State {
    /// Windows that each run has begun; `None` once it has ended.
    begun: Vec<Option<u64>>,
    now: usize,
}

/// The right of one run to go on, which it passes on at each window and when it ends.
pub struct Turn {
    turns: Arc<Turns>,
    run: usize,
}

impl Turn {
    /// Turns of `n` runs; the first has its turn now.
    pub(super) fn of(n: usize) -> Vec<Self> {
        let state = Mutex::new(State { begun: vec![Some(0); n], now: 0 });
        let turns = Arc::new(Turns { state, passed: Condvar::new() });
        (0..n).map(|run| Self { turns: turns.clone(), run }).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.turns.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of this run.
    pub(super) fn wait(&self) {
        self.wait_with(self.state());
    }

    fn wait_with(&self, state: MutexGuard<'_, State>) {
        let waits = |state: &mut State| state.now != self.run;
        drop(self.turns.passed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// Begins a window once those that have begun fewer have done so.
    fn begin_window(&self) {
        let mut state = self.state();
        state.begun[self.run] = state.begun[self.run].map(|n| n + 1);
        self.pass(&mut state);
        self.wait_with(state);
    }

    fn pass(&self, state: &mut State) {
        let left = state.begun.iter().enumerate().filter_map(|(run, begun)| Some(((*begun)?, run)));
        if let Some((_, run)) = left.min() {
            state.now = run;
        }
        self.turns.passed.notify_all();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.state();
        state.begun[self.run] = None;
        if state.now == self.run {
            self.pass(&mut state);
        }
    }
}

/// Rows of a run that takes turns with others.
pub(super) struct InTurn {
    rows: Arc<Embeddings>,
    turn: Arc<Turn>,
    /// How long the last window was begun after the others.
    others: Mutex<Duration>,
}

impl InTurn {
    pub fn new(rows: Arc<Embeddings>, turn: Arc<Turn>) -> Self {
        Self { rows, turn, others: Mutex::default() }
    }
}

impl RowSource for InTurn {
    left_to!(rows);

    fn read_stored(&self, row: u32, out: &mut [u8]) -> Result<()> {
        self.rows.read_stored(row, out)
    }

    fn gather_stored(&self, rows: &[u32], out: &mut [u8]) -> Result<()> {
        self.rows.gather_stored(rows, out)
    }

    fn hold(&self, now: &[u32], next: &[u32]) -> Result<()> {
        let began = Instant::now();
        self.turn.begin_window();
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = began.elapsed();
        self.rows.hold(now, next)
    }

    fn let_others(&self) -> Duration {
        *self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The steps of several runs in one bar.
pub(super) struct Together {
    bar: StepBar,
    done: Vec<u64>,
}

impl Together {
    /// Of `n` runs with `steps` steps in all.
    pub fn new(n: usize, steps: u64, quiet: bool) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { bar: StepBar::new(steps, 0, quiet), done: vec![0; n] }))
    }

    /// Leaves the bar as it is.
    pub fn finish(this: Arc<Mutex<Self>>) {
        if let Some(this) = Arc::into_inner(this) {
            this.into_inner().unwrap_or_else(PoisonError::into_inner).bar.finish();
        }
    }
}

/// Shows one of them there, and tells whoever else watches it.
pub(super) struct OneOf<'a> {
    pub together: Arc<Mutex<Together>>,
    pub run: usize,
    pub name: String,
    pub other: Option<&'a Mutex<dyn Observer + Send + 'a>>,
}

impl OneOf<'_> {
    fn tell<T>(&self, tell: impl FnOnce(&mut dyn Observer) -> T) -> Option<T> {
        self.other.map(|other| tell(&mut *other.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl Observer for OneOf<'_> {
    fn stepped(&mut self, report: &StepReport) {
        let mut together = self.together.lock().unwrap_or_else(PoisonError::into_inner);
        let Together { bar, done } = &mut *together;
        done[self.run] = report.done;
        bar.step(done.iter().sum(), report.loss, report.rows_per_second, &self.name);
        drop(together);
        self.tell(|other| other.stepped(report));
    }

    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        self.tell(|other| other.evaluated(rows)).unwrap_or(Ok(()))
    }

    fn warned(&mut self, warning: &Warning) {
        self.tell(|other| other.warned(warning));
    }

    fn steps_ended(&mut self) {
        self.tell(|other| other.steps_ended());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn runs_begin_each_window_one_after_another_and_one_that_ends_is_not_waited_for() {
        let seen = Mutex::new(vec![]);
        std::thread::scope(|scope| {
            for (turn, windows) in Turn::of(3).into_iter().zip([3, 1, 4]) {
                let seen = &seen;
                scope.spawn(move || {
                    turn.wait();
                    for window in 0..windows {
                        turn.begin_window();
                        seen.lock().unwrap().push((window, turn.run));
                    }
                });
            }
        });
        let order = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 2), (3, 2)];
        assert_eq!(seen.into_inner().unwrap(), order);
    }

    #[test]
    fn a_run_that_panics_passes_its_turn() {
        let mut turns = Turn::of(2).into_iter();
        let (first, second) = (turns.next().unwrap(), turns.next().unwrap());
        let died = std::thread::spawn(move || {
            first.wait();
            panic!("as it must in this test");
        });
        assert!(died.join().is_err());
        second.wait();
        second.begin_window();
    }
}
