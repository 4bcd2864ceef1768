//! `kiln cache`: with the logins of `docker login` and the registries of `kiln build`.

use anyhow::Result;
use kiln_courier::gc_command;
use kiln_registry::Credentials;

use crate::args::CacheCommand;
use crate::run::{docker_configs, registries};

/// Does it.
///
/// # Errors
/// The command line is wrong, or as a registry answered.
pub fn run(command: &CacheCommand) -> Result<()> {
    let CacheCommand::Gc { gc, registry_config } = command;
    let insecure = registries(registry_config.as_deref())?.insecure;
    let credentials =
        Credentials::files(docker_configs(), "~/.docker/config.json (log in with `docker login`)");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(gc_command::run(gc, credentials, insecure))
}
