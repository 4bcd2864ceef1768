//! How a build fails: the class decides who acts and whether another attempt is made.

use serde::{Deserialize, Serialize};

/// Who has to act. Only [`FailureClass::Infrastructure`] and [`FailureClass::Evicted`] are tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FailureClass {
    /// The Dockerfile or its command: the author acts.
    User,
    /// The build context could not be had.
    Source,
    /// A registry refused or did not answer.
    Registry,
    /// The cluster's policy forbids it.
    Policy,
    /// A step or the builder ran into the memory limit.
    OutOfMemory,
    /// The pod was evicted: tried again.
    Evicted,
    /// `spec.timeout` passed.
    Timeout,
    /// Somebody asked for it.
    Cancelled,
    /// Node, kubelet, pod or API fault: tried again. A later release's class that this one does not know is read as this one:
    /// it blames nobody, and the number of retries is bounded.
    #[serde(other)]
    Infrastructure,
}

impl FailureClass {
    /// Whether a further attempt may end otherwise without anybody acting.
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Infrastructure | Self::Evicted)
    }
}

/// Why a build failed, in the words that status, log and report share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Who has to act.
    pub class: FailureClass,
    /// One CamelCase word, from [`reason`].
    pub reason: String,
    /// What was expected, what was found, what to do. At most 1 KiB.
    pub message: String,
    /// The Dockerfile's path in the context, where a line is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// 1-based line in `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// 1-based number of the step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Exit code of the step's command; 128+N for signal N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of the failing step's output: at most 2 KiB, control characters replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_tail: Option<String>,
}

/// Bytes of [`Failure::message`] at most: it is shown by `kubectl describe`, not scrolled through.
pub const MAX_MESSAGE: usize = 1024;
/// Bytes of [`Failure::log_tail`] at most (design section 3).
pub const MAX_LOG_TAIL: usize = 2048;

impl Failure {
    /// A failure with bounded, printable text and no position.
    pub fn new(class: FailureClass, reason: &str, message: impl AsRef<str>) -> Self {
        Self {
            class,
            reason: reason.to_owned(),
            message: crate::text::truncate(&crate::text::printable(message.as_ref()), MAX_MESSAGE),
            file: None,
            line: None,
            step: None,
            exit_code: None,
            log_tail: None,
        }
    }

    /// The same failure at a line of a Dockerfile.
    #[must_use]
    pub fn at(mut self, file: &str, line: u32) -> Self {
        self.file = Some(file.to_owned());
        self.line = Some(line);
        self
    }

    /// The same failure in a step (1-based).
    #[must_use]
    pub fn in_step(mut self, step: u32) -> Self {
        self.step = Some(step);
        self
    }

    /// The same failure with the end of the step's output.
    #[must_use]
    pub fn with_log_tail(mut self, output: &str) -> Self {
        let clean = crate::text::printable(output);
        self.log_tail = Some(crate::text::tail(clean.trim_end(), MAX_LOG_TAIL).to_owned());
        self
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let (Some(file), Some(line)) = (&self.file, self.line) {
            write!(f, "{file}:{line}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// The reasons a build can end with. Low in number: they are metric labels and `kubectl get` columns.
pub mod reason {
    /// A RUN command ended with another code than 0.
    pub const STEP_FAILED: &str = "StepFailed";
    /// The Dockerfile does not parse.
    pub const DOCKERFILE_INVALID: &str = "DockerfileInvalid";
    /// The Dockerfile is not in the context.
    pub const DOCKERFILE_NOT_FOUND: &str = "DockerfileNotFound";
    /// An instruction or flag that this version of Kiln does not implement.
    pub const NOT_SUPPORTED: &str = "NotSupported";
    /// A COPY source, a stage or a target that is not there.
    pub const NOT_FOUND: &str = "NotFound";
    /// What an ADD wanted to download is not there, is not to be had, or is something else than its checksum says.
    pub const DOWNLOAD_FAILED: &str = "DownloadFailed";
    /// The object's spec asks for something that can't be.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The named ConfigMap, service account, repository, reference or archive is not there.
    pub const SOURCE_NOT_FOUND: &str = "SourceNotFound";
    /// The service account does not list a Secret that the object names.
    pub const SECRET_NOT_LISTED: &str = "SecretNotListed";
    /// A Secret that the object names, or the key in it, is not there.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// The source wants other credentials than the ones at hand.
    pub const SOURCE_UNAUTHORIZED: &str = "SourceUnauthorized";
    /// The archive is not the one that the checksum names.
    pub const SOURCE_CHECKSUM_MISMATCH: &str = "SourceChecksumMismatch";
    /// The source has more bytes or files than allowed.
    pub const SOURCE_TOO_LARGE: &str = "SourceTooLarge";
    /// The source's server did not answer, or not in time.
    pub const SOURCE_UNAVAILABLE: &str = "SourceUnavailable";
    /// The context breaks a rule.
    pub const SOURCE_INVALID: &str = "SourceInvalid";
    /// The base image, its tag or its platform is not in the registry.
    pub const BASE_IMAGE_NOT_FOUND: &str = "BaseImageNotFound";
    /// The base image is there and breaks a rule: digest, diff ID, media type, limit.
    pub const BASE_IMAGE_INVALID: &str = "BaseImageInvalid";
    /// A registry asked for (other) credentials.
    pub const REGISTRY_UNAUTHORIZED: &str = "RegistryUnauthorized";
    /// A registry did not answer, or with 5xx or 429 to the end of the retries.
    pub const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
    /// A registry refused the push.
    pub const PUSH_FAILED: &str = "PushFailed";
    /// The registry acknowledged the push and then shows something else.
    pub const PUSH_VERIFICATION_FAILED: &str = "PushVerificationFailed";
    /// A BuildPolicy of the namespace, or a setting of the operator, forbids it.
    pub const POLICY_REFUSED: &str = "PolicyRefused";
    /// The node does not allow the isolation that was asked for.
    pub const ISOLATION_UNAVAILABLE: &str = "IsolationUnavailable";
    /// The timeout passed.
    pub const TIMED_OUT: &str = "TimedOut";
    /// Cancelled by annotation.
    pub const CANCELLED: &str = "Cancelled";
    /// Stopped because the object was suspended.
    pub const SUSPENDED: &str = "Suspended";
    /// Stopped because the object was edited or a rebuild was asked for.
    pub const SUPERSEDED: &str = "Superseded";
    /// The memory limit was hit.
    pub const OUT_OF_MEMORY: &str = "OutOfMemory";
    /// The kubelet evicted the pod.
    pub const EVICTED: &str = "Evicted";
    /// The pod is gone.
    pub const POD_DELETED: &str = "PodDeleted";
    /// A pod of that name belongs to somebody else.
    pub const POD_NAME_CONFLICT: &str = "PodNameConflict";
    /// The created pod is not the one that was asked for.
    pub const POD_MODIFIED: &str = "PodModified";
    /// The API server refused the pod (admission, Pod Security, quota).
    pub const POD_REFUSED: &str = "PodRefused";
    /// A container could not be started (image pull, missing volume).
    pub const POD_START_FAILED: &str = "PodStartFailed";
    /// For a long time there was no node for the pod.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// The builder or the courier died without saying why.
    pub const BUILDER_LOST: &str = "BuilderLost";
    /// The operator gave no permit to tag.
    pub const NOT_PERMITTED: &str = "NotPermitted";
    /// Something in Kiln itself went wrong.
    pub const INTERNAL: &str = "InternalError";
}
