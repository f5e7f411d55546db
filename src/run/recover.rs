//! What a run that goes on is compared with, and which checkpoint it goes on from.

use super::Loaded;
use super::checkpoint::{self, RunId, Stored};
use super::folder::{RunFolder, names};
use super::team::Team;
use crate::console;
use crate::error::{Error, Result};
use crate::files;
use crate::model::TrainState;
use crate::train::Progress;
use std::path::PathBuf;

/// All checkpoints, the newest first and the best one last: it is as old as any, or a second name of one of them.
fn candidates(folder: &RunFolder) -> Result<Vec<PathBuf>> {
    let steps = checkpoint::list(&folder.checkpoints())?;
    let mut all: Vec<PathBuf> = steps.into_iter().rev().map(|(_, path)| path).collect();
    all.extend(Some(folder.best()).filter(|best| best.is_file()));
    Ok(all)
}

/// Data and split must be those that the run was started with: a resumed run may not mix them. `data` is the
/// fingerprint of what was loaded.
pub(super) fn same_data(folder: &RunFolder, loaded: &Loaded, data: u64) -> Result<()> {
    let stored = candidates(folder)?.iter().find_map(|path| Some(Stored::open(path).ok()?.run().data));
    if stored.is_some_and(|stored| stored != data) {
        return Err(Error::Usage(format!(
            "the data of {} are not those the run was started with (ids or values differ); put them back, or train anew",
            folder.root().display()
        )));
    }
    let path = folder.path(names::SPLITS);
    let splits = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    if !loaded.split.is_table(&splits, loaded.data.index()) {
        return Err(Error::Usage(format!(
            "{} is not the split that data and seed give: one of them was changed since the run was started; put it back to resume",
            path.display()
        )));
    }
    Ok(())
}

/// The newest checkpoint that is whole, the best one where no other is; `None` if the run was stopped before its
/// first. Damaged ones are skipped with a warning, but if all are damaged that is the error: starting over is
/// not for us to decide. Every rank reads its part of the same one, and passes over what any of them finds damaged; `zeros` is a
/// state of its part of `latents`.
pub(super) fn last_good_checkpoint(
    folder: &RunFolder,
    team: &Team,
    latents: usize,
    zeros: impl FnOnce() -> TrainState,
    quiet: bool,
) -> Result<Option<(TrainState, RunId, Progress)>> {
    let all = team.of_first(|| candidates(folder))?;
    if all.is_empty() {
        return Ok(None);
    }
    let (mut damage, mut state) = (None, zeros());
    for path in all {
        match team.load_into(&path, latents, &mut state) {
            Ok((id, progress)) => {
                let step = progress.step;
                if damage.is_some() && !quiet {
                    console::warn(format_args!("continuing from step {step}, with {}", path.display()));
                }
                if path == folder.best() && team.is_first() {
                    // The checkpoint that it is the second name of is gone or damaged.
                    files::link_whole(&path, &folder.checkpoints().join(checkpoint::name(step)))?;
                }
                return Ok(Some((state, id, progress)));
            }
            Err(error @ Error::Model { .. }) => {
                if !quiet {
                    console::warn(format_args!("{error}; skipped"));
                }
                damage.get_or_insert(error);
            }
            Err(other) => return Err(other),
        }
    }
    damage.map_or(Ok(None), |error| Err(lost(folder, "no checkpoint is whole", &error)))
}

/// The error for what no checkpoint can give back.
pub(super) fn lost(folder: &RunFolder, what: &str, error: &Error) -> Error {
    let (root, config) = (folder.root().display(), folder.path(names::CONFIG));
    Error::Failed(format!(
        "{what}: {error}; restore a checkpoint from a copy, or train anew with `sae train --config {} --out {root} --overwrite`",
        config.display()
    ))
}
