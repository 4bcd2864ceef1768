//! Logs: JSON lines on stderr, level by `RUST_LOG` (`info` when unset). Each line about a build has a `span` that names it.

use kiln_api::ImageBuild;
use kiln_api::v1alpha1::StepState;
use kube::ResourceExt as _;
use tracing::{Span, Subscriber, field};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. Call once, at start.
pub fn init() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // There is no other subscriber: it is called once.
    let _ = tracing::subscriber::set_global_default(json(filter, std::io::stderr));
}

/// Writes JSON lines.
fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_writer(writer)
        .with_env_filter(filter)
        .finish()
}

/// The span of whatever is done for a build: who it is and how far it has come, nothing of its spec.
pub fn build_span(build: &ImageBuild) -> Span {
    let status = build.status.as_ref();
    let run = status.and_then(|s| s.run);
    let attempt = status.and_then(|s| s.attempts.last()).map(|a| a.number);
    let running = |s: &&kiln_api::v1alpha1::StepStatus| s.state == StepState::Running;
    let step = status.and_then(|s| s.steps.iter().find(running)).map(|s| s.index);
    let span = tracing::info_span!(
        "build",
        build = build.name_any(),
        namespace = build.namespace().unwrap_or_default(),
        uid = build.uid().unwrap_or_default(),
        run = field::Empty,
        attempt = field::Empty,
        step = field::Empty,
    );
    for (name, number) in [("run", run), ("attempt", attempt.map(i64::from)), ("step", step.map(i64::from))] {
        if let Some(number) = number {
            span.record(name, number);
        }
    }
    span
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use serde_json::{Value, json};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_about_a_build_names_it_and_says_nothing_of_its_spec() {
        let build: ImageBuild = serde_json::from_value(json!({
            "apiVersion": "kiln.build/v1alpha1", "kind": "ImageBuild",
            "metadata": {"name": "app", "namespace": "team", "uid": "u-1"},
            "spec": {"source": {"inline": {"files": [{"path": "Dockerfile", "content": "FROM hidden-content"}]}},
                "args": [{"name": "TOKEN", "value": "hidden-value"}], "output": {"image": "r.example/a:1"}},
            "status": {"run": 3,
                "attempts": [{"number": 2, "podName": "app-1", "startedAt": "2026-01-01T00:00:00Z"}],
                "steps": [{"index": 1, "stage": "0", "line": 1, "instruction": "FROM hidden-base", "state": "Done"},
                    {"index": 2, "stage": "0", "line": 2, "instruction": "RUN hidden-run", "state": "Running"}]},
        }))
        .expect("an ImageBuild");
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = super::json(EnvFilter::new("info"), move || writer.clone());
        tracing::subscriber::with_default(subscriber, || {
            build_span(&build).in_scope(|| tracing::info!(pod = "app-1", "made builder pod"));
        });
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        let line: Value = serde_json::from_str(text.trim_end()).expect("one line of JSON");
        let expected = json!({"name": "build", "build": "app", "namespace": "team", "uid": "u-1", "run": 3,
            "attempt": 2, "step": 2});
        assert_eq!((&line["span"], &line["pod"]), (&expected, &json!("app-1")), "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}
