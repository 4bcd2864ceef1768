//! Which stages the wished one needs, and in which order they can be built.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use kiln_contract::reason::{DOCKERFILE_INVALID, NOT_FOUND};
use kiln_dockerfile::instruction::{Copy, MountSpec};
use kiln_dockerfile::{Dockerfile, Instruction, InstructionKind, nearest, parse_trigger};

use super::env::Words;
use super::{Env, PlanError, mounts};

/// What a name in FROM or `--from` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Scratch,
    /// Number of a stage in the Dockerfile.
    Stage(usize),
    /// A reference.
    Image(String),
}

/// A stage that is needed.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Its number in the Dockerfile.
    pub stage: usize,
    pub base: Source,
}

/// The wished stage: the last one, or the last of that name.
pub(super) fn target(file: &Dockerfile, wished: Option<&str>) -> Result<usize, PlanError> {
    let Some(last) = file.stages.len().checked_sub(1) else {
        return Err(PlanError::new(DOCKERFILE_INVALID, None, "the Dockerfile has no FROM; add one"));
    };
    let Some(wished) = wished else { return Ok(last) };
    named(file, wished, file.stages.len()).ok_or_else(|| {
        let names: Vec<&str> = file.stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
        let hint = match nearest(wished, &names) {
            Some(near) => format!("did you mean {near}?"),
            None if names.is_empty() => "no stage has a name (FROM image AS name)".to_owned(),
            None => format!("the stages are {}", names.join(", ")),
        };
        PlanError::new(NOT_FOUND, None, format!("target stage {wished:?} is not in the Dockerfile; {hint}"))
    })
}

/// The last stage of a name among the first `before`.
pub(super) fn named(file: &Dockerfile, name: &str, before: usize) -> Option<usize> {
    let name = name.to_lowercase();
    file.stages[..before].iter().rposition(|stage| stage.name.as_deref() == Some(&name))
}

/// What `--from` means: a stage's number or name, else an image.
pub(super) fn copy_source(file: &Dockerfile, from: &str, line: u32) -> Result<Source, PlanError> {
    if !from.is_empty() && from.bytes().all(|b| b.is_ascii_digit()) {
        return from.parse().ok().filter(|n| *n < file.stages.len()).map(Source::Stage).ok_or_else(|| {
            let last = file.stages.len().saturating_sub(1);
            PlanError::new(
                NOT_FOUND,
                line,
                format!("COPY --from={from}: there is no stage {from}; stages are numbered from 0 to {last}"),
            )
        });
    }
    Ok(match named(file, from, file.stages.len()) {
        Some(stage) => Source::Stage(stage),
        None if from == "scratch" => {
            return Err(PlanError::new(NOT_FOUND, line, "COPY --from=scratch: scratch holds no files"));
        }
        None => Source::Image(from.to_owned()),
    })
}

/// What FROM means, with variables of the global scope.
fn base(file: &Dockerfile, index: usize, globals: &Env) -> Result<Source, PlanError> {
    let stage = &file.stages[index];
    let line = stage.lines.first;
    let name = Words { env: globals, escape: file.escape, line }.one(&stage.base)?;
    if name.is_empty() {
        return Err(PlanError::new(
            DOCKERFILE_INVALID,
            line,
            format!(
                "FROM {}: the image's name is empty; give the argument a default or pass it as build argument",
                stage.base
            ),
        ));
    }
    Ok(match named(file, &name, index) {
        Some(stage) => Source::Stage(stage),
        None if name == "scratch" => Source::Scratch,
        None => Source::Image(name),
    })
}

/// Stages that a stage needs, with the line that says so.
type Needs = Vec<(usize, u32)>;

fn needs(file: &Dockerfile, index: usize, base: &Source) -> Result<Needs, PlanError> {
    let mut out = Needs::new();
    let mut of = |instruction: &Instruction, line: u32| -> Result<(), PlanError> {
        if let InstructionKind::Copy(Copy { from: Some(from), .. }) = &instruction.kind
            && !from.contains('$')
            && let Source::Stage(stage) = copy_source(file, from, line)?
        {
            out.push((stage, line));
        }
        if let InstructionKind::Run(run) = &instruction.kind {
            for from in run.mounts.iter().filter_map(MountSpec::from) {
                match mounts::source(file, from) {
                    Source::Stage(stage) if stage >= index => return Err(mounts::too_late(from, line)),
                    Source::Stage(stage) => out.push((stage, line)),
                    _ => {}
                }
            }
        }
        Ok(())
    };
    for instruction in &file.stages[index].instructions {
        of(instruction, instruction.lines.first)?;
    }
    let line = file.stages[index].lines.first;
    if let Source::Stage(parent) = base {
        for instruction in &file.stages[*parent].instructions {
            if let InstructionKind::Onbuild(text) = &instruction.kind
                && let Ok(trigger) = parse_trigger(text)
            {
                of(&trigger, line)?;
            }
        }
        out.push((*parent, line));
    }
    Ok(out)
}

/// The stages that `target` needs, itself last, in the order of the Dockerfile as far as that can be.
pub(super) fn order(file: &Dockerfile, target: usize, globals: &Env) -> Result<Vec<Node>, PlanError> {
    let mut found: BTreeMap<usize, (Source, Needs)> = BTreeMap::new();
    let mut todo = vec![target];
    while let Some(index) = todo.pop() {
        if let Entry::Vacant(place) = found.entry(index) {
            let base = base(file, index, globals)?;
            let needs = needs(file, index, &base)?;
            todo.extend(needs.iter().map(|(stage, _)| *stage));
            place.insert((base, needs));
        }
    }
    let mut placed = BTreeSet::new();
    let mut out = Vec::with_capacity(found.len());
    while out.len() < found.len() {
        let ready = found.iter().find(|(index, (_, needs))| {
            !placed.contains(*index) && needs.iter().all(|(need, _)| placed.contains(need))
        });
        let Some((index, (base, _))) = ready else {
            return Err(circle(file, &found, &placed));
        };
        placed.insert(*index);
        out.push(Node { stage: *index, base: base.clone() });
    }
    Ok(out)
}

fn circle(
    file: &Dockerfile,
    found: &BTreeMap<usize, (Source, Needs)>,
    placed: &BTreeSet<usize>,
) -> PlanError {
    let stuck = found
        .iter()
        .filter(|(index, _)| !placed.contains(*index))
        .find_map(|(_, (_, needs))| needs.iter().find(|(need, _)| !placed.contains(need)));
    let (line, name) = match stuck {
        Some((need, line)) => (Some(*line), stage_name(file, *need)),
        None => (None, String::new()),
    };
    PlanError::new(
        DOCKERFILE_INVALID,
        line,
        format!("stage {name} needs itself, directly or through other stages; break the circle"),
    )
}

/// A stage's name, or its number.
pub(super) fn stage_name(file: &Dockerfile, index: usize) -> String {
    file.stages[index].name.clone().unwrap_or_else(|| index.to_string())
}
