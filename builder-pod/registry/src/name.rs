//! Image names: Docker's short forms made whole, and a grammar that leaves no room for tricks.
//!
//! Grammar: distribution-spec (repository, tag), RFC 1123 (host). `oci-distribution` splits the name and fills in the
//! defaults; what is stricter than its grammar is checked here.

use oci_distribution::Reference;

use crate::error::Error;

/// Docker Hub under the name that people use.
const HUB: &str = "docker.io";
/// Other names of Docker Hub.
const HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];
/// Bytes of a name: 253 of host, 255 of repository, 128 of tag, 71 of digest and the signs between them.
const MAX_NAME: usize = 720;

/// A whole image name: `host[:port]/repository` with a tag, a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl ImageName {
    /// Reads a name as a Dockerfile or a user has it; `alpine` becomes `docker.io/library/alpine:latest`.
    ///
    /// # Errors
    /// [`Error::Name`] for what breaks the grammar: upper case outside the tag, user info, `..`, a digest that is not
    /// sha256, a port beyond 65535.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let fault = |detail: &str| Error::Name { name: shown(name), detail: detail.to_owned() };
        if name.is_empty() {
            return Err(fault("it is empty"));
        }
        if name.len() > MAX_NAME {
            return Err(fault("it is too long"));
        }
        if let Some(bad) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-/:@".contains(*c))) {
            return Err(fault(&format!("{bad:?} has no place in it")));
        }
        let parsed = Reference::try_from(name).map_err(|e| {
            fault(&format!("{e}; expected [host[:port]/]repository[:tag][@sha256:digest] in lower case"))
        })?;
        let registry = match parsed.registry() {
            alias if HUB_ALIASES.contains(&alias) => HUB.to_owned(),
            other => other.to_owned(),
        };
        check_host(&registry).map_err(|d| fault(&d))?;
        let mut repository = parsed.repository().to_owned();
        if registry == HUB && !repository.contains('/') {
            repository.insert_str(0, "library/");
        }
        check_repository(&repository).map_err(|d| fault(&d))?;
        let name_part = name.split('@').next().unwrap_or_default();
        let mut tag = parsed.tag().map(str::to_owned);
        let digest = parsed.digest().map(str::to_owned);
        if let Some(digest) = &digest {
            if !is_digest(digest) {
                return Err(fault("a digest is sha256: and 64 lower-case hex digits"));
            }
            if !name_part.rsplit('/').next().unwrap_or_default().contains(':') {
                tag = None;
            }
        }
        if let Some(tag) = &tag {
            check_tag(tag).map_err(|d| fault(&d))?;
        }
        Ok(Self { registry, repository, tag, digest })
    }

    /// `host[:port]`; Docker Hub is `docker.io`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only beside a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where the name has one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// What a manifest URL ends in: the digest if there is one, else the tag.
    pub fn selector(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }

    /// `host/repository`.
    pub fn repository_name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same repository, at a manifest: `host/repository@sha256:…`.
    pub fn pinned(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Whether this is `sha256:` and 64 lower-case hex digits.
pub fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    })
}

/// Splits `host[:port][/prefix]` of a mirror.
pub(crate) fn split_mirror(mirror: &str) -> Result<(String, String), Error> {
    let fault = |detail: String| Error::Name { name: shown(mirror), detail };
    let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
    check_host(host).map_err(fault)?;
    let prefix = prefix.trim_end_matches('/');
    if !prefix.is_empty() {
        check_repository(prefix).map_err(fault)?;
    }
    Ok((host.to_owned(), prefix.to_owned()))
}

fn check_host(host: &str) -> Result<(), String> {
    let (name, port) = match host.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    if let Some(port) = port {
        let good = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
        if !good || !port.parse::<u16>().is_ok_and(|p| p > 0) {
            return Err(format!("the port {port:?} is not a number from 1 to 65535"));
        }
    }
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    if name.len() > 253 || !name.split('.').all(label) {
        return Err(format!("{name:?} is not a host name in lower case"));
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), String> {
    let component = |c: &str| {
        let bytes = c.as_bytes();
        let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let ends = bytes.first().is_some_and(|b| word(*b)) && bytes.last().is_some_and(|b| word(*b));
        let separators = !c.contains("..")
            && !c.contains("___")
            && !["._", "_.", ".-", "-.", "_-", "-_"].iter().any(|s| c.contains(s));
        ends && separators && bytes.iter().all(|b| word(*b) || b"._-".contains(b))
    };
    if repository.len() > 255 {
        return Err("the repository has more than 255 characters".to_owned());
    }
    match repository.split('/').find(|c| !component(c)) {
        Some(bad) => Err(format!(
            "the path component {bad:?} is not lower-case letters and digits with single separators between them"
        )),
        None => Ok(()),
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if first && rest && tag.len() <= 128 { Ok(()) } else { Err(format!("{tag:?} is not a tag")) }
}

/// A name from outside, fit for a message.
fn shown(name: &str) -> String {
    name.chars().take(120).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_whole() {
        for (short, whole) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("kiln/builder", "docker.io/kiln/builder:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/a/b:V1", "localhost:5000/a/b:V1"),
            ("127.0.0.1:5000/a", "127.0.0.1:5000/a:latest"),
            ("reg.example/a__b/c-d.e:t", "reg.example/a__b/c-d.e:t"),
        ] {
            assert_eq!(
                ImageName::parse(short).map(|n| n.to_string()).ok().as_deref(),
                Some(whole),
                "{short}"
            );
        }
    }

    #[test]
    fn digests_stay_and_bring_no_tag() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let name = ImageName::parse(&format!("alpine@{digest}")).expect("it parses");
        assert_eq!((name.tag(), name.selector()), (None, digest.as_str()));
        let both = ImageName::parse(&format!("reg.example:5000/a:1@{digest}")).expect("it parses");
        assert_eq!((both.tag(), both.selector()), (Some("1"), digest.as_str()));
        assert_eq!(both.pinned("d"), "reg.example:5000/a@d");
    }

    #[test]
    fn tricks_are_refused() {
        let sha512 = format!("a@sha512:{}", "ab".repeat(64));
        let upper = format!("a@sha256:{}", "AB".repeat(32));
        for bad in [
            "",
            "Alpine",
            "reg.example/A",
            "user@evil.com/x",
            "user:pw@evil.com/x",
            "evil.com/../x",
            "a//b",
            "https://evil.com/x",
            "evil.com:99999/x",
            "evil.com:0/x",
            "evil.com:/x",
            "a:",
            "a@",
            "a@sha256:../../x",
            "gооgle.com/x",
            "a b",
            "a\n",
            "-a.com/x",
            "Evil.com/x",
            "reg.example/a?b",
            "reg.example/a#b",
            "a:.x",
            "/a",
            sha512.as_str(),
            upper.as_str(),
            &"a/".repeat(400),
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad:?} was taken for {:?}", ImageName::parse(bad));
        }
    }

    #[test]
    fn mirrors_have_a_host_and_perhaps_a_prefix() {
        assert_eq!(split_mirror("m:5000/hub/").ok(), Some(("m:5000".into(), "hub".into())));
        assert_eq!(split_mirror("m").ok(), Some(("m".into(), String::new())));
        assert!(split_mirror("http://m").is_err());
    }
}
