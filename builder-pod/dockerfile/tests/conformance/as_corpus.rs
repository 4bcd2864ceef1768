//! Our values in the shape that the corpus has: what is absent, empty or false is left out.

use kiln_dockerfile::git::GitTime;
use kiln_dockerfile::instruction::{
    Arg, CommandLine, Healthcheck, KeyValue, Mount, MountType, Run, Transfer,
};
use kiln_dockerfile::lint::{Findings, Rule};
use kiln_dockerfile::parse::{Node, Syntax};
use kiln_dockerfile::{Dockerfile, GitRef, Instruction, InstructionKind, Stage};
use serde_json::{Map, Value, json};

/// An object without the members that are null, false or empty.
fn object(value: Value) -> Value {
    let empty = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(map) => Value::Object(map.into_iter().filter(|(_, value)| !empty(value)).collect()),
        other => other,
    }
}

fn with(mut base: Value, more: Value) -> Value {
    if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
        base.extend(more);
    }
    base
}

/// A reference to git.
pub fn git(found: &GitRef) -> Value {
    let mtime = found.mtime.map(|time| match time {
        GitTime::Checkout => "checkout",
        GitTime::Commit => "commit",
    });
    let written = object(json!({
        "ref": found.reference, "subdir": found.subdir, "checksum": found.checksum, "mtime": mtime,
        "fetch_by_commit": found.fetch_by_commit, "unencrypted": found.unencrypted,
        "local_lookalike": found.local_lookalike,
    }));
    // These may say no.
    let mut said = Map::new();
    for (name, value) in [("keep_git_dir", found.keep_git_dir), ("submodules", found.submodules)] {
        if let Some(value) = value {
            said.insert(name.to_owned(), value.into());
        }
    }
    with(with(written, Value::Object(said)), json!({"remote": found.remote, "short_name": found.short_name}))
}

/// Global arguments and stages.
pub fn file(file: &Dockerfile) -> (Value, Value) {
    let meta = file.meta_args.iter().map(
        |meta| json!({"name": "arg", "lines": [meta.lines.first, meta.lines.last], "args": args(&meta.args)}),
    );
    (meta.collect(), file.stages.iter().map(stage).collect())
}

fn stage(stage: &Stage) -> Value {
    let commands: Vec<Value> = stage.instructions.iter().map(command).collect();
    let optional = object(json!({"name": stage.name, "platform": stage.platform, "doc": stage.doc}));
    let lines = [stage.lines.first, stage.lines.last];
    with(optional, json!({"base": stage.base, "lines": lines, "commands": commands}))
}

fn args(args: &[Arg]) -> Value {
    let one = |arg: &Arg| {
        let mut found = object(json!({"key": arg.key, "doc": arg.doc}));
        if let Some(value) = &arg.value {
            found["value"] = value.clone().into();
        }
        found
    };
    args.iter().map(one).collect()
}

fn pairs(pairs: &[KeyValue]) -> Value {
    let one = |pair: &KeyValue| {
        let written = json!({"key": pair.key, "value": pair.value});
        with(object(json!({"legacy": pair.legacy})), written)
    };
    pairs.iter().map(one).collect()
}

fn command_line(command: &CommandLine) -> Value {
    let document =
        |h: &kiln_dockerfile::Heredoc| json!({"name": h.name, "data": h.content, "chomp": h.chomp});
    let documents: Vec<Value> = command.heredocs.iter().map(document).collect();
    with(
        object(json!({"heredocs": documents})),
        json!({"cmdline": command.args, "shell_form": command.shell_form}),
    )
}

fn transfer(files: &Transfer) -> Value {
    let document = |h: &kiln_dockerfile::instruction::InlineFile| json!({"path": h.path, "data": h.data, "expand": h.expand});
    let documents: Vec<Value> = files.heredocs.iter().map(document).collect();
    with(object(json!({"heredocs": documents})), json!({"sources": files.sources, "dest": files.dest}))
}

fn health(check: &Healthcheck) -> Value {
    let numbers = [
        ("interval_ns", check.interval_ns),
        ("timeout_ns", check.timeout_ns),
        ("start_period_ns", check.start_period_ns),
        ("start_interval_ns", check.start_interval_ns),
        ("retries", check.retries.into()),
    ];
    let mut found = json!({"test": check.test});
    for (name, value) in numbers.into_iter().filter(|(_, value)| *value != 0) {
        found[name] = value.into();
    }
    found
}

fn run(run: &Run) -> Value {
    let as_written = |word: &str| Ok(word.to_owned());
    let mounts: Result<Vec<Value>, _> =
        run.mounts.iter().map(|mount| mount.resolve(&as_written).map(|m| self::mount(&m))).collect();
    let mounts = match mounts {
        Ok(mounts) => object(json!({"mounts": mounts})),
        // The words are ours.
        Err(_) => json!({"mounts_error": true}),
    };
    let rest = object(json!({
        "flags_used": run.flags_used, "network": run.network.as_str(), "security": run.security.as_str(),
    }));
    with(with(command_line(&run.command), mounts), rest)
}

fn mount(mount: &Mount) -> Value {
    let kind = match mount.kind {
        MountType::Bind => "bind",
        MountType::Cache => "cache",
        MountType::Tmpfs => "tmpfs",
        MountType::Secret => "secret",
        MountType::Ssh => "ssh",
    };
    let mut found = object(json!({
        "from": mount.from, "source": mount.source, "target": mount.target, "id": mount.id,
        "sharing": mount.sharing.map(|sharing| format!("{sharing:?}").to_lowercase()),
        "required": mount.required, "mode": mount.mode.map(|mode| format!("{mode:04o}")),
    }));
    if mount.size != 0 {
        found["size"] = mount.size.into();
    }
    if let Some(env) = &mount.env {
        found["env"] = env.clone().into();
    }
    for (name, id) in [("uid", mount.uid), ("gid", mount.gid)] {
        if let Some(id) = id {
            found[name] = id.into();
        }
    }
    with(found, json!({"type": kind, "readonly": mount.read_only}))
}

fn command(instruction: &Instruction) -> Value {
    let fields = match &instruction.kind {
        InstructionKind::Add(add) => {
            let mut said = object(json!({
                "chown": add.chown, "chmod": add.chmod, "link": add.link, "exclude": add.exclude,
                "checksum": add.checksum,
            }));
            for (name, value) in [("keep_git_dir", add.keep_git_dir), ("unpack", add.unpack)] {
                if let Some(value) = value {
                    said[name] = value.into();
                }
            }
            with(transfer(&add.files), said)
        }
        InstructionKind::Copy(copy) => with(
            transfer(&copy.files),
            object(json!({
                "from": copy.from, "chown": copy.chown, "chmod": copy.chmod, "link": copy.link,
                "exclude": copy.exclude, "parents": copy.parents,
            })),
        ),
        InstructionKind::Run(run) => self::run(run),
        InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => command_line(command),
        InstructionKind::Arg(args) => json!({"args": self::args(args)}),
        InstructionKind::Env(pairs) => json!({"env": self::pairs(pairs)}),
        InstructionKind::Label(pairs) => json!({"labels": self::pairs(pairs)}),
        InstructionKind::Expose(ports) => json!({"ports": ports}),
        InstructionKind::Healthcheck(check) => json!({"health": health(check)}),
        InstructionKind::Maintainer(author) => json!({"maintainer": author}),
        InstructionKind::Onbuild(text) => json!({"expression": text}),
        InstructionKind::Shell(words) => json!({"shell": words}),
        InstructionKind::StopSignal(signal) => json!({"signal": signal}),
        InstructionKind::User(user) => json!({"user": user}),
        InstructionKind::Volume(paths) => json!({"volumes": paths}),
        InstructionKind::Workdir(path) => json!({"path": path}),
    };
    let lines = [instruction.lines.first, instruction.lines.last];
    with(json!({"name": instruction.name().to_lowercase(), "lines": lines}), fields)
}

/// Warnings, of the rules that BuildKit looks at while it reads instructions: the corpus has no others.
pub fn lint(found: &Findings) -> Vec<Value> {
    let read = [Rule::StageNameCasing, Rule::FromAsCasing, Rule::MaintainerDeprecated];
    let found = found.kept.iter().filter(|finding| read.contains(&finding.rule));
    found.map(|f| json!({"rule": f.rule.name(), "message": f.message, "line": f.line})).collect()
}

/// The syntax tree, with escape and directives.
pub fn syntax(syntax: &Syntax<'_>) -> Value {
    let directive =
        |d: &kiln_dockerfile::Directive| json!({"name": d.name, "value": d.value, "line": d.line});
    json!({
        "escape": syntax.escape.to_string(),
        "directives": syntax.directives.iter().map(directive).collect::<Vec<_>>(),
        "nodes": syntax.nodes.iter().map(node).collect::<Vec<_>>(),
    })
}

fn node(node: &Node<'_>) -> Value {
    let parts = node.parts();
    let document = |h: &kiln_dockerfile::Heredoc| json!({"name": h.name, "fd": h.fd, "expand": h.expand, "chomp": h.chomp, "content": h.content});
    let documents: Vec<Value> = parts.heredocs.iter().map(document).collect();
    let optional = object(json!({
        "flags": parts.flags, "json": parts.json, "heredocs": documents, "comments": parts.comments,
    }));
    // The reference gives an unknown instruction one empty argument.
    let args = if node.keyword.is_some() { parts.args.clone() } else { vec![String::new()] };
    let mut found =
        with(optional, json!({"instruction": node.instruction(), "args": args, "original": node.original}));
    if node.lines.first != 0 {
        found["start_line"] = node.lines.first.into();
        found["end_line"] = node.lines.last.into();
    }
    if let Some(sub) = &parts.sub {
        found["sub"] = self::node(sub);
    }
    found
}
