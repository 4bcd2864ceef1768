//! The attempt's last word: the courier's termination message. A valid report decides, whatever exit code or phase.

use serde::{Deserialize, Serialize};

use crate::failure::Failure;
use crate::text::{tail, truncate};

/// Bytes of a report at most: the kubelet keeps 4 KiB per container and 12 KiB per pod, and other containers may speak.
pub const MAX_REPORT: usize = 2048;

/// Bytes of an image's reference at most: what the grammar of names allows (`kiln_registry::name`).
pub const MAX_REFERENCE: usize = 720;
/// Bytes of a reason: those that there are have half of it.
const MAX_REASON: usize = 48;
/// What message and file keep at the least. JSON writes a control character with six bytes, and six times all of these
/// and the longest attempt still fit.
const MIN_TEXT: usize = 72;

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// [`crate::VERSION`].
    pub version: u32,
    /// [`crate::request::BuildRequest::attempt`].
    pub attempt: String,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The tags name this image; the registry was asked and agreed.
    Succeeded(Pushed),
    /// It did not come to that.
    Failed(Failure),
}

/// The image that was pushed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pushed {
    /// The first reference with the tag.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: String,
    /// Bytes of config and layers together, as stored (compressed).
    pub size: u64,
}

impl Report {
    /// JSON of at most [`MAX_REPORT`] bytes: log tail, message and file name are shortened until it fits. What names the
    /// attempt or the image is never cut; both have their own bounds ([`crate::request::MAX_ATTEMPT`], [`MAX_REFERENCE`]).
    pub fn to_json(&self) -> String {
        let mut report = self.clone();
        for budget in [1200, 800, 400, 200, MIN_TEXT] {
            let json = serde_json::to_string(&report).unwrap_or_default();
            if json.len() <= MAX_REPORT {
                return json;
            }
            if let Outcome::Failed(failure) = &mut report.outcome {
                failure.log_tail = match failure.log_tail.take() {
                    Some(text) if budget > MIN_TEXT => Some(tail(&text, budget / 2).to_owned()),
                    _ => None,
                };
                failure.message = truncate(&failure.message, budget);
                failure.file = failure.file.take().map(|file| truncate(&file, budget));
                failure.reason = truncate(&failure.reason, MAX_REASON);
            }
        }
        serde_json::to_string(&report).unwrap_or_default()
    }

    /// Reads a termination message; `None` when it is not a report for `attempt` in a version that this release reads.
    /// Fields that it does not know are passed over.
    pub fn parse(message: &str, attempt: &str) -> Option<Self> {
        let report: Self = serde_json::from_str(message).ok()?;
        (crate::reads(report.version) && report.attempt == attempt).then_some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{FailureClass, reason};

    #[test]
    fn a_report_always_fits_and_reads_back() {
        let failure = Failure::new(FailureClass::User, reason::STEP_FAILED, "\"x\"".repeat(600))
            .with_log_tail(&"line \"quoted\" \n".repeat(400));
        let report = Report { version: 1, attempt: "u-1-1".into(), outcome: Outcome::Failed(failure) };
        let json = report.to_json();
        assert!(json.len() <= MAX_REPORT, "{}", json.len());
        let back = Report::parse(&json, "u-1-1").expect("it reads back");
        assert!(matches!(back.outcome, Outcome::Failed(f) if f.reason == "StepFailed"));
    }

    #[test]
    fn a_report_of_another_attempt_or_no_report_is_none() {
        let report = Report {
            version: 1,
            attempt: "a".into(),
            outcome: Outcome::Succeeded(Pushed { reference: "r".into(), digest: "d".into(), size: 1 }),
        };
        assert!(Report::parse(&report.to_json(), "b").is_none());
        assert!(Report::parse("{}", "a").is_none());
        assert!(Report::parse("panicked at", "a").is_none());
    }
}
