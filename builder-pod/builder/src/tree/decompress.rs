//! From a layer's blob to its tar: the compression is told by the first bytes (registries carry layers whose media type
//! names another one), bounded in memory and in what comes out, hashed on the way.

use std::io::{self, BufRead, BufReader, Read};

use sha2::{Digest, Sha256};

use super::TreeError;
use super::tar_read::read_error;

/// Most bytes that one layer or archive may unpack to: four times the largest images known (model weights, 16 GiB a
/// layer); a gzip bomb of 64 MiB or a zstd bomb of 4 MiB ends here at the latest, and the workspace's size limit before.
pub(super) const MAX_UNPACKED: u64 = 64 << 30;
/// Largest zstd window, as a power of two: what the reference decoder allows by default (128 MiB, RFC 8878 3.1.1.1.2).
const MAX_WINDOW_LOG: u32 = 27;
/// Most memory for an xz dictionary, in KiB: `xz -9` takes 64 MiB.
const MAX_XZ_MEMORY: u32 = 128 << 10;

/// Media types of layers (OCI image-spec media-types.md, Docker image manifest v2 schema 2).
const LAYER_TYPES: [&str; 12] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
];

/// Refuses what is no layer.
pub(super) fn check_media_type(media_type: &str) -> Result<(), TreeError> {
    if LAYER_TYPES.contains(&media_type) {
        return Ok(());
    }
    Err(TreeError::image(format!(
        "layer media type {media_type:?} is not known: expected a tar, plain or compressed with gzip or zstd"
    )))
}

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Plain,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Format {
    /// Tells it by the first bytes.
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            _ => Self::Plain,
        }
    }
}

/// The decompressed bytes of `input`.
pub(super) fn decompress<'a>(
    format: Format,
    input: impl BufRead + 'a,
) -> Result<Box<dyn Read + 'a>, TreeError> {
    Ok(match format {
        Format::Plain => Box::new(input),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(read_error)?;
            decoder.window_log_max(MAX_WINDOW_LOG).map_err(read_error)?;
            Box::new(decoder)
        }
        Format::Bzip2 => Box::new(Bzip2::new(input)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, MAX_XZ_MEMORY)),
    })
}

/// Tells the compression of `input` and gives it back whole.
fn sniff<'a>(mut input: impl Read + 'a) -> Result<(Format, impl BufRead + 'a), TreeError> {
    // The longest mark is xz's, 6 bytes.
    let mut start = Vec::new();
    (&mut input).take(6).read_to_end(&mut start).map_err(read_error)?;
    let format = Format::of(&start);
    // 128 KiB: a pipe's worth.
    Ok((format, BufReader::with_capacity(128 << 10, io::Cursor::new(start).chain(input))))
}

/// The tar of a layer's blob.
pub(super) fn layer_tar<'a>(blob: impl Read + 'a) -> Result<Measured<Box<dyn Read + 'a>>, TreeError> {
    let (format, input) = sniff(blob)?;
    let format = match format {
        Format::Bzip2 => {
            return Err(TreeError::image("a layer compressed with bzip2; OCI knows gzip and zstd"));
        }
        Format::Xz => return Err(TreeError::image("a layer compressed with xz; OCI knows gzip and zstd")),
        format => format,
    };
    Ok(Measured::new(decompress(format, input)?, MAX_UNPACKED))
}

/// The streams of a bzip2 file, one after the other. Each costs its decoder's four megabytes of memory anew, which a
/// stream of fourteen bytes can ask for, so that streams have to bring something.
struct Bzip2<R: BufRead> {
    /// `None` after the last, and after an error.
    decoder: Option<bzip2::bufread::BzDecoder<R>>,
    streams: u64,
    out: u64,
}

/// Streams that may be short.
const SHORT_STREAMS: u64 = 500;
/// Bytes that each of the others brings: parallel compressors make streams of 900 kB.
const STREAM_BYTES: u64 = 4096;

impl<R: BufRead> Bzip2<R> {
    fn new(input: R) -> Self {
        Self { decoder: Some(bzip2::bufread::BzDecoder::new(input)), streams: 1, out: 0 }
    }
}

impl<R: BufRead> Read for Bzip2<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut decoder) = self.decoder.take() {
            let got = decoder.read(buffer)?;
            self.out += got as u64;
            if got > 0 || buffer.is_empty() {
                self.decoder = Some(decoder);
                return Ok(got);
            }
            let mut input = decoder.into_inner();
            if input.fill_buf()?.is_empty() {
                break;
            }
            self.streams += 1;
            if self.streams > SHORT_STREAMS + self.out / STREAM_BYTES {
                return Err(io::Error::other(format!(
                    "it has {} bzip2 streams with {} bytes in all, fewer than {STREAM_BYTES} for each",
                    self.streams, self.out
                )));
            }
            self.decoder = Some(bzip2::bufread::BzDecoder::new(input));
        }
        Ok(0)
    }
}

/// A reader that counts, hashes and stops at a limit.
pub(super) struct Measured<R> {
    input: R,
    hash: Sha256,
    size: u64,
    limit: u64,
}

impl<R> std::fmt::Debug for Measured<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Measured").field("size", &self.size).finish_non_exhaustive()
    }
}

impl<R: Read> Measured<R> {
    /// Of `input`, at most `limit` bytes.
    pub fn new(input: R, limit: u64) -> Self {
        Self { input, hash: Sha256::new(), size: 0, limit }
    }

    /// With another limit.
    pub fn limited(self, limit: u64) -> Self {
        Self { limit, ..self }
    }

    /// `sha256:…` of what was read, and how many bytes it was.
    pub fn finish(self) -> (String, u64) {
        (format!("sha256:{}", hex::encode(self.hash.finalize())), self.size)
    }
}

impl<R: Read> Read for Measured<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.input.read(buffer)?;
        self.size += got as u64;
        if self.size > self.limit {
            return Err(io::Error::other(format!(
                "it unpacks to more than {} bytes, the most that one may have",
                self.limit
            )));
        }
        self.hash.update(&buffer[..got]);
        Ok(got)
    }
}
