//! Artifacts and images of a registry, read through the real courier.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_contract::request::{BuildRequest, Compression, Isolation, Output, Registries, Source};
use kiln_contract::source::Oci;
use kiln_courier::{Given, Options, serve as courier};
use kiln_registry::Credentials;
use kiln_source::{Courier, Secrets};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use crate::Fetch;
use crate::web::{Answer, Request, serve};

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn tar(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, text) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, text.as_bytes()).expect("appended");
    }
    tar.into_inner().expect("a tar")
}

/// Blobs and manifests by what asks for them.
#[derive(Default)]
struct Store(BTreeMap<String, (String, Vec<u8>)>);

impl Store {
    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        self.0
            .insert(format!("blobs/{}", digest(bytes)), ("application/octet-stream".into(), bytes.to_vec()));
        json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()})
    }

    fn manifest(&mut self, tag: &str, config: &Value, layers: &[Value]) -> String {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let bytes = manifest.to_string().into_bytes();
        for name in [tag.to_owned(), digest(&bytes)] {
            self.0.insert(format!("manifests/{name}"), (kind.into(), bytes.clone()));
        }
        digest(&bytes)
    }
}

#[test]
fn artifacts_of_flux_and_oras_and_images() {
    let mut store = Store::default();
    let empty = store.blob("application/vnd.oci.empty.v1+json", b"{}");
    let flux_config = store.blob("application/vnd.cncf.flux.config.v1+json", b"{}");
    let content =
        store.blob("application/vnd.cncf.flux.content.v1.tar+gzip", &tar(&[("Dockerfile", "flux")]));
    let flux = store.manifest("flux", &flux_config, &[content]);
    let mut file = store.blob("text/plain", b"oras");
    file["annotations"] = json!({"org.opencontainers.image.title": "conf/Dockerfile"});
    let mut dir = store.blob("application/vnd.oci.image.layer.v1.tar", &tar(&[("d/x", "unpacked")]));
    dir["annotations"] =
        json!({"org.opencontainers.image.title": "d", "io.deis.oras.content.unpack": "true"});
    store.manifest("oras", &empty, &[file, dir]);
    let config =
        store.blob("application/vnd.oci.image.config.v1+json", br#"{"os":"linux","architecture":"amd64"}"#);
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let below = store.blob(kind, &tar(&[("a", "1"), ("b", "1")]));
    let above = store.blob(kind, &tar(&[(".wh.a", ""), ("b", "2")]));
    store.manifest("image", &config, &[below, above]);
    let handler = move |request: &Request| {
        let found = request.path.strip_prefix("/v2/team/app/").and_then(|path| store.0.get(path));
        found.map_or_else(
            || Answer::new(404, "text/plain", ""),
            |(kind, bytes)| Answer::new(200, kind, bytes.clone()),
        )
    };
    let host = serve(None, Arc::new(handler)).trim_start_matches("http://").to_owned();

    let fetch = Fetch::new();
    let socket = fetch.dir.path().join("courier.sock");
    let request = BuildRequest {
        contexts: BTreeMap::new(),
        entitlements: Vec::new(),
        version: kiln_contract::VERSION,
        attempt: "a".into(),
        source: Source::Oci(Oci { image: "x".into() }),
        context_dir: ".".into(),
        dockerfile: "Dockerfile".into(),
        dockerfile_text: None,
        target: None,
        args: BTreeMap::new(),
        labels: BTreeMap::new(),
        platform: "linux/amd64".into(),
        output: Output::OciLayout {
            path: fetch.dir.path().join("out").to_str().expect("text").into(),
            references: vec![],
        },
        compression: Compression::default(),
        isolation: Isolation::UserNamespace,
        timeout_seconds: 0,
        registries: Registries { mirrors: vec![], insecure: vec![host.clone()] },
        policy: kiln_contract::policy::Policy::default(),
        cache: None,
    };
    let options = Options {
        request,
        socket: socket.clone(),
        credentials: Credentials::none(),
        given: Given::default(),
        ca_bundle: None,
        control: None,
        state_dir: None,
        report: None,
        sink: Box::new(|_| Ok(())),
    };
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(courier(options, stopped)).map(drop)
    });
    let client = Courier::new(&socket);
    let run = |tag: &str| {
        let source = Source::Oci(Oci { image: format!("{host}/team/app:{tag}") });
        fetch.run_with(&source, &Secrets::default(), &client)
    };
    let found = run("flux").expect("fetched");
    assert_eq!((found.revision.as_str(), found.digest.as_deref()), (flux.as_str(), Some(flux.as_str())));
    assert_eq!(fetch.read("Dockerfile"), "flux");
    run("oras").expect("fetched");
    assert_eq!((fetch.read("conf/Dockerfile"), fetch.read("d/x")), ("oras".into(), "unpacked".into()));
    run("image").expect("fetched");
    assert_eq!((fetch.tree().join("a").exists(), fetch.read("b").as_str()), (false, "2"));
    let failure = run("none").expect_err("no such tag").failure();
    assert_eq!(failure.reason, kiln_contract::reason::SOURCE_NOT_FOUND);
    stop.cancel();
    serving.join().expect("no panic").expect("served");
}
