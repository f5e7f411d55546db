//! Who watches a training.

use super::metrics::MetricRow;
use crate::error::Result;
use crate::rows::Part;
use std::fmt;

/// Steps that were computed since the last report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done in all.
    pub done: u64,
    /// Steps there are.
    pub total: u64,
    /// Loss of the last one, before its update.
    pub loss: f64,
    /// Training rows per second.
    pub rows_per_second: f64,
    /// Whether the relaxed warm-up goes on.
    pub warming_up: bool,
    /// Share of the time of steps, over about the last minute, in which none was computed because its rows were not there.
    pub waiting: f64,
}

/// The least share of waiting that is worth a word.
const WORTH_A_WORD: f64 = 0.05;

impl StepReport {
    /// What a line of progress says besides: the warm-up, and the share of the time spent waiting for rows from 5 % on.
    pub fn note(&self) -> String {
        let annealing = self.warming_up.then(|| "annealing".to_owned());
        let waiting =
            (self.waiting >= WORTH_A_WORD).then(|| format!("waiting for data {:.0} %", 100.0 * self.waiting));
        [annealing, waiting].into_iter().flatten().collect::<Vec<_>>().join("  ")
    }
}

/// Something that does not stop a training and that its owner should know.
#[derive(Debug, Clone, PartialEq)]
pub enum Warning {
    /// Figures of a split are not finite.
    NotFinite {
        /// The split.
        part: Part,
        /// Why, in a sentence.
        why: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite { part: Part::Val, why } => write!(
                f,
                "{why}; where no evaluation has a finite validation FVU, the last checkpoint becomes the model"
            ),
            Self::NotFinite { why, .. } => f.write_str(why),
        }
    }
}

/// Hears what happens in a training, in order. Every method has an empty default.
pub trait Observer {
    /// Some steps are done: several times per second at most.
    fn stepped(&mut self, _report: &StepReport) {}

    /// An evaluation is done. `rows` are all so far, the new one last.
    ///
    /// # Errors
    /// What the observer cannot do, which ends the training.
    fn evaluated(&mut self, _rows: &[MetricRow]) -> Result<()> {
        Ok(())
    }

    /// There is something to know.
    fn warned(&mut self, _warning: &Warning) {}

    /// All steps are done, or the training was interrupted: the final evaluation may follow.
    fn steps_ended(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_rows_is_told_from_a_twentieth_on() {
        let note = |warming_up, waiting| {
            StepReport { done: 1, total: 2, loss: 0.5, rows_per_second: 10.0, warming_up, waiting }.note()
        };
        assert_eq!(note(false, 0.049), "");
        assert_eq!(note(false, 0.4), "waiting for data 40 %");
        assert_eq!(note(true, 0.0), "annealing");
        assert_eq!(note(true, 0.051), "annealing  waiting for data 5 %");
    }
}
