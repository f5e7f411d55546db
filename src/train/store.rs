//! Where a training keeps its states.

use super::progress::Progress;
use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::model::TrainState;

/// Keeps states of a training, so that it can go on, and the best one, which becomes the model where it stops early.
pub trait Store {
    /// Keeps a state. It is the best so far where `progress.best` names its step.
    ///
    /// # Errors
    /// As the place it is kept in gives them.
    fn save(&mut self, state: &TrainState, progress: &Progress) -> Result<()>;

    /// Puts the best state into `backend`; its step.
    ///
    /// # Errors
    /// Where there is none, or it is damaged; as [`Backend::set_state`].
    fn restore_best(&mut self, backend: &mut dyn Backend) -> Result<u64>;

    /// Which state is kept, in words, for an error.
    fn kept(&self) -> String;
}

/// Keeps the best state in memory, where it is needed, and nothing else.
#[derive(Debug, Default)]
pub struct BestInMemory {
    best: Option<TrainState>,
}

impl Store for BestInMemory {
    fn save(&mut self, state: &TrainState, progress: &Progress) -> Result<()> {
        if progress.best.is_some_and(|(step, _)| step == progress.step) {
            self.best = Some(state.clone());
        }
        Ok(())
    }

    fn restore_best(&mut self, backend: &mut dyn Backend) -> Result<u64> {
        let none = || Error::Failed("no best state was kept; please report this".into());
        let best = self.best.as_ref().ok_or_else(none)?;
        backend.set_state(best.step, &mut |name, out| best.copy_to(name, out))?;
        Ok(best.step)
    }

    fn kept(&self) -> String {
        match &self.best {
            Some(best) => format!("the best state, of step {}, is kept", best.step),
            None => "there was no checkpoint yet".into(),
        }
    }
}
