//! Patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*`, `?` and literals, matched without backtracking.

use thiserror::Error;

/// Pattern length times value length, summed over the substitutions of one word, that is still worked through. Real
/// patterns are a few characters; this bounds a word to well under a second, however many substitutions are in it.
pub(crate) const MAX_CELLS: usize = 1 << 25;

/// Bytes that a replacement of all matches may grow to; the same bound as for a whole expanded word.
const MAX_RESULT_BYTES: usize = 16 << 20;

/// No match from this position.
const NONE: usize = usize::MAX;

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

/// For every start in `value`, where the match from there ends ([`NONE`] for no match): the furthest
/// end when `greedy`, the nearest otherwise. Works backwards through the pattern, one row at a time.
/// Wildcards do not cross a line feed.
/// The work is taken from `cells`.
fn ends(
    tokens: &[Token],
    value: &[char],
    greedy: bool,
    cells: &mut usize,
) -> Result<Vec<usize>, PatternError> {
    // A row is made even for an empty pattern.
    let work = (tokens.len() + 1).saturating_mul(value.len() + 1);
    *cells = cells.checked_sub(work).ok_or(PatternError::TooLong)?;
    let mut row: Vec<usize> = (0..=value.len()).collect();
    for token in tokens.iter().rev() {
        match token {
            Token::Star => {
                for at in (0..value.len()).rev() {
                    if value[at] != '\n' {
                        row[at] = pick(row[at], row[at + 1], greedy);
                    }
                }
            }
            Token::Any => shift(&mut row, value, |c| c != '\n'),
            Token::Literal(wanted) => shift(&mut row, value, |c| c == *wanted),
        }
    }
    Ok(row)
}

fn pick(here: usize, further: usize, greedy: bool) -> usize {
    match (here, further) {
        (NONE, end) | (end, NONE) => end,
        (a, b) if greedy => a.max(b),
        (a, b) => a.min(b),
    }
}

fn shift(row: &mut [usize], value: &[char], fits: impl Fn(char) -> bool) {
    for (at, c) in value.iter().enumerate() {
        row[at] = if fits(*c) { row[at + 1] } else { NONE };
    }
    if let Some(last) = row.last_mut() {
        *last = NONE;
    }
}

/// `value` without the shortest (`greedy`: longest) prefix that matches `pattern`.
pub(crate) fn trim_prefix(
    pattern: &str,
    value: &str,
    greedy: bool,
    cells: &mut usize,
) -> Result<String, PatternError> {
    let value: Vec<char> = value.chars().collect();
    let end = ends(&tokens(pattern.chars())?, &value, greedy, cells)?.first().copied();
    Ok(value[end.filter(|e| *e != NONE).unwrap_or(0)..].iter().collect())
}

/// `value` without the shortest (`greedy`: longest) suffix that matches `pattern`: the prefix rule on
/// both reversed, escapes kept before what they escape.
pub(crate) fn trim_suffix(
    pattern: &str,
    value: &str,
    greedy: bool,
    cells: &mut usize,
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
    let end = ends(&tokens(reversed.into_iter().rev())?, &value, greedy, cells)?.first().copied();
    value.drain(..end.filter(|e| *e != NONE).unwrap_or(0));
    Ok(value.into_iter().rev().collect())
}

/// Replaces the first longest match of `pattern` by `replacement`, taken literally.
pub(crate) fn replace_first(
    pattern: &str,
    value: &str,
    replacement: &str,
    cells: &mut usize,
) -> Result<String, PatternError> {
    let value: Vec<char> = value.chars().collect();
    let ends = ends(&tokens(pattern.chars())?, &value, true, cells)?;
    let Some((start, end)) = ends.iter().enumerate().find(|(_, e)| **e != NONE) else {
        return Ok(value.into_iter().collect());
    };
    let mut out: String = value[..start].iter().collect();
    out.push_str(replacement);
    out.extend(&value[*end..]);
    Ok(out)
}

/// Replaces every longest match. In `replacement`, `$0` and `${0}` stand for the match, `$$` for `$`,
/// and any other `$name` for nothing (the reference takes it as a template).
pub(crate) fn replace_all(
    pattern: &str,
    value: &str,
    replacement: &str,
    cells: &mut usize,
) -> Result<String, PatternError> {
    let value: Vec<char> = value.chars().collect();
    let ends = ends(&tokens(pattern.chars())?, &value, true, cells)?;
    let parts = template(replacement);
    let mut out = String::new();
    let mut copied = 0;
    let mut search = 0;
    while search <= value.len() {
        let Some(start) = (search..ends.len()).find(|at| ends[*at] != NONE) else {
            break;
        };
        let end = ends[start];
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
mod tests {
    use super::*;

    fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, PatternError> {
        super::trim_prefix(pattern, value, greedy, &mut MAX_CELLS.clone())
    }

    fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, PatternError> {
        super::trim_suffix(pattern, value, greedy, &mut MAX_CELLS.clone())
    }

    fn replace_first(pattern: &str, value: &str, replacement: &str) -> Result<String, PatternError> {
        super::replace_first(pattern, value, replacement, &mut MAX_CELLS.clone())
    }

    fn replace_all(pattern: &str, value: &str, replacement: &str) -> Result<String, PatternError> {
        super::replace_all(pattern, value, replacement, &mut MAX_CELLS.clone())
    }

    #[test]
    fn prefixes_and_suffixes() {
        let v = "foo.bar.tar.gz";
        assert_eq!(trim_prefix("*.", v, false).unwrap(), "bar.tar.gz");
        assert_eq!(trim_prefix("*.", v, true).unwrap(), "gz");
        assert_eq!(trim_suffix(".*", v, false).unwrap(), "foo.bar.tar");
        assert_eq!(trim_suffix(".*", v, true).unwrap(), "foo");
        assert_eq!(trim_suffix("\\*c", "ab*c", false).unwrap(), "ab");
        assert_eq!(trim_prefix("x", v, false).unwrap(), v);
        assert!(trim_prefix("\\f", v, false).is_err());
    }

    #[test]
    fn replacements() {
        assert_eq!(replace_first("b*", "abab", "X").unwrap(), "aX");
        assert_eq!(replace_all("b", "abab", "<$0>").unwrap(), "a<b>a<b>");
        assert_eq!(replace_all("*", "abab", "q").unwrap(), "q");
        assert_eq!(replace_all("", "ab", "-").unwrap(), "-a-b-");
        assert_eq!(replace_all("?", "abc", "q").unwrap(), "qqq");
    }

    #[test]
    fn many_stars_stay_fast() {
        let value = "a".repeat(20_000);
        let pattern = "*a".repeat(500) + "b";
        assert_eq!(trim_prefix(&pattern, &value, true).unwrap().len(), 20_000);
        assert_eq!(trim_prefix(&"*".repeat(60_000), &value, true), Err(PatternError::TooLong));
    }
}
