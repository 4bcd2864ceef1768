//! The one error of parsing: what is wrong, on which lines, at which text, and a hint.

use std::fmt;

use thiserror::Error;

use crate::expand::ExpandError;
use crate::instruction::{DurationError, MountError};
use crate::lex::MAX_LINE_BYTES;

/// Lines of a Dockerfile, counted from 1, both ends included. `0` stands for "before the first line".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineRange {
    /// First line.
    pub first: u32,
    /// Last line, never before `first`.
    pub last: u32,
}

impl LineRange {
    /// A range from `first` to `last`; a `last` before `first` gives the single line `first`.
    #[must_use]
    pub fn new(first: u32, last: u32) -> Self {
        Self { first, last: last.max(first) }
    }
}

impl fmt::Display for LineRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// What is wrong with a Dockerfile. The texts are this project's; the conditions are BuildKit's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// The first word of a line is no instruction.
    #[error("unknown instruction: {name}")]
    UnknownInstruction {
        /// The word as written.
        name: String,
    },
    /// Nothing but comments and blank lines.
    #[error("file with no instructions: expected at least a FROM line")]
    NoInstructions,
    /// A parser directive is given twice.
    #[error("only one {name} parser directive can be used")]
    DuplicateDirective {
        /// `syntax`, `escape` or `check`.
        name: String,
    },
    /// `# escape=` names something else than backslash or backtick.
    #[error("escape directive must be \\ or `, found {value:?}")]
    BadEscape {
        /// The value as written.
        value: String,
    },
    /// A physical line is longer than the reference reads.
    #[error("line is longer than {MAX_LINE_BYTES} bytes")]
    LineTooLong,
    /// The file ends inside a heredoc.
    #[error("unterminated heredoc: expected a line with only {name:?} before the end of the file")]
    UnterminatedHeredoc {
        /// The delimiter that was not found.
        name: String,
    },
    /// A word after `<<` cannot be read.
    #[error("heredoc delimiter {word:?} cannot be read")]
    HeredocDelimiter {
        /// The word as written.
        word: String,
        /// What is wrong with it.
        source: ExpandError,
    },
    /// ONBUILD inside ONBUILD, deeper than is looked at.
    #[error("ONBUILD is nested more than {limit} times")]
    TooDeep {
        /// The limit.
        limit: usize,
    },
    /// A JSON array holds something else than strings.
    #[error("a JSON array of arguments must hold strings only")]
    NotStrings,
    /// `ENV key` or `LABEL key` without a value.
    #[error("{instruction} needs a value: expected name=value")]
    NoValue {
        /// ENV or LABEL.
        instruction: &'static str,
    },
    /// A later word of ENV or LABEL has no `=`.
    #[error("expected name=value, found {word:?}")]
    NoEquals {
        /// The word as written.
        word: String,
    },
    /// The name before `=` is empty.
    #[error("{instruction} names can not be blank")]
    BlankName {
        /// ENV, LABEL or ARG.
        instruction: &'static str,
    },
    /// Wrong number of arguments.
    #[error("{instruction} requires {expected}, found {found}")]
    Arguments {
        /// The instruction in capitals.
        instruction: &'static str,
        /// What it takes, in words.
        expected: &'static str,
        /// How many there are.
        found: usize,
    },
    /// `FROM x AS name` with a name that is no stage name.
    #[error(
        "invalid name for build stage: {name:?}: expected a letter, then letters, digits, '-', '_' or '.'"
    )]
    StageName {
        /// The name as written.
        name: String,
    },
    /// An instruction other than ARG stands before the first FROM.
    #[error("{instruction} before the first FROM: only ARG may stand there")]
    NoStage {
        /// The instruction as written.
        instruction: String,
    },
    /// The last argument of COPY or ADD is a heredoc.
    #[error("{instruction} cannot accept a heredoc as a destination")]
    HeredocDestination {
        /// COPY or ADD.
        instruction: &'static str,
    },
    /// Several heredocs of one COPY or ADD share a name and a long body.
    #[error("heredoc {name:?} is named again and again: what repeats has more than {limit} bytes in sum")]
    HeredocRepeated {
        /// The delimiter.
        name: String,
        /// The limit.
        limit: usize,
    },
    /// A flag that the instruction does not have.
    #[error("unknown flag: {flag}")]
    UnknownFlag {
        /// The flag with its dashes.
        flag: String,
    },
    /// A flag that may be given once is given twice.
    #[error("duplicate flag specified: {flag}")]
    DuplicateFlag {
        /// The flag with its dashes.
        flag: String,
    },
    /// A flag without `=value`.
    #[error("missing a value on flag: {flag}")]
    FlagValue {
        /// The flag with its dashes.
        flag: String,
    },
    /// A switch with a value that is neither true nor false.
    #[error("expected true or false for flag {flag}, found {value:?}")]
    FlagBool {
        /// The flag with its dashes.
        flag: String,
        /// The value as written.
        value: String,
    },
    /// A flag whose value is one of a list.
    #[error("invalid value {value:?} for flag --{flag}: expected {expected}")]
    FlagChoice {
        /// Flag name without dashes.
        flag: &'static str,
        /// The value as written.
        value: String,
        /// The values it takes.
        expected: &'static str,
    },
    /// `RUN --mount=`.
    #[error("invalid --mount: {source}")]
    Mount {
        /// What is wrong.
        source: MountError,
    },
    /// `RUN --device=`.
    #[error("invalid --device: {source}")]
    Device {
        /// What is wrong.
        source: MountError,
    },
    /// An instruction that ONBUILD does not carry.
    #[error("{trigger} isn't allowed as an ONBUILD trigger")]
    OnbuildTrigger {
        /// The instruction in capitals.
        trigger: String,
    },
    /// A trigger of a base image that is not exactly one instruction.
    #[error("an ONBUILD trigger must be a single instruction, found {found}")]
    TriggerCount {
        /// How many instructions the text holds.
        found: usize,
    },
    /// `VOLUME [""]`.
    #[error("VOLUME can not be an empty string")]
    EmptyVolume,
    /// SHELL with something else than a JSON array.
    #[error("SHELL requires the arguments to be in JSON form, such as [\"/bin/sh\", \"-c\"]")]
    ShellNotJson,
    /// HEALTHCHECK with a type that is neither NONE nor CMD.
    #[error("unknown type {found:?} in HEALTHCHECK: expected CMD or NONE")]
    HealthType {
        /// The word as written, in capitals.
        found: String,
    },
    /// `HEALTHCHECK CMD` without a command.
    #[error("missing command after HEALTHCHECK CMD")]
    HealthCommand,
    /// A HEALTHCHECK flag that is no duration.
    #[error("invalid --{flag}: {source}")]
    Duration {
        /// Flag name without dashes.
        flag: &'static str,
        /// What is wrong.
        source: DurationError,
    },
    /// `--retries` is no number from 0 to 2147483647.
    #[error("invalid --retries {value:?}: expected a whole number, 0 or more")]
    Retries {
        /// The value as written.
        value: String,
    },
}

/// An error in a Dockerfile: one for the whole crate's parsing.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind}{}", self.hint.as_ref().map(|h| format!("; {h}")).unwrap_or_default())]
pub struct ParseError {
    /// The lines that BuildKit reports for this error. A faulty directive is reported one line early.
    pub lines: LineRange,
    /// The very line, where it is known better than by `lines`.
    pub at: Option<u32>,
    /// What is wrong.
    #[source]
    pub kind: ParseErrorKind,
    /// The offending text as it stands in the source, for the caret.
    pub text: Option<String>,
    /// What to write instead, such as `did you mean RUN?`.
    pub hint: Option<String>,
}

impl ParseError {
    /// An error on `lines` without caret and hint.
    pub(crate) fn new(kind: ParseErrorKind, lines: LineRange) -> Self {
        let text = offending_text(&kind);
        Self { lines, at: None, kind, text, hint: None }
    }

    /// Adds "did you mean" for the nearest of `options`, in capitals unless `word` is in lower case.
    pub(crate) fn suggest(mut self, word: &str, options: &[&str]) -> Self {
        self.hint = crate::suggest::nearest(word, options).map(|found| {
            let lower = word == word.to_lowercase();
            let found = if lower { found.to_lowercase() } else { found.to_owned() };
            format!("did you mean {found}?")
        });
        self
    }

    /// Line (from 1) and column (from 1, in characters) of the offending text in `source`, the column
    /// only where the text is found in one of the error's lines.
    #[must_use]
    pub fn position(&self, source: &str) -> (u32, Option<usize>) {
        let first = self.at.unwrap_or(self.lines.first).max(1);
        let last = self.lines.last.max(first);
        let Some(text) = self.text.as_deref().filter(|t| !t.is_empty()) else {
            return (first, None);
        };
        let lines = source.lines().zip(1u32..).skip(first as usize - 1);
        for (line, number) in lines.take_while(|(_, n)| *n <= last) {
            // Searching costs the length of what is searched for, and a word may be continued over any number of lines.
            if text.len() > line.len() {
                continue;
            }
            if let Some(at) = line.find(text) {
                return (number, Some(line[..at].chars().count() + 1));
            }
        }
        (first, None)
    }

    /// The error for people: `FILE:LINE: message`, the line itself, and a caret under the fault.
    /// `source` is the text of the Dockerfile; a line over 200 characters is cut.
    #[must_use]
    pub fn render(&self, file: &str, source: &str) -> String {
        /// A terminal or a status field shows no more of a line.
        const SHOWN: usize = 200;
        let (number, column) = self.position(source);
        let mut out = format!("{file}:{number}: {self}");
        let Some(line) = source.lines().nth(number as usize - 1) else {
            return out;
        };
        let shown: String = line.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let gutter = number.to_string();
        out.push_str(&format!("\n {gutter} | {shown}"));
        if let Some(column) = column.filter(|c| *c <= SHOWN) {
            let width = self.text.as_deref().map_or(1, |t| t.chars().count()).min(SHOWN - column + 1);
            let pad = " ".repeat(gutter.len());
            out.push_str(&format!("\n {pad} | {}{}", " ".repeat(column - 1), "^".repeat(width.max(1))));
        }
        out
    }
}

/// The text that the caret points to, where the kind carries it.
fn offending_text(kind: &ParseErrorKind) -> Option<String> {
    use ParseErrorKind as K;
    match kind {
        K::UnknownInstruction { name } | K::StageName { name } => Some(name.clone()),
        K::NoStage { instruction } => Some(instruction.clone()),
        K::UnknownFlag { flag }
        | K::DuplicateFlag { flag }
        | K::FlagValue { flag }
        | K::FlagBool { flag, .. } => Some(flag.clone()),
        K::FlagChoice { flag, .. } | K::Duration { flag, .. } => Some(format!("--{flag}")),
        K::Mount { .. } => Some("--mount".to_owned()),
        K::Device { .. } => Some("--device".to_owned()),
        K::Retries { .. } => Some("--retries".to_owned()),
        K::BadEscape { value } => Some(value.clone()),
        K::UnterminatedHeredoc { .. } => Some("<<".to_owned()),
        K::HeredocRepeated { name, .. } => Some(name.clone()),
        K::HeredocDelimiter { word, .. } | K::NoEquals { word } => Some(word.clone()),
        K::NotStrings => Some("[".to_owned()),
        K::OnbuildTrigger { trigger } => Some(trigger.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_line_and_caret() {
        let kind = ParseErrorKind::UnknownInstruction { name: "RUNN".into() };
        let error = ParseError::new(kind, LineRange::new(2, 2)).suggest("RUNN", &["RUN", "FROM"]);
        assert_eq!(
            error.render("Dockerfile", "FROM a\n  RUNN x\n"),
            "Dockerfile:2: unknown instruction: RUNN; did you mean RUN?\n 2 |   RUNN x\n   |   ^^^^"
        );
    }

    #[test]
    fn line_zero_and_past_the_end_do_not_fail() {
        let error = ParseError::new(ParseErrorKind::NoInstructions, LineRange::new(0, 0));
        assert!(error.render("D", "").starts_with("D:1: file with no"));
    }
}
