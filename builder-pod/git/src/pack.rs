//! Files of a git repository as a tar: a checkout in a directory that goes again, packed into a file.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use kiln_contract::call::MAX_FETCH;
use kiln_contract::source::Git;

use crate::environment::Access;
use crate::error::{Fault, Kind};
use crate::repository;

/// Checks `source` out below `work` and writes its files as a tar into `out`; gives the commit. Blocks.
///
/// # Errors
/// As [`repository::fetch`], or there is no such directory in it.
pub fn fetch_packed(source: &Git, access: &Access, work: &Path, out: File) -> Result<String, Fault> {
    let failed =
        |e: std::io::Error| Fault::internal(format!("making a directory for git in {}: {e}", work.display()));
    let dir = tempfile::Builder::new().prefix("kiln-git-").tempdir_in(work).map_err(failed)?;
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).map_err(failed)?;
    let commit = repository::fetch(source, access, &tree, dir.path())?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    write(source, &tree, source.checkout_time.then_some(now), out)?;
    Ok(commit)
}

/// The wanted files, as a tar.
fn write(source: &Git, tree: &Path, time: Option<u64>, out: File) -> Result<(), Fault> {
    let subdir = source.subdir.as_deref().unwrap_or_default().trim_matches('/');
    let inside = || Fault::new(Kind::NotFound, format!("{} has no directory {subdir}", source.shown()));
    let root = tree.canonicalize().map_err(|e| Fault::internal(e.to_string()))?;
    let top = root.join(subdir).canonicalize().map_err(|_| inside())?;
    if !top.starts_with(&root) || !top.is_dir() {
        return Err(inside());
    }
    let mut tar = tar::Builder::new(std::io::BufWriter::new(out));
    tar.follow_symlinks(false);
    let mut left = MAX_FETCH;
    append(&mut tar, &top, Path::new(""), time, &mut left)
        .and_then(|()| tar.into_inner())
        .and_then(|mut out| std::io::Write::flush(&mut out))
        .map_err(|e| match e.kind() {
            ErrorKind::FileTooLarge => Fault::too_large(format!("{}: {e}", source.shown())),
            _ => Fault::internal(format!("writing the files of a checkout: {e}")),
        })
}

/// Appends what is in `dir`, one directory after another.
fn append(
    tar: &mut tar::Builder<impl std::io::Write>,
    dir: &Path,
    name: &Path,
    time: Option<u64>,
    left: &mut u64,
) -> std::io::Result<()> {
    let mut todo = vec![(dir.to_owned(), name.to_owned())];
    while let Some((dir, name)) = todo.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&dir)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let meta = std::fs::symlink_metadata(&path)?;
            *left = left.checked_sub(meta.len()).ok_or_else(|| {
                let text = format!("its files have more than {MAX_FETCH} bytes, the most allowed");
                std::io::Error::new(ErrorKind::FileTooLarge, text)
            })?;
            let mut header = tar::Header::new_gnu();
            header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mode(if meta.is_dir() || meta.mode() & 0o100 != 0 { 0o755 } else { 0o644 });
            if let Some(time) = time {
                header.set_mtime(time);
            }
            if meta.is_dir() {
                tar.append_data(&mut header, &name, std::io::empty())?;
                todo.push((path, name));
            } else if meta.is_symlink() {
                header.set_size(0);
                tar.append_link(&mut header, &name, std::fs::read_link(&path)?)?;
            } else if meta.is_file() {
                tar.append_data(&mut header, &name, File::open(&path)?)?;
            }
        }
    }
    Ok(())
}
