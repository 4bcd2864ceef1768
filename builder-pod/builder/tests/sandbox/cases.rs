//! What a step may and may not do: the list of the cases, and what they share.

mod commands;
mod files;
mod protection;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_builder::engine::{
    Engine as _, EngineError, EngineErrorKind, Exit, Output, Owner, Step, Stop, User, View,
};
use kiln_builder::helper::{LocalEngine, Options};
use kiln_contract::request::Isolation;

use crate::image;

/// The engine under test and its first image.
pub struct World {
    engine: LocalEngine,
    trees: PathBuf,
    count: AtomicU32,
}

type Case = (&'static str, fn(&World));

const CASES: &[Case] = &[
    ("output_and_exit_code", commands::output_and_exit_code),
    ("signals", commands::signals),
    ("background_processes_end_with_the_step", commands::background_processes_end_with_the_step),
    ("dev_stdout_belongs_to_the_user", commands::dev_stdout_belongs_to_the_user),
    ("mount_points_are_reported", files::mount_points_are_reported),
    ("images_with_links_are_safe", files::images_with_links_are_safe),
    ("no_descriptors_no_environment", protection::no_descriptors_no_environment),
    ("names_and_numbers", commands::names_and_numbers),
    ("proc_is_protected", protection::proc_is_protected),
    ("kill_everything_hits_only_the_step", protection::kill_everything_hits_only_the_step),
    ("only_the_image_is_in_sight", protection::only_the_image_is_in_sight),
    ("working_directory", commands::working_directory),
    ("network_files_are_copies", files::network_files_are_copies),
    ("setuid_programs_work", commands::setuid_programs_work),
    ("capabilities_are_dockers", protection::capabilities_are_dockers),
    ("docker_s_filter_is_in_force", protection::dockers_filter_is_in_force),
    ("no_network", protection::no_network),
    ("commands_that_cannot_start", commands::commands_that_cannot_start),
    ("devices", protection::devices),
    ("lack_of_memory_is_told", commands::lack_of_memory_is_told),
    ("stop_ends_a_step", commands::stop_ends_a_step),
    ("scratch_has_nothing", commands::scratch_has_nothing),
    ("steps_run_side_by_side", commands::steps_run_side_by_side),
    ("layers_in_and_out", files::layers_in_and_out),
    ("a_step_is_quick_to_start", commands::a_step_is_quick_to_start),
];

/// Runs the cases whose names hold `filter`.
pub fn run(name: &str, work_dir: &Path, isolation: Isolation, filter: Option<&str>) -> ExitCode {
    let engine = match LocalEngine::start(work_dir, isolation, Options::default()) {
        Ok(engine) => engine,
        Err(error) => {
            println!("{name}: the engine does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{name}: ids {:?}, /proc {:?}", engine.ids(), engine.proc());
    let trees = work_dir.join("trees");
    if let Err(error) = image::write(&trees.join("b0"), engine.ids()) {
        println!("{name}: no image: {error:#}");
        return ExitCode::FAILURE;
    }
    let world = World { engine, trees, count: AtomicU32::new(0) };
    let mut failed = 0;
    for (case, test) in CASES.iter().filter(|(case, _)| filter.is_none_or(|word| case.contains(word))) {
        let good = catch_unwind(AssertUnwindSafe(|| test(&world))).is_ok();
        println!("{name}: {case} ... {}", if good { "ok" } else { "FAILED" });
        failed += u32::from(!good);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// In a pod that forbids sandboxes: the engine says which setting is missing.
pub fn is_told_what_is_missing(work_dir: &Path) -> ExitCode {
    match LocalEngine::start(work_dir, Isolation::UserNamespace, Options::default()) {
        Err(error)
            if error.kind == EngineErrorKind::Isolation
                && error.message.contains("builder.seccomp.install=true") =>
        {
            println!("forbidden: {error} ... ok");
            ExitCode::SUCCESS
        }
        other => {
            println!("forbidden: {other:?} ... FAILED");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Text(Vec<u8>);

impl Output for Text {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

impl World {
    fn step(&self, lowers: &[&str], argv: &[&str]) -> Step {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        Step {
            view: View {
                lowers: lowers.iter().map(ToString::to_string).collect(),
                upper: format!("s{number}"),
            },
            argv: argv.iter().map(ToString::to_string).collect(),
            script: None,
            env: vec!["PATH=/usr/bin:/bin".into(), "A=b c".into()],
            cwd: "/".into(),
            user: User { owner: Owner { uid: 0, gid: 0 }, groups: vec![0], home: "/root".into() },
            network: true,
        }
    }

    fn shell(&self, script: &str) -> Step {
        self.step(&["b0"], &["sh", "-c", script])
    }

    fn app(&self, script: &str) -> Step {
        let mut step = self.shell(script);
        step.user = User { owner: Owner { uid: 1000, gid: 1000 }, groups: vec![], home: "/home/app".into() };
        step
    }

    fn run(&self, step: &Step) -> Result<(Exit, String), EngineError> {
        let mut output = Text::default();
        let exit = self.engine.run(step, &mut output, &Stop::default())?;
        Ok((exit, String::from_utf8_lossy(&output.0).into_owned()))
    }

    /// Runs a step that has to end well, and gives its output.
    #[track_caller]
    fn says(&self, step: &Step) -> String {
        let (exit, text) = self.run(step).unwrap();
        assert_eq!(exit.code, 0, "{text}");
        text
    }

    #[track_caller]
    fn refuses(&self, step: &Step, words: &str) {
        let error = self.run(step).unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (EngineErrorKind::User, words));
    }

    /// Processes on this machine with a uid of steps, and their command lines.
    fn processes(&self) -> Vec<String> {
        let ids = self.engine.ids();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| {
                let status = std::fs::read_to_string(entry.path().join("status")).ok()?;
                let uid: u32 = status
                    .lines()
                    .find_map(|line| line.strip_prefix("Uid:"))?
                    .split_whitespace()
                    .next()?
                    .parse()
                    .ok()?;
                let ours = uid >= ids.outer && uid - ids.outer < ids.count;
                let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
                ours.then(|| line.replace('\0', " "))
            })
            .collect()
    }
}
