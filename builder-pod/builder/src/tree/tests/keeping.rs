//! What a cache mount holds, as a tar and back: all of it as it is, and no rule of layers.

use std::time::{Duration, SystemTime};

use super::*;
use crate::engine::{CACHE_MOUNT, Diff, Unpacked};
use crate::tree::{TreeError, archive_tree, unpack};

fn written(tree: &Tree) -> (Vec<u8>, Diff) {
    let out = tempfile::tempfile().unwrap();
    let found = archive_tree(tree.fd(), out.try_clone().unwrap()).unwrap();
    let mut tar = Vec::new();
    let mut out = out;
    out.rewind().unwrap();
    out.read_to_end(&mut tar).unwrap();
    (tar, found)
}

fn kept(tar: &[u8]) -> (Tree, Result<Unpacked, TreeError>) {
    let tree = Tree::new();
    let done = unpack(file(tar), CACHE_MOUNT, tree.fd(), None);
    tree.assert_contained();
    (tree, done)
}

fn time(tree: &Tree, path: &str) -> Duration {
    let found = std::fs::symlink_metadata(tree.around.path().join("tree").join(path)).unwrap();
    found.modified().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

#[test]
fn a_cache_comes_back_as_it_was() {
    if !root() {
        return;
    }
    let tree = Tree::with(
        "mkdir -p a/b empty; echo one > a/one; ln a/one a/b/again; ln -s ../one a/b/link; mkfifo pipe
         echo kept > a/.wh.one; echo kept > a/.wh..wh.plnk; mkdir a/.wh..wh..opq; chown -R 3:4 a; chmod 2750 a
         touch -d '2001-02-03 04:05:06.789012345 UTC' a/one; touch -d '2001-02-03 04:05:06.5 UTC' a/b empty
         setfattr -n user.overlay.opaque -v y empty 2>/dev/null || true
         chown 7:8 .; chmod 1770 .; touch -d '2002-02-03 04:05:06.25 UTC' .",
    );
    let (tar, found) = written(&tree);
    let listed = listing(&tar);
    assert_eq!(found.entries as usize, listed.len());
    assert_eq!(listed[0], "Directory ./ 1770 7:8");
    let (back, done) = kept(&tar);
    let done = done.unwrap();
    assert!(done.implied.is_empty() && done.links.is_empty(), "{done:?}");
    let mut before = tree.show();
    // Marks of overlays are none of its business.
    if let Some(empty) = before.get_mut("empty") {
        *empty = empty.replace(" opaque", "");
    }
    assert_eq!(back.show(), before);
    for path in ["", "a", "a/one", "a/b", "a/b/again", "empty"] {
        assert_eq!(time(&back, path), time(&tree, path), "{path:?}");
    }
    let inode = |path: &str| {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(back.around.path().join(path)).unwrap())
    };
    assert_eq!(inode("tree/a/one"), inode("tree/a/b/again"));
    // So that what nobody changed is not sent again.
    assert_eq!(written(&back).0, tar);
}

#[test]
fn an_empty_cache_is_its_root() {
    let tree = Tree::new();
    let (tar, found) = written(&tree);
    assert_eq!((found.entries, listing(&tar).len()), (1, 1));
}

#[test]
fn what_leads_out_of_a_cache_stays_in_or_is_refused() {
    if !root() {
        return;
    }
    let tar = Maker::default().symlink("out", "../..").file("out/etc/f", "x").file("../up", "x").end();
    let (tree, done) = kept(&tar);
    done.unwrap();
    assert!(tree.show().contains_key("up"), "{:?}", tree.lines());
    let tar = Maker::default().hardlink("a", "../../etc/passwd").end();
    let error = kept(&tar).1.unwrap_err();
    assert!(error.to_string().contains("links to a file that is not in the archive"), "{error}");
    // Only the root may be nameless, and it is a directory.
    assert!(kept(&Maker::default().file("./", "x").end()).1.is_err());
}
