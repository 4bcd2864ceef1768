//! The few process primitives that neither the standard library nor rustix offer: fork, clone with our parent, closing
//! every descriptor, and the write of id maps.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Pid;

use super::fault::{At as _, Fault, Stage};
use super::idmap::IdMap;

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The parent, with the child's id.
    Parent(Pid),
    /// The child.
    Child,
}

/// Forks. Call it only in a process with one thread.
///
/// # Errors
/// The kernel's (memory, number of processes).
pub fn fork() -> std::io::Result<Fork> {
    // SAFETY: the process has one thread, so the child may go on to use the heap and the standard library.
    let pid = unsafe { libc::fork() };
    forked(pid.into())
}

/// Forks a child whose parent is not this process but this process's parent. Call it only in a process with one thread.
///
/// # Errors
/// The kernel's.
pub fn fork_sibling() -> std::io::Result<Fork> {
    // SAFETY: like fork: no new stack, no shared memory, one thread; CLONE_PARENT takes no pointer argument.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::CLONE_PARENT | libc::SIGCHLD, 0, 0, 0, 0) };
    forked(pid)
}

fn forked(pid: libc::c_long) -> std::io::Result<Fork> {
    match i32::try_from(pid) {
        Ok(0) => Ok(Fork::Child),
        Ok(pid) => {
            Pid::from_raw(pid).filter(|_| pid > 0).map(Fork::Parent).ok_or_else(std::io::Error::last_os_error)
        }
        Err(_) => Err(std::io::Error::last_os_error()),
    }
}

/// Closes every descriptor from `first` on.
///
/// # Errors
/// The kernel's (before Linux 5.9 there is no such call).
pub fn close_from(first: u32) -> std::io::Result<()> {
    // SAFETY: the callers hold no owned descriptor above `first` that they will use or drop later: launcher and helper
    // call it before they open anything, a step right before it executes the command.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Gives the process with id `pid`, which has just unshared its user namespace, its ids.
///
/// # Errors
/// [`Stage::WriteMap`].
pub fn write_maps(pid: Pid, map: IdMap) -> Result<(), Fault> {
    for file in ["gid_map", "uid_map"] {
        let path = format!("/proc/{}/{file}", pid.as_raw_nonzero());
        // One write call: the kernel takes a map whole or not at all.
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut opened| opened.write_all(map.line().as_bytes()))
            .at(Stage::WriteMap, || {
                format!("cannot write `{}` to {file} of a new process", map.line().trim_end())
            })?;
    }
    Ok(())
}

/// Makes this process user and group 0 of its user namespace, without other groups.
///
/// # Errors
/// [`Stage::BecomeRoot`].
pub fn become_root() -> Result<(), Fault> {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    set_thread_groups(&[])
        .and_then(|()| set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT))
        .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
        .at(Stage::BecomeRoot, || "cannot become user 0 of the step's user namespace".to_owned())
}

/// Two ends on which one process tells another a byte.
#[derive(Debug)]
pub struct Signal {
    /// Reads.
    pub receiver: OwnedFd,
    /// Writes.
    pub sender: OwnedFd,
}

impl Signal {
    /// A new pair, closed on exec.
    ///
    /// # Errors
    /// [`Stage::Launch`].
    pub fn new() -> Result<Self, Fault> {
        let (receiver, sender) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .at(Stage::Launch, || "cannot make a pipe".to_owned())?;
        Ok(Self { receiver, sender })
    }
}

/// Writes 4 bytes (a pipe takes that few at once).
///
/// # Errors
/// [`Stage::Launch`] when the other side is gone.
pub fn tell(sender: impl AsFd, value: i32) -> Result<(), Fault> {
    rustix::io::retry_on_intr(|| rustix::io::write(&sender, &value.to_ne_bytes()))
        .map(|_| ())
        .at(Stage::Launch, || "cannot write to a sandbox process".to_owned())
}

/// Waits for 4 bytes; `None` when the other side closed without a word.
///
/// # Errors
/// [`Stage::Launch`].
pub fn hear(receiver: impl Into<OwnedFd>) -> Result<Option<i32>, Fault> {
    let mut bytes = [0; 4];
    match fs::File::from(receiver.into()).read_exact(&mut bytes) {
        Ok(()) => Ok(Some(i32::from_ne_bytes(bytes))),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error).at(Stage::Launch, || "cannot read from a sandbox process".to_owned()),
    }
}
