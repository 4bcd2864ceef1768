//! Warnings: what the rules of `kiln_dockerfile::lint` are asked for, and what they are told of this build.

use std::cell::RefCell;
use std::collections::BTreeMap;

use kiln_contract::reason::{DOCKERFILE_INVALID, INVALID_SPEC};
use kiln_dockerfile::instruction::Arg;
use kiln_dockerfile::lint::{self, Check, Findings, Globals, Known, StageLint};
use kiln_dockerfile::{Dockerfile, IgnoreFile, Instruction, ParseError};

use super::outline::globals;
use super::target::platform_args;
use super::{Env, PlanError, Target, normalize_platform};

/// The build argument that takes the place of `# check=`.
const CHECK_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Which rules, and what of the build context they need to know.
#[derive(Debug, Clone, Copy)]
pub struct Lint<'a> {
    /// The rules that are asked for.
    pub check: &'a Check,
    /// The ignore file.
    pub ignore: &'a IgnoreFile,
    /// Takes what is found. It is no part of the plan: where there can be no plan, a warning may say why.
    pub found: &'a RefCell<Findings>,
}

/// What is known before an instruction.
#[derive(Clone, Copy)]
pub(super) struct Before<'a> {
    pub env: &'a Env,
    /// ARGs in scope.
    pub args: &'a [Arg],
    /// The image has a SHELL.
    pub shell: bool,
    pub escape: char,
}

/// What the request, or else the Dockerfile, asks of the rules.
///
/// # Errors
/// It can't be read.
pub fn check(file: &Dockerfile, args: &BTreeMap<String, String>) -> Result<Check, PlanError> {
    match (args.get(CHECK_ARG), &file.check) {
        (Some(text), _) => Check::parse(text)
            .map_err(|e| PlanError::new(INVALID_SPEC, None, format!("build argument {CHECK_ARG}: {e}"))),
        (None, Some(directive)) => Check::parse(&directive.value)
            .map_err(|e| PlanError::new(DOCKERFILE_INVALID, directive.line, e.to_string())),
        (None, None) => Ok(Check::default()),
    }
}

/// Warnings that need no image: of the text, and of every FROM.
pub fn findings(file: &Dockerfile, check: &Check, wished: Target<'_>) -> Findings {
    let mut found = lint::written(file, check);
    let Some(platform) = normalize_platform(wished.platform) else { return found };
    let machine = normalize_platform(wished.machine).unwrap_or_else(|| platform.clone());
    let last = file.stages.last().and_then(|stage| stage.name.as_deref());
    let stage = wished.stage.or(last).unwrap_or("default");
    let automatic = platform_args(&machine, &platform, stage, wished.args);
    let defaults = globals(file, automatic.clone(), &BTreeMap::new()).ok();
    let given = globals(file, automatic, wished.args).ok();
    let get = |env: &Option<Env>, name: &str| env.as_ref().and_then(|env| env.get(name)).map(str::to_owned);
    let (of_defaults, of_given) = (|name: &str| get(&defaults, name), |name: &str| get(&given, name));
    let names: Vec<&str> = given.iter().flat_map(Env::iter).map(|(name, _)| name).collect();
    let globals = Globals { get: &of_given, names: &names, platform: &normalize_platform };
    found.append(lint::bases(
        file,
        check,
        defaults.is_some().then_some(&of_defaults),
        given.is_some().then_some(globals),
    ));
    found
}

/// Warnings of what stands before a fault in a Dockerfile.
pub fn findings_before(source: &[u8], fault: &ParseError, args: &BTreeMap<String, String>) -> Findings {
    let Some(file) = Dockerfile::before(source, fault) else { return Findings::default() };
    check(&file, args).map_or_else(|_| Findings::default(), |check| lint::before_fault(&file, &check))
}

impl Lint<'_> {
    /// Looks at an instruction.
    pub(super) fn instruction(&self, stage: &mut StageLint, instruction: &Instruction, before: Before<'_>) {
        self.with(before, |known| stage.instruction(instruction, known));
        self.found.borrow_mut().append(stage.take_findings());
    }

    /// Looks at a variable of an ARG.
    pub(super) fn argument(
        &self,
        stage: &mut StageLint,
        instruction: &Instruction,
        arg: &Arg,
        given: bool,
        before: Before<'_>,
    ) {
        self.with(before, |known| stage.argument(instruction, arg, given, known));
        self.found.borrow_mut().append(stage.take_findings());
    }

    fn with(&self, before: Before<'_>, look: impl FnOnce(Known<'_>)) {
        look(Known {
            check: self.check,
            escape: before.escape,
            get: &|name| before.env.get(name).map(str::to_owned),
            names: &|| before.env.iter().map(|(name, _)| name.to_owned()).collect(),
            declared: &|name| before.args.iter().any(|arg| arg.key == name),
            shell: before.shell,
            ignore: Some(self.ignore),
        });
    }
}
