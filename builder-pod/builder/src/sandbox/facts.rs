//! What this process can learn about the node's rules, to name the one that is in the way.

use std::fs;
use std::path::Path;

use super::idmap;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// A seccomp filter is in force.
    pub seccomp: bool,
    /// no_new_privs is set.
    pub no_new_privs: bool,
    /// `CAP_SETUID` and `CAP_SETGID` are both in force.
    pub may_set_ids: bool,
    /// This is the host's own user namespace.
    pub host_users: bool,
    /// The AppArmor profile, unless unconfined.
    pub apparmor: Option<String>,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1.
    pub apparmor_restricts: bool,
    /// `user.max_user_namespaces` is 0.
    pub no_user_namespaces: bool,
    /// File system of the workspace, if it is one that can't hold an overlay's changes.
    pub workspace: Option<&'static str>,
}

/// Magic numbers of file systems that refuse to be an overlay's upper directory (linux/magic.h).
const UNFIT: [(u64, &str); 5] = [
    (0x794c_7630, "overlayfs"),
    (0x6969, "NFS"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9p"),
    (0xff53_4d42, "CIFS"),
];

/// Looks around.
pub fn gather(workspace: &Path) -> Facts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities =
        field(&status, "CapEff").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0);
    // AppArmor's own directory first: `attr/current` may be another module's.
    let profile = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"]
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())
        .filter(|_| Path::new("/sys/module/apparmor").exists());
    let sysctl = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    Facts {
        seccomp: field(&status, "Seccomp") == Some("2"),
        no_new_privs: field(&status, "NoNewPrivs") == Some("1"),
        // Bits 6 and 7.
        may_set_ids: capabilities & 0xc0 == 0xc0,
        host_users: fs::read_to_string("/proc/self/uid_map")
            .is_ok_and(|text| idmap::is_initial(&idmap::parse(&text))),
        apparmor: profile
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty() && text != "unconfined"),
        apparmor_restricts: sysctl("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref()
            == Some("1"),
        no_user_namespaces: sysctl("/proc/sys/user/max_user_namespaces").as_deref() == Some("0"),
        workspace: rustix::fs::statfs(workspace).ok().and_then(|found| {
            UNFIT.iter().find(|(magic, _)| *magic == found.f_type.cast_unsigned()).map(|(_, name)| *name)
        }),
    }
}

/// A field of `/proc/self/status`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let status = "Seccomp_filters:\t3\nSeccomp:\t2\nCapEff:\t00000000000000c0\n";
        assert_eq!(field(status, "Seccomp"), Some("2"));
        assert_eq!(field(status, "CapEff"), Some("00000000000000c0"));
        assert_eq!(field(status, "NoNewPrivs"), None);
    }

    #[test]
    fn this_machine_answers() {
        let facts = gather(Path::new("/"));
        assert_eq!(facts.apparmor.as_deref(), facts.apparmor.as_deref().filter(|name| !name.is_empty()));
    }
}
