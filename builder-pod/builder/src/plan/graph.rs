//! Which stages the wished one needs, and in which order they can be built.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use kiln_contract::reason::{DOCKERFILE_INVALID, NOT_FOUND};
use kiln_contract::request::NamedContext;
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
    /// Name of a context that is a directory.
    Context(String),
}

/// What names are looked up in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub file: &'a Dockerfile,
    pub contexts: &'a BTreeMap<String, NamedContext>,
    /// Triggers of base images, by reference.
    pub on_build: &'a BTreeMap<String, Vec<String>>,
}

impl Scope<'_> {
    /// The context of a name, which goes before a stage or image of that name.
    pub fn context(&self, name: &str) -> Option<Source> {
        let wished = familiar(name);
        let (name, context) = self.contexts.iter().find(|(name, _)| familiar(name) == wished)?;
        Some(match context {
            NamedContext::Directory(_) | NamedContext::Git(_) => Source::Context(name.clone()),
            NamedContext::Image(reference) => Source::Image(reference.clone()),
        })
    }

    /// A stage, unless a context takes its name's place.
    fn stage(&self, stage: usize) -> Source {
        let name = self.file.stages.get(stage).and_then(|stage| stage.name.as_deref());
        name.and_then(|name| self.context(name)).unwrap_or(Source::Stage(stage))
    }
}

/// A name as people write it: `docker.io/library/alpine:latest` is `alpine` (BuildKit's named contexts).
fn familiar(name: &str) -> String {
    let name = name.to_lowercase();
    let short = name.strip_prefix("docker.io/").unwrap_or(&name);
    let short = short.strip_prefix("library/").unwrap_or(short);
    short.strip_suffix(":latest").unwrap_or(short).to_owned()
}

/// A stage that is needed.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Its number in the Dockerfile.
    pub stage: usize,
    pub base: Source,
    /// ONBUILD instructions of the base, which come first; their lines are those of the FROM.
    pub triggers: Vec<Instruction>,
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
pub(super) fn copy_source(scope: Scope<'_>, from: &str, line: u32) -> Result<Source, PlanError> {
    let file = scope.file;
    if !from.is_empty() && from.bytes().all(|b| b.is_ascii_digit()) {
        let found = from.parse().ok().filter(|n| *n < file.stages.len()).map(|n| scope.stage(n));
        return found.ok_or_else(|| {
            let last = file.stages.len().saturating_sub(1);
            PlanError::new(
                NOT_FOUND,
                line,
                format!("COPY --from={from}: there is no stage {from}; stages are numbered from 0 to {last}"),
            )
        });
    }
    if let Some(context) = scope.context(from) {
        return Ok(context);
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
fn base(scope: Scope<'_>, index: usize, globals: &Env) -> Result<Source, PlanError> {
    let file = scope.file;
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
    if let Some(context) = scope.context(&name) {
        return Ok(context);
    }
    // Names of stages are kept in small letters, and FROM alone does not change case to find one (BuildKit).
    let found = file.stages[..index].iter().rposition(|stage| stage.name.as_deref() == Some(&*name));
    Ok(match found {
        Some(stage) => Source::Stage(stage),
        None if name == "scratch" => Source::Scratch,
        None => Source::Image(name),
    })
}

/// Stages that a stage needs, with the line that says so.
type Needs = Vec<(usize, u32)>;

fn needs(
    scope: Scope<'_>,
    index: usize,
    base: &Source,
    triggers: &[Instruction],
) -> Result<Needs, PlanError> {
    let file = scope.file;
    let mut out = Needs::new();
    let mut of = |instruction: &Instruction, line: u32| -> Result<(), PlanError> {
        if let InstructionKind::Copy(Copy { from: Some(from), .. }) = &instruction.kind
            && !from.contains('$')
            && let Source::Stage(stage) = copy_source(scope, from, line)?
        {
            out.push((stage, line));
        }
        if let InstructionKind::Run(run) = &instruction.kind {
            for from in run.mounts.iter().filter_map(MountSpec::from) {
                match mounts::source(scope, from) {
                    Source::Stage(stage) if stage >= index => return Err(mounts::too_late(from, line)),
                    Source::Stage(stage) => out.push((stage, line)),
                    _ => {}
                }
            }
        }
        Ok(())
    };
    for instruction in triggers.iter().chain(&file.stages[index].instructions) {
        of(instruction, instruction.lines.first)?;
    }
    if let Source::Stage(parent) = base {
        out.push((*parent, file.stages[index].lines.first));
    }
    Ok(out)
}

/// What a base has its children do first: as an image's config says, or as the stage that it is was written.
fn triggers<'a>(scope: Scope<'a>, index: usize, base: &Source) -> Result<Vec<Instruction>, PlanError> {
    let lines = scope.file.stages[index].lines;
    let texts: Vec<&String> = match base {
        Source::Image(reference) => scope.on_build.get(reference).into_iter().flatten().collect(),
        Source::Stage(parent) => {
            let written = scope.file.stages[*parent].instructions.iter();
            let text = |instruction: &'a Instruction| match &instruction.kind {
                InstructionKind::Onbuild(text) => Some(text),
                _ => None,
            };
            written.filter_map(text).collect()
        }
        Source::Scratch | Source::Context(_) => Vec::new(),
    };
    let read = |text: &String| {
        let trigger = parse_trigger(text).map_err(|e| {
            let message = format!("ONBUILD {text} of the base image: {e}");
            PlanError::new(DOCKERFILE_INVALID, lines.first, message)
        })?;
        Ok(Instruction { lines, ..trigger })
    };
    texts.into_iter().map(read).collect()
}

/// The stages that `target` needs, itself last, in the order of the Dockerfile as far as that can be.
pub(super) fn order(scope: Scope<'_>, target: usize, globals: &Env) -> Result<Vec<Node>, PlanError> {
    let file = scope.file;
    let mut found: BTreeMap<usize, (Node, Needs)> = BTreeMap::new();
    let mut todo = vec![target];
    while let Some(index) = todo.pop() {
        if let Entry::Vacant(place) = found.entry(index) {
            let base = base(scope, index, globals)?;
            let triggers = triggers(scope, index, &base)?;
            let needs = needs(scope, index, &base, &triggers)?;
            todo.extend(needs.iter().map(|(stage, _)| *stage));
            place.insert((Node { stage: index, base, triggers }, needs));
        }
    }
    let mut placed = BTreeSet::new();
    let mut out = Vec::with_capacity(found.len());
    while out.len() < found.len() {
        let ready = found.iter().find(|(index, (_, needs))| {
            !placed.contains(*index) && needs.iter().all(|(need, _)| placed.contains(need))
        });
        let Some((index, (node, _))) = ready else {
            return Err(circle(file, &found, &placed));
        };
        placed.insert(*index);
        out.push(node.clone());
    }
    Ok(out)
}

fn circle(file: &Dockerfile, found: &BTreeMap<usize, (Node, Needs)>, placed: &BTreeSet<usize>) -> PlanError {
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
