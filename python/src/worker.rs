//! Work on a thread of its own, while the caller's thread hears of it and looks for Ctrl-C without holding up Python.

use crate::errors::raised;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;
use topk_sae::error::{Error, Result};
use topk_sae::train::metrics::MetricRow;
use topk_sae::train::{Observer, StepReport};
use topk_sae::{console, interrupt};

/// How often the caller's thread looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(50);

/// What the work tells while it goes on.
pub enum Event {
    Warning(String),
    Steps(StepReport),
    /// A line of `metrics.csv`, as JSON.
    Evaluation(String),
    Done,
}

/// Hears a training and sends what it hears.
pub struct Ear(pub Sender<Event>);

impl Observer for Ear {
    fn stepped(&mut self, report: &StepReport) {
        // Nobody hears any more where the caller has an exception to raise.
        let _ = self.0.send(Event::Steps(*report));
    }

    fn evaluated(&mut self, rows: &[MetricRow]) -> Result<()> {
        if let Some(row) = rows.last() {
            let json = serde_json::to_string(row).map_err(|e| Error::Failed(e.to_string()))?;
            let _ = self.0.send(Event::Evaluation(json));
        }
        Ok(())
    }
}

/// Says that the work is done, also where it panics.
struct Done(Sender<Event>);

impl Drop for Done {
    fn drop(&mut self) {
        let _ = self.0.send(Event::Done);
    }
}

/// Runs `work` without the interpreter's lock; it is given a flag that asks it to stop and where to send events. Warnings
/// become Python's; other events go to `hear`, if it is not None, on this thread. An exception of Ctrl-C, of `hear` or of
/// a warning that is an error asks the work to stop, and is raised when it has. `shows`: progress goes to standard error.
pub fn run<T: Send>(
    py: Python<'_>,
    shows: bool,
    hear: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&AtomicBool, Sender<Event>) -> Result<T> + Send,
) -> PyResult<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let (sender, receiver) = mpsc::channel();
    let hear = hear.map(|hear| hear.clone().unbind());
    let mut exception = None;
    let hear = hear.as_ref();
    let raised_here = &mut exception;
    let result = py.detach(move || {
        std::thread::scope(|scope| {
            let worker = scope.spawn(move || {
                let _done = Done(sender.clone());
                let warnings = sender.clone();
                let warn = move |text| drop(warnings.send(Event::Warning(text)));
                interrupt::with_flag(&asked, || console::listening(warn, shows, || work(&asked, sender)))
            });
            loop {
                let event = match receiver.recv_timeout(LOOK) {
                    Ok(Event::Done) | Err(RecvTimeoutError::Disconnected) => break,
                    Ok(event) => Some(event),
                    Err(RecvTimeoutError::Timeout) => None,
                };
                if raised_here.is_none()
                    && let Err(error) = Python::attach(|py| heard(py, event, hear))
                {
                    stop.store(true, Ordering::Relaxed);
                    *raised_here = Some(error);
                }
            }
            worker.join()
        })
    });
    let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    match (exception, result) {
        (None, result) => result.map_err(raised),
        // Ctrl-C, with what was left.
        (Some(exception), Err(error @ Error::Interrupted(_)))
            if exception.is_instance_of::<PyKeyboardInterrupt>(py) =>
        {
            Err(raised(error))
        }
        (Some(exception), _) => Err(exception),
    }
}

fn heard(py: Python<'_>, event: Option<Event>, hear: Option<&Py<PyAny>>) -> PyResult<()> {
    py.check_signals()?;
    match (event, hear) {
        (Some(Event::Warning(text)), _) => {
            // There, since it knows the caller's line.
            py.import("topk_sae._data")?.call_method1("warn", (text,)).map(drop)
        }
        (Some(Event::Steps(report)), Some(hear)) => {
            let StepReport { done, total, loss, rows_per_second, .. } = report;
            hear.call1(py, (done, total, loss, rows_per_second, py.None())).map(drop)
        }
        (Some(Event::Evaluation(json)), Some(hear)) => hear.call1(py, (0, 0, 0.0, 0.0, json)).map(drop),
        _ => Ok(()),
    }
}
