//! `crdgen [--check] [--helm] PATH...`: writes the CustomResourceDefinition to each path, or compares what is there.

use std::process::ExitCode;

const USAGE: &str = "usage: crdgen [--check] [--helm] PATH...\n\
  writes the CustomResourceDefinition to each PATH; paths after --helm get it as a template of the Helm chart\n\
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
        let text = if helm { kiln_api::crd::to_helm_template() } else { kiln_api::crd::to_yaml() }
            .map_err(|e| e.to_string())?;
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
