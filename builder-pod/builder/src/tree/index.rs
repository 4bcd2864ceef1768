//! The index of a layer: a tar with its entries and not what is in its files, so that it unpacks as the layer does. What
//! stands on the layer can be told from it: what there is, as what, whose, and since when. Empty files in it are
//! placeholders: what is in them is not known, or nothing. The files that names of owners are looked up in are whole.

use std::fs::File;
use std::io::{BufWriter, Read};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags, XattrFlags};

use super::TreeError;
use super::at::{self, Meta};
use super::decompress;
use super::tar_read::{Kind, TarEntry, TarReader, read_error};
use super::tar_write::{Body, TarWriter};
use super::unpack::{aufs, mapped, meta};
use crate::engine::Unpacked;

/// Marks a file of which only an entry of an index is there.
const MARK: &str = "user.kiln.placeholder";
/// Files whose content an index has.
const KEPT: [&[u8]; 2] = [b"etc/passwd", b"etc/group"];
/// Bytes of such a file at most: a distribution's has two thousand.
const MAX_KEPT: u64 = 64 << 10;

/// Writes an index.
pub(super) struct IndexWriter {
    tar: TarWriter<BufWriter<File>>,
}

impl IndexWriter {
    /// Into `out`.
    pub fn new(out: File) -> Self {
        // 256 KiB: five hundred entries.
        Self { tar: TarWriter::new(BufWriter::with_capacity(256 << 10, out)) }
    }

    /// An entry without its content.
    pub fn entry(&mut self, path: &[u8], meta: &Meta, body: Body<'_>) -> Result<(), TreeError> {
        let body = if let Body::File(_) = body { Body::File(0) } else { body };
        self.tar.entry(path, &Meta { capability: None, ..meta.clone() }, body)
    }

    /// An entry of a layer that is read.
    pub fn of_layer(&mut self, path: &[u8], entry: &TarEntry) -> Result<(), TreeError> {
        let body = match entry.kind {
            Kind::Directory if path.is_empty() => return Ok(()),
            Kind::Directory => Body::Directory,
            Kind::File => Body::File(0),
            Kind::Symlink => Body::Symlink(&entry.link),
            Kind::Hardlink => Body::Hardlink(&entry.link),
            Kind::Fifo => Body::Fifo,
            Kind::Device => Body::Device,
        };
        self.entry(path, &meta(entry, mapped(entry.uid, entry.gid)?), body)
    }

    /// The same of a file whose content an index has; reads it.
    pub fn with_content(&mut self, path: &[u8], meta: &Meta, content: &[u8]) -> Result<(), TreeError> {
        let meta = Meta { capability: None, ..meta.clone() };
        self.tar.entry(path, &meta, Body::File(content.len() as u64))?;
        self.tar.content(path, content.len() as u64, &mut &*content)
    }

    /// The files that are kept, as a tree that was unpacked has them.
    pub fn keep(&mut self, tree: BorrowedFd<'_>) -> Result<(), TreeError> {
        for path in KEPT {
            let failed = |e: rustix::io::Errno| TreeError::io("reading", path, e);
            let (parent, name) = at::split(path);
            let Ok(dir) = at::open_plain(tree, parent) else { continue };
            let Some(stat) = at::look(&dir, name).map_err(failed)? else { continue };
            if at::kind(&stat) == FileType::RegularFile && is_kept(path, size(&stat)) {
                let file = at::open_file(&dir, name).map_err(failed)?;
                let mut content = Vec::new();
                let read = file.take(MAX_KEPT).read_to_end(&mut content);
                read.map_err(|e| TreeError::io("reading", path, e))?;
                self.with_content(path, &Meta::of(&stat), &content)?;
            }
        }
        Ok(())
    }

    /// Ends it.
    pub fn finish(self) -> Result<(), TreeError> {
        self.tar.finish().map(drop)
    }
}

fn size(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(u64::MAX)
}

/// Whether an index has the content of a file.
pub(super) fn is_kept(path: &[u8], size: u64) -> bool {
    KEPT.contains(&path) && size <= MAX_KEPT
}

/// Marks a file as a placeholder.
pub(super) fn mark(file: impl AsFd) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(file, MARK, b"y", XattrFlags::empty())
}

/// Whether a name of an extended attribute is one of ours, which no layer may bring.
pub(super) fn is_mark(name: &[u8]) -> bool {
    name == MARK.as_bytes()
}

/// Refuses a placeholder.
pub(super) fn check_content(file: impl AsFd, path: &[u8]) -> Result<(), TreeError> {
    match at::attribute(file, MARK) {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err(TreeError::Content { path: String::from_utf8_lossy(path).into_owned() }),
        Err(error) => Err(TreeError::io("looking at", path, error)),
    }
}

/// Refuses to replace the file `name` of `dir` by one of the time `mtime` where it is a placeholder that may be the same
/// file: a difference leaves out what did not change.
pub(super) fn check_replaced(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mtime: (i64, u32),
    path: &[u8],
) -> Result<(), TreeError> {
    let failed = |e: rustix::io::Errno| TreeError::io("looking at", path, e);
    let there = at::look(dir, name).map_err(failed)?;
    let alike = |stat: &rustix::fs::Stat| {
        at::kind(stat) == FileType::RegularFile && Meta::of(stat).mtime.0 == mtime.0
    };
    if !there.as_ref().is_some_and(alike) {
        return Ok(());
    }
    // What may not be opened can't be told, and then neither can a mark.
    let file = rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    check_content(file.map_err(failed)?, path)
}

/// Reads a compressed layer to its end and writes its index; nothing is unpacked.
///
/// # Errors
/// As [`super::unpack`].
pub fn index(blob: File, media_type: &str, out: File) -> Result<Unpacked, TreeError> {
    decompress::check_media_type(media_type)?;
    let mut tar = TarReader::new(decompress::layer_tar(blob)?);
    let mut index = IndexWriter::new(out);
    while let Some(entry) = tar.next()? {
        let path = at::clean(&entry.path);
        if entry.kind == Kind::File && is_kept(&path, entry.size) {
            let mut content = Vec::new();
            (&mut tar).take(MAX_KEPT).read_to_end(&mut content).map_err(read_error)?;
            index.with_content(&path, &meta(&entry, mapped(entry.uid, entry.gid)?), &content)?;
        } else if !aufs(&path) {
            index.of_layer(&path, &entry)?;
        }
    }
    index.finish()?;
    let (diff_id, size) = tar.drain()?.finish();
    Ok(Unpacked { diff_id, size, ..Unpacked::default() })
}
