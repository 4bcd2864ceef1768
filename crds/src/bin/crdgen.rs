//! `crdgen [--check] [--helm] PATH...`: writes CustomResourceDefinitions to paths that are named after them, or compares what is
//! there.

use std::process::ExitCode;

const USAGE: &str = "usage: crdgen [--check] [--helm] PATH...\n\
  writes the CustomResourceDefinition NAME to each PATH .../NAME.yaml; paths after --helm get all of them as a template of the Helm chart\n\
  --check  write nothing; exit 1 when a file differs";

fn main() -> ExitCode {
    match run(std::env::args().skip(1)) {
        Ok(code) => code,
        Err(message) => {
            eprintln!("crdgen: {message}");
            ExitCode::from(2)
        }
    }
}

fn run(args: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let (mut check, mut helm, mut targets) = (false, false, Vec::new());
    for arg in args {
        match arg.as_str() {
            "--check" => check = true,
            "--helm" => helm = true,
            _ if arg.starts_with('-') => return Err(format!("unknown option {arg}\n{USAGE}")),
            _ => targets.push((arg, helm)),
        }
    }
    if targets.is_empty() {
        return Err(format!("no PATH given\n{USAGE}"));
    }
    let mut stale = false;
    for (path, helm) in targets {
        let text = text_of(&path, helm)?;
        if !check {
            std::fs::write(&path, text).map_err(|e| format!("can't write {path}: {e}"))?;
        } else if std::fs::read_to_string(&path).unwrap_or_default() != text {
            eprintln!(
                "crdgen: {path} is not what the API types say; run crdgen without --check and commit the result"
            );
            stale = true;
        }
    }
    Ok(if stale { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text_of(path: &str, helm: bool) -> Result<String, String> {
    if helm {
        return kiln_api::crd::to_helm_template().map_err(|e| e.to_string());
    }
    let name = std::path::Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let known = || kiln_api::crd::all().map(|crd| crd.metadata.name.unwrap_or_default()).join(", ");
    kiln_api::crd::to_yaml(name).map_err(|e| e.to_string())?.ok_or_else(|| {
        format!("expected a path that ends in NAME.yaml with a NAME of {}, found {path}", known())
    })
}
