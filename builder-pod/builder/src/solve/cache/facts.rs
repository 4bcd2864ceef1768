//! What keys need of files and downloads. What had to be fetched for its digest is kept for the step that adds it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Mutex;

use kiln_contract::source::Git;

use super::key::Facts;
use crate::courier::Fetched;
use crate::engine::Selection;
use crate::solve::spool::spool_file;
use crate::solve::{Checkout, World};

/// What was fetched before its step.
#[derive(Debug, Default)]
pub(in crate::solve) struct Early {
    files: Mutex<BTreeMap<String, (File, Fetched)>>,
    checkouts: Mutex<BTreeMap<String, Checkout>>,
    /// Digests of what was looked at: stages like to take the same files.
    digests: Mutex<BTreeMap<String, Option<String>>>,
}

impl Early {
    /// The file of a URL; each is taken once.
    pub fn file(&self, url: &str) -> Option<(File, Fetched)> {
        self.files.lock().ok()?.remove(url)
    }

    /// The files of a repository; they are taken once.
    pub fn checkout(&self, source: &Git) -> Option<Checkout> {
        self.checkouts.lock().ok()?.remove(&name(source))
    }
}

fn name(source: &Git) -> String {
    serde_json::to_string(source).unwrap_or_default()
}

/// Looks at contexts, and asks the courier. Whatever can't be had is left to the step to tell.
pub(in crate::solve) struct Seen<'a> {
    pub world: World<'a>,
    pub early: &'a Early,
}

impl Facts for Seen<'_> {
    fn context(&self, name: Option<&str>, what: &Selection) -> Option<String> {
        let mut digests = self.early.digests.lock().ok()?;
        let key = serde_json::to_string(&(name, what)).ok()?;
        let fresh = || self.world.context.digest(name, what).ok();
        // A context may be large: a build that is told to stop does not look at the rest of it.
        let stopped = self.world.stop.is_stopped();
        digests.entry(key).or_insert_with(|| if stopped { None } else { fresh() }).clone()
    }

    fn url(&self, url: &str) -> Option<String> {
        let mut files = self.early.files.lock().ok()?;
        if let Some((_, fetched)) = files.get(url) {
            return Some(told(fetched));
        }
        let file = spool_file(self.world.spool, &format!("early{}", files.len())).ok()?;
        let fetched = self.world.courier.fetch(url, None, file.as_fd()).ok()?;
        let text = told(&fetched);
        files.insert(url.to_owned(), (file, fetched));
        Some(text)
    }

    fn commit(&self, source: &Git) -> Option<String> {
        let mut checkouts = self.early.checkouts.lock().ok()?;
        if let Some(checkout) = checkouts.get(&name(source)) {
            return Some(checkout.commit().to_owned());
        }
        let place = format!("early-checkout{}", checkouts.len());
        let checkout = Checkout::fetch(self.world.courier, source, self.world.spool, &place).ok()?;
        let commit = checkout.commit().to_owned();
        checkouts.insert(name(source), checkout);
        Some(commit)
    }
}

/// The time is the file's in the image, as the server says it.
fn told(fetched: &Fetched) -> String {
    format!("{} {}", fetched.digest, fetched.modified.unwrap_or(0))
}
