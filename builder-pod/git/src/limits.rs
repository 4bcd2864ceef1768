//! How much a source may be, and why.

use crate::error::Fault;

/// Bytes of all files: the largest repositories that are built whole, with their LFS files, have 1 to 3 GiB checked out.
pub const MAX_BYTES: u64 = 4 << 30;
/// Files, directories and links: Linux has 95,000, the largest public monorepos some 400,000.
pub const MAX_FILES: u64 = 500_000;
/// Bytes of an archive as it comes: compressed it is no larger than its files.
pub const MAX_DOWNLOAD: u64 = MAX_BYTES;
/// Bytes that git may keep while it works: history when asked for, packs, LFS objects. The volume has 9 GiB.
pub const MAX_WORK: u64 = 8 << 30;
/// Bytes of a path (`PATH_MAX`).
pub const MAX_PATH: usize = 4096;
/// Components of a path, so that walking and removing stay cheap.
pub const MAX_DEPTH: usize = 128;
/// Seconds for a fetch, when the build's timeout is not shorter: 4 GiB at 20 Mbit/s, with some to spare.
pub const MAX_SECONDS: u64 = 1800;

/// What is left of the limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    bytes: u64,
    files: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: MAX_BYTES, files: MAX_FILES }
    }
}

impl Budget {
    /// One more file, directory or link.
    ///
    /// # Errors
    /// [`crate::error::Kind::TooLarge`].
    pub fn file(&mut self) -> Result<(), Fault> {
        self.files = self.files.checked_sub(1).ok_or_else(|| {
            Fault::too_large(format!(
                "the source has more than {MAX_FILES} files, the most that one may have"
            ))
        })?;
        Ok(())
    }

    /// So many bytes of a file.
    ///
    /// # Errors
    /// [`crate::error::Kind::TooLarge`].
    pub fn bytes(&mut self, count: u64) -> Result<(), Fault> {
        self.bytes = self.bytes.checked_sub(count).ok_or_else(|| {
            Fault::too_large(format!(
                "the source's files have more than {} GiB together, the most that they may have",
                MAX_BYTES >> 30
            ))
        })?;
        Ok(())
    }
}
