//! One input with `SOURCE_DATE_EPOCH` has one digest: on every day, with any number of cores. The value is pinned, so that
//! whatever changes the bytes of images (a tar header, the compressor, the order of a config's fields) is noticed.
//!
//! Needs root, and taskset for the run on one core; says so and passes where they are missing.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Digest of the manifest. A new value is a promise broken: every image built with an epoch gets another digest.
const PINNED: &str = "sha256:55370acf5d094c9c38a4e8435c400e399a7c3a16253825846b1d0382e1f08a4c";

const DOCKERFILE: &str = "FROM scratch AS parts\nWORKDIR /opt/parts\nCOPY --chmod=750 big small /opt/parts/\n\
    FROM scratch\nARG SOURCE_DATE_EPOCH\nCOPY --from=parts --chown=12:34 /opt /opt\nCOPY tree/ /srv/tree/\n\
    COPY <<END /etc/motd\nhello\nEND\nENV A=b\nUSER 7:8\nWORKDIR /srv\nLABEL c=d\nEXPOSE 80\nCMD [\"/x\"]\n";

/// Bytes that compress by about half, the same on every machine.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state & 0x0f) as u8 + b'a'
    };
    (0..count).map(|_| next()).collect()
}

fn context(dir: &Path) -> Result<()> {
    std::fs::write(dir.join("Dockerfile"), DOCKERFILE)?;
    // More than one block of the compressor.
    std::fs::write(dir.join("big"), bytes(5 << 20))?;
    std::fs::write(dir.join("small"), bytes(10))?;
    let tree = dir.join("tree");
    for n in 0..50 {
        let below = tree.join(format!("d{}", n % 7));
        std::fs::create_dir_all(&below)?;
        std::fs::write(below.join(format!("f{n}")), bytes(n * 37))?;
    }
    // Whatever the umask.
    for n in 0..7 {
        set_modes(&tree.join(format!("d{n}")))?;
    }
    set_modes(&tree)?;
    set_modes(dir)?;
    symlink("d1/f1", tree.join("link"))?;
    std::fs::hard_link(tree.join("d2/f2"), tree.join("hard"))?;
    std::fs::set_permissions(tree.join("d3"), std::fs::Permissions::from_mode(0o2755))?;
    Ok(())
}

/// 0755 for the directory, 0644 for its files.
fn set_modes(dir: &Path) -> Result<()> {
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            set(&entry.path(), 0o644)?;
        }
    }
    Ok(set(dir, 0o755)?)
}

/// Builds into a layout of its own; the digest of the manifest.
fn build(launcher: &[&str], context: &Path, out: &Path) -> Result<String> {
    let mut words = launcher.to_vec();
    words.push(env!("CARGO_BIN_EXE_kiln"));
    let to = format!("type=oci-layout,dest={}", out.display());
    let output = Command::new(words[0])
        .args(&words[1..])
        .args(["build", "--progress", "quiet", "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-o", &to])
        .arg(context)
        .output()
        .context("running kiln")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("index.json"))?)?;
    Ok(index["manifests"][0]["digest"].as_str().context("a digest")?.to_owned())
}

#[test]
fn one_input_has_one_digest() -> Result<()> {
    if Command::new("id").arg("-u").output()?.stdout != b"0\n" {
        println!("not run: it needs root");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let made = dir.path().join("context");
    std::fs::create_dir(&made)?;
    context(&made)?;
    let all = build(&[], &made, &dir.path().join("all"))?;
    if Path::new("/usr/bin/taskset").exists() {
        let one = build(&["/usr/bin/taskset", "-c", "0"], &made, &dir.path().join("one"))?;
        ensure!(one == all, "on one core {one}, on all {all}");
    } else {
        println!("not run on one core: there is no taskset");
    }
    ensure!(all == PINNED, "expected {PINNED}, found {all}");
    Ok(())
}
