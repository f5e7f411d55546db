//! Whether a run can fit into this machine at all. Refused is only what surely cannot: an allocation that fails
//! later ends the process without a word on what to change.

use super::Prepared;
use crate::backend::{self, Selected};
use crate::error::{Error, Result};
use crate::text::bytes;
use crate::train::start_bytes;
use serde::Serialize;

/// Bytes of memory that drawing the curves takes, after the model is written.
pub const PLOTS: u64 = 25_600_000;

/// Bytes of memory that a run takes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Main memory of the rows and their ids.
    pub data: u64,
    /// Memory of the device that computes, without what libraries need for themselves.
    pub training: u64,
}

impl Memory {
    /// Of a run that is settled.
    pub fn new(prepared: &Prepared) -> Self {
        let Prepared { data, config, device, .. } = prepared;
        let training = config.training();
        let steps = backend::memory(*device, &training, config.n_train, data.n_rows());
        let training = match device {
            // One after another: the start, the steps, the plots.
            Selected::Cpu => steps.max(start_bytes(&training, config.n_train)).max(PLOTS),
            Selected::Cuda(_) => steps,
        };
        Self { data: data.memory() as u64, training }
    }
}

/// Fails where training needs more main memory than there is.
///
/// # Errors
/// [`Error::Failed`] with what is needed, what there is, and the flags that help.
pub(super) fn check(prepared: &Prepared) -> Result<()> {
    let needed = host_bytes(prepared);
    match available(&|path| std::fs::read_to_string(path).ok()) {
        Some(there) if needed > there => Err(Error::Failed(format!(
            "training needs about {} of memory and there are {} here; lower --latents or --batch-size{}",
            bytes(needed),
            bytes(there),
            if prepared.config.tied { "" } else { ", or use --tied" }
        ))),
        _ => Ok(()),
    }
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
            4 * copies * c.training().n_params()
        }
    };
    data.saturating_add(rest)
}

/// Bytes of memory that this process can ever have; `None` where the system does not say. `read` gives a
/// file's text.
fn available(read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let kib = |name: &str| -> Option<u64> {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    // A container's limit, of either version; there is a file, or a number, only where there is a limit.
    let groups = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let group = groups.iter().find_map(|path| read(path)?.trim().parse::<u64>().ok());
    let memory = kib("MemTotal").map(|n| n.saturating_mul(1024));
    let physical = [memory, group].into_iter().flatten().min();
    let with_swap = physical.map(|n| n.saturating_add(kib("SwapTotal").unwrap_or(0).saturating_mul(1024)));
    let limits = read("/proc/self/limits").unwrap_or_default();
    let space = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let space = space.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    [with_swap, space].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMINFO: &str = "MemTotal:       16000 kB\nMemFree:   1 kB\nSwapTotal:        1000 kB\n";

    fn with(group: Option<&str>, space: &str) -> Option<u64> {
        available(&|path| match path {
            "/proc/meminfo" => Some(MEMINFO.into()),
            "/sys/fs/cgroup/memory.max" => group.map(str::to_owned),
            "/proc/self/limits" => {
                Some(format!("Limit  Soft  Hard  Units\nMax address space  {space}  bytes\n"))
            }
            _ => None,
        })
    }

    #[test]
    fn the_smallest_limit_counts_and_swap_is_memory() {
        assert_eq!(with(None, "unlimited  unlimited"), Some(17_000 * 1024));
        assert_eq!(with(Some("max\n"), "unlimited  unlimited"), Some(17_000 * 1024));
        assert_eq!(with(Some("2048000\n"), "unlimited  unlimited"), Some(3_072_000));
        assert_eq!(with(Some("2048000\n"), "5000  unlimited"), Some(5000));
    }

    #[test]
    fn a_system_that_does_not_tell_is_no_obstacle() {
        assert_eq!(available(&|_| None), None);
        assert_eq!(available(&|_| Some("?".into())), None);
    }
}
