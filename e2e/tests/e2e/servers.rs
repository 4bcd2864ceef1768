//! Servers that pods fetch sources from, and what they serve. They are processes and tasks of the test, at the address of the
//! cluster's registry, which pods reach; where that address is not this machine's, the tests say so and end.

use std::collections::BTreeMap;
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kiln_e2e::cluster::{Sandbox, until};
use kiln_e2e::registry::Registry;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// This machine's address as pods see it; `None` where the cluster is elsewhere.
pub fn address(registry: &Registry) -> Option<IpAddr> {
    let found = registry.host().to_socket_addrs().ok()?.next()?.ip();
    if std::net::TcpListener::bind((found, 0)).is_ok() {
        return Some(found);
    }
    eprintln!("not run: {found} is not this machine's address, so no pod would reach a server of this test");
    None
}

/// Makes a Secret and lists it in the default service account's `secrets`.
pub async fn secret(sandbox: &Sandbox, name: &str, data: &Value) -> Result<()> {
    let secret = json!({"metadata": {"name": name}, "stringData": data});
    sandbox.api::<Secret>().create(&Default::default(), &serde_json::from_value(secret)?).await?;
    let accounts = sandbox.api::<ServiceAccount>();
    let mut listed = serde_json::to_value(accounts.get("default").await?.secrets.unwrap_or_default())?;
    listed.as_array_mut().context("a list")?.push(json!({"name": name}));
    accounts.patch("default", &PatchParams::default(), &Patch::Merge(&json!({"secrets": listed}))).await?;
    Ok(())
}

/// What a shell script prints that runs in `dir`.
pub fn sh(dir: &Path, script: &str) -> Result<String> {
    let out = Command::new("sh").args(["-ec", script]).current_dir(dir).output()?;
    ensure!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8(out.stdout)?.trim().to_owned())
}

/// A server of ssh that knows one key.
pub struct Sshd {
    child: Child,
    dir: tempfile::TempDir,
    /// Where it listens.
    pub port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    /// Makes keys and listens.
    pub async fn start(address: IpAddr) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        sh(
            dir.path(),
            "for k in host user stranger; do ssh-keygen -q -t ed25519 -N '' -f $k; done; mkdir -p /run/sshd",
        )?;
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let config = format!(
            "Port {port}\nListenAddress {address}\nHostKey {0}/host\nAuthorizedKeysFile {0}/user.pub\nStrictModes no\n\
             PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n",
            dir.path().display()
        );
        std::fs::write(dir.path().join("config"), config)?;
        let mut command = Command::new("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(dir.path().join("config")).stderr(Stdio::null());
        let child = command.spawn().context("sshd; scripts/check installs openssh-server")?;
        let sshd = Self { child, dir, port };
        until(10, "sshd to listen", async || Ok(tokio::net::TcpStream::connect((address, port)).await.ok()))
            .await?;
        Ok(sshd)
    }

    /// One of its keys: `host`, `user` and `stranger`, with `.pub` the public half.
    pub fn file(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.dir.path().join(name))?)
    }
}

/// A server of git's own protocol.
pub struct Daemon {
    child: Child,
    /// `git://address:port`.
    pub url: String,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    /// Serves what is below `root`.
    pub async fn start(address: IpAddr, root: &Path) -> Result<Self> {
        let port = std::net::TcpListener::bind((address, 0))?.local_addr()?.port();
        let program = format!("{}/git-daemon", sh(root, "git --exec-path")?);
        let mut command = Command::new(program);
        command.args([
            "--export-all",
            "--reuseaddr",
            &format!("--listen={address}"),
            &format!("--port={port}"),
        ]);
        // The repositories are another user's where tests run as root.
        command.envs([
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "safe.directory"),
            ("GIT_CONFIG_VALUE_0", "*"),
        ]);
        command.arg(format!("--base-path={}", root.display())).arg(root).stderr(Stdio::null());
        let child = command.spawn().context("git-daemon, of the package git")?;
        let daemon = Self { child, url: format!("git://{address}:{port}") };
        until(10, "git-daemon to listen", async || {
            Ok(tokio::net::TcpStream::connect((address, port)).await.ok())
        })
        .await?;
        Ok(daemon)
    }
}

/// Serves files by path until the test ends; what it serves can change.
pub async fn files(address: IpAddr) -> Result<(String, Arc<Mutex<BTreeMap<String, Vec<u8>>>>)> {
    let listener = TcpListener::bind((address, 0)).await?;
    let root = format!("http://{}", listener.local_addr()?);
    let files = Arc::new(Mutex::new(BTreeMap::<String, Vec<u8>>::new()));
    let served = files.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let served = served.clone();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let got = stream.read(&mut head).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..got]).into_owned();
                let path = text.split_whitespace().nth(1).unwrap_or_default();
                let found = served.lock().ok().and_then(|files| files.get(path).cloned());
                let (status, body) = found.map_or(("404 Not Found", Vec::new()), |body| ("200 OK", body));
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(&[head.into_bytes(), body].concat()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    Ok((root, files))
}

/// How far a transfer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Half is sent, and no more will be.
    Halfway,
    /// The client has hung up.
    HungUp,
}

/// Announces a file, sends half of it, and then nothing more for as long as the client bears it. What happens to each request is
/// told.
pub async fn stalling(address: IpAddr) -> Result<(String, UnboundedReceiver<Transfer>)> {
    const HALF: usize = 256 << 10;
    let listener = TcpListener::bind((address, 0)).await?;
    let url = format!("http://{}/a.tar.gz", listener.local_addr()?);
    let (tell, told) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                let asked = stream.read(&mut buffer).await.unwrap_or(0);
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * HALF);
                let half = [head.into_bytes(), vec![0; HALF]].concat();
                if asked > 0 && stream.write_all(&half).await.is_ok() {
                    let _ = tell.send(Transfer::Halfway);
                    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
                    let _ = tell.send(Transfer::HungUp);
                }
            });
        }
    });
    Ok((url, told))
}

/// A tar.gz as Flux makes one: modes 0600, no owners.
pub fn archive(files: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, format!("./{path}"), text.as_bytes())?;
    }
    Ok(tar.into_inner()?.finish()?)
}
