//! Words of an instruction: flags at the front, quoted words, the command word.

/// Takes `--flag[=value]` words off the front. Quotes and escapes in them are resolved. A bare `--`
/// ends the flags and is dropped. Returns the flags and the rest of the line.
pub(crate) fn take_flags(line: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = line.trim_start();
    while rest.starts_with("--") {
        let (word, quoted, after) = flag_word(rest, escape);
        rest = after;
        if word == "--" {
            break;
        }
        if quoted || !word.is_empty() {
            flags.push(word);
        }
        rest = rest.trim_start();
    }
    (flags, rest)
}

/// One word with quotes and escapes resolved, whether it had quotes, and what follows it.
fn flag_word(line: &str, escape: char) -> (String, bool, &str) {
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut quoted = false;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (word, quoted, &line[at..]),
            None if c == '\'' || c == '"' => {
                quote = Some(c);
                quoted = true;
            }
            Some(open) if c == open => quote = None,
            // An escape at the very end is dropped.
            _ if c == escape => word.extend(chars.next().map(|(_, next)| next)),
            _ => word.push(c),
        }
    }
    (word, quoted, "")
}

/// Splits at white space outside quotes. Quotes and escapes stay in the words, for the expansion to
/// resolve; only an escape at the very end is dropped.
pub(crate) fn quoted_words(line: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote: Option<char> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if c == '\'' || c == '"' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        // Nothing can be escaped between single quotes.
        if c == escape && quote != Some('\'') {
            if let Some(next) = chars.next() {
                word.push(c);
                word.push(next);
            }
            continue;
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags() {
        let (flags, rest) = take_flags(r#" --a=1 --b="x y" --c=\"z -- --d e"#, '\\');
        assert_eq!(flags, ["--a=1", "--b=x y", "--c=\"z"]);
        assert_eq!(rest.trim(), "--d e");
        let (flags, rest) = take_flags("--from=ü a", '\\');
        assert_eq!((flags[0].as_str(), rest), ("--from=ü", "a"));
        assert_eq!(take_flags("--a\\", '\\'), (vec!["--a".to_owned()], ""));
    }

    #[test]
    fn words_keep_quotes() {
        assert_eq!(quoted_words(r#"a="b c" d='e\' f\ g \"#, '\\'), [r#"a="b c""#, r"d='e\'", r"f\ g"]);
        assert_eq!(quoted_words("\"a b", '\\'), ["\"a b"]);
    }
}
