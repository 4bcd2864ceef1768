//! Sources that the builder pod fetches: git over ssh, archives, Flux artifacts, and git repositories for ADD. The servers are processes of this test, at the
//! address of the cluster's registry, which pods reach; where that address is not this machine's, the tests say so and end.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kiln_e2e::cluster::{Sandbox, inline, reason, until};
use kiln_e2e::image;
use kiln_e2e::registry::{Registry, digest};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// This machine's address as pods see it; `None` where the cluster is elsewhere.
fn address(registry: &Registry) -> Option<IpAddr> {
    let found = registry.host().to_socket_addrs().ok()?.next()?.ip();
    if std::net::TcpListener::bind((found, 0)).is_ok() {
        return Some(found);
    }
    eprintln!("not run: {found} is not this machine's address, so no pod would reach a server of this test");
    None
}

/// Makes a Secret and lists it in the default service account's `secrets`.
async fn secret(sandbox: &Sandbox, name: &str, data: &Value) -> Result<()> {
    let secret = json!({"metadata": {"name": name}, "stringData": data});
    sandbox.api::<Secret>().create(&Default::default(), &serde_json::from_value(secret)?).await?;
    let accounts = sandbox.api::<ServiceAccount>();
    let mut listed = serde_json::to_value(accounts.get("default").await?.secrets.unwrap_or_default())?;
    listed.as_array_mut().context("a list")?.push(json!({"name": name}));
    accounts.patch("default", &PatchParams::default(), &Patch::Merge(&json!({"secrets": listed}))).await?;
    Ok(())
}

fn sh(dir: &Path, script: &str) -> Result<String> {
    let out = Command::new("sh").args(["-ec", script]).current_dir(dir).output()?;
    ensure!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// A server of ssh that knows one key.
struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    async fn start(address: IpAddr) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        sh(
            dir.path(),
            "for k in host user stranger; do ssh-keygen -q -t ed25519 -N '' -f $k; done; mkdir -p /run/sshd",
        )?;
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let config = format!(
            "Port {port}\nListenAddress {address}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\n\
             PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config"), config)?;
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(dir.path().join("config")).stderr(Stdio::null());
        let child = command.spawn().context("sshd; scripts/check installs openssh-server")?;
        let sshd = Self { child, dir, port };
        until(10, "sshd to listen", async || Ok(tokio::net::TcpStream::connect((address, port)).await.ok()))
            .await?;
        Ok(sshd)
    }

    fn file(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join(name))?)
    }
}

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

/// A server of git's own protocol.
struct Daemon {
    child: Child,
    url: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Serves what is below `root`.
    async fn start(address: IpAddr, root: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let program = format!("{}/git-daemon", sh(root, "git --exec-path")?);
        let mut command = Command::new(program);
        command.args([
            "--export-all",
            "--reuseaddr",
            &format!("--listen={address}"),
            &format!("--port={port}"),
        ]);
        // The repositories are another user's where tests run as root.
        command.envs([
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "safe.directory"),
            ("GIT_CONFIG_VALUE_0", "*"),
        ]);
        command.arg(format!("--base-path={}", root.display())).arg(root).stderr(Stdio::null());
        let child = command.spawn().context("git-daemon, of the package git")?;
        let daemon = Self { child, url: format!("git://{address}:{port}") };
        until(10, "git-daemon to listen", async || {
            Ok(tokio::net::TcpStream::connect((address, port)).await.ok())
        })
        .await?;
        Ok(daemon)
    }
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

/// Serves files by path until the test ends; what it serves can change.
async fn files(address: IpAddr) -> Result<(String, Arc<Mutex<BTreeMap<String, Vec<u8>>>>)> {
    let listener = TcpListener::bind((address, 0)).await?;
    let root = format!("http://{}", listener.local_addr()?);
    let files = Arc::new(Mutex::new(BTreeMap::<String, Vec<u8>>::new()));
    let served = files.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let served = served.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let got = stream.read(&mut head).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..got]).into_owned();
                let path = text.split_whitespace().nth(1).unwrap_or_default();
                let found = served.lock().ok().and_then(|files| files.get(path).cloned());
                let (status, body) = found.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.into_bytes(), body].concat()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    Ok((root, files))
}

/// A tar.gz as Flux makes one: modes 0600, no owners.
fn archive(dockerfile: &str) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(dockerfile.len() as u64);
    header.set_mode(0o600);
    tar.append_data(&mut header, "./Dockerfile", dockerfile.as_bytes())?;
    Ok(tar.into_inner()?.finish()?)
}

#[tokio::test]
async fn an_archive_must_be_the_one_that_its_checksum_names() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("http").await?;
    let (root, served) = files(address).await?;
    let bytes = archive("FROM busybox\nRUN echo from an archive\n")?;
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
        let bytes = archive(&format!("FROM busybox\nRUN echo artifact {run}\n"))?;
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
