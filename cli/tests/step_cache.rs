//! `kiln build --cache`: what a second build takes from a real registry, and what it asks of it.
//!
//! Needs root, `/bin/busybox` (package busybox-static) and a registry to build (Go); says so and passes where they are
//! missing.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use faults::Faulty;

const BUSYBOX: &str = "/bin/busybox";
const EPOCH: &[&str] = &["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
const LINEAR: &str = "FROM scratch\nENV PATH=/bin\nCOPY sh cat /bin/\nRUN echo one > /one\nWORKDIR /w\nCOPY a /w/\n\
    RUN cat a /one > both\nCMD [\"sh\"]\n";

/// A registry and a context.
struct Site {
    registry: Faulty,
    dir: tempfile::TempDir,
}

/// What a build said.
struct Built {
    log: String,
    digest: String,
}

impl Site {
    async fn new(dockerfile: &str) -> Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        // The owner of a process is the owner of its directory.
        if std::fs::metadata("/proc/self")?.uid() != 0 || !Path::new(BUSYBOX).exists() {
            println!("not run: it needs root and {BUSYBOX}");
            return Ok(None);
        }
        let Some(registry) = Faulty::start().await? else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let site = Self { registry, dir };
        std::fs::create_dir(site.context())?;
        for applet in ["sh", "cat"] {
            std::fs::copy(BUSYBOX, site.context().join(applet))?;
        }
        site.write("a", "a")?;
        site.write("Dockerfile", dockerfile)?;
        let config = format!("insecure: [\"{}\"]\n", site.registry.host);
        std::fs::write(site.dir.path().join("registries.yaml"), config)?;
        Ok(Some(site))
    }

    fn context(&self) -> std::path::PathBuf {
        self.dir.path().join("context")
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.context().join(name), text)?)
    }

    fn cache(&self) -> String {
        format!("{}/team/cache", self.registry.host)
    }

    async fn build(&self, tag: &str, more: &[&str]) -> Result<Built> {
        let name = format!("{}/team/app:{tag}", self.registry.host);
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["build", "-o", "type=registry", "-t", &name, "--registry-config"])
            .arg(self.dir.path().join("registries.yaml"))
            .args(more)
            .arg(self.context())
            .env_remove("KILN_CACHE")
            .output()
            .await?;
        let log = String::from_utf8([output.stdout, output.stderr].concat())?;
        ensure!(output.status.success(), "{log}");
        let manifest = self.registry.stored(&format!("/v2/team/app/manifests/{tag}")).await?;
        let digest = faults::digest(&manifest.context("no manifest")?);
        Ok(Built { log, digest })
    }

    /// With the cache.
    async fn cached(&self, tag: &str) -> Result<Built> {
        self.build(tag, &["--cache", &self.cache()]).await
    }

    /// Paths of blobs that were read or sent since the first `seen` requests.
    fn moved(&self, seen: usize) -> Vec<String> {
        let requests = self.registry.seen().into_iter().skip(seen);
        let moved = requests.filter(|s| {
            s.method == "GET" && s.path.contains("/blobs/") || s.method == "PUT" && s.path.contains("/blobs/")
        });
        moved.map(|s| format!("{} {} {} bytes", s.method, s.path, s.received)).collect()
    }
}

fn steps(built: &Built, words: &str) -> usize {
    built.log.lines().filter(|line| line.trim_start().starts_with(words)).count()
}

#[tokio::test]
async fn a_rebuild_without_changes_moves_no_layer() -> Result<()> {
    let Some(site) = Site::new(LINEAR).await? else { return Ok(()) };
    let first = site.cached("v1").await?;
    ensure!(steps(&first, "---> Using cache") == 0 && steps(&first, "---> Running in") == 2, "{}", first.log);
    let seen = site.registry.seen().len();
    let second = site.cached("v2").await?;
    ensure!(second.digest == first.digest, "{} and {}\n{}", first.digest, second.digest, second.log);
    ensure!(steps(&second, "---> Using cache") == 6, "{}", second.log);
    ensure!(steps(&second, "---> Running in") == 0, "{}", second.log);
    ensure!(site.moved(seen).is_empty(), "{:#?}", site.moved(seen));
    // A file that no step takes makes no difference; another Dockerfile text that says the same makes none either.
    site.write("b", "b")?;
    site.write("Dockerfile", &format!("# comment\n{LINEAR}"))?;
    let third = site.cached("v3").await?;
    ensure!(third.digest == first.digest, "{}", third.log);
    Ok(())
}
