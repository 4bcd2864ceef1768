//! What FROM shows once the global arguments are known: undeclared ones, images without a name, platforms.

use std::collections::BTreeSet;

use super::reference::is_reference;
use super::{Check, Findings, Rule, meant, quoted};
use crate::expand::{Env, Expanded, Expander};
use crate::suggest::nearest_exact;
use crate::{Dockerfile, Stage};

/// The global arguments of a build.
#[derive(Clone, Copy)]
pub struct Globals<'a> {
    /// The value of one.
    pub get: Env<'a>,
    /// The names that have a value, in order.
    pub names: &'a [&'a str],
    /// A platform in its usual spelling; `None` for what is none.
    pub platform: &'a dyn Fn(&str) -> Option<String>,
}

impl std::fmt::Debug for Globals<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Globals").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Findings of the FROM instructions. `defaults` are the global arguments when no build argument is given, `given` those of
/// this build; `None` where they can't be known.
#[must_use]
pub fn bases(
    file: &Dockerfile,
    check: &Check,
    defaults: Option<Env<'_>>,
    given: Option<Globals<'_>>,
) -> Findings {
    let mut found = Findings::default();
    if let Some(defaults) = defaults {
        without_arguments(file, check, defaults, &mut found);
    }
    if let Some(globals) = given {
        for stage in &file.stages {
            // What can't be expanded ends the build, and the look with it.
            if this_build(file, stage, check, &globals, &mut found).is_none() {
                break;
            }
        }
    }
    found
}

fn without_arguments(file: &Dockerfile, check: &Check, defaults: Env<'_>, found: &mut Findings) {
    for stage in &file.stages {
        let Ok(name) = Expander::new(defaults, file.escape).word(&stage.base) else { return };
        if !is_reference(&name) {
            found.add(check, Rule::InvalidDefaultArgInFrom, stage.lines.first, &[], || {
                format!(
                    "FROM {} is {name:?} when no build argument is given, which names no image; give the ARG a default",
                    quoted(&stage.base),
                    name = quoted(&name)
                )
            });
        }
    }
}

fn this_build(
    file: &Dockerfile,
    stage: &Stage,
    check: &Check,
    globals: &Globals<'_>,
    found: &mut Findings,
) -> Option<()> {
    let (line, comments) = (stage.lines.first, stage.comments.as_slice());
    let expander = Expander::new(globals.get, file.escape);
    let base = expander.expand(&stage.base).ok()?;
    undeclared(file, stage, &base, check, globals, found);
    if base.text.is_empty() {
        return None;
    }
    let Some(written) = &stage.platform else { return Some(()) };
    let platform = expander.expand(written).ok()?;
    undeclared(file, stage, &platform, check, globals, found);
    let target = (globals.get)("TARGETPLATFORM").unwrap_or_default();
    let only_target = platform.unmatched.is_empty() && platform.matched.iter().eq(["TARGETPLATFORM"]);
    if only_target && platform.text == target {
        found.add(check, Rule::RedundantTargetPlatform, line, comments, || {
            format!("--platform={} is what FROM does anyway; leave it out", quoted(written))
        });
    }
    let constant = platform.matched.is_empty() && platform.unmatched.is_empty();
    let known = (globals.platform)(&platform.text)?;
    let name = stage.name.as_deref().unwrap_or_default();
    // A stage may say in its name that it is for one platform.
    if constant && !known.split('/').take(2).any(|part| name.contains(part)) {
        found.add(check, Rule::FromPlatformFlagConstDisallowed, line, comments, || {
            format!(
                "--platform={} allows one platform only; leave it out, or name the stage after it",
                quoted(written)
            )
        });
    }
    Some(())
}

fn undeclared(
    file: &Dockerfile,
    stage: &Stage,
    expanded: &Expanded,
    check: &Check,
    globals: &Globals<'_>,
    found: &mut Findings,
) {
    if expanded.unmatched.is_empty() {
        return;
    }
    let declared = file.meta_args.iter().flat_map(|meta| &meta.args).map(|arg| arg.key.as_str());
    let declared: BTreeSet<&str> = declared.chain(globals.names.iter().copied()).collect();
    for name in expanded.unmatched.iter().filter(|name| !declared.contains(name.as_str())) {
        let line = stage.lines.first;
        found.add(check, Rule::UndefinedArgInFrom, line, &stage.comments, || {
            let near = nearest_exact(name, declared.iter().copied());
            format!(
                "FROM uses ${name}, which no ARG before the first FROM declares{}",
                meant(near),
                name = quoted(name)
            )
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(&'static str, u32)> {
        let file = Dockerfile::parse(text.as_bytes()).unwrap();
        let get = |name: &str| match name {
            "TARGETPLATFORM" => Some("linux/amd64".to_owned()),
            "EMPTY" => Some(String::new()),
            "OK" => Some("alpine".to_owned()),
            _ => None,
        };
        let platform = |text: &str| text.contains('/').then(|| text.to_owned());
        let globals = Globals { get: &get, names: &["TARGETPLATFORM", "EMPTY", "OK"], platform: &platform };
        let found = bases(&file, &Check::default(), Some(&get), Some(globals));
        found.kept.iter().map(|f| (f.rule.name(), f.line)).collect()
    }

    #[test]
    fn arguments() {
        assert_eq!(found("ARG IMG\nFROM $IMG\n"), [("InvalidDefaultArgInFrom", 2)]);
        assert_eq!(found("ARG IMG\nFROM ${OKK:-a}\nFROM ${IMG:-b}\nFROM $OK\n"), [("UndefinedArgInFrom", 2)]);
        assert_eq!(found("FROM --platform=$NO a\nFROM $NO\n").len(), 2, "the look ends with the build");
    }

    #[test]
    fn platforms() {
        let redundant = ("RedundantTargetPlatform", 1);
        assert_eq!(found("FROM --platform=$TARGETPLATFORM a\n"), [redundant]);
        assert_eq!(found("FROM --platform=${TARGETPLATFORM} a\n"), [redundant]);
        assert_eq!(found("FROM --platform=${TARGETPLATFORM}$EMPTY a\n"), []);
        assert_eq!(found("FROM --platform=linux/arm64 a\n"), [("FromPlatformFlagConstDisallowed", 1)]);
        assert_eq!(found("FROM --platform=linux/arm64 a AS build-arm64\n"), []);
    }
}
