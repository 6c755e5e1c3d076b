//! The series directory of a column file (`.sdx`): which rows belong to which series.
//!
//! Layout before sealing (little endian, LEB128 varints):
//! ```text
//! u8 version = 1, varint count, then per series in row order:
//!   u64 series id, varint rows, varint (t_min - previous t_min) zigzag, varint (t_max - t_min)
//! ```
//! Rows are contiguous from 0, so a start is the sum of the rows before it. About 12 bytes a
//! series: exact row ranges for any tag predicate without touching the Parquet section.
//! Validity: authenticated by its seal; counts and sums are checked, trailing bytes refused.

use millrace_protocol::ids::SeriesId;

use crate::run::SeriesSpan;

const VERSION: u8 = 1;

/// A directory that does not parse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("series directory is damaged or of another version: {0}; restore the file from a backup")]
pub struct DirectoryError(pub &'static str);

/// A decoded directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeriesDirectory {
    spans: Vec<SeriesSpan>,
}

fn put_varint(out: &mut Vec<u8>, mut v: u64) {
    while v >= 0x80 {
        out.push(v as u8 | 0x80);
        v >>= 7;
    }
    out.push(v as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, DirectoryError> {
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(DirectoryError("it ends early"))?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(DirectoryError("a number is too large"));
        }
        out |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(out);
        }
    }
    Err(DirectoryError("a number is too long"))
}

impl SeriesDirectory {
    /// A directory of spans that cover rows from 0 without holes.
    pub fn new(spans: Vec<SeriesSpan>) -> Self {
        Self { spans }
    }

    /// The spans in row order.
    pub fn spans(&self) -> &[SeriesSpan] {
        &self.spans
    }

    /// Rows of the file.
    pub fn rows(&self) -> u64 {
        self.spans.last().map_or(0, |s| u64::from(s.start) + u64::from(s.rows))
    }

    /// Encodes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        put_varint(&mut out, self.spans.len() as u64);
        let mut previous = 0i64;
        for s in &self.spans {
            out.extend_from_slice(&s.sid.0.to_le_bytes());
            put_varint(&mut out, u64::from(s.rows));
            let delta = s.t_min.wrapping_sub(previous);
            put_varint(&mut out, ((delta << 1) ^ (delta >> 63)) as u64);
            put_varint(&mut out, s.t_max.wrapping_sub(s.t_min) as u64);
            previous = s.t_min;
        }
        out
    }

    /// Decodes.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, DirectoryError> {
        let (version, rest) = bytes.split_first().ok_or(DirectoryError("it is empty"))?;
        if *version != VERSION {
            return Err(DirectoryError("unknown version"));
        }
        bytes = rest;
        let count = take_varint(&mut bytes)?;
        let mut spans = Vec::new();
        let (mut start, mut previous) = (0u32, 0i64);
        for _ in 0..count {
            let (sid, rest) =
                bytes.split_first_chunk::<8>().ok_or(DirectoryError("it ends early"))?;
            bytes = rest;
            let rows = u32::try_from(take_varint(&mut bytes)?)
                .map_err(|_| DirectoryError("a row count is too large"))?;
            let zigzag = take_varint(&mut bytes)?;
            let delta = (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
            let t_min = previous.wrapping_add(delta);
            let t_max = t_min.wrapping_add(take_varint(&mut bytes)? as i64);
            if rows == 0 || t_max < t_min {
                return Err(DirectoryError("a span is empty or runs backward"));
            }
            let sid = SeriesId(u64::from_le_bytes(*sid));
            spans.push(SeriesSpan { sid, start, rows, t_min, t_max });
            start = start.checked_add(rows).ok_or(DirectoryError("too many rows"))?;
            previous = t_min;
        }
        if !bytes.is_empty() {
            return Err(DirectoryError("bytes after the last series"));
        }
        Ok(Self { spans })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_directory_comes_back_and_no_prefix_of_it_does(
            rows in proptest::collection::vec((any::<u64>(), 1u32..100, any::<i64>(), 0i64..1_000_000), 1..20)
        ) {
            let mut start = 0;
            let spans = rows.into_iter().map(|(sid, rows, t, len)| {
                let t_min = t.clamp(i64::MIN / 2, i64::MAX / 2);
                let span = SeriesSpan { sid: SeriesId(sid), start, rows, t_min, t_max: t_min + len };
                start += rows;
                span
            }).collect();
            let directory = SeriesDirectory::new(spans);
            let bytes = directory.encode();
            prop_assert_eq!(SeriesDirectory::decode(&bytes).unwrap(), directory);
            for cut in 0..bytes.len() {
                prop_assert!(SeriesDirectory::decode(&bytes[..cut]).is_err());
            }
        }
    }
}
