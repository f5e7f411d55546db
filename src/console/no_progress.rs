//! What stands in for progress in a build without the feature `cli`: nothing is shown.

/// Progress over optimizer steps.
pub struct StepBar;

impl StepBar {
    /// Shows nothing.
    pub fn new(_total_steps: u64, _start_step: u64, _quiet: bool) -> Self {
        Self
    }

    /// Shows nothing.
    pub fn step(&mut self, _step: u64, _loss: f64, _rows_per_second: f64, _note: &str) {}

    /// Nothing is ever written.
    pub fn is_shown(&self) -> bool {
        false
    }

    /// Shows nothing.
    pub fn message(&mut self, _text: &str) {}

    /// Shows nothing.
    pub fn finish(self) {}
}

/// A phase whose length is not known.
pub struct Spinner;

impl Spinner {
    /// Shows nothing.
    pub fn new(_what: &str, _quiet: bool) -> Self {
        Self
    }

    /// Shows nothing.
    pub fn progress(&mut self, _done: u64, _total: u64, _units: &str) {}

    /// Shows nothing.
    pub fn update(&self, _state: &str) {}

    /// Shows nothing.
    pub fn finish(self, _result: &str) {}
}
