//! One error type for the whole crate: what is wrong, where, and what to do next, in one line.

use std::path::{Path, PathBuf};

/// Result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. `Display` gives one line that names the place and the next thing to try.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line or a configuration asks for something that cannot be (exit status 2).
    #[error("{0}")]
    Usage(String),
    /// A data file holds something that cannot be used.
    #[error("{}{}: {what}", path.display(), at(.place))]
    Data {
        /// The file.
        path: PathBuf,
        /// Dataset and row inside the file, as a person would write them; empty if the whole file.
        place: String,
        /// What is wrong and what to do.
        what: String,
    },
    /// The operating system refused an operation on a file.
    #[error("{}: cannot {action}: {source}{}", path.display(), io_hint(action, source))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The verb, as in "cannot read".
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A checkpoint or model file is damaged or of another kind.
    #[error("{}: {what}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
    /// A file of a format that this version does not know yet.
    #[error("{}: was written by a newer sae (schema {schema}, this one reads up to {known}): update sae to read it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        schema: u64,
        /// The newest format known here.
        known: u32,
    },
    /// The loss became NaN or infinite.
    #[error(
        "the loss became {loss} at step {step}; {kept}; try a lower --lr, --lr-warmup 500, --clip-norm 1, or look for extreme rows with `sae inspect`"
    )]
    NonFinite {
        /// The step (from 0) whose loss was not finite.
        step: u64,
        /// The loss itself.
        loss: f64,
        /// Which checkpoint is kept.
        kept: String,
    },
    /// A signal asked to stop; while training, a checkpoint is on disk (exit status 130).
    #[error("{0}")]
    Interrupted(String),
    /// Anything else that stops a command.
    #[error("{0}")]
    Failed(String),
}

fn at(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(": {place}") }
}

fn io_hint(action: &str, source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied if matches!(action, "read" | "open" | "list") => {
            "; ask for the right to read it"
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "; free some space, then run the command again"
        }
        std::io::ErrorKind::FileTooLarge => {
            "; raise the limit on the size of files (`ulimit -f unlimited`), then run the command again"
        }
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            "; name a place that you may write to"
        }
        std::io::ErrorKind::NotFound => "; check the path",
        _ => "",
    }
}

/// `text` with escapes for line breaks and other control characters, which names in a damaged file may hold.
fn in_line(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

impl Error {
    /// A data error in `path`, at `place` (dataset, row; may be empty).
    pub fn data(path: &Path, place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Data { path: path.to_owned(), place: in_line(place.into()), what: in_line(what.into()) }
    }

    /// The error on a file in the folder `from`, with the name that the folder is to get, `to`.
    pub fn renamed(self, from: &Path, to: &Path) -> Self {
        match self {
            Self::Io { path, action, source } => {
                let path = path.strip_prefix(from).map(|rest| to.join(rest)).unwrap_or(path);
                Self::Io { path, action, source }
            }
            other => other,
        }
    }

    /// The error of a training run: once there is room for its files, it goes on where it stopped.
    pub fn in_run(self, run: &Path) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match self {
            Self::Io { path, action, source }
                if matches!(source.kind(), StorageFull | QuotaExceeded | FileTooLarge) =>
            {
                let first = match source.kind() {
                    FileTooLarge => "raise the limit on the size of files (`ulimit -f unlimited`)",
                    _ => "free some space",
                };
                Self::Failed(format!(
                    "{}: cannot {action}: {source}; {first}, then continue with `sae train --resume {}`",
                    path.display(),
                    run.display()
                ))
            }
            other => other,
        }
    }

    /// A closure for `map_err` on file operations.
    pub fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, action, source }
    }

    /// The exit status of the documented command line.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Interrupted(_) => 130,
            _ => 1,
        }
    }
}
