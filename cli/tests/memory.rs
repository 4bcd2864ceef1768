//! How much memory `kiln build` takes for much of everything: builder and courier, here in one process, and the helper each
//! stay below what the pod's containers are promised to need. Whatever is held whole in memory, a layer, a list of files with
//! their contents, a blob on its way, breaks it.
//!
//! Needs root, `/bin/busybox` (package busybox-static) and a registry to build (Go); says so and passes where they are
//! missing.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use faults::Faulty;

const BUSYBOX: &str = "/bin/busybox";
const KILN: &str = env!("CARGO_BIN_EXE_kiln");
/// Resident bytes, pages of the program's file among them, at the highest.
const LIMIT: u64 = 64 << 20;
/// Between two looks at the marks, which only rise: what is missed is the growth in the last of these.
const LOOK: Duration = Duration::from_millis(5);

/// A registry and a context with some programs.
struct Site {
    registry: Faulty,
    dir: tempfile::TempDir,
}

impl Site {
    async fn new() -> Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        // The owner of a process is the owner of its directory.
        if std::fs::metadata("/proc/self")?.uid() != 0 || !Path::new(BUSYBOX).exists() {
            println!("not run: it needs root and {BUSYBOX}");
            return Ok(None);
        }
        let Some(registry) = Faulty::start().await? else { return Ok(None) };
        let site = Self { registry, dir: tempfile::tempdir()? };
        std::fs::create_dir(site.path("context"))?;
        for applet in ["sh", "cat", "head"] {
            std::fs::copy(BUSYBOX, site.path("context").join(applet))?;
        }
        let config = format!("insecure: [\"{}\"]\n", site.registry.host);
        std::fs::write(site.path("registries.yaml"), config)?;
        Ok(Some(site))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Builds and pushes; none of our processes may have needed more than the limit.
    async fn build(&self, repository: &str, dockerfile: &str, more: &[&str]) -> Result<()> {
        std::fs::write(self.path("context/Dockerfile"), dockerfile)?;
        let log = std::fs::File::create(self.path("log"))?;
        let mut kiln = tokio::process::Command::new(KILN)
            .args(["build", "-t", &format!("{}/{repository}:v1", self.registry.host), "--registry-config"])
            .arg(self.path("registries.yaml"))
            .args(if more.is_empty() { &["-o", "type=registry"] } else { more })
            .arg(self.path("context"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut marks = BTreeMap::new();
        let status = loop {
            look(kiln.id().unwrap_or_default(), &mut marks);
            if let Ok(status) = tokio::time::timeout(LOOK, kiln.wait()).await {
                break status?;
            }
        };
        ensure!(status.success(), "{}", std::fs::read_to_string(self.path("log"))?);
        println!("{repository}: resident at most, in KiB, by process: {marks:?}");
        // kiln, and its helper.
        ensure!(marks.len() >= 2, "only {marks:?} was seen");
        let most = marks.into_values().max().unwrap_or_default() << 10;
        ensure!(most <= LIMIT, "{repository}: {most} bytes were resident, more than {LIMIT}");
        Ok(())
    }
}

/// Notes the high-water marks, in KiB, of a process and its children, as far as they run our program.
fn look(id: u32, marks: &mut BTreeMap<u32, u64>) {
    let here = PathBuf::from(format!("/proc/{id}"));
    if std::fs::read_link(here.join("exe")).is_ok_and(|exe| exe != Path::new(KILN)) {
        return;
    }
    let status = std::fs::read_to_string(here.join("status")).unwrap_or_default();
    let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    if let Some(mark) = mark.and_then(|kib| kib.parse::<u64>().ok()) {
        let known = marks.entry(id).or_default();
        *known = mark.max(*known);
    }
    let threads = std::fs::read_dir(here.join("task")).into_iter().flatten().flatten();
    for thread in threads {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|id| id.parse().ok()) {
            look(child, marks);
        }
    }
}

/// Lines that compress by about half.
fn text(count: usize) -> Vec<u8> {
    let letters = faults::bytes(1, count);
    letters.iter().enumerate().map(|(n, byte)| if n % 60 == 59 { b'\n' } else { byte % 16 + b'a' }).collect()
}

/// A layer of 256 MiB, half noise and half text, in both compressions: into a registry, which is sent it while it is made, and
/// into an archive.
#[tokio::test]
async fn a_large_layer() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    std::fs::write(site.path("context/text"), text(1 << 20))?;
    std::fs::write(
        site.path("context/write"),
        "for n in 1 2 3 4; do\n  head -c 33554432 /dev/urandom > /noise$n\n  cat $(cat /32) > /text$n\ndone\n",
    )?;
    std::fs::write(site.path("context/32"), "/text ".repeat(32))?;
    let dockerfile =
        "FROM scratch\nENV PATH=/bin\nCOPY sh cat head /bin/\nCOPY text write 32 /\nRUN sh /write\n";
    site.build("team/gzip", dockerfile, &[]).await?;
    ensure!(!site.registry.asked("PATCH", "/blobs/uploads/").is_empty(), "it was not sent while it was made");
    let archive = format!("type=oci,dest={},compression=zstd", site.path("zstd.tar").display());
    site.build("team/zstd", dockerfile, &["-o", &archive]).await
}

/// 20,000 files from the context, and a step that changes a hundred of them.
#[tokio::test]
async fn many_files() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let text = text(64 << 10);
    for folder in 0..200 {
        let folder = site.path(&format!("context/files/{folder}"));
        std::fs::create_dir_all(&folder)?;
        for n in 0..100 {
            std::fs::write(folder.join(format!("file{n}")), &text[n * 500..][..200 + n * 37])?;
        }
    }
    let dockerfile = "FROM scratch\nENV PATH=/bin\nCOPY sh cat head /bin/\nCOPY files /files\n\
        RUN n=0; while [ $n -lt 100 ]; do echo more >> /files/$n/file$n; n=$((n + 1)); done\n";
    site.build("team/files", dockerfile, &[]).await
}

/// A base with a layer of 128 MiB, unpacked for a step, and mounted or copied into another repository.
#[tokio::test]
async fn a_large_base() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let large = std::fs::File::create(site.path("context/large"))?;
    std::io::copy(&mut std::io::Read::take(std::fs::File::open("/dev/urandom")?, 128 << 20), &mut &large)?;
    let base = "FROM scratch\nENV PATH=/bin\nCOPY sh cat head /bin/\nCOPY large /large\n";
    site.build("team/base", base, &[]).await?;
    let dockerfile = format!("FROM {}/team/base:v1\nRUN head -c 100 /large > /some\n", site.registry.host);
    site.build("team/app", &dockerfile, &[]).await
}
