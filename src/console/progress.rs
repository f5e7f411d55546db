//! Progress on standard error: a bar on a terminal, a line every few seconds otherwise, nothing if quiet.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::text::{number, thousands};

/// How often the bar is redrawn: more is not seen.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// How often a line is written where there is no terminal (a log file of a night stays readable).
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Where progress goes.
enum Stream {
    Bar(ProgressBar),
    Lines(Box<dyn Write + Send>),
    Quiet,
}

impl Stream {
    fn for_stderr(quiet: bool, bar: impl FnOnce() -> ProgressBar) -> Self {
        if quiet || !super::shows() {
            Self::Quiet
        } else if std::io::stderr().is_terminal() {
            Self::Bar(bar())
        } else {
            Self::Lines(Box::new(std::io::stderr()))
        }
    }

    /// A line of its own. A closed standard error is no reason to stop a training run.
    fn line(&mut self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Lines(out) => drop(writeln!(out, "{text}")),
            Self::Quiet => {}
        }
    }
}

/// Progress over optimizer steps.
pub struct StepBar {
    sink: Stream,
    total: u64,
    interval: Duration,
    /// When and at which step the last report was written.
    reported: Option<(Instant, u64)>,
    /// The latest state: step, loss, rows a second; and its note. Kept because no one knows which step
    /// is the last when a run is interrupted.
    latest: (u64, f64, f64),
    note: String,
    /// Whether the latest state has been reported.
    shown: bool,
    began: (Instant, u64),
}

impl StepBar {
    /// Progress from `start_step` (0, or where a resumed run goes on) to `total_steps`.
    pub fn new(total_steps: u64, start_step: u64, quiet: bool) -> Self {
        let sink = Stream::for_stderr(quiet, || {
            let bar = ProgressBar::new(total_steps).with_position(start_step);
            bar.reset_eta();
            bar.with_style(style("{wide_bar:.cyan/dim} {human_pos}/{human_len} steps  {msg}  {eta} left"))
        });
        Self::with_sink(sink, total_steps, start_step)
    }

    fn with_sink(sink: Stream, total: u64, start: u64) -> Self {
        let interval = match sink {
            Stream::Bar(_) => BAR_INTERVAL,
            _ => LINE_INTERVAL,
        };
        Self {
            sink,
            total,
            interval,
            reported: None,
            latest: (start, f64::NAN, 0.0),
            note: String::new(),
            shown: true,
            began: (Instant::now(), start),
        }
    }

    /// `step` steps are done. Call it as often as is known: most calls only read the clock.
    /// `note` is shown at the end, for instance the phase.
    pub fn step(&mut self, step: u64, loss: f64, rows_per_second: f64, note: &str) {
        if matches!(self.sink, Stream::Quiet) {
            return;
        }
        let now = Instant::now();
        let due = match self.reported {
            None => true,
            Some((at, _)) => now - at >= self.interval || step >= self.total,
        };
        self.latest = (step, loss, rows_per_second);
        // A note seldom changes: its memory is used again.
        note.clone_into(&mut self.note);
        self.shown = false;
        if due {
            self.report(now);
        }
    }

    fn report(&mut self, now: Instant) {
        let (step, loss, rows_per_second) = self.latest;
        let text = describe(loss, rows_per_second, &self.note);
        match &mut self.sink {
            Stream::Bar(bar) => {
                bar.set_position(step);
                bar.set_message(text);
            }
            Stream::Lines(_) => {
                // The pace since the last line, not since the start: annealing steps cost more.
                let (since, from) = self.reported.unwrap_or(self.began);
                let left = time_left(now - since, step.saturating_sub(from), self.total, step);
                let (done, total) = (thousands(step), thousands(self.total));
                self.sink.line(&format!("step {done}/{total}  {text}{left}"));
            }
            Stream::Quiet => {}
        }
        self.reported = Some((now, step));
        self.shown = true;
    }

    /// False where nothing is written.
    pub fn is_shown(&self) -> bool {
        !matches!(self.sink, Stream::Quiet)
    }

    /// Prints a line without breaking the bar; nothing if quiet.
    pub fn message(&mut self, text: &str) {
        self.sink.line(text);
    }

    /// The end of the run, or of its part before an interruption: shows the last state and leaves it.
    pub fn finish(mut self) {
        if !self.shown {
            self.report(Instant::now());
        }
        if let Stream::Bar(bar) = &self.sink {
            bar.abandon();
        }
    }
}

/// A phase whose length is not known, such as reading files: a spinner, or a line at its start and end.
pub struct Spinner {
    sink: Stream,
    what: String,
    began: Instant,
    /// When the last line was written.
    reported: Instant,
}

impl Spinner {
    /// Says that `what` (as in "reading embeddings") has begun.
    pub fn new(what: &str, quiet: bool) -> Self {
        let sink = Stream::for_stderr(quiet, || {
            let bar = ProgressBar::new_spinner().with_style(style("{spinner:.cyan} {msg}"));
            bar.set_message(format!("{what} ..."));
            bar.enable_steady_tick(BAR_INTERVAL);
            bar
        });
        Self::with_sink(sink, what)
    }

    fn with_sink(mut sink: Stream, what: &str) -> Self {
        if let Stream::Lines(_) = sink {
            sink.line(&format!("{what} ..."));
        }
        let began = Instant::now();
        Self { sink, what: what.to_owned(), began, reported: began }
    }

    /// `done` of `total` `units` are done: shown with the time left. Call it as often as is known.
    pub fn progress(&mut self, done: u64, total: u64, units: &str) {
        let now = Instant::now();
        let interval = if let Stream::Bar(_) = self.sink { BAR_INTERVAL } else { LINE_INTERVAL };
        if matches!(self.sink, Stream::Quiet) || now - self.reported < interval {
            return;
        }
        self.reported = now;
        let left = time_left(now - self.began, done, total, done);
        let percent = 100 * done / total.max(1);
        let text = format!("{} ... {percent} % of {} {units}{left}", self.what, thousands(total));
        match &mut self.sink {
            Stream::Bar(bar) => bar.set_message(text),
            sink => sink.line(&text),
        }
    }

    /// Shows where the phase stands (on a terminal only), for instance a count. Cheap.
    pub fn update(&self, state: &str) {
        if let Stream::Bar(bar) = &self.sink {
            bar.set_message(format!("{} ... {state}", self.what));
        }
    }

    /// The phase is done; `result` is what it gave, as in "20,660 rows of 1024 values".
    pub fn finish(mut self, result: &str) {
        let seconds = self.began.elapsed().as_secs_f64();
        let line = format!("{}: {result} ({seconds:.1} s)", self.what);
        self.sink.line(&line);
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        // An error message must not follow a spinner that still turns.
        if let Stream::Bar(bar) = &self.sink {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file and tested; a default bar is still better than none.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn describe(loss: f64, rows_per_second: f64, note: &str) -> String {
    let gap = if note.is_empty() { "" } else { "  " };
    let rows = thousands(rows_per_second.max(0.0).round() as u64);
    format!("loss {}  {rows} rows/s{gap}{note}", number(loss))
}

/// `  1:05:00 left`, or nothing where no pace is known.
fn time_left(elapsed: Duration, done: u64, total: u64, step: u64) -> String {
    if done == 0 || step >= total {
        return String::new();
    }
    let seconds = elapsed.as_secs_f64() / done as f64 * (total - step) as f64;
    let s = seconds.min(1e9).round() as u64;
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    match h {
        0 => format!("  {m}:{s:02} left"),
        _ => format!("  {h}:{m:02}:{s:02} left"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn lines(&self) -> Vec<String> {
            let bytes = self.0.lock().unwrap().clone();
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(str::to_owned).collect()
        }
        fn sink(&self) -> Stream {
            Stream::Lines(Box::new(self.clone()))
        }
    }

    #[test]
    fn without_a_terminal_most_steps_write_nothing_and_the_last_one_does() {
        let log = Log::default();
        let mut progress = StepBar::with_sink(log.sink(), 10_000, 0);
        for step in 1..=10_000 {
            progress.step(step, 0.5, 12_345.6, "annealing");
        }
        progress.finish();
        let lines = log.lines();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("step 1/10,000  loss 0.5000  12,346 rows/s  annealing"));
        assert!(lines[1].starts_with("step 10,000/10,000"));
    }

    #[test]
    fn an_interrupted_run_shows_the_step_it_reached() {
        let log = Log::default();
        let mut progress = StepBar::with_sink(log.sink(), 10_000, 300);
        progress.step(301, 0.5, 100.0, "");
        progress.step(302, 0.4, 100.0, "");
        progress.message("stopping");
        progress.step(303, 0.3, 100.0, "");
        progress.finish();
        let lines = log.lines();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[1], "stopping");
        assert!(lines[2].starts_with("step 303/10,000  loss 0.3000"), "{lines:?}");
    }

    #[test]
    fn the_time_left_follows_the_pace_and_is_absent_without_one() {
        let minute = Duration::from_secs(60);
        assert_eq!(time_left(minute, 10, 100, 10), "  9:00 left");
        assert_eq!(time_left(minute, 1, 100, 10), "  1:30:00 left");
        assert_eq!(time_left(minute, 0, 100, 10), "");
        assert_eq!(time_left(minute, 10, 100, 100), "");
    }

    #[test]
    fn a_phase_names_its_result_and_its_time() {
        let log = Log::default();
        let phase = Spinner::with_sink(log.sink(), "reading");
        phase.update("half");
        phase.finish("2 rows");
        assert_eq!(log.lines()[0], "reading ...");
        assert!(log.lines()[1].starts_with("reading: 2 rows (0.0 s)"));
    }

    #[test]
    fn a_phase_that_takes_long_tells_how_much_is_left() {
        let log = Log::default();
        let mut phase = Spinner::with_sink(log.sink(), "loading");
        phase.progress(1, 1000, "rows");
        assert_eq!(log.lines().len(), 1, "too early");
        phase.began -= Duration::from_secs(60);
        phase.reported -= Duration::from_secs(60);
        phase.progress(2500, 10_000, "rows");
        phase.progress(2600, 10_000, "rows");
        assert_eq!(log.lines()[1..], ["loading ... 25 % of 10,000 rows  3:00 left"]);
    }

    #[test]
    fn quiet_writes_nothing_and_a_closed_stream_does_not_stop_the_run() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        for sink in [Stream::Quiet, Stream::Lines(Box::new(Closed))] {
            let mut progress = StepBar::with_sink(sink, 2, 0);
            progress.step(1, f64::NAN, f64::INFINITY, "");
            progress.message("x");
            progress.finish();
        }
    }

    #[test]
    fn the_bar_templates_are_valid() {
        for template in
            ["{wide_bar:.cyan/dim} {human_pos}/{human_len} steps  {msg}  {eta} left", "{spinner:.cyan} {msg}"]
        {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
