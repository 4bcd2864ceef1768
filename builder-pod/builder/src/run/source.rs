//! The build context: files of the request written out, or a directory of this machine; and the files in it that the build
//! itself reads. Paths are resolved inside the context by the kernel.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_contract::request::{Content, NamedContext, Source};
use kiln_contract::{Failure, FailureClass, paths, reason};
use kiln_dockerfile::IgnoreFile;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::Root;
use super::context::{Directory, Place};
use crate::courier::Courier;
use crate::solve::Checkout;
use crate::solve::failure::{Halt, internal};

/// Bytes of a Dockerfile or an ignore file at most: generated ones reach tens of KiB; more is a mistake.
const MAX_FILE: u64 = 1 << 20;
/// Bytes of a path at most (`PATH_MAX`).
const MAX_PATH: usize = 4096;
/// Components of a path at most, so that making and removing them stays cheap.
const MAX_DEPTH: usize = 64;

/// The context's root.
pub(super) fn open(source: &Source, context_dir: &str, work_dir: &Path) -> Result<Root, Box<Failure>> {
    let root = match source {
        Source::Files(files) => {
            let root = work_dir.join("context");
            write_out(files, &root)?;
            root
        }
        Source::Directory(path) => PathBuf::from(path),
        Source::Git(_) | Source::Http(_) | Source::Oci(_) => PathBuf::from(paths::CONTEXT_TREE),
    };
    let not_found = |path: &Path, e: rustix::io::Errno| {
        let message = format!("the build context {} can't be opened: {e}", path.display());
        Box::new(Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, message))
    };
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, &root, directory, Mode::empty()).map_err(|e| not_found(&root, e))?;
    if matches!(context_dir, "" | "." | "./") {
        return Ok(opened);
    }
    openat2(&opened, context_dir, directory, Mode::empty(), ResolveFlags::IN_ROOT)
        .map_err(|e| not_found(Path::new(context_dir), e))
}

/// Seconds that the fetch of the source took, which count for the timeout.
pub(super) fn fetch_seconds(source: &Source) -> u64 {
    if !source.is_fetched() {
        return 0;
    }
    let text = std::fs::read_to_string(paths::FETCH_SECONDS).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Writes the files of a request: 0644, directories 0755, whatever the umask.
fn write_out(files: &[kiln_contract::request::File], root: &Path) -> Result<(), Box<Failure>> {
    let fault =
        |path: &Path, e: std::io::Error| Box::new(internal(format!("writing {}: {e}", path.display())));
    match std::fs::remove_dir_all(root) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(fault(root, e)),
        _ => {}
    }
    make_directory(root).map_err(|e| fault(root, e))?;
    for file in files {
        let invalid = |problem: &str| {
            let message = format!("the file {:?} of the build context {problem}", file.path);
            Box::new(Failure::new(FailureClass::Source, reason::SOURCE_INVALID, message))
        };
        check_path(&file.path).map_err(invalid)?;
        let bytes = match &file.content {
            Content::Text(text) => text.clone().into_bytes(),
            Content::Base64(text) => {
                STANDARD.decode(text).map_err(|e| invalid(&format!("is not valid base64: {e}")))?
            }
        };
        let path = root.join(&file.path);
        let mut dir = root.to_owned();
        for part in Path::new(&file.path).parent().into_iter().flatten() {
            dir.push(part);
            match make_directory(&dir) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists && dir.is_dir() => {}
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    return Err(invalid("is below another file"));
                }
                other => other.map_err(|e| fault(&dir, e))?,
            }
        }
        let mut out = match File::options().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(invalid("is given twice")),
            other => other.map_err(|e| fault(&path, e))?,
        };
        out.write_all(&bytes)
            .and_then(|()| out.set_permissions(Permissions::from_mode(0o644)))
            .map_err(|e| fault(&path, e))?;
    }
    Ok(())
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o755))
}

/// Whether a path of a request is one below the context.
fn check_path(path: &str) -> Result<(), &'static str> {
    if path.is_empty() || path.len() > MAX_PATH {
        return Err("has a path that is empty or longer than 4096 bytes");
    }
    if path.contains('\0') {
        return Err("has a NUL byte in its path");
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err("has a path that is not plain: expected a/b/c, relative, without . and ..");
    }
    if path.split('/').count() > MAX_DEPTH {
        return Err("lies deeper than 64 directories");
    }
    Ok(())
}

/// Reads a file of the context; `None` when it is not there.
fn read(context: BorrowedFd<'_>, path: &str) -> Result<Option<Vec<u8>>, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match openat2(context, path, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(e) => return Err(format!("it can't be opened: {e}")),
    };
    let is_file = file.metadata().map_err(|e| e.to_string())?.is_file();
    if !is_file {
        return Err("it is no regular file".into());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|e| format!("it can't be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("it has more than {MAX_FILE} bytes"));
    }
    Ok(Some(bytes))
}

/// The Dockerfile's bytes.
pub(super) fn dockerfile(context: &Root, path: &str) -> Result<Vec<u8>, Box<Failure>> {
    let fail =
        |message: String| Box::new(Failure::new(FailureClass::User, reason::DOCKERFILE_NOT_FOUND, message));
    match read(context.as_fd(), path) {
        Ok(Some(bytes)) => Ok(bytes),
        Ok(None) => Err(fail(format!(
            "the Dockerfile {path:?} is not in the build context; name it relative to the context's directory"
        ))),
        Err(problem) => Err(fail(format!("the Dockerfile {path:?} is not usable: {problem}"))),
    }
}

/// The named contexts that are not images: directories, each with its own ignore file, and repositories, which are checked
/// out into `work_dir`.
pub(super) fn named(
    contexts: &BTreeMap<String, NamedContext>,
    courier: &dyn Courier,
    work_dir: &Path,
) -> Result<BTreeMap<String, Directory>, Halt> {
    let mut opened = BTreeMap::new();
    for (number, (name, context)) in contexts.iter().enumerate() {
        let path = match context {
            NamedContext::Image(_) => continue,
            NamedContext::Git(source) => {
                let checkout = Checkout::fetch(courier, source, work_dir, &format!("context{number}"))?;
                let root = Place::CheckedOut(checkout);
                let directory = Directory { root, ignore: IgnoreFile::default() };
                opened.insert(name.clone(), directory);
                continue;
            }
            NamedContext::Directory(path) => path,
        };
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, path, directory, Mode::empty()).map_err(|e| {
            let message = format!("the context {name} ({path}) can't be opened: {e}");
            Box::new(Failure::new(FailureClass::Source, reason::SOURCE_NOT_FOUND, message))
        })?;
        let ignore = ignore(&root, "")?;
        opened.insert(name.clone(), Directory { root: Place::Opened(root), ignore });
    }
    Ok(opened)
}

/// The context's ignore file: `<Dockerfile>.dockerignore`, else `.dockerignore`, else nothing is ignored.
pub(super) fn ignore(context: &Root, dockerfile: &str) -> Result<IgnoreFile, Box<Failure>> {
    for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
        let fail = |problem: String| {
            let message = format!("{name} is not usable: {problem}");
            Box::new(Failure::new(FailureClass::User, reason::SOURCE_INVALID, message))
        };
        if let Some(bytes) = read(context.as_fd(), &name).map_err(fail)? {
            return IgnoreFile::parse(&String::from_utf8_lossy(&bytes)).map_err(|e| fail(e.to_string()));
        }
    }
    Ok(IgnoreFile::default())
}

#[cfg(test)]
mod tests {
    use kiln_contract::request;

    use super::*;

    fn file(path: &str, text: &str) -> request::File {
        request::File { path: path.into(), content: Content::Text(text.into()) }
    }

    fn open_files(files: Vec<request::File>, dir: &Path) -> Result<Root, Box<Failure>> {
        open(&Source::Files(files), ".", dir)
    }

    #[test]
    fn files_of_the_request_become_a_context() {
        let dir = tempfile::tempdir().unwrap();
        let binary = request::File { path: "a/b/bin".into(), content: Content::Base64("AAEC".into()) };
        let files = vec![file("Dockerfile", "FROM x"), file("a/c", "c"), binary];
        let root = open_files(files.clone(), dir.path()).unwrap();
        assert_eq!(dockerfile(&root, "Dockerfile").unwrap(), b"FROM x");
        assert_eq!(std::fs::read(dir.path().join("context/a/b/bin")).unwrap(), [0, 1, 2]);
        let mode =
            |path: &str| std::fs::metadata(dir.path().join(path)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("context/a/c"), mode("context/a/b")), (0o644, 0o755));
        // What an earlier run left is gone.
        open_files(vec![file("x", "")], dir.path()).unwrap();
        assert!(!dir.path().join("context/a").exists());
        let sub = open(&Source::Files(files), "a", dir.path()).unwrap();
        assert_eq!(dockerfile(&sub, "c").unwrap(), b"c");
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let deep = "d/".repeat(64) + "f";
        for bad in ["", "/etc/x", "a/../b", "a//b", "./a", "a/", "a\0b", deep.as_str()] {
            let failure = open_files(vec![file(bad, "")], dir.path()).unwrap_err();
            assert_eq!(failure.reason, reason::SOURCE_INVALID, "{bad:?}");
        }
        for files in [vec![file("a", ""), file("a", "")], vec![file("a", ""), file("a/b", "")]] {
            assert_eq!(open_files(files, dir.path()).unwrap_err().reason, reason::SOURCE_INVALID);
        }
        let bad = request::File { path: "a".into(), content: Content::Base64("?".into()) };
        assert_eq!(open_files(vec![bad], dir.path()).unwrap_err().reason, reason::SOURCE_INVALID);
    }

    #[test]
    fn a_link_out_of_the_context_stays_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        let context = dir.path().join("ctx");
        std::fs::create_dir(&context).unwrap();
        std::os::unix::fs::symlink("../secret", context.join("Dockerfile")).unwrap();
        std::fs::write(context.join("secret"), "inside").unwrap();
        let source = Source::Directory(context.to_str().unwrap().into());
        let root = open(&source, ".", dir.path()).unwrap();
        assert_eq!(dockerfile(&root, "Dockerfile").unwrap(), b"inside");
        assert_eq!(open(&source, "none", dir.path()).unwrap_err().reason, reason::SOURCE_NOT_FOUND);
        assert_eq!(dockerfile(&root, "none").unwrap_err().reason, reason::DOCKERFILE_NOT_FOUND);
        assert_eq!(dockerfile(&root, ".").unwrap_err().reason, reason::DOCKERFILE_NOT_FOUND);
    }

    #[test]
    fn the_dockerfile_s_own_ignore_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = vec![file("x/Dockerfile", ""), file(".dockerignore", "a")];
        let root = open_files(files.clone(), dir.path()).unwrap();
        assert_eq!(ignore(&root, "x/Dockerfile").unwrap().patterns(), ["a"]);
        files.push(file("x/Dockerfile.dockerignore", "b"));
        let root = open_files(files, dir.path()).unwrap();
        assert_eq!(ignore(&root, "x/Dockerfile").unwrap().patterns(), ["b"]);
        let root = open_files(vec![file(".dockerignore", "[")], dir.path()).unwrap();
        assert_eq!(ignore(&root, "Dockerfile").unwrap_err().reason, reason::SOURCE_INVALID);
    }
}
