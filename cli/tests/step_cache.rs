//! `kiln build --cache`: what a second build takes from a real registry, and what it asks of it.
//!
//! Needs root, `/bin/busybox` (package busybox-static) and a registry to build (Go); says so and passes where they are
//! missing.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use faults::{Fault, Faulty};

const BUSYBOX: &str = "/bin/busybox";
const EPOCH: &[&str] = &["--build-arg", "SOURCE_DATE_EPOCH=1700000000"];
const LINEAR: &str = "FROM scratch\nENV PATH=/bin\nCOPY sh cat /bin/\nRUN echo one > /one\nWORKDIR /w\nCOPY a /w/\n\
    RUN cat a /one > both\nCMD [\"sh\"]\n";

const STAGES: &str = "FROM scratch AS build\nENV PATH=/bin\nCOPY sh cat /bin/\nCOPY src /src\n\
    RUN cat /src > /out && echo built >> /out\nFROM scratch\nENV PATH=/bin\nCOPY sh cat /bin/\nRUN echo setup > /setup\n\
    COPY --from=build --chown=7:8 /out /out\nCOPY a /a\nRUN cat /setup /out /a > /all\n";

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
        site.write("src", "source")?;
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

    /// With the cache and without one, at one time of the source: both give one image, and this is the former.
    async fn compared(&self, tag: &str) -> Result<Built> {
        let with = self.build(tag, &[EPOCH, &["--cache", &self.cache()]].concat()).await?;
        let without = self.build(&format!("{tag}-without"), EPOCH).await?;
        let (a, b) = (&with.digest, &without.digest);
        ensure!(a == b, "{a} and {b}\n{}\n{}", with.log, without.log);
        Ok(with)
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

/// Why steps were not taken, in order.
fn misses(built: &Built) -> Vec<String> {
    let said = built.log.lines().filter_map(|line| line.trim_start().strip_prefix("---> Not in the cache: "));
    said.map(str::to_owned).collect()
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
    // Another build that shares the steps has a name, and so a record, of its own.
    let never = misses(&first);
    ensure!(never[0] == "no build before this one is known", "{never:?}");
    ensure!(misses(&second).is_empty() && misses(&third).is_empty(), "{}", third.log);
    site.write("Dockerfile", &LINEAR.replace("echo one", "echo two"))?;
    let fourth = site.cached("v4").await?;
    let why = misses(&fourth);
    ensure!(why[..2] == ["the instruction changed", "what it stands on changed: step 4"], "{why:?}");
    Ok(())
}

#[tokio::test]
async fn an_image_is_the_same_with_and_without_cache() -> Result<()> {
    let Some(site) = Site::new(STAGES).await? else { return Ok(()) };
    let cold = site.compared("cold").await?;
    ensure!(steps(&cold, "---> Using cache") == 0 && steps(&cold, "---> Running in") == 3, "{}", cold.log);
    let warm = site.compared("warm").await?;
    ensure!(warm.digest == cold.digest && steps(&warm, "---> Running in") == 0, "{}", warm.log);
    // One file of the last COPY: what stands on it runs, and nothing of the other stage is read.
    site.write("a", "other")?;
    let seen = site.registry.seen().len();
    let changed = site.build("changed", &[EPOCH, &["--cache", &site.cache()]].concat()).await?;
    ensure!(steps(&changed, "---> Running in") == 1, "{}", changed.log);
    // The log says why, and one request more is all that it takes.
    let missing = misses(&changed);
    ensure!(
        missing == ["the files changed", "what it stands on changed: step 11"],
        "{missing:?}\n{}",
        changed.log
    );
    let read: Vec<_> = site.moved(seen).into_iter().filter(|m| m.starts_with("GET")).collect();
    ensure!(read.len() == 3, "{read:#?}\n{}", changed.log);
    ensure!(site.compared("changed").await?.digest == changed.digest);
    // The other stage alone: its last result is kept as well, and what the image has of it follows.
    site.write("src", "more source")?;
    let stage = site.compared("stage").await?;
    ensure!(steps(&stage, "---> Running in") == 2, "{}", stage.log);
    // Back to the beginning: all of it is there.
    site.write("src", "source")?;
    site.write("a", "a")?;
    let back = site.compared("back").await?;
    ensure!(back.digest == cold.digest && steps(&back, "---> Running in") == 0, "{}", back.log);
    Ok(())
}

#[tokio::test]
async fn a_damaged_cache_costs_time_and_no_build() -> Result<()> {
    let Some(site) = Site::new(STAGES).await? else { return Ok(()) };
    site.compared("cold").await?;
    let garbage = |body: &str| Fault::Answer {
        after: u64::MAX,
        status: 200,
        headers: vec![("content-type", "application/vnd.oci.image.manifest.v1+json".to_owned())],
        body: body.to_owned(),
    };
    for (name, part, fault, words) in [
        ("blob", "/v2/team/cache/blobs/", Fault::Corrupt, "---> Running in"),
        ("gone", "/v2/team/cache/blobs/", refusing(404), "---> Running in"),
        ("text", "/v2/team/cache/manifests/", garbage("no manifest"), "is not usable"),
        ("other", "/v2/team/cache/manifests/", garbage("{\"schemaVersion\":2}"), "is not usable"),
        ("denied", "/v2/team/cache/manifests/", refusing(403), "the cache is not used"),
    ] {
        site.write("a", name)?;
        site.registry.on("GET", part, usize::MAX, fault);
        let built = site.compared(name).await?;
        site.registry.heal();
        ensure!(built.log.contains(words), "{name}: {}", built.log);
        ensure!(built.log.contains("[Warning] "), "{name}: {}", built.log);
    }
    Ok(())
}

fn refusing(status: u16) -> Fault {
    Fault::Answer { after: u64::MAX, status, headers: vec![], body: String::new() }
}

#[tokio::test]
async fn results_that_can_not_be_kept_are_counted() -> Result<()> {
    let Some(site) = Site::new(LINEAR).await? else { return Ok(()) };
    site.registry.on("PUT", "/v2/team/cache/manifests/", usize::MAX, refusing(403));
    let built = site.cached("v1").await?;
    ensure!(built.log.contains("[Warning] 5 of 5 results could not be kept in the cache"), "{}", built.log);
    let tagged = built.log.find("Successfully tagged").context("tagged")?;
    ensure!(built.log.find("[Warning]").context("a warning")? > tagged, "{}", built.log);
    Ok(())
}

#[tokio::test]
async fn the_cache_may_be_in_another_registry() -> Result<()> {
    let Some(site) = Site::new(STAGES).await? else { return Ok(()) };
    let other = site.registry.beside().await?;
    let config = format!("insecure: [\"{}\", \"{}\"]\n", site.registry.host, other.host);
    std::fs::write(site.dir.path().join("registries.yaml"), config)?;
    let cache = format!("{}/other/cache", other.host);
    let with: &[&str] = &["--cache", &cache];
    let cold = site.build("cold", &[EPOCH, with].concat()).await?;
    ensure!(!other.asked("PUT", "/blobs/uploads/").is_empty(), "layers are copied there");
    let warm = site.build("warm", &[EPOCH, with].concat()).await?;
    ensure!(warm.digest == cold.digest && steps(&warm, "---> Running in") == 0, "{}", warm.log);
    // A layout has no registry to mount in.
    let out = site.dir.path().join("out");
    let to = format!("type=oci-layout,dest={}", out.display());
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["build", "-o", &to, "--registry-config"])
        .arg(site.dir.path().join("registries.yaml"))
        .args([EPOCH, with].concat())
        .arg(site.context())
        .output()
        .await?;
    let log = String::from_utf8([output.stdout, output.stderr].concat())?;
    ensure!(output.status.success() && !log.contains("Running in"), "{log}");
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(out.join("index.json"))?)?;
    ensure!(index["manifests"][0]["digest"] == cold.digest, "{index}\n{log}");
    Ok(())
}

#[tokio::test]
async fn what_the_garbage_collector_removes_is_gone_and_made_again() -> Result<()> {
    let Some(site) = Site::new(LINEAR).await? else { return Ok(()) };
    let first = site.cached("v1").await?;
    let gc = async |more: &[&str]| -> Result<String> {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["cache", "gc", "--registry-config"])
            .arg(site.dir.path().join("registries.yaml"))
            .args(more)
            .arg(site.cache())
            .output()
            .await?;
        let said = String::from_utf8([output.stdout, output.stderr].concat())?;
        ensure!(output.status.success(), "{said}");
        Ok(said)
    };
    // What was made just now is not old, whatever it is: results, indexes and the record.
    let said = gc(&["--max-age", "1h"]).await?;
    ensure!(said.contains("removed 0 of "), "{said}");
    let second = site.cached("v2").await?;
    ensure!(second.digest == first.digest && misses(&second).is_empty(), "{}", second.log);
    let said = gc(&["--max-size", "0"]).await?;
    ensure!(said.contains(" 0 B after"), "{said}");
    let third = site.cached("v3").await?;
    let why = misses(&third);
    let after = "step 3, which it stands on, was not in the cache";
    ensure!(why[..2] == ["it is gone from the cache", after], "{why:?}\n{}", third.log);
    Ok(())
}
