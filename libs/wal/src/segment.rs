//! A segment's header, name and place in the chain of segments.
//!
//! A segment is a preallocated file `{number:016x}.wal`. Its first page (4096 bytes, little
//! endian; the rest of the page is zero):
//! ```text
//!   0   4  magic "MRWS", or "MRWX" once destroyed
//!   4   1  version = 1
//!   5   3  zero
//!   8   8  segment number, from 1
//!  16   8  log position of its first frame
//!  24  16  start: random per opening of the log
//!  40  32  salt of its keys: random per segment
//!  72   8  number of the segment before it in the chain; 0 if there is none
//!  80   8  where that segment's valid bytes end
//!  88   8  the last valid log position before this segment
//!  96   4  CRC-32C of bytes 0 to 96
//! ```
//! Validity: magic, version, CRC. A segment is part of the log only if the next segment names it
//! as its predecessor, or if it is the last; its frames count only up to the end that the next
//! segment records. So whatever a failed sync or a torn tail left behind that end is not data.
//! A destroyed segment is one that a trim has given up; its removal may not have reached the disk.

use std::path::{Path, PathBuf};

/// Frames and headers start on multiples of this; a synced page is not written again.
pub const PAGE_BYTES: u64 = 4096;
/// Where the first block starts.
pub const HEADER_BYTES: u64 = PAGE_BYTES;

const MAGIC: &[u8; 4] = b"MRWS";
const DESTROYED: &[u8; 4] = b"MRWX";
const VERSION: u8 = 1;
const CRC_AT: usize = 96;

/// A decoded header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    pub(crate) first_lsn: u64,
    pub(crate) start: [u8; 16],
    pub(crate) salt: [u8; 32],
    pub(crate) previous: u64,
    pub(crate) previous_end: u64,
    pub(crate) previous_lsn: u64,
}

/// What the first page of a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Page {
    Live(SegmentHeader),
    Destroyed,
    Invalid,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE_BYTES as usize);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[VERSION, 0, 0, 0]);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.first_lsn.to_le_bytes());
        out.extend_from_slice(&self.start);
        out.extend_from_slice(&self.salt);
        for n in [self.previous, self.previous_end, self.previous_lsn] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        out.resize(PAGE_BYTES as usize, 0);
        out
    }

    /// Binds the segment's keys to its place.
    pub(crate) fn key_context(&self) -> [u8; 24] {
        let mut out = [0u8; 24];
        out[..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..].copy_from_slice(&self.start);
        out
    }
}

/// The first page of a destroyed segment: no salt, so no key.
pub(crate) fn destroyed_page() -> Vec<u8> {
    let mut out = DESTROYED.to_vec();
    out.push(VERSION);
    out.resize(CRC_AT, 0);
    out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
    out.resize(PAGE_BYTES as usize, 0);
    out
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}

/// Reads a first page; anything odd is `Invalid`.
pub(crate) fn decode(page: &[u8]) -> Page {
    let crc = u32::from_le_bytes(array(page, CRC_AT));
    let (Some(head), true) = (page.get(..CRC_AT), page.len() >= CRC_AT + 4) else {
        return Page::Invalid;
    };
    if crc32c::crc32c(head) != crc || head.get(4) != Some(&VERSION) {
        return Page::Invalid;
    }
    match head.get(..4) {
        Some(m) if m == DESTROYED => Page::Destroyed,
        Some(m) if m == MAGIC => Page::Live(SegmentHeader {
            number: u64::from_le_bytes(array(head, 8)),
            first_lsn: u64::from_le_bytes(array(head, 16)),
            start: array(head, 24),
            salt: array(head, 40),
            previous: u64::from_le_bytes(array(head, 72)),
            previous_end: u64::from_le_bytes(array(head, 80)),
            previous_lsn: u64::from_le_bytes(array(head, 88)),
        }),
        _ => Page::Invalid,
    }
}

pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}.wal"))
}

/// The number in a segment's file name.
pub(crate) fn number(name: &str) -> Option<u64> {
    let hex = name.strip_suffix(".wal")?;
    (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_bit_of_it_counts() {
        let header = SegmentHeader {
            number: 3,
            first_lsn: 17,
            start: [1; 16],
            salt: [2; 32],
            previous: 2,
            previous_end: 8192,
            previous_lsn: 16,
        };
        let page = header.encode();
        assert_eq!(decode(&page), Page::Live(header));
        for bit in 0..(CRC_AT + 4) * 8 {
            let mut flipped = page.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), Page::Invalid, "bit {bit}");
        }
        assert_eq!(decode(&destroyed_page()), Page::Destroyed);
        assert_eq!(decode(&[0; 4096]), Page::Invalid);
        assert_eq!(decode(&[]), Page::Invalid);
    }

    #[test]
    fn names_and_numbers_match() {
        let name = path(Path::new("d"), 0x1f);
        assert_eq!(number(&name.file_name().unwrap().to_string_lossy()), Some(0x1f));
        assert_eq!(number("1f.wal"), None);
        assert_eq!(number("000000000000001f.tmp"), None);
    }
}
