//! From syntax nodes to typed instructions.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::flags::{FlagError, Flags, Takes};
use super::health::{Healthcheck, interval};
use super::{
    Add, Arg, CommandLine, Copy, Device, InlineFile, Instruction, InstructionKind, KeyValue, MountSpec,
    Network, Run, Security, Transfer, instruction_names,
};
use crate::dockerfile::Stage;
use crate::error::{ParseError, ParseErrorKind};
use crate::heredoc::{Heredoc, heredoc_word};
use crate::parse::{Node, Parts};
use crate::text::is_regex_space;

use Takes::{Switch, Value, Values};

/// Bytes that the bodies of heredocs which share a name may have in sum beyond the first: each word gets its own copy,
/// so a long body named often would take memory by the product. Nobody means to write a file twice.
const MAX_REPEATED_BYTES: usize = 64 << 10;

type Known = &'static [(&'static str, Takes)];

const NO_FLAGS: Known = &[];
const FROM_FLAGS: Known = &[("platform", Value)];
const ADD_FLAGS: Known = &[
    ("chown", Value),
    ("chmod", Value),
    ("link", Switch),
    ("keep-git-dir", Switch),
    ("checksum", Value),
    ("unpack", Switch),
    ("exclude", Values),
];
const COPY_FLAGS: Known = &[
    ("chown", Value),
    ("from", Value),
    ("chmod", Value),
    ("link", Switch),
    ("exclude", Values),
    ("parents", Switch),
];
const RUN_FLAGS: Known = &[("mount", Values), ("device", Values), ("network", Value), ("security", Value)];
const HEALTH_FLAGS: Known = &[
    ("interval", Value),
    ("timeout", Value),
    ("start-period", Value),
    ("start-interval", Value),
    ("retries", Value),
];

/// Whether the node starts a stage.
pub(crate) fn is_from(node: &Node<'_>) -> bool {
    node.keyword == Some("FROM")
}

/// The instruction that a node stands for (any but FROM).
pub(crate) fn typed(mut node: Node<'_>) -> Result<Instruction, ParseError> {
    let mut parts = node.take_parts();
    let kind = kind_of_node(&node, &mut parts).map_err(|fault| place(fault, &node))?;
    Ok(Instruction { lines: node.lines, original: trimmed(node.original), comments: parts.comments, kind })
}

/// Without white space at its ends; copied only where there is some.
fn trimmed(text: Cow<'_, str>) -> String {
    let inner = text.trim();
    if inner.len() == text.len() { text.into_owned() } else { inner.to_owned() }
}

/// The stage that a FROM node starts.
pub(crate) fn stage_of_node(mut node: Node<'_>) -> Result<Stage, ParseError> {
    let parts = node.take_parts();
    let fault = |kind: ParseErrorKind| place(kind.into(), &node);
    let (base, name) = match parts.args.as_slice() {
        [base] => (base, None),
        [base, word, name] if word.to_lowercase() == "as" => {
            let lower = name.to_lowercase();
            if !is_stage_name(&lower) {
                return Err(fault(ParseErrorKind::StageName { name: name.clone() }));
            }
            (base, Some(lower))
        }
        args => return Err(fault(arguments("FROM", "an image, or an image and AS name", args.len()))),
    };
    let flags = Flags::read(&parts.flags, FROM_FLAGS).map_err(|e| place(e, &node))?;
    Ok(Stage {
        base: base.clone(),
        doc: name.as_ref().and_then(|name| doc(&parts.comments, name)),
        name,
        platform: flags.value("platform"),
        lines: node.lines,
        original: trimmed(node.original),
        comments: parts.comments,
        instructions: Vec::new(),
    })
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'))
}

/// Puts an error on the node's lines, with a hint for unknown words.
fn place(fault: FlagError, node: &Node<'_>) -> ParseError {
    let error = ParseError::new(fault.kind, node.lines);
    match (&fault.unknown, &error.kind) {
        (Some((word, known)), ParseErrorKind::UnknownFlag { .. }) => {
            let dashed = error.suggest(word, known);
            ParseError { hint: dashed.hint.map(|h| h.replace("mean ", "mean --")), ..dashed }
        }
        (_, ParseErrorKind::UnknownInstruction { .. }) => {
            error.suggest(node.instruction(), instruction_names())
        }
        _ => error,
    }
}

fn arguments(instruction: &'static str, expected: &'static str, found: usize) -> ParseErrorKind {
    ParseErrorKind::Arguments { instruction, expected, found }
}

fn kind_of_node(node: &Node<'_>, parts: &mut Parts) -> Result<InstructionKind, FlagError> {
    Ok(match node.keyword {
        Some("ADD") => InstructionKind::Add(add(parts)?),
        Some("ARG") => InstructionKind::Arg(arg(parts)?),
        Some("CMD") => InstructionKind::Cmd(command(parts)?),
        Some("COPY") => InstructionKind::Copy(copy(parts)?),
        Some("ENTRYPOINT") => InstructionKind::Entrypoint(command(parts)?),
        Some("ENV") => InstructionKind::Env(pairs(parts, "ENV")?),
        Some("EXPOSE") => InstructionKind::Expose(expose(parts)?),
        Some("HEALTHCHECK") => InstructionKind::Healthcheck(healthcheck(parts)?),
        Some("LABEL") => InstructionKind::Label(pairs(parts, "LABEL")?),
        Some("MAINTAINER") => InstructionKind::Maintainer(single(parts, "MAINTAINER")?),
        Some("ONBUILD") => InstructionKind::Onbuild(onbuild(&node.original, parts)?),
        Some("RUN") => InstructionKind::Run(run(parts)?),
        Some("SHELL") => InstructionKind::Shell(shell(parts)?),
        // STOPSIGNAL does not look at its flags.
        Some("STOPSIGNAL") => InstructionKind::StopSignal(one_argument(parts, "STOPSIGNAL")?),
        Some("USER") => InstructionKind::User(single(parts, "USER")?),
        Some("VOLUME") => InstructionKind::Volume(volume(parts)?),
        Some("WORKDIR") => InstructionKind::Workdir(single(parts, "WORKDIR")?),
        _ => {
            let name = node.instruction().to_owned();
            return Err(ParseErrorKind::UnknownInstruction { name }.into());
        }
    })
}

fn one_argument(parts: &Parts, name: &'static str) -> Result<String, FlagError> {
    match parts.args.as_slice() {
        [only] => Ok(only.clone()),
        args => Err(arguments(name, "exactly one argument", args.len()).into()),
    }
}

fn single(parts: &Parts, name: &'static str) -> Result<String, FlagError> {
    let only = one_argument(parts, name)?;
    Flags::read(&parts.flags, NO_FLAGS)?;
    Ok(only)
}

fn at_least_one(parts: &Parts, name: &'static str) -> Result<(), ParseErrorKind> {
    if parts.args.is_empty() { Err(arguments(name, "at least one argument", 0)) } else { Ok(()) }
}

fn pairs(parts: &Parts, name: &'static str) -> Result<Vec<KeyValue>, FlagError> {
    Flags::read(&parts.flags, NO_FLAGS)?;
    at_least_one(parts, name)?;
    let mut out = Vec::with_capacity(parts.args.len() / 3);
    for triple in parts.args.chunks_exact(3) {
        let [key, value, separator] = triple else { continue };
        if key.is_empty() {
            return Err(ParseErrorKind::BlankName { instruction: name }.into());
        }
        out.push(KeyValue { key: key.clone(), value: value.clone(), legacy: separator.is_empty() });
    }
    Ok(out)
}

/// ARG does not look at its flags.
fn arg(parts: &Parts) -> Result<Vec<Arg>, FlagError> {
    at_least_one(parts, "ARG")?;
    // By their first word, once for all: there may be as many comments as arguments.
    let mut docs: HashMap<&str, &str> = HashMap::new();
    for (name, rest) in parts.comments.iter().filter_map(|c| c.split_once(' ')) {
        docs.entry(name).or_insert(rest);
    }
    let read = |word: &String| {
        let (key, value) = match word.split_once('=') {
            Some(("", _)) => return Err(ParseErrorKind::BlankName { instruction: "ARG" }.into()),
            Some((key, value)) => (key, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let doc = docs.get(key).filter(|rest| !key.is_empty() && !rest.is_empty());
        Ok(Arg { key: key.to_owned(), value, doc: doc.map(|rest| (*rest).to_owned()) })
    };
    parts.args.iter().map(read).collect()
}

/// The rest of the first comment that starts with the name.
fn doc(comments: &[String], name: &str) -> Option<String> {
    let rest = comments.iter().find_map(|c| c.strip_prefix(name)?.strip_prefix(' '))?;
    (!name.is_empty() && !rest.is_empty()).then(|| rest.to_owned())
}

fn transfer(parts: &Parts, name: &'static str) -> Result<Transfer, ParseErrorKind> {
    let Some((dest, sources)) = parts.args.split_last() else {
        return Err(arguments(name, "at least two arguments", 0));
    };
    let heredoc = |word: &str| heredoc_word(word).ok().flatten();
    if heredoc(dest).is_some() {
        return Err(ParseErrorKind::HeredocDestination { instruction: name });
    }
    let mut out = Transfer { sources: Vec::new(), heredocs: Vec::new(), dest: dest.clone() };
    // Of two heredocs with one name the last gives the content of both.
    let bodies: HashMap<&str, &Heredoc> = parts.heredocs.iter().map(|h| (h.name.as_str(), h)).collect();
    let mut seen = HashSet::new();
    let mut repeated = 0;
    for source in sources {
        let Some(word) = heredoc(source) else {
            out.sources.push(source.clone());
            continue;
        };
        let body = bodies.get(word.name.as_str());
        if !seen.insert(word.name.clone()) {
            repeated += body.map_or(0, |h| h.content.len());
            if repeated > MAX_REPEATED_BYTES {
                return Err(ParseErrorKind::HeredocRepeated { name: word.name, limit: MAX_REPEATED_BYTES });
            }
        }
        let data = body.map(|h| h.text_as(word.chomp)).unwrap_or_default();
        out.heredocs.push(InlineFile { path: word.name, data, expand: word.expand });
    }
    Ok(out)
}

fn two_arguments(parts: &Parts, name: &'static str) -> Result<(), ParseErrorKind> {
    match parts.args.len() {
        found @ (0 | 1) => Err(arguments(name, "at least two arguments, the last is the destination", found)),
        _ => Ok(()),
    }
}

fn add(parts: &Parts) -> Result<Add, FlagError> {
    two_arguments(parts, "ADD")?;
    let flags = Flags::read(&parts.flags, ADD_FLAGS)?;
    Ok(Add {
        files: transfer(parts, "ADD")?,
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link").unwrap_or(false),
        exclude: flags.values("exclude"),
        keep_git_dir: flags.switch("keep-git-dir"),
        checksum: flags.value("checksum"),
        unpack: flags.switch("unpack"),
    })
}

fn copy(parts: &Parts) -> Result<Copy, FlagError> {
    two_arguments(parts, "COPY")?;
    let flags = Flags::read(&parts.flags, COPY_FLAGS)?;
    Ok(Copy {
        files: transfer(parts, "COPY")?,
        from: flags.value("from"),
        chown: flags.value("chown"),
        chmod: flags.value("chmod"),
        link: flags.switch("link").unwrap_or(false),
        exclude: flags.values("exclude"),
        parents: flags.switch("parents").unwrap_or(false),
    })
}

fn command_line(parts: &mut Parts) -> CommandLine {
    CommandLine {
        args: std::mem::take(&mut parts.args),
        shell_form: !parts.json,
        heredocs: std::mem::take(&mut parts.heredocs),
    }
}

fn command(parts: &mut Parts) -> Result<CommandLine, FlagError> {
    Flags::read(&parts.flags, NO_FLAGS)?;
    Ok(command_line(parts))
}

fn run(parts: &mut Parts) -> Result<Run, FlagError> {
    let flags = Flags::read(&parts.flags, RUN_FLAGS)?;
    let devices: Result<_, _> = flags.values("device").iter().map(|d| Device::parse(d)).collect();
    let mounts: Result<_, _> = flags.values("mount").iter().map(|m| MountSpec::parse(m)).collect();
    let choice =
        |flag, value: &str, expected| ParseErrorKind::FlagChoice { flag, value: value.to_owned(), expected };
    Ok(Run {
        command: command_line(parts),
        devices: devices.map_err(|source| ParseErrorKind::Device { source })?,
        mounts: mounts.map_err(|source| ParseErrorKind::Mount { source })?,
        network: match flags.written("network") {
            None | Some("default") => Network::Default,
            Some("none") => Network::None,
            Some("host") => Network::Host,
            Some(value) => return Err(choice("network", value, "default, none or host").into()),
        },
        security: match flags.written("security") {
            None | Some("sandbox") => Security::Sandbox,
            Some("insecure") => Security::Insecure,
            Some(value) => return Err(choice("security", value, "sandbox or insecure").into()),
        },
        flags_used: flags.names(),
    })
}

fn expose(parts: &Parts) -> Result<Vec<String>, FlagError> {
    at_least_one(parts, "EXPOSE")?;
    Flags::read(&parts.flags, NO_FLAGS)?;
    let mut ports = parts.args.clone();
    ports.sort();
    Ok(ports)
}

fn volume(parts: &Parts) -> Result<Vec<String>, FlagError> {
    at_least_one(parts, "VOLUME")?;
    Flags::read(&parts.flags, NO_FLAGS)?;
    let volumes: Vec<String> = parts.args.iter().map(|v| v.trim().to_owned()).collect();
    if volumes.iter().any(String::is_empty) {
        return Err(ParseErrorKind::EmptyVolume.into());
    }
    Ok(volumes)
}

fn shell(parts: &Parts) -> Result<Vec<String>, FlagError> {
    Flags::read(&parts.flags, NO_FLAGS)?;
    at_least_one(parts, "SHELL")?;
    if !parts.json {
        return Err(ParseErrorKind::ShellNotJson.into());
    }
    Ok(parts.args.clone())
}

fn onbuild(original: &str, parts: &Parts) -> Result<String, FlagError> {
    let Some(sub) = &parts.sub else {
        return Err(arguments("ONBUILD", "at least one argument", 0).into());
    };
    Flags::read(&parts.flags, NO_FLAGS)?;
    let trigger = sub.instruction().to_uppercase();
    if matches!(trigger.as_str(), "ONBUILD" | "MAINTAINER" | "FROM") {
        return Err(ParseErrorKind::OnbuildTrigger { trigger }.into());
    }
    let line = original.trim_start_matches(is_regex_space);
    let mut text = match line.get(.."ONBUILD".len()) {
        Some(word) if word.eq_ignore_ascii_case("ONBUILD") => {
            line["ONBUILD".len()..].trim_start_matches(is_regex_space).to_owned()
        }
        _ => original.to_owned(),
    };
    for heredoc in &parts.heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name);
    }
    Ok(text)
}

fn healthcheck(parts: &Parts) -> Result<Healthcheck, FlagError> {
    at_least_one(parts, "HEALTHCHECK")?;
    let (kind, args) = parts.args.split_first().map_or(("", &[][..]), |(k, a)| (k.as_str(), a));
    let kind = kind.to_uppercase();
    if kind == "NONE" {
        // NONE does not look at its flags.
        return match args.len() {
            0 => Ok(Healthcheck { test: vec![kind], ..Healthcheck::default() }),
            found => Err(arguments("HEALTHCHECK NONE", "no arguments", found).into()),
        };
    }
    let flags = Flags::read(&parts.flags, HEALTH_FLAGS)?;
    if kind != "CMD" {
        return Err(ParseErrorKind::HealthType { found: kind }.into());
    }
    if args.is_empty() {
        return Err(ParseErrorKind::HealthCommand.into());
    }
    let mut test = vec![if parts.json { "CMD" } else { "CMD-SHELL" }.to_owned()];
    test.extend_from_slice(args);
    let duration = |flag: &'static str| {
        interval(flags.written(flag).unwrap_or_default())
            .map_err(|source| ParseErrorKind::Duration { flag, source })
    };
    Ok(Healthcheck {
        test,
        interval_ns: duration("interval")?,
        timeout_ns: duration("timeout")?,
        start_period_ns: duration("start-period")?,
        start_interval_ns: duration("start-interval")?,
        retries: match flags.value("retries") {
            None => 0,
            Some(value) => retries(&value)?,
        },
    })
}

fn retries(value: &str) -> Result<u32, ParseErrorKind> {
    let number: Option<i32> = value.parse().ok();
    number
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| ParseErrorKind::Retries { value: value.to_owned() })
}
