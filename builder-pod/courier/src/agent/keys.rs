//! Private keys: reading them (OpenSSH's PROTOCOL.key, PKCS#8, PKCS#1), and signing with ring.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::rsa::{KeyPairComponents, PublicKeyComponents};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512, RsaEncoding, RsaKeyPair,
};

use super::{put, take};

/// Flags of a request to sign with an RSA key.
const RSA_SHA2_256: u32 = 2;
const RSA_SHA2_512: u32 = 4;

/// What is wrong with a private key. Nothing of the key is in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It needs a passphrase.
    #[error(
        "it is encrypted with a passphrase, which nobody can type here; use a key without (ssh-keygen -p -N '' -f KEY)"
    )]
    Encrypted,
    /// A format that is not read.
    #[error(
        "expected a private key in OpenSSH's format (-----BEGIN OPENSSH PRIVATE KEY-----), in PKCS#8 or, for RSA, in PKCS#1; ssh-keygen -p -f KEY converts others"
    )]
    Format,
    /// A kind of key that can't sign here.
    #[error(
        "keys of this kind can't sign here; the kinds are ed25519, ecdsa on nistp256 and nistp384, and rsa of 2048 to 4096 bits"
    )]
    Kind,
    /// The numbers in it are no key.
    #[error("it is damaged: it is no valid key")]
    Invalid,
}

/// A key that can sign.
pub struct Key {
    /// As ssh has it on the wire.
    public: Vec<u8>,
    comment: String,
    signer: Signer,
}

enum Signer {
    Ed25519(Ed25519KeyPair),
    Ecdsa(&'static Curve, EcdsaKeyPair),
    /// Boxed: it is large.
    Rsa(Box<RsaKeyPair>),
}

/// A curve of ecdsa.
struct Curve {
    name: &'static str,
    algorithm: &'static str,
    signing: &'static EcdsaSigningAlgorithm,
    /// Bytes of a number.
    bytes: usize,
}

static CURVES: [Curve; 2] = [
    Curve {
        name: "nistp256",
        algorithm: "ecdsa-sha2-nistp256",
        signing: &ECDSA_P256_SHA256_FIXED_SIGNING,
        bytes: 32,
    },
    Curve {
        name: "nistp384",
        algorithm: "ecdsa-sha2-nistp384",
        signing: &ECDSA_P384_SHA384_FIXED_SIGNING,
        bytes: 48,
    },
];

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("comment", &self.comment).finish_non_exhaustive()
    }
}

impl Key {
    /// Reads a private key; `name` is its comment when it has none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8], name: &str) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Format)?;
        let (label, body) = pem(text)?;
        let (signer, comment) = match label {
            "OPENSSH PRIVATE KEY" => openssh(&body)?,
            "RSA PRIVATE KEY" => (
                Signer::Rsa(Box::new(RsaKeyPair::from_der(&body).map_err(|_| KeyError::Kind)?)),
                String::new(),
            ),
            "PRIVATE KEY" => (pkcs8(&body)?, String::new()),
            "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Encrypted),
            _ => return Err(KeyError::Format),
        };
        let comment = if comment.is_empty() { name.to_owned() } else { comment };
        Ok(Self { public: signer.public(), comment, signer })
    }

    /// The public key, as ssh has it on the wire.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// What people call it.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// Signs: the algorithm's name and the signature. `None` for flags that this key has no algorithm for; the old RSA
    /// signatures over SHA-1 are not made.
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<(&'static str, Vec<u8>)> {
        let random = SystemRandom::new();
        match &self.signer {
            Signer::Ed25519(key) => Some(("ssh-ed25519", key.sign(data).as_ref().to_vec())),
            Signer::Ecdsa(curve, key) => {
                let signature = key.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at_checked(curve.bytes)?;
                Some((curve.algorithm, wire(&[&mpint(r), &mpint(s)])))
            }
            Signer::Rsa(key) => {
                let (algorithm, encoding): (_, &'static dyn RsaEncoding) = match flags {
                    _ if flags & RSA_SHA2_512 != 0 => ("rsa-sha2-512", &RSA_PKCS1_SHA512),
                    _ if flags & RSA_SHA2_256 != 0 => ("rsa-sha2-256", &RSA_PKCS1_SHA256),
                    _ => return None,
                };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(encoding, &random, data, &mut signature).ok()?;
                Some((algorithm, signature))
            }
        }
    }
}

impl Signer {
    fn public(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => wire(&[b"ssh-ed25519", key.public_key().as_ref()]),
            Self::Ecdsa(curve, key) => {
                wire(&[curve.algorithm.as_bytes(), curve.name.as_bytes(), key.public_key().as_ref()])
            }
            Self::Rsa(key) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(key.public());
                wire(&[b"ssh-rsa", &mpint(&e), &mpint(&n)])
            }
        }
    }
}

/// The label and the content of a PEM text. Line ends do not matter: Secrets made by hand lose or change them.
fn pem(text: &str) -> Result<(&str, Vec<u8>), KeyError> {
    let rest = text.trim_start().strip_prefix("-----BEGIN ").ok_or(KeyError::Format)?;
    let (label, rest) = rest.split_once("-----").ok_or(KeyError::Format)?;
    let (body, _) = rest.split_once("-----END ").ok_or(KeyError::Format)?;
    // Only the old formats have headers.
    if body.contains("ENCRYPTED") && body.contains(':') {
        return Err(KeyError::Encrypted);
    }
    let letters: String = body.split_whitespace().collect();
    Ok((label, STANDARD.decode(letters).map_err(|_| KeyError::Invalid)?))
}

/// OpenSSH's own format (PROTOCOL.key), of one key without a passphrase. Gives its comment as well.
fn openssh(blob: &[u8]) -> Result<(Signer, String), KeyError> {
    let mut rest = blob.strip_prefix(b"openssh-key-v1\0").ok_or(KeyError::Invalid)?;
    let next = |from: &mut _| take(from).ok_or(KeyError::Invalid);
    if next(&mut rest)? != b"none" {
        return Err(KeyError::Encrypted);
    }
    let (_kdf, _options) = (next(&mut rest)?, next(&mut rest)?);
    rest = rest.strip_prefix(&[0, 0, 0, 1]).ok_or(KeyError::Invalid)?;
    let _public = next(&mut rest)?;
    let mut private = next(&mut rest)?;
    // The same number twice: here only a mark of a whole key.
    let (check, inner) = private.split_at_checked(8).ok_or(KeyError::Invalid)?;
    if check[..4] != check[4..] {
        return Err(KeyError::Invalid);
    }
    private = inner;
    let kind = next(&mut private)?;
    let signer = match kind {
        b"ssh-ed25519" => {
            let (public, both) = (next(&mut private)?, next(&mut private)?);
            let seed = both.get(..32).ok_or(KeyError::Invalid)?;
            let key = Ed25519KeyPair::from_seed_and_public_key(seed, public);
            Signer::Ed25519(key.map_err(|_| KeyError::Invalid)?)
        }
        b"ssh-rsa" => {
            let mut number = || next(&mut private).map(plain);
            let [n, e, d, q_inverse, p, q] =
                [number()?, number()?, number()?, number()?, number()?, number()?];
            let (d_p, d_q) = (remainder(d, p)?, remainder(d, q)?);
            let components = KeyPairComponents {
                public_key: PublicKeyComponents { n, e },
                d,
                p,
                q,
                dP: &d_p[..],
                dQ: &d_q[..],
                qInv: q_inverse,
            };
            Signer::Rsa(Box::new(RsaKeyPair::from_components(&components).map_err(|_| KeyError::Kind)?))
        }
        kind => {
            let curve = CURVES.iter().find(|c| c.algorithm.as_bytes() == kind).ok_or(KeyError::Kind)?;
            let (_name, point) = (next(&mut private)?, next(&mut private)?);
            let number = plain(next(&mut private)?);
            // As many bytes as the curve has: a number in ssh has no zeros in front.
            let missing = curve.bytes.checked_sub(number.len()).ok_or(KeyError::Invalid)?;
            let number = [vec![0; missing].as_slice(), number].concat();
            let random = SystemRandom::new();
            let key = EcdsaKeyPair::from_private_key_and_public_key(curve.signing, &number, point, &random);
            Signer::Ecdsa(curve, key.map_err(|_| KeyError::Invalid)?)
        }
    };
    Ok((signer, String::from_utf8_lossy(next(&mut private)?).into_owned()))
}

fn pkcs8(der: &[u8]) -> Result<Signer, KeyError> {
    if let Ok(key) = RsaKeyPair::from_pkcs8(der) {
        return Ok(Signer::Rsa(Box::new(key)));
    }
    if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
        return Ok(Signer::Ed25519(key));
    }
    let random = SystemRandom::new();
    let ecdsa = |curve: &'static Curve| {
        let key = EcdsaKeyPair::from_pkcs8(curve.signing, der, &random).ok()?;
        Some(Signer::Ecdsa(curve, key))
    };
    CURVES.iter().find_map(ecdsa).ok_or(KeyError::Kind)
}

/// A number without zeros in front.
fn plain(number: &[u8]) -> &[u8] {
    let first = number.iter().position(|b| *b != 0).unwrap_or(number.len());
    &number[first..]
}

/// A positive number as ssh has it: a zero in front of a first bit that is set.
fn mpint(number: &[u8]) -> Vec<u8> {
    let number = plain(number);
    let sign = number.first().is_some_and(|b| b & 0x80 != 0).then_some(0);
    sign.into_iter().chain(number.iter().copied()).collect()
}

/// Byte strings, one behind the other.
fn wire(strings: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for string in strings {
        // A key is shorter than 4 GiB.
        let _ = put(&mut out, string);
    }
    out
}

/// `number` modulo `prime` - 1, both big-endian without zeros in front: by long division, bit for bit. OpenSSH's format
/// leaves it out.
fn remainder(number: &[u8], prime: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut modulus = prime.to_vec();
    match modulus.last_mut() {
        // A prime of an RSA key is odd.
        Some(last) if *last & 1 == 1 && prime.len() > 1 => *last -= 1,
        _ => return Err(KeyError::Invalid),
    }
    // One byte more than the modulus, for what is shifted out.
    modulus.insert(0, 0);
    let mut rest = vec![0u8; modulus.len()];
    for bit in number.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)) {
        let mut carry = bit;
        for byte in rest.iter_mut().rev() {
            (*byte, carry) = (*byte << 1 | carry, *byte >> 7);
        }
        if rest >= modulus {
            let mut borrow = false;
            for (byte, less) in rest.iter_mut().zip(&modulus).rev() {
                let (once, first) = byte.overflowing_sub(*less);
                let (twice, second) = once.overflowing_sub(u8::from(borrow));
                (*byte, borrow) = (twice, first || second);
            }
        }
    }
    Ok(plain(&rest).to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_division() {
        for (number, prime, expected) in
            [(100_u32, 7_u32, 4_u32), (1, 0x1_0001, 1), (0xffff_ffff, 0x0101, 255), (65536, 0x1_0001, 0)]
        {
            let bytes = |n: u32| plain(&n.to_be_bytes()).to_vec();
            let prime = if prime < 256 { vec![0, u8::try_from(prime).expect("small")] } else { bytes(prime) };
            assert_eq!(remainder(&bytes(number), &prime), Ok(bytes(expected)), "{number} {prime:?}");
        }
        assert_eq!(remainder(&[1], &[4, 4]), Err(KeyError::Invalid));
    }

    #[test]
    fn numbers_of_ssh() {
        assert_eq!(mpint(&[0, 0, 0x7f]), [0x7f]);
        assert_eq!(mpint(&[0x80, 1]), [0, 0x80, 1]);
        assert_eq!(mpint(&[0]), Vec::<u8>::new());
    }
}
