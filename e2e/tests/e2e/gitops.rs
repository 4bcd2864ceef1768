//! A pipeline as a platform team has it: commits to a git repository, Flux that applies them and waits, and images.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use kiln_e2e::cluster::{Sandbox, condition, reason};
use kiln_e2e::registry::Registry;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::runtime::{conditions::is_deleted, wait::await_condition};
use serde_json::{Value, json};
use tokio::time::{Duration, timeout};

use crate::flux::{Flux, objects};
use crate::git_https::GitHttps;
use crate::servers::{address, files, secret, sh};

/// What docs/gitops.md shows.
const KUSTOMIZATION: &str = include_str!("../../../docs/gitops/kustomize/kustomization.yaml");
const NAMES: &str = include_str!("../../../docs/gitops/kustomize/names.yaml");
const APP: &str = include_str!("../../../docs/gitops/kustomize/app.yaml");
const HEALTH: &str = include_str!("../../../docs/gitops/flux.yaml");

/// What `flux reconcile` sets: an annotation that asks by a new value.
const REQUESTED: &str = "reconcile.fluxcd.io/requestedAt";

/// The git repository and what Flux makes of it.
struct Pipeline {
    flux: Flux,
    work: tempfile::TempDir,
    git: Api<DynamicObject>,
    kustomizations: Api<DynamicObject>,
}

impl Pipeline {
    /// Commits what `script` does in the folder `images`, and has Flux fetch it; the revision in Flux's words.
    async fn commit(&self, script: &str) -> Result<String> {
        let commit = sh(
            self.work.path(),
            &format!(
                "cd r/images; {script}\ngit add -A .
                git -c user.name=a -c user.email=a@b commit -qm change && git -C .. push -q ../r.git main && git rev-parse HEAD"
            ),
        )?;
        let patch = json!({"metadata": {"annotations": {(REQUESTED): commit}}});
        self.git.patch("images", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(format!("main@sha1:{commit}"))
    }

    /// Waits until Flux checks the health of what it applied of a revision.
    async fn checks_health(&mut self, revision: &str) -> Result<Value> {
        self.flux
            .wait(&self.kustomizations, "images", "checking health", |k| {
                k["status"]["lastAttemptedRevision"] == revision
                    && message(k, "Reconciling").is_some_and(|m| m.starts_with("Running health checks"))
            })
            .await
    }

    /// Waits until the Kustomization is Ready with a revision.
    async fn ready(&mut self, revision: &str) -> Result<Value> {
        self.flux
            .wait(&self.kustomizations, "images", "ready", |k| {
                condition(k, "Ready") == Some("True") && k["status"]["lastAppliedRevision"] == revision
            })
            .await
    }

    /// Waits until the Kustomization has failed its health check, in the reconciliation that was asked for by that value.
    async fn failed(&mut self, revision: &str, request: Option<&str>) -> Result<Value> {
        self.flux
            .wait(&self.kustomizations, "images", "failed", |k| {
                k["status"]["lastAttemptedRevision"] == revision
                    && k["status"]["lastHandledReconcileAt"].as_str() == request
                    && reason(k, "Ready") == Some("HealthCheckFailed")
            })
            .await
    }

    /// Removes an object and waits until Flux has let it go.
    async fn delete(&mut self, api: &Api<DynamicObject>) -> Result<()> {
        let uid = api.get("images").await?.metadata.uid.context("a uid")?;
        api.delete("images", &DeleteParams::default()).await?;
        let gone = await_condition(api.clone(), "images", is_deleted(&uid));
        timeout(Duration::from_secs(60), gone).await.context("Flux keeps it")??;
        Ok(())
    }
}

fn message<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["message"].as_str()
}

/// When a condition became what it is, in the API's form, which sorts.
fn since<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|c| c["type"] == kind)?["lastTransitionTime"].as_str()
}

/// Writes the repository as it is before the first commit.
fn repository(work: &Path, target: &str, gate: &str) -> Result<()> {
    sh(work, "git init -q --bare -b main r.git && git init -q -b main r && mkdir r/images")?;
    let images = work.join("r/images");
    let app = APP.replace("registry.example.com/team/app:latest", target);
    ensure!(app != APP, "docs/gitops/kustomize/app.yaml names another image than this test replaces");
    let settings = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: blue}\n";
    for (file, text) in [
        ("kustomization.yaml", KUSTOMIZATION.replace("- app.yaml\n", "- app.yaml\n- settings.yaml\n")),
        ("names.yaml", NAMES.to_owned()),
        ("app.yaml", app),
        ("settings.yaml", settings.to_owned()),
        // The step ends when the test says so.
        (
            "Dockerfile",
            format!(
                "FROM busybox\nRUN until wget -q -O /gate {gate}/1; do sleep 0.2; done\nCMD [\"cat\", \"/gate\"]\n"
            ),
        ),
    ] {
        std::fs::write(images.join(file), text)?;
    }
    Ok(())
}

fn waits_in_run(run: u64) -> impl Fn(&Value) -> bool {
    move |b| b["status"]["run"] == run && b["status"]["steps"][1]["state"] == "Running"
}

#[tokio::test]
async fn commits_build_images_and_flux_waits_for_them() -> Result<()> {
    if std::env::var_os("KILN_E2E_FLUX").is_none() {
        println!(
            "not run: Flux takes minutes to build; KILN_E2E_FLUX=$(scripts/flux) scripts/e2e gitops, or FLUX=yes make test"
        );
        return Ok(());
    }
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let Some(address) = address(&registry) else { return Ok(()) };
    let sandbox = Sandbox::new("gitops").await?;
    let (gate, gates) = files(address).await?;
    let open = |path: &str| -> Result<()> {
        let bytes = format!("gate {path}\n").into_bytes();
        gates.lock().map_err(|e| anyhow::anyhow!("{e}"))?.insert(path.to_owned(), bytes);
        Ok(())
    };
    let repository_name = format!("{}/app", sandbox.name);
    let tagged = async || -> Result<Option<String>> {
        Ok(registry.manifest(&repository_name, "latest").await?.map(|(digest, _)| digest))
    };
    let work = tempfile::tempdir()?;
    repository(work.path(), &crate::target(&registry, &sandbox.name, "app"), &gate)?;
    let server = GitHttps::start(address, work.path(), "flux", "secret").await?;
    let login = json!({"username": "flux", "password": "secret", "ca.crt": server.authority});
    secret(&sandbox, "git", &login).await?;
    let flux = Flux::start(address, &sandbox).await?;
    let mut pipeline = Pipeline {
        git: objects(&sandbox, "source", "GitRepository"),
        kustomizations: objects(&sandbox, "kustomize", "Kustomization"),
        flux,
        work,
    };

    // The intervals are long: what happens in this test happens because it is asked for, or because Flux watches.
    let apply = PatchParams::apply("kiln-e2e").force();
    let git = json!({"apiVersion": "source.toolkit.fluxcd.io/v1", "kind": "GitRepository", "metadata": {"name": "images"},
        "spec": {"interval": "1h", "url": format!("{}/r.git", server.url), "ref": {"branch": "main"}, "secretRef": {"name": "git"}}});
    let mut kustomization: Value = serde_saphyr::from_str(HEALTH)?;
    kustomization["metadata"] = json!({"name": "images"});
    kustomization["spec"]["interval"] = json!("1h");
    kustomization["spec"]["timeout"] = json!("5m");
    kustomization["spec"]["targetNamespace"] = json!(sandbox.name);
    let expressions = kustomization["spec"]["healthCheckExprs"].take();
    kustomization["spec"].as_object_mut().context("a spec")?.remove("healthCheckExprs");
    ensure!(
        kustomization["spec"]["wait"] == true && expressions.is_array(),
        "docs/gitops/flux.yaml: {kustomization:#}"
    );
    pipeline.git.patch("images", &apply, &Patch::Apply(&git)).await?;
    pipeline.kustomizations.patch("images", &apply, &Patch::Apply(&kustomization)).await?;

    // The first commit: Flux waits while the step runs, and is Ready when the image is there.
    let first = pipeline.commit("true").await?;
    sandbox.wait("app", 180, "running its step", waits_in_run(1)).await?;
    let checking = pipeline.checks_health(&first).await?;
    ensure!(condition(&checking, "Ready") == Some("Unknown"), "{:#}", checking["status"]);
    ensure!(tagged().await?.is_none(), "nothing is tagged yet");
    open("/1")?;
    let ready = pipeline.ready(&first).await?;
    let first_digest = tagged().await?.context("Flux says Ready and the image is not there")?;
    let build = sandbox.succeeded("app", 10).await?;
    ensure!(build["status"]["image"]["digest"] == first_digest.as_str(), "{:#}", build["status"]["image"]);
    ensure!(
        since(&ready, "Ready") >= build["status"]["completionTime"].as_str(),
        "Ready before the image: {:#}\n{:#}",
        ready["status"],
        build["status"]
    );

    // A commit that touches something else rebuilds nothing.
    let other = pipeline.commit("sed -i s/blue/red/ settings.yaml").await?;
    pipeline.ready(&other).await?;
    let settings = sandbox.api::<k8s_openapi::api::core::v1::ConfigMap>().get("settings").await?;
    ensure!(settings.data.context("data")?["colour"] == "red", "the commit was applied");
    let same = sandbox.succeeded("app", 10).await?;
    ensure!(same["metadata"]["generation"] == build["metadata"]["generation"], "{:#}", same["metadata"]);
    ensure!(same["status"]["run"] == 1 && sandbox.pods().await?.len() == 1, "{:#}", same["status"]);
    ensure!(tagged().await?.as_ref() == Some(&first_digest), "the tag has not moved");

    // A commit that edits the Dockerfile rebuilds, and Flux waits for that image and not for the one that is there.
    let second = pipeline.commit("sed -i 's,/1;,/2;,' Dockerfile").await?;
    sandbox.wait("app", 180, "running its second run's step", waits_in_run(2)).await?;
    let checking = pipeline.checks_health(&second).await?;
    ensure!(condition(&checking, "Ready") == Some("Unknown"), "{:#}", checking["status"]);
    ensure!(checking["status"]["lastAppliedRevision"] == other.as_str(), "{:#}", checking["status"]);
    open("/2")?;
    let ready = pipeline.ready(&second).await?;
    let second_digest = tagged().await?.context("a tag")?;
    ensure!(second_digest != first_digest, "Flux says Ready and the tag has not moved");
    let build = sandbox.succeeded("app", 10).await?;
    ensure!(
        build["status"]["run"] == 2 && build["status"]["image"]["digest"] == second_digest.as_str(),
        "{:#}",
        build["status"]
    );
    ensure!(
        since(&ready, "Ready") >= build["status"]["completionTime"].as_str(),
        "Ready before the image: {:#}\n{:#}",
        ready["status"],
        build["status"]
    );

    // A commit that breaks it: Flux fails at once and names the object, which says what is wrong and where.
    let broken = pipeline.commit("sed -i 's,^RUN,RUNN,' Dockerfile").await?;
    let named = format!("ImageBuild/{}/app status: 'Failed'", sandbox.name);
    let failed = pipeline.failed(&broken, None).await?;
    let said = message(&failed, "Ready").context("a message")?;
    ensure!(said.contains("failed early due to stalled resources") && said.contains(&named), "{said}");
    let build = sandbox.finished("app", 10).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["reason"] == "DockerfileInvalid" && failure["line"] == 2, "{failure:#}");
    let why = failure["message"].as_str().context("a message")?;
    ensure!(why.contains("RUNN") && why.contains("RUN?"), "{why}");
    ensure!(message(&build, "Ready").is_some_and(|m| m.contains(why)), "{:#}", build["status"]["conditions"]);
    ensure!(
        sandbox.pods().await?.len() == 2 && tagged().await?.as_ref() == Some(&second_digest),
        "nothing was built"
    );
    ensure!(failed["status"]["lastAppliedRevision"] == second.as_str(), "{:#}", failed["status"]);

    // The health checks that the documentation has come to the same.
    kustomization["spec"]["healthCheckExprs"] = expressions;
    kustomization["metadata"]["annotations"] = json!({(REQUESTED): "with expressions"});
    pipeline.kustomizations.patch("images", &apply, &Patch::Apply(&kustomization)).await?;
    let failed = pipeline.failed(&broken, Some("with expressions")).await?;
    ensure!(message(&failed, "Ready").is_some_and(|m| m.contains(&named)), "{:#}", failed["status"]);

    // A commit that mends it builds at once.
    let mended = pipeline.commit("sed -i 's,^RUNN,RUN,' Dockerfile").await?;
    pipeline.ready(&mended).await?;
    let build = sandbox.succeeded("app", 10).await?;
    ensure!(
        build["status"]["failure"].is_null() && sandbox.pods().await?.len() == 3,
        "{:#}",
        build["status"]
    );
    ensure!(tagged().await?.as_deref() == build["status"]["image"]["digest"].as_str(), "the image is there");

    // What Flux applied, it takes away.
    let (git, kustomizations) = (pipeline.git.clone(), pipeline.kustomizations.clone());
    pipeline.delete(&kustomizations).await?;
    ensure!(sandbox.builds().get_opt("app").await?.is_none_or(|b| b.metadata.deletion_timestamp.is_some()));
    pipeline.delete(&git).await?;
    sandbox.remove().await
}
