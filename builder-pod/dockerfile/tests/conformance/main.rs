//! The corpus of BuildKit's own answers (`../shared/conformance`, or `KILN_CONFORMANCE`): what parses and what does not and
//! on which lines, expansion, ignore files, references to git. The data is not part of this repository; without it the tests say so.

mod as_corpus;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use kiln_dockerfile::expand::{ExpandOptions, Expander};
use kiln_dockerfile::ignore::Matched;
use kiln_dockerfile::lint::{self, Check};
use kiln_dockerfile::{Dockerfile, GitRef, IgnoreFile};
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

/// Cases of a category that differ on purpose.
fn on_purpose(category: &str) -> Vec<String> {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conformance/differs-on-purpose");
    let text = std::fs::read_to_string(list).expect("the list is there");
    let prefix = format!("{category}/");
    let name = |line: &str| line.strip_prefix(&prefix)?.split_whitespace().next().map(str::to_owned);
    text.lines().filter_map(name).collect()
}

/// Says how a category did, in the words that `scripts/conformance` counts. A fault begins with its case's name.
fn judge(name: &str, cases: usize, faults: &[String]) {
    let listed = on_purpose(name);
    let is_listed = |fault: &&String| {
        let case = fault.split([':', ' ']).next().unwrap_or_default();
        listed.iter().any(|name| name == case)
    };
    let (listed, faults): (Vec<&String>, Vec<&String>) = faults.iter().partition(is_listed);
    let count = |faults: &[&String]| {
        let cases = faults.iter().map(|fault| fault.split([':', ' ']).next().unwrap_or_default());
        cases.collect::<std::collections::BTreeSet<_>>().len()
    };
    let (failed, skipped) = (count(&faults), count(&listed));
    println!("{name}: {} passed, {failed} failed, {skipped} skipped", cases - failed - skipped);
    assert!(faults.is_empty(), "{name}: {failed} of {cases} cases differ\n{faults:#?}");
}

fn case_name(case: &Value) -> &str {
    case["name"].as_str().unwrap_or("?")
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
        let bytes = std::fs::read(&source).unwrap();
        if let (true, Ok(syntax)) = (expected["parse"]["ok"] == true, kiln_dockerfile::parse::parse(&bytes)) {
            let (tree, wanted) = (as_corpus::syntax(&syntax), &expected["parse"]);
            for part in ["escape", "directives"] {
                differ(
                    &format!("{name}: {part}"),
                    vec![wanted[part].clone()],
                    vec![tree[part].clone()],
                    &mut faults,
                );
            }
            let named = kiln_dockerfile::directives::detect_syntax(&bytes);
            differ(
                &format!("{name}: syntax"),
                vec![wanted["syntax"].clone()],
                vec![named.into()],
                &mut faults,
            );
            differ(&format!("{name}: nodes"), list(&wanted["nodes"]), list(&tree["nodes"]), &mut faults);
            empty_lines(&name, wanted, &syntax, &mut faults);
        }
        let found = Dockerfile::parse(&bytes);
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

/// Every value of every instruction; error texts are our own.
fn compare(name: &str, wanted: &Value, file: &Dockerfile, faults: &mut Vec<String>) {
    let (meta, stages) = as_corpus::file(file);
    let mut expected = wanted["stages"].clone();
    let commands = expected.as_array_mut().into_iter().flatten();
    for command in commands.filter_map(|stage| stage["commands"].as_array_mut()).flatten() {
        if !command["mounts_error"].is_null() {
            command["mounts_error"] = true.into();
        }
    }
    differ(&format!("{name}: global arguments"), list(&wanted["meta_args"]), list(&meta), faults);
    differ(&format!("{name}: stages"), list(&expected), list(&stages), faults);
    let found = lint::written(file, &Check::default());
    if found.count == found.kept.len() {
        differ(&format!("{name}: warnings"), list(&wanted["lint"]), as_corpus::lint(&found), faults);
    }
}

/// Lines of empty continuations, which the corpus has with the syntax tree.
fn empty_lines(
    name: &str,
    wanted: &Value,
    syntax: &kiln_dockerfile::parse::Syntax,
    faults: &mut Vec<String>,
) {
    let expected = list(&wanted["warnings"]).iter().map(|warning| warning["line"].clone()).collect();
    let found = syntax.empty_continuations.iter().map(|lines| lines.last.into()).collect();
    differ(&format!("{name}: empty lines"), expected, found, faults);
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// The first pair that differs: a whole file would be too much to read.
fn differ(what: &str, expected: Vec<Value>, found: Vec<Value>, faults: &mut Vec<String>) {
    if expected.len() != found.len() {
        faults.push(format!("{what}: expected {}, found {}", expected.len(), found.len()));
    }
    for (expected, found) in expected.into_iter().zip(found).filter(|(a, b)| a != b).take(1) {
        match (expected["commands"].as_array(), found["commands"].as_array()) {
            (Some(a), Some(b)) if a != b => differ(what, a.clone(), b.clone(), faults),
            _ => faults.push(format!("{what}:\n  expected {expected}\n  found    {found}")),
        }
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
            faults.push(format!("{}: {input:?}: expected {expect}, found {found:?}", case_name(case)));
        }
    }
    judge("shell", vectors.len(), &faults);
}

/// What a walk from the root says of a path: what matched a directory is handed down.
fn walk(file: &IgnoreFile, path: &str) -> bool {
    let mut above = Matched::default();
    let mut excluded = false;
    for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
        (excluded, above) = file.walk(&path[..at], &above);
    }
    excluded
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
                let paths: Vec<&str> = paths.collect();
                let alone: Vec<&str> = paths.iter().copied().filter(|p| file.matches(p)).collect();
                let walked: Vec<&str> = paths.iter().copied().filter(|p| walk(file, p)).collect();
                let by_walk = if expect["excluded_by_walk"].is_null() {
                    list(&expect["excluded"])
                } else {
                    list(&expect["excluded_by_walk"])
                };
                let found =
                    [serde_json::json!(alone), serde_json::json!(walked), serde_json::json!(file.patterns())];
                let wanted = [list(&expect["excluded"]), by_walk, list(&expect["patterns"])];
                let same = found.iter().zip(&wanted).all(|(found, wanted)| list(found) == *wanted);
                (!same).then(|| format!("found {found:?}"))
            }
        };
        if let Some(problem) = problem {
            faults.push(format!("{}: {}: {problem}, expected {expect}", case_name(case), case["ignorefile"]));
        }
    }
    judge("dockerignore", vectors.len(), &faults);
}

#[test]
fn gitref() {
    let Some(path) = corpus("gitref/vectors.json") else { return };
    let vectors = read(&path);
    let vectors = vectors.as_array().unwrap();
    let mut faults = Vec::new();
    for case in vectors {
        let text = case["ref"].as_str().unwrap_or_default();
        let found = GitRef::parse(text);
        let same = match &found {
            Err(_) => case["fatal"] == true,
            Ok(None) => case["git"] == false && case["fatal"] != true,
            Ok(Some(found)) => case["git"] == true && as_corpus::git(found) == case["parsed"],
        };
        if !same {
            faults.push(format!("{}: {text:?}: expected {case}, found {found:?}", case_name(case)));
        }
    }
    judge("gitref", vectors.len(), &faults);
}
