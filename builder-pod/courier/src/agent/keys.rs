//! Private keys: reading them, and signing.

use rsa::pkcs1::DecodeRsaPrivateKey as _;
use rsa::pkcs1v15::SigningKey;
use rsa::pkcs8::DecodePrivateKey as _;
use rsa::sha2::{Sha256, Sha512};
use rsa::signature::{RandomizedSigner as _, SignatureEncoding as _, Signer as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{BigUint, RsaPrivateKey};
use ssh_key::private::KeypairData;
use ssh_key::public::{KeyData, RsaPublicKey};
use ssh_key::rand_core::OsRng;
use ssh_key::{Mpint, PrivateKey, PublicKey};

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
        "expected a private key in OpenSSH's format (-----BEGIN OPENSSH PRIVATE KEY-----), or an RSA key in PKCS#1 or PKCS#8; ssh-keygen -p -f KEY converts others"
    )]
    Format,
    /// A kind of key that can't sign here.
    #[error("keys of this kind can't sign here; the kinds are ed25519, ecdsa and rsa")]
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
    /// Boxed: it is large.
    Rsa(Box<RsaPrivateKey>),
    Other(Box<PrivateKey>),
}

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
        let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Format)?.trim();
        // Secrets made by hand lose the last line end, or get CRs.
        let text = format!("{}\n", text.replace('\r', ""));
        if text.contains("ENCRYPTED") {
            return Err(KeyError::Encrypted);
        }
        if text.starts_with("-----BEGIN RSA PRIVATE KEY-----") {
            let key = RsaPrivateKey::from_pkcs1_pem(&text).map_err(|_| KeyError::Invalid)?;
            return Self::rsa(key, name);
        }
        if text.starts_with("-----BEGIN PRIVATE KEY-----") {
            let key = RsaPrivateKey::from_pkcs8_pem(&text).map_err(|_| KeyError::Format)?;
            return Self::rsa(key, name);
        }
        if !text.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----") {
            return Err(KeyError::Format);
        }
        let key = PrivateKey::from_openssh(&text).map_err(|_| KeyError::Invalid)?;
        if key.is_encrypted() {
            return Err(KeyError::Encrypted);
        }
        let comment = Some(key.comment()).filter(|c| !c.is_empty()).unwrap_or(name).to_owned();
        match key.key_data() {
            KeypairData::Rsa(pair) => {
                let number = |number: &Mpint| {
                    number.as_positive_bytes().map(BigUint::from_bytes_be).ok_or(KeyError::Invalid)
                };
                let primes = vec![number(&pair.private.p)?, number(&pair.private.q)?];
                let (n, e, d) = (number(&pair.public.n)?, number(&pair.public.e)?, number(&pair.private.d)?);
                let key = RsaPrivateKey::from_components(n, e, d, primes).map_err(|_| KeyError::Invalid)?;
                Self::rsa(key, &comment)
            }
            KeypairData::Ed25519(_) | KeypairData::Ecdsa(_) => {
                let public = key.public_key().to_bytes().map_err(|_| KeyError::Invalid)?;
                Ok(Self { public, comment, signer: Signer::Other(Box::new(key)) })
            }
            _ => Err(KeyError::Kind),
        }
    }

    fn rsa(key: RsaPrivateKey, comment: &str) -> Result<Self, KeyError> {
        key.validate().map_err(|_| KeyError::Invalid)?;
        let number = |number: &BigUint| {
            Mpint::from_positive_bytes(&number.to_bytes_be()).map_err(|_| KeyError::Invalid)
        };
        let public = RsaPublicKey { e: number(key.e())?, n: number(key.n())? };
        let public = PublicKey::new(KeyData::Rsa(public), "").to_bytes().map_err(|_| KeyError::Invalid)?;
        Ok(Self { public, comment: comment.to_owned(), signer: Signer::Rsa(Box::new(key)) })
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
    pub fn sign(&self, data: &[u8], flags: u32) -> Option<(String, Vec<u8>)> {
        match &self.signer {
            // With random numbers, so that the time it takes tells nothing of the key.
            Signer::Rsa(key) if flags & RSA_SHA2_512 != 0 => {
                let signer = SigningKey::<Sha512>::new(key.as_ref().clone());
                Some(("rsa-sha2-512".to_owned(), signer.try_sign_with_rng(&mut OsRng, data).ok()?.to_vec()))
            }
            Signer::Rsa(key) if flags & RSA_SHA2_256 != 0 => {
                let signer = SigningKey::<Sha256>::new(key.as_ref().clone());
                Some(("rsa-sha2-256".to_owned(), signer.try_sign_with_rng(&mut OsRng, data).ok()?.to_vec()))
            }
            Signer::Rsa(_) => None,
            Signer::Other(key) => {
                let signature: ssh_key::Signature = key.try_sign(data).ok()?;
                Some((signature.algorithm().as_str().to_owned(), signature.as_bytes().to_vec()))
            }
        }
    }
}
