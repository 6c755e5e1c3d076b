//! From chunks to sorted runs: one run per time window, rows by (series rank, time), rows of
//! equal series and time merged field by field, last write wins.
//!
//! Owns: the counting sort by series rank and the move of values into arrow columns.
//! Cost (design: 13 ns per row of 11 columns): one pass to count, one to place, a time sort only
//! where a series arrived out of order, one pass per column. Rows come in time order and leave in
//! series order, so a value is far either from the one read before it or from the one written
//! before it. Values are read in order and written far: the places that a chunk of many series
//! writes to next stay in the cache, while each value read would be a line of its own.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, StringBuilder, UInt64Array,
    },
    buffer::{BooleanBuffer, NullBuffer},
};
use millrace_protocol::value::{FieldType, FieldValues};

use super::chunk::{Chunk, ChunkField};
use crate::{
    run::{Run, RunError, SeriesSpan},
    series::dictionary::SeriesView,
};

/// Which rows to take.
#[derive(Debug, Clone)]
pub(crate) struct RowFilter<'a> {
    /// Half-open time range, ns.
    pub time: Range<i64>,
    /// By ordinal; `None` takes all. Ordinals past its end are not taken.
    pub series: Option<&'a [bool]>,
}

/// Where a row is: (chunk, row).
type Place = (u32, u32);

/// Memory that sorting takes per row beside the columns, bytes: place and time, twice while they
/// go into their windows, and where the row goes.
pub(crate) const SORT_BYTES_PER_ROW: usize = 2 * (size_of::<Place>() + size_of::<i64>()) + 4;

/// Rows of all chunks per row of a window up to which every row of the chunks is looked at.
const DENSE: usize = 4;

#[derive(Debug, Default)]
struct Window {
    places: Vec<Place>,
    /// Parallel to `places`.
    times: Vec<i64>,
    /// Rows of `places` that stand for several: (index in `places`, older places, newest first).
    older: Vec<(usize, Vec<Place>)>,
    spans: Vec<SeriesSpan>,
}

/// For each chunk where each of its rows goes in a window, `u32::MAX` for those that do not.
struct Moves(Vec<Vec<u32>>);

impl Moves {
    /// `None` if the window takes so little of the chunks that its rows are better looked for one
    /// by one: late rows may fall into hundreds of windows.
    fn new(chunks: &[Arc<Chunk>], window: &Window) -> Option<Self> {
        let rows: usize = chunks.iter().map(|c| c.rows()).sum();
        if rows > DENSE.saturating_mul(window.places.len()) {
            return None;
        }
        let mut to: Vec<Vec<u32>> = chunks.iter().map(|c| vec![u32::MAX; c.rows()]).collect();
        for (index, (chunk, row)) in (0u32..).zip(&window.places) {
            if let Some(slot) = to.get_mut(*chunk as usize).and_then(|c| c.get_mut(*row as usize)) {
                *slot = index;
            }
        }
        Some(Self(to))
    }

    /// Writes each chunk's values to their places in `out`.
    fn scatter<T: Copy>(&self, from: &[&[T]], out: &mut [T]) {
        for (values, to) in from.iter().zip(&self.0) {
            for (value, index) in values.iter().zip(to) {
                if let Some(slot) = out.get_mut(*index as usize) {
                    *slot = *value;
                }
            }
        }
    }
}

/// Sorts the rows of `chunks` (oldest first) that pass `filter` into runs, keyed by the start of
/// their window, which `window_of` a time says. Fields come in the order of `fields`.
pub(crate) fn sort_chunks(
    chunks: &[Arc<Chunk>],
    filter: &RowFilter<'_>,
    fields: &[(u32, FieldType)],
    view: &SeriesView,
    window_of: impl Fn(i64) -> i64,
) -> Result<BTreeMap<i64, Run>, RunError> {
    sorted_windows(chunks, filter, fields, view, window_of).collect()
}

/// The same, one window after the other: the columns of a window are gathered when it is asked
/// for, so that a flush holds one copy of a window and not one of everything.
pub(crate) fn sorted_windows<'a, W: Fn(i64) -> i64>(
    chunks: &'a [Arc<Chunk>],
    filter: &RowFilter<'_>,
    fields: &'a [(u32, FieldType)],
    view: &SeriesView,
    window_of: W,
) -> impl ExactSizeIterator<Item = Result<(i64, Run), RunError>> + use<'a, W> {
    let windows = place_rows(chunks, filter, view, &window_of);
    windows.into_iter().map(move |(start, window)| {
        let moves = Moves::new(chunks, &window);
        let column =
            |(id, ty): &(u32, FieldType)| column(chunks, *id, *ty, &window, moves.as_ref());
        let columns = fields.iter().map(column).collect();
        let ids = fields.iter().map(|(id, _)| *id).collect();
        Ok((start, Run::new(window.times, ids, columns, window.spans)?))
    })
}

fn place_rows(
    chunks: &[Arc<Chunk>],
    filter: &RowFilter<'_>,
    view: &SeriesView,
    window_of: &impl Fn(i64) -> i64,
) -> BTreeMap<i64, Window> {
    let takes = |chunk: &Chunk, row: usize| -> Option<usize> {
        let time = *chunk.time.get(row)?;
        let ordinal = *chunk.ordinal.get(row)? as usize;
        let wanted = filter.time.contains(&time)
            && filter.series.is_none_or(|s| s.get(ordinal).copied().unwrap_or(false));
        (wanted && ordinal < view.len()).then_some(ordinal)
    };
    let relevant: Vec<(u32, &Chunk)> = chunks
        .iter()
        .enumerate()
        .filter(|(_, c)| c.t_min < filter.time.end && c.t_max >= filter.time.start)
        .map(|(i, c)| (i as u32, c.as_ref()))
        .collect();

    let mut counts = vec![0u32; view.len()];
    for (_, chunk) in &relevant {
        for row in 0..chunk.rows() {
            if let Some(count) = takes(chunk, row).and_then(|o| counts.get_mut(o)) {
                *count += 1;
            }
        }
    }
    // Start of each series' places, in rank order.
    let mut next = vec![0u32; view.len()];
    let mut total = 0u32;
    for ordinal in &view.order {
        let o = *ordinal as usize;
        if let (Some(n), Some(count)) = (next.get_mut(o), counts.get(o)) {
            *n = total;
            total += count;
        }
    }
    let mut places: Vec<Place> = vec![(0, 0); total as usize];
    let mut times = vec![0i64; total as usize];
    for (index, chunk) in &relevant {
        for (row, time) in chunk.time.iter().enumerate() {
            if let Some(at) = takes(chunk, row).and_then(|o| next.get_mut(o)) {
                if let (Some(place), Some(slot)) =
                    (places.get_mut(*at as usize), times.get_mut(*at as usize))
                {
                    (*place, *slot) = ((*index, row as u32), *time);
                }
                *at += 1;
            }
        }
    }

    let mut windows: BTreeMap<i64, Window> = BTreeMap::new();
    let mut scratch = Vec::new();
    let mut start = 0usize;
    for ordinal in &view.order {
        let count = counts.get(*ordinal as usize).copied().unwrap_or(0) as usize;
        if count == 0 {
            continue;
        }
        let Some(entry) = view.entries.get(*ordinal as usize) else { continue };
        let rows = start..start + count;
        if let (Some(places), Some(times)) = (places.get_mut(rows.clone()), times.get_mut(rows)) {
            sort_series(places, times, &mut scratch);
            split_series(places, times, entry.sid, window_of, &mut windows);
        }
        start += count;
    }
    windows
}

/// Sorts the rows of a series by time. Stable, so that of equal times the newest comes last.
fn sort_series(places: &mut [Place], times: &mut [i64], scratch: &mut Vec<(i64, Place)>) {
    if times.is_sorted() {
        return;
    }
    scratch.clear();
    scratch.extend(times.iter().copied().zip(places.iter().copied()));
    scratch.sort_by_key(|(time, _)| *time);
    for ((time, place), sorted) in times.iter_mut().zip(places).zip(scratch.iter()) {
        (*time, *place) = *sorted;
    }
}

/// Puts the rows of a series, sorted by time, into their windows, which are intervals.
fn split_series(
    mut places: &[Place],
    mut times: &[i64],
    sid: millrace_protocol::ids::SeriesId,
    window_of: &impl Fn(i64) -> i64,
    windows: &mut BTreeMap<i64, Window>,
) {
    while let (Some(first), Some(last)) = (times.first(), times.last()) {
        let start = window_of(*first);
        let rows = match window_of(*last) {
            end if end == start => times.len(),
            _ => times.partition_point(|t| window_of(*t) == start).max(1),
        };
        let (these, later) = times.split_at(rows);
        let (at, rest) = places.split_at(rows.min(places.len()));
        put_rows(at, these, sid, windows.entry(start).or_default());
        (times, places) = (later, rest);
    }
}

/// Puts rows of one series at the end of a window; of equal times the last is the newest.
fn put_rows(
    places: &[Place],
    times: &[i64],
    sid: millrace_protocol::ids::SeriesId,
    window: &mut Window,
) {
    let begin = window.places.len();
    let distinct = times.array_windows().all(|[a, b]| a != b);
    if distinct {
        window.places.extend_from_slice(places);
        window.times.extend_from_slice(times);
    } else {
        let mut rest = places;
        for same in times.chunk_by(|a, b| a == b) {
            let (at, later) = rest.split_at(same.len().min(rest.len()));
            rest = later;
            let (Some((newest, older)), Some(time)) = (at.split_last(), same.first()) else {
                continue;
            };
            if !older.is_empty() {
                window.older.push((window.places.len(), older.iter().rev().copied().collect()));
            }
            window.places.push(*newest);
            window.times.push(*time);
        }
    }
    let end = window.places.len();
    let t_min = times.first().copied().unwrap_or(0);
    window.spans.push(SeriesSpan {
        sid,
        start: begin as u32,
        rows: (end - begin) as u32,
        t_min,
        t_max: times.last().copied().unwrap_or(t_min),
    });
}

/// One column of a window, in place order; a merged row takes the newest value that is present.
fn column(
    chunks: &[Arc<Chunk>],
    id: u32,
    ty: FieldType,
    window: &Window,
    moves: Option<&Moves>,
) -> ArrayRef {
    let columns: Vec<Option<&ChunkField>> = chunks.iter().map(|c| c.field(id)).collect();
    let has = |(c, r): Place| {
        columns.get(c as usize).copied().flatten().is_some_and(|f| f.present.get(r as usize))
    };
    // Rows whose newest write lacks this field take the newest older one that has it.
    let mut instead: Vec<(usize, Place)> = Vec::new();
    for (index, older) in &window.older {
        let newest = window.places.get(*index).copied();
        if newest.is_some_and(has) {
            continue;
        }
        if let Some(found) = older.iter().copied().find(|p| has(*p)) {
            instead.push((*index, found));
        }
    }
    let all = columns.iter().flatten().count() == columns.len()
        && columns.iter().flatten().all(|f| f.present.all());
    let nulls = if all {
        None
    } else {
        let bits = |f: Option<&ChunkField>, rows: usize| -> Vec<bool> {
            (0..rows).map(|row| f.is_some_and(|f| f.present.get(row))).collect()
        };
        let mut valid = match moves {
            Some(moves) => {
                let present: Vec<Vec<bool>> =
                    columns.iter().zip(chunks).map(|(f, c)| bits(*f, c.rows())).collect();
                let present: Vec<&[bool]> = present.iter().map(Vec::as_slice).collect();
                let mut valid = vec![false; window.places.len()];
                moves.scatter(&present, &mut valid);
                valid
            }
            None => window.places.iter().map(|p| has(*p)).collect(),
        };
        for (index, _) in &instead {
            if let Some(valid) = valid.get_mut(*index) {
                *valid = true;
            }
        }
        Some(NullBuffer::new(BooleanBuffer::from(valid))).filter(|n| n.null_count() > 0)
    };
    macro_rules! values {
        ($variant:ident, $zero:expr) => {{
            let slices: Vec<&[_]> = columns
                .iter()
                .map(|c| match c.map(|f| &f.values) {
                    Some(FieldValues::$variant(v)) => v.as_slice(),
                    _ => &[],
                })
                .collect();
            let value = |(c, r): Place| {
                slices.get(c as usize).and_then(|s| s.get(r as usize)).copied().unwrap_or($zero)
            };
            let mut values = match moves {
                Some(moves) => {
                    let mut values = vec![$zero; window.places.len()];
                    moves.scatter(&slices, &mut values);
                    values
                }
                None => window.places.iter().map(|p| value(*p)).collect(),
            };
            for (index, place) in &instead {
                if let Some(slot) = values.get_mut(*index) {
                    *slot = value(*place);
                }
            }
            values
        }};
    }
    match ty {
        FieldType::F64 => Arc::new(Float64Array::new(values!(F64, 0.0).into(), nulls)),
        FieldType::I64 => Arc::new(Int64Array::new(values!(I64, 0).into(), nulls)),
        FieldType::U64 => Arc::new(UInt64Array::new(values!(U64, 0).into(), nulls)),
        FieldType::Bool => {
            Arc::new(BooleanArray::new(BooleanBuffer::from(values!(Bool, false)), nulls))
        }
        FieldType::Utf8 => Arc::new(texts(&columns, window, &instead)),
    }
}

/// A column of texts.
fn texts(
    columns: &[Option<&ChunkField>],
    window: &Window,
    instead: &[(usize, Place)],
) -> StringArray {
    let mut out = StringBuilder::with_capacity(window.places.len(), window.places.len() * 8);
    let mut instead = instead.iter().peekable();
    for (index, newest) in window.places.iter().enumerate() {
        let found = instead.next_if(|(at, _)| *at == index);
        let place = found.map_or(*newest, |(_, place)| *place);
        let text = match columns.get(place.0 as usize).copied().flatten() {
            Some(ChunkField { values: FieldValues::Utf8(t), present, .. })
                if present.get(place.1 as usize) =>
            {
                Some(t.get(place.1 as usize))
            }
            _ => None,
        };
        out.append_option(text);
    }
    out.finish()
}

#[cfg(test)]
mod tests;
