//! Faults: the operator killed in each phase, the pod taken away. One image, one status, nothing twice.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kiln_e2e::cluster::{Sandbox, condition, inline, until};
use kiln_e2e::process::Processes;
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

#[tokio::test]
async fn a_container_killed_whole_for_its_memory_says_so_too() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("oomall").await?;
    // The kernel kills one process, and the step goes on; the rest of the container, which cgroup v2 would have killed with it,
    // is killed here.
    let dockerfile =
        "FROM busybox\nRUN sh -c 'x=a; while true; do x=$x$x; done' || true; echo survived; sleep 300\n";
    let mut spec = inline(dockerfile, &crate::target(&registry, &sandbox.name, "app"));
    spec["resources"] = json!({"limits": {"memory": "128Mi"}});
    sandbox.apply("app", &spec).await?;
    let uid = until(180, "the first process to be killed", async || {
        let Some(pod) = sandbox.pods().await?.pop() else { return Ok(None) };
        let name = pod.metadata.name.context("a name")?;
        let log = sandbox.logs(&name, "build").await.unwrap_or_default();
        Ok(log.lines().any(|line| line.ends_with("survived")).then_some(pod.metadata.uid))
    })
    .await?;
    Processes::find("kiln-builder", &uid.context("a UID")?)?.signal("KILL")?;
    let build = sandbox.finished("app", 120).await?;
    let failure = &build["status"]["failure"];
    ensure!(failure["class"] == "OutOfMemory" && failure["step"] == 2, "{failure:#}");
    ensure!(failure["message"].to_string().contains("spec.resources.limits.memory"), "{failure:#}");
    sandbox.remove().await
}

#[tokio::test]
async fn two_operators_make_each_pod_once_and_the_second_takes_over() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("two").await?;
    operator::scale(&sandbox.client, 2).await?;
    let names: Vec<String> = (1..=6).map(|n| format!("b{n}")).collect();
    for name in &names {
        let target = crate::target(&registry, &sandbox.name, name);
        sandbox.apply(name, &inline("FROM busybox\nRUN sleep 3; echo x > /x\n", &target)).await?;
    }
    until(120, "a pod", async || Ok((!sandbox.pods().await?.is_empty()).then_some(()))).await?;
    let leader = operator::leader(&sandbox.client).await?;
    operator::remove(&sandbox.client, &leader).await?;
    for name in &names {
        let build = sandbox.succeeded(name, 240).await?;
        once(&sandbox, &registry, name, &build).await?;
    }
    ensure!(operator::leader(&sandbox.client).await? != leader, "{leader} is gone");
    ensure!(sandbox.pods().await?.len() == names.len(), "one pod per build");
    operator::scale(&sandbox.client, 1).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn an_image_of_ours_that_is_not_there_is_named() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("nopull").await?;
    let wrong = format!("{}/not/there:v0", registry.host());
    let before = operator::settings(&sandbox.client, |text| {
        let line = |line: &str| match line.split_once(':') {
            Some(("builderImage", _)) => format!("builderImage: {wrong}\n"),
            Some(("podStartGrace", _)) => "podStartGrace: 30s\n".to_owned(),
            _ => format!("{line}\n"),
        };
        text.lines().map(line).collect()
    })
    .await?;
    sandbox
        .apply("app", &inline("FROM busybox\nRUN true\n", &crate::target(&registry, &sandbox.name, "app")))
        .await?;
    let told = sandbox
        .wait("app", 60, "told of the image", |b| b["status"]["conditions"].to_string().contains(&wrong))
        .await;
    let ended = match &told {
        Ok(_) => sandbox.finished("app", 120).await,
        Err(_) => Ok(Value::Null),
    };
    operator::settings(&sandbox.client, |_| before).await?;
    let conditions = told?["status"]["conditions"].to_string();
    ensure!(conditions.contains("ErrImagePull") || conditions.contains("ImagePullBackOff"), "{conditions}");
    let failure = &ended?["status"]["failure"];
    ensure!(failure["class"] == "Infrastructure" && failure["reason"] == "PodStartFailed", "{failure:#}");
    ensure!(failure["message"].to_string().contains(&wrong), "{failure:#}");
    sandbox.annotate("app", "kiln.build/rebuild", json!("mended")).await?;
    let rebuilt = |b: &Value| b["status"]["run"] == 2 && condition(b, "Ready") == Some("True");
    sandbox.wait("app", 240, "rebuilt", rebuilt).await?;
    sandbox.remove().await
}
