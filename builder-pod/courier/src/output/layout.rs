//! An OCI image layout (image-spec image-layout.md) that grows blob by blob, and the archive made of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use kiln_contract::Descriptor;
use kiln_contract::call::Stored;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::manifest::MANIFEST;

/// Bytes copied at once.
const PIECE: usize = 1 << 20;

/// A layout's directory.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// Makes the directory where it is absent.
    ///
    /// # Errors
    /// The file system's.
    pub fn create(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        Ok(Self { dir })
    }

    /// Where a blob is, or would be.
    pub fn path(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Whether the blob is there.
    pub fn has(&self, digest: &str) -> bool {
        self.path(digest).is_file()
    }

    /// A file to write a blob into, and its path; [`Layout::keep`] gives it its name.
    ///
    /// # Errors
    /// The file system's.
    pub fn partial(&self, digest: &str) -> io::Result<(File, PathBuf)> {
        // One blob may be written twice at a time: two steps may have the same layer.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let digest = digest.trim_start_matches("sha256:");
        let path = self.dir.join("blobs").join(format!("partial-{number}-{digest}"));
        Ok((File::create(&path)?, path))
    }

    /// Gives a complete, checked blob its name.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep(&self, partial: &Path, digest: &str) -> io::Result<()> {
        fs::rename(partial, self.path(digest))
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, digest: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut file, path) = self.partial(digest)?;
        file.write_all(bytes)?;
        self.keep(&path, digest)
    }

    /// Copies a blob out of a file and checks it on the way.
    ///
    /// # Errors
    /// The file system's, or other bytes than the digest names.
    pub fn copy(&self, blob: &Descriptor, from: &File) -> io::Result<Stored> {
        if self.has(&blob.digest) {
            return Ok(Stored::Present);
        }
        let (mut file, path) = self.partial(&blob.digest)?;
        let (mut hasher, mut offset, mut piece) = (Sha256::new(), 0u64, vec![0; PIECE]);
        while offset < blob.size {
            let want = usize::try_from(blob.size - offset).unwrap_or(PIECE).min(PIECE);
            let got = from.read_at(&mut piece[..want], offset)?;
            if got == 0 {
                break;
            }
            hasher.update(&piece[..got]);
            file.write_all(&piece[..got])?;
            offset += got as u64;
        }
        let found = format!("sha256:{}", hex::encode(hasher.finalize()));
        if found != blob.digest {
            return Err(io::Error::other(format!("expected a blob {}, found {found}", blob.digest)));
        }
        self.keep(&path, &blob.digest)?;
        Ok(Stored::Uploaded)
    }

    /// Writes `oci-layout` and `index.json`: from now on it is an image.
    ///
    /// # Errors
    /// The file system's.
    pub fn finish(&self, digest: &str, size: usize, references: &[String]) -> io::Result<()> {
        let entry = |reference: Option<&String>| {
            let mut entry = json!({"mediaType": MANIFEST, "digest": digest, "size": size});
            if let Some(reference) = reference {
                let last = reference.rsplit('/').next().unwrap_or(reference);
                let tag = last.split_once(':').map_or("latest", |(_, tag)| tag);
                entry["annotations"] =
                    json!({"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": reference});
            }
            entry
        };
        let entries: Vec<_> = match references {
            [] => vec![entry(None)],
            some => some.iter().map(|r| entry(Some(r))).collect(),
        };
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": entries});
        fs::write(self.dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        fs::write(self.dir.join("index.json.new"), serde_json::to_vec(&index)?)?;
        fs::rename(self.dir.join("index.json.new"), self.dir.join("index.json"))
    }

    /// Makes an archive of the finished layout and removes the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn archive(&self, to: &Path) -> io::Result<()> {
        let beside = to.with_extension("partial");
        let mut tar = tar::Builder::new(io::BufWriter::new(File::create(&beside)?));
        tar.mode(tar::HeaderMode::Deterministic);
        let mut blobs: Vec<PathBuf> = fs::read_dir(self.dir.join("blobs/sha256"))?
            .map(|e| e.map(|e| e.path()))
            .collect::<Result<_, _>>()?;
        blobs.sort();
        let names = ["oci-layout", "index.json"].map(|n| self.dir.join(n));
        for path in names.iter().chain(&blobs) {
            let name = path.strip_prefix(&self.dir).map_err(io::Error::other)?;
            tar.append_file(name, &mut File::open(path)?)?;
        }
        tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&beside, to)?;
        self.discard()
    }

    /// Removes the directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn discard(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_archive_holds_the_image_and_the_directory_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::create(dir.path().join("l")).expect("made");
        let mut source = tempfile::tempfile().expect("a file");
        source.write_all(b"hello").expect("written");
        let digest = crate::manifest::digest(b"hello");
        let blob = Descriptor { media_type: "m".into(), digest: digest.clone(), size: 5 };
        assert_eq!(layout.copy(&blob, &source).expect("copied"), Stored::Uploaded);
        assert_eq!(layout.copy(&blob, &source).expect("there"), Stored::Present);
        let wrong = Descriptor { digest: crate::manifest::digest(b"other"), ..blob };
        assert!(layout.copy(&wrong, &source).is_err());
        let partial = fs::read_dir(dir.path().join("l/blobs")).expect("listed").flatten();
        let partial = partial.map(|entry| entry.path()).find(|path| path.is_file()).expect("what was begun");
        fs::remove_file(partial).expect("removed");
        layout.finish(&digest, 5, &["host:5000/a/b:v1".to_owned()]).expect("finished");
        let file = dir.path().join("out.tar");
        layout.archive(&file).expect("archived");
        assert!(!dir.path().join("l").exists());
        let mut archive = tar::Archive::new(File::open(file).expect("opened"));
        let mut index = String::new();
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("an entry");
            if entry.path().expect("a path").ends_with("index.json") {
                entry.read_to_string(&mut index).expect("read");
            }
        }
        assert!(index.contains("\"host:5000/a/b:v1\"") && index.contains("\"v1\""), "{index}");
    }

    #[test]
    fn a_blob_may_be_written_twice_at_a_time() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::create(dir.path().join("l")).expect("made");
        let digest = crate::manifest::digest(b"hello");
        let mut begun: Vec<_> = (0..2).map(|_| layout.partial(&digest).expect("begun")).collect();
        for (file, path) in &mut begun {
            file.write_all(b"hello").expect("written");
            layout.keep(path, &digest).expect("kept");
        }
        assert_eq!(fs::read(layout.path(&digest)).expect("there"), b"hello");
    }
}
