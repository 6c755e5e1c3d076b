//! The compact form of a [`TableBatch`]: the body of a log record and of a queue frame.
//!
//! Layout (little endian):
//! ```text
//! u8  version = 1
//! u16 length + table name
//! u32 rows
//! integers: row times        (see below)
//! integers: series index of each row
//! integers: line of each row
//! u32 series, each u32 length + canonical tags
//! u16 fields, each: u16 length + name, u8 type code, presence, values
//! presence: u8 0 = all rows, or 1 then one bit per row, u64 words, least significant first
//! values: f64 8 bytes each; i64, u64 as integers; bool one bit per row as u64 words;
//!         text: integers (lengths), u32 total, bytes
//! integers: u8 width w in {0, 1, 2, 4, 8}, i64 or u64 base (8 bytes), rows x w bytes of
//!           (value - base); w 0 means all equal
//! ```
//! Frame of reference keeps a TSBS row near 12 bytes and costs a pass over each column.
//! Validity: every length is checked against what is left before memory is taken; the decoded
//! batch passes [`TableBatch::check`]; trailing bytes are an error.
//! Evolution: a new layout takes a new version; old versions stay readable.

use crate::{
    batch::{FieldColumn, Presence, SeriesKey, TableBatch},
    value::{FieldType, FieldValues, Texts},
};

const VERSION: u8 = 1;

/// Bytes that are no valid batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The layout's version is unknown.
    #[error("batch version {0} is unknown; this build reads version {VERSION}")]
    Version(u8),
    /// It ends before a length says.
    #[error("the batch ends early, in {0}")]
    Short(&'static str),
    /// A value that cannot be.
    #[error("the batch holds an impossible {0}")]
    Invalid(&'static str),
    /// Bytes after the end.
    #[error("{0} bytes follow the batch")]
    Trailing(usize),
}

fn put_ints(out: &mut Vec<u8>, values: impl Iterator<Item = u64> + Clone, base: u64) {
    let widest = values.clone().map(|v| v.wrapping_sub(base)).max().unwrap_or(0);
    let width: u8 = match widest {
        0 => 0,
        1..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    out.push(width);
    out.extend_from_slice(&base.to_le_bytes());
    match width {
        0 => {}
        1 => out.extend(values.map(|v| v.wrapping_sub(base) as u8)),
        2 => {
            values.for_each(|v| out.extend_from_slice(&(v.wrapping_sub(base) as u16).to_le_bytes()))
        }
        4 => {
            values.for_each(|v| out.extend_from_slice(&(v.wrapping_sub(base) as u32).to_le_bytes()))
        }
        _ => values.for_each(|v| out.extend_from_slice(&v.wrapping_sub(base).to_le_bytes())),
    }
}

fn put_i64s(out: &mut Vec<u8>, values: &[i64]) {
    let base = values.iter().copied().min().unwrap_or(0);
    put_ints(out, values.iter().map(|v| *v as u64), base as u64);
}

fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    let base = values.iter().copied().min().unwrap_or(0);
    put_ints(out, values.iter().copied(), base);
}

fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    let base = values.iter().copied().min().unwrap_or(0);
    put_ints(out, values.iter().map(|v| u64::from(*v)), u64::from(base));
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    // Names are capped at 64 KiB - 1 by every decoder of outside input.
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// Encodes onto the end of `out`.
pub fn encode_batch(batch: &TableBatch, out: &mut Vec<u8>) {
    out.push(VERSION);
    put_name(out, &batch.table);
    out.extend_from_slice(&(batch.rows() as u32).to_le_bytes());
    put_i64s(out, &batch.time);
    put_u32s(out, &batch.series);
    put_u32s(out, &batch.line);
    out.extend_from_slice(&(batch.series_keys.len() as u32).to_le_bytes());
    for key in &batch.series_keys {
        out.extend_from_slice(&(key.as_bytes().len() as u32).to_le_bytes());
        out.extend_from_slice(key.as_bytes());
    }
    out.extend_from_slice(&(batch.fields.len() as u16).to_le_bytes());
    for field in &batch.fields {
        put_name(out, &field.name);
        out.push(field.values.field_type().code());
        if field.present.all() {
            out.push(0);
        } else {
            out.push(1);
            put_words(out, field.present.words());
        }
        match &field.values {
            FieldValues::F64(v) => v.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes())),
            FieldValues::I64(v) => put_i64s(out, v),
            FieldValues::U64(v) => put_u64s(out, v),
            FieldValues::Bool(v) => {
                for bits in v.chunks(64) {
                    let word =
                        bits.iter().enumerate().fold(0u64, |w, (i, b)| w | u64::from(*b) << i);
                    out.extend_from_slice(&word.to_le_bytes());
                }
            }
            FieldValues::Utf8(texts) => {
                let mut start = 0;
                let lengths: Vec<u32> = texts
                    .ends
                    .iter()
                    .map(|end| {
                        let len = end - start;
                        start = *end;
                        len
                    })
                    .collect();
                put_u32s(out, &lengths);
                out.extend_from_slice(&(texts.bytes.len() as u32).to_le_bytes());
                out.extend_from_slice(&texts.bytes);
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(FrameError::Short(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FrameError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, FrameError> {
        Ok(u8::from_le_bytes(self.array(what)?))
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array(what)?))
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn text(&mut self, n: usize, what: &'static str) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.take(n, what)?).map_err(|_| FrameError::Invalid("text: not UTF-8"))
    }

    fn ints<T>(
        &mut self,
        rows: usize,
        what: &'static str,
        each: impl Fn(u64) -> T,
    ) -> Result<Vec<T>, FrameError> {
        let width = self.u8(what)? as usize;
        let base = u64::from_le_bytes(self.array(what)?);
        if width == 0 {
            return Ok((0..rows).map(|_| each(base)).collect());
        }
        let len = rows.checked_mul(width).ok_or(FrameError::Short(what))?;
        let body = self.take(len, what)?;
        Ok(match width {
            1 => body.iter().map(|b| each(base.wrapping_add(u64::from(*b)))).collect(),
            2 => body
                .as_chunks::<2>()
                .0
                .iter()
                .map(|c| each(base.wrapping_add(u64::from(u16::from_le_bytes(*c)))))
                .collect(),
            4 => body
                .as_chunks::<4>()
                .0
                .iter()
                .map(|c| each(base.wrapping_add(u64::from(u32::from_le_bytes(*c)))))
                .collect(),
            8 => body
                .as_chunks::<8>()
                .0
                .iter()
                .map(|c| each(base.wrapping_add(u64::from_le_bytes(*c))))
                .collect(),
            _ => return Err(FrameError::Invalid("integer width")),
        })
    }

    fn words(&mut self, rows: usize, what: &'static str) -> Result<Vec<u64>, FrameError> {
        let body = self.take(rows.div_ceil(64) * 8, what)?;
        Ok(body.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c)).collect())
    }

    fn values(&mut self, ty: FieldType, rows: usize) -> Result<FieldValues, FrameError> {
        Ok(match ty {
            FieldType::F64 => {
                let len = rows.checked_mul(8).ok_or(FrameError::Short("floats"))?;
                let body = self.take(len, "floats")?;
                FieldValues::F64(
                    body.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect(),
                )
            }
            FieldType::I64 => FieldValues::I64(self.ints(rows, "integers", |v| v as i64)?),
            FieldType::U64 => FieldValues::U64(self.ints(rows, "integers", |v| v)?),
            FieldType::Bool => {
                let words = self.words(rows, "booleans")?;
                let bit = |i: usize| words.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1);
                FieldValues::Bool((0..rows).map(bit).collect())
            }
            FieldType::Utf8 => {
                let lengths = self.ints(rows, "text lengths", |v| v)?;
                let total = self.u32("text")? as usize;
                let bytes = self.text(total, "text")?;
                let mut ends = Vec::with_capacity(lengths.len());
                let mut end = 0u64;
                for len in lengths {
                    end = end.checked_add(len).ok_or(FrameError::Invalid("text length"))?;
                    let at =
                        usize::try_from(end).map_err(|_| FrameError::Invalid("text length"))?;
                    if !bytes.is_char_boundary(at) {
                        return Err(FrameError::Invalid("text length"));
                    }
                    ends.push(u32::try_from(end).map_err(|_| FrameError::Invalid("text length"))?);
                }
                if end != total as u64 {
                    return Err(FrameError::Invalid("text length"));
                }
                FieldValues::Utf8(Texts { ends, bytes: bytes.as_bytes().to_vec() })
            }
        })
    }
}

fn narrow(values: Vec<u64>, what: &'static str) -> Result<Vec<u32>, FrameError> {
    values.into_iter().map(|v| u32::try_from(v).map_err(|_| FrameError::Invalid(what))).collect()
}

/// Rows of one batch at most; a column of equal values takes no bytes, so a count needs a bound.
pub const ROWS_MAX: usize = 16 << 20;

/// Decodes a whole batch.
pub fn decode_batch(bytes: &[u8]) -> Result<TableBatch, FrameError> {
    let mut r = Reader(bytes);
    let version = r.u8("version")?;
    if version != VERSION {
        return Err(FrameError::Version(version));
    }
    let len = r.u16("table name")? as usize;
    let table = r.text(len, "table name")?.to_owned();
    let rows = r.u32("rows")? as usize;
    if rows > ROWS_MAX {
        return Err(FrameError::Invalid("row count"));
    }
    let time = r.ints(rows, "times", |v| v as i64)?;
    let series = narrow(r.ints(rows, "series", |v| v)?, "series index")?;
    let line = narrow(r.ints(rows, "lines", |v| v)?, "line")?;
    let count = r.u32("series")?;
    let mut series_keys = Vec::new();
    for _ in 0..count {
        let len = r.u32("tags")? as usize;
        let key =
            SeriesKey::from_bytes(r.take(len, "tags")?).ok_or(FrameError::Invalid("tag set"))?;
        series_keys.push(key);
    }
    let count = r.u16("fields")?;
    let mut fields = Vec::new();
    for _ in 0..count {
        let len = r.u16("field name")? as usize;
        let name = r.text(len, "field name")?.to_owned();
        let ty =
            FieldType::from_code(r.u8("field type")?).ok_or(FrameError::Invalid("field type"))?;
        let present = match r.u8("presence")? {
            0 => Presence::full(rows),
            1 => Presence::from_words(r.words(rows, "presence")?, rows)
                .ok_or(FrameError::Invalid("presence"))?,
            _ => return Err(FrameError::Invalid("presence")),
        };
        let values = r.values(ty, rows)?;
        fields.push(FieldColumn { name, values, present });
    }
    if !r.0.is_empty() {
        return Err(FrameError::Trailing(r.0.len()));
    }
    let batch = TableBatch { table, time, series, series_keys, fields, line };
    batch.check().map_err(|_| FrameError::Invalid("combination of columns"))?;
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch() -> impl Strategy<Value = TableBatch> {
        let row = (
            any::<i64>(),
            0u32..3,
            proptest::option::of(any::<i32>().prop_map(f64::from)),
            proptest::option::of(any::<i64>()),
            proptest::option::of(any::<u64>()),
            proptest::option::of(any::<bool>()),
            proptest::option::of("[a-zé]{0,5}"),
        );
        proptest::collection::vec(row, 0..150).prop_map(|rows| {
            let types =
                [FieldType::F64, FieldType::I64, FieldType::U64, FieldType::Bool, FieldType::Utf8];
            let mut batch = TableBatch {
                table: "t".into(),
                series_keys: ["a", "b", "c"]
                    .iter()
                    .map(|h| SeriesKey::from_sorted([("host", *h)]))
                    .collect(),
                fields: types.iter().map(|t| FieldColumn::new(t.name(), *t)).collect(),
                ..TableBatch::default()
            };
            for (line, (time, series, f, i, u, b, s)) in (1..).zip(rows) {
                batch.time.push(time);
                batch.series.push(series);
                batch.line.push(line);
                let there = [f.is_some(), i.is_some(), u.is_some(), b.is_some(), s.is_some()];
                for (field, present) in batch.fields.iter_mut().zip(there) {
                    match &mut field.values {
                        FieldValues::F64(v) => v.push(f.unwrap_or(0.0)),
                        FieldValues::I64(v) => v.push(i.unwrap_or(0)),
                        FieldValues::U64(v) => v.push(u.unwrap_or(0)),
                        FieldValues::Bool(v) => v.push(b.unwrap_or(false)),
                        FieldValues::Utf8(v) => v.push(s.as_deref().unwrap_or("")),
                    }
                    field.present.push(present);
                }
            }
            batch
        })
    }

    proptest! {
        #[test]
        fn a_batch_comes_back(batch in batch()) {
            let mut bytes = Vec::new();
            encode_batch(&batch, &mut bytes);
            prop_assert_eq!(decode_batch(&bytes).unwrap(), batch);
        }

        #[test]
        fn damaged_bytes_are_an_error_or_a_consistent_batch(batch in batch(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = Vec::new();
            encode_batch(&batch, &mut bytes);
            let at = at.index(bytes.len());
            prop_assert!(decode_batch(&bytes[..at]).is_err());
            bytes[at] ^= 1 << bit;
            if let Ok(batch) = decode_batch(&bytes) {
                prop_assert!(batch.check().is_ok());
            }
        }
    }
}
