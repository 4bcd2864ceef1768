//! What `RUN --mount` puts over a step's root.

use kiln_builder::engine::{
    Engine as _, EngineErrorKind, Mount, MountSource, Owner, Secret, Step, Stop, View,
};

use crate::cases::{Case, World};
use crate::image;

pub const CASES: &[Case] = &[
    ("mounted_trees_are_read_only", mounted_trees_are_read_only),
    ("changes_to_a_mount_are_apart", changes_to_a_mount_are_apart),
    ("mounted_caches_last", mounted_caches_last),
    ("caches_are_used_in_place", caches_are_used_in_place),
    ("mounted_memory_is_empty", mounted_memory_is_empty),
    ("mounted_files_have_owner_and_mode", mounted_files_have_owner_and_mode),
    ("mounts_are_nested", mounts_are_nested),
    ("mounted_sockets_are_the_users", mounted_sockets_are_the_users),
    ("mounts_leave_nothing", mounts_leave_nothing),
    ("mounts_that_cannot_be", mounts_that_cannot_be),
    ("mounts_stay_inside", mounts_stay_inside),
];

fn trees(lowers: &[&str], upper: Option<&str>, path: &str) -> MountSource {
    MountSource::Trees {
        lowers: lowers.iter().map(ToString::to_string).collect(),
        upper: upper.map(str::to_owned),
        path: path.to_owned(),
        name: "the other".to_owned(),
    }
}

fn at(target: &str, read_only: bool, source: MountSource) -> Mount {
    Mount { target: target.to_owned(), read_only, source }
}

fn with(mut step: Step, mounts: Vec<Mount>) -> Step {
    step.mounts = mounts;
    step
}

/// A tree with what a script makes in it.
fn tree(world: &World, script: &str) -> String {
    let step = world.shell(script);
    world.says(&step);
    step.view.upper
}

fn mounted_trees_are_read_only(world: &World) {
    let other = tree(world, "mkdir -p /a/b; echo deep > /a/b/c; ln -s /a/b /link; rm -r /home");
    let step = |path: &str, script: &str| {
        with(world.shell(script), vec![at("/m", true, trees(&["b0", &other], None, path))])
    };
    assert_eq!(
        world.says(&step("/", "cat /m/a/b/c; ls -d /m/home 2>/dev/null; ls /m/bin/sh")),
        "deep\n/m/bin/sh\n"
    );
    assert_eq!(world.says(&step("/a/b", "cat /m/c; ls /m")), "deep\nc\n");
    assert_eq!(world.says(&step("/link", "cat /m/c")), "deep\n", "links lead inside the trees");
    assert_eq!(world.says(&step("/a/b/c", "cat /m")), "deep\n");
    let (exit, text) = world.run(&step("/", "touch /m/new")).unwrap();
    assert_eq!((exit.code, text.contains("Read-only file system")), (1, true), "{text}");
    let (exit, text) = world.run(&step("/a/b/c", "echo x >> /m")).unwrap();
    assert_ne!(exit.code, 0, "{text}");
    let empty = with(world.shell("ls -A /m"), vec![at("/m", true, trees(&[], None, "/"))]);
    assert_eq!(world.says(&empty), "");
}

fn changes_to_a_mount_are_apart(world: &World) {
    let other = tree(world, "echo old > /f");
    let step = |script: &str, upper: &str| {
        with(world.shell(script), vec![at("/m", false, trees(&["b0", &other], Some(upper), "/"))])
    };
    assert_eq!(world.says(&step("echo new > /m/f; rm -r /m/home; cat /m/f", "change-1")), "new\n");
    assert_eq!(world.says(&step("cat /m/f; ls -d /m/home", "change-2")), "old\n/m/home\n");
    let scratch =
        with(world.shell("touch /m/x; ls /m"), vec![at("/m", false, trees(&[], Some("change-3"), "/"))]);
    assert_eq!(world.says(&scratch), "x\n");
    world.engine.remove(&["change-1".into(), "change-2".into(), "change-3".into()]).unwrap();
}

fn mounted_caches_last(world: &World) {
    world.engine.make_tree("cache-1", 0o1751, Owner { uid: 1001, gid: 1002 }).unwrap();
    world.engine.make_tree("cache-1", 0o700, Owner { uid: 0, gid: 0 }).unwrap();
    let cached =
        |step: Step, path: &str| with(step, vec![at("/c", false, trees(&[], Some("cache-1"), path))]);
    assert_eq!(
        world.says(&cached(world.shell("stat -c '%a %u %g' /c; echo 1 > /c/f; mkdir /c/d"), "/")),
        "1751 1001 1002\n"
    );
    assert_eq!(world.says(&cached(world.shell("cat /c/f; echo in > /c/d/f"), "/")), "1\n");
    assert_eq!(world.says(&cached(world.shell("cat /c/f"), "/d")), "in\n");
    let read =
        with(world.shell("echo x > /c/f || echo no"), vec![at("/c", true, trees(&[], Some("cache-1"), "/"))]);
    assert!(world.says(&read).ends_with("no\n"));
    let twice = vec![
        at("/c", false, trees(&[], Some("cache-1"), "/")),
        at("/d", false, trees(&[], Some("cache-1"), "/")),
    ];
    assert_eq!(world.says(&with(world.shell("echo 2 > /c/f; cat /d/f"), twice)), "2\n");
    // One that starts from files, twice in a step and in two steps.
    let from = || {
        vec![
            at("/c", false, trees(&["b0"], Some("cache-2"), "/")),
            at("/d", false, trees(&["b0"], Some("cache-2"), "/")),
        ]
    };
    assert_eq!(
        world.says(&with(world.shell("echo 3 > /c/f; cat /d/f; ls /c/bin/sh"), from())),
        "3\n/c/bin/sh\n"
    );
    assert_eq!(world.says(&with(world.shell("cat /c/f"), from())), "3\n");
    let error = world.engine.make_tree("cache-3", 0o755, Owner { uid: 70_000, gid: 0 }).unwrap_err();
    assert_eq!(error.kind, EngineErrorKind::User, "{error}");
    world.engine.remove(&["cache-1".into(), "cache-2".into()]).unwrap();
}

fn caches_are_used_in_place(world: &World) {
    let stop = Stop::default();
    let cached = |tree: &str, script: &str| {
        with(world.shell(script), vec![at("/c", false, trees(&[], Some(tree), "/"))])
    };
    let engine = &world.engine;
    assert!(engine.keeps_caches());
    assert!(!engine.take_cache("a", "place-1", false, &stop).unwrap());
    engine.make_tree("place-1", 0o1751, Owner { uid: 1001, gid: 1002 }).unwrap();
    let script = "stat -c '%a %u %g' /c; echo 1 > /c/f; chown 7:8 /c/f; ln -s /bin /c/out; ls /c/..";
    let said = world.says(&cached("place-1", script));
    assert!(said.starts_with("1751 1001 1002\n") && !said.contains(".lock"), "{said}");
    let place = std::fs::read_link(world.trees.join("place-1")).unwrap();
    assert!(engine.keep_cache("a", "place-1").unwrap());
    assert!(world.trees.join("place-1").symlink_metadata().is_err());
    // Under another name, as in another pod.
    assert!(engine.take_cache("a", "place-2", false, &stop).unwrap());
    assert_eq!(
        world.says(&cached("place-2", "cat /c/f; stat -c '%u %g' /c/f; stat -c %a /c")),
        "1\n7 8\n1751\n"
    );
    assert!(engine.keep_cache("a", "place-2").unwrap());
    // Who has the volume as well puts a link where a cache should be.
    let away = place.with_extension("away");
    std::fs::rename(&place, &away).unwrap();
    std::os::unix::fs::symlink("/", &place).unwrap();
    assert!(engine.take_cache("a", "place-3", false, &stop).unwrap());
    let error = world.run(&cached("place-3", "ls /c")).unwrap_err();
    assert!(error.message.contains("cannot open tree place-3"), "{error}");
    assert!(engine.keep_cache("a", "place-3").unwrap());
    std::fs::remove_file(&place).unwrap();
}

fn mounted_memory_is_empty(world: &World) {
    let memory = |size| MountSource::Memory { size };
    let step = with(
        world.app("ls -A /home; touch /home/x; grep -c ' /home tmpfs .*size=1024k' /proc/mounts"),
        vec![at("/home", false, memory(1 << 20))],
    );
    assert_eq!(world.says(&step), "1\n");
    let full = with(
        world.shell("head -c 2000000 /dev/zero > /t/x || echo full"),
        vec![at("/t", false, memory(1 << 20))],
    );
    assert!(world.says(&full).ends_with("full\n"));
    let read = with(world.shell("touch /t/x || echo no"), vec![at("/t", true, memory(0))]);
    assert!(world.says(&read).ends_with("no\n"));
    // Over what we mount ourselves.
    let shm = with(world.shell("touch /dev/shm/x; ls /dev/shm"), vec![at("/dev/shm", false, memory(0))]);
    assert_eq!(world.says(&shm), "x\n");
}

fn file(bytes: &[u8], mode: u32, uid: u32, gid: u32) -> MountSource {
    MountSource::File { bytes: Secret(bytes.to_vec()), mode, owner: Owner { uid, gid } }
}

fn mounted_files_have_owner_and_mode(world: &World) {
    let mounts = vec![
        at("/run/secrets/a", true, file(b"one\n", 0o400, 0, 0)),
        at("/etc/passwd", true, file(b"two\n", 0o440, 1000, 7)),
        at("/large", true, file(&vec![b'x'; 500 << 10], 0o400, 0, 0)),
    ];
    let script = "cat /run/secrets/a /etc/passwd; stat -c '%a %u %g' /run/secrets/a /etc/passwd; wc -c < /large; \
                  echo x > /etc/passwd || echo no";
    assert_eq!(
        world
            .says(&with(world.shell(script), mounts.clone()))
            .replace("sh: can't create /etc/passwd: Read-only file system\n", ""),
        "one\ntwo\n400 0 0\n440 1000 7\n512000\nno\n"
    );
    let (exit, text) = world.run(&with(world.app("cat /run/secrets/a"), mounts)).unwrap();
    assert_eq!((exit.code, text.contains("Permission denied")), (1, true), "{text}");
    let step = with(world.shell("true"), vec![at("/s", true, file(b"x", 0o400, 70_000, 0))]);
    world.refuses(
        &step,
        "cannot mount at /s: a file can't be given to user 70000 and group 0: invalid argument",
    );
}

fn mounts_are_nested(world: &World) {
    let mounts = vec![
        at("/m/in/side", false, MountSource::Memory { size: 0 }),
        at("/m", false, trees(&[], Some("nest"), "/")),
        at("/m-x", false, MountSource::Memory { size: 0 }),
    ];
    let step = with(world.shell("touch /m/in/side/x /m/y /m-x/z; ls /m /m/in/side"), mounts);
    assert_eq!(world.says(&step), "/m:\nin\ny\n\n/m/in/side:\nx\n");
    let left = with(world.shell("ls /m /m/in/side"), vec![at("/m", false, trees(&[], Some("nest"), "/"))]);
    assert_eq!(world.says(&left), "/m:\nin\ny\n\n/m/in/side:\n");
    world.engine.remove(&["nest".into()]).unwrap();
}

fn mounts_leave_nothing(world: &World) {
    let step = with(
        world.shell("touch /new/deep/m/x; echo y > /made"),
        vec![
            at("/new/deep/m", false, MountSource::Memory { size: 0 }),
            at("/etc/new/secret", true, file(b"hush hush", 0o400, 0, 0)),
            at("/tmp", false, MountSource::Memory { size: 0 }),
        ],
    );
    let (exit, _) = world.run(&step).unwrap();
    let stubs: Vec<_> = exit.stubs.iter().filter(|stub| stub.contains("new")).map(String::as_str).collect();
    assert_eq!(stubs, ["etc/new", "etc/new/secret", "new", "new/deep", "new/deep/m"]);
    let mut next = world.shell("ls -d /new /etc/new 2>&1; cat /made");
    next.view.lowers.push(step.view.upper.clone());
    assert!(
        world.says(&next).ends_with("/etc/new: No such file or directory\ny\n"),
        "the next step sees none"
    );
    let (mut reader, writer) = std::io::pipe().unwrap();
    let view = View { lowers: step.view.lowers.clone(), upper: step.view.upper.clone() };
    let layer = std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut reader, &mut bytes).map(|_| bytes)
        });
        world.engine.diff(&view, &exit.stubs, None, writer.into(), None).unwrap();
        reading.join().unwrap().unwrap()
    });
    let layer = String::from_utf8_lossy(&layer);
    assert!(layer.contains("made") && !layer.contains("new") && !layer.contains("hush"), "{layer}");
}

fn mounts_that_cannot_be(world: &World) {
    for (mounts, words) in [
        (
            vec![at("/m", true, trees(&["b0"], None, "/nothing"))],
            "cannot mount at /m: \"/nothing\" of the other can't be mounted: no such file or directory",
        ),
        (
            vec![at("/etc", true, file(b"x", 0o400, 0, 0))],
            "cannot mount at /etc: a file can't be mounted on a directory",
        ),
        (
            vec![at("/etc/passwd", false, MountSource::Memory { size: 0 })],
            "cannot mount at /etc/passwd: something that is no directory is in the way",
        ),
        (
            vec![
                at("/m", true, trees(&["b0"], None, "/")),
                at("/m/new", false, MountSource::Memory { size: 0 }),
            ],
            "cannot mount at /m/new: it is not there and can't be made, because it is below a read-only mount; make it in what is mounted there, or add rw to that mount",
        ),
    ] {
        world.refuses(&with(world.shell("true"), mounts), words);
    }
}

/// Neither a source nor a target leaves its root, whatever links say.
fn mounts_stay_inside(world: &World) {
    let other = tree(world, "mkdir /up; ln -s ../../../../../etc /up/etc; ln -s /proc/self/root/etc /magic");
    let read = |path: &str| {
        with(
            world.shell("cat /m/hostname /m/passwd"),
            vec![at("/m", true, trees(&["b0", &other], None, path))],
        )
    };
    let (_, text) = world.run(&read("/up/etc")).unwrap();
    assert!(text.contains("root::0") && !text.contains("/bin/bash"), "the image's own: {text}");
    assert_eq!(world.run(&read("/magic")).unwrap_err().kind, EngineErrorKind::User);
    let script = "ls /etc | grep -c passwd; touch /out/x; ls /out";
    let mut step = with(world.shell(script), vec![at("/link/out", false, MountSource::Memory { size: 0 })]);
    let links = tree(world, "ln -s ../../../.. /link");
    step.view.lowers.push(links);
    assert_eq!(world.says(&step), "1\nx\n");
}

/// OpenSSH's program for agents, with its libraries, as a tree; `None` where it is not installed.
fn ssh_add(world: &World) -> Option<String> {
    let listed = std::process::Command::new("/usr/bin/ldd").arg("/usr/bin/ssh-add").output().ok()?;
    let text = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    let name = "ssh".to_owned();
    let tree = world.trees.join(&name);
    let read = |path: &str| std::fs::read(path).unwrap();
    let paths = text.split_whitespace().filter(|word| word.starts_with('/')).chain(["/usr/bin/ssh-add"]);
    let files: Vec<_> = paths.map(|path| (tree.join(path.trim_start_matches('/')), read(path))).collect();
    image::as_id(world.engine.ids(), 0, || {
        for (path, bytes) in files {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
    });
    Some(name)
}

fn mounted_sockets_are_the_users(world: &World) {
    let listener = world.engine.listen("agent", 0o600, Owner { uid: 1000, gid: 7 }).unwrap();
    listener.set_nonblocking(false).unwrap();
    let socket = || vec![at("/run/agent", false, MountSource::Socket { name: "agent".to_owned() })];
    let script = "test -S /run/agent && stat -c '%a %u %g' /run/agent";
    assert_eq!(world.says(&with(world.shell(script), socket())), "600 1000 7\n");
    let error = world.engine.listen("nobody", 0o600, Owner { uid: 70_000, gid: 0 }).unwrap_err();
    assert_eq!(error.kind, EngineErrorKind::User, "{error}");
    let Some(ssh) = ssh_add(world) else {
        println!("    no connection tried: ssh-add or ldd is missing");
        return;
    };
    let connect = |mut step: Step| {
        step.view.lowers.push(ssh.clone());
        step.network = false;
        world.run(&with(step, socket())).unwrap().1
    };
    let script = "SSH_AUTH_SOCK=/run/agent /usr/bin/ssh-add -l 2>&1";
    // An agent without keys: one request, one answer.
    let serving = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(&[0, 0, 0, 5, 12, 0, 0, 0, 0]).unwrap();
    });
    assert_eq!(connect(world.app(script)), "The agent has no identities.\n");
    serving.join().unwrap();
    let mut other = world.app(script);
    other.user.owner = Owner { uid: 1001, gid: 1001 };
    assert!(connect(other).contains("Permission denied"), "it is another user's");
    world.engine.remove(&["agent".into()]).unwrap();
    assert!(!world.trees.join("agent").exists());
}
