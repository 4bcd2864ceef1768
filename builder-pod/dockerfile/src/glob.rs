//! Patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?` and literals. What the pattern means for a value is in
//! `glob/states.rs`; here it is read, and values are trimmed and replaced.

mod states;

use thiserror::Error;

use states::States;

/// Steps of the automaton, in units of 64 states, over the substitutions of one word. A value of a megabyte with a pattern of
/// 64 characters takes a million; this bounds a word to some tens of milliseconds, however many substitutions are in it.
pub(crate) const MAX_STEPS: usize = 1 << 24;

/// Bytes that a replacement of all matches may grow to; the same bound as for a whole expanded word.
const MAX_RESULT_BYTES: usize = 16 << 20;

/// Why a pattern cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    /// A backslash before a character that has no special meaning.
    #[error("invalid escape \\{}: expected \\*, \\?, \\\\, \\/ or \\}}", found.map(String::from).unwrap_or_default())]
    Escape {
        /// The character after the backslash, if any.
        found: Option<char>,
    },
    /// Pattern and value together are too long.
    #[error("pattern and value are too long to match")]
    TooLong,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token {
    Star,
    Any,
    Literal(char),
}

fn tokens(pattern: impl Iterator<Item = char>) -> Result<Vec<Token>, PatternError> {
    let mut out = Vec::new();
    let mut chars = pattern.peekable();
    // The reference's scanner drops a byte-order mark in front.
    let _ = chars.next_if_eq(&'\u{feff}');
    while let Some(c) = chars.next() {
        out.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => match chars.next() {
                Some(c @ ('}' | '/' | '*' | '?' | '\\')) => Token::Literal(c),
                found => return Err(PatternError::Escape { found }),
            },
            c => Token::Literal(c),
        });
    }
    Ok(out)
}

/// Takes the work of `times` runs of the pattern over the value from what is left of the word's.
fn charge(states: &States, value: &[char], times: usize, steps: &mut usize) -> Result<(), PatternError> {
    let work = states.cost().saturating_mul(value.len() + 1).saturating_mul(times);
    *steps = steps.checked_sub(work).ok_or(PatternError::TooLong)?;
    Ok(())
}

/// How many characters at the start of `value` match.
fn prefix(
    tokens: &[Token],
    value: &[char],
    greedy: bool,
    steps: &mut usize,
) -> Result<Option<usize>, PatternError> {
    let mut states = States::new(tokens);
    charge(&states, value, 1, steps)?;
    Ok(states.longest(value, !greedy))
}

/// The leftmost longest matches of a pattern in a value, one after the other.
struct Matches<'v> {
    value: &'v [char],
    forward: States,
    /// For each position, the end of the value included, whether a match begins there.
    begins: Vec<bool>,
}

impl<'v> Matches<'v> {
    fn new(pattern: &str, value: &'v [char], steps: &mut usize) -> Result<Self, PatternError> {
        let tokens = tokens(pattern.chars())?;
        let backward: Vec<Token> = tokens.iter().rev().copied().collect();
        let (forward, mut backward) = (States::new(&tokens), States::new(&backward));
        // Once to find the starts. The ends cost as much again and no more: a match that a star keeps open to the end of its
        // line leaves no other match with that star in the line, and one without a star is as long as its pattern.
        charge(&forward, value, 2, steps)?;
        let mut begins = backward.ends_anywhere(value.iter().rev().copied());
        begins.reverse();
        Ok(Self { value, forward, begins })
    }

    /// The first match that begins at `from` or after it.
    fn next(&mut self, from: usize) -> Option<(usize, usize)> {
        let start = from + self.begins.get(from..)?.iter().position(|begins| *begins)?;
        let length = self.forward.longest(&self.value[start..], false)?;
        Some((start, start + length))
    }
}

/// `value` without the shortest (`greedy`: longest) prefix that matches `pattern`.
pub(crate) fn trim_prefix(
    pattern: &str,
    value: &str,
    greedy: bool,
    steps: &mut usize,
) -> Result<String, PatternError> {
    let value: Vec<char> = value.chars().collect();
    let end = prefix(&tokens(pattern.chars())?, &value, greedy, steps)?;
    Ok(value[end.unwrap_or(0)..].iter().collect())
}

/// `value` without the shortest (`greedy`: longest) suffix that matches `pattern`: the prefix rule on
/// both reversed, escapes kept before what they escape.
pub(crate) fn trim_suffix(
    pattern: &str,
    value: &str,
    greedy: bool,
    steps: &mut usize,
) -> Result<String, PatternError> {
    let mut reversed: Vec<char> = Vec::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let escaped = if c == '\\' { chars.next() } else { None };
        reversed.extend(escaped);
        reversed.push(c);
    }
    // `\x` went in as `x\`, so reading backwards gives `\x` again.
    let mut value: Vec<char> = value.chars().rev().collect();
    let end = prefix(&tokens(reversed.into_iter().rev())?, &value, greedy, steps)?;
    value.drain(..end.unwrap_or(0));
    Ok(value.into_iter().rev().collect())
}

/// Replaces the first longest match of `pattern` by `replacement`, taken literally.
pub(crate) fn replace_first(
    pattern: &str,
    value: &str,
    replacement: &str,
    steps: &mut usize,
) -> Result<String, PatternError> {
    let value: Vec<char> = value.chars().collect();
    let Some((start, end)) = Matches::new(pattern, &value, steps)?.next(0) else {
        return Ok(value.into_iter().collect());
    };
    let mut out: String = value[..start].iter().collect();
    out.push_str(replacement);
    out.extend(&value[end..]);
    Ok(out)
}

/// Replaces every longest match. In `replacement`, `$0` and `${0}` stand for the match, `$$` for `$`,
/// and any other `$name` for nothing (the reference takes it as a template).
pub(crate) fn replace_all(
    pattern: &str,
    value: &str,
    replacement: &str,
    steps: &mut usize,
) -> Result<String, PatternError> {
    let value: Vec<char> = value.chars().collect();
    let mut matches = Matches::new(pattern, &value, steps)?;
    let parts = template(replacement);
    let mut out = String::new();
    let mut copied = 0;
    let mut search = 0;
    while let Some((start, end)) = matches.next(search) {
        out.extend(&value[copied..start]);
        // An empty match right after another match is not replaced.
        if end > copied || start == 0 {
            for part in &parts {
                match part {
                    Part::Text(text) => out.push_str(text),
                    Part::Match => out.extend(&value[start..end]),
                }
            }
        }
        if out.len() > MAX_RESULT_BYTES {
            return Err(PatternError::TooLong);
        }
        copied = end;
        search = end.max(search + 1);
    }
    out.extend(&value[copied.min(value.len())..]);
    Ok(out)
}

enum Part<'a> {
    Text(&'a str),
    Match,
}

fn template(replacement: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = replacement;
    while let Some(at) = rest.find('$') {
        parts.push(Part::Text(&rest[..at]));
        let after = &rest[at + 1..];
        if let Some(next) = after.strip_prefix('$') {
            parts.push(Part::Text("$"));
            rest = next;
            continue;
        }
        let name_of =
            |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let (name, next) = match after.strip_prefix('{') {
            Some(inner) => {
                let end = name_of(inner);
                match inner[end..].strip_prefix('}') {
                    Some(next) => (&inner[..end], next),
                    None => ("", after),
                }
            }
            None => after.split_at(name_of(after)),
        };
        if name.is_empty() {
            parts.push(Part::Text("$"));
            rest = after;
            continue;
        }
        if name == "0" {
            parts.push(Part::Match);
        }
        rest = next;
    }
    parts.push(Part::Text(rest));
    parts
}

#[cfg(test)]
#[path = "glob_tests.rs"]
mod tests;
