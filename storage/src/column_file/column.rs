//! One column of a file: its Parquet type, and its rows as column chunks.
//!
//! Owns: which Parquet type an arrow column gets (decimals in disguise, coarser times), levels,
//! pages and statistics. Never: writes a value that does not read back bit for bit.

use std::{ops::Range, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, StringArray},
    buffer::{BooleanBuffer, NullBuffer},
    datatypes::{DataType, Float64Type, Int64Type, TimestampNanosecondType, UInt64Type},
};
use bytes::Bytes;
use hashbrown::HashMap;
use parquet::{
    basic::{ConvertedType, Encoding, LogicalType, Repetition, TimeUnit, Type as PhysicalType},
    column::writer::ColumnCloseResult,
    data_type::ByteArray,
    errors::ParquetError,
    file::statistics::Statistics,
    schema::types::{ColumnDescPtr, Type, TypePtr},
};

use super::{
    choose::{self, DICTIONARY_MAX, Floats, Whole},
    chunk::{Chunk, Codec, Compressors},
    decimal, delta, hybrid,
    layout::{COARSEST_NS, Layout},
    writer::{FileProfile, WriteFileError},
};
use crate::run::{Run, SeriesSpan};

/// Rows of a page: one DataFusion batch.
const PAGE_ROWS: usize = 8192;
/// Bytes of a text dictionary at most, and of a text in the statistics.
const TEXTS_MAX: usize = 1 << 20;
const STATISTIC_MAX: usize = 64;

/// Memory that columns use one after the other.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) compressors: Compressors,
    whole: Vec<i64>,
    floats: Vec<f64>,
    page: Vec<u8>,
}

enum Data<'a> {
    Series(&'a [SeriesSpan]),
    /// Nanoseconds, stored in units of so many.
    Time(ArrayRef, i64),
    Int(ArrayRef),
    Unsigned(ArrayRef),
    Decimal(ArrayRef, u8),
    Float(ArrayRef),
    Text(ArrayRef),
    Bool(ArrayRef),
}

/// See the module head.
pub(super) struct Column<'a> {
    /// Its place in the Parquet schema.
    pub(super) ty: TypePtr,
    data: Data<'a>,
}

impl<'a> Column<'a> {
    /// `__sid`, from the spans.
    pub(super) fn series(spans: &'a [SeriesSpan]) -> Result<Self, ParquetError> {
        let ty = leaf("__sid", 1, PhysicalType::INT64, Some(unsigned()), Repetition::REQUIRED)?;
        Ok(Self { ty, data: Data::Series(spans) })
    }

    /// The layout that says all of the run's values: the unit no coarser than `wanted`'s, the
    /// scales no smaller, doubles where it wants doubles.
    pub(super) fn layout(run: &Run, wanted: &Layout) -> Layout {
        let time = run.batch.column(0).as_primitive::<TimestampNanosecondType>().values();
        let whole = |unit: &i64| *unit <= wanted.unit_ns && time.iter().all(|t| t % unit == 0);
        let unit_ns = [COARSEST_NS, 1_000].into_iter().find(whole).unwrap_or(1);
        let fields = run.field_ids.iter().zip(run.batch.columns().iter().skip(1));
        let floats = fields.filter(|(_, array)| *array.data_type() == DataType::Float64);
        let scales = floats.map(|(id, array)| {
            let wanted = wanted.scales.get(id).copied().unwrap_or(Some(0));
            (*id, wanted.and_then(|at_least| scale(array, at_least)))
        });
        Layout { unit_ns, scales: scales.collect() }
    }

    /// `time`, in units of so many nanoseconds, in which it must be whole.
    pub(super) fn time(time: &ArrayRef, unit_ns: i64) -> Result<Self, ParquetError> {
        let unit = match unit_ns {
            1_000_000 => TimeUnit::MILLIS,
            1_000 => TimeUnit::MICROS,
            _ => TimeUnit::NANOS,
        };
        let logical = LogicalType::timestamp(true, unit);
        let ty = leaf("time", 2, PhysicalType::INT64, Some(logical), Repetition::REQUIRED)?;
        Ok(Self { ty, data: Data::Time(Arc::clone(time), unit_ns) })
    }

    /// A field. Floats are decimals of `at_scale` if there is one, which must say all of them.
    pub(super) fn field(
        name: &str,
        id: u32,
        array: &ArrayRef,
        at_scale: Option<u8>,
    ) -> Result<Self, WriteFileError> {
        let array = Arc::clone(array);
        let (physical, logical, data) = match array.data_type() {
            DataType::Int64 => (PhysicalType::INT64, None, Data::Int(array)),
            DataType::UInt64 => (PhysicalType::INT64, Some(unsigned()), Data::Unsigned(array)),
            DataType::Float64 => match at_scale {
                Some(scale) => {
                    let (s, p) = (i32::from(scale), i32::from(decimal::PRECISION));
                    let logical = LogicalType::decimal(s, p);
                    (PhysicalType::INT64, Some(logical), Data::Decimal(array, scale))
                }
                None => (PhysicalType::DOUBLE, None, Data::Float(array)),
            },
            DataType::Utf8 => {
                (PhysicalType::BYTE_ARRAY, Some(LogicalType::String), Data::Text(array))
            }
            DataType::Boolean => (PhysicalType::BOOLEAN, None, Data::Bool(array)),
            _ => return Err(WriteFileError::UnknownType { column: id }),
        };
        Ok(Self { ty: leaf(name, id, physical, logical, Repetition::OPTIONAL)?, data })
    }

    /// The column chunk of the rows `rows`.
    pub(super) fn chunk(
        &self,
        rows: Range<usize>,
        descr: ColumnDescPtr,
        profile: FileProfile,
        scratch: &mut Scratch,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        let whole = |signed: bool| Job { descr: Arc::clone(&descr), profile, signed };
        let part = |array: &ArrayRef| array.slice(rows.start, rows.len());
        match &self.data {
            Data::Series(spans) => series(spans, rows, descr, scratch),
            Data::Time(time, divisor) => {
                let time = part(time);
                let values = time.as_primitive::<TimestampNanosecondType>().values();
                let mut dense = std::mem::take(&mut scratch.whole);
                dense.clear();
                match divisor {
                    // Constant divisors: a division by a variable costs 20 times as much.
                    1_000_000 => dense.extend(values.iter().map(|t| t / 1_000_000)),
                    1_000 => dense.extend(values.iter().map(|t| t / 1_000)),
                    _ => dense.extend_from_slice(values),
                }
                let done = whole(true).whole(&dense, None, scratch);
                scratch.whole = dense;
                done
            }
            Data::Int(array) => {
                let array = part(array);
                let values = array.as_primitive::<Int64Type>().values();
                whole(true).compact(values, array.nulls(), scratch)
            }
            Data::Unsigned(array) => {
                let array = part(array);
                // The same 64 bits: deltas wrap.
                let values = array.as_primitive::<UInt64Type>().values().clone().into_inner();
                whole(false).compact(values.typed_data::<i64>(), array.nulls(), scratch)
            }
            Data::Decimal(array, scale) => {
                let array = part(array);
                let values = array.as_primitive::<Float64Type>().values();
                let mut floats = std::mem::take(&mut scratch.floats);
                let mut dense = std::mem::take(&mut scratch.whole);
                decimal::to_whole(present(values, array.nulls(), &mut floats), *scale, &mut dense);
                let done = whole(true).whole(&dense, array.nulls(), scratch);
                (scratch.floats, scratch.whole) = (floats, dense);
                done
            }
            Data::Float(array) => {
                let array = part(array);
                let values = array.as_primitive::<Float64Type>().values();
                let mut dense = std::mem::take(&mut scratch.floats);
                let values = present(values, array.nulls(), &mut dense);
                let done = whole(true).floats(values, array.nulls(), scratch);
                scratch.floats = dense;
                done
            }
            Data::Text(array) => whole(true).text(part(array).as_string(), scratch),
            Data::Bool(array) => whole(true).bools(part(array).as_boolean(), scratch),
        }
    }
}

fn unsigned() -> LogicalType {
    LogicalType::integer(64, false)
}

fn leaf(
    name: &str,
    id: u32,
    physical: PhysicalType,
    logical: Option<LogicalType>,
    repetition: Repetition,
) -> Result<TypePtr, ParquetError> {
    let mut builder = Type::primitive_type_builder(name, physical)
        .with_repetition(repetition)
        .with_id(i32::try_from(id).ok());
    if let Some(LogicalType::Decimal(decimal)) = &logical {
        builder = builder.with_precision(decimal.precision).with_scale(decimal.scale);
    }
    Ok(Arc::new(
        builder.with_logical_type(logical).with_converted_type(ConvertedType::NONE).build()?,
    ))
}

/// The scale, at least `at_least`, at which every value of the column is a decimal.
fn scale(array: &ArrayRef, at_least: u8) -> Option<u8> {
    let values = array.as_primitive::<Float64Type>().values();
    let mut scratch = Vec::new();
    let (mut scale, mut from, mut since) = (at_least, 0, 0);
    // Piece by piece, round about, until a whole round has passed at one scale.
    while since < values.len() {
        let to = (from + PAGE_ROWS).min(values.len());
        let nulls = array.nulls().map(|n| n.slice(from, to - from));
        let piece = present(&values[from..to], nulls.as_ref(), &mut scratch);
        let found = decimal::scale_of(piece, scale)?;
        since = if found == scale { since + (to - from) } else { to - from };
        scale = found;
        from = if to == values.len() { 0 } else { to };
    }
    Some(scale)
}

/// The values that are there, without copying if all are.
fn present<'v, T: Copy>(
    values: &'v [T],
    nulls: Option<&NullBuffer>,
    scratch: &'v mut Vec<T>,
) -> &'v [T] {
    match nulls.filter(|n| n.null_count() > 0) {
        None => values,
        Some(nulls) => {
            scratch.clear();
            scratch.reserve(values.len() - nulls.null_count());
            nulls
                .valid_slices()
                .for_each(|(from, to)| scratch.extend_from_slice(&values[from..to]));
            scratch
        }
    }
}

/// A page's rows, and its values' place among those that are there.
struct PageRows {
    rows: usize,
    nulls: usize,
    levels: Vec<u8>,
    values: Range<usize>,
}

/// Cuts rows into pages. `nullable`: the column has levels.
fn pages(
    rows: usize,
    nulls: Option<&NullBuffer>,
    nullable: bool,
) -> impl Iterator<Item = PageRows> {
    let mut at = 0;
    (0..rows).step_by(PAGE_ROWS).map(move |from| {
        let rows = PAGE_ROWS.min(rows - from);
        let nulls = nulls.map(|n| n.slice(from, rows)).filter(|n| n.null_count() > 0);
        let mut levels = Vec::new();
        match &nulls {
            _ if !nullable => {}
            Some(nulls) => hybrid::bools(&mut levels, nulls.inner()),
            None => hybrid::run_of(&mut levels, 1, rows, 1),
        }
        let nulls = nulls.map_or(0, |n| n.null_count());
        let values = at..at + rows - nulls;
        at = values.end;
        PageRows { rows, nulls, levels, values }
    })
}

/// The sids as a dictionary and one run per series and page: no look at single rows.
fn series(
    spans: &[SeriesSpan],
    rows: Range<usize>,
    descr: ColumnDescPtr,
    scratch: &mut Scratch,
) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
    let (start, end) = (rows.start as u32, rows.end as u32);
    let first = spans.partition_point(|s| s.start + s.rows <= start);
    let last = spans.partition_point(|s| s.start < end);
    let spans = &spans[first..last];
    let values: Vec<u8> = spans.iter().flat_map(|s| s.sid.0.to_le_bytes()).collect();
    let width = hybrid::bits(spans.len().saturating_sub(1) as u64).max(1);
    let mut chunk = Chunk::new(descr, Codec::Plain, &mut scratch.compressors);
    chunk.dictionary(values, spans.len() as u32)?;
    for page in pages(rows.len(), None, false) {
        let (from, to) = (start + page.values.start as u32, start + page.values.end as u32);
        let mut data = vec![width as u8];
        let mut at = spans.partition_point(|s| s.start + s.rows <= from);
        while let Some(span) = spans.get(at).filter(|s| s.start < to) {
            let run = (span.start + span.rows).min(to) - span.start.max(from);
            hybrid::run_of(&mut data, at as u32, run as usize, width);
            at += 1;
        }
        chunk.page((page.rows, 0), Vec::new(), &data, Encoding::RLE_DICTIONARY)?;
    }
    let sids = spans.iter().map(|s| s.sid.0);
    let bound = |sid: Option<u64>| sid.map(|s| s as i64);
    let bounds = (bound(sids.clone().min()), bound(sids.max()));
    chunk.finish(Statistics::int64(bounds.0, bounds.1, None, Some(0), false))
}

/// One chunk that is being written.
struct Job {
    descr: ColumnDescPtr,
    profile: FileProfile,
    signed: bool,
}

type Done = Result<(Bytes, ColumnCloseResult), ParquetError>;

impl Job {
    fn nullable(&self) -> bool {
        self.descr.max_def_level() > 0
    }

    fn compact(self, values: &[i64], nulls: Option<&NullBuffer>, scratch: &mut Scratch) -> Done {
        let mut dense = std::mem::take(&mut scratch.whole);
        let done = self.whole(present(values, nulls, &mut dense), nulls, scratch);
        scratch.whole = dense;
        done
    }

    /// `values` are those that are there.
    fn whole(self, values: &[i64], nulls: Option<&NullBuffer>, scratch: &mut Scratch) -> Done {
        let choice = choose::whole(values, &mut scratch.compressors)?;
        let (least, most) = match self.signed {
            true => (values.iter().min().copied(), values.iter().max().copied()),
            false => {
                let bits = || values.iter().map(|v| *v as u64);
                (bits().min().map(|v| v as i64), bits().max().map(|v| v as i64))
            }
        };
        let null_count = nulls.map_or(0, NullBuffer::null_count);
        let statistics = Statistics::int64(least, most, None, Some(null_count as u64), false);
        let rows = values.len() + null_count;
        if choice == Whole::Dictionary
            && let Some(keys) = keys(values.iter().map(|v| *v as u64))
        {
            let plain = keys.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            return self.dictionary(keys, plain, Codec::Plain, (rows, nulls), statistics, scratch);
        }
        let (layout, codec) = match choice {
            Whole::Delta(layout, codec) => (layout, codec),
            Whole::Dictionary => (delta::Layout::Narrow, Codec::Zstd),
        };
        let nullable = self.nullable();
        let mut chunk = Chunk::new(self.descr, codec, &mut scratch.compressors);
        for page in pages(rows, nulls, nullable) {
            scratch.page.clear();
            delta::encode(&mut scratch.page, &values[page.values], layout);
            let counts = (page.rows, page.nulls);
            chunk.page(counts, page.levels, &scratch.page, Encoding::DELTA_BINARY_PACKED)?;
        }
        chunk.finish(statistics)
    }

    fn floats(self, values: &[f64], nulls: Option<&NullBuffer>, scratch: &mut Scratch) -> Done {
        let null_count = nulls.map_or(0, NullBuffer::null_count);
        let rows = values.len() + null_count;
        let statistics = float_statistics(values, null_count);
        let mut choice = choose::floats(values, self.profile, &mut scratch.compressors)?;
        if let Floats::Dictionary(codec) = choice {
            if let Some(keys) = keys(values.iter().map(|v| v.to_bits())) {
                let plain = keys.values.iter().flat_map(|v| v.to_le_bytes()).collect();
                return self.dictionary(keys, plain, codec, (rows, nulls), statistics, scratch);
            }
            choice = Floats::Plain(codec);
        }
        let codec = match choice {
            Floats::Dictionary(codec) | Floats::Plain(codec) | Floats::Split(codec) => codec,
        };
        let nullable = self.nullable();
        let mut chunk = Chunk::new(self.descr, codec, &mut scratch.compressors);
        for page in pages(rows, nulls, nullable) {
            let values = &values[page.values];
            let (data, encoding) = match choice {
                Floats::Split(_) => (choose::split(values), Encoding::BYTE_STREAM_SPLIT),
                _ => (choose::plain(values), Encoding::PLAIN),
            };
            chunk.page((page.rows, page.nulls), page.levels, &data, encoding)?;
        }
        chunk.finish(statistics)
    }

    fn text(self, array: &StringArray, scratch: &mut Scratch) -> Done {
        let nulls = array.nulls();
        let codec = self.profile.codec();
        let statistics = |texts: &mut dyn Iterator<Item = &[u8]>| {
            let bounds = texts.fold(None, |bounds: Option<(&[u8], &[u8])>, text| {
                Some(bounds.map_or((text, text), |(a, b)| (a.min(text), b.max(text))))
            });
            let bound = |text: &[u8]| ByteArray::from(text.to_vec());
            let short = bounds.filter(|b| b.0.len().max(b.1.len()) <= STATISTIC_MAX);
            let (least, most) = short.map(|b| (bound(b.0), bound(b.1))).unzip();
            let nulls = nulls.map_or(0, NullBuffer::null_count) as u64;
            Statistics::byte_array(least, most, None, Some(nulls), false)
        };
        let texts = || array.iter().flatten().map(str::as_bytes);
        if let Some(keys) = keys(texts())
            && keys.values.iter().map(|v| v.len()).sum::<usize>() <= TEXTS_MAX
        {
            let statistics = statistics(&mut keys.values.iter().copied());
            let mut plain = Vec::new();
            keys.values.iter().for_each(|text| push_text(&mut plain, text));
            return self.dictionary(keys, plain, codec, (array.len(), nulls), statistics, scratch);
        }
        let statistics = statistics(&mut texts());
        let nullable = self.nullable();
        let mut chunk = Chunk::new(self.descr, codec, &mut scratch.compressors);
        let mut left = texts();
        for page in pages(array.len(), nulls, nullable) {
            scratch.page.clear();
            left.by_ref()
                .take(page.values.len())
                .for_each(|text| push_text(&mut scratch.page, text));
            chunk.page((page.rows, page.nulls), page.levels, &scratch.page, Encoding::PLAIN)?;
        }
        chunk.finish(statistics)
    }

    fn bools(self, array: &BooleanArray, scratch: &mut Scratch) -> Done {
        let (bits, nulls) = (array.values(), array.nulls());
        let values: BooleanBuffer = match nulls.filter(|n| n.null_count() > 0) {
            None => bits.clone(),
            Some(nulls) => nulls.valid_indices().map(|at| bits.value(at)).collect(),
        };
        let nullable = self.nullable();
        let mut chunk = Chunk::new(self.descr, Codec::Plain, &mut scratch.compressors);
        for page in pages(array.len(), nulls, nullable) {
            let mut data = vec![0; 4];
            hybrid::bools(&mut data, &values.slice(page.values.start, page.values.len()));
            let len = (data.len() - 4) as u32;
            data[..4].copy_from_slice(&len.to_le_bytes());
            chunk.page((page.rows, page.nulls), page.levels, &data, Encoding::RLE)?;
        }
        let set = values.count_set_bits();
        let some = !values.is_empty();
        let (least, most) = (some.then_some(set == values.len()), some.then_some(set > 0));
        let nulls = nulls.map_or(0, NullBuffer::null_count) as u64;
        chunk.finish(Statistics::boolean(least, most, None, Some(nulls), false))
    }

    /// A chunk of `keys`, whose values are `plain`.
    fn dictionary<T>(
        self,
        keys: Keys<T>,
        plain: Vec<u8>,
        codec: Codec,
        (rows, nulls): (usize, Option<&NullBuffer>),
        statistics: Statistics,
        scratch: &mut Scratch,
    ) -> Done {
        let nullable = self.nullable();
        let width = hybrid::bits(keys.values.len().saturating_sub(1) as u64).max(1);
        let mut chunk = Chunk::new(self.descr, codec, &mut scratch.compressors);
        chunk.dictionary(plain, keys.values.len() as u32)?;
        for page in pages(rows, nulls, nullable) {
            scratch.page.clear();
            scratch.page.push(width as u8);
            hybrid::indices(&mut scratch.page, &keys.indices[page.values], width);
            let counts = (page.rows, page.nulls);
            chunk.page(counts, page.levels, &scratch.page, Encoding::RLE_DICTIONARY)?;
        }
        chunk.finish(statistics)
    }
}

/// Distinct values in the order of first sight, and each value's place among them.
struct Keys<T> {
    values: Vec<T>,
    indices: Vec<u32>,
}

/// `None` if a dictionary does not pay.
fn keys<T: Copy + Eq + std::hash::Hash>(all: impl Iterator<Item = T>) -> Option<Keys<T>> {
    let mut keys = Keys { values: Vec::new(), indices: Vec::with_capacity(all.size_hint().0) };
    let mut places: HashMap<T, u32> = HashMap::new();
    let mut last = None;
    for value in all {
        // Neighbours often are equal.
        let place = match last {
            Some((before, place)) if before == value => place,
            _ => {
                let next = keys.values.len() as u32;
                let place = *places.entry(value).or_insert(next);
                if place == next {
                    keys.values.push(value);
                    if keys.values.len() > DICTIONARY_MAX {
                        return None;
                    }
                }
                place
            }
        };
        last = Some((value, place));
        keys.indices.push(place);
    }
    let pays = !keys.indices.is_empty() && keys.values.len() * 2 <= keys.indices.len();
    pays.then_some(keys)
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

/// Bounds as Parquet wants them: no NaN, and a zero of the sign that covers both.
fn float_statistics(values: &[f64], nulls: usize) -> Statistics {
    let bounds = values.iter().filter(|v| !v.is_nan()).fold(None, |bounds, v| {
        let (least, most) = bounds.unwrap_or((*v, *v));
        Some((v.min(least), v.max(most)))
    });
    let (least, most) = bounds.unzip();
    let least = least.map(|v: f64| if v == 0.0 { -0.0 } else { v });
    let most = most.map(|v: f64| if v == 0.0 { 0.0 } else { v });
    Statistics::double(least, most, None, Some(nulls as u64), false)
}
