//! The part of a kubelet's API that serves logs, for all nodes: the API server asks it where an operator reads `pods/log`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _, stream};
use http_body_util::{StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use kiln_contract::paths::COURIER_CONTAINER;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::fleet::Fleet;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Serves logs over HTTPS until the process ends. The API server does not check who signed the certificate.
///
/// # Errors
/// The certificate can't be read, or the address is taken.
pub async fn serve(fleet: Arc<Fleet>, address: SocketAddr, cert: &Path, key: &Path) -> Result<()> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(cert)
        .with_context(|| cert.display().to_string())?
        .collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| key.display().to_string())?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (acceptor, fleet) = (acceptor.clone(), fleet.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let answer = service_fn(move |request| {
                    let answer = answer(&fleet, &request);
                    async move { Ok::<_, Infallible>(answer) }
                });
                // The operator hangs up when it has what it wants.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), answer)
                    .await;
            });
        }
    });
    Ok(())
}

/// `/containerLogs/NAMESPACE/POD/CONTAINER?follow=true`
fn answer(fleet: &Fleet, request: &Request<Incoming>) -> Response<Body> {
    let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let follow = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "follow=true"));
    let found = match parts[..] {
        ["containerLogs", namespace, pod, COURIER_CONTAINER] => {
            fleet.pod(&(namespace.to_owned(), pod.to_owned()))
        }
        _ => None,
    };
    let Some(pod) = found else { return plain(StatusCode::NOT_FOUND, "no such container is played\n") };
    let body = StreamBody::new(lines(pod.log(), follow).map(|text| Ok(Frame::data(Bytes::from(text)))));
    Response::new(UnsyncBoxBody::new(body))
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let body = StreamBody::new(stream::iter([Ok(Frame::data(Bytes::from(text)))]));
    let mut response = Response::new(UnsyncBoxBody::new(body));
    *response.status_mut() = status;
    response
}

/// The log's lines: those that there are, and when following those that come, to its end.
fn lines(log: watch::Receiver<(Vec<String>, bool)>, follow: bool) -> impl Stream<Item = String> + Send {
    stream::unfold((log, 0usize, false), move |(mut log, sent, last)| async move {
        if last {
            return None;
        }
        if follow {
            log.wait_for(|(lines, ended)| lines.len() > sent || *ended).await.ok()?;
        }
        let (text, known, ended) = {
            let now = log.borrow_and_update();
            (now.0[sent..].concat(), now.0.len(), now.1)
        };
        Some((text, (log, known, ended || !follow)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_is_followed_to_its_end_and_read_without_waiting() {
        let log = watch::Sender::new((vec!["1\n".to_owned()], false));
        let now: Vec<String> = lines(log.subscribe(), false).collect().await;
        assert_eq!(now, ["1\n"]);
        let mut followed = std::pin::pin!(lines(log.subscribe(), true));
        assert_eq!(followed.next().await.as_deref(), Some("1\n"));
        log.send_modify(|(lines, _)| lines.extend(["2\n".to_owned(), "3\n".to_owned()]));
        assert_eq!(followed.next().await.as_deref(), Some("2\n3\n"));
        log.send_modify(|(_, ended)| *ended = true);
        let rest: String = followed.collect().await;
        assert_eq!(rest, "");
    }
}
