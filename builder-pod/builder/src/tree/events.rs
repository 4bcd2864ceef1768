//! What a COPY moves, one thing after another: the walk that finds it, the stream that carries it between two users, and
//! the copy that writes it all speak in these.

use std::fs::File;
use std::io::Read;

use super::TreeError;
use super::at::Meta;

/// How a directory comes to be in the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It was chosen: it gets its attributes even where it exists.
    Chosen,
    /// Something in it was chosen (`--parents`, or an exception to `--exclude`): it gets them where it is made.
    Parent,
}

/// One step of a copy. Names are single components.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// The next source, under the name that it has in a destination directory. A directory's contents follow up to its
    /// [`Event::Leave`]; else one event follows, of an empty name.
    Source { name: Vec<u8>, directory: Option<Meta> },
    /// A directory; what is in it follows up to its [`Event::Leave`].
    Directory { name: Vec<u8>, meta: Meta, why: Why },
    /// The end of a directory.
    Leave,
    /// A regular file of `size` bytes. `link`: a number that further names of the same file refer to, within the source.
    File { name: Vec<u8>, meta: Meta, size: u64, link: Option<u64> },
    /// A further name of a file.
    Hardlink { name: Vec<u8>, link: u64 },
    /// A symbolic link.
    Symlink { name: Vec<u8>, meta: Meta, target: Vec<u8> },
    /// A FIFO.
    Fifo { name: Vec<u8>, meta: Meta },
    /// Everything was said.
    End,
}

/// The content of a [`Event::File`].
pub(super) enum Content<'a> {
    /// There is none.
    None,
    /// An open file: the kernel may copy it.
    File(&'a mut File),
    /// A reader of exactly the file's size.
    Stream(&'a mut dyn Read),
}

/// Takes events.
pub(super) trait Sink {
    /// Takes one; reads all of its content.
    fn event(&mut self, event: &Event, content: Content<'_>) -> Result<(), TreeError>;
}
