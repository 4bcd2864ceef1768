//! Layers of a base that no step reads are not downloaded, and what is made on their indexes is what is made on them.
//!
//! Needs root, `/bin/busybox` (package busybox-static) and a registry to build (Go); says so and passes where they are
//! missing.
#![allow(dead_code, clippy::unwrap_used)]

#[path = "../../builder-pod/registry/tests/faults/mod.rs"]
mod faults;

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use faults::{Fault, Faulty};

const BUSYBOX: &str = "/bin/busybox";

/// Several layers: files, links, modes and owners, what an upper layer removes, changes or makes anew.
const BASE: &str = r#"FROM scratch
COPY busybox /bin/
COPY same /same
COPY same /hard/one
RUN ["/bin/busybox", "sh", "-c", "B=/bin/busybox; $B mkdir -p /etc /usr/lib/deep /opt/existing/sub /opt/gone/inside /opt/anew/x /var/tmp /home/app /conf.d && echo 'app:x:7:8::/home/app:/bin/sh' > /etc/passwd && echo 'staff:x:9:' > /etc/group && echo 1 > /etc/conf && $B chmod 1777 /var/tmp && $B chmod 2750 /opt/existing/sub && $B chown 5:6 /opt/existing && $B ln -s usr/lib /lib && $B ln -s /opt/existing /opt/link && $B ln -s ../lib/deep /opt/winding && $B ln /etc/conf /etc/hard && echo z > /opt/anew/x/z"]
RUN ["/bin/busybox", "sh", "-c", "B=/bin/busybox; $B rm -r /opt/gone /opt/anew && $B mkdir -p /opt/anew/x && $B chmod 700 /opt/anew && echo changed > /etc/conf && $B ln /same /conf.d/same"]
"#;

/// Each of these looks at something else.
const LOOKS: &str = "COPY a /file\nCOPY a /etc/conf\nCOPY a /etc/hard\nCOPY a /opt/existing/\nCOPY a /lib/through\n\
    COPY a /opt/winding/\nCOPY a /new/deep/path/\nCOPY --chown=app:staff a /opt/owned\nCOPY --chown=app a /made/by/app/\n\
    COPY --chmod=600 a /opt/mode\nWORKDIR /var/tmp\nWORKDIR /brand/new\nCOPY dir/ /opt/existing/\nCOPY a /opt/gone/x\n\
    COPY a /opt/link/y\nCOPY a /opt/anew/x/\nCOPY links/ /links/\nCOPY a /links/to-lib/after\nUSER app\nWORKDIR /home/app/w\n\
    ADD --unpack=false a /opt/existing/added\nCOPY <<E /opt/existing/document\ntext\nE\n";

struct Site {
    registry: Faulty,
    dir: tempfile::TempDir,
}

struct Built {
    log: String,
    /// Digests of the image's layers.
    layers: Vec<String>,
}

impl Site {
    async fn new() -> Result<Option<Self>> {
        // The owner of a process is the owner of its directory.
        if std::fs::metadata("/proc/self")?.uid() != 0 || !Path::new(BUSYBOX).exists() {
            println!("not run: it needs root and {BUSYBOX}");
            return Ok(None);
        }
        let Some(registry) = Faulty::start().await? else { return Ok(None) };
        let site = Self { registry, dir: tempfile::tempdir()? };
        let context = site.context();
        std::fs::create_dir_all(context.join("dir/sub"))?;
        std::fs::create_dir(context.join("links"))?;
        std::fs::copy(BUSYBOX, context.join("busybox"))?;
        for (name, text) in [("a", "a"), ("same", "same"), ("dir/f", "f"), ("dir/sub/g", "g")] {
            std::fs::write(context.join(name), text)?;
            std::fs::set_permissions(context.join(name), std::fs::Permissions::from_mode(0o644))?;
        }
        std::fs::set_permissions(context.join("dir/sub"), std::fs::Permissions::from_mode(0o711))?;
        symlink("/lib/deep", context.join("links/to-lib"))?;
        // Before the epoch, in whole seconds: the base has the file with this time.
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
        std::fs::File::options().write(true).open(context.join("same"))?.set_modified(old)?;
        let config = format!("insecure: [\"{}\"]\n", site.registry.host);
        std::fs::write(site.dir.path().join("registries.yaml"), config)?;
        site.build("base:1", BASE, &[]).await?;
        Ok(Some(site))
    }

    fn context(&self) -> std::path::PathBuf {
        self.dir.path().join("context")
    }

    fn cache(&self) -> Vec<String> {
        vec!["--cache".to_owned(), format!("{}/team/cache", self.registry.host)]
    }

    /// A Dockerfile from the base.
    fn on_base(&self, steps: &str) -> String {
        format!("FROM {}/team/base:1\n{steps}", self.registry.host)
    }

    async fn build(&self, name: &str, dockerfile: &str, more: &[String]) -> Result<Built> {
        std::fs::write(self.context().join("Dockerfile"), dockerfile)?;
        let (repository, tag) = name.split_once(':').context("a tag")?;
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(["build", "-o", "type=registry", "--build-arg", "SOURCE_DATE_EPOCH=1700000000", "-t"])
            .arg(format!("{}/team/{name}", self.registry.host))
            .arg("--registry-config")
            .arg(self.dir.path().join("registries.yaml"))
            .args(more)
            .arg(self.context())
            .env_remove("KILN_CACHE")
            .output()
            .await?;
        let log = String::from_utf8([output.stdout, output.stderr].concat())?;
        ensure!(output.status.success(), "{log}");
        let manifest = self.registry.stored(&format!("/v2/team/{repository}/manifests/{tag}")).await?;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest.context("no manifest")?)?;
        let layers = manifest["layers"].as_array().context("no layers")?;
        let layers = layers.iter().filter_map(|layer| layer["digest"].as_str().map(str::to_owned)).collect();
        Ok(Built { log, layers })
    }

    /// Which of the base's layers were downloaded since the first `seen` requests.
    async fn downloaded(&self, seen: usize) -> Result<usize> {
        let manifest = self.registry.stored("/v2/team/base/manifests/1").await?.context("no base")?;
        let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
        let layers: Vec<_> = manifest["layers"].as_array().context("no layers")?.iter().collect();
        let requests = self.registry.seen();
        let read = |digest: &str| {
            requests[seen..]
                .iter()
                .any(|s| s.method == "GET" && s.path.contains("/blobs/") && s.path.contains(digest))
        };
        Ok(layers.iter().filter(|layer| layer["digest"].as_str().is_some_and(read)).count())
    }
}

#[tokio::test]
async fn what_is_made_on_indexes_is_what_is_made_on_layers() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    // What runs needs the base itself.
    let whole = site.on_base(&format!("{LOOKS}USER 0\nRUN [\"/bin/busybox\", \"true\"]\n"));
    let whole = site.build("whole:1", &whole, &[]).await?;
    let looks = site.on_base(LOOKS);
    let streamed = site.build("streamed:1", &looks, &[]).await?;
    ensure!(
        streamed.layers == whole.layers[..streamed.layers.len()],
        "streamed\n{}\n{}",
        streamed.log,
        whole.log
    );
    // A build that had to have the base leaves its indexes in the cache, beside the build.
    site.build("fill:1", &site.on_base("RUN [\"/bin/busybox\", \"touch\", \"/x\"]\n"), &site.cache()).await?;
    let seen = site.registry.seen().len();
    let indexed = site.build("indexed:1", &looks, &site.cache()).await?;
    ensure!(indexed.layers == streamed.layers, "indexed\n{}\n{}", indexed.log, streamed.log);
    ensure!(site.downloaded(seen).await? == 0, "{}", indexed.log);
    // Steps' layers have indexes, too: what changed is made on them.
    let changed = looks.replace("COPY a /opt/anew/x/", "COPY a /opt/anew/x/other");
    let seen = site.registry.seen().len();
    let again = site.build("changed:1", &changed, &site.cache()).await?;
    ensure!(site.downloaded(seen).await? == 0, "{}", again.log);
    let reads = site.registry.seen()[seen..]
        .iter()
        .filter(|s| s.method == "GET" && s.path.contains("/blobs/"))
        .count();
    let plain = site.build("changed:2", &changed, &[]).await?;
    ensure!(plain.layers == again.layers, "changed, {reads} reads\n{}\n{}", again.log, plain.log);
    Ok(())
}

#[tokio::test]
async fn a_linked_copy_downloads_nothing() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    let seen = site.registry.seen().len();
    let built = site
        .build("linked:1", &site.on_base("COPY --link a /lib/x\nADD --link same /opt/\nCMD [\"/x\"]\n"), &[])
        .await?;
    ensure!(site.downloaded(seen).await? == 0, "{}", built.log);
    // What runs on it has all of it.
    let run = "COPY --link a /opt/existing/x\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"/bin/busybox cat /same /opt/existing/x\"]\n";
    let ran = site.build("ran:1", &site.on_base(run), &[]).await?;
    ensure!(ran.log.contains("samea"), "{}", ran.log);
    Ok(())
}

/// A file that may be there already with all that it is: only its content tells, and that is in the layer.
#[tokio::test]
async fn a_file_that_may_be_the_same_is_compared_with_the_layer() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    for steps in ["COPY same /same\n", "COPY same /new\nCOPY same /conf.d/same\nCOPY same /hard/\n"] {
        let whole = site.on_base(&format!("{steps}RUN [\"/bin/busybox\", \"true\"]\n"));
        let whole = site.build("whole:1", &whole, &[]).await?;
        let looked = site.build("looked:1", &site.on_base(steps), &[]).await?;
        ensure!(looked.layers == whole.layers[..looked.layers.len()], "{}\n{}", looked.log, whole.log);
    }
    Ok(())
}

/// What is no index, or not the one that is named, is left aside.
#[tokio::test]
async fn an_index_that_is_none_is_left_aside() -> Result<()> {
    let Some(site) = Site::new().await? else { return Ok(()) };
    site.build("fill:1", &site.on_base("RUN [\"/bin/busybox\", \"touch\", \"/x\"]\n"), &site.cache()).await?;
    for (name, part, fault) in [
        ("corrupt:1", "/v2/team/cache/blobs/", Fault::Corrupt),
        (
            "gone:1",
            "/v2/team/cache/blobs/",
            Fault::Answer { after: u64::MAX, status: 404, headers: vec![], body: String::new() },
        ),
    ] {
        site.registry.on("GET", part, usize::MAX, fault);
        // A step that no build before has made.
        let steps = site.on_base(&format!("COPY a /opt/existing/{}\n", name.trim_end_matches(":1")));
        let built = site.build(name, &steps, &site.cache()).await?;
        site.registry.heal();
        let plain = site.build(&format!("plain-{name}"), &steps, &[]).await?;
        ensure!(built.log.contains("layer indexes were not usable: "), "{}", built.log);
        ensure!(built.layers == plain.layers, "{}\n{}", built.log, plain.log);
    }
    Ok(())
}
