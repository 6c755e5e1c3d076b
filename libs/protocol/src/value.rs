//! Typed field values, one at a time and in columns.
//!
//! Owns: the five field types and what may be widened to what. Times are nanoseconds since the
//! Unix epoch, UTC.

use serde::{Deserialize, Serialize};

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// IEEE 754 double.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// Boolean.
    Bool,
    /// UTF-8 text, at most 64 KiB.
    Utf8,
}

impl FieldType {
    /// The name users see in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "float",
            Self::I64 => "integer",
            Self::U64 => "unsigned integer",
            Self::Bool => "boolean",
            Self::Utf8 => "string",
        }
    }

    /// The type's number in stored formats; never reused.
    pub const fn code(self) -> u8 {
        match self {
            Self::F64 => 1,
            Self::I64 => 2,
            Self::U64 => 3,
            Self::Bool => 4,
            Self::Utf8 => 5,
        }
    }

    /// The type with this number.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::F64,
            2 => Self::I64,
            3 => Self::U64,
            4 => Self::Bool,
            5 => Self::Utf8,
            _ => return None,
        })
    }
}

/// Text values of a column, back to back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Texts {
    /// End of each value in `bytes`; value `i` starts where `i - 1` ends.
    pub ends: Vec<u32>,
    /// UTF-8 bytes of all values.
    pub bytes: Vec<u8>,
}

impl Texts {
    /// Appends a value.
    pub fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        // A batch is at most 64 MiB (the decoded body cap), far below 4 GiB.
        self.ends.push(self.bytes.len() as u32);
    }

    /// Value `i`; empty if out of range.
    pub fn get(&self, i: usize) -> &str {
        let end = self.ends.get(i).copied().unwrap_or(0) as usize;
        let start = if i == 0 { 0 } else { self.ends.get(i - 1).copied().unwrap_or(0) as usize };
        self.bytes.get(start..end).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or("")
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the ends rise to the end of the bytes.
    pub fn is_whole(&self) -> bool {
        self.ends.is_sorted() && self.ends.last().copied().unwrap_or(0) as usize == self.bytes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
}

/// The values of one field column; absent rows hold a default that must not be read.
#[derive(Debug, Clone, PartialEq)]
pub enum FieldValues {
    /// Doubles.
    F64(Vec<f64>),
    /// Signed integers.
    I64(Vec<i64>),
    /// Unsigned integers.
    U64(Vec<u64>),
    /// Booleans.
    Bool(Vec<bool>),
    /// Texts.
    Utf8(Texts),
}

impl FieldValues {
    /// An empty column of this type.
    pub fn empty(of: FieldType) -> Self {
        match of {
            FieldType::F64 => Self::F64(Vec::new()),
            FieldType::I64 => Self::I64(Vec::new()),
            FieldType::U64 => Self::U64(Vec::new()),
            FieldType::Bool => Self::Bool(Vec::new()),
            FieldType::Utf8 => Self::Utf8(Texts::default()),
        }
    }

    /// The column's type.
    pub const fn field_type(&self) -> FieldType {
        match self {
            Self::F64(_) => FieldType::F64,
            Self::I64(_) => FieldType::I64,
            Self::U64(_) => FieldType::U64,
            Self::Bool(_) => FieldType::Bool,
            Self::Utf8(_) => FieldType::Utf8,
        }
    }

    /// Rows, absent ones included.
    pub fn len(&self) -> usize {
        match self {
            Self::F64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::Utf8(v) => v.len(),
        }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends a default for an absent row.
    pub fn push_absent(&mut self) {
        match self {
            Self::F64(v) => v.push(0.0),
            Self::I64(v) => v.push(0),
            Self::U64(v) => v.push(0),
            Self::Bool(v) => v.push(false),
            Self::Utf8(v) => v.push(""),
        }
    }
}

/// The largest integer magnitude that an f64 holds exactly (2^53); wider ones are refused where
/// a column is already float.
pub const EXACT_F64_MAX: u64 = 1 << 53;
