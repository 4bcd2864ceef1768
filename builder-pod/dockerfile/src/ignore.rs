//! `.dockerignore`: patterns in order, the last that matches decides, `!` brings back (engine.md D4, moby/patternmatcher).

use thiserror::Error;

/// What is wrong with an ignore file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IgnoreError {
    /// `!` alone.
    #[error("line {line}: expected a pattern after '!', found none")]
    LoneExclamation {
        /// Counted from 1.
        line: usize,
    },
    /// An open `[`, an empty class, or an escape at the end.
    #[error(
        "line {line}: syntax error in pattern {pattern:?}: expected a closed [...] and a character after \\"
    )]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// As cleaned.
        pattern: String,
    },
}

/// An ignore file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    text: String,
    /// `!`: what it matches is taken in again.
    again: bool,
    parts: Vec<Part>,
}

/// A pattern cut into what each piece matches.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Char(char),
    /// `?`: one character but `/`.
    One,
    /// `*`: any number of characters but `/`.
    Some,
    /// `**` at the end: everything.
    All,
    /// `**` before something: nothing, or anything up to a `/`.
    Dirs,
    /// `**text` at the start: anything.
    Prefix,
    /// `[...]`
    Class {
        not: bool,
        ranges: Vec<(char, char)>,
    },
}

/// Which patterns matched a directory; needed to look at what is below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Matched(Vec<bool>);

impl IgnoreFile {
    /// Reads an ignore file. A byte-order mark is dropped; `#` makes a comment at the first column only.
    ///
    /// # Errors
    /// A pattern that can't be read.
    pub fn parse(text: &str) -> Result<Self, IgnoreError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            if line.starts_with('#') {
                continue;
            }
            let line = line.trim();
            let (again, rest) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if line.is_empty() {
                continue;
            }
            if rest.is_empty() {
                return Err(IgnoreError::LoneExclamation { line: number });
            }
            let mut clean = clean(rest);
            if clean.len() > 1 && clean.starts_with('/') {
                clean.remove(0);
            }
            let parts = compile(&clean)
                .ok_or_else(|| IgnoreError::Syntax { line: number, pattern: clean.clone() })?;
            patterns.push(Pattern { text: clean, again, parts });
        }
        Ok(Self { patterns })
    }

    /// The cleaned patterns, `!` in front of those that take in again.
    pub fn patterns(&self) -> Vec<String> {
        self.patterns.iter().map(|p| format!("{}{}", if p.again { "!" } else { "" }, p.text)).collect()
    }

    /// Whether `path` (relative, `/`-separated) is left out, it or a directory above it having matched.
    pub fn matches(&self, path: &str) -> bool {
        let mut excluded = false;
        for pattern in &self.patterns {
            // A pattern that could not change the verdict is not looked at.
            if pattern.again == excluded && pattern.matches(path, true) {
                excluded = !pattern.again;
            }
        }
        excluded
    }

    /// The cleaned path of a source of COPY or ADD that is left out for certain. With a pattern that brings files back
    /// nothing is certain, and the context itself is left out only by a pattern for everything.
    pub(crate) fn leaves_out_source(&self, source: &str) -> Option<String> {
        let path = clean(source);
        let everything = |p: &Pattern| matches!(p.text.as_str(), "*" | "**" | "**/*");
        let certain = !self.patterns.iter().any(|p| p.again)
            && (!matches!(path.as_str(), "." | "/") || self.patterns.iter().any(everything));
        (certain && self.matches(&path)).then_some(path)
    }

    /// What [`IgnoreFile::matches`] says, while walking: `above` is what [`IgnoreFile::walk`] said of the parent directory (nothing at the root).
    pub fn walk(&self, path: &str, above: &Matched) -> (bool, Matched) {
        let mut excluded = false;
        let mut matched = vec![false; self.patterns.len()];
        for (index, pattern) in self.patterns.iter().enumerate() {
            let mut hit = above.0.get(index).copied().unwrap_or_default();
            if !hit {
                if pattern.again != excluded {
                    continue;
                }
                hit = pattern.matches(path, above.0.is_empty());
            }
            matched[index] = hit;
            if hit {
                excluded = !pattern.again;
            }
        }
        (excluded, Matched(matched))
    }

    /// Whether a file below the excluded directory `dir` could be taken in again, so that it has to be walked.
    pub fn may_include_below(&self, dir: &str) -> bool {
        let inside = format!("{dir}/");
        self.patterns.iter().filter(|p| p.again).any(|p| {
            let fixed: String = p
                .parts
                .iter()
                .map_while(|part| match part {
                    Part::Char(c) => Some(*c),
                    _ => None,
                })
                .collect();
            let wild = fixed.len() < p.text.len();
            fixed.starts_with(&inside)
                || (wild && inside.starts_with(&fixed))
                || (wild && fixed.starts_with(&inside))
        })
    }
}

/// Lexical cleaning as Go's `filepath.Clean`: no empty or `.` elements, `..` taken back where possible.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|p| *p != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Cuts a cleaned pattern into parts; `None` for one that Go's `filepath.Match` refuses.
fn compile(pattern: &str) -> Option<Vec<Part>> {
    let mut parts = Vec::new();
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                let slash = chars.next_if_eq(&'/').is_some();
                parts.push(match chars.peek() {
                    None => Part::All,
                    Some(_) if first && !slash => Part::Prefix,
                    Some(_) => Part::Dirs,
                });
            }
            '*' => parts.push(Part::Some),
            '?' => parts.push(Part::One),
            '\\' => parts.push(Part::Char(escaped(chars.next()?))),
            '[' => parts.push(class(&mut chars)?),
            c => parts.push(Part::Char(c)),
        }
        first = false;
    }
    Some(parts)
}

/// What an escaped character stands for. The reference hands escapes on to a regular expression, where some letters name
/// a control character.
fn escaped(c: char) -> char {
    match c {
        'a' => '\u{7}',
        'f' => '\u{c}',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'v' => '\u{b}',
        c => c,
    }
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Part> {
    let not = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let one = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next()? {
        '\\' => chars.next(),
        '-' | ']' => None,
        c => Some(c),
    };
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Some(Part::Class { not, ranges });
        }
        let low = one(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { one(chars)? } else { low };
        ranges.push((low, high));
    }
}

impl Pattern {
    /// Whether the whole of `path` matches or, with `parents`, a directory above it. Time is linear in `path` for each
    /// part: one pass answers for every prefix.
    fn matches(&self, path: &str, parents: bool) -> bool {
        let text: Vec<char> = path.chars().collect();
        // at[i]: the parts so far can match the first i characters.
        let mut at = vec![false; text.len() + 1];
        at[0] = true;
        for part in &self.parts {
            at = step(part, &text, &at);
        }
        at[text.len()] || (parents && text.iter().zip(&at).skip(1).any(|(c, hit)| *c == '/' && *hit))
    }
}

fn step(part: &Part, text: &[char], at: &[bool]) -> Vec<bool> {
    let mut next = vec![false; at.len()];
    let single = |next: &mut Vec<bool>, fits: &dyn Fn(char) -> bool| {
        for (i, c) in text.iter().enumerate() {
            next[i + 1] = at[i] && fits(*c);
        }
    };
    match part {
        Part::Char(wanted) => single(&mut next, &|c| c == *wanted),
        Part::One => single(&mut next, &|c| c != '/'),
        Part::Class { not, ranges } => {
            single(&mut next, &|c| ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *not);
        }
        Part::Some | Part::All | Part::Prefix => {
            let mut open = false;
            for i in 0..at.len() {
                open |= at[i];
                next[i] = open;
                if matches!(part, Part::Some) && text.get(i) == Some(&'/') {
                    open = false;
                }
            }
        }
        Part::Dirs => {
            let mut open = false;
            for i in 0..at.len() {
                next[i] = at[i] || (open && i > 0 && text[i - 1] == '/');
                open |= at[i];
            }
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> IgnoreFile {
        IgnoreFile::parse(text).unwrap()
    }

    #[test]
    fn the_last_match_decides() {
        let ignore = file("# comment\n*.md\n!README.md\n /docs/ \n!docs/keep\n");
        assert_eq!(ignore.patterns(), ["*.md", "!README.md", "docs", "!docs/keep"]);
        for (path, left_out) in [
            ("a.md", true),
            ("README.md", false),
            ("docs/x", true),
            ("docs/keep", false),
            ("sub/a.md", false),
        ] {
            assert_eq!(ignore.matches(path), left_out, "{path}");
        }
        assert!(ignore.may_include_below("docs") && !ignore.may_include_below("other"));
    }

    #[test]
    fn stars() {
        for (pattern, path, wanted) in [
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("a/**/x", "a/x", true),
            ("a/**", "a/b/c", true),
            ("a*", "ab/c", true),
            ("**a", "b/ca", true),
            ("[a-c]?", "bz", true),
            ("[^a]", "a", false),
            ("*", "a/b", true),
        ] {
            assert_eq!(file(pattern).matches(path), wanted, "{pattern} {path}");
        }
    }

    #[test]
    fn walking_hands_results_down() {
        let ignore = file("dir\n!dir/keep\n");
        let (out, below) = ignore.walk("dir", &Matched::default());
        assert!(out && ignore.may_include_below("dir"));
        assert!(!ignore.walk("dir/keep", &below).0 && ignore.walk("dir/other", &below).0);
    }

    #[test]
    fn broken_patterns_are_named() {
        for bad in ["!", "[a", "a\\", "[]"] {
            assert!(IgnoreFile::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn many_stars_stay_linear() {
        let pattern = "**/".repeat(2000) + "x";
        assert!(!file(&pattern).matches(&"a/".repeat(2000)));
    }
}
