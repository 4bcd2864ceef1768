//! ADD of an archive: told by its content, unpacked with the destination as its root, so that nothing in it reaches
//! beyond (Docker's chrooted untar).

use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};

use super::apply::{MakeParents, destination};
use super::at;
use super::decompress::{Format, MAX_UNPACKED, Measured, decompress};
use super::place::{Placer, Rules};
use super::tar_read::{TarEntry, TarReader, checksum_fits, read_error};
use super::unpack::mapped;
use super::walk::walk;
use super::{Survey, TreeError};
use crate::engine::{Destination, Owner};

/// Bytes that tell whether something is an archive: with the largest block of any format (bzip2: 900 kB) in them, the
/// first header of the tar comes out.
const START: u64 = 1 << 20;

/// Reads the start of a file.
pub(super) fn start(content: &mut dyn Read) -> Result<Vec<u8>, TreeError> {
    let mut start = Vec::new();
    content.take(START).read_to_end(&mut start).map_err(read_error)?;
    Ok(start)
}

/// Whether a file that starts so is a tar, plain or compressed. An empty one is not (as in Docker).
pub(super) fn is_archive(start: &[u8]) -> bool {
    let mut header = [0u8; 512];
    let Ok(mut tar) = decompress(Format::of(start), start) else { return false };
    tar.read_exact(&mut header).is_ok() && header.iter().any(|b| *b != 0) && checksum_fits(&header)
}

/// Unpacks an archive into the directory `to`.
pub(super) fn unpack_into(
    root: BorrowedFd<'_>,
    to: &Destination,
    archive: impl Read,
) -> Result<(), TreeError> {
    let (path, _) = destination(&to.path);
    let make = || MakeParents { owner: to.owner.unwrap_or_default(), mode: 0o755 };
    let place = walk(root, &path, true, &mut make()).map_err(TreeError::of_user)?;
    let failed = |e| TreeError::io("opening", &path, e).of_user();
    if !place.name.is_empty() && at::look(&place.dir, &place.name).map_err(failed)?.is_none() {
        make().make(place.dir.as_fd(), &place.name).map_err(failed)?;
    }
    let dir = at::open_dir(&place.dir, &place.name).map_err(failed)?;

    // 128 KiB: a pipe's worth.
    let mut input = BufReader::with_capacity(128 << 10, archive);
    let format = Format::of(io::BufRead::fill_buf(&mut input).map_err(read_error)?);
    let mut tar = TarReader::new(Measured::new(decompress(format, input)?, MAX_UNPACKED));
    let mut placer = Placer::new(dir.as_fd());
    let mut rules = Added { owner: to.owner };
    let unpacked = loop {
        match tar.next() {
            Ok(Some(entry)) => {
                if let Err(error) = placer.put(&at::clean(&entry.path), &entry, &mut tar, &mut rules) {
                    break Err(error);
                }
            }
            Ok(None) => break placer.finish(),
            Err(error) => break Err(error),
        }
    };
    unpacked.map_err(|error| match error.of_user() {
        // The archive comes from the build's author.
        TreeError::Image { message } => TreeError::user(message),
        error => error,
    })
}

/// Reads an archive to its end and writes nothing.
pub(super) fn survey(archive: impl Read, limit: u64) -> Result<Survey, TreeError> {
    let mut input = BufReader::new(archive);
    let start = io::BufRead::fill_buf(&mut input).map_err(read_error)?;
    is_archive(start);
    let format = Format::of(start);
    let mut tar = TarReader::new(Measured::new(decompress(format, input)?, limit));
    let mut found = Survey::default();
    while let Some(entry) = tar.next()? {
        found.entries += 1;
        found.longest_path = found.longest_path.max(entry.path.len()).max(entry.link.len());
        at::clean(&entry.path);
        io::copy(&mut tar, &mut io::sink()).map_err(read_error)?;
    }
    found.bytes = tar.drain()?.finish().1;
    Ok(found)
}

/// An archive of the build context.
struct Added {
    owner: Option<Owner>,
}

impl Rules for Added {
    fn owner(&self, entry: &TarEntry) -> Result<Owner, TreeError> {
        self.owner.map_or_else(|| mapped(entry.uid, entry.gid), Ok)
    }

    fn parent_made(&mut self, _path: &[u8]) {}

    fn replaced(&mut self, _path: &[u8], _whole: bool) {}

    fn link_nowhere(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let (path, target) = (String::from_utf8_lossy(path), String::from_utf8_lossy(target));
        Err(TreeError::user(format!(
            "archive entry {path:?} is a hardlink to {target:?}, which is not in the archive"
        )))
    }

    fn through_dangling(&self) -> bool {
        false
    }

    // Docker's untar sets owner, mode and time by every header.
    fn links_dress(&self) -> bool {
        true
    }

    // It would be the destination itself, which is there.
    fn nameless(&self) -> Result<(), TreeError> {
        Ok(())
    }
}
