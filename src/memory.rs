//! How much memory there is.

/// Bytes of memory that this process can ever have; `None` where the system does not say.
pub fn available() -> Option<u64> {
    by(&|path| std::fs::read_to_string(path).ok())
}

/// [`available`], where `read` gives a file's text.
fn by(read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
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
        by(&|path| match path {
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
        assert_eq!(by(&|_| None), None);
        assert_eq!(by(&|_| Some("?".into())), None);
    }
}
