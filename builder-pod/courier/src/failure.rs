//! Registry errors in the words of a build's failure: class, reason, message.

use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_registry::Error;

/// What the registry was wanted for; decides the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A base image.
    Pull,
    /// The build's source.
    Source,
    /// The build's image.
    Push,
    /// Results of steps.
    Cache,
}

/// The failure of a download.
pub fn of_download(error: &Error) -> Failure {
    let class = match error {
        Error::Unavailable { .. } | Error::Unsafe { .. } => FailureClass::Source,
        Error::Local { .. } | Error::Setup { .. } => {
            return Failure::new(FailureClass::Infrastructure, reason::INTERNAL, told(error));
        }
        _ => FailureClass::User,
    };
    Failure::new(class, reason::DOWNLOAD_FAILED, told(error))
}

/// The failure of a download that is not what its checksum says.
pub fn other_bytes(url: &str, expected: &str, found: &str) -> Failure {
    let text = format!(
        "{url} has digest {found}, and --checksum says {expected}; look at what it holds before the checksum is changed"
    );
    Failure::new(FailureClass::User, reason::DOWNLOAD_FAILED, text)
}

/// An error with its causes.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The failure that an error stands for.
pub fn of_registry(error: &Error, purpose: Purpose) -> Failure {
    if purpose == Purpose::Source {
        return of_source(error);
    }
    if purpose == Purpose::Cache {
        let (class, why) = match error {
            Error::Name { .. } => (FailureClass::User, reason::INVALID_SPEC),
            Error::Unauthorized { .. } | Error::Denied { .. } => {
                (FailureClass::Registry, reason::REGISTRY_UNAUTHORIZED)
            }
            Error::Local { .. } | Error::Setup { .. } => (FailureClass::Infrastructure, reason::INTERNAL),
            Error::Unavailable { .. } => (FailureClass::Registry, reason::REGISTRY_UNAVAILABLE),
            // A word of its own is not needed: no build ends with it.
            _ => (FailureClass::Registry, reason::BASE_IMAGE_INVALID),
        };
        return Failure::new(class, why, told(error));
    }
    let pull = purpose == Purpose::Pull;
    let (class, why, hint) = match error {
        Error::Name { .. } => (FailureClass::User, reason::INVALID_SPEC, ""),
        Error::Unauthorized { .. } => (
            FailureClass::Registry,
            reason::REGISTRY_UNAUTHORIZED,
            "; list a Secret of type kubernetes.io/dockerconfigjson with a login for this registry in the service account's imagePullSecrets",
        ),
        Error::Denied { .. } if pull => (FailureClass::Registry, reason::REGISTRY_UNAUTHORIZED, ""),
        Error::Denied { .. } => {
            (FailureClass::Registry, reason::PUSH_FAILED, "; the login has no right to push there")
        }
        Error::NotFound { .. } if pull => {
            (FailureClass::User, reason::BASE_IMAGE_NOT_FOUND, "; check the name and the tag")
        }
        Error::PlatformMissing { .. } => (FailureClass::User, reason::BASE_IMAGE_NOT_FOUND, ""),
        Error::ImmutableTag { .. } => (
            FailureClass::Registry,
            reason::PUSH_FAILED,
            "; push to a tag that is not taken, or let tags move in the registry's settings",
        ),
        Error::Unavailable { .. } => (FailureClass::Registry, reason::REGISTRY_UNAVAILABLE, ""),
        Error::Digest { .. } | Error::Size { .. } | Error::Invalid { .. } if pull => {
            (FailureClass::User, reason::BASE_IMAGE_INVALID, "")
        }
        Error::Verification { .. } => (FailureClass::Registry, reason::PUSH_VERIFICATION_FAILED, ""),
        Error::Local { .. } | Error::Setup { .. } => (FailureClass::Infrastructure, reason::INTERNAL, ""),
        _ if pull => (FailureClass::Registry, reason::REGISTRY_UNAVAILABLE, ""),
        _ => (FailureClass::Registry, reason::PUSH_FAILED, ""),
    };
    Failure::new(class, why, format!("{}{hint}", told(error)))
}

/// The failure of reading the build's source from a registry.
fn of_source(error: &Error) -> Failure {
    let (class, why, hint) = match error {
        Error::Name { .. } => (FailureClass::User, reason::INVALID_SPEC, ""),
        Error::Unauthorized { .. } | Error::Denied { .. } => (
            FailureClass::Source,
            reason::SOURCE_UNAUTHORIZED,
            "; list a Secret of type kubernetes.io/dockerconfigjson with a login for this registry in the service account's imagePullSecrets",
        ),
        Error::NotFound { .. } | Error::PlatformMissing { .. } => {
            (FailureClass::Source, reason::SOURCE_NOT_FOUND, "; check the name and the tag")
        }
        Error::Digest { .. } => (FailureClass::Source, reason::SOURCE_CHECKSUM_MISMATCH, ""),
        Error::Size { .. } | Error::Invalid { .. } => (FailureClass::Source, reason::SOURCE_INVALID, ""),
        Error::Local { .. } | Error::Setup { .. } => (FailureClass::Infrastructure, reason::INTERNAL, ""),
        _ => (FailureClass::Source, reason::SOURCE_UNAVAILABLE, ""),
    };
    Failure::new(class, why, format!("{}{hint}", told(error)))
}

/// The failure of an attempt that was told to stop.
pub fn of_stop(word: &str) -> Failure {
    let (class, why, text) = match word {
        reason::TIMED_OUT => (FailureClass::Timeout, reason::TIMED_OUT, "the build's timeout passed"),
        reason::SUSPENDED => {
            (FailureClass::Cancelled, reason::SUSPENDED, "stopped because the ImageBuild was suspended")
        }
        reason::SUPERSEDED => {
            (FailureClass::Cancelled, reason::SUPERSEDED, "stopped because a newer run is wanted")
        }
        _ => (FailureClass::Cancelled, reason::CANCELLED, "cancelled on request"),
    };
    Failure::new(class, why, text)
}

/// A fault of our own or of the node.
pub fn internal(text: impl AsRef<str>) -> Failure {
    Failure::new(FailureClass::Infrastructure, reason::INTERNAL, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_to_act() {
        let missing = Error::NotFound { registry: "r".into(), what: "image x".into(), detail: "404".into() };
        assert_eq!(of_registry(&missing, Purpose::Pull).reason, reason::BASE_IMAGE_NOT_FOUND);
        assert_eq!(of_registry(&missing, Purpose::Push).reason, reason::PUSH_FAILED);
        assert_eq!(of_registry(&missing, Purpose::Source).reason, reason::SOURCE_NOT_FOUND);
        let login =
            Error::Unauthorized { registry: "r:5000".into(), action: "push".into(), detail: "none".into() };
        let failure = of_registry(&login, Purpose::Push);
        assert_eq!(
            (failure.class, failure.reason.as_str()),
            (FailureClass::Registry, reason::REGISTRY_UNAUTHORIZED)
        );
        assert!(failure.message.contains("r:5000") && failure.message.contains("imagePullSecrets"));
    }

    #[test]
    fn stops_are_nobodys_fault() {
        for word in [reason::CANCELLED, reason::SUSPENDED, reason::SUPERSEDED] {
            assert_eq!((of_stop(word).class, of_stop(word).reason.as_str()), (FailureClass::Cancelled, word));
        }
        assert_eq!(of_stop(reason::TIMED_OUT).class, FailureClass::Timeout);
    }
}
