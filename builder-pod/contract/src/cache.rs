//! Entries of the cache: what is kept of a step for later builds (design section 6).

use serde::{Deserialize, Serialize};

use crate::image::{Descriptor, is_sha256_digest};

/// Bytes of a time at most: RFC 3339 with nanoseconds has 35.
const MAX_TIME: usize = 40;

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
}
