//! Standard output and standard error. A stream may be full, closed, or a terminal that has gone away: nothing
//! here panics, unlike `println!` and `eprintln!`.

#[cfg(not(feature = "cli"))]
#[path = "no_progress.rs"]
pub mod progress;
#[cfg(feature = "cli")]
pub mod progress;

use crate::error::{Error, Result};
use std::fmt::Display;
use std::io::Write;

/// A line on standard error. It is lost where standard error cannot be written: that is no reason to stop.
pub fn tell(text: impl Display) {
    // One write, so that lines of several processes do not mix.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// A warning on standard error.
pub fn warn(text: impl Display) {
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
