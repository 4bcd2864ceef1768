//! What the sandbox puts into a step's files, and what of it all becomes a layer.

use std::path::Path;

use kiln_builder::engine::{Engine as _, EngineErrorKind, Owner};

use super::World;
use crate::image;

pub(super) fn mount_points_are_reported(world: &World) {
    let step = world.shell("true");
    let (exit, _) = world.run(&step).unwrap();
    assert_eq!(exit.stubs, ["proc", "sys", "dev", "etc/resolv.conf", "etc/hosts"]);
    // The next step on top of it finds them there.
    let (exit, _) = world.run(&world.step(&["b0", &step.view.upper], &["true"])).unwrap();
    assert_eq!(exit.stubs, Vec::<String>::new());
}

pub(super) fn images_with_links_are_safe(world: &World) {
    use std::os::unix::fs::symlink;
    let tree = world.trees.join("links");
    let before = std::fs::read("/etc/passwd").unwrap();
    image::as_id(world.engine.ids(), 0, || {
        std::fs::create_dir(&tree).unwrap();
        std::fs::create_dir(tree.join("etc")).unwrap();
        symlink("/tmp/../../../../tmp/devices", tree.join("dev")).unwrap();
        symlink("hidden", tree.join("proc")).unwrap();
        symlink("../../../../../../../etc/passwd", tree.join("etc/resolv.conf")).unwrap();
        symlink("/proc/self/fd/5", tree.join("etc/hosts")).unwrap();
    });
    let step = world.step(
        &["b0", "links"],
        &[
            "sh",
            "-c",
            "echo mine > /etc/resolv.conf; cat /etc/passwd; ls /tmp/devices/null /hidden/self/status",
        ],
    );
    let (exit, text) = world.run(&step).unwrap();
    assert_eq!((exit.code, text.as_str()), (0, "mine\n/hidden/self/status\n/tmp/devices/null\n"));
    assert_eq!(
        exit.stubs,
        ["hidden", "sys", "tmp/devices", "hidden/self", "hidden/self/fd", "hidden/self/fd/5"]
    );
    assert_eq!(std::fs::read("/etc/passwd").unwrap(), before);
    assert!(!Path::new("/tmp/devices").exists());
}

pub(super) fn network_files_are_copies(world: &World) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (resolv, hosts) = (read("/etc/resolv.conf"), read("/etc/hosts"));
    assert_eq!(world.says(&world.shell("cat /etc/resolv.conf")), resolv);
    assert!(world.says(&world.shell("cat /etc/hosts")).ends_with("127.0.0.1\tbuildkitsandbox\n"));
    let step = world
        .shell("echo nameserver 203.0.113.1 > /etc/resolv.conf; echo > /etc/hosts; cat /etc/resolv.conf");
    assert_eq!(world.says(&step), "nameserver 203.0.113.1\n");
    assert_eq!((read("/etc/resolv.conf"), read("/etc/hosts")), (resolv, hosts));
    let stub = world.trees.join(&step.view.upper).join("etc/resolv.conf");
    assert_eq!(std::fs::metadata(stub).unwrap().len(), 0, "nothing of it is in the layer");
}

/// A layer comes in, files and a step change it, and the changes come out as a layer.
pub(super) fn layers_in_and_out(world: &World) {
    use std::io::{Read as _, Write as _};
    let engine = &world.engine;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind, mode, link: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(bytes.len() as u64);
        header.set_mtime(1_000_000_000);
        header.set_uid(if path.starts_with("srv") { 33 } else { 0 });
        header.set_gid(0);
        if link.is_empty() {
            tar.append_data(&mut header, path, bytes).unwrap();
        } else {
            tar.append_link(&mut header, path, link).unwrap();
        }
    };
    add("bin/", tar::EntryType::Directory, 0o755, "", b"");
    add("bin/busybox", tar::EntryType::Regular, 0o755, "", &std::fs::read(image::BUSYBOX).unwrap());
    for applet in ["sh", "echo", "rm", "cat", "chown", "stat"] {
        add(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, "busybox", b"");
    }
    add("etc/passwd", tar::EntryType::Regular, 0o644, "", b"app:x:1000:1001::/home/app:/bin/sh\n");
    add("srv/data", tar::EntryType::Regular, 0o600, "", b"data");
    add("gone", tar::EntryType::Regular, 0o644, "", b"");
    let layer = tar.into_inner().unwrap();

    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let unpacked = std::thread::scope(|scope| {
        scope.spawn(move || std::fs::File::from(writer).write_all(&layer).unwrap());
        engine.unpack("l0", "application/vnd.oci.image.layer.v1.tar", reader).unwrap()
    });
    assert!(unpacked.diff_id.starts_with("sha256:") || unpacked.diff_id.len() == 64, "{unpacked:?}");
    engine.settle(&[("l0".into(), unpacked)]).unwrap();
    let lowers = vec!["l0".to_owned()];
    let app = engine.user(&lowers, "app").unwrap();
    assert_eq!((app.owner, app.home.as_str()), (Owner { uid: 1000, gid: 1001 }, "/home/app"));
    assert_eq!(engine.user(&lowers, "nobody-here").unwrap_err().kind, EngineErrorKind::User);
    assert_eq!(engine.owner(&lowers, "app").unwrap(), Owner { uid: 1000, gid: 1001 });

    // Several changes of one view, one after the other.
    let mut step = world.step(
        &["l0"],
        &["sh", "-c", "stat -c %u /srv/data; rm /gone; echo new > /work/file; chown 5:6 /work/file"],
    );
    engine.make_directory(&step.view, "/work", Owner::default()).unwrap();
    step.cwd = "/work".into();
    let (exit, text) = world.run(&step).unwrap();
    assert_eq!((exit.code, text.as_str()), (0, "33\n"));

    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (diff, bytes) = std::thread::scope(|scope| {
        let bytes = scope.spawn(move || {
            let mut bytes = Vec::new();
            std::fs::File::from(reader).read_to_end(&mut bytes).unwrap();
            bytes
        });
        let diff = engine.diff(&step.view, &exit.stubs, None, writer).unwrap();
        (diff, bytes.join().unwrap())
    });
    let mut found: Vec<String> = tar::Archive::new(bytes.as_slice())
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let header = entry.header();
            format!("{} {}:{}", entry.path().unwrap().display(), header.uid().unwrap(), header.gid().unwrap())
        })
        .collect();
    found.sort();
    assert_eq!(found, [".wh.gone 0:0", "work/ 0:0", "work/file 5:6"]);
    assert_eq!((diff.entries, diff.bytes), (3, bytes.len() as u64));

    engine.remove(&["l0".into(), step.view.upper.clone()]).unwrap();
    assert!(!world.trees.join("l0").exists());
    assert!(!world.trees.join(format!("w-{}", step.view.upper)).exists());
}
