//! URLs as Go's `net/url` reads and writes them, as far as sources of a build need them. Pure.

/// The parts of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// In lower case; empty for a text without one.
    pub scheme: String,
    /// `user[:password]@host[:port]`, as written.
    pub authority: String,
    /// Decoded.
    pub path: String,
    /// After `?`, as written.
    pub query: String,
    /// After `#`, decoded.
    pub fragment: String,
    raw_path: String,
    /// A `?` with nothing after it.
    bare_query: bool,
}

impl Url {
    /// Reads a URL; `None` for one that is malformed: a broken escape, a control character, a blank in the host.
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return None;
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (scheme, rest) = match rest.split_once(':') {
            Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
            _ => (String::new(), rest),
        };
        let bare_query = rest.ends_with('?') && rest.matches('?').count() == 1;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, raw_path) = match rest.strip_prefix("//") {
            Some(rest) => rest.find('/').map_or((rest, ""), |at| rest.split_at(at)),
            None => ("", rest),
        };
        let host = authority.rsplit('@').next().unwrap_or_default();
        let port = host.rsplit(']').next().unwrap_or_default().split_once(':').map_or("", |(_, port)| port);
        if host.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}'])
            || !port.bytes().all(|b| b.is_ascii_digit())
        {
            return None;
        }
        percent_decode(authority)?;
        Some(Self {
            scheme,
            authority: authority.to_owned(),
            path: percent_decode(raw_path)?,
            query: query.to_owned(),
            fragment: percent_decode(fragment)?,
            raw_path: raw_path.to_owned(),
            bare_query,
        })
    }

    /// The URL without query and fragment, as Go writes it.
    pub fn without_options(&self) -> String {
        let mut out = String::new();
        if !self.scheme.is_empty() {
            out.push_str(&self.scheme);
            out.push(':');
            if !self.authority.is_empty() || !self.raw_path.is_empty() {
                out.push_str("//");
            }
        }
        out.push_str(&self.authority);
        let kept = |b: u8| b.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]%/".contains(&b);
        if self.raw_path.bytes().all(kept) {
            out.push_str(&self.raw_path);
        } else {
            for b in self.path.bytes() {
                if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b) {
                    out.push(char::from(b));
                } else {
                    out.push_str(&format!("%{b:02X}"));
                }
            }
        }
        if self.bare_query {
            out.push('?');
        }
        out
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

/// Replaces `%41` by `A`; bytes that are no UTF-8 become U+FFFD. `None` for a `%` without two hexadecimal digits.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            out.push(b);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (high, low) = (digit()?, digit()?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// The pairs of a query, decoded; malformed ones are left out, as `url.Values` does.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode(&text.replace('+', " "));
    query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.contains(';'))
        .filter_map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_comes_back() {
        for (text, expected) in [
            ("HTTPS://h/a%20b?x#y", "https://h/a%20b"),
            ("https://h/a b", "https://h/a%20b"),
            ("https://u:p@h:8/x?", "https://u:p@h:8/x?"),
            ("git://", "git:"),
            ("github.com/a/b#c", "github.com/a/b"),
        ] {
            assert_eq!(
                Url::parse(text).map(|url| url.without_options()).as_deref(),
                Some(expected),
                "{text}"
            );
        }
        for bad in ["https://h/%zz", "https://h:x/", "https://a b/", "https://h/\u{1}"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn queries() {
        let pairs = query_pairs("a=1&b&&c=x+y%21&d=%");
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("a", "1"), ("b", ""), ("c", "x y!")]);
    }
}
