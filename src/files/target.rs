//! Where an output goes: links are followed, and pipes and devices are distinguished from files.

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Links followed before they are taken for a circle; Linux has the same limit.
const MAX_LINKS: usize = 40;

/// What an output path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A file that exists or can be made. Its path has no links in it.
    File(PathBuf),
    /// A FIFO or a character device: opened and written into as it stands, because there is nothing to replace.
    Stream(PathBuf),
    /// Standard output of this process.
    Stdout,
    /// Standard error of this process.
    Stderr,
}

impl Target {
    /// Finds what `path` names; `told` is how an error calls it.
    ///
    /// # Errors
    /// [`Error::Usage`] for a folder, a socket or a block device; [`Error::Failed`] where the folder of a new file
    /// does not exist; [`Error::Io`] as the system gives it.
    pub fn find(told: &str, path: &Path) -> Result<Self> {
        let refused = |what: &str| Err(Error::Usage(format!("{told} is {what}; name a file")));
        if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return refused("a folder");
        }
        let place = resolve(path).map_err(Error::io(path, "write"))?;
        match own_descriptor(&place) {
            Some(1) => return Ok(Self::Stdout),
            Some(2) => return Ok(Self::Stderr),
            _ => {}
        }
        let meta = match fs::metadata(&place) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return new_file(told, place),
            Err(e) => return Err(Error::io(path, "write")(e)),
        };
        let kind = meta.file_type();
        if kind.is_fifo() || kind.is_char_device() {
            Ok(Self::Stream(place))
        } else if kind.is_dir() {
            refused("a folder")
        } else if kind.is_socket() {
            refused("a socket, which cannot be opened as a file")
        } else if kind.is_block_device() {
            refused("a block device, whose contents would be lost")
        } else if is_descriptor(&place) {
            // A file that a shell opened, as in `3>file`.
            place.canonicalize().map(Self::File).map_err(Error::io(path, "write"))
        } else {
            Ok(Self::File(place))
        }
    }

    /// Opens what is written into as it stands; `None` for a file, which is written whole instead.
    pub(super) fn open_stream(&self) -> io::Result<Option<File>> {
        // The standard ones are duplicated and not opened anew, which for a file would start again at its beginning.
        match self {
            Self::File(_) => Ok(None),
            Self::Stream(path) => File::options().write(true).open(path).map(Some),
            Self::Stdout => io::stdout().as_fd().try_clone_to_owned().map(|fd| Some(fd.into())),
            Self::Stderr => io::stderr().as_fd().try_clone_to_owned().map(|fd| Some(fd.into())),
        }
    }
}

fn new_file(told: &str, place: PathBuf) -> Result<Target> {
    match place.parent() {
        Some(folder) if !folder.is_dir() => {
            let folder = folder.display();
            Err(Error::Failed(format!(
                "{told}: there is no folder {folder}; make it with `mkdir -p {folder}`"
            )))
        }
        _ => Ok(Target::File(place)),
    }
}

/// Whether this output is the standard output, so that nothing else may be printed there.
pub fn is_stdout(path: &Path) -> bool {
    matches!(Target::find("", path), Ok(Target::Stdout))
}

/// An absolute path without links for a file or folder that exists or will be made. What does not exist cannot be a
/// link, so `..` after it is taken away as text. A descriptor under `/proc` is returned as it is: the link there names
/// no file.
///
/// # Errors
/// A circle of links; a current folder that is gone.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    let mut at = std::path::absolute(path)?;
    for _ in 0..MAX_LINKS {
        let Some(parent) = at.parent().map(Path::to_owned) else {
            return Ok(at);
        };
        let Some(name) = at.file_name() else {
            // `absolute` keeps a final `..`.
            let above = at.canonicalize().or_else(|_| resolve(&parent).map(|folder| above(&folder)));
            return above;
        };
        let folder = parent.canonicalize().or_else(|_| resolve(&parent))?;
        let here = folder.join(name);
        if is_descriptor(&here) {
            return Ok(here);
        }
        match fs::read_link(&here) {
            Ok(to) => at = folder.join(to),
            Err(_) => return Ok(here),
        }
    }
    Err(io::Error::other("too many links, one leading to the next"))
}

fn above(folder: &Path) -> PathBuf {
    folder.parent().unwrap_or(folder).to_owned()
}

/// Whether `path`, which has no links before its last part, is an open file of some process.
fn is_descriptor(path: &Path) -> bool {
    path.parent().is_some_and(|folder| folder.starts_with("/proc") && folder.ends_with("fd"))
}

/// The number of an open file of this process.
fn own_descriptor(path: &Path) -> Option<u32> {
    let own = Path::new("/proc").join(std::process::id().to_string());
    let number = path.file_name()?.to_str()?.parse().ok()?;
    (is_descriptor(path) && path.starts_with(own)).then_some(number)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_path_is_resolved_whether_or_not_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        symlink("a/b", root.join("link")).unwrap();
        symlink("../new", root.join("a/dangling")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        for (path, want) in [
            ("link/x", "a/b/x"),
            ("link/../x", "a/x"),
            ("a/dangling", "new"),
            ("no/../link/y", "a/b/y"),
            ("no/such/../x", "no/x"),
            ("no/such/..", "no"),
            ("link/..", "a"),
        ] {
            assert_eq!(resolve(&root.join(path)).unwrap(), root.join(want), "{path}");
        }
        assert!(resolve(&root.join("circle")).is_err());
        assert_eq!(resolve(Path::new("/")).unwrap(), Path::new("/"));
    }

    #[test]
    fn standard_output_is_known_by_each_of_its_names() {
        for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1"] {
            assert!(is_stdout(Path::new(name)), "{name}");
        }
        assert_eq!(Target::find("", Path::new("/dev/stderr")).unwrap(), Target::Stderr);
        assert!(!is_stdout(Path::new("/dev/null")) && !is_stdout(Path::new("stdout")));
    }
}
