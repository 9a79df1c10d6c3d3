//! How much memory the process may still take.

use std::path::{Path, PathBuf};

/// Bytes that can still be allocated: what the kernel calls available, or what is left of the tightest control group
/// (v2 or v1) that the process lies in, whichever is less. `None` where neither is told, as outside of Linux.
pub(in crate::device) fn available_bytes() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    machine_bytes().into_iter().chain(group_bytes(&groups, Path::new("/sys/fs/cgroup"))).min()
}

fn machine_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    Some(field(&text, "MemAvailable:")? * 1024)
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What is left of every group that `groups`, the text of `/proc/self/cgroup`, names, and of the groups around it.
fn group_bytes(groups: &str, root: &Path) -> Vec<u64> {
    let mut left = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let files = if controllers.is_empty() {
            GroupFiles { root: root.to_owned(), limit: "memory.max", usage: "memory.current", idle: "inactive_file" }
        } else if controllers.split(',').any(|controller| controller == "memory") {
            GroupFiles {
                root: root.join("memory"),
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                idle: "total_inactive_file",
            }
        } else {
            continue;
        };
        // Inside of a container the path may be that of the host, which is not mounted: its root then is ours.
        let path = Path::new(path.trim_start_matches('/'));
        left.extend(path.ancestors().filter_map(|group| files.left(group)));
    }
    left
}

struct GroupFiles {
    root: PathBuf,
    limit: &'static str,
    usage: &'static str,
    /// Field of `memory.stat` with the page cache that is given up before an allocation fails.
    idle: &'static str,
}

impl GroupFiles {
    fn left(&self, group: &Path) -> Option<u64> {
        let group = self.root.join(group);
        let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
        // No limit reads `max` in v2.
        let limit: u64 = read(self.limit)?.trim().parse().ok()?;
        let usage: u64 = read(self.usage)?.trim().parse().ok()?;
        let idle = read("memory.stat").and_then(|stat| field(&stat, &format!("{} ", self.idle))).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(idle)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with the files of a control group.
    fn group(root: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(root).unwrap();
        for (name, text) in files {
            std::fs::write(root.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_group_counts_with_its_idle_page_cache_as_free() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        group(&root.join("outer/inner"), &[("memory.max", "max\n"), ("memory.current", "5\n")]);
        group(
            &root.join("outer"),
            &[("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 1\ninactive_file 200\n")],
        );
        group(&root.join("memory/old"), &[("memory.limit_in_bytes", "900\n"), ("memory.usage_in_bytes", "100\n")]);
        let left = group_bytes("12:cpu:/x\n4:memory,hugetlb:/old\n0::/outer/inner\n", root);
        assert_eq!(left, [800, 500]);
    }
}
