//! What a step depends on, in groups that a person has words for, a short digest of each: what the build before had is held
//! against them to say what changed. No result depends on it, and no value can be read from it. Pure.

use std::collections::BTreeMap;

use super::key::{Sum, View};
use crate::plan::{Action, Item, Op};

/// Hex digits of a digest: two that differ are alike once in four thousand million times, and then a step is said to have
/// changed in some other way.
const DIGITS: usize = 8;

/// The digests, by group.
pub(in crate::solve) type Inputs = BTreeMap<String, String>;

/// A group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::solve) enum Group {
    /// What the step stands on.
    Below,
    /// What is written in the Dockerfile, apart from flags.
    Instruction,
    /// Variables, and arguments that are declared.
    Environment,
    /// What is copied or downloaded.
    Files,
    /// Mounts of the step, with the files that they show.
    Mounts,
    /// Directory, user, owner, mode, network and whatever else is set for it.
    Settings,
}

impl Group {
    pub const ALL: [Self; 6] =
        [Self::Below, Self::Instruction, Self::Environment, Self::Files, Self::Mounts, Self::Settings];

    /// Its word in a record.
    pub fn word(self) -> &'static str {
        match self {
            Self::Below => "below",
            Self::Instruction => "instruction",
            Self::Environment => "environment",
            Self::Files => "files",
            Self::Mounts => "mounts",
            Self::Settings => "settings",
        }
    }
}

/// Those of an operation on `state`; `None` where its key can't be told either.
pub(super) fn inputs(view: &View<'_>, state: &str, op: &Op) -> Option<Inputs> {
    let mut groups = Inputs::new();
    let mut add = |group: Group, sum: Sum| {
        let digest = sum.end();
        groups.insert(group.word().to_owned(), digest.get(..DIGITS).unwrap_or_default().to_owned());
    };
    let sum = |group: Group| Sum::new(group.word());
    let settings = sum(Group::Settings).option(view.epoch().as_deref());
    match &op.action {
        Action::Run { argv, script, env, proxies, cwd, user, network, mounts } => {
            add(Group::Below, sum(Group::Below).field(state));
            add(Group::Instruction, sum(Group::Instruction).list(argv).option_file(script.as_ref()));
            let counts = env.iter().filter(|pair| super::key::counts(pair, proxies));
            add(Group::Environment, sum(Group::Environment).list(counts));
            let mut sums = sum(Group::Mounts).number(mounts.len() as u64);
            for mount in mounts {
                sums = view.mount(sums, mount)?;
            }
            add(Group::Mounts, sums);
            let settings = settings.field(cwd).field(user).flag(*network).field(view.alike);
            add(Group::Settings, settings);
        }
        Action::Workdir { path, user } => {
            add(Group::Below, sum(Group::Below).field(state));
            add(Group::Instruction, sum(Group::Instruction).field(path));
            add(Group::Settings, settings.option(user.as_deref()));
        }
        Action::Copy { from, items, dest, chown, mode, unpack, link } => {
            if !*link {
                add(Group::Below, sum(Group::Below).field(state));
            }
            let mut written = sum(Group::Instruction).field(dest);
            let mut files = sum(Group::Files);
            for item in items {
                written = match item {
                    Item::Files(what) => written.list(&what.sources).list(&what.excludes).flag(what.parents),
                    Item::Inline(file) => written.file(file),
                    Item::Url { url, .. } => written.field(url),
                    Item::Git { source, excludes } => written.field(&source.url).list(excludes),
                };
                files = view.item(files, *from, item, *unpack)?;
            }
            add(Group::Instruction, written);
            add(Group::Files, files);
            let mode = mode.as_ref().map(super::key::chmod);
            let unpack = unpack.map_or(0, |unpack| 1 + u64::from(unpack));
            let settings = settings.option(chown.as_deref()).option(mode.as_deref());
            add(Group::Settings, settings.flag(*link).number(unpack));
        }
    }
    Some(groups)
}
