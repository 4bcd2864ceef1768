//! References to git repositories, as ADD, named contexts and sources write them: which text is one, and what it asks for.
//!
//! `https://host/path.git`, `ssh://…`, `git://…`, `user@host:path`, `github.com/owner/name`; then `?ref=`, `tag=`,
//! `branch=`, `subdir=`, `commit=` and so on; then `#ref:subdir`. Rules: BuildKit `dfgitutil` and `gitutil`, which read
//! URLs as Go's `net/url` does.

use thiserror::Error;

use crate::url::{Url, query_pairs};

/// A repository, and what of it is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitRef {
    /// What git is given to fetch from.
    pub remote: String,
    /// The last component of the remote, without `.git`.
    pub short_name: String,
    /// Branch, tag, commit or full reference.
    pub reference: Option<String>,
    /// Directory of the repository that is wanted; all of it when absent.
    pub subdir: Option<String>,
    /// Commit, or the start of one, that the reference must name.
    pub checksum: Option<String>,
    /// Keep the `.git` directory; as the instruction's flag says when absent.
    pub keep_git_dir: Option<bool>,
    /// Fetch submodules; yes when absent.
    pub submodules: Option<bool>,
    /// Which times the files get.
    pub mtime: Option<GitTime>,
    /// Fetch the commit of `checksum`, not the reference.
    pub fetch_by_commit: bool,
    /// `http://` or `git://`: anybody on the way may change it.
    pub unencrypted: bool,
    /// `github.com/…`, which a local path could be as well.
    pub local_lookalike: bool,
}

/// Times of the files of a checkout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitTime {
    /// When they were checked out.
    Checkout,
    /// That of the commit.
    Commit,
}

/// A reference that is one to git, and malformed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GitRefError {
    /// An option that does not exist.
    #[error(
        "unknown git option {name:?}: expected ref, tag, branch, commit, checksum, subdir, keep-git-dir, submodules, mtime or fetch-by-commit"
    )]
    Unknown {
        /// The option.
        name: String,
    },
    /// An option without a value.
    #[error("git option {name:?} has no value")]
    NoValue {
        /// The option.
        name: String,
    },
    /// An option that is given more than once.
    #[error("git option {name:?} is given more than once")]
    Repeated {
        /// The option.
        name: String,
    },
    /// A value that the option does not take.
    #[error("invalid value {value:?} of git option {name}: expected {expected}")]
    Value {
        /// The option.
        name: &'static str,
        /// As written.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Two different answers to one question.
    #[error("{what} conflicts: {one:?} and {other:?}")]
    Conflict {
        /// `ref` or `subdir`.
        what: &'static str,
        /// The first.
        one: String,
        /// The second.
        other: String,
    },
    /// Both a tag and a branch.
    #[error("a git reference names a tag or a branch, not both")]
    TagAndBranch,
}

const TAGS: &str = "refs/tags/";
const BRANCHES: &str = "refs/heads/";

impl GitRef {
    /// Reads a reference; `None` for text that is none: a path, a plain URL.
    ///
    /// # Errors
    /// It is one, and asks for something that can't be.
    pub fn parse(text: &str) -> Result<Option<Self>, GitRefError> {
        let Some((mut found, query)) = remote(text) else { return Ok(None) };
        let last = found.remote.rsplit('/').next().unwrap_or_default();
        found.short_name = last.strip_suffix(".git").unwrap_or(last).to_owned();
        found.options(&query)?;
        Ok(Some(found))
    }

    fn options(&mut self, query: &str) -> Result<(), GitRefError> {
        let (mut tag, mut branch) = (None, None);
        let pairs = query_pairs(query);
        for (at, (name, value)) in pairs.iter().enumerate() {
            if pairs[..at].iter().any(|(other, _)| other == name) {
                return Err(GitRefError::Repeated { name: name.clone() });
            }
            let switch = matches!(name.as_str(), "keep-git-dir" | "submodules" | "fetch-by-commit");
            if value.is_empty() && !switch {
                return Err(GitRefError::NoValue { name: name.clone() });
            }
            match name.as_str() {
                "ref" => agree("ref", &mut self.reference, value.clone())?,
                "subdir" => agree("subdir", &mut self.subdir, value.clone())?,
                "tag" => tag = Some(full(TAGS, value)),
                "branch" => branch = Some(full(BRANCHES, value)),
                "checksum" | "commit" => self.checksum = Some(value.clone()),
                "keep-git-dir" => self.keep_git_dir = Some(boolean("keep-git-dir", value)?),
                "submodules" => self.submodules = Some(boolean("submodules", value)?),
                "fetch-by-commit" => self.fetch_by_commit = boolean("fetch-by-commit", value)?,
                "mtime" => {
                    self.mtime = Some(match value.as_str() {
                        "checkout" => GitTime::Checkout,
                        "commit" => GitTime::Commit,
                        _ => {
                            let expected = "checkout or commit";
                            return Err(GitRefError::Value { name: "mtime", value: value.clone(), expected });
                        }
                    });
                }
                _ => return Err(GitRefError::Unknown { name: name.clone() }),
            }
        }
        match (tag, branch) {
            (Some(_), Some(_)) => Err(GitRefError::TagAndBranch),
            (Some(named), None) | (None, Some(named)) => agree("ref", &mut self.reference, named),
            (None, None) => Ok(()),
        }
    }
}

/// The remote with what its fragment asks for, and its query as written.
fn remote(text: &str) -> Option<(GitRef, String)> {
    if text.starts_with("./") || text.starts_with("../") {
        return None;
    }
    if text.starts_with("github.com/") {
        let url = Url::parse(text)?;
        let remote = url.without_options();
        let found = GitRef { remote, local_lookalike: true, ..with_fragment(&url.fragment) };
        return Some((found, url.query));
    }
    if has_scheme(text) {
        let url = Url::parse(text)?;
        let plain = matches!(url.scheme.as_str(), "http" | "git");
        let web = matches!(url.scheme.as_str(), "http" | "https");
        if !(web || matches!(url.scheme.as_str(), "git" | "ssh")) || (web && !url.path.ends_with(".git")) {
            return None;
        }
        let remote = url.without_options();
        let found = GitRef { remote, unencrypted: plain, ..with_fragment(&url.fragment) };
        return Some((found, url.query));
    }
    scp_like(text)
}

/// `user@host:path?query#fragment`.
fn scp_like(text: &str) -> Option<(GitRef, String)> {
    if text.contains(['\n', '\r']) {
        return None;
    }
    let (user, rest) = text.split_once('@')?;
    let (host, rest) = rest.split_once(':')?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let user_fits = !user.is_empty() && user.chars().all(|c| word(c) || c == '_');
    if !user_fits || host.is_empty() || !host.chars().all(|c| word(c) || c == '.') {
        return None;
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let found = GitRef { remote: format!("{user}@{host}:{path}"), ..with_fragment(fragment) };
    Some((found, query.to_owned()))
}

/// `ref:subdir`; the directory is read from the repository's root and never leaves it.
fn with_fragment(fragment: &str) -> GitRef {
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let mut parts: Vec<&str> = Vec::new();
    for part in subdir.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let some = |text: String| (!text.is_empty()).then_some(text);
    GitRef { reference: some(reference.to_owned()), subdir: some(parts.join("/")), ..GitRef::default() }
}

fn has_scheme(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()))
}

fn full(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

fn agree(what: &'static str, known: &mut Option<String>, value: String) -> Result<(), GitRefError> {
    match known {
        Some(one) if *one != value => Err(GitRefError::Conflict { what, one: one.clone(), other: value }),
        _ => {
            *known = Some(value);
            Ok(())
        }
    }
}

/// Go's `strconv.ParseBool`; a name alone means yes.
fn boolean(name: &'static str, value: &str) -> Result<bool, GitRefError> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(GitRefError::Value { name, value: value.to_owned(), expected: "true or false" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_git_reference() {
        for text in
            ["", ".", "a/b", "https://x/y", "https://x/y.git.bar", "docker-image://x", "./x.git", "host:path"]
        {
            assert_eq!(GitRef::parse(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn the_parts_of_one() {
        let found = GitRef::parse("https://h/a/r.git?submodules=0&tag=v1#:x/../y").unwrap().unwrap();
        assert_eq!((found.remote.as_str(), found.short_name.as_str()), ("https://h/a/r.git", "r"));
        assert_eq!((found.reference.as_deref(), found.subdir.as_deref()), (Some("refs/tags/v1"), Some("y")));
        assert_eq!(found.submodules, Some(false));
        let scp = GitRef::parse("git@h:a/r.git?ref=x#:d").unwrap().unwrap();
        assert_eq!((scp.remote.as_str(), scp.subdir.as_deref()), ("git@h:a/r.git", Some("d")));
    }

    #[test]
    fn what_can_not_be_is_said() {
        for (query, words) in [
            ("ref=a&tag=b", "conflicts"),
            ("tag=a&branch=b", "not both"),
            ("ref=a&ref=a", "more than once"),
            ("subdir", "no value"),
            ("rev=1", "unknown"),
            ("mtime=x", "checkout or commit"),
        ] {
            let error = GitRef::parse(&format!("https://h/r.git?{query}")).unwrap_err().to_string();
            assert!(error.contains(words), "{query}: {error}");
        }
    }
}
