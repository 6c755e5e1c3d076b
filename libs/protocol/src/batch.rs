//! The column batch: the one shape that every input becomes.
//!
//! Owns: its layout and its own consistency check. Never: knows a tenant, a table's schema or
//! where the rows came from.
//! Invariants: all columns of a [`TableBatch`] have `rows()` entries; `series[i]` indexes
//! `series_keys`; a (name, type) pair occurs at most once among `fields` (the same name with two
//! types is legal: the schema decides later, row by row).

use std::{collections::BTreeSet, fmt};

use crate::{
    name::NAME_BYTES_MAX,
    value::{FieldType, FieldValues},
};

/// Rows of one batch at most.
pub const ROWS_MAX: usize = 16 << 20;

/// Rows times fields of one batch at most. Absent values take memory too, so a body of few bytes
/// per row and many names would otherwise unfold to a thousand times its size. A dense body of
/// 64 MiB, the decoded cap, stays below: a field takes at least four bytes of text.
pub const CELLS_MAX: usize = 16 << 20;

/// The tags of one series in canonical form: pairs sorted by name, each as
/// `u32 LE length, name, u32 LE length, value`. Equal bytes mean the same series.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SeriesKey(Box<[u8]>);

impl SeriesKey {
    /// Builds the canonical form; pairs must be sorted by name, names distinct, values not empty.
    pub fn from_sorted<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut out = Vec::new();
        for (name, value) in pairs {
            for part in [name, value] {
                // Tag names and values are capped at 64 KiB by every decoder.
                out.extend_from_slice(&(part.len() as u32).to_le_bytes());
                out.extend_from_slice(part.as_bytes());
            }
        }
        Self(out.into_boxed_slice())
    }

    /// Takes bytes that a decoder of this crate built in canonical form.
    pub(crate) fn from_canonical(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Takes bytes read from storage; `None` unless they are canonical.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let key = Self(bytes.into());
        let mut previous: Option<&str> = None;
        let mut used = 0;
        for (name, value) in key.tags() {
            if previous.is_some_and(|p| p >= name) || value.is_empty() {
                return None;
            }
            previous = Some(name);
            used += 8 + name.len() + value.len();
        }
        (used == bytes.len()).then_some(key)
    }

    /// The canonical bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The (name, value) pairs in name order.
    pub fn tags(&self) -> Tags<'_> {
        Tags(&self.0)
    }

    /// The value of one tag.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.tags().find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

impl fmt::Debug for SeriesKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.tags()).finish()
    }
}

/// Iterator over the pairs of a [`SeriesKey`].
#[derive(Debug, Clone)]
pub struct Tags<'a>(&'a [u8]);

impl<'a> Tags<'a> {
    fn part(&mut self) -> Option<&'a str> {
        let (len, rest) = self.0.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }
}

impl<'a> Iterator for Tags<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.part()?, self.part()?))
    }
}

/// Which rows of a column hold a value: bit `i % 64` of word `i / 64`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Presence {
    words: Vec<u64>,
    len: usize,
    set: usize,
}

impl Presence {
    /// Appends one row.
    pub fn push(&mut self, present: bool) {
        if self.len.is_multiple_of(64) {
            self.words.push(0);
        }
        if present {
            if let Some(word) = self.words.last_mut() {
                *word |= 1 << (self.len % 64);
            }
            self.set += 1;
        }
        self.len += 1;
    }

    /// Appends absent rows until there are `len`.
    pub fn pad_to(&mut self, len: usize) {
        if len > self.len {
            self.words.resize(len.div_ceil(64), 0);
            self.len = len;
        }
    }

    /// Forgets rows from `len` on.
    pub fn truncate(&mut self, len: usize) {
        while self.len > len {
            self.len -= 1;
            let bit = 1 << (self.len % 64);
            if let Some(word) = self.words.last_mut()
                && *word & bit != 0
            {
                *word &= !bit;
                self.set -= 1;
            }
            if self.len.is_multiple_of(64) {
                self.words.pop();
            }
        }
    }

    /// Whether row `i` holds a value.
    pub fn get(&self, i: usize) -> bool {
        i < self.len && self.words.get(i / 64).is_some_and(|w| w >> (i % 64) & 1 == 1)
    }

    /// Marks row `i` absent.
    pub fn clear(&mut self, i: usize) {
        if self.get(i) {
            if let Some(word) = self.words.get_mut(i / 64) {
                *word &= !(1 << (i % 64));
            }
            self.set -= 1;
        }
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Rows that hold a value.
    pub fn count(&self) -> usize {
        self.set
    }

    /// Whether every row holds a value.
    pub fn all(&self) -> bool {
        self.set == self.len
    }

    /// The bit words, least significant bit first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Rebuilds from bit words; `None` if there are too few words or stray bits.
    pub fn from_words(words: Vec<u64>, len: usize) -> Option<Self> {
        if words.len() != len.div_ceil(64) {
            return None;
        }
        let tail = len % 64;
        if tail != 0 && words.last().is_some_and(|w| w >> tail != 0) {
            return None;
        }
        let set = words.iter().map(|w| w.count_ones() as usize).sum();
        Some(Self { words, len, set })
    }

    /// `len` rows that all hold a value.
    pub fn full(len: usize) -> Self {
        let mut out = Self { words: vec![u64::MAX; len.div_ceil(64)], len, set: len };
        let tail = len % 64;
        if tail != 0
            && let Some(last) = out.words.last_mut()
        {
            *last = (1 << tail) - 1;
        }
        out
    }
}

/// One field of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldColumn {
    /// The field's name.
    pub name: String,
    /// One value per row; absent rows hold a default.
    pub values: FieldValues,
    /// Which rows hold a value.
    pub present: Presence,
}

impl FieldColumn {
    /// An empty column.
    pub fn new(name: impl Into<String>, of: FieldType) -> Self {
        Self { name: name.into(), values: FieldValues::empty(of), present: Presence::default() }
    }
}

/// Rows of one table.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TableBatch {
    /// The table (measurement) name.
    pub table: String,
    /// Row times, ns since the Unix epoch.
    pub time: Vec<i64>,
    /// For each row, its series as an index into `series_keys`.
    pub series: Vec<u32>,
    /// The distinct series of this batch, in order of first appearance.
    pub series_keys: Vec<SeriesKey>,
    /// Field columns, in order of first appearance.
    pub fields: Vec<FieldColumn>,
    /// For each row, where it came from: line number (from 1) or row number in its frame (from 1).
    pub line: Vec<u32>,
}

/// A batch whose columns do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("batch of table `{table}` is inconsistent: {detail}")]
pub struct Inconsistent {
    /// The table.
    pub table: String,
    /// What does not fit.
    pub detail: String,
}

impl TableBatch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.time.len()
    }

    /// Checks the module's invariants; decoders of outside input call it once.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let fail = |detail: String| Err(Inconsistent { table: self.table.clone(), detail });
        let rows = self.rows();
        if self.series.len() != rows || self.line.len() != rows {
            return fail(format!(
                "{rows} times, {} series, {} lines",
                self.series.len(),
                self.line.len()
            ));
        }
        if self.series.iter().any(|s| *s as usize >= self.series_keys.len()) {
            return fail("a row names a series that the batch does not define".into());
        }
        if rows > ROWS_MAX || rows.saturating_mul(self.fields.len()) > CELLS_MAX {
            return fail(format!("{rows} rows of {} fields are too many", self.fields.len()));
        }
        let mut seen = BTreeSet::new();
        if self.table.len() > NAME_BYTES_MAX {
            return fail("its name is too long".to_owned());
        }
        for f in &self.fields {
            if f.name.len() > NAME_BYTES_MAX {
                return fail(format!("the name of a field has {} bytes", f.name.len()));
            }
            if f.values.len() != rows || f.present.len() != rows {
                return fail(format!(
                    "field `{}` has {} values for {rows} rows",
                    f.name,
                    f.values.len()
                ));
            }
            if let FieldValues::Utf8(texts) = &f.values
                && !texts.is_whole()
            {
                return fail(format!("the texts of field `{}` are not back to back", f.name));
            }
            if !seen.insert((f.name.as_str(), f.values.field_type())) {
                return fail(format!("field `{}` occurs twice with one type", f.name));
            }
        }
        Ok(())
    }

    /// Bytes of memory that the rows hold, roughly; what budgets are charged.
    pub fn memory_bytes(&self) -> usize {
        let fields: usize = self
            .fields
            .iter()
            .map(|f| {
                let values = match &f.values {
                    FieldValues::Utf8(t) => t.bytes.len() + 4 * t.ends.len(),
                    FieldValues::Bool(v) => v.len(),
                    other => 8 * other.len(),
                };
                values + f.present.words().len() * 8 + f.name.len() + 64
            })
            .sum();
        let keys: usize = self.series_keys.iter().map(|k| k.as_bytes().len() + 16).sum();
        self.rows() * 16 + fields + keys
    }
}

/// A row that was not taken, with what the sender needs to mend it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Refusal {
    /// Line number in the body, or row number in the frame, from 1.
    pub line: u32,
    /// Column of the offending byte in its line, from 1; 0 where there is no text.
    pub column: u32,
    /// Stable code.
    pub code: RefusalCode,
    /// What was wrong and what would be right, in one sentence.
    pub reason: String,
    /// The line as it came, cut to 256 characters; empty where there is no text.
    pub raw: String,
}

/// Why a row was refused; stable across releases.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The line does not follow the line-protocol grammar.
    Syntax,
    /// The line is not UTF-8.
    NotUtf8,
    /// A value is not a number, boolean or quoted string of its type.
    BadValue,
    /// NaN or infinite.
    NotFinite,
    /// A tag, field or name is repeated, empty or reserved.
    BadName,
    /// A string, name or line is longer than the limit.
    TooLong,
    /// The timestamp does not parse or overflows.
    BadTime,
    /// The time is too far in the future.
    OutOfWindow,
    /// The time is before what the tenant's plan keeps.
    OutOfRetention,
    /// The value's type is not the column's.
    TypeConflict,
    /// Too many columns, tags or series.
    Quota,
}

impl RefusalCode {
    /// As it stands in answers and in the table of refused rows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::NotUtf8 => "not_utf8",
            Self::BadValue => "bad_value",
            Self::NotFinite => "not_finite",
            Self::BadName => "bad_name",
            Self::TooLong => "too_long",
            Self::BadTime => "bad_time",
            Self::OutOfWindow => "out_of_window",
            Self::OutOfRetention => "out_of_retention",
            Self::TypeConflict => "type_conflict",
            Self::Quota => "quota",
        }
    }
}

/// Limits that every decoder applies to each row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLimits {
    /// Longest line in bytes.
    pub line_bytes: usize,
    /// Longest tag value, string value or name in bytes.
    pub text_bytes: usize,
    /// Most tags in a row.
    pub tags: usize,
    /// Most fields in a row.
    pub fields: usize,
}

impl Default for RowLimits {
    fn default() -> Self {
        Self { line_bytes: 1 << 20, text_bytes: 64 * 1024, tags: 256, fields: 1024 }
    }
}
