//! Archives as they come, and as somebody crafted them.

use std::io::{Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;
use crate::error::Kind;

fn header(kind: EntryType, path: &[u8], size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o600);
    header.set_mtime(1000);
    header.set_cksum();
    header
}

fn link(kind: EntryType, path: &[u8], target: &[u8]) -> Header {
    let mut header = header(kind, path, 0);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_cksum();
    header
}

fn file(path: &str, text: &str) -> (Header, Vec<u8>) {
    (header(EntryType::Regular, path.as_bytes(), text.len() as u64), text.as_bytes().to_vec())
}

fn tar_of(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (header, content) in entries {
        builder.append(header, content.as_slice()).expect("appended");
    }
    builder.into_inner().expect("a tar")
}

fn stored(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).and_then(|()| file.rewind()).expect("written");
    file
}

fn unpacked(bytes: &[u8]) -> Result<tempfile::TempDir, Fault> {
    let dir = tempfile::tempdir().expect("a directory");
    unpack(stored(bytes), dir.path(), &mut Budget::default()).map(|()| dir)
}

fn read(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap_or_else(|e| format!("{name}: {e}"))
}

fn plain() -> Vec<u8> {
    let mut run = header(EntryType::Regular, b"d/run", 2);
    run.set_mode(0o4700);
    run.set_cksum();
    tar_of(&[
        (header(EntryType::XGlobalHeader, b"pax_global_header", 0), vec![]),
        (header(EntryType::Directory, b"./d/", 0), vec![]),
        (run, b"x\n".to_vec()),
        file("Dockerfile", "FROM scratch\n"),
        (link(EntryType::Symlink, b"link", b"/etc/passwd"), vec![]),
        (link(EntryType::Link, b"hard", b"Dockerfile"), vec![]),
        file("Dockerfile", "FROM other\n"),
    ])
}

#[test]
fn every_compression_gives_the_same_tree() {
    let tar = plain();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).expect("written");
    let mut xz =
        lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).expect("a writer");
    xz.write_all(&tar).expect("written");
    let all = [
        gzip.finish().expect("gzip"),
        zstd::encode_all(tar.as_slice(), 1).expect("zstd"),
        xz.finish().expect("xz"),
        tar,
    ];
    for bytes in all {
        let dir = unpacked(&bytes).expect("unpacked");
        assert_eq!(
            (read(dir.path(), "Dockerfile"), read(dir.path(), "hard")),
            ("FROM other\n".into(), "FROM scratch\n".into())
        );
        let run = std::fs::metadata(dir.path().join("d/run")).expect("there");
        assert_eq!((run.permissions().mode() & 0o7777, run.mtime()), (0o755, 1000));
        assert_eq!(std::fs::metadata(dir.path().join("d")).expect("there").mtime(), 1000);
        assert_eq!(std::fs::metadata(dir.path().join("Dockerfile")).expect("there").mode() & 0o7777, 0o644);
        let link = std::fs::read_link(dir.path().join("link")).expect("a link");
        assert_eq!(link, Path::new("/etc/passwd"), "kept as it is; nobody follows it");
    }
}

#[test]
fn long_names_come_from_extended_headers() {
    let long = format!("{}/file", "d".repeat(150));
    let mut builder = Builder::new(Vec::new());
    let mut gnu = Header::new_gnu();
    gnu.set_size(1);
    gnu.set_mode(0o644);
    builder.append_data(&mut gnu, &long, b"x".as_slice()).expect("appended");
    let record = "30 path=pax/name\n30 mtime=12.5\n".to_owned();
    let record: String = record
        .lines()
        .map(|l| {
            let body = &l[2..];
            let length = body.len() + 3;
            format!("{length}{body}\n")
        })
        .collect();
    builder
        .append(&header(EntryType::XHeader, b"x", record.len() as u64), record.as_bytes())
        .expect("appended");
    builder.append(&header(EntryType::Regular, b"short", 1), b"y".as_slice()).expect("appended");
    let dir = unpacked(&builder.into_inner().expect("a tar")).expect("unpacked");
    assert_eq!((read(dir.path(), &long), read(dir.path(), "pax/name")), ("x".into(), "y".into()));
    assert_eq!(std::fs::metadata(dir.path().join("pax/name")).expect("there").mtime(), 12);
}

#[test]
fn nothing_is_written_outside() {
    let outside = tempfile::tempdir().expect("a directory");
    let there = outside.path().join("x");
    let absolute = outside.path().to_str().expect("text").as_bytes().to_vec();
    let dangling = tar_of(&[(link(EntryType::Symlink, b"out", &absolute), vec![]), file("out/x", "bad")]);
    assert!(unpacked(&dangling).is_err(), "the link leads nowhere inside the tree");
    let absolute_name = tar_of(&[file("/etc/x", "inside")]);
    assert_eq!(read(unpacked(&absolute_name).expect("inside").path(), "etc/x"), "inside");
    let through = tar_of(&[(link(EntryType::Symlink, b"up", b"../../.."), vec![]), file("up/x", "inside")]);
    assert_eq!(read(unpacked(&through).expect("inside").path(), "x"), "inside");
    let replaced = tar_of(&[
        (link(EntryType::Symlink, b"x", there.to_str().expect("text").as_bytes()), vec![]),
        file("x", "inside"),
    ]);
    assert_eq!(read(unpacked(&replaced).expect("inside").path(), "x"), "inside");
    assert!(!there.exists());
    for (entries, word) in [
        (vec![file("../x", "")], "leads out"),
        (vec![file("a/../../x", "")], "leads out"),
        (vec![(link(EntryType::Link, b"h", b"../../etc/passwd"), vec![])], "leads out"),
        (vec![(link(EntryType::Link, b"h", b"none"), vec![])], "no file in it"),
        (vec![(header(EntryType::Char, b"dev", 0), vec![])], "neither file"),
        (vec![(header(EntryType::Fifo, b"pipe", 0), vec![])], "neither file"),
        (vec![file("f", ""), file("f/x", "")], "no directory"),
    ] {
        let fault = unpacked(&tar_of(&entries)).expect_err(word);
        assert!(fault.kind == Kind::Invalid && fault.message.contains(word), "{fault}");
    }
}

#[test]
fn what_is_no_archive_or_too_much_is_refused() {
    for bytes in [&b""[..], b"<html>not found</html>", &[0x1f, 0x8b, 8, 0, 0][..], b"PK\x03\x04junk"] {
        let fault = unpacked(bytes).expect_err("no archive");
        assert_eq!(fault.kind, Kind::Invalid, "{fault}");
    }
    let mut cut = plain();
    cut.truncate(1600);
    assert_eq!(unpacked(&cut).expect_err("cut short").kind, Kind::Invalid);
    let mut limited = Limited { input: std::io::repeat(0), left: 10 };
    let error = std::io::copy(&mut limited, &mut std::io::sink()).expect_err("a limit");
    assert_eq!(read_error(&error).kind, Kind::TooLarge);
    let mut budget = Budget::default();
    budget.bytes(crate::limits::MAX_BYTES - 3).expect("fits");
    let dir = tempfile::tempdir().expect("a directory");
    let fault = unpack(stored(&tar_of(&[file("a", "four")])), dir.path(), &mut budget).expect_err("too much");
    assert_eq!(fault.kind, Kind::TooLarge);
}

#[test]
fn a_zip_keeps_modes_and_links() {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    writer.add_directory("d/", options).expect("added");
    writer.start_file("d/run", options.unix_permissions(0o700)).expect("added");
    writer.write_all(b"#!/bin/sh\n").expect("written");
    writer.add_symlink("link", "d/run", options).expect("added");
    let bytes = writer.finish().expect("a zip").into_inner();
    let dir = unpacked(&bytes).expect("unpacked");
    assert_eq!(read(dir.path(), "link"), "#!/bin/sh\n");
    assert_eq!(std::fs::metadata(dir.path().join("d/run")).expect("there").mode() & 0o7777, 0o755);
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    writer.start_file("../x", options).expect("added");
    let fault = unpacked(&writer.finish().expect("a zip").into_inner()).expect_err("leads out");
    assert!(fault.message.contains("leads out"), "{fault}");
}

#[test]
fn layers_stand_on_one_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let below = tar_of(&[file("a", "1"), file("d/x", "1"), file("d/y", "1"), file("e", "1")]);
    let above = tar_of(&[
        file(".wh.a", ""),
        file("d/new", "2"),
        file("d/.wh..wh..opq", ""),
        (header(EntryType::Directory, b"e", 0), vec![]),
        (header(EntryType::Char, b"dev", 0), vec![]),
        file(".wh..wh.plnk", ""),
    ]);
    for bytes in [below, above] {
        unpack_layer(stored(&bytes), dir.path(), &mut Budget::default()).expect("unpacked");
    }
    let mut names: Vec<String> = std::fs::read_dir(dir.path().join("d"))
        .expect("there")
        .map(|e| e.expect("an entry").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    assert_eq!(names, ["new"]);
    assert!(
        !dir.path().join("a").exists() && dir.path().join("e").is_dir() && !dir.path().join("dev").exists()
    );
}
