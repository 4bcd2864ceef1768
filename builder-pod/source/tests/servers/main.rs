//! The fetchers against real servers on this machine: git over https with an authority of its own and over ssh, LFS, archives,
//! and a registry behind the real courier. Needs git, git-lfs, openssl and sshd; `scripts/check` installs them.

mod added;
mod git;
mod http;
mod oci;
mod proxy;
mod ssh;
mod web;

use std::path::PathBuf;

use kiln_contract::policy::Network;
use kiln_contract::request::Source;
use kiln_contract::source::{Fetched, Git};
use kiln_source::error::Kind;
use kiln_source::{Courier, Fault, Places, Secrets, fetch};

/// Somewhere to fetch to.
pub(crate) struct Fetch {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) network: Network,
}

impl Fetch {
    pub(crate) fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self { dir: tempfile::tempdir().expect("a directory"), network: Network::default() }
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.tree().join(name)).unwrap_or_else(|e| format!("{name}: {e}"))
    }

    pub(crate) fn run(&self, source: &Source, secrets: &Secrets) -> Result<Fetched, Fault> {
        self.run_with(source, secrets, &Courier::new(&self.dir.path().join("none")))
    }

    pub(crate) fn run_with(
        &self,
        source: &Source,
        secrets: &Secrets,
        courier: &Courier,
    ) -> Result<Fetched, Fault> {
        let network = self.network.clone();
        let places = Places { tree: self.tree(), work: self.dir.path().join("work"), network };
        fetch(source, "linux/amd64", secrets, &places, courier)
    }
}

/// A source in git.
pub(crate) fn git(url: &str, change: impl FnOnce(&mut Git)) -> Source {
    let mut git = Git { url: url.into(), depth: 1, ..Git::default() };
    change(&mut git);
    Source::Git(git)
}

/// That it fails for that reason and says these words.
pub(crate) fn refused(result: Result<Fetched, Fault>, kind: Kind, words: &str) {
    let fault = result.expect_err(words);
    assert!(fault.kind == kind && fault.message.contains(words), "{kind:?} {words:?}: {fault:?}");
}
