//! The pipe that a step writes its output to.
//!
//! `/dev/stdout` in a step is a link to `/proc/self/fd/1`; opening it is allowed to the owner of the pipe, so the pipe
//! has to belong to the step's user. The owner of a pipe is the file-system uid of the thread that makes it, and the
//! builder may set that one to any id of its own user namespace (`CAP_SETUID`).

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::fileids::FileIds;

/// Bytes that a step may be ahead of the builder: some lines of a busy compiler; the kernel's default is 64 KiB.
const PIPE_BYTES: usize = 256 << 10;

/// Makes a pipe (read end, write end) that belongs to `uid` and `gid` as this process sees them.
///
/// # Errors
/// The kernel's. Without the right to take the id the pipe belongs to this process: reported by `EPERM`.
pub fn pipe_owned_by(uid: u32, gid: u32) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let _ids = FileIds::set(uid, gid)?;
    let ends = pipe_with(PipeFlags::CLOEXEC)?;
    // More room is only for speed; the kernel may refuse it (fs.pipe-user-pages-soft).
    let _ = fcntl_setpipe_size(&ends.1, PIPE_BYTES);
    Ok(ends)
}
