//! Shared by the tests of this module: trees in temporary directories, written and read back as text.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};

use super::at;
use super::tar_read::TarReader;

mod adding;
mod attacks;
mod bounds;
mod copying;
mod diffing;
mod indexing;
mod keeping;
mod round_trip;
mod unpacking;
mod users;

/// Whether this test can run: owners and whiteouts need root.
pub(super) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("not run: owners and whiteouts need root");
    }
    root
}

/// A tree in a temporary directory, with a directory around it that nothing may be written to.
pub(super) struct Tree {
    pub around: tempfile::TempDir,
    pub fd: OwnedFd,
}

impl Tree {
    pub fn new() -> Self {
        rustix::process::umask(Mode::from_raw_mode(0o022));
        let around = tempfile::tempdir().unwrap();
        std::fs::create_dir(around.path().join("tree")).unwrap();
        let fd = rustix::fs::open(around.path().join("tree"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
        Self { around, fd }
    }

    /// With the files that `script` makes; it runs in the tree.
    pub fn with(script: &str) -> Self {
        let tree = Self::new();
        tree.run(script);
        tree
    }

    pub fn run(&self, script: &str) {
        let status = std::process::Command::new("sh")
            .args(["-euc", script])
            .current_dir(self.around.path().join("tree"))
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Every file as `kind mode uid:gid content-or-target`, by path; whiteouts and opaque directories say so.
    pub fn show(&self) -> BTreeMap<String, String> {
        let mut shown = BTreeMap::new();
        show(self.fd(), "", &mut shown);
        shown
    }

    /// The same as lines, for a short comparison.
    pub fn lines(&self) -> Vec<String> {
        self.show().into_iter().map(|(path, what)| format!("{path} {what}")).collect()
    }

    /// That nothing is around the tree but the tree.
    pub fn assert_contained(&self) {
        let around: Vec<_> =
            std::fs::read_dir(self.around.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(around, ["tree"]);
    }
}

fn show(dir: BorrowedFd<'_>, prefix: &str, shown: &mut BTreeMap<String, String>) {
    let dir = at::open_dir(dir, b"").unwrap();
    for name in at::list(dir.as_fd(), b"").unwrap() {
        let stat = at::look(&dir, &name).unwrap().unwrap();
        let path = format!("{prefix}{}", String::from_utf8_lossy(&name));
        let who = format!("{:o} {}:{}", stat.st_mode & 0o7777, stat.st_uid, stat.st_gid);
        let what = match at::kind(&stat) {
            FileType::Directory => {
                let below = at::open_dir(&dir, &name).unwrap();
                show(below.as_fd(), &format!("{path}/"), shown);
                let opaque = at::attribute(&below, super::unpack::OPAQUE).unwrap().is_some();
                format!("dir {who}{}", if opaque { " opaque" } else { "" })
            }
            FileType::RegularFile => {
                let mut file = at::open_file(&dir, &name).unwrap();
                let capability = at::capability(&file).unwrap().map(|c| format!(" cap {}", hex::encode(c)));
                let mut text = Vec::new();
                file.read_to_end(&mut text).unwrap();
                let text = if text.len() > 60 {
                    format!("{} bytes", text.len())
                } else {
                    String::from_utf8_lossy(&text).trim_end().to_owned()
                };
                format!("file {who} {text:?}{}", capability.unwrap_or_default())
            }
            FileType::Symlink => {
                let target = at::read_link(&dir, &name).unwrap();
                format!("link {}:{} {}", stat.st_uid, stat.st_gid, String::from_utf8_lossy(&target))
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => "whiteout".to_owned(),
            FileType::Fifo => format!("fifo {who}"),
            FileType::Socket => "socket".to_owned(),
            other => format!("{other:?}"),
        };
        shown.insert(path, what);
    }
}

/// A file with these bytes, at its start.
pub(super) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

/// Entries for a tar, made field by field so that they may be as wrong as they like.
#[derive(Default)]
pub(super) struct Maker {
    pub bytes: Vec<u8>,
}

impl Maker {
    /// A header with the name as it is.
    pub fn header(kind: u8, name: &str, link: &str, size: u64, owner: (u32, u32)) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(owner.0.into());
        header.set_gid(owner.1.into());
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header.set_cksum();
        header
    }

    pub fn raw(mut self, mut header: tar::Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.bytes.extend(header.as_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, kind: u8, name: &str, link: &str) -> Self {
        self.raw(Self::header(kind, name, link, 0, (0, 0)), b"")
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.raw(Self::header(b'0', name, "", content.len() as u64, (0, 0)), content.as_bytes())
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target)
    }

    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name, target)
    }

    /// PAX records for the next entry.
    pub fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length = (rest..).find(|n| *n == rest + n.to_string().len()).unwrap();
            data.extend(format!("{length} {key}={value}\n").bytes());
        }
        self.raw(Self::header(b'x', "pax", "", data.len() as u64, (0, 0)), &data)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

/// What a tar holds, a line for an entry.
pub(super) fn listing(tar: &[u8]) -> Vec<String> {
    let mut reader = TarReader::new(tar);
    let mut lines = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        let path = String::from_utf8_lossy(&entry.path);
        let link = String::from_utf8_lossy(&entry.link);
        let mut line = format!("{:?} {path} {:o} {}:{}", entry.kind, entry.mode, entry.uid, entry.gid);
        if !link.is_empty() {
            line += &format!(" -> {link}");
        }
        if !content.is_empty() {
            line += &format!(" {:?}", content.trim_end());
        }
        for (name, _) in entry.xattrs {
            line += &format!(" {}", String::from_utf8_lossy(&name));
        }
        lines.push(line);
    }
    lines
}
