//! How much memory there is.

/// Bytes of memory that this process can ever have; `None` where the system does not say.
pub fn available() -> Option<u64> {
    by(&|path| std::fs::read_to_string(path).ok())
}

/// Bytes of memory that nobody uses now; `None` where the system does not say.
pub fn free() -> Option<u64> {
    free_by(&|path| std::fs::read_to_string(path).ok())
}

/// [`free`], where `read` gives a file's text.
fn free_by(read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let system = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let system = system.map(|kib| kib.saturating_mul(1024));
    // A container's limit less what counts against it; files that are only cached are given back when memory is short.
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let group = [
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
            "/sys/fs/cgroup/memory/memory.stat",
        ),
    ]
    .into_iter()
    .find_map(|(limit, used, stat)| {
        let (limit, used) = (number(limit)?, number(used)?);
        let stat = read(stat).unwrap_or_default();
        let cached = stat.lines().filter_map(|line| match line.split_once(' ')? {
            ("inactive_file" | "active_file", bytes) => bytes.trim().parse::<u64>().ok(),
            _ => None,
        });
        Some(limit.saturating_sub(used.saturating_sub(cached.sum())))
    });
    [system, group].into_iter().flatten().min()
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
    fn what_is_free_is_what_the_system_or_the_container_has_left() {
        let free = |limit: &str, used: &str| {
            free_by(&|path| match path {
                "/proc/meminfo" => Some("MemTotal: 9000 kB\nMemAvailable:  8000 kB\n".into()),
                "/sys/fs/cgroup/memory.max" => Some(limit.into()),
                "/sys/fs/cgroup/memory.current" => Some(used.into()),
                "/sys/fs/cgroup/memory.stat" => Some("anon 5\nactive_file 300\ninactive_file 200\n".into()),
                _ => None,
            })
        };
        assert_eq!(free("max", "0"), Some(8000 * 1024));
        assert_eq!(free("2000", "1000"), Some(1500));
        assert_eq!(free("2000", "9000"), Some(0));
        assert_eq!(free_by(&|_| None), None);
    }

    #[test]
    fn a_system_that_does_not_tell_is_no_obstacle() {
        assert_eq!(by(&|_| None), None);
        assert_eq!(by(&|_| Some("?".into())), None);
    }
}
