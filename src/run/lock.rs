//! One process a run folder: an advisory lock on a file in it, which the system lets go when the process ends,
//! however it ends. A run that was killed never stands in the way.

use crate::error::{Error, Result};
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Name of the locked file; it is gone when a run has ended in order.
pub const NAME: &str = ".lock";

/// The lock of a run folder, held until dropped.
#[derive(Debug)]
pub(super) struct RunLock {
    file: File,
    path: PathBuf,
}

impl RunLock {
    /// Takes the lock of the folder `root`; `None` where the file system has no locks, so that training is
    /// possible there too.
    ///
    /// # Errors
    /// [`Error::Failed`] if another process holds it; [`Error::Io`] if the folder cannot be written.
    pub(super) fn take(root: &Path) -> Result<Option<Self>> {
        let path = root.join(NAME);
        // Whoever held the lock deletes its file, or renames the folder away: what was locked may no longer be
        // the file of that name. Few tries are ever needed.
        for _ in 0..100 {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            let file = file.map_err(Error::io(&path, "create"))?;
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => return Ok(Some(Self { file, path })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => break,
                Err(TryLockError::Error(_)) => {
                    let _ = fs::remove_file(&path);
                    return Ok(None);
                }
            }
        }
        Err(in_use(root))
    }

    /// The same lock after the folder it lies in was renamed to `root`.
    pub(super) fn moved_to(mut self, root: &Path) -> Self {
        self.path = root.join(NAME);
        self
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // Another run may have come to this name, if a person moved the folder meanwhile.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Fails if a process is at work in `root`; changes nothing.
pub(super) fn check_free(root: &Path) -> Result<()> {
    let Ok(file) = File::open(root.join(NAME)) else {
        return Ok(());
    };
    // Shared: two processes that only ask do not see each other.
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Err(in_use(root)),
        _ => Ok(()),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let place = |meta: fs::Metadata| (meta.dev(), meta.ino());
    file.metadata().is_ok_and(|a| fs::metadata(path).is_ok_and(|b| place(a) == place(b)))
}

fn in_use(root: &Path) -> Error {
    let shown = root.display();
    Error::Failed(format!(
        "{shown}: another sae process is training in this folder; wait for it or stop it, or name another folder with --out"
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_holds_the_lock_and_the_file_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        check_free(folder.path()).unwrap();
        let lock = RunLock::take(folder.path()).unwrap().unwrap();
        for refused in [check_free(folder.path()).unwrap_err(), RunLock::take(folder.path()).unwrap_err()] {
            assert_eq!(refused.exit_status(), 1);
            assert!(refused.to_string().contains(&folder.path().display().to_string()), "{refused}");
        }
        drop(lock);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        check_free(folder.path()).unwrap();
        drop(RunLock::take(folder.path()).unwrap().unwrap());
    }

    #[test]
    fn a_file_left_by_a_killed_process_does_not_lock() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(NAME), "").unwrap();
        check_free(folder.path()).unwrap();
        assert!(RunLock::take(folder.path()).unwrap().is_some());
    }

    #[test]
    fn a_lock_whose_folder_was_moved_leaves_the_new_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        fs::create_dir(&a).unwrap();
        let old = RunLock::take(&a).unwrap().unwrap();
        fs::rename(&a, &b).unwrap();
        fs::create_dir(&a).unwrap();
        let new = RunLock::take(&a).unwrap().unwrap();
        drop(old);
        assert!(check_free(&a).is_err());
        drop(new);
    }
}
