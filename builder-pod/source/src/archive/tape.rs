//! tar: ustar, PAX and GNU long names. `tar` reads the headers; extended ones are put together here, with bounds.

use std::io::Read;
use std::path::Path;

use tar::{Archive, EntryType, Header, PaxExtensions};

use super::place::{Placer, Time};
use super::read_error;
use crate::error::Fault;
use crate::limits::Budget;

/// Longest extended header or long name: Go's own limit (archive/tar, `maxSpecialFileSize`).
const MAX_EXTENDED: u64 = 1 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    time: Option<Time>,
    size: Option<u64>,
}

/// Unpacks a tar; a `layer` has whiteouts, and its devices are left out.
pub(super) fn unpack(
    input: &mut impl Read,
    tree: &Path,
    budget: &mut Budget,
    layer: bool,
) -> Result<(), Fault> {
    let mut placer = if layer { Placer::layer(tree, budget)? } else { Placer::new(tree, budget)? };
    let mut archive = Archive::new(input);
    let mut extended = Extended::default();
    for entry in archive.entries().map_err(|e| read_error(&e))?.raw(true) {
        let mut entry = entry.map_err(|e| read_error(&e))?;
        let header = entry.header().clone();
        match header.entry_type() {
            EntryType::XHeader => pax(&mut extended, &long(&mut entry, &header)?)?,
            EntryType::GNULongName => extended.path = Some(until_nul(long(&mut entry, &header)?)),
            EntryType::GNULongLink => extended.link = Some(until_nul(long(&mut entry, &header)?)),
            // Defaults for all that follows: git writes its commit there.
            EntryType::XGlobalHeader => {}
            kind => {
                let extended = std::mem::take(&mut extended);
                put(&mut placer, kind, &header, extended, &mut entry, layer)?;
            }
        }
    }
    placer.finish()
}

fn long(entry: &mut impl Read, header: &Header) -> Result<Vec<u8>, Fault> {
    let size = header.entry_size().map_err(|e| read_error(&e))?;
    if size > MAX_EXTENDED {
        return Err(Fault::invalid(format!(
            "the source's archive has an extended header of {size} bytes; at most {MAX_EXTENDED} are allowed"
        )));
    }
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).map_err(|e| read_error(&e))?;
    Ok(bytes)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn pax(extended: &mut Extended, bytes: &[u8]) -> Result<(), Fault> {
    for record in PaxExtensions::new(bytes) {
        let record = record.map_err(|e| read_error(&e))?;
        let value = record.value_bytes();
        match record.key_bytes() {
            b"path" => extended.path = Some(value.to_vec()),
            b"linkpath" => extended.link = Some(value.to_vec()),
            b"mtime" => extended.time = std::str::from_utf8(value).ok().and_then(time),
            b"size" => extended.size = std::str::from_utf8(value).ok().and_then(|t| t.parse().ok()),
            key if key.starts_with(b"GNU.sparse.") => return Err(sparse()),
            _ => {}
        }
    }
    Ok(())
}

fn sparse() -> Fault {
    Fault::invalid(
        "the source's archive has sparse entries, which are not supported; make it without --sparse",
    )
}

/// `seconds[.fraction]`.
fn time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    Some((whole.parse().ok()?, digits.parse().ok()?))
}

fn put(
    placer: &mut Placer<'_>,
    kind: EntryType,
    header: &Header,
    extended: Extended,
    content: &mut impl Read,
    layer: bool,
) -> Result<(), Fault> {
    // A size that does not fit the header is beyond the limit anyway (8 GiB), and one that differs from the header's is how an
    // archive means different things to different readers.
    if extended.size.is_some_and(|size| header.entry_size().ok() != Some(size)) {
        return Err(Fault::invalid("the source's archive has an entry with two sizes"));
    }
    let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let link = extended.link.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
    let link = link.unwrap_or_default();
    let at = || (header.mtime().ok().and_then(|s| i64::try_from(s).ok()).unwrap_or(0), 0);
    let time = extended.time.unwrap_or_else(at);
    let mode = header.mode().map_err(|e| read_error(&e))?;
    if layer {
        let trimmed = path.strip_suffix(b"/").unwrap_or(&path);
        let split = trimmed.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (above, name) = trimmed.split_at(split);
        if name == OPAQUE {
            return placer.opaque(above);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            // AUFS's own files (`.wh..wh.plnk`) are of no use to anybody.
            return if hidden.starts_with(WHITEOUT) { Ok(()) } else { placer.whiteout(above, hidden) };
        }
    }
    match kind {
        // Before ustar a directory was a file whose name ends in a slash.
        EntryType::Directory => placer.directory(&path, time),
        EntryType::Regular | EntryType::Continuous if path.last() == Some(&b'/') => {
            placer.directory(&path, time)
        }
        EntryType::Regular | EntryType::Continuous => placer.file(&path, mode, time, content),
        EntryType::Symlink => placer.symlink(&path, &link, time),
        EntryType::Link => placer.hardlink(&path, &link),
        EntryType::GNUSparse => Err(sparse()),
        EntryType::Char | EntryType::Block | EntryType::Fifo if layer => Ok(()),
        _ => Err(Fault::invalid(format!(
            "the source's archive has an entry {:?} that is neither file, directory nor link",
            String::from_utf8_lossy(&path)
        ))),
    }
}
