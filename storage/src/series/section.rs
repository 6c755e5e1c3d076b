//! The stored form of newly seen series: written once per flush, loaded at start.
//!
//! Layout before sealing (little endian): `u8` version = 1, `u32` count, then per series
//! `u64` id, `u32` length, canonical tags (batch.rs `SeriesKey`); the whole after the version
//! byte is one LZ4 block with its decoded length in front (`u32`).
//! Validity: the section is authenticated by its seal before it is parsed; counts and lengths
//! are checked all the same, and trailing bytes are an error.

use std::sync::Arc;

use millrace_protocol::{batch::SeriesKey, ids::SeriesId};

use super::dictionary::SeriesEntry;

const VERSION: u8 = 1;
/// Decoded bytes of one section at most: a million series of 1 KiB tags.
const DECODED_MAX: usize = 1 << 30;

/// A series section that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "series section is damaged or of another version: {0}; run `millrace fsck` and restore the table from a backup"
)]
pub(crate) struct SectionError(pub String);

/// Encodes entries in order.
pub(crate) fn encode(entries: &[Arc<SeriesEntry>]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for entry in entries {
        body.extend_from_slice(&entry.sid.0.to_le_bytes());
        body.extend_from_slice(&(entry.key.as_bytes().len() as u32).to_le_bytes());
        body.extend_from_slice(entry.key.as_bytes());
    }
    let mut out = vec![VERSION];
    out.extend_from_slice(&lz4_flex::block::compress_prepend_size(&body));
    out
}

/// Decodes a section.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<(SeriesId, SeriesKey)>, SectionError> {
    let fail = |what: &str| SectionError(what.to_owned());
    let (version, rest) = bytes.split_first().ok_or_else(|| fail("it is empty"))?;
    if *version != VERSION {
        return Err(SectionError(format!("version {version}")));
    }
    let (len, _) = rest.split_first_chunk::<4>().ok_or_else(|| fail("no length"))?;
    if u32::from_le_bytes(*len) as usize > DECODED_MAX {
        return Err(fail("decoded length over the limit"));
    }
    let body = lz4_flex::block::decompress_size_prepended(rest)
        .map_err(|e| SectionError(e.to_string()))?;
    let (count, mut body) = body.split_first_chunk::<4>().ok_or_else(|| fail("no count"))?;
    let mut out = Vec::new();
    for _ in 0..u32::from_le_bytes(*count) {
        let (sid, rest) = body.split_first_chunk::<8>().ok_or_else(|| fail("it ends early"))?;
        let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(|| fail("it ends early"))?;
        let (key, rest) = rest
            .split_at_checked(u32::from_le_bytes(*len) as usize)
            .ok_or_else(|| fail("it ends early"))?;
        let key = SeriesKey::from_bytes(key).ok_or_else(|| fail("tags are not canonical"))?;
        out.push((SeriesId(u64::from_le_bytes(*sid)), key));
        body = rest;
    }
    if !body.is_empty() {
        return Err(fail("bytes after the last series"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::series::dictionary::SeriesDictionary;

    #[test]
    fn a_section_comes_back_and_damage_is_an_error() {
        let dict = SeriesDictionary::new(1);
        for host in ["a", "b", "c"] {
            dict.add(&SeriesKey::from_sorted([("host", host)]), &[]);
        }
        let bytes = encode(&dict.since(0));
        let back = decode(&bytes).unwrap();
        assert_eq!(back.len(), 3);
        assert_eq!(back[1].1.get("host"), Some("b"));
        for cut in 0..bytes.len() {
            assert!(decode(&bytes[..cut]).is_err(), "prefix of {cut}");
        }
    }
}
