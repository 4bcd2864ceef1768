//! What the collector gets, read with OTLP's own types from the requests that it gets.

use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn build(traceparent: Option<&str>) -> ImageBuild {
    let annotations = traceparent.map(|value| json!({TRACEPARENT_ANNOTATION: value}));
    serde_json::from_value(json!({
        "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild",
        "metadata": {"name": "app", "namespace": "team", "uid": "u-1", "annotations": annotations.unwrap_or(json!({}))},
        "spec": {"source": {"inline": {"files": [{"path": "Dockerfile", "content": "FROM hidden-content"}]}},
            "args": [{"name": "TOKEN", "value": "hidden-value"}], "output": {"image": "r.example/a:1"}},
    }))
    .unwrap()
}

fn status(result: &str, more: &Value) -> ImageBuildStatus {
    let mut status = json!({
        "observedGeneration": 1, "run": 3, "conditions": [],
        "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z",
        "attempts": [
            {"number": 1, "podName": "app-1", "startedAt": "2026-01-01T00:00:05Z", "finishedAt": "2026-01-01T00:00:20Z",
                "class": "Infrastructure", "reason": "BuilderLost", "message": "hidden-message"},
            {"number": 2, "podName": "app-2", "podUid": "p-2", "startedAt": "2026-01-01T00:00:21Z"}],
        "steps": [
            {"index": 1, "stage": "0", "line": 1, "instruction": "FROM hidden-base", "state": "Done",
                "startedAt": "2026-01-01T00:00:25.000000Z", "finishedAt": "2026-01-01T00:00:26.500000Z"},
            {"index": 2, "stage": "0", "line": 2, "instruction": "RUN hidden-run", "state": "Done", "exitCode": 0,
                "startedAt": "2026-01-01T00:00:27.000000Z", "finishedAt": "2026-01-01T00:00:50.000000Z",
                "layer": {"digest": "sha256:abc", "size": 7}},
            {"index": 3, "stage": "0", "line": 3, "instruction": "RUN never", "state": "Skipped"}],
        "history": [{"run": 3, "result": result, "reason": "TheReason", "digest": "sha256:image", "attempts": 2,
            "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:01:00Z"}],
    });
    if let (Some(status), Some(more)) = (status.as_object_mut(), more.as_object()) {
        status.extend(more.clone());
    }
    serde_json::from_value(status).unwrap()
}

/// What a collector gets of a status that was written over another.
async fn sent(build: &ImageBuild, before: &ImageBuildStatus, after: &ImageBuildStatus) -> Vec<Span> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let exporter = SpanExporter::builder().with_http().with_http_client(client).with_endpoint(endpoint);
    let traces = Traces::spawn(exporter.build().unwrap());
    traces.stored(build, before, after);
    let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept());
    let (mut stream, _) = accepted.await.unwrap().unwrap();
    let mut bytes = Vec::new();
    let body = loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.unwrap();
        assert!(read > 0, "the request ends early");
        bytes.extend_from_slice(&chunk[..read]);
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        assert!(text.starts_with("post /v1/traces "), "{text}");
        let length = text.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
        let end = head + 4 + length.parse::<usize>().unwrap();
        if bytes.len() >= end {
            break bytes[head + 4..end].to_vec();
        }
    };
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    for hidden in ["hidden", "TOKEN"] {
        assert!(!String::from_utf8_lossy(&body).contains(hidden), "{hidden} in the trace");
    }
    let request = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
    let resource = format!("{:?}", request.resource_spans[0].resource);
    assert!(resource.contains("kiln-operator"), "{resource}");
    request.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans).collect()
}

/// Name, name of the parent, seconds since the run began, seconds that it took.
fn tree(spans: &[Span]) -> Vec<(String, String, f64, f64)> {
    let second = |nanos: u64| nanos as f64 / 1e9;
    let zero = second(spans[0].start_time_unix_nano);
    let name = |id: &[u8]| spans.iter().find(|s| s.span_id == id).map(|s| s.name.clone()).unwrap_or_default();
    spans
        .iter()
        .map(|s| {
            let (start, end) = (second(s.start_time_unix_nano), second(s.end_time_unix_nano));
            let round = |value: f64| (value * 10.0).round() / 10.0;
            (s.name.clone(), name(&s.parent_span_id), round(start - zero), round(end - start))
        })
        .collect()
}

#[tokio::test]
async fn a_run_is_a_tree_of_queue_attempts_steps_and_push() {
    let after = status("Succeeded", &json!({}));
    let spans = sent(&build(None), &status("Failed", &json!({"history": []})), &after).await;
    let root = "build team/app";
    let expected = [
        (root, "", 0.0, 60.0),
        ("queue", root, 0.0, 5.0),
        ("attempt 1", root, 5.0, 15.0),
        ("attempt 2", root, 21.0, 39.0),
        ("step 1/3 FROM", "attempt 2", 25.0, 1.5),
        ("step 2/3 RUN", "attempt 2", 27.0, 23.0),
        ("push", "attempt 2", 50.0, 10.0),
    ];
    let expected: Vec<_> =
        expected.map(|(name, parent, from, took)| (name.to_owned(), parent.to_owned(), from, took)).into();
    assert_eq!(tree(&spans), expected);
    assert!(spans.iter().all(|s| s.trace_id == spans[0].trace_id && s.trace_id.len() == 16));
    assert!(spans[0].parent_span_id.is_empty() || spans[0].parent_span_id == [0; 8]);
    let attributes = format!("{:?}", spans[5].attributes);
    assert!(attributes.contains("sha256:abc") && attributes.contains("Done"), "{attributes}");
    // Whoever sends it, it is the same.
    let again = sent(&build(None), &status("Failed", &json!({"history": []})), &after).await;
    assert_eq!(again, spans);
}

#[tokio::test]
async fn a_run_belongs_to_the_trace_that_the_object_names() {
    let after = status("Failed", &json!({}));
    let before = status("Failed", &json!({"history": []}));
    let spans = sent(&build(Some(PARENT)), &before, &after).await;
    assert_eq!(hex::encode(&spans[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(hex::encode(&spans[0].parent_span_id), "b7ad6b7169203331");
    let error = spans[0].status.as_ref().map(|s| (s.code, s.message.clone()));
    assert_eq!(error, Some((2, "TheReason".to_owned())));
    assert!(spans.iter().all(|s| s.name != "push"), "{spans:?}");
    // One that can't be read is as none.
    let spans = sent(&build(Some("00-zz-1-01")), &before, &after).await;
    assert_ne!(hex::encode(&spans[0].trace_id), "0af7651916cd43dd8448eb211c80319c");
    // Not sampled.
    assert!(super::spans(&build(Some(&PARENT.replace("-01", "-00"))), &after, &after.history[0]).is_empty());
}

#[tokio::test]
async fn a_run_whose_place_another_took_is_sent_as_it_was() {
    let running = status("Failed", &json!({"history": [], "completionTime": null}));
    let next = status("Superseded", &json!({"run": 4, "attempts": [], "steps": [], "completionTime": null}));
    let spans = sent(&build(None), &running, &next).await;
    assert_eq!(spans.len(), 6, "run, queue, two attempts, two steps: {spans:?}");
    assert!(spans[0].attributes.iter().any(|a| a.key == "kiln.run" && format!("{a:?}").contains('3')));
}
