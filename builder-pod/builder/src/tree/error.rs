//! What goes wrong in a file tree, sorted by whose fault it is.

use std::io;

use rustix::io::Errno;

use crate::engine::{EngineError, EngineErrorKind};

/// What went wrong in a file tree.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The Dockerfile or the build context asks for something that is not there or does not fit.
    #[error("{message}")]
    User {
        /// What was expected, what was found, what to do.
        message: String,
    },
    /// A layer or an image breaks a rule or a limit.
    #[error("{message}")]
    Image {
        /// What was expected, what was found.
        message: String,
    },
    /// A file's content is needed of which only an entry of an index is there.
    #[error("what is in {path:?} is needed, and only the index of its layer is there")]
    Content {
        /// Path in the tree.
        path: String,
    },
    /// The workspace is full.
    #[error("no space left in the workspace while {doing} {path:?}: raise its size limit")]
    Space {
        /// What was being done, as a participle.
        doing: &'static str,
        /// Path in the tree.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The system refused.
    #[error("{doing} {path:?}: {source}")]
    Io {
        /// What was being done, as a participle.
        doing: &'static str,
        /// Path in the tree.
        path: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A rule of ours was broken.
    #[error("{message}")]
    Internal {
        /// Which.
        message: String,
    },
}

impl TreeError {
    /// An [`TreeError::Io`], or [`TreeError::Space`] where the answer is that there is no room.
    pub(crate) fn io(doing: &'static str, path: impl AsRef<[u8]>, source: impl Into<io::Error>) -> Self {
        let path = String::from_utf8_lossy(path.as_ref()).into_owned();
        let source = source.into();
        let full =
            [Errno::NOSPC, Errno::DQUOT].iter().any(|e| source.raw_os_error() == Some(e.raw_os_error()));
        if full { Self::Space { doing, path, source } } else { Self::Io { doing, path, source } }
    }

    /// A [`TreeError::User`].
    pub(crate) fn user(message: impl Into<String>) -> Self {
        Self::User { message: message.into() }
    }

    /// A [`TreeError::Image`].
    pub(crate) fn image(message: impl Into<String>) -> Self {
        Self::Image { message: message.into() }
    }

    /// Whether it is the system's answer `errno`.
    pub(crate) fn is(&self, errno: Errno) -> bool {
        matches!(self, Self::Io { source, .. } if source.raw_os_error() == Some(errno.raw_os_error()))
    }

    /// Whether the system refused because of what the files are, not because of how we asked.
    fn is_about_files(&self) -> bool {
        let answers = [
            Errno::NOENT,
            Errno::NOTDIR,
            Errno::ISDIR,
            Errno::EXIST,
            Errno::LOOP,
            Errno::NAMETOOLONG,
            Errno::MLINK,
            Errno::INVAL,
            Errno::OVERFLOW,
        ];
        answers.into_iter().any(|errno| self.is(errno))
    }

    /// The same as the image's fault, where it is about its files.
    pub(crate) fn of_image(self) -> Self {
        if self.is_about_files() { Self::Image { message: self.to_string() } } else { self }
    }

    /// The same as the Dockerfile's fault, where it is about its files.
    pub(crate) fn of_user(self) -> Self {
        if self.is_about_files() { Self::User { message: self.to_string() } } else { self }
    }
}

impl From<TreeError> for EngineError {
    fn from(error: TreeError) -> Self {
        let kind = match &error {
            TreeError::User { .. } => EngineErrorKind::User,
            TreeError::Image { .. } => EngineErrorKind::Image,
            TreeError::Content { .. } => EngineErrorKind::Content,
            TreeError::Space { .. } => EngineErrorKind::Space,
            TreeError::Io { .. } | TreeError::Internal { .. } => EngineErrorKind::Internal,
        };
        Self { kind, message: error.to_string() }
    }
}
