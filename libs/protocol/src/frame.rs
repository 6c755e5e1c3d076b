//! The compact form of a [`TableBatch`]: the body of a log record and of a queue frame.
//!
//! Owns: the layout, described for readers with an example in docs/formats/batch.md.
//! Never: takes memory that the bytes do not vouch for: every length is checked against what is
//! left, and columns that take no bytes per row are bounded by [`REPEATED_ROWS_MAX`].
//! Layout, all little endian:
//! ```text
//! u8  version = 1
//! u16 length + table name
//! u32 rows
//! integers: row times; series index of each row; line of each row
//! u32 series, each u32 length + canonical tags
//! u16 fields, each: u16 length + name, u8 type code, presence, values
//! presence: u8 0 = all rows, or 1 then one bit per row, u64 words, least significant first
//! values: f64 8 bytes each; i64, u64 as integers; bool one bit per row as u64 words;
//!         text: integers (length of each), u32 total, bytes
//! integers: u8 width + 16 * unit, 8 bytes base, then by width
//!           0: nothing, all are the base; 15: nothing, each is one more than the one before;
//!           1, 2, 4, 8: that many bytes per row, value = base + bytes * [1, 1e3, 1e6, 1e9][unit]
//! ```
//! Frame of reference keeps a TSBS row near 12 bytes and costs a pass over each column; units
//! exist because times are mostly whole seconds or milliseconds.
//! Validity: the decoded batch passes [`TableBatch::check`]; trailing bytes are an error.
//! Evolution: a new layout takes a new version; old versions stay readable.

use crate::{
    batch::{CELLS_MAX, FieldColumn, Presence, ROWS_MAX, SeriesKey, TableBatch},
    value::{FieldType, FieldValues, Texts},
};

#[cfg(test)]
pub(crate) mod tests;

const VERSION: u8 = 1;

/// Widths that stand for columns without bytes of their own.
const EQUAL: u8 = 0;
const COUNTING: u8 = 15;

/// What the bytes of a column may count; the index is the unit's number.
const UNITS: [u64; 4] = [1, 1_000, 1_000_000, 1_000_000_000];

/// Most rows of a column without bytes of its own. Beyond it one byte per row is spent, so that
/// a few bytes never unfold to more than 512 KiB.
pub const REPEATED_ROWS_MAX: usize = 64 * 1024;

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

/// Writes integers less `base`, counted in `unit`, which divides all differences.
fn put_ints<T>(out: &mut Vec<u8>, values: &[T], bits: impl Fn(&T) -> u64, base: u64, unit: u8) {
    let offset = |v: &T| bits(v).wrapping_sub(base);
    // Constants, so that no real division is needed.
    let scaled = |v: &T| match unit {
        0 => offset(v),
        1 => offset(v) / UNITS[1],
        2 => offset(v) / UNITS[2],
        _ => offset(v) / UNITS[3],
    };
    let widest = values.iter().map(scaled).max().unwrap_or(0);
    let free = values.len() <= REPEATED_ROWS_MAX;
    let counting = || (0u64..).zip(values).all(|(i, v)| scaled(v) == i);
    let width: u8 = match widest {
        0 if free => EQUAL,
        _ if free && widest == (values.len() as u64).wrapping_sub(1) && counting() => COUNTING,
        0..=0xff => 1,
        0x100..=0xffff => 2,
        0x1_0000..=0xffff_ffff => 4,
        _ => 8,
    };
    out.push(width | unit << 4);
    out.extend_from_slice(&base.to_le_bytes());
    match width {
        1 => out.extend(values.iter().map(|v| scaled(v) as u8)),
        2 => put_each(out, values, |v| (scaled(v) as u16).to_le_bytes()),
        4 => put_each(out, values, |v| (scaled(v) as u32).to_le_bytes()),
        8 => put_each(out, values, |v| scaled(v).to_le_bytes()),
        _ => {}
    }
}

/// Writes long columns of numbers that differ in their last byte only, which most are: one pass
/// without a comparison, where the smallest and the largest take one each. A column that counts
/// up is never among them: more than 256 numbers that differ need more than a byte.
fn put_near<T>(out: &mut Vec<u8>, values: &[T], bits: impl Fn(&T) -> u64) -> bool {
    let Some(first) = values.first().filter(|_| values.len() > 256).map(&bits) else {
        return false;
    };
    let differ = values.iter().fold(0, |differ, v| differ | (bits(v) ^ first));
    if differ == 0 || differ > 0xff {
        return false;
    }
    out.push(1);
    out.extend_from_slice(&(first & !0xff).to_le_bytes());
    out.extend(values.iter().map(|v| bits(v) as u8));
    true
}

/// Writes `N` bytes per value, in one go.
fn put_each<T, const N: usize>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(&T) -> [u8; N]) {
    let start = out.len();
    out.resize(start + N * values.len(), 0);
    let room = out.get_mut(start..).unwrap_or_default().as_chunks_mut::<N>().0;
    for (to, value) in room.iter_mut().zip(values) {
        *to = bytes(value);
    }
}

fn put_i64s(out: &mut Vec<u8>, values: &[i64]) {
    if put_near(out, values, |v| *v as u64) {
        return;
    }
    let base = values.iter().copied().min().unwrap_or(0);
    put_ints(out, values, |v| *v as u64, base as u64, 0);
}

fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    if put_near(out, values, |v| *v) {
        return;
    }
    let base = values.iter().copied().min().unwrap_or(0);
    put_ints(out, values, |v| *v, base, 0);
}

fn put_u32s(out: &mut Vec<u8>, values: &[u32]) {
    if put_near(out, values, |v| u64::from(*v)) {
        return;
    }
    let base = values.iter().copied().min().unwrap_or(0);
    put_ints(out, values, |v| u64::from(*v), u64::from(base), 0);
}

fn put_times(out: &mut Vec<u8>, times: &[i64]) {
    let base = times.iter().copied().min().unwrap_or(0) as u64;
    // Rows of one moment come together, so most times are the one before.
    let whole = |unit: u64| {
        let mut known = base;
        times.iter().all(|t| {
            let time = *t as u64;
            let good = time == known || time.wrapping_sub(base).is_multiple_of(unit);
            known = time;
            good
        })
    };
    let unit = match () {
        () if whole(UNITS[3]) => 3,
        () if whole(UNITS[2]) => 2,
        () if whole(UNITS[1]) => 1,
        () => 0,
    };
    put_ints(out, times, |t| *t as u64, base, unit);
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    // `TableBatch::check` bounds names to NAME_BYTES_MAX.
    out.extend_from_slice(&(name.len() as u16).to_le_bytes());
    out.extend_from_slice(name.as_bytes());
}

fn put_words(out: &mut Vec<u8>, words: &[u64]) {
    put_each(out, words, |word| word.to_le_bytes());
}

fn put_values(out: &mut Vec<u8>, values: &FieldValues) {
    match values {
        FieldValues::F64(v) => put_each(out, v, |v| v.to_le_bytes()),
        FieldValues::I64(v) => put_i64s(out, v),
        FieldValues::U64(v) => put_u64s(out, v),
        FieldValues::Bool(v) => {
            for bits in v.chunks(64) {
                let word = bits.iter().enumerate().fold(0u64, |w, (i, b)| w | u64::from(*b) << i);
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
        FieldValues::Utf8(texts) => {
            let starts = std::iter::once(&0).chain(&texts.ends);
            let length = |(end, start): (&u32, &u32)| end.saturating_sub(*start);
            let lengths: Vec<u32> = texts.ends.iter().zip(starts).map(length).collect();
            put_u32s(out, &lengths);
            out.extend_from_slice(&(texts.bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(&texts.bytes);
        }
    }
}

/// Encodes a consistent batch onto the end of `out`.
pub fn encode_batch(batch: &TableBatch, out: &mut Vec<u8>) {
    out.push(VERSION);
    put_name(out, &batch.table);
    out.extend_from_slice(&(batch.rows() as u32).to_le_bytes());
    put_times(out, &batch.time);
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
        put_values(out, &field.values);
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(FrameError::Short(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], FrameError> {
        let (head, rest) = self.0.split_first_chunk().ok_or(FrameError::Short(what))?;
        self.0 = rest;
        Ok(*head)
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

    /// `rows` chunks of `N` bytes.
    fn chunks<const N: usize>(
        &mut self,
        rows: usize,
        what: &'static str,
    ) -> Result<&'a [[u8; N]], FrameError> {
        let bytes = rows.checked_mul(N).ok_or(FrameError::Short(what))?;
        Ok(self.take(bytes, what)?.as_chunks::<N>().0)
    }

    fn ints<T: Clone>(
        &mut self,
        rows: usize,
        what: &'static str,
        mut each: impl FnMut(u64) -> T,
    ) -> Result<Vec<T>, FrameError> {
        let shape = self.u8(what)?;
        let base = u64::from_le_bytes(self.array(what)?);
        let (width, unit) = (shape & 15, shape >> 4);
        let unit = *UNITS.get(usize::from(unit)).ok_or(FrameError::Invalid("integer unit"))?;
        let free = rows <= REPEATED_ROWS_MAX;
        let mut value = |offset: u64| each(base.wrapping_add(offset.wrapping_mul(unit)));
        Ok(match width {
            EQUAL if free => vec![value(0); rows],
            COUNTING if free => (0..rows as u64).map(value).collect(),
            1 => self.take(rows, what)?.iter().map(|b| value(u64::from(*b))).collect(),
            2 => {
                let chunks = self.chunks::<2>(rows, what)?;
                chunks.iter().map(|c| value(u64::from(u16::from_le_bytes(*c)))).collect()
            }
            4 => {
                let chunks = self.chunks::<4>(rows, what)?;
                chunks.iter().map(|c| value(u64::from(u32::from_le_bytes(*c)))).collect()
            }
            8 => {
                let chunks = self.chunks::<8>(rows, what)?;
                chunks.iter().map(|c| value(u64::from_le_bytes(*c))).collect()
            }
            _ => return Err(FrameError::Invalid("integer width")),
        })
    }

    fn u32s(&mut self, rows: usize, what: &'static str) -> Result<Vec<u32>, FrameError> {
        let mut high = 0;
        let values = self.ints(rows, what, |v| {
            high |= v >> 32;
            v as u32
        })?;
        if high == 0 { Ok(values) } else { Err(FrameError::Invalid("32-bit number")) }
    }

    fn words(&mut self, rows: usize, what: &'static str) -> Result<Vec<u64>, FrameError> {
        let chunks = self.chunks::<8>(rows.div_ceil(64), what)?;
        Ok(chunks.iter().map(|c| u64::from_le_bytes(*c)).collect())
    }

    fn presence(&mut self, rows: usize) -> Result<Presence, FrameError> {
        let invalid = FrameError::Invalid("presence");
        match self.u8("presence")? {
            0 => Ok(Presence::full(rows)),
            1 => Presence::from_words(self.words(rows, "presence")?, rows).ok_or(invalid),
            _ => Err(invalid),
        }
    }

    fn values(&mut self, ty: FieldType, rows: usize) -> Result<FieldValues, FrameError> {
        Ok(match ty {
            FieldType::F64 => {
                let chunks = self.chunks::<8>(rows, "floats")?;
                FieldValues::F64(chunks.iter().map(|c| f64::from_le_bytes(*c)).collect())
            }
            FieldType::I64 => FieldValues::I64(self.ints(rows, "integers", |v| v as i64)?),
            FieldType::U64 => FieldValues::U64(self.ints(rows, "integers", |v| v)?),
            FieldType::Bool => {
                let words = self.words(rows, "booleans")?;
                let bit = |i: usize| words.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1);
                FieldValues::Bool((0..rows).map(bit).collect())
            }
            FieldType::Utf8 => FieldValues::Utf8(self.texts(rows)?),
        })
    }

    fn texts(&mut self, rows: usize) -> Result<Texts, FrameError> {
        let mut ends = self.u32s(rows, "text lengths")?;
        let total = self.u32("text")?;
        let bytes = self.text(total as usize, "text")?;
        let mut end = 0u32;
        for slot in &mut ends {
            end = end.checked_add(*slot).ok_or(FrameError::Invalid("text length"))?;
            if !bytes.is_char_boundary(end as usize) {
                return Err(FrameError::Invalid("text length"));
            }
            *slot = end;
        }
        if end != total {
            return Err(FrameError::Invalid("text length"));
        }
        Ok(Texts { ends, bytes: bytes.as_bytes().to_vec() })
    }

    fn series_keys(&mut self) -> Result<Vec<SeriesKey>, FrameError> {
        let count = self.u32("series")? as usize;
        // Each takes at least its length.
        let mut keys = Vec::with_capacity(count.min(self.0.len() / 4));
        for _ in 0..count {
            let len = self.u32("tags")? as usize;
            let key = SeriesKey::from_bytes(self.take(len, "tags")?);
            keys.push(key.ok_or(FrameError::Invalid("tag set"))?);
        }
        Ok(keys)
    }

    fn field(&mut self, rows: usize) -> Result<FieldColumn, FrameError> {
        let len = self.u16("field name")? as usize;
        let name = self.text(len, "field name")?.to_owned();
        let ty = FieldType::from_code(self.u8("field type")?);
        let ty = ty.ok_or(FrameError::Invalid("field type"))?;
        let present = self.presence(rows)?;
        let values = self.values(ty, rows)?;
        Ok(FieldColumn { name, values, present })
    }
}

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
    let series = r.u32s(rows, "series")?;
    let line = r.u32s(rows, "lines")?;
    let series_keys = r.series_keys()?;
    let count = usize::from(r.u16("fields")?);
    if rows.saturating_mul(count) > CELLS_MAX {
        return Err(FrameError::Invalid("number of fields"));
    }
    let mut fields = Vec::new();
    for _ in 0..count {
        fields.push(r.field(rows)?);
    }
    if !r.0.is_empty() {
        return Err(FrameError::Trailing(r.0.len()));
    }
    let batch = TableBatch { table, time, series, series_keys, fields, line };
    batch.check().map_err(|_| FrameError::Invalid("combination of columns"))?;
    Ok(batch)
}
