//! What git is started with: settings of ours that win over a repository's own, and credentials for one server.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kiln_contract::source::{Git, Transport, origin};

use crate::error::Fault;
use crate::secrets::Secrets;

/// The usual certificate authorities, which a bundle of ours replaces in git: both go into one file.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Settings for every call. Nothing of a repository is executed, nothing of the machine is read.
const SETTINGS: [(&str, &str); 25] = [
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.autocrlf", "false"),
    ("core.symlinks", "true"),
    // Names that another file system would take for `.git` are refused.
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("core.askPass", "/bin/false"),
    ("credential.helper", ""),
    ("protocol.allow", "never"),
    ("protocol.ext.allow", "never"),
    ("protocol.file.allow", "never"),
    ("protocol.https.allow", "always"),
    ("protocol.ssh.allow", "always"),
    // Where a server sends us first may be another place; after that it must not.
    ("http.followRedirects", "initial"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
    // Objects are checked as they come. What is ignored are old writers' habits, harmless and common.
    ("fetch.fsckObjects", "true"),
    ("fetch.fsck.zeroPaddedFilemode", "ignore"),
    ("fetch.fsck.badTimezone", "ignore"),
    ("fetch.fsck.missingSpaceBeforeDate", "ignore"),
    ("advice.detachedHead", "false"),
    ("gc.auto", "0"),
    ("submodule.recurse", "false"),
];

/// Settings for Git LFS, where it is asked for.
const LFS: [(&str, &str); 4] = [
    ("filter.lfs.smudge", "git-lfs smudge -- %f"),
    ("filter.lfs.process", "git-lfs filter-process"),
    ("filter.lfs.required", "true"),
    ("lfs.skipdownloaderrors", "false"),
];

/// What git is started with.
pub(super) struct Environment {
    settings: Vec<(String, String)>,
    protocols: &'static str,
    home: PathBuf,
    ssh: Option<String>,
}

impl Environment {
    /// Writes what git reads from files: key, known hosts and certificates, below `work`.
    pub fn new(source: &Git, transport: Transport, secrets: &Secrets, work: &Path) -> Result<Self, Fault> {
        let home = work.join("home");
        std::fs::create_dir_all(&home)
            .map_err(|e| Fault::internal(format!("making {}: {e}", home.display())))?;
        let mut settings: Vec<(String, String)> =
            SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let authorization = secrets.authorization()?;
        match transport {
            Transport::Https => {
                if let Some(authorization) = authorization {
                    let header = format!("Authorization: {}", authorization.header());
                    settings.push((format!("http.{}/.extraHeader", origin(&source.url)), header));
                }
            }
            Transport::Http => {
                if authorization.is_some() {
                    return Err(Fault::invalid("spec.source.git: credentials go over https or ssh only"));
                }
                settings.push(("protocol.http.allow".to_owned(), "always".to_owned()));
            }
            Transport::Ssh => {}
        }
        if let Some(pem) = secrets.authorities() {
            let mut all = std::fs::read(AUTHORITIES).unwrap_or_default();
            all.push(b'\n');
            all.extend_from_slice(pem);
            settings.push(("http.sslCAInfo".to_owned(), write(&home.join("authorities.pem"), &all)?));
        }
        if source.lfs {
            settings.extend(LFS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        }
        // Submodules may be on ssh though the repository is not.
        let ssh = if transport == Transport::Ssh || secrets.ssh().is_ok() {
            let (key, hosts) = secrets.ssh()?;
            let key = write(&home.join("identity"), &key)?;
            let hosts = write(&home.join("known_hosts"), &hosts)?;
            Some(ssh_command(&key, &hosts))
        } else {
            None
        };
        let protocols = if transport == Transport::Http { "https:ssh:http" } else { "https:ssh" };
        Ok(Self { settings, protocols, home, ssh })
    }

    /// The environment, whole.
    pub fn variables(&self) -> Vec<(String, String)> {
        let home = self.home.display().to_string();
        let fixed = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("LC_ALL", "C"),
            ("HOME", home.as_str()),
            ("TMPDIR", home.as_str()),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "/bin/false"),
            ("SSH_ASKPASS", "/bin/false"),
            ("GIT_ALLOW_PROTOCOL", self.protocols),
            ("GIT_PROTOCOL_FROM_USER", "0"),
            ("GIT_SSH_VARIANT", "ssh"),
            // Without a key ssh is not spoken.
            ("GIT_SSH_COMMAND", self.ssh.as_deref().unwrap_or("/bin/false")),
            ("GIT_LFS_SKIP_SMUDGE", "0"),
        ];
        let mut all: Vec<(String, String)> =
            fixed.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        // These win over every file, and git hands them on to what it starts.
        all.push(("GIT_CONFIG_COUNT".to_owned(), self.settings.len().to_string()));
        for (number, (key, value)) in self.settings.iter().enumerate() {
            all.push((format!("GIT_CONFIG_KEY_{number}"), key.clone()));
            all.push((format!("GIT_CONFIG_VALUE_{number}"), value.clone()));
        }
        all
    }
}

/// ssh as git starts it, through a shell: the paths are ours. Only the key given is offered, only known hosts are trusted.
fn ssh_command(key: &str, hosts: &str) -> String {
    let options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "GlobalKnownHostsFile=/dev/null",
        "IdentitiesOnly=yes",
        "IdentityAgent=none",
        "PreferredAuthentications=publickey",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "ProxyCommand=none",
        "UpdateHostKeys=no",
        "ConnectTimeout=20",
        "ServerAliveInterval=15",
        "ServerAliveCountMax=4",
    ];
    let options: String = options.iter().map(|option| format!(" -o {option}")).collect();
    format!("ssh -F /dev/null{options} -o 'UserKnownHostsFile={hosts}' -i '{key}'")
}

/// A file for its owner alone; its path.
fn write(path: &Path, bytes: &[u8]) -> Result<String, Fault> {
    let failed = |e: std::io::Error| Fault::internal(format!("writing {}: {e}", path.display()));
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(failed)?;
    std::io::Write::write_all(&mut file, bytes).map_err(failed)?;
    path.to_str().map(str::to_owned).ok_or_else(|| Fault::internal("the workspace's path is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(url: &str) -> Git {
        Git { url: url.into(), reference: None, commit: None, depth: 1, submodules: false, lfs: false }
    }

    fn variables(url: &str, secrets: &Secrets) -> Result<Vec<(String, String)>, Fault> {
        let dir = tempfile::tempdir().expect("a directory");
        let source = source(url);
        let transport = source.check().expect("a good URL");
        Ok(Environment::new(&source, transport, secrets, dir.path())?.variables())
    }

    #[test]
    fn credentials_are_for_one_server_and_never_in_the_clear() {
        let secrets = Secrets::of(&[("username", "u"), ("password", "p")]).expect("fine");
        let all = variables("https://h:8443/a/b.git", &secrets).expect("fine");
        let key = all.iter().find(|(_, value)| value == "http.https://h:8443/.extraHeader").expect("scoped");
        let number = key.0.trim_start_matches("GIT_CONFIG_KEY_");
        let value =
            all.iter().find(|(key, _)| *key == format!("GIT_CONFIG_VALUE_{number}")).expect("a value");
        assert_eq!(value.1, "Authorization: Basic dTpw");
        assert!(variables("http://h/a", &secrets).is_err());
        let ssh = variables("https://h/a", &secrets).expect("fine");
        let command = ssh.iter().find(|(key, _)| key == "GIT_SSH_COMMAND").expect("set");
        assert_eq!(command.1, "/bin/false", "without a key there is no ssh");
    }

    #[test]
    fn ssh_trusts_only_known_hosts() {
        let secrets = Secrets::of(&[("identity", "K"), ("known_hosts", "h k")]).expect("fine");
        let all = variables("git@h:a", &secrets).expect("fine");
        let command = &all.iter().find(|(key, _)| key == "GIT_SSH_COMMAND").expect("set").1;
        for word in ["StrictHostKeyChecking=yes", "BatchMode=yes", "-F /dev/null", "UserKnownHostsFile="] {
            assert!(command.contains(word), "{command}");
        }
        assert!(variables("git@h:a", &Secrets::default()).is_err());
    }
}
