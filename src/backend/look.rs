//! What tests and benchmarks look at: nothing that trains or evaluates needs it.

use super::{Backend, StepPlan, StepStats};
use crate::error::{Error, Result};
use crate::model::Params;

/// Everything of one forward and backward pass, for tests and for a look inside; no update is made.
#[derive(Debug, Clone)]
pub struct Pass {
    /// Loss and its parts.
    pub stats: StepStats,
    /// (N, M) scores.
    pub pre_acts: Vec<f32>,
    /// (N, M) code.
    pub code: Vec<f32>,
    /// (N, D) reconstruction in the data's units.
    pub recon: Vec<f32>,
    /// (N, M) gradient of the scores.
    pub grad_pre_acts: Vec<f32>,
    /// (N, M) gradient of the code; `None` where a backend never forms all of it.
    pub grad_code: Option<Vec<f32>>,
    /// Gradient of every parameter, before clipping.
    pub grads: Params,
}

/// A backend laid open.
pub trait Look: Backend {
    /// The pass that [`Backend::step`] would make, without its update.
    ///
    /// # Errors
    /// As for [`Backend::step`].
    fn inspect(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<Pass>;

    /// A step and its statistics at once, where nothing else is queued: for tests and measurements.
    ///
    /// # Errors
    /// As for [`Backend::step`]; other steps were not collected before.
    fn step_now(&mut self, rows: &[u32], plan: &StepPlan<'_>) -> Result<StepStats> {
        self.step(rows, plan)?;
        match self.collect()?.as_slice() {
            [stats] => Ok(*stats),
            all => {
                Err(Error::Failed(format!("{} steps were waiting, not one; please report this", all.len())))
            }
        }
    }
}
