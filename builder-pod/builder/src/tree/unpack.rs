//! From a layer's blob to a tree: entries are placed in the tree whatever their names say, whiteouts become overlayfs's.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

use super::TreeError;
use super::at::{self, Meta};
use super::decompress;
use super::index::IndexWriter;
use super::place::{MAX_HELD, Placer, Rules, remove_below};
use super::tar_read::{Kind, TarEntry, TarReader};
use crate::engine::{CACHE_MOUNT, LAYER_INDEX, Owner, Unpacked};

/// Marks a directory as hiding what is below it, in a mount with `userxattr` (overlayfs.rst).
pub(super) const OPAQUE: &str = "user.overlay.opaque";
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// AUFS's own files; layers of old carry them (OCI image-spec layer.md knows only the two above).
const AUFS: &[u8] = b".wh..wh.";

/// Unpacks a compressed layer, or an index of one, into the empty directory `dest`; its own index goes to `index`.
///
/// What a cache mount holds is unpacked as well; it is no layer: no name is a whiteout, and its root has attributes.
///
/// Device nodes are left out: they can't be made in a user namespace. `trusted.*`, `user.overlay.*` and all extended
/// attributes but `security.capability` and `user.*` are dropped.
///
/// # Errors
/// [`TreeError::Image`] when the layer breaks a rule or a limit.
pub fn unpack(
    blob: File,
    media_type: &str,
    dest: BorrowedFd<'_>,
    index: Option<File>,
) -> Result<Unpacked, TreeError> {
    let placeholders = media_type == LAYER_INDEX;
    let exact = media_type == CACHE_MOUNT;
    if !placeholders && !exact {
        decompress::check_media_type(media_type)?;
    }
    let mut index = index.map(IndexWriter::new);
    let mut tar = TarReader::new(decompress::layer_tar(blob)?);
    let mut layer = Layer { links: BTreeMap::new(), implied: BTreeMap::new(), held: 0, placeholders, exact };
    let mut placer = Placer::new(dest);
    let mut root = None;
    while let Some(entry) = tar.next()? {
        let path = at::clean(&entry.path);
        if exact && path.is_empty() && entry.kind == Kind::Directory {
            root = Some(meta(&entry, mapped(entry.uid, entry.gid)?));
            continue;
        }
        if !exact && aufs(&path) {
            continue;
        }
        if let Some(index) = &mut index {
            index.of_layer(&path, &entry)?;
        }
        layer.entry(&mut placer, &path, &entry, &mut tar).map_err(TreeError::of_image)?;
    }
    placer.finish().map_err(TreeError::of_image)?;
    if let Some(root) = root {
        let dressed = at::open_dir(dest, b"").and_then(|dir| at::dress(&dir, &root));
        dressed.map_err(|e| TreeError::io("setting the attributes of", "/", e).of_image())?;
    }
    if let Some(mut index) = index {
        index.keep(dest)?;
        index.finish()?;
    }
    let (diff_id, size) = tar.drain()?.finish();
    let text = |path: Vec<u8>| {
        String::from_utf8(path).map_err(|e| {
            let path = String::from_utf8_lossy(e.as_bytes()).into_owned();
            TreeError::image(format!("layer entry {path:?} needs the layers below and its name is not UTF-8"))
        })
    };
    Ok(Unpacked {
        diff_id,
        size,
        // A parent whose name is not text keeps the attributes that it was made with.
        implied: layer.implied.into_keys().filter_map(|path| String::from_utf8(path).ok()).collect(),
        links: layer
            .links
            .into_iter()
            .map(|(path, target)| Ok((text(path)?, text(target)?)))
            .collect::<Result<_, TreeError>>()?,
    })
}

/// What is known of the layer so far.
struct Layer {
    /// Hardlinks whose target this layer has not (path, target).
    links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Directories made for entries in them.
    implied: BTreeMap<Vec<u8>, ()>,
    /// Bytes of paths in `links`.
    held: usize,
    /// It is an index: empty files stand for others.
    placeholders: bool,
    /// It is all of a tree, and no layer.
    exact: bool,
}

impl Layer {
    fn entry(
        &mut self,
        placer: &mut Placer<'_>,
        path: &[u8],
        entry: &TarEntry,
        tar: &mut TarReader<impl std::io::Read>,
    ) -> Result<(), TreeError> {
        let (parent, name) = at::split(path);
        if self.exact {
            return placer.put(path, entry, tar, self);
        }
        if name == OPAQUE_WHITEOUT {
            let dir = placer.directory(parent, self)?;
            return mark_opaque(dir, parent);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let odd = hidden.is_empty() || hidden == b"." || hidden == b"..";
            // `.wh./` loses its slash to `clean`, so a directory of that name shows here, too.
            if odd {
                let path = String::from_utf8_lossy(path);
                return Err(TreeError::image(format!("layer entry {path:?} is a whiteout of nothing")));
            }
            let dir = placer.directory(parent, self)?;
            return whiteout(dir, hidden, path);
        }
        placer.put(path, entry, tar, self)
    }
}

impl Rules for Layer {
    fn owner(&self, entry: &TarEntry) -> Result<Owner, TreeError> {
        mapped(entry.uid, entry.gid)
    }

    fn parent_made(&mut self, path: &[u8]) {
        self.implied.insert(path.to_vec(), ());
    }

    fn replaced(&mut self, path: &[u8], whole: bool) {
        self.implied.remove(path);
        self.links.remove(path);
        if whole {
            remove_below(&mut self.implied, path);
            remove_below(&mut self.links, path);
        }
    }

    fn link_nowhere(&mut self, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        if self.exact {
            let path = String::from_utf8_lossy(path);
            return Err(TreeError::image(format!("{path:?} links to a file that is not in the archive")));
        }
        self.held += path.len() + target.len();
        if self.held > MAX_HELD {
            return Err(TreeError::image(format!(
                "the paths of a layer's links into layers below are more than {MAX_HELD} bytes, the most that is held"
            )));
        }
        self.links.insert(path.to_vec(), target.to_vec());
        Ok(())
    }

    fn through_dangling(&self) -> bool {
        true
    }

    fn links_dress(&self) -> bool {
        false
    }

    fn is_placeholder(&self, entry: &TarEntry) -> bool {
        self.placeholders && entry.size == 0
    }

    fn nameless(&self) -> Result<(), TreeError> {
        Err(TreeError::image("a layer's entry has no name"))
    }
}

/// Owner ids as they can be in the step's user namespace.
pub(super) fn mapped(uid: u64, gid: u64) -> Result<Owner, TreeError> {
    // 65535 exists only where the kubelet gives all of 65536; the kernel refuses it elsewhere.
    match (u32::try_from(uid), u32::try_from(gid)) {
        (Ok(uid), Ok(gid)) if uid <= 65535 && gid <= 65535 => Ok(Owner { uid, gid }),
        _ => Err(TreeError::image(format!(
            "a file belongs to {uid}:{gid}; ids beyond 65534 do not exist in the build's user namespace"
        ))),
    }
}

/// Whether an entry is one of AUFS's own, which no layer means.
pub(super) fn aufs(path: &[u8]) -> bool {
    let (_, name) = at::split(path);
    name.starts_with(AUFS) && name != OPAQUE_WHITEOUT
}

/// What the whiteout `path` hides; of an opaque one the directory that it is in.
pub(super) fn whiteout_of(path: &[u8]) -> Option<Vec<u8>> {
    let (parent, name) = at::split(path);
    if name == OPAQUE_WHITEOUT {
        return Some(parent.to_vec());
    }
    Some(at::join(parent, name.strip_prefix(WHITEOUT)?))
}

/// Hides everything that layers below have in `dir`.
pub(super) fn mark_opaque(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
        .map_err(|e| TreeError::io("marking as opaque", path, e))
}

/// Hides `name` of the layers below: with a whiteout where this layer has no such name, by marking it opaque where it is a
/// directory here; any other file hides it anyway.
fn whiteout(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
    match at::look(dir, name).map_err(|e| TreeError::io("looking at", path, e))? {
        None => make_whiteout(dir, name, path),
        Some(stat) if at::kind(&stat) == FileType::Directory => {
            let dir = at::open_dir(dir, name).map_err(|e| TreeError::io("opening", path, e))?;
            mark_opaque(dir.as_fd(), path)
        }
        Some(_) => Ok(()),
    }
}

/// Makes overlayfs's whiteout; any user may (since Linux 5.8).
pub(super) fn make_whiteout(dir: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> Result<(), TreeError> {
    match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(TreeError::io("making a whiteout for", path, error)),
    }
}

/// Attributes of an entry as a file has them.
pub(super) fn meta(entry: &TarEntry, owner: Owner) -> Meta {
    let capability =
        entry.xattrs.iter().find(|(name, _)| name == b"security.capability").map(|(_, value)| value.clone());
    Meta { mode: entry.mode, owner, mtime: entry.mtime, capability }
}
