//! What a step can see and reach, and with which rights.

use kiln_builder::sandbox::spec::ProcKind;

use crate::cases::{Case, World};

pub const CASES: &[Case] = &[
    ("proc_is_protected", proc_is_protected),
    ("kill_everything_hits_only_the_step", kill_everything_hits_only_the_step),
    ("only_the_image_is_in_sight", only_the_image_is_in_sight),
    ("setuid_programs_work", setuid_programs_work),
    ("capabilities_are_dockers", capabilities_are_dockers),
    ("docker_s_filter_is_in_force", dockers_filter_is_in_force),
    ("no_network", no_network),
    ("devices", devices),
    ("no_descriptors_no_environment", no_descriptors_no_environment),
];

fn proc_is_protected(world: &World) {
    for script in [
        "echo x > /proc/sys/kernel/hostname",
        "echo b > /proc/sysrq-trigger",
        "echo 1 > /sys/kernel/mm/ksm/run",
        "mkdir /sys/fs/cgroup/x",
    ] {
        let (exit, text) = world.run(&world.shell(script)).unwrap();
        assert_ne!(exit.code, 0, "{script}");
        let words = ["Read-only file system", "Permission denied", "nonexistent", "No such file"];
        assert!(words.iter().any(|words| text.contains(words)), "{text}");
    }
    let hidden = "for file in kcore keys timer_list interrupts; do test -e /proc/$file && cat /proc/$file; done; \
                  ls -A /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | tr -d '\\n'";
    assert_eq!(world.says(&world.shell(hidden)), "");
    let pids = world.says(&world.shell("ls /proc | grep '^[0-9]'"));
    match world.engine.proc() {
        ProcKind::Fresh => assert!(pids.starts_with("1\n") && pids.lines().count() <= 3, "{pids}"),
        // The pod's processes are listed, but what is in them is out of reach.
        ProcKind::Bound => {
            let own = std::process::id();
            for what in ["environ", "fd/0", "root/etc", "mem"] {
                let (exit, text) = world
                    .run(&world.shell(&format!("ls -L /proc/{own}/{what} && head -c 1 /proc/{own}/{what}")))
                    .unwrap();
                assert_ne!(exit.code, 0, "{what}: {text}");
            }
        }
    }
}

fn kill_everything_hits_only_the_step(world: &World) {
    assert_eq!(world.says(&world.shell("sleep 100 & kill -9 -1; echo alive")), "alive\n");
    assert_eq!(world.says(&world.shell("echo still")), "still\n");
}

fn only_the_image_is_in_sight(world: &World) {
    let text = world.says(&world.shell("ls /; ls /proc/self/root/; cat /proc/self/mountinfo"));
    let (listing, mounts) = text.split_at(text.find(" / ").unwrap());
    let expected = "bin\ndev\netc\nhome\nproc\nroot\nsys\ntmp\n";
    assert!(listing.starts_with(&format!("{expected}{expected}")), "{text}");
    for line in mounts.lines().skip(1) {
        let place = line.split(' ').nth(4).unwrap();
        assert!(
            ["/proc", "/sys", "/dev", "/etc/resolv.conf", "/etc/hosts"]
                .iter()
                .any(|known| place.starts_with(known)),
            "{line}"
        );
    }
}

fn setuid_programs_work(world: &World) {
    assert_eq!(world.says(&world.app("su -c 'id -u; touch /root/made' root")), "0\n");
    assert_eq!(
        world.says(&world.shell("su app -c 'id -u; touch /root/x 2>/dev/null || echo refused'")),
        "1000\nrefused\n"
    );
}

fn capabilities_are_dockers(world: &World) {
    let read = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d ' \\n\\t'";
    let docker = "00000000a80425fb";
    let none = "0000000000000000";
    let all = |eff: &str| {
        format!("CapInh:{none}CapPrm:{eff}CapEff:{eff}CapBnd:{docker}CapAmb:{none}NoNewPrivs:0Seccomp:2")
    };
    assert_eq!(world.says(&world.shell(read)), all(docker));
    assert_eq!(world.says(&world.app(read)), all(none));
}

fn dockers_filter_is_in_force(world: &World) {
    for script in ["mount -t tmpfs none /tmp", "unshare -m true", "unshare -U true", "hostname other"] {
        let (exit, text) = world.run(&world.shell(script)).unwrap();
        assert!(
            exit.code != 0
                && (text.contains("Operation not permitted") || text.contains("permission denied")),
            "{script}: {text}"
        );
    }
}

fn no_network(world: &World) {
    let mut step = world.shell(
        "ls /sys/class/net > /dev/null; ip -o link | wc -l; ping -c 1 127.0.0.1 | grep -c ' 0% packet loss'",
    );
    step.network = false;
    assert_eq!(world.says(&step), "1\n1\n");
}

fn devices(world: &World) {
    let text = world.says(&world.shell(
        "cd /dev; ls | tr '\\n' ' '; echo x > null; head -c 3 zero | wc -c; head -c 3 urandom | wc -c; \
         for link in fd stdin stdout stderr ptmx; do readlink $link; done; echo x > shm/x; stat -c %a shm pts; echo x > full || true",
    ));
    assert!(
        text.contains("fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"),
        "{text}"
    );
    assert!(
        text.contains(
            "3\n3\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n1777\n755\n"
        ),
        "{text}"
    );
    assert!(text.contains("No space left"), "{text}");
}

fn no_descriptors_no_environment(world: &World) {
    let open = std::fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&open, rustix::io::FdFlags::empty()).unwrap();
    // 3 is the directory that ls itself reads.
    assert_eq!(world.says(&world.shell("ls /proc/self/fd")), "0\n1\n2\n3\n");
    assert!(world.says(&world.shell("readlink /proc/self/fd/0")).contains("/dev/null"));
    let text = world.says(&world.step(&["b0"], &["env"]));
    assert_eq!(text, "PATH=/usr/bin:/bin\nA=b c\n");
}
