//! Placing the entries of an archive: the kernel resolves their parents inside the tree (openat2), the last component is never
//! followed, and what is not a file, a directory or a link has no place.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::read_error;
use crate::error::Fault;
use crate::finish::{mode_of, path_in, times};
use crate::limits::{Budget, MAX_DEPTH, MAX_PATH};

/// Where an entry goes: its directory, its name there, and its whole path.
type Spot = (OwnedFd, Vec<u8>, Vec<u8>);

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Seconds and nanoseconds.
pub type Time = (i64, u32);

/// Puts entries into a tree.
#[derive(Debug)]
pub struct Placer<'a> {
    root: OwnedFd,
    budget: &'a mut Budget,
    /// Times of directories, set at the end.
    times: BTreeMap<Vec<u8>, Time>,
    /// Where the last entry went: entries come in runs.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// What this layer has made; only kept for an image's.
    made: Option<BTreeSet<Vec<u8>>>,
}

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

/// The components of an entry's name.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Fault> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    if parts.contains(&b"..".as_slice()) {
        return Err(Fault::invalid(format!(
            "the source's archive has an entry {} that leads out of it",
            shown(path)
        )));
    }
    if path.len() > MAX_PATH || parts.len() > MAX_DEPTH || path.contains(&0) {
        return Err(Fault::invalid(format!(
            "the source's archive has a name of {} bytes and {} components; at most {MAX_PATH} and {MAX_DEPTH} are allowed",
            path.len(),
            parts.len()
        )));
    }
    Ok(parts)
}

impl<'a> Placer<'a> {
    /// Into `tree`.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn new(tree: &Path, budget: &'a mut Budget) -> Result<Self, Fault> {
        let root = rustix::fs::openat(CWD, tree, DIRECTORY, Mode::empty())
            .map_err(|e| Fault::internal(format!("opening {}: {e}", tree.display())))?;
        Ok(Self { root, budget, times: BTreeMap::new(), last: None, made: None })
    }

    /// Into `tree`, over the layers below.
    ///
    /// # Errors
    /// As [`Placer::new`].
    pub fn layer(tree: &Path, budget: &'a mut Budget) -> Result<Self, Fault> {
        Ok(Self { made: Some(BTreeSet::new()), ..Self::new(tree, budget)? })
    }

    /// Opens the directory `path` inside the tree; `None` when it is not there.
    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>, Fault> {
        let path: &[u8] = if path.is_empty() { b"." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), resolve) {
                Ok(fd) => return Ok(Some(fd)),
                // Something on the machine was renamed meanwhile.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let text = format!(
                        "the source's archive has an entry below {}, which is no directory",
                        shown(path)
                    );
                    return Err(Fault::invalid(text));
                }
                Err(e) => return Err(Fault::internal(format!("opening {}: {e}", shown(path)))),
            }
        }
    }

    /// The directory of those components; missing ones are made.
    fn directory_of(&mut self, parts: &[&[u8]]) -> Result<OwnedFd, Fault> {
        let path = parts.join(&b'/');
        if let Some((last, fd)) = &self.last
            && *last == path
        {
            return dup(fd);
        }
        let found = match self.open(&path)? {
            Some(fd) => fd,
            None => {
                let Some((name, above)) = parts.split_last() else {
                    return Err(Fault::internal("the tree is gone"));
                };
                let parent = self.directory_of(above)?;
                self.budget.file()?;
                match rustix::fs::mkdirat(&parent, *name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {}
                    Err(Errno::EXIST) => {
                        let text = format!(
                            "the source's archive has an entry below {}, which leads nowhere",
                            shown(&path)
                        );
                        return Err(Fault::invalid(text));
                    }
                    Err(e) => return Err(Fault::internal(format!("making {}: {e}", shown(&path)))),
                }
                self.times.insert(path.clone(), (0, 0));
                self.open(&path)?.ok_or_else(|| Fault::internal(format!("{} is gone", shown(&path))))?
            }
        };
        self.last = Some((path, dup(&found)?));
        Ok(found)
    }

    /// The entry's directory and name, with nothing there that is in its way. `None`: the tree's own root.
    fn place(&mut self, path: &[u8], directory: bool) -> Result<Option<Spot>, Fault> {
        let parts = parts(path)?;
        let Some((name, above)) = parts.split_last() else { return Ok(None) };
        let (name, full) = (name.to_vec(), parts.join(&b'/'));
        let dir = self.directory_of(above)?;
        self.budget.file()?;
        if let Some(made) = &mut self.made {
            made.insert(full.clone());
        }
        match rustix::fs::statat(&dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && directory => {}
            Ok(_) => self.remove(&dir, &name)?,
            Err(_) => {}
        }
        Ok(Some((dir, name, full)))
    }

    fn remove(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        let failed = |e: String| Fault::internal(format!("removing {}: {e}", shown(name)));
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                self.last = None;
                std::fs::remove_dir_all(path_in(dir.as_fd(), name)).map_err(|e| failed(e.to_string()))
            }
            Err(e) => Err(failed(e.to_string())),
        }
    }

    /// A directory.
    ///
    /// # Errors
    /// It leads out of the tree; a limit.
    pub fn directory(&mut self, path: &[u8], time: Time) -> Result<(), Fault> {
        let Some((dir, name, full)) = self.place(path, true)? else { return Ok(()) };
        match rustix::fs::mkdirat(&dir, name.as_slice(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(Fault::internal(format!("making {}: {e}", shown(&full)))),
        }
        self.times.insert(full, time);
        Ok(())
    }

    /// A file.
    ///
    /// # Errors
    /// It leads out of the tree; a limit; `content` can't be read.
    pub fn file(&mut self, path: &[u8], mode: u32, time: Time, content: &mut impl Read) -> Result<(), Fault> {
        let Some((dir, name, full)) = self.place(path, false)? else {
            return Err(Fault::invalid("the source's archive has a file without a name"));
        };
        let failed = |e: std::io::Error| Fault::internal(format!("writing {}: {e}", shown(&full)));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name.as_slice(), flags, Mode::from_raw_mode(0o600));
        let mut file = std::fs::File::from(fd.map_err(|e| failed(e.into()))?);
        let mut buffer = vec![0; 64 << 10];
        loop {
            let got = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(read_error(&e)),
            };
            self.budget.bytes(got as u64)?;
            file.write_all(&buffer[..got]).map_err(failed)?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode_of(mode))).map_err(|e| failed(e.into()))?;
        rustix::fs::futimens(&file, &times(time)).map_err(|e| failed(e.into()))
    }

    /// A symbolic link; where it leads is looked at when it is used, inside the tree.
    ///
    /// # Errors
    /// It leads out of the tree; a limit.
    pub fn symlink(&mut self, path: &[u8], target: &[u8], time: Time) -> Result<(), Fault> {
        let Some((dir, name, full)) = self.place(path, false)? else {
            return Err(Fault::invalid("the source's archive has a link without a name"));
        };
        if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
            return Err(Fault::invalid(format!(
                "the link {} of the source's archive has no usable target",
                shown(&full)
            )));
        }
        rustix::fs::symlinkat(target, &dir, name.as_slice())
            .and_then(|()| {
                rustix::fs::utimensat(&dir, name.as_slice(), &times(time), AtFlags::SYMLINK_NOFOLLOW)
            })
            .map_err(|e| Fault::internal(format!("making {}: {e}", shown(&full))))
    }

    /// A further name of a file that is there.
    ///
    /// # Errors
    /// There is no such file; it leads out of the tree; a limit.
    pub fn hardlink(&mut self, path: &[u8], target: &[u8]) -> Result<(), Fault> {
        let missing = || {
            Fault::invalid(format!(
                "the source's archive has a hardlink {} to {}, which is no file in it",
                shown(path),
                shown(target)
            ))
        };
        let of = parts(target)?;
        let (of_name, of_above) = of.split_last().ok_or_else(missing)?;
        let of_dir = self.open(&of_above.join(&b'/'))?.ok_or_else(missing)?;
        let stat = rustix::fs::statat(&of_dir, *of_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing());
        }
        if parts(path)? == of {
            return Ok(());
        }
        let Some((dir, name, full)) = self.place(path, false)? else { return Err(missing()) };
        rustix::fs::linkat(&of_dir, *of_name, &dir, name.as_slice(), AtFlags::empty())
            .map_err(|e| Fault::internal(format!("linking {}: {e}", shown(&full))))
    }

    /// A whiteout of an image's layer: removes what layers below have there.
    ///
    /// # Errors
    /// It leads out of the tree.
    pub fn whiteout(&mut self, above: &[u8], name: &[u8]) -> Result<(), Fault> {
        if name.is_empty() || name == b"." || name == b".." {
            return Err(Fault::invalid("a layer of the source has a whiteout of nothing"));
        }
        let Some(dir) = self.open(&parts(above)?.join(&b'/'))? else { return Ok(()) };
        self.remove(&dir, name)
    }

    /// An opaque whiteout: removes all that layers below have in `above`.
    ///
    /// # Errors
    /// It leads out of the tree.
    pub fn opaque(&mut self, above: &[u8]) -> Result<(), Fault> {
        let above = parts(above)?.join(&b'/');
        let Some(dir) = self.open(&above)? else { return Ok(()) };
        let failed = |e: Errno| Fault::internal(format!("reading {}: {e}", shown(&above)));
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir).map_err(failed)? {
            names.push(entry.map_err(failed)?.file_name().to_bytes().to_vec());
        }
        for name in names.into_iter().filter(|n| n != b"." && n != b"..") {
            let full = if above.is_empty() { name.clone() } else { [above.as_slice(), b"/", &name].concat() };
            if !self.made.as_ref().is_some_and(|made| made.contains(&full)) {
                self.remove(&dir, &name)?;
            }
        }
        Ok(())
    }

    /// Sets the times of the directories.
    ///
    /// # Errors
    /// A fault of the file system.
    pub fn finish(self) -> Result<(), Fault> {
        for (path, time) in &self.times {
            // Something else may have taken its place.
            let Ok(Some(dir)) = self.open(path) else { continue };
            rustix::fs::futimens(&dir, &times(*time))
                .map_err(|e| Fault::internal(format!("setting the time of {}: {e}", shown(path))))?;
        }
        Ok(())
    }
}

fn dup(fd: &OwnedFd) -> Result<OwnedFd, Fault> {
    fd.try_clone().map_err(|e| Fault::internal(format!("duplicating a descriptor: {e}")))
}
