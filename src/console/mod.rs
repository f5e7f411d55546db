//! Standard output and standard error. A stream may be full, closed, or a terminal that has gone away: nothing
//! here panics, unlike `println!` and `eprintln!`.

#[cfg(not(feature = "cli"))]
#[path = "no_progress.rs"]
pub mod progress;
#[cfg(feature = "cli")]
pub mod progress;

use crate::error::{Error, Result};
use std::cell::RefCell;
use std::fmt::Display;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// What hears the warnings of a thread in place of standard error.
struct Listener {
    warn: Box<dyn FnMut(String)>,
    /// Whether progress and other lines still go to standard error.
    shows: bool,
}

thread_local! {
    static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

/// Another process says what there is to say.
static SILENT: AtomicBool = AtomicBool::new(false);

/// From here on, nothing that this process tells is seen: it is one of several that do the same, and another one of them tells
/// it.
pub fn silence() {
    SILENT.store(true, Ordering::Relaxed);
}

/// Runs `work`, whose warnings on this thread go to `warn` and not to standard error; progress and other lines go there
/// only if `shows`. For a program with its own ways to tell them.
pub fn listening<T>(warn: impl FnMut(String) + 'static, shows: bool, work: impl FnOnce() -> T) -> T {
    let before = LISTENER.replace(Some(Listener { warn: Box::new(warn), shows }));
    let result = work();
    LISTENER.set(before);
    result
}

/// Whether somebody listens to the warnings of this thread.
pub fn is_heard() -> bool {
    LISTENER.with_borrow(Option::is_some)
}

/// Whether this thread's progress is to be seen.
fn shows() -> bool {
    !SILENT.load(Ordering::Relaxed)
        && LISTENER.with_borrow(|listener| listener.as_ref().is_none_or(|listener| listener.shows))
}

/// A line on standard error. It is lost where standard error cannot be written: that is no reason to stop.
pub fn tell(text: impl Display) {
    if shows() {
        insist(text);
    }
}

/// The same of a process that is silent: nobody else can say it.
pub fn insist(text: impl Display) {
    // One write, so that lines of several processes do not mix.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// A warning on standard error, or to whoever listens.
pub fn warn(text: impl Display) {
    let heard = LISTENER.with_borrow_mut(|listener| {
        listener.as_mut().map(|listener| (listener.warn)(text.to_string())).is_some()
    });
    if heard {
        return;
    }
    tell(format_args!("warning: {text}"));
}

/// Writes a result to standard output; a reader that has gone away (`| head`) is no error.
///
/// # Errors
/// [`Error::Failed`] where standard output cannot be written, such as on a full disk.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// What became of writing to standard output.
///
/// # Errors
/// As [`print()`].
pub fn written(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("standard output cannot be written: {e}; send it somewhere else")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_listener_hears_the_warnings_of_its_thread() {
        let heard = Rc::new(RefCell::new(vec![]));
        let ear = heard.clone();
        listening(
            move |text| ear.borrow_mut().push(text),
            false,
            || {
                warn("careful");
                std::thread::spawn(|| warn("this line of a test is on standard error")).join().unwrap();
                assert!(!shows());
            },
        );
        assert_eq!(*heard.borrow(), ["careful"]);
        assert!(shows());
    }
}
