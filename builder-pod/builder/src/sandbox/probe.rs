//! The start-up probe: what a step needs is tried in a real sandbox on the real workspace, and what fails is put into
//! words that name the one setting that is missing.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::facts::Facts;
use super::fault::{At as _, Fault, Stage};
use super::spec::Spec;
use crate::engine::{EngineError, EngineErrorKind};

/// Makes the trees that [`exercise`] works on; the working directory is the trees directory.
///
/// # Errors
/// [`Stage::Exercise`].
pub fn prepare(spec: &Spec) -> Result<(), Fault> {
    let lower =
        spec.lowers.first().map(Path::new).ok_or_else(|| Fault::new(Stage::Exercise, "no tree to probe"))?;
    let make = |path: &Path| {
        fs::create_dir(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
    };
    let file = |name: &str| fs::write(lower.join(name), name);
    make(lower)
        .and_then(|()| make(Path::new(&spec.upper)))
        .and_then(|()| make(Path::new(&spec.work)))
        .and_then(|()| make(&lower.join("directory")))
        .and_then(|()| file("directory/inside"))
        .and_then(|()| file("unlinked"))
        .and_then(|()| file("renamed"))
        .at(Stage::Exercise, || "cannot make files in the workspace".to_owned())
}

/// Does on the overlay what steps do; some of it fails only here on a file system or a kernel that can't carry an
/// overlay for users.
///
/// # Errors
/// [`Stage::Exercise`].
pub fn exercise() -> Result<(), Fault> {
    let at = |what: &'static str| move || format!("cannot {what} in the overlay");
    let stage = Stage::Exercise;
    fs::remove_file("/unlinked").at(stage, at("remove a file of a lower layer"))?;
    fs::remove_dir_all("/directory")
        .and_then(|()| fs::create_dir("/directory"))
        .at(stage, at("replace a directory of a lower layer"))?;
    if fs::read_dir("/directory").is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Fault::new(stage, "a replaced directory shows its old files: no user.* attributes here"));
    }
    // 33 is any id but root's; all of the map's have to work alike.
    std::os::unix::fs::chown("/renamed", Some(33), Some(33)).at(stage, at("change the owner of a file"))?;
    fs::rename("/renamed", "/directory/moved").at(stage, at("rename a file"))?;
    let owner = fs::metadata("/directory/moved").at(stage, at("look at a file"))?.uid();
    if owner != 33 {
        return Err(Fault::new(stage, format!("a file given to user 33 belongs to user {owner}")));
    }
    Ok(())
}

/// Puts a failure into words for whoever runs the cluster: what failed, and the setting that is missing.
pub fn explain(fault: &Fault, facts: &Facts) -> EngineError {
    let errno = fault.errno.unwrap_or(0);
    if fault.stage == Stage::Launch {
        return EngineError { kind: EngineErrorKind::Internal, message: format!("sandbox: {fault}") };
    }
    if fault.stage == Stage::MountPoint
        && matches!(errno, libc::ENOTDIR | libc::EISDIR | libc::ELOOP | libc::EBUSY)
    {
        return EngineError {
            kind: EngineErrorKind::Image,
            message: format!(
                "{fault}: docker mounts /proc, /sys, /dev, /etc/resolv.conf and /etc/hosts there"
            ),
        };
    }
    if errno == libc::ENOSPC && fault.stage != Stage::Unshare || errno == libc::EDQUOT {
        return EngineError {
            kind: EngineErrorKind::Space,
            message: format!("the workspace is full: {fault}"),
        };
    }
    let message = match hint(fault.stage, errno, facts) {
        Some(hint) => format!("the node does not allow the sandbox: {fault}: {hint}"),
        None => format!("the node does not allow the sandbox: {fault} ({})", known(facts)),
    };
    EngineError { kind: EngineErrorKind::Isolation, message }
}

/// The setting that is missing, where the failure points to one.
fn hint(stage: Stage, errno: i32, facts: &Facts) -> Option<String> {
    let seccomp = "the container's seccomp profile forbids it: it needs seccompProfile Localhost with Kiln's profile \
                   (chart value builder.seccomp.install=true), since RuntimeDefault allows no new namespaces";
    let apparmor = |profile: &str| {
        format!(
            "the AppArmor profile {profile} forbids it: builder pods need one that allows mount, umount, pivot_root \
             and userns (chart value builder.appArmor.profile)"
        )
    };
    match (stage, errno) {
        (Stage::Unshare, libc::ENOSPC | libc::EUSERS) if facts.no_user_namespaces || errno == libc::ENOSPC => Some(
            "the node has user.max_user_namespaces too low: raise that sysctl on the node (15000 is usual)".to_owned(),
        ),
        (Stage::Unshare, libc::EINVAL | libc::ENOSYS) => {
            Some("the node's kernel has no user namespaces; Kiln needs Linux 5.19 or newer with them".to_owned())
        }
        (Stage::WriteMap | Stage::BecomeRoot, libc::EPERM | libc::EINVAL | libc::EACCES) if !facts.may_set_ids => Some(
            "the container lacks a capability: it needs `add: [SETUID, SETGID]` and runAsUser: 0; a policy of the \
             namespace may have dropped them"
                .to_owned(),
        ),
        (Stage::Overlay | Stage::Exercise, libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP | libc::EIO)
            if facts.workspace.is_some() =>
        {
            let kind = facts.workspace.unwrap_or_default();
            Some(format!(
                "the workspace is on {kind}, which cannot hold an overlay's changes: mount an emptyDir (or another \
                 volume with ext4, xfs, btrfs or tmpfs) there"
            ))
        }
        (Stage::Overlay, libc::ENODEV) => Some("the node's kernel has no overlayfs: load the module overlay".to_owned()),
        (Stage::Overlay | Stage::Exercise, libc::EINVAL | libc::EIO | libc::EOPNOTSUPP) => {
            Some("the node's kernel is too old for overlays of users: Kiln needs Linux 5.19 or newer".to_owned())
        }
        // AppArmor's refusal of a mount reads EACCES, a seccomp profile's EPERM.
        (_, libc::EACCES) if facts.apparmor.is_some() => facts.apparmor.as_deref().map(apparmor),
        (_, libc::EPERM | libc::EACCES) if facts.apparmor_restricts && !facts.seccomp => Some(
            "AppArmor on this node takes the rights away that a new user namespace brings: set the sysctl \
             kernel.apparmor_restrict_unprivileged_userns=0 there, or use a profile with `userns,` (chart value \
             builder.appArmor.profile)"
                .to_owned(),
        ),
        (_, libc::EPERM | libc::ENOSYS) if facts.seccomp => Some(seccomp.to_owned()),
        (_, libc::EPERM | libc::EACCES) => facts.apparmor.as_deref().map(apparmor),
        _ => None,
    }
}

/// What is known, where it does not point to one setting.
fn known(facts: &Facts) -> String {
    format!(
        "seccomp filter: {}, AppArmor profile: {}, no_new_privs: {}, SETUID and SETGID: {}, user namespace of the pod: {}",
        if facts.seccomp { "yes" } else { "no" },
        facts.apparmor.as_deref().unwrap_or("none"),
        if facts.no_new_privs { "yes" } else { "no" },
        if facts.may_set_ids { "yes" } else { "no" },
        if facts.host_users { "no" } else { "yes" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(stage: Stage, errno: i32, facts: &Facts) -> EngineError {
        explain(&Fault { stage, what: "x".into(), errno: Some(errno) }, facts)
    }

    #[test]
    fn the_missing_setting_is_named() {
        let fine = Facts { may_set_ids: true, ..Facts::default() };
        let seccomp = Facts { seccomp: true, ..fine.clone() };
        let apparmor =
            Facts { apparmor: Some("cri-containerd.apparmor.d (enforce)".into()), ..seccomp.clone() };
        for (stage, errno, facts, word) in [
            (Stage::Unshare, libc::EPERM, &seccomp, "builder.seccomp.install=true"),
            (Stage::PivotRoot, libc::EPERM, &seccomp, "builder.seccomp.install=true"),
            (Stage::MakePrivate, libc::EACCES, &apparmor, "builder.appArmor.profile"),
            (Stage::Unshare, libc::EPERM, &apparmor, "builder.seccomp.install=true"),
            (Stage::Unshare, libc::ENOSPC, &fine, "user.max_user_namespaces"),
            (Stage::WriteMap, libc::EPERM, &Facts::default(), "SETUID, SETGID"),
            (
                Stage::Overlay,
                libc::EINVAL,
                &Facts { workspace: Some("overlayfs"), ..fine.clone() },
                "emptyDir",
            ),
            (Stage::Overlay, libc::EINVAL, &fine, "Linux 5.19"),
            (
                Stage::MakePrivate,
                libc::EPERM,
                &Facts { apparmor_restricts: true, ..fine.clone() },
                "apparmor_restrict_unprivileged_userns",
            ),
            (Stage::Sys, libc::ENOMEM, &fine, "seccomp filter: no"),
        ] {
            let error = told(stage, errno, facts);
            assert_eq!(error.kind, EngineErrorKind::Isolation);
            assert!(error.message.contains(word), "{stage:?} {errno}: {}", error.message);
        }
    }

    #[test]
    fn not_everything_is_the_nodes_fault() {
        let facts = Facts::default();
        assert_eq!(told(Stage::Files, libc::ENOSPC, &facts).kind, EngineErrorKind::Space);
        assert_eq!(told(Stage::MountPoint, libc::ELOOP, &facts).kind, EngineErrorKind::Image);
        assert_eq!(told(Stage::Launch, libc::ENOMEM, &facts).kind, EngineErrorKind::Internal);
    }
}
