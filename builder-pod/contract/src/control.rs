//! What the operator tells a running attempt: annotations of the pod, read by the courier through a downwardAPI volume.

use serde::{Deserialize, Serialize};

/// Pod annotation that carries a [`Permit`] as JSON.
pub const PERMIT_ANNOTATION: &str = "kiln.build/permit";
/// Pod annotation that says when the [`Permit`] beside it is void at the latest, in Unix seconds by the API server's clock:
/// for operators, which start no successor before.
pub const PERMIT_UNTIL_ANNOTATION: &str = "kiln.build/permit-until";
/// Pod annotation that carries a [`Stop`] as JSON.
pub const STOP_ANNOTATION: &str = "kiln.build/stop";
/// Seconds for which a permit is good: long against the 0.1-0.6 s that the volume takes to show it, short against the
/// time that a successor would have to wait.
pub const PERMIT_SECONDS: i64 = 60;

/// Leave to move the tags to one digest. The operator may be newer than the pod: fields that its courier does not know are
/// passed over, so none may ever narrow what these three allow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Permit {
    /// [`crate::request::BuildRequest::attempt`].
    pub attempt: String,
    /// The manifest that may be tagged.
    pub digest: String,
    /// Unix seconds after which the permit is void, by the clock of the attempt's node: the operator counts from the time of
    /// the journal's last line. So it does not matter how far that clock is from any other.
    pub expires: i64,
}

impl Permit {
    /// Whether it lets `attempt` tag `digest` at `now` (Unix seconds).
    pub fn allows(&self, attempt: &str, digest: &str, now: i64) -> bool {
        self.attempt == attempt && self.digest == digest && now <= self.expires
    }
}

/// The attempt is no longer wanted. Fields that the courier does not know are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stop {
    /// [`crate::request::BuildRequest::attempt`].
    pub attempt: String,
    /// A word of [`crate::reason`]: `Cancelled`, `Suspended`, `Superseded` or `TimedOut`.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_is_for_one_attempt_one_digest_and_a_minute() {
        let permit = Permit { attempt: "a".into(), digest: "d".into(), expires: 100 };
        assert!(permit.allows("a", "d", 100));
        assert!(!permit.allows("a", "d", 101));
        assert!(!permit.allows("b", "d", 1));
        assert!(!permit.allows("a", "e", 1));
    }
}
