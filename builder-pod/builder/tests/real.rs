//! Dockerfiles of real projects (`parser/real-*` of the conformance corpus) are parsed and planned. Every base image is a
//! stand-in: planning asks of it a config, two layers, and no file. What can be built without a network also is, by
//! `scripts/conformance`. Without the corpus the test says so.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kiln_builder::plan::{ImageUse, Lint, Outline, Plan, Target, check};
use kiln_contract::Descriptor;
use kiln_contract::image::ResolvedImage;
use kiln_dockerfile::{Dockerfile, IgnoreFile};
use serde_json::{Value, json};

/// Those that the corpus has at least: fewer, and it was not found whole.
const AT_LEAST: usize = 60;

fn corpus() -> PathBuf {
    std::env::var_os("KILN_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
        PathBuf::from,
    )
}

/// Name and why, of those that can't be planned: `plan/NAME  why` in `differs-on-purpose`.
fn on_purpose() -> BTreeMap<String, String> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/differs-on-purpose");
    let text = std::fs::read_to_string(list).expect("the list is there");
    let entry = |line: &str| {
        line.strip_prefix("plan/")?.split_once(' ').map(|(n, w)| (n.to_owned(), w.trim().to_owned()))
    };
    text.lines().filter_map(entry).collect()
}

/// An image of the platform that is asked for, the same for the same reference.
fn stand_in(image: &ImageUse) -> ResolvedImage {
    let digest = |n: usize| format!("sha256:{n:064x}");
    let mut platform = image.platform.split('/');
    let (os, architecture) = (platform.next(), platform.next());
    let config = json!({
        "os": os, "architecture": architecture, "variant": platform.next(),
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(1), digest(2)]},
    });
    let layer = |n| Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        digest: digest(n),
        size: 1,
    };
    ResolvedImage {
        reference: image.reference.clone(),
        pinned: format!("{}@{}", image.reference, image.platform),
        digest: digest(9),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        config: config.to_string(),
        layers: vec![layer(3), layer(4)],
    }
}

fn planned(source: &[u8]) -> Result<(Dockerfile, Plan), String> {
    let file = Dockerfile::parse(source).map_err(|e| format!("line {}: {e}", e.lines))?;
    let (args, contexts) = (BTreeMap::new(), BTreeMap::new());
    let target = Target {
        platform: "linux/amd64",
        machine: "linux/amd64",
        stage: None,
        args: &args,
        contexts: &contexts,
        entitlements: &[],
    };
    let plan = || {
        let check = check(&file, &args)?;
        let outline = Outline::new(&file, file.syntax.as_deref(), target)?;
        let images: Vec<_> = outline.images().iter().map(stand_in).collect();
        let found = RefCell::default();
        outline.plan(&images, Lint { check: &check, ignore: &IgnoreFile::default(), found: &found })
    };
    let plan = plan().map_err(|e| format!("line {}: {} ({})", e.line.unwrap_or(0), e.message, e.reason))?;
    Ok((file, plan))
}

/// What is not in the plan as BuildKit reads the file: the lines of the last stage's instructions, and how many RUN it has.
fn differs(expected: &Value, file: &Dockerfile, plan: &Plan) -> Option<String> {
    let stage = expected["stages"].as_array()?.last()?;
    let commands = stage["commands"].as_array().cloned().unwrap_or_default();
    let mut wanted = vec![stage["lines"][0].as_u64()];
    wanted.extend(commands.iter().map(|command| command["lines"][0].as_u64()));
    let from = plan.steps.len().checked_sub(wanted.len());
    let Some(from) = from else {
        return Some(format!(
            "the last stage has {} instructions, the plan {}",
            wanted.len(),
            plan.steps.len()
        ));
    };
    let found: Vec<_> = plan.steps[from..].iter().map(|step| Some(u64::from(step.line))).collect();
    if found != wanted {
        return Some(format!("the last stage's steps are on lines {found:?}, expected {wanted:?}"));
    }
    let runs =
        plan.steps[from..].iter().filter(|step| step.text.to_ascii_uppercase().starts_with("RUN")).count();
    let expected_runs = commands.iter().filter(|command| command["name"] == "run").count();
    if runs != expected_runs {
        return Some(format!("{runs} RUN in the last stage, expected {expected_runs}"));
    }
    // With no stage pruned away, every stage's base that is an image is one of the plan's.
    let every = plan.stages.len() == file.stages.len();
    let images = file.stages.iter().any(|s| s.base != "scratch");
    (every && images && plan.images.is_empty()).then(|| "no image is needed, expected the bases".to_owned())
}

#[test]
fn real_dockerfiles_are_planned() {
    let dir = corpus().join("parser");
    let Ok(entries) = std::fs::read_dir(&dir) else {
        println!("skipped: no corpus at {}", dir.display());
        return;
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("real-"))
        .collect();
    names.sort();
    if names.is_empty() {
        println!("skipped: no real-* in {}", dir.display());
        return;
    }
    let listed = on_purpose();
    let (mut passed, mut failed, mut skipped, mut steps) = (0, Vec::new(), 0, 0);
    for name in &names {
        let source = std::fs::read(dir.join(name).join("Dockerfile")).expect("the Dockerfile can be read");
        let expected = std::fs::read(dir.join(name).join("expected.json")).expect("the answer can be read");
        let expected: Value = serde_json::from_slice(&expected).expect("the answer is JSON");
        let problem = match planned(&source) {
            Ok((file, plan)) => {
                steps += plan.steps.len();
                differs(&expected["instructions"], &file, &plan)
            }
            Err(problem) => Some(problem),
        };
        match (problem, listed.get(name)) {
            (None, None) => passed += 1,
            (Some(problem), Some(why)) => {
                skipped += 1;
                println!("skipped plan/{name}: {why} ({problem})");
            }
            (Some(problem), None) => failed.push(format!("{name}: {problem}")),
            (None, Some(_)) => {
                failed.push(format!("{name}: is listed in differs-on-purpose and can be planned"));
            }
        }
    }
    failed.iter().for_each(|fault| println!("FAILED plan/{fault}"));
    println!("Real Dockerfiles: {} of {} planned, {steps} steps", passed, names.len());
    println!("plan: {passed} passed, {} failed, {skipped} skipped", failed.len());
    assert!(failed.is_empty(), "{failed:#?}");
    // A corpus of one's own may be smaller.
    let whole = std::env::var_os("KILN_CONFORMANCE").is_none();
    assert!(!whole || passed >= AT_LEAST, "{passed} were planned, expected {AT_LEAST}");
}
