//! Faults: the operator killed in each phase, the pod taken away. One image, one status, nothing twice.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kiln_e2e::cluster::{Sandbox, condition, inline, until};
use kiln_e2e::{image, operator, registry::Registry};
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

/// That the build came to exactly one image by exactly one attempt.
async fn once(sandbox: &Sandbox, registry: &Registry, name: &str, build: &Value) -> Result<()> {
    ensure!(build["status"]["run"] == 1, "{:#}", build["status"]);
    let attempts = build["status"]["attempts"].as_array().map_or(0, Vec::len);
    ensure!(attempts <= 1, "{attempts} attempts: {:#}", build["status"]);
    let found = image::read(registry, &format!("{}/{name}", sandbox.name), "latest").await?;
    ensure!(build["status"]["image"]["digest"] == found.digest.as_str());
    Ok(())
}

#[tokio::test]
async fn operator_killed_over_and_over_while_builds_are_made() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("killstart").await?;
    let names = ["a", "b", "c"];
    for name in names {
        let target = crate::target(&registry, &sandbox.name, name);
        sandbox.apply(name, &inline("FROM busybox\nRUN echo x > /x\n", &target)).await?;
        operator::kill(&sandbox.client).await?;
    }
    // Killed again each time it has got one step further: a request, a pod, a status.
    for pods in 1..=names.len() {
        until(120, "the next pod", async || Ok((sandbox.pods().await?.len() >= pods).then_some(()))).await?;
        operator::kill(&sandbox.client).await?;
    }
    for name in names {
        let build = sandbox.succeeded(name, 240).await?;
        once(&sandbox, &registry, name, &build).await?;
    }
    ensure!(sandbox.pods().await?.len() == names.len(), "one pod per build");
    sandbox.remove().await
}

#[tokio::test]
async fn operator_killed_while_a_step_runs() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("killrun").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox
        .apply("app", &inline("FROM busybox\nRUN sleep 8; echo x > /x\nRUN echo y > /y\n", &target))
        .await?;
    sandbox.wait("app", 120, "running", |b| b["status"]["steps"][1]["state"] == "Running").await?;
    operator::kill(&sandbox.client).await?;
    let build = sandbox.succeeded("app", 180).await?;
    once(&sandbox, &registry, "app", &build).await?;
    ensure!(sandbox.pods().await?.len() == 1);
    let steps = build["status"]["steps"].as_array().cloned().unwrap_or_default();
    ensure!(steps.iter().all(|s| s["state"] == "Done" && s["startedAt"].is_string()), "{steps:?}");
    sandbox.remove().await
}

#[tokio::test]
async fn operator_killed_between_push_and_report() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("killtag").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN sleep 2; echo x > /x\n", &target)).await?;
    let pod = until(120, "the pod", async || Ok(sandbox.pods().await?.pop())).await?;
    let pod = pod.metadata.name.unwrap_or_default();
    operator::scale(&sandbox.client, 0).await?;
    until(120, "the push to be done", async || {
        let log = sandbox.logs(&pod, "courier").await.unwrap_or_default();
        Ok(log.contains("readyToTag").then_some(()))
    })
    .await?;
    operator::scale(&sandbox.client, 1).await?;
    operator::kill(&sandbox.client).await?;
    let build = sandbox.succeeded("app", 180).await?;
    once(&sandbox, &registry, "app", &build).await?;
    ensure!(sandbox.pods().await?.len() == 1, "nothing was built twice");
    sandbox.remove().await
}

#[tokio::test]
async fn operator_away_while_a_build_fails() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("away").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN sleep 3; exit 9\n", &target)).await?;
    sandbox.wait("app", 120, "running", |b| b["status"]["steps"][1]["state"] == "Running").await?;
    operator::scale(&sandbox.client, 0).await?;
    until(120, "the pod to end", async || {
        let pods = sandbox.pods().await?;
        Ok(pods
            .iter()
            .all(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Failed"))
            .then_some(()))
    })
    .await?;
    operator::scale(&sandbox.client, 1).await?;
    let build = sandbox.finished("app", 90).await?;
    ensure!(build["status"]["failure"]["exitCode"] == 9, "{:#}", build["status"]["failure"]);
    ensure!(build["status"]["steps"][1]["state"] == "Failed", "{:#}", build["status"]["steps"]);
    sandbox.remove().await
}

#[tokio::test]
async fn a_pod_deleted_in_mid_build_is_made_again() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("poddel").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN sleep 5; echo x > /x\n", &target)).await?;
    sandbox.wait("app", 120, "running", |b| b["status"]["steps"][1]["state"] == "Running").await?;
    let pods: Api<Pod> = sandbox.api();
    let name = sandbox.pods().await?.remove(0).metadata.name.unwrap_or_default();
    pods.delete(&name, &DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() }).await?;
    let build = sandbox.succeeded("app", 240).await?;
    ensure!(
        condition(&build, "Ready") == Some("True") && build["status"]["run"] == 1,
        "{:#}",
        build["status"]
    );
    let attempts = build["status"]["attempts"].as_array().cloned().unwrap_or_default();
    ensure!(attempts.iter().any(|a| a.to_string().contains("Infrastructure")), "{attempts:?}");
    image::read(&registry, &format!("{}/app", sandbox.name), "latest").await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_step_out_of_memory_says_so() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("oom").await?;
    let mut spec = inline(
        "FROM busybox\nRUN x=a; while true; do x=$x$x; done\n",
        &crate::target(&registry, &sandbox.name, "app"),
    );
    spec["resources"] = json!({"limits": {"memory": "128Mi"}});
    sandbox.apply("app", &spec).await?;
    let build = sandbox.finished("app", 180).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "OutOfMemory" && failure["step"] == 2, "{failure:#}");
    sandbox.remove().await
}
