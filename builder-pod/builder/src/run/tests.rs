//! Whole builds from request to report, over a real socket with a courier of a few lines behind it and a fake engine.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use kiln_contract::call::{Call, Reply};
use kiln_contract::request::{Content, File, Output, Registries, Source};

use super::*;
use crate::courier::CourierError;
use crate::engine::EngineErrorKind;
use crate::solve::fakes::{FakeCourier, FakeEngine};

fn request(files: &[(&str, &str)]) -> BuildRequest {
    let file =
        |(path, text): &(&str, &str)| File { path: (*path).into(), content: Content::Text((*text).into()) };
    BuildRequest {
        version: 1,
        attempt: "u-1-1".into(),
        source: Source::Files(files.iter().map(file).collect()),
        context_dir: ".".into(),
        dockerfile: "Dockerfile".into(),
        dockerfile_text: None,
        target: None,
        args: BTreeMap::new(),
        labels: BTreeMap::new(),
        entitlements: Vec::new(),
        contexts: std::collections::BTreeMap::new(),
        platform: "linux/amd64".into(),
        output: Output::Registry { references: vec!["host/x:1".into()], permit: false },
        compression: Compression::default(),
        isolation: Isolation::UserNamespace,
        timeout_seconds: 3600,
        registries: Registries::default(),
        policy: kiln_contract::policy::Policy::default(),
        cache: None,
    }
}

/// Answers calls that carry no descriptor, until the attached connection ends.
fn serve(listener: &UnixListener, courier: &FakeCourier) {
    let mut attached = Vec::new();
    loop {
        let (mut stream, _) = listener.accept().unwrap();
        let mut length = [0; 4];
        // The test ends the service with an empty connection.
        if stream.read_exact(&mut length).is_err() {
            return;
        }
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        stream.read_exact(&mut body).unwrap();
        let call: Call = serde_json::from_slice(&body).unwrap();
        let attach = matches!(call, Call::Attach { .. });
        let body = serde_json::to_vec(&answer(courier, call)).unwrap();
        stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&body).unwrap();
        if attach {
            attached.push(stream);
        }
    }
}

fn answer(courier: &FakeCourier, call: Call) -> Reply {
    let done = |result: Result<(), CourierError>| result.map(|()| Reply::Done);
    let result = match call {
        Call::Attach { .. } => Ok(Reply::Done),
        Call::Resolve { reference, platform } => {
            courier.resolve(&reference, &platform).map(|image| Reply::Resolved { image })
        }
        Call::PutBaseBlob { image, blob } => {
            courier.put_base_blob(&image, &blob).map(|how| Reply::Stored { how })
        }
        Call::CacheGet { key } => courier.cache_get(&key).map(|found| match found {
            Some(found) => Reply::Cached { image: found.image, entry: found.entry },
            None => Reply::Absent,
        }),
        Call::CachePut { key, entry } => {
            courier.cache_put(&key, &entry, None).map(|how| Reply::Stored { how })
        }
        Call::RecordGet { name } => courier.record_get(&name).map(|found| match found {
            Some(record) => Reply::Recorded { record },
            None => Reply::Absent,
        }),
        Call::RecordPut { name, record } => done(courier.record_put(&name, &record)),
        Call::FindAgent { id } => {
            courier.find_agent(&id).map(|there| if there { Reply::Done } else { Reply::Absent })
        }
        Call::Commit { config, layers } => courier
            .commit(&config, &layers)
            .map(|done| Reply::Committed { digest: done.digest, references: done.references }),
        Call::Event { event } => done(courier.event(event)),
        Call::Fail { failure } => done(courier.fail(&failure)),
        Call::ReadBlob { .. }
        | Call::PutBlob { .. }
        | Call::BeginBlob
        | Call::Grown { .. }
        | Call::Fetch { .. }
        | Call::FetchGit { .. }
        | Call::Secret { .. }
        | Call::ServeAgent { .. } => {
            panic!("these carry a descriptor")
        }
        Call::Watch | Call::ResolveArtifact { .. } => panic!("the builder never asks this"),
    };
    match result {
        Ok(reply) => reply,
        Err(CourierError::Failed(failure)) => Reply::Failed { failure: *failure },
        Err(other) => panic!("{other}"),
    }
}

struct Ended {
    result: Result<Committed, Box<Failure>>,
    courier: FakeCourier,
    log: String,
}

fn run_with(request: &BuildRequest, engine: Result<FakeEngine, EngineError>, courier: FakeCourier) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let engine: Result<Arc<dyn Engine>, EngineError> =
        engine.map(|engine| Arc::new(engine) as Arc<dyn Engine>);
    let mut text = Vec::new();
    let result = std::thread::scope(|s| {
        s.spawn(|| serve(&listener, &courier));
        let mut log = Human::new(&mut text);
        let settings = Settings {
            socket: &socket,
            work_dir: dir.path(),
            stop: &Stop::default(),
            alike: "",
            start_engine: &|_, isolation| {
                assert_eq!(isolation, Isolation::UserNamespace);
                engine.clone()
            },
            log: &mut log,
        };
        let result = build(request, settings);
        drop(UnixStream::connect(&socket).unwrap());
        result
    });
    Ended { result, courier, log: String::from_utf8(text).unwrap() }
}

fn run(files: &[(&str, &str)]) -> Ended {
    run_with(&request(files), Ok(FakeEngine::default()), FakeCourier::default())
}

#[test]
fn a_build_from_request_to_tag() {
    let ended = run(&[("Dockerfile", "FROM alpine\nENV A=1\nCMD [\"redis-server\"]\n")]);
    assert_eq!(ended.result.unwrap().references, ["host/x:1"]);
    let events = ended.courier.notes.of(&["event"]);
    assert!(events[0].contains("BuilderStarted") && events[0].contains("UserNamespace"), "{events:?}");
    assert!(events[1].contains("Planned") && events[1].contains("FROM alpine"), "{events:?}");
    assert_eq!(events[2], "event started 1");
    let lines: Vec<_> = ended.log.lines().collect();
    assert_eq!(lines[0], "Step 1/3 : FROM alpine");
    assert!(lines[1].starts_with(" ---> "), "{}", ended.log);
    assert!(lines[6].starts_with("Successfully built "), "{}", ended.log);
    assert_eq!(lines[7], "Successfully tagged host/x:1");
}

#[test]
fn a_dockerfile_that_does_not_parse_is_shown_with_a_caret() {
    let ended = run(&[("Dockerfile", "FROM alpine\nRUNN x\n")]);
    let failure = ended.result.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.line), (reason::DOCKERFILE_INVALID, Some(2)));
    assert_eq!(ended.courier.notes.all(), ["fail DockerfileInvalid"]);
    assert!(ended.log.starts_with("error: Dockerfile:2: "), "{}", ended.log);
    assert!(ended.log.contains(" 2 | RUNN x\n") && ended.log.contains("| ^^^^\n"), "{}", ended.log);
}

#[test]
fn what_is_not_supported_is_refused_before_anything_runs() {
    let ended = run(&[("Dockerfile", "FROM alpine\nRUN --security=insecure x\n")]);
    let failure = ended.result.unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.line), (reason::NOT_SUPPORTED, Some(2)));
    assert_eq!(ended.courier.notes.all(), ["fail NotSupported"]);
    assert!(ended.log.contains(" 2 | RUN --security=insecure x\n"), "{}", ended.log);
}

#[test]
fn a_base_that_is_not_there_fails_in_its_step() {
    let courier = FakeCourier::default();
    let missing = Failure::new(FailureClass::Registry, reason::BASE_IMAGE_NOT_FOUND, "no such image");
    courier.fail.lock().unwrap().insert("resolve", missing);
    let files = [("Dockerfile", "ARG T=9\nFROM alpine:$T\nRUN x\n")];
    let ended = run_with(&request(&files), Ok(FakeEngine::default()), courier);
    let failure = ended.result.unwrap_err();
    assert_eq!((failure.line, failure.step), (Some(2), Some(2)));
    assert_eq!(
        ended.courier.notes.of(&["event failed", "fail"]),
        ["event failed 2 None", "fail BaseImageNotFound"]
    );
    assert!(
        ended.log.starts_with(
            "Step 2/3 : FROM alpine:$T\nerror: Dockerfile:2: no such image\n 2 | FROM alpine:$T\n"
        ),
        "{}",
        ended.log
    );
}

#[test]
fn a_sandbox_that_can_not_be_had_is_said_before_anything_is_pulled() {
    let error = EngineError { kind: EngineErrorKind::Isolation, message: "set hostUsers: false".into() };
    let ended = run_with(&request(&[("Dockerfile", "FROM alpine\n")]), Err(error), FakeCourier::default());
    assert_eq!(ended.result.unwrap_err().reason, reason::ISOLATION_UNAVAILABLE);
    assert_eq!(ended.courier.notes.all(), ["fail IsolationUnavailable"]);
}

#[test]
fn files_and_arguments_that_are_missing_are_named() {
    let ended = run(&[("Other", "FROM alpine\n")]);
    assert_eq!(ended.result.unwrap_err().reason, reason::DOCKERFILE_NOT_FOUND);
    let mut unused = request(&[("Dockerfile", "FROM alpine\n")]);
    unused.args.insert("NOPE".into(), "1".into());
    let ended = run_with(&unused, Ok(FakeEngine::default()), FakeCourier::default());
    assert!(ended.result.is_ok());
    assert!(ended.log.contains("[Warning] build argument NOPE is not used"), "{}", ended.log);
}

#[test]
fn a_build_that_takes_too_long_is_stopped() {
    let mut slow = request(&[("Dockerfile", "FROM scratch\nRUN [\"x\"]\n")]);
    slow.timeout_seconds = 1;
    let engine = FakeEngine { endless: true, ..FakeEngine::default() };
    let ended = run_with(&slow, Ok(engine), FakeCourier::default());
    let failure = ended.result.unwrap_err();
    assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::Timeout, reason::TIMED_OUT));
    assert_eq!(ended.courier.notes.of(&["fail"]), ["fail TimedOut"]);
}

#[test]
fn no_courier_is_a_failure_that_the_log_shows() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Stop::default();
    stop.stop(reason::POD_DELETED);
    let mut text = Vec::new();
    let mut log = Human::new(&mut text);
    let settings = Settings {
        socket: &dir.path().join("none"),
        work_dir: dir.path(),
        stop: &stop,
        alike: "",
        start_engine: &|_, _| panic!("nothing is started"),
        log: &mut log,
    };
    let failure = build(&request(&[]), settings).unwrap_err();
    assert_eq!(failure.reason, reason::POD_DELETED);
    assert!(String::from_utf8(text).unwrap().starts_with("error: the builder was told to end"));
}

#[test]
fn warnings_are_told_once_and_by_line() {
    let text = "FROM alpine AS Base\nUSER $X\nMAINTAINER m\n";
    let ended = run(&[("Dockerfile", text)]);
    assert!(ended.result.is_ok());
    let events = ended.courier.notes.of(&["event"]);
    let warnings: Vec<_> = events.iter().filter(|event| event.contains("Warnings")).collect();
    assert_eq!(warnings.len(), 1, "{events:?}");
    assert!(warnings[0].contains("count: 3") && warnings[0].contains("UndefinedVar"), "{events:?}");
    let lines: Vec<_> = ended.log.lines().take(4).collect();
    assert_eq!(lines[0], "[Warning] Dockerfile:1: StageNameCasing: Stage name 'Base' should be lowercase");
    assert_eq!(lines[1], "[Warning] Dockerfile:2: UndefinedVar: $X is neither declared nor set");
    assert!(lines[2].starts_with("[Warning] Dockerfile:3: MaintainerDeprecated: "), "{}", ended.log);
    assert!(lines[3].starts_with("Step 1/"), "{}", ended.log);
}

#[test]
fn warnings_can_fail_the_build() {
    let text = "# check=error=true\nFROM alpine\nCMD a\nUSER $X\n";
    let ended = run(&[("Dockerfile", text)]);
    let failure = ended.result.unwrap_err();
    assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::User, reason::DOCKERFILE_INVALID));
    assert_eq!(failure.line, Some(3));
    assert!(failure.message.starts_with("JSONArgsRecommended: "), "{failure}");
    assert!(failure.message.contains("and 1 more warning;"), "{failure}");
    assert_eq!(ended.courier.notes.of(&["event started"]), [""; 0], "nothing runs");
    let fine = run(&[("Dockerfile", "# check=error=true\nFROM alpine\nCMD [\"a\"]\n")]);
    assert!(fine.result.is_ok());
}

#[test]
fn warnings_come_before_a_failure_that_they_may_explain() {
    let ended = run(&[("Dockerfile", "ARG IMG\nFROM $IMG\n")]);
    assert!(ended.result.is_err());
    let at = |text: &str| ended.log.find(text).unwrap_or(usize::MAX);
    assert!(at("[Warning] Dockerfile:2: InvalidDefaultArgInFrom") < at("error: "), "{}", ended.log);
    let broken = run(&[("Dockerfile", "FROM a as b\nRUNN c\n")]);
    assert!(broken.log.starts_with("[Warning] Dockerfile:1: FromAsCasing: "), "{}", broken.log);
    let notes = ended.courier.notes.all();
    assert!(notes[0].contains("Warnings") && notes[1].starts_with("fail"), "{notes:?}");
}

#[test]
fn many_warnings_are_counted_and_some_are_shown() {
    let text = format!("FROM alpine\n{}", "ENV A=$X\n".repeat(150));
    let ended = run(&[("Dockerfile", &text)]);
    assert!(ended.result.is_ok());
    assert!(ended.log.contains("[Warning] Dockerfile: and 50 more\n"), "{}", ended.log);
    let events = ended.courier.notes.of(&["event"]);
    let warnings = events.iter().find(|event| event.contains("Warnings")).unwrap();
    assert!(warnings.contains("count: 150"), "{warnings}");
    assert_eq!(warnings.matches("UndefinedVar").count(), kiln_contract::journal::MAX_WARNINGS);
}
