//! Layers that follow the rules: what they look like unpacked, and settled on one another.

use std::io::Write;
use std::os::fd::OwnedFd;

use super::*;
use crate::engine::Unpacked;
use crate::tree::{TreeError, settle, unpack};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

pub(super) fn unpacked(tar: &[u8]) -> (Tree, Unpacked) {
    let tree = Tree::new();
    let unpacked = unpack(file(tar), TAR, tree.fd(), None).unwrap();
    (tree, unpacked)
}

pub(super) fn refused(tar: &[u8]) -> String {
    let tree = Tree::new();
    let error = unpack(file(tar), TAR, tree.fd(), None).unwrap_err();
    tree.assert_contained();
    assert!(matches!(error, TreeError::Image { .. }), "{error:?}");
    error.to_string()
}

#[test]
fn kinds_modes_owners_and_times_are_kept() {
    if !root() {
        return;
    }
    let mut suid = Maker::header(b'0', "bin/su", "", 2, (0, 8));
    suid.set_mode(0o4755);
    let mut sticky = Maker::header(b'5', "tmp/", "", 0, (0, 0));
    sticky.set_mode(0o41777);
    let tar = Maker::default()
        .dir("./")
        .dir("bin/")
        .raw(suid, b"su")
        .raw(sticky, b"")
        .hardlink("bin/su2", "/bin/su")
        .symlink("sh", "bin/su")
        .entry(b'6', "fifo", "")
        .entry(b'3', "null", "")
        .raw(Maker::header(b'0', "own", "", 0, (1234, 65534)), b"")
        .pax(&[("mtime", "1234567890.123456789"), ("SCHILY.xattr.user.note", "hi"), ("path", "late")])
        .file("early", "x")
        .end();
    let (tree, unpacked) = unpacked(&tar);
    assert_eq!(
        tree.lines(),
        [
            "bin dir 755 0:0",
            "bin/su file 4755 0:8 \"su\"",
            "bin/su2 file 4755 0:8 \"su\"",
            "fifo fifo 644 0:0",
            "late file 644 0:0 \"x\"",
            "own file 644 1234:65534 \"\"",
            "sh link 0:0 bin/su",
            "tmp dir 1777 0:0",
        ]
    );
    let stat = |name: &[u8]| at::look(&tree.fd, name).unwrap().unwrap();
    let ino = |name: &str| {
        std::os::unix::fs::MetadataExt::ino(&tree.around.path().join("tree").join(name).metadata().unwrap())
    };
    assert_eq!(ino("bin/su"), ino("bin/su2"));
    for name in [&b"bin"[..], b"sh", b"fifo", b"tmp"] {
        assert_eq!(stat(name).st_mtime, 1_000_000_000);
    }
    assert_eq!((stat(b"late").st_mtime, stat(b"late").st_mtime_nsec), (1_234_567_890, 123_456_789));
    let late = at::open_file(&tree.fd, b"late").unwrap();
    assert_eq!(at::attribute(&late, "user.note").unwrap().as_deref(), Some(&b"hi"[..]));
    assert_eq!(unpacked.size, tar.len() as u64);
    assert!(unpacked.implied.is_empty() && unpacked.links.is_empty());
}

#[test]
fn every_compression_and_what_follows_the_archive_count() {
    let mut tar = Maker::default().file("a", "text").end();
    tar.extend(b"what follows the end is part of the diff ID");
    let digest = format!("sha256:{}", hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&tar)));
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let members = [gzip(&tar[..700]), gzip(&tar[700..])].concat();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let frames = [zstd(&tar[..700]), zstd(&tar[700..])].concat();
    for (blob, media_type) in [
        (tar.clone(), TAR),
        (gzip(&tar), "application/vnd.oci.image.layer.v1.tar+gzip"),
        (members, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        (zstd(&tar), "application/vnd.oci.image.layer.v1.tar+zstd"),
        (frames, "application/vnd.docker.image.rootfs.diff.tar.zstd"),
        // Registries carry such layers.
        (tar.clone(), "application/vnd.oci.image.layer.v1.tar+gzip"),
    ] {
        let tree = Tree::new();
        let unpacked = unpack(file(&blob), media_type, tree.fd(), None).unwrap();
        assert_eq!(
            (unpacked.diff_id.as_str(), unpacked.size),
            (digest.as_str(), tar.len() as u64),
            "{media_type}"
        );
        assert_eq!(tree.show().len(), 1);
    }
    let tree = Tree::new();
    let error = unpack(file(&tar), "application/vnd.in-toto+json", tree.fd(), None).unwrap_err().to_string();
    assert!(error.contains("in-toto"), "{error}");
}

#[test]
fn whiteouts_become_overlays() {
    if !root() {
        return;
    }
    let tar = Maker::default()
        .file("etc/.wh.gone", "")
        .file("opq/.wh..wh..opq", "")
        .file("opq/new", "")
        // A whiteout and a directory of one name, in both orders, and with the directory only implied.
        .file(".wh.first", "")
        .dir("first/")
        .dir("second/")
        .file(".wh.second", "")
        .file(".wh.third", "")
        .file("third/x", "")
        // It hides what is below by itself.
        .file("plain", "1")
        .file(".wh.plain", "")
        .file(".wh..wh.plnk", "")
        .end();
    let (tree, unpacked) = unpacked(&tar);
    assert_eq!(
        tree.lines(),
        [
            "etc dir 755 0:0",
            "etc/gone whiteout",
            "first dir 755 0:0 opaque",
            "opq dir 755 0:0 opaque",
            "opq/new file 644 0:0 \"\"",
            "plain file 644 0:0 \"1\"",
            "second dir 755 0:0 opaque",
            "third dir 755 0:0 opaque",
            "third/x file 644 0:0 \"\"",
        ]
    );
    assert_eq!(unpacked.implied, ["etc", "opq", "third"]);
}

#[test]
fn later_entries_replace_earlier_ones() {
    if !root() {
        return;
    }
    let tar = Maker::default()
        .file("d/x", "1")
        .symlink("d", "elsewhere")
        .file("f", "1")
        .dir("f/")
        .file("f/in", "2")
        .file("same", "1")
        .file("same", "2")
        .hardlink("same", "same")
        .hardlink("l", "below")
        .file("l", "no link any more")
        .end();
    let (tree, unpacked) = unpacked(&tar);
    assert_eq!(
        tree.lines(),
        [
            "d link 0:0 elsewhere",
            "f dir 755 0:0",
            "f/in file 644 0:0 \"2\"",
            "l file 644 0:0 \"no link any more\"",
            "same file 644 0:0 \"2\"",
        ]
    );
    assert!(unpacked.links.is_empty(), "{:?}", unpacked.links);
    assert!(unpacked.implied.is_empty(), "{:?}", unpacked.implied);
}

/// Unpacks layers, from the bottom up, and settles them.
fn settled(tars: &[Vec<u8>]) -> (Vec<Tree>, Result<(), TreeError>) {
    let (trees, unpacked): (Vec<_>, Vec<_>) = tars.iter().map(|tar| self::unpacked(tar)).unzip();
    let layers: Vec<(OwnedFd, Unpacked)> =
        trees.iter().zip(unpacked).map(|(tree, unpacked)| (tree.fd.try_clone().unwrap(), unpacked)).collect();
    let result = settle(&layers);
    (trees, result)
}

#[test]
fn implied_parents_take_the_attributes_of_the_layers_below() {
    if !root() {
        return;
    }
    let mut tmp = Maker::header(b'5', "tmp/", "", 0, (7, 8));
    tmp.set_mode(0o1777);
    let mut var = Maker::header(b'5', "var/", "", 0, (0, 0));
    var.set_mode(0o700);
    let (trees, result) = settled(&[
        Maker::default().raw(tmp, b"").raw(var, b"").end(),
        // Through a layer that only implies it, and not where the name was removed before.
        Maker::default().file("tmp/a", "").file(".wh.var", "").end(),
        Maker::default().file("tmp/b", "").file("var/c", "").end(),
        Maker::default().file("tmp/.wh..wh..opq", "").file("tmp/d", "").end(),
    ]);
    result.unwrap();
    assert_eq!(trees[1].show()["tmp"], "dir 1777 7:8");
    assert_eq!(trees[2].show()["tmp"], "dir 1777 7:8");
    assert_eq!(trees[2].show()["var"], "dir 755 0:0");
    assert_eq!(trees[3].show()["tmp"], "dir 755 0:0 opaque");
}

#[test]
fn hardlinks_reach_into_layers_below_and_never_through_what_was_removed() {
    if !root() {
        return;
    }
    let lower = Maker::default().file("a", "lower").file("d/b", "deep").end();
    let (trees, result) = settled(&[
        lower.clone(),
        Maker::default().end(),
        Maker::default().hardlink("x", "a").hardlink("new/y", "./d/b").end(),
    ]);
    result.unwrap();
    assert_eq!(trees[2].show()["x"], "file 644 0:0 \"lower\"");
    assert_eq!(trees[2].show()["new/y"], "file 644 0:0 \"deep\"");

    // A layer's own whiteout speaks of the layers below it: its links still reach there, those of layers above don't.
    let d = || Maker::default();
    for (middle, target, error) in [
        (d().file(".wh.a", "").hardlink("x", "a").end(), "a", Some("\"z\"")),
        (d().file("d/.wh..wh..opq", "").hardlink("x", "d/b").end(), "d/b", Some("\"z\"")),
        (d().file("d/.wh..wh..opq", "").end(), "a", None),
        (d().file("d", "no directory any more").end(), "d/b", Some("\"z\"")),
        (d().hardlink("x", "nowhere").end(), "a", Some("\"x\"")),
        (d().hardlink("x", "d").end(), "a", Some("\"x\"")),
    ] {
        let (_, result) = settled(&[lower.clone(), middle, d().hardlink("z", target).end()]);
        match (result, error) {
            (Ok(()), None) => {}
            (Err(found @ TreeError::Image { .. }), Some(part)) => {
                assert!(found.to_string().contains(part), "{found}");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_opaque_root_hides_everything_below() {
    if !root() {
        return;
    }
    let (trees, result) = settled(&[
        Maker::default().file("a", "").file("d/x", "").file("f", "").end(),
        Maker::default().file(".wh..wh..opq", "").file("d/y", "").file("f", "new").end(),
    ]);
    result.unwrap();
    assert_eq!(
        trees[1].lines(),
        ["a whiteout", "d dir 755 0:0 opaque", "d/y file 644 0:0 \"\"", "f file 644 0:0 \"new\""]
    );
}
