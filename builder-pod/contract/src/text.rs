//! Bounding and cleaning of text that came from outside, before it reaches a status, a log or a journal.

/// Cuts `text` to at most `max` bytes at a character boundary; a cut text ends in `…` (3 bytes, within `max`).
pub fn truncate(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let keep = text.floor_char_boundary(max.saturating_sub('…'.len_utf8()));
    let mut out = text[..keep].to_owned();
    if max >= '…'.len_utf8() {
        out.push('…');
    }
    out
}

/// The last `max` bytes of `text`, from a character boundary and, where one is near, from the start of a line.
pub fn tail(text: &str, max: usize) -> &str {
    if text.len() <= max {
        return text;
    }
    let start = text.ceil_char_boundary(text.len() - max);
    let cut = &text[start..];
    match cut.find('\n') {
        Some(at) if at < cut.len() / 2 => &cut[at + 1..],
        _ => cut,
    }
}

/// Replaces control characters except newline and tab by `\u{fffd}`, so that output of a step can't drive a terminal
/// or forge a line of ours.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncate_keeps_characters_whole() {
        assert_eq!(truncate("abc", 3), "abc");
        assert_eq!(truncate("abcdefgh", 6), "abc…");
        assert_eq!(truncate("äöüäöü", 8), "äö…");
        assert!(truncate("äöüäöü", 2).len() <= 2);
    }

    #[test]
    fn tail_starts_at_a_line() {
        assert_eq!(tail("one\ntwo\nthree", 9), "three");
        assert_eq!(tail("one", 9), "one");
        assert_eq!(tail("äääää", 3), "ä");
    }

    #[test]
    fn printable_defuses_escapes() {
        assert_eq!(printable("a\x1b[31mb\r\n"), "a\u{fffd}[31mb\u{fffd}\n");
    }
}
