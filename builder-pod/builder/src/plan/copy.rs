//! COPY and ADD: paths, flags and the text of the history.

use kiln_contract::reason::{DOCKERFILE_INVALID, NOT_SUPPORTED};
use kiln_dockerfile::instruction::Transfer;

use super::env::Words;
use super::{Action, CopyFrom, PlanError, support};
use crate::engine::Selection;

/// A COPY or ADD as written.
pub(super) struct Written<'a> {
    /// `COPY` or `ADD`.
    pub name: &'static str,
    pub files: &'a Transfer,
    pub chown: Option<&'a String>,
    pub chmod: Option<&'a String>,
    /// `--exclude`; never expanded.
    pub excludes: &'a [String],
    /// Unpack archives.
    pub unpack: bool,
}

/// The action and the history's text. `workdir` is absolute.
pub(super) fn evaluate(
    written: &Written<'_>,
    from: CopyFrom,
    workdir: &str,
    words: Words<'_>,
) -> Result<(Action, String), PlanError> {
    let sources = words.each(&written.files.sources)?;
    let dest = words.one(&written.files.dest)?;
    let chown = words.maybe(written.chown)?.filter(|text| !text.is_empty());
    let chmod = words.maybe(written.chmod)?.filter(|text| !text.is_empty());
    if let Some(remote) = sources.iter().find(|source| is_remote(source)) {
        return Err(match written.name {
            "ADD" => support::refusal(&format!("ADD of a URL or git repository ({remote})"), words.line),
            _ => PlanError::new(
                DOCKERFILE_INVALID,
                words.line,
                format!("COPY takes files of the build context, found {remote:?}; a URL is for ADD"),
            ),
        });
    }
    let mode = chmod.as_deref().map(|text| octal(text, written.name, words.line)).transpose()?;
    let mut text = written.name.to_owned();
    for (flag, value) in [("--chown=", &chown), ("--chmod=", &chmod)] {
        if let Some(value) = value {
            text.push_str(&format!(" {flag}{value}"));
        }
    }
    for word in sources.iter().chain([&dest]) {
        text.push(' ');
        text.push_str(word);
    }
    text.push_str(" # buildkit");
    let action = Action::Copy {
        from,
        what: Selection { sources, excludes: written.excludes.to_vec(), parents: false },
        dest: join(workdir, &dest),
        chown,
        mode,
        unpack: written.unpack,
    };
    Ok((action, text))
}

/// `https://…`, `git://…`, `user@host:path`.
fn is_remote(source: &str) -> bool {
    let url = source.split_once("://").is_some_and(|(scheme, _)| {
        ["http", "https", "git", "ssh", "git+ssh"].iter().any(|known| known.eq_ignore_ascii_case(scheme))
    });
    url || source.starts_with("git@")
}

fn octal(text: &str, instruction: &str, line: u32) -> Result<u32, PlanError> {
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            PlanError::new(
                DOCKERFILE_INVALID,
                line,
                format!("{instruction} --chmod={text}: expected an octal mode from 0 to 7777"),
            )
        });
    }
    Err(PlanError::new(
        NOT_SUPPORTED,
        line,
        format!(
            "{instruction} --chmod={text}: symbolic modes are not supported by this version of Kiln; write the mode in octal, such as 755"
        ),
    ))
}

/// `path` seen from `dir`. A path that means a directory (`.`, `x/`, `x/.`) keeps a slash at its end.
pub(super) fn join(dir: &str, path: &str) -> String {
    let directory = path.is_empty() || path == "." || path.ends_with('/') || path.ends_with("/.");
    let mut out = if path.starts_with('/') { clean(path) } else { clean(&format!("{dir}/{path}")) };
    if directory && !out.ends_with('/') {
        out.push('/');
    }
    out
}

/// An absolute path without `.`, `..` and doubled slashes (Go `path.Clean`).
pub(super) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for (dir, path, expected) in [
            ("/w/x", "rel/", "/w/x/rel/"),
            ("/w/x", ".", "/w/x/"),
            ("/w/x", "./other", "/w/x/other"),
            ("/w/x", "../up", "/w/up"),
            ("/", "a", "/a"),
            ("/w", "/abs//x/../y", "/abs/y"),
            ("/w", "/", "/"),
            ("/w", "x/.", "/w/x/"),
            ("/w", "../../../..", "/"),
        ] {
            assert_eq!(join(dir, path), expected, "{dir} {path}");
        }
    }

    #[test]
    fn remote_sources() {
        for remote in ["https://x/y.tar", "HTTP://x", "git@host:repo", "git://h/r", "ssh://h/r"] {
            assert!(is_remote(remote), "{remote}");
        }
        for local in ["a://b", "x@y:z", "a/http:/b", "."] {
            assert!(!is_remote(local), "{local}");
        }
    }

    #[test]
    fn modes() {
        assert_eq!(octal("0755", "COPY", 1), Ok(0o755));
        assert_eq!(octal("7777", "COPY", 1), Ok(0o7777));
        assert_eq!(octal("888", "COPY", 1).unwrap_err().reason, DOCKERFILE_INVALID);
        assert_eq!(octal("10000", "COPY", 1).unwrap_err().reason, DOCKERFILE_INVALID);
        assert_eq!(octal("u=rwX", "COPY", 1).unwrap_err().reason, NOT_SUPPORTED);
    }
}
