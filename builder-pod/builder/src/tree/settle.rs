//! What one layer alone can't know: the attributes of directories that it did not carry, hardlinks into layers below, and
//! an opaque root (overlayfs always merges the roots of its layers).

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::TreeError;
use super::at::{self, Meta};
use super::unpack::{OPAQUE, make_whiteout, mark_opaque};
use crate::engine::Unpacked;

/// Puts right what unpacking each layer alone could not (see [`crate::engine::Engine::settle`]). From the bottom up.
///
/// # Errors
/// [`TreeError::Image`] for a hardlink to nowhere.
pub fn settle(layers: &[(OwnedFd, Unpacked)]) -> Result<(), TreeError> {
    for (i, (tree, unpacked)) in layers.iter().enumerate() {
        let below = &layers[..i];
        let tree = at::open_dir(tree, b"").map_err(|e| TreeError::io("opening", "/", e))?;
        opaque_root(tree.as_fd(), below)?;
        for path in &unpacked.implied {
            inherit(tree.as_fd(), below, path.as_bytes())?;
        }
        for (path, target) in &unpacked.links {
            link(tree.as_fd(), below, path.as_bytes(), target.as_bytes())?;
        }
    }
    Ok(())
}

/// What the layers `below` show at a path.
struct Found {
    dir: OwnedFd,
    name: Vec<u8>,
    stat: Stat,
}

/// Looks a path (clean) up in layers, from the top down, as overlayfs would: a whiteout, an opaque directory and whatever
/// is no directory hide what is below.
fn find(layers: &[(OwnedFd, Unpacked)], path: &[u8]) -> Result<Option<Found>, TreeError> {
    let failed = |e: Errno| TreeError::io("looking below for", path, e);
    'layer: for (tree, _) in layers.iter().rev() {
        let mut dir = at::open_dir(tree, b"").map_err(failed)?;
        let mut hides = false;
        let (parent, name) = at::split(path);
        for part in parent.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            match at::look(&dir, part).map_err(failed)? {
                None if hides => return Ok(None),
                None => continue 'layer,
                Some(stat) if at::kind(&stat) == FileType::Directory => {}
                Some(_) => return Ok(None),
            }
            dir = at::open_dir(&dir, part).map_err(failed)?;
            hides |= at::attribute(&dir, OPAQUE).map_err(failed)?.is_some_and(|value| value == b"y");
        }
        match at::look(&dir, name).map_err(failed)? {
            None if hides => return Ok(None),
            None => {}
            Some(stat) if at::is_whiteout(&stat) => return Ok(None),
            Some(stat) => return Ok(Some(Found { dir, name: name.to_vec(), stat })),
        }
    }
    Ok(None)
}

fn inherit(tree: BorrowedFd<'_>, below: &[(OwnedFd, Unpacked)], path: &[u8]) -> Result<(), TreeError> {
    let failed = |e: Errno| TreeError::io("settling", path, e);
    let own = at::open_plain(tree, path).map_err(failed)?;
    if at::attribute(&own, OPAQUE).map_err(failed)?.is_some() {
        return Ok(());
    }
    match find(below, path)? {
        Some(found) if at::kind(&found.stat) == FileType::Directory => {
            at::dress(&own, &Meta::of(&found.stat)).map_err(failed)
        }
        _ => Ok(()),
    }
}

fn link(
    tree: BorrowedFd<'_>,
    below: &[(OwnedFd, Unpacked)],
    path: &[u8],
    target: &[u8],
) -> Result<(), TreeError> {
    let failed = |e: Errno| TreeError::io("linking", path, e);
    let nowhere = || {
        let (path, target) = (String::from_utf8_lossy(path), String::from_utf8_lossy(target));
        TreeError::image(format!(
            "layer entry {path:?} is a hardlink to {target:?}, and no layer has that file"
        ))
    };
    let found = find(below, target)?.filter(|found| at::kind(&found.stat) != FileType::Directory);
    let found = found.ok_or_else(nowhere)?;
    let (parent, name) = at::split(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let dir = at::open_in(tree, parent, flags).map_err(failed)?;
    match rustix::fs::linkat(&found.dir, found.name.as_slice(), &dir, name, AtFlags::empty()) {
        // Settled before.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Hides what layers below have at the top, name by name.
fn opaque_root(tree: BorrowedFd<'_>, below: &[(OwnedFd, Unpacked)]) -> Result<(), TreeError> {
    let failed = |e: Errno| TreeError::io("settling", "/", e);
    if at::attribute(tree, OPAQUE).map_err(failed)?.is_none() {
        return Ok(());
    }
    let mut names = BTreeSet::new();
    for (lower, _) in below {
        let lower = at::open_dir(lower, b"").map_err(failed)?;
        names.extend(at::list(lower.as_fd(), b"/")?);
    }
    for name in names {
        match at::look(tree, &name).map_err(failed)? {
            None => make_whiteout(tree, &name, &name)?,
            Some(stat) if at::kind(&stat) == FileType::Directory => {
                let dir = at::open_dir(tree, &name).map_err(failed)?;
                mark_opaque(dir.as_fd(), &name)?;
            }
            Some(_) => {}
        }
    }
    Ok(())
}
