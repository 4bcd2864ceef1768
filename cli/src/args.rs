//! The command line: `docker build`'s names where docker has one.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::given::{SecretSpec, SshSpec};
use crate::output::OutputSpec;
use kiln_builder::sandbox::settings::{Host, Ulimit, parse_bytes};
use kiln_courier::gc_command::GcArgs;

/// Builds container images without a daemon.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, about, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image from a Dockerfile and a directory.
    Build(Box<BuildArgs>),
    /// Look after the cache of steps in a registry.
    #[command(subcommand)]
    Cache(CacheCommand),
}

/// `kiln cache`.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Remove results of steps that nobody used for long, or for which there is no room.
    Gc {
        /// What and where.
        #[command(flatten)]
        gc: GcArgs,
        /// Plain-HTTP registries (YAML: insecure: []).
        #[arg(long, value_name = "FILE", env = "KILN_REGISTRY_CONFIG")]
        registry_config: Option<PathBuf>,
    },
}

/// `kiln build`.
#[derive(Debug, Args)]
pub struct BuildArgs {
    /// The build context.
    #[arg(value_name = "DIR")]
    pub context: PathBuf,
    /// The Dockerfile [default: DIR/Dockerfile]. It may lie outside of DIR.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Stage to build [default: the last one].
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// What to build for, as os/arch[/variant] [default: this machine]. Commands of another platform run only where the
    /// machine emulates it.
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<String>,
    /// Build argument; without a value, that of the environment variable of this name.
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// What FROM and --from may name beside stages and images: a directory, docker-image://REF or a git repository.
    #[arg(long = "build-context", value_name = "NAME=PLACE")]
    pub build_contexts: Vec<String>,
    /// Further host of /etc/hosts in every step.
    #[arg(long = "add-host", value_name = "NAME=ADDRESS")]
    pub add_hosts: Vec<Host>,
    /// What a step may have: network.host.
    #[arg(long = "allow", value_name = "WORD")]
    pub allow: Vec<String>,
    /// Network of all steps: default, or none.
    #[arg(long, value_enum, default_value_t = Network::Default)]
    pub network: Network,
    /// Size of /dev/shm in every step [default: 64m].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub shm_size: Option<u64>,
    /// Limit of every step's processes.
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub ulimits: Vec<Ulimit>,
    /// Label to add to the image.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Secret for RUN --mount=type=secret: id=NAME[,src=FILE|,env=VARIABLE].
    #[arg(long = "secret", value_name = "SPEC")]
    pub secrets: Vec<SecretSpec>,
    /// SSH agent for RUN --mount=type=ssh: default (the one of SSH_AUTH_SOCK) or NAME=SOCKET or NAME=KEY[,KEY].
    #[arg(long = "ssh", value_name = "SPEC")]
    pub ssh: Vec<SshSpec>,
    /// Name and tag of the image; several must be of one repository.
    #[arg(short = 't', long = "tag", value_name = "REF")]
    pub tags: Vec<String>,
    /// type=registry, type=oci,dest=FILE.tar or type=oci-layout,dest=DIR; with compression=zstd (or uncompressed) for the
    /// layers that are made, gzip else. Without it the image is built and dropped.
    #[arg(short = 'o', long = "output", value_name = "SPEC")]
    pub output: Option<OutputSpec>,
    /// Mirrors and plain-HTTP registries (YAML: mirrors: [{registry, mirrors: []}], insecure: []).
    #[arg(long, value_name = "FILE", env = "KILN_REGISTRY_CONFIG")]
    pub registry_config: Option<PathBuf>,
    /// How progress is shown.
    #[arg(long, value_enum, default_value_t = Progress::Plain)]
    pub progress: Progress,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 24 * 3600)]
    pub timeout: u64,
    /// Repository, without a tag, where results of steps are looked up, and kept for later builds; and, without --cache-dir,
    /// what caches of RUN --mount=type=cache hold.
    #[arg(long, value_name = "REPOSITORY", env = "KILN_CACHE")]
    pub cache: Option<String>,
    /// Where caches of RUN --mount=type=cache are kept from build to build, on the file system of the working directory
    /// [default: with --cache in its repository, else they end with the build]. One build at a time has a cache; one beside it begins with an empty one, or waits
    /// where the mount says sharing=locked.
    #[arg(long, value_name = "DIR", env = "KILN_CACHE_DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Where layers are kept while the build runs: a directory on ext4, xfs, btrfs or tmpfs [default: /var/tmp].
    #[arg(long, value_name = "DIR", env = "KILN_WORK_DIR")]
    pub work_dir: Option<PathBuf>,
}

/// Network of all steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// The machine's.
    Default,
    /// Only loopback.
    None,
    /// The machine's, too: steps have no other.
    Host,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Progress {
    /// As `docker build` prints it.
    Plain,
    /// The journal: one JSON event per line.
    Rawjson,
    /// Only the image's digest at the end.
    Quiet,
}
