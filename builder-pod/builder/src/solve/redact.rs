//! Keeps secrets out of what a step prints, however its output is cut into pieces. Exact values only: a step that encodes
//! or splits one shows it.

use std::sync::Arc;

use crate::engine::Secret;

/// Shorter values would be found everywhere, and tell by that what they are.
const SHORTEST: usize = 8;
/// What stands in the place of a secret.
const IN_PLACE: &[u8] = b"***";

/// Looks for all secrets at once (Knuth, Morris and Pratt): each byte is looked at once per secret, and at most the length of
/// the longest one is held back.
#[derive(Debug)]
pub(super) struct Redactor {
    needles: Vec<Search>,
    /// What is not given out yet, and which of it is part of a secret.
    held: Vec<(u8, bool)>,
    /// The last byte that was given out was part of a secret.
    hiding: bool,
}

/// A secret that is looked for: made once, whoever looks for it.
#[derive(Debug)]
pub(super) struct Needle {
    secret: Secret,
    /// For each length of a beginning: the longest shorter one that it ends with.
    shorter: Vec<usize>,
}

/// A search for one.
#[derive(Debug)]
struct Search {
    needle: Arc<Needle>,
    /// How much of it the bytes seen so far end with.
    seen: usize,
}

impl Needle {
    /// `None` for one that is too short to be looked for.
    pub fn new(secret: &Secret) -> Option<Self> {
        // `$(cat file)` drops line ends.
        let bytes = &secret.0;
        let end = bytes.iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |at| at + 1);
        let bytes = if end >= SHORTEST { &bytes[..end] } else { &bytes[..] };
        if bytes.len() < SHORTEST {
            return None;
        }
        let mut shorter = vec![0; bytes.len()];
        let mut length = 0;
        for at in 1..bytes.len() {
            while length > 0 && bytes[at] != bytes[length] {
                length = shorter[length - 1];
            }
            length += usize::from(bytes[at] == bytes[length]);
            shorter[at] = length;
        }
        Some(Self { secret: Secret(bytes.to_vec()), shorter })
    }

    /// Whether both are the same.
    pub fn is(&self, other: &Self) -> bool {
        self.secret == other.secret
    }
}

impl Search {
    fn length(&self) -> usize {
        self.needle.secret.0.len()
    }

    /// How many of the bytes seen last may be the beginning of another one.
    fn begun(&self) -> usize {
        if self.seen == self.length() { self.needle.shorter[self.seen - 1] } else { self.seen }
    }

    /// Takes a byte; whether the secret ends with it.
    fn take(&mut self, byte: u8) -> bool {
        let bytes = &self.needle.secret.0;
        while self.seen > 0 && (self.seen == bytes.len() || bytes[self.seen] != byte) {
            self.seen = self.needle.shorter[self.seen - 1];
        }
        self.seen += usize::from(bytes[self.seen] == byte);
        self.seen == bytes.len()
    }
}

impl Redactor {
    /// For these secrets.
    pub fn new(needles: Vec<Arc<Needle>>) -> Self {
        let mut redactor = Self { needles: Vec::new(), held: Vec::new(), hiding: false };
        redactor.add(needles);
        redactor
    }

    /// How many it looks for.
    pub fn count(&self) -> usize {
        self.needles.len()
    }

    /// Looks for more, from now on.
    pub fn add(&mut self, needles: Vec<Arc<Needle>>) {
        self.needles.extend(needles.into_iter().map(|needle| Search { needle, seen: 0 }));
    }

    /// Takes output; gives what of it may be shown by now.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        if self.needles.is_empty() {
            return bytes.to_vec();
        }
        for byte in bytes {
            self.held.push((*byte, false));
            for needle in &mut self.needles {
                if needle.take(*byte) {
                    let start = self.held.len() - needle.length();
                    self.held[start..].iter_mut().for_each(|(_, hidden)| *hidden = true);
                }
            }
        }
        // What may be the beginning of a secret waits for the rest.
        let waiting = self.needles.iter().map(Search::begun).max().unwrap_or(0);
        self.give(self.held.len() - waiting)
    }

    /// The rest, when no more comes.
    pub fn finish(&mut self) -> Vec<u8> {
        self.give(self.held.len())
    }

    fn give(&mut self, count: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(count);
        for (byte, hidden) in self.held.drain(..count) {
            if !hidden {
                out.push(byte);
            } else if !self.hiding {
                out.extend_from_slice(IN_PLACE);
            }
            self.hiding = hidden;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needle(secret: &[u8]) -> Option<Arc<Needle>> {
        Needle::new(&Secret(secret.to_vec())).map(Arc::new)
    }

    /// The output cut into pieces of a size.
    fn redact(secrets: &[&str], output: &str, piece: usize) -> String {
        let mut redactor =
            Redactor::new(secrets.iter().flat_map(|secret| needle(secret.as_bytes())).collect());
        let mut out = Vec::new();
        output.as_bytes().chunks(piece).for_each(|bytes| out.extend(redactor.take(bytes)));
        out.extend(redactor.finish());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secrets_are_hidden_however_the_output_is_cut() {
        for (secrets, output, expected) in [
            (&["hush-hush"][..], "a hush-hush b\n", "a *** b\n"),
            (&["hush-hush\n"], "x=hush-hush\nhush-hush.", "x=***\n***."),
            (&["short"], "short", "short"),
            (&["seven77\n"], "seven77\nseven77", "***seven77"),
            (&["password", "password123"], "password123 password1", "*** ***1"),
            (&["abcabcabd"], "abcabcabcabd abcabcab", "abc*** abcabcab"),
            (&["aaaaaaaa"], "aaaaaaaaaaaab", "***b"),
            (&["12345678", "56789abc"], "0123456789abcd", "0***d"),
            (&["line one\nline two\n"], "line one\nline two\n", "***\n"),
            (&[], "nothing to hide", "nothing to hide"),
        ] {
            for piece in [1, 2, 3, 7, 100] {
                assert_eq!(redact(secrets, output, piece), expected, "{secrets:?} {piece}");
            }
        }
    }

    #[test]
    fn only_what_may_become_a_secret_waits() {
        let mut redactor = Redactor::new(needle(b"hush-hush").into_iter().collect());
        assert_eq!(redactor.take(b"progress 10%\rhu"), b"progress 10%\r");
        assert_eq!(redactor.take(b"t"), b"hut");
        assert_eq!(redactor.take(b"hush-hush"), b"***");
        redactor.add(needle(b"another one").into_iter().collect());
        assert_eq!(redactor.take(b" another one"), b" ***");
    }

    #[test]
    fn time_is_linear_in_the_output() {
        let secret = [vec![b'a'; 500 << 10], b"b".to_vec()].concat();
        let mut redactor = Redactor::new(needle(&secret).into_iter().collect());
        let output = vec![b'a'; 4 << 20];
        let started = std::time::Instant::now();
        let shown: usize = output.chunks(4096).map(|bytes| redactor.take(bytes).len()).sum();
        assert_eq!(shown + redactor.finish().len(), output.len());
        // A tenth of a second when optimised; a quadratic search would take minutes.
        assert!(started.elapsed() < std::time::Duration::from_secs(30));
    }
}
