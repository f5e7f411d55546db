//! The run folder as a training's store.

use super::checkpoint::{self, RunId};
use super::folder::RunFolder;
use super::recover;
use super::team::Team;
use crate::backend::Backend;
use crate::config::Config;
use crate::error::Result;
use crate::files;
use crate::model::{Fill, TrainState, make_unit_rows};
use crate::train::{Progress, Store};

/// Keeps checkpoints in a run folder, the last few and the best one.
pub(super) struct FolderStore<'a> {
    folder: &'a RunFolder,
    team: &'a Team,
    id: RunId,
    keep: usize,
    d_in: usize,
    /// Of all ranks.
    latents: usize,
    /// Name of the average whose rows are kept at length 1.
    unit_average: Option<&'static str>,
}

impl<'a> FolderStore<'a> {
    pub(super) fn new(folder: &'a RunFolder, config: &Config, id: RunId, team: &'a Team) -> Self {
        let (keep, d_in, latents) = (config.keep_checkpoints, config.d_in, config.n_latents);
        Self { folder, team, id, keep, d_in, latents, unit_average: config.unit_average() }
    }

    /// Makes up for a run that was killed between a save and its link: it goes on without the link. Killed right after, it
    /// has one checkpoint too many, which the last save of a run would leave.
    pub(super) fn tidy(&self, progress: &Progress) -> Result<()> {
        if !self.team.is_first() {
            return Ok(());
        }
        self.link_best(progress)?;
        if progress.step > 0 {
            self.folder.prune(self.keep, progress.step)?;
        }
        Ok(())
    }

    /// Gives the checkpoint of the best step its second name.
    fn link_best(&self, progress: &Progress) -> Result<()> {
        match progress.best {
            Some((best, _)) if best == progress.step => {
                let from = self.folder.checkpoints().join(checkpoint::name(best));
                files::link_whole(&from, &self.folder.best())
            }
            _ => Ok(()),
        }
    }
}

impl Store for FolderStore<'_> {
    fn save(&mut self, state: &TrainState, progress: &Progress) -> Result<()> {
        let path = self.folder.checkpoints().join(checkpoint::name(progress.step));
        self.team.save(&path, state, self.latents, &self.id, progress)?;
        if self.team.is_first() {
            self.link_best(progress)?;
            self.folder.prune(self.keep, progress.step)?;
        }
        // Whoever goes on finds it in place.
        self.team.meet()
    }

    fn restore_best(&mut self, backend: &mut dyn Backend) -> Result<u64> {
        let set = &mut |step: u64, read: &mut Fill<'_>| {
            backend.set_state(step, &mut |name, out| {
                read(name, out)?;
                if self.unit_average == Some(name)
                    && let Ok(rows) = bytemuck::try_cast_slice_mut(out)
                {
                    // Version 0.1.0 left them shorter.
                    make_unit_rows(rows, self.d_in);
                }
                Ok(())
            })
        };
        let best = self.team.read(&self.folder.best(), self.latents, set);
        best.map(|best| best.progress().step)
            .map_err(|e| recover::lost(self.folder, "the best model is lost", &e))
    }

    fn kept(&self) -> String {
        match checkpoint::list(&self.folder.checkpoints()).ok().and_then(|all| all.last().cloned()) {
            Some((step, path)) => format!("the checkpoint of step {step} is kept ({})", path.display()),
            None => "there was no checkpoint yet".into(),
        }
    }
}
