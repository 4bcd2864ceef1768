//! Writing a layer's tar: ustar headers, PAX records where a value does not fit, nothing that differs from run to run.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use tar::{EntryType, Header};

use super::TreeError;
use super::at::Meta;

const BLOCK: usize = 512;
/// Files of at least so many bytes go from the page cache into the pipe without a copy here; for smaller ones two system
/// calls more cost as much as the copy.
const DIRECT: u64 = 256 << 10;
/// Largest number of an 11-digit octal field.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;
/// Largest number of a 7-digit octal field.
const MAX_OCTAL_7: u32 = 0o7_777_777;

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Body<'a> {
    Directory,
    /// Size in bytes; the content follows with [`TarWriter::content`].
    File(u64),
    /// Target as written.
    Symlink(&'a [u8]),
    /// Path of an earlier entry (OCI image-spec layer.md: without a leading slash).
    Hardlink(&'a [u8]),
    Fifo,
    /// In an index: a device that a layer has, which is not made.
    Device,
}

/// Writes a tar.
#[derive(Debug)]
pub(super) struct TarWriter<W: Write> {
    out: W,
    entries: u64,
    bytes: u64,
}

impl<W: Write> TarWriter<W> {
    /// Into `out`.
    pub fn new(out: W) -> Self {
        Self { out, entries: 0, bytes: 0 }
    }

    /// Writes an entry's header. `path` is clean; a directory's slash is added here.
    pub fn entry(&mut self, path: &[u8], meta: &Meta, body: Body<'_>) -> Result<(), TreeError> {
        let mut pax: Vec<(&str, Vec<u8>)> = Vec::new();
        let mut header = Header::new_ustar();
        let (kind, size, link): (_, _, &[u8]) = match body {
            Body::Directory => (EntryType::Directory, 0, b""),
            Body::File(size) => (EntryType::Regular, size, b""),
            Body::Symlink(target) => (EntryType::Symlink, 0, target),
            Body::Hardlink(target) => (EntryType::Link, 0, target),
            Body::Fifo => (EntryType::Fifo, 0, b""),
            Body::Device => (EntryType::Char, 0, b""),
        };
        header.set_entry_type(kind);
        header.set_mode(meta.mode & 0o7777);
        let name = if kind == EntryType::Directory { [path, b"/"].concat() } else { path.to_vec() };
        if !set_name(&mut header, &name) {
            put(&mut header, 0..100, &ascii(&name));
            pax.push(("path", name));
        }
        put(&mut header, 157..257, &ascii(link));
        if link.len() > 100 || !link.is_ascii() {
            pax.push(("linkpath", link.to_vec()));
        }
        let mut number = |key, value: u64, most: u64| {
            if value > most {
                pax.push((key, value.to_string().into_bytes()));
                return 0;
            }
            value
        };
        header.set_uid(number("uid", meta.owner.uid.into(), MAX_OCTAL_7.into()));
        header.set_gid(number("gid", meta.owner.gid.into(), MAX_OCTAL_7.into()));
        header.set_size(number("size", size, MAX_OCTAL_11));
        // Whole seconds (containerd and Docker write no more); before 1970 only PAX can say.
        match u64::try_from(meta.mtime.0).ok().filter(|seconds| *seconds <= MAX_OCTAL_11) {
            Some(seconds) => header.set_mtime(seconds),
            None => {
                header.set_mtime(0);
                pax.push(("mtime", meta.mtime.0.to_string().into_bytes()));
            }
        }
        // The fraction that a layer's own entries have not.
        if let (Ok(seconds), nanoseconds @ 1..) = (u64::try_from(meta.mtime.0), meta.mtime.1) {
            pax.retain(|(key, _)| *key != "mtime");
            pax.push(("mtime", format!("{seconds}.{nanoseconds:09}").into_bytes()));
        }
        if let Some(value) = &meta.capability {
            pax.push(("SCHILY.xattr.security.capability", value.clone()));
        }
        if !pax.is_empty() {
            self.extended(path, &mut pax).map_err(|e| TreeError::io("writing the tar entry of", path, e))?;
        }
        header.set_cksum();
        self.entries += 1;
        self.put(header.as_bytes()).map_err(|e| TreeError::io("writing the tar entry of", path, e))
    }

    /// Writes a content: exactly `size` bytes, whatever `content` has.
    pub fn content(&mut self, path: &[u8], size: u64, content: impl Read) -> Result<(), TreeError> {
        let copied = io::copy(&mut content.take(size), &mut self.out);
        self.copied(path, size, copied)
    }

    fn copied(&mut self, path: &[u8], size: u64, copied: io::Result<u64>) -> Result<(), TreeError> {
        let failed = |e| TreeError::io("writing the tar entry of", path, e);
        let copied = copied.map_err(failed)?;
        self.bytes += copied;
        if copied < size {
            let (path, left) = (String::from_utf8_lossy(path), size - copied);
            return Err(TreeError::Internal {
                message: format!("{path:?} lost {left} of its {size} bytes while it was read"),
            });
        }
        self.pad(size).map_err(failed)
    }

    /// Ends the archive; says how many entries and bytes it has.
    pub fn finish(mut self) -> Result<(u64, u64), TreeError> {
        self.put(&[0; 2 * BLOCK])
            .and_then(|()| self.out.flush())
            .map_err(|e| TreeError::io("writing the tar's end", "", e))?;
        Ok((self.entries, self.bytes))
    }

    fn extended(&mut self, path: &[u8], pax: &mut [(&str, Vec<u8>)]) -> io::Result<()> {
        pax.sort_unstable();
        let data: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        put(&mut header, 0..100, &ascii(&[b"PaxHeaders.0/", name].concat()));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        header.set_cksum();
        self.put(header.as_bytes())?;
        self.put(&data)?;
        self.pad(data.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let pad = (size.wrapping_neg() % BLOCK as u64) as usize;
        self.put(&[0; BLOCK][..pad])
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

impl TarWriter<BufWriter<File>> {
    /// Writes a file's content: exactly `size` bytes, whatever `file` has.
    pub fn file(&mut self, path: &[u8], size: u64, file: &File) -> Result<(), TreeError> {
        if size < DIRECT {
            return self.content(path, size, file);
        }
        // From file to pipe the kernel moves pages; `io::copy` knows.
        let flushed = self.out.flush();
        let copied = flushed.and_then(|()| io::copy(&mut file.take(size), self.out.get_mut()));
        self.copied(path, size, copied)
    }
}

/// Writes a name into the header's name and prefix fields; false when it does not fit there.
fn set_name(header: &mut Header, name: &[u8]) -> bool {
    if !name.is_ascii() {
        return false;
    }
    if name.len() <= 100 {
        put(header, 0..100, name);
        return true;
    }
    // The prefix ends at a slash that is in neither part; a directory's own last slash can't be that one.
    let split = (name.len().saturating_sub(101)..name.len().min(156))
        .find(|at| name[*at] == b'/' && *at > 0 && *at + 1 < name.len());
    let Some(at) = split else { return false };
    put(header, 345..500, &name[..at]);
    put(header, 0..100, &name[at + 1..]);
    true
}

fn put(header: &mut Header, field: std::ops::Range<usize>, value: &[u8]) {
    let field = &mut header.as_mut_bytes()[field];
    let fits = field.len().min(value.len());
    field[..fits].copy_from_slice(&value[..fits]);
}

/// What a reader without PAX shows.
fn ascii(value: &[u8]) -> Vec<u8> {
    value.iter().copied().filter(u8::is_ascii).collect()
}

/// A PAX record; its length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}
