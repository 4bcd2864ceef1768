//! Whether the kernel killed a process of this container for lack of memory.

use std::fs;

/// Where the counter is looked for, given `/proc/self/cgroup`: the own cgroup as the host names it, then the top of the
/// mount (inside a container that is its own cgroup).
fn candidates(own: &str) -> Vec<String> {
    let mut paths = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let path = path.trim_end_matches('/');
        if controllers.is_empty() {
            paths.push(format!("/sys/fs/cgroup{path}/memory.events"));
            paths.push("/sys/fs/cgroup/memory.events".to_owned());
        } else if controllers.split(',').any(|controller| controller == "memory") {
            paths.push(format!("/sys/fs/cgroup/memory{path}/memory.oom_control"));
            paths.push("/sys/fs/cgroup/memory/memory.oom_control".to_owned());
        }
    }
    paths
}

/// The value of `oom_kill` in `memory.events` or `memory.oom_control`.
fn parse(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// How many processes of this cgroup the kernel has killed so far; `None` where it can't be read.
pub fn kills() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    candidates(&own).iter().find_map(|path| parse(&fs::read_to_string(path).ok()?))
}

/// Judges a step's end: only a step that ended by SIGKILL or with 137 (a shell reporting that of its child) is said to
/// have been out of memory, since the counter is the whole container's and steps run side by side.
pub fn explains(before: Option<u64>, after: Option<u64>, code: i32) -> bool {
    code == 128 + libc::SIGKILL && matches!((before, after), (Some(before), Some(after)) if after > before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cgroup_versions_are_read() {
        assert_eq!(parse("low 0\nhigh 0\nmax 3\noom 1\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse("oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"), Some(7));
        assert_eq!(parse("oom_kill_disable 0\n"), None);
        assert_eq!(
            candidates("0::/kubepods/x\n"),
            ["/sys/fs/cgroup/kubepods/x/memory.events", "/sys/fs/cgroup/memory.events"]
        );
        assert_eq!(
            candidates("5:cpu,cpuacct:/\n4:memory:/\nnonsense\n"),
            ["/sys/fs/cgroup/memory/memory.oom_control", "/sys/fs/cgroup/memory/memory.oom_control"]
        );
    }

    #[test]
    fn the_counter_alone_proves_nothing() {
        assert!(explains(Some(1), Some(2), 137));
        assert!(!explains(Some(1), Some(2), 1));
        assert!(!explains(Some(1), Some(1), 137));
        assert!(!explains(None, Some(1), 137));
    }
}
