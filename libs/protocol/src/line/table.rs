//! The columns of one table while its rows are read.
//!
//! Owns: which name is which column, values back to back, and taking a refused row back.
//! Invariants: between rows no column is longer than `rows()`; columns that a row does not name
//! are filled up later, when they are named again or at the end, so that a row costs only what
//! it says.

use std::collections::BTreeSet;

use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    fault::Kind,
    scan::{Value, unescape_text},
};
use crate::{
    batch::{FieldColumn, Presence, SeriesKey, TableBatch},
    value::{FieldType, FieldValues},
};

/// "No column" in [`FieldName::columns`].
const NONE: u32 = u32::MAX;

/// A field name of the table.
#[derive(Debug)]
struct FieldName<'a> {
    /// As it came first, with the equals sign: what the next row is compared with.
    raw: &'a [u8],
    name: String,
    hash: u64,
    /// The column for each type code.
    columns: [u32; 6],
    /// The column that was written last.
    last: u32,
    /// The last row that named it, as a count of rows tried.
    seen_in: u32,
    /// Whether any series of the table has a tag of this name.
    is_tag: bool,
}

#[derive(Debug)]
struct Column {
    name: u32,
    values: FieldValues,
    /// `None` while every row has a value.
    present: Option<Presence>,
}

/// A table being filled.
#[derive(Debug)]
pub(super) struct Table<'a> {
    pub(super) name: String,
    time: Vec<i64>,
    series: Vec<u32>,
    line: Vec<u32>,
    series_keys: Vec<SeriesKey>,
    /// Series by key, built when a spelling that is not the canonical one turns up: until then
    /// different spellings are different series.
    canonical: Option<HashTable<u32>>,
    /// Tag names in the order of the last new series; names found here are known to be good.
    shape: Vec<String>,
    tag_names: BTreeSet<String>,
    names: Vec<FieldName<'a>>,
    name_index: HashTable<u32>,
    columns: Vec<Column>,
    /// Names of the last row by position, the prediction for the next one.
    order: Vec<u32>,
    /// Whether a row was refused after it named its series, so that unused ones may be left.
    refused: bool,
    seed: u64,
}

#[inline]
fn starts_with(rest: &[u8], name: &[u8]) -> bool {
    let Some(head) = rest.get(..name.len()) else { return false };
    // Names are mostly 8 to 16 bytes: two loads that overlap cost less than a call of memcmp.
    if let (8..=16, Some(a), Some(b), Some(c), Some(d)) = (
        name.len(),
        head.first_chunk::<8>(),
        name.first_chunk::<8>(),
        head.last_chunk::<8>(),
        name.last_chunk::<8>(),
    ) {
        return u64::from_le_bytes(*a) == u64::from_le_bytes(*b)
            && u64::from_le_bytes(*c) == u64::from_le_bytes(*d);
    }
    head == name
}

impl<'a> Table<'a> {
    pub(super) fn new(name: String, seed: u64) -> Self {
        Self {
            name,
            time: Vec::new(),
            series: Vec::new(),
            line: Vec::new(),
            series_keys: Vec::new(),
            canonical: None,
            shape: Vec::new(),
            tag_names: BTreeSet::new(),
            names: Vec::new(),
            name_index: HashTable::new(),
            columns: Vec::new(),
            order: Vec::new(),
            refused: false,
            seed,
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    /// Whether the tag at `position` of the last new series had this name, which is thus good.
    pub(super) fn knows_tag(&self, position: usize, name: &str) -> bool {
        self.shape.get(position).is_some_and(|known| known == name)
    }

    /// Notes a tag name that passed the rules.
    pub(super) fn add_tag(&mut self, position: usize, name: &str) {
        self.shape.truncate(position);
        self.shape.push(name.to_owned());
        if self.tag_names.insert(name.to_owned())
            && let Some(id) = self.find_name(name, self.hash(name))
            && let Some(field) = self.names.get_mut(id as usize)
        {
            field.is_tag = true;
        }
    }

    fn hash(&self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    /// The number of a series; `distinct` says that no other spelling of it was seen before
    /// unless by a spelling that is not canonical itself.
    pub(super) fn series(&mut self, key: &[u8], distinct: bool) -> u32 {
        let next = self.series_keys.len() as u32;
        let (seed, keys) = (self.seed, &self.series_keys);
        let bytes = |s: &u32| keys.get(*s as usize).map_or(&[][..], SeriesKey::as_bytes);
        let hash = |s: &u32| xxh3_64_with_seed(bytes(s), seed);
        if self.canonical.is_none() && !distinct {
            let mut index = HashTable::with_capacity(keys.len() + 1);
            for s in 0..next {
                index.insert_unique(hash(&s), s, hash);
            }
            self.canonical = Some(index);
        }
        if let Some(index) = &mut self.canonical {
            let wanted = xxh3_64_with_seed(key, seed);
            if let Some(s) = index.find(wanted, |s| bytes(s) == key) {
                return *s;
            }
            index.insert_unique(wanted, next, hash);
        }
        self.series_keys.push(SeriesKey::from_canonical(key));
        next
    }

    /// Whether a series has a tag of this name.
    pub(super) fn series_has_tag(&self, series: u32, name: u32) -> bool {
        let Some(field) = self.names.get(name as usize).filter(|f| f.is_tag) else { return false };
        self.series_keys.get(series as usize).is_some_and(|key| key.get(&field.name).is_some())
    }

    /// The name that the last row had at this position, if `rest` starts with it; and its length.
    #[inline]
    pub(super) fn predict(&self, position: usize, rest: &[u8]) -> Option<(u32, usize)> {
        let id = *self.order.get(position)?;
        let field = self.names.get(id as usize)?;
        starts_with(rest, field.raw).then_some((id, field.raw.len()))
    }

    fn find_name(&self, name: &str, hash: u64) -> Option<u32> {
        let named = |id: &u32| self.names.get(*id as usize).is_some_and(|f| f.name == name);
        self.name_index.find(hash, named).copied()
    }

    /// The number of a name, if it was seen before.
    pub(super) fn known_name(&self, name: &str) -> Option<u32> {
        self.find_name(name, self.hash(name))
    }

    /// Notes a new name that passed the rules; `raw` is its spelling and the equals sign.
    pub(super) fn add_name(&mut self, name: &str, raw: &'a [u8]) -> u32 {
        let (id, hash) = (self.names.len() as u32, self.hash(name));
        self.names.push(FieldName {
            raw,
            name: name.to_owned(),
            hash,
            columns: [NONE; 6],
            last: NONE,
            seen_in: 0,
            is_tag: self.tag_names.contains(name),
        });
        let names = &self.names;
        let rehash = |id: &u32| names.get(*id as usize).map_or(0, |f| f.hash);
        self.name_index.insert_unique(hash, id, rehash);
        id
    }

    /// Writes a value of the row being read, the `attempt`th tried, at this position of its
    /// fields. `cells` counts what all tables hold; it grows with a new column.
    #[inline]
    pub(super) fn push(
        &mut self,
        name: u32,
        position: usize,
        attempt: u32,
        value: Value<'_>,
        columns_max: usize,
        cells: &mut usize,
    ) -> Result<(), Kind> {
        match self.order.get_mut(position) {
            Some(id) => *id = name,
            None => self.order.push(name),
        }
        let rows = self.time.len();
        let Some(field) = self.names.get_mut(name as usize) else { return Ok(()) };
        if field.seen_in == attempt {
            return Err(Kind::FieldTwice);
        }
        field.seen_in = attempt;
        if let Some(column) = self.columns.get_mut(field.last as usize)
            && column.push(rows, value)
        {
            return Ok(());
        }
        let ty = type_of(value);
        let slot = field.columns.get_mut(ty.code() as usize);
        let column = slot.as_ref().map_or(NONE, |c| **c);
        if column == NONE {
            if self.columns.len() >= columns_max {
                return Err(Kind::ManyColumns);
            }
            if let Some(slot) = slot {
                *slot = self.columns.len() as u32;
            }
            field.last = self.columns.len() as u32;
            *cells += rows;
            self.columns.push(Column { name, values: FieldValues::empty(ty), present: None });
        } else {
            field.last = column;
        }
        if let Some(column) = self.columns.get_mut(field.last as usize) {
            column.push(rows, value);
        }
        Ok(())
    }

    /// Ends a good row.
    #[inline]
    pub(super) fn commit(&mut self, time: i64, series: u32, line: u32) {
        self.time.push(time);
        self.series.push(series);
        self.line.push(line);
    }

    /// Takes back the row being read, whose first `fields` positions were written.
    pub(super) fn roll_back(&mut self, fields: usize) {
        self.refused = true;
        let rows = self.time.len();
        for id in self.order.iter().take(fields) {
            let last = self.names.get(*id as usize).map_or(NONE, |f| f.last);
            if let Some(column) = self.columns.get_mut(last as usize) {
                column.truncate(rows);
            }
        }
    }

    /// The batch; `None` if no row was good.
    pub(super) fn finish(mut self) -> Option<TableBatch> {
        let rows = self.time.len();
        if rows == 0 {
            return None;
        }
        if self.refused {
            self.forget_unused_series();
        }
        let names = &self.names;
        let fields = self.columns.into_iter().filter_map(|column| {
            let name = names.get(column.name as usize)?.name.clone();
            column.finish(name, rows)
        });
        let fields = fields.collect();
        Some(TableBatch {
            table: self.name,
            time: self.time,
            series: self.series,
            series_keys: self.series_keys,
            fields,
            line: self.line,
        })
    }

    fn forget_unused_series(&mut self) {
        let mut number = vec![NONE; self.series_keys.len()];
        for s in &self.series {
            if let Some(used) = number.get_mut(*s as usize) {
                *used = 0;
            }
        }
        let mut next = 0;
        for used in number.iter_mut().filter(|used| **used == 0) {
            *used = next;
            next += 1;
        }
        let of = |s: usize| number.get(s).copied().unwrap_or(NONE);
        self.series.iter_mut().for_each(|s| *s = of(*s as usize));
        let mut s = 0..;
        self.series_keys.retain(|_| s.next().is_some_and(|s| of(s) != NONE));
    }
}

fn type_of(value: Value<'_>) -> FieldType {
    match value {
        Value::F64(_) => FieldType::F64,
        Value::I64(_) => FieldType::I64,
        Value::U64(_) => FieldType::U64,
        Value::Bool(_) => FieldType::Bool,
        Value::Text(..) => FieldType::Utf8,
    }
}

impl Column {
    /// Appends the value of row `row`; false, and nothing changed, if it has another type.
    #[inline]
    fn push(&mut self, row: usize, value: Value<'_>) -> bool {
        if self.values.field_type() != type_of(value) {
            return false;
        }
        if self.values.len() < row {
            self.fill(row);
        }
        if let Some(present) = &mut self.present {
            present.push(true);
        }
        match (&mut self.values, value) {
            (FieldValues::F64(to), Value::F64(v)) => to.push(v),
            (FieldValues::I64(to), Value::I64(v)) => to.push(v),
            (FieldValues::U64(to), Value::U64(v)) => to.push(v),
            (FieldValues::Bool(to), Value::Bool(v)) => to.push(v),
            (FieldValues::Utf8(to), Value::Text(text, escaped)) => {
                if escaped {
                    unescape_text(text, &mut to.bytes);
                } else {
                    to.bytes.extend_from_slice(text);
                }
                // The parser takes bodies below 4 GiB only.
                to.ends.push(to.bytes.len() as u32);
            }
            _ => return false,
        }
        true
    }

    #[cold]
    fn fill(&mut self, rows: usize) {
        let len = self.values.len();
        self.present.get_or_insert_with(|| Presence::full(len)).pad_to(rows);
        match &mut self.values {
            FieldValues::F64(v) => v.resize(rows, 0.0),
            FieldValues::I64(v) => v.resize(rows, 0),
            FieldValues::U64(v) => v.resize(rows, 0),
            FieldValues::Bool(v) => v.resize(rows, false),
            FieldValues::Utf8(v) => v.ends.resize(rows, v.bytes.len() as u32),
        }
    }

    fn truncate(&mut self, rows: usize) {
        match &mut self.values {
            FieldValues::F64(v) => v.truncate(rows),
            FieldValues::I64(v) => v.truncate(rows),
            FieldValues::U64(v) => v.truncate(rows),
            FieldValues::Bool(v) => v.truncate(rows),
            FieldValues::Utf8(v) => {
                v.ends.truncate(rows);
                v.bytes.truncate(v.ends.last().copied().unwrap_or(0) as usize);
            }
        }
        if let Some(present) = &mut self.present {
            present.truncate(rows);
        }
    }

    /// The column with `rows` rows; `None` if no row has a value.
    fn finish(mut self, name: String, rows: usize) -> Option<FieldColumn> {
        let none = match &self.present {
            None => self.values.is_empty(),
            Some(present) => present.count() == 0,
        };
        if none {
            return None;
        }
        if self.values.len() < rows {
            self.fill(rows);
        }
        let present = self.present.unwrap_or_else(|| Presence::full(rows));
        Some(FieldColumn { name, values: self.values, present })
    }
}
