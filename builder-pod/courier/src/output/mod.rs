//! Where the image goes: a registry, or an OCI image layout as a directory or an archive.

mod layout;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kiln_contract::Descriptor;
use kiln_contract::call::Stored;
use kiln_contract::failure::{Failure, FailureClass, reason};
use kiln_contract::request::Output;
use kiln_registry::{Blob, Client, Early, ImageName, Origin, Put, Written};
use tokio::sync::watch;

use crate::failure::{Purpose, of_registry};
use crate::manifest::{Composed, MANIFEST};

pub use layout::Layout;

/// The output of one attempt.
#[derive(Debug)]
pub enum Target {
    /// All names are of one repository.
    Registry {
        /// The names with their tags.
        names: Vec<ImageName>,
        /// Whether the operator's permit is needed.
        permit: bool,
    },
    /// A layout, moved or archived to its place at the end.
    Layout {
        /// The layout as it grows.
        layout: Layout,
        /// Names to record in it.
        references: Vec<String>,
        /// The archive to make of it; none when the directory itself is wanted.
        archive: Option<PathBuf>,
    },
}

/// Where a blob's bytes are.
#[derive(Debug)]
pub enum Bytestream {
    /// A file of the builder.
    File(File),
    /// A base image.
    Base(ImageName),
}

pub(crate) fn blob_of(descriptor: &Descriptor) -> Blob {
    Blob {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.clone(),
        size: descriptor.size,
    }
}

fn io_failure(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(FailureClass::Infrastructure, reason::INTERNAL, format!("{what}: {error}"))
}

impl Target {
    /// The target that a request names.
    ///
    /// # Errors
    /// Names that are none, or of different repositories.
    pub fn new(output: &Output) -> Result<Self, Failure> {
        match output {
            Output::Registry { references, permit } => {
                let names: Result<Vec<_>, _> = references.iter().map(|r| ImageName::parse(r)).collect();
                let names = names.map_err(|e| of_registry(&e, Purpose::Push))?;
                let first = names.first().map(ImageName::repository_name);
                if first.is_none() || names.iter().any(|n| Some(n.repository_name()) != first) {
                    let text = "the output's references must name one repository, with different tags";
                    return Err(Failure::new(FailureClass::User, reason::INVALID_SPEC, text));
                }
                Ok(Self::Registry { names, permit: *permit })
            }
            Output::OciLayout { path, references } => Ok(Self::Layout {
                layout: Layout::create(path.into()).map_err(|e| io_failure(path, &e))?,
                references: references.clone(),
                archive: None,
            }),
            Output::OciArchive { path, references } => {
                let beside = PathBuf::from(format!("{path}.layout-{}", std::process::id()));
                Ok(Self::Layout {
                    layout: Layout::create(beside).map_err(|e| io_failure(path, &e))?,
                    references: references.clone(),
                    archive: Some(path.into()),
                })
            }
        }
    }

    /// Begins to send a file that is still being written; none where the whole file is as good.
    pub fn begin(&self, client: &Client, file: File, written: watch::Receiver<Written>) -> Option<Early> {
        match self {
            Self::Registry { names, .. } => names.first().map(|name| client.begin_blob(name, file, written)),
            Self::Layout { .. } => None,
        }
    }

    /// Puts a blob there.
    ///
    /// # Errors
    /// As the registry or the file system answered.
    pub async fn put(&self, client: &Client, blob: &Descriptor, from: Bytestream) -> Result<Stored, Failure> {
        match (self, from) {
            (Self::Registry { names, .. }, from) => {
                let Some(name) = names.first() else {
                    return Err(crate::failure::internal("no output name"));
                };
                let origin = match from {
                    Bytestream::File(file) => Origin::File(Arc::new(file)),
                    Bytestream::Base(base) => Origin::Repository(base),
                };
                let put = client.put_blob(name, &blob_of(blob), &origin).await;
                put.map(stored).map_err(|e| of_registry(&e, Purpose::Push))
            }
            (Self::Layout { layout, .. }, Bytestream::File(file)) => {
                let (layout, blob) = (layout.clone(), blob.clone());
                let copy = tokio::task::spawn_blocking(move || layout.copy(&blob, &file));
                copy.await
                    .map_err(std::io::Error::other)
                    .and_then(|r| r)
                    .map_err(|e| io_failure("writing the layout", &e))
            }
            (Self::Layout { layout, .. }, Bytestream::Base(base)) => {
                if layout.has(&blob.digest) {
                    return Ok(Stored::Present);
                }
                let (partial, path) =
                    layout.partial(&blob.digest).map_err(|e| io_failure("writing the layout", &e))?;
                let mut file = tokio::fs::File::from_std(partial);
                client
                    .read_blob(&base, &blob_of(blob), &mut file)
                    .await
                    .map_err(|e| of_registry(&e, Purpose::Pull))?;
                drop(file);
                layout.keep(&path, &blob.digest).map_err(|e| io_failure("writing the layout", &e))?;
                Ok(Stored::Uploaded)
            }
        }
    }

    /// Where the bytes of a blob are that was put there.
    ///
    /// # Errors
    /// The layout's file can't be opened.
    pub fn origin(&self, digest: &str) -> Result<Origin, Failure> {
        match self {
            Self::Registry { names, .. } => match names.first() {
                Some(name) => Ok(Origin::Repository(name.clone())),
                None => Err(crate::failure::internal("no output name")),
            },
            Self::Layout { layout, .. } => crate::cache::file_origin(&layout.path(digest)),
        }
    }

    /// Puts config and manifest there; the manifest by digest only.
    ///
    /// # Errors
    /// As the registry or the file system answered.
    pub async fn publish(&self, client: &Client, config: &str, composed: &Composed) -> Result<(), Failure> {
        match self {
            Self::Registry { names, .. } => {
                let Some(name) = names.first() else {
                    return Err(crate::failure::internal("no output name"));
                };
                let push = |e: kiln_registry::Error| of_registry(&e, Purpose::Push);
                let origin = Origin::Bytes(Bytes::from(config.to_owned()));
                client.put_blob(name, &blob_of(&composed.config), &origin).await.map_err(push)?;
                let bytes = Bytes::from(composed.bytes.clone());
                client.put_manifest(name, &composed.digest, MANIFEST, &bytes).await.map_err(push)
            }
            Self::Layout { layout, .. } => layout
                .write(&composed.config.digest, config.as_bytes())
                .and_then(|()| layout.write(&composed.digest, &composed.bytes))
                .map_err(|e| io_failure("writing the layout", &e)),
        }
    }
}

pub(crate) fn stored(put: Put) -> Stored {
    match put {
        Put::Present => Stored::Present,
        Put::Mounted => Stored::Mounted,
        Put::Uploaded => Stored::Uploaded,
    }
}
