//! Fetches from where not everybody may read, and one that is called off: artifacts and images of registries, git over https with
//! a login and an authority of its own, and a server that stalls.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kiln_e2e::cluster::{Sandbox, condition, inline, reason, until};
use kiln_e2e::image;
use kiln_e2e::registry::{Blob, Registry};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::git_https::GitHttps;
use crate::servers::{Transfer, address, archive, secret, sh, stalling};

/// As `flux push artifact` pushes: an empty config, the directory as one archive.
async fn push_artifact(registry: &Registry, repository: &str, files: &[(&str, &str)]) -> Result<String> {
    let config = Blob { kind: "application/vnd.cncf.flux.config.v1+json", bytes: b"{}" };
    let bytes = archive(files)?;
    let content = Blob { kind: "application/vnd.cncf.flux.content.v1.tar+gzip", bytes: &bytes };
    registry.push(repository, "v1", &config, &[content]).await
}

/// An image with what is in `contextDir`, which must not see what lies beside it.
const DOCKERFILE: &str = "FROM busybox\nCOPY . /src/\nRUN test ! -e /src/outside && cat /src/conf/a\n";

fn oci(image: &str, context: &str, target: &str) -> Value {
    json!({"source": {"oci": {"image": image}}, "contextDir": context, "output": {"image": target}})
}

/// That the build failed once, for that reason, and said all of these words.
fn refused(build: &Value, why: &str, words: &[&str]) -> Result<()> {
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "Source" && failure["reason"] == why, "expected {why}: {failure:#}");
    let message = failure["message"].as_str().context("a message")?;
    for word in words {
        ensure!(message.contains(word), "expected {word:?} in {failure:#}");
    }
    let attempts = build["status"]["attempts"].as_array().context("attempts")?;
    ensure!(attempts.len() == 1, "it is not tried again: {attempts:#?}");
    Ok(())
}

#[tokio::test]
async fn an_artifact_as_flux_pushes_it_and_a_tag_that_is_not_there() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("artifact").await?;
    let repository = format!("{}/artifact", sandbox.name);
    let files = [("app/Dockerfile", DOCKERFILE), ("app/conf/a", "from an artifact\n"), ("outside", "no\n")];
    let digest = push_artifact(&registry, &repository, &files).await?;
    let artifact = |tag: &str| format!("{}/{repository}{tag}", registry.host());
    let target = crate::target(&registry, &sandbox.name, "app");

    sandbox.apply("app", &oci(&artifact(":v1"), "app", &target)).await?;
    let build = sandbox.succeeded("app", 120).await?;
    let source = &build["status"]["source"];
    ensure!(source["revision"] == digest.as_str() && source["digest"] == digest.as_str(), "{source:#}");
    let image = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    ensure!(image.file("src/conf/a")? == "from an artifact\n");
    let mode = image.files()?.get("src/conf/a").context("the file")?.mode & 0o7777;
    ensure!(mode == 0o644, "{mode:o}: a context has modes of its own");

    let missing = artifact(":none");
    sandbox.apply("missing", &oci(&missing, "app", &target)).await?;
    refused(
        &sandbox.finished("missing", 90).await?,
        "SourceNotFound",
        &[&missing, "check the name and the tag"],
    )?;
    let absent = artifact(&format!("@sha256:{}", "0a".repeat(32)));
    sandbox.apply("absent", &oci(&absent, "app", &target)).await?;
    refused(&sandbox.finished("absent", 90).await?, "SourceNotFound", &[&absent])?;
    sandbox.remove().await
}

#[tokio::test]
async fn an_image_s_file_system_is_the_context_of_the_next() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("imagefs").await?;
    let below = crate::target(&registry, &sandbox.name, "below");
    let first = format!(
        "FROM busybox\nRUN mkdir -p /ctx/conf && echo one > /ctx/conf/a && echo gone > /ctx/conf/b && touch /outside
RUN rm /ctx/conf/b && echo two > /ctx/conf/a && chmod 700 /ctx/conf/a && ln -s conf/a /ctx/link
RUN printf '{}' > /ctx/Dockerfile\n",
        DOCKERFILE.replace('\n', "\\n")
    );
    sandbox.apply("below", &inline(&first, &below)).await?;
    let built = sandbox.succeeded("below", 120).await?;
    let digest = built["status"]["image"]["digest"].as_str().context("a digest")?;
    let (repository, _) = below.rsplit_once(':').context("a tag")?;

    for (name, from) in [("tag", below.clone()), ("digest", format!("{repository}@{digest}"))] {
        sandbox.apply(name, &oci(&from, "ctx", &crate::target(&registry, &sandbox.name, name))).await?;
        let build = sandbox.succeeded(name, 120).await?;
        ensure!(build["status"]["source"]["digest"] == digest, "{:#}", build["status"]["source"]);
        let image = image::read(&registry, &format!("{}/{name}", sandbox.name), "latest").await?;
        let files = image.files()?;
        ensure!(image.file("src/conf/a")? == "two\n" && files["src/conf/a"].mode & 0o777 == 0o755);
        ensure!(files["src/link"].content == b"conf/a" && files["src/link"].kind == b'2');
        ensure!(!files.contains_key("src/conf/b"), "an upper layer removed it");
    }
    sandbox.remove().await
}

#[tokio::test]
async fn an_artifact_of_a_registry_that_wants_a_login() -> Result<()> {
    let _guard = crate::with_operator().await;
    let (registry, guarded) = (Registry::of_the_cluster()?, Registry::guarded()?);
    let (user, password) = guarded.login().context("a login")?;
    let sandbox = Sandbox::new("artifact-auth").await?;
    let repository = format!("{}/artifact", sandbox.name);
    let files = [("Dockerfile", DOCKERFILE), ("conf/a", "from a private artifact\n")];
    let digest = push_artifact(&guarded, &repository, &files).await?;
    let artifact = format!("{}/{repository}:v1", guarded.host());
    let spec = oci(&artifact, ".", &crate::target(&registry, &sandbox.name, "app"));

    sandbox.apply("stranger", &spec).await?;
    let build = sandbox.finished("stranger", 90).await?;
    refused(&build, "SourceUnauthorized", &[guarded.host(), "imagePullSecrets"])?;

    sandbox.registry_secret("source", guarded.host(), user, password).await?;
    sandbox.apply("app", &spec).await?;
    let build = sandbox.succeeded("app", 120).await?;
    ensure!(build["status"]["source"]["revision"] == digest.as_str(), "{:#}", build["status"]["source"]);
    let image = image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    ensure!(image.file("src/conf/a")? == "from a private artifact\n");
    sandbox.remove().await
}

#[tokio::test]
async fn a_private_git_repository_over_https_with_an_authority_of_its_own() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("git-https").await?;
    let work = tempfile::tempdir()?;
    std::fs::write(work.path().join("Dockerfile"), DOCKERFILE)?;
    let commit = sh(
        work.path(),
        "mkdir served && git init -q -b main r && cd r && mkdir -p app/conf && echo private > app/conf/a && echo no > outside
        mv ../Dockerfile app && git add . && git -c user.name=a -c user.email=a@b commit -qm 1
        git clone -q --bare . ../served/r.git && git rev-parse HEAD",
    )?;
    let (right, wrong) = ("correct-horse", "battery-staple");
    let server = GitHttps::start(address, &work.path().join("served"), "reader", right).await?;
    let authority = server.authority.as_str();
    for (name, data) in [
        ("right", json!({"username": "reader", "password": right, "ca.crt": authority})),
        ("wrong", json!({"username": "reader", "password": wrong, "ca.crt": authority})),
        ("no-login", json!({"ca.crt": authority})),
        ("no-authority", json!({"username": "reader", "password": right})),
    ] {
        secret(&sandbox, name, &data).await?;
    }
    let url = format!("{}/r.git", server.url);
    let spec = |name: &str, url: &str| {
        json!({"source": {"git": {"url": url, "ref": "main", "secretName": name}}, "contextDir": "app",
            "output": {"image": crate::target(&registry, &sandbox.name, name)}})
    };

    sandbox.apply("right", &spec("right", &url)).await?;
    let build = sandbox.succeeded("right", 120).await?;
    ensure!(build["status"]["source"]["revision"] == commit.as_str(), "{:#}", build["status"]["source"]);
    let image = image::read(&registry, &format!("{}/right", sandbox.name), "latest").await?;
    ensure!(image.file("src/conf/a")? == "private\n");

    let login = "check the Secret that spec.source.git.secretName names";
    for (name, words) in [
        ("wrong", [url.as_str(), login]),
        ("no-login", [url.as_str(), login]),
        ("no-authority", ["certificate", "ca.crt of the Secret that spec.source.git.secretName names"]),
    ] {
        sandbox.apply(name, &spec(name, &url)).await?;
        let build = sandbox.finished(name, 90).await?;
        refused(&build, "SourceUnauthorized", &words).with_context(|| name.to_owned())?;
        ensure!(!build["status"].to_string().contains(wrong), "a password in {:#}", build["status"]);
    }
    let missing = url.replace("r.git", "none.git");
    sandbox.apply("missing", &spec("right", &missing)).await?;
    refused(&sandbox.finished("missing", 90).await?, "SourceNotFound", &[&missing])?;

    // What people read is no place for a password either.
    for pod in sandbox.pods().await? {
        let name = pod.metadata.name.context("a name")?;
        for container in ["source", "courier"] {
            let log = sandbox.logs(&name, container).await?;
            ensure!(!log.contains(right) && !log.contains(wrong), "a password in {name}, {container}: {log}");
        }
        let spec = serde_json::to_string(&pod.spec)?;
        ensure!(!spec.contains(right) && !spec.contains(wrong), "a password in the spec of {name}");
    }
    sandbox.remove().await
}

#[tokio::test]
async fn a_fetch_that_stalls_is_cancelled_and_its_pod_kept() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("stall").await?;
    let (url, mut transfers) = stalling(address).await?;
    let spec = json!({"source": {"http": {"url": url, "sha256": "0".repeat(64)}},
        "output": {"image": crate::target(&registry, &sandbox.name, "app")}});
    sandbox.apply("app", &spec).await?;
    let first = timeout(Duration::from_secs(120), transfers.recv()).await.context("nothing was fetched")?;
    ensure!(first == Some(Transfer::Halfway), "{first:?}");

    sandbox.annotate("app", "kiln.build/cancel", json!("1")).await?;
    let build = sandbox.finished("app", 60).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "Cancelled" && failure["reason"] == "Cancelled", "{failure:#}");
    let message = failure["message"].as_str().context("a message")?;
    ensure!(message.contains("run 1") && message.contains("kiln.build/cancel"), "{failure:#}");
    for kind in ["Ready", "Stalled"] {
        ensure!(reason(&build, kind) == Some("Cancelled"), "{kind} of {:#}", build["status"]);
    }
    ensure!(condition(&build, "Succeeded") == Some("False"), "{:#}", build["status"]);

    // It is over in the pod, too, which stays for its log.
    let next = timeout(Duration::from_secs(60), transfers.recv()).await.context("it goes on fetching")?;
    ensure!(next == Some(Transfer::HungUp), "{next:?}");
    until(60, "the pod to end", async || {
        let phase = sandbox.pods().await?.first().and_then(|p| p.status.as_ref()?.phase.clone());
        Ok(phase.filter(|phase| phase == "Failed"))
    })
    .await?;
    let pods = sandbox.pods().await?;
    ensure!(pods.len() == 1 && pods[0].metadata.deletion_timestamp.is_none(), "the pod is kept: {pods:#?}");
    let pod = pods[0].metadata.name.as_deref().context("a name")?;
    ensure!(build["status"]["podRef"]["name"] == pod, "{:#}", build["status"]["podRef"]);
    let log = sandbox.logs(pod, "source").await?;
    ensure!(log.contains(&format!("Fetching {url}")) && log.contains("told to stop: Cancelled"), "{log}");
    ensure!(registry.tags(&format!("{}/app", sandbox.name)).await?.is_empty());
    sandbox.remove().await
}
