//! Arrow columns as a batch, whoever sent them.
//!
//! Owns: the walk from columns to rows: plan the roles, judge every row, copy the rows that stay.
//! Invariants: a row is refused as a whole; what unfolds is charged before it is copied.

use std::collections::BTreeMap;

use arrow::{
    array::{
        Array, ArrayRef, ArrowPrimitiveType, AsArray, LargeStringArray, PrimitiveArray,
        RecordBatch, StringArray, StringViewArray,
    },
    buffer::NullBuffer,
    datatypes::{
        DataType, Field, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
        TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use hashbrown::HashTable;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{ArrowShape, DATABASE, REFUSALS_LISTED_MAX, ROLE, TABLE, TEXT_BYTES_MAX};
use crate::{
    batch::{
        CELLS_MAX, FieldColumn, Presence, ROWS_MAX, Refusal, RefusalCode, RowLimits, SeriesKey,
        TableBatch,
    },
    name::{NameOf, check_name},
    value::{FieldValues, Texts},
};

/// Reads a record batch: its database, its good rows (`line` is the row number from 1) and the
/// first [`REFUSALS_LISTED_MAX`] refusals; `batch.num_rows() - rows()` rows were refused in all.
/// Empty tag values count as absent, as they cannot be told apart in line protocol.
pub fn from_record_batch(
    batch: &RecordBatch,
    limits: &RowLimits,
) -> Result<(String, TableBatch, Vec<Refusal>), ArrowShape> {
    from_record_batch_seeded(batch, limits, 0)
}

/// The same with a secret seed for its hash tables, so that a sender cannot choose tags that
/// collide. Batches from outside are read with one drawn from entropy at start.
pub fn from_record_batch_seeded(
    batch: &RecordBatch,
    limits: &RowLimits,
    seed: u64,
) -> Result<(String, TableBatch, Vec<Refusal>), ArrowShape> {
    from_record_batch_listing(batch, limits, seed, REFUSALS_LISTED_MAX)
}

/// The same with the first `refusals_max` refusals.
pub fn from_record_batch_listing(
    batch: &RecordBatch,
    limits: &RowLimits,
    seed: u64,
    refusals_max: usize,
) -> Result<(String, TableBatch, Vec<Refusal>), ArrowShape> {
    let plan = Plan::of(batch, limits)?;
    let rows = batch.num_rows();
    let mut verdicts = Verdicts::new(rows, refusals_max);
    let mut budget = Budget(TEXT_BYTES_MAX);
    let time = times(plan.time.0, plan.time.1, &mut verdicts)?;
    let mut tags = Vec::with_capacity(plan.tags.len());
    for (name, array) in &plan.tags {
        tags.push(Codes::of(name, &TextColumn::of(array), limits, seed, &mut verdicts));
    }
    let mut any = vec![0u64; rows.div_ceil(64)];
    for (name, array) in &plan.fields {
        let valid = validity(array.as_ref());
        judge(name, array, limits, &mut verdicts, &mut budget)?;
        for (i, word) in any.iter_mut().enumerate() {
            *word |= valid.as_ref().map_or(u64::MAX, |v| v.get(i).copied().unwrap_or(0));
        }
        if let Some(tag) = plan.tags.iter().position(|(tag, _)| tag == name) {
            let both = |row: &usize| {
                valid.as_ref().is_none_or(|v| bit(v, *row))
                    && tags.get(tag).is_some_and(|t| t.has(*row))
            };
            for row in (0..rows).filter(both) {
                verdicts.refuse(row, RefusalCode::BadName, || {
                    format!("`{name}` is a tag and a field of the same row")
                });
            }
        }
    }
    for row in (0..rows).filter(|row| !bit(&any, *row)) {
        verdicts.refuse(row, RefusalCode::BadValue, || {
            "the row has no field value; a row needs at least one".to_owned()
        });
    }
    let keep = verdicts.kept();
    let mut out = TableBatch { table: plan.table.to_owned(), ..TableBatch::default() };
    series(&plan, &tags, keep.as_deref(), seed, &mut budget, &mut out)?;
    match &keep {
        None => {
            out.time = time;
            out.line = (1..=rows as u32).collect();
        }
        Some(keep) => {
            out.time = keep.iter().filter_map(|row| time.get(*row as usize).copied()).collect();
            out.line = keep.iter().map(|row| row + 1).collect();
        }
    }
    for (name, array) in &plan.fields {
        let present = presence(validity(array.as_ref()), rows, keep.as_deref());
        if present.count() == 0 {
            continue;
        }
        let values = values(name, array, keep.as_deref())?;
        out.fields.push(FieldColumn { name: (*name).to_owned(), values, present });
    }
    out.check().map_err(|e| ArrowShape::Columns(e.to_string()))?;
    Ok((plan.database.to_owned(), out, verdicts.listed.into_values().collect()))
}

/// What each column is.
struct Plan<'a> {
    database: &'a str,
    table: &'a str,
    rows: usize,
    time: (&'a str, &'a ArrayRef),
    /// In name order, so that series keys need no sorting.
    tags: Vec<(&'a str, &'a ArrayRef)>,
    fields: Vec<(&'a str, &'a ArrayRef)>,
}

impl<'a> Plan<'a> {
    fn of(batch: &'a RecordBatch, limits: &RowLimits) -> Result<Self, ArrowShape> {
        let schema = batch.schema_ref();
        let table = schema.metadata().get(TABLE).ok_or(ArrowShape::NoTable)?;
        named(NameOf::Table, table)?;
        let database = schema.metadata().get(DATABASE).map_or("default", String::as_str);
        let mut time = None;
        let mut tags = BTreeMap::new();
        let mut fields: Vec<(&str, &ArrayRef)> = Vec::new();
        let mut twice = BTreeMap::new();
        for (field, array) in schema.fields().iter().zip(batch.columns()) {
            let name = field.name().as_str();
            match role(field)? {
                NameRole::Time => {
                    if time.replace((name, array)).is_some() {
                        return Err(ArrowShape::Twice(cut(name)));
                    }
                }
                // A column without a single value says nothing, whatever its type would be.
                _ if array.data_type() == &DataType::Null => {}
                NameRole::Tag => {
                    named(NameOf::Tag, name)?;
                    if text_type(array.data_type()).is_none() {
                        return Err(wrong_type(
                            name,
                            array,
                            "a tag is text: Utf8, LargeUtf8, Utf8View or a dictionary of them",
                        ));
                    }
                    if tags.insert(name, array).is_some() {
                        return Err(ArrowShape::Twice(cut(name)));
                    }
                }
                NameRole::Field => {
                    named(NameOf::Field, name)?;
                    let Some(ty) = field_type(array.data_type()) else {
                        return Err(wrong_type(
                            name,
                            array,
                            "a field is an integer, Float32, Float64, Boolean or text",
                        ));
                    };
                    if twice.insert((name, ty), ()).is_some() {
                        return Err(ArrowShape::Twice(cut(name)));
                    }
                    fields.push((name, array));
                }
            }
        }
        let at_most = |what, given, most| {
            if given > most { Err(ArrowShape::TooLarge { what, given, most }) } else { Ok(()) }
        };
        let rows = batch.num_rows();
        at_most("tags", tags.len(), limits.tags)?;
        at_most("fields", fields.len(), limits.fields)?;
        at_most("rows", rows, ROWS_MAX)?;
        at_most("rows times columns", rows.saturating_mul(tags.len() + fields.len()), CELLS_MAX)?;
        let time = time.ok_or(ArrowShape::NoTime)?;
        Ok(Self { database, table, rows, time, tags: tags.into_iter().collect(), fields })
    }
}

pub(super) enum NameRole {
    Time,
    Tag,
    Field,
}

pub(super) fn role(field: &Field) -> Result<NameRole, ArrowShape> {
    match field.metadata().get(ROLE).map(String::as_str) {
        Some("time") => Ok(NameRole::Time),
        Some("tag") => Ok(NameRole::Tag),
        Some("field") => Ok(NameRole::Field),
        Some(other) => Err(ArrowShape::Role { column: cut(field.name()), role: cut(other) }),
        None if field.name() == "time" => Ok(NameRole::Time),
        None if matches!(field.data_type(), DataType::Dictionary(..)) => Ok(NameRole::Tag),
        None => Ok(NameRole::Field),
    }
}

fn named(of: NameOf, name: &str) -> Result<(), ArrowShape> {
    check_name(of, name).map_err(|why| ArrowShape::Name { what: of.word(), name: cut(name), why })
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

fn wrong_type(name: &str, array: &ArrayRef, expected: &'static str) -> ArrowShape {
    ArrowShape::Type { column: cut(name), given: cut(&array.data_type().to_string()), expected }
}

/// Whether a type is text, plain or behind a dictionary.
pub(super) fn text_type(ty: &DataType) -> Option<()> {
    match ty {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => Some(()),
        DataType::Dictionary(_, values) if !matches!(**values, DataType::Dictionary(..)) => {
            text_type(values)
        }
        _ => None,
    }
}

fn field_type(ty: &DataType) -> Option<crate::value::FieldType> {
    use crate::value::FieldType;
    Some(match ty {
        DataType::Float64 | DataType::Float32 => FieldType::F64,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => FieldType::I64,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => FieldType::U64,
        DataType::Boolean => FieldType::Bool,
        other => text_type(other).map(|()| FieldType::Utf8)?,
    })
}

/// Which rows stay, and why the others do not.
struct Verdicts {
    bad: Vec<bool>,
    count: usize,
    listed: BTreeMap<usize, Refusal>,
    listed_max: usize,
}

impl Verdicts {
    fn new(rows: usize, listed_max: usize) -> Self {
        Self { bad: vec![false; rows], count: 0, listed: BTreeMap::new(), listed_max }
    }

    fn refuse(&mut self, row: usize, code: RefusalCode, reason: impl FnOnce() -> String) {
        let Some(bad) = self.bad.get_mut(row) else { return };
        if std::mem::replace(bad, true) {
            return;
        }
        self.count += 1;
        // Columns are judged one after the other; the list is of the first rows.
        let last = self.listed.last_key_value().map(|(row, _)| *row);
        if self.listed.len() < self.listed_max || last.is_some_and(|last| row < last) {
            let line = row as u32 + 1;
            let refusal = Refusal { line, column: 0, code, reason: reason(), raw: String::new() };
            self.listed.insert(row, refusal);
            if self.listed.len() > self.listed_max {
                self.listed.pop_last();
            }
        }
    }

    /// The rows that stay; `None` if all do.
    fn kept(&self) -> Option<Vec<u32>> {
        let good = |(row, bad): (usize, &bool)| (!bad).then_some(row as u32);
        (self.count > 0).then(|| self.bad.iter().enumerate().filter_map(good).collect())
    }
}

/// Bytes of text that may still be copied.
struct Budget(usize);

impl Budget {
    fn take(&mut self, bytes: usize) -> Result<(), ArrowShape> {
        self.0 = self.0.checked_sub(bytes).ok_or(ArrowShape::TooLarge {
            what: "bytes of text or more",
            given: TEXT_BYTES_MAX + 1,
            most: TEXT_BYTES_MAX,
        })?;
        Ok(())
    }
}

/// Validity as bit words; `None` if every row is valid.
fn validity(array: &dyn Array) -> Option<Vec<u64>> {
    let nulls = array.logical_nulls().filter(|n| n.null_count() > 0)?;
    let mut words: Vec<u64> = nulls.inner().bit_chunks().iter_padded().collect();
    words.resize(array.len().div_ceil(64), 0);
    Some(words)
}

fn bit(words: &[u64], row: usize) -> bool {
    words.get(row / 64).is_some_and(|w| w >> (row % 64) & 1 == 1)
}

fn presence(valid: Option<Vec<u64>>, rows: usize, keep: Option<&[u32]>) -> Presence {
    match (valid, keep) {
        (None, None) => Presence::full(rows),
        (None, Some(keep)) => Presence::full(keep.len()),
        (Some(mut words), None) => {
            if let (Some(last), tail @ 1..) = (words.last_mut(), rows % 64) {
                *last &= (1 << tail) - 1;
            }
            Presence::from_words(words, rows).unwrap_or_default()
        }
        (Some(words), Some(keep)) => {
            let mut out = Presence::default();
            keep.iter().for_each(|row| out.push(bit(&words, *row as usize)));
            out
        }
    }
}

fn times(name: &str, array: &ArrayRef, verdicts: &mut Verdicts) -> Result<Vec<i64>, ArrowShape> {
    let expected = "the time is a Timestamp of any unit, in UTC or without a zone";
    let (values, factor): (&[i64], i64) = match array.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            (array.as_primitive::<TimestampNanosecondType>().values(), 1)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            (array.as_primitive::<TimestampMicrosecondType>().values(), 1_000)
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            (array.as_primitive::<TimestampMillisecondType>().values(), 1_000_000)
        }
        DataType::Timestamp(TimeUnit::Second, _) => {
            (array.as_primitive::<TimestampSecondType>().values(), 1_000_000_000)
        }
        _ => return Err(wrong_type(name, array, expected)),
    };
    let nulls = array.nulls();
    let mut out = Vec::with_capacity(values.len());
    for (row, value) in values.iter().enumerate() {
        let time = value.checked_mul(factor);
        if nulls.is_some_and(|n| n.is_null(row)) {
            verdicts.refuse(row, RefusalCode::BadTime, || "the time is null".to_owned());
        } else if time.is_none() {
            verdicts.refuse(row, RefusalCode::BadTime, || {
                format!("time {value} does not fit 64 bits of nanoseconds")
            });
        }
        out.push(time.unwrap_or(0));
    }
    Ok(out)
}

/// Text of any Arrow shape, by row.
pub(super) struct TextColumn<'a> {
    values: TextValues<'a>,
    /// For each row the index of its value, if behind a dictionary.
    keys: Option<Keys<'a>>,
    nulls: Option<NullBuffer>,
    rows: usize,
}

/// A dictionary's keys as they came: bringing them to one type would be a copy of eight bytes per
/// row. Those of rows that are null may be anything.
enum Keys<'a> {
    I8(&'a [i8]),
    I16(&'a [i16]),
    I32(&'a [i32]),
    I64(&'a [i64]),
    U8(&'a [u8]),
    U16(&'a [u16]),
    U32(&'a [u32]),
    U64(&'a [u64]),
}

/// Does the same with the keys of every type.
macro_rules! with_keys {
    ($keys:expr, $k:ident => $body:expr) => {
        match $keys {
            Keys::I8($k) => $body,
            Keys::I16($k) => $body,
            Keys::I32($k) => $body,
            Keys::I64($k) => $body,
            Keys::U8($k) => $body,
            Keys::U16($k) => $body,
            Keys::U32($k) => $body,
            Keys::U64($k) => $body,
        }
    };
}

impl<'a> Keys<'a> {
    fn of(keys: &'a dyn Array) -> Option<Self> {
        fn slice<T: ArrowPrimitiveType>(keys: &dyn Array) -> Option<&[T::Native]> {
            keys.as_primitive_opt::<T>().map(|k| &**k.values())
        }
        match keys.data_type() {
            DataType::Int8 => slice::<Int8Type>(keys).map(Self::I8),
            DataType::Int16 => slice::<Int16Type>(keys).map(Self::I16),
            DataType::Int32 => slice::<Int32Type>(keys).map(Self::I32),
            DataType::Int64 => slice::<Int64Type>(keys).map(Self::I64),
            DataType::UInt8 => slice::<UInt8Type>(keys).map(Self::U8),
            DataType::UInt16 => slice::<UInt16Type>(keys).map(Self::U16),
            DataType::UInt32 => slice::<UInt32Type>(keys).map(Self::U32),
            DataType::UInt64 => slice::<UInt64Type>(keys).map(Self::U64),
            _ => None,
        }
    }

    /// The key of a row; past the end of every dictionary if there is none.
    fn at(&self, row: usize) -> usize {
        with_keys!(self, keys => keys.get(row).map_or(usize::MAX, |key| *key as usize))
    }
}

enum TextValues<'a> {
    Small(&'a StringArray),
    Large(&'a LargeStringArray),
    View(&'a StringViewArray),
    /// An empty dictionary: all rows are null.
    None,
}

impl<'a> TextValues<'a> {
    fn of(array: &'a dyn Array) -> Self {
        if array.is_empty() {
            return Self::None;
        }
        if let Some(values) = array.as_string_opt::<i32>() {
            Self::Small(values)
        } else if let Some(values) = array.as_string_opt::<i64>() {
            Self::Large(values)
        } else if let Some(values) = array.as_string_view_opt() {
            Self::View(values)
        } else {
            Self::None
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Small(v) => v.len(),
            Self::Large(v) => v.len(),
            Self::View(v) => v.len(),
            Self::None => 0,
        }
    }

    fn get(&self, i: usize) -> &'a str {
        match self {
            Self::Small(v) if i < v.len() => v.value(i),
            Self::Large(v) if i < v.len() => v.value(i),
            Self::View(v) if i < v.len() => v.value(i),
            Self::Small(_) | Self::Large(_) | Self::View(_) | Self::None => "",
        }
    }
}

impl<'a> TextColumn<'a> {
    pub(super) fn of(array: &'a ArrayRef) -> Self {
        let (nulls, rows) = (array.logical_nulls(), array.len());
        match array.as_any_dictionary_opt() {
            None => Self { values: TextValues::of(array), keys: None, nulls, rows },
            Some(dictionary) if dictionary.values().is_empty() => {
                Self { values: TextValues::None, keys: None, nulls, rows }
            }
            Some(dictionary) => Self {
                values: TextValues::of(dictionary.values()),
                keys: Keys::of(dictionary.keys()),
                nulls,
                rows,
            },
        }
    }

    fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|n| n.is_null(row))
    }

    pub(super) fn get(&self, row: usize) -> Option<&'a str> {
        if self.is_null(row) {
            return None;
        }
        match &self.keys {
            None => Some(self.values.get(row)),
            Some(keys) => Some(self.values.get(keys.at(row))),
        }
    }
}

/// A code that no value has.
const UNSEEN: u32 = u32::MAX;

/// One tag by row, as codes; equal text has equal codes even if the dictionary repeats it.
struct Codes<'a> {
    /// For each row 1 + the index of its value, 0 if it has none.
    of_row: Vec<u32>,
    values: Vec<&'a str>,
}

impl<'a> Codes<'a> {
    fn of(
        name: &str,
        column: &TextColumn<'a>,
        limits: &RowLimits,
        seed: u64,
        verdicts: &mut Verdicts,
    ) -> Self {
        let mut out = Self { of_row: Vec::with_capacity(column.rows), values: Vec::new() };
        let mut known: HashTable<u32> = HashTable::new();
        match &column.keys {
            // Each value is looked at once, each row is an index.
            Some(keys) => {
                let nulls = column.nulls.as_ref().filter(|n| n.null_count() > 0);
                let mut of_key = vec![UNSEEN; column.values.len()];
                with_keys!(keys, keys => for (row, key) in keys.iter().enumerate() {
                    let there = nulls.is_none_or(|n| n.is_valid(row));
                    let Some(slot) = of_key.get_mut(*key as usize).filter(|_| there) else {
                        out.of_row.push(0);
                        continue;
                    };
                    if *slot == UNSEEN {
                        *slot = out.code(column.values.get(*key as usize), seed, &mut known);
                    }
                    out.of_row.push(*slot);
                });
            }
            None => {
                let mut last = ("", 0);
                for row in 0..column.rows {
                    let text = column.get(row).unwrap_or("");
                    if text != last.0 {
                        last = (text, out.code(text, seed, &mut known));
                    }
                    out.of_row.push(last.1);
                }
            }
        }
        out.judge(name, limits, verdicts);
        out
    }

    /// Refuses the rows whose value may not be.
    fn judge(&self, name: &str, limits: &RowLimits, verdicts: &mut Verdicts) {
        let faults: Vec<_> = self.values.iter().map(|text| tag_fault(text, limits)).collect();
        if faults.iter().all(Option::is_none) {
            return;
        }
        for (row, code) in self.of_row.iter().enumerate() {
            let fault = (*code as usize).checked_sub(1).and_then(|i| faults.get(i));
            if let Some(Some((code, why))) = fault {
                verdicts.refuse(row, *code, || format!("the value of tag `{name}` {why}"));
            }
        }
    }

    fn code(&mut self, text: &'a str, seed: u64, known: &mut HashTable<u32>) -> u32 {
        if text.is_empty() {
            return 0;
        }
        let at = |code: &u32| self.values.get(*code as usize - 1).copied().unwrap_or("");
        let hash = xxh3_64_with_seed(text.as_bytes(), seed);
        if let Some(code) = known.find(hash, |code| at(code) == text) {
            return *code;
        }
        let code = self.values.len() as u32 + 1;
        known.insert_unique(hash, code, |code| xxh3_64_with_seed(at(code).as_bytes(), seed));
        self.values.push(text);
        code
    }

    fn has(&self, row: usize) -> bool {
        self.of_row.get(row).is_some_and(|code| *code != 0)
    }

    fn value(&self, row: usize) -> Option<&'a str> {
        let code = self.of_row.get(row).copied().unwrap_or(0) as usize;
        code.checked_sub(1).and_then(|c| self.values.get(c).copied())
    }

    /// Writes the codes of `rows` rows, each `width` bytes after the one before and `at` into it.
    fn put(
        &self,
        block: &mut [u8],
        (width, at): (usize, usize),
        rows: usize,
        source: impl Fn(usize) -> usize,
    ) {
        for (i, tuple) in block.chunks_exact_mut(width).take(rows).enumerate() {
            let code = self.of_row.get(source(i)).copied().unwrap_or(0);
            if let Some(cell) = tuple.get_mut(at..at + 4) {
                cell.copy_from_slice(&code.to_le_bytes());
            }
        }
    }
}

fn tag_fault(value: &str, limits: &RowLimits) -> Option<(RefusalCode, &'static str)> {
    if value.len() > limits.text_bytes {
        return Some((RefusalCode::TooLong, "is longer than a text may be"));
    }
    value.contains('\n').then_some((RefusalCode::BadValue, "holds a line feed"))
}

/// Numbers the distinct tag sets of the kept rows.
fn series(
    plan: &Plan<'_>,
    tags: &[Codes<'_>],
    keep: Option<&[u32]>,
    seed: u64,
    budget: &mut Budget,
    out: &mut TableBatch,
) -> Result<(), ArrowShape> {
    let kept = keep.map_or(plan.rows, <[u32]>::len);
    let source = |i: usize| keep.map_or(i, |k| k.get(i).map_or(0, |row| *row as usize));
    // Row by row, 4 bytes per tag: hashed and compared as bytes. A block at a time stays in the
    // nearest cache.
    let width = 4 * tags.len();
    let mut block = vec![0u8; kept.min(BLOCK_ROWS) * width];
    let mut known = Tuples::new(width, seed);
    out.series.reserve_exact(kept);
    for start in (0..kept).step_by(BLOCK_ROWS) {
        let rows = BLOCK_ROWS.min(kept - start);
        for (t, codes) in tags.iter().enumerate() {
            codes.put(&mut block, (width, 4 * t), rows, |i| source(start + i));
        }
        for i in 0..rows {
            let this = block.get(i * width..(i + 1) * width).unwrap_or_default();
            let (series, new) = known.number(this);
            if new {
                out.series_keys.push(series_key(plan, tags, source(start + i), budget)?);
            }
            out.series.push(series);
        }
    }
    Ok(())
}

/// The tags of a row.
fn series_key(
    plan: &Plan<'_>,
    tags: &[Codes<'_>],
    row: usize,
    budget: &mut Budget,
) -> Result<SeriesKey, ArrowShape> {
    let mut pairs: Vec<(&str, &str)> = Vec::with_capacity(tags.len());
    for ((name, _), codes) in plan.tags.iter().zip(tags) {
        if let Some(value) = codes.value(row) {
            pairs.push((name, value));
        }
    }
    budget.take(pairs.iter().map(|(n, v)| n.len() + v.len() + 8).sum())?;
    Ok(SeriesKey::from_sorted(pairs))
}

/// Rows whose codes are looked at together.
const BLOCK_ROWS: usize = 64;

/// Distinct tuples of codes, numbered as they come. Senders repeat their series in one order, so
/// each remembers which came after it: mostly one comparison finds the number.
struct Tuples {
    width: usize,
    seed: u64,
    /// The distinct ones, back to back.
    all: Vec<u8>,
    /// The one that came next the last time.
    next: Vec<u32>,
    last: u32,
    index: HashTable<u32>,
}

impl Tuples {
    fn new(width: usize, seed: u64) -> Self {
        Self { width, seed, all: Vec::new(), next: Vec::new(), last: 0, index: HashTable::new() }
    }

    /// The number of a tuple, and whether it is new.
    fn number(&mut self, tuple: &[u8]) -> (u32, bool) {
        let (width, seed, all) = (self.width, self.seed, &self.all);
        let at = |n: u32| all.get(n as usize * width..(n as usize + 1) * width);
        if let Some(next) = self.next.get(self.last as usize)
            && at(*next) == Some(tuple)
        {
            self.last = *next;
            return (*next, false);
        }
        let hash = xxh3_64_with_seed(tuple, seed);
        let found = self.index.find(hash, |n| at(*n) == Some(tuple)).copied();
        let number = found.unwrap_or(self.next.len() as u32);
        if found.is_none() {
            let rehash = |n: &u32| xxh3_64_with_seed(at(*n).unwrap_or_default(), seed);
            self.index.insert_unique(hash, number, rehash);
            self.all.extend_from_slice(tuple);
            self.next.push(0);
        }
        if let Some(next) = self.next.get_mut(self.last as usize) {
            *next = number;
        }
        self.last = number;
        (number, found.is_none())
    }
}

/// Refuses the rows whose value in this column may not be.
fn judge(
    name: &str,
    array: &ArrayRef,
    limits: &RowLimits,
    verdicts: &mut Verdicts,
    budget: &mut Budget,
) -> Result<(), ArrowShape> {
    let mut not_finite = |row: usize, value: f64| {
        verdicts.refuse(row, RefusalCode::NotFinite, || {
            format!("field `{name}` is {value}; only finite numbers are taken")
        });
    };
    let nulls = array.nulls();
    let there = |row: &usize| nulls.is_none_or(|n| n.is_valid(*row));
    if let Some(values) = array.as_primitive_opt::<Float64Type>() {
        let bad = values.values().iter().enumerate().filter(|(_, v)| !v.is_finite());
        bad.filter(|(row, _)| there(row)).for_each(|(row, v)| not_finite(row, *v));
    } else if let Some(values) = array.as_primitive_opt::<Float32Type>() {
        let bad = values.values().iter().enumerate().filter(|(_, v)| !v.is_finite());
        bad.filter(|(row, _)| there(row)).for_each(|(row, v)| not_finite(row, f64::from(*v)));
    } else if text_type(array.data_type()).is_some() {
        let column = TextColumn::of(array);
        for row in 0..column.rows {
            let len = column.get(row).map_or(0, str::len);
            if len > limits.text_bytes {
                verdicts.refuse(row, RefusalCode::TooLong, || {
                    format!(
                        "field `{name}` has {len} bytes, at most {} are taken",
                        limits.text_bytes
                    )
                });
            } else {
                budget.take(len)?;
            }
        }
    }
    Ok(())
}

fn values(name: &str, array: &ArrayRef, keep: Option<&[u32]>) -> Result<FieldValues, ArrowShape> {
    Ok(match array.data_type() {
        DataType::Float64 => FieldValues::F64(numbers::<Float64Type, _>(array, keep, |v| v)),
        DataType::Float32 => FieldValues::F64(numbers::<Float32Type, _>(array, keep, f64::from)),
        DataType::Int8 => FieldValues::I64(numbers::<Int8Type, _>(array, keep, i64::from)),
        DataType::Int16 => FieldValues::I64(numbers::<Int16Type, _>(array, keep, i64::from)),
        DataType::Int32 => FieldValues::I64(numbers::<Int32Type, _>(array, keep, i64::from)),
        DataType::Int64 => FieldValues::I64(numbers::<Int64Type, _>(array, keep, |v| v)),
        DataType::UInt8 => FieldValues::U64(numbers::<UInt8Type, _>(array, keep, u64::from)),
        DataType::UInt16 => FieldValues::U64(numbers::<UInt16Type, _>(array, keep, u64::from)),
        DataType::UInt32 => FieldValues::U64(numbers::<UInt32Type, _>(array, keep, u64::from)),
        DataType::UInt64 => FieldValues::U64(numbers::<UInt64Type, _>(array, keep, |v| v)),
        DataType::Boolean => {
            let values = array.as_boolean();
            let of = |row: usize| values.is_valid(row) && values.value(row);
            FieldValues::Bool(match keep {
                None => (0..values.len()).map(of).collect(),
                Some(keep) => keep.iter().map(|row| of(*row as usize)).collect(),
            })
        }
        other if text_type(other).is_some() => {
            let column = TextColumn::of(array);
            let mut out = Texts::default();
            match keep {
                None => (0..column.rows).for_each(|row| out.push(column.get(row).unwrap_or(""))),
                Some(keep) => {
                    keep.iter().for_each(|row| out.push(column.get(*row as usize).unwrap_or("")));
                }
            }
            FieldValues::Utf8(out)
        }
        _ => {
            return Err(wrong_type(
                name,
                array,
                "a field is an integer, Float32, Float64, Boolean or text",
            ));
        }
    })
}

/// The kept values; absent ones become the default, so that no foreign bytes travel on.
fn numbers<T: ArrowPrimitiveType, N: Default>(
    array: &ArrayRef,
    keep: Option<&[u32]>,
    widen: impl Fn(T::Native) -> N,
) -> Vec<N> {
    let array: &PrimitiveArray<T> = array.as_primitive();
    let values = array.values();
    let of = |row: usize| match values.get(row) {
        Some(v) if array.is_valid(row) => widen(*v),
        _ => N::default(),
    };
    match keep {
        Some(keep) => keep.iter().map(|row| of(*row as usize)).collect(),
        None if array.null_count() == 0 => values.iter().map(|v| widen(*v)).collect(),
        None => (0..values.len()).map(of).collect(),
    }
}
