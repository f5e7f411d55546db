//! How much memory there is.

/// Bytes of memory that this process can ever have; `None` where the system does not say.
pub fn available() -> Option<u64> {
    by(&|path| std::fs::read_to_string(path).ok())
}

/// Bytes of memory that nobody uses now; `None` where the system does not say.
pub fn free() -> Option<u64> {
    free_by(&|path| std::fs::read_to_string(path).ok())
}

/// Half of the memory that is free: what rows and codes may take where nobody says how much. `u64::MAX` where the system does
/// not say.
pub fn half_of_free() -> u64 {
    free().map_or(u64::MAX, |free| free / 2)
}

/// What gives a file's text, if it is there.
type Read<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A figure of `/proc/meminfo`, in bytes.
fn meminfo(read: Read<'_>, name: &str) -> Option<u64> {
    let text = read("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

/// A limit on the memory of a group of processes.
struct Limit {
    bytes: u64,
    /// What counts against it, without files that are only cached: those are given back when memory is short.
    used: u64,
}

/// The limits of the groups that this process is in, a container's or a cluster job's: of its own one, and of those around
/// it. There is a file, or a number in it, only where there is a limit.
fn limits(read: Read<'_>) -> Vec<Limit> {
    let number = |path: &str| read(path)?.trim().parse::<u64>().ok();
    let mine = read("/proc/self/cgroup").unwrap_or_default();
    // Version 2 has one group, version 1 one for each kind of limit.
    let versions = [
        ("/sys/fs/cgroup", "", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ];
    let mut found = vec![];
    for (root, kind, limit, current) in versions {
        let path = mine.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let kinds = parts.next()?;
            let path = parts.next()?;
            kinds.split(',').any(|of| of == kind).then_some(path)
        });
        let path = path.unwrap_or("/").trim_end_matches('/');
        // From the root to the group: each `/` ends one of them.
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let mut folders: Vec<String> = ends.map(|end| format!("{root}{}", &path[..end])).collect();
        folders.dedup();
        for folder in folders {
            let Some(bytes) = number(&format!("{folder}/{limit}")) else { continue };
            let stat = read(&format!("{folder}/memory.stat")).unwrap_or_default();
            let cached = stat.lines().filter_map(|line| match line.split_once(' ')? {
                ("inactive_file" | "active_file", bytes) => bytes.trim().parse::<u64>().ok(),
                _ => None,
            });
            let used = number(&format!("{folder}/{current}")).unwrap_or(0).saturating_sub(cached.sum());
            found.push(Limit { bytes, used });
        }
    }
    found
}

/// [`free`], where `read` gives a file's text.
fn free_by(read: Read<'_>) -> Option<u64> {
    let groups = limits(read).into_iter().map(|limit| limit.bytes.saturating_sub(limit.used));
    groups.chain(meminfo(read, "MemAvailable")).min()
}

/// [`available`], where `read` gives a file's text.
fn by(read: Read<'_>) -> Option<u64> {
    let groups = limits(read).into_iter().map(|limit| limit.bytes);
    let physical = groups.chain(meminfo(read, "MemTotal")).min();
    let swap = meminfo(read, "SwapTotal").unwrap_or(0);
    let with_swap = physical.map(|n| n.saturating_add(swap));
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
    fn a_limit_on_any_group_around_the_process_counts() {
        let with = |mine: &'static str, limits: &'static [(&str, &str)]| {
            let read = move |path: &str| match path {
                "/proc/meminfo" => Some("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n".to_owned()),
                "/proc/self/cgroup" => Some(mine.to_owned()),
                _ => limits.iter().find(|(at, _)| *at == path).map(|(_, text)| (*text).to_owned()),
            };
            (by(&read), free_by(&read))
        };
        // A job of SLURM under version 2: the limit is on the job, the process is in a step of it.
        let slurm = "0::/system.slice/slurmstepd.scope/job_7/step_0/user\n";
        let job = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_7";
        let limits: &[(&str, &str)] = Box::leak(Box::new([
            (format!("{job}/memory.max").leak() as &str, "4000000\n"),
            (format!("{job}/memory.current").leak() as &str, "1000000\n"),
            (format!("{job}/step_0/memory.max").leak() as &str, "max\n"),
        ]));
        assert_eq!(with(slurm, limits), (Some(4_000_000), Some(3_000_000)));
        // Version 1, where a process has a group for each kind of limit; the innermost is not always the smallest.
        let old = "5:cpu,cpuacct:/other\n3:hugetlb,memory:/a/b\n0::/\n";
        let limits: &[(&str, &str)] = &[
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000"),
            ("/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "500"),
            ("/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "3000"),
            ("/sys/fs/cgroup/memory/other/memory.limit_in_bytes", "7"),
        ];
        assert_eq!(with(old, limits), (Some(2000), Some(1500)));
        // A path of the host that the container does not see.
        let limits: &[(&str, &str)] = &[("/sys/fs/cgroup/memory.max", "5000")];
        assert_eq!(with("0::/docker/abc\n", limits), (Some(5000), Some(5000)));
        assert_eq!(with("0::/\n", limits), (Some(5000), Some(5000)));
        assert_eq!(with("nonsense\n::\n", &[]).0, Some(9000 * 1024));
    }

    #[test]
    fn a_system_that_does_not_tell_is_no_obstacle() {
        assert_eq!(by(&|_| None), None);
        assert_eq!(by(&|_| Some("?".into())), None);
    }
}
