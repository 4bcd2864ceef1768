//! Layers and archives that mean harm (research: attack cases 23 to 38), and legitimate ones that look like it.

use std::io::Read;

use super::unpacking::{refused, unpacked};
use super::*;
use crate::tree::{remove, unpack};

#[test]
fn names_that_lead_out_stay_in() {
    if !root() {
        return;
    }
    // (entries, what must come of them)
    type Case = (fn(Maker) -> Maker, &'static [&'static str]);
    let cases: [Case; 8] = [
        (|m| m.file("../../x", "1"), &["x"]),
        (|m| m.file("/x", "1"), &["x"]),
        (|m| m.file("a/../../x", "1"), &["x"]),
        (|m| m.symlink("evil", "../../..").file("evil/tini", "1"), &["evil", "tini"]),
        (|m| m.symlink("evil", "/").file("evil/etc/tini", "1"), &["etc", "etc/tini", "evil"]),
        // A sonar-scanner image has such a link, and means it.
        (
            |m| {
                m.dir("usr/lib/jvm/")
                    .dir("etc/ssl/")
                    .symlink("usr/lib/jvm/cacerts", "../../../../../etc/ssl")
                    .file("usr/lib/jvm/cacerts/x", "1")
            },
            &["etc", "etc/ssl", "etc/ssl/x", "usr", "usr/lib", "usr/lib/jvm", "usr/lib/jvm/cacerts"],
        ),
        // The target is in a layer below: it is made where it will be.
        (|m| m.symlink("lib", "usr/lib").file("lib/so", "1"), &["lib", "usr", "usr/lib", "usr/lib/so"]),
        (|m| m.symlink("evil", "../..").file("evil/.wh.gone", ""), &["evil", "gone"]),
    ];
    for (make, expected) in cases {
        let (tree, _) = unpacked(&make(Maker::default()).end());
        assert_eq!(tree.show().into_keys().collect::<Vec<_>>(), expected);
        tree.assert_contained();
    }
}

#[test]
fn a_hardlink_never_leaves_the_tree() {
    if !root() {
        return;
    }
    let outside = std::fs::read("/etc/passwd").unwrap_or_default();
    for target in ["/etc/passwd", "../../../../../../../../etc/passwd", "l/passwd"] {
        let (tree, unpacked) = unpacked(&Maker::default().symlink("l", "/etc").hardlink("h", target).end());
        assert!(!tree.show().contains_key("h"), "{:?}", tree.lines());
        // Left to the layers below, by its path in the image.
        assert_eq!(
            unpacked.links,
            [("h".to_owned(), if target.starts_with('l') { "l/passwd" } else { "etc/passwd" }.to_owned())]
        );
    }
    assert_eq!(std::fs::read("/etc/passwd").unwrap_or_default(), outside);
    assert!(refused(&Maker::default().dir("d/").hardlink("h", "d").end()).contains("directory"));
}

#[test]
fn a_directory_over_a_link_does_not_touch_its_target() {
    if !root() {
        return;
    }
    let mut open = Maker::header(b'5', "l", "", 0, (5, 5));
    open.set_mode(0o777);
    let (tree, _) = unpacked(&Maker::default().dir("d/").symlink("l", "d").raw(open, b"").end());
    assert_eq!(tree.lines(), ["d dir 755 0:0", "l dir 777 5:5"]);
}

#[test]
fn whiteouts_of_nothing_are_refused() {
    for name in [".wh.", ".wh..", ".wh...", "d/.wh./"] {
        assert!(refused(&Maker::default().file(name, "").end()).contains("whiteout of nothing"), "{name}");
    }
}

#[test]
fn two_sizes_give_one_view() {
    if !root() {
        return;
    }
    // The smuggled header is content, by the PAX size that every reader must take.
    let inner = Maker::default().file("smuggled", "x").end();
    let tar = Maker::default()
        .pax(&[("size", "9"), ("size", &inner.len().to_string())])
        .raw(Maker::header(b'0', "outer", "", 0, (0, 0)), &inner)
        .end();
    let (tree, _) = unpacked(&tar);
    assert_eq!(tree.lines(), [format!("outer file 644 0:0 \"{} bytes\"", inner.len())]);
    // A PAX size is for the entry, not for the long name between them.
    let name = format!("{}/y\0", "n".repeat(120));
    let tar = Maker::default()
        .pax(&[("size", "3")])
        .raw(Maker::header(b'L', "././@LongLink", "", name.len() as u64, (0, 0)), name.as_bytes())
        .raw(Maker::header(b'0', "short", "", 0, (0, 0)), b"abc")
        .end();
    let (tree, _) = unpacked(&tar);
    assert_eq!(tree.show().into_keys().next_back().unwrap(), name.trim_end_matches('\0'));
    // Types without content have none, whatever they say (as in Go).
    let tar = Maker::default().raw(Maker::header(b'5', "d", "", 512, (0, 0)), b"").file("after", "").end();
    assert_eq!(unpacked(&tar).0.show().into_keys().collect::<Vec<_>>(), ["after", "d"]);
}

#[test]
fn malformed_archives_are_refused() {
    let field = |range: std::ops::Range<usize>, value: &'static [u8]| {
        let mut header = Maker::header(b'0', "x", "", 0, (0, 0));
        header.as_mut_bytes()[range.start..range.start + value.len()].copy_from_slice(value);
        Maker::default().raw(header, b"").end()
    };
    let pax = |data: &str| {
        let header = Maker::header(b'x', "p", "", data.len() as u64, (0, 0));
        Maker::default().raw(header, data.as_bytes()).file("x", "").end()
    };
    let mut checksum = Maker::default().file("x", "").end();
    checksum[0] ^= 1;
    let mut one_zero_block = vec![0; 512];
    one_zero_block.extend(Maker::default().file("x", "").end());
    let long = "x".repeat(5000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("negative size", field(124..136, &[0xff; 12])),
        (
            "huge size",
            field(124..136, &[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        ),
        ("size that is no number", field(124..136, b"12z4")),
        ("negative owner", field(108..116, &[0xff; 8])),
        ("owner beyond the map", field(108..116, b"0200001\0")),
        ("unknown type", field(156..157, b"Z")),
        ("sparse type", field(156..157, b"S")),
        ("checksum", checksum),
        ("one zero block", one_zero_block),
        ("half a header", Maker::default().file("x", "").bytes[..300].to_vec()),
        ("half a file", Maker::default().raw(Maker::header(b'0', "x", "", 1000, (0, 0)), b"1").bytes),
        ("PAX without length", pax("path=x\n")),
        ("PAX of length 0", pax("0 path=x\n")),
        ("PAX length beyond", pax("99 path=x\n")),
        ("PAX without newline", pax("9 path=xy")),
        ("PAX without key", pax("5 =x\n")),
        ("PAX size no number", Maker::default().pax(&[("size", "-1")]).file("x", "").end()),
        ("PAX owner overflow", Maker::default().pax(&[("uid", "99999999999999999999")]).file("x", "").end()),
        ("PAX mtime", Maker::default().pax(&[("mtime", "1e9")]).file("x", "").end()),
        ("PAX path with NUL", Maker::default().pax(&[("path", "a\0b")]).file("x", "").end()),
        ("PAX sparse", Maker::default().pax(&[("GNU.sparse.major", "1")]).file("x", "").end()),
        ("long path", Maker::default().pax(&[("path", &long)]).file("x", "").end()),
        ("long component", Maker::default().pax(&[("path", &long[..256])]).file("x", "").end()),
        ("deep path", Maker::default().pax(&[("path", &"d/".repeat(401))]).file("x", "").end()),
        ("huge PAX header", Maker::default().raw(Maker::header(b'x', "p", "", 1 << 30, (0, 0)), b"").end()),
        ("huge long name", Maker::default().raw(Maker::header(b'L', "p", "", 1 << 30, (0, 0)), b"").end()),
        ("a link's loop", Maker::default().symlink("a", "b").symlink("b", "a").file("a/x", "").end()),
        ("a file as a parent", Maker::default().file("a", "").file("a/x", "").end()),
        ("not gzip", b"\x1f\x8b\x08garbage".to_vec()),
        ("not zstd", b"\x28\xb5\x2f\xfdgarbage".to_vec()),
        ("bzip2", b"BZh91AY&SY".to_vec()),
    ];
    for (what, tar) in cases {
        let error = refused(&tar);
        assert!(!error.is_empty(), "{what}");
    }
}

#[test]
fn bombs_end_at_a_limit() {
    // A window of 2 GiB would be memory that a 20-byte blob asks for: `zstd --ultra --long=31`.
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    wide.window_log(31).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(1 << 20), &mut wide).unwrap();
    let error = refused(&wide.finish().unwrap());
    assert!(error.contains("memory") || error.contains("window") || error.contains("parameter"), "{error}");

    let mut measured = crate::tree::decompress::Measured::new(std::io::repeat(0), 100_000);
    let error = std::io::copy(&mut measured, &mut std::io::sink()).unwrap_err().to_string();
    assert!(error.contains("100000"), "{error}");
}

#[test]
fn attributes_of_overlayfs_and_of_the_system_are_dropped() {
    if !root() {
        return;
    }
    let cap = "\u{1}\0\0\u{2}\0 \0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let tar = Maker::default()
        .pax(&[
            ("SCHILY.xattr.user.overlay.redirect", "/etc"),
            ("SCHILY.xattr.user.overlay.opaque", "y"),
            ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("SCHILY.xattr.trusted.x", "y"),
            ("SCHILY.xattr.security.capability", cap),
            ("SCHILY.xattr.user.keep", "1"),
        ])
        .file("f", "")
        .pax(&[("SCHILY.xattr.user.overlay.opaque", "y")])
        .dir("d/")
        .end();
    let (tree, _) = unpacked(&tar);
    assert_eq!(tree.lines(), ["d dir 755 0:0", &format!("f file 644 0:0 \"\" cap {}", hex::encode(cap))]);
    let f = at::open_file(&tree.fd, b"f").unwrap();
    let mut names = [0u8; 200];
    let size = rustix::fs::flistxattr(&f, &mut names).unwrap();
    assert_eq!(
        &names[..size],
        b"user.keep\0security.capability\0".as_slice(),
        "{:?}",
        String::from_utf8_lossy(&names[..size])
    );
}

#[test]
fn a_second_archive_after_the_end_is_not_unpacked() {
    let tar = [Maker::default().file("a", "").end(), Maker::default().file("b", "").end()].concat();
    let (tree, unpacked) = unpacked(&tar);
    assert_eq!(tree.show().into_keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(unpacked.size, tar.len() as u64);
}

#[test]
fn system_files_of_an_image_may_be_links() {
    if !root() {
        return;
    }
    let tar = Maker::default()
        .symlink("dev", "/proc/self/fd")
        .symlink("proc", "/etc")
        .symlink("etc/resolv.conf", "../../../../run/x")
        .file(".dockerenv", "")
        .file("dev/0", "")
        .end();
    let (tree, _) = unpacked(&tar);
    tree.assert_contained();
    // `/proc/self/fd` is a path in the image, and there `proc` leads to `etc`.
    assert_eq!(tree.show()["etc/self/fd/0"], "file 644 0:0 \"\"");
}

#[test]
fn removing_is_not_stopped_by_depth() {
    let tree = Tree::with("mkdir victim; touch keep");
    let mut here = at::open_dir(&tree.fd, b"victim").unwrap();
    for _ in 0..5000 {
        rustix::fs::mkdirat(&here, "deeper-than-any-path-can-name", Mode::from_raw_mode(0o700)).unwrap();
        here = at::open_dir(&here, b"deeper-than-any-path-can-name").unwrap();
    }
    drop(here);
    tree.run("ln -s ../keep victim/l; touch victim/f; mkdir victim/e");
    remove(tree.fd(), "victim").unwrap();
    remove(tree.fd(), "victim").unwrap();
    assert_eq!(tree.show().into_keys().collect::<Vec<_>>(), ["keep"]);
    for name in ["..", ".", "", "a/b"] {
        assert!(remove(tree.fd(), name).is_err());
    }
}

mod any {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Errors are fine, panics and escapes are not.
        #[test]
        fn any_change_to_a_layer_is_survived(changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..20)) {
            let mut tar = Maker::default()
                .dir("d/")
                .file("d/f", "content")
                .symlink("l", "d")
                .hardlink("h", "d/f")
                .pax(&[("path", "long"), ("mtime", "1.5")])
                .file("d/.wh.x", "")
                .end();
            for (at, value) in changes {
                let at = at % tar.len();
                tar[at] = value;
                // Half of them with a checksum that fits.
                if value % 2 == 0 {
                    let start = at / 512 * 512;
                    let sum: u32 = (start..start + 512).map(|i| if (148..156).contains(&(i - start)) { 32 } else { tar[i].into() }).sum();
                    tar[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let tree = Tree::new();
            let _ = unpack(file(&tar), "application/vnd.oci.image.layer.v1.tar", tree.fd(), None);
            tree.assert_contained();
        }
    }
}
