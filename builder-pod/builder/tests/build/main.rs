//! Real builds from request to image: the real engine, real commands in real sandboxes, and a courier of one file.
//!
//! Needs root and `/bin/busybox` (package busybox-static); says so and passes where they are missing.

mod base;
mod courier;
mod mounts;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kiln_builder::courier::Committed;
use kiln_builder::engine::{Engine, Stop};
use kiln_builder::helper::{LocalEngine, Options};
use kiln_builder::run::{Human, Settings, build};
use kiln_contract::journal::{BuildState, StepPhase};
use kiln_contract::request::{self, BuildRequest, Compression, Content, Isolation, Registries, Source};
use kiln_contract::{Failure, FailureClass, reason};
use serde_json::Value;

type Case = (&'static str, fn(&Path) -> Result<()>);

const CASES: [Case; 7] = [
    ("layers_hold_what_the_steps_did", layers_hold_what_the_steps_did),
    ("a_failing_command_is_told", a_failing_command_is_told),
    ("files_come_from_context_and_stages", files_come_from_context_and_stages),
    ("mounts_are_seen_by_their_step_only", mounts::are_seen_by_their_step_only),
    ("mounts_are_there_for_documents_and_triggers", mounts::are_there_for_documents_and_triggers),
    ("secrets_leave_no_trace", mounts::secrets_leave_no_trace),
    ("the_same_request_gives_the_same_bytes", the_same_request_gives_the_same_bytes),
];

fn main() -> ExitCode {
    if let Some(code) = kiln_builder::helper::dispatch_reexec() {
        return code;
    }
    if !rustix::process::geteuid().is_root() || !Path::new(base::BUSYBOX).exists() {
        println!("build tests not run: they need root and {} (package busybox-static)", base::BUSYBOX);
        return ExitCode::SUCCESS;
    }
    let mut failed = 0;
    for (name, case) in CASES {
        let result = tempfile::tempdir().context("no temporary directory").and_then(|dir| case(dir.path()));
        match &result {
            Ok(()) => println!("test {name} ... ok"),
            Err(error) => {
                failed += 1;
                println!("test {name} ... FAILED\n{error:#}");
            }
        }
    }
    println!("{} passed, {failed} failed", CASES.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Ended {
    result: Result<Committed, Box<Failure>>,
    state: BuildState,
    log: String,
}

fn run(dir: &Path, files: &[(&str, &str)], args: &[(&str, &str)]) -> Result<Ended> {
    // Ids of steps have to reach the trees.
    fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    base::write(&dir.join("bases"), "base")?;
    let work = dir.join("work");
    fs::create_dir(&work)?;
    let file = |(path, text): &(&str, &str)| request::File {
        path: (*path).into(),
        content: Content::Text((*text).into()),
    };
    let request = BuildRequest {
        version: kiln_contract::VERSION,
        attempt: "test".into(),
        source: Source::Files(files.iter().map(file).collect()),
        context_dir: ".".into(),
        dockerfile: "Dockerfile".into(),
        dockerfile_text: None,
        target: None,
        args: args.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        labels: BTreeMap::new(),
        entitlements: Vec::new(),
        contexts: std::collections::BTreeMap::new(),
        platform: "linux/amd64".into(),
        output: request::Output::Registry {
            references: vec!["registry.example/app:1".into()],
            permit: false,
        },
        compression: Compression::default(),
        isolation: Isolation::HostRange,
        timeout_seconds: 300,
        registries: Registries::default(),
        policy: kiln_contract::policy::Policy::default(),
        cache: None,
    };
    let socket = dir.join("socket");
    let courier = courier::Courier::start(&socket, &dir.join("bases"), &dir.join("out"))?;
    let mut text = Vec::new();
    let mut log = Human::new(&mut text);
    let settings = Settings {
        socket: &socket,
        work_dir: &work,
        stop: &Stop::default(),
        alike: "",
        start_engine: &|work, isolation| {
            Ok(Arc::new(LocalEngine::start(work, isolation, Options::default())?) as Arc<dyn Engine>)
        },
        log: &mut log,
    };
    let result = build(&request, settings);
    Ok(Ended { result, state: courier.state(), log: String::from_utf8_lossy(&text).into_owned() })
}

fn blob(dir: &Path, digest: &str) -> Result<Vec<u8>> {
    Ok(fs::read(dir.join("out/blobs/sha256").join(digest.trim_start_matches("sha256:")))?)
}

fn manifest(dir: &Path, digest: &str) -> Result<(Value, Value)> {
    let manifest: Value = serde_json::from_slice(&blob(dir, digest)?)?;
    let config = manifest["config"]["digest"].as_str().context("no config")?;
    let config = serde_json::from_slice(&blob(dir, config)?)?;
    Ok((manifest, config))
}

/// Path, uid and content of the entries of a layer.
fn entries(dir: &Path, layer: &Value) -> Result<Vec<(String, u64, String)>> {
    let bytes = blob(dir, layer["digest"].as_str().context("no digest")?)?;
    let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(&bytes[..]));
    let mut out = Vec::new();
    for entry in tar.entries()? {
        let mut entry = entry?;
        let mut text = String::new();
        let path = entry.path()?.display().to_string();
        let uid = entry.header().uid()?;
        entry.read_to_string(&mut text)?;
        out.push((path.trim_end_matches('/').to_owned(), uid, text));
    }
    Ok(out)
}

fn layers_hold_what_the_steps_did(dir: &Path) -> Result<()> {
    let ended = run(
        dir,
        &[(
            "Dockerfile",
            "FROM base\nRUN test ! -e /etc/old && echo one > /one && rm /etc/group\nUSER app\nWORKDIR /srv/app\nRUN echo $HOME > /tmp/two\nCMD [\"/bin/sh\"]\n",
        )],
        &[],
    )?;
    let committed = ended.result.map_err(|f| anyhow::anyhow!("{f:?}\n{}", ended.log))?;
    let (manifest, config) = manifest(dir, &committed.digest)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == 5, "{} layers", layers.len());
    let one = entries(dir, &layers[2])?;
    ensure!(one.contains(&("one".into(), 0, "one\n".into())), "{one:?}");
    ensure!(one.iter().any(|(path, ..)| path == "etc/.wh.group"), "{one:?}");
    ensure!(!one.iter().any(|(path, ..)| path.contains("resolv") || path.starts_with("proc")), "{one:?}");
    let workdir = entries(dir, &layers[3])?;
    ensure!(workdir.contains(&("srv/app".into(), 1000, String::new())), "{workdir:?}");
    let two = entries(dir, &layers[4])?;
    ensure!(two.contains(&("tmp/two".into(), 1000, "/home/app\n".into())), "{two:?}");
    ensure!(config["rootfs"]["diff_ids"].as_array().map(Vec::len) == Some(5), "{config}");
    ensure!(config["config"]["User"] == "app" && config["config"]["WorkingDir"] == "/srv/app", "{config}");
    let phases: Vec<_> = ended.state.steps.iter().map(|s| s.phase).collect();
    ensure!(phases == [StepPhase::Done; 6] && ended.state.pushing, "{:?}", ended.state);
    let with_layer: Vec<_> = ended.state.steps.iter().map(|s| s.layer_digest.is_some()).collect();
    ensure!(with_layer == [false, true, false, true, true, false], "{with_layer:?}");
    let log: Vec<&str> = ended.log.lines().collect();
    ensure!(
        log[0] == "Step 1/6 : FROM base" && log.last() == Some(&"Successfully tagged registry.example/app:1")
    );
    ensure!(log.iter().filter(|l| l.starts_with(" ---> Running in ")).count() == 2, "{}", ended.log);
    ensure!(fs::read_dir(dir.join("work/spool"))?.count() == 0, "the spool is empty");
    Ok(())
}

fn a_failing_command_is_told(dir: &Path) -> Result<()> {
    let text = "FROM base\nRUN echo before && \\\n    exit 3\nRUN echo never\n";
    let ended = run(dir, &[("Dockerfile", text)], &[])?;
    let failure = ended.result.err().context("the build must fail")?;
    ensure!(failure.class == FailureClass::User && failure.reason == reason::STEP_FAILED, "{failure:?}");
    ensure!((failure.line, failure.step, failure.exit_code) == (Some(2), Some(2), Some(3)), "{failure:?}");
    ensure!(failure.log_tail.as_deref() == Some("before"), "{failure:?}");
    let phases: Vec<_> = ended.state.steps.iter().map(|s| s.phase).collect();
    ensure!(phases == [StepPhase::Done, StepPhase::Failed, StepPhase::Skipped], "{phases:?}");
    ensure!(ended.log.contains("returned a non-zero code: 3\nerror: Dockerfile:2: "), "{}", ended.log);
    ensure!(!dir.join("out/index.json").exists(), "nothing is committed");
    Ok(())
}

fn files_come_from_context_and_stages(dir: &Path) -> Result<()> {
    let ended = run(
        dir,
        &[
            (
                "Dockerfile",
                "FROM base AS make\nRUN mkdir /out && echo made > /out/made && echo $A > /out/arg\nFROM scratch\nCOPY . /ctx/\nCOPY --from=make --chown=7:8 /out /out/\n",
            ),
            (".dockerignore", "*.log\n"),
            ("a.txt", "a"),
            ("b.log", "b"),
        ],
        &[],
    )?;
    let committed = ended.result.map_err(|f| anyhow::anyhow!("{f:?}\n{}", ended.log))?;
    let (manifest, _) = manifest(dir, &committed.digest)?;
    let layers = manifest["layers"].as_array().context("no layers")?;
    ensure!(layers.len() == 2, "the first stage's layers are not part of the image");
    let context: Vec<_> = entries(dir, &layers[0])?.into_iter().map(|(path, ..)| path).collect();
    ensure!(context == ["ctx", "ctx/.dockerignore", "ctx/Dockerfile", "ctx/a.txt"], "{context:?}");
    let made = entries(dir, &layers[1])?;
    ensure!(made.contains(&("out/made".into(), 7, "made\n".into())), "{made:?}");
    Ok(())
}

fn the_same_request_gives_the_same_bytes(dir: &Path) -> Result<()> {
    let mut digests = Vec::new();
    for name in ["one", "two"] {
        let dir = dir.join(name);
        fs::create_dir(&dir)?;
        let text = "FROM base\nARG X\nCOPY a /a\nRUN echo $X > /x\n";
        let args = [("X", "1"), ("SOURCE_DATE_EPOCH", "1600000000")];
        let ended = run(&dir, &[("Dockerfile", text), ("a", "a")], &args)?;
        digests.push(ended.result.map_err(|f| anyhow::anyhow!("{f:?}\n{}", ended.log))?.digest);
        ensure!(File::open(dir.join("out/oci-layout")).is_ok());
    }
    ensure!(digests[0] == digests[1], "{digests:?}");
    Ok(())
}
