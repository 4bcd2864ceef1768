//! A base image made of busybox, as OCI layout.

use std::fs;
use std::path::Path;

use anyhow::Result;
use kiln_builder::layer::{Blob, compress};
use kiln_contract::request::Compression;
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

pub const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 8] = ["sh", "cat", "echo", "id", "mkdir", "rm", "stat", "touch"];

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_600_000_000);
    header
}

/// Writes the image `name` below `bases`: two layers, of which the second removes a file of the first.
pub fn write(bases: &Path, name: &str) -> Result<()> {
    let busybox = fs::read(BUSYBOX)?;
    let mut first = Builder::new(Vec::new());
    for (dir, mode) in [("bin/", 0o755), ("etc/", 0o755), ("tmp/", 0o1777)] {
        first.append_data(&mut header(EntryType::Directory, mode, 0), dir, &[][..])?;
    }
    first.append_data(&mut header(EntryType::Regular, 0o755, busybox.len()), "bin/busybox", &busybox[..])?;
    for applet in APPLETS {
        first.append_link(&mut header(EntryType::Symlink, 0o777, 0), format!("bin/{applet}"), "busybox")?;
    }
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n"),
        ("etc/group", "root:x:0:\napp:x:1000:\n"),
        ("etc/old", "old\n"),
    ] {
        first.append_data(&mut header(EntryType::Regular, 0o644, text.len()), path, text.as_bytes())?;
    }
    let mut second = Builder::new(Vec::new());
    second.append_data(&mut header(EntryType::Regular, 0o644, 0), "etc/.wh.old", &[][..])?;

    let root = bases.join(name);
    fs::create_dir_all(root.join("blobs/sha256"))?;
    let put = |bytes: &[u8]| -> Result<String> {
        let hex = hex::encode(Sha256::digest(bytes));
        fs::write(root.join("blobs/sha256").join(&hex), bytes)?;
        Ok(format!("sha256:{hex}"))
    };
    let mut layers = Vec::new();
    let mut diff_ids = Vec::new();
    for tar in [first.into_inner()?, second.into_inner()?] {
        let mut bytes = Vec::new();
        let blob: Blob = compress(&tar[..], &mut bytes, Compression::Gzip, 1)?;
        layers.push(json!({"mediaType": blob.media_type, "digest": put(&bytes)?, "size": blob.size}));
        diff_ids.push(blob.diff_id);
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [],
    })
    .to_string();
    let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "size": config.len(),
                        "digest": put(config.as_bytes())?});
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string();
    let index = json!({"schemaVersion": 2, "manifests": [{"digest": put(manifest.as_bytes())?}]});
    fs::write(root.join("index.json"), index.to_string())?;
    Ok(())
}
