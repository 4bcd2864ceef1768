//! Archives from a web server.

use std::io::Write as _;
use std::sync::Arc;

use kiln_contract::request::Source;
use kiln_contract::source::Http;
use kiln_source::Secrets;
use kiln_source::error::Kind;
use sha2::{Digest as _, Sha256};

use crate::web::{Answer, Authority, Request, serve};
use crate::{Fetch, refused};

pub(crate) fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(13);
    header.set_mode(0o600);
    tar.append_data(&mut header, "Dockerfile", &b"FROM scratch\n"[..]).expect("appended");
    let mut gzip = tar.into_inner().expect("a tar");
    gzip.flush().expect("flushed");
    gzip.finish().expect("gzip")
}

#[test]
fn an_archive_is_checked_before_it_is_unpacked() {
    let authority = Authority::new();
    let bytes = archive();
    let sum = hex::encode(Sha256::digest(&bytes));
    let handler = move |request: &Request| match request.path.as_str() {
        "/a.tar.gz" => Answer::new(200, "application/gzip", bytes.clone()),
        "/private.tar.gz" if request.headers.get("authorization").is_some_and(|a| a == "Bearer t") => {
            Answer::new(200, "application/gzip", bytes.clone())
        }
        "/private.tar.gz" => Answer::new(401, "text/plain", "no"),
        "/page" => Answer::new(200, "text/html", "<html>log in</html>"),
        _ => Answer::new(404, "text/plain", "no"),
    };
    let address = serve(Some(&authority), Arc::new(handler));
    let source = |path: &str, sha256: Option<&str>| {
        let sha256 = sha256.map(str::to_owned);
        Source::Http(Http { url: format!("{address}{path}"), sha256, revision: None })
    };
    let trusted = Secrets::of(&[("ca.crt", &authority.pem())]).expect("fine");
    let fetch = Fetch::new();
    let found = fetch.run(&source("/a.tar.gz", Some(&sum)), &trusted).expect("fetched");
    assert_eq!(
        (found.digest.as_deref(), found.revision),
        (Some(format!("sha256:{sum}").as_str()), format!("sha256:{sum}"))
    );
    assert_eq!(fetch.read("Dockerfile"), "FROM scratch\n");
    fetch.run(&source("/a.tar.gz", None), &trusted).expect("fetched");

    let other = "0".repeat(64);
    refused(fetch.run(&source("/a.tar.gz", Some(&other)), &trusted), Kind::Checksum, &sum);
    assert!(!fetch.tree().join("Dockerfile").exists(), "nothing of it is unpacked");
    refused(fetch.run(&source("/none", None), &trusted), Kind::NotFound, "404");
    refused(fetch.run(&source("/page", None), &trusted), Kind::Invalid, "expected a tar");
    refused(fetch.run(&source("/private.tar.gz", None), &trusted), Kind::Unauthorized, "bearerToken");
    let token = Secrets::of(&[("ca.crt", &authority.pem()), ("bearerToken", "t")]).expect("fine");
    fetch.run(&source("/private.tar.gz", None), &token).expect("fetched");
}
