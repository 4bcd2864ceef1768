//! A server of git over https: repositories of a directory by git's own CGI program, behind a login, with a certificate of an
//! authority that nobody else knows.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, HeaderName, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::servers::sh;

/// Who may read.
#[derive(Clone)]
struct Login {
    user: &'static str,
    password: &'static str,
}

/// The server; it ends with the test.
pub struct GitHttps {
    /// `https://address:port`.
    pub url: String,
    /// The authority's certificate, PEM.
    pub authority: String,
}

impl GitHttps {
    /// Serves the bare repositories below `root` to who logs in as `user` with `password`.
    pub async fn start(
        address: IpAddr,
        root: &Path,
        user: &'static str,
        password: &'static str,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        sh(
            dir.path(),
            &format!(
                "new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
                openssl req -x509 $new -days 2 -subj /CN=ca -keyout ca.key -out ca.crt
                openssl req $new -subj /CN=git -keyout git.key -out git.csr
                printf 'subjectAltName=IP:{address}\nbasicConstraints=CA:FALSE\n' > extensions
                openssl x509 -req -in git.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out git.crt"
            ),
        )
        .context("making certificates with openssl, of the package openssl")?;
        let chain = vec![CertificateDer::from_pem_file(dir.path().join("git.crt"))?];
        let key = PrivateKeyDer::from_pem_file(dir.path().join("git.key"))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let tls = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?));
        let listener = TcpListener::bind((address, 0)).await?;
        let url = format!("https://{}", listener.local_addr()?);
        let (root, login) = (root.to_owned(), Login { user, password });
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, root, login) = (tls.clone(), root.clone(), login.clone());
                tokio::spawn(async move {
                    // A client that does not know the authority hangs up here.
                    let Ok(stream) = tls.accept(stream).await else { return };
                    let service = service_fn(|request| answer(root.clone(), login.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { url, authority: std::fs::read_to_string(dir.path().join("ca.crt"))? })
    }
}

async fn answer(root: PathBuf, login: Login, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let wanted = format!("Basic {}", BASE64.encode(format!("{}:{}", login.user, login.password)));
    if request.headers().get(AUTHORIZATION).is_none_or(|shown| shown.as_bytes() != wanted.as_bytes()) {
        let refused = Response::builder()
            .status(StatusCode::UNAUTHORIZED)
            .header(WWW_AUTHENTICATE, "Basic realm=\"git\"");
        return Ok(refused.body(Full::default())?);
    }
    backend(&root, request).await
}

/// Asks `git http-backend` (RFC 3875).
async fn backend(root: &Path, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let mut command = tokio::process::Command::new("git");
    command.arg("http-backend").env_clear().kill_on_drop(true).envs([
        ("PATH", "/usr/bin:/bin"),
        ("GIT_HTTP_EXPORT_ALL", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        // The repositories are another user's where tests run as root.
        ("GIT_CONFIG_COUNT", "1"),
        ("GIT_CONFIG_KEY_0", "safe.directory"),
        ("GIT_CONFIG_VALUE_0", "*"),
    ]);
    command.env("GIT_PROJECT_ROOT", root).envs([
        ("REQUEST_METHOD", head.method.as_str()),
        ("PATH_INFO", head.uri.path()),
        ("QUERY_STRING", head.uri.query().unwrap_or_default()),
        ("CONTENT_TYPE", header("content-type")),
        ("CONTENT_LENGTH", &body.len().to_string()),
        ("HTTP_CONTENT_ENCODING", header("content-encoding")),
        ("GIT_PROTOCOL", header("git-protocol")),
    ]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let writing = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await?.stdout;
    // It need not read all that it is given.
    let _ = writing.await;
    let end =
        output.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("git http-backend: no head")?;
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..end])?.lines() {
        let (name, value) = line.split_once(':').with_context(|| format!("no header: {line}"))?;
        let value = value.trim();
        response = if name == "Status" {
            response.status(value.split(' ').next().unwrap_or_default().parse::<u16>()?)
        } else {
            response.header(HeaderName::from_bytes(name.as_bytes())?, value)
        };
    }
    Ok(response.body(Full::from(output[end + 4..].to_vec()))?)
}
