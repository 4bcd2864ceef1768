//! What is put on the cluster: nodes, namespaces, ImageBuilds; and what the API server can do without an operator.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kiln_api::ImageBuild;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::fleet::Key;
use crate::story;

/// Requests under way at the same time where it goes as fast as it can.
const ABREAST: usize = 64;
/// Nodes that kwok plays.
const NODES: usize = 20;

fn object<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// Makes the nodes; kwok, which runs by then, makes them ready.
///
/// # Errors
/// The API refused one, or they do not become ready.
pub async fn nodes(client: &Client) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    for n in 0..NODES {
        let node = object(json!({"metadata": {
            "name": format!("kwok-{n}"), "annotations": {"kwok.x-k8s.io/node": "fake"}, "labels": {"type": "kwok"},
        }}))?;
        exists(nodes.create(&PostParams::default(), &node).await)?;
    }
    let ready = |node: &Node| {
        let conditions = node.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    until(60, "nodes that are ready", async || {
        let found = nodes.list(&ListParams::default().labels("type=kwok")).await?;
        Ok((found.items.iter().filter(|n| ready(n)).count() == NODES).then_some(()))
    })
    .await
}

fn exists<T>(made: Result<T, kube::Error>) -> Result<()> {
    match made {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Asks again until `probe` yields something.
///
/// # Errors
/// It did not within so many seconds, or `probe` failed.
pub async fn until<T>(
    seconds: u64,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tick.tick().await;
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < end, "waited {seconds} s in vain for {what}");
    }
}

/// Makes namespaces, and waits for their service accounts.
///
/// # Errors
/// The API refused one, or an account does not appear.
pub async fn namespaces(client: &Client, names: &[String]) -> Result<()> {
    let all: Api<Namespace> = Api::all(client.clone());
    stream::iter(names)
        .map(|name| {
            let (all, client) = (all.clone(), client.clone());
            async move {
                let namespace = object(json!({"metadata": {"name": name}}))?;
                exists(all.create(&PostParams::default(), &namespace).await)?;
                let accounts: Api<ServiceAccount> = Api::namespaced(client, name);
                until(120, "the namespace's default service account", async || {
                    Ok(accounts.get_opt("default").await?)
                })
                .await
                .map(drop)
            }
        })
        .buffer_unordered(16)
        .try_collect()
        .await
}

/// An ImageBuild as a user writes it.
///
/// # Errors
/// Never: the JSON is one.
pub fn build(key: &Key, suspend: bool) -> Result<ImageBuild> {
    let (namespace, name) = key;
    object(json!({
        "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {"inline": {"files": [{"path": "Dockerfile", "content": story::DOCKERFILE}]}},
            "output": {"image": format!("registry.example.com/{namespace}/{name}:1")},
            "suspend": suspend,
        },
    }))
}

/// Creates per second without anything that watches, for ImageBuilds and for pods of the builder's size.
///
/// # Errors
/// The API refused one.
pub async fn ceiling(client: &Client, objects: usize) -> Result<(f64, f64)> {
    let name = "scale-ceiling".to_owned();
    namespaces(client, std::slice::from_ref(&name)).await?;
    let builds: Api<ImageBuild> = Api::namespaced(client.clone(), &name);
    let per_second = |began: Instant| objects as f64 / began.elapsed().as_secs_f64();
    let began = Instant::now();
    stream::iter(0..objects)
        .map(|n| {
            let (builds, key) = (builds.clone(), (name.clone(), format!("b{n}")));
            async move {
                Ok::<_, anyhow::Error>(builds.create(&PostParams::default(), &build(&key, true)?).await?)
            }
        })
        .buffer_unordered(ABREAST)
        .try_for_each(async |_| Ok(()))
        .await?;
    let of_builds = per_second(began);
    let pods: Api<Pod> = Api::namespaced(client.clone(), &name);
    let began = Instant::now();
    stream::iter(0..objects)
        .map(|n| {
            let pods = pods.clone();
            async move {
                // No scheduler has that name.
                let container = |name: &str| json!({"name": name, "image": "i", "resources": {"requests": {"cpu": "500m"}}});
                let pod: Pod = object(json!({
                    "metadata": {"name": format!("p{n}"), "annotations": {"padding": "x".repeat(3000)}},
                    "spec": {"schedulerName": "none", "restartPolicy": "Never", "automountServiceAccountToken": false,
                        "initContainers": [container("courier")], "containers": [container("build")]},
                }))?;
                Ok::<_, anyhow::Error>(pods.create(&PostParams::default(), &pod).await?)
            }
        })
        .buffer_unordered(ABREAST)
        .try_for_each(async |_| Ok(()))
        .await?;
    let of_pods = per_second(began);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    builds.delete_collection(&now, &ListParams::default()).await?;
    pods.delete_collection(&now, &ListParams::default()).await?;
    Ok((of_builds, of_pods))
}

/// Creates ImageBuilds, so many a second, or as fast as it goes; tells when each was asked for.
///
/// # Errors
/// The API refused one.
pub async fn create(client: &Client, keys: &[Key], rate: Option<f64>) -> Result<HashMap<Key, Instant>> {
    let began = Instant::now();
    let asked = Arc::new(std::sync::Mutex::new(HashMap::new()));
    let paced = stream::iter(keys.iter().enumerate()).then(|(n, key)| async move {
        if let Some(rate) = rate {
            let due = began + Duration::from_secs_f64(n as f64 / rate);
            tokio::time::sleep_until(due.into()).await;
        }
        key
    });
    paced
        .map(|key| {
            let (client, asked) = (client.clone(), asked.clone());
            async move {
                let builds: Api<ImageBuild> = Api::namespaced(client, &key.0);
                let object = build(key, false)?;
                let at = Instant::now();
                builds.create(&PostParams::default(), &object).await.with_context(|| format!("{key:?}"))?;
                asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(key.clone(), at);
                Ok::<_, anyhow::Error>(())
            }
        })
        .buffer_unordered(ABREAST)
        .try_collect::<()>()
        .await?;
    let asked = asked.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(asked.clone())
}
