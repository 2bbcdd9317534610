//! How much memory this process may still take: what the system has left, within its control group's limit.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Bytes that may be taken without swapping; `None` if the system does not say.
pub(super) fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:"));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group_available(Path::new("/sys/fs/cgroup"), &groups);
    match (system.map(|kib| kib.saturating_mul(1024)), group) {
        (Some(system), Some(group)) => Some(system.min(group)),
        (system, group) => system.or(group),
    }
}

/// The number after `name` in lines of names and numbers.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The least that any group from this process' own up to the root leaves (control groups version 2, and version 1's
/// memory controller).
fn group_available(root: &Path, groups: &str) -> Option<u64> {
    let mut least = None::<u64>;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, files) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current"]),
            list if list.split(',').any(|name| name == "memory") => {
                (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes"])
            }
            _ => continue,
        };
        // A process in a namespace may see a path that does not exist below its root; the root itself always counts.
        let mut at: PathBuf = root.join(path.trim_start_matches('/'));
        loop {
            least = least.into_iter().chain(left_in(&at, files)).min();
            if at == root || !at.pop() {
                break;
            }
        }
    }
    least
}

/// What one group leaves. Cached file pages count as free, as the system drops them first.
fn left_in(group: &Path, [limit, usage]: [&str; 2]) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(limit)?, number(usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = field(&stat, "inactive_file").unwrap_or(0) + field(&stat, "active_file").unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(cached)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_system_says_something_sensible() {
        let bytes = available().unwrap();
        assert!((1 << 20..1 << 50).contains(&bytes), "{bytes}");
    }

    #[test]
    fn the_tightest_group_counts_and_caches_are_free() {
        let root = std::env::temp_dir().join(format!("rustai-memory-{}", std::process::id()));
        let inner = root.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.join("a/memory.max"), "1000\n").unwrap();
        fs::write(root.join("a/memory.current"), "900\n").unwrap();
        fs::write(root.join("a/memory.stat"), "anon 300\ninactive_file 400\nactive_file 200\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(inner.join("memory.current"), "900\n").unwrap();
        let left = group_available(&root, "0::/a/b\n");
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(left, Some(700));
        assert_eq!(group_available(&root, "0::/\n"), None);
        assert_eq!(field("MemTotal: 5 kB\nMemAvailable:   42 kB\n", "MemAvailable:"), Some(42));
    }
}
