//! Whole builds over a fake engine and a fake courier.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_contract::{FailureClass, reason};
use kiln_dockerfile::lint::Check;
use kiln_dockerfile::{Dockerfile, IgnoreFile};
use serde_json::json;

use super::fakes::*;
use super::*;
use crate::engine::EngineErrorKind;
use crate::plan::{Lint, Outline, Target};

#[derive(Default)]
pub(super) struct Rig {
    engine: FakeEngine,
    pub courier: FakeCourier,
    stop: Stop,
    pub log: FakeLog,
    args: BTreeMap<String, String>,
    cache: bool,
    /// 0 as well is one stage at a time.
    at_a_time: usize,
}

/// The plan of a Dockerfile.
pub(super) fn plan(text: &str) -> Plan {
    plan_with(text, &BTreeMap::new())
}

/// The same with build arguments.
pub(super) fn plan_with(text: &str, args: &BTreeMap<String, String>) -> Plan {
    plan_by(text, args, &FakeCourier::default()).unwrap()
}

fn plan_by(text: &str, args: &BTreeMap<String, String>, courier: &FakeCourier) -> Result<Plan, Halt> {
    let file = Dockerfile::parse(text.as_bytes()).unwrap();
    let target = Target {
        platform: "linux/amd64",
        machine: "linux/amd64",
        stage: None,
        args,
        contexts: &BTreeMap::new(),
        entitlements: &[],
    };
    let outline = Outline::new(&file, None, target).unwrap();
    let images = resolve(outline.images(), "Dockerfile", courier)?;
    let lint = Lint { check: &Check::default(), ignore: &IgnoreFile::default(), found: &RefCell::default() };
    Ok(outline.plan(&images, lint).unwrap())
}

impl Rig {
    /// For a build with a cache.
    pub fn with_cache() -> Self {
        Self { cache: true, ..Self::default() }
    }

    /// For a build on what an earlier one left in the cache.
    pub fn again(self) -> Self {
        self.engine.notes.clear();
        self.courier.notes.clear();
        self.courier.missed.lock().unwrap().clear();
        Self { courier: self.courier, args: self.args, ..Self::with_cache() }
    }

    pub fn build(&mut self, text: &str) -> Result<Committed, Failure> {
        let plan = plan_by(text, &self.args, &self.courier).map_err(|halt| halt.into_failure(&self.stop))?;
        let dir = tempfile::tempdir().unwrap();
        let ticks = AtomicU32::new(0);
        let clock = || format!("2026-01-01T00:00:{:02}Z", ticks.fetch_add(1, Ordering::Relaxed));
        let world = World {
            engine: &self.engine,
            courier: &self.courier,
            context: &FakeContext,
            pack: &FakePack,
            stop: &self.stop,
            clock: &clock,
            spool: dir.path(),
            at_a_time: self.at_a_time,
        };
        let labels = BTreeMap::from([("l".to_owned(), "v".to_owned())]);
        let wishes = Wishes {
            attempt: "u-1-1",
            dockerfile: "Dockerfile",
            labels: &labels,
            cache: self.cache.then_some(Caching { alike: "", build: &["app"] }),
        };
        let done = solve(&plan, wishes, world, &mut self.log).map_err(|failure| *failure);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left in the spool");
        done
    }
}

#[test]
fn downloads_and_documents_are_copied_like_files() {
    let mut rig = Rig::default();
    rig.build("FROM scratch\nADD a https://x/y b <<E /d/\ntext\nE\n").unwrap();
    let copies = rig.engine.notes.of(&["copy_stream"]);
    assert_eq!(copies.len(), 4, "{copies:?}");
    assert!(copies[0].starts_with("copy_stream s1 a ->") && copies[2].starts_with("copy_stream s1 b ->"));
    assert!(copies[1].contains("https://x/y") && copies[3].contains("text\n"), "{copies:?}");
    assert_eq!(rig.courier.notes.of(&["fetch"]), ["fetch https://x/y None"]);
    assert_eq!(rig.engine.notes.of(&["diff"]).len(), 1, "one layer");
}

#[test]
fn what_no_step_reads_is_not_downloaded() {
    for text in [
        "FROM alpine\nENV A=1\nUSER x\nLABEL a=b\nCMD y\n",
        "FROM alpine\nCOPY --link a /a\nADD --link b /b\nCMD y\n",
        "FROM alpine AS base\nCOPY --link a /a\nFROM base\nCOPY --link b /b\n",
    ] {
        let mut rig = Rig::default();
        rig.build(text).unwrap();
        assert_eq!(rig.courier.notes.of(&["read_blob"]), Vec::<String>::new(), "{text}");
        assert_eq!(rig.engine.notes.of(&["unpack", "settle"]), Vec::<String>::new(), "{text}");
        assert_eq!(rig.courier.notes.of(&["put_base_blob"]).len(), 2, "{text}");
    }
    // What stands on a linked layer has all that is below it.
    let mut rig = Rig::default();
    rig.build("FROM alpine\nCOPY --link a /a\nRUN one\n").unwrap();
    assert_eq!(rig.engine.notes.of(&["run"]), ["run b0-0,b0-1,s1+s2 one"]);
    assert_eq!(rig.engine.notes.of(&["unpack"]).len(), 2);
}

#[test]
fn what_is_only_looked_at_is_read_for_its_index() {
    let text = "FROM alpine\nCOPY a /a\nWORKDIR /w\n";
    let mut rig = Rig::default();
    rig.build(text).unwrap();
    assert_eq!(rig.engine.notes.of(&["unpack"]), Vec::<String>::new());
    assert_eq!(rig.engine.notes.of(&["index"]).len(), 2);
    assert_eq!(
        rig.engine.notes.of(&["skeleton"]),
        ["skeleton k0-b0-0", "skeleton k0-b0-1"],
        "once for both steps"
    );
    assert_eq!(rig.engine.notes.of(&["settle"]), ["settle k0-b0-0,k0-b0-1"]);
    // A link that a step made may lead anywhere: then all of it is looked at.
    let mut rig = Rig { engine: FakeEngine { links: true, ..FakeEngine::default() }, ..Rig::default() };
    rig.build(text).unwrap();
    assert_eq!(rig.engine.notes.of(&["skeleton k1"]).len(), 2);
    // A base that is read anyway is not looked at beside that.
    let mut rig = Rig::default();
    rig.build("FROM alpine\nCOPY a /a\nRUN one\n").unwrap();
    assert_eq!(rig.engine.notes.of(&["index", "skeleton"]), Vec::<String>::new());
}

#[test]
fn where_looks_do_not_do_the_layer_is_fetched() {
    let mut rig =
        Rig { engine: FakeEngine { needs_content: true, ..FakeEngine::default() }, ..Rig::default() };
    rig.build("FROM alpine\nCOPY a /a\nCOPY b /b\n").unwrap();
    assert_eq!(rig.engine.notes.of(&["unpack"]).len(), 2);
    assert_eq!(rig.engine.notes.of(&["remove"]), ["remove s1", "remove s2"]);
    assert_eq!(rig.engine.notes.of(&["diff"]).len(), 2);
    let (_, layers) = rig.courier.committed.lock().unwrap().clone().unwrap();
    assert_eq!(layers.len(), 4);
}

const SEED: &str = "FROM alpine\nRUN one\nRUN two\nCMD [\"x\"]\n";

#[test]
fn the_seed_is_built_and_told_in_order() {
    let mut rig = Rig::default();
    let committed = rig.build(SEED).unwrap();
    assert_eq!(committed.references, ["host/x:1"]);
    assert_eq!(
        rig.courier.notes.of(&["event started", "event done", "event Pushing", "commit"]),
        [
            "event started 1",
            "event done 1",
            "event started 2",
            "event done 2",
            "event started 3",
            "event done 3",
            "event started 4",
            "event done 4",
            "event Pushing",
            "commit ",
        ]
    );
    assert_eq!(rig.engine.notes.of(&["settle"]), ["settle b0-0,b0-1"]);
    assert_eq!(rig.engine.notes.of(&["run"]), ["run b0-0,b0-1+s1 one", "run b0-0,b0-1,s1+s2 two"]);
    assert_eq!(rig.engine.notes.of(&["diff"]), ["diff s1 etc/hosts None", "diff s2 etc/hosts None"]);
    // Every layer is in the output before the commit: the base's two and the steps' two.
    let all = rig.courier.notes.all();
    let commit = all.iter().position(|n| n == "commit ").unwrap();
    let puts = |notes: &[String]| notes.iter().filter(|n| n.starts_with("put_")).count();
    assert_eq!((puts(&all[..commit]), puts(&all)), (4, 4));
    assert_eq!(rig.courier.notes.of(&["event layer"]).len(), 2);
    assert_eq!(
        rig.log.0,
        [
            "Step 1/4 : FROM alpine",
            "---> 12",
            "Step 2/4 : RUN one",
            "running",
            "output of one",
            "---> 12",
            "Step 3/4 : RUN two",
            "running",
            "output of two",
            "---> 12",
            "Step 4/4 : CMD [\"x\"]",
            "---> 12",
            "Built",
            "tagged host/x:1",
        ]
    );
    let (config, layers) = rig.courier.committed.lock().unwrap().clone().unwrap();
    let diff_ids: Vec<_> = ["alpine:0", "alpine:1", "layer s1", "layer s2"].map(id).to_vec();
    assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids));
    assert_eq!(config["config"]["Labels"], json!({"l": "v"}));
    assert_eq!(config["history"][2]["created"], "2026-01-01T00:00:01Z", "each step has its own time");
    let digests: Vec<_> = layers.iter().map(|l| l.digest.clone()).collect();
    let expected = ["alpine:0", "alpine:1", "layer s1", "layer s2"].map(|name| id(&format!("blob {name}")));
    assert_eq!(digests, expected);
}

#[test]
fn a_base_whose_files_nobody_reads_is_not_downloaded() {
    let mut rig = Rig::default();
    rig.build("FROM alpine\nENV A=1\nUSER x\nCMD y\n").unwrap();
    assert!(rig.courier.notes.of(&["read_blob"]).is_empty() && rig.engine.notes.all().is_empty());
    assert_eq!(rig.courier.notes.of(&["put_base_blob"]).len(), 2);
}

#[test]
fn layers_of_stages_that_are_only_copied_from_are_never_made() {
    let mut rig = Rig::default();
    rig.build(
        "FROM alpine AS build\nRUN make\nFROM scratch\nCOPY --from=build /x /y/\nCOPY --from=tools --chown=u /t /\nCOPY a b .\nWORKDIR /w\n",
    )
    .unwrap();
    assert_eq!(rig.engine.notes.of(&["diff"]).len(), 4);
    assert!(rig.engine.notes.of(&["diff s1 "]).is_empty());
    assert_eq!(
        rig.engine.notes.of(&["copy", "make_directory", "owner"]),
        [
            "copy_tree s2 b0-0,b0-1,s1 /x -> /y/",
            "owner u",
            "copy_tree s3 b1-0,b1-1 /t -> /",
            "copy_stream s4 a,b -> /",
            "make_directory s5 /w 0",
        ]
    );
    assert!(rig.courier.notes.of(&["put_base_blob"]).is_empty(), "the final image stands on scratch");
}

#[test]
fn a_command_that_fails_says_where_and_how() {
    let mut rig = Rig::default();
    rig.engine.codes.insert("two".into(), 3);
    let failure = rig.build(SEED).unwrap_err();
    assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::User, reason::STEP_FAILED));
    assert_eq!((failure.file.as_deref(), failure.line, failure.step), (Some("Dockerfile"), Some(3), Some(3)));
    assert_eq!(failure.exit_code, Some(3));
    assert_eq!(failure.log_tail.as_deref(), Some("output of two"));
    assert_eq!(failure.message, "the command '/bin/sh -c two' returned a non-zero code: 3");
    assert_eq!(rig.courier.notes.of(&["event failed"]), ["event failed 3 Some(3)"]);
    assert!(rig.courier.notes.of(&["commit", "event started 4"]).is_empty());
    assert_eq!(rig.log.0.last().unwrap(), "failed /bin/sh -c two 3");
    assert!(rig.stop.is_stopped(), "what runs beside it ends");

    let mut rig = Rig::default();
    rig.engine.codes.insert("two".into(), 137);
    rig.engine.out_of_memory = true;
    let failure = rig.build(SEED).unwrap_err();
    assert_eq!((failure.class, failure.reason.as_str()), (FailureClass::OutOfMemory, reason::OUT_OF_MEMORY));
}

#[test]
fn faults_of_the_engine_have_their_class() {
    for (call, kind, class, reason) in [
        ("run", EngineErrorKind::User, FailureClass::User, reason::STEP_FAILED),
        ("user", EngineErrorKind::User, FailureClass::User, reason::STEP_FAILED),
        ("copy_stream", EngineErrorKind::User, FailureClass::User, reason::NOT_FOUND),
        ("unpack", EngineErrorKind::Image, FailureClass::User, reason::BASE_IMAGE_INVALID),
        ("settle", EngineErrorKind::Image, FailureClass::User, reason::BASE_IMAGE_INVALID),
        ("run", EngineErrorKind::Isolation, FailureClass::Policy, reason::ISOLATION_UNAVAILABLE),
        ("diff", EngineErrorKind::Space, FailureClass::Infrastructure, reason::INTERNAL),
    ] {
        let mut rig = Rig::default();
        rig.engine.fail.insert(call, EngineError { kind, message: "because".into() });
        let failure = rig.build("FROM alpine\nRUN x\nCOPY a b\n").unwrap_err();
        assert_eq!((failure.class, failure.reason.as_str()), (class, reason), "{call}");
        assert!(failure.message.contains("because"), "{call}: {}", failure.message);
        assert!(rig.courier.notes.of(&["commit"]).is_empty());
    }
}

#[test]
fn a_missing_source_is_named_not_the_stream_that_it_cut() {
    let mut rig = Rig::default();
    let cut = EngineError { kind: EngineErrorKind::Internal, message: "stream ended early".into() };
    rig.engine.fail.insert("copy_stream", cut);
    let failure = rig.build("FROM alpine\nCOPY missing /\n").unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.line), (reason::NOT_FOUND, Some(2)));
    assert!(failure.message.contains("missing is not in the build context"), "{}", failure.message);
}

#[test]
fn a_name_has_no_owner_in_an_empty_image() {
    let failure = Rig::default().build("FROM scratch\nCOPY --chown=app a b\n").unwrap_err();
    assert_eq!((failure.reason.as_str(), failure.line), (reason::NOT_FOUND, Some(2)));
    Rig::default().build("FROM scratch\nCOPY --chown=1:2 a b\nCOPY --chown=app a b\n").unwrap();
}

#[test]
fn a_base_that_is_not_what_its_config_says_is_refused() {
    let mut rig = Rig::default();
    rig.courier.wrong = true;
    let failure = rig.build(SEED).unwrap_err();
    assert_eq!(failure.reason, reason::BASE_IMAGE_INVALID);
    assert!(failure.message.contains("does not hold together"), "{}", failure.message);
    assert!(rig.engine.notes.of(&["run"]).is_empty());
}

#[test]
fn an_image_that_can_not_be_resolved_names_its_line() {
    let mut rig = Rig::default();
    rig.courier.fail.lock().unwrap().insert("resolve", registry_failure());
    let failure = rig.build("FROM scratch\nCOPY --from=img /x /\n").unwrap_err();
    assert_eq!((failure.line, failure.step, failure.class), (Some(2), Some(2), FailureClass::Registry));
}

#[test]
fn faults_in_the_background_end_the_build() {
    for call in ["put_blob", "put_base_blob", "read_blob"] {
        let mut rig = Rig::default();
        rig.courier.fail.lock().unwrap().insert(call, registry_failure());
        // The command never ends of its own accord: the fault beside it has to end it.
        rig.engine.endless = call == "put_base_blob";
        let failure = rig.build(SEED).unwrap_err();
        assert_eq!(failure.reason, reason::REGISTRY_UNAVAILABLE, "{call}");
        assert!(rig.courier.notes.of(&["commit"]).is_empty(), "{call}");
    }
    let mut rig = Rig::default();
    rig.courier.fail.lock().unwrap().insert("commit", registry_failure());
    assert_eq!(rig.build(SEED).unwrap_err().reason, reason::REGISTRY_UNAVAILABLE);
}

#[test]
fn a_build_that_is_told_to_stop_says_why() {
    for (word, class) in [
        (reason::CANCELLED, FailureClass::Cancelled),
        (reason::SUSPENDED, FailureClass::Cancelled),
        (reason::SUPERSEDED, FailureClass::Cancelled),
        (reason::TIMED_OUT, FailureClass::Timeout),
        (reason::BUILDER_LOST, FailureClass::Infrastructure),
    ] {
        let mut rig = Rig::default();
        rig.engine.endless = true;
        let stop = rig.stop.clone();
        let failure = std::thread::scope(|s| {
            let building = s.spawn(|| rig.build(SEED).unwrap_err());
            stop.stop(word);
            building.join().unwrap()
        });
        assert_eq!((failure.class, failure.reason.as_str()), (class, word));
        assert!(rig.courier.notes.of(&["commit"]).is_empty());
    }
}

#[test]
fn with_an_epoch_all_times_are_that_time() {
    let mut rig = Rig::default();
    rig.args.insert("SOURCE_DATE_EPOCH".into(), "0".into());
    rig.build("FROM alpine\nRUN x\n").unwrap();
    let (config, _) = rig.courier.committed.lock().unwrap().clone().unwrap();
    assert_eq!(config["created"], "1970-01-01T00:00:00Z");
    assert_eq!(config["history"][2]["created"], "1970-01-01T00:00:00Z");
    assert_eq!(rig.engine.notes.of(&["diff"]), ["diff s1 etc/hosts Some(0)"]);
}

#[test]
fn global_arguments_are_steps_too() {
    let mut rig = Rig::default();
    rig.build("ARG A=alpine\nFROM $A\nRUN x\n").unwrap();
    assert_eq!(rig.log.0[..4], ["Step 1/3 : ARG A=alpine", "---> 12", "Step 2/3 : FROM $A", "---> 12"]);
}

#[path = "cache_tests.rs"]
mod cache;
#[path = "mount_tests.rs"]
mod mounts;
#[path = "parallel_tests.rs"]
mod parallel;
#[path = "saved_tests.rs"]
mod saved;
