//! Archives that would cost more than their length, and archives made at random: errors are fine, panics, escapes and
//! hanging are not. Limits in seconds are guards against hanging, far above what each takes.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::Duration;

use cpu_time::ThreadTime;
use proptest::prelude::*;
use proptest::sample::select;

use super::unpacking::refused;
use super::*;
use crate::engine::Destination;
use crate::tree::archive;
use crate::tree::decompress::layer_tar;
use crate::tree::place::remove_below;
use crate::tree::{copy_stream, unpack, unpack_plain, write_inline};

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Measures what the thread had of the processor, so that a busy machine does not count.
fn guarded<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let began = ThreadTime::now();
    let result = work();
    let took = began.elapsed();
    println!("{what}: {took:?}");
    assert!(took < Duration::from_secs(30), "{what} took {took:?}");
    result
}

#[test]
fn a_size_beyond_all_numbers_is_refused() {
    for size in [u64::MAX, u64::MAX - 511, 1 << 63] {
        let tar = Maker::default().pax(&[("size", &size.to_string())]).file("f", "x").file("g", "").end();
        let error = refused(&tar);
        assert!(error.contains("at most"), "{error}");
    }
    // One that fits a number and not the archive ends with the archive.
    let tar = Maker::default().pax(&[("size", &i64::MAX.to_string())]).file("f", "x").end();
    assert!(refused(&tar).contains("ends within a file"));
}

#[test]
fn many_attributes_are_read_once_and_the_last_of_a_name_wins() {
    let mut data = String::new();
    for n in 0.. {
        let rest = format!(" SCHILY.xattr.{n:x}=\n");
        data.push_str(&format!("{}{rest}", rest.len() + 2));
        if data.len() > (1 << 20) - 100 {
            break;
        }
    }
    let header = Maker::header(b'x', "pax", "", data.len() as u64, (0, 0));
    let tar = Maker::default().raw(header, data.as_bytes()).file("f", "").end();
    let mut reader = TarReader::new(tar.as_slice());
    let entry = guarded("attributes", || reader.next()).unwrap().unwrap();
    assert!(entry.xattrs.len() > 40_000, "{}", entry.xattrs.len());

    let twice = [("SCHILY.xattr.a", "1"), ("SCHILY.xattr.b", "2"), ("SCHILY.xattr.a", "3")];
    let tar = Maker::default().pax(&twice).file("f", "").end();
    let entry = TarReader::new(tar.as_slice()).next().unwrap().unwrap();
    assert_eq!(entry.xattrs, [(b"b".to_vec(), b"2".to_vec()), (b"a".to_vec(), b"3".to_vec())]);
}

#[test]
fn what_is_below_a_path_is_found_by_order() {
    let keys = ["a", "a-b", "a.b/c", "a/", "a/b", "a/b/c", "a0", "a/\u{ff}", "ab", "b"];
    let mut map: BTreeMap<Vec<u8>, ()> = keys.iter().map(|k| (k.as_bytes().to_vec(), ())).collect();
    remove_below(&mut map, b"a");
    let left: Vec<_> = map.into_keys().map(|k| String::from_utf8(k).unwrap()).collect();
    assert_eq!(left, ["a", "a-b", "a.b/c", "a0", "ab", "b"]);
}

#[test]
fn implied_directories_do_not_slow_every_entry() {
    if !root() {
        return;
    }
    // 200 directories that no entry names, and as many files each of which replaces what was there.
    let mut maker = Maker::default();
    for n in 0..200 {
        maker = maker.file(&format!("{}/{n}/f", n % 7), "");
    }
    for n in 0..200 {
        maker = maker.file(&format!("x{n}"), "").dir(&format!("x{n}/")).file(&format!("x{n}"), "");
    }
    let tree = Tree::new();
    let unpacked =
        guarded("implied directories", || unpack(file(&maker.end()), TAR, tree.fd(), None)).unwrap();
    assert_eq!(unpacked.implied.len(), 207);
}

#[test]
fn a_labyrinth_of_links_is_left_early() {
    if !root() {
        return;
    }
    let mut maker = Maker::default().dir("d/");
    // Each goes to and fro, then on to the next.
    let fro = "d/../".repeat(700);
    for n in 0..39 {
        maker = maker.pax(&[("linkpath", &format!("{fro}l{}", n + 1))]).symlink(&format!("l{n}"), "x");
    }
    maker = maker.symlink("l39", "d");
    // Deep, and by a link of usual size: that is nobody's harm.
    let deep = "p/".repeat(390);
    let tar = maker
        .symlink("to", &deep[..80])
        .pax(&[("path", &format!("to/{}f", &deep[80..]))])
        .file("f", "")
        .end();
    let tree = Tree::new();
    guarded("deep", || unpack(file(&tar), TAR, tree.fd(), None)).unwrap();

    let bad = [&tar[..tar.len() - 1024], &Maker::default().file("l0/f", "").end()].concat();
    let error = guarded("a labyrinth", || refused(&bad));
    assert!(error.contains("symbolic links"), "{error}");
}

/// A compressed stream again and again, up to a megabyte.
fn repeated(one: &[u8]) -> Vec<u8> {
    one.repeat((1 << 20) / one.len())
}

#[test]
fn many_empty_streams_are_read_in_time() {
    let mut gzip = Vec::new();
    flate2::read::GzEncoder::new(&b""[..], flate2::Compression::fast()).read_to_end(&mut gzip).unwrap();
    let mut bzip2 = Vec::new();
    bzip2::read::BzEncoder::new(&b""[..], bzip2::Compression::best()).read_to_end(&mut bzip2).unwrap();
    let zstd = zstd::encode_all(&b""[..], 1).unwrap();
    // Skippable frames of nothing (RFC 8878 3.1.2).
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0];
    for (what, bytes) in
        [("gzip", repeated(&gzip)), ("zstd", repeated(&zstd)), ("skipped", repeated(&skipped))]
    {
        let mut out = Vec::new();
        let read = guarded(what, || layer_tar(bytes.as_slice()).unwrap().read_to_end(&mut out));
        assert!(read.is_err() || out.is_empty(), "{what}");
    }
    // What `xz -9` makes of one byte, and of none: each of the former asks for a dictionary of 64 MiB.
    let xz = hex::decode(
        "fd377a585a000004e6d6b446020021011c00000010cf58cc010000780000000045aeef83f8ee160a00011901a52c81cc1fb6f37d010000000004595a",
    );
    let none = hex::decode("fd377a585a000004e6d6b446000000001cdf44211fb6f37d010000000004595a");
    for (what, bytes) in [
        ("bzip2", repeated(&bzip2)),
        ("gzip", repeated(&gzip)),
        ("xz", repeated(&xz.unwrap())),
        ("empty xz", repeated(&none.unwrap())),
    ] {
        assert!(!guarded(what, || archive::is_archive(&bytes)), "{what}");
        let read = guarded(what, || crate::tree::survey(bytes.as_slice(), 1 << 20));
        assert!(what != "bzip2" || read.unwrap_err().to_string().contains("bzip2 streams"));
    }
    // Streams that bring something may be many, and empty ones a few.
    let mut some = Vec::new();
    let content = [7u8; 5000];
    bzip2::read::BzEncoder::new(&content[..], bzip2::Compression::fast()).read_to_end(&mut some).unwrap();
    let parts = [some.repeat(600), bzip2.repeat(3), some].concat();
    let mut out = Vec::new();
    super::super::decompress::decompress(super::super::decompress::Format::Bzip2, parts.as_slice())
        .unwrap()
        .read_to_end(&mut out)
        .unwrap();
    assert_eq!(out.len(), 601 * content.len());
}

fn to(path: &str) -> Destination {
    Destination { path: path.to_owned(), sources: 1, owner: None, mode: None, unpack: true, link: false }
}

/// One entry: kind, name, link, PAX records, content, and a size that may be a lie.
type Item = (u8, String, String, Vec<(String, String)>, String, Option<u64>);

/// Names and targets that want out, `@` for the directory around the tree.
fn path() -> impl Strategy<Value = String> {
    let part = select(vec![
        "a",
        "b",
        "l",
        "..",
        ".",
        "",
        ".wh.a",
        ".wh..wh..opq",
        ".wh.",
        "@",
        "\u{e9}",
        "proc",
        "dev",
    ]);
    (any::<bool>(), prop::collection::vec(part, 1..5))
        .prop_map(|(rooted, parts)| format!("{}{}", if rooted { "/" } else { "" }, parts.join("/")))
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let key = select(vec![
        "path",
        "linkpath",
        "size",
        "uid",
        "mtime",
        "SCHILY.xattr.user.x",
        "SCHILY.xattr.security.capability",
        "GNU.sparse.x",
        "x",
    ]);
    let value = prop_oneof![path(), "-?[0-9]{1,21}(\\.[0-9]{0,12})?", ".{0,9}"];
    let records = prop::collection::vec((key.prop_map(str::to_owned), value), 0..3);
    let kind = select(b"0000111222555346xgKLS7Z\0".to_vec());
    let item = (kind, path(), path(), records, ".{0,9}", prop::option::weighted(0.1, any::<u64>()));
    prop::collection::vec(item, 0..14)
}

fn build(items: &[Item], around: &str) -> Vec<u8> {
    let mut maker = Maker::default();
    for (kind, name, link, records, content, size) in items {
        let (name, link) = (name.replace('@', around), link.replace('@', around));
        if !records.is_empty() {
            let records: Vec<_> = records.iter().map(|(k, v)| (k.as_str(), v.replace('@', around))).collect();
            let records: Vec<_> = records.iter().map(|(k, v)| (*k, v.as_str())).collect();
            maker = maker.pax(&records);
        }
        let fits = |text: &str| text[..text.floor_char_boundary(99)].to_owned();
        let content =
            if matches!(kind, b'0' | b'7' | 0 | b'x' | b'g' | b'K' | b'L') { content.as_str() } else { "" };
        let mut header = Maker::header(*kind, &fits(&name), &fits(&link), content.len() as u64, (0, 0));
        if let Some(size) = size {
            header.set_size(size % 2000);
        }
        maker = maker.raw(header, content.as_bytes());
    }
    maker.end()
}

fn unpack_and_add(tree: &Tree, tar: &[u8]) {
    let _ = unpack(file(tar), TAR, tree.fd(), None);
    tree.assert_contained();
    let added = Tree::new();
    let _ = unpack_plain(added.fd(), file(tar));
    // As ADD does, which looks at what it is first.
    let (read, write) = rustix::pipe::pipe().unwrap();
    if tar.len() < 60_000 {
        let mut from = tar;
        super::super::write_file("x", 0o644, 0, tar.len() as u64, &mut from, write.into()).unwrap();
        let _ = copy_stream(added.fd(), &to("/a/../b/"), read.into());
    }
    added.assert_contained();
    let mut reader = TarReader::new(tar);
    while let Ok(Some(entry)) = reader.next() {
        assert!(entry.size <= i64::MAX as u64 && entry.path.len() <= 4096);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(250))]

    #[test]
    fn no_archive_leaves_its_tree(items in items()) {
        let tree = Tree::new();
        let around = tree.around.path().to_str().unwrap().to_owned();
        unpack_and_add(&tree, &build(&items, &around));
    }

    #[test]
    fn any_bytes_are_an_archive_or_an_error(bytes: Vec<u8>, mark in select(vec![&b""[..], b"\x1f\x8b\x08", b"BZh9", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"])) {
        let bytes = [mark, &bytes].concat();
        archive::is_archive(&bytes);
        if let Ok(mut tar) = layer_tar(bytes.as_slice()) {
            let _ = std::io::copy(&mut tar, &mut std::io::sink());
        }
        unpack_and_add(&Tree::new(), &bytes);
    }
}

#[test]
fn an_inline_file_that_looks_like_an_archive_is_none() {
    let tree = Tree::new();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let data = crate::engine::InlineFile { name: "x".into(), data: "\u{1f}\u{8b}\u{8}".into() };
    write_inline(&data, 0, write.into()).unwrap();
    copy_stream(tree.fd(), &to("/"), read.into()).unwrap();
    assert_eq!(tree.lines(), ["x file 644 0:0 \"\\u{1f}\\u{8b}\\u{8}\""]);
}
