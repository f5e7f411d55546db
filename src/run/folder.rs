//! The run folder: made in one piece, never mixed with files of others.

use super::checkpoint;
use super::lock::{self, RunLock};
use crate::config::{Config, Options};
use crate::error::{Error, Result};
use crate::files;
use std::fs;
use std::path::{Path, PathBuf};

/// Names in a run folder.
pub mod names {
    /// Resolved options.
    pub const CONFIG: &str = "config.toml";
    /// Id and split.
    pub const SPLITS: &str = "splits.tsv";
    /// What the first pass over rows that stay in their files found.
    pub const ROWS: &str = "rows.json";
    /// One line per evaluation.
    pub const METRICS: &str = "metrics.csv";
    /// The same for TensorBoard, which reads files of such names.
    pub const EVENTS: &str = "events.out.tfevents.topk-sae";
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

/// What may lie in a run folder itself.
const ALL: [&str; 16] = [
    lock::NAME,
    names::CONFIG,
    names::SPLITS,
    names::ROWS,
    names::METRICS,
    names::EVENTS,
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

/// The run that a path belongs to, by its name in the run's folder; the file itself need not exist. `path` has no
/// links in it.
pub fn run_that_owns(path: &Path) -> Option<PathBuf> {
    let folder = path.parent()?;
    let known = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| ALL.contains(&name));
    if known && is_run(folder) {
        return Some(folder.to_owned());
    }
    // All that is below `checkpoints` goes away with the run.
    let checkpoints = path.ancestors().skip(1).filter(|above| above.ends_with(names::CHECKPOINTS));
    checkpoints.filter_map(Path::parent).find(|run| is_run(run)).map(Path::to_owned)
}

/// The files that a run keeps and reads, without its report; those that exist and those that do not.
pub fn files_of(run: &Path) -> Vec<PathBuf> {
    let own = ALL.iter().filter(|name| ![names::REPORT, names::CHECKPOINTS].contains(name));
    let entries = fs::read_dir(run.join(names::CHECKPOINTS)).into_iter().flatten().flatten();
    // Without its data a run cannot go on.
    let data = Options::of_run(&run.join(names::CONFIG)).ok().and_then(|options| options.data);
    let all = own.map(|name| run.join(name)).chain(entries.map(|entry| entry.path()));
    all.chain(data.unwrap_or_default()).collect()
}

/// Whether a folder is a run's, also where a part of the run is gone.
fn is_run(folder: &Path) -> bool {
    const TELLING: [&str; 4] = [names::SPLITS, names::METRICS, names::SUMMARY, names::CHECKPOINTS];
    has_own_config(folder) || TELLING.iter().filter(|name| folder.join(name).exists()).count() > 1
}

/// A person's own config.toml is no run: the first line of ours says whose it is.
fn has_own_config(folder: &Path) -> bool {
    fs::read(folder.join(names::CONFIG)).is_ok_and(|text| text.starts_with(Config::FIRST_WORDS.as_bytes()))
}

/// Whether a file in a run folder was left unfinished by a process that was killed. Version 0.1.0 named such files
/// after the file that they were to become.
fn is_leftover(name: &str) -> bool {
    let becomes = |name: &str| ALL.contains(&name) || is_checkpoint(name);
    files::is_unfinished(name) || name.strip_suffix(".tmp").is_some_and(becomes)
}

fn is_checkpoint(name: &str) -> bool {
    name == names::BEST || checkpoint::step_of(name).is_some()
}

/// Names in a folder.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(Error::io(folder, "list"))
    };
    fs::read_dir(folder).map_err(Error::io(folder, "list"))?.map(name).collect()
}

/// Deletes files that a killed process left unfinished.
fn remove_leftovers(folder: &Path) -> Result<()> {
    for name in entries(folder)?.iter().filter(|name| is_leftover(name)) {
        let _ = fs::remove_file(folder.join(name));
    }
    Ok(())
}

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
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        // Deleted with what is left in it: an old run, or a new one that failed.
        let aside = files::temporary_folder(parent).map_err(Error::io(root, "create"))?;
        let fresh = aside.path().join("new");
        let made = fs::create_dir(&fresh)
            .and_then(|()| fs::create_dir(fresh.join(names::CHECKPOINTS)))
            .map_err(Error::io(root, "create"))
            .and_then(|()| files::write_whole(&fresh.join(names::CONFIG), config.as_bytes()))
            .and_then(|()| files::write_whole(&fresh.join(names::SPLITS), splits.as_bytes()))
            .and_then(|()| RunLock::take(&fresh))
            .and_then(|lock| put_in_place(&fresh, root, &aside.path().join("old"), overwrite).map(|()| lock));
        let lock = made.map_err(|e| e.renamed(&fresh, root))?.map(|lock| lock.moved_to(root));
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
        remove_leftovers(root)?;
        remove_leftovers(&checkpoints)?;
        Ok(folder)
    }

    /// The folder of a run that another process has made or opened, and keeps: one of those that train it together.
    pub(super) fn of_another(root: &Path) -> Self {
        Self { root: root.to_owned(), lock: None }
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
    let own = entries(root)?;
    let checkpoints = root.join(names::CHECKPOINTS);
    let below = if checkpoints.is_dir() { entries(&checkpoints)? } else { vec![] };
    let foreign = own.iter().find(|name| !ALL.contains(&name.as_str()) && !is_leftover(name)).cloned();
    let foreign_below = || below.iter().find(|name| !is_checkpoint(name) && !is_leftover(name));
    let foreign = foreign.or_else(|| foreign_below().map(|name| format!("{}/{name}", names::CHECKPOINTS)));
    if let Some(name) = foreign {
        return Err(Error::Usage(format!(
            "--out {shown} holds {name}, which is not part of a run; name another folder or move it away"
        )));
    }
    if own.is_empty() || overwrite || has_nothing_to_keep(root) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--out {shown} holds a run already; continue it with `sae train --resume {shown}`, or start anew with --overwrite"
    )))
}

/// Whether `root` is as [`RunFolder::create`] makes it: a run that ended before its first checkpoint.
fn has_nothing_to_keep(root: &Path) -> bool {
    let beginning = [names::CONFIG, names::SPLITS, names::ROWS, names::CHECKPOINTS, lock::NAME];
    let only = |folder: &Path, known: &[&str]| {
        entries(folder).is_ok_and(|all| all.iter().all(|n| known.contains(&n.as_str()) || is_leftover(n)))
    };
    has_own_config(root)
        && root.join(names::SPLITS).is_file()
        && only(root, &beginning)
        && only(&root.join(names::CHECKPOINTS), &[])
}

/// Renames `fresh` to `root`. What is there already goes away under its own lock, by way of the name `old`, so
/// that no process that is at work in it, or is just about to be, loses its folder. The caller deletes it there.
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
    })
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
    fn resuming_deletes_what_a_killed_process_left_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("run");
        let run = RunFolder::create(&root, false, "", "").unwrap();
        let mine = ["notes.tmp", ".tmpnotes", "mine.safetensors.tmp"];
        // The last three are as version 0.1.0 and safetensors name them.
        let left = [".sae-Ab3xYz12.tmp", ".tmpAb3xYz", "model.safetensors.tmp", "best.safetensors.tmp"];
        for folder in [&root, &run.checkpoints()] {
            for name in mine.iter().chain(&left) {
                fs::write(folder.join(name), "").unwrap();
            }
        }
        fs::write(run.checkpoints().join(format!("{}.tmp", checkpoint::name(7))), "").unwrap();
        drop(run);
        let run = RunFolder::open(&root).unwrap();
        let mut mine = mine.map(str::to_owned);
        mine.sort();
        assert_eq!(names_in(&run.checkpoints()), mine);
        drop(run);
        let others = [names::CHECKPOINTS, names::CONFIG, names::SPLITS];
        let rest: Vec<String> =
            names_in(&root).into_iter().filter(|n| !others.contains(&n.as_str())).collect();
        assert_eq!(rest, mine);
    }

    #[test]
    fn a_run_is_known_by_what_is_left_of_it() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().canonicalize().unwrap().join("run");
        drop(RunFolder::create(&root, false, Config::FIRST_WORDS, "").unwrap());
        let owner = |name: &str| run_that_owns(&root.join(name));
        for name in [names::MODEL, names::CHECKPOINTS, "checkpoints/best.safetensors", "checkpoints/a/b"] {
            assert_eq!(owner(name).as_deref(), Some(&*root), "{name}");
        }
        assert_eq!((owner("codes.h5"), owner("a/model.safetensors")), (None, None));
        fs::remove_file(root.join(names::CONFIG)).unwrap();
        assert_eq!(owner(names::MODEL).as_deref(), Some(&*root), "splits and checkpoints are left");
        fs::remove_file(root.join(names::SPLITS)).unwrap();
        assert_eq!(owner(names::MODEL), None);
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
