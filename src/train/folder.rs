//! The run folder: made in one piece, never mixed with files of others.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::files;
use crate::train::checkpoint;
use crate::train::lock::{self, RunLock};
use std::fs;
use std::path::{Path, PathBuf};

/// Names in a run folder.
pub mod names {
    /// Resolved options.
    pub const CONFIG: &str = "config.toml";
    /// Id and split.
    pub const SPLITS: &str = "splits.tsv";
    /// A line an evaluation.
    pub const METRICS: &str = "metrics.csv";
    /// The trained model.
    pub const MODEL: &str = "model.safetensors";
    /// Final figures; written last, so its presence says that the run is done.
    pub const SUMMARY: &str = "summary.json";
    /// Curve of the squared error.
    pub const MSE_PNG: &str = "mse.png";
    /// Curve of the absolute error.
    pub const MAE_PNG: &str = "mae.png";
    /// Curve of the squared error in a run of a relaxed preset.
    pub const RELAXED_MSE_PNG: &str = "relaxed_topk_sae_mse.png";
    /// Curve of the absolute error in a run of a relaxed preset.
    pub const RELAXED_MAE_PNG: &str = "relaxed_topk_sae_mae.png";
    /// Curves of the parts of the training loss, where it has several.
    pub const LOSS_PARTS_PNG: &str = "loss_parts.png";
    /// Curve of the share of latents alive.
    pub const ALIVE_PNG: &str = "latents_alive.png";
    /// The page that `sae report` makes.
    pub const REPORT: &str = "report.html";
    /// Folder of checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// The best checkpoint by validation FVU.
    pub const BEST: &str = "best.safetensors";
}

const ALL: [&str; 14] = [
    lock::NAME,
    names::CONFIG,
    names::SPLITS,
    names::METRICS,
    names::MODEL,
    names::SUMMARY,
    names::MSE_PNG,
    names::MAE_PNG,
    names::RELAXED_MSE_PNG,
    names::RELAXED_MAE_PNG,
    names::LOSS_PARTS_PNG,
    names::ALIVE_PNG,
    names::REPORT,
    names::CHECKPOINTS,
];

/// Paths of a run, and the lock that keeps other processes out of it.
#[derive(Debug)]
pub struct RunFolder {
    root: PathBuf,
    /// `None` where the file system has no locks.
    lock: Option<RunLock>,
}

impl RunFolder {
    /// Checks that a run may be made at `root`; to be asked before hours of work, not after. A run that failed
    /// before it had anything to keep is no obstacle.
    ///
    /// # Errors
    /// [`Error::Failed`] if a process trains there; [`Error::Usage`] if a run is there and `overwrite` is off,
    /// or if files are there that are not a run's.
    pub fn check_free(root: &Path, overwrite: bool) -> Result<()> {
        if !root.exists() {
            return Ok(());
        }
        if !root.is_dir() {
            return Err(Error::Usage(format!(
                "--out {} is a file; name a folder that does not exist yet",
                root.display()
            )));
        }
        lock::check_free(root)?;
        check_contents(root, overwrite)
    }

    /// Makes the folder with its configuration and split in it, locked, in one rename, so that a run killed at
    /// any moment can be resumed as soon as the folder is there.
    ///
    /// # Errors
    /// As [`RunFolder::check_free`], for things may have changed since it was asked; as the disk gives them.
    /// Nothing is left behind.
    pub fn create(root: &Path, overwrite: bool, config: &str, splits: &str) -> Result<Self> {
        let name = root
            .file_name()
            .ok_or_else(|| Error::Usage(format!("--out {}: no folder name", root.display())))?;
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        let sibling = |kind: &str| {
            parent.join(format!(".{}.{kind}.{}.tmp", name.to_string_lossy(), std::process::id()))
        };
        let fresh = sibling("new");
        let made = fs::create_dir(&fresh)
            .and_then(|()| fs::create_dir(fresh.join(names::CHECKPOINTS)))
            .map_err(Error::io(root, "create"))
            .and_then(|()| files::write_whole(&fresh.join(names::CONFIG), config.as_bytes()))
            .and_then(|()| files::write_whole(&fresh.join(names::SPLITS), splits.as_bytes()))
            .and_then(|()| RunLock::take(&fresh))
            .and_then(|lock| put_in_place(&fresh, root, &sibling("old"), overwrite).map(|()| lock));
        if made.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        let lock = made?.map(|lock| lock.moved_to(root));
        Ok(Self { root: root.to_owned(), lock })
    }

    /// An existing run, locked, and freed of what a killed process left unfinished.
    ///
    /// # Errors
    /// [`Error::Usage`] if `root` is no run folder; [`Error::Failed`] if another process trains in it.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join(names::CONFIG).is_file() {
            return Err(Error::Usage(format!(
                "{} is not a run folder (it has no {}); start a run with `sae train DATA --out {}`",
                root.display(),
                names::CONFIG,
                root.display()
            )));
        }
        let lock = RunLock::take(root)?;
        let folder = Self { root: root.to_owned(), lock };
        let checkpoints = folder.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints, "create"))?;
        files::remove_unfinished(root)?;
        files::remove_unfinished(&checkpoints)?;
        Ok(folder)
    }

    /// False where the file system has no locks, so that nothing keeps a second process out.
    pub fn locked(&self) -> bool {
        self.lock.is_some()
    }

    /// A file of the run.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join(names::CHECKPOINTS)
    }

    /// The best checkpoint's path.
    pub fn best(&self) -> PathBuf {
        self.checkpoints().join(names::BEST)
    }

    /// Deletes all but the last `keep` checkpoints up to `step`. Those of later steps are damaged: a run that
    /// went on from an earlier one passed them over.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn prune(&self, keep: usize, step: u64) -> Result<()> {
        let mut found = checkpoint::list(&self.checkpoints())?;
        let later = found.split_off(found.partition_point(|(at, _)| *at <= step));
        for (_, path) in found.iter().rev().skip(keep).chain(&later) {
            fs::remove_file(path).map_err(Error::io(path, "delete"))?;
        }
        Ok(())
    }
}

/// Fails where `root` holds files that are not a run's, or a run that has something to keep and `overwrite` is
/// off.
fn check_contents(root: &Path, overwrite: bool) -> Result<()> {
    let shown = root.display();
    let mut empty = true;
    for entry in fs::read_dir(root).map_err(Error::io(root, "list"))? {
        let name = entry.map_err(Error::io(root, "list"))?.file_name().to_string_lossy().into_owned();
        empty = false;
        if !ALL.contains(&name.as_str()) && !files::is_unfinished(&name) {
            return Err(Error::Usage(format!(
                "--out {shown} holds {name}, which is not of a run; name another folder or move it away"
            )));
        }
    }
    if empty || overwrite || has_nothing_to_keep(root) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--out {shown} holds a run already; go on with `sae train --resume {shown}`, or start anew with --overwrite"
    )))
}

/// Whether `root` is as [`RunFolder::create`] makes it: a run that ended before its first checkpoint.
fn has_nothing_to_keep(root: &Path) -> bool {
    let beginning = [names::CONFIG, names::SPLITS, names::CHECKPOINTS, lock::NAME];
    let only = |folder: &Path, known: &[&str]| {
        fs::read_dir(folder).is_ok_and(|entries| {
            entries.flatten().all(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                known.contains(&name.as_str()) || files::is_unfinished(&name)
            })
        })
    };
    // A person's own config.toml is no run: the first line of ours says whose it is.
    let ours = fs::read_to_string(root.join(names::CONFIG)).is_ok_and(|t| t.starts_with(Config::FIRST_WORDS));
    ours && root.join(names::SPLITS).is_file()
        && only(root, &beginning)
        && only(&root.join(names::CHECKPOINTS), &[])
}

/// Renames `fresh` to `root`. What is there already goes away under its own lock, by way of the name `old`, so
/// that no process that is at work in it, or is just about to be, loses its folder.
fn put_in_place(fresh: &Path, root: &Path, old: &Path, overwrite: bool) -> Result<()> {
    RunFolder::check_free(root, overwrite)?;
    let there = fs::symlink_metadata(root);
    // An empty folder is replaced by the rename itself, which fails if it is empty no longer.
    let empty = there.as_ref().is_ok_and(fs::Metadata::is_dir)
        && fs::read_dir(root).map_err(Error::io(root, "list"))?.next().is_none();
    if there.is_err() || empty {
        return fs::rename(fresh, root).map_err(Error::io(root, "create"));
    }
    let _held = RunLock::take(root)?;
    check_contents(root, overwrite)?;
    fs::rename(root, old).map_err(Error::io(root, "replace"))?;
    fs::rename(fresh, root).map_err(|e| {
        let _ = fs::rename(old, root);
        Error::io(root, "create")(e)
    })?;
    // Only a run's own files are in it.
    let _ = fs::remove_dir_all(old);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names_in(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn pruning_keeps_the_last_checkpoints_and_drops_those_that_were_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&place.path().join("run"), false, "", "").unwrap();
        for step in [3, 5, 7, 9] {
            fs::write(run.checkpoints().join(checkpoint::name(step)), "").unwrap();
        }
        run.prune(2, 7).unwrap();
        assert_eq!(names_in(&run.checkpoints()), [checkpoint::name(5), checkpoint::name(7)]);
    }

    #[test]
    fn a_run_that_came_meanwhile_is_not_replaced() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        let live = RunFolder::create(&root, false, "one", "").unwrap();
        // As by processes that asked before the first made its folder.
        for overwrite in [false, true] {
            assert_eq!(RunFolder::create(&root, overwrite, "two", "").unwrap_err().exit_status(), 1);
        }
        drop(live);
        assert_eq!(RunFolder::create(&root, false, "two", "").unwrap_err().exit_status(), 2);
        assert_eq!(fs::read_to_string(root.join(names::CONFIG)).unwrap(), "one");
        assert_eq!(names_in(&root), [names::CHECKPOINTS, names::CONFIG, names::SPLITS]);
        drop(RunFolder::create(&root, true, "two", "").unwrap());
        assert_eq!(fs::read_to_string(root.join(names::CONFIG)).unwrap(), "two");
        assert_eq!(names_in(place.path()), ["run"]);
    }
}
