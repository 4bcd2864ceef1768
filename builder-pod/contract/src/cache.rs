//! Entries of the cache: what is kept of a step for later builds (design section 6).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::image::{Descriptor, is_sha256_digest};

/// Bytes of a time at most: RFC 3339 with nanoseconds has 35.
const MAX_TIME: usize = 40;

/// Bytes of a word that names a step in a record, or a group of its inputs, at most.
const MAX_WORD: usize = 128;
/// Groups of inputs that a record may have of a step.
const MAX_GROUPS: usize = 16;

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheEntry {
    /// The layer, as stored (compressed).
    pub layer: Descriptor,
    /// `sha256:…` of the layer's tar.
    pub diff_id: String,
    /// When the step ended, RFC 3339: the image's history says so also of a build that takes the entry.
    pub created: String,
}

impl CacheEntry {
    /// What is wrong with it; nothing for a sound one.
    pub fn objection(&self) -> Option<String> {
        let digests = [&self.layer.digest, &self.diff_id];
        if let Some(bad) = digests.into_iter().find(|digest| !is_sha256_digest(digest)) {
            return Some(format!("{:?} is no sha256 digest", crate::text::truncate(bad, 80)));
        }
        let plain = |b: u8| b.is_ascii_digit() || b"-+:.TZ".contains(&b);
        if self.created.is_empty() || self.created.len() > MAX_TIME || !self.created.bytes().all(plain) {
            return Some(format!("{:?} is no time", crate::text::truncate(&self.created, MAX_TIME)));
        }
        None
    }
}

/// What a build of some name did last, step by step: a later one tells by it why the cache has no result of a step. It is
/// kept for people (and for whoever removes old entries); no result depends on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRecord {
    /// When the build was done, RFC 3339.
    pub created: String,
    /// By a word that stays the step's own from build to build.
    pub steps: BTreeMap<String, RecordedStep>,
}

/// What a record says of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedStep {
    /// The step's key.
    pub key: String,
    /// A short digest of each group of what the step depends on: enough to see that it changed, and no more.
    pub inputs: BTreeMap<String, String>,
}

impl BuildRecord {
    /// What is wrong with it; nothing for a sound one.
    pub fn objection(&self) -> Option<String> {
        if self.steps.len() > crate::journal::MAX_STEPS {
            return Some(format!("it has {} steps", self.steps.len()));
        }
        let plain = |b: u8| b.is_ascii_digit() || b"-+:.TZ".contains(&b);
        if self.created.is_empty() || self.created.len() > MAX_TIME || !self.created.bytes().all(plain) {
            return Some(format!("{:?} is no time", crate::text::truncate(&self.created, MAX_TIME)));
        }
        let sound = |(name, step): (&String, &RecordedStep)| {
            let group = |(name, digest): (&String, &String)| {
                name.len() <= MAX_WORD && digest.len() <= 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())
            };
            let groups = step.inputs.len() <= MAX_GROUPS && step.inputs.iter().all(group);
            name.len() <= MAX_WORD && is_key(&step.key) && groups
        };
        let bad = self.steps.iter().find(|step| !sound(*step));
        bad.map(|(name, _)| format!("step {:?} breaks a rule", crate::text::truncate(name, 80)))
    }
}

/// Whether `key` is one: 64 lower-case hex digits.
pub fn is_key(key: &str) -> bool {
    key.len() == 64 && key.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_checked_before_it_is_believed() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layer = Descriptor { media_type: "m".into(), digest: digest.clone(), size: 1 };
        let good = CacheEntry { layer, diff_id: digest, created: "2026-01-02T03:04:05.678Z".into() };
        assert_eq!(good.objection(), None);
        for bad in [
            CacheEntry { diff_id: "sha256:../..".into(), ..good.clone() },
            CacheEntry { created: "\"".into(), ..good.clone() },
            CacheEntry { created: "1".repeat(99), ..good.clone() },
            CacheEntry { created: String::new(), ..good.clone() },
        ] {
            assert!(bad.objection().is_some(), "{bad:?}");
        }
        assert!(is_key(&"0f".repeat(32)));
        assert!(!is_key(&"0F".repeat(32)) && !is_key("../x") && !is_key(""));
    }

    #[test]
    fn a_record_is_checked_before_it_is_believed() {
        let step = |key: &str, inputs: &[(&str, &str)]| RecordedStep {
            key: key.to_owned(),
            inputs: inputs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        let record = |name: &str, step: RecordedStep| BuildRecord {
            created: "2026-01-02T03:04:05Z".into(),
            steps: BTreeMap::from([(name.to_owned(), step)]),
        };
        let key = "0f".repeat(32);
        let good = record("build/0", step(&key, &[("files", "0011aabb")]));
        assert_eq!(good.objection(), None);
        let many = (0..=crate::journal::MAX_STEPS).map(|n| (n.to_string(), step(&key, &[]))).collect();
        for bad in [
            record("build/0", step("0f", &[])),
            record("build/0", step(&key, &[("files", "no digest")])),
            record("build/0", step(&key, &[("files", &"0".repeat(65))])),
            record(&"x".repeat(MAX_WORD + 1), step(&key, &[])),
            BuildRecord { created: "yesterday".into(), ..good.clone() },
            BuildRecord { steps: many, ..good.clone() },
        ] {
            assert!(bad.objection().is_some(), "{bad:?}");
        }
    }
}
