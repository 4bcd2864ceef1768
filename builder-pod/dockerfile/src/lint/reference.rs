//! Whether a text can be the name of an image (distribution/reference `ParseNormalizedNamed`).

/// Characters of a repository's name, with its registry, at most.
const MAX_NAME: usize = 255;

/// Whether `text` is `[registry/]repository[:tag][@digest]`.
pub(super) fn is_reference(text: &str) -> bool {
    // 64 hex digits are an image's id, which is no name.
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
        return false;
    }
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => (text, Some(digest)),
        None => (text, None),
    };
    let (registry, rest) = match text.split_once('/') {
        Some((first, rest)) if is_registry_like(first) => (Some(first), rest),
        _ => (None, text),
    };
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    let length = registry.map_or("docker.io".len(), str::len) + 1 + repository.len();
    length <= MAX_NAME
        && registry.is_none_or(is_registry)
        && repository.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

/// The first part of a name is a registry when it could be no part of a repository on Docker Hub.
fn is_registry_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first != first.to_lowercase()
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
        !label.is_empty() && label.bytes().all(word) && !label.starts_with('-') && !label.ends_with('-')
    };
    let address = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = match address {
        Some(address) => !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(label),
    };
    host && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Small letters and digits, with `.`, `_`, `__` or dashes between them.
fn is_component(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().zip(bytes.last()).is_some_and(|(first, last)| word(*first) && word(*last));
    ends && bytes.chunk_by(|a, b| word(*a) == word(*b)).all(|part| {
        part.iter().copied().all(word)
            || matches!(part, b"." | b"_" | b"__")
            || part.iter().all(|b| *b == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = text.bytes().next();
    first.is_some_and(word) && text.len() <= 128 && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let digits = match text.split_once(':') {
        Some(("sha256", digits)) => digits.len() == 64,
        Some(("sha384", digits)) => digits.len() == 96,
        Some(("sha512", digits)) => digits.len() == 128,
        _ => false,
    };
    let value = text.split_once(':').map_or("", |(_, value)| value);
    digits && value.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::is_reference;

    #[test]
    fn names() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for good in [
            "alpine",
            "scratch",
            "a/b/c:Tag_1.x",
            "localhost/a",
            "Host.example:5000/a__b/c.d-e---f",
            "[::1]:5000/a",
            &format!("a@{digest}"),
            &format!("r.io/a:1@{digest}"),
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in [
            "",
            "Alpine",
            "a:",
            ":tag",
            "a/",
            "/a",
            "a//b",
            "a b",
            "a:b:c",
            "a..b",
            "a_",
            "a___b",
            "r.io/A",
            "-.io/a",
            "r.io:x/a",
            "a@sha256:00",
            &"ab".repeat(32),
            &"a".repeat(250),
        ] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
