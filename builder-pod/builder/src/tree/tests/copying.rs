//! COPY, ADD, WORKDIR, USER: BuildKit's rules (the cases `copy-*` and `add-tar-*` of the conformance data).

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::chmod::Chmod;
use crate::engine::{Destination, Owner, Selection, User};
use crate::tree::{Ignored, TreeError, copy_stream, copy_tree, make_directory, owner, user, write_context};

fn to(path: &str) -> Destination {
    Destination { path: path.to_owned(), sources: 1, owner: None, mode: None, unpack: false, link: false }
}

fn what(sources: &[&str]) -> Selection {
    Selection {
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        excludes: Vec::new(),
        parents: false,
    }
}

fn take(_: &str, _: bool) -> Ignored {
    Ignored::No
}

/// From a context by the stream.
fn from_context(
    root: &Tree,
    to: &Destination,
    context: &Tree,
    what: &Selection,
    ignore: &dyn Fn(&str, bool) -> Ignored,
) -> Result<(), TreeError> {
    let mut stream = file(b"");
    write_context(context.fd(), what, ignore, stream.try_clone().unwrap())?;
    stream.rewind().unwrap();
    copy_stream(root.fd(), to, stream)
}

/// Copies both ways: from a context and from an image must give the same, but for the owners.
fn copied(root: &str, to: &Destination, context: &str, what: &Selection) -> Result<Vec<String>, TreeError> {
    let (tree, context) = (Tree::with(root), Tree::with(context));
    let result = from_context(&tree, to, &context, what, &take);
    let again = Tree::with(root);
    let direct = copy_tree(again.fd(), to, context.fd(), what);
    assert_eq!(result.is_ok(), direct.is_ok(), "{result:?} {direct:?}");
    tree.assert_contained();
    again.assert_contained();
    result?;
    assert_eq!(tree.lines(), again.lines());
    Ok(tree.lines())
}

const CONTEXT: &str = "echo a > a.txt; echo b > b.txt; mkdir -p sub/deep empty; echo c > sub/c.txt;
    echo d > sub/deep/d.txt; echo e > sub/deep/e.md; ln -s c.txt sub/link; ln -s /etc/passwd abs; ln -s sub dlink";

#[test]
fn files_and_directories_go_where_buildkit_puts_them() {
    if !root() {
        return;
    }
    type Case = (&'static str, &'static str, &'static [&'static str], &'static [&'static str]);
    let cases: &[Case] = &[
        // (what is there, destination, sources, what is there then)
        ("", "/x", &["a.txt"], &["x file 644 0:0 \"a\""]),
        ("", "/x/y/", &["a.txt"], &["x dir 755 0:0", "x/y dir 755 0:0", "x/y/a.txt file 644 0:0 \"a\""]),
        ("mkdir d", "/d", &["a.txt"], &["d dir 755 0:0", "d/a.txt file 644 0:0 \"a\""]),
        ("", "/e", &["empty"], &["e dir 755 0:0"]),
        ("", "/.", &["a.txt"], &["a.txt file 644 0:0 \"a\""]),
        // Leading slash and `..` of a source stop at the context.
        ("", "/x", &["../../a.txt"], &["x file 644 0:0 \"a\""]),
        ("", "/x", &["/a.txt"], &["x file 644 0:0 \"a\""]),
        // A destination's `..` is taken literally, before links are looked at.
        (
            "ln -s /nowhere/deep l",
            "/l/../x",
            &["a.txt"],
            &["l link 0:0 /nowhere/deep", "x file 644 0:0 \"a\""],
        ),
        // A directory's contents; the destination keeps its attributes.
        (
            "mkdir -m 700 s; chown 5:6 s",
            "/s",
            &["sub/deep"],
            &["s dir 700 5:6", "s/d.txt file 644 0:0 \"d\"", "s/e.md file 644 0:0 \"e\""],
        ),
        // Below it they take the source's.
        (
            "mkdir -p -m 700 s/deep; chown 5:6 s/deep; echo k > s/deep/keep; echo o > s/c.txt",
            "/s/",
            &["sub"],
            &[
                "s dir 755 0:0",
                "s/c.txt file 644 0:0 \"c\"",
                "s/deep dir 755 0:0",
                "s/deep/d.txt file 644 0:0 \"d\"",
                "s/deep/e.md file 644 0:0 \"e\"",
                "s/deep/keep file 644 0:0 \"k\"",
                "s/link link 0:0 c.txt",
            ],
        ),
        // Several sources without a slash: the last one wins, as in BuildKit.
        ("", "/x", &["a.txt", "b.txt"], &["x file 644 0:0 \"b\""]),
        (
            "",
            "/x/",
            &["a.txt", "sub/deep"],
            &[
                "x dir 755 0:0",
                "x/a.txt file 644 0:0 \"a\"",
                "x/d.txt file 644 0:0 \"d\"",
                "x/e.md file 644 0:0 \"e\"",
            ],
        ),
        // Patterns.
        (
            "",
            "/d/",
            &["*.txt"],
            &["d dir 755 0:0", "d/a.txt file 644 0:0 \"a\"", "d/b.txt file 644 0:0 \"b\""],
        ),
        ("", "/d", &["?.txt"], &["d file 644 0:0 \"b\""]),
        ("", "/d/", &["sub/*/*.txt"], &["d dir 755 0:0", "d/d.txt file 644 0:0 \"d\""]),
        (
            "",
            "/d/",
            &["[ab].tx[!-~]", "nothing*"],
            &["d dir 755 0:0", "d/a.txt file 644 0:0 \"a\"", "d/b.txt file 644 0:0 \"b\""],
        ),
        ("", "/d/", &["nothing*"], &[]),
        // Links in a source's path are followed in the context; those inside of a directory are kept.
        ("", "/l", &["sub/link"], &["l file 644 0:0 \"c\""]),
        (
            "",
            "/d/",
            &["dlink/deep"],
            &["d dir 755 0:0", "d/d.txt file 644 0:0 \"d\"", "d/e.md file 644 0:0 \"e\""],
        ),
        ("", "/d/", &["sub/l*"], &["d dir 755 0:0", "d/link file 644 0:0 \"c\""]),
        // Links in a destination's path are followed in the image, at its end, too.
        (
            "mkdir real; ln -s /real l",
            "/l/",
            &["a.txt"],
            &["l link 0:0 /real", "real dir 755 0:0", "real/a.txt file 644 0:0 \"a\""],
        ),
        (
            "mkdir -p a/b tmp; ln -s ../../../../../tmp a/b/l",
            "/a/b/l/",
            &["a.txt"],
            &[
                "a dir 755 0:0",
                "a/b dir 755 0:0",
                "a/b/l link 0:0 ../../../../../tmp",
                "tmp dir 755 0:0",
                "tmp/a.txt file 644 0:0 \"a\"",
            ],
        ),
        ("echo old > t; ln -s /t l", "/l", &["a.txt"], &["l link 0:0 /t", "t file 644 0:0 \"a\""]),
        (
            "ln -s t l",
            "/l/n/",
            &["a.txt"],
            &["l link 0:0 t", "t dir 755 0:0", "t/n dir 755 0:0", "t/n/a.txt file 644 0:0 \"a\""],
        ),
        (
            "ln -s /proc/self/root l",
            "/l/x",
            &["a.txt"],
            &[
                "l link 0:0 /proc/self/root",
                "proc dir 755 0:0",
                "proc/self dir 755 0:0",
                "proc/self/root dir 755 0:0",
                "proc/self/root/x file 644 0:0 \"a\"",
            ],
        ),
        // A link inside of the destination is replaced, not followed.
        (
            "mkdir d; ln -s ../t d/c.txt; echo t > t",
            "/d",
            &["sub/c.t*"],
            &["d dir 755 0:0", "d/c.txt file 644 0:0 \"c\"", "t file 644 0:0 \"t\""],
        ),
    ];
    for (there, destination, sources, expected) in cases {
        let found = copied(there, &to(destination), CONTEXT, &what(sources)).unwrap();
        assert_eq!(found, *expected, "{there:?} {destination} {sources:?}");
    }
}

#[test]
fn what_does_not_fit_is_the_users_fault() {
    let cases = [
        ("echo x > d", "/d", "sub", "directory is needed"),
        ("echo x > d", "/d/x", "a.txt", "needed as a directory"),
        ("echo x > d", "/d/", "a.txt", "directory is needed"),
        ("mkdir -p d/a.txt", "/d/", "a.txt", "cannot replace the directory"),
        ("mkdir -p d/c.txt", "/d/", "sub", "cannot replace the directory"),
        ("mkdir d; ln -s . d/deep", "/d/", "sub", "directory is needed"),
        ("", "/x", "no-such-file", "\"no-such-file\" not found"),
        ("", "/x", "abs", "\"abs\" not found"),
        ("", "/x", "no-such-dir/*", "not found"),
        ("", "/x", "a.txt/x", "not found"),
        ("ln -s l l", "/l/x", "a.txt", "l/x"),
    ];
    for (there, destination, source, expected) in cases {
        let error = copied(there, &to(destination), CONTEXT, &what(&[source])).unwrap_err();
        assert!(matches!(error, TreeError::User { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let chain = (0..42).map(|i| format!("ln -s l{} l{i}; ", i + 1)).collect::<String>() + "echo x > l42";
    let error = copied("", &to("/x"), &chain, &what(&["l0"])).unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
}

#[test]
fn owners_modes_times_and_links_are_kept_or_set() {
    if !root() {
        return;
    }
    let context = Tree::with(
        "mkdir -m 750 s; echo 1 > s/one; ln s/one s/two; mkdir s/t; mkfifo s/p; ln s/one s/t/three;
         ln -s one s/l; chown -h 3:4 s s/one s/t s/l s/p; chmod 4755 s/one; chmod 1777 s/t; chmod 2750 s; touch -h -d @1000000000 s/one s/l s/p s/t s; echo f > f; chmod 640 f",
    );
    let image = Tree::new();
    copy_tree(image.fd(), &to("/o"), context.fd(), &what(&["s"])).unwrap();
    let expected = |who: &str| {
        vec![
            "o dir 755 0:0".to_owned(),
            format!("o/l link {who} one"),
            format!("o/one file 4755 {who} \"1\""),
            format!("o/p fifo 644 {who}"),
            format!("o/t dir 1777 {who}"),
            format!("o/t/three file 4755 {who} \"1\""),
            format!("o/two file 4755 {who} \"1\""),
        ]
    };
    assert_eq!(image.lines(), expected("3:4"));
    let stat =
        |tree: &Tree, name: &str| tree.around.path().join("tree").join(name).symlink_metadata().unwrap();
    for name in ["o", "o/one", "o/l", "o/p", "o/t"] {
        assert_eq!(stat(&image, name).mtime(), 1_000_000_000, "{name}");
    }
    assert_eq!(stat(&image, "o/one").nlink(), 3);

    let image = Tree::new();
    from_context(&image, &to("/o"), &context, &what(&["s"]), &take).unwrap();
    assert_eq!(image.lines(), expected("0:0"));
    assert_eq!(stat(&image, "o/one").nlink(), 3);

    let image = Tree::new();
    let chosen = Destination {
        owner: Some(Owner { uid: 9, gid: 10 }),
        mode: Some(Chmod::Octal(0o4711)),
        ..to("/p/q/")
    };
    from_context(&image, &chosen, &context, &what(&["f", "s/t"]), &take).unwrap();
    assert_eq!(
        image.lines(),
        // Made parents get the permission bits, files all of it.
        [
            "p dir 711 9:10",
            "p/q dir 711 9:10",
            "p/q/f file 4711 9:10 \"f\"",
            "p/q/three file 4711 9:10 \"1\""
        ]
    );
}

#[test]
fn excludes_and_parents_choose() {
    if !root() {
        return;
    }
    let chosen = |sources: &[&str], excludes: &[&str], parents| Selection {
        excludes: excludes.iter().map(|s| (*s).to_owned()).collect(),
        parents,
        ..what(sources)
    };
    let context =
        "mkdir -p -m 700 p/q sub/deep; chmod 711 p/q; echo f > p/q/f; echo c > sub/c.txt; echo a > a.txt;
        echo d > sub/deep/d.txt; echo e > sub/deep/e.md; chmod -R g-s .; chmod 755 sub";
    let names = |sources: &[&str], excludes: &[&str], parents| -> String {
        let lines = copied("", &to("/o/"), context, &chosen(sources, excludes, parents)).unwrap();
        lines.iter().map(|line| line.split(' ').next().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&["sub"], &["*.md", "deep/d.txt"], false), "o o/c.txt o/deep o/deep/e.md");
    assert_eq!(names(&["sub"], &["deep"], false), "o o/c.txt");
    assert_eq!(names(&["sub"], &["**/*.md"], false), "o o/c.txt o/deep o/deep/d.txt");
    assert_eq!(names(&["sub"], &["deep", "!deep/e.md"], false), "o o/c.txt o/deep o/deep/e.md");
    assert_eq!(names(&["sub"], &["*", "!**/e.md"], false), "o o/deep o/deep/e.md");
    assert_eq!(names(&["sub"], &["!deep"], false), "o o/c.txt o/deep o/deep/d.txt o/deep/e.md");
    // A source that is a file is never excluded.
    assert_eq!(names(&["*.txt"], &["a.txt"], false), "o o/a.txt");
    assert_eq!(names(&["sub/c.txt", "p/q/f"], &[], true), "o o/p o/p/q o/p/q/f o/sub o/sub/c.txt");
    assert_eq!(names(&["sub"], &["**/e.md"], true), "o o/sub o/sub/c.txt o/sub/deep o/sub/deep/d.txt");
    assert_eq!(names(&["**/*.txt"], &[], true), "o o/a.txt o/sub o/sub/c.txt o/sub/deep o/sub/deep/d.txt");
    assert_eq!(names(&["./sub/./deep/d.txt"], &[], true), "o o/deep o/deep/d.txt");
    assert_eq!(names(&["sub/./**/*.txt"], &[], true), "o o/c.txt o/deep o/deep/d.txt");
    assert_eq!(names(&["p/*/f"], &[], true), "o o/p o/p/q o/p/q/f");
    let error = copied("", &to("/o/"), context, &chosen(&["sub/nothing"], &[], true)).unwrap_err();
    assert!(error.to_string().contains("\"sub/nothing\" not found"), "{error}");
    let modes = copied("", &to("/o/"), context, &chosen(&["p/q/f"], &[], true)).unwrap();
    assert_eq!(modes[1..3], ["o/p dir 755 0:0".to_owned(), "o/p/q dir 711 0:0".to_owned()]);
    for bad in ["!", "[a"] {
        assert!(copied("", &to("/o/"), context, &chosen(&["sub"], &[bad], false)).is_err(), "{bad}");
    }
    // Linear however many stars there are.
    let stars = "**/".repeat(2000) + "x";
    assert_eq!(names(&["sub"], &[&stars, &"*".repeat(5000)], false), "o");
}

#[test]
fn ignored_files_are_not_there() {
    let context = Tree::with(
        "mkdir -p d/e node/p src; echo 1 > a.txt; echo 2 > a.md; echo 3 > d/e/x; echo 4 > d/y; echo 5 > node/p/i.js;
         ln -s node n; ln -s a.txt t; echo 6 > src/keep; mkdir gone; echo 7 > gone/g",
    );
    let ignore = |path: &str, _: bool| match path {
        "node" | "a.txt" | "d/y" => Ignored::Yes,
        "gone" | "d" => Ignored::YesButLookInside,
        path if path.starts_with("gone/") => Ignored::Yes,
        _ => Ignored::No,
    };
    let copy = |sources: &[&str]| {
        let image = Tree::new();
        from_context(&image, &to("/o/"), &context, &what(sources), &ignore)
            .map(|()| image.show().into_keys().collect::<Vec<_>>().join(" "))
            .map_err(|e| e.to_string())
    };
    assert_eq!(copy(&["."]).unwrap(), "o o/a.md o/d o/d/e o/d/e/x o/n o/src o/src/keep o/t");
    assert_eq!(copy(&["d"]).unwrap(), "o o/e o/e/x");
    assert_eq!(copy(&["*.txt", "a.*"]).unwrap(), "o o/a.md");
    for (source, excluded) in [
        ("a.txt", true),
        ("node", true),
        ("node/p/i.js", true),
        ("n", true),
        ("t", true),
        ("d/y", true),
        ("gone", true),
        ("none", false),
    ] {
        let error = copy(&[source]).unwrap_err();
        assert!(error.contains(&format!("COPY source {source:?} not found in the build context")), "{error}");
        assert_eq!(error.ends_with(" (excluded by .dockerignore)"), excluded, "{error}");
    }
}

#[test]
fn sockets_and_devices_are_left_out_and_nothing_waits() {
    if !root() {
        return;
    }
    let context = Tree::with("mknod null c 1 3; mkfifo p; echo x > f; truncate -s 10M big");
    let _listener = std::os::unix::net::UnixListener::bind(context.around.path().join("tree/sock")).unwrap();
    let image = Tree::new();
    from_context(&image, &to("/o"), &context, &what(&["."]), &take).unwrap();
    assert_eq!(image.show().into_keys().collect::<Vec<_>>(), ["o", "o/big", "o/f", "o/p"]);
    copy_tree(image.fd(), &to("/o/"), context.fd(), &what(&["sock", "null", "p"])).unwrap();
    assert_eq!(image.show().len(), 4);
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let context = Tree::with("echo x > f; mkdir d; echo y > d/y");
    let mut stream = file(b"");
    write_context(context.fd(), &what(&["."]), &take, stream.try_clone().unwrap()).unwrap();
    stream.rewind().unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    for length in 0..bytes.len() {
        let error = copy_stream(Tree::new().fd(), &to("/o/"), file(&bytes[..length])).unwrap_err();
        assert!(matches!(error, TreeError::Internal { .. }), "{error:?}");
    }
    let mut wrong = bytes.clone();
    wrong[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(copy_stream(Tree::new().fd(), &to("/o/"), file(&wrong)).is_err());
}

fn archive() -> Vec<u8> {
    let mut t = Maker::header(b'5', "t/", "", 0, (11, 12));
    t.set_mode(0o750);
    let mut top = Maker::header(b'0', "top", "", 3, (0, 0));
    top.set_mode(0o4755);
    let mut root = Maker::header(b'5', "./", "", 0, (7, 7));
    root.set_mode(0o700);
    let f = Maker::header(b'0', "t/f", "", 3, (11, 12));
    Maker::default()
        .raw(root, b"")
        .raw(t, b"")
        .raw(f, b"tar")
        .symlink("t/s", "f")
        .hardlink("t/h", "t/f")
        .raw(top, b"top")
        .end()
}

fn added(there: &str, destination: &Destination, archive: &[u8]) -> Result<Vec<String>, TreeError> {
    let (image, context) = (Tree::with(there), Tree::new());
    std::fs::write(context.around.path().join("tree/arc"), archive).unwrap();
    let add = Destination { unpack: true, ..destination.clone() };
    let result = from_context(&image, &add, &context, &what(&["arc"]), &take);
    image.assert_contained();
    result.map(|()| image.lines())
}

#[test]
fn archives_are_told_by_their_content_and_unpacked() {
    if !root() {
        return;
    }
    let expected = |who: &str, dir: &str| {
        let top = if who == "11:12" { "0:0" } else { who };
        vec![
            format!("out dir {dir}"),
            format!("out/t dir 750 {who}"),
            // The link's entry comes later, and says root.
            format!("out/t/f file 644 {top} \"tar\""),
            format!("out/t/h file 644 {top} \"tar\""),
            format!("out/t/s link {top} f"),
            format!("out/top file 4755 {top} \"top\""),
        ]
    };
    let tar = archive();
    for program in ["cat", "gzip", "bzip2", "xz", "zstd"] {
        let mut command = std::process::Command::new(program);
        if program != "cat" {
            command.arg("-c");
        }
        let Ok(packed) = command.stdin(file(&tar)).output() else {
            println!("not run: there is no {program} program here");
            continue;
        };
        assert_eq!(
            added("", &to("/out"), &packed.stdout).unwrap(),
            expected("11:12", "755 0:0"),
            "{program}"
        );
    }
    let owned = Destination {
        owner: Some(Owner { uid: 77, gid: 78 }),
        mode: Some(Chmod::Octal(0o711)),
        ..to("/out/")
    };
    assert_eq!(added("", &owned, &tar).unwrap(), expected("77:78", "755 77:78"));
    // Over what is there: directories merge, all else is replaced, links are not followed.
    let found =
        added("mkdir -p -m 700 out/t real; echo k > out/t/keep; echo o > out/t/f", &to("/out/"), &tar)
            .unwrap();
    assert!(found.contains(&"out/t/keep file 644 0:0 \"k\"".to_owned()), "{found:?}");
    assert!(found.contains(&"out/t dir 750 11:12".to_owned()), "{found:?}");
    let found =
        added("mkdir real out; ln -s /real out/t; mkdir out/top; touch out/top/x", &to("/out/"), &tar)
            .unwrap();
    assert!(found.contains(&"real dir 755 0:0".to_owned()) && found.len() == 7, "{found:?}");
    // No archives: nothing in it, something else in gzip, a name that lies.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"no tar").unwrap();
    for plain in [vec![0; 10240], gzip.finish().unwrap(), b"this is no archive".to_vec(), Vec::new()] {
        let found = added("", &to("/out/"), &plain).unwrap();
        assert!(found.len() == 2 && found[1].starts_with("out/arc file 644 0:0"), "{found:?}");
    }
    // A whiteout's name is a name here.
    let found = added("", &to("/"), &Maker::default().file(".wh.foo", "").end()).unwrap();
    assert_eq!(found, [".wh.foo file 644 0:0 \"\""]);
}

#[test]
fn an_archives_root_is_its_destination() {
    if !root() {
        return;
    }
    let made = |make: fn(Maker) -> Maker| {
        added("mkdir etc; echo pw > etc/passwd", &to("/out/"), &make(Maker::default()).end())
    };
    let inside =
        made(|m| m.symlink("l", "..").dir("etc/").file("l/etc/f", "1").file("../../g", "2")).unwrap();
    assert_eq!(
        inside,
        [
            "etc dir 755 0:0",
            "etc/passwd file 644 0:0 \"pw\"",
            "out dir 755 0:0",
            "out/etc dir 755 0:0",
            "out/etc/f file 644 0:0 \"1\"",
            "out/g file 644 0:0 \"2\"",
            "out/l link 0:0 ..",
        ]
    );
    let cases: [fn(Maker) -> Maker; 4] = [
        |m| m.hardlink("h", "../../etc/passwd"),
        |m| m.symlink("l", "../../etc").file("l/pwned", "x"),
        |m| m.file("a", "").file("a/b", ""),
        |m| m.raw(Maker::header(b'0', "x", "", 0, (70000, 0)), b""),
    ];
    for make in cases {
        let error = made(make).unwrap_err();
        assert!(matches!(error, TreeError::User { .. }), "{error:?}");
    }
}

#[test]
fn working_directories_are_made_inside() {
    if !root() {
        return;
    }
    let made = |there: &str, path: &str| {
        let tree = Tree::with(there);
        let result = make_directory(tree.fd(), path, Owner { uid: 33, gid: 34 });
        tree.assert_contained();
        result.map(|()| tree.lines().join(", "))
    };
    assert_eq!(made("", "/a/b").unwrap(), "a dir 755 33:34, a/b dir 755 33:34");
    assert_eq!(made("mkdir a", "/a/").unwrap(), "a dir 755 0:0");
    assert_eq!(made("", "/").unwrap(), "");
    assert_eq!(made("ln -s /etc a", "/a/../../../x").unwrap(), "a link 0:0 /etc, x dir 755 33:34");
    assert_eq!(
        made("ln -s /real a", "/a/b").unwrap(),
        "a link 0:0 /real, real dir 755 33:34, real/b dir 755 33:34"
    );
    assert_eq!(made("", "/proc/self/fd/7").unwrap().matches("dir 755 33:34").count(), 4);
    for (there, path) in [("echo x > a", "/a"), ("echo x > a", "/a/b")] {
        assert!(matches!(made(there, path).unwrap_err(), TreeError::User { .. }));
    }
}

const USERS: &str = "mkdir etc; cat > etc/passwd <<'X'
root:x:0:0:root:/root:/bin/sh
broken:x:zero:0::/:/bin/sh
app:x:1500:1600::/home/app:/bin/sh
big:x:70000:1::/:/bin/sh
7zip:x:77:78::/z:/bin/sh
X
cat > etc/group <<'X'
root:x:0:root
wheel:x:10:root
app:x:1600:
team:x:1700:other,app
X";

#[test]
fn users_are_looked_up_in_the_image() {
    let tree = Tree::with(USERS);
    let found = |text: &str| user(tree.fd(), text);
    let is = |uid, gid, groups: &[u32], home: &str| User {
        owner: Owner { uid, gid },
        groups: groups.to_vec(),
        home: home.to_owned(),
    };
    assert_eq!(found("").unwrap(), is(0, 0, &[0, 10], "/root"));
    assert_eq!(found("root").unwrap(), is(0, 0, &[0, 10], "/root"));
    assert_eq!(found("app").unwrap(), is(1500, 1600, &[1600, 1700], "/home/app"));
    assert_eq!(found("1500").unwrap(), is(1500, 1600, &[1600, 1700], "/home/app"));
    // A named group takes the place of all others.
    assert_eq!(found("app:app").unwrap(), is(1500, 1600, &[1600], "/home/app"));
    assert_eq!(found("app:team").unwrap(), is(1500, 1700, &[1700], "/home/app"));
    assert_eq!(found("1500:3").unwrap(), is(1500, 3, &[3], "/home/app"));
    assert_eq!(found("1234").unwrap(), is(1234, 0, &[0], "/"));
    assert_eq!(found("65534:65534").unwrap(), is(65534, 65534, &[65534], "/"));
    assert_eq!(found("7zip").unwrap(), is(77, 78, &[78], "/z"));
    for text in
        ["4294967296", "-1", "+1", "0x0", "65535", "99999999999999999999", "0:4294967296", "0:-1", "big"]
    {
        let error = found(text).unwrap_err();
        assert!(
            matches!(error, TreeError::User { .. }) && error.to_string().contains("0 to 65534"),
            "{text}: {error}"
        );
    }
    for text in ["ghost", "broken", "app:ghost", "٣", "root "] {
        let error = found(text).unwrap_err();
        assert!(
            matches!(error, TreeError::User { .. }) && error.to_string().contains("unable to find"),
            "{text}: {error}"
        );
    }
    let bare = Tree::new();
    assert_eq!(user(bare.fd(), "0:5").unwrap(), is(0, 5, &[5], "/"));
    assert!(user(bare.fd(), "root").is_err());
}

#[test]
fn owners_fall_back_as_buildkits_do() {
    let tree = Tree::with(USERS);
    let found = |text: &str| owner(tree.fd(), text).map(|o| (o.uid, o.gid));
    for (text, expected) in [
        ("12", (12, 12)),
        ("12:34", (12, 34)),
        ("app", (1500, 1600)),
        ("app:team", (1500, 1700)),
        (":team", (0, 1700)),
        ("77:team", (77, 1700)),
        ("app:root", (1500, 0)),
        ("root", (0, 0)),
        ("ghost", (0, 0)),
        ("0:ghost", (0, 0)),
        ("app:ghost", (1500, 1600)),
        ("root:$(id)", (0, 0)),
    ] {
        assert_eq!(found(text).unwrap(), expected, "{text}");
    }
    for text in ["4294967296", "-1", "0x0", "0:70000", "big"] {
        assert!(matches!(found(text).unwrap_err(), TreeError::User { .. }), "{text}");
    }
    assert_eq!(owner(Tree::new().fd(), "app").unwrap(), Owner::default());
}

#[test]
fn passwd_files_that_are_none_end_it_at_once() {
    for script in [
        "mkdir etc; mkfifo etc/passwd",
        "mkdir -p etc/passwd",
        "mkdir etc; ln -s passwd etc/passwd",
        "mkdir etc; truncate -s 1G etc/passwd",
    ] {
        let tree = Tree::with(script);
        let error = user(tree.fd(), "app").unwrap_err();
        assert!(matches!(error, TreeError::User { .. }), "{script}: {error:?}");
    }
    // A link is followed in the image: no file of the machine is read.
    let tree = Tree::with("mkdir etc dev; ln -s /dev/zero etc/passwd; ln -s /etc/passwd dev/x");
    assert!(user(tree.fd(), "root").unwrap_err().to_string().contains("unable to find user"));
}
