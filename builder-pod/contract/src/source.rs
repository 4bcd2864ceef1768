//! Sources that the `source` container fetches, and the grammar of what they name. Pure; operator and fetcher both check.

use serde::{Deserialize, Serialize};

use crate::image::is_sha256_digest;

/// Bytes of a URL at most: servers and proxies refuse longer ones from 2 KiB on.
pub const MAX_URL: usize = 2048;
/// Bytes of a git reference at most: a component of a path, as git stores one.
pub const MAX_REF: usize = 255;

/// Files of a commit of a git repository: a build's source, what ADD names, or a named context.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Git {
    /// `https://…`, `http://…`, `ssh://…` or `user@host:path`; ADD knows `git://…`, too.
    pub url: String,
    /// Branch, tag or full reference; what the remote's HEAD names when this and `commit` are absent.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// The commit: 40 or 64 lower-case hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Commits of history to fetch; 0 for all.
    pub depth: u32,
    /// Whether submodules are checked out.
    #[serde(default)]
    pub submodules: bool,
    /// Whether files in Git LFS are fetched, instead of their pointers.
    #[serde(default)]
    pub lfs: bool,
    /// Directory of the repository; all of it when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subdir: Option<String>,
    /// Commit, or the start of one, that the reference must name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
    /// Whether the `.git` directory comes, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_git_dir: bool,
    /// Files get the time of the checkout, not the commit's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checkout_time: bool,
}

/// An archive from a web server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Http {
    /// `https://…`, or `http://…` with a checksum.
    pub url: String,
    /// SHA-256 of the archive's bytes, 64 lower-case hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// What to call the revision, where somebody else (Flux) has named it; the digest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
}

/// An artifact or an image in a registry. The courier reads it; the fetcher gets no registry credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Oci {
    /// `[host[:port]/]repository[:tag][@sha256:…]`.
    pub image: String,
}

/// What was fetched, as status shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fetched {
    /// Commit, or what the source calls its revision, or the digest.
    pub revision: String,
    /// `sha256:…` of the archive or manifest; git has none beside the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// How a git repository is spoken with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTP over TLS.
    Https,
    /// HTTP in the clear; never with credentials.
    Http,
    /// ssh.
    Ssh,
    /// git's own protocol, in the clear. ADD only.
    Git,
}

impl Git {
    /// How its repository is spoken with: what ADD and named contexts may name. Neither a command (`ext::…`), nor an option,
    /// nor a path of the machine.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn transport(&self) -> Result<Transport, String> {
        let url = self.shown();
        if self.url.len() > MAX_URL {
            return Err(format!("the URL has {} bytes, more than the {MAX_URL} allowed", self.url.len()));
        }
        let wrong = || {
            format!(
                "expected a URL like https://host/path.git, ssh://user@host/path.git or user@host:path.git, found {url:?}"
            )
        };
        if self.url.chars().any(char::is_control) {
            return Err(wrong());
        }
        match self.url.split_once("://") {
            Some(("https", _)) => Ok(Transport::Https),
            Some(("http", _)) => Ok(Transport::Http),
            Some(("ssh", _)) => Ok(Transport::Ssh),
            Some(("git", _)) => Ok(Transport::Git),
            Some(_) => Err(wrong()),
            None => match self.url.split_once(':') {
                // `host:path` without a user would also be `ext::command`.
                Some((user, path))
                    if user.contains('@') && is_word(user, b"._-@") && !path.starts_with('-') =>
                {
                    Ok(Transport::Ssh)
                }
                _ => Err(wrong()),
            },
        }
    }

    /// The URL without the password that it may carry.
    pub fn shown(&self) -> String {
        match self.url.split_once("://") {
            Some((scheme, rest)) => {
                let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
            }
            None => self.url.clone(),
        }
    }

    /// Checks URL, reference and commit, as a build's source may have them.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn check(&self) -> Result<Transport, String> {
        let transport = git_transport(&self.url)?;
        if let Some(reference) = &self.reference {
            check_ref(reference)?;
        }
        match &self.commit {
            Some(_) if self.reference.is_some() => {
                Err("expected one of ref and commit, found both".to_owned())
            }
            Some(commit) if !is_commit(commit) => {
                Err(format!("expected a commit of 40 or 64 lower-case hex digits, found {commit:?}"))
            }
            _ => Ok(transport),
        }
    }
}

impl Http {
    /// Checks URL and checksum.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub fn check(&self) -> Result<(), String> {
        let (scheme, rest) = self.url.split_once("://").unwrap_or_default();
        if !matches!(scheme, "https" | "http") {
            return Err(format!("expected a URL like https://host/path.tar.gz, found {:?}", self.url));
        }
        check_rest(&self.url, rest, b"?", false)?;
        match &self.sha256 {
            Some(sum) if !is_sha256_digest(&format!("sha256:{sum}")) => {
                Err(format!("expected a sha256 of 64 lower-case hex digits, found {sum:?}"))
            }
            None if scheme == "http" => {
                Err("plain http needs sha256: nothing else says that the bytes are the right ones".to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// Whether it names a commit: 40 (SHA-1) or 64 (SHA-256) lower-case hex digits.
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// `scheme://host[:port]` of an http(s) URL that was checked: what credentials are meant for.
pub fn origin(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?']).map_or(url.len(), |at| start + at);
    &url[..end]
}

fn git_transport(url: &str) -> Result<Transport, String> {
    let wrong = || {
        format!(
            "expected a URL like https://host/path.git, ssh://user@host/path.git or user@host:path.git, found {url:?}"
        )
    };
    if let Some((scheme, rest)) = url.split_once("://") {
        let transport = match scheme {
            "https" => Transport::Https,
            "http" => Transport::Http,
            "ssh" => Transport::Ssh,
            _ => return Err(wrong()),
        };
        check_rest(url, rest, b"", transport == Transport::Ssh)?;
        return Ok(transport);
    }
    // `host:path` without a user would also be `ext::command`.
    let (authority, path) = url.split_once(':').ok_or_else(wrong)?;
    if !authority.contains('@') || path.is_empty() || path.starts_with('-') {
        return Err(wrong());
    }
    check_rest(url, &format!("{authority}/{path}"), b"", true)?;
    Ok(Transport::Ssh)
}

/// `[user@]host[:port]/path` of a URL.
fn check_rest(url: &str, rest: &str, more: &[u8], user: bool) -> Result<(), String> {
    let fault = |what: &str| format!("{what} in the URL {url:?}");
    if url.len() > MAX_URL {
        return Err(format!("the URL has {} bytes, more than the {MAX_URL} allowed", url.len()));
    }
    let (authority, path) = rest.split_once('/').ok_or_else(|| fault("expected a path"))?;
    let host = match authority.split_once('@') {
        Some((name, host)) if user && is_word(name, b"._-") => host,
        Some(_) if user => return Err(fault("expected a user of A-Z a-z 0-9 . _ -")),
        Some(_) => return Err(fault("user and password belong into the Secret that secretName names, not")),
        None => authority,
    };
    if !is_host(host) {
        return Err(fault(&format!("expected host[:port], found {host:?}")));
    }
    let allowed =
        |b: u8| b.is_ascii_alphanumeric() || b"._~%/+@:,=&!$()*;-".contains(&b) || more.contains(&b);
    if path.is_empty() || !path.bytes().all(allowed) {
        return Err(fault("expected a path of letters, digits and ._~%/+@:,=&!$()*;-"));
    }
    Ok(())
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|h| h.split_once(']')) {
        Some((v6, port)) => {
            let fine = !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            return fine && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    name.starts_with(|c: char| c.is_ascii_alphanumeric()) && is_word(name, b"._-") && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    (1..=5).contains(&port.len()) && port.parse::<u16>().is_ok_and(|p| p > 0)
}

/// ASCII letters, digits and `more`, the first of them no sign but `_`.
fn is_word(text: &str, more: &[u8]) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
}

/// git-check-ref-format(1), and no more than is needed to name things: nothing that is an option, a range or a pattern.
fn check_ref(reference: &str) -> Result<(), String> {
    let fine = is_word(reference, b"._/@+#=-")
        && reference.len() <= MAX_REF
        && !reference.contains("..")
        && !reference.contains("//")
        && !reference.ends_with(['/', '.'])
        && reference.split('/').all(|part| !part.starts_with('.') && !part.ends_with(".lock"));
    if fine { Ok(()) } else { Err(format!("expected a branch, a tag or refs/..., found {reference:?}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(url: &str, reference: Option<&str>) -> Result<Transport, String> {
        let reference = reference.map(str::to_owned);
        Git { url: url.into(), reference, depth: 1, ..Git::default() }.check()
    }

    #[test]
    fn passwords_are_not_shown() {
        let shown = |url: &str| Git { url: url.into(), ..Git::default() }.shown();
        assert_eq!(shown("https://u:p@h/r.git"), "https://h/r.git");
        assert_eq!(shown("https://u:p@q@h/r@1.git"), "https://h/r@1.git");
        assert_eq!(shown("git@h:r.git"), "git@h:r.git");
    }

    #[test]
    fn add_knows_more_urls_and_no_commands() {
        let transport = |url: &str| Git { url: url.into(), ..Git::default() }.transport();
        for (url, expected) in [
            ("https://u:p@h/x", Transport::Https),
            ("git://h/x", Transport::Git),
            ("git@h:x", Transport::Ssh),
        ] {
            assert_eq!(transport(url), Ok(expected), "{url}");
        }
        for bad in [
            "ext::sh -c true",
            "ext::sh@x:y",
            "ext::a://b",
            "file:///etc",
            "/etc",
            "-x",
            "--a@b:c",
            "g@h:-x",
            "https://h/a\nb",
        ] {
            assert!(transport(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn good_urls_have_their_transport() {
        for (url, transport) in [
            ("https://github.com/a/b.git", Transport::Https),
            ("https://git.example.com:8443/a/b", Transport::Https),
            ("https://[::1]:3000/a", Transport::Https),
            ("http://gitea.dev.svc:3000/a/b", Transport::Http),
            ("ssh://git@host:22/a.git", Transport::Ssh),
            ("ssh://host/~user/a.git", Transport::Ssh),
            ("git@github.com:a/b.git", Transport::Ssh),
        ] {
            assert_eq!(git(url, None), Ok(transport), "{url}");
        }
        assert_eq!(origin("https://h:1/a/b"), "https://h:1");
    }

    #[test]
    fn nothing_is_an_option_a_command_or_a_local_path() {
        for bad in [
            "",
            "-oProxyCommand=x",
            "--upload-pack=x",
            "ext::sh -c true",
            "ext::sh@x:y",
            "file:///etc",
            "/local/path",
            "../x",
            "host:path",
            "git://h/x",
            "ssh://-oProxyCommand=x/y",
            "ssh://a@-oProxyCommand=x/y",
            "ssh://-a@h/y",
            "git@-h:x",
            "git@h:-x",
            "git@h:",
            "https://u:p@h/x",
            "https://u@h/x",
            "https://h",
            "https://h/",
            "https://h:99999/x",
            "https://h/a b",
            "https://h/a\nb",
            "https://h/'x",
            "https://h/`x`",
            "https://h/x?y",
            "https://h\\@i/x",
        ] {
            assert!(git(bad, None).is_err(), "{bad:?}");
        }
        assert!(git(&format!("https://h/{}", "x".repeat(MAX_URL)), None).is_err());
    }

    #[test]
    fn references_and_commits() {
        let with = |reference| git("https://h/x", Some(reference));
        for good in ["main", "v1.0.0", "refs/heads/a/b", "refs/pull/1/head", "feature/#12", "a@b", "_x"] {
            assert!(with(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-x",
            "--upload-pack=x",
            "a..b",
            "a b",
            "a:b",
            "a~1",
            "a^",
            "a*",
            "a//b",
            "/a",
            "a/",
            "a.lock",
            "a/.b",
            "a\0",
        ] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
        assert!(is_commit(&"0a".repeat(20)) && is_commit(&"0a".repeat(32)));
        assert!(!is_commit("main") && !is_commit(&"0A".repeat(20)) && !is_commit(&"0a".repeat(19)));
    }

    #[test]
    fn plain_http_needs_a_checksum() {
        let http =
            |url: &str, sha256: Option<String>| Http { url: url.into(), sha256, revision: None }.check();
        let sum = || Some("0a".repeat(32));
        assert_eq!(http("https://h/x.tar.gz?a=b", None), Ok(()));
        assert_eq!(http("http://source-controller.flux-system.svc./x", sum()), Ok(()));
        for (url, sum) in [
            ("http://h/x", None),
            ("https://h/x", Some("00".to_owned())),
            ("ftp://h/x", sum()),
            ("https://u:p@h/x", sum()),
            ("h/x", sum()),
        ] {
            assert!(http(url, sum).is_err(), "{url}");
        }
    }
}
