//! What can go wrong with a source, in the classes that decide who has to act.

use kiln_contract::{Failure, FailureClass, reason};
use kiln_git::Cause;

pub use kiln_git::Kind;

/// A source that can't be had.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// Who has to act.
    pub kind: Kind,
    /// What was expected and found.
    pub message: String,
    /// The end of what a program said.
    pub output: Option<String>,
    /// Where the courier has said it all.
    pub told: Option<Box<Failure>>,
}

impl Fault {
    /// A fault of that kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), output: None, told: None }
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

    /// A checkout's fault, with what to do about it; `login` says whether the Secret had one.
    pub(crate) fn of_git(fault: kiln_git::Fault, login: bool) -> Self {
        let hint = match fault.cause {
            Some(Cause::HostKey) => {
                "; the server's key is not the one in known_hosts of the Secret (`ssh-keyscan HOST` prints it)"
            }
            Some(Cause::Certificate) => {
                "; put the server's authority into ca.crt of the Secret that spec.source.git.secretName names"
            }
            // git says the same of no login and of a wrong one.
            Some(Cause::Login) if login => {
                "; the login of the Secret does not open it, or it is not there: check the Secret that spec.source.git.secretName names (username and password, or bearerToken)"
            }
            Some(Cause::Login) => {
                "; it is private, or not there: check the Secret that spec.source.git.secretName names"
            }
            Some(Cause::Transport) => "; submodules may be on https and ssh only",
            Some(Cause::History) => "; ask for less history (spec.source.git.depth)",
            Some(Cause::NoGit) => {
                "; the image of the container source must be kiln-source of the same release"
            }
            None => "",
        };
        Self { output: fault.output, ..Self::new(fault.kind, format!("{}{hint}", fault.message)) }
    }

    /// What the courier answered.
    pub fn told(failure: Failure) -> Self {
        Self { told: Some(Box::new(failure.clone())), ..Self::internal(failure.message) }
    }

    /// In the words of status, log and report.
    pub fn failure(&self) -> Failure {
        if let Some(told) = &self.told {
            return (**told).clone();
        }
        let (class, why) = match self.kind {
            Kind::Unauthorized => (FailureClass::Source, reason::SOURCE_UNAUTHORIZED),
            Kind::NotFound => (FailureClass::Source, reason::SOURCE_NOT_FOUND),
            Kind::Checksum => (FailureClass::Source, reason::SOURCE_CHECKSUM_MISMATCH),
            Kind::TooLarge => (FailureClass::Source, reason::SOURCE_TOO_LARGE),
            Kind::Invalid => (FailureClass::Source, reason::SOURCE_INVALID),
            Kind::Unavailable => (FailureClass::Source, reason::SOURCE_UNAVAILABLE),
            Kind::Internal => (FailureClass::Infrastructure, reason::INTERNAL),
        };
        let failure = Failure::new(class, why, &self.message);
        match &self.output {
            Some(output) if !output.trim().is_empty() => failure.with_log_tail(output),
            _ => failure,
        }
    }
}

impl From<kiln_git::Fault> for Fault {
    fn from(fault: kiln_git::Fault) -> Self {
        Self::of_git(fault, false)
    }
}
