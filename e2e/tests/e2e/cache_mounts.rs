//! What `RUN --mount=type=cache` holds, from pod to pod: in a registry, and on a claim.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kiln_e2e::cluster::{Sandbox, inline, reason};
use kiln_e2e::registry::Registry;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

/// A build named `name` whose step says what its cache holds and adds its name.
fn spec(registry: &Registry, sandbox: &Sandbox, name: &str, cache: &Value) -> Value {
    let dockerfile = format!(
        "FROM busybox\nRUN --mount=type=cache,target=/c,uid=7,mode=0750 \
         echo found: $(cat /c/f), $(stat -c '%a %u' /c) && echo {name} >> /c/f\n"
    );
    let mut spec = inline(&dockerfile, &crate::target(registry, &sandbox.name, name));
    spec["cache"] = cache.clone();
    spec
}

/// Waits until the build's image is there and its builder has ended; what the builder said.
async fn log(sandbox: &Sandbox, name: &str) -> Result<String> {
    let build = sandbox.succeeded(name, 180).await?;
    let pod = build["status"]["podRef"]["name"].as_str().context("a pod")?.to_owned();
    kiln_e2e::cluster::until(60, "the builder to end", async || {
        let pods = sandbox.pods().await?;
        let ended = |p: &Pod| {
            p.metadata.name.as_ref() == Some(&pod)
                && p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Succeeded")
        };
        Ok(pods.iter().any(ended).then_some(()))
    })
    .await?;
    sandbox.logs(&pod, "build").await
}

fn says(log: &str, words: &str) -> Result<()> {
    ensure!(log.contains(words), "{words:?} is not in\n{log}");
    Ok(())
}

#[tokio::test]
async fn a_registry_has_it_for_the_next_pod_of_the_namespace() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let (mine, other) = (Sandbox::new("mounts").await?, Sandbox::new("mounts-other").await?);
    let cache = json!({"repository": format!("{}/{}/steps", registry.host(), mine.name)});
    mine.apply("first", &spec(&registry, &mine, "first", &cache)).await?;
    let first = log(&mine, "first").await?;
    says(&first, "found: , 750 7\n")?;
    let ready = first.find("Successfully tagged").context("tagged")?;
    ensure!(first.find("Cache mount /c: ").context("saved")? > ready, "{first}");
    mine.apply("second", &spec(&registry, &mine, "second", &cache)).await?;
    says(&log(&mine, "second").await?, "found: first, 750 7\n")?;
    other.apply("app", &spec(&registry, &other, "app", &cache)).await?;
    says(&log(&other, "app").await?, "found: , 750 7\n")?;
    other.remove().await?;
    mine.remove().await
}

#[tokio::test]
async fn a_claim_has_it_and_is_waited_for() -> Result<()> {
    let _guard = crate::with_operator().await;
    let registry = Registry::of_the_cluster()?;
    let sandbox = Sandbox::new("claim").await?;
    let cache = json!({"mounts": {"claimName": "caches"}});
    sandbox.apply("first", &spec(&registry, &sandbox, "first", &cache)).await?;
    let waiting = |b: &Value| reason(b, "Reconciling") == Some("WaitingForClaim");
    let build = sandbox.wait("first", 60, "waiting for the claim", waiting).await?;
    let conditions = build["status"]["conditions"].to_string();
    says(&conditions, "PersistentVolumeClaim caches (spec.cache.mounts.claimName) is not in namespace")?;

    // A directory of one node, where emptyDirs are: its file system is one that ids can be mapped on.
    let client = kiln_e2e::cluster::client().await?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?.items;
    let schedulable = |n: &&Node| n.spec.as_ref().is_none_or(|s| s.unschedulable != Some(true));
    let host = "kubernetes.io/hostname";
    let labels = nodes.iter().find(schedulable).and_then(|n| n.metadata.labels.as_ref());
    let node = labels.and_then(|labels| labels.get(host)).context("a node")?;
    let terms = json!([{"matchExpressions": [{"key": host, "operator": "In", "values": [node]}]}]);
    let volume = json!({
        "metadata": {"name": sandbox.name},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": sandbox.name, "name": "caches"},
            "hostPath": {"path": format!("/var/lib/kubelet/{}", sandbox.name), "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
        },
    });
    let volumes = Api::<PersistentVolume>::all(client);
    volumes.create(&Default::default(), &serde_json::from_value(volume)?).await?;
    let claim = json!({
        "metadata": {"name": "caches"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": sandbox.name,
            "resources": {"requests": {"storage": "1Gi"}}},
    });
    let claims = sandbox.api::<PersistentVolumeClaim>();
    claims.create(&Default::default(), &serde_json::from_value(claim)?).await?;

    says(&log(&sandbox, "first").await?, "found: , 750 7\n")?;
    sandbox.apply("second", &spec(&registry, &sandbox, "second", &cache)).await?;
    let second = log(&sandbox, "second").await?;
    says(&second, "found: first, 750 7\n")?;
    ensure!(!second.contains("Cache mount"), "nothing is taken from or saved to a registry: {second}");
    let name = sandbox.name.clone();
    sandbox.remove().await?;
    volumes.delete(&name, &DeleteParams::default()).await?;
    Ok(())
}
