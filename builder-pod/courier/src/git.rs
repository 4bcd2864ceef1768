//! Files of a git repository, for ADD and named contexts: fetched by the program `git`, which runs nothing of the repository
//! (no hooks, no filters, no helpers) and speaks only with networks.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kiln_contract::call::{GitSource, MAX_FETCH};
use kiln_contract::failure::{Failure, FailureClass, reason};

use crate::failure::internal;

/// Seconds without 1000 bytes each after which a transfer over HTTP is given up.
const STALLED: u32 = 60;
/// Settings that keep a repository, and the machine's own settings, from running anything.
const SETTINGS: [&str; 14] = [
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.symlinks=true",
    "core.autocrlf=false",
    "core.attributesFile=/dev/null",
    "credential.helper=",
    "protocol.allow=never",
    "protocol.http.allow=always",
    "protocol.https.allow=always",
    "protocol.git.allow=always",
    "protocol.ssh.allow=always",
    "advice.detachedHead=false",
    "init.defaultBranch=master",
    "gc.auto=0",
];
const SSH: &str = "ssh -o BatchMode=yes -o ConnectTimeout=20";

/// Checks `source` out and writes its files as a tar into `out`; gives the commit. Blocks.
///
/// # Errors
/// The repository, the reference or the directory is not there, is not to be had, or is another commit than the checksum
/// says; there is no `git` here.
pub fn fetch(source: &GitSource, out: File) -> Result<String, Failure> {
    let dir = tempfile::Builder::new().prefix("kiln-git-").tempdir();
    let dir = dir.map_err(|e| internal(format!("making a directory for git: {e}")))?;
    let git = Git { home: dir.path().join("home"), tree: dir.path().join("tree"), source };
    for made in [&git.home, &git.tree] {
        std::fs::create_dir(made).map_err(|e| internal(format!("making a directory for git: {e}")))?;
    }
    git.run(&["init", "--quiet"])?;
    git.run(&["remote", "add", "--", "origin", &source.remote])?;
    let wanted = git.wanted()?;
    git.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--", "origin", &wanted])?;
    let commit = git.run(&["rev-parse", "--verify", "--end-of-options", "FETCH_HEAD^{commit}"])?;
    if let Some(expected) = source.checksum.as_deref().filter(|sum| !commit.starts_with(*sum)) {
        return Err(git.failed(format!("it is commit {commit}, and the checksum says {expected}")));
    }
    git.run(&["checkout", "--quiet", "--force", "--detach", &commit])?;
    if source.submodules && git.tree.join(".gitmodules").exists() {
        git.run(&["submodule", "--quiet", "update", "--init", "--recursive", "--depth=1"])?;
    }
    let seconds = git.run(&["show", "--no-patch", "--format=%ct", &commit])?;
    if !source.keep_git_dir {
        std::fs::remove_dir_all(git.tree.join(".git"))
            .map_err(|e| internal(format!("removing .git of a checkout: {e}")))?;
    }
    let time = source.commit_time.then(|| seconds.parse().unwrap_or(0));
    git.write(out, time)?;
    Ok(commit)
}

struct Git<'a> {
    /// Where git looks for settings: an empty directory.
    home: PathBuf,
    tree: PathBuf,
    source: &'a GitSource,
}

impl Git<'_> {
    fn failed(&self, problem: impl AsRef<str>) -> Failure {
        let what = match &self.source.reference {
            Some(reference) => format!("{} ({reference})", shown(&self.source.remote)),
            None => shown(&self.source.remote),
        };
        let text = format!("the git repository {what} can't be used: {}", problem.as_ref());
        Failure::new(FailureClass::User, reason::DOWNLOAD_FAILED, text)
    }

    fn start(&self, words: &[&str]) -> Result<Output, Failure> {
        let mut command = Command::new("git");
        command.env_clear();
        for name in ["PATH", "SSL_CERT_FILE", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let low = format!("http.lowSpeedTime={STALLED}");
        for setting in SETTINGS.iter().copied().chain([low.as_str(), "http.lowSpeedLimit=1000"]) {
            command.args(["-c", setting]);
        }
        command
            .envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null")])
            .envs([("GIT_TERMINAL_PROMPT", "0"), ("GIT_ASKPASS", "/bin/false"), ("LC_ALL", "C")])
            .env("GIT_SSH_COMMAND", SSH)
            .env("HOME", &self.home)
            .args(words)
            .current_dir(&self.tree)
            .stdin(Stdio::null());
        command.output().map_err(|e| match e.kind() {
            ErrorKind::NotFound => Failure::new(
                FailureClass::User,
                reason::NOT_SUPPORTED,
                "sources from git need the program git beside the courier: install it, or download an archive with ADD",
            ),
            _ => internal(format!("starting git: {e}")),
        })
    }

    /// What it wrote, without the line's end.
    fn run(&self, words: &[&str]) -> Result<String, Failure> {
        let done = self.start(words)?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("git says nothing");
            return Err(self.failed(last));
        }
        Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
    }

    /// The full reference, or the commit, that is fetched.
    fn wanted(&self) -> Result<String, Failure> {
        let Some(reference) = self.source.reference.as_deref() else { return Ok("HEAD".to_owned()) };
        if is_commit(reference) {
            return Ok(reference.to_owned());
        }
        let listed = self.run(&["ls-remote", "--", "origin"])?;
        let names: Vec<&str> =
            listed.lines().filter_map(|line| line.split_once('\t')).map(|(_, n)| n).collect();
        choose(reference, &names).ok_or_else(|| self.failed(format!("it has no {reference}")))
    }

    /// The wanted files, as a tar.
    fn write(&self, out: File, time: Option<u64>) -> Result<(), Failure> {
        let subdir = self.source.subdir.as_deref().unwrap_or_default().trim_matches('/');
        let inside = || self.failed(format!("it has no directory {subdir}"));
        let root = self.tree.canonicalize().map_err(|e| internal(e.to_string()))?;
        let top = root.join(subdir).canonicalize().map_err(|_| inside())?;
        if !top.starts_with(&root) || !top.is_dir() {
            return Err(inside());
        }
        let mut tar = tar::Builder::new(std::io::BufWriter::new(out));
        tar.follow_symlinks(false);
        let mut left = MAX_FETCH;
        append(&mut tar, &top, Path::new(""), time, &mut left)
            .and_then(|()| tar.into_inner())
            .and_then(|mut out| std::io::Write::flush(&mut out))
            .map_err(|e| match e.kind() {
                ErrorKind::FileTooLarge => self.failed(e.to_string()),
                _ => internal(format!("writing the files of a checkout: {e}")),
            })
    }
}

/// Appends what is in `dir`, one directory after another.
fn append(
    tar: &mut tar::Builder<impl std::io::Write>,
    dir: &Path,
    name: &Path,
    time: Option<u64>,
    left: &mut u64,
) -> std::io::Result<()> {
    let mut todo = vec![(dir.to_owned(), name.to_owned())];
    while let Some((dir, name)) = todo.pop() {
        let mut entries: Vec<_> = std::fs::read_dir(&dir)?.collect::<Result<_, _>>()?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            let meta = std::fs::symlink_metadata(&path)?;
            *left = left.checked_sub(meta.len()).ok_or_else(|| {
                let text = format!("its files have more than {MAX_FETCH} bytes, the most allowed");
                std::io::Error::new(ErrorKind::FileTooLarge, text)
            })?;
            let mut header = tar::Header::new_gnu();
            header.set_metadata_in_mode(&meta, tar::HeaderMode::Complete);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mode(if meta.is_dir() || meta.mode() & 0o100 != 0 { 0o755 } else { 0o644 });
            if let Some(time) = time {
                header.set_mtime(time);
            }
            if meta.is_dir() {
                tar.append_data(&mut header, &name, std::io::empty())?;
                todo.push((path, name));
            } else if meta.is_symlink() {
                header.set_size(0);
                tar.append_link(&mut header, &name, std::fs::read_link(&path)?)?;
            } else if meta.is_file() {
                tar.append_data(&mut header, &name, File::open(&path)?)?;
            }
        }
    }
    Ok(())
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The first of the names that a reference may stand for, in git's own order (gitrevisions(7)).
fn choose(reference: &str, names: &[&str]) -> Option<String> {
    let full = |prefix: &str| format!("{prefix}{reference}");
    let candidates = [reference.to_owned(), full("refs/"), full("refs/tags/"), full("refs/heads/")];
    candidates.into_iter().find(|candidate| names.contains(&candidate.as_str()))
}

/// A remote without the password that it may carry.
fn shown(remote: &str) -> String {
    match remote.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split_once('@')?.1))) {
        Some((scheme, rest)) => format!("{scheme}://{rest}"),
        None => remote.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_found_in_git_s_order() {
        let names = ["HEAD", "refs/heads/v1", "refs/tags/v1", "refs/heads/main", "refs/pull/1/head"];
        for (reference, expected) in [
            ("v1", Some("refs/tags/v1")),
            ("main", Some("refs/heads/main")),
            ("refs/heads/v1", Some("refs/heads/v1")),
            ("pull/1/head", Some("refs/pull/1/head")),
            ("HEAD", Some("HEAD")),
            ("--upload-pack=x", None),
        ] {
            assert_eq!(choose(reference, &names).as_deref(), expected, "{reference}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(shown("https://u:p@h/r.git"), "https://h/r.git");
        assert_eq!(shown("git@h:r.git"), "git@h:r.git");
    }

    #[test]
    fn only_networks_are_spoken_with() {
        let place = tempfile::tempdir().expect("a directory");
        let out = || tempfile::tempfile().expect("a file");
        for remote in [place.path().display().to_string(), "ext::sh -c true".to_owned()] {
            let source = GitSource {
                remote,
                reference: None,
                subdir: None,
                checksum: None,
                keep_git_dir: false,
                submodules: true,
                commit_time: false,
            };
            let failure = fetch(&source, out()).expect_err("refused");
            assert!([reason::DOWNLOAD_FAILED, reason::NOT_SUPPORTED].contains(&failure.reason.as_str()));
        }
    }
}
