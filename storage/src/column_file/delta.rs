//! Parquet's DELTA_BINARY_PACKED, in two layouts that any reader takes.
//!
//! Owns: block sizes and bit widths. Never: reads.
//! * [`Layout::Narrow`]: every miniblock as narrow as its values; nothing is left for a
//!   compressor.
//! * [`Layout::Bytes`]: deltas over one base for the whole chunk, in whole bytes. Wider, but equal
//!   deltas are equal bytes, so an entropy coder behind it (zstd) gets near what they really say:
//!   2.2 bits instead of 3.7 for a walk of small steps. The format leaves both free.

use super::hybrid::{bits, pack, varint};

/// Values of a block and of a miniblock: small blocks, so that one leap between two series widens
/// few of its neighbours.
const NARROW: (usize, usize) = (256, 64);
/// The same where bytes are wanted; headers between the deltas disturb the entropy coder.
const BYTES: (usize, usize) = (1024, 256);

/// See the module head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// As narrow as can be.
    Narrow,
    /// Whole bytes above `base`, which a block with a smaller delta undercuts.
    Bytes {
        /// What is taken off each delta.
        base: i64,
    },
}

impl Layout {
    /// Bytes about the middle of the deltas of `sample`.
    pub(super) fn bytes(sample: &[i64]) -> Self {
        let mut deltas: Vec<i64> = deltas(sample).collect();
        let middle = deltas.len() / 2;
        let median = match deltas.is_empty() {
            true => 0,
            false => *deltas.select_nth_unstable(middle).1,
        };
        Self::Bytes { base: median.saturating_sub(128) }
    }
}

fn deltas(values: &[i64]) -> impl Iterator<Item = i64> {
    values.windows(2).map(|pair| pair[1].wrapping_sub(pair[0]))
}

/// Appends `values` as one page's data.
pub(super) fn encode(out: &mut Vec<u8>, values: &[i64], layout: Layout) {
    let (block, mini) = match layout {
        Layout::Narrow => NARROW,
        Layout::Bytes { .. } => BYTES,
    };
    varint(out, block as u64);
    varint(out, (block / mini) as u64);
    varint(out, values.len() as u64);
    zigzag(out, values.first().copied().unwrap_or(0));
    let mut above = vec![0u64; block];
    let mut from = 0;
    while from + 1 < values.len() {
        let to = (from + block).min(values.len() - 1);
        encode_block(out, &values[from..=to], layout, mini, &mut above);
        from = to;
    }
}

/// `values` begins with the last one before the block.
fn encode_block(out: &mut Vec<u8>, values: &[i64], layout: Layout, mini: usize, above: &mut [u64]) {
    let mut least = deltas(values).min().unwrap_or(0);
    if let Layout::Bytes { base } = layout {
        least = least.min(base);
    }
    // Differences wrap, as the format has it: a reader's sums wrap back.
    for (above, delta) in above.iter_mut().zip(deltas(values)) {
        *above = delta.wrapping_sub(least) as u64;
    }
    zigzag(out, least);
    let minis = above.len() / mini;
    let above = &mut above[..values.len() - 1];
    let widths = out.len();
    out.resize(widths + minis, 0);
    for (number, part) in above.chunks(mini).enumerate() {
        let needed = bits(part.iter().fold(0, |all, v| all | v));
        let width = match layout {
            Layout::Narrow => needed,
            Layout::Bytes { .. } => needed.next_multiple_of(8).max(8),
        };
        out[widths + number] = width as u8;
        if width == 8 {
            out.extend(part.iter().map(|v| *v as u8));
        } else {
            pack(out, part.iter().copied(), width);
        }
        // A miniblock is whole even where values end.
        let written = (part.len() * width).div_ceil(8);
        out.resize(out.len() + mini * width / 8 - written, 0);
    }
}

fn zigzag(out: &mut Vec<u8>, n: i64) {
    varint(out, ((n << 1) ^ (n >> 63)) as u64);
}
