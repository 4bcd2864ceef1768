//! What can go wrong with a checkout, in the classes that decide who has to act.

/// Who has to act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Other credentials are wanted.
    Unauthorized,
    /// It is not there.
    NotFound,
    /// Other bytes than the checksum names.
    Checksum,
    /// More than a limit.
    TooLarge,
    /// It breaks a rule.
    Invalid,
    /// Its server does not answer.
    Unavailable,
    /// A fault of ours or of the node.
    Internal,
}

/// What a caller may have a hint for; only it knows where credentials would come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The ssh server has another key than is known.
    HostKey,
    /// The server's certificate is signed by nobody who is trusted.
    Certificate,
    /// No login, or the wrong one, or nothing there.
    Login,
    /// A submodule is where we do not fetch from.
    Transport,
    /// git keeps too much history.
    History,
    /// The program git is not installed.
    NoGit,
}

/// A checkout that can't be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Who has to act.
    pub kind: Kind,
    /// What was expected and found.
    pub message: String,
    /// Where there is more to say.
    pub cause: Option<Cause>,
    /// The end of what git said.
    pub output: Option<String>,
}

impl Fault {
    /// A fault of that kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), cause: None, output: None }
    }

    /// Something in Kiln or the node.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// A broken rule.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// A limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(Kind::TooLarge, message)
    }
}
