//! A stage, instruction by instruction, with what is known before each: variables, ports, paths, what is lost.

use std::cell::RefCell;

use super::{Check, Findings, Rule, meant, quoted};
use crate::expand::{Env, ExpandError, Expanded, Expander, expand_heredoc_noting};
use crate::instruction::{Arg, CommandLine, Instruction, InstructionKind, KeyValue, Transfer};
use crate::suggest::nearest_exact;
use crate::{GitRef, IgnoreFile};

/// Arguments that configure the builder and are never part of the environment.
const NEVER_SET: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Words in a variable's name that speak of a secret.
const SECRETS: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];

/// Words that say that it is none after all (`PUBLIC_KEY`, `KEY_FILE`).
const NO_SECRETS: [&str; 3] = ["public", "file", "version"];

/// What is known before an instruction.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The rules that are asked for.
    pub check: &'a Check,
    /// The Dockerfile's escape character.
    pub escape: char,
    /// The value of a variable.
    pub get: Env<'a>,
    /// The names of all variables that are set, in order.
    pub names: &'a dyn Fn() -> Vec<String>,
    /// Whether an ARG of the stage, or of those that it starts from, declares a name.
    pub declared: &'a dyn Fn(&str) -> bool,
    /// Whether the image has a SHELL.
    pub shell: bool,
    /// The ignore file of the build context.
    pub ignore: Option<&'a IgnoreFile>,
}

impl std::fmt::Debug for Known<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Known").field("check", self.check).finish_non_exhaustive()
    }
}

/// Where the look at a stage has come to.
#[derive(Debug, Clone, Default)]
pub struct StageLint {
    /// There was a WORKDIR, here or in a stage that this one starts from.
    workdir: bool,
    /// Lines of the last CMD, ENTRYPOINT and HEALTHCHECK of this stage.
    cmd: Option<u32>,
    entrypoint: Option<u32>,
    healthcheck: Option<u32>,
    found: Findings,
}

impl StageLint {
    /// The beginning of a stage that starts from this one.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { workdir: self.workdir, ..Self::default() }
    }

    /// What was found since this was asked last.
    pub fn take_findings(&mut self) -> Findings {
        std::mem::take(&mut self.found)
    }

    /// Looks at an instruction, ARG excepted.
    pub fn instruction(&mut self, instruction: &Instruction, known: Known<'_>) {
        let mut look = Look { instruction, known, found: &mut self.found };
        let line = instruction.lines.first;
        // What can't be expanded ends the build, and says so then.
        let _ = match &instruction.kind {
            InstructionKind::Env(pairs) => look.pairs("ENV", pairs),
            InstructionKind::Label(pairs) => look.pairs("LABEL", pairs),
            InstructionKind::Copy(copy) => look
                .words([&copy.chown, &copy.chmod].into_iter().flatten())
                .and_then(|_| look.files("copied", &copy.files, copy.from.is_none())),
            InstructionKind::Add(add) => look
                .words([&add.chown, &add.chmod, &add.checksum].into_iter().flatten())
                .and_then(|_| look.files("added", &add.files, true)),
            InstructionKind::Workdir(path) => {
                let first = !std::mem::replace(&mut self.workdir, true);
                look.workdir(path, first)
            }
            InstructionKind::User(word) | InstructionKind::StopSignal(word) => look.word(word).map(drop),
            InstructionKind::Volume(words) => look.words(words).map(drop),
            InstructionKind::Expose(ports) => look.ports(ports),
            InstructionKind::Run(run) => {
                let variables = RefCell::new(Vec::new());
                let note = |word: &str| -> Result<String, ExpandError> {
                    let expanded = Expander::new(known.get, known.escape).expand(word)?;
                    let text = expanded.text.clone();
                    variables.borrow_mut().push(expanded);
                    Ok(text)
                };
                let read = run.mounts.iter().all(|mount| mount.resolve(&note).is_ok());
                variables.into_inner().iter().for_each(|expanded| look.undefined(expanded));
                read.then_some(())
            }
            InstructionKind::Cmd(command) => {
                let before = self.cmd.replace(line);
                look.once(before);
                look.shell_form(command)
            }
            InstructionKind::Entrypoint(command) => {
                let before = self.entrypoint.replace(line);
                look.once(before);
                look.shell_form(command)
            }
            InstructionKind::Healthcheck(_) => {
                let before = self.healthcheck.replace(line);
                look.once(before);
                Some(())
            }
            InstructionKind::Arg(_)
            | InstructionKind::Maintainer(_)
            | InstructionKind::Onbuild(_)
            | InstructionKind::Shell(_) => Some(()),
        };
    }

    /// Looks at one variable of an ARG, with what is known before it; `given`: a build argument is its value.
    pub fn argument(&mut self, instruction: &Instruction, arg: &Arg, given: bool, known: Known<'_>) {
        let mut look = Look { instruction, known, found: &mut self.found };
        look.secret(&arg.key);
        if let (false, Some(default)) = (given, &arg.value) {
            let _ = look.word(default);
        }
    }
}

/// An instruction, and where its findings go. `None` as an answer: it can't be expanded.
struct Look<'a, 'k> {
    instruction: &'a Instruction,
    known: Known<'k>,
    found: &'a mut Findings,
}

impl Look<'_, '_> {
    fn add(&mut self, rule: Rule, message: impl FnOnce() -> String) {
        let (line, comments) = (self.instruction.lines.first, self.instruction.comments.as_slice());
        self.found.add(self.known.check, rule, line, comments, message);
    }

    /// Expands a word and says which of its variables nobody knows.
    fn word(&mut self, word: &str) -> Option<String> {
        let expanded = Expander::new(self.known.get, self.known.escape).expand(word).ok()?;
        self.undefined(&expanded);
        Some(expanded.text)
    }

    fn words<'w>(&mut self, words: impl IntoIterator<Item = &'w String>) -> Option<Vec<String>> {
        words.into_iter().map(|word| self.word(word)).collect()
    }

    fn undefined(&mut self, expanded: &Expanded) {
        let Known { declared, names, .. } = self.known;
        for name in &expanded.unmatched {
            if declared(name) || NEVER_SET.contains(&name.as_str()) {
                continue;
            }
            self.add(Rule::UndefinedVar, || {
                let names = names();
                let near = nearest_exact(name, names.iter().map(String::as_str));
                let near = near.map(|near| format!("${near}"));
                format!("${} is neither declared nor set{}", quoted(name), meant(near.as_deref()))
            });
        }
    }

    fn pairs(&mut self, name: &str, pairs: &[KeyValue]) -> Option<()> {
        let mut keys = Vec::with_capacity(pairs.len());
        for pair in pairs {
            keys.push(self.word(&pair.key)?);
            self.word(&pair.value)?;
        }
        for (pair, key) in pairs.iter().zip(keys) {
            if pair.legacy {
                self.add(Rule::LegacyKeyValueFormat, || {
                    format!(
                        "\"{name} name=value\" should be written instead of the old \"{name} name value\""
                    )
                });
            }
            if name == "ENV" {
                self.secret(&key);
            }
        }
        Some(())
    }

    fn secret(&mut self, name: &str) {
        let has = |words: &[&str]| {
            name.split('_').any(|part| words.iter().any(|word| word.eq_ignore_ascii_case(part)))
        };
        if has(&SECRETS) && !has(&NO_SECRETS) {
            let instruction = self.instruction.name();
            self.add(Rule::SecretsUsedInArgOrEnv, || {
                format!(
                    "{instruction} {:?} sounds like a secret, and everybody who has the image can read it; use RUN --mount=type=secret",
                    quoted(name)
                )
            });
        }
    }

    fn files(&mut self, done: &str, files: &Transfer, of_context: bool) -> Option<()> {
        let sources = self.words(&files.sources)?;
        self.word(&files.dest)?;
        for document in files.heredocs.iter().filter(|document| document.expand) {
            let expanded = expand_heredoc_noting(&document.data, self.known.get).ok()?;
            self.undefined(&expanded);
        }
        let Some(ignore) = self.known.ignore.filter(|_| of_context) else { return Some(()) };
        for source in sources.iter().filter(|source| is_path(source)) {
            if let Some(path) = ignore.leaves_out_source(source) {
                self.add(Rule::CopyIgnoredFile, || {
                    format!("{:?} is to be {done}, and the ignore file leaves it out", quoted(&path))
                });
            }
        }
        Some(())
    }

    fn workdir(&mut self, path: &str, first: bool) -> Option<()> {
        let path = self.word(path)?;
        if first && !path.starts_with('/') {
            self.add(Rule::WorkdirRelativePath, || {
                format!(
                    "{:?} is seen from the working directory of the base image, which may change; write a path that begins with /",
                    quoted(&path)
                )
            });
        }
        Some(())
    }

    fn ports(&mut self, ports: &[String]) -> Option<()> {
        for word in ports {
            let words = Expander::new(self.known.get, self.known.escape).words(word).ok()?;
            for spec in words {
                self.port(&spec)?;
            }
        }
        Some(())
    }

    /// `[address:][port of the machine:]port[/protocol]`
    fn port(&mut self, spec: &str) -> Option<()> {
        let mut parts = spec.rsplitn(3, ':');
        let inside = parts.next().unwrap_or_default();
        let mapped = parts.any(|part| !part.is_empty());
        let (port, protocol) = inside.split_once('/').unwrap_or((inside, ""));
        let known = ["", "tcp", "udp", "sctp"].iter().any(|known| known.eq_ignore_ascii_case(protocol));
        if port.is_empty() || !known {
            return None;
        }
        if protocol != protocol.to_lowercase() {
            self.add(Rule::ExposeProtoCasing, || {
                format!("the protocol of {:?} should be in small letters", quoted(spec))
            });
        }
        if mapped {
            self.add(Rule::ExposeInvalidFormat, || {
                format!(
                    "{:?} names an address or port of the machine, which EXPOSE has no use for",
                    quoted(spec)
                )
            });
        }
        Some(())
    }

    /// The finding is about the earlier instruction: it is the one that is lost.
    fn once(&mut self, before: Option<u32>) {
        if let Some(line) = before {
            let name = self.instruction.name();
            let comments = self.instruction.comments.as_slice();
            self.found.add(self.known.check, Rule::MultipleInstructionsDisallowed, line, comments, || {
                format!("a later {name} of the stage takes the place of this one; remove it")
            });
        }
    }

    fn shell_form(&mut self, command: &CommandLine) -> Option<()> {
        if command.shell_form && !self.known.shell {
            let name = self.instruction.name();
            self.add(Rule::JSONArgsRecommended, || {
                format!("{name} in shell form keeps signals from the program; write {name} [\"program\", \"argument\"]")
            });
        }
        Some(())
    }
}

/// Whether a source is a path of the context.
fn is_path(source: &str) -> bool {
    let url = source.starts_with("http://") || source.starts_with("https://");
    !url && GitRef::parse(source).is_ok_and(|git| git.is_none_or(|git| git.local_lookalike))
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
