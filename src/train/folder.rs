//! The run folder: made in one piece, never mixed with files of others.

use crate::error::{Error, Result};
use crate::files;
use crate::train::checkpoint;
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
    pub const MSE_PNG: &str = "relaxed_topk_sae_mse.png";
    /// Curve of the absolute error.
    pub const MAE_PNG: &str = "relaxed_topk_sae_mae.png";
    /// Folder of checkpoints.
    pub const CHECKPOINTS: &str = "checkpoints";
    /// The best checkpoint by validation FVU.
    pub const BEST: &str = "best.safetensors";
}

const ALL: [&str; 8] = [
    names::CONFIG,
    names::SPLITS,
    names::METRICS,
    names::MODEL,
    names::SUMMARY,
    names::MSE_PNG,
    names::MAE_PNG,
    names::CHECKPOINTS,
];

/// Paths of a run.
#[derive(Debug, Clone)]
pub struct RunFolder {
    root: PathBuf,
}

impl RunFolder {
    /// Checks that a run may be made at `root`; to be asked before hours of work, not after.
    ///
    /// # Errors
    /// [`Error::Usage`] if a run is there and `overwrite` is off, or if files are there that are not a run's.
    pub fn check_free(root: &Path, overwrite: bool) -> Result<()> {
        if !root.exists() {
            return Ok(());
        }
        let shown = root.display();
        if !root.is_dir() {
            return Err(Error::Usage(format!(
                "--out {shown} is a file; name a folder that does not exist yet"
            )));
        }
        let mut empty = true;
        for entry in fs::read_dir(root).map_err(Error::io(root, "list"))? {
            let name = entry.map_err(Error::io(root, "list"))?.file_name().to_string_lossy().into_owned();
            empty = false;
            if !ALL.contains(&name.as_str()) && !name.ends_with(".tmp") && !name.starts_with(".tmp") {
                return Err(Error::Usage(format!(
                    "--out {shown} holds {name}, which is not of a run; name another folder or move it away"
                )));
            }
        }
        if empty || overwrite {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "--out {shown} holds a run already; go on with `sae train --resume {shown}`, or start anew with --overwrite"
        )))
    }

    /// Makes the folder with its configuration and split in it, in one rename, so that a run killed at any
    /// moment can be resumed as soon as the folder is there.
    ///
    /// # Errors
    /// As the disk gives them; nothing is left behind.
    pub fn create(root: &Path, config: &str, splits: &str) -> Result<Self> {
        let name = root
            .file_name()
            .ok_or_else(|| Error::Usage(format!("--out {}: no folder name", root.display())))?;
        let parent = root.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
        let sibling = |kind: &str| {
            parent.join(format!(".{}.{kind}.{}.tmp", name.to_string_lossy(), std::process::id()))
        };
        let (fresh, old) = (sibling("new"), sibling("old"));
        let made = fs::create_dir(&fresh)
            .and_then(|()| fs::create_dir(fresh.join(names::CHECKPOINTS)))
            .map_err(Error::io(root, "create"))
            .and_then(|()| files::write_whole(&fresh.join(names::CONFIG), config.as_bytes()))
            .and_then(|()| files::write_whole(&fresh.join(names::SPLITS), splits.as_bytes()))
            .and_then(|()| {
                if root.exists() {
                    fs::rename(root, &old).map_err(Error::io(root, "replace"))?;
                }
                fs::rename(&fresh, root).map_err(Error::io(root, "create"))
            });
        if made.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        made?;
        // `check_free` made sure that only a run's own files were in it.
        let _ = fs::remove_dir_all(&old);
        Ok(Self { root: root.to_owned() })
    }

    /// An existing run, freed of what a killed process left unfinished.
    ///
    /// # Errors
    /// [`Error::Usage`] if `root` is no run folder.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join(names::CONFIG).is_file() {
            return Err(Error::Usage(format!(
                "{} is not a run folder (it has no {}); start a run with `sae train DATA --out {}`",
                root.display(),
                names::CONFIG,
                root.display()
            )));
        }
        let folder = Self { root: root.to_owned() };
        let checkpoints = folder.checkpoints();
        fs::create_dir_all(&checkpoints).map_err(Error::io(&checkpoints, "create"))?;
        files::remove_unfinished(root)?;
        files::remove_unfinished(&checkpoints)?;
        Ok(folder)
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

    /// Deletes all but the last `keep` checkpoints by step.
    ///
    /// # Errors
    /// As the disk gives them.
    pub fn prune(&self, keep: usize) -> Result<()> {
        let found = checkpoint::list(&self.checkpoints())?;
        for (_, path) in found.iter().rev().skip(keep) {
            fs::remove_file(path).map_err(Error::io(path, "delete"))?;
        }
        Ok(())
    }
}
