//! What names the result of a step: a digest over everything that the result depends on. Pure.
//!
//! Every field has its length in front, so that no two inputs read alike, and the format's version comes first. What each
//! instruction depends on: BuildKit's cache maps (`solver/llbsolver/ops`), engine.md B3 point 8.

use kiln_contract::source::Git;
use sha2::{Digest, Sha256};

use super::inputs::{Inputs, inputs};
use crate::chmod::Chmod;
use crate::engine::{InlineFile, Selection};
use crate::plan::{Action, Base, CopyFrom, Item, Mount, Op, Plan};
use crate::solve::mount::whole;

/// Whatever changes the bytes of layers or the meaning of a field gets another number here: gzip as `layer` has it, the
/// fields below.
const FORMAT: &str = "kiln step 1";

/// What has to be looked at or asked for.
pub(in crate::solve) trait Facts {
    /// A digest over the files that a selection takes of a context (no name: the build's own): path, type, mode, link
    /// target, content and capability, but no time. `None` when it can't be told: the step will say why.
    fn context(&self, name: Option<&str>, what: &Selection) -> Option<String>;

    /// A digest over what is at a URL.
    fn url(&self, url: &str) -> Option<String>;

    /// The commit of a repository.
    fn commit(&self, source: &Git) -> Option<String>;
}

/// The key of every operation, by stage; `None` where it can't be told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::solve) struct Keys {
    ops: Vec<Vec<Option<String>>>,
    inputs: Vec<Vec<Option<Inputs>>>,
}

impl Keys {
    /// The keys of a plan. `alike` is what all RUN steps of the build are told alike.
    pub fn new(plan: &Plan, alike: &str, facts: &dyn Facts) -> Self {
        let mut keys = Self::default();
        let mut ends: Vec<Option<String>> = Vec::new();
        for stage in &plan.stages {
            let platform = stage.image.platform();
            let mut state = match stage.base {
                Base::Scratch => Some(Sum::new("scratch").field(&platform).end()),
                Base::Image(image) => {
                    let digest = &plan.images[image].resolved.digest;
                    Some(Sum::new("image").field(digest).field(&platform).end())
                }
                Base::Stage(parent) => ends.get(parent).cloned().flatten(),
            };
            let (mut ops, mut groups) = (Vec::new(), Vec::new());
            for op in &stage.ops {
                let view = View { plan, ends: &ends, alike, facts };
                let key = state.as_deref().and_then(|state| view.op(state, op));
                groups.push(state.as_deref().and_then(|state| inputs(&view, state, op)));
                state = match (&state, &key) {
                    (Some(state), Some(key)) => Some(Sum::new("state").field(state).field(key).end()),
                    _ => None,
                };
                ops.push(key);
            }
            ends.push(state);
            keys.ops.push(ops);
            keys.inputs.push(groups);
        }
        keys
    }

    /// The key of an operation.
    pub fn of(&self, (stage, op): super::At) -> Option<&str> {
        self.ops.get(stage)?.get(op)?.as_deref()
    }

    /// What an operation depends on, by group.
    pub fn inputs(&self, (stage, op): super::At) -> Option<&Inputs> {
        self.inputs.get(stage)?.get(op)?.as_ref()
    }
}

/// What an operation's key is made from.
pub(super) struct View<'a> {
    plan: &'a Plan,
    /// What each stage before ends with.
    ends: &'a [Option<String>],
    pub(super) alike: &'a str,
    facts: &'a dyn Facts,
}

impl View<'_> {
    pub(super) fn epoch(&self) -> Option<String> {
        self.plan.epoch.map(|seconds| seconds.to_string())
    }

    /// `state` names what the operation stands on.
    fn op(&self, state: &str, op: &Op) -> Option<String> {
        let epoch = self.epoch();
        let sum = |kind: &str| Sum::new(kind).field(FORMAT).option(epoch.as_deref());
        Some(match &op.action {
            Action::Run { argv, script, env, proxies, cwd, user, network, mounts } => {
                let counts = |pair: &&String| counts(pair, proxies);
                let mut sum = sum("run").field(state).list(argv).option_file(script.as_ref());
                sum = sum.list(env.iter().filter(counts)).field(cwd).field(user).flag(*network);
                sum = sum.field(self.alike).number(mounts.len() as u64);
                for mount in mounts {
                    sum = self.mount(sum, mount)?;
                }
                sum.end()
            }
            Action::Workdir { path, user } => {
                sum("workdir").field(state).field(path).option(user.as_deref()).end()
            }
            Action::Copy { from, items, dest, chown, mode, unpack, link } => {
                // A layer of --link is the same on whatever it lies.
                let sum = if *link { sum("link") } else { sum("copy").field(state) };
                let mut sum = sum.field(dest).option(chown.as_deref()).flag(*link);
                sum = sum.option(mode.as_ref().map(chmod).as_deref());
                sum = sum.number(items.len() as u64);
                for item in items {
                    sum = self.item(sum, *from, item, *unpack)?;
                }
                sum.end()
            }
        })
    }

    pub(super) fn item(&self, sum: Sum, from: CopyFrom, item: &Item, unpack: Option<bool>) -> Option<Sum> {
        Some(match item {
            Item::Files(what) => {
                let sum = sum.field("files").flag(unpack.unwrap_or(true));
                match from {
                    CopyFrom::Context | CopyFrom::Named(_) => self.context(sum, from, what)?,
                    CopyFrom::Stage(_) | CopyFrom::Image(_) => {
                        let sum = self.source(sum, from)?.list(&what.sources);
                        sum.list(&what.excludes).flag(what.parents)
                    }
                }
            }
            Item::Inline(file) => sum.field("inline").file(file),
            Item::Url { url, name, checksum } => {
                let found = match checksum {
                    Some(checksum) => checksum.clone(),
                    None => self.facts.url(url)?,
                };
                sum.field("url").field(name).flag(unpack.unwrap_or(false)).field(&found)
            }
            Item::Git { source, excludes } => {
                let pinned = source.commit.clone().filter(|_| source.checksum.is_none());
                let commit = match pinned {
                    Some(commit) => commit,
                    None => self.facts.commit(source)?,
                };
                let Git { url, subdir, lfs, submodules, keep_git_dir, checkout_time, .. } = source;
                let sum = sum.field("git").field(&commit).option(subdir.as_deref()).list(excludes);
                // The address is in what a kept .git says, and decides where submodules are.
                sum.field(url).flag(*lfs).flag(*submodules).flag(*keep_git_dir).flag(*checkout_time)
            }
        })
    }

    fn context(&self, sum: Sum, from: CopyFrom, what: &Selection) -> Option<Sum> {
        let name = match from {
            CopyFrom::Named(context) => Some(self.plan.contexts.get(context)?.as_str()),
            _ => None,
        };
        Some(sum.field("context").field(&self.facts.context(name, what)?))
    }

    /// A stage or image as a whole.
    fn source(&self, sum: Sum, from: CopyFrom) -> Option<Sum> {
        match from {
            CopyFrom::Stage(stage) => Some(sum.field("stage").field(self.ends.get(stage)?.as_deref()?)),
            CopyFrom::Image(image) => {
                Some(sum.field("image").field(&self.plan.images.get(image)?.resolved.digest))
            }
            CopyFrom::Context | CopyFrom::Named(_) => None,
        }
    }

    /// Of a secret or agent what the step can see of it beside what is in it; of a cache not which one it is, and nothing
    /// of what it holds.
    pub(super) fn mount(&self, sum: Sum, mount: &Mount) -> Option<Sum> {
        let files = |sum: Sum, from: Option<CopyFrom>, path: &str| -> Option<Sum> {
            Some(match from {
                None => sum.field("scratch"),
                Some(from @ (CopyFrom::Context | CopyFrom::Named(_))) => {
                    self.context(sum, from, &whole(path))?
                }
                Some(from) => self.source(sum, from)?,
            })
        };
        Some(match mount {
            Mount::Files { target, read_only, from, path } => {
                files(sum.field("bind").field(target).flag(*read_only).field(path), *from, path)?
            }
            Mount::Cache { target, read_only, cache, path, sharing: _ } => {
                let root = cache.root.map(|(mode, uid, gid)| format!("{mode} {uid} {gid}"));
                let sum = sum.field("cache").field(target).flag(*read_only).field(path);
                files(sum.option(root.as_deref()), cache.from, "/")?
            }
            Mount::Memory { target, read_only, size } => {
                sum.field("tmpfs").field(target).flag(*read_only).number(*size)
            }
            Mount::Secret { id, target, env, mode, owner, required } => {
                let sum = sum.field("secret").field(id).option(target.as_deref()).option(env.as_deref());
                let owner = [u64::from(owner.uid), u64::from(owner.gid)];
                sum.number((*mode).into()).number(owner[0]).number(owner[1]).flag(*required)
            }
            Mount::Agent { id, target, mode, owner, required } => {
                let sum = sum.field("ssh").field(id).field(target).number((*mode).into());
                sum.number(owner.uid.into()).number(owner.gid.into()).flag(*required)
            }
        })
    }
}

/// Whether a variable counts: proxies that the Dockerfile does not speak of do not.
pub(super) fn counts(pair: &str, proxies: &[String]) -> bool {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    !proxies.iter().any(|proxy| proxy == name)
}

pub(super) fn chmod(mode: &Chmod) -> String {
    serde_json::to_string(mode).unwrap_or_default()
}

/// A digest over fields.
pub(super) struct Sum(Sha256);

impl Sum {
    pub(super) fn new(kind: &str) -> Self {
        Self(Sha256::new()).field(kind)
    }

    pub(super) fn field(mut self, text: &str) -> Self {
        self.0.update((text.len() as u64).to_be_bytes());
        self.0.update(text.as_bytes());
        self
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.update(number.to_be_bytes());
        self
    }

    pub(super) fn flag(self, flag: bool) -> Self {
        self.number(flag.into())
    }

    pub(super) fn option(self, text: Option<&str>) -> Self {
        match text {
            None => self.flag(false),
            Some(text) => self.flag(true).field(text),
        }
    }

    pub(super) fn list<'s>(self, items: impl IntoIterator<Item = &'s String>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        items.iter().fold(self.number(items.len() as u64), |sum, item| sum.field(item))
    }

    pub(super) fn file(self, file: &InlineFile) -> Self {
        self.field(&file.name).field(&file.data)
    }

    pub(super) fn option_file(self, file: Option<&InlineFile>) -> Self {
        match file {
            None => self.flag(false),
            Some(file) => self.flag(true).file(file),
        }
    }

    pub(super) fn end(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
