//! The columns of one table while its rows are read.
//!
//! Owns: which name is which column, values back to back, and taking a refused row back.
//! Invariants: between rows no column is longer than `rows()`; columns that a row does not name
//! are filled up later, when they are named again or at the end, so that a row costs only what
//! it says.

use std::collections::BTreeSet;

use hashbrown::HashTable;
use memchr::memchr;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    fault::Kind,
    scan::{Value, short_integer, unescape_text, usual_float, usual_integer},
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
    /// Whether any series of the table has a tag of this name.
    is_tag: bool,
}

/// The tag names of a series in the order it came with: mostly that of the next new one.
#[derive(Debug)]
struct Shape {
    tags: Vec<ShapeTag>,
    /// Positions in `tags` by name.
    by_name: Vec<usize>,
    /// As in [`Table::series`].
    distinct: bool,
}

#[derive(Debug)]
struct ShapeTag {
    /// `,name=`
    spelling: Vec<u8>,
    /// The name's part of a series key.
    key_part: Vec<u8>,
}

/// What the last row had at one position, and thus the next one probably has.
#[derive(Debug, Clone, Copy)]
struct Predicted<'a> {
    /// The name's spelling with the equals sign.
    raw: &'a [u8],
    /// Its first eight bytes or fewer, the mask of those there are, its last eight if there are.
    first: u64,
    mask: u64,
    last: u64,
    name: u32,
    /// The column written last; none if the name needs a look at the row's tags first.
    column: u32,
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
    /// The tag names of the first series as it came, and whether they were in order.
    first_names: Option<(Vec<String>, bool)>,
    /// What the last new series looked like, if it had no escapes.
    shape: Option<Shape>,
    tag_names: BTreeSet<String>,
    names: Vec<FieldName<'a>>,
    name_index: HashTable<u32>,
    columns: Vec<Column>,
    /// For each name the last row that had it, as a count of rows tried.
    seen_in: Vec<u32>,
    /// The fields of the last row by position.
    order: Vec<Predicted<'a>>,
    /// Whether a row was refused after it named its series, so that unused ones may be left.
    refused: bool,
    seed: u64,
}

fn put_key_part(text: &[u8], key: &mut Vec<u8>) {
    key.extend_from_slice(&(text.len() as u32).to_le_bytes());
    key.extend_from_slice(text);
}

impl Shape {
    fn new(names: &[&str], distinct: bool) -> Self {
        let tag = |name: &&str| {
            let mut key_part = Vec::new();
            put_key_part(name.as_bytes(), &mut key_part);
            ShapeTag { spelling: format!(",{name}=").into_bytes(), key_part }
        };
        let mut by_name: Vec<usize> = (0..names.len()).collect();
        by_name.sort_by_key(|i| names.get(*i));
        Self { tags: names.iter().map(tag).collect(), by_name, distinct }
    }
}

impl<'a> Predicted<'a> {
    fn new(raw: &'a [u8], name: u32, column: u32) -> Self {
        let mut first = [0; 8];
        for (to, from) in first.iter_mut().zip(raw) {
            *to = *from;
        }
        let mask = u64::MAX >> (64 - 8 * raw.len().clamp(1, 8));
        let last = raw.last_chunk::<8>().map_or(0, |last| u64::from_le_bytes(*last));
        Self { raw, first: u64::from_le_bytes(first), mask, last, name, column }
    }

    /// Whether `rest` starts with the name and at least eight more bytes. Names are mostly short:
    /// two loads that overlap cost less than a call of memcmp.
    #[inline]
    fn starts(&self, rest: &[u8]) -> bool {
        let len = self.raw.len();
        let Some(head) = rest.get(..len + 8) else { return false };
        let word = |at: usize| {
            head.get(at..).and_then(<[u8]>::first_chunk::<8>).map_or(0, |w| u64::from_le_bytes(*w))
        };
        if word(0) & self.mask != self.first {
            return false;
        }
        len <= 8
            || word(len - 8) == self.last
                && (len <= 16 || head.get(8..len - 8) == self.raw.get(8..len - 8))
    }
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
            first_names: None,
            shape: None,
            tag_names: BTreeSet::new(),
            names: Vec::new(),
            name_index: HashTable::new(),
            columns: Vec::new(),
            seen_in: Vec::new(),
            order: Vec::new(),
            refused: false,
            seed,
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    pub(super) fn rows(&self) -> usize {
        self.time.len()
    }

    /// Makes room for `more` rows like those so far, instead of growing to it by halves: that
    /// copies every value once more and leaves a third of the memory unused.
    #[cold]
    pub(super) fn expect_more(&mut self, more: usize) {
        // What rows differ in length must not end in one more growth.
        let more = more + more / 32 + 1;
        self.time.reserve_exact(more);
        self.series.reserve_exact(more);
        self.line.reserve_exact(more);
        for column in &mut self.columns {
            match &mut column.values {
                FieldValues::F64(v) => v.reserve_exact(more),
                FieldValues::I64(v) => v.reserve_exact(more),
                FieldValues::U64(v) => v.reserve_exact(more),
                FieldValues::Bool(v) => v.reserve_exact(more),
                FieldValues::Utf8(v) => v.ends.reserve_exact(more),
            }
        }
    }

    /// Whether a series of the table has a tag of this name, which is thus good.
    pub(super) fn knows_tag(&self, name: &str) -> bool {
        self.tag_names.contains(name)
    }

    /// Notes a tag name that passed the rules.
    pub(super) fn add_tag(&mut self, name: &str) {
        if self.tag_names.insert(name.to_owned())
            && let Some(id) = self.find_name(name, self.hash(name))
            && let Some(field) = self.names.get_mut(id as usize)
        {
            field.is_tag = true;
            self.order.clear();
        }
    }

    /// The number of the series with these good tags, whose names came in the order `names`;
    /// `tags` are in name order, `key` is scratch.
    pub(super) fn series_of_tags<'t>(
        &mut self,
        names: &[&str],
        tags: impl Iterator<Item = (&'t str, &'t str)>,
        escaped: bool,
        key: &mut Vec<u8>,
    ) -> u32 {
        key.clear();
        for (name, value) in tags {
            put_key_part(name.as_bytes(), key);
            put_key_part(value.as_bytes(), key);
        }
        let sorted = names.is_sorted();
        let (first, first_sorted) = self
            .first_names
            .get_or_insert_with(|| (names.iter().map(|n| (*n).to_owned()).collect(), sorted));
        // Where names keep one order, spellings without escapes differ only if the series do.
        let distinct = !escaped && (*first == names || (sorted && *first_sorted));
        self.shape = (!escaped).then(|| Shape::new(names, distinct));
        self.series(key, distinct)
    }

    /// The number of a new series with these raw tags, `,name=value...` without escapes, if they
    /// have the names of the last new one; `key` is scratch.
    pub(super) fn series_of_shape(
        &mut self,
        mut raw: &'a [u8],
        text_bytes_max: usize,
        values: &mut Vec<&'a [u8]>,
        key: &mut Vec<u8>,
    ) -> Option<u32> {
        let shape = self.shape.as_ref()?;
        values.clear();
        for tag in &shape.tags {
            let rest = raw.strip_prefix(tag.spelling.as_slice())?;
            let end = memchr(b',', rest).unwrap_or(rest.len());
            let (value, after) = rest.split_at_checked(end)?;
            if value.is_empty() || value.len() > text_bytes_max {
                return None;
            }
            values.push(value);
            raw = after;
        }
        if !raw.is_empty() {
            return None;
        }
        key.clear();
        for position in &shape.by_name {
            key.extend_from_slice(&shape.tags.get(*position)?.key_part);
            put_key_part(values.get(*position)?, key);
        }
        let distinct = shape.distinct;
        Some(self.series(key, distinct))
    }

    fn hash(&self, name: &str) -> u64 {
        xxh3_64_with_seed(name.as_bytes(), self.seed)
    }

    /// The number of a series that was not seen in its spelling. `distinct` says that it is
    /// certainly new if all before were distinct.
    fn series(&mut self, key: &[u8], distinct: bool) -> u32 {
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
        let predicted = self.order.get(position)?;
        rest.starts_with(predicted.raw).then_some((predicted.name, predicted.raw.len()))
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
            is_tag: self.tag_names.contains(name),
        });
        self.seen_in.push(0);
        let names = &self.names;
        let rehash = |id: &u32| names.get(*id as usize).map_or(0, |f| f.hash);
        self.name_index.insert_unique(hash, id, rehash);
        id
    }

    /// Writes fields from `at` on as long as they are the predicted ones and numbers of the usual
    /// form and their column's type: the common row from end to end. Returns how many fields the
    /// row has so far and where it goes on; at a comma another field follows.
    #[inline(never)]
    pub(super) fn push_usual(
        &mut self,
        body: &[u8],
        mut position: usize,
        mut at: usize,
        attempt: u32,
    ) -> (usize, usize) {
        let rows = self.time.len();
        // Slices in locals stay in registers.
        let (columns, seen_in) = (self.columns.as_mut_slice(), self.seen_in.as_mut_slice());
        for predicted in self.order.get(position..).unwrap_or_default() {
            if position > 0 && body.get(at) != Some(&b',') {
                break;
            }
            let start = at + usize::from(position > 0);
            let rest = body.get(start..).unwrap_or_default();
            if !predicted.starts(rest) {
                break;
            }
            let Some(seen_in) = seen_in.get_mut(predicted.name as usize) else { break };
            let Some(column) = columns.get_mut(predicted.column as usize) else { break };
            if *seen_in == attempt {
                break;
            }
            let text = rest.get(predicted.raw.len()..).unwrap_or_default();
            let len = match &mut column.values {
                FieldValues::I64(to) if to.len() == rows => {
                    let short = text.first_chunk().and_then(|bytes| short_integer(*bytes));
                    let Some((value, len)) = short.or_else(|| usual_integer(text)) else { break };
                    to.push(value);
                    len
                }
                FieldValues::F64(to) if to.len() == rows => {
                    let Some((value, len)) = usual_float(text) else { break };
                    to.push(value);
                    len
                }
                _ => break,
            };
            if let Some(present) = &mut column.present {
                present.push(true);
            }
            *seen_in = attempt;
            at = start + predicted.raw.len() + len;
            position += 1;
        }
        (position, at)
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
        let rows = self.time.len();
        let (Some(field), Some(seen_in)) =
            (self.names.get_mut(name as usize), self.seen_in.get_mut(name as usize))
        else {
            return Ok(());
        };
        if std::mem::replace(seen_in, attempt) == attempt {
            return Err(Kind::FieldTwice);
        }
        let written =
            self.columns.get_mut(field.last as usize).is_some_and(|c| c.push(rows, value));
        if !written {
            let ty = type_of(value);
            let slot = field.columns.get_mut(ty.code() as usize);
            field.last = slot.as_ref().map_or(NONE, |c| **c);
            if field.last == NONE {
                if self.columns.len() >= columns_max {
                    return Err(Kind::ManyColumns);
                }
                field.last = self.columns.len() as u32;
                if let Some(slot) = slot {
                    *slot = field.last;
                }
                *cells += rows;
                self.columns.push(Column { name, values: FieldValues::empty(ty), present: None });
            }
            if let Some(column) = self.columns.get_mut(field.last as usize) {
                column.push(rows, value);
            }
        }
        let column = if field.is_tag { NONE } else { field.last };
        let predicted = Predicted::new(field.raw, name, column);
        match self.order.get_mut(position) {
            Some(known) => *known = predicted,
            None => self.order.push(predicted),
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
        for predicted in self.order.iter().take(fields) {
            // A name can have columns of several types: the predicted one was written, or the last.
            let last = self.names.get(predicted.name as usize).map_or(NONE, |f| f.last);
            for column in [predicted.column, last] {
                if let Some(column) = self.columns.get_mut(column as usize) {
                    column.truncate(rows);
                }
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
        give_back(&mut self.time);
        give_back(&mut self.series);
        give_back(&mut self.line);
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

    /// Numbers the series anew in the order of their first good row.
    fn forget_unused_series(&mut self) {
        let mut number = vec![NONE; self.series_keys.len()];
        let mut used = Vec::new();
        for s in &mut self.series {
            let Some(number) = number.get_mut(*s as usize) else { continue };
            if *number == NONE {
                *number = used.len() as u32;
                used.push(*s);
            }
            *s = *number;
        }
        let keys = &mut self.series_keys;
        let take = |s: &u32| keys.get_mut(*s as usize).map(std::mem::take).unwrap_or_default();
        self.series_keys = used.iter().map(take).collect();
    }
}

/// Gives unused room back if it is worth a copy: the rows may stay in memory for long.
fn give_back<T>(values: &mut Vec<T>) {
    let unused = values.capacity() - values.len();
    if unused > values.len() / 8 && unused * size_of::<T>() > 1024 {
        values.shrink_to_fit();
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
        match &mut self.values {
            FieldValues::F64(v) => give_back(v),
            FieldValues::I64(v) => give_back(v),
            FieldValues::U64(v) => give_back(v),
            FieldValues::Bool(v) => give_back(v),
            FieldValues::Utf8(v) => give_back(&mut v.ends),
        }
        let present = self.present.unwrap_or_else(|| Presence::full(rows));
        Some(FieldColumn { name, values: self.values, present })
    }
}
