//! How much memory this process may use: the machine's, or its control group's if that is less.
//!
//! Owns: reading `/proc` and `/sys/fs/cgroup`, versions 1 and 2. Never: fails. What cannot be read
//! limits nothing; where nothing can be read there is no answer.

use std::path::{Path, PathBuf};

/// The kernel's files, narrow enough to be given by a test.
pub trait KernelFiles {
    /// The text of a file; `None` if it is not there or does not read.
    fn read(&self, path: &Path) -> Option<String>;
}

/// The kernel's own.
#[derive(Debug, Default, Clone, Copy)]
pub struct RealKernel;

#[expect(clippy::disallowed_methods, reason = "these files have no length and are no disk's")]
impl KernelFiles for RealKernel {
    fn read(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(path).ok()
    }
}

/// Bytes that this process may use: the smallest of the machine's memory and the limits of its
/// control group and of the groups around it.
pub fn usable_bytes(files: &dyn KernelFiles) -> Option<u64> {
    let groups = files.read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().flat_map(|line| group_limits(files, line));
    machine(files).into_iter().chain(groups).min()
}

/// `MemTotal` of `/proc/meminfo`, which counts in KiB.
fn machine(files: &dyn KernelFiles) -> Option<u64> {
    let text = files.read(Path::new("/proc/meminfo"))?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// Limits along the path of one line of `/proc/self/cgroup`: `0::/path` (version 2) or
/// `7:memory:/path` (version 1). Inside a container the path may be one of the host's that is not
/// mounted here; the group is then the root of what is.
fn group_limits(files: &dyn KernelFiles, line: &str) -> Vec<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, file) = if controllers.is_empty() {
        ("/sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|c| c == "memory") {
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return Vec::new();
    };
    let mut group = PathBuf::from(path.trim_start_matches('/'));
    let mut limits = Vec::new();
    loop {
        // `max` of version 2 is no number and limits nothing; version 1 says a huge one.
        let text = files.read(&Path::new(root).join(&group).join(file));
        limits.extend(text.and_then(|t| t.trim().parse::<u64>().ok()));
        if !group.pop() {
            return limits;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    struct Fixture(BTreeMap<&'static str, &'static str>);

    impl KernelFiles for Fixture {
        fn read(&self, path: &Path) -> Option<String> {
            self.0.get(path.to_str()?).map(|text| (*text).to_owned())
        }
    }

    #[track_caller]
    fn check(files: &[(&'static str, &'static str)], expected: Option<u64>) {
        assert_eq!(usable_bytes(&Fixture(files.iter().copied().collect())), expected);
    }

    const MACHINE: (&str, &str) =
        ("/proc/meminfo", "MemTotal:        8000000 kB\nMemFree:         1000 kB\n");

    #[test]
    fn a_machine_without_groups_has_what_it_has() {
        check(&[MACHINE], Some(8_000_000 * 1024));
        check(&[], None);
        check(&[("/proc/meminfo", "MemTotal: much\n")], None);
    }

    #[test]
    fn a_group_of_version_2_limits_and_so_do_those_around_it() {
        let group = ("/proc/self/cgroup", "0::/system.slice/millrace.service\n");
        let max = "/sys/fs/cgroup/system.slice/millrace.service/memory.max";
        check(&[MACHINE, group, (max, "max\n")], Some(8_000_000 * 1024));
        check(&[MACHINE, group, (max, "536870912\n")], Some(512 << 20));
        let outer = ("/sys/fs/cgroup/system.slice/memory.max", "268435456\n");
        check(&[MACHINE, group, (max, "536870912\n"), outer], Some(256 << 20));
    }

    #[test]
    fn a_container_whose_path_is_the_hosts_is_limited_by_its_own_root() {
        let group = ("/proc/self/cgroup", "0::/../docker/abc\n");
        check(&[MACHINE, group, ("/sys/fs/cgroup/memory.max", "1073741824\n")], Some(1 << 30));
    }

    #[test]
    fn a_group_of_version_1_limits_unless_its_number_is_the_largest() {
        let group = ("/proc/self/cgroup", "9:cpu,cpuacct:/a\n7:memory:/a\n1:name=systemd:/a\n");
        let limit = "/sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        check(&[MACHINE, group, (limit, "1073741824\n")], Some(1 << 30));
        check(&[MACHINE, group, (limit, "9223372036854771712\n")], Some(8_000_000 * 1024));
    }
}
