//! Results of steps kept in a registry: taken by the next build of the namespace, and by no other's.

use anyhow::{Result, ensure};
use kiln_e2e::cluster::{Sandbox, inline};
use kiln_e2e::registry::Registry;
use serde_json::{Value, json};

fn states(build: &Value) -> Vec<&str> {
    let steps = build["status"]["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    steps.iter().filter_map(|step| step["state"].as_str()).collect()
}

#[tokio::test]
async fn the_next_build_takes_steps_from_the_cache_and_another_namespace_does_not() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let (mine, other) = (Sandbox::new("cache").await?, Sandbox::new("cache-other").await?);
    // No two runs of it make the same.
    let dockerfile =
        "FROM busybox\nRUN head -c 16 /dev/urandom | sha256sum > /x\nRUN cp /x /y\nCMD [\"cat\", \"/y\"]\n";
    let kept = json!({"repository": format!("{}/{}/steps", registry.host(), mine.name)});
    let spec = |sandbox: &Sandbox, name: &str| {
        let mut spec = inline(dockerfile, &crate::target(&registry, &sandbox.name, name));
        spec["cache"] = kept.clone();
        spec
    };
    mine.apply("first", &spec(&mine, "first")).await?;
    let first = mine.succeeded("first", 180).await?;
    ensure!(states(&first) == ["Done"; 4], "{:#}", first["status"]["steps"]);
    // What is kept is sent once the image is there, until the builder ends.
    let pod = first["status"]["podRef"]["name"].as_str().unwrap_or_default().to_owned();
    kiln_e2e::cluster::until(60, "the builder to end", async || {
        let pods = mine.pods().await?;
        let ended = |p: &k8s_openapi::api::core::v1::Pod| {
            p.metadata.name.as_ref() == Some(&pod)
                && p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded")
        };
        Ok(pods.iter().any(ended).then_some(()))
    })
    .await?;

    mine.apply("second", &spec(&mine, "second")).await?;
    let second = mine.succeeded("second", 180).await?;
    ensure!(states(&second)[1..3] == ["Cached"; 2], "{:#}", second["status"]["steps"]);
    let layers = async |name: &str| -> Result<Value> {
        let repository = format!("{}/{name}", mine.name);
        let (_, bytes) = registry.manifest(&repository, "latest").await?.unwrap_or_default();
        Ok(serde_json::from_slice::<Value>(&bytes)?["layers"].take())
    };
    ensure!(layers("first").await? == layers("second").await?, "the same layers");

    other.apply("app", &spec(&other, "app")).await?;
    let app = other.succeeded("app", 180).await?;
    ensure!(states(&app) == ["Done"; 4], "{:#}", app["status"]["steps"]);
    other.remove().await?;
    mine.remove().await
}
