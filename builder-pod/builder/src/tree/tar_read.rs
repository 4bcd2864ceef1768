//! Reading a tar stream entry by entry: ustar, PAX and GNU long names, with the same view of a crafted archive as Go's
//! `archive/tar` (which Docker and containerd use): a PAX size counts for the entry that it describes and for nothing
//! else, header-only types carry no data, a later record wins. Bounded: nothing is held but one extended header.

use std::collections::HashSet;
use std::io::{self, Read};

use super::TreeError;
use super::at::{MAX_ENTRIES, MAX_PATH};

const BLOCK: usize = 512;
/// Longest extended header or long name: Go's own limit (archive/tar, `maxSpecialFileSize`).
const MAX_EXTENDED: u64 = 1 << 20;

/// Largest content of an entry: Go's sizes and offsets are signed, and so are the kernel's.
const MAX_SIZE: u64 = i64::MAX as u64;

/// The kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Hardlink,
    Symlink,
    Directory,
    Fifo,
    /// Character or block device.
    Device,
}

/// One entry; its content, if any, is read from the [`TarReader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TarEntry {
    pub kind: Kind,
    /// As written.
    pub path: Vec<u8>,
    /// Target of a link, as written.
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: (i64, u32),
    /// `SCHILY.xattr.*`, by name without that prefix.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries from a tar stream.
#[derive(Debug)]
pub(super) struct TarReader<R> {
    input: R,
    /// Bytes of the current entry's content not read yet, and its padding.
    left: u64,
    pad: u64,
    entries: u64,
}

/// What extended headers say of the next entry.
#[derive(Debug, Default)]
struct Extended {
    pax: Vec<(Vec<u8>, Vec<u8>)>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

fn bad(what: impl std::fmt::Display) -> TreeError {
    TreeError::image(format!("not a valid tar archive: {what}"))
}

/// An error of a stream that is decompressed while it is read: the system's answers are the system's, all else says that
/// the bytes are wrong.
pub(super) fn read_error(error: io::Error) -> TreeError {
    if error.raw_os_error().is_some() {
        TreeError::io("reading", "archive", error)
    } else {
        TreeError::image(format!("archive can't be read: {error}"))
    }
}

impl<R: Read> TarReader<R> {
    /// A reader of `input`, which stands at the first header.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, pad: 0, entries: 0 }
    }

    /// The next entry, `None` at the end. What is left of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<TarEntry>, TreeError> {
        let mut extended = Extended::default();
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(TreeError::image(format!(
                    "archive has more than {MAX_ENTRIES} entries, the most that one may have"
                )));
            }
            let size = size_of(&header)?;
            match header[156] {
                b'x' => extended.pax = parse_pax(&self.extended(size)?)?,
                b'L' => extended.name = Some(until_nul(&self.extended(size)?).to_vec()),
                b'K' => extended.link = Some(until_nul(&self.extended(size)?).to_vec()),
                // Defaults for all that follows (git writes its commit there); Docker ignores them.
                b'g' => {
                    parse_pax(&self.extended(size)?)?;
                }
                _ => return self.entry(&header, size, extended).map(Some),
            }
        }
    }

    /// Reads on to the end of the stream, whatever is there: a digest covers what follows the archive, too.
    pub fn drain(mut self) -> Result<R, TreeError> {
        pass(&mut self.input, u64::MAX).map_err(read_error)?;
        Ok(self.input)
    }

    fn entry(&mut self, header: &[u8; BLOCK], size: u64, extended: Extended) -> Result<TarEntry, TreeError> {
        let mut entry = plain_entry(header, size)?;
        for (key, value) in extended.pax {
            apply_pax(&mut entry, &key, value)?;
        }
        // A later record wins. Once for all: a header of 1 MiB has room for fifty thousand of them.
        let mut seen = HashSet::new();
        let mut last = Vec::new();
        while let Some((name, value)) = entry.xattrs.pop() {
            if seen.insert(name.clone()) {
                last.push((name, value));
            }
        }
        last.reverse();
        entry.xattrs = last;
        if let Some(name) = extended.name {
            entry.path = name;
        }
        if let Some(link) = extended.link {
            entry.link = link;
        }
        if header[156] != b'5' && entry.kind == Kind::File && entry.path.last() == Some(&b'/') {
            // Before ustar a directory was a file whose name ends in a slash.
            entry.kind = Kind::Directory;
        }
        if entry.kind != Kind::File {
            entry.size = 0;
        }
        for (what, path) in [("name", &entry.path), ("link target", &entry.link)] {
            if path.len() > MAX_PATH || path.contains(&0) {
                return Err(bad(format_args!(
                    "a {what} is {} bytes long or holds a NUL; at most {MAX_PATH} bytes are allowed",
                    path.len()
                )));
            }
        }
        if entry.size > MAX_SIZE {
            return Err(bad(format_args!(
                "an entry of {} bytes; at most {MAX_SIZE} are allowed",
                entry.size
            )));
        }
        self.left = entry.size;
        self.pad = padding(entry.size);
        Ok(entry)
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TreeError> {
        let mut header = [0u8; BLOCK];
        match self.fill(&mut header)? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(bad("it ends within a header")),
        }
        if header.iter().all(|b| *b == 0) {
            return match self.fill(&mut header)? {
                0 | BLOCK if header.iter().all(|b| *b == 0) => Ok(None),
                _ => Err(bad("one zero block, and then no end")),
            };
        }
        if !checksum_fits(&header) {
            return Err(bad("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let mut have = 0;
        while have < buffer.len() {
            match self.input.read(&mut buffer[have..]) {
                Ok(0) => break,
                Ok(more) => have += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        Ok(have)
    }

    fn extended(&mut self, size: u64) -> Result<Vec<u8>, TreeError> {
        if size > MAX_EXTENDED {
            return Err(bad(format_args!(
                "an extended header of {size} bytes; at most {MAX_EXTENDED} are allowed"
            )));
        }
        let mut data = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut data).map_err(read_error)?;
        if data.len() as u64 != size {
            return Err(bad("it ends within an extended header"));
        }
        self.pad = padding(size);
        Ok(data)
    }

    fn skip(&mut self) -> Result<(), TreeError> {
        let want = self.left + self.pad;
        let got = pass(&mut self.input, want).map_err(read_error)?;
        // The padding of the last entry may be missing, as in Go.
        if got < self.left {
            return Err(bad("it ends within a file"));
        }
        (self.left, self.pad) = (0, 0);
        Ok(())
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let got = self.input.read(&mut buffer[..want])?;
        if got == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ends within a file"));
        }
        self.left -= got as u64;
        Ok(got)
    }
}

/// Reads up to `want` bytes and drops them; how many there were. In pieces of up to 256 KiB: who decompresses has to move what it
/// looks back on with every read, and `io::copy` asks for 8 KiB.
fn pass(input: &mut impl Read, want: u64) -> io::Result<u64> {
    let mut buffer = vec![0; usize::try_from(want.min(256 << 10)).unwrap_or_default()];
    let mut got = 0;
    while got < want {
        let room = buffer.len().min(usize::try_from(want - got).unwrap_or(usize::MAX));
        match input.read(&mut buffer[..room]) {
            Ok(0) => break,
            Ok(n) => got += n as u64,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Whether a block is a tar header: POSIX sums unsigned bytes, some old writers signed ones.
pub(super) fn checksum_fits(header: &[u8]) -> bool {
    let Some(written) = header.get(148..156).and_then(|f| number(f).ok()) else {
        return false;
    };
    let bytes = || {
        header.iter().take(BLOCK).enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b })
    };
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    header.len() >= BLOCK && (written == unsigned || written == signed)
}

/// A number field: octal text, or base 256 when the first bit is set (GNU).
fn number(field: &[u8]) -> Result<i64, TreeError> {
    let Some(first) = field.first() else { return Ok(0) };
    if first & 0x80 == 0 {
        let text = field.split(|b| *b == 0).next().unwrap_or_default().trim_ascii();
        return text.iter().try_fold(0i64, |sum, digit| match digit {
            b'0'..=b'7' => sum
                .checked_mul(8)
                .and_then(|sum| sum.checked_add(i64::from(digit - b'0')))
                .ok_or_else(|| bad("a number is too large")),
            _ => Err(bad(format_args!("{:?} is no number", String::from_utf8_lossy(field)))),
        });
    }
    // Two's complement, the flag bit replaced by the sign that follows it.
    let negative = first & 0x40 != 0;
    let mut value: i128 = if negative { -1 } else { 0 };
    for (i, byte) in field.iter().enumerate() {
        let byte = match (i, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = value
            .checked_mul(256)
            .map(|v| v | i128::from(byte))
            .ok_or_else(|| bad("a number is too large"))?;
    }
    i64::try_from(value).map_err(|_| bad("a number is too large"))
}

fn natural(field: &[u8], what: &str) -> Result<u64, TreeError> {
    let value = number(field)?;
    u64::try_from(value).map_err(|_| bad(format_args!("{what} is {value}")))
}

fn size_of(header: &[u8; BLOCK]) -> Result<u64, TreeError> {
    natural(&header[124..136], "a size")
}

fn plain_entry(header: &[u8; BLOCK], size: u64) -> Result<TarEntry, TreeError> {
    let kind = match header[156] {
        b'0' | 0 | b'7' => Kind::File,
        b'1' => Kind::Hardlink,
        b'2' => Kind::Symlink,
        b'3' | b'4' => Kind::Device,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(sparse()),
        other => return Err(bad(format_args!("entry type {:?} is not known", char::from(other)))),
    };
    let mut path = until_nul(&header[..100]).to_vec();
    let prefix = until_nul(&header[345..500]);
    if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
        path = [prefix, b"/", &path].concat();
    }
    Ok(TarEntry {
        kind,
        path,
        link: until_nul(&header[157..257]).to_vec(),
        // Writers put the file type there, too; only the permission bits count.
        mode: (number(&header[100..108])? & 0o7777) as u32,
        uid: natural(&header[108..116], "an owner")?,
        gid: natural(&header[116..124], "a group")?,
        size,
        mtime: (number(&header[136..148])?, 0),
        xattrs: Vec::new(),
    })
}

fn sparse() -> TreeError {
    TreeError::image("sparse tar entries are not supported; make the archive without `--sparse`")
}

/// Keys and values of a PAX header, as bytes.
type PaxRecords = Vec<(Vec<u8>, Vec<u8>)>;

/// PAX records: `LENGTH KEY=VALUE\n`, the length counting itself (POSIX pax).
fn parse_pax(mut data: &[u8]) -> Result<PaxRecords, TreeError> {
    let wrong = || bad("a PAX record is malformed");
    let mut records = Vec::new();
    while !data.is_empty() {
        let space = data.iter().position(|b| *b == b' ').ok_or_else(wrong)?;
        let length = std::str::from_utf8(&data[..space])
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse::<usize>().ok())
            .filter(|length| (space + 3..=data.len()).contains(length))
            .ok_or_else(wrong)?;
        let (record, rest) = data.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|b| *b == b'=').filter(|at| *at > 0).ok_or_else(wrong)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = rest;
    }
    Ok(records)
}

fn apply_pax(entry: &mut TarEntry, key: &[u8], value: Vec<u8>) -> Result<(), TreeError> {
    let natural = |value: &[u8]| {
        std::str::from_utf8(value)
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(|| {
                bad(format_args!(
                    "PAX {} is {:?}",
                    String::from_utf8_lossy(key),
                    String::from_utf8_lossy(value)
                ))
            })
    };
    if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") {
        // An empty value takes a record back.
        return Ok(());
    }
    match key {
        b"path" => entry.path = value,
        b"linkpath" => entry.link = value,
        b"size" => entry.size = natural(&value)?,
        b"uid" => entry.uid = natural(&value)?,
        b"gid" => entry.gid = natural(&value)?,
        b"mtime" => entry.mtime = decimal(&value)?,
        key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
        key => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.".as_slice()) {
                entry.xattrs.push((name.to_vec(), value));
            }
        }
    }
    Ok(())
}

/// `seconds[.fraction]` as seconds and nanoseconds (the latter always forward in time).
fn decimal(value: &[u8]) -> Result<(i64, u32), TreeError> {
    let text = std::str::from_utf8(value).unwrap_or_default();
    let wrong = || bad(format_args!("PAX mtime is {text:?}"));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let seconds: i64 = whole.parse().map_err(|_| wrong())?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanos: u32 = digits.parse().map_err(|_| wrong())?;
    if whole.starts_with('-') && nanos > 0 {
        return Ok((seconds.checked_sub(1).ok_or_else(wrong)?, 1_000_000_000 - nanos));
    }
    Ok((seconds, nanos))
}
