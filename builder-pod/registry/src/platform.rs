//! Platforms and which manifest of an index fits one (OCI image-spec image-index.md; variants as containerd orders
//! them).

use serde::Deserialize;

use crate::error::Error;

/// `os/arch[/variant]`, with the variant that an architecture has by default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A platform as an index or a config has it.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Found {
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

impl Platform {
    /// Reads `linux/amd64`, `linux/arm/v7`…
    ///
    /// # Errors
    /// [`Error::Invalid`] for another shape.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let word = |w: &&str| !w.is_empty() && w.len() <= 32 && w.bytes().all(|b| b.is_ascii_alphanumeric());
        let words: Vec<&str> = text.split('/').collect();
        match words.as_slice() {
            [os, arch, rest @ ..] if rest.len() <= 1 && words.iter().all(word) => {
                Ok(Self::normal(os, arch, rest.first().copied()))
            }
            _ => Err(Error::Invalid {
                what: format!("the platform {:?}", text.chars().take(64).collect::<String>()),
                detail: "expected os/architecture or os/architecture/variant".to_owned(),
            }),
        }
    }

    fn normal(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let variant = variant.filter(|v| !v.is_empty()).or(default_variant(architecture));
        Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        }
    }

    /// How well `found` serves this platform: higher is better, `None` is not at all. An older variant runs on a newer
    /// machine, not the other way round.
    fn fit(&self, found: &Found) -> Option<u32> {
        let found = Self::normal(&found.os, &found.architecture, found.variant.as_deref());
        if found.os != self.os || found.architecture != self.architecture {
            return None;
        }
        let (wanted, has) = (level(self.variant.as_deref())?, level(found.variant.as_deref())?);
        (has <= wanted).then_some(has + 1)
    }

    /// The index of the best one of `entries`; among equals the first.
    pub(crate) fn choose<'a>(&self, entries: impl Iterator<Item = Option<&'a Found>>) -> Option<usize> {
        let mut best: Option<(u32, usize)> = None;
        for (index, entry) in entries.enumerate() {
            let Some(fit) = entry.and_then(|e| self.fit(e)) else { continue };
            if best.is_none_or(|(b, _)| fit > b) {
                best = Some((fit, index));
            }
        }
        best.map(|(_, index)| index)
    }

    /// Whether an image config of this platform may be used; a config that does not say is taken at the index's word.
    pub(crate) fn accepts(&self, config: &Found) -> bool {
        config.os.is_empty() || config.architecture.is_empty() || self.fit(config).is_some()
    }
}

/// Variants that mean the plain architecture.
fn default_variant(architecture: &str) -> Option<&'static str> {
    match architecture {
        "arm" => Some("v7"),
        "arm64" => Some("v8"),
        "amd64" => Some("v1"),
        _ => None,
    }
}

/// `v7` is 7, `v9.1`'s minor does not count; nothing is 0. A variant of another kind fits nothing.
fn level(variant: Option<&str>) -> Option<u32> {
    let Some(variant) = variant else { return Some(0) };
    let number = variant.strip_prefix('v').unwrap_or(variant);
    number.split('.').next().and_then(|n| n.parse().ok()).filter(|n| *n < 1000)
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(v) if default_variant(&self.architecture) != Some(v) || self.architecture == "arm" => {
                write!(f, "/{v}")
            }
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clean = |s: &str| s.chars().filter(char::is_ascii_graphic).take(32).collect::<String>();
        write!(f, "{}/{}", clean(&self.os), clean(&self.architecture))?;
        match &self.variant {
            Some(v) if !v.is_empty() => write!(f, "/{}", clean(v)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Found {
        let mut words = text.split('/').map(str::to_owned);
        Found {
            os: words.next().unwrap_or_default(),
            architecture: words.next().unwrap_or_default(),
            variant: words.next(),
        }
    }

    fn choose(wanted: &str, entries: &[&str]) -> Option<usize> {
        let entries: Vec<Found> = entries.iter().map(|e| found(e)).collect();
        Platform::parse(wanted).expect("a platform").choose(entries.iter().map(Some))
    }

    #[test]
    fn the_best_variant_wins() {
        assert_eq!(choose("linux/amd64", &["linux/arm64/v8", "linux/amd64"]), Some(1));
        assert_eq!(choose("linux/arm64", &["linux/arm64/v8"]), Some(0));
        assert_eq!(choose("linux/arm64/v8", &["linux/arm64"]), Some(0));
        assert_eq!(choose("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"]), Some(1));
        assert_eq!(choose("linux/amd64", &["linux/amd64/v3"]), None);
        assert_eq!(choose("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2"]), Some(1));
        assert_eq!(choose("linux/s390x", &["unknown/unknown", "linux/s390x"]), Some(1));
        assert_eq!(choose("windows/amd64", &["linux/amd64"]), None);
    }

    #[test]
    fn shapes_are_checked_and_shown() {
        for bad in ["", "linux", "linux/", "a/b/c/d", "linux/../x", "linux/amd64/"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
        for text in ["linux/amd64", "linux/arm/v7", "linux/arm64", "linux/amd64/v3"] {
            assert_eq!(Platform::parse(text).map(|p| p.to_string()).ok().as_deref(), Some(text));
        }
    }
}
