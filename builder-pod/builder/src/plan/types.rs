//! What a plan is made of: plain data that says in full what is to be done, before anything is done.

use std::ops::RangeInclusive;

use kiln_contract::image::ResolvedImage;
use kiln_contract::journal::{MAX_INSTRUCTION, PlannedStep};
use kiln_contract::source::Git;
use kiln_contract::text::{printable, truncate};

use super::Mount;
use crate::chmod::Chmod;
use crate::engine::{InlineFile, Selection};
use crate::image::Image;

/// What is wrong with a Dockerfile or a request, found before anything runs. Its author acts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PlanError {
    /// A word of `kiln_contract::reason`.
    pub reason: &'static str,
    /// 1-based line of the Dockerfile, where there is one.
    pub line: Option<u32>,
    /// 1-based number of the step, once steps are numbered.
    pub step: Option<u32>,
    /// What was expected, what was found, what to do.
    pub message: String,
}

impl PlanError {
    pub(super) fn new(
        reason: &'static str,
        line: impl Into<Option<u32>>,
        message: impl Into<String>,
    ) -> Self {
        Self { reason, line: line.into(), step: None, message: message.into() }
    }
}

/// A numbered instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Name or number of its stage; `global` for an ARG before the first FROM.
    pub stage: String,
    /// 1-based line of the Dockerfile.
    pub line: u32,
    /// Its text on one line.
    pub text: String,
}

impl Step {
    /// As the journal has it.
    pub fn planned(&self) -> PlannedStep {
        PlannedStep {
            stage: self.stage.clone(),
            line: self.line,
            instruction: truncate(&printable(&self.text), MAX_INSTRUCTION),
        }
    }
}

/// Everything that is to be done.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// All steps; the first has the number 1.
    pub steps: Vec<Step>,
    /// Base images, and images that files are copied from.
    pub images: Vec<BaseImage>,
    /// Reachable stages in build order; the last is the one that becomes the image.
    pub stages: Vec<Stage>,
    /// `SOURCE_DATE_EPOCH`: Unix seconds that no time in the image is later than.
    pub epoch: Option<i64>,
    /// Names of the contexts, beside the build context, that files are taken from.
    pub contexts: Vec<String>,
    /// Build arguments of the request that no ARG takes up.
    pub unused_args: Vec<String>,
}

/// An image that the build reads.
#[derive(Debug, Clone, PartialEq)]
pub struct BaseImage {
    /// What the registry has.
    pub resolved: ResolvedImage,
    /// Diff IDs of its layers, from its config.
    pub diff_ids: Vec<String>,
}

/// What a stage starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// Nothing.
    Scratch,
    /// [`Plan::images`].
    Image(usize),
    /// [`Plan::stages`], an earlier one.
    Stage(usize),
}

/// A stage that the image needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// Name or number.
    pub name: String,
    /// Numbers of its steps; the first is its FROM.
    pub steps: RangeInclusive<u32>,
    /// What it starts from.
    pub base: Base,
    /// What it does with files, in order.
    pub ops: Vec<Op>,
    /// The image at its end, all but the layers' digests.
    pub image: Image,
    /// Whether its layers are part of the final image.
    pub publish: bool,
}

/// Something that is done with files; each makes a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// The step that it belongs to.
    pub step: u32,
    /// What the history says of it.
    pub created_by: String,
    /// What is done.
    pub action: Action,
}

/// What is done with files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `RUN`
    Run {
        /// The command and its arguments.
        argv: Vec<String>,
        /// A here-document that names its interpreter: what `argv` runs.
        script: Option<InlineFile>,
        /// `NAME=value`.
        env: Vec<String>,
        /// Names in `env` of proxies that the request gave and the Dockerfile does not mention: another proxy gives no other
        /// result.
        proxies: Vec<String>,
        /// Absolute.
        cwd: String,
        /// As USER has it; `0` for none.
        user: String,
        /// Whether it has a network.
        network: bool,
        /// What it mounts.
        mounts: Vec<Mount>,
    },
    /// `COPY`, `ADD`
    Copy {
        /// Where [`Item::Files`] come from.
        from: CopyFrom,
        /// What is copied, in order.
        items: Vec<Item>,
        /// Absolute; a trailing `/` means a directory.
        dest: String,
        /// `--chown`.
        chown: Option<String>,
        /// `--chmod`.
        mode: Option<Chmod>,
        /// Unpack archives among the files; `None`: local ones.
        unpack: Option<bool>,
        /// `--link`: nothing of what is there already is looked at.
        link: bool,
    },
    /// `WORKDIR`
    Workdir {
        /// Absolute.
        path: String,
        /// Owner of what has to be made, as USER has it; `None` for 0:0.
        user: Option<String>,
    },
}

/// One thing that a COPY or ADD takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// Files of a context, a stage or an image.
    Files(Selection),
    /// A here-document.
    Inline(InlineFile),
    /// Something to download.
    Url {
        /// `http://…` or `https://…`.
        url: String,
        /// Its name in a destination directory.
        name: String,
        /// `sha256:…` that it must have.
        checksum: Option<String>,
    },
    /// Files of a git repository.
    Git {
        /// Which.
        source: Git,
        /// `--exclude`.
        excludes: Vec<String>,
    },
}

impl Action {
    /// Whose files it reads.
    pub(crate) fn sources(&self) -> Vec<CopyFrom> {
        match self {
            Self::Copy { from, .. } => vec![*from],
            Self::Run { mounts, .. } => mounts.iter().filter_map(Mount::from).collect(),
            Self::Workdir { .. } => Vec::new(),
        }
    }
}

impl CopyFrom {
    /// The stage that it is.
    pub(crate) fn stage(self) -> Option<usize> {
        match self {
            Self::Stage(stage) => Some(stage),
            Self::Context | Self::Named(_) | Self::Image(_) => None,
        }
    }
}

/// Where a COPY, or a mount, takes its files from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CopyFrom {
    /// The build context.
    Context,
    /// [`Plan::contexts`].
    Named(usize),
    /// [`Plan::stages`].
    Stage(usize),
    /// [`Plan::images`].
    Image(usize),
}
