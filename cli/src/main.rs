//! The `kiln` program.

use std::process::ExitCode;

use clap::Parser;
use kiln::args::{Cli, Command};

fn main() -> ExitCode {
    // Steps and layer trees are looked after by this same program, started again; before anything else happens.
    if let Some(code) = kiln_builder::helper::dispatch_reexec() {
        return code;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = match Cli::parse().command {
        Command::Build(args) => kiln::run::build(&args),
        Command::Cache(command) => kiln::cache::run(&command).map(|()| true),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kiln: {error:#}");
            ExitCode::from(2)
        }
    }
}
