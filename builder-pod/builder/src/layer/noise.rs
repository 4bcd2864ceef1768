//! Which blocks are not worth compressing: archives, pictures, keys. deflate needs as long for them as for text, and gains
//! nothing.
//!
//! Two looks, by what they cost. Bytes that are not spread evenly compress: a count of some of them says so of text and
//! programs in a hundredth of the time that compressing takes. What is spread evenly may still repeat itself: zstd at its
//! lowest level looks at all of it, fifty times as fast as deflate where there is nothing to find.

use std::io;

/// Bytes between two pieces that are counted, and bytes of a piece: a sixteenth of all.
const STRIDE: usize = 64 << 10;
const PIECE: usize = 4 << 10;
/// A block must shrink by more than one part in so many; below that only pictures are told from noise.
const LEAST_GAIN: usize = 64;
/// zstd's lowest level that still looks for repeats everywhere.
const LEVEL: i32 = 1;

/// Looks at blocks.
pub(super) struct Probe(Box<zstd::bulk::Compressor<'static>>);

impl Probe {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Box::new(zstd::bulk::Compressor::new(LEVEL)?)))
    }

    /// Whether `block` is as good as incompressible; `scratch` is overwritten. The same block has the same answer everywhere.
    pub(super) fn is_noise(&mut self, block: &[u8], scratch: &mut [u8]) -> bool {
        // Where there is no room for the result, it did not shrink.
        is_even(block)
            && self
                .0
                .compress_to_buffer(block, scratch)
                .map_or(true, |size| size > block.len() - block.len() / LEAST_GAIN)
    }
}

/// Whether all values of a byte are about as frequent.
fn is_even(block: &[u8]) -> bool {
    let (mut counts, mut bytes) = ([0u32; 256], 0u64);
    for piece in block.chunks(STRIDE) {
        let piece = &piece[..piece.len().min(PIECE)];
        bytes += piece.len() as u64;
        for byte in piece {
            counts[usize::from(*byte)] += 1;
        }
    }
    // The squares add up to bytes²/256 if all are equal, by chance to 256 × bytes more, and to a 32nd more if text is one
    // piece in sixteen.
    let squares: u64 = counts.iter().map(|n| u64::from(*n) * u64::from(*n)).sum();
    let equal = bytes * bytes / 256;
    squares <= equal + equal / 32 + 2 * bytes
}
