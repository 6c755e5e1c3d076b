//! The layout of a frame: a header in clear, then the sealed payload.
//!
//! ```text
//! offset size
//!      0    4  magic "MRF1"
//!      4    4  body length: ciphertext and 16-byte tag; 0 in a frame whose key is gone
//!      8    8  log number (LSN)
//!     16    8  durable mark: every frame up to this number was synced when this one was sealed
//!     24   16  key owner
//!     40    4  key version
//!     44    4  flags: 1 = the key is gone, no body
//!     48    8  nonce counter under this key in this segment
//!     56   16  tag of the frame before it in this segment; zero in the first
//!     72    4  CRC32C of the body
//!     76    4  CRC32C of bytes 0..76 (so, through the body's, of the whole frame)
//!     80    -  body
//! ```
//! All numbers little endian. AAD of the seal: the segment header, then bytes 0..72.
//! Owns: encoding and decoding. Never: trusts a length before the header's checksum holds, nor a
//! payload before its seal opens.
//! The header has a checksum of its own because the place of the next frame hangs on the length;
//! the tag before it is stored because a quarantine scan must open frames behind a lost one.

use crate::keys::KeyRef;

/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 80;
/// Bytes of a frame that its seal authenticates as AAD.
pub(crate) const FRAME_AAD_BYTES: usize = 72;
/// Payloads over this are refused, in segments of any size: 32 MiB.
pub const FRAME_PAYLOAD_MAX: usize = 32 << 20;

/// No counter of the format goes higher, so that sums of them never overflow, whatever a file says.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

pub(crate) const FRAME_MAGIC: [u8; 4] = *b"MRF1";
/// The frame's key is gone: a restart could not seal it again.
pub(crate) const FLAG_GONE: u32 = 1;

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) body_len: u32,
    pub(crate) lsn: u64,
    pub(crate) durable: u64,
    pub(crate) key: KeyRef,
    pub(crate) flags: u32,
    pub(crate) counter: u64,
    pub(crate) previous_tag: [u8; 16],
    pub(crate) body_crc: u32,
}

pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

impl FrameHeader {
    /// The header's bytes, checksums included.
    pub(crate) fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0u8; FRAME_HEADER_BYTES];
        out[0..4].copy_from_slice(&FRAME_MAGIC);
        out[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.lsn.to_le_bytes());
        out[16..24].copy_from_slice(&self.durable.to_le_bytes());
        out[24..40].copy_from_slice(&self.key.owner);
        out[40..44].copy_from_slice(&self.key.version.to_le_bytes());
        out[44..48].copy_from_slice(&self.flags.to_le_bytes());
        out[48..56].copy_from_slice(&self.counter.to_le_bytes());
        out[56..72].copy_from_slice(&self.previous_tag);
        Self::finish(&mut out, self.body_crc);
        out
    }

    /// Writes both checksums into an encoded header.
    pub(crate) fn finish(header: &mut [u8], body_crc: u32) {
        header[72..76].copy_from_slice(&body_crc.to_le_bytes());
        let crc = crc32c::crc32c(&header[..76]);
        header[76..80].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header; `None` if these bytes are not one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..FRAME_HEADER_BYTES)?;
        if bytes[..4] != FRAME_MAGIC {
            return None;
        }
        if u32_at(bytes, 76) != crc32c::crc32c(&bytes[..76]) {
            return None;
        }
        if u64_at(bytes, 8) > NUMBER_MAX {
            return None;
        }
        Some(Self {
            body_len: u32_at(bytes, 4),
            lsn: u64_at(bytes, 8),
            durable: u64_at(bytes, 16),
            key: KeyRef { owner: array(bytes, 24), version: u32_at(bytes, 40) },
            flags: u32_at(bytes, 44),
            counter: u64_at(bytes, 48),
            previous_tag: array(bytes, 56),
            body_crc: u32_at(bytes, 72),
        })
    }

    /// Whether the frame stands for one whose key is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.flags & FLAG_GONE != 0
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.body_len)
    }
}
