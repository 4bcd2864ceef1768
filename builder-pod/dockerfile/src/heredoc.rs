//! Heredocs: finding `<<NAME` words on a line and reading what they stand for.

use crate::error::ParseErrorKind;
use crate::expand::{ExpandError, ExpandOptions, Expander};
use crate::text::is_regex_space;

/// A here-document of RUN, COPY or ADD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// Delimiter without quotes; for COPY and ADD also the file name.
    pub name: String,
    /// The digits before `<<`, 0 when there are none.
    pub fd: u64,
    /// Whether variables in the content are expanded: no part of the delimiter is quoted.
    pub expand: bool,
    /// `<<-`: leading tabs of the content and of the delimiter line are dropped.
    pub chomp: bool,
    /// The lines up to the delimiter, as in the source, with their line ends (tabs not yet dropped).
    pub content: String,
}

impl Heredoc {
    /// The content after `<<-` has dropped leading tabs, where asked for.
    #[must_use]
    pub fn text(&self) -> String {
        self.text_as(self.chomp)
    }

    /// The content with or without leading tabs.
    pub(crate) fn text_as(&self, without_tabs: bool) -> String {
        if without_tabs { chomp(&self.content) } else { self.content.clone() }
    }
}

/// Drops the tabs at the start of every line.
fn chomp(content: &str) -> String {
    content.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Reads one word as heredoc: `Ok(None)` when it is none. The content is still empty.
pub(crate) fn heredoc_word(word: &str) -> Result<Option<Heredoc>, ParseErrorKind> {
    let digits = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
    let (fd, rest) = word.split_at(digits);
    let Some(rest) = rest.strip_prefix("<<") else {
        return Ok(None);
    };
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let delimiter = rest.trim_start_matches(is_regex_space);
    if delimiter.is_empty() || delimiter.contains('<') {
        return Ok(None);
    }
    let fault = |source| ParseErrorKind::HeredocDelimiter { word: word.to_owned(), source };
    let mut plain = lexer(ExpandOptions { skip_unset_env: true, ..ExpandOptions::default() })
        .words(delimiter)
        .map_err(fault)?;
    let raw = lexer(ExpandOptions { skip_unset_env: true, raw_quotes: true, ..ExpandOptions::default() })
        .words(delimiter)
        .map_err(fault)?;
    let (Some(name), [raw]) = (plain.pop(), raw.as_slice()) else {
        return Ok(None);
    };
    if !plain.is_empty() {
        return Ok(None);
    }
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        // Quotes that vanish when the word is resolved were quoting.
        expand: quotes(&name) == quotes(raw),
        name,
        fd: if fd.is_empty() { 0 } else { fd.parse().unwrap_or(u64::MAX) },
        chomp,
        content: String::new(),
    }))
}

/// Whether a word is a heredoc's and nothing else: `<<EOF`.
pub fn is_heredoc_word(word: &str) -> bool {
    matches!(heredoc_word(word), Ok(Some(_)))
}

/// All heredocs that a logical line opens, in order. A line whose quotes do not close has none, as in the reference; one
/// that is beyond our own limits is refused rather than taken for one without.
pub(crate) fn heredocs_of_line(line: &str) -> Result<Vec<Heredoc>, ParseErrorKind> {
    let options = ExpandOptions {
        raw_quotes: true,
        raw_escapes: true,
        skip_unset_env: true,
        ..ExpandOptions::default()
    };
    let words = match lexer(options).words(line) {
        Ok(words) => words,
        Err(source @ (ExpandError::Depth | ExpandError::Size)) => {
            // Enough to find the place.
            let word = line.chars().take(60).collect();
            return Err(ParseErrorKind::HeredocDelimiter { word, source });
        }
        Err(_) => Vec::new(),
    };
    let mut found = Vec::new();
    for word in words {
        found.extend(heredoc_word(&word)?);
    }
    Ok(found)
}

/// Heredoc words are split like shell words, always with a backslash as escape and without variables.
fn lexer(options: ExpandOptions) -> Expander<'static> {
    Expander::new(&|_| None, '\\').options(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let doc = heredoc_word("3<<-'E F'").unwrap().unwrap();
        assert_eq!((doc.name.as_str(), doc.fd, doc.chomp, doc.expand), ("E F", 3, true, false));
        assert!(heredoc_word("<<<EOF").unwrap().is_none());
        assert!(heredoc_word("<<").unwrap().is_none());
        assert!(heredoc_word("a<<EOF").unwrap().is_none());
        assert!(heredoc_word("<<EOF").unwrap().unwrap().expand);
    }

    #[test]
    fn several_on_a_line() {
        let docs = heredocs_of_line("COPY <<A << \"B\" /dst/").unwrap();
        let names: Vec<_> = docs.iter().map(|d| (d.name.as_str(), d.expand)).collect();
        assert_eq!(names, [("A", true), ("B", false)]);
        assert!(heredocs_of_line("RUN echo '<<A").unwrap().is_empty());
    }

    #[test]
    fn tabs_are_dropped_on_every_line() {
        assert_eq!(chomp("\t\ta\n\tb\n c"), "a\nb\n c");
    }
}
