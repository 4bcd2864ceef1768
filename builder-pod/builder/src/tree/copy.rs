//! COPY, ADD and WORKDIR: the calls of the engine, from the walk on one side to the writing on the other.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::FileType;

use super::apply::{Applier, MakeParents};
use super::archive::unpack_into;
use super::at::{self, Meta};
use super::events::{Content, Event, Sink};
use super::pattern::Patterns;
use super::select::{Ignore, Seen, Source, select};
use super::source::Walker;
use super::stream::{StreamWriter, Summer, read_stream};
use super::walk::{Strict, walk};
use super::{Ignored, TreeError};
use crate::engine::{Copied, Destination, InlineFile, Owner, Selection};

/// Copies the entries of a stream that [`write_context`] wrote into `root`.
///
/// # Errors
/// [`TreeError::User`] when the destination does not fit the sources; [`TreeError::Internal`] when the stream ends early:
/// then whoever wrote it has the reason.
pub fn copy_stream(root: BorrowedFd<'_>, to: &Destination, entries: File) -> Result<Copied, TreeError> {
    let mut applier = Applier::new(root, to);
    read_stream(entries, &mut applier)?;
    Ok(applier.copied)
}

/// Copies files of `from_root` into `root`. Owners, modes, times, `security.capability` and hardlinks within a source are
/// kept; sockets and devices are left out.
///
/// # Errors
/// [`TreeError::User`] for a missing source or an unfit destination.
pub fn copy_tree(
    root: BorrowedFd<'_>,
    to: &Destination,
    from_root: BorrowedFd<'_>,
    what: &Selection,
) -> Result<Copied, TreeError> {
    let missing =
        |source: &str| TreeError::user(format!("COPY source {source:?} not found in the stage or image"));
    let sources = select(from_root, what, None, &missing)?;
    let excludes = Patterns::new(&what.excludes)?;
    let mut applier = Applier::new(root, to);
    for source in &sources {
        Walker::new(&mut applier, &excludes, None, None).source(source)?;
    }
    Ok(applier.copied)
}

/// Writes the selected files of a build context as a stream for [`copy_stream`]; all of them belong to 0:0. `ignore` is
/// asked with the path relative to the context and whether it is a directory. Every source is looked for before anything
/// is written.
///
/// # Errors
/// [`TreeError::User`] for a missing source; [`TreeError::Io`] with `EPIPE` when the reader gave up: then the reader has
/// the reason.
pub fn write_context(
    context: BorrowedFd<'_>,
    what: &Selection,
    ignore: &dyn Fn(&str, bool) -> Ignored,
    out: File,
) -> Result<(), TreeError> {
    let mut writer = StreamWriter::new(out);
    walk_context(context, what, ignore, &mut writer)?;
    writer.finish()
}

/// A digest over what [`write_context`] would write, without times.
///
/// # Errors
/// As [`write_context`].
pub fn digest_context(
    context: BorrowedFd<'_>,
    what: &Selection,
    ignore: &dyn Fn(&str, bool) -> Ignored,
) -> Result<String, TreeError> {
    let mut sum = Summer::default();
    walk_context(context, what, ignore, &mut sum)?;
    Ok(sum.finish())
}

fn walk_context(
    context: BorrowedFd<'_>,
    what: &Selection,
    ignore: &dyn Fn(&str, bool) -> Ignored,
    sink: &mut dyn Sink,
) -> Result<(), TreeError> {
    let missing = |source: &str| {
        let why = if is_excluded(context, source, ignore) { " (excluded by .dockerignore)" } else { "" };
        TreeError::user(format!("COPY source {source:?} not found in the build context{why}"))
    };
    let sources: Vec<Source> = select(context, what, Some(ignore), &missing)?;
    let excludes = Patterns::new(&what.excludes)?;
    for source in &sources {
        let root = Some(Owner::default());
        Walker::new(sink, &excludes, Some(ignore), root).source(source)?;
    }
    Ok(())
}

/// Unpacks a tar of ours into the empty directory `root`: what another of our processes sent.
///
/// # Errors
/// As for an archive that is added.
pub fn unpack_plain(root: BorrowedFd<'_>, tar: File) -> Result<(), TreeError> {
    let to =
        Destination { path: "/".to_owned(), sources: 1, owner: None, mode: None, unpack: true, link: false };
    unpack_into(root, &to, tar)
}

/// Writes a file whose content is at hand as a stream for [`copy_stream`]: 0644, of 0:0.
///
/// # Errors
/// As [`write_context`]; [`TreeError::User`] for a name that is no single component.
pub fn write_inline(file: &InlineFile, mtime: i64, out: File) -> Result<(), TreeError> {
    let bytes = file.data.as_bytes();
    write_file(&file.name, 0o644, mtime, bytes.len() as u64, &mut &*bytes, out)
}

/// The same for `size` bytes of a reader.
///
/// # Errors
/// As [`write_inline`].
pub fn write_file(
    name: &str,
    mode: u32,
    mtime: i64,
    size: u64,
    from: &mut dyn Read,
    out: File,
) -> Result<(), TreeError> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(TreeError::user(format!("{name:?} is no name for a file: expected one without a slash")));
    }
    let mut writer = StreamWriter::new(out);
    let meta = Meta { mode, mtime: (mtime, 0), ..Meta::default() };
    writer.event(&Event::Source { name: name.as_bytes().to_vec(), directory: None }, Content::None)?;
    let event = Event::File { name: Vec::new(), meta, size, link: None };
    writer.event(&event, Content::Stream(from))?;
    writer.finish()
}

/// Whether a source that was not found is there and hidden.
fn is_excluded(context: BorrowedFd<'_>, source: &str, ignore: Ignore<'_>) -> bool {
    let source = source.replace("/./", "/");
    let seen = Seen { ignore: Some(ignore) };
    walk(context, &at::clean(source.as_bytes()), true, &mut Strict).is_ok_and(|place| {
        let stat = at::look(&place.dir, &place.name).ok().flatten();
        stat.is_some_and(|stat| {
            let is_dir = at::kind(&stat) == FileType::Directory;
            // Hidden itself, or by a directory above.
            let mut path = place.path.as_slice();
            let mut is_dir = is_dir;
            while !path.is_empty() {
                if seen.ask(path, is_dir) != Ignored::No {
                    return true;
                }
                path = at::split(path).0;
                is_dir = true;
            }
            false
        })
    })
}

/// Makes a directory and its missing parents (0755, `owner`) in `root`; an existing one is left as it is.
///
/// # Errors
/// [`TreeError::User`] when something that is no directory is in the way.
pub fn make_directory(root: BorrowedFd<'_>, path: &str, owner: Owner) -> Result<(), TreeError> {
    let mut make = MakeParents { owner, mode: 0o755 };
    let place = walk(root, &at::clean(path.as_bytes()), true, &mut make).map_err(TreeError::of_user)?;
    if place.name.is_empty() {
        return Ok(());
    }
    let there = at::look(&place.dir, &place.name).map_err(|e| TreeError::io("looking at", path, e))?;
    if there.is_some() {
        return Err(TreeError::user(format!("{path:?} is needed as a directory and is a file")));
    }
    make.make(place.dir.as_fd(), &place.name)
        .map_err(|e| TreeError::io("making directory", path, e).of_user())
}
