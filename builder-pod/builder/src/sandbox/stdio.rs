//! The pipe that a step writes its output to.
//!
//! `/dev/stdout` in a step is a link to `/proc/self/fd/1`; opening it is allowed to the owner of the pipe, so the pipe
//! has to belong to the step's user. The owner of a pipe is the file-system uid of the thread that makes it, and the
//! builder may set that one to any id of its own user namespace (`CAP_SETUID`).

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

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

/// The thread's file-system ids while this lives.
struct FileIds {
    uid: libc::c_int,
    gid: libc::c_int,
}

impl FileIds {
    fn set(uid: u32, gid: u32) -> std::io::Result<Self> {
        // SAFETY: takes and returns numbers; the ids are those of this thread only.
        let old = unsafe { Self { gid: libc::setfsgid(gid), uid: libc::setfsuid(uid) } };
        // The calls report no error; asking with an invalid id says what is in force.
        // SAFETY: as above; -1 changes nothing.
        let now = unsafe { (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX)) };
        if now == (uid.cast_signed(), gid.cast_signed()) {
            Ok(old)
        } else {
            Err(std::io::Error::from_raw_os_error(libc::EPERM))
        }
    }
}

impl Drop for FileIds {
    fn drop(&mut self) {
        // SAFETY: as above; the old ids were in force before, so the thread may have them again.
        unsafe {
            libc::setfsuid(self.uid.cast_unsigned());
            libc::setfsgid(self.gid.cast_unsigned());
        }
    }
}
