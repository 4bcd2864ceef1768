//! COPY and ADD: paths, flags and the text of the history.

use kiln_contract::image::is_sha256_digest;
use kiln_contract::reason::DOCKERFILE_INVALID;
use kiln_contract::source::{Git, is_commit};
use kiln_dockerfile::git::GitTime;
use kiln_dockerfile::instruction::Transfer;
use kiln_dockerfile::url::Url;
use kiln_dockerfile::{GitRef, GitRefError};

use super::env::Words;
use super::{Action, CopyFrom, Item, PlanError};
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
    /// `--keep-git-dir`
    pub keep_git_dir: Option<bool>,
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
    let invalid = |message: String| PlanError::new(DOCKERFILE_INVALID, words.line, message);
    let mode = chmod
        .as_deref()
        .map(Chmod::parse)
        .transpose()
        .map_err(|problem| invalid(format!("{} --chmod: {problem}", written.name)))?;
    let checksum = words.maybe(written.checksum)?.filter(|text| !text.is_empty());
    let mut items = Vec::new();
    for source in &sources {
        match remote(source).map_err(|e| invalid(format!("{source}: {e}")))? {
            Remote::No if checksum.is_some() => {
                let message = "ADD --checksum: only what is downloaded has a checksum to compare";
                return Err(invalid(message.to_owned()));
            }
            Remote::No => local(&mut items, source, written),
            _ if written.name == "COPY" => {
                let message = format!(
                    "COPY takes files of the build context, found {source:?}; a URL or git repository is for ADD"
                );
                return Err(invalid(message));
            }
            Remote::Git(git) => {
                let source = git_source(*git, written.keep_git_dir, checksum.as_deref()).map_err(invalid)?;
                items.push(Item::Git { source, excludes: written.excludes.to_vec() });
            }
            Remote::Url { name } => {
                if let Some(sum) = checksum.as_deref().filter(|sum| !is_sha256_digest(sum)) {
                    return Err(invalid(format!(
                        "ADD --checksum={sum}: expected sha256: and 64 hexadecimal digits"
                    )));
                }
                items.push(Item::Url { url: source.clone(), name, checksum: checksum.clone() });
            }
        }
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
        unpack: if written.name == "ADD" { written.unpack } else { Some(false) },
        // As BuildKit: a mode for what is made on the way would be lost.
        link: written.link && mode.is_none(),
        mode,
    };
    Ok((action, text))
}

/// All files of a context, onto nothing.
pub(super) fn whole(from: CopyFrom) -> Action {
    let all = Selection { sources: vec![".".to_owned()], excludes: Vec::new(), parents: false };
    Action::Copy {
        from,
        items: vec![Item::Files(all)],
        dest: "/".to_owned(),
        chown: None,
        mode: None,
        unpack: Some(false),
        link: false,
    }
}

/// What a source is that lies elsewhere.
#[derive(Debug, PartialEq, Eq)]
enum Remote {
    No,
    Git(Box<GitRef>),
    /// Something to download, and what it is called.
    Url {
        name: String,
    },
}

fn remote(source: &str) -> Result<Remote, GitRefError> {
    if let Some(git) = GitRef::parse(source)? {
        // `github.com/a/b` is a path of the context here (BuildKit `isGitSource`).
        return Ok(if git.local_lookalike { Remote::No } else { Remote::Git(Box::new(git)) });
    }
    if !source.starts_with("http://") && !source.starts_with("https://") {
        return Ok(Remote::No);
    }
    let path = Url::parse(source).map(|url| url.path).unwrap_or_default();
    let name = path.rsplit('/').find(|part| !part.is_empty() && *part != ".").unwrap_or("__unnamed__");
    Ok(Remote::Url { name: name.to_owned() })
}

/// The repository that a text names as a context; `None` for text that names none.
///
/// # Errors
/// It asks for something that can't be.
pub fn git_context(text: &str) -> Result<Option<Git>, String> {
    let git = GitRef::parse(text).map_err(|e| e.to_string())?;
    git.map(|git| git_source(git, None, None)).transpose()
}

/// What the courier is asked for. The flags of the instruction and the options of the reference must agree.
fn git_source(git: GitRef, keep_git_dir: Option<bool>, checksum: Option<&str>) -> Result<Git, String> {
    let given = git.checksum.as_deref();
    if let (Some(one), Some(other)) = (given, checksum)
        && one != other
    {
        return Err(format!("{}: the reference asks for commit {one}, --checksum for {other}", git.remote));
    }
    let checksum = checksum.or(given).map(str::to_ascii_lowercase);
    if let Some(sum) = checksum.as_deref().filter(|sum| !sum.bytes().all(|b| b.is_ascii_hexdigit())) {
        return Err(format!("{}: expected a commit in hexadecimal digits, found {sum:?}", git.remote));
    }
    let wanted = checksum.clone().filter(|_| git.fetch_by_commit).or(git.reference);
    let lower = wanted.as_deref().map(str::to_ascii_lowercase);
    let commit = lower.filter(|text| is_commit(text));
    Ok(Git {
        reference: wanted.filter(|_| commit.is_none()),
        commit,
        depth: 1,
        lfs: false,
        subdir: git.subdir,
        checksum,
        keep_git_dir: keep_git_dir.or(git.keep_git_dir).unwrap_or(false),
        submodules: git.submodules.unwrap_or(true),
        checkout_time: git.mtime != Some(GitTime::Commit),
        // A person who writes github.com/a/b as a context means this.
        url: if git.local_lookalike { format!("https://{}.git", git.remote) } else { git.remote },
    })
}

/// Adds a path: those that follow one another are one selection, all of which is looked for before anything is copied.
fn local(items: &mut Vec<Item>, source: &str, written: &Written<'_>) {
    if let Some(Item::Files(last)) = items.last_mut() {
        last.sources.push(source.to_owned());
        return;
    }
    items.push(Item::Files(Selection {
        sources: vec![source.to_owned()],
        excludes: written.excludes.to_vec(),
        parents: written.parents,
    }));
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
        let url = |name: &str| Ok(Remote::Url { name: name.to_owned() });
        for (source, expected) in [
            ("https://x/y.tar?a#b", url("y.tar")),
            ("http://x/a%20b/", url("a b")),
            ("http://x/", url("__unnamed__")),
            ("http://x", url("__unnamed__")),
            ("a://b", Ok(Remote::No)),
            ("github.com/a/b", Ok(Remote::No)),
            ("a/http:/b", Ok(Remote::No)),
            (".", Ok(Remote::No)),
        ] {
            assert_eq!(remote(source), expected, "{source}");
        }
        for git in ["https://x/y.git#main", "git@host:repo", "ssh://h/r"] {
            assert!(matches!(remote(git), Ok(Remote::Git(_))), "{git}");
        }
        assert!(remote("https://x/y.git?rev=1").is_err());
    }
}
