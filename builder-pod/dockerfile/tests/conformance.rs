//! The corpus of BuildKit's own answers (`../shared/conformance`, or `KILN_CONFORMANCE`): what parses and what does not and
//! on which lines, expansion, ignore files. The data is not part of this repository; without it the tests say so.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use kiln_dockerfile::expand::{ExpandOptions, Expander};
use kiln_dockerfile::{Dockerfile, IgnoreFile};
use serde_json::Value;

fn corpus(part: &str) -> Option<PathBuf> {
    let root = std::env::var_os("KILN_CONFORMANCE").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
        PathBuf::from,
    );
    let path = root.join(part);
    if path.exists() {
        return Some(path);
    }
    println!("skipped: no corpus at {}", path.display());
    None
}

fn read(path: &Path) -> Value {
    let bytes = std::fs::read(path).expect("the corpus can be read");
    serde_json::from_slice(&bytes).expect("the corpus is JSON")
}

fn judge(name: &str, cases: usize, faults: &[String]) {
    assert!(faults.is_empty(), "{name}: {} of {cases} cases differ\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn parser() {
    let Some(dir) = corpus("parser") else { return };
    let (mut faults, mut cases) = (Vec::new(), 0);
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let source = entry.path().join("Dockerfile");
        if !source.is_file() {
            continue;
        }
        cases += 1;
        let name = entry.file_name().to_string_lossy().into_owned();
        let expected = read(&entry.path().join("expected.json"));
        let wanted =
            if expected["parse"]["ok"] == true { &expected["instructions"] } else { &expected["parse"] };
        let found = Dockerfile::parse(&std::fs::read(&source).unwrap());
        match (wanted["ok"] == true, found) {
            (true, Ok(file)) => compare(&name, wanted, &file, &mut faults),
            (true, Err(e)) => faults.push(format!("{name}: should parse, found {e} on {}", e.lines)),
            (false, Ok(_)) => faults.push(format!("{name}: should fail with {}", wanted["error"])),
            (false, Err(e)) => {
                let lines = serde_json::json!([e.lines.first, e.lines.last]);
                if !wanted["lines"].is_null() && wanted["lines"] != lines {
                    faults.push(format!(
                        "{name}: fails on {lines}, expected {} ({})",
                        wanted["lines"], wanted["error"]
                    ));
                }
            }
        }
    }
    judge("parser", cases, &faults);
}

/// Stages, their names and platforms, and each instruction's name and lines.
fn compare(name: &str, wanted: &Value, file: &Dockerfile, faults: &mut Vec<String>) {
    let found: Vec<Value> = file
        .stages
        .iter()
        .map(|stage| {
            let commands: Vec<Value> = stage
                .instructions
                .iter()
                .map(|i| serde_json::json!([i.name().to_lowercase(), i.lines.first, i.lines.last]))
                .collect();
            serde_json::json!([stage.base, stage.name, stage.platform, stage.lines.first, commands])
        })
        .collect();
    let empty = Vec::new();
    let expected: Vec<Value> = wanted["stages"]
        .as_array()
        .unwrap_or(&empty)
        .iter()
        .map(|stage| {
            let commands: Vec<Value> = stage["commands"]
                .as_array()
                .unwrap_or(&empty)
                .iter()
                .map(|c| serde_json::json!([c["name"], c["lines"][0], c["lines"][1]]))
                .collect();
            serde_json::json!([stage["base"], stage["name"], stage["platform"], stage["lines"][0], commands])
        })
        .collect();
    if found != expected {
        faults.push(format!("{name}:\n  expected {expected:?}\n  found    {found:?}"));
    }
}

#[test]
fn shell() {
    let Some(path) = corpus("shell/vectors.json") else { return };
    let vectors = read(&path);
    let vectors = vectors.as_array().unwrap();
    let mut faults = Vec::new();
    for case in vectors {
        let env: HashMap<&str, &str> = case["env"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str()?.split_once('='))
            .collect();
        let get = |name: &str| env.get(name).map(|v| (*v).to_owned());
        let escape = case["escape"].as_str().and_then(|e| e.chars().next()).unwrap_or('\\');
        let on = |name: &str| {
            let options = &case["options"];
            options[name] == true || options.as_array().is_some_and(|o| o.iter().any(|n| n == name))
        };
        let options = ExpandOptions {
            raw_quotes: on("raw_quotes"),
            raw_escapes: on("raw_escapes"),
            skip_process_quotes: on("skip_process_quotes"),
            skip_unset_env: on("skip_unset_env"),
        };
        let expander = Expander::new(&get, escape).options(options);
        let (input, expect) = (case["input"].as_str().unwrap_or_default(), &case["expect"]);
        let found = expander.expand(input);
        let same = match &found {
            Err(_) => !expect["error"].is_null(),
            Ok(found) if expect["words"].is_array() => serde_json::json!(found.words) == expect["words"],
            Ok(found) => expect["error"].is_null() && expect["word"] == found.text.as_str(),
        };
        if !same {
            faults.push(format!("{}: {input:?}: expected {expect}, found {found:?}", case["name"]));
        }
    }
    judge("shell", vectors.len(), &faults);
}

#[test]
fn dockerignore() {
    let Some(path) = corpus("dockerignore/vectors.json") else { return };
    let vectors = read(&path);
    let vectors = vectors.as_array().unwrap();
    let mut faults = Vec::new();
    for case in vectors {
        let expect = &case["expect"];
        let found = IgnoreFile::parse(case["ignorefile"].as_str().unwrap_or_default());
        let problem = match (&found, expect["error"].is_null()) {
            (Err(_), false) => None,
            (Err(e), true) => Some(e.to_string()),
            (Ok(_), false) => Some("should be refused".to_owned()),
            (Ok(file), true) => {
                let paths = case["paths"].as_array().into_iter().flatten().filter_map(Value::as_str);
                let excluded: Vec<&str> = paths.filter(|p| file.matches(p)).collect();
                (serde_json::json!(excluded) != expect["excluded"]
                    && !(excluded.is_empty() && expect["excluded"].is_null()))
                .then(|| format!("found {excluded:?}"))
            }
        };
        if let Some(problem) = problem {
            faults.push(format!("{} {}: {problem}, expected {expect}", case["name"], case["ignorefile"]));
        }
    }
    judge("dockerignore", vectors.len(), &faults);
}
