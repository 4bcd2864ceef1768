//! What may befall that by which the operator learns of an attempt: a journal that is rotated, a report whose author is killed, a
//! pod whose labels somebody removes.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kiln_e2e::cluster::{Sandbox, until};
use kiln_e2e::process::Processes;
use kiln_e2e::{operator, registry::Registry};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::in_mid_build;
use crate::outages::built;

/// That one attempt, in one pod, came to the image; and that all that it did is in the status.
async fn built_at_once(sandbox: &Sandbox, registry: &Registry) -> Result<()> {
    let status = &built(sandbox, registry, 240, 1).await?["status"];
    let attempts = status["attempts"].as_array().map_or(0, Vec::len);
    ensure!(attempts == 1 && sandbox.pods().await?.len() == 1, "{status:#}");
    let steps = status["steps"].as_array().cloned().unwrap_or_default();
    ensure!(steps.iter().all(|s| s["state"] == "Done" && s["finishedAt"].is_string()), "{steps:?}");
    Ok(())
}

/// Has a kubelet rotate logs at so small a size that a journal does not fit, until it is given back.
struct SmallLogs {
    settings: String,
    before: String,
    kubelet: String,
}

impl SmallLogs {
    fn of(node: &str) -> Result<Self> {
        let kubelet = format!("--hostname-override={node}");
        let settings = Processes::find("kubelet", &kubelet)?.flag("--config")?;
        let before = fs::read_to_string(&settings).with_context(|| settings.clone())?;
        let small = format!("{before}containerLogMaxSize: \"1500\"\ncontainerLogMonitorInterval: 3s\n");
        fs::write(&settings, small)?;
        let this = Self { settings, before, kubelet };
        this.restart()?;
        Ok(this)
    }

    /// One that was killed is started again by the harness.
    fn restart(&self) -> Result<()> {
        Processes::find("kubelet", &self.kubelet)?.signal("KILL")
    }
}

impl Drop for SmallLogs {
    fn drop(&mut self) {
        let restored = fs::write(&self.settings, &self.before).map_err(anyhow::Error::from);
        if let Err(error) = restored.and_then(|()| self.restart()) {
            eprintln!("the kubelet's settings could not be given back: {error:#}");
        }
    }
}

#[tokio::test]
async fn a_journal_that_is_rotated_away_costs_nothing() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("rotated").await?;
    let dockerfile = "FROM busybox\nRUN sleep 600 || echo x > /x\nRUN echo y > /y\n";
    let pod = in_mid_build(&sandbox, &registry, dockerfile).await?;
    let name = pod.metadata.name.context("a name")?;
    let _small = SmallLogs::of(pod.spec.and_then(|s| s.node_name).as_deref().context("a node")?)?;
    until(180, "the journal's beginning to be rotated away", async || {
        let journal = sandbox.logs(&name, "courier").await.unwrap_or_default();
        Ok((!journal.is_empty() && !journal.contains("\"planned\"")).then_some(()))
    })
    .await?;
    // One that has not read the beginning.
    operator::kill(&sandbox.client).await?;
    let uid = pod.metadata.uid.context("a UID")?;
    Processes::find("sleep", &uid)?.signal("TERM")?;
    built_at_once(&sandbox, &registry).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_report_counts_though_its_courier_is_killed_behind_it() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("reported").await?;
    let pod = in_mid_build(&sandbox, &registry, "FROM busybox\nRUN sleep 2; echo x > /x\n").await?;
    let (name, uid) = (pod.metadata.name.context("a name")?, pod.metadata.uid.context("a UID")?);
    // Nobody gives the permit, until the builder that waits for the courier's answer stands still.
    operator::scale(&sandbox.client, 0).await?;
    until(120, "the push to be done", async || {
        let journal = sandbox.logs(&name, "courier").await.unwrap_or_default();
        Ok(journal.contains("readyToTag").then_some(()))
    })
    .await?;
    let builder = Processes::find("kiln-builder", &uid)?;
    builder.signal("STOP")?;
    operator::scale(&sandbox.client, 1).await?;
    let courier = Processes::find("kiln-courier", &uid)?;
    until(120, "the report", async || {
        Ok(courier.file("/dev/termination-log")?.contains("succeeded").then_some(()))
    })
    .await?;
    courier.signal("KILL")?;
    builder.signal("CONT")?;
    built_at_once(&sandbox, &registry).await?;
    sandbox.remove().await
}

#[tokio::test]
async fn a_pod_whose_labels_somebody_removes_is_still_the_builds() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("labels").await?;
    let pod = in_mid_build(&sandbox, &registry, "FROM busybox\nRUN sleep 5; echo x > /x\n").await?;
    let pods: Api<Pod> = sandbox.api();
    let name = pod.metadata.name.context("a name")?;
    let none = Patch::Merge(json!({"metadata": {"labels": null}}));
    pods.patch(&name, &PatchParams::default(), &none).await?;
    let build = sandbox.succeeded("app", 120).await?;
    ensure!(build["status"]["attempts"].as_array().map_or(0, Vec::len) == 1, "{:#}", build["status"]);
    let all = pods.list(&Default::default()).await?.items;
    ensure!(all.len() == 1 && all[0].metadata.uid == pod.metadata.uid, "no second pod was made");
    sandbox.remove().await
}
