//! Registry credentials from Docker's `config.json` files, read anew each time they are needed: a Secret that was
//! rotated during a long build counts at the push.
//!
//! Matching is the kubelet's, without its globs: the same `host[:port]`, then the longest path that the repository
//! begins with. Credential helpers are programs named by data; they are named in messages and never run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Bytes of a config file: a Secret holds 1 MiB.
const MAX_FILE: u64 = 1 << 20;
/// Config files that are looked at: one per pull Secret.
const MAX_FILES: usize = 64;
/// Docker Hub's names; configs use the first (with `/v1/`), images the last.
const HUB: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "docker.io"];

/// Where to look for credentials.
#[derive(Debug, Clone)]
pub struct Credentials {
    source: Source,
    described: String,
}

#[derive(Debug, Clone)]
enum Source {
    Files(Vec<PathBuf>),
    Below { parent: PathBuf, file: String },
}

/// What was found for one repository.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// In the order in which they are to be tried.
    pub(crate) logins: Vec<Login>,
    /// Files that are missing or broken, helpers that were not run.
    pub(crate) remarks: Vec<String>,
}

/// A way to log in.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) secret: Secret,
    from: String,
    path_length: usize,
}

/// What goes with the user name.
#[derive(Clone)]
pub(crate) enum Secret {
    /// For HTTP Basic, at the registry or its token service.
    Password(String),
    /// An OAuth2 refresh token for the token service.
    Refresh(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).field("from", &self.from).finish_non_exhaustive()
    }
}

impl Login {
    /// For messages: who, and from where.
    pub(crate) fn described(&self) -> String {
        format!("user {:?} from {}", self.user, self.from)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct AuthEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

impl Credentials {
    /// These config files; `described` says in messages where a missing entry belongs.
    pub fn files(files: Vec<PathBuf>, described: impl Into<String>) -> Self {
        Self { source: Source::Files(files), described: described.into() }
    }

    /// `PARENT/*/FILE`, listed at each use.
    pub fn below(parent: PathBuf, file: impl Into<String>, described: impl Into<String>) -> Self {
        Self { source: Source::Below { parent, file: file.into() }, described: described.into() }
    }

    /// None at all.
    pub fn none() -> Self {
        Self::files(Vec::new(), "the settings of this build")
    }

    /// Where a missing entry belongs.
    pub(crate) fn described(&self) -> &str {
        &self.described
    }

    /// Reads the files and picks what fits. Blocks on files of at most [`MAX_FILE`] bytes.
    pub(crate) fn lookup(&self, registry: &str, repository: &str) -> Found {
        let mut found = Found::default();
        for file in self.list(&mut found.remarks) {
            match read(&file) {
                Ok(config) => pick(&config, &file, registry, repository, &mut found),
                Err(remark) => found.remarks.push(remark),
            }
        }
        found.logins.sort_by_key(|login| std::cmp::Reverse(login.path_length));
        found
    }

    fn list(&self, remarks: &mut Vec<String>) -> Vec<PathBuf> {
        match &self.source {
            Source::Files(files) => files.clone(),
            Source::Below { parent, file } => {
                let entries = match std::fs::read_dir(parent) {
                    Ok(entries) => entries,
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
                    Err(e) => {
                        remarks.push(format!("{} can't be read: {e}", parent.display()));
                        return Vec::new();
                    }
                };
                let mut files: Vec<PathBuf> = entries
                    .filter_map(Result::ok)
                    .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
                    .map(|e| e.path().join(file))
                    .take(MAX_FILES)
                    .collect();
                files.sort();
                files
            }
        }
    }
}

fn read(file: &Path) -> Result<ConfigFile, String> {
    let remark = |detail: String| format!("{} {detail}", file.display());
    let size = std::fs::metadata(file).map_err(|e| remark(format!("can't be read: {e}")))?.len();
    if size > MAX_FILE {
        return Err(remark(format!("has {size} bytes, more than the {MAX_FILE} allowed")));
    }
    let bytes = std::fs::read(file).map_err(|e| remark(format!("can't be read: {e}")))?;
    // The parser's own message may quote the file, which holds secrets: line and column are enough.
    serde_json::from_slice(&bytes).map_err(|e| {
        remark(format!("is not a Docker config.json (line {}, column {})", e.line(), e.column()))
    })
}

fn pick(config: &ConfigFile, file: &Path, registry: &str, repository: &str, found: &mut Found) {
    for (key, entry) in &config.auths {
        let Some(path_length) = matches(key, registry, repository) else { continue };
        let from = format!("{} ({key})", file.display());
        match login(entry) {
            Ok((user, secret)) => found.logins.push(Login { user, secret, from, path_length }),
            Err(detail) => found.remarks.push(format!("{from} {detail}")),
        }
    }
    if let Some((key, helper)) =
        config.cred_helpers.iter().find(|(k, _)| matches(k, registry, repository).is_some())
    {
        found.remarks.push(format!(
            "{} names the credential helper {helper:?} for {key}, which Kiln never runs",
            file.display()
        ));
    }
    if let Some(store) = &config.creds_store {
        found
            .remarks
            .push(format!("{} names the credential store {store:?}, which Kiln never runs", file.display()));
    }
}

/// The length of the key's path if the key speaks of this repository.
fn matches(key: &str, registry: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let same = host == registry || (HUB.contains(&host) && HUB.contains(&registry));
    let path = match path.trim_end_matches('/') {
        // The API versions that old clients wrote into the key.
        "v1" | "v2" => "",
        path => path,
    };
    let below =
        path.is_empty() || repository.strip_prefix(path).is_some_and(|r| r.is_empty() || r.starts_with('/'));
    (same && below).then_some(path.len())
}

fn login(entry: &AuthEntry) -> Result<(String, Secret), &'static str> {
    let (mut user, mut password) = (entry.username.clone(), entry.password.clone());
    if !entry.auth.is_empty() {
        let bytes = STANDARD.decode(entry.auth.trim()).map_err(|_| "has an \"auth\" that is not base64")?;
        let text = String::from_utf8(bytes).map_err(|_| "has an \"auth\" that is not text")?;
        let (u, p) = text.split_once(':').ok_or("has an \"auth\" without a colon")?;
        user = u.to_owned();
        password = p.trim_end_matches('\0').to_owned();
    }
    if !entry.identitytoken.is_empty() {
        return Ok((user, Secret::Refresh(entry.identitytoken.clone())));
    }
    if user.is_empty() && password.is_empty() {
        return Err("has neither auth, username and password, nor identitytoken");
    }
    Ok((user, Secret::Password(password)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let file = dir.join(name);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("mkdir");
        std::fs::write(&file, text).expect("write");
        file
    }

    fn users(found: &Found) -> Vec<&str> {
        found.logins.iter().map(|l| l.user.as_str()).collect()
    }

    #[test]
    fn hosts_match_exactly_and_longer_paths_first() {
        let dir = tempfile::tempdir().expect("tempdir");
        let auth = STANDARD.encode("short:p:w");
        let file = write(
            dir.path(),
            "c.json",
            &format!(
                r#"{{"auths":{{
                    "reg.io":{{"auth":"{auth}"}},
                    "https://reg.io/team":{{"username":"team","password":"x"}},
                    "reg.io/te":{{"username":"no","password":"x"}},
                    "https://index.docker.io/v1/":{{"username":"hub","identitytoken":"t"}}}}}}"#
            ),
        );
        let credentials = Credentials::files(vec![file], "the test");
        assert_eq!(users(&credentials.lookup("reg.io", "team/app")), ["team", "short"]);
        assert_eq!(users(&credentials.lookup("reg.io", "other")), ["short"]);
        assert!(users(&credentials.lookup("reg.io.evil.com", "team/app")).is_empty());
        assert!(users(&credentials.lookup("reg.io:444", "team/app")).is_empty());
        let found = credentials.lookup("docker.io", "library/alpine");
        assert_eq!(users(&found), ["hub"]);
        assert!(matches!(&found.logins[0].secret, Secret::Refresh(t) if t == "t"));
        let found = credentials.lookup("reg.io", "x");
        assert!(matches!(&found.logins[0].secret, Secret::Password(p) if p == "p:w"));
    }

    #[test]
    fn helpers_are_named_and_never_run_and_secrets_stay_out_of_messages() {
        let dir = tempfile::tempdir().expect("tempdir");
        let touched = dir.path().join("touched");
        let helper = format!("x; touch {}", touched.display());
        let file = write(
            dir.path(),
            "c.json",
            &serde_json::json!({"credHelpers": {"reg.io": helper}, "credsStore": "desktop"}).to_string(),
        );
        let broken =
            write(dir.path(), "broken.json", r#"{"auths":{"reg.io":{"password":"hunter2","username":3}}}"#);
        let missing = dir.path().join("missing.json");
        let found = Credentials::files(vec![file, broken, missing], "the test").lookup("reg.io", "a");
        assert!(found.logins.is_empty() && !touched.exists());
        let remarks = found.remarks.join("\n");
        for word in ["credential helper", "desktop", "missing.json", "broken.json"] {
            assert!(remarks.contains(word), "{remarks}");
        }
        assert!(!remarks.contains("hunter2"), "{remarks}");
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(100))]
        /// Whatever a file holds: no panic, and no login for another host than asked for.
        #[test]
        fn any_file_is_survived(
            key in "(https?://)?(reg.io|reg.iox|x.reg.io|reg.io:1)?(/v[12]?/?)?(/?[a-z]{0,4}/?){0,2}|\\PC{0,9}",
            auth in "[A-Za-z0-9+/=]{0,12}|\\PC{0,9}",
            text in "\\PC*",
        ) {
            let dir = tempfile::tempdir().expect("tempdir");
            let config = serde_json::json!({"auths": {(key.as_str()): {"auth": auth}}}).to_string();
            let files = vec![write(dir.path(), "a", &config), write(dir.path(), "b", &text)];
            let found = Credentials::files(files, "the test").lookup("reg.io", "team/app");
            let bare = key.trim_start_matches("https://").trim_start_matches("http://");
            let host = bare.split('/').next().unwrap_or_default();
            proptest::prop_assert!(found.logins.is_empty() || host == "reg.io", "{} for {}", found.logins.len(), key);
        }
    }

    #[test]
    fn files_are_read_anew_each_time() {
        let dir = tempfile::tempdir().expect("tempdir");
        let credentials = Credentials::below(dir.path().to_owned(), "config.json", "the test");
        assert!(credentials.lookup("reg.io", "a").logins.is_empty());
        write(dir.path(), "0/config.json", r#"{"auths":{"reg.io":{"username":"u","password":"p"}}}"#);
        let found = credentials.lookup("reg.io", "a");
        assert_eq!(users(&found), ["u"]);
        assert!(!format!("{found:?}").contains("\"p\""));
    }
}
