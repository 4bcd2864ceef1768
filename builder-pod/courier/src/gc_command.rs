//! `kiln cache gc` and `kiln-courier cache-gc`: the limits on the command line, and what was removed as a table.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use kiln_registry::{Client, Credentials, ImageName, Options, Registries, RetryPolicy};

use crate::gc::{Limits, parse_age, parse_size, sweep};

/// What to remove, and where.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Repositories of caches, without a tag.
    #[arg(value_name = "REPOSITORY", required = true)]
    pub repositories: Vec<String>,
    /// Remove what no build used for so long: 14d, 36h. Used is what a build made, and what the last build of each name
    /// wanted.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub max_age: Option<SignedDuration>,
    /// Remove what was unused for the longest until the layers of a repository have no more bytes together: 20Gi, 500M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_size: Option<u64>,
    /// Say what would be removed, and remove nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Registry, host[:port], that is talked to over plain HTTP.
    #[arg(long, value_name = "HOST")]
    pub insecure: Vec<String>,
}

/// Goes through the repositories, and prints what became of each.
///
/// # Errors
/// There is no limit, a name is none, or as a registry answered; the other repositories were gone through then.
pub async fn run(args: &GcArgs, credentials: Credentials, more_insecure: Vec<String>) -> Result<()> {
    if args.max_age.is_none() && args.max_size.is_none() {
        bail!("expected --max-age or --max-size: without a limit there is nothing to remove");
    }
    let mut names = Vec::new();
    for repository in &args.repositories {
        let name = ImageName::parse(repository)?;
        let last = repository.rsplit('/').next().unwrap_or_default();
        if last.contains([':', '@']) {
            bail!("expected a repository without a tag, found '{repository}'");
        }
        names.push(name);
    }
    let client = Client::new(Options {
        registries: Registries {
            mirrors: Vec::new(),
            insecure: [args.insecure.clone(), more_insecure].concat(),
        },
        credentials,
        retry: RetryPolicy::default(),
        ca_bundle: std::env::var_os("SSL_CERT_FILE").map(PathBuf::from),
        authorities: None,
        proxy: None,
    })?;
    let limits = Limits { max_age: args.max_age, max_size: args.max_size };
    let mut first = None;
    for name in &names {
        let now = Timestamp::now();
        match sweep(&client, name, limits, now, args.dry_run).await {
            Ok(swept) => print!("{}", swept.shown(&name.repository_name(), now, args.dry_run)),
            Err(error) => {
                eprintln!("{}: {error}", name.repository_name());
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(()),
        Some(error) => Err(error).context("not all repositories could be gone through"),
    }
}
