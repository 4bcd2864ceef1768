//! Physical lines to logical lines: line length, comments, continuation.

use std::borrow::Cow;

use crate::text::decode;

/// Longest physical line in bytes, without its line feed: what the reference's scanner can hold.
pub(crate) const MAX_LINE_BYTES: usize = 65_535;

/// The physical lines of a source, each with its line end.
#[derive(Debug)]
pub(crate) struct Lines<'a> {
    rest: &'a [u8],
    number: u32,
    too_long: bool,
}

impl<'a> Lines<'a> {
    /// Lines of `source`; a byte-order mark in front is dropped.
    pub(crate) fn new(source: &'a [u8]) -> Self {
        let rest = source.strip_prefix(b"\xef\xbb\xbf").unwrap_or(source);
        Self { rest, number: 0, too_long: false }
    }

    /// Number of the line read last, counted from 1; 0 before the first.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// Whether reading ended at a line that is too long instead of at the end of the source.
    pub(crate) fn too_long(&self) -> bool {
        self.too_long
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = Cow<'a, str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() || self.too_long {
            return None;
        }
        let length = self.rest.iter().position(|b| *b == b'\n');
        if length.unwrap_or(self.rest.len()) > MAX_LINE_BYTES {
            self.too_long = true;
            return None;
        }
        let (line, rest) = self.rest.split_at(length.map_or(self.rest.len(), |l| l + 1));
        self.rest = rest;
        self.number = self.number.saturating_add(1);
        Some(decode(line))
    }
}

/// Whether the first character that is no white space is `#`.
pub(crate) fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// Strips the escape character that continues a line. It must be the last character but for blanks and
/// tabs, and must not follow another escape character: `\\` at the end of a line continues nothing.
/// The second value tells whether the logical line goes on.
pub(crate) fn continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuation_rules() {
        assert_eq!(continuation("RUN a \\ \t", '\\'), ("RUN a ", true));
        assert_eq!(continuation("RUN a \\\\", '\\'), ("RUN a \\\\", false));
        assert_eq!(continuation("\\", '\\'), ("", true));
        assert_eq!(continuation("RUN a `", '`'), ("RUN a ", true));
        assert_eq!(continuation("RUN a \\", '`'), ("RUN a \\", false));
    }

    #[test]
    fn long_lines_end_the_reading() {
        let mut source = vec![b'a'; MAX_LINE_BYTES];
        source.push(b'\n');
        assert_eq!(Lines::new(&source).count(), 1);
        source.insert(0, b'a');
        let mut lines = Lines::new(&source);
        assert_eq!(lines.next(), None);
        assert!(lines.too_long());
    }
}
