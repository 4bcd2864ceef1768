//! Downloads over HTTP(S) that have nothing to do with a registry: with the same guards, and without credentials or with
//! those that are given for the URL's own server.

use std::io::SeekFrom;
use std::time::UNIX_EPOCH;

use reqwest::header::LAST_MODIFIED;
use reqwest::{Method, Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use crate::auth::{Header, basic};
use crate::client::Client;
use crate::error::{Error, Fault};
use crate::guard;
use crate::place::Place;
use crate::retry::Backoff;
use crate::transport::{Window, judge};

/// What was downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// Bytes.
    pub size: u64,
    /// `sha256:…` of them.
    pub digest: String,
    /// `Last-Modified`, in Unix seconds, where the server says.
    pub modified: Option<i64>,
}

/// What a server is told of who asks. It goes to the URL's own scheme, host and port, and with no redirect elsewhere.
#[derive(Clone)]
pub enum Authorization {
    /// User and password.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// A token.
    Bearer(String),
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Basic { .. } => "Basic",
            Self::Bearer(_) => "Bearer",
        })
    }
}

impl Authorization {
    /// The value of the header.
    pub fn header(&self) -> String {
        match self {
            Self::Basic { user, password } => basic(user, password),
            Self::Bearer(token) => format!("Bearer {token}"),
        }
    }
}

impl Client {
    /// Downloads `url` into `out`, from its start; follows redirects. At most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no URL that may be asked, [`Error::NotFound`], [`Error::Denied`],
    /// [`Error::Refused`] or [`Error::Unavailable`] as the server answered, [`Error::Size`] for more bytes than allowed,
    /// [`Error::Local`] when `out` can't be written. What was written before an error is not to be used.
    pub async fn download(&self, url: &str, limit: u64, out: &mut File) -> Result<Download, Error> {
        self.download_as(url, None, limit, out).await
    }

    /// The same with credentials.
    ///
    /// # Errors
    /// As [`Client::download`], and [`Error::Unauthorized`] where the server wants (other) credentials.
    pub async fn download_as(
        &self,
        url: &str,
        authorization: Option<&Authorization>,
        limit: u64,
        out: &mut File,
    ) -> Result<Download, Error> {
        let header = authorization.map(|a| Header::given(a.header()));
        let invalid = |detail: String| Error::Invalid { what: format!("the URL {url:?}"), detail };
        let asked = Url::parse(url).map_err(|e| invalid(e.to_string()))?;
        if let Some(objection) = guard::objection(&asked) {
            return Err(invalid(objection));
        }
        let place = Place::of_url(&asked).ok_or_else(|| invalid("it names no host".to_owned()))?;
        let shown = guard::shown(&asked);
        let ask = self.ask(&place, Method::GET, asked, &format!("download {shown}"));
        // A server of files is waited for as a mirror is: who wants more can try again.
        let mut backoff = Backoff::new(&self.inner.retry.impatient(), &place.host, &*ask.action);
        loop {
            let outcome = async {
                let answer = self.follow(&ask, header.as_ref(), &|| None).await?;
                let answer = judge(answer, self.inner.retry.idle).await?;
                if answer.status() == StatusCode::UNAUTHORIZED {
                    let detail = match authorization {
                        Some(_) => "401 Unauthorized: it does not take these credentials",
                        None => "401 Unauthorized: it wants credentials, and none were given",
                    };
                    let (registry, action) = (ask.place.host.clone(), ask.action.clone());
                    return Err(Error::Unauthorized { registry, action, detail: detail.to_owned() }.into());
                }
                if !answer.status().is_success() {
                    return Err(self.refusal(&ask, &shown, answer).await.into());
                }
                self.save(answer, &shown, limit, out).await
            };
            match outcome.await {
                Ok(done) => return Ok(done),
                Err(fault) => backoff.after(fault).await?,
            }
        }
    }

    async fn save(
        &self,
        answer: Response,
        shown: &str,
        limit: u64,
        out: &mut File,
    ) -> Result<Download, Fault> {
        let local = |source| Error::Local { what: format!("write {shown}"), source };
        // What an earlier try left is not wanted.
        out.set_len(0).await.map_err(local)?;
        out.seek(SeekFrom::Start(0)).await.map_err(local)?;
        let modified = answer.headers().get(LAST_MODIFIED).and_then(|v| v.to_str().ok());
        let modified = modified.and_then(|text| httpdate::parse_http_date(text).ok());
        let seconds = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|d| d.as_secs());
        let (mut size, mut hasher) = (0u64, Sha256::new());
        let mut body = answer.bytes_stream();
        let mut window = Window::new(self.inner.retry.idle);
        while let Some(chunk) = window.next(&mut body).await? {
            size += chunk.len() as u64;
            if size > limit {
                let (what, found) = (shown.to_owned(), format!("more than {limit} bytes"));
                return Err(Error::Size { what, found, expected: "which is the most allowed".into() }.into());
            }
            hasher.update(&chunk);
            out.write_all(&chunk).await.map_err(local)?;
        }
        out.flush().await.map_err(local)?;
        let digest = format!("sha256:{}", hex::encode(hasher.finalize()));
        Ok(Download { size, digest, modified: seconds.and_then(|s| i64::try_from(s).ok()) })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    /// Answers one connection after another with these.
    fn server(answers: Vec<&'static str>) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().expect("a connection");
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        format!("http://{address}/f")
    }

    async fn download(answers: Vec<&'static str>, limit: u64) -> (Result<Download, Error>, String) {
        let client = Client::new(crate::Options::default()).expect("a client");
        let kept = tempfile::NamedTempFile::new().expect("a file");
        let mut file = File::from_std(kept.reopen().expect("open"));
        let done = client.download(&server(answers), limit, &mut file).await;
        (done, std::fs::read_to_string(kept.path()).expect("read"))
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\
                        Last-Modified: Fri, 02 Oct 2020 10:00:00 GMT\r\n\r\nhello\n";

    #[tokio::test]
    async fn a_file_comes_with_its_time_and_digest() {
        let (done, text) = download(vec!["HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n", GOOD], 6).await;
        let done = done.expect("downloaded");
        assert_eq!((text.as_str(), done.size, done.modified), ("hello\n", 6, Some(1_601_632_800)));
        assert!(done.digest.starts_with("sha256:5891b5b522d5df08"));
    }

    /// A server that answers once and tells what it was asked.
    fn once(answer: String) -> (String, std::sync::mpsc::Receiver<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut asked = [0; 4096];
            let got = stream.read(&mut asked).unwrap_or(0);
            let _ = stream.write_all(answer.as_bytes());
            let _ = tell.send(String::from_utf8_lossy(&asked[..got]).to_lowercase());
        });
        (format!("http://{address}/f"), told)
    }

    #[tokio::test]
    async fn credentials_go_to_the_url_s_own_server() {
        let (elsewhere, second) = once(GOOD.to_owned());
        let (url, first) =
            once(format!("HTTP/1.1 302 x\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n"));
        let client = Client::new(crate::Options::default()).expect("a client");
        let mut file = File::from_std(tempfile::tempfile().expect("a file"));
        let login = Authorization::Basic { user: "u".into(), password: "p".into() };
        client.download_as(&url, Some(&login), 99, &mut file).await.expect("downloaded");
        assert!(first.recv().expect("asked").contains("authorization: basic dtpw"));
        assert!(!second.recv().expect("asked").contains("authorization"));
        let (url, _asked) = once("HTTP/1.1 401 x\r\nContent-Length: 0\r\n\r\n".to_owned());
        let done = client.download_as(&url, Some(&login), 99, &mut file).await;
        assert!(matches!(done, Err(Error::Unauthorized { .. })), "{done:?}");
    }

    #[tokio::test]
    async fn what_can_not_be_had_is_said() {
        let (done, _) = download(vec![GOOD], 5).await;
        assert!(matches!(done, Err(Error::Size { .. })), "{done:?}");
        let (done, _) = download(vec!["HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n"], 5).await;
        assert!(matches!(done, Err(Error::NotFound { .. })), "{done:?}");
        let there = "HTTP/1.1 302 x\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n";
        let (done, _) = download(vec![there], 5).await;
        assert!(matches!(done, Err(Error::Unsafe { .. })), "{done:?}");
        let client = Client::new(crate::Options::default()).expect("a client");
        let mut file = File::from_std(tempfile::tempfile().expect("a file"));
        for bad in ["file:///etc/passwd", "http://169.254.169.254/x", "https://u:p@h/x", "x"] {
            let done = client.download(bad, 5, &mut file).await;
            assert!(matches!(done, Err(Error::Invalid { .. })), "{bad}: {done:?}");
        }
    }
}
