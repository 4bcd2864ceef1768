//! Just enough JSON: arrays of strings for exec forms, one string member for `{"syntax": ...}`.
//!
//! A whole document is checked before anything is taken from it, without recursion.

/// Nesting deeper than this is refused, as by the reference's decoder.
const MAX_DEPTH: usize = 10_000;

/// Why a text is not an array of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ArrayError {
    /// Not a JSON array at all: the caller takes the text as shell form.
    NotArray,
    /// An array with something else than strings in it.
    NotStrings,
}

/// Reads a JSON array of strings; blanks around it are fine, anything else is not.
pub(crate) fn string_array(text: &str) -> Result<Vec<String>, ArrayError> {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Err(ArrayError::NotArray);
    }
    let mut reader = Reader { bytes: text.as_bytes(), at: 1 };
    reader.array().ok_or(ArrayError::NotArray)?.ok_or(ArrayError::NotStrings)
}

/// The string member `key` of a text that is a JSON object; the last one wins.
pub(crate) fn string_member(text: &str, key: &str) -> Option<String> {
    let mut reader = Reader { bytes: text.as_bytes(), at: 0 };
    reader.blanks();
    reader.eat(b'{')?;
    let mut found = None;
    reader.blanks();
    if reader.eat(b'}').is_none() {
        loop {
            reader.blanks();
            let name = reader.string()?;
            reader.blanks();
            reader.eat(b':')?;
            reader.blanks();
            if reader.peek() == Some(b'"') {
                let value = reader.string()?;
                if name == key {
                    found = Some(value);
                }
            } else {
                reader.skip_value()?;
                if name == key {
                    found = None;
                }
            }
            reader.blanks();
            if reader.eat(b',').is_none() {
                reader.eat(b'}')?;
                break;
            }
        }
    }
    reader.blanks();
    reader.peek().is_none().then_some(found)?
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn eat(&mut self, wanted: u8) -> Option<()> {
        (self.peek() == Some(wanted)).then(|| self.at += 1)
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The rest of an array whose `[` is eaten. Outer `None`: not JSON; inner: not only strings.
    fn array(&mut self) -> Option<Option<Vec<String>>> {
        let mut strings = Some(Vec::new());
        self.blanks();
        if self.eat(b']').is_none() {
            loop {
                self.blanks();
                if self.peek() == Some(b'"') {
                    let value = self.string()?;
                    if let Some(list) = strings.as_mut() {
                        list.push(value);
                    }
                } else {
                    self.skip_value()?;
                    strings = None;
                }
                self.blanks();
                if self.eat(b',').is_none() {
                    self.eat(b']')?;
                    break;
                }
            }
        }
        self.blanks();
        self.peek().is_none().then_some(strings)
    }

    /// Passes over one value of any kind, with a stack of open brackets instead of recursion.
    fn skip_value(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            // A value starts here.
            self.blanks();
            match self.peek()? {
                b'[' => {
                    self.at += 1;
                    self.blanks();
                    if self.eat(b']').is_none() {
                        open.push(b']');
                        if open.len() > MAX_DEPTH {
                            return None;
                        }
                        continue;
                    }
                }
                b'{' => {
                    self.at += 1;
                    self.blanks();
                    if self.eat(b'}').is_none() {
                        open.push(b'}');
                        if open.len() > MAX_DEPTH {
                            return None;
                        }
                        self.member_name()?;
                        continue;
                    }
                }
                b'"' => drop(self.string()?),
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => self.number()?,
            }
            // A value has ended: close brackets, or go on with the next element.
            loop {
                let Some(close) = open.last().copied() else {
                    return Some(());
                };
                self.blanks();
                if self.eat(b',').is_some() {
                    if close == b'}' {
                        self.blanks();
                        self.member_name()?;
                    }
                    break;
                }
                self.eat(close)?;
                open.pop();
            }
        }
    }

    fn member_name(&mut self) -> Option<()> {
        self.string()?;
        self.blanks();
        self.eat(b':')
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    /// A number that fits a double (a larger one is an error of the reference's decoder too).
    fn number(&mut self) -> Option<()> {
        let start = self.at;
        let _ = self.eat(b'-');
        if self.eat(b'0').is_none() {
            self.digits()?;
        }
        if self.eat(b'.').is_some() {
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = std::str::from_utf8(self.bytes.get(start..self.at)?).ok()?;
        text.parse::<f64>().ok()?.is_finite().then_some(())
    }

    /// A string with its quotes; control characters must be escaped.
    fn string(&mut self) -> Option<String> {
        self.eat(b'"')?;
        let mut out: Vec<u8> = Vec::new();
        loop {
            let byte = self.peek()?;
            self.at += 1;
            match byte {
                b'"' => return String::from_utf8(out).ok(),
                b'\\' => {
                    let c = self.escape()?;
                    out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                0..=0x1f => return None,
                other => out.push(other),
            }
        }
    }

    /// What a backslash stands for; half a surrogate pair gives the replacement character.
    fn escape(&mut self) -> Option<char> {
        let byte = self.peek()?;
        self.at += 1;
        Some(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = self.hex4()?;
                if let Some(c) = char::from_u32(unit) {
                    return Some(c);
                }
                self.low_surrogate(unit).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            _ => return None,
        })
    }

    /// Joins a high surrogate with a following `\uXXXX`; eats that only when the pair is good.
    fn low_surrogate(&mut self, high: u32) -> Option<char> {
        if !(0xd800..0xdc00).contains(&high) || !self.bytes.get(self.at..)?.starts_with(b"\\u") {
            return None;
        }
        let mark = self.at;
        self.at += 2;
        let low = self.hex4().filter(|low| (0xdc00..0xe000).contains(low));
        let joined = low.and_then(|low| char::from_u32(0x1_0000 + ((high - 0xd800) << 10) + (low - 0xdc00)));
        if joined.is_none() {
            self.at = mark;
        }
        joined
    }

    fn hex4(&mut self) -> Option<u32> {
        let mut value = 0;
        for _ in 0..4 {
            let digit = char::from(self.peek()?).to_digit(16)?;
            value = value * 16 + digit;
            self.at += 1;
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays() {
        assert_eq!(
            string_array(r#" ["a", "b\n\u00e9\ud83d\ude00"] "#),
            Ok(vec!["a".into(), "b\né😀".into()])
        );
        assert_eq!(string_array("[]"), Ok(vec![]));
        assert_eq!(string_array(r#"["a", 1]"#), Err(ArrayError::NotStrings));
        assert_eq!(string_array(r#"[["a"], {"b": [null, true, -1.5e3]}]"#), Err(ArrayError::NotStrings));
        for bad in
            ["", "[", "['a']", r#"["a",]"#, r#"["a"] x"#, r#"["a" "b"]"#, "[1e999]", r#"["\x"]"#, "[01]"]
        {
            assert_eq!(string_array(bad), Err(ArrayError::NotArray), "{bad}");
        }
        assert_eq!(string_array(r#"["\ud83d"]"#), Ok(vec!["\u{fffd}".into()]));
        assert_eq!(string_array(&"[".repeat(1_000_000)), Err(ArrayError::NotArray));
    }

    #[test]
    fn members() {
        assert_eq!(string_member(r#"{"a": [1], "syntax": "x", "b": {}}"#, "syntax").as_deref(), Some("x"));
        assert_eq!(string_member(r#"{"syntax": "x"} y"#, "syntax"), None);
        assert_eq!(string_member(r#"{"syntax": 1}"#, "syntax"), None);
    }
}
