//! ADD of archives: BuildKit's rules (the cases `add-tar-*` of the conformance data).

use super::copying::{from_context, take, to, what};
use super::*;
use crate::chmod::Chmod;
use crate::engine::{Destination, Owner};
use crate::tree::TreeError;

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
