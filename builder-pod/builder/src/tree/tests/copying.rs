//! COPY: BuildKit's rules (the cases `copy-*` of the conformance data).

use std::os::unix::fs::MetadataExt;

use super::*;
use crate::chmod::Chmod;
use crate::engine::{Destination, Owner, Selection};
use crate::tree::{Ignored, TreeError, copy_stream, copy_tree, write_context};

pub(super) fn to(path: &str) -> Destination {
    Destination { path: path.to_owned(), sources: 1, owner: None, mode: None, unpack: false, link: false }
}

pub(super) fn what(sources: &[&str]) -> Selection {
    Selection {
        sources: sources.iter().map(|s| (*s).to_owned()).collect(),
        excludes: Vec::new(),
        parents: false,
    }
}

pub(super) fn take(_: &str, _: bool) -> Ignored {
    Ignored::No
}

/// From a context by the stream.
pub(super) fn from_context(
    root: &Tree,
    to: &Destination,
    context: &Tree,
    what: &Selection,
    ignore: &dyn Fn(&str, bool) -> Ignored,
) -> Result<(), TreeError> {
    let mut stream = file(b"");
    write_context(context.fd(), what, ignore, stream.try_clone().unwrap())?;
    stream.rewind().unwrap();
    copy_stream(root.fd(), to, stream).map(drop)
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
