//! Mount calls on descriptors, by the old mount system call only: it needs the fewest exceptions from a pod's seccomp
//! profile. A descriptor is named by its `/proc/self/fd` link, which no image can influence.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountFlags;

use super::fault::{At as _, Fault, Stage};
use super::inroot::Place;

/// The path by which the kernel finds an open descriptor, as long as that is open (hence the reference).
pub fn link_of(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Mounts a new file system on `target`.
///
/// # Errors
/// `stage`, with the file system's name.
pub fn mount(
    stage: Stage,
    kind: &str,
    target: impl rustix::path::Arg,
    flags: MountFlags,
    options: &str,
) -> Result<(), Fault> {
    // The kernel takes one page and cuts the rest off without a word.
    if options.len() >= rustix::param::page_size() {
        return Err(Fault::new(
            stage,
            format!("{} bytes of mount options are too many: too many layers", options.len()),
        ));
    }
    let data = CString::new(options).map_err(|_| Fault::new(stage, "mount options hold a zero byte"))?;
    rustix::mount::mount(kind, target, kind, flags, data.as_c_str())
        .at(stage, || format!("cannot mount {kind} ({options})"))
}

/// Shows `source` at `target` too.
///
/// # Errors
/// `stage`.
pub fn bind(stage: Stage, source: &str, target: &impl AsFd, recursive: bool) -> Result<(), Fault> {
    let target = link_of(target);
    if recursive {
        rustix::mount::mount_bind_recursive(source, target)
    } else {
        rustix::mount::mount_bind(source, target)
    }
    .at(stage, || format!("cannot bind {source}"))
}

/// The top of what is mounted at a place now.
///
/// # Errors
/// `stage`.
pub fn top_of(stage: Stage, place: &Place) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&place.parent, &place.name, flags, Mode::empty())
        .at(stage, || format!("cannot open {} after mounting on it", place.name.display()))
}

/// Makes everything below and at `top` (the root of a mount) read-only.
///
/// # Errors
/// `stage`.
pub fn make_read_only(stage: Stage, top: impl AsFd) -> Result<(), Fault> {
    let all =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is a constant string, the attributes live through the call and their true size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            top.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const all,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    // No such call (before Linux 5.12), or not in the pod's seccomp profile: the mount itself, without those below it.
    // The flags that the pod's own mount has are locked and have to be given again.
    let link = link_of(&top);
    let held = rustix::fs::fstatvfs(&top).map_or(0, |found| found.f_flag.bits());
    let keep = [
        (libc::ST_NOSUID, MountFlags::NOSUID),
        (libc::ST_NODEV, MountFlags::NODEV),
        (libc::ST_NOEXEC, MountFlags::NOEXEC),
        (libc::ST_NOATIME, MountFlags::NOATIME),
        (libc::ST_NODIRATIME, MountFlags::NODIRATIME),
        (libc::ST_RELATIME, MountFlags::RELATIME),
    ];
    let flags = keep
        .iter()
        .filter(|(bit, _)| held & *bit != 0)
        .fold(MountFlags::BIND | MountFlags::RDONLY, |flags, (_, flag)| flags | *flag);
    rustix::mount::mount_remount(link.as_str(), flags, c"")
        .at(stage, || "cannot make a mount read-only".to_owned())
}

/// Leaves the old root and everything mounted in it behind; `new_root` (a mount) becomes `/`.
///
/// # Errors
/// [`Stage::PivotRoot`].
pub fn enter(new_root: &str) -> Result<(), Fault> {
    let stage = Stage::PivotRoot;
    rustix::process::chdir(new_root).at(stage, || "cannot enter the step's root".to_owned())?;
    // Old root on top of new one, then away with it: needs no directory in the image.
    rustix::process::pivot_root(".", ".").at(stage, || "pivot_root".to_owned())?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
        .at(stage, || "cannot unmount the old root".to_owned())?;
    rustix::process::chdir("/").at(stage, || "cannot enter the step's root".to_owned())
}
