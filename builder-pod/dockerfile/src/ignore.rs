//! `.dockerignore`: patterns in order, the last that matches decides, `!` brings back (engine.md D4, moby/patternmatcher).

mod pattern;

use thiserror::Error;

use pattern::Pattern;

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
            let pattern =
                Pattern::new(&clean, again).ok_or(IgnoreError::Syntax { line: number, pattern: clean })?;
            patterns.push(pattern);
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
        self.patterns
            .iter()
            .filter(|p| p.again)
            .any(|p| p.fixed.starts_with(&inside) || (p.is_wild() && inside.starts_with(&p.fixed)))
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
}
