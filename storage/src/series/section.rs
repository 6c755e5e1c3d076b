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
/// Decoded bytes of one section at most: what a reader lays out at once.
const DECODED_MAX: usize = 1 << 30;
/// Decoded bytes that a writer puts into one section, a single larger series excepted: a section
/// past [`DECODED_MAX`] would be committed and then refuse every start.
pub(crate) const PART_BYTES: usize = 64 << 20;
const _: () = assert!(PART_BYTES <= DECODED_MAX / 2, "what is written can be read");

/// A series section that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("series section is damaged or of another version: {0}; restore the file from a backup")]
pub(crate) struct SectionError(pub String);

/// Splits entries, in order, into sections of at most `bytes` decoded bytes or one entry.
pub(crate) fn parts(entries: &[Arc<SeriesEntry>], bytes: usize) -> Vec<&[Arc<SeriesEntry>]> {
    let mut out = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        let len = 12 + entry.key.as_bytes().len();
        if at > start && size + len > bytes {
            out.extend(entries.get(start..at));
            (start, size) = (at, 0);
        }
        size += len;
    }
    out.extend(entries.get(start..).filter(|rest| !rest.is_empty()));
    out
}

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
    fn many_series_are_split_into_sections_that_a_reader_takes() {
        let dict = SeriesDictionary::new(1);
        for host in 0..100 {
            let long = "x".repeat(if host == 50 { 5000 } else { host });
            dict.add(&SeriesKey::from_sorted([("host", format!("{host}{long}").as_str())]), &[]);
        }
        let all = dict.since(0);
        let parts = parts(&all, 1000);
        assert!(parts.len() > 5, "{}", parts.len());
        for part in &parts {
            let size: usize = part.iter().map(|e| 12 + e.key.as_bytes().len()).sum();
            assert!(size <= 1000 || part.len() == 1, "{size} bytes, {} series", part.len());
        }
        let back: Vec<_> = parts.iter().flat_map(|p| decode(&encode(p)).unwrap()).collect();
        let expected: Vec<_> = all.iter().map(|e| (e.sid, e.key.clone())).collect();
        assert_eq!(back, expected);
        assert!(super::parts(&[], 1000).is_empty());
    }

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
