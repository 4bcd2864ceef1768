//! Traces of runs, sent by OTLP over HTTP when a run ends: the run, its wait in the queue, its attempts, their steps, the push.
//! Made from the status alone, so that an operator that started in between sends the same. They hold names, numbers and
//! digests; no text of a Dockerfile, no message, no value.
//!
//! A run belongs to the trace of the object's annotation `kiln.build/traceparent` (W3C Trace Context), where it has one that
//! is sampled; otherwise it is a trace of its own. Settings: the environment variables of the OTLP exporter specification,
//! `OTEL_EXPORTER_OTLP_ENDPOINT` and its relatives; without an endpoint nothing is sent.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use kiln_api::v1alpha1::{AttemptStatus, HistoryEntry, RunResult, StepState, StepStatus};
use kiln_api::{ImageBuild, ImageBuildStatus, TRACEPARENT_ANNOTATION};
use kube::ResourceExt as _;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::image_build::events::ended_runs;

/// Runs that wait to be sent while the collector is slow or away; further ones are dropped, and the log says so.
const WAITING: usize = 256;

/// Hands ended runs to the task that sends them.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<mpsc::Sender<Vec<SpanData>>>);

impl Traces {
    /// A sender and its task, which ends with the last clone of the sender; `None` where no endpoint is set.
    ///
    /// # Errors
    /// The settings are not those of an exporter.
    pub fn from_environment() -> anyhow::Result<Option<Self>> {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        if !set("OTEL_EXPORTER_OTLP_ENDPOINT") && !set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return Ok(None);
        }
        let builder = SpanExporter::builder().with_http();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        Ok(Some(Self::spawn(builder.with_http_client(client).build()?)))
    }

    fn spawn(mut exporter: SpanExporter) -> Self {
        // What OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME say goes before.
        let resource =
            Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let resource = match std::env::var("OTEL_SERVICE_NAME") {
            Ok(_) => resource,
            Err(_) => resource.with_service_name("kiln-operator"),
        };
        exporter.set_resource(&resource.build());
        let (sender, mut receiver) = mpsc::channel::<Vec<SpanData>>(WAITING);
        tokio::spawn(async move {
            while let Some(spans) = receiver.recv().await {
                if let Err(error) = exporter.export(spans).await {
                    tracing::warn!(%error, "the trace of a run could not be sent to the OTLP endpoint");
                }
            }
        });
        Self(Some(sender))
    }

    /// Sends the runs that ended with this change of the status.
    pub fn stored(&self, build: &ImageBuild, before: &ImageBuildStatus, after: &ImageBuildStatus) {
        let Some(sender) = &self.0 else { return };
        for entry in ended_runs(before, after) {
            // Where another run took its place, what is known of it is in the status before.
            let status = if after.run == Some(entry.run) { after } else { before };
            let spans = spans(build, status, entry);
            if !spans.is_empty() && sender.try_send(spans).is_err() {
                tracing::warn!("the trace of a run was dropped: the OTLP endpoint takes them too slowly");
            }
        }
    }
}

/// Where the spans of a run belong.
struct Frame {
    trace: TraceId,
    seed: String,
    spans: Vec<SpanData>,
}

impl Frame {
    /// The identity of a span: what it is of, so that it is the same whoever sends it.
    fn id(&self, what: &str) -> SpanId {
        let hash: [u8; 32] = Sha256::digest(format!("{}/{what}", self.seed)).into();
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&hash[..8]);
        SpanId::from_bytes(bytes)
    }

    fn add(
        &mut self,
        what: &str,
        name: String,
        parent: SpanId,
        time: (Timestamp, Timestamp),
    ) -> &mut SpanData {
        let (start, end) = (SystemTime::from(time.0), SystemTime::from(time.1.max(time.0)));
        let state = opentelemetry::trace::TraceState::default();
        let span_context = SpanContext::new(self.trace, self.id(what), TraceFlags::SAMPLED, false, state);
        self.spans.push(SpanData {
            span_context,
            parent_span_id: parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: name.into(),
            start_time: start,
            end_time: end,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder("kiln").build(),
        });
        let last = self.spans.len() - 1;
        &mut self.spans[last]
    }
}

/// The spans of a run; none when its trace is not sampled.
fn spans(build: &ImageBuild, status: &ImageBuildStatus, entry: &HistoryEntry) -> Vec<SpanData> {
    let seed = format!("{}/{}", build.uid().unwrap_or_default(), entry.run);
    let hash: [u8; 32] = Sha256::digest(&seed).into();
    let mut own = [0; 16];
    own.copy_from_slice(&hash[..16]);
    let parent = parent(build);
    if parent.as_ref().is_some_and(|p| !p.is_sampled()) {
        return Vec::new();
    }
    let trace = parent.as_ref().map_or(TraceId::from_bytes(own), SpanContext::trace_id);
    let mut frame = Frame { trace, seed, spans: Vec::new() };
    let (begun, done) = (entry.start_time.0, entry.completion_time.0);
    let root = frame.id("run");
    let (name, namespace) = (build.name_any(), build.namespace().unwrap_or_default());

    let span = frame.add(
        "run",
        format!("build {namespace}/{name}"),
        parent.as_ref().map_or(SpanId::INVALID, SpanContext::span_id),
        (begun, done),
    );
    span.parent_span_is_remote = parent.is_some();
    span.attributes = vec![
        KeyValue::new("k8s.namespace.name", namespace),
        KeyValue::new("kiln.build.name", name),
        KeyValue::new("kiln.build.uid", build.uid().unwrap_or_default()),
        KeyValue::new("kiln.run", entry.run),
        KeyValue::new("kiln.result", format!("{:?}", entry.result)),
        KeyValue::new("kiln.reason", entry.reason.clone()),
    ];
    span.attributes.extend(entry.digest.clone().map(|digest| KeyValue::new("kiln.image.digest", digest)));
    span.status =
        if entry.result == RunResult::Succeeded { Status::Ok } else { Status::error(entry.reason.clone()) };

    let attempts = if status.run == Some(entry.run) { status.attempts.as_slice() } else { &[] };
    if let Some(first) = attempts.first() {
        frame.add("queue", "queue".to_owned(), root, (begun, first.started_at.0));
    }
    for attempt in attempts {
        self::attempt(&mut frame, root, attempt, done);
    }
    // Only the last attempt's steps are in the status, and of another run none.
    let Some(last) = attempts.last() else { return frame.spans };
    let parent = frame.id(&format!("attempt {}", last.number));
    let mut end = None;
    for step in &status.steps {
        let Some(started) = step.started_at.as_ref().map(|t| t.0) else { continue };
        let finished = step.finished_at.as_ref().map_or(done, |t| t.0);
        end = end.max(Some(finished));
        self::step(&mut frame, parent, step, status.steps.len(), (started, finished));
    }
    if let (RunResult::Succeeded, Some(end)) = (entry.result, end) {
        frame.add("push", "push".to_owned(), parent, (end, done));
    }
    frame.spans
}

fn attempt(frame: &mut Frame, root: SpanId, attempt: &AttemptStatus, done: Timestamp) {
    let what = format!("attempt {}", attempt.number);
    let end = attempt.finished_at.as_ref().map_or(done, |t| t.0);
    let span = frame.add(&what, what.clone(), root, (attempt.started_at.0, end));
    span.attributes.push(KeyValue::new("k8s.pod.name", attempt.pod_name.clone()));
    span.attributes.extend(attempt.pod_uid.clone().map(|uid| KeyValue::new("k8s.pod.uid", uid)));
    if let (Some(class), reason) = (attempt.class, attempt.reason.clone()) {
        span.attributes.push(KeyValue::new("kiln.failure.class", format!("{class:?}")));
        span.status = Status::error(reason.unwrap_or_default());
    }
}

fn step(frame: &mut Frame, parent: SpanId, step: &StepStatus, count: usize, time: (Timestamp, Timestamp)) {
    // The instruction's word; what follows it is the author's text.
    let word = step.instruction.split_whitespace().next().unwrap_or_default();
    let what = format!("step {}", step.index);
    let span = frame.add(&what, format!("step {}/{count} {word}", step.index), parent, time);
    span.attributes = vec![
        KeyValue::new("kiln.step", i64::from(step.index)),
        KeyValue::new("kiln.stage", step.stage.clone()),
        KeyValue::new("kiln.dockerfile.line", i64::from(step.line)),
        KeyValue::new("kiln.step.state", format!("{:?}", step.state)),
    ];
    span.attributes.extend(step.exit_code.map(|code| KeyValue::new("process.exit.code", i64::from(code))));
    if let Some(layer) = &step.layer {
        span.attributes.push(KeyValue::new("kiln.layer.digest", layer.digest.clone()));
        span.attributes.push(KeyValue::new("kiln.layer.size", layer.size));
    }
    if step.state == StepState::Failed {
        span.status = Status::error("Failed");
    }
}

/// What the annotation names. One that is not valid is as none: a build does not fail by its trace.
fn parent(build: &ImageBuild) -> Option<SpanContext> {
    let value = build.annotations().get(TRACEPARENT_ANNOTATION)?.clone();
    let carrier = HashMap::from([("traceparent".to_owned(), value)]);
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier);
    let found = context.span().span_context().clone();
    found.is_valid().then_some(found)
}

#[cfg(test)]
#[path = "traces_tests.rs"]
mod tests;
