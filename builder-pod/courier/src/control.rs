//! What the operator tells the attempt: two small files of a downwardAPI volume, looked at five times a second.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_contract::control::{Permit, Stop};
use kiln_contract::paths;

/// How often the files are looked at: the volume itself takes 0.1 to 0.6 s to show a change.
pub const POLL: Duration = Duration::from_millis(200);
/// Bytes of an annotation that are read.
const MAX_FILE: u64 = 4096;

/// The control volume of one attempt; absent on a plain machine.
#[derive(Debug, Clone)]
pub struct Control {
    dir: Option<PathBuf>,
    attempt: String,
}

impl Control {
    /// The volume at `dir`.
    pub fn new(dir: Option<PathBuf>, attempt: &str) -> Self {
        Self { dir, attempt: attempt.to_owned() }
    }

    /// Why the attempt is to stop, when it is.
    pub fn stop(&self) -> Option<String> {
        let stop: Stop = self.read(paths::STOP_FILE)?;
        (stop.attempt == self.attempt).then_some(stop.reason)
    }

    /// Whether the permit in force lets `digest` be tagged now.
    pub fn permits(&self, digest: &str) -> bool {
        let now = jiff::Timestamp::now().as_second();
        self.read::<Permit>(paths::PERMIT_FILE).is_some_and(|p| p.allows(&self.attempt, digest, now))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Option<T> {
        let path = self.dir.as_ref()?.join(name);
        read_small(&path).and_then(|text| serde_json::from_str(&text).ok())
    }
}

fn read_small(path: &Path) -> Option<String> {
    let size = std::fs::metadata(path).ok()?.len();
    (size > 0 && size <= MAX_FILE).then(|| std::fs::read_to_string(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_names_this_attempt_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let control = Control::new(Some(dir.path().to_owned()), "a");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        assert_eq!(control.stop(), None);
        write("stop", r#"{"attempt":"b","reason":"Cancelled"}"#);
        assert_eq!(control.stop(), None);
        write("stop", r#"{"attempt":"a","reason":"Cancelled"}"#);
        assert_eq!(control.stop().as_deref(), Some("Cancelled"));
        let later = jiff::Timestamp::now().as_second() + 60;
        write("permit", &format!(r#"{{"attempt":"a","digest":"d","expires":{later}}}"#));
        assert!(control.permits("d") && !control.permits("e"));
        write("permit", "");
        assert!(!control.permits("d"));
    }
}
