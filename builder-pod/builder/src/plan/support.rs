//! What of the language is not implemented yet, refused by name. Nothing is ever ignored in silence.

use kiln_contract::reason::{DOCKERFILE_INVALID, NOT_SUPPORTED};
use kiln_dockerfile::instruction::{Copy, Network, Run, Security};
use kiln_dockerfile::{Instruction, InstructionKind};

use super::{PlanError, mounts};

/// Refuses an instruction that this version does not carry out.
pub(super) fn check(instruction: &Instruction, entitlements: &[String]) -> Result<(), PlanError> {
    let unsupported = match &instruction.kind {
        InstructionKind::Run(run) => run_gap(run, entitlements),
        _ => None,
    };
    let line = instruction.lines.first;
    match unsupported {
        Some(what) => Err(refusal(&what, line)),
        None => match &instruction.kind {
            InstructionKind::Copy(Copy { from: Some(from), .. }) if from.contains('$') => {
                Err(PlanError::new(
                    DOCKERFILE_INVALID,
                    line,
                    format!(
                        "COPY --from={from}: variables are not expanded in --from; name a stage with FROM ${{…}} AS name and an ARG before the first FROM, and copy from that"
                    ),
                ))
            }
            InstructionKind::Run(run) => {
                run.mounts.iter().try_for_each(|mount| mounts::check_early(mount, line))
            }
            _ => Ok(()),
        },
    }
}

/// The refusal of something by its name.
pub(super) fn refusal(what: &str, line: u32) -> PlanError {
    PlanError::new(NOT_SUPPORTED, line, format!("{what} is not supported by this version of Kiln"))
}

fn run_gap(run: &Run, entitlements: &[String]) -> Option<String> {
    if !run.devices.is_empty() {
        return Some("RUN --device".into());
    }
    // Steps share the network of the builder, be it the pod's or the machine's: with leave, it is what they have anyway.
    if run.network == Network::Host && !entitlements.iter().any(|word| word == "network.host") {
        return Some("RUN --network=host without the entitlement network.host (spec.entitlements of a BuildPolicy, kiln build --allow network.host)".into());
    }
    if run.security == Security::Insecure {
        return Some("RUN --security=insecure".into());
    }
    None
}

/// Whether a `# syntax=` line (or the build argument `BUILDKIT_SYNTAX`) asks for a language that is covered here:
/// `docker/dockerfile` 1.x without its experimental channel. It is never executed.
pub(super) fn check_syntax(syntax: &str, line: Option<u32>) -> Result<(), PlanError> {
    // What follows the first blank are arguments for the frontend.
    let image = syntax.split_whitespace().next().unwrap_or_default();
    let image = image.split_once('@').map_or(image, |(image, _)| image);
    let image = image.strip_prefix("docker.io/").unwrap_or(image);
    let (name, tag) = image.split_once(':').unwrap_or((image, "latest"));
    let numbers = |tag: &str| {
        let mut parts = tag.split('.');
        parts.next() == Some("1") && parts.all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
    };
    if name == "docker/dockerfile" && (tag == "latest" || numbers(tag)) {
        return Ok(());
    }
    Err(PlanError::new(
        NOT_SUPPORTED,
        line,
        format!(
            "syntax {syntax:?} is not supported: Kiln reads the language of docker/dockerfile:1 itself and runs no other frontend; use that or drop the line"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::check_syntax;

    #[test]
    fn syntax_lines() {
        for good in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker/dockerfile:1.7",
            "docker/dockerfile:1.7.1",
            "docker.io/docker/dockerfile:1@sha256:00",
            "docker/dockerfile:latest",
        ] {
            assert_eq!(check_syntax(good, None), Ok(()), "{good}");
        }
        for bad in [
            "docker/dockerfile:1-labs",
            "docker/dockerfile:2",
            "docker/dockerfile-upstream:master",
            "tonistiigi/x",
            "",
        ] {
            assert!(check_syntax(bad, Some(1)).is_err(), "{bad}");
        }
    }
}
