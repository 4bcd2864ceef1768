//! A real registry (distribution's program) behind a proxy that counts what is sent and breaks what a test wants broken.

mod proxy;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

pub use proxy::{Fault, Rule, Seen, Tokens};

/// How long the registry may take to listen: the machine may be busy compiling.
const PATIENCE: Duration = Duration::from_secs(60);

/// The registry's program, or why there is none.
enum Program {
    At(PathBuf),
    NotHere(String),
}

fn program() -> Result<&'static Program> {
    static FOUND: OnceLock<std::result::Result<Program, String>> = OnceLock::new();
    FOUND.get_or_init(|| find().map_err(|e| format!("{e:#}"))).as_ref().map_err(|e| anyhow::anyhow!("{e}"))
}

fn find() -> Result<Program> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = here.ancestors().map(|dir| dir.join("scripts/test-registry")).find(|s| s.exists());
    let script = script.context("scripts/test-registry is in no directory above")?;
    let output = Command::new(&script).output().with_context(|| format!("running {}", script.display()))?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(Program::At(PathBuf::from(String::from_utf8(output.stdout)?.trim()))),
        Some(3) => Ok(Program::NotHere(said)),
        _ => bail!("{} ended with {}: {said}", script.display(), output.status),
    }
}

/// The registry's process. It listens on a socket, so that no two tests can meet on a port.
struct Process {
    child: Child,
    dir: tempfile::TempDir,
}

impl Process {
    async fn start(program: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = dir.path().display();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {at}/data}}\n  \
             delete: {{enabled: true}}\nhttp: {{net: unix, addr: {at}/socket, relativeurls: true, secret: tests}}\n"
        );
        std::fs::write(dir.path().join("config.yml"), config)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let child = Command::new(program)
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut process = Self { child, dir };
        let end = Instant::now() + PATIENCE;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        while tokio::net::UnixStream::connect(process.socket()).await.is_err() {
            tick.tick().await;
            let gone = process.child.try_wait()?;
            if gone.is_some() || Instant::now() > end {
                let log = std::fs::read_to_string(process.dir.path().join("log"))?;
                bail!("the registry does not listen ({gone:?}): {log}");
            }
        }
        Ok(process)
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A registry with faults.
pub struct Faulty {
    /// `127.0.0.1:port` of the proxy.
    pub host: String,
    proxy: Arc<proxy::Proxy>,
    process: Arc<Process>,
}

impl Faulty {
    /// Starts one; says why and gives none where the registry can't be built.
    pub async fn start() -> Result<Option<Self>> {
        match program()? {
            Program::At(program) => {
                let process = Arc::new(Process::start(program).await?);
                Ok(Some(Self::before(process).await?))
            }
            Program::NotHere(why) => {
                println!("not run: {why}");
                Ok(None)
            }
        }
    }

    /// A second proxy before the same registry: another host that has the same blobs.
    pub async fn beside(&self) -> Result<Self> {
        Self::before(self.process.clone()).await
    }

    async fn before(process: Arc<Process>) -> Result<Self> {
        let (proxy, host) = proxy::Proxy::start(process.socket()).await?;
        Ok(Self { host, proxy, process })
    }

    /// The next `times` requests of this method, whose path has `part` in it, end like this.
    pub fn on(&self, method: &'static str, part: &str, times: usize, fault: Fault) {
        self.proxy.rules.lock().unwrap().push(Rule { method, part: part.to_owned(), left: times, fault });
    }

    /// Where a test may put files; it ends with the registry.
    pub fn directory(&self) -> &Path {
        self.process.dir.path()
    }

    /// All faults end.
    pub fn heal(&self) {
        self.proxy.rules.lock().unwrap().clear();
    }

    /// From now on a token is needed, which lasts (so it says) as long as this.
    pub fn want_tokens(&self, expires_in: Option<&str>) {
        *self.proxy.tokens.lock().unwrap() =
            Some(Tokens { expires_in: expires_in.map(str::to_owned), ..Tokens::default() });
    }

    /// How many tokens have been given.
    pub fn tokens_given(&self) -> usize {
        self.proxy.tokens.lock().unwrap().as_ref().map_or(0, |t| t.given)
    }

    /// Everything asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.proxy.seen.lock().unwrap().clone()
    }

    /// Requests of a method whose path has `part` in it.
    pub fn asked(&self, method: &str, part: &str) -> Vec<Seen> {
        self.seen().into_iter().filter(|s| s.method == method && s.path.contains(part)).collect()
    }

    /// Bytes of each upload of this blob, whatever came of it.
    pub fn uploads_of(&self, digest: &str) -> Vec<u64> {
        self.asked("PUT", "/blobs/uploads/")
            .iter()
            .filter(|s| s.digest.as_deref() == Some(digest))
            .map(|s| s.received)
            .collect()
    }

    /// What the registry has at this path, past the proxy's rules.
    pub async fn stored(&self, path: &str) -> Result<Option<bytes::Bytes>> {
        self.proxy.stored(path).await
    }

    /// Every rule has been used up.
    pub fn all_happened(&self) -> Result<()> {
        let rules = self.proxy.rules.lock().unwrap();
        let left: Vec<_> = rules.iter().filter(|r| r.left > 0).collect();
        ensure!(left.is_empty(), "not reached: {left:?}; asked was {:#?}", self.seen());
        Ok(())
    }
}

/// Bytes that tell one blob from another, more than the client or a socket holds back.
pub fn bytes(seed: u8, count: usize) -> bytes::Bytes {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// `sha256:…`
pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes)))
}
