//! COPY and ADD: paths, flags and the text of the history.

use kiln_contract::reason::DOCKERFILE_INVALID;
use kiln_dockerfile::instruction::Transfer;

use super::env::Words;
use super::{Action, CopyFrom, Item, PlanError, support};
use crate::chmod::Chmod;
use crate::engine::{InlineFile, Selection};

/// A COPY or ADD as written.
pub(super) struct Written<'a> {
    /// `COPY` or `ADD`.
    pub name: &'static str,
    pub files: &'a Transfer,
    pub chown: Option<&'a String>,
    pub chmod: Option<&'a String>,
    /// `--exclude`; never expanded.
    pub excludes: &'a [String],
    /// `--parents`
    pub parents: bool,
    /// `--link`
    pub link: bool,
    /// `--checksum`
    pub checksum: Option<&'a String>,
    /// Unpack archives; local ones when it is not said.
    pub unpack: Option<bool>,
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
    let invalid = |message: String| PlanError::new(DOCKERFILE_INVALID, words.line, message);
    let mode = chmod
        .as_deref()
        .map(Chmod::parse)
        .transpose()
        .map_err(|problem| invalid(format!("{} --chmod: {problem}", written.name)))?;
    if written.checksum.is_some() {
        return Err(invalid("ADD --checksum: only what is downloaded has a checksum to compare".to_owned()));
    }
    let mut items = Vec::new();
    if !sources.is_empty() {
        let (sources, excludes) = (sources.clone(), written.excludes.to_vec());
        items.push(Item::Files(Selection { sources, excludes, parents: written.parents }));
    }
    for file in &written.files.heredocs {
        let data = if file.expand { words.heredoc(&file.data)? } else { file.data.clone() };
        items.push(Item::Inline(InlineFile { name: file.path.clone(), data }));
    }
    let mut text = written.name.to_owned();
    if written.parents {
        text.push_str(" --parents");
    }
    for (flag, value) in [("--chown=", &chown), ("--chmod=", &chmod)] {
        if let Some(value) = value {
            text.push_str(&format!(" {flag}{value}"));
        }
    }
    for word in &sources {
        text.push_str(&format!(" {word}"));
    }
    for file in &written.files.heredocs {
        text.push_str(&format!(" <<{}", file.path));
    }
    text.push_str(&format!(" {dest} # buildkit"));
    let action = Action::Copy {
        from,
        items,
        dest: join(workdir, &dest),
        chown,
        unpack: written.unpack.unwrap_or(written.name == "ADD"),
        // As BuildKit: a mode for what is made on the way would be lost.
        link: written.link && mode.is_none(),
        mode,
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
}
