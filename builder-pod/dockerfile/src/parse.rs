//! The syntax tree: logical lines to nodes with arguments, flags and heredocs, not yet typed.

use std::borrow::Cow;

use crate::directives::{Directive, Scanner};
use crate::error::{LineRange, ParseError, ParseErrorKind};
use crate::heredoc::{Heredoc, heredocs_of_line};
use crate::instruction::instruction_names;
use crate::json::{self, ArrayError};
use crate::lex::{Lines, continuation, is_comment};
use crate::text::{is_blank, split_first_blank, trim_newline};
use crate::words::{quoted_words, take_flags};

/// ONBUILD in ONBUILD is refused later anyway; deeper nesting is not even read, to spare the stack.
const MAX_ONBUILD_DEPTH: usize = 16;

/// One instruction as read, before its arguments are understood. Small, as there may be one for every two bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node<'a> {
    /// The instruction's name in capitals; `None` for a word that names none.
    pub keyword: Option<&'static str>,
    /// Lines from the instruction to its last continuation or heredoc line.
    pub lines: LineRange,
    /// The joined line; borrowed from the source where it is one line there.
    pub original: Cow<'a, str>,
    /// What it is made of; `None` when that is nothing.
    parts: Option<Box<Parts>>,
}

/// What a node is made of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parts {
    /// Arguments. ENV and LABEL: triples of name, value and separator (`=` or empty).
    pub args: Vec<String>,
    /// Flags in front of the arguments, with dashes, quotes resolved.
    pub flags: Vec<String>,
    /// Whether the arguments come from a JSON array.
    pub json: bool,
    /// Heredocs in the order of their words.
    pub heredocs: Vec<Heredoc>,
    /// The comments directly above.
    pub comments: Vec<String>,
    /// What ONBUILD carries.
    pub sub: Option<Box<Node<'static>>>,
}

static NOTHING: Parts = Parts {
    args: Vec::new(),
    flags: Vec::new(),
    json: false,
    heredocs: Vec::new(),
    comments: Vec::new(),
    sub: None,
};

/// A source cut into nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syntax<'a> {
    /// `\` or the backtick of `# escape=`.
    pub escape: char,
    /// Parser directives in force.
    pub directives: Vec<Directive>,
    /// Instructions in order.
    pub nodes: Vec<Node<'a>>,
    /// Lines of instructions with an empty line inside their continuation, here-documents left out.
    pub empty_continuations: Vec<LineRange>,
}

/// Cuts a source into nodes. Unknown instructions are nodes too.
///
/// # Errors
/// Bad directives, unterminated heredocs, malformed arguments, or no instruction at all.
pub fn parse(source: &[u8]) -> Result<Syntax<'_>, ParseError> {
    let mut lines = Lines::new(source);
    let mut directives = Scanner::new("#", 0);
    let mut syntax = Syntax {
        escape: '\\',
        directives: Vec::new(),
        // Room for a node each line, so that none has to move.
        nodes: Vec::with_capacity(source.iter().filter(|b| **b == b'\n').count() + 1),
        empty_continuations: Vec::new(),
    };
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
        let first = lines.number();
        let (mut joined, more) = match &raw {
            Cow::Borrowed(raw) => {
                let (content, more) = content(raw, syntax.escape);
                (Cow::Borrowed(content), more)
            }
            Cow::Owned(raw) => {
                let (content, more) = content(raw, syntax.escape);
                (Cow::Owned(content.to_owned()), more)
            }
        };
        if joined.is_empty() && !more {
            continue;
        }
        if more && join_continuations(&mut lines, joined.to_mut(), syntax.escape) {
            syntax.empty_continuations.push(LineRange::new(first, lines.number()));
        }
        let here = |kind, last| ParseError::new(kind, LineRange::new(first, last));
        let mut node = node_of_line(joined, syntax.escape, 0).map_err(|kind| here(kind, lines.number()))?;
        if node.may_have_heredocs() && node.original.contains("<<") {
            let found = heredocs_of_line(&node.original).map_err(|kind| here(kind, lines.number()))?;
            node.parts_mut().heredocs =
                read_heredocs(&mut lines, found).map_err(|kind| here(kind, lines.number()))?;
        }
        node.lines = LineRange::new(first, lines.number());
        if !comments.is_empty() {
            node.parts_mut().comments = std::mem::take(&mut comments);
        }
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

/// What a line gives to the logical line that it begins, and whether that goes on; nothing if it is a comment.
fn content(raw: &str, escape: char) -> (&str, bool) {
    let line = trim_newline(raw).trim_start();
    continuation(if is_comment(line) { "" } else { line }, escape)
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

impl Node<'_> {
    /// The first word as written.
    #[must_use]
    pub fn instruction(&self) -> &str {
        split_first_blank(self.original.trim()).0
    }

    /// What it is made of.
    #[must_use]
    pub fn parts(&self) -> &Parts {
        self.parts.as_deref().unwrap_or(&NOTHING)
    }

    /// Takes out what it is made of.
    pub(crate) fn take_parts(&mut self) -> Parts {
        self.parts.take().map(|parts| *parts).unwrap_or_default()
    }

    fn parts_mut(&mut self) -> &mut Parts {
        self.parts.get_or_insert_default()
    }

    /// RUN, COPY and ADD, also under one ONBUILD, when not in JSON form.
    fn may_have_heredocs(&self) -> bool {
        let node = self.parts().sub.as_deref();
        let node: &Node<'_> = node.unwrap_or(self);
        !node.parts().json && matches!(node.keyword, Some("ADD" | "COPY" | "RUN"))
    }
}

fn node_of_line(line: Cow<'_, str>, escape: char, depth: usize) -> Result<Node<'_>, ParseErrorKind> {
    let (instruction, rest) = split_first_blank(line.trim());
    let keyword = keyword(instruction);
    let (flags, rest) = take_flags(rest.unwrap_or_default(), escape);
    let rest = rest.trim();
    let mut parts = match keyword {
        Some("ADD" | "COPY" | "VOLUME") => match json_form(rest)? {
            Some(args) => args,
            None => blank_separated(rest),
        },
        Some("CMD" | "ENTRYPOINT" | "RUN" | "SHELL") => json_or_text(rest)?,
        Some("ARG") => list(quoted_words(rest, escape)),
        Some("ENV") => name_values(rest, "ENV", escape)?,
        Some("LABEL") => name_values(rest, "LABEL", escape)?,
        Some("EXPOSE" | "FROM") => blank_separated(rest),
        Some("HEALTHCHECK") => health(rest)?,
        Some("MAINTAINER" | "STOPSIGNAL" | "USER" | "WORKDIR") => text(rest),
        Some("ONBUILD") if !rest.is_empty() => {
            if depth >= MAX_ONBUILD_DEPTH {
                return Err(ParseErrorKind::TooDeep { limit: MAX_ONBUILD_DEPTH });
            }
            let carried = node_of_line(Cow::Owned(rest.to_owned()), escape, depth + 1)?;
            Parts { sub: Some(Box::new(carried)), ..Parts::default() }
        }
        // An unknown instruction is reported later, with its line; its arguments do not matter.
        Some(_) | None => Parts::default(),
    };
    parts.flags = flags;
    let parts = (parts != NOTHING).then(|| Box::new(parts));
    Ok(Node { keyword, lines: LineRange::new(0, 0), original: line, parts })
}

/// The instruction that a word names, in whatever case.
fn keyword(word: &str) -> Option<&'static str> {
    // Letters beyond ASCII whose small form is an ASCII letter, as the Kelvin sign, count as that letter.
    let word = if word.is_ascii() { Cow::Borrowed(word) } else { Cow::Owned(word.to_lowercase()) };
    instruction_names().iter().find(|name| name.eq_ignore_ascii_case(&word)).copied()
}

fn list(args: Vec<String>) -> Parts {
    Parts { args, ..Parts::default() }
}

/// The rest of the line as one argument.
fn text(rest: &str) -> Parts {
    list(if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] })
}

fn blank_separated(rest: &str) -> Parts {
    let words = rest.split(is_blank).filter(|w| !w.is_empty());
    list(words.map(str::to_owned).collect())
}

/// A JSON array of strings. Any other text, JSON or not, is not an error but no JSON form either.
fn json_form(rest: &str) -> Result<Option<Parts>, ParseErrorKind> {
    match json::string_array(rest) {
        Ok(args) => Ok(Some(Parts { json: true, ..list(args) })),
        Err(ArrayError::NotStrings) => Err(ParseErrorKind::NotStrings),
        Err(ArrayError::NotArray) => Ok(None),
    }
}

fn json_or_text(rest: &str) -> Result<Parts, ParseErrorKind> {
    Ok(json_form(rest)?.unwrap_or_else(|| text(rest)))
}

/// `name=value ...`, or the old `name value` when the first word has no `=`.
fn name_values(rest: &str, instruction: &'static str, escape: char) -> Result<Parts, ParseErrorKind> {
    let words = quoted_words(rest, escape);
    let Some(first) = words.first() else {
        return Ok(Parts::default());
    };
    if !first.contains('=') {
        let (name, value) = split_first_blank(rest);
        let value = value.ok_or(ParseErrorKind::NoValue { instruction })?;
        return Ok(list(vec![name.to_owned(), value.to_owned(), String::new()]));
    }
    let mut args = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let (name, value) =
            word.split_once('=').ok_or_else(|| ParseErrorKind::NoEquals { word: word.clone() })?;
        args.extend([name.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(list(args))
}

/// The type word, then JSON or text.
fn health(rest: &str) -> Result<Parts, ParseErrorKind> {
    if rest.is_empty() {
        return Ok(Parts::default());
    }
    let (kind, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let mut args = json_or_text(command.trim_start())?;
    args.args.insert(0, kind.to_owned());
    Ok(args)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(source: &str) -> Vec<Node<'_>> {
        parse(source.as_bytes()).unwrap().nodes
    }

    #[test]
    fn joins_lines_and_keeps_numbers() {
        let found = nodes("# c\nFROM a\n\nRUN x \\\n  # no\n\n  y\nCMD [\"z\"]\n");
        assert_eq!(found[0].parts().comments, ["c"]);
        assert_eq!((&*found[1].original, found[1].lines), ("RUN x   y", LineRange::new(4, 7)));
        assert!(found[2].parts().json);
    }

    #[test]
    fn instructions_are_known_in_any_case() {
        let found = nodes("from a\n wor\u{212a}dir /\nRUNN x\n");
        assert_eq!(
            found.iter().map(|n| n.keyword).collect::<Vec<_>>(),
            [Some("FROM"), Some("WORKDIR"), None]
        );
        assert_eq!((found[0].instruction(), found[2].instruction()), ("from", "RUNN"));
    }

    #[test]
    fn heredocs_follow_in_order() {
        let found = nodes("RUN <<A cat <<-B\na\nA\n\tb\n\tB\nUSER u");
        let bodies: Vec<_> =
            found[0].parts().heredocs.iter().map(super::super::heredoc::Heredoc::text).collect();
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
