//! What a step sees as its root: the overlay of its view, `/proc`, `/sys`, `/dev`, private copies of two files of the pod,
//! and over all that what the step mounts itself.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::fault::{At as _, Fault, Stage, Stop};
use super::inroot::{Kind, Place, ensure};
use super::mounts::{bind, enter, link_of, make_read_only, mount, top_of};
use super::spec::{ProcChoice, ProcKind, Spec};
use super::{EMPTY_TREE, MOUNT_POINT, attach, device};

/// Parts of `/proc` that docker hides from containers.
const MASKED_PROC: [&str; 10] = [
    "asound",
    "acpi",
    "interrupts",
    "kcore",
    "keys",
    "latency_stats",
    "timer_list",
    "timer_stats",
    "sched_debug",
    "scsi",
];

/// Parts of `/proc` that docker write-protects.
const READ_ONLY_PROC: [&str; 5] = ["bus", "fs", "irq", "sys", "sysrq-trigger"];

/// Parts of `/sys` that docker hides.
const MASKED_SYS: [&str; 2] = ["firmware", "devices/virtual/powercap"];

/// The pod's files that a step gets as copies: what it writes there must not reach the pod or other steps.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Becomes `/etc/resolv.conf`.
    pub resolv_conf: Vec<u8>,
    /// Becomes `/etc/hosts`.
    pub hosts: Vec<u8>,
}

/// Makes the root and enters it. The working directory is the trees directory before and `/` after.
///
/// # Errors
/// The stage that failed.
pub fn build(spec: &Spec, files: &Files) -> Result<(Vec<String>, ProcKind), Stop> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .at(Stage::MakePrivate, || "cannot make mounts private".to_owned())?;
    // A file system of our own to put the root's mount point and the copies on; it goes away with the old root.
    mount(Stage::Stage, "tmpfs", MOUNT_POINT, MountFlags::NOSUID | MountFlags::NODEV, "mode=755,size=8m")?;
    let root_path = format!("{MOUNT_POINT}/root");
    rustix::fs::mkdir(&root_path, Mode::from_raw_mode(0o755))
        .at(Stage::Stage, || "cannot make a directory".to_owned())?;
    let resolv_conf = copy("resolv.conf", &files.resolv_conf)?;
    let hosts = copy("hosts", &files.hosts)?;

    let options = format!("{},userxattr,volatile", writable(&spec.lowers, &spec.upper, &spec.work));
    mount(Stage::Overlay, "overlay", root_path.as_str(), MountFlags::empty(), &options)?;

    let root = open_directory(&root_path).at(Stage::Overlay, || "cannot open the overlay".to_owned())?;
    // All of our own places first, while nothing but the image is in sight of the walk.
    let mut stubs = Vec::new();
    let proc_place = ensure(&root, "proc", Kind::Directory, &mut stubs)?;
    let sys_place = ensure(&root, "sys", Kind::Directory, &mut stubs)?;
    let dev_place = ensure(&root, "dev", Kind::Directory, &mut stubs)?;
    let resolv_place = ensure(&root, "etc/resolv.conf", Kind::File, &mut stubs)?;
    let hosts_place = ensure(&root, "etc/hosts", Kind::File, &mut stubs)?;

    let proc = mount_proc(&proc_place, spec.proc)?;
    mount_sys(&sys_place, spec.network)?;
    device::populate(&dev_place, spec.script.as_ref(), spec.settings.shm())?;
    bind(Stage::Files, &link_of(&resolv_conf), &resolv_place.target, false)?;
    bind(Stage::Files, &link_of(&hosts), &hosts_place.target, false)?;
    attach::all(&spec.mounts, &root, &mut stubs)?;
    enter(&root_path)?;
    Ok((stubs, proc))
}

/// Overlay's options for trees under one that takes changes.
pub fn writable(lowers: &[String], upper: &str, work: &str) -> String {
    let lowers = if lowers.is_empty() { EMPTY_TREE.to_owned() } else { top_first(lowers) };
    format!("lowerdir={lowers},upperdir={upper},workdir={work}")
}

/// Overlay's order: the topmost first.
pub fn top_first(lowers: &[String]) -> String {
    lowers.iter().rev().map(String::as_str).collect::<Vec<_>>().join(":")
}

/// Opens a directory to mount from or on.
///
/// # Errors
/// The kernel's.
pub fn open_directory(path: &str) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn copy(name: &str, bytes: &[u8]) -> Result<OwnedFd, Fault> {
    let path = format!("{MOUNT_POINT}/{name}");
    std::fs::write(&path, bytes).at(Stage::Files, || format!("cannot copy the pod's {name}"))?;
    rustix::fs::openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .at(Stage::Files, || format!("cannot open the copy of {name}"))
}

fn mount_proc(place: &Place, choice: ProcChoice) -> Result<ProcKind, Fault> {
    let fresh = || {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount(Stage::Proc, "proc", link_of(&place.target), flags, "")
    };
    let bound = || bind(Stage::Proc, "/proc", &place.target, true);
    let kind = match choice {
        ProcChoice::Settled(ProcKind::Fresh) => fresh().map(|()| ProcKind::Fresh)?,
        ProcChoice::Settled(ProcKind::Bound) => bound().map(|()| ProcKind::Bound)?,
        ProcChoice::Try => match fresh() {
            // The pod's own /proc is masked, so the kernel lets nobody in the pod mount one that is not.
            Err(fault) if fault.errno == Some(libc::EPERM) => bound().map(|()| ProcKind::Bound)?,
            result => result.map(|()| ProcKind::Fresh)?,
        },
    };
    let top = top_of(Stage::Proc, place)?;
    for path in MASKED_PROC {
        mask(&top, path)?;
    }
    for name in READ_ONLY_PROC {
        write_protect(&top, name)?;
    }
    Ok(kind)
}

fn mount_sys(place: &Place, network: bool) -> Result<(), Fault> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // A fresh one shows the network namespace of who mounts it, which has to be our own, and never works where the pod's
    // is masked: there the pod's interfaces are seen, but not reached.
    if network || mount(Stage::Sys, "sysfs", link_of(&place.target), flags, "").is_err() {
        bind(Stage::Sys, "/sys", &place.target, true)?;
    }
    let top = top_of(Stage::Sys, place)?;
    make_read_only(Stage::Sys, &top)?;
    for path in MASKED_SYS {
        mask(&top, path)?;
    }
    Ok(())
}

/// Hides a file behind `/dev/null`, a directory behind an empty one.
fn mask(top: impl AsFd, path: &str) -> Result<(), Fault> {
    let stage = Stage::Mask;
    let found =
        match rustix::fs::openat(top, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            // Not on this kernel, or already out of reach.
            Err(Errno::NOENT | Errno::ACCESS | Errno::PERM) => return Ok(()),
            found => found.at(stage, || format!("cannot open {path} to hide it"))?,
        };
    let stat = rustix::fs::statat(&found, c"", AtFlags::EMPTY_PATH)
        .at(stage, || format!("cannot look at {path}"))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        mount(
            stage,
            "tmpfs",
            link_of(&found),
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            "size=4k",
        )
    } else {
        bind(stage, "/dev/null", &found, false)
    }
}

fn write_protect(top: impl AsFd, name: &str) -> Result<(), Fault> {
    let stage = Stage::Mask;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = match rustix::fs::openat(&top, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        found => found.at(stage, || format!("cannot open {name} to write-protect it"))?,
    };
    bind(stage, &link_of(&found), &found, true)?;
    let protected = rustix::fs::openat(&top, name, flags, Mode::empty())
        .at(stage, || format!("cannot open {name} again"))?;
    make_read_only(stage, protected)
}
