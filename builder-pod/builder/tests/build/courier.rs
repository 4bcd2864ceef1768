//! A courier of one file: base images are OCI layouts in a directory, the output is one as well. It checks what it is
//! given the way a registry would: every blob against its digest and size.

use std::fs::{self, File};
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, Result, bail, ensure};
use kiln_contract::call::{Call, Reply, Stored};
use kiln_contract::image::ResolvedImage;
use kiln_contract::journal::{BuildState, Event, Line};
use kiln_contract::{Descriptor, Failure, FailureClass, reason};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The secret `token`; there is no other.
pub const SECRET: &str = "hush-hush-hush";

/// Serves one build.
pub struct Courier {
    bases: PathBuf,
    out: PathBuf,
    state: Mutex<BuildState>,
}

impl Courier {
    /// Listens at `socket`; `bases` holds OCI layouts by short name, `out` becomes one.
    pub fn start(socket: &Path, bases: &Path, out: &Path) -> Result<Arc<Self>> {
        fs::create_dir_all(out.join("blobs/sha256"))?;
        let courier = Arc::new(Self { bases: bases.into(), out: out.into(), state: Mutex::default() });
        let listener = UnixListener::bind(socket)?;
        let shared = courier.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Ok(courier)
    }

    /// What the journal says.
    pub fn state(&self) -> BuildState {
        self.state.lock().expect("no thread panicked").clone()
    }

    fn serve(&self, mut stream: UnixStream) {
        let Ok((call, fd)) = receive(&stream) else { return };
        let attached = matches!(call, Call::Attach { .. });
        let reply = self.answer(call, fd).unwrap_or_else(|e| Reply::Failed { failure: failure(&e) });
        let body = serde_json::to_vec(&reply).expect("replies serialise");
        let length = u32::try_from(body.len()).expect("replies are short");
        let sent = stream.write_all(&length.to_be_bytes()).and_then(|()| stream.write_all(&body));
        if attached && sent.is_ok() {
            // Open until the builder is gone.
            let _ = stream.read(&mut [0]);
        }
    }

    fn answer(&self, call: Call, fd: Option<OwnedFd>) -> Result<Reply> {
        Ok(match call {
            Call::Attach { .. } => Reply::Done,
            Call::Resolve { reference, .. } => Reply::Resolved { image: self.resolve(&reference)? },
            Call::ReadBlob { image, blob } => {
                let mut pipe = File::from(fd.context("no descriptor")?);
                io::copy(&mut File::open(self.base_blob(&image, &blob)?)?, &mut pipe)?;
                Reply::Done
            }
            Call::Fetch { .. } | Call::FetchGit { .. } => bail!("this courier downloads nothing"),
            Call::CacheGet { .. }
            | Call::CachePut { .. }
            | Call::RecordGet { .. }
            | Call::RecordPut { .. } => bail!("this courier has no cache"),
            Call::Watch | Call::ResolveArtifact { .. } => bail!("the builder never asks this"),
            Call::PutBlob { blob } => {
                let file = File::from(fd.context("no descriptor")?);
                let mut bytes = vec![0; usize::try_from(blob.size)?];
                file.read_exact_at(&mut bytes, 0)?;
                ensure!(file.metadata()?.len() == blob.size, "{} has another size", blob.digest);
                ensure!(self.store(&bytes)? == blob.digest, "{} has other bytes", blob.digest);
                Reply::Stored { how: Stored::Uploaded }
            }
            Call::BeginBlob | Call::Grown { .. } => bail!("no layer here is that large"),
            Call::PutBaseBlob { image, blob } => {
                let bytes = fs::read(self.base_blob(&image, &blob)?)?;
                ensure!(self.store(&bytes)? == blob.digest, "{} has other bytes", blob.digest);
                Reply::Stored { how: Stored::Mounted }
            }
            Call::Secret { id } => {
                let mut pipe = File::from(fd.context("no descriptor")?);
                match id.as_str() {
                    "token" => pipe.write_all(SECRET.as_bytes())?,
                    _ => return Ok(Reply::Absent),
                }
                Reply::Done
            }
            Call::FindAgent { id } if id == "default" => Reply::Done,
            Call::FindAgent { .. } => Reply::Absent,
            Call::ServeAgent { id } => {
                UnixStream::from(fd.context("no descriptor")?)
                    .write_all(format!("agent {id}\n").as_bytes())?;
                Reply::Done
            }
            Call::Commit { config, layers } => self.commit(&config, &layers)?,
            Call::Event { event } => {
                self.note(event);
                Reply::Done
            }
            Call::Fail { failure } => {
                self.note(Event::Failed { failure });
                Reply::Done
            }
        })
    }

    fn note(&self, event: Event) {
        let mut state = self.state.lock().expect("no thread panicked");
        let seq = state.seq + 1;
        state.apply(&Line { v: 1, seq, at: String::new(), event });
    }

    fn resolve(&self, reference: &str) -> Result<ResolvedImage> {
        let name = reference.trim_start_matches("docker.io/").trim_start_matches("library/");
        let name = name.split(['@', ':']).next().unwrap_or_default();
        let root = self.bases.join(name);
        let index: Value = serde_json::from_slice(
            &fs::read(root.join("index.json")).with_context(|| format!("{reference}: not found"))?,
        )?;
        let digest = index["manifests"][0]["digest"].as_str().context("no manifest")?.to_owned();
        let manifest: Value = serde_json::from_slice(&fs::read(blob_path(&root, &digest))?)?;
        let config = manifest["config"]["digest"].as_str().context("no config")?;
        Ok(ResolvedImage {
            reference: format!("docker.io/library/{name}:latest"),
            pinned: name.into(),
            media_type: MANIFEST.into(),
            config: fs::read_to_string(blob_path(&root, config))?,
            layers: serde_json::from_value(manifest["layers"].clone())?,
            digest,
        })
    }

    fn base_blob(&self, image: &str, blob: &Descriptor) -> Result<PathBuf> {
        let path = blob_path(&self.bases.join(image), &blob.digest);
        ensure!(path.is_file(), "{} is not in {image}", blob.digest);
        Ok(path)
    }

    fn store(&self, bytes: &[u8]) -> Result<String> {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        fs::write(blob_path(&self.out, &digest), bytes)?;
        Ok(digest)
    }

    fn commit(&self, config: &str, layers: &[Descriptor]) -> Result<Reply> {
        for layer in layers {
            if !blob_path(&self.out, &layer.digest).is_file() {
                bail!("{} was not put before the commit", layer.digest);
            }
        }
        let config =
            json!({"mediaType": CONFIG, "size": config.len(), "digest": self.store(config.as_bytes())?});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        let bytes = manifest.to_string();
        let digest = self.store(bytes.as_bytes())?;
        let named = json!({"mediaType": MANIFEST, "digest": digest, "size": bytes.len()});
        fs::write(
            self.out.join("index.json"),
            json!({"schemaVersion": 2, "manifests": [named]}).to_string(),
        )?;
        fs::write(self.out.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        Ok(Reply::Committed { digest, references: vec!["registry.example/app:1".into()] })
    }
}

fn blob_path(root: &Path, digest: &str) -> PathBuf {
    root.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
}

fn failure(error: &anyhow::Error) -> Failure {
    let text = format!("{error:#}");
    let reason = if text.contains("not found") { reason::BASE_IMAGE_NOT_FOUND } else { reason::PUSH_FAILED };
    Failure::new(FailureClass::Registry, reason, text)
}

fn receive(mut stream: &UnixStream) -> Result<(Call, Option<OwnedFd>)> {
    let mut head = [0u8; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut head)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    ensure!(got.bytes == 4, "half a length");
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut body = vec![0; u32::from_be_bytes(head) as usize];
    stream.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fd))
}
