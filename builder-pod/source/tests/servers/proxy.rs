//! The platform's proxy and authorities: what is fetched goes through the one and trusts the others, and what is past the proxy
//! goes past it.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use kiln_contract::policy::{Network, Proxy};
use kiln_contract::request::Source;
use kiln_contract::source::Http;
use kiln_git::added;
use kiln_source::Secrets;
use kiln_source::error::Kind;

use crate::added::Container;
use crate::web::{Answer, Authority, git_backend, repository, serve};
use crate::{Fetch, git, refused};

/// An HTTP proxy that opens tunnels, and what it was asked for.
struct Tunnels {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Tunnels {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let noted = noted.clone();
                std::thread::spawn(move || drop(tunnel(&stream, &noted)));
            }
        });
        Self { url, asked }
    }

    /// What it was asked for since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().expect("no panic"))
    }
}

fn tunnel(client: &TcpStream, noted: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    noted.lock().expect("no panic").push(first.trim_end().to_owned());
    let target = first.split_whitespace().nth(1).unwrap_or_default();
    let server = TcpStream::connect(target)?;
    let (mut up, mut down) = (server.try_clone()?, client.try_clone()?);
    down.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let upwards = std::thread::spawn(move || {
        let done = std::io::copy(&mut reader, &mut up);
        let _ = up.shutdown(std::net::Shutdown::Write);
        done
    });
    let mut back = server;
    std::io::copy(&mut back, &mut down)?;
    let _ = down.shutdown(std::net::Shutdown::Both);
    let _ = upwards.join();
    Ok(())
}

fn network(proxy: &Tunnels, authority: &Authority, past: &[&str]) -> Network {
    let no_proxy = past.iter().map(|host| (*host).to_owned()).collect();
    let proxy = Proxy { http: None, https: Some(proxy.url.clone()), no_proxy };
    Network { proxy: Some(proxy), ca_bundle: Some(authority.pem()) }
}

#[test]
fn archives_and_repositories_come_through_the_proxy_and_trust_the_platforms_authority() {
    let (authority, root) = (Authority::new(), tempfile::tempdir().expect("a directory"));
    repository(&root.path().join("app.git"), "echo one > a; git add . && git commit -qm 1");
    let (files, bytes) = (root.path().to_owned(), crate::http::archive());
    let handler = move |request: &crate::web::Request| match request.path.as_str() {
        "/a.tar.gz" => Answer::new(200, "application/gzip", bytes.clone()),
        _ => git_backend(&files, request),
    };
    let address = serve(Some(&authority), Arc::new(handler));
    let host = address.trim_start_matches("https://");
    let archive = Source::Http(Http { url: format!("{address}/a.tar.gz"), sha256: None, revision: None });
    let repository = git(&format!("{address}/app.git"), |_| {});
    let proxy = Tunnels::start();
    let connect = format!("CONNECT {host} HTTP/1.1");

    let mut fetch = Fetch::new();
    // Nothing of a Secret: without the platform's word the server is a stranger.
    refused(fetch.run(&archive, &Secrets::default()), Kind::Unauthorized, "certificate");
    assert!(proxy.asked().is_empty());
    fetch.network = network(&proxy, &authority, &[]);
    fetch.run(&archive, &Secrets::default()).expect("fetched");
    assert_eq!(proxy.asked(), [connect.as_str()]);
    fetch.run(&repository, &Secrets::default()).expect("fetched");
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|line| *line == connect), "{asked:?}");

    // What is past the proxy, and the authorities of a Secret beside the platform's.
    fetch.network = network(&proxy, &authority, &["example.com", "127.0.0.1"]);
    let other = Secrets::of(&[("ca.crt", &Authority::new().pem())]).expect("fine");
    for source in [&archive, &repository] {
        fetch.run(source, &other).expect("fetched");
    }
    assert!(proxy.asked().is_empty());

    // ADD: the courier hands the platform's word on to the container.
    let container = Container::start();
    let Source::Git(source) = repository else { panic!("a repository") };
    let add = |network: &Network| {
        added::fetch(&container.place(), &source, network, tempfile::tempfile().expect("a file"))
    };
    add(&network(&proxy, &authority, &[])).expect("checked out");
    assert!(proxy.asked().contains(&connect));
    assert!(add(&Network::default()).is_err(), "its authority is not known then");
}
