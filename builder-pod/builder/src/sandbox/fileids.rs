//! Making things that belong to a step's user: the builder can give nothing away (it has no `CAP_CHOWN`), but it may make
//! them under another file-system uid (`CAP_SETUID`).

/// The thread's file-system ids while this lives.
pub(super) struct FileIds {
    uid: libc::c_int,
    gid: libc::c_int,
}

impl FileIds {
    /// Takes the ids, as this process sees them.
    ///
    /// # Errors
    /// `EPERM` without the right to.
    pub fn set(uid: u32, gid: u32) -> std::io::Result<Self> {
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
