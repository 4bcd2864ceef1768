//! Operators whose machine's clock is wrong: builds end when the API server's time says, and one such operator takes over from another.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::jiff::Timestamp;
use kiln_e2e::cluster::{Sandbox, inline};
use kiln_e2e::operator::{self, WithWrongClock};
use kiln_e2e::registry::Registry;
use kube::api::Api;
use serde_json::{Value, json};

/// Seconds that the clocks are wrong at most.
const WRONG: i64 = 600;
/// Seconds by which times in a status may differ from the API server's: an answer has whole seconds and is under way for some.
const EXACT: i64 = 5;

#[tokio::test]
async fn builds_end_by_the_api_servers_time_whatever_the_operators_clock_says() -> Result<()> {
    let _guard = crate::operator_to_myself().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("clock").await?;
    operator::scale(&sandbox.client, 0).await?;
    let seen = wrong_clocks(&sandbox, &registry).await;
    operator::scale(&sandbox.client, 1).await?;
    seen?;
    // What an operator left that was behind is taken over by one that is right.
    ended_well(&sandbox, "handed-on-by-behind").await?;
    sandbox.remove().await
}

async fn wrong_clocks(sandbox: &Sandbox, registry: &Registry) -> Result<()> {
    let dir = tempfile::tempdir()?;
    // One that is further behind would take the API server's certificate for one that is not valid yet.
    let namespaces: Api<Namespace> = Api::all(sandbox.client.clone());
    let oldest = namespaces.get("kube-system").await?.metadata.creation_timestamp.context("its time")?.0;
    let behind = WRONG.min(Timestamp::now().as_second() - oldest.as_second());
    ensure!(behind > 60, "the cluster is {behind} s old, and clocks that are less behind show nothing");

    let ahead = WithWrongClock::start(&sandbox.client, dir.path(), WRONG).await?;
    ends_in_time(sandbox, registry, "ahead").await?;
    runs(sandbox, registry, "handed-on-by-ahead").await?;
    said(&ahead, -WRONG)?;
    drop(ahead);

    let behind_one = WithWrongClock::start(&sandbox.client, dir.path(), -behind).await?;
    ended_well(sandbox, "handed-on-by-ahead").await?;
    ends_in_time(sandbox, registry, "behind").await?;
    runs(sandbox, registry, "handed-on-by-behind").await?;
    said(&behind_one, behind)
}

/// It has said in its log by how much the API server is ahead of it.
fn said(operator: &WithWrongClock, ahead: i64) -> Result<()> {
    let log = operator.log()?;
    let line = log.lines().find(|line| line.contains("clock differs")).with_context(|| log.clone())?;
    let line: Value = serde_json::from_str(line)?;
    let seconds = line["seconds"].as_i64().with_context(|| line.to_string())?;
    ensure!((seconds - ahead).abs() <= EXACT, "{ahead} s, and it says {line}");
    Ok(())
}

/// A build with time enough succeeds, one with too little is stopped when that is over, and what the status says of it is true.
async fn ends_in_time(sandbox: &Sandbox, registry: &Registry, name: &str) -> Result<()> {
    let (good, late) = (format!("{name}-good"), format!("{name}-late"));
    let mut spec = inline("FROM busybox\nRUN sleep 2\n", &crate::target(registry, &sandbox.name, &good));
    spec["timeout"] = json!("3m");
    sandbox.apply(&good, &spec).await?;
    let mut spec = inline("FROM busybox\nRUN sleep 900\n", &crate::target(registry, &sandbox.name, &late));
    spec["timeout"] = json!("25s");
    sandbox.apply(&late, &spec).await?;
    ended_well(sandbox, &good).await?;
    let build = sandbox.finished(&late, 120).await?;
    ensure!(build["status"]["failure"]["class"] == "Timeout", "{:#}", build["status"]);
    let (began, ended) = times(&build)?;
    ensure!((25 - EXACT..60).contains(&(ended - began)), "stopped after {} s", ended - began);
    Ok(())
}

/// A build that goes on for a while is in its second step.
async fn runs(sandbox: &Sandbox, registry: &Registry, name: &str) -> Result<()> {
    let mut spec = inline("FROM busybox\nRUN sleep 10\n", &crate::target(registry, &sandbox.name, name));
    spec["timeout"] = json!("3m");
    sandbox.apply(name, &spec).await?;
    sandbox.wait(name, 120, "running", |b| b["status"]["steps"][1]["state"] == "Running").await?;
    Ok(())
}

async fn ended_well(sandbox: &Sandbox, name: &str) -> Result<()> {
    let build = sandbox.succeeded(name, 180).await?;
    let attempts = build["status"]["attempts"].as_array().map_or(0, Vec::len);
    ensure!(attempts == 1, "{name} took {attempts} attempts: {:#}", build["status"]);
    times(&build)?;
    Ok(())
}

/// Start and end of a run, which lie between the object's creation and now.
fn times(build: &Value) -> Result<(i64, i64)> {
    let time = |value: &Value| -> Result<i64> {
        let text = value.as_str().with_context(|| format!("{build:#}"))?;
        Ok(text.parse::<Timestamp>()?.as_second())
    };
    let created = time(&build["metadata"]["creationTimestamp"])?;
    let began = time(&build["status"]["startTime"])?;
    let ended = time(&build["status"]["completionTime"])?;
    let now = Timestamp::now().as_second();
    ensure!(
        created - EXACT <= began && began <= ended && ended <= now + EXACT,
        "created {created}, began {began}, ended {ended}, now {now}: {:#}",
        build["status"]
    );
    Ok((began, ended))
}
