//! Sources that the builder pod fetches: git over ssh, archives, Flux artifacts, and git repositories for ADD.

use anyhow::{Context, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kiln_e2e::cluster::{Sandbox, inline, reason, until};
use kiln_e2e::image;
use kiln_e2e::registry::{Registry, digest};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};

use crate::servers::{Daemon, Sshd, address, archive, files, secret, sh};

#[tokio::test]
async fn a_private_git_repository_over_ssh() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("git").await?;
    let sshd = Sshd::start(address).await?;
    let work = tempfile::tempdir()?;
    let commit = sh(
        work.path(),
        "git init -q -b main r && cd r && mkdir -p app/conf && echo hello > app/conf/a && echo no > outside
        printf 'FROM busybox\\nCOPY . /src/\\nRUN test ! -e /src/.git && cat /src/conf/a\\n' > app/Dockerfile
        git -c user.name=a -c user.email=a@b add . && git -c user.name=a -c user.email=a@b commit -qm 1 && git tag v1
        git clone -q --bare . ../r.git && git rev-parse HEAD",
    )?;
    let known = format!("[{address}]:{} {}", sshd.port, sshd.file("host.pub")?);
    for (name, key) in [("right", "user"), ("wrong", "stranger")] {
        let key = sshd.file(key)?;
        secret(&sandbox, name, &json!({"identity": key.trim_end(), "known_hosts": known.trim_end()})).await?;
    }
    let user = sh(work.path(), "id -un")?;
    let url = |repository: &str| {
        format!("ssh://{user}@{address}:{}{}/{repository}", sshd.port, work.path().display())
    };
    let spec = |name: &str, repository: &str, secret: &str| {
        json!({"source": {"git": {"url": url(repository), "ref": "v1", "secretName": secret}}, "contextDir": "app",
            "output": {"image": crate::target(&registry, &sandbox.name, name)}})
    };

    sandbox.apply("app", &spec("app", "r.git", "right")).await?;
    let build = sandbox.succeeded("app", 240).await?;
    ensure!(build["status"]["source"]["revision"] == commit.as_str(), "{:#}", build["status"]["source"]);
    let pod = serde_json::to_value(sandbox.pods().await?.remove(0))?;
    let names = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|m| m["name"].as_str().map(str::to_owned)).collect()
    };
    let spec_of = &pod["spec"];
    ensure!(names(&spec_of["initContainers"]) == ["courier", "source", "git"], "{spec_of:#}");
    ensure!(names(&spec_of["containers"][0]["volumeMounts"]) == ["request", "socket", "work", "context"]);
    ensure!(!names(&spec_of["initContainers"][0]["volumeMounts"]).contains(&"source-auth".to_owned()));
    let log = sandbox.logs(pod["metadata"]["name"].as_str().unwrap_or_default(), "build").await?;
    ensure!(log.contains("hello"), "{log}");
    image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;

    for (name, repository, secret, why) in [
        ("stranger", "r.git", "wrong", "SourceUnauthorized"),
        ("missing", "none.git", "right", "SourceNotFound"),
    ] {
        sandbox.apply(name, &spec(name, repository, secret)).await?;
        let build = sandbox.finished(name, 120).await?;
        let failure = &build["status"]["failure"];
        ensure!(failure["class"] == "Source" && failure["reason"] == why, "{failure:#}");
        ensure!(failure["message"].as_str().is_some_and(|m| m.contains(repository)), "{failure:#}");
        ensure!(
            build["status"]["attempts"].as_array().is_some_and(|a| a.len() == 1),
            "it is not tried again"
        );
    }
    // A Secret that the service account does not list is out of reach.
    let mut unlisted = spec("unlisted", "r.git", "right");
    unlisted["source"]["git"]["secretName"] = json!("other");
    sandbox.apply("unlisted", &unlisted).await?;
    sandbox
        .wait("unlisted", 60, "waiting for the Secret to be listed", |b| {
            reason(b, "Ready") == Some("SecretNotListed")
        })
        .await?;
    sandbox.remove().await
}

#[tokio::test]
async fn an_add_of_a_git_repository_is_checked_out_beside_the_build() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("add-git").await?;
    let work = tempfile::tempdir()?;
    let commit = sh(
        work.path(),
        "git init -q -b main r && cd r && mkdir -p app/conf && echo hello > app/conf/a && echo no > outside
        git -c user.name=a -c user.email=a@b add . && git -c user.name=a -c user.email=a@b commit -qm 1 && git tag v1
        git clone -q --bare . ../r.git && git rev-parse HEAD",
    )?;
    let daemon = Daemon::start(address, work.path()).await?;
    let target = |name: &str| crate::target(&registry, &sandbox.name, name);
    let dockerfile = format!(
        "FROM busybox\nARG WHERE={}/r.git\nADD --checksum={commit} ${{WHERE}}#v1:app /src/\nRUN test ! -e /src/outside && cat /src/conf/a\n",
        daemon.url
    );
    sandbox.apply("app", &inline(&dockerfile, &target("app"))).await?;
    sandbox.succeeded("app", 240).await?;
    let pod = sandbox.pods().await?.remove(0);
    let name = pod.metadata.name.clone().context("a name")?;
    let log = sandbox.logs(&name, "build").await?;
    ensure!(log.contains("hello"), "{log}");
    let fetched = sandbox.logs(&name, "git").await?;
    ensure!(fetched.contains(&format!("Fetched {commit}")), "{fetched}");

    // What the container holds, as the API server has it.
    let pod = serde_json::to_value(pod)?;
    let all = pod["spec"]["initContainers"].as_array().context("init containers")?;
    let git = all.iter().find(|c| c["name"] == "git").context("the container git")?;
    let mounts: Vec<&str> =
        git["volumeMounts"].as_array().into_iter().flatten().filter_map(|m| m["name"].as_str()).collect();
    ensure!(mounts == ["git", "git-work"] && git["env"].is_null() && git["envFrom"].is_null(), "{git:#}");
    ensure!(git["securityContext"]["runAsNonRoot"] == true && git["restartPolicy"] == "Always", "{git:#}");
    // It does not keep the pod from ending.
    until(60, "the pod to end", async || {
        let found = sandbox.pods().await?;
        let phase = found.first().and_then(|p| p.status.as_ref()?.phase.clone());
        Ok(phase.filter(|phase| phase == "Succeeded"))
    })
    .await?;

    for (name, line, why, words) in [
        ("missing", format!("ADD {}/r.git#none /src/", daemon.url), "DownloadFailed", "none"),
        ("ssh", format!("ADD git@{address}:r.git /src/"), "NotSupported", "https"),
    ] {
        sandbox.apply(name, &inline(&format!("FROM busybox\n{line}\n"), &target(name))).await?;
        let build = sandbox.finished(name, 120).await?;
        let failure = &build["status"]["failure"];
        ensure!(
            failure["class"] == "User" && failure["reason"] == why && failure["line"] == 2,
            "{failure:#}"
        );
        ensure!(failure["message"].as_str().is_some_and(|m| m.contains(words)), "{failure:#}");
    }
    sandbox.remove().await
}

#[tokio::test]
async fn an_archive_must_be_the_one_that_its_checksum_names() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("http").await?;
    let (root, served) = files(address).await?;
    let bytes = archive(&[("Dockerfile", "FROM busybox\nRUN echo from an archive\n")])?;
    let right = digest(&bytes).trim_start_matches("sha256:").to_owned();
    served.lock().map_err(|e| anyhow::anyhow!("{e}"))?.insert("/a.tar.gz".into(), bytes);
    let spec = |path: &str, sum: &str| {
        json!({"source": {"http": {"url": format!("{root}{path}"), "sha256": sum}},
            "output": {"image": crate::target(&registry, &sandbox.name, "app")}})
    };
    for (path, sum, why) in [
        ("/a.tar.gz", "0".repeat(64), "SourceChecksumMismatch"),
        ("/none.tar.gz", right.clone(), "SourceNotFound"),
    ] {
        sandbox.apply("app", &spec(path, &sum)).await?;
        let build = sandbox.finished("app", 120).await?;
        let failure = &build["status"]["failure"];
        ensure!(failure["class"] == "Source" && failure["reason"] == why, "{failure:#}");
    }
    sandbox.apply("app", &spec("/a.tar.gz", &right)).await?;
    let build = sandbox.succeeded("app", 120).await?;
    ensure!(
        build["status"]["source"]["digest"] == format!("sha256:{right}"),
        "{:#}",
        build["status"]["source"]
    );
    sandbox.remove().await
}

/// The part of Flux' GitRepository that matters; a Flux that is installed keeps its own.
async fn flux_kind(client: &kube::Client) -> Result<()> {
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "gitrepositories.source.toolkit.fluxcd.io";
    if crds.get_opt(name).await?.is_none() {
        let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let crd = json!({"metadata": {"name": name}, "spec": {
            "group": "source.toolkit.fluxcd.io", "scope": "Namespaced",
            "names": {"kind": "GitRepository", "listKind": "GitRepositoryList", "plural": "gitrepositories", "singular": "gitrepository"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": any, "status": any}}}}]}});
        crds.create(&Default::default(), &serde_json::from_value(crd)?).await?;
    }
    until(60, "the API to serve GitRepositories", async || {
        let found = client.list_api_group_resources("source.toolkit.fluxcd.io/v1").await;
        Ok(found.ok().filter(|list| list.resources.iter().any(|r| r.kind == "GitRepository")))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_flux_artifact_builds_and_its_successor_builds_again() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("flux").await?;
    flux_kind(&sandbox.client).await?;
    let (root, served) = files(address).await?;
    let spec = json!({"source": {"flux": {"kind": "GitRepository", "name": "app"}},
        "output": {"image": crate::target(&registry, &sandbox.name, "app")}});
    sandbox.apply("app", &spec).await?;
    sandbox
        .wait("app", 60, "waiting for its source", |b| reason(b, "Ready") == Some("SourceNotFound"))
        .await?;

    let kind = GroupVersionKind::gvk("source.toolkit.fluxcd.io", "v1", "GitRepository");
    let resource = ApiResource::from_gvk_with_plural(&kind, "gitrepositories");
    let repositories: Api<DynamicObject> =
        Api::namespaced_with(sandbox.client.clone(), &sandbox.name, &resource);
    let object = json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository",
        "metadata": {"name": "app"}, "spec": {"interval": "1m", "url": "https://example.com/app"}});
    repositories.create(&Default::default(), &serde_json::from_value(object)?).await?;
    for run in [1, 2] {
        let bytes = archive(&[("Dockerfile", &format!("FROM busybox\nRUN echo artifact {run}\n"))])?;
        let (path, digest) = (format!("/{run}.tar.gz"), digest(&bytes));
        served.lock().map_err(|e| anyhow::anyhow!("{e}"))?.insert(path.clone(), bytes);
        let revision = format!("main@sha1:{run}");
        let status = json!({"status": {"artifact": {"url": format!("{root}{path}"), "digest": digest,
            "revision": revision, "path": "x", "lastUpdateTime": "2026-01-01T00:00:00Z"}}});
        repositories.patch_status("app", &PatchParams::default(), &Patch::Merge(&status)).await?;
        // A kind that is new to the cluster is noticed within a minute.
        let build = sandbox
            .wait("app", 240, "built from the artifact", |b| {
                b["status"]["run"] == run && reason(b, "Ready") == Some("ImagePushed")
            })
            .await?;
        let source = &build["status"]["source"];
        ensure!(source["revision"] == revision.as_str() && source["digest"] == digest.as_str(), "{source:#}");
    }
    sandbox.remove().await
}
