//! The syntax tree: logical lines to nodes with arguments, flags and heredocs, not yet typed.

use crate::directives::{Directive, Scanner};
use crate::error::{LineRange, ParseError, ParseErrorKind};
use crate::heredoc::{Heredoc, heredocs_of_line};
use crate::json::{self, ArrayError};
use crate::lex::{Lines, continuation, is_comment};
use crate::text::{is_blank, split_first_blank, trim_newline};
use crate::words::{quoted_words, take_flags};

/// ONBUILD in ONBUILD is refused later anyway; deeper nesting is not even read, to spare the stack.
const MAX_ONBUILD_DEPTH: usize = 16;

/// One instruction as read, before its arguments are understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The first word as written.
    pub instruction: String,
    /// Arguments. ENV and LABEL: triples of name, value and separator (`=` or empty).
    pub args: Vec<String>,
    /// Flags in front of the arguments, with dashes, quotes resolved.
    pub flags: Vec<String>,
    /// Whether the arguments come from a JSON array.
    pub json: bool,
    /// Heredocs in the order of their words.
    pub heredocs: Vec<Heredoc>,
    /// Lines from the instruction to its last continuation or heredoc line.
    pub lines: LineRange,
    /// The joined line.
    pub original: String,
    /// The comments directly above.
    pub comments: Vec<String>,
    /// What ONBUILD carries.
    pub sub: Option<Box<Node>>,
}

/// A source cut into nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syntax {
    /// `\` or the backtick of `# escape=`.
    pub escape: char,
    /// Parser directives in force.
    pub directives: Vec<Directive>,
    /// Instructions in order.
    pub nodes: Vec<Node>,
    /// Lines of instructions with an empty line inside their continuation, here-documents left out.
    pub empty_continuations: Vec<LineRange>,
}

/// Cuts a source into nodes. Unknown instructions are nodes too.
///
/// # Errors
/// Bad directives, unterminated heredocs, malformed arguments, or no instruction at all.
pub fn parse(source: &[u8]) -> Result<Syntax, ParseError> {
    let mut lines = Lines::new(source);
    let mut directives = Scanner::new("#", 0);
    let mut syntax =
        Syntax { escape: '\\', directives: Vec::new(), nodes: Vec::new(), empty_continuations: Vec::new() };
    let mut comments: Vec<String> = Vec::new();

    while let Some(raw) = lines.next() {
        let line = trim_newline(&raw).trim_start();
        if is_comment(&raw) {
            note_comment(&raw, &mut comments);
        }
        if let Some(directive) = read_directive(&mut directives, line, lines.number())? {
            comments.pop();
            if directive.name == "escape" {
                syntax.escape = escape_char(&directive.value, lines.number())?;
            }
            syntax.directives.push(directive);
        }
        let line = if is_comment(line) { "" } else { line };
        let first = lines.number();
        let (content, more) = continuation(line, syntax.escape);
        if content.is_empty() && !more {
            continue;
        }
        let mut joined = content.to_owned();
        if more && join_continuations(&mut lines, &mut joined, syntax.escape) {
            syntax.empty_continuations.push(LineRange::new(first, lines.number()));
        }
        let here = |kind, last| ParseError::new(kind, LineRange::new(first, last));
        let mut node = node_of_line(&joined, syntax.escape, 0).map_err(|kind| here(kind, lines.number()))?;
        if node.may_have_heredocs() && joined.contains("<<") {
            let found = heredocs_of_line(&joined).map_err(|kind| here(kind, lines.number()))?;
            node.heredocs = read_heredocs(&mut lines, found).map_err(|kind| here(kind, lines.number()))?;
        }
        node.lines = LineRange::new(first, lines.number());
        node.comments = std::mem::take(&mut comments);
        syntax.nodes.push(node);
    }

    let last = lines.number();
    if lines.too_long() {
        let mut error = ParseError::new(ParseErrorKind::LineTooLong, LineRange::new(last, last));
        error.at = Some(last.saturating_add(1));
        return Err(error);
    }
    if syntax.nodes.is_empty() {
        return Err(ParseError::new(ParseErrorKind::NoInstructions, LineRange::new(last, last)));
    }
    Ok(syntax)
}

/// Remembers a comment for the instruction below it; an empty comment forgets those above.
fn note_comment(raw: &str, comments: &mut Vec<String>) {
    let mut chars = raw.chars();
    chars.next();
    match chars.as_str().trim() {
        "" => comments.clear(),
        text => comments.push(text.to_owned()),
    }
}

fn read_directive(scanner: &mut Scanner, line: &str, number: u32) -> Result<Option<Directive>, ParseError> {
    scanner.line(line).map_err(|duplicate| {
        directive_error(ParseErrorKind::DuplicateDirective { name: duplicate.0 }, number)
    })
}

fn escape_char(value: &str, number: u32) -> Result<char, ParseError> {
    match value {
        "\\" => Ok('\\'),
        "`" => Ok('`'),
        _ => Err(directive_error(ParseErrorKind::BadEscape { value: value.to_owned() }, number)),
    }
}

/// BuildKit reports a faulty directive one line early; `at` has the line itself.
fn directive_error(kind: ParseErrorKind, number: u32) -> ParseError {
    let early = number.saturating_sub(1);
    let mut error = ParseError::new(kind, LineRange::new(early, early));
    error.at = Some(number);
    error
}

/// Appends the continuation lines. Comments among them are dropped, empty lines too; the result tells
/// whether there was an empty line.
fn join_continuations(lines: &mut Lines<'_>, joined: &mut String, escape: char) -> bool {
    let mut empty = false;
    for raw in lines {
        if is_comment(&raw) {
            continue;
        }
        let line = trim_newline(&raw);
        if line.trim_start().is_empty() {
            empty = true;
            continue;
        }
        let (content, more) = continuation(line, escape);
        joined.push_str(content);
        if !more {
            break;
        }
    }
    empty
}

/// Reads the bodies of `found` from the lines that follow.
fn read_heredocs(lines: &mut Lines<'_>, mut found: Vec<Heredoc>) -> Result<Vec<Heredoc>, ParseErrorKind> {
    for heredoc in &mut found {
        loop {
            let Some(raw) = lines.next() else {
                return Err(ParseErrorKind::UnterminatedHeredoc { name: heredoc.name.clone() });
            };
            let line = trim_newline(&raw);
            let line = if heredoc.chomp { line.trim_start_matches('\t') } else { line };
            if line == heredoc.name {
                break;
            }
            heredoc.content.push_str(&raw);
        }
    }
    Ok(found)
}

impl Node {
    /// RUN, COPY and ADD, also under one ONBUILD, when not in JSON form.
    fn may_have_heredocs(&self) -> bool {
        let carried =
            self.instruction.eq_ignore_ascii_case("ONBUILD").then_some(self.sub.as_deref()).flatten();
        let node = carried.unwrap_or(self);
        !node.json && ["ADD", "COPY", "RUN"].iter().any(|i| node.instruction.eq_ignore_ascii_case(i))
    }
}

/// Arguments of one instruction as its own rule reads them.
#[derive(Default)]
struct Args {
    args: Vec<String>,
    json: bool,
    sub: Option<Box<Node>>,
}

impl Args {
    fn list(args: Vec<String>) -> Self {
        Self { args, ..Self::default() }
    }
}

fn node_of_line(line: &str, escape: char, depth: usize) -> Result<Node, ParseErrorKind> {
    let (instruction, rest) = split_first_blank(line.trim());
    let (flags, rest) = take_flags(rest.unwrap_or_default(), escape);
    let rest = rest.trim();
    let args = match instruction.to_lowercase().as_str() {
        "add" | "copy" | "volume" => match json_form(rest)? {
            Some(args) => args,
            None => blank_separated(rest),
        },
        "cmd" | "entrypoint" | "run" | "shell" => json_or_text(rest)?,
        "arg" => Args::list(quoted_words(rest, escape)),
        "env" => name_values(rest, "ENV", escape)?,
        "label" => name_values(rest, "LABEL", escape)?,
        "expose" | "from" => blank_separated(rest),
        "healthcheck" => health(rest)?,
        "maintainer" | "stopsignal" | "user" | "workdir" => text(rest),
        "onbuild" if rest.is_empty() => Args::default(),
        "onbuild" => {
            if depth >= MAX_ONBUILD_DEPTH {
                return Err(ParseErrorKind::TooDeep { limit: MAX_ONBUILD_DEPTH });
            }
            Args { sub: Some(Box::new(node_of_line(rest, escape, depth + 1)?)), ..Args::default() }
        }
        // An unknown instruction is reported later, with its line; its arguments do not matter.
        _ => Args::list(vec![String::new()]),
    };
    Ok(Node {
        instruction: instruction.to_owned(),
        args: args.args,
        flags,
        json: args.json,
        heredocs: Vec::new(),
        lines: LineRange::new(0, 0),
        original: line.to_owned(),
        comments: Vec::new(),
        sub: args.sub,
    })
}

/// The rest of the line as one argument.
fn text(rest: &str) -> Args {
    Args::list(if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] })
}

fn blank_separated(rest: &str) -> Args {
    let words = rest.split(is_blank).filter(|w| !w.is_empty());
    Args::list(words.map(str::to_owned).collect())
}

/// A JSON array of strings. Any other text, JSON or not, is not an error but no JSON form either.
fn json_form(rest: &str) -> Result<Option<Args>, ParseErrorKind> {
    match json::string_array(rest) {
        Ok(args) => Ok(Some(Args { args, json: true, sub: None })),
        Err(ArrayError::NotStrings) => Err(ParseErrorKind::NotStrings),
        Err(ArrayError::NotArray) => Ok(None),
    }
}

fn json_or_text(rest: &str) -> Result<Args, ParseErrorKind> {
    Ok(json_form(rest)?.unwrap_or_else(|| text(rest)))
}

/// `name=value ...`, or the old `name value` when the first word has no `=`.
fn name_values(rest: &str, instruction: &'static str, escape: char) -> Result<Args, ParseErrorKind> {
    let words = quoted_words(rest, escape);
    let Some(first) = words.first() else {
        return Ok(Args::default());
    };
    if !first.contains('=') {
        let (name, value) = split_first_blank(rest);
        let value = value.ok_or(ParseErrorKind::NoValue { instruction })?;
        return Ok(Args::list(vec![name.to_owned(), value.to_owned(), String::new()]));
    }
    let mut args = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let (name, value) =
            word.split_once('=').ok_or_else(|| ParseErrorKind::NoEquals { word: word.clone() })?;
        args.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(Args::list(args))
}

/// The type word, then JSON or text.
fn health(rest: &str) -> Result<Args, ParseErrorKind> {
    if rest.is_empty() {
        return Ok(Args::default());
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let mut args = json_or_text(command.trim_start())?;
    args.args.insert(0, kind.to_owned());
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(source: &str) -> Vec<Node> {
        parse(source.as_bytes()).unwrap().nodes
    }

    #[test]
    fn joins_lines_and_keeps_numbers() {
        let found = nodes("# c\nFROM a\n\nRUN x \\\n  # no\n\n  y\nCMD [\"z\"]\n");
        assert_eq!(found[0].comments, ["c"]);
        assert_eq!((found[1].original.as_str(), found[1].lines), ("RUN x   y", LineRange::new(4, 7)));
        assert!(found[2].json);
    }

    #[test]
    fn heredocs_follow_in_order() {
        let found = nodes("RUN <<A cat <<-B\na\nA\n\tb\n\tB\nUSER u");
        let bodies: Vec<_> = found[0].heredocs.iter().map(super::super::heredoc::Heredoc::text).collect();
        assert_eq!(bodies, ["a\n", "b\n"]);
        assert_eq!(found[1].lines.first, 6);
    }

    #[test]
    fn errors_carry_lines() {
        let error = parse(b"FROM a\nRUN <<A\nx\n").unwrap_err();
        assert_eq!((error.lines.first, error.lines.last), (2, 3));
        assert!(parse(b"# only\n").is_err());
        assert_eq!(parse(b"# escape=x\nFROM a").unwrap_err().at, Some(1));
        let deep = "ONBUILD ".repeat(100_000);
        assert!(matches!(
            parse(&deep.as_bytes()[..60_000]).unwrap_err().kind,
            ParseErrorKind::TooDeep { .. }
        ));
    }
}
