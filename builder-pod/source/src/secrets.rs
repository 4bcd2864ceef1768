//! The source's credentials: the keys of one Secret, under the names that Flux and Kubernetes give them.

use std::collections::BTreeMap;
use std::path::Path;

use kiln_registry::Authorization;

use crate::error::{Fault, Kind};

/// Bytes of a Secret at most: Kubernetes' own limit.
const MAX_SECRET: u64 = 1 << 20;
/// Keys that are looked at.
const KNOWN: [&str; 10] = [
    "username",
    "password",
    "bearerToken",
    "identity",
    "ssh-privatekey",
    "known_hosts",
    "ca.crt",
    "caFile",
    "tls.crt",
    "certFile",
];

/// What a Secret holds.
#[derive(Clone, Default)]
pub struct Secrets {
    keys: BTreeMap<&'static str, Vec<u8>>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl Secrets {
    /// Reads the files of a mounted Secret; none when there is no such directory.
    ///
    /// # Errors
    /// A file can't be read, or asks for something that Kiln does not do.
    pub fn read(dir: &Path) -> Result<Self, Fault> {
        let mut found = Self::default();
        for key in KNOWN {
            let path = dir.join(key);
            match std::fs::metadata(&path) {
                Ok(meta) if meta.len() > MAX_SECRET => {
                    return Err(Fault::invalid(format!(
                        "the source's Secret: {key} has more than {MAX_SECRET} bytes"
                    )));
                }
                Ok(_) => {
                    let bytes = std::fs::read(&path)
                        .map_err(|e| Fault::internal(format!("reading {}: {e}", path.display())))?;
                    found.keys.insert(key, bytes);
                }
                Err(_) => {}
            }
        }
        found.check()?;
        Ok(found)
    }

    /// Of these keys and values, for tests.
    ///
    /// # Errors
    /// As [`Secrets::read`].
    pub fn of(pairs: &[(&'static str, &str)]) -> Result<Self, Fault> {
        let keys = pairs.iter().map(|(key, value)| (*key, value.as_bytes().to_vec())).collect();
        let found = Self { keys };
        found.check()?;
        Ok(found)
    }

    fn check(&self) -> Result<(), Fault> {
        for key in ["tls.crt", "certFile"] {
            if self.keys.contains_key(key) {
                return Err(Fault::invalid(format!(
                    "the source's Secret has {key}: client certificates are not supported; use a user and a password, or a token"
                )));
            }
        }
        for key in ["username", "password", "bearerToken"] {
            self.line(key)?;
        }
        Ok(())
    }

    /// A value of one line: what ends it would begin another header.
    fn line(&self, key: &str) -> Result<Option<String>, Fault> {
        let Some(bytes) = self.keys.get(key) else { return Ok(None) };
        let text = String::from_utf8(bytes.clone()).unwrap_or_default();
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(Fault::invalid(format!("the source's Secret: expected one line of text in {key}")));
        }
        Ok(Some(text.to_owned()))
    }

    /// What a web server is told.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a value that is no line of text.
    pub fn authorization(&self) -> Result<Option<Authorization>, Fault> {
        if let Some(token) = self.line("bearerToken")? {
            return Ok(Some(Authorization::Bearer(token)));
        }
        let Some(password) = self.line("password")? else { return Ok(None) };
        // Servers that take a token as the password ask for any name.
        let user = self.line("username")?.unwrap_or_else(|| "git".to_owned());
        Ok(Some(Authorization::Basic { user, password }))
    }

    /// Certificates, PEM, that are trusted beside the usual ones.
    pub fn authorities(&self) -> Option<&[u8]> {
        self.keys.get("ca.crt").or_else(|| self.keys.get("caFile")).map(Vec::as_slice)
    }

    /// Private key and known hosts, each ending in a newline as ssh wants it.
    ///
    /// # Errors
    /// [`Kind::Unauthorized`] when one is missing.
    pub fn ssh(&self) -> Result<(Vec<u8>, Vec<u8>), Fault> {
        let missing = |what: &str| {
            let text = format!("git over ssh needs a Secret (spec.source.git.secretName) with {what}");
            Fault::new(Kind::Unauthorized, text)
        };
        let key = self.keys.get("identity").or_else(|| self.keys.get("ssh-privatekey"));
        let key = key.ok_or_else(|| missing("a private key in identity or ssh-privatekey"))?;
        let hosts = self.keys.get("known_hosts").filter(|text| !text.trim_ascii().is_empty());
        let hosts = hosts.ok_or_else(|| {
            missing("the server's keys in known_hosts (`ssh-keyscan HOST` prints them; compare them before you trust them)")
        })?;
        Ok((lines(key), lines(hosts)))
    }
}

fn lines(text: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = text.iter().copied().filter(|b| *b != b'\r').collect();
    if out.last() != Some(&b'\n') {
        out.push(b'\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_flux_and_of_kubernetes() {
        let flux = Secrets::of(&[("identity", "KEY"), ("known_hosts", "h ssh-ed25519 A\r\n")]).expect("fine");
        assert_eq!(flux.ssh().expect("fine"), (b"KEY\n".to_vec(), b"h ssh-ed25519 A\n".to_vec()));
        let kubernetes = Secrets::of(&[("ssh-privatekey", "KEY\n"), ("known_hosts", "x")]).expect("fine");
        assert_eq!(kubernetes.ssh().expect("fine").0, b"KEY\n");
        let basic = Secrets::of(&[("username", "u"), ("password", "p\n"), ("ca.crt", "PEM")]).expect("fine");
        let header = basic.authorization().expect("fine").expect("some").header();
        assert_eq!((header.as_str(), basic.authorities()), ("Basic dTpw", Some(b"PEM".as_slice())));
        let token = Secrets::of(&[("bearerToken", "t")]).expect("fine").authorization().expect("fine");
        assert_eq!(token.expect("some").header(), "Bearer t");
        assert!(!format!("{basic:?}").contains("PEM"));
    }

    #[test]
    fn what_is_missing_or_can_not_be_done_is_named() {
        let none = Secrets::default().ssh().expect_err("no key");
        assert!(none.kind == Kind::Unauthorized && none.message.contains("identity"), "{none}");
        let hosts = Secrets::of(&[("identity", "KEY")]).expect("fine").ssh().expect_err("no hosts");
        assert!(hosts.message.contains("known_hosts") && hosts.message.contains("ssh-keyscan"), "{hosts}");
        assert!(Secrets::of(&[("certFile", "x")]).is_err());
        assert!(Secrets::of(&[("password", "a\nX-Evil: b")]).is_err());
    }
}
