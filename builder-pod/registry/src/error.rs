//! What can go wrong between Kiln and a registry, in classes that decide who has to act.

use std::time::Duration;

/// A registry call that did not work. Each variant is one class: the courier maps it to a failure's class and reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image name that breaks the grammar.
    #[error("{name:?} is not an image name: {detail}")]
    Name {
        /// As it came.
        name: String,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// The registry wants other credentials than the ones at hand.
    #[error("{registry} refused to {action}: {detail}")]
    Unauthorized {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was asked of it.
        action: String,
        /// Which credentials were tried, or where they were missing.
        detail: String,
    },
    /// The registry knows us and says no.
    #[error("{registry} denied to {action}: {detail}")]
    Denied {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was asked of it.
        action: String,
        /// The registry's words.
        detail: String,
    },
    /// What was asked for is not there.
    #[error("{registry} has no {what}: {detail}")]
    NotFound {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// The registry's words.
        detail: String,
    },
    /// The image is there, but not for this platform.
    #[error("{image} has no image for {wanted}; it has: {available}")]
    PlatformMissing {
        /// The image's name.
        image: String,
        /// What was asked for.
        wanted: String,
        /// What is there.
        available: String,
    },
    /// Leave to go on had ended when it was to be tried again.
    #[error("{registry} was not asked again: the leave to move the tag has ended")]
    Withdrawn {
        /// `host[:port]` of the registry.
        registry: String,
    },
    /// No (useful) answer to the end of the retries.
    #[error("{registry} did not {action}: gave up after {tries} tries in {}: {detail}", seconds(.elapsed))]
    Unavailable {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was asked of it.
        action: String,
        /// How often.
        tries: u32,
        /// For how long.
        elapsed: Duration,
        /// The last thing that went wrong.
        detail: String,
    },
    /// The tag names another image already, and the registry does not let tags move.
    #[error("{registry} has another image as {tag} and does not let the tag move: {detail}")]
    ImmutableTag {
        /// `host[:port]` of the registry.
        registry: String,
        /// The tag.
        tag: String,
        /// The registry's words.
        detail: String,
    },
    /// The bytes are not the ones that the digest names.
    #[error("{what} has digest {found}, expected {expected}")]
    Digest {
        /// What was read.
        what: String,
        /// The digest that was asked for.
        expected: String,
        /// The digest of what came.
        found: String,
    },
    /// More (or fewer) bytes or entries than allowed.
    #[error("{what} has {found}, {expected}")]
    Size {
        /// What was read.
        what: String,
        /// How many there are.
        found: String,
        /// The limit or the expectation.
        expected: String,
    },
    /// A manifest, index, config or answer that breaks a rule.
    #[error("{what} is not usable: {detail}")]
    Invalid {
        /// What was read.
        what: String,
        /// Which rule.
        detail: String,
    },
    /// The registry said yes and then shows something else.
    #[error("{registry} acknowledged {what}, but then {detail}")]
    Verification {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was pushed.
        what: String,
        /// What it shows.
        detail: String,
    },
    /// The registry refused the request for a reason of its own.
    #[error("{registry} refused to {action}: {detail}")]
    Refused {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was asked of it.
        action: String,
        /// Status and the registry's words.
        detail: String,
    },
    /// The registry pointed somewhere where Kiln does not go (another origin, plain HTTP, a link-local address).
    #[error("{registry}: will not {action}: {detail}")]
    Unsafe {
        /// `host[:port]` of the registry.
        registry: String,
        /// What was to be done.
        action: String,
        /// Where it pointed, and why not.
        detail: String,
    },
    /// The registry does not let anything be deleted.
    #[error(
        "{registry} deletes nothing ({detail}); set REGISTRY_STORAGE_DELETE_ENABLED=true where it is distribution's, or use the registry's own retention instead"
    )]
    NoDeletes {
        /// `host[:port]` of the registry.
        registry: String,
        /// The registry's words.
        detail: String,
    },
    /// Our own end: the file that is sent or the descriptor that is written.
    #[error("{what}")]
    Local {
        /// What was to be done.
        what: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The client can't be set up (CA bundle, resolver).
    #[error("{what}: {detail}")]
    Setup {
        /// What was to be set up.
        what: String,
        /// Why it can't be.
        detail: String,
    },
}

impl Error {
    /// The same error, with a further remark where its kind has room for one.
    #[must_use]
    pub(crate) fn with_note(mut self, note: &str) -> Self {
        if note.is_empty() {
            return self;
        }
        match &mut self {
            Self::Unauthorized { detail, .. }
            | Self::Denied { detail, .. }
            | Self::NotFound { detail, .. }
            | Self::Unavailable { detail, .. } => {
                detail.push_str("; ");
                detail.push_str(note);
            }
            _ => {}
        }
        self
    }
}

fn seconds(elapsed: &Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f64())
}

/// How one try ended that did not end well.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Another try may end otherwise.
    Again {
        /// What went wrong.
        detail: String,
        /// What the registry asked us to wait.
        after: Option<Duration>,
        /// The name does not resolve: most likely a typo, not worth the whole budget.
        unknown_host: bool,
    },
    /// No further try.
    Final(Error),
}

impl Fault {
    /// A fault that is worth another try.
    pub(crate) fn again(detail: impl Into<String>) -> Self {
        Self::Again { detail: detail.into(), after: None, unknown_host: false }
    }
}

impl Fault {
    /// The same, with who had it.
    pub(crate) fn at(mut self, who: &str) -> Self {
        if let Self::Again { detail, .. } = &mut self {
            *detail = format!("{who}: {detail}");
        }
        self
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}
