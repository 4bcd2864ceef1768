//! The watches against an API server in memory: what its lists and events come to, and who is woken by them.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use hyper::{Request, Response};
use kiln_api::ImageBuild;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower::service_fn;

use super::*;
use crate::clock::Clock;
use crate::config::Config;
use crate::image_build::events::Publisher;
use crate::journals::Wake;
use crate::lease::Leadership;
use crate::metrics::Metrics;

fn policy(version: u32, spec: &Value) -> Value {
    json!({"apiVersion": "kiln.build/v1alpha1", "kind": "BuildPolicy",
        "metadata": {"name": "small", "uid": "p", "resourceVersion": version.to_string()}, "spec": spec})
}

fn namespace(name: &str, tier: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "uid": name, "resourceVersion": "1", "labels": {"tier": tier}}})
}

fn list(kind: &str, version: &str, items: &[Value]) -> Value {
    json!({"apiVersion": version, "kind": kind, "metadata": {"resourceVersion": "1"}, "items": items})
}

/// Answers lists at once, the first watch of policies with one change, every other watch never.
fn server() -> kube::Client {
    let told = Arc::new(AtomicBool::new(false));
    let selector = json!({"matchLabels": {"tier": "small"}});
    let before = json!({"namespaceSelector": selector, "output": {"allowedRepositories": []}});
    let after = json!({"namespaceSelector": selector, "concurrency": {"total": 3}});
    let service = service_fn(move |request: Request<Body>| {
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().is_some_and(|q| q.contains("watch=true"));
        let (told, before, after) = (told.clone(), before.clone(), after.clone());
        async move {
            let body = match (path.as_str(), watch) {
                ("/apis/kiln.build/v1alpha1/buildpolicies", false) => {
                    list("BuildPolicyList", "kiln.build/v1alpha1", &[policy(1, &before)])
                }
                ("/apis/kiln.build/v1alpha1/buildpolicies", true) if !told.swap(true, Ordering::Relaxed) => {
                    json!({"type": "MODIFIED", "object": policy(2, &after)})
                }
                ("/api/v1/namespaces", false) => list("NamespaceList", "v1", &[namespace("team-a", "small")]),
                ("/api/v1/namespaces/team-b", _) => namespace("team-b", "large"),
                _ => std::future::pending().await,
            };
            let body = format!("{body}\n").into_bytes();
            Response::builder().status(200).body(Body::from(body)).map_err(std::io::Error::other)
        }
    });
    kube::Client::new(service, "default")
}

fn context() -> (Arc<Context>, mpsc::UnboundedReceiver<Wake>) {
    let client = server();
    let (wake, wakes) = mpsc::unbounded_channel();
    let clock = Clock::simulated(Arc::new(AtomicI64::new(0)));
    let config = Config::parse("builderImage: b").expect("good");
    let leadership = Leadership::simulated(client.clone());
    let events = Publisher::new(client.clone(), "test");
    let metrics = Arc::new(Metrics::new());
    (Arc::new(Context::new(client, clock, config, leadership, metrics, events, wake)), wakes)
}

fn refused(namespace: &str) -> ImageBuild {
    let object = json!({"apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild",
        "metadata": {"name": "app", "namespace": namespace, "uid": format!("u-{namespace}")},
        "spec": {"source": {}},
        "status": {"observedGeneration": 1, "failure": {"class": "Policy", "reason": "PolicyRefused", "message": "m",
            "retryable": false}}});
    serde_json::from_value(object).expect("an ImageBuild")
}

#[tokio::test]
async fn lists_come_first_and_a_change_wakes_who_was_refused() {
    let (ctx, mut wakes) = context();
    ctx.note(&refused("team-a"));
    let scopes = vec![None];
    let (listed, mut synced) = watch::channel(0);
    let watching = tokio::spawn(run(ctx.clone(), scopes.clone(), listed));
    synced.wait_for(|done| *done == lists(&scopes)).await.expect("both lists");
    // Whatever was seen by then, in the end the change counts, and nobody else is woken.
    loop {
        assert_eq!(wakes.recv().await, Some(("team-a".to_owned(), "app".to_owned())));
        let now = effective(&ctx, "team-a").await.expect("known");
        if now.concurrency.groups == [("small".to_owned(), 3)] {
            assert!(now.outputs.is_empty(), "the policy as it was is forgotten");
            break;
        }
        assert!(now.status.names.is_empty() || now.outputs[0].repositories.is_empty());
    }
    // One that no watch has shown is asked for.
    let other = effective(&ctx, "team-b").await.expect("asked for");
    assert!(other.status.names.is_empty() && other.concurrency.groups.is_empty());
    watching.abort();
}
