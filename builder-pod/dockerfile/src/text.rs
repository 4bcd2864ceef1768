//! Small text helpers that follow the reference's idea of blanks, case and broken UTF-8.

use std::borrow::Cow;

/// Blanks that separate words of an instruction. Not line feed (a joined line has none) and not the
/// wider Unicode set: a no-break space belongs to a word.
pub(crate) fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// White space as `\s` means it in the directive and heredoc rules: ASCII without vertical tab.
pub(crate) fn is_regex_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{c}' | '\r' | ' ')
}

/// Decodes bytes, giving one replacement character for every byte that is not UTF-8
/// (`String::from_utf8_lossy` gives one for a whole truncated sequence).
pub(crate) fn decode(bytes: &[u8]) -> Cow<'_, str> {
    let mut rest = match std::str::from_utf8(bytes) {
        Ok(text) => return Cow::Borrowed(text),
        Err(_) => bytes,
    };
    let mut out = String::with_capacity(bytes.len() + 8);
    while !rest.is_empty() {
        match std::str::from_utf8(rest) {
            Ok(text) => {
                out.push_str(text);
                break;
            }
            Err(fault) => {
                let (good, bad) = rest.split_at(fault.valid_up_to());
                out.push_str(std::str::from_utf8(good).unwrap_or_default());
                out.push(char::REPLACEMENT_CHARACTER);
                rest = bad.get(1..).unwrap_or_default();
            }
        }
    }
    Cow::Owned(out)
}

/// Splits at the first run of [`is_blank`]; `None` for the second part when there is no blank.
pub(crate) fn split_first_blank(text: &str) -> (&str, Option<&str>) {
    match text.find(is_blank) {
        Some(at) => (&text[..at], Some(text[at..].trim_start_matches(is_blank))),
        None => (text, None),
    }
}

/// Strips the line end: any run of carriage returns and line feeds.
pub(crate) fn trim_newline(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_utf8_gives_one_mark_per_byte() {
        assert_eq!(decode(b"a\xe2\x82b\xff"), "a\u{fffd}\u{fffd}b\u{fffd}");
        assert_eq!(decode("ü".as_bytes()), "ü");
    }

    #[test]
    fn no_break_space_is_part_of_a_word() {
        assert_eq!(split_first_blank("RUN\u{a0}x y"), ("RUN\u{a0}x", Some("y")));
        assert_eq!(split_first_blank("RUN"), ("RUN", None));
    }
}
