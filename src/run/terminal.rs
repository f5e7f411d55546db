//! Observers of a run: the terminal, and `metrics.csv`.

use crate::console;
use crate::console::progress::StepBar;
use crate::error::Result;
use crate::files;
use crate::train::metrics::{self, MetricRow};
use crate::train::{Observer, StepReport, Warning};
use std::path::PathBuf;

/// Shows steps and warnings on standard error.
pub(super) struct Terminal {
    /// `None` once the steps ended.
    display: Option<StepBar>,
    quiet: bool,
}

impl Terminal {
    /// Of a run of `steps` steps of which `done` are done, which are `shown` or not; `quiet` means no warnings.
    pub(super) fn new(steps: u64, done: u64, shown: bool, quiet: bool) -> Self {
        Self { display: Some(StepBar::new(steps, done, !shown)), quiet }
    }
}

impl Observer for Terminal {
    fn stepped(&mut self, report: &StepReport) {
        let note = report.note();
        if let Some(display) = &mut self.display {
            display.step(report.done, report.loss, report.rows_per_second, &note);
        }
    }

    fn warned(&mut self, warning: &Warning) {
        match &mut self.display {
            _ if self.quiet => {}
            // Over the bar, where there is one.
            Some(display) if display.is_shown() && !console::is_heard() => {
                display.message(&format!("warning: {warning}"))
            }
            _ => console::warn(warning),
        }
    }

    fn steps_ended(&mut self) {
        if let Some(display) = self.display.take() {
            display.finish();
        }
    }
}

/// Writes `metrics.csv` after every evaluation.
pub(super) struct MetricsFile(pub(super) PathBuf);

impl Observer for MetricsFile {
    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        files::write_whole(&self.0, &metrics::to_csv(rows)?)
    }
}
