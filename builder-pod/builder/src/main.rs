//! The `build` container's program, and what it starts of itself for steps and layer trees.

use std::process::ExitCode;

fn main() -> ExitCode {
    match kiln_builder::helper::dispatch_reexec() {
        Some(code) => code,
        None => kiln_builder::run::main_in_pod(),
    }
}
