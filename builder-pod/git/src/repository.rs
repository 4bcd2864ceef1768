//! A commit of a git repository, by the program `git`, which executes nothing of the repository: no hooks, no filters but LFS
//! where that is asked for, no helpers, no local paths. Objects lie apart from the files, so there is no `.git` among these.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_contract::source::{Git, Transport, is_commit};

use crate::environment::{Access, Environment};
use crate::error::{Fault, Kind};
use crate::finish::tidy;
use crate::limits::Budget;
use crate::{process, words};

/// Where the wanted commit is remembered in our own repository.
const WANTED: &str = "refs/kiln-wanted";
/// How often git is tried when the network is at fault, and the seconds between.
const TRIES: u64 = 3;
const PAUSE: u64 = 2;

/// Checks a commit out into `tree`, an empty directory; `work` is for what is needed only meanwhile. Gives the commit. Blocks.
///
/// # Errors
/// It can't be had, or breaks a rule.
pub fn fetch(source: &Git, access: &Access, tree: &Path, work: &Path) -> Result<String, Fault> {
    let transport = source.transport().map_err(Fault::invalid)?;
    let repository = Repository::new(source, transport, access, tree, work)?;
    repository.say(&format!("Fetching {}", repository.url));
    let commit = repository.fetch()?;
    repository.say(&format!("Checking out {commit}"));
    repository.measure(&commit)?;
    repository.git(&["checkout", "--quiet", "--force", "--detach", &commit])?;
    if source.submodules && tree.join(".gitmodules").symlink_metadata().is_ok() {
        repository.submodules()?;
    }
    let seconds = repository.git(&["show", "--no-patch", "--format=%ct", &commit])?;
    if source.keep_git_dir {
        // As a clone has it; HEAD keeps the commit.
        repository.git(&["update-ref", "-d", WANTED])?;
        repository.git(&["config", "remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"])?;
    }
    tidy(tree, seconds.trim().parse().unwrap_or(0), source.keep_git_dir)?;
    repository.say(&format!("Fetched {commit}"));
    Ok(commit)
}

struct Repository<'a> {
    source: &'a Git,
    environment: Environment,
    /// The URL as it may be shown.
    url: String,
    git_dir: PathBuf,
    tree: &'a Path,
    work: &'a Path,
    log: bool,
}

impl<'a> Repository<'a> {
    fn new(
        source: &'a Git,
        transport: Transport,
        access: &Access,
        tree: &'a Path,
        work: &'a Path,
    ) -> Result<Self, Fault> {
        let environment = Environment::new(source, transport, access, work)?;
        let git_dir = if source.keep_git_dir { tree.join(".git") } else { work.join("git") };
        Ok(Self { source, environment, url: source.shown(), git_dir, tree, work, log: access.log })
    }

    fn say(&self, text: &str) {
        if self.log {
            println!("{text}");
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.env_clear().envs(self.environment.variables()).args(words);
        command.current_dir(self.work).stdin(Stdio::null());
        command
    }

    /// Runs git outside of any repository.
    fn bare(&self, words: &[&str]) -> Result<String, Fault> {
        process::run(self.command(words), self.work, self.log).map_err(|e| self.fault(&e))
    }

    /// Runs git in ours.
    fn git(&self, words: &[&str]) -> Result<String, Fault> {
        self.try_git(words).map_err(|e| self.fault(&e))
    }

    fn try_git(&self, words: &[&str]) -> Result<String, process::Error> {
        let mut command = self.command(words);
        command.env("GIT_DIR", &self.git_dir).env("GIT_WORK_TREE", self.tree).current_dir(self.tree);
        process::run(command, self.work, self.log)
    }

    fn fault(&self, error: &process::Error) -> Fault {
        words::fault(error, &self.url)
    }

    /// Again while the network is at fault.
    fn patiently<T>(&self, mut work: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut tries = 1;
        loop {
            match work() {
                Err(fault) if fault.kind == Kind::Unavailable && tries < TRIES => {
                    self.say(&format!("{}; trying again", fault.message));
                    std::thread::sleep(std::time::Duration::from_secs(PAUSE * tries));
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    /// Brings the wanted commit here, and names it.
    fn fetch(&self) -> Result<String, Fault> {
        let (wanted, format) = match &self.source.commit {
            Some(commit) => (commit.clone(), format_of(commit)),
            None => self.patiently(|| self.look())?,
        };
        let format = format!("--object-format={format}");
        self.git(&["init", "--quiet", "--template=", &format])?;
        self.git(&["config", "remote.origin.url", &self.source.url])?;
        let refspec = format!("+{wanted}:{WANTED}");
        match self.patiently(|| self.get(&[&refspec], self.source.depth)) {
            // Some servers give only what a reference names.
            Err(fault) if self.source.commit.is_some() && fault.kind == Kind::NotFound => {
                self.patiently(|| {
                    self.get(&["+refs/heads/*:refs/all/heads/*", "+refs/tags/*:refs/all/tags/*"], 0)
                })?;
                let commit = format!("{wanted}^{{commit}}");
                self.try_git(&["update-ref", WANTED, &commit]).map_err(|_| {
                    let text = format!("{} has no commit {wanted} in its branches and tags", self.url);
                    Fault::new(Kind::NotFound, text)
                })?;
            }
            done => done?,
        }
        let commit = format!("{WANTED}^{{commit}}");
        let found = self.git(&["rev-parse", "--verify", "--end-of-options", &commit])?.trim().to_owned();
        let expected = self.source.commit.iter().chain(&self.source.checksum);
        match expected.into_iter().find(|expected| !found.starts_with(expected.as_str())) {
            Some(expected) => {
                let text = format!("{} gave commit {found}, expected {expected}", self.url);
                Err(Fault::new(Kind::Checksum, text))
            }
            _ if !is_commit(&found) => Err(Fault::internal(format!("git says that the commit is {found:?}"))),
            _ => Ok(found),
        }
    }

    fn get(&self, refspecs: &[&str], depth: u32) -> Result<(), Fault> {
        let depth = format!("--depth={depth}");
        let mut words = vec!["fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--force"];
        if depth != "--depth=0" {
            words.push(&depth);
        }
        words.extend(["--", "origin"]);
        words.extend(refspecs);
        self.git(&words).map(drop)
    }

    /// The full name of the wanted reference, and the hash of the repository.
    fn look(&self) -> Result<(String, &'static str), Fault> {
        let names = candidates(self.source.reference.as_deref());
        let mut words = vec!["ls-remote", "--quiet", "--", self.source.url.as_str()];
        words.extend(names.iter().map(String::as_str));
        let listed = self.bare(&words)?;
        let there: Vec<(&str, &str)> = listed.lines().filter_map(|line| line.split_once('\t')).collect();
        let found = names.iter().find_map(|name| there.iter().find(|(_, listed)| listed == name));
        match found {
            Some((id, name)) => Ok(((*name).to_owned(), format_of(id))),
            None => {
                let what = match &self.source.reference {
                    Some(reference) => format!("no branch, tag or reference {reference}"),
                    None => "no HEAD; name a ref".to_owned(),
                };
                Err(Fault::new(Kind::NotFound, format!("{} has {what}", self.url)))
            }
        }
    }

    /// Counts what a checkout would write, before it does.
    fn measure(&self, commit: &str) -> Result<(), Fault> {
        let mut budget = Budget::default();
        let sizes = self.git(&["ls-tree", "-r", "--format=%(objectsize)", commit])?;
        for size in sizes.lines() {
            budget.file()?;
            budget.bytes(size.trim().parse().unwrap_or(0))?;
        }
        Ok(())
    }

    fn submodules(&self) -> Result<(), Fault> {
        self.say("Fetching submodules");
        let depth = format!("--depth={}", self.source.depth);
        let words = ["submodule", "--quiet", "update", "--init", "--recursive"];
        let shallow: Vec<&str> = words.into_iter().chain([depth.as_str()]).collect();
        if self.source.depth > 0 && self.try_git(&shallow).is_ok() {
            return Ok(());
        }
        // Some servers give only what a reference names.
        self.patiently(|| self.git(&words).map(drop))
    }
}

fn format_of(id: &str) -> &'static str {
    if id.len() == 64 { "sha256" } else { "sha1" }
}

/// The full names that a reference may stand for, in the order that counts: what it says in full, then branches before tags (as
/// BuildKit and `git checkout`).
fn candidates(reference: Option<&str>) -> Vec<String> {
    match reference {
        None | Some("HEAD") => vec!["HEAD".to_owned()],
        Some(full) if full.starts_with("refs/") => vec![full.to_owned()],
        Some(short) => ["", "heads/", "tags/"].map(|kind| format!("refs/{kind}{short}")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_a_branch_or_a_tag() {
        assert_eq!(candidates(None), ["HEAD"]);
        assert_eq!(candidates(Some("refs/pull/1/head")), ["refs/pull/1/head"]);
        assert_eq!(candidates(Some("v1")), ["refs/v1", "refs/heads/v1", "refs/tags/v1"]);
        assert_eq!(candidates(Some("pull/1/head"))[0], "refs/pull/1/head");
        assert_eq!((format_of(&"0".repeat(40)), format_of(&"0".repeat(64))), ("sha1", "sha256"));
    }
}
