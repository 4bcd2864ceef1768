//! Runs real commands in real sandboxes: as host root with a high range of ids, and in a simulated pod with a user
//! namespace of its own and the two capabilities that Kiln's pods have, there once with a masked `/proc` and once without;
//! and as a user without rights that has subordinate ids.
//!
//! Needs root and `/bin/busybox` (package busybox-static); says so and passes where they are missing.

#![expect(clippy::unwrap_used, reason = "a case that panics is a case that failed")]

mod boundary;
mod cases;
mod image;
mod mounts;
mod orphans;
mod pod;
mod rootless;

use std::process::ExitCode;

use kiln_contract::request::Isolation;

fn main() -> ExitCode {
    if let Some(code) = kiln_builder::helper::dispatch_reexec() {
        return code;
    }
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(place) = pod::work_dir(&arguments) {
        if arguments.get(3).is_some_and(|word| word == "FORBIDDEN") {
            return cases::is_told_what_is_missing(place);
        }
        return cases::run("pod", place, Isolation::UserNamespace, arguments.get(3).map(String::as_str));
    }
    if let Some(code) = orphans::victim(&arguments) {
        return code;
    }
    if let Some(place) = rootless::work_dir(&arguments) {
        if let Err(error) = kiln_builder::sandbox::outer::enter_rootless_if_needed() {
            println!("rootless: {error}");
            return ExitCode::FAILURE;
        }
        return cases::run("rootless", place, Isolation::UserNamespace, arguments.get(3).map(String::as_str));
    }
    if !rustix::process::geteuid().is_root() {
        println!("sandbox tests not run: they need root");
        return ExitCode::SUCCESS;
    }
    if !std::path::Path::new(image::BUSYBOX).exists() {
        println!("sandbox tests not run: they need {} (package busybox-static)", image::BUSYBOX);
        return ExitCode::SUCCESS;
    }
    // Options of the usual harness (`--nocapture`) mean nothing here.
    let filter = arguments.iter().skip(1).find(|word| !word.starts_with('-')).map(String::as_str);
    let place = match tempfile::tempdir() {
        Ok(place) => place,
        Err(error) => {
            println!("no temporary directory: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The images are written with other ids, which have to get there by path.
    let host = place.path().join("host");
    let open = || std::os::unix::fs::PermissionsExt::from_mode(0o755);
    if let Err(error) =
        std::fs::create_dir(&host).and_then(|()| std::fs::set_permissions(place.path(), open()))
    {
        println!("no directory: {error}");
        return ExitCode::FAILURE;
    }
    let on_host = cases::run("host", &host, Isolation::HostRange, filter);
    let mut good = on_host == ExitCode::SUCCESS;
    for (name, kind) in [("pod-masked", pod::Kind::Masked), ("pod-unmasked", pod::Kind::Unmasked)] {
        println!("--- {name}");
        match pod::run(&place.path().join(name), kind, filter) {
            Ok(()) => {}
            Err(error) => {
                println!("{name}: {error:#}");
                good = false;
            }
        }
    }
    println!("--- pod with the runtime's default profile");
    good &= match pod::run(&place.path().join("forbidden"), pod::Kind::Forbidden, Some("FORBIDDEN")) {
        Ok(()) => true,
        Err(error) => {
            println!("forbidden: {error:#}");
            false
        }
    };
    let orphans = orphans::run(&place.path().join("orphans"));
    println!("host: a_killed_builder_leaves_nothing ... {}", if orphans.is_ok() { "ok" } else { "FAILED" });
    if let Err(error) = orphans {
        println!("{error:#}");
        good = false;
    }
    println!("--- rootless");
    if let Err(error) = rootless::run(&place.path().join("rootless"), filter) {
        println!("rootless: {error:#}");
        good = false;
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
