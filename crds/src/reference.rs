//! Image references of outputs, normalised as docker does it (distribution/reference `ParseNormalizedNamed`).

/// `host/repository:tag`, all parts present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `host[:port]`.
    pub registry: String,
    /// Path below the registry.
    pub repository: String,
    /// The tag.
    pub tag: String,
}

/// A text that is not an output's reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected an image reference [host[:port]/]repository[:tag], found '{found}': {why}")]
pub struct InvalidReference {
    /// What was found.
    pub found: String,
    /// Which rule it breaks.
    pub why: &'static str,
}

impl Reference {
    /// Reads and normalises: without a host `docker.io` is meant (and `library/` for a single name), without a tag `latest`.
    ///
    /// # Errors
    /// The rule that is broken; a digest is one (it is the result of a build, not its aim).
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        let invalid = |why| InvalidReference { found: text.to_owned(), why };
        if text.contains('@') {
            return Err(invalid("a digest is not allowed"));
        }
        let (host, path) = match text.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':', '[']) || first == "localhost" || has_upper(first) =>
            {
                (Some(first), rest)
            }
            _ => (None, text),
        };
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (path, "latest"),
        };
        if host.is_some_and(|h| !is_host(h)) {
            return Err(invalid("the host is not a host name with an optional port"));
        }
        if !repository.split('/').all(is_component) {
            return Err(invalid(
                "the repository must be lower-case letters and digits, separated by / . _ __ or -",
            ));
        }
        if !is_tag(tag) {
            return Err(invalid("the tag must be 1 to 128 of A-Z a-z 0-9 _ . - and not begin with . or -"));
        }
        let registry = match host {
            None | Some("index.docker.io") => "docker.io",
            Some(host) => host,
        };
        let repository = match (registry, repository.contains('/')) {
            ("docker.io", false) => format!("library/{repository}"),
            _ => repository.to_owned(),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag: tag.to_owned() })
    }

    /// The same repository with another tag.
    #[must_use]
    pub fn with_tag(&self, tag: &str) -> Self {
        Self { tag: tag.to_owned(), ..self.clone() }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// Whether `tag` fits the OCI distribution-spec's grammar of tags.
pub fn is_tag(tag: &str) -> bool {
    (1..=128).contains(&tag.len())
        && !tag.starts_with(['.', '-'])
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(at) if !host.ends_with(']') => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    };
    let name_is_good = match name.strip_prefix('[').and_then(|n| n.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        }),
    };
    name_is_good
        && port.is_none_or(|p| {
            // Rust's numbers may have a sign.
            p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|n| n > 0)
        })
}

/// One part of a repository's path: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(|b| is_word(*b)) || !bytes.last().is_some_and(|b| is_word(*b)) {
        return false;
    }
    bytes
        .split(|b| is_word(*b))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_as_docker_does() {
        let read = |text| Reference::parse(text).map(|r| r.to_string()).ok();
        for (text, whole) in [
            ("redis", "docker.io/library/redis:latest"),
            ("me/redis:7", "docker.io/me/redis:7"),
            ("docker.io/redis", "docker.io/library/redis:latest"),
            ("index.docker.io/me/a", "docker.io/me/a:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            ("registry.example.com/a__b/c-d--e.f:V_1.0-x", "registry.example.com/a__b/c-d--e.f:V_1.0-x"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("Host/a", "Host/a:latest"),
        ] {
            assert_eq!(read(text).as_deref(), Some(whole), "{text}");
        }
        for bad in [
            "",
            "UPPER",
            "a/UPPER",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a@sha256:00",
            "h.x:0/a",
            "h.x:99999/a",
            "h.x:+80/a",
            "a..b/c",
            "a.b/c..d",
            "a.b/c___d",
            "a.b/-c",
            "a b",
            "a.b/c:x y",
            "http://a.b/c",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
