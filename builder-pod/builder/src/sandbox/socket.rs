//! Sockets that a step's user may connect to: the builder listens, the step gets the socket's file bound into its root.

use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::fileids::FileIds;

/// Listens, without waiting in `accept`, at the new socket `name` in `directory`, which belongs to `uid` and `gid` as this process sees them.
///
/// # Errors
/// The kernel's; `EPERM` without the right to take the ids.
pub fn listen(
    directory: &Path,
    name: &str,
    mode: u32,
    (uid, gid): (u32, u32),
) -> std::io::Result<UnixListener> {
    // An address of a socket holds 107 bytes, fewer than the directory's path may have.
    let opened = std::fs::File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
    let _ids = FileIds::set(uid, gid)?;
    let listener = UnixListener::bind(&path)?;
    listener.set_nonblocking(true)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    Ok(listener)
}
