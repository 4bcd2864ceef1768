//! What `RUN --mount=type=cache` holds, from build to build through a real registry (`kiln build --cache`).
//!
//! Needs root, `/bin/busybox` (package busybox-static) and a registry to build (Go); says so and passes where they are
//! missing.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use faults::{Fault, Faulty};

const BUSYBOX: &str = "/bin/busybox";
/// Says what it finds in the cache, and adds to it.
const ADDS: &str = "echo found: $(cat /c/f /c/sub/g 2>/dev/null), $(stat -c '%a %u:%g' /c); mkdir -p /c/sub; \
    echo $WORD >> /c/f; touch /c/sub/.wh.f; chmod 751 /c";

/// A registry and a context. Every build has a workspace of its own, as pods have.
struct Site {
    registry: Faulty,
    dir: tempfile::TempDir,
}

struct Built {
    succeeded: bool,
    log: String,
}

impl Site {
    async fn new() -> Result<Option<Self>> {
        use std::os::unix::fs::MetadataExt as _;
        if std::fs::metadata("/proc/self")?.uid() != 0 || !Path::new(BUSYBOX).exists() {
            println!("not run: it needs root and {BUSYBOX}");
            return Ok(None);
        }
        let Some(registry) = Faulty::start().await? else { return Ok(None) };
        let site = Self { registry, dir: tempfile::tempdir()? };
        std::fs::create_dir(site.context())?;
        std::fs::copy(BUSYBOX, site.context().join("busybox"))?;
        let config = format!("insecure: [\"{}\"]\n", site.registry.host);
        std::fs::write(site.dir.path().join("registries.yaml"), config)?;
        Ok(Some(site))
    }

    fn context(&self) -> std::path::PathBuf {
        self.dir.path().join("context")
    }

    /// A build whose one step with the cache `mount` runs `command`.
    async fn run(&self, mount: &str, word: &str, command: &str, more: &[&str]) -> Result<Built> {
        let dockerfile = format!(
            "FROM scratch\nENV PATH=/bin\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\nRUN busybox --install -s /bin\n\
             ENV WORD={word}\nRUN --mount=type=cache,{mount} {command}\n"
        );
        std::fs::write(self.context().join("Dockerfile"), dockerfile)?;
        let work = tempfile::tempdir()?;
        let name = format!("{}/team/app:v1", self.registry.host);
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["build", "-o", "type=registry", "-t", &name, "--registry-config"])
            .arg(self.dir.path().join("registries.yaml"))
            .args(["--build-arg", "SOURCE_DATE_EPOCH=1700000000", "--work-dir"])
            .arg(work.path())
            .args(more)
            .arg(self.context())
            .env_remove("KILN_CACHE")
            .env_remove("KILN_CACHE_DIR")
            .output()
            .await?;
        let log = String::from_utf8([output.stdout, output.stderr].concat())?;
        Ok(Built { succeeded: output.status.success(), log })
    }

    /// One that succeeds, with the cache in `team/{cache}`.
    async fn cached(&self, cache: &str, mount: &str, word: &str) -> Result<String> {
        let cache = format!("{}/team/{cache}", self.registry.host);
        let built = self.run(mount, word, ADDS, &["--cache", &cache]).await?;
        ensure!(built.succeeded, "{}", built.log);
        Ok(built.log)
    }

    async fn digest(&self) -> Result<String> {
        let manifest = self.registry.stored("/v2/team/app/manifests/v1").await?;
        Ok(faults::digest(&manifest.context("no manifest")?))
    }

    /// Paths of manifests that were put into the cache since the first `seen` requests.
    fn entries_put(&self, seen: usize) -> BTreeSet<String> {
        let put = |s: &faults::Seen| s.method == "PUT" && s.path.starts_with("/v2/team/cache/manifests/");
        self.registry.seen().into_iter().skip(seen).filter(put).map(|s| s.path).collect()
    }
}

fn says(log: &str, words: &str) -> Result<()> {
    ensure!(log.contains(words), "{words:?} is not in\n{log}");
    Ok(())
}

#[tokio::test]
async fn a_later_build_elsewhere_finds_what_an_earlier_one_left() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let mount = "target=/c,uid=7,mode=0750";
    let first = site.cached("cache", mount, "one").await?;
    says(&first, "found: , 750 7:0\n")?;
    says(&first, "---> Cache mount /c: ")?;
    let (first_put, seen) = (site.entries_put(0), site.registry.seen().len());
    let tagged = first.find("Successfully tagged").context("tagged")?;
    let saving = first.find("The image is ready.").context("said")?;
    ensure!(saving > tagged, "{first}");
    let second = site.cached("cache", mount, "two").await?;
    says(&second, "found: one, 751 7:0\n")?;
    says(&second, " from the cache\n")?;
    // Steps and their layers have other tags, as the word is another: these are the mount and the build's record.
    let both: BTreeSet<_> = site.entries_put(seen).intersection(&first_put).cloned().collect();
    ensure!(both.len() == 2, "{both:?}");
    // A command that leaves it as it is: it is read, and nothing of it is sent.
    let seen = site.registry.seen().len();
    let cache = format!("{}/team/cache", site.registry.host);
    let third = site.run(mount, "three", "cat /c/f; ls -a /c/sub", &["--cache", &cache]).await?;
    says(&third.log, "one\ntwo\n")?;
    says(&third.log, ".wh.f\n")?;
    ensure!(!third.log.contains(" saved\n") && third.succeeded, "{}", third.log);
    let third = site.entries_put(seen);
    ensure!(both.difference(&third).count() == 1, "the record alone: {third:?} {both:?}");
    let fourth = site.cached("cache", mount, "four").await?;
    says(&fourth, "found: one two, 751 7:0\n")?;
    // Other caches: by name, by owner, by repository.
    says(&site.cached("cache", "target=/c,uid=7,mode=0750,id=other", "five").await?, "found: , 750 7:0\n")?;
    says(&site.cached("cache", "target=/c", "six").await?, "found: , 755 0:0\n")?;
    says(&site.cached("elsewhere", mount, "seven").await?, "found: , 750 7:0\n")?;
    Ok(())
}

#[tokio::test]
async fn an_image_is_the_same_with_and_without() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let cache = format!("{}/team/cache", site.registry.host);
    let command = "echo result > /result; echo $WORD >> /c/f";
    let mut digests = BTreeSet::new();
    for (word, more) in [("a", &["--cache", &cache][..]), ("a", &[]), ("b", &["--cache", &cache])] {
        let built = site.run("target=/c", word, command, more).await?;
        ensure!(built.succeeded, "{}", built.log);
        digests.insert((word, site.digest().await?));
    }
    ensure!(digests.len() == 2, "one image for each word: {digests:?}");
    Ok(())
}

#[tokio::test]
async fn what_fails_keeps_nothing_and_what_is_damaged_is_made_anew() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let cache = format!("{}/team/cache", site.registry.host);
    let failed = site.run("target=/c", "one", &format!("{ADDS}; false"), &["--cache", &cache]).await?;
    ensure!(!failed.succeeded && !failed.log.contains("saved"), "{}", failed.log);
    says(&site.cached("cache", "target=/c", "two").await?, "found: , 755 0:0\n")?;
    // Its bytes are cut short, are others, are gone; the next one is put in its place.
    let refusing = |status| Fault::Answer { after: u64::MAX, status, headers: vec![], body: String::new() };
    for (word, fault) in [("three", Fault::Corrupt), ("four", refusing(404))] {
        site.registry.on("GET", "/v2/team/cache/blobs/", usize::MAX, fault);
        let log = site.cached("cache", "target=/c", word).await?;
        site.registry.heal();
        says(&log, "[Warning] the cache mount /c begins empty: ")?;
        says(&log, "found: , 755 0:0\n")?;
        says(&log, " saved\n")?;
        let after = site.run("target=/c", &format!("after-{word}"), "cat /c/f", &["--cache", &cache]).await?;
        says(&after.log, &format!("\n{word}\n"))?;
    }
    // A registry that takes no manifest of it: the image is there all the same.
    site.registry.on("PUT", "/v2/team/cache/manifests/", usize::MAX, refusing(403));
    let log = site.cached("cache", "target=/c", "five").await?;
    site.registry.heal();
    says(&log, "[Warning] the cache mount /c was not saved: ")?;
    Ok(())
}
