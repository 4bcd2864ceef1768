//! The part of an image that somebody looks at, from the indexes of its layers: the directories and links on the way to
//! some paths, and what is below them. Which links lead where is told from all layers at once, whether a layer above hides
//! one or not: what is taken too much does no harm, for the layers' trees still lie over one another as they do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Read};
use std::os::unix::fs::FileExt as _;

use super::TreeError;
use super::at::{self, Meta};
use super::decompress;
use super::place::MAX_HELD;
use super::tar_read::{Kind, TarEntry, TarReader};
use super::tar_write::{Body, TarWriter};
use super::unpack::{mapped, meta, whiteout_of};

/// Most ways that a path is followed, through the links of all layers: more are no image's, and then all is taken.
const MAX_WAYS: usize = 1000;
/// Most bytes of an index, decompressed: a million entries of half a kibibyte.
const MAX_INDEX: u64 = 512 << 20;

/// What an index says of links.
#[derive(Debug, Default, Clone)]
pub struct Links {
    symlinks: Vec<(Vec<u8>, Vec<u8>)>,
    /// Targets of hardlinks.
    targets: BTreeSet<Vec<u8>>,
    /// An entry goes through a link of its own layer, so that its path is not where it is.
    winding: bool,
}

/// A path that somebody looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Absolute.
    pub path: String,
    /// And what is below it, if it is a directory.
    pub below: bool,
}

/// What is taken of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// What is on these paths, and below those.
    Of {
        /// On the way.
        on: BTreeSet<Vec<u8>>,
        /// With all that is below.
        below: BTreeSet<Vec<u8>>,
    },
}

/// A file read from its start, whoever else reads it.
struct FromStart<'a>(&'a File, u64);

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.0.read_at(buffer, self.1)?;
        self.1 += got as u64;
        Ok(got)
    }
}

fn entries(index: &File) -> Result<TarReader<impl Read + '_>, TreeError> {
    Ok(TarReader::new(decompress::layer_tar(FromStart(index, 0))?.limited(MAX_INDEX)))
}

/// Reads an index, compressed or not, to its end.
///
/// # Errors
/// [`TreeError::Image`] for what is none.
pub fn links(index: &File) -> Result<Links, TreeError> {
    let mut found = Links::default();
    let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut held = 0;
    let mut tar = entries(index)?;
    while let Some(entry) = tar.next()? {
        let path = at::clean(&entry.path);
        found.winding |= !seen.is_empty() && parents(&path).any(|parent| seen.contains(parent));
        match entry.kind {
            Kind::Symlink => {
                held += 2 * path.len() + entry.link.len();
                seen.insert(path.clone());
                found.symlinks.push((path, entry.link));
            }
            Kind::Hardlink => {
                held += entry.link.len();
                found.targets.insert(at::clean(&entry.link));
            }
            _ => {}
        }
        if held > MAX_HELD {
            return Err(TreeError::image(format!("its links are more than {MAX_HELD} bytes")));
        }
    }
    tar.drain()?;
    Ok(found)
}

/// The directories that a path is in, the longest first; not the root.
fn parents(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(Some(at::split(path).0), |path| Some(at::split(path).0))
        .take_while(|path| !path.is_empty())
}

/// What has to be there for who looks at paths, given the links of all layers.
pub fn part(layers: &[&Links], looks: &[Look]) -> Part {
    if layers.iter().any(|links| links.winding) {
        return Part::All;
    }
    let mut leads: BTreeMap<&[u8], BTreeSet<&[u8]>> = BTreeMap::new();
    for (path, target) in layers.iter().flat_map(|links| &links.symlinks) {
        leads.entry(path).or_default().insert(target);
    }
    let (mut on, mut below) = (BTreeSet::new(), BTreeSet::new());
    let mut known = BTreeSet::new();
    // Ways that are to be followed: where we are, and the components that are left, the next one last.
    let mut ways: Vec<(Vec<u8>, Vec<Vec<u8>>, bool)> = Vec::new();
    let reversed = |path: &[u8]| -> Vec<Vec<u8>> {
        path.split(|b| *b == b'/')
            .rev()
            .filter(|part| !part.is_empty() && part != b".")
            .map(<[u8]>::to_vec)
            .collect()
    };
    for look in looks {
        ways.push((Vec::new(), reversed(look.path.as_bytes()), look.below));
    }
    while let Some((mut here, mut left, all)) = ways.pop() {
        if !known.insert((here.clone(), left.clone(), all)) {
            continue;
        }
        if known.len() > MAX_WAYS {
            return Part::All;
        }
        while let Some(next) = left.pop() {
            if next == b".." {
                here = at::split(&here).0.to_vec();
                continue;
            }
            let path = at::join(&here, &next);
            on.insert(path.clone());
            for target in leads.get(path.as_slice()).into_iter().flatten() {
                let from = if target.starts_with(b"/") { Vec::new() } else { here.clone() };
                let mut way = left.clone();
                way.extend(reversed(target));
                ways.push((from, way, all));
            }
            here = path;
        }
        if all {
            below.insert(here);
        }
    }
    if below.contains(&Vec::new()) { Part::All } else { Part::Of { on, below } }
}

impl Part {
    fn has(&self, path: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::Of { on, below } => {
                on.contains(path)
                    || below.contains(path)
                    || parents(path).any(|parent| below.contains(parent))
            }
        }
    }
}

impl Part {
    /// Whether an entry is what a directory on the way is there for: a layer need not carry the directory itself.
    fn implies(&self, path: &[u8], there: &BTreeSet<Vec<u8>>) -> bool {
        let Self::Of { on, .. } = self else { return false };
        parents(path).any(|parent| on.contains(parent) && !there.contains(parent))
    }
}

/// Writes a part of an index, as a tar without hardlinks: names of one file each take its attributes.
///
/// # Errors
/// [`TreeError::Image`] for a hardlink into another layer; [`TreeError::Io`] with `EPIPE` when the reader gave up.
pub fn write_part(index: &File, links: &Links, part: &Part, out: File) -> Result<(), TreeError> {
    // 64 KiB: a pipe's worth.
    let mut out = TarWriter::new(BufWriter::with_capacity(64 << 10, out));
    let mut targets: BTreeMap<Vec<u8>, TarEntry> = BTreeMap::new();
    // Directories on the way that something was written in.
    let mut there: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut tar = entries(index)?;
    while let Some(entry) = tar.next()? {
        let path = at::clean(&entry.path);
        if entry.kind != Kind::Hardlink && links.targets.contains(&path) {
            targets.insert(path.clone(), entry.clone());
        }
        let shown = whiteout_of(&path).unwrap_or_else(|| path.clone());
        if !part.has(&shown) && !part.implies(&path, &there) {
            continue;
        }
        if let Part::Of { on, .. } = part {
            let own = Some(path.as_slice()).filter(|_| entry.kind == Kind::Directory);
            there.extend(parents(&path).chain(own).filter(|path| on.contains(*path)).map(<[u8]>::to_vec));
        }
        if entry.kind != Kind::Hardlink {
            put(&mut out, &path, &entry, Some(&mut tar))?;
            continue;
        }
        let target = targets.get(&at::clean(&entry.link)).cloned();
        let target = target.ok_or_else(|| {
            let (path, target) = (String::from_utf8_lossy(&path), String::from_utf8_lossy(&entry.link));
            TreeError::image(format!("{path:?} is a hardlink to {target:?}, which is not in its layer"))
        })?;
        put(&mut out, &path, &target, None::<&mut TarReader<&[u8]>>)?;
        if links.targets.contains(&path) {
            targets.insert(path, target);
        }
    }
    out.finish().map(drop)
}

fn put(
    out: &mut TarWriter<BufWriter<File>>,
    path: &[u8],
    entry: &TarEntry,
    content: Option<&mut TarReader<impl Read>>,
) -> Result<(), TreeError> {
    let size = if content.is_some() { entry.size } else { 0 };
    let body = match entry.kind {
        Kind::Directory => Body::Directory,
        Kind::File => Body::File(size),
        Kind::Symlink => Body::Symlink(&entry.link),
        Kind::Fifo => Body::Fifo,
        Kind::Device => Body::Device,
        Kind::Hardlink => return Ok(()),
    };
    let meta = Meta { capability: None, ..meta(entry, mapped(entry.uid, entry.gid)?) };
    out.entry(path, &meta, body)?;
    match content {
        Some(content) if size > 0 => out.content(path, size, content),
        _ => Ok(()),
    }
}
