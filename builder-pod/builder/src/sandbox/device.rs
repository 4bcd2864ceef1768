//! A step's `/dev`: the six harmless devices of the pod and what else a container's `/dev` has.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::fault::{At as _, Fault, Stage};
use super::inroot::Place;
use super::mounts::{bind, link_of, mount, top_of};
use crate::engine::InlineFile;

/// Devices of the pod that a step gets. Nodes can't be made in a user namespace, so the pod's are bound.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Links, as in a docker container.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NOEXEC);
const NO_NODES: MountFlags = QUIET.union(MountFlags::NODEV);

/// Mounts a `/dev` at `place`, with a script in `/dev/pipes` if the step has one. The pod's own `/dev` must still be in
/// sight.
///
/// # Errors
/// [`Stage::Dev`].
pub fn populate(place: &Place, script: Option<&InlineFile>, shm_bytes: u64) -> Result<(), Fault> {
    let stage = Stage::Dev;
    // As in docker: 64 MiB, of memory that counts against the pod's limit; so does /dev/shm.
    mount(stage, "tmpfs", link_of(&place.target), MountFlags::NOSUID, "mode=755,size=65536k")?;
    let dev = top_of(stage, place)?;
    for name in DEVICES {
        device(&dev, name)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, &dev, name).at(stage, || format!("cannot make /dev/{name}"))?;
    }
    if let Some(script) = script {
        write_script(&directory(&dev, "pipes")?, script)?;
    }
    mount(
        stage,
        "devpts",
        link_of(&directory(&dev, "pts")?),
        QUIET,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )?;
    let shm = format!("mode=1777,size={}k", shm_bytes.div_ceil(1024));
    mount(stage, "tmpfs", link_of(&directory(&dev, "shm")?), NO_NODES, &shm)?;
    match mount(stage, "mqueue", link_of(&directory(&dev, "mqueue")?), NO_NODES, "") {
        // A kernel without POSIX queues.
        Err(fault) if fault.errno == Some(libc::ENODEV) => Ok(()),
        result => result,
    }
}

fn directory(dev: impl AsFd, name: &str) -> Result<OwnedFd, Fault> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755))
        .and_then(|()| rustix::fs::openat(&dev, name, flags, Mode::empty()))
        .at(Stage::Dev, || format!("cannot make /dev/{name}"))
}

/// Where BuildKit puts it, too: `$0` says so.
fn write_script(pipes: &OwnedFd, script: &InlineFile) -> Result<(), Fault> {
    let fail = || format!("cannot write /dev/pipes/{}", script.name);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(pipes, script.name.as_str(), flags, Mode::from_raw_mode(0o755))
        .at(Stage::Dev, fail)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(0o755)).at(Stage::Dev, fail)?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, script.data.as_bytes()).at(Stage::Dev, fail)
}

fn device(dev: impl AsFd, name: &str) -> Result<(), Fault> {
    let source = format!("/dev/{name}");
    match rustix::fs::openat(CWD, &source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        // A pod without it: neither has the step.
        Err(Errno::NOENT) => return Ok(()),
        found => drop(found.at(Stage::Dev, || format!("cannot find the pod's {source}"))?),
    }
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    let node = rustix::fs::openat(&dev, name, flags, Mode::from_raw_mode(0o666))
        .at(Stage::Dev, || format!("cannot make {source}"))?;
    bind(Stage::Dev, &source, &node, false)
}
