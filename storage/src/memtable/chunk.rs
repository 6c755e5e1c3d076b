//! A chunk: rows of one table in order of arrival, immutable once published.
//!
//! Owns: the columns and the joining of small chunks into larger ones, so that a table has few.
//! Invariants: later rows of a chunk, and chunks later in a table's list, are newer.

use std::ops::Range;

use millrace_protocol::{
    batch::Presence,
    value::{FieldType, FieldValues},
};

/// Rows that two neighbouring chunks may have together and still be joined (design: 16 Ki).
pub(crate) const CHUNK_ROWS: usize = 16 * 1024;

/// One field of a chunk.
#[derive(Debug, Clone)]
pub(crate) struct ChunkField {
    /// Stable column id.
    pub id: u32,
    /// One value per row; absent rows hold a default.
    pub values: FieldValues,
    /// Which rows hold a value.
    pub present: Presence,
}

/// See the module head.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    /// First and last log position of its rows.
    pub lsn: Range<u64>,
    /// Row times, ns.
    pub time: Vec<i64>,
    /// Row series, as ordinals of the table's dictionary.
    pub ordinal: Vec<u32>,
    /// The fields that any row has.
    pub fields: Vec<ChunkField>,
    /// Smallest row time.
    pub t_min: i64,
    /// Largest row time.
    pub t_max: i64,
    /// Memory held, bytes.
    pub bytes: usize,
}

impl Chunk {
    /// A chunk of rows logged at `lsn`; all columns must have equal length, at least 1.
    pub(crate) fn new(
        lsn: u64,
        time: Vec<i64>,
        ordinal: Vec<u32>,
        fields: Vec<ChunkField>,
    ) -> Self {
        let t_min = time.iter().copied().min().unwrap_or(i64::MAX);
        let t_max = time.iter().copied().max().unwrap_or(i64::MIN);
        let mut chunk = Self { lsn: lsn..lsn + 1, time, ordinal, fields, t_min, t_max, bytes: 0 };
        chunk.give_back_slack();
        chunk.bytes = chunk.measure();
        chunk
    }

    /// Rows.
    pub(crate) fn rows(&self) -> usize {
        self.time.len()
    }

    /// Columns that grew row by row hold up to twice what they need, for as long as the chunk
    /// lives.
    fn give_back_slack(&mut self) {
        self.time.shrink_to_fit();
        self.ordinal.shrink_to_fit();
        for field in &mut self.fields {
            match &mut field.values {
                FieldValues::F64(v) => v.shrink_to_fit(),
                FieldValues::I64(v) => v.shrink_to_fit(),
                FieldValues::U64(v) => v.shrink_to_fit(),
                FieldValues::Bool(v) => v.shrink_to_fit(),
                FieldValues::Utf8(t) => {
                    t.bytes.shrink_to_fit();
                    t.ends.shrink_to_fit();
                }
            }
        }
    }

    /// What the columns hold of the allocator, not what they use of it.
    fn measure(&self) -> usize {
        let fields: usize = self
            .fields
            .iter()
            .map(|f| {
                // A present bit per row, in words that double as they grow.
                let present = 2 * std::mem::size_of_val(f.present.words());
                std::mem::size_of::<ChunkField>() + present + values_bytes(&f.values)
            })
            .sum();
        let rows = self.time.capacity() * 8 + self.ordinal.capacity() * 4;
        std::mem::size_of::<Self>() + rows + fields
    }

    /// The field with this id.
    pub(crate) fn field(&self, id: u32) -> Option<&ChunkField> {
        self.fields.iter().find(|f| f.id == id)
    }

    /// Appends a newer chunk's rows.
    pub(crate) fn append(&mut self, newer: &Chunk) {
        let before = self.rows();
        let after = before + newer.rows();
        self.time.reserve_exact(newer.rows());
        self.ordinal.reserve_exact(newer.rows());
        self.time.extend_from_slice(&newer.time);
        self.ordinal.extend_from_slice(&newer.ordinal);
        for field in &newer.fields {
            if self.field(field.id).is_none() {
                let mut values = FieldValues::empty(field.values.field_type());
                for _ in 0..before {
                    values.push_absent();
                }
                let mut present = Presence::default();
                present.pad_to(before);
                self.fields.push(ChunkField { id: field.id, values, present });
            }
        }
        for field in &mut self.fields {
            match newer.field(field.id) {
                Some(from) => append_values(&mut field.values, &from.values),
                None => (before..after).for_each(|_| field.values.push_absent()),
            }
            for row in 0..newer.rows() {
                let present = newer.field(field.id).is_some_and(|f| f.present.get(row));
                field.present.push(present);
            }
        }
        self.lsn = self.lsn.start.min(newer.lsn.start)..self.lsn.end.max(newer.lsn.end);
        self.t_min = self.t_min.min(newer.t_min);
        self.t_max = self.t_max.max(newer.t_max);
        self.bytes = self.measure();
    }
}

/// Bytes that a column holds of the allocator.
fn values_bytes(values: &FieldValues) -> usize {
    match values {
        FieldValues::F64(v) => v.capacity() * 8,
        FieldValues::I64(v) => v.capacity() * 8,
        FieldValues::U64(v) => v.capacity() * 8,
        FieldValues::Bool(v) => v.capacity(),
        FieldValues::Utf8(t) => t.bytes.capacity() + t.ends.capacity() * 4,
    }
}

/// Room for exactly `from`'s values: doubling would leave a third of a chunk empty for its life.
fn reserve(into: &mut FieldValues, from: &FieldValues) {
    match into {
        FieldValues::F64(v) => v.reserve_exact(from.len()),
        FieldValues::I64(v) => v.reserve_exact(from.len()),
        FieldValues::U64(v) => v.reserve_exact(from.len()),
        FieldValues::Bool(v) => v.reserve_exact(from.len()),
        FieldValues::Utf8(t) => {
            t.ends.reserve_exact(from.len());
            if let FieldValues::Utf8(from) = from {
                t.bytes.reserve_exact(from.bytes.len());
            }
        }
    }
}

fn append_values(into: &mut FieldValues, from: &FieldValues) {
    reserve(into, from);
    match (into, from) {
        (FieldValues::F64(a), FieldValues::F64(b)) => a.extend_from_slice(b),
        (FieldValues::I64(a), FieldValues::I64(b)) => a.extend_from_slice(b),
        (FieldValues::U64(a), FieldValues::U64(b)) => a.extend_from_slice(b),
        (FieldValues::Bool(a), FieldValues::Bool(b)) => a.extend_from_slice(b),
        (FieldValues::Utf8(a), FieldValues::Utf8(b)) => {
            let shift = a.bytes.len() as u32;
            a.bytes.extend_from_slice(&b.bytes);
            a.ends.extend(b.ends.iter().map(|e| e + shift));
        }
        // A column id has one type for ever (schema.rs), so this is never reached; absent values
        // keep the lengths equal all the same.
        (into, from) => (0..from.len()).for_each(|_| into.push_absent()),
    }
}

/// Converts column values to another type where no value changes: integers to float within
/// 2^53, signed to unsigned and back within both ranges. Returns the values and the rows that
/// could not be converted.
pub(crate) fn convert(
    values: &FieldValues,
    present: &Presence,
    to: FieldType,
) -> Option<(FieldValues, Vec<usize>)> {
    use millrace_protocol::value::EXACT_F64_MAX;
    let mut refused = Vec::new();
    let out = match (values, to) {
        (FieldValues::I64(v), FieldType::F64) => FieldValues::F64(
            v.iter()
                .enumerate()
                .map(|(row, x)| {
                    if present.get(row) && x.unsigned_abs() > EXACT_F64_MAX {
                        refused.push(row);
                    }
                    *x as f64
                })
                .collect(),
        ),
        (FieldValues::U64(v), FieldType::F64) => FieldValues::F64(
            v.iter()
                .enumerate()
                .map(|(row, x)| {
                    if present.get(row) && *x > EXACT_F64_MAX {
                        refused.push(row);
                    }
                    *x as f64
                })
                .collect(),
        ),
        (FieldValues::I64(v), FieldType::U64) => FieldValues::U64(
            v.iter()
                .enumerate()
                .map(|(row, x)| {
                    u64::try_from(*x).unwrap_or_else(|_| {
                        refused.push(row);
                        0
                    })
                })
                .collect(),
        ),
        (FieldValues::U64(v), FieldType::I64) => FieldValues::I64(
            v.iter()
                .enumerate()
                .map(|(row, x)| {
                    i64::try_from(*x).unwrap_or_else(|_| {
                        refused.push(row);
                        0
                    })
                })
                .collect(),
        ),
        _ => return None,
    };
    refused.retain(|row| present.get(*row));
    Some((out, refused))
}
