//! Typed instructions. Values are as written: variables are expanded by the builder.

mod build;
mod csv;
mod device;
mod flags;
mod health;
mod mount;

pub(crate) use build::{is_from, stage_of_node, typed};
pub use device::Device;
pub use health::{DurationError, Healthcheck};
pub use mount::{Mount, MountError, MountSpec, MountType, Sharing};

use crate::error::LineRange;
use crate::heredoc::Heredoc;

/// All instructions in capitals.
const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The names of all instructions in capitals, in alphabetical order.
#[must_use]
pub fn instruction_names() -> &'static [&'static str] {
    &NAMES
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Lines in the Dockerfile, heredocs included.
    pub lines: LineRange,
    /// The joined text without heredoc bodies, as shown after `Step i/N : `.
    pub original: String,
    /// The comments directly above.
    pub comments: Vec<String>,
    /// What it does.
    pub kind: InstructionKind,
}

impl Instruction {
    /// The instruction's name in capitals.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }
}

/// An instruction with its fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstructionKind {
    /// `ADD`
    Add(Add),
    /// `ARG name[=default] ...`
    Arg(Vec<Arg>),
    /// `CMD`
    Cmd(CommandLine),
    /// `COPY`
    Copy(Copy),
    /// `ENTRYPOINT`
    Entrypoint(CommandLine),
    /// `ENV`
    Env(Vec<KeyValue>),
    /// `EXPOSE`: ports as written, sorted as text; a word may expand to several.
    Expose(Vec<String>),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `LABEL`
    Label(Vec<KeyValue>),
    /// `MAINTAINER`: the author.
    Maintainer(String),
    /// `ONBUILD`: the text of the instruction to run later, heredoc bodies included.
    Onbuild(String),
    /// `RUN`
    Run(Run),
    /// `SHELL`: never empty.
    Shell(Vec<String>),
    /// `STOPSIGNAL`: name or number, not checked.
    StopSignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`: never empty.
    Volume(Vec<String>),
    /// `WORKDIR`
    Workdir(String),
}

impl InstructionKind {
    /// The instruction's name in capitals.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Add(_) => "ADD",
            Self::Arg(_) => "ARG",
            Self::Cmd(_) => "CMD",
            Self::Copy(_) => "COPY",
            Self::Entrypoint(_) => "ENTRYPOINT",
            Self::Env(_) => "ENV",
            Self::Expose(_) => "EXPOSE",
            Self::Healthcheck(_) => "HEALTHCHECK",
            Self::Label(_) => "LABEL",
            Self::Maintainer(_) => "MAINTAINER",
            Self::Onbuild(_) => "ONBUILD",
            Self::Run(_) => "RUN",
            Self::Shell(_) => "SHELL",
            Self::StopSignal(_) => "STOPSIGNAL",
            Self::User(_) => "USER",
            Self::Volume(_) => "VOLUME",
            Self::Workdir(_) => "WORKDIR",
        }
    }
}

/// A pair of ENV or LABEL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Name, never empty.
    pub key: String,
    /// Value with its quotes.
    pub value: String,
    /// Written as `name value` instead of `name=value`.
    pub legacy: bool,
}

/// A variable of ARG.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arg {
    /// Name as written.
    pub key: String,
    /// Default with its quotes, `None` without `=`.
    pub value: Option<String>,
    /// The rest of a comment above that starts with the name.
    pub doc: Option<String>,
}

/// A file written into the Dockerfile as source of COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InlineFile {
    /// File name: the heredoc's delimiter.
    pub path: String,
    /// Content, leading tabs dropped for `<<-`.
    pub data: String,
    /// Whether variables in the content are to be expanded.
    pub expand: bool,
}

/// Sources and destination of COPY and ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// Paths, URLs and git references.
    pub sources: Vec<String>,
    /// Heredocs among the sources.
    pub heredocs: Vec<InlineFile>,
    /// Destination.
    pub dest: String,
}

/// `ADD`. Flags are as written; `None` where absent or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Add {
    /// Sources and destination.
    pub files: Transfer,
    /// `--chown=`
    pub chown: Option<String>,
    /// `--chmod=`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude=`, in order.
    pub exclude: Vec<String>,
    /// `--keep-git-dir`
    pub keep_git_dir: Option<bool>,
    /// `--checksum=`
    pub checksum: Option<String>,
    /// `--unpack`
    pub unpack: Option<bool>,
}

/// `COPY`. Flags are as written; `None` where absent or empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Sources and destination.
    pub files: Transfer,
    /// `--from=`: stage, named context or image; never expanded.
    pub from: Option<String>,
    /// `--chown=`
    pub chown: Option<String>,
    /// `--chmod=`
    pub chmod: Option<String>,
    /// `--link`
    pub link: bool,
    /// `--exclude=`, in order.
    pub exclude: Vec<String>,
    /// `--parents`
    pub parents: bool,
}

/// The command of RUN, CMD and ENTRYPOINT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// Exec form: the words. Shell form: one text, or nothing.
    pub args: Vec<String>,
    /// Whether SHELL is to be put in front.
    pub shell_form: bool,
    /// Heredocs (RUN only).
    pub heredocs: Vec<Heredoc>,
}

/// `RUN --network=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// The build's network.
    #[default]
    Default,
    /// Only a loopback interface.
    None,
    /// The network of the machine.
    Host,
}

impl Network {
    /// The value as written in a Dockerfile.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::None => "none",
            Self::Host => "host",
        }
    }
}

/// `RUN --security=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    /// Confined as usual.
    #[default]
    Sandbox,
    /// Without confinement.
    Insecure,
}

impl Security {
    /// The value as written in a Dockerfile.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Insecure => "insecure",
        }
    }
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What to run.
    pub command: CommandLine,
    /// `--mount=`, in order; [`MountSpec::resolve`] reads one when the variables are known.
    pub mounts: Vec<MountSpec>,
    /// `--device=`, in order.
    pub devices: Vec<Device>,
    /// `--network=`
    pub network: Network,
    /// `--security=`
    pub security: Security,
    /// Names of the flags that are given, without dashes, in order, each once.
    pub flags_used: Vec<String>,
}
