//! `spec.secrets` and `spec.ssh`: what steps may mount for the time that they run.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// A secret that a step can mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildSecret {
    /// Its name in the Dockerfile (`RUN --mount=type=secret,id=...`), 1 to 128 characters of `[A-Za-z0-9_.-]`, not beginning
    /// with `.` or `-`.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub id: String,
    /// Name of the Secret, in the namespace of this object; the service account must list it in its `secrets`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub secret_name: String,
    /// Key in the Secret whose value is mounted; a value has at most 500 KiB.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A private key that a step can sign with, and never sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SshKey {
    /// Name of the agent in the Dockerfile (`RUN --mount=type=ssh,id=...`), 1 to 128 characters of `[A-Za-z0-9_.-]`, not
    /// beginning with `.` or `-`; `default` is the one of a mount without `id`.
    #[serde(default = "default_id")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"))]
    pub id: String,
    /// Name of the Secret, in the namespace of this object; the service account must list it in its `secrets`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub secret_name: String,
    /// Key in the Secret with the private key, without a passphrase: ed25519, ecdsa (nistp256, nistp384) or rsa (2048 to 4096
    /// bits), in OpenSSH's format, PKCS#8 or, for rsa, PKCS#1. The default is that of Secrets of type
    /// `kubernetes.io/ssh-auth`.
    #[serde(default = "ssh_privatekey")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

fn default_id() -> String {
    "default".to_owned()
}

fn ssh_privatekey() -> String {
    "ssh-privatekey".to_owned()
}
