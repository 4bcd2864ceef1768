//! Names and labels of what belongs to an attempt. Deterministic: whoever decides on the same attempt names the same pod.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// Characters of the object's name that a pod's name keeps: with `-` and the hash it stays within the 63 of a host name.
const KEPT: usize = 50;
/// Hex digits of the hash: 40 bits, so that attempts of one object never meet.
const HASH: usize = 10;

/// Label that marks what Kiln made.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "kiln");
/// Label that marks builder pods and their requests.
pub const COMPONENT: (&str, &str) = ("app.kubernetes.io/component", "builder");
/// Label with the object's name, cut to 63 characters. For people: Kiln finds pods by owner.
pub const BUILD_LABEL: &str = "kiln.build/image-build";
/// Pod annotation that names the attempt.
pub const ATTEMPT_ANNOTATION: &str = "kiln.build/attempt";
/// Selects the pods that Kiln made.
pub const SELECTOR: &str = "app.kubernetes.io/managed-by=kiln,app.kubernetes.io/component=builder";

/// Name of the pod and of the request of an attempt.
pub fn pod_name(object: &str, uid: &str, run: i64, attempt: i32) -> String {
    let hash = hex::encode(Sha256::digest(format!("{uid}/{run}/{attempt}")));
    let kept: String = object.chars().take(KEPT).map(|c| if c == '.' { '-' } else { c }).collect();
    format!("{}-{}", kept.trim_end_matches('-'), &hash[..HASH])
}

/// Names the attempt in journal, permit and report; unique for all time.
pub fn attempt_id(uid: &str, run: i64, attempt: i32) -> String {
    format!("{uid}-{run}-{attempt}")
}

/// Labels of the pod and the request.
pub fn labels(object: &str) -> BTreeMap<String, String> {
    let name: String = object.chars().take(63).collect();
    let pairs = [
        MANAGED_BY,
        COMPONENT,
        ("app.kubernetes.io/name", "kiln-build"),
        (BUILD_LABEL, name.trim_end_matches(['-', '.'])),
    ];
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_distinct_and_short() {
        let name = pod_name("app", "u", 1, 1);
        assert_eq!(name, "app-33dab51cd3", "a changed name makes pods twice after an upgrade");
        let all = [("u", 1, 1), ("u", 1, 2), ("u", 2, 1), ("v", 1, 1), ("u", 11, 1), ("u", 1, 11)]
            .map(|(uid, run, attempt)| pod_name("app", uid, run, attempt));
        assert_eq!(std::collections::BTreeSet::from(all.clone()).len(), all.len());
        let long = pod_name(&"a.b-".repeat(60), "u", 1, 1);
        assert!(long.len() <= 63 && !long.contains('.') && !long.contains("--"), "{long}");
        assert!(labels(&"x".repeat(253)).values().all(|v| v.len() <= 63));
    }
}
