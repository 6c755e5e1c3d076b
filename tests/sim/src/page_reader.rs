//! A second reader of the log, written from `docs/formats/wal.md` and nothing else.
//!
//! Owns: the proof that the page is enough, and an opinion to compare the real reader with on
//! logs that are not damaged. Never: shares code with `libs/wal`.

use std::path::Path;

use millrace_crypto::{aead::FrameOpener, key::TenantKeySource};
use millrace_platform::disk::{Disk, read_file};

use crate::stage::{FixedTenant, Stop, TENANT};

const PAGE: usize = 4096;

struct Segment {
    bytes: Vec<u8>,
    first: u64,
    continues_after: u64,
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn short(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
}

fn refused(what: &str) -> Stop {
    Stop::Refused(what.into())
}

fn segments(disk: &dyn Disk, dir: &Path, checked: bool) -> Result<Vec<Segment>, Stop> {
    let io = |e: std::io::Error| Stop::Disk(e.to_string());
    let mut out = Vec::new();
    for entry in disk.list(dir).map_err(io)? {
        if entry.is_dir || !entry.name.ends_with(".wal") {
            continue;
        }
        let bytes = read_file(disk, &dir.join(&entry.name), 1 << 30).map_err(io)?;
        if bytes.starts_with(b"MRWALEND") {
            continue;
        }
        let header = bytes.get(..128).ok_or_else(|| refused("short segment"))?;
        if checked && short(header, 124) != crc32c::crc32c(&header[..124]) {
            return Err(refused("segment checksum"));
        }
        let (first, continues_after) = (number(header, 24), number(header, 32));
        out.push(Segment { bytes, first, continues_after });
    }
    Ok(out)
}

/// Every payload from log number `from` on, with its number. Unless `checked`, checksums, seals
/// and order are not looked at (a planted bug), and what does not open is handed out as it is.
pub fn read(
    disk: &dyn Disk,
    dir: &Path,
    from: u64,
    checked: bool,
) -> Result<Vec<(u64, Vec<u8>)>, Stop> {
    let segments = segments(disk, dir, checked)?;
    let mut out = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let end = segments.get(index + 1).map_or(u64::MAX, |next| next.continues_after);
        walk(segment, from, end, checked, &mut out)?;
    }
    Ok(out)
}

fn walk(
    segment: &Segment,
    from: u64,
    end: u64,
    checked: bool,
    out: &mut Vec<(u64, Vec<u8>)>,
) -> Result<(), Stop> {
    let bytes = &segment.bytes;
    let keys = FixedTenant.current(&TENANT).map_err(|e| Stop::Disk(e.to_string()))?;
    let salt: [u8; 32] = bytes.get(56..88).and_then(|s| s.try_into().ok()).unwrap_or_default();
    let context = [&bytes[16..24], &bytes[48..56]].concat();
    let opener = FrameOpener::new(&keys.segment_key(&salt, &context));
    let mut at = PAGE;
    let mut expected = segment.first;
    while expected <= end {
        if bytes.get(at) == Some(&0xA5) {
            at = at.next_multiple_of(PAGE);
            continue;
        }
        let Some(header) = bytes.get(at..at + 80).filter(|h| h.starts_with(b"MRF1")) else { break };
        let body_end = at + 80 + short(header, 4) as usize;
        let Some(body) = bytes.get(at + 80..body_end) else { break };
        let sound = short(header, 76) == crc32c::crc32c(&header[..76])
            && short(header, 72) == crc32c::crc32c(body)
            && number(header, 8) == expected;
        if checked && !sound {
            break;
        }
        let mut payload = body.to_vec();
        let aad = [&bytes[..128], &header[..72]].concat();
        let opened = opener.open(number(header, 48), &aad, &mut payload).map(|plain| plain.len());
        match opened {
            Ok(len) => payload.truncate(len),
            Err(_) if checked => return Err(refused("a seal does not open")),
            Err(_) => payload.truncate(body.len().saturating_sub(16)),
        }
        if expected >= from {
            out.push((expected, payload));
        }
        at = body_end;
        expected += 1;
    }
    match checked && end < u64::MAX && expected <= end && end >= segment.first && end >= from {
        true => Err(refused("frames are missing before the next segment")),
        false => Ok(()),
    }
}
