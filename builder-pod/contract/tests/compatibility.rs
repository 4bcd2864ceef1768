//! What operator, courier and builder of neighbouring releases promise one another (docs/compatibility.md), over files that a
//! release wrote: `data/v1` is never changed, only added to. `KILN_WRITE_DATA=1` writes what is not there yet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use kiln_contract::control::{Permit, Stop};
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::journal::{BuildState, Event, Line, PlannedStep, StepPhase, Warning, Warnings};
use kiln_contract::policy::{AllowList, Network, Policy, Proxy};
use kiln_contract::report::{Outcome, Pushed, Report};
use kiln_contract::request::{
    BuildRequest, Cache, Compression, Content, File, Isolation, Mirror, Output, Registries, Source,
};
use kiln_contract::source::Fetched;
use kiln_contract::{VERSION, reads};
use serde::Serialize;
use serde_json::Value;

const ATTEMPT: &str = "3f0c9f4e-5a44-4a4b-9a52-0d4c5a1f7e11-2-1";
const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/v1").join(name)
}

fn stored(name: &str) -> String {
    std::fs::read_to_string(data(name)).expect(name)
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("it serialises")
}

/// The stored text, which this release must still write just so.
fn golden(name: &str, written: &str) -> String {
    let path = data(name);
    if !path.exists() && std::env::var_os("KILN_WRITE_DATA").is_some() {
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
        std::fs::write(&path, written).expect("written");
    }
    let stored = stored(name);
    assert_eq!(stored, written, "{name}: this release writes other bytes than version {VERSION} had");
    stored
}

fn pushed() -> Pushed {
    Pushed { reference: "registry.example/team/app:1".into(), digest: DIGEST.into(), size: 3_711_042 }
}

fn failure() -> Failure {
    let failure = Failure::new(
        FailureClass::User,
        reason::STEP_FAILED,
        "the command ended with exit code 2, expected 0",
    );
    Failure {
        exit_code: Some(2),
        ..failure.at("Dockerfile", 3).in_step(3).with_log_tail("make: *** no rule\n")
    }
}

/// Every event that there is, as a build that succeeds and one that fails write them.
fn journals() -> [(&'static str, Vec<Event>); 2] {
    let step = |line, text: &str| PlannedStep { stage: "build".into(), line, instruction: text.into() };
    let warning =
        Warning { rule: "FromAsCasing".into(), line: 1, message: "as and FROM differ in casing".into() };
    let fetched = Fetched { revision: "main@sha1:1b2c".into(), digest: Some(DIGEST.into()) };
    let begin = vec![
        Event::CourierStarted { attempt: ATTEMPT.into() },
        Event::SourceFetched { source: fetched },
        Event::BuilderStarted { isolation: "UserNamespace".into() },
        Event::Warnings(Warnings { count: 1, items: vec![warning] }),
        Event::Planned {
            steps: vec![step(1, "FROM alpine as build"), step(2, "COPY . ."), step(3, "RUN make")],
        },
        Event::StepStarted { step: 1 },
        Event::StepDone { step: 1, cached: false, cache_miss: None },
        Event::StepStarted { step: 2 },
        Event::StepDone { step: 2, cached: true, cache_miss: None },
        Event::StepStarted { step: 3 },
    ];
    let mut good = begin.clone();
    good.extend([
        Event::Heartbeat,
        Event::StepDone { step: 3, cached: false, cache_miss: None },
        Event::Layer { step: 3, digest: DIGEST.into(), size: 1024 },
        Event::Pushing,
        Event::ReadyToTag { image: pushed() },
        Event::Succeeded { image: pushed() },
    ]);
    let mut bad = begin;
    bad.extend([
        Event::StepFailed { step: 3, exit_code: Some(2), cache_miss: None },
        Event::Failed { failure: failure() },
    ]);
    [("journal-success.jsonl", good), ("journal-failure.jsonl", bad)]
}

/// The lines of `events` with a checkpoint of them at the end.
fn lines(events: Vec<Event>) -> (Vec<Line>, BuildState) {
    let line =
        |seq: u64, event| Line { v: VERSION, seq, at: format!("2026-01-02T03:04:{seq:02}.000000Z"), event };
    let mut all: Vec<Line> = (1u64..).zip(events).map(|(seq, event)| line(seq, event)).collect();
    let state = bare(fold(&all));
    all.push(line(all.len() as u64 + 1, Event::Checkpoint { state: Box::new(state.clone()) }));
    let state = BuildState { seq: state.seq + 1, ..state };
    (all, state)
}

fn fold<'a>(lines: impl IntoIterator<Item = &'a Line>) -> BuildState {
    let mut state = BuildState::default();
    lines.into_iter().for_each(|line| state.apply(line));
    state
}

fn read(text: &str) -> Vec<Line> {
    text.lines().filter_map(Line::parse).collect()
}

/// Without what its reader adds.
fn bare(state: BuildState) -> BuildState {
    BuildState { at: String::new(), ..state }
}

/// The event's name; a new event has to be given one here, and then a place in [`journals`].
fn name(event: &Event) -> &'static str {
    match event {
        Event::CourierStarted { .. } => "courierStarted",
        Event::SourceFetched { .. } => "sourceFetched",
        Event::BuilderStarted { .. } => "builderStarted",
        Event::Planned { .. } => "planned",
        Event::Warnings(_) => "warnings",
        Event::StepStarted { .. } => "stepStarted",
        Event::StepDone { .. } => "stepDone",
        Event::Layer { .. } => "layer",
        Event::StepFailed { .. } => "stepFailed",
        Event::Pushing => "pushing",
        Event::ReadyToTag { .. } => "readyToTag",
        Event::Succeeded { .. } => "succeeded",
        Event::Failed { .. } => "failed",
        Event::Heartbeat => "heartbeat",
        Event::Checkpoint { .. } => "checkpoint",
    }
}

#[test]
fn stored_journals_are_read_to_the_state_that_they_tell() {
    let mut told = BTreeSet::new();
    for (file, events) in journals() {
        let (lines, state) = lines(events);
        let written: String = lines.iter().map(|line| json(line) + "\n").collect();
        let text = golden(file, &written);
        let back = read(&text);
        assert_eq!(back, lines, "{file}");
        assert_eq!(bare(fold(&back)), state, "{file}");
        // Its checkpoint alone tells it all.
        assert_eq!(bare(fold(back.last())), state, "{file}");
        for line in &back {
            assert!(json(line).contains(&format!("\"type\":\"{}\"", name(&line.event))), "{line:?}");
            told.insert(name(&line.event));
        }
    }
    assert_eq!(told.len(), 15, "an event has no stored line: {told:?}");
}

#[test]
fn stored_reports_requests_permits_and_orders_are_read() {
    for (file, outcome) in [
        ("report-success.json", Outcome::Succeeded(pushed())),
        ("report-failure.json", Outcome::Failed(failure())),
    ] {
        let report = Report { version: VERSION, attempt: ATTEMPT.into(), outcome };
        assert_eq!(Report::parse(&golden(file, &report.to_json()), ATTEMPT), Some(report));
    }
    let request = request();
    let text = golden("request.json", &json(&request));
    assert_eq!(BuildRequest::parse(text.as_bytes()), Ok(request.clone()));
    // Added later than the file above, and without a new version: a request has it where it says something.
    let request = BuildRequest { policy: policy(), ..request };
    let text = golden("request-policy.json", &json(&request));
    assert_eq!(BuildRequest::parse(text.as_bytes()), Ok(request.clone()));
    let cache = Cache { repository: "registry.example/team/cache".into(), scope: "team".into() };
    let request = BuildRequest { cache: Some(cache), ..request };
    let text = golden("request-cache.json", &json(&request));
    assert_eq!(BuildRequest::parse(text.as_bytes()), Ok(request.clone()));
    let request = BuildRequest { compression: Compression::Zstd, ..request };
    let text = golden("request-compression.json", &json(&request));
    assert_eq!(BuildRequest::parse(text.as_bytes()), Ok(request));
    let permit = Permit { attempt: ATTEMPT.into(), digest: DIGEST.into(), expires: 1_767_323_107 };
    assert_eq!(serde_json::from_str::<Permit>(&golden("permit.json", &json(&permit))).expect("read"), permit);
    let stop = Stop { attempt: ATTEMPT.into(), reason: reason::SUPERSEDED.into() };
    assert_eq!(serde_json::from_str::<Stop>(&golden("stop.json", &json(&stop))).expect("read"), stop);
}

/// Added later than the journals, and without a new version: who does not know it passes it over.
#[test]
fn why_a_step_was_not_in_the_cache_is_read_and_need_not_be() {
    let why = |text: &str| Some(text.to_owned());
    let (_, before) = journals().into_iter().next().expect("one");
    let mut events: Vec<Event> = before.into_iter().take(10).collect();
    events.extend([
        Event::StepDone { step: 1, cached: false, cache_miss: why("its variables changed") },
        Event::StepFailed { step: 3, exit_code: Some(2), cache_miss: why("the files changed") },
    ]);
    let (lines, state) = lines(events);
    let written: String = lines.iter().map(|line| json(line) + "\n").collect();
    let text = golden("journal-cache-miss.jsonl", &written);
    assert_eq!(bare(fold(&read(&text))), state);
    assert_eq!(bare(fold(read(&text).last())), state, "the checkpoint tells it, too");
    let said: Vec<_> = state.steps.iter().map(|step| step.cache_miss.as_deref()).collect();
    assert_eq!(said, [Some("its variables changed"), None, Some("the files changed")]);
    // As a release wrote it that did not know it.
    let without = text.replace(",\"cacheMiss\":\"the files changed\"", "");
    let first: Vec<Line> = read(&without).into_iter().take(12).collect();
    assert_eq!(fold(&first).steps[2].cache_miss, None);
    assert_eq!(fold(&first).steps[2].phase, StepPhase::Failed);
}

fn policy() -> Policy {
    Policy {
        base_images: vec![AllowList {
            by: "BuildPolicy tenants: spec.baseImages.allowedRepositories".into(),
            repositories: vec!["docker.io/library/*".into()],
        }],
        network: Network {
            proxy: Some(Proxy {
                http: Some("http://proxy.example:3128".into()),
                https: Some("http://proxy.example:3128".into()),
                no_proxy: vec![".svc".into()],
            }),
            ca_bundle: Some("-----BEGIN CERTIFICATE-----\n".into()),
        },
    }
}

fn request() -> BuildRequest {
    let text = "FROM alpine\nRUN make\n".to_owned();
    BuildRequest {
        version: VERSION,
        attempt: ATTEMPT.into(),
        source: Source::Files(vec![File { path: "Dockerfile".into(), content: Content::Text(text) }]),
        context_dir: ".".into(),
        dockerfile: "Dockerfile".into(),
        dockerfile_text: None,
        target: Some("build".into()),
        args: BTreeMap::from([("VERSION".into(), "1".into())]),
        labels: BTreeMap::from([("team".into(), "a".into())]),
        entitlements: Vec::new(),
        contexts: BTreeMap::new(),
        platform: "linux/amd64".into(),
        output: Output::Registry { references: vec!["registry.example/team/app:1".into()], permit: true },
        compression: Compression::Gzip,
        isolation: Isolation::UserNamespace,
        timeout_seconds: 3600,
        registries: Registries {
            mirrors: vec![Mirror {
                registry: "docker.io".into(),
                mirrors: vec!["mirror.example/hub".into()],
            }],
            insecure: Vec::new(),
        },
        policy: Policy::default(),
        cache: None,
    }
}

/// The same with a field that no release has, in this object and in each below it.
fn with_later_fields(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(with_later_fields);
            fields.insert("fieldOfALaterRelease".into(), serde_json::json!({"any": ["thing"]}));
        }
        Value::Array(items) => items.iter_mut().for_each(with_later_fields),
        _ => {}
    }
}

fn later(text: &str) -> String {
    let mut value = serde_json::from_str(text).expect("JSON");
    with_later_fields(&mut value);
    value.to_string()
}

#[test]
fn what_a_later_release_adds_is_passed_over() {
    for file in ["journal-success.jsonl", "journal-failure.jsonl"] {
        let text = stored(file);
        let added: String = text.lines().map(|line| later(line) + "\n").collect();
        assert_eq!(read(&added), read(&text), "{file}");
    }
    // Not beside an outcome's name: that an attempt ended in two ways is no addition.
    for file in ["report-success.json", "report-failure.json"] {
        let text = stored(file);
        let mut value: Value = serde_json::from_str(&text).expect("JSON");
        value["fieldOfALaterRelease"] = 1.into();
        value["outcome"].as_object_mut().expect("an object").values_mut().for_each(with_later_fields);
        assert_eq!(Report::parse(&value.to_string(), ATTEMPT), Report::parse(&text, ATTEMPT), "{file}");
    }
    let (permit, stop) = (stored("permit.json"), stored("stop.json"));
    let read: Permit = serde_json::from_str(&later(&permit)).expect("a permit");
    assert_eq!(json(&read), permit);
    let read: Stop = serde_json::from_str(&later(&stop)).expect("an order");
    assert_eq!(json(&read), stop);
}

#[test]
fn an_event_of_a_later_release_is_a_gap_that_a_checkpoint_closes() {
    let text = stored("journal-success.jsonl");
    let all: Vec<&str> = text.lines().collect();
    let whole = fold(&read(&text));
    let unknown = |line: &str| {
        let mut value: Value = serde_json::from_str(line).expect("JSON");
        value["event"] = serde_json::json!({"type": "ofALaterRelease", "step": 1, "more": {"a": []}});
        value.to_string()
    };
    for at in 0..all.len() - 1 {
        let mut torn: Vec<String> = all.iter().map(|line| (*line).to_owned()).collect();
        torn[at] = unknown(all[at]);
        let before_checkpoint = torn[..torn.len() - 1].join("\n");
        let state = fold(&read(&before_checkpoint));
        assert!(state.gap || at + 2 == all.len(), "line {} is missing and nobody knows", at + 1);
        assert_eq!(fold(&read(&torn.join("\n"))), whole);
    }
}

#[test]
fn words_of_a_later_release_lose_no_report_and_no_step() {
    let report = stored("report-failure.json").replace("\"class\":\"User\"", "\"class\":\"OfALaterRelease\"");
    let read = Report::parse(&report, ATTEMPT).expect("a report");
    let Outcome::Failed(failure) = read.outcome else { unreachable!("a failure") };
    assert_eq!((failure.class, failure.exit_code), (FailureClass::Infrastructure, Some(2)));
    assert_eq!(failure.reason, reason::STEP_FAILED);
    let text = stored("journal-success.jsonl");
    let checkpoint =
        text.lines().last().expect("a line").replace("\"phase\":\"Cached\"", "\"phase\":\"Later\"");
    let state = fold(&[Line::parse(&checkpoint).expect("a line")]);
    let phases: Vec<_> = state.steps.iter().map(|s| s.phase).collect();
    assert_eq!(phases, [StepPhase::Done, StepPhase::Unknown, StepPhase::Done]);
}

#[test]
fn a_request_with_more_than_its_reader_knows_is_refused_by_name() {
    let mut value: Value = serde_json::from_str(&stored("request.json")).expect("JSON");
    value["fieldOfALaterRelease"] = true.into();
    let error = BuildRequest::parse(value.to_string().as_bytes()).expect_err("it is refused");
    assert!(error.contains("fieldOfALaterRelease"), "{error}");
}

#[test]
fn another_version_is_refused_and_never_guessed_at() {
    assert!(reads(VERSION) && !reads(VERSION + 1) && !reads(0));
    let next = |text: &str, field: &str| {
        let mut value: Value = serde_json::from_str(text).expect("JSON");
        value[field] = (VERSION + 1).into();
        value.to_string()
    };
    assert_eq!(Report::parse(&next(&stored("report-success.json"), "version"), ATTEMPT), None);
    let journal = stored("journal-success.jsonl");
    assert_eq!(Line::parse(&next(journal.lines().next().expect("a line"), "v")), None);
    let error =
        BuildRequest::parse(next(&stored("request.json"), "version").as_bytes()).expect_err("refused");
    assert!(error.contains("version 2") && error.contains("follow one another"), "{error}");
}
