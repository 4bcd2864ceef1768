//! How a step's command runs: output, exit code, user, place, and its end.

use std::path::Path;
use std::time::{Duration, Instant};

use kiln_builder::engine::{Engine as _, EngineErrorKind, Output, Stop};

use super::World;

pub(super) fn output_and_exit_code(world: &World) {
    let (exit, text) = world.run(&world.shell("echo a; echo b >&2; echo c; exit 3")).unwrap();
    assert_eq!((exit.code, exit.out_of_memory, text.as_str()), (3, false, "a\nb\nc\n"));
    assert_eq!(
        world.says(&world.shell("yes | head -n 1; cat")),
        "y\n",
        "SIGPIPE is as usual, standard input is empty"
    );
    let long = world.says(&world.shell("yes 0123456789 | head -c 3000000"));
    assert_eq!(long.len(), 3_000_000);
}

pub(super) fn signals(world: &World) {
    let (exit, _) = world.run(&world.shell("sh -c 'kill -9 $$'; exit $?")).unwrap();
    assert_eq!((exit.code, exit.out_of_memory), (137, false));
    let (exit, _) = world.run(&world.shell("sh -c 'kill -15 $$'; exit $?")).unwrap();
    assert_eq!(exit.code, 143);
}

pub(super) fn background_processes_end_with_the_step(world: &World) {
    let started = Instant::now();
    assert_eq!(world.says(&world.shell("sleep 31337 & sleep 31337 & echo done")), "done\n");
    assert!(started.elapsed() < Duration::from_secs(20));
    let left: Vec<_> = world.processes().into_iter().filter(|line| line.contains("31337")).collect();
    assert_eq!(left, Vec::<String>::new());
}

pub(super) fn stop_ends_a_step(world: &World) {
    struct StopAtFirst(Stop);
    impl Output for StopAtFirst {
        fn write(&mut self, _: &[u8]) {
            self.0.stop("Cancelled");
        }
    }
    let stop = Stop::default();
    let started = Instant::now();
    let error = world
        .engine
        .run(&world.shell("sleep 31338 & echo ready; sleep 31338"), &mut StopAtFirst(stop.clone()), &stop)
        .unwrap_err();
    assert_eq!(error.kind, EngineErrorKind::Stopped);
    assert!(error.message.contains("Cancelled"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    let left: Vec<_> = world.processes().into_iter().filter(|line| line.contains("31338")).collect();
    assert_eq!(left, Vec::<String>::new());
}

pub(super) fn dev_stdout_belongs_to_the_user(world: &World) {
    let script = "echo x > /dev/stdout; echo y > /dev/stderr; echo z > /dev/fd/1";
    assert_eq!(world.says(&world.app(script)), "x\ny\nz\n");
    assert_eq!(world.says(&world.shell(script)), "x\ny\nz\n");
}

pub(super) fn names_and_numbers(world: &World) {
    assert_eq!(world.says(&world.shell("hostname; echo $$")), "buildkitsandbox\n1\n");
    let mut step = world.app("id -u; id -g; id -G; umask; touch /tmp/x; stat -c %u:%g:%a /tmp/x");
    step.user.groups = vec![1000, 20];
    assert_eq!(world.says(&step), "1000\n1000\n1000 20\n0022\n1000:1000:644\n");
    assert_eq!(world.says(&world.shell("cat /proc/self/oom_score_adj")), "1000\n");
    let outside = world.engine.ids().outside(0).unwrap();
    let step = world.shell("touch /made");
    world.says(&step);
    let made = std::fs::symlink_metadata(world.trees.join(&step.view.upper).join("made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), outside);
    let mut stranger = world.shell("true");
    stranger.user.owner.uid = 70000;
    assert_eq!(world.run(&stranger).unwrap_err().kind, EngineErrorKind::User);
}

pub(super) fn working_directory(world: &World) {
    let mut step = world.app("pwd");
    step.cwd = "/home/app".into();
    assert_eq!(world.says(&step), "/home/app\n");
    // As in docker: a user may be put where it could not go.
    step = world.app("pwd");
    step.cwd = "/root".into();
    assert_eq!(world.says(&step), "/root\n");
    for (cwd, words) in [
        ("/missing", "no such file or directory"),
        ("/etc/passwd", "not a directory"),
        ("/proc/self/fd/7", "no such file or directory"),
        ("/proc/self/fd/3", "not a directory"),
    ] {
        step = world.shell("pwd");
        step.cwd = cwd.into();
        world.refuses(&step, &format!("cannot change to the working directory {cwd:?}: {words}"));
    }
}

pub(super) fn setuid_programs_work(world: &World) {
    assert_eq!(world.says(&world.app("su -c 'id -u; touch /root/made' root")), "0\n");
    assert_eq!(
        world.says(&world.shell("su app -c 'id -u; touch /root/x 2>/dev/null || echo refused'")),
        "1000\nrefused\n"
    );
}

pub(super) fn commands_that_cannot_start(world: &World) {
    let refuse = |argv: &[&str], words: &str| world.refuses(&world.step(&["b0"], argv), words);
    refuse(&["nothing", "x"], "exec: \"nothing\": executable file not found in $PATH");
    refuse(&["/nothing"], "exec: \"/nothing\": stat /nothing: no such file or directory");
    refuse(&["/etc/passwd"], "exec: \"/etc/passwd\": permission denied");
    refuse(&["/etc"], "exec: \"/etc\": is a directory");
    let step = world.shell("echo '#!/nowhere' > /bin/script; echo > /bin/empty; echo '????' > /bin/odd; chmod 755 /bin/script /bin/odd /bin/empty");
    world.says(&step);
    let on_top =
        |argv: &[&str], words: &str| world.refuses(&world.step(&["b0", &step.view.upper], argv), words);
    on_top(&["script"], "exec /bin/script: no such file or directory");
    on_top(&["odd"], "exec /bin/odd: exec format error");
}

pub(super) fn scratch_has_nothing(world: &World) {
    world.refuses(&world.step(&[], &["sh"]), "exec: \"sh\": executable file not found in $PATH");
}

/// Needs a memory cgroup of version 1 that this process may make; says so where it may not.
pub(super) fn lack_of_memory_is_told(world: &World) {
    let group = Path::new("/sys/fs/cgroup/memory").join(format!("kiln-test-{}", std::process::id()));
    let limited = std::fs::create_dir(&group)
        .and_then(|()| std::fs::write(group.join("memory.limit_in_bytes"), "64M"))
        .and_then(|()| std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()));
    if let Err(error) = limited {
        println!("    lack_of_memory_is_told: not run: no memory cgroup of version 1 to make: {error}");
        return;
    }
    let hungry = world
        .run(&world.shell(
            "head -c 200000000 /dev/zero > /dev/shm/x; head -c 60000000 /dev/zero | sort > /dev/null",
        ));
    let (fed, _) = world.run(&world.shell("exit 137")).unwrap();
    std::fs::write("/sys/fs/cgroup/memory/cgroup.procs", std::process::id().to_string()).unwrap();
    std::fs::remove_dir(&group).ok();
    let (exit, text) = hungry.unwrap();
    assert_eq!((exit.code, exit.out_of_memory), (137, true), "{text}");
    assert!(!fed.out_of_memory, "137 alone proves nothing");
}

pub(super) fn steps_run_side_by_side(world: &World) {
    std::thread::scope(|scope| {
        for number in 0..8 {
            scope.spawn(move || {
                let step = world.shell(&format!("echo {number}; echo {number} > /tmp/x; cat /tmp/x"));
                assert_eq!(world.says(&step), format!("{number}\n{number}\n"));
            });
        }
    });
}

pub(super) fn a_step_is_quick_to_start(world: &World) {
    let rounds = 30;
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let step = world.step(&["b0"], &["true"]);
            let started = Instant::now();
            world.says(&step);
            started.elapsed()
        })
        .collect();
    times.sort();
    println!("    a step of nothing takes {:?} (median of {rounds})", times[rounds / 2]);
    // The goal is 15 ms with optimisation; this only notices a blunder on a busy machine.
    assert!(times[rounds / 2] < Duration::from_millis(500));
}
