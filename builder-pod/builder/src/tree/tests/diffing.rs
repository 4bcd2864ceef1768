//! Differences: what the kernel's overlayfs leaves in an upper directory -> the layer that BuildKit would make of it.

use std::io::Read;

use super::*;
use crate::engine::Diff;
use crate::tree::{TreeError, diff};

/// An upper and a lower directory.
struct Layers {
    lower: Tree,
    upper: Tree,
}

impl Layers {
    /// Runs `change` in a real overlay (mount options as the engine's) over what `base` makes. `None` with a reason
    /// printed where overlays can't be mounted.
    fn run(base: &str, change: &str) -> Option<Self> {
        Self::over(root().then(|| Tree::with(base))?, change)
    }

    fn over(lower: Tree, change: &str) -> Option<Self> {
        let upper = Tree::new();
        let dir = upper.around.path();
        std::fs::create_dir(dir.join("work")).unwrap();
        std::fs::create_dir(dir.join("view")).unwrap();
        let script = format!(
            "mount -t overlay overlay -o userxattr,lowerdir={},upperdir={d}/tree,workdir={d}/work {d}/view || exit 99
             cd {d}/view; {change}",
            lower.around.path().join("tree").display(),
            d = dir.display()
        );
        let status =
            std::process::Command::new("unshare").args(["-m", "sh", "-euc", &script]).status().unwrap();
        if status.code() == Some(99) {
            println!("not run: no overlay can be mounted here");
            return None;
        }
        assert!(status.success(), "{change}");
        Some(Self { lower, upper })
    }

    fn diff(&self, stubs: &[&str]) -> (Vec<u8>, Diff) {
        let stubs: Vec<String> = stubs.iter().map(|s| (*s).to_owned()).collect();
        written(|out| diff(self.upper.fd(), Some(self.lower.fd()), &stubs, None, out, None)).unwrap()
    }

    fn listing(&self) -> Vec<String> {
        listing(&self.diff(&[]).0)
    }
}

/// What `write` writes.
pub(super) fn written(
    write: impl FnOnce(File) -> Result<Diff, TreeError>,
) -> Result<(Vec<u8>, Diff), TreeError> {
    let mut out = file(b"");
    let diff = write(out.try_clone().unwrap())?;
    let mut tar = Vec::new();
    out.rewind().unwrap();
    out.read_to_end(&mut tar).unwrap();
    assert_eq!(diff.bytes, tar.len() as u64);
    assert_eq!(tar.len() % 512, 0);
    Ok((tar, diff))
}

const BASE: &str =
    "mkdir -p d/sub etc tmp; chmod 1777 tmp; echo a > d/a; echo b > d/sub/b; echo one > f; ln f g;
    echo pw > etc/passwd; ln -s d l; touch -d 2001-01-01 d/a d/sub/b f etc/passwd; touch -h -d 2001-01-01 l";

#[test]
fn what_changed_is_written_and_nothing_else() {
    // (change, layer)
    let cases: &[(&str, &[&str])] = &[
        ("true", &[]),
        // New things; the parent first, though it did not change.
        (
            "echo n > d/sub/n",
            &["Directory d/ 755 0:0", "Directory d/sub/ 755 0:0", "File d/sub/n 644 0:0 \"n\""],
        ),
        (
            "mkdir -p n/m; mkfifo n/p; ln -s nowhere n/s",
            &[
                "Directory n/ 755 0:0",
                "Directory n/m/ 755 0:0",
                "Fifo n/p 644 0:0",
                "Symlink n/s 777 0:0 -> nowhere",
            ],
        ),
        // Attributes alone.
        ("chmod 4711 f", &["File f 4711 0:0 \"one\""]),
        ("chown 5:6 d", &["Directory d/ 755 5:6"]),
        ("touch -h -d 2002-01-01 l", &["Symlink l 777 0:0 -> d"]),
        // Copied up and not changed: opened for writing, moved there and back (whole seconds: the content decides).
        (": >> f", &[]),
        ("mv d/a x; mv x d/a", &[]),
        ("echo X > d/a; touch -d 2001-01-01 d/a", &["Directory d/ 755 0:0", "File d/a 644 0:0 \"X\""]),
        // Removed.
        ("rm f", &["File .wh.f 0 0:0"]),
        ("rm -r d", &["File .wh.d 0 0:0"]),
        ("rm d/sub/b", &["Directory d/ 755 0:0", "Directory d/sub/ 755 0:0", "File d/sub/.wh.b 0 0:0"]),
        ("touch n; rm n", &[]),
        // A whiteout comes before its siblings, in the order of names.
        (
            "rm etc/passwd; echo > etc/a; echo > etc/z",
            &[
                "Directory etc/ 755 0:0",
                "File etc/.wh.passwd 0 0:0",
                "File etc/a 644 0:0 \"\"",
                "File etc/z 644 0:0 \"\"",
            ],
        ),
        // A directory in place of another: explicit whiteouts of what is gone, deep down, too.
        (
            "rm -r d; mkdir d; echo z > d/z",
            &["Directory d/ 755 0:0", "File d/.wh.a 0 0:0", "File d/.wh.sub 0 0:0", "File d/z 644 0:0 \"z\""],
        ),
        (
            "rm -r d; mkdir -p d/sub; echo z > d/sub/z",
            &[
                "Directory d/ 755 0:0",
                "File d/.wh.a 0 0:0",
                "Directory d/sub/ 755 0:0",
                "File d/sub/.wh.b 0 0:0",
                "File d/sub/z 644 0:0 \"z\"",
            ],
        ),
        // One kind for another.
        ("rm -r d; echo f > d", &["File d 644 0:0 \"f\""]),
        ("rm f; mkdir f; echo i > f/i", &["Directory f/ 755 0:0", "File f/i 644 0:0 \"i\""]),
        ("rm l; mkdir l", &["Directory l/ 755 0:0"]),
        // Renamed: a directory is copied (no redirect), a whiteout stays.
        (
            "mv d e",
            &[
                "File .wh.d 0 0:0",
                "Directory e/ 755 0:0",
                "File e/a 644 0:0 \"a\"",
                "Directory e/sub/ 755 0:0",
                "File e/sub/b 644 0:0 \"b\"",
            ],
        ),
        // Hardlinks: the first name has the content. A copied-up name leaves its pair, as in Docker.
        (
            "mkdir n; echo x > n/one; ln n/one n/two; mkdir n/s; ln n/one n/s/three",
            &[
                "Directory n/ 755 0:0",
                "File n/one 644 0:0 \"x\"",
                "Directory n/s/ 755 0:0",
                "Hardlink n/s/three 644 0:0 -> n/one",
                "Hardlink n/two 644 0:0 -> n/one",
            ],
        ),
        ("echo changed > f", &["File f 644 0:0 \"changed\""]),
        ("chmod 600 f", &["File f 600 0:0 \"one\""]),
        // The sticky bit of a parent that was only copied up.
        ("echo t > tmp/t", &["Directory tmp/ 1777 0:0", "File tmp/t 644 0:0 \"t\""]),
    ];
    for (change, expected) in cases {
        let Some(layers) = Layers::run(BASE, change) else { return };
        assert_eq!(layers.listing(), *expected, "{change}");
    }
}

#[test]
fn sockets_are_left_out_and_what_they_replaced_is_gone() {
    let Some(layers) = Layers::run(BASE, "rm f") else { return };
    let path = |name| layers.upper.around.path().join("tree").join(name);
    std::fs::remove_file(path("f")).unwrap();
    let _listeners = ["f", "new"].map(|name| std::os::unix::net::UnixListener::bind(path(name)).unwrap());
    assert_eq!(layers.listing(), ["File .wh.f 0 0:0"]);
}

#[test]
fn nothing_makes_the_empty_layer() {
    let (upper, lower) = (Tree::new(), Tree::new());
    let (tar, found) = written(|out| diff(upper.fd(), Some(lower.fd()), &[], None, out, None)).unwrap();
    assert_eq!((found.entries, tar.len()), (0, 1024));
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&tar));
    assert_eq!(digest, "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef");
}

#[test]
fn stubs_are_left_out_while_they_are_empty() {
    let change = "mkdir -p proc run/secrets d/new; : > etc/resolv.conf; : > etc/hosts; echo x > etc/hostname; : > run/secrets/id; : > empty";
    let Some(layers) = Layers::run(BASE, change) else { return };
    let stubs = [
        "proc",
        "/run/secrets/",
        "run",
        "run/secrets/id",
        "etc/resolv.conf",
        "etc/hosts",
        "etc/hostname",
        "d/new",
        "etc",
    ];
    assert_eq!(
        listing(&layers.diff(&stubs).0),
        ["File empty 644 0:0", "Directory etc/ 755 0:0", "File etc/hostname 644 0:0 \"x\""]
    );
    // Not stubs: everything shows.
    let all = layers.listing();
    assert!(all.contains(&"Directory proc/ 755 0:0".to_owned()) && all.len() == 11, "{all:?}");
}

#[test]
fn names_and_numbers_that_do_not_fit_go_to_pax() {
    if !root() {
        return;
    }
    let tree = Tree::new();
    let long = "n".repeat(200);
    let deep = ["d".repeat(90), "e".repeat(90)].join("/");
    tree.run(&format!(
        "mkdir -p {deep}; echo 1 > {deep}/f; echo 2 > {long}; ln {long} hard; ln -s {long} soft; echo 3 > ünï;
         touch -d '1960-01-01 00:00:00 UTC' ünï; touch -d @1.9 hard; chown 4000000:3 soft -h"
    ));
    let (tar, _) = written(|out| diff(tree.fd(), None, &[], None, out, None)).unwrap();
    let lines = listing(&tar);
    assert!(lines.contains(&format!("File {deep}/f 644 0:0 \"1\"")), "{lines:?}");
    assert!(lines.contains(&"File hard 644 0:0 \"2\"".to_owned()), "{lines:?}");
    assert!(lines.contains(&format!("Hardlink {long} 644 0:0 -> hard")), "{lines:?}");
    assert!(lines.contains(&format!("Symlink soft 777 4000000:3 -> {long}")), "{lines:?}");
    assert!(lines.contains(&"File ünï 644 0:0 \"3\"".to_owned()), "{lines:?}");
    let mut reader = TarReader::new(tar.as_slice());
    let mut times = BTreeMap::new();
    while let Some(entry) = reader.next().unwrap() {
        times.insert(String::from_utf8(entry.path).unwrap(), entry.mtime);
    }
    // Whole seconds, rounded down; before 1970 as it is.
    assert_eq!(times["hard"], (1, 0));
    assert_eq!(times["ünï"], (-315_619_200, 0));

    // Another reader sees the same.
    let unpacked = std::process::Command::new("tar").arg("-tf").arg("-").stdin(file(&tar)).output();
    let Ok(unpacked) = unpacked else {
        println!("not run: there is no tar program here");
        return;
    };
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(String::from_utf8_lossy(&unpacked.stdout).lines().count(), lines.len());
}

#[test]
fn capabilities_are_kept_and_compared() {
    if !root() {
        return;
    }
    let give = |tree: &Tree, name: &[u8], value: &[u8]| {
        let file = at::open_file(&tree.fd, name).unwrap();
        rustix::fs::fsetxattr(&file, "security.capability", value, rustix::fs::XattrFlags::empty()).unwrap();
        rustix::fs::fsetxattr(&file, "user.x", b"y", rustix::fs::XattrFlags::empty()).unwrap();
    };
    // cap_net_raw=ep.
    let cap = hex::decode("0100000200200000000000000000000000000000").unwrap();
    let lower = Tree::with("echo x > c; echo y > lost; echo p > plain; touch -d 2001-01-01 c lost plain");
    give(&lower, b"c", &cap);
    give(&lower, b"lost", &cap);
    // Copied up: `c` as it was; `lost` is written to, and the kernel takes the capability away.
    let Some(layers) =
        Layers::over(lower, "mv c t; mv t c; echo y > lost; touch -d 2001-01-01 lost; : >> plain")
    else {
        return;
    };
    give(&layers.upper, b"plain", &cap);
    let (tar, _) = layers.diff(&[]);
    assert_eq!(listing(&tar), ["File lost 644 0:0 \"y\"", "File plain 644 0:0 \"p\" security.capability"]);
    let (again, _) = super::unpacking::unpacked(&tar);
    assert_eq!(again.show()["plain"], format!("file 644 0:0 \"p\" cap {}", hex::encode(cap)));
}

#[test]
fn an_epoch_bounds_the_times_and_two_runs_give_the_same_bytes() {
    if !root() {
        return;
    }
    let make = || {
        let tree = Tree::with("mkdir a; echo 1 > a/1; ln -s x a/l; touch -d @100 a/old; ln a/1 b");
        let (tar, _) = written(|out| diff(tree.fd(), None, &[], Some(1000), out, None)).unwrap();
        tar
    };
    let tar = make();
    assert!(tar == make());
    let mut reader = TarReader::new(tar.as_slice());
    while let Some(entry) = reader.next().unwrap() {
        assert_eq!(entry.mtime.0, if entry.path == b"a/old" { 100 } else { 1000 });
    }
}

#[test]
fn a_layers_own_tree_may_be_below() {
    if !root() {
        return;
    }
    // One layer needs no overlay: its whiteouts are nothing that is there.
    let lower = Tree::with("mknod gone c 0 0; mkdir d; echo x > d/x");
    let upper = Tree::with("mknod gone c 0 0; mkdir d; mknod d/x c 0 0; echo n > new");
    let (tar, _) = written(|out| diff(upper.fd(), Some(lower.fd()), &[], None, out, None)).unwrap();
    assert_eq!(listing(&tar), ["Directory d/ 755 0:0", "File d/.wh.x 0 0:0", "File new 644 0:0 \"n\""]);
}

#[test]
fn what_can_not_be_told_is_refused() {
    let tree = Tree::with("mkdir d");
    let d = at::open_dir(&tree.fd, b"d").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    if rustix::fs::fsetxattr(&d, "user.overlay.redirect", b"/e", flags).is_err() {
        println!("not run: the file system has no user attributes");
        return;
    }
    let error = written(|out| diff(tree.fd(), None, &[], None, out, None)).unwrap_err();
    assert!(error.to_string().contains("redirect"), "{error}");

    let deep = Tree::with(&format!("mkdir -p {}", "d/".repeat(410)));
    let error = written(|out| diff(deep.fd(), None, &[], None, out, None)).unwrap_err();
    assert!(matches!(error, TreeError::User { .. }), "{error:?}");
}

#[test]
fn a_full_workspace_says_so() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = diff(Tree::new().fd(), None, &[], None, full, None).unwrap_err();
    assert!(matches!(error, TreeError::Space { .. }), "{error:?}");
}

#[test]
fn stubs_are_taken_out_as_far_as_they_are_empty() {
    let tree = Tree::with(
        "mkdir -p new/deep/m etc/kept other; : > etc/resolv.conf; echo x > etc/kept/x; echo y > hosts; ln -s other l; : > other/f",
    );
    let stubs = [
        "new",
        "new/deep",
        "new/deep/m",
        "etc/resolv.conf",
        "etc/kept",
        "hosts",
        "l/f",
        "gone/x",
        "other/f/x",
    ];
    crate::tree::remove_stubs(tree.fd(), &stubs.map(str::to_owned)).unwrap();
    let left: Vec<String> = tree.show().into_keys().collect();
    assert_eq!(left, ["etc", "etc/kept", "etc/kept/x", "hosts", "l", "other", "other/f"]);
}
