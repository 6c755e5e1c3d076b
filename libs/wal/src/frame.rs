//! A frame: one sealed payload, with its header in the clear.
//!
//! Layout (little endian), anywhere inside a block; blocks start on pages:
//! ```text
//!   0   4  magic "MRWF"
//!   4   4  length of the sealed payload (ciphertext and 16-byte tag)
//!   8   8  log position
//!  16   8  counter of its key: the nonce is (1 as u32, counter as u64), big endian
//!  24  16  key owner
//!  40   4  key version
//!  44   4  first page of the block that it was written in
//!  48  16  tag of the frame before it in this segment; zero for the first
//!  64   4  CRC-32C of bytes 0 to 64 and of the sealed payload
//!  68   -  sealed payload
//! ```
//! The header up to the CRC is the AAD, so length, place and predecessor are authenticated.
//! A block is what one sync covered: frames back to back, zeroes to the end of the page. The next
//! block starts only after that sync, so a valid later block proves that this one was durable.

use crate::{keys::KeyRef, segment::PAGE_BYTES};

pub(crate) const FRAME_HEADER_BYTES: usize = 68;
pub(crate) const AAD_BYTES: usize = 64;
const MAGIC: &[u8; 4] = b"MRWF";

/// A frame's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) sealed_len: u32,
    pub(crate) lsn: u64,
    pub(crate) counter: u64,
    pub(crate) key: KeyRef,
    pub(crate) block_page: u32,
    pub(crate) previous_tag: [u8; 16],
}

impl FrameHeader {
    /// The authenticated part.
    pub(crate) fn aad(&self) -> [u8; AAD_BYTES] {
        let mut out = [0u8; AAD_BYTES];
        out[..4].copy_from_slice(MAGIC);
        out[4..8].copy_from_slice(&self.sealed_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.lsn.to_le_bytes());
        out[16..24].copy_from_slice(&self.counter.to_le_bytes());
        out[24..40].copy_from_slice(&self.key.owner);
        out[40..44].copy_from_slice(&self.key.version.to_le_bytes());
        out[44..48].copy_from_slice(&self.block_page.to_le_bytes());
        out[48..64].copy_from_slice(&self.previous_tag);
        out
    }
}

/// A frame found in a segment, checksum verified, still sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawFrame {
    pub(crate) header: FrameHeader,
    /// Offset of the header in the segment.
    pub(crate) at: usize,
    /// Offset just past the sealed payload.
    pub(crate) end: usize,
}

impl RawFrame {
    pub(crate) fn sealed_at(&self) -> usize {
        self.at + FRAME_HEADER_BYTES
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}

/// The CRC field of a frame.
pub(crate) fn crc(aad: &[u8], sealed: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(aad), sealed)
}

/// What stands at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    Frame(RawFrame),
    /// Zeroes: padding, or the end of what was written.
    Nothing,
    /// Bytes that are no valid frame.
    Invalid,
}

/// Reads what stands at `at` in a segment's bytes.
pub(crate) fn read_at(bytes: &[u8], at: usize) -> At {
    if bytes.get(at..at + 4) != Some(MAGIC) {
        // Padding reaches to the end of its page; the next page may hold the next block.
        let page_end = bytes.len().min((at + 1).next_multiple_of(PAGE_BYTES as usize));
        let rest = bytes.get(at..page_end).unwrap_or_default();
        return if rest.iter().all(|b| *b == 0) { At::Nothing } else { At::Invalid };
    }
    let Some(head) = bytes.get(at..at + FRAME_HEADER_BYTES) else { return At::Invalid };
    let header = FrameHeader {
        sealed_len: u32::from_le_bytes(array(head, 4)),
        lsn: u64::from_le_bytes(array(head, 8)),
        counter: u64::from_le_bytes(array(head, 16)),
        key: KeyRef { owner: array(head, 24), version: u32::from_le_bytes(array(head, 40)) },
        block_page: u32::from_le_bytes(array(head, 44)),
        previous_tag: array(head, 48),
    };
    let body = at + FRAME_HEADER_BYTES;
    let end = body.saturating_add(header.sealed_len as usize);
    let Some(sealed) = bytes.get(body..end) else { return At::Invalid };
    let expected = u32::from_le_bytes(array(head, AAD_BYTES));
    if crc(head.get(..AAD_BYTES).unwrap_or_default(), sealed) != expected {
        return At::Invalid;
    }
    At::Frame(RawFrame { header, at, end })
}

/// The tag that ends a sealed payload.
pub(crate) fn tag_of(sealed: &[u8]) -> [u8; 16] {
    array(sealed, sealed.len().saturating_sub(16))
}
