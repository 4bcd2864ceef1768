//! What git is started with: the one list of rules, settings of ours that win over a repository's own, and what it is given
//! for one server.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use kiln_contract::policy::{Network, Proxy};
use kiln_contract::source::{Git, Transport, origin};

use crate::error::Fault;

/// What git may use beside the URL. By default nothing: no login, no ssh, no settings of the machine.
#[derive(Clone, Default)]
pub struct Access {
    /// Value of the header `Authorization`, for the URL's server alone, and over https alone.
    pub authorization: Option<String>,
    /// Certificates, PEM, that are trusted beside the usual ones.
    pub authorities: Option<Vec<u8>>,
    /// The proxy for http and https; ssh goes past it.
    pub proxy: Option<Proxy>,
    /// How it speaks ssh.
    pub ssh: Ssh,
    /// Whether `PATH` and `SSL_CERT_FILE` are those of our own environment: on a person's machine.
    pub machine: bool,
    /// Whether progress and git's complaints go to our own output, as a container's log.
    pub log: bool,
}

impl Access {
    /// Nothing but a way to servers.
    pub fn reaching(network: &Network) -> Self {
        let mut access = Self::default();
        access.add(network);
        access
    }

    /// The platform's way to servers, and what it trusts beside what is trusted already.
    pub fn add(&mut self, network: &Network) {
        self.proxy.clone_from(&network.proxy);
        if let Some(pem) = &network.ca_bundle {
            let all = self.authorities.get_or_insert_default();
            if !all.is_empty() && !all.ends_with(b"\n") {
                all.push(b'\n');
            }
            all.extend_from_slice(pem.as_bytes());
        }
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("authorization", &self.authorization.is_some()).finish_non_exhaustive()
    }
}

/// How ssh is spoken.
#[derive(Clone, Default)]
pub enum Ssh {
    /// Not at all.
    #[default]
    No,
    /// As the machine's user speaks it, without questions.
    Machine,
    /// With this key, to these hosts: nothing else is offered or trusted.
    Key {
        /// The private key.
        key: Vec<u8>,
        /// Lines of known_hosts.
        hosts: Vec<u8>,
    },
}

impl std::fmt::Debug for Ssh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::No => "No",
            Self::Machine => "Machine",
            Self::Key { .. } => "Key",
        })
    }
}

/// The usual certificate authorities, which a bundle of ours replaces in git: both go into one file.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Settings for every call. Nothing of a repository is executed, nothing of the machine is read.
const SETTINGS: [(&str, &str); 26] = [
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
    ("init.defaultBranch", "master"),
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
pub(crate) struct Environment {
    settings: Vec<(String, String)>,
    protocols: &'static str,
    home: PathBuf,
    ssh: Option<String>,
    proxy: Vec<(&'static str, String)>,
    machine: bool,
}

impl Environment {
    /// Writes what git reads from files: key, known hosts and certificates, below `work`.
    pub(crate) fn new(
        source: &Git,
        transport: Transport,
        access: &Access,
        work: &Path,
    ) -> Result<Self, Fault> {
        let home = work.join("home");
        std::fs::create_dir_all(&home)
            .map_err(|e| Fault::internal(format!("making {}: {e}", home.display())))?;
        let mut settings: Vec<(String, String)> =
            SETTINGS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut clear = |protocol: &str| {
            settings.push((format!("protocol.{protocol}.allow"), "always".to_owned()));
            access.authorization.is_none()
        };
        // In the clear only what the URL itself names: a submodule does not lead there.
        let (protocols, fine) = match transport {
            Transport::Https | Transport::Ssh => ("https:ssh", true),
            Transport::Http => ("https:ssh:http", clear("http")),
            Transport::Git => ("https:ssh:git", clear("git")),
        };
        if !fine {
            return Err(Fault::invalid("credentials go over https or ssh only"));
        }
        if let Some(authorization) = access.authorization.as_ref().filter(|_| transport == Transport::Https) {
            let header = format!("Authorization: {authorization}");
            settings.push((format!("http.{}/.extraHeader", origin(&source.url)), header));
        }
        if let Some(pem) = &access.authorities {
            let mut all = std::fs::read(AUTHORITIES).unwrap_or_default();
            all.push(b'\n');
            all.extend_from_slice(pem);
            settings.push(("http.sslCAInfo".to_owned(), write(&home.join("authorities.pem"), &all)?));
        }
        if source.lfs {
            settings.extend(LFS.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        }
        let ssh = match &access.ssh {
            Ssh::No => None,
            Ssh::Machine => Some("ssh -o BatchMode=yes -o ConnectTimeout=20".to_owned()),
            Ssh::Key { key, hosts } => {
                let key = write(&home.join("identity"), key)?;
                let hosts = write(&home.join("known_hosts"), hosts)?;
                Some(ssh_command(&key, &hosts))
            }
        };
        let proxy = access.proxy.as_ref().map(Proxy::variables).unwrap_or_default();
        Ok(Self { settings, protocols, home, ssh, proxy, machine: access.machine })
    }

    /// The environment, whole.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let home = self.home.display().to_string();
        let own = |name: &str| std::env::var(name).ok().filter(|_| self.machine);
        let path = own("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
        let fixed = [
            ("PATH", path.as_str()),
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
        all.extend(own("SSL_CERT_FILE").map(|file| ("SSL_CERT_FILE".to_owned(), file)));
        all.extend(self.proxy.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
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

    fn variables(url: &str, access: &Access) -> Result<Vec<(String, String)>, Fault> {
        let dir = tempfile::tempdir().expect("a directory");
        let source = Git { url: url.into(), depth: 1, ..Git::default() };
        let transport = source.transport().expect("a good URL");
        Ok(Environment::new(&source, transport, access, dir.path())?.variables())
    }

    fn value(all: &[(String, String)], name: &str) -> String {
        all.iter().find(|(key, _)| key == name).expect(name).1.clone()
    }

    #[test]
    fn credentials_are_for_one_server_and_never_in_the_clear() {
        let access = Access { authorization: Some("Basic dTpw".into()), ..Access::default() };
        let all = variables("https://h:8443/a/b.git", &access).expect("fine");
        let key = all.iter().find(|(_, value)| value == "http.https://h:8443/.extraHeader").expect("scoped");
        let number = key.0.trim_start_matches("GIT_CONFIG_KEY_");
        assert_eq!(value(&all, &format!("GIT_CONFIG_VALUE_{number}")), "Authorization: Basic dTpw");
        assert!(variables("http://h/a", &access).is_err() && variables("git://h/a", &access).is_err());
        let ssh = variables("https://h/a", &access).expect("fine");
        assert_eq!(value(&ssh, "GIT_SSH_COMMAND"), "/bin/false", "without a key there is no ssh");
    }

    #[test]
    fn servers_are_reached_as_the_platform_says() {
        let proxy = Proxy {
            https: Some("http://p:3128".into()),
            no_proxy: vec![".svc".into(), "10.0.0.0/8".into()],
            ..Proxy::default()
        };
        let network = Network { proxy: Some(proxy), ca_bundle: Some("PEM".into()) };
        let all = variables("https://h/a", &Access::reaching(&network)).expect("fine");
        assert_eq!(value(&all, "https_proxy"), "http://p:3128");
        assert_eq!(value(&all, "no_proxy"), ".svc,10.0.0.0/8");
        assert!(all.iter().all(|(key, _)| key != "http_proxy"));
        assert!(all.iter().any(|(_, value)| value == "http.sslCAInfo"));
        let none = variables("https://h/a", &Access::default()).expect("fine");
        assert!(none.iter().all(|(key, value)| !key.ends_with("_proxy") && value != "http.sslCAInfo"));
    }

    #[test]
    fn ssh_trusts_only_known_hosts() {
        let ssh = Ssh::Key { key: b"K".to_vec(), hosts: b"h k".to_vec() };
        let all = variables("git@h:a", &Access { ssh, ..Access::default() }).expect("fine");
        let command = value(&all, "GIT_SSH_COMMAND");
        for word in ["StrictHostKeyChecking=yes", "BatchMode=yes", "-F /dev/null", "UserKnownHostsFile="] {
            assert!(command.contains(word), "{command}");
        }
    }

    #[test]
    fn in_the_clear_is_only_what_the_url_says() {
        for (url, allowed) in [
            ("https://h/a", "https:ssh"),
            ("g@h:a", "https:ssh"),
            ("http://h/a", "https:ssh:http"),
            ("git://h/a", "https:ssh:git"),
        ] {
            let all = variables(url, &Access::default()).expect("fine");
            assert_eq!(value(&all, "GIT_ALLOW_PROTOCOL"), allowed, "{url}");
            let settings = ["http", "git", "file", "ext"].map(|name| {
                let key = format!("protocol.{name}.allow");
                let of = |at: &str| format!("GIT_CONFIG_VALUE_{}", at.trim_start_matches("GIT_CONFIG_KEY_"));
                all.iter().filter(|(_, v)| *v == key).map(|(k, _)| value(&all, &of(k))).next_back()
            });
            let expected = |name: &str| allowed.ends_with(&format!(":{name}")).then(|| "always".to_owned());
            let never = Some("never".to_owned());
            assert_eq!(settings, [expected("http"), expected("git"), never.clone(), never], "{url}");
        }
    }
}
