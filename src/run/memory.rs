//! Whether a run can fit into this machine at all. Refused is only what surely cannot: an allocation that fails
//! later ends the process without a word on what to change.

use super::Prepared;
use super::team::Team;
use crate::backend::{self, Selected};
use crate::config::RowMemory;
use crate::error::{Error, Result};
use crate::memory::{available, free};
use crate::spec::{Init, Training};
use crate::text::bytes;
use crate::train::{start_bytes, starts_apart};
use serde::Serialize;
use std::sync::Arc;

/// Bytes of memory that drawing the curves takes, after the model is written.
pub const PLOTS: u64 = 25_600_000;

/// Bytes of memory that a run takes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Main memory of the rows and their ids, of each of several processes.
    pub data: u64,
    /// Memory of the device that computes, of each of several, without what libraries need for themselves.
    pub training: u64,
}

impl Memory {
    /// Of a run that is settled.
    pub fn new(prepared: &Prepared) -> Self {
        let Prepared { data, config, device, .. } = prepared;
        let training = config.training();
        let steps = backend::memory(*device, &training, prepared.ranks, config.n_train, data.n_rows());
        let training = match device {
            // One after another: the start, the steps, the plots.
            Selected::Cpu => steps.max(start_bytes(&training, config.n_train)).max(PLOTS),
            Selected::Cuda(_) => steps,
        };
        // Of rows in files each of several ranks has its share of blocks.
        let elsewhere = if data.is_streamed() { data.bytes() - data.bytes() / prepared.ranks } else { 0 };
        Self { data: (data.memory() - elsewhere) as u64, training }
    }
}

/// Fails where training needs more main memory than there is.
///
/// # Errors
/// [`Error::Failed`] with what is needed, what there is, and the flags that help.
pub(super) fn check(prepared: &Prepared, team: &Team) -> Result<()> {
    let needed = on_node(prepared, team);
    // A start that no process must hold whole.
    let apart = Training { init: Init::UnitNorm, ..prepared.config.training() };
    match available() {
        Some(there) if needed > there => Err(Error::Failed(format!(
            "training needs about {} of memory and there are {} here; lower --latents or --batch-size{}{}",
            bytes(needed),
            bytes(there),
            if prepared.config.tied { "" } else { ", or use --tied" },
            if whole_start(prepared) > 0 && starts_apart(&apart) {
                ", or give --init unit-norm, of which each process makes its own part"
            } else {
                ""
            }
        ))),
        _ => Ok(()),
    }
}

/// Bytes of main memory that the processes on this machine take at least.
fn on_node(prepared: &Prepared, team: &Team) -> u64 {
    let of_each = host_bytes(prepared).saturating_mul(team.on_this_node() as u64);
    of_each.saturating_add(if team.is_first() { whole_start(prepared) } else { 0 })
}

/// Bytes that the first of several ranks takes for a start that is made of all latents together.
fn whole_start(prepared: &Prepared) -> u64 {
    let t = prepared.config.training();
    if prepared.ranks == 1 || starts_apart(&t) { 0 } else { start_bytes(&t, prepared.config.n_train) }
}

/// Has rows that stay in their files take less memory, where the model needs more than they leave it; true where it did.
///
/// # Errors
/// Rows that are unpacked together in more.
pub(super) fn make_room(prepared: &mut Prepared, team: &Team) -> Result<bool> {
    let needed = on_node(prepared, team);
    // Each process has its share of the blocks that one would have.
    let (here, all) = (team.on_this_node() as u64, team.count() as u64);
    let rows = prepared.data.bytes() as u64 / all * here;
    let free = free().filter(|_| prepared.data.is_streamed());
    let less = free.and_then(|free| less_for_rows(needed, rows, free)).map(|less| less / here * all);
    // Rows come in the same order on all ranks, and so in windows of one size.
    let less = Some(team.least(less.unwrap_or(u64::MAX))?).filter(|&less| less < u64::MAX);
    let Some((rows, data)) = less.zip(Arc::get_mut(&mut prepared.data)) else { return Ok(false) };
    data.narrow(rows)?;
    prepared.config.memory = Some(RowMemory::Bytes(rows));
    Ok(true)
}

/// Bytes that rows should take in place of `rows`, where a run needs `needed` with these and there are `free`; `None` where
/// it fits.
fn less_for_rows(needed: u64, rows: u64, free: u64) -> Option<u64> {
    // What is counted is most of what a run takes, not all.
    let most = free / 8 * 7;
    // Less than a quarter of the rows makes poor batches; a model that needs more is refused, or has a try.
    (needed > most).then(|| rows.saturating_sub(needed - most).max(rows / 4))
}

/// Bytes of main memory that a run takes at least.
fn host_bytes(prepared: &Prepared) -> u64 {
    let c = &prepared.config;
    let Memory { data, training } = Memory::new(prepared);
    let rest = match prepared.device {
        Selected::Cpu => training,
        // Start weights and two moments, and the average, are made here before they go to the card.
        Selected::Cuda(_) => {
            let copies = 3 + u64::from(c.spec.optimizer.ema.is_some());
            copies * 4 * c.training().n_params() / prepared.ranks as u64
        }
    };
    data.saturating_add(rest)
}

#[cfg(test)]
mod tests {
    use super::less_for_rows;

    #[test]
    fn rows_make_room_for_a_model_down_to_a_quarter() {
        assert_eq!(less_for_rows(700, 400, 800), None);
        assert_eq!(less_for_rows(750, 400, 800), Some(350));
        assert_eq!(less_for_rows(980, 400, 800), Some(120));
        assert_eq!(less_for_rows(1200, 400, 800), Some(100));
    }
}
