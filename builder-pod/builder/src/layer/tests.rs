//! Blobs: that they hold what went in, always with the same bytes, and in little memory.

use std::io::Cursor;
use std::process::{Command, Stdio};

use super::*;

/// Bytes that compress about as well as programs do.
fn sample(size: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..size)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if i % 3 == 0 { (state >> 24) as u8 } else { (i / 64) as u8 }
        })
        .collect()
}

fn packed(tar: &[u8], compression: Compression, threads: usize) -> (Blob, Vec<u8>) {
    let mut out = Vec::new();
    let blob = compress(Cursor::new(tar), &mut out, compression, threads).unwrap();
    assert_eq!(blob.size, out.len() as u64);
    assert_eq!(blob.digest, name(Sha256::new_with_prefix(&out)));
    assert_eq!(blob.diff_id, name(Sha256::new_with_prefix(tar)));
    assert_eq!(blob.tar_size, tar.len() as u64);
    (blob, out)
}

fn sizes() -> [usize; 7] {
    [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 4711]
}

#[test]
fn a_blob_unpacks_to_its_tar() {
    for size in sizes() {
        let tar = sample(size);
        let mut back = Vec::new();
        let (_, gzip) = packed(&tar, Compression::Gzip, 2);
        flate2::read::MultiGzDecoder::new(gzip.as_slice()).read_to_end(&mut back).unwrap();
        assert!(back == tar, "gzip of {size}");
        let (_, zstd) = packed(&tar, Compression::Zstd, 2);
        assert!(zstd::decode_all(zstd.as_slice()).unwrap() == tar, "zstd of {size}");
        assert!(packed(&tar, Compression::Uncompressed, 2).1 == tar, "none of {size}");
    }
}

#[test]
fn the_bytes_do_not_depend_on_the_number_of_threads() {
    for size in sizes() {
        let tar = sample(size);
        for compression in [Compression::Gzip, Compression::Zstd, Compression::Uncompressed] {
            let one = packed(&tar, compression, 1);
            for threads in [0, 2, 3, 8] {
                assert_eq!(packed(&tar, compression, threads), one, "{compression:?}, {size}, {threads}");
            }
        }
    }
}

#[test]
fn the_gzip_header_says_nothing_of_the_machine() {
    let (_, gzip) = packed(&sample(10), Compression::Gzip, 1);
    // RFC 1952: magic, deflate, no flags, no time; then the effort, and 255 for an unknown system.
    assert_eq!(&gzip[..8], &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0]);
    assert_eq!(gzip[9], 255);
}

#[test]
fn the_gzip_program_reads_it() {
    let tar = sample(3 * BLOCK + 5);
    let (_, gzip) = packed(&tar, Compression::Gzip, 2);
    let child = Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = child else {
        println!("not run: there is no gzip program here");
        return;
    };
    let mut stdin = child.stdin.take().unwrap();
    let writer = thread::spawn(move || stdin.write_all(&gzip).unwrap());
    let back = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(back.status.success());
    assert!(back.stdout == tar);
}

/// Bytes that nothing shrinks, the same on every machine.
fn noise(size: usize) -> Vec<u8> {
    let seeds = 0..size.div_ceil(32) as u64;
    let mut bytes: Vec<u8> = seeds.flat_map(|n| Sha256::digest(n.to_be_bytes())).collect();
    bytes.truncate(size);
    bytes
}

#[test]
fn noise_is_stored_as_it_is() {
    let tar = noise(3 * BLOCK + 4711);
    let (_, gzip) = packed(&tar, Compression::Gzip, 2);
    // After ten bytes of header, the first deflate block is of kind 0 (RFC 1951, 3.2.4): the bytes themselves.
    assert_eq!(gzip[10] >> 1 & 3, 0);
    assert!(gzip[15..60_000] == tar[..59_985]);
    assert!(gzip.len() < tar.len() + tar.len() / 1000, "{} of {}", gzip.len(), tar.len());
    let mut back = Vec::new();
    flate2::read::MultiGzDecoder::new(gzip.as_slice()).read_to_end(&mut back).unwrap();
    assert!(back == tar);
}

#[test]
fn what_only_looks_like_noise_in_places_is_compressed() {
    let size = |tar: &[u8]| packed(tar, Compression::Gzip, 1).0.size as usize;
    // The values of a byte are spread evenly, and still there is one sequence again and again.
    let ramp: Vec<u8> = (0..BLOCK).map(|n| n as u8).collect();
    assert!(size(&ramp) < BLOCK / 50, "{}", size(&ramp));
    let repeated = noise(20_000).repeat(BLOCK / 20_000);
    assert!(size(&repeated) < BLOCK / 4, "{}", size(&repeated));
    // A tenth is text, and in none of the pieces that are counted.
    let mut mixed = noise(BLOCK);
    mixed[10_000..60_000].fill(b'a');
    mixed[80_000..130_000].fill(b'b');
    assert!(size(&mixed) < BLOCK - 95_000, "{}", size(&mixed));
}

/// Gives zeros, and notes how far reading is ahead of writing.
struct Ahead<'a> {
    left: u64,
    read: &'a std::sync::atomic::AtomicU64,
}

impl Read for Ahead<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = buffer.len().min(usize::try_from(self.left).unwrap());
        buffer[..got].fill(0);
        self.left -= got as u64;
        self.read.fetch_add(got as u64, std::sync::atomic::Ordering::SeqCst);
        Ok(got)
    }
}

struct Counted<'a> {
    members: u64,
    most_ahead: u64,
    read: &'a std::sync::atomic::AtomicU64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let read = self.read.load(std::sync::atomic::Ordering::SeqCst);
        self.most_ahead = self.most_ahead.max(read - self.members * BLOCK as u64);
        self.members += 1;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn memory_is_bounded_by_a_few_blocks() {
    let read = std::sync::atomic::AtomicU64::new(0);
    let blocks = 200;
    let mut out = Counted { members: 0, most_ahead: 0, read: &read };
    let tar = Ahead { left: blocks * BLOCK as u64, read: &read };
    compress(tar, &mut out, Compression::Gzip, 3).unwrap();
    // Each write is one member, here.
    assert_eq!(out.members, blocks);
    assert!(out.most_ahead <= (3 + 2) * BLOCK as u64, "{} bytes were read and not written", out.most_ahead);
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("broken"))
    }
}

impl Write for Broken {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("broken"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn errors_end_it_and_say_on_which_side() {
    let mut out = Vec::new();
    assert!(matches!(compress(Broken, &mut out, Compression::Gzip, 2), Err(LayerError::Read { .. })));
    let tar = sample(20 * BLOCK);
    let failed = compress(Cursor::new(tar), &mut Broken, Compression::Gzip, 2);
    assert!(matches!(failed, Err(LayerError::Write { .. })));
}
