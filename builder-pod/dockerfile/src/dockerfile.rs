//! A whole Dockerfile: global arguments and stages of typed instructions.

use crate::directives::{self, Directive};
use crate::error::{LineRange, ParseError, ParseErrorKind};
use crate::instruction::{Arg, Instruction, InstructionKind, is_from, stage_of_node, typed};
use crate::parse::{self, Node};
use crate::text::split_first_blank;

/// A Dockerfile, understood. Variables are as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// `\` or the backtick of `# escape=`.
    pub escape: char,
    /// Parser directives in force.
    pub directives: Vec<Directive>,
    /// The frontend that `# syntax=` (or another form of it) asks for.
    pub syntax: Option<String>,
    /// What `# check=` asks for, up to the first blank ([`crate::lint::Check`]).
    pub check: Option<Directive>,
    /// Lines of instructions with an empty line inside their continuation.
    pub empty_continuations: Vec<LineRange>,
    /// ARG instructions before the first FROM.
    pub meta_args: Vec<MetaArgs>,
    /// Stages in order. There may be none: a file of global arguments parses, and can't be built.
    pub stages: Vec<Stage>,
}

/// An ARG before the first FROM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaArgs {
    /// Its lines.
    pub lines: LineRange,
    /// The joined text.
    pub original: String,
    /// The comments directly above.
    pub comments: Vec<String>,
    /// Its variables.
    pub args: Vec<Arg>,
}

/// FROM and what follows until the next one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Image, stage or `scratch`, as written.
    pub base: String,
    /// Name after AS, in lower case.
    pub name: Option<String>,
    /// `--platform=`, as written.
    pub platform: Option<String>,
    /// The rest of a comment above that starts with the name.
    pub doc: Option<String>,
    /// Lines of the FROM.
    pub lines: LineRange,
    /// The joined text of the FROM.
    pub original: String,
    /// The comments directly above it.
    pub comments: Vec<String>,
    /// The instructions after it.
    pub instructions: Vec<Instruction>,
}

impl Dockerfile {
    /// Reads a Dockerfile.
    ///
    /// # Errors
    /// The first fault, with its lines, and with a hint where a word is near to a known one.
    pub fn parse(source: &[u8]) -> Result<Self, ParseError> {
        let syntax = parse::parse(source)?;
        let mut file = Self {
            escape: syntax.escape,
            directives: syntax.directives,
            syntax: directives::detect_syntax(source),
            check: directives::detect_check(source),
            empty_continuations: syntax.empty_continuations,
            meta_args: Vec::new(),
            stages: Vec::new(),
        };
        for node in syntax.nodes {
            file.take(node)?;
        }
        Ok(file)
    }

    /// What stands before a fault, where the source can be cut into lines and instructions all the same.
    #[must_use]
    pub fn before(source: &[u8], fault: &ParseError) -> Option<Self> {
        parse::parse(source).ok()?;
        let lines = source.split_inclusive(|b| *b == b'\n');
        let before: Vec<&[u8]> = lines.take(fault.lines.first.saturating_sub(1) as usize).collect();
        Self::parse(&before.concat()).ok()
    }

    fn take(&mut self, node: Node<'_>) -> Result<(), ParseError> {
        if is_from(&node) {
            self.stages.push(stage_of_node(node)?);
            return Ok(());
        }
        let instruction = typed(node)?;
        match (self.stages.last_mut(), instruction.kind) {
            (Some(stage), kind) => stage.instructions.push(Instruction { kind, ..instruction }),
            (None, InstructionKind::Arg(args)) => self.meta_args.push(MetaArgs {
                lines: instruction.lines,
                original: instruction.original,
                comments: instruction.comments,
                args,
            }),
            (None, _) => {
                let written = split_first_blank(&instruction.original).0.to_owned();
                let kind = ParseErrorKind::NoStage { instruction: written };
                return Err(ParseError::new(kind, instruction.lines));
            }
        }
        Ok(())
    }
}

/// Reads the text of an ONBUILD trigger, as an image's config carries it.
///
/// # Errors
/// It is no single instruction, or one that ONBUILD does not carry.
pub fn parse_trigger(text: &str) -> Result<Instruction, ParseError> {
    let mut nodes = parse::parse(text.as_bytes())?.nodes;
    let (Some(node), true) = (nodes.pop(), nodes.is_empty()) else {
        return Err(ParseError::new(ParseErrorKind::NoInstructions, LineRange::new(1, 1)));
    };
    let refused = |trigger: &str, lines| {
        Err(ParseError::new(ParseErrorKind::OnbuildTrigger { trigger: trigger.to_owned() }, lines))
    };
    if is_from(&node) {
        return refused("FROM", node.lines);
    }
    let instruction = typed(node)?;
    match instruction.kind {
        InstructionKind::Onbuild(_) | InstructionKind::Maintainer(_) => {
            refused(instruction.name(), instruction.lines)
        }
        _ => Ok(instruction),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_and_global_arguments() {
        let file =
            Dockerfile::parse(b"ARG V=1\nFROM a:$V AS Build\nRUN x\nFROM build\nCMD [\"y\"]\n").unwrap();
        assert_eq!(file.meta_args[0].args[0].key, "V");
        assert_eq!(file.stages[0].name.as_deref(), Some("build"));
        assert_eq!(file.stages[0].instructions[0].original, "RUN x");
        assert_eq!(file.stages[1].instructions[0].name(), "CMD");
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let error = Dockerfile::parse(b"FROM a\n\nRUNN x\n").unwrap_err();
        assert_eq!(error.lines, LineRange::new(3, 3));
        assert!(error.to_string().contains("did you mean RUN?"), "{error}");
        let source = b"FROM a AS B\nCMD x\nUSER\nFROM c\n";
        let fault = Dockerfile::parse(source).unwrap_err();
        let before = Dockerfile::before(source, &fault).unwrap();
        assert_eq!((before.stages.len(), before.stages[0].instructions.len()), (1, 1));
        assert!(Dockerfile::parse(b"RUN x\n").unwrap_err().to_string().contains("before the first FROM"));
        assert!(Dockerfile::parse(b"ARG x\n").unwrap().stages.is_empty());
    }

    #[test]
    fn triggers_are_single_instructions() {
        assert_eq!(parse_trigger("RUN a").unwrap().name(), "RUN");
        for bad in ["FROM a", "ONBUILD RUN a", "MAINTAINER m", "RUN a\nRUN b"] {
            assert!(parse_trigger(bad).is_err(), "{bad}");
        }
    }
}
