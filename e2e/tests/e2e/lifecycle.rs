//! Runs: what starts one, what doesn't, and what ends one early.

use anyhow::{Result, ensure};
use kiln_e2e::cluster::{Sandbox, condition, inline, reason, until};
use kiln_e2e::operator;
use kiln_e2e::registry::Registry;
use serde_json::{Value, json};

#[tokio::test]
async fn an_edit_rebuilds_and_a_re_apply_does_not() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("edit").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    let repository = format!("{}/app", sandbox.name);
    let (first, second) = ("FROM busybox\nRUN echo 1 > /n\n", "FROM busybox\nRUN echo 2 > /n\n");
    sandbox.apply("app", &inline(first, &target)).await?;
    let one = sandbox.succeeded("app", 120).await?;
    let first_digest = registry.manifest(&repository, "latest").await?.map(|m| m.0);

    // Applying the same again, and a change that is no input of the build, start nothing.
    sandbox.apply("app", &inline(first, &target)).await?;
    let mut same = inline(first, &target);
    same["timeout"] = json!("30m");
    sandbox.apply("app", &same).await?;
    let build = sandbox.succeeded("app", 60).await?;
    ensure!(build["status"]["run"] == 1 && sandbox.pods().await?.len() == 1, "{:#}", build["status"]);
    ensure!(build["status"]["inputDigest"] == one["status"]["inputDigest"]);

    sandbox.apply("app", &inline(second, &target)).await?;
    let two = sandbox.wait("app", 120, "rebuilt", |b| b["status"]["run"] == 2 && done(b)).await?;
    ensure!(condition(&two, "Ready") == Some("True"));
    let second_digest = registry.manifest(&repository, "latest").await?.map(|m| m.0);
    ensure!(first_digest != second_digest, "the tag moved");
    ensure!(two["status"]["image"]["digest"].as_str() == second_digest.as_deref());

    // A -> B -> A builds a third time.
    sandbox.apply("app", &inline(first, &target)).await?;
    sandbox.wait("app", 120, "built a third time", |b| b["status"]["run"] == 3 && done(b)).await?;
    ensure!(sandbox.pods().await?.len() == 3);

    // So does the rebuild annotation, once per value.
    sandbox.annotate("app", "kiln.build/rebuild", json!("please")).await?;
    let four = sandbox.wait("app", 120, "rebuilt on request", |b| b["status"]["run"] == 4 && done(b)).await?;
    ensure!(four["status"]["lastHandledRebuild"] == "please");
    sandbox.annotate("app", "kiln.build/rebuild", Value::Null).await?;
    sandbox.annotate("app", "other", json!("touch")).await?;
    let after = sandbox.succeeded("app", 30).await?;
    ensure!(after["status"]["run"] == 4 && sandbox.pods().await?.len() == 4);
    sandbox.remove().await
}

/// Whether the present run has ended.
fn done(build: &Value) -> bool {
    matches!(condition(build, "Succeeded"), Some("True" | "False"))
        && build["status"]["completionTime"].is_string()
}

fn runs_step(number: usize) -> impl Fn(&Value) -> bool {
    move |b| b["status"]["steps"][number - 1]["state"] == "Running"
}

#[tokio::test]
async fn cancel_stops_the_step_and_keeps_the_pod_and_its_log() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("cancel").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    sandbox.apply("app", &inline("FROM busybox\nRUN echo before; sleep 600\n", &target)).await?;
    sandbox.wait("app", 120, "running its step", runs_step(2)).await?;
    sandbox.annotate("app", "kiln.build/cancel", json!("1")).await?;
    let build = sandbox.finished("app", 60).await?;
    ensure!(build["status"]["failure"]["class"] == "Cancelled", "{:#}", build["status"]["failure"]);
    ensure!(
        reason(&build, "Stalled") == Some("Cancelled") && condition(&build, "Succeeded") == Some("False")
    );
    let pods = sandbox.pods().await?;
    ensure!(pods.len() == 1, "the pod is kept");
    let log = sandbox.logs(pods[0].metadata.name.as_deref().unwrap_or_default(), "build").await?;
    ensure!(log.contains("before"), "{log}");
    ensure!(registry.tags(&format!("{}/app", sandbox.name)).await?.is_empty());
    sandbox.remove().await
}

#[tokio::test]
async fn suspend_stops_and_resume_builds() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("suspend").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    let mut spec = inline("FROM busybox\nRUN sleep 20\n", &target);
    sandbox.apply("app", &spec).await?;
    sandbox.wait("app", 120, "running its step", runs_step(2)).await?;
    spec["suspend"] = json!(true);
    sandbox.apply("app", &spec).await?;
    let build = sandbox.wait("app", 60, "suspended", |b| reason(b, "Ready") == Some("Suspended")).await?;
    ensure!(
        condition(&build, "Stalled") == Some("False") && condition(&build, "Succeeded") == Some("Unknown")
    );
    until(60, "the pod to end", async || {
        let pods = sandbox.pods().await?;
        let over = |p: &k8s_openapi::api::core::v1::Pod| {
            matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Failed" | "Succeeded"))
        };
        Ok(pods.iter().all(over).then_some(()))
    })
    .await?;
    ensure!(registry.tags(&format!("{}/app", sandbox.name)).await?.is_empty());
    spec["suspend"] = json!(false);
    sandbox.apply("app", &spec).await?;
    sandbox.succeeded("app", 120).await?;
    ensure!(registry.tags(&format!("{}/app", sandbox.name)).await? == ["latest"]);
    sandbox.remove().await
}

#[tokio::test]
async fn cancel_between_push_and_permit_leaves_the_tag_where_it_was() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("permit").await?;
    let target = crate::target(&registry, &sandbox.name, "app");
    let repository = format!("{}/app", sandbox.name);
    sandbox.apply("app", &inline("FROM busybox\nRUN echo 1 > /n\n", &target)).await?;
    sandbox.succeeded("app", 120).await?;
    let before = registry.manifest(&repository, "latest").await?.map(|m| m.0);

    sandbox.apply("app", &inline("FROM busybox\nRUN sleep 3; echo 2 > /n\n", &target)).await?;
    sandbox
        .wait("app", 60, "running the second run's step", |b| b["status"]["run"] == 2 && runs_step(2)(b))
        .await?;
    operator::scale(&sandbox.client, 0).await?;
    // Nobody gives a permit now; the courier's journal says when it waits for one.
    let pushed = until(90, "the image to wait for its permit", async || {
        for pod in sandbox.pods().await? {
            let log =
                sandbox.logs(&pod.metadata.name.unwrap_or_default(), "courier").await.unwrap_or_default();
            let ready = |l: &&str| l.contains("readyToTag") && !l.contains("checkpoint");
            if let Some(line) = log.lines().find(ready).filter(|_| !log.contains("\"succeeded\",")) {
                let line: Value = serde_json::from_str(line)?;
                let digest = line["event"]["image"]["digest"].as_str().unwrap_or_default().to_owned();
                if Some(&digest) != before.as_ref() {
                    return Ok(Some(digest));
                }
            }
        }
        Ok(None)
    })
    .await?;
    ensure!(registry.manifest(&repository, &pushed).await?.is_some(), "it is there by digest");
    ensure!(registry.manifest(&repository, "latest").await?.map(|m| m.0) == before, "the tag has not moved");
    sandbox.annotate("app", "kiln.build/cancel", json!("2")).await?;
    operator::scale(&sandbox.client, 1).await?;
    let build = sandbox.wait("app", 90, "cancelled", |b| reason(b, "Stalled") == Some("Cancelled")).await?;
    ensure!(build["status"]["run"] == 2);
    ensure!(registry.manifest(&repository, "latest").await?.map(|m| m.0) == before, "the tag has not moved");
    sandbox.remove().await
}
