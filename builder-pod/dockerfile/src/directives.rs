//! Parser directives: `# syntax=`, `# escape=` and `# check=` on the first lines.

use crate::json;
use crate::text::{decode, is_regex_space};

/// The directives that the language knows. A comment with another name ends the directives.
const KNOWN: [&str; 3] = ["syntax", "escape", "check"];

/// One parser directive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Name in lower case: `syntax`, `escape` or `check`.
    pub name: String,
    /// Value without surrounding blanks.
    pub value: String,
    /// Line, counted from 1.
    pub line: u32,
}

/// A directive is given twice; holds its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Duplicate(pub String);

/// Reads directives line by line until the first line that is none.
#[derive(Debug)]
pub(crate) struct Scanner {
    prefix: &'static str,
    line: u32,
    seen: Vec<&'static str>,
    done: bool,
}

impl Scanner {
    /// A scanner for lines that start with `prefix`; the first line read gets number `before + 1`.
    pub(crate) fn new(prefix: &'static str, before: u32) -> Self {
        Self { prefix, line: before, seen: Vec::new(), done: false }
    }

    /// The directive on the next line. After the first line without one it answers `None` for ever.
    pub(crate) fn line(&mut self, line: &str) -> Result<Option<Directive>, Duplicate> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let found = line.strip_prefix(self.prefix).and_then(split);
        let known = found.and_then(|(name, value)| {
            let name = KNOWN.iter().find(|k| k.eq_ignore_ascii_case(name))?;
            Some((*name, value))
        });
        let Some((name, value)) = known else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(Duplicate(name.to_owned()));
        }
        self.seen.push(name);
        Ok(Some(Directive { name: name.to_owned(), value: value.to_owned(), line: self.line }))
    }
}

/// Splits `name = value` after the comment sign. The value keeps inner blanks; when it is all blank,
/// its last blank is the value (so `# escape= ` is an error rather than a comment).
fn split(rest: &str) -> Option<(&str, &str)> {
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return None;
    }
    let value = rest.trim_start_matches(is_regex_space).strip_prefix('=')?;
    let trimmed = value.trim_matches(is_regex_space);
    if trimmed.is_empty() {
        let last = value.char_indices().next_back().filter(|(_, c)| *c != '\n')?;
        return Some((name, &value[last.0..]));
    }
    Some((name, trimmed))
}

/// The directives of a source, strictly at column 0; stops silently at a duplicate. Blanks before `#`
/// and a byte-order mark, which parsing tolerates, hide a directive from this list as they do in BuildKit.
#[must_use]
pub fn list(source: &[u8]) -> Vec<Directive> {
    collect(&decode(source), Scanner::new("#", 0))
}

fn collect(text: &str, mut scanner: Scanner) -> Vec<Directive> {
    let mut found = Vec::new();
    for line in text.lines() {
        match scanner.line(line) {
            Ok(Some(directive)) => found.push(directive),
            Ok(None) | Err(_) => break,
        }
    }
    found
}

/// The frontend that a source asks for: `# syntax=`, else `// syntax=`, else the `syntax` member of a
/// source that is a JSON object. A byte-order mark and a `#!` first line are passed over. Only the part
/// before the first space counts.
#[must_use]
pub fn detect_syntax(source: &[u8]) -> Option<String> {
    let text = decode(source);
    let (body, skipped) = body(&text);
    for prefix in ["#", "//"] {
        let found = collect(body, Scanner::new(prefix, skipped));
        if let Some(syntax) = found.into_iter().find(|d| d.name == "syntax") {
            return Some(first_word(&syntax.value));
        }
    }
    json::string_member(body, "syntax")
}

/// `# check=` of a source, its value up to the first space.
#[must_use]
pub fn detect_check(source: &[u8]) -> Option<Directive> {
    let text = decode(source);
    let (body, skipped) = body(&text);
    let found = collect(body, Scanner::new("#", skipped)).into_iter().find(|d| d.name == "check")?;
    Some(Directive { value: first_word(&found.value), ..found })
}

/// The options of a comment `check=…` above an instruction.
pub(crate) fn check_in_comment(comment: &str) -> Option<String> {
    let found = Scanner::new("", 0).line(comment).ok()??;
    (found.name == "check").then(|| first_word(&found.value))
}

/// A source without a byte-order mark and a `#!` line, and how many lines that were.
fn body(text: &str) -> (&str, u32) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match text.strip_prefix("#!") {
        Some(rest) => (rest.split_once('\n').map_or("", |(_, rest)| rest), 1),
        None => (text, 0),
    }
}

/// What stands before the first space.
fn first_word(value: &str) -> String {
    value.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_other_line_ends_the_directives() {
        let found = list(b"# syntax=a/b\n#ESCAPE = `\n# comment\n# check=x\n");
        let names: Vec<_> = found.iter().map(|d| (d.name.as_str(), d.value.as_str(), d.line)).collect();
        assert_eq!(names, [("syntax", "a/b", 1), ("escape", "`", 2)]);
    }

    #[test]
    fn syntax_in_all_three_forms() {
        assert_eq!(detect_syntax(b"#!/bin/x\n# syntax=a:1 foo\n").as_deref(), Some("a:1"));
        assert_eq!(detect_syntax(b"// syntax=b\n").as_deref(), Some("b"));
        assert_eq!(detect_syntax(b"{\"syntax\": \"c\"}").as_deref(), Some("c"));
        assert_eq!(detect_syntax(b"FROM a\n# syntax=d\n"), None);
    }

    #[test]
    fn check_on_the_first_lines_and_in_comments() {
        let found = detect_check(b"\xef\xbb\xbf#!/bin/x\n# syntax=a\n#Check = skip=A; error=true\n");
        assert_eq!(found.map(|d| (d.value, d.line)), Some(("skip=A;".to_owned(), 3)));
        assert_eq!(detect_check(b"// check=skip=A\n"), None);
        assert_eq!(check_in_comment("check=skip=A // why").as_deref(), Some("skip=A"));
        assert_eq!(check_in_comment("see check=skip=A"), None);
        assert_eq!(check_in_comment("syntax=x"), None);
    }
}
