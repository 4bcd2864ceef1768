//! Warnings: BuildKit's lint rules under their names. Pure; none of them changes what is built.
//!
//! [`written`] needs the text alone, [`bases`] the global arguments, and [`StageLint`] goes through a stage with what is
//! known before each instruction. [`Check`] says which rules are asked for.

mod bases;
mod check;
mod reference;
mod stage;
mod written;

use std::fmt;

pub use bases::{Globals, bases};
pub use check::{Check, CheckError};
pub use stage::{Known, StageLint};
pub use written::{before_fault, written};

/// Findings that are kept with their texts; of the rest only the number is. A person reads no more, and looking for the
/// nearest name costs time for each.
pub const MAX_KEPT: usize = 100;

/// Longest name that a message quotes, in characters: a line may have 64 KiB.
const MAX_QUOTED: usize = 100;

macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident,)*) => {
        /// A rule, under BuildKit's name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Rule { $($(#[$doc])* $rule,)* }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$rule),*];

            /// Its name, as `# check=skip=` takes it.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => stringify!($rule),)* }
            }
        }
    };
}

rules! {
    /// A stage's name has capitals.
    StageNameCasing,
    /// `FROM` and `as`, or `from` and `AS`.
    FromAsCasing,
    /// An empty line inside a continued one.
    NoEmptyContinuation,
    /// An instruction is in capitals and most are not, or the other way round.
    ConsistentInstructionCasing,
    /// Two stages of one name.
    DuplicateStageName,
    /// A stage is called `scratch` or `context`.
    ReservedStageName,
    /// CMD or ENTRYPOINT in shell form.
    JSONArgsRecommended,
    /// MAINTAINER.
    MaintainerDeprecated,
    /// A variable in FROM that no ARG declares.
    UndefinedArgInFrom,
    /// A first WORKDIR that depends on the base image's.
    WorkdirRelativePath,
    /// A variable that is neither declared nor set.
    UndefinedVar,
    /// CMD, ENTRYPOINT or HEALTHCHECK several times: all but the last are lost.
    MultipleInstructionsDisallowed,
    /// `ENV name value`, `LABEL name value`.
    LegacyKeyValueFormat,
    /// `FROM --platform=$TARGETPLATFORM`.
    RedundantTargetPlatform,
    /// ARG or ENV whose name speaks of a secret.
    SecretsUsedInArgOrEnv,
    /// FROM names no image when no build argument is given.
    InvalidDefaultArgInFrom,
    /// `FROM --platform=linux/amd64`.
    FromPlatformFlagConstDisallowed,
    /// COPY or ADD of what the ignore file leaves out.
    CopyIgnoredFile,
    /// A comment above ARG or FROM that does not begin with the name. Experimental: only where asked for.
    InvalidDefinitionDescription,
    /// `EXPOSE 80/TCP`.
    ExposeProtoCasing,
    /// `EXPOSE 8080:80`.
    ExposeInvalidFormat,
}

impl Rule {
    /// Whether it is only checked where it is asked for.
    #[must_use]
    pub fn is_experimental(self) -> bool {
        self == Self::InvalidDefinitionDescription
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One finding; shown as `Rule: message`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The rule that is broken.
    pub rule: Rule,
    /// Line of the Dockerfile, from 1.
    pub line: u32,
    /// What was found, and what to write instead.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.message)
    }
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The first [`MAX_KEPT`].
    pub kept: Vec<Finding>,
    /// How many there are in all.
    pub count: usize,
}

impl Findings {
    /// Takes in what was found elsewhere.
    pub fn append(&mut self, other: Self) {
        self.count = self.count.saturating_add(other.count);
        let free = MAX_KEPT.saturating_sub(self.kept.len());
        self.kept.extend(other.kept.into_iter().take(free));
    }

    /// Orders them by line, those of one line as they were found.
    pub fn sort(&mut self) {
        self.kept.sort_by_key(|finding| finding.line);
    }

    /// Notes a finding, if `check` and the comments above its instruction ask for the rule.
    fn add(
        &mut self,
        check: &Check,
        rule: Rule,
        line: u32,
        comments: &[String],
        message: impl FnOnce() -> String,
    ) {
        if !check.asks_for(rule, comments) {
            return;
        }
        self.count = self.count.saturating_add(1);
        if self.kept.len() < MAX_KEPT {
            self.kept.push(Finding { rule, line, message: message() });
        }
    }
}

/// Text from the Dockerfile as a message has it: not longer than a line of a terminal.
fn quoted(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}…", &text[..at]),
    }
}

/// `; did you mean X?`, or nothing.
fn meant(name: Option<&str>) -> String {
    name.map(|name| format!("; did you mean {name}?")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_buildkit_s_rules() {
        assert_eq!(Rule::ALL.len(), 21);
        let experimental: Vec<_> = Rule::ALL.iter().filter(|rule| rule.is_experimental()).collect();
        assert_eq!(experimental, [&Rule::InvalidDefinitionDescription]);
        assert_eq!(Rule::JSONArgsRecommended.to_string(), "JSONArgsRecommended");
    }

    #[test]
    fn what_is_kept_is_bounded_and_all_is_counted() {
        let mut all = Findings::default();
        for line in 0..300 {
            all.add(&Check::default(), Rule::UndefinedVar, 300 - line, &[], || "m".into());
        }
        assert_eq!((all.kept.len(), all.count), (MAX_KEPT, 300));
        let mut two = all.clone();
        two.append(all);
        two.sort();
        assert_eq!((two.kept.len(), two.count, two.kept[0].line), (MAX_KEPT, 600, 201));
    }
}
