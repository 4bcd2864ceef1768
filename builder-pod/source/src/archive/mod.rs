//! An archive into a tree: its kind is told by its content, what comes out is bounded, and nothing leads out of the tree.

pub mod place;
mod tape;
mod zipped;

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::path::Path;

use crate::error::Fault;
use crate::limits::{Budget, MAX_BYTES, MAX_FILES};

/// Bytes that a tar may have: its files, and three blocks for each (header, long name and that one's header).
const MAX_TAR: u64 = MAX_BYTES + MAX_FILES * 3 * 512;
/// Largest zstd window, as a power of two: what the reference decoder allows by default (RFC 8878 3.1.1.1.2).
const MAX_WINDOW_LOG: u32 = 27;
/// Most memory for an xz dictionary, in KiB: `xz -9` takes 64 MiB.
const MAX_XZ_MEMORY: u32 = 128 << 10;
/// Bytes that tell the kind: a tar's header.
const START: u64 = 512;

/// Unpacks a tar (plain, gzip, zstd, xz) or a zip into `tree`.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] for what is none, or breaks a rule; [`crate::error::Kind::TooLarge`].
pub fn unpack(mut file: File, tree: &Path, budget: &mut Budget) -> Result<(), Fault> {
    let mut start = Vec::new();
    (&file).take(START).read_to_end(&mut start).and_then(|_| file.rewind()).map_err(|e| read_error(&e))?;
    if matches!(start.as_slice(), [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..]) {
        return zipped::unpack(file, tree, budget);
    }
    tape::unpack(&mut Limited { input: decompressed(file, &start)?, left: MAX_TAR }, tree, budget, false)
}

/// Unpacks an image's layer over those below it: whiteouts remove.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_layer(mut file: File, tree: &Path, budget: &mut Budget) -> Result<(), Fault> {
    let mut start = Vec::new();
    (&file).take(START).read_to_end(&mut start).and_then(|_| file.rewind()).map_err(|e| read_error(&e))?;
    tape::unpack(&mut Limited { input: decompressed(file, &start)?, left: MAX_TAR }, tree, budget, true)
}

fn decompressed(file: File, start: &[u8]) -> Result<Box<dyn Read>, Fault> {
    let input = BufReader::with_capacity(128 << 10, file);
    Ok(match start {
        [0x1f, 0x8b, 8, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(|e| read_error(&e))?;
            decoder.window_log_max(MAX_WINDOW_LOG).map_err(|e| read_error(&e))?;
            Box::new(decoder)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, MAX_XZ_MEMORY))
        }
        _ if is_tar(start) => Box::new(input),
        _ => {
            return Err(Fault::invalid(
                "the source is no archive that Kiln knows: expected a tar (plain, gzip, zstd or xz) or a zip, told by its content",
            ));
        }
    })
}

/// Whether a tar begins so: a header, or nothing but zeros (an empty one).
fn is_tar(start: &[u8]) -> bool {
    start.len() == 512 && (&start[257..262] == b"ustar" || start.iter().all(|b| *b == 0))
}

/// The bytes are wrong, unless the system says that it is at fault.
pub(crate) fn read_error(error: &io::Error) -> Fault {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return Fault::too_large(error.to_string());
    }
    if error.raw_os_error().is_some() {
        return Fault::internal(format!("reading the archive: {error}"));
    }
    Fault::invalid(format!("the source's archive can't be read: {error}"))
}

/// A reader that ends with an error at a limit.
struct Limited<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.left = self.left.checked_sub(got as u64).ok_or_else(|| {
            let text =
                format!("the source unpacks to more than {} GiB, the most that it may have", MAX_BYTES >> 30);
            io::Error::new(io::ErrorKind::FileTooLarge, text)
        })?;
        Ok(got)
    }
}

#[cfg(test)]
mod tests;
