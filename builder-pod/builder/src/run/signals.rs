//! SIGTERM and SIGINT stop the build. The handler only writes a byte into a pipe; handlers do not survive exec, so commands
//! of steps start with the usual dispositions.

use std::fs::File;
use std::io::Read;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

static PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn on_signal(_signal: libc::c_int) {
    let fd = PIPE.load(Ordering::Relaxed);
    // SAFETY: errno is this thread's own; write(2) is async-signal-safe, the byte is static, and the descriptor is never
    // closed. A full pipe only means that a byte is there already.
    unsafe {
        let errno = *libc::__errno_location();
        libc::write(fd, b"!".as_ptr().cast(), 1);
        *libc::__errno_location() = errno;
    }
}

/// Calls `then` once, in a thread of its own, after the first SIGTERM or SIGINT.
///
/// # Errors
/// The system refused a pipe, a handler or a thread.
pub(super) fn on_terminate(then: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let (read, write) = std::io::pipe()?;
    PIPE.store(OwnedFd::from(write).into_raw_fd(), Ordering::Relaxed);
    for signal in [libc::SIGTERM, libc::SIGINT] {
        // SAFETY: an all-zero sigaction is a valid one; the handler is an extern "C" function that does only what is
        // allowed in a handler, and lives for ever.
        let set = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut())
        };
        if set != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    let mut read = File::from(OwnedFd::from(read));
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if read.read_exact(&mut [0]).is_ok() {
            then();
        }
    })?;
    Ok(())
}
