//! Indexes: a tree from one looks like the layer's own, and a part of it has what somebody looks at.

use std::collections::BTreeMap;

use super::unpacking::unpacked;
use super::*;
use crate::engine::{LAYER_INDEX, Unpacked};
use crate::tree::{Links, Look, Part, TreeError, diff, index, links, part, unpack, write_part};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn indexed(tar: &[u8]) -> File {
    let out = file(b"");
    index(file(tar), TAR, out.try_clone().unwrap()).unwrap();
    out
}

fn tree_of(index: &File, links: &Links, part: &Part) -> (Tree, Unpacked) {
    let out = file(b"");
    write_part(index, links, part, out.try_clone().unwrap()).unwrap();
    let mut part = out;
    part.rewind().unwrap();
    let tree = Tree::new();
    let unpacked = unpack(part, LAYER_INDEX, tree.fd(), None).unwrap();
    (tree, unpacked)
}

/// Without what is in files, and what may be done with them.
fn looks(tree: &Tree) -> BTreeMap<String, String> {
    let what = |what: String| match what.split_once(" \"") {
        Some((what, _)) => what.to_owned(),
        None => what,
    };
    tree.show().into_iter().map(|(path, shown)| (path, what(shown))).collect()
}

fn layer() -> Vec<u8> {
    let mut sticky = Maker::header(b'5', "tmp/", "", 0, (0, 0));
    sticky.set_mode(0o41777);
    Maker::default()
        .raw(sticky, b"")
        .file("etc/passwd", "a:x:1:2::/:/bin/sh")
        .file("etc/conf", "text")
        .hardlink("etc/hard", "/etc/conf")
        .symlink("lib", "usr/lib")
        .hardlink("other-lib", "lib")
        .dir("usr/lib/")
        .raw(Maker::header(b'0', "usr/lib/so", "", 2, (5, 6)), b"so")
        .file("opt/.wh..wh..opq", "")
        .file("opt/a/b/c", "c")
        .file("var/.wh.gone", "")
        .entry(b'6', "run/fifo", "")
        .entry(b'3', "dev/null", "")
        .end()
}

#[test]
fn a_tree_from_an_index_looks_like_the_layers() {
    if !root() {
        return;
    }
    let tar = layer();
    let (tree, whole) = unpacked(&tar);
    let index = indexed(&tar);
    let found = links(&index).unwrap();
    let (skeleton, part) = tree_of(&index, &found, &Part::All);
    assert_eq!(looks(&skeleton), looks(&tree));
    assert_eq!(part.implied, whole.implied);
    assert_eq!(
        skeleton.show()["etc/passwd"],
        tree.show()["etc/passwd"],
        "what names are looked up in is whole"
    );
    // The index that is made beside unpacking is the same one, but for where it has what is kept.
    let beside = file(b"");
    unpack(file(&tar), TAR, Tree::new().fd(), Some(beside.try_clone().unwrap())).unwrap();
    let (again, _) = tree_of(&beside, &links(&beside).unwrap(), &Part::All);
    assert_eq!(again.show(), skeleton.show());
}

#[test]
fn the_index_of_a_difference_is_that_of_its_layer() {
    if !root() {
        return;
    }
    let upper = Tree::with(
        "mkdir -p etc d/e; echo x > etc/group; echo y > d/e/f; ln d/e/f d/g; ln -s f d/l; chmod 711 d",
    );
    let (out, beside) = (file(b""), file(b""));
    diff(upper.fd(), None, &[], None, out.try_clone().unwrap(), Some(beside.try_clone().unwrap())).unwrap();
    let mut tar = Vec::new();
    let mut out = out;
    out.rewind().unwrap();
    out.read_to_end(&mut tar).unwrap();
    let of = |index: &File| tree_of(index, &links(index).unwrap(), &Part::All).0.show();
    assert_eq!(of(&beside), of(&indexed(&tar)));
    assert_eq!(of(&beside)["etc/group"], "file 644 0:0 \"x\"");
}

fn look(path: &str, below: bool) -> Look {
    Look { path: path.to_owned(), below }
}

#[test]
fn a_part_has_what_is_on_the_way_and_below() {
    if !root() {
        return;
    }
    let index = indexed(&layer());
    let found = links(&index).unwrap();
    let of = |looks: &[Look]| -> Vec<String> {
        let part = part(&[&found], looks);
        tree_of(&index, &found, &part).0.show().into_keys().collect()
    };
    assert_eq!(of(&[look("/tmp/x", true)]), ["tmp"]);
    assert_eq!(of(&[look("/lib/", true)]), ["lib", "usr", "usr/lib", "usr/lib/so"]);
    assert_eq!(of(&[look("/lib", false)]), ["lib", "usr", "usr/lib"]);
    // A directory that only its contents show comes with one of them, and one that hides what is below.
    assert_eq!(of(&[look("/etc/hard", true)]), ["etc", "etc/hard", "etc/passwd"]);
    assert_eq!(of(&[look("/opt", false)]), ["opt"]);
    assert_eq!(of(&[look("/opt/a", false)]), ["opt", "opt/a", "opt/a/b", "opt/a/b/c"]);
    assert_eq!(of(&[look("/var/gone/x", true)]), ["var", "var/gone"]);
    assert_eq!(of(&[look("/none", true)]), Vec::<String>::new());
    assert_eq!(part(&[&found], &[look("/", true)]), Part::All);
}

#[test]
fn links_of_all_layers_are_followed_wherever_they_may_lead() {
    let links_of = |tar: Vec<u8>| links(&indexed(&tar)).unwrap();
    let one = links_of(Maker::default().symlink("a", "b/../c").symlink("c", "/d").end());
    let two = links_of(Maker::default().symlink("d", "e").symlink("b", "x/y").end());
    let Part::Of { on, below } = part(&[&one, &two], &[look("/a/f", true)]) else { panic!("a part") };
    let text = |paths: &std::collections::BTreeSet<Vec<u8>>| -> Vec<String> {
        paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
    };
    // `b/..` is where `b` leads and up again, or the root where `b` is a directory in the end.
    assert_eq!(text(&below), ["a/f", "c/f", "d/f", "e/f", "x/c/f"]);
    assert!(
        ["a", "b", "c", "d", "e", "x", "x/y", "x/c"].iter().all(|path| on.contains(path.as_bytes())),
        "{on:?}"
    );
    // Circles, and links that grow while they are followed.
    let circle = links_of(Maker::default().symlink("a", "b").symlink("b", "a").end());
    assert!(matches!(part(&[&circle], &[look("/a/x", false)]), Part::Of { .. }));
    let growing = links_of(Maker::default().symlink("a", "a/a").end());
    assert_eq!(part(&[&growing], &[look("/a/x", false)]), Part::All);
    // An entry through a link of its own layer is not where its path says.
    let winding = links_of(Maker::default().symlink("lib", "usr/lib").file("lib/x", "x").end());
    assert_eq!(part(&[&winding], &[look("/usr/lib", true)]), Part::All);
}

#[test]
fn what_an_index_can_not_tell_is_an_error() {
    let index = indexed(&Maker::default().hardlink("a", "below").end());
    let error = write_part(&index, &links(&index).unwrap(), &Part::All, file(b"")).unwrap_err();
    assert!(
        matches!(&error, TreeError::Image { message } if message.contains("not in its layer")),
        "{error}"
    );
    assert!(links(&file(b"no tar at all, but for this text")).is_err());
    // A layer can't say that its own files are placeholders.
    let tar = Maker::default()
        .pax(&[("SCHILY.xattr.user.kiln.placeholder", "y")])
        .file("etc/passwd", "a:x:1:1")
        .end();
    let (tree, _) = unpacked(&tar);
    assert_eq!(crate::tree::owner(tree.fd(), "a").unwrap().uid, 1);
    let empty = indexed(&Maker::default().file("etc/passwd", "").end());
    let (tree, _) = tree_of(&empty, &links(&empty).unwrap(), &Part::All);
    assert!(matches!(crate::tree::owner(tree.fd(), "a"), Err(TreeError::Content { .. })));
}
