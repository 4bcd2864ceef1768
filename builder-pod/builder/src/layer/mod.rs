//! A layer's bytes: tar stream -> diff ID -> compressed blob -> digest, in one pass.
//!
//! The tar is cut into blocks of a fixed size, each compressed by itself (a gzip member, a zstd frame) and written in
//! order: the blocks go to as many threads as there are, and the bytes do not depend on how many.

mod error;
mod noise;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::sync::{Mutex, PoisonError};
use std::thread;

use kiln_contract::request::Compression;
use sha2::{Digest, Sha256};

pub use error::LayerError;
use noise::Probe;

/// Uncompressed bytes of a block: with libdeflate, level 3 on 1 MiB compresses as well as zlib's level 6 on the whole
/// (measured, engine.md B2), and a block in each of two threads, one waiting and one written, is 8 MiB in all.
const BLOCK: usize = 1 << 20;
/// libdeflate's level 3: zlib's default size (0.365 of a Debian root) at twice its speed; level 6 takes half as long again
/// for 1 % less.
const GZIP_LEVEL: i32 = 3;
/// zstd's own default.
const ZSTD_LEVEL: i32 = 3;
/// Most threads: beyond that the one that reads and hashes is soon the slower one, and each takes 3 MiB of the builder's 64.
const MAX_THREADS: usize = 8;

/// A finished layer blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// `sha256:…` of the tar.
    pub diff_id: String,
    /// `sha256:…` of the blob.
    pub digest: String,
    /// Bytes of the blob.
    pub size: u64,
    /// Bytes of the tar.
    pub tar_size: u64,
    /// Media type of the blob (OCI image-spec layer.md).
    pub media_type: &'static str,
}

/// Compresses `tar`, read to its end, into `out` with up to `threads` threads beside the caller's.
///
/// # Errors
/// [`LayerError`] when reading, compressing or writing fails; what was written then is worth nothing.
pub fn compress(
    mut tar: impl Read,
    out: &mut impl Write,
    compression: Compression,
    threads: usize,
) -> Result<Blob, LayerError> {
    let mut out = Hashed { out, hash: Sha256::new(), size: 0 };
    let mut tar_hash = Sha256::new();
    let mut tar_size = 0u64;
    let mut next_block = |mut block: Vec<u8>| -> Result<Vec<u8>, LayerError> {
        block.clear();
        let limit = BLOCK as u64;
        (&mut tar).take(limit).read_to_end(&mut block).map_err(|source| LayerError::Read { source })?;
        tar_hash.update(&block);
        tar_size += block.len() as u64;
        Ok(block)
    };
    if compression == Compression::Uncompressed {
        let mut block = next_block(Vec::with_capacity(BLOCK))?;
        while !block.is_empty() {
            out.write(&block)?;
            block = next_block(block)?;
        }
    } else {
        in_blocks(&mut next_block, &mut out, compression, threads.clamp(1, MAX_THREADS))?;
    }
    out.out.flush().map_err(|source| LayerError::Write { source })?;
    Ok(Blob {
        diff_id: name(tar_hash),
        digest: name(out.hash),
        size: out.size,
        tar_size,
        media_type: compression.media_type(),
    })
}

/// A block on its way: its number, what it holds, and a spare buffer.
type Packed = Result<(u64, Vec<u8>, Vec<u8>), LayerError>;

fn in_blocks<W: Write>(
    next_block: &mut dyn FnMut(Vec<u8>) -> Result<Vec<u8>, LayerError>,
    out: &mut Hashed<'_, W>,
    compression: Compression,
    threads: usize,
) -> Result<(), LayerError> {
    thread::scope(|scope| {
        let (todo, jobs) = mpsc::sync_channel::<(u64, Vec<u8>, Vec<u8>)>(threads);
        let (results, done) = mpsc::channel::<Packed>();
        let jobs = std::sync::Arc::new(Mutex::new(jobs));
        for _ in 0..threads {
            let (jobs, results) = (jobs.clone(), results.clone());
            scope.spawn(move || {
                let mut packer = Packer::new(compression);
                loop {
                    let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((number, block, buffer)) = job else { return };
                    let packed = match &mut packer {
                        Ok(packer) => packer.pack(&block, buffer).map(|packed| (number, packed, block)),
                        Err(e) => Err(LayerError::Compress { message: e.to_string() }),
                    };
                    if results.send(packed).is_err() {
                        return;
                    }
                }
            });
        }
        drop((results, jobs));

        // At most this many blocks exist, each with its compressed form: memory does not grow with the layer. One in each
        // thread, one that is next, and one that is done before an earlier one.
        let most = threads as u64 + 2;
        let mut spare: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut waiting: BTreeMap<u64, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
        let (mut sent, mut written, mut end) = (0u64, 0u64, false);
        while !end || written < sent {
            if !end && sent - written < most {
                let (block, buffer) = spare.pop().unwrap_or_default();
                let block = next_block(block)?;
                end = block.len() < BLOCK;
                // An empty tar is one empty block: no bytes at all would be no gzip file.
                if !block.is_empty() || sent == 0 {
                    todo.send((sent, block, buffer)).map_err(|_| gone())?;
                    sent += 1;
                }
                continue;
            }
            let (number, packed, block) = done.recv().map_err(|_| gone())??;
            waiting.insert(number, (packed, block));
            while let Some((packed, block)) = waiting.remove(&written) {
                out.write(&packed)?;
                written += 1;
                spare.push((block, packed));
            }
        }
        Ok(())
    })
}

fn gone() -> LayerError {
    LayerError::Compress { message: "a compressing thread ended".to_owned() }
}

/// Compresses blocks, one at a time.
enum Packer {
    /// `stored` is for noise: a gzip member around the bytes as they are.
    Gzip {
        deflate: libdeflater::Compressor,
        stored: libdeflater::Compressor,
        probe: Probe,
    },
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    fn new(compression: Compression) -> io::Result<Self> {
        if compression == Compression::Zstd {
            // It stores noise by itself, at 4 GB/s.
            return zstd::bulk::Compressor::new(ZSTD_LEVEL).map(Self::Zstd);
        }
        // The levels are in libdeflate's range; should that ever change, its default is right, too.
        let level = |n| libdeflater::CompressionLvl::new(n).unwrap_or_default();
        Ok(Self::Gzip {
            deflate: libdeflater::Compressor::new(level(GZIP_LEVEL)),
            stored: libdeflater::Compressor::new(level(0)),
            probe: Probe::new()?,
        })
    }

    /// Compresses `block` into `buffer`, whose room is used again. The gzip header has no time and no name, and 255 as its
    /// system (libdeflate): nothing of the machine gets into the blob.
    fn pack(&mut self, block: &[u8], mut buffer: Vec<u8>) -> Result<Vec<u8>, LayerError> {
        let failed = |message: String| LayerError::Compress { message };
        let size = match self {
            Self::Gzip { deflate, stored, probe } => {
                let room =
                    deflate.gzip_compress_bound(block.len()).max(stored.gzip_compress_bound(block.len()));
                buffer.resize(room, 0);
                let gzip = if probe.is_noise(block, &mut buffer) { stored } else { deflate };
                gzip.gzip_compress(block, &mut buffer).map_err(|e| failed(e.to_string()))?
            }
            Self::Zstd(zstd) => {
                buffer.resize(zstd::zstd_safe::compress_bound(block.len()), 0);
                zstd.compress_to_buffer(block, buffer.as_mut_slice()).map_err(|e| failed(e.to_string()))?
            }
        };
        buffer.truncate(size);
        Ok(buffer)
    }
}

struct Hashed<'a, W> {
    out: &'a mut W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Hashed<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.out.write_all(bytes).map_err(|source| LayerError::Write { source })?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

fn name(hash: Sha256) -> String {
    format!("sha256:{}", hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests;
