//! Merging sorted sources of one table: series by series, in time order, last write wins field
//! by field.
//!
//! Owns: which source's value a merged row takes. Used by scans and by compaction alike, so that
//! a query and a merged file can never disagree.
//! Cost: a series that only one source has, or whose sources do not overlap in time, is copied
//! as a slice; only truly overlapping stretches are merged row by row.

use std::cmp::Ordering;

use arrow::{
    array::{Array, ArrayRef, MutableArrayData, RecordBatch, TimestampNanosecondArray, make_array},
    error::ArrowError,
};

use crate::planted::{Bug, planted};

/// A stretch of one series in one source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    /// The series' place in sort order.
    pub rank: u32,
    /// First row in the source's batch.
    pub start: usize,
    /// Rows, at least 1.
    pub rows: usize,
}

/// Rows of one file or of the memtable: column 0 is `time`, the rest are fields.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The columns.
    pub batch: RecordBatch,
    /// In rank order; a rank occurs at most once.
    pub stretches: Vec<Stretch>,
}

/// The merged rows: columns as in the sources, and how many rows each series has, in rank order.
#[derive(Debug, Clone)]
pub(crate) struct Merged {
    /// The columns.
    pub batch: RecordBatch,
    /// (rank, rows).
    pub series: Vec<(u32, usize)>,
}

#[derive(Debug, Clone, Copy)]
struct Piece {
    source: usize,
    start: usize,
    rows: usize,
}

/// A merged row that stands for several: its place in the output and the older rows, newest
/// first, as (source, row).
type Older = (usize, Vec<(usize, usize)>);

#[derive(Debug, Default)]
struct Plan {
    pieces: Vec<Piece>,
    rows: usize,
    older: Vec<Older>,
}

impl Plan {
    fn push(&mut self, source: usize, start: usize, rows: usize) {
        self.rows += rows;
        if let Some(last) = self.pieces.last_mut()
            && last.source == source
            && last.start + last.rows == start
        {
            last.rows += rows;
            return;
        }
        self.pieces.push(Piece { source, start, rows });
    }
}

/// The `time` column of a source.
pub(crate) fn times(batch: &RecordBatch) -> Result<&[i64], ArrowError> {
    batch
        .columns()
        .first()
        .and_then(|c| c.as_any().downcast_ref::<TimestampNanosecondArray>())
        .map(|a| a.values().as_ref())
        .ok_or_else(|| ArrowError::SchemaError("column 0 must be `time` in ns".into()))
}

/// Merges `sources`, oldest first. All batches have one schema.
pub(crate) fn merge(sources: &[Source]) -> Result<Merged, ArrowError> {
    let time: Vec<&[i64]> = sources.iter().map(|s| times(&s.batch)).collect::<Result<_, _>>()?;
    let mut next = vec![0usize; sources.len()];
    let mut plan = Plan::default();
    let mut series = Vec::new();
    let mut here: Vec<(usize, Stretch)> = Vec::with_capacity(sources.len());
    loop {
        let heads = sources.iter().zip(&next).filter_map(|(s, n)| s.stretches.get(*n));
        let Some(rank) = heads.map(|s| s.rank).min() else { break };
        here.clear();
        for (index, (source, n)) in sources.iter().zip(next.iter_mut()).enumerate() {
            if let Some(stretch) = source.stretches.get(*n).filter(|s| s.rank == rank) {
                here.push((index, *stretch));
                *n += 1;
            }
        }
        let before = plan.rows;
        merge_series(&mut plan, &mut here, &time);
        series.push((rank, plan.rows - before));
    }
    let Some(first) = sources.first() else {
        return Err(ArrowError::InvalidArgumentError("nothing to merge".into()));
    };
    let columns = (0..first.batch.num_columns())
        .map(|column| {
            let arrays: Vec<&ArrayRef> = sources.iter().map(|s| s.batch.column(column)).collect();
            take_pieces(&arrays, &plan)
        })
        .collect::<Result<_, ArrowError>>()?;
    Ok(Merged { batch: RecordBatch::try_new(first.batch.schema(), columns)?, series })
}

fn merge_series(plan: &mut Plan, here: &mut [(usize, Stretch)], time: &[&[i64]]) {
    let at = |source: usize, row: usize| {
        time.get(source).and_then(|t| t.get(row)).copied().unwrap_or(i64::MIN)
    };
    if let [(source, only)] = here {
        plan.push(*source, only.start, only.rows);
        return;
    }
    here.sort_by_key(|(source, s)| at(*source, s.start));
    let disjoint = here.windows(2).all(|pair| match pair {
        [(a, x), (b, y)] => at(*a, x.start + x.rows - 1) < at(*b, y.start),
        _ => true,
    });
    if disjoint {
        for (source, s) in here.iter() {
            plan.push(*source, s.start, s.rows);
        }
        return;
    }
    // (time, source, row): sources are oldest first, so that the newest of equal times is last.
    let mut rows: Vec<(i64, usize, usize)> = here
        .iter()
        .flat_map(|(source, s)| {
            (s.start..s.start + s.rows).map(|row| (at(*source, row), *source, row))
        })
        .collect();
    rows.sort_unstable_by(|a, b| match a.0.cmp(&b.0) {
        Ordering::Equal if planted(Bug::DedupTakesOlder) => (b.1, b.2).cmp(&(a.1, a.2)),
        Ordering::Equal => (a.1, a.2).cmp(&(b.1, b.2)),
        other => other,
    });
    for same in rows.chunk_by(|a, b| a.0 == b.0) {
        let Some((newest, older)) = same.split_last() else { continue };
        if !older.is_empty() {
            plan.older.push((plan.rows, older.iter().rev().map(|r| (r.1, r.2)).collect()));
        }
        plan.push(newest.1, newest.2, 1);
    }
}

fn take_pieces(arrays: &[&ArrayRef], plan: &Plan) -> Result<ArrayRef, ArrowError> {
    if plan.older.is_empty()
        && let [piece] = plan.pieces.as_slice()
        && let Some(array) = arrays.get(piece.source)
    {
        return Ok(array.slice(piece.start, piece.rows));
    }
    let data: Vec<_> = arrays.iter().map(|a| a.to_data()).collect();
    let mut out = MutableArrayData::new(data.iter().collect(), false, plan.rows);
    let valid = |source: usize, row: usize| arrays.get(source).is_some_and(|a| a.is_valid(row));
    let mut older = plan.older.iter().peekable();
    let mut written = 0usize;
    for piece in &plan.pieces {
        let mut start = piece.start;
        let end = piece.start + piece.rows;
        while let Some((row, candidates)) = older.peek() {
            let source_row = start + (row - written);
            if source_row >= end {
                break;
            }
            // Where the newest write lacks this field, the newest older one that has it counts.
            if !valid(piece.source, source_row)
                && !planted(Bug::NullFillDropped)
                && let Some((source, from)) =
                    candidates.iter().copied().find(|(s, r)| valid(*s, *r))
            {
                out.try_extend(piece.source, start, source_row)?;
                out.try_extend(source, from, from + 1)?;
                written += source_row + 1 - start;
                start = source_row + 1;
            }
            older.next();
        }
        out.try_extend(piece.source, start, end)?;
        written += end - start;
    }
    Ok(make_array(out.freeze()))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use arrow::{
        array::{Float64Array, StringArray},
        datatypes::{DataType, Field, Schema},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::scan::time_type;

    type Row = (u32, i64, Option<f64>, Option<String>);
    type Model = BTreeMap<(u32, i64), (Option<f64>, Option<String>)>;

    /// A source from rows; equal (series, time) inside one source keep the last.
    fn source(rows: &[Row]) -> Source {
        let mut unique: Model = BTreeMap::new();
        for (rank, time, a, b) in rows {
            unique.insert((*rank, *time), (*a, b.clone()));
        }
        let mut stretches: Vec<Stretch> = Vec::new();
        for (at, (rank, _)) in unique.keys().enumerate() {
            match stretches.last_mut() {
                Some(last) if last.rank == *rank => last.rows += 1,
                _ => stretches.push(Stretch { rank: *rank, start: at, rows: 1 }),
            }
        }
        let schema = Schema::new(vec![
            Field::new("time", time_type(), false),
            Field::new("a", DataType::Float64, true),
            Field::new("b", DataType::Utf8, true),
        ]);
        let time = TimestampNanosecondArray::from_iter_values(unique.keys().map(|k| k.1))
            .with_timezone("UTC");
        let a = Float64Array::from_iter(unique.values().map(|v| v.0));
        let b = StringArray::from_iter(unique.values().map(|v| v.1.clone()));
        let columns: Vec<ArrayRef> = vec![Arc::new(time), Arc::new(a), Arc::new(b)];
        Source { batch: RecordBatch::try_new(Arc::new(schema), columns).unwrap(), stretches }
    }

    fn model(sources: &[Vec<Row>]) -> Model {
        let mut out: Model = BTreeMap::new();
        for rows in sources {
            let mut unique: Model = BTreeMap::new();
            for (rank, time, a, b) in rows {
                unique.insert((*rank, *time), (*a, b.clone()));
            }
            for (key, (a, b)) in unique {
                let slot = out.entry(key).or_default();
                slot.0 = a.or(slot.0);
                slot.1 = b.or_else(|| slot.1.take());
            }
        }
        out
    }

    fn read(merged: &Merged) -> Model {
        let time = times(&merged.batch).unwrap();
        let a = merged.batch.column(1).as_any().downcast_ref::<Float64Array>().unwrap();
        let b = merged.batch.column(2).as_any().downcast_ref::<StringArray>().unwrap();
        let mut out = Model::new();
        let mut row = 0;
        for (rank, rows) in &merged.series {
            for _ in 0..*rows {
                let a = a.is_valid(row).then(|| a.value(row));
                let b = b.is_valid(row).then(|| b.value(row).to_owned());
                assert!(out.insert((*rank, time[row]), (a, b)).is_none(), "a row came twice");
                row += 1;
            }
        }
        assert_eq!(row, merged.batch.num_rows());
        out
    }

    fn rows() -> impl Strategy<Value = Vec<Row>> {
        let row =
            (0u32..4, 0i64..12, proptest::option::of(0.0..9.0f64), proptest::option::of("[a-c]"));
        proptest::collection::vec(row, 1..30)
    }

    proptest! {
        #[test]
        fn d2_merging_equals_a_sorted_map_where_the_newest_present_value_wins(
            sources in proptest::collection::vec(rows(), 1..5)
        ) {
            let built: Vec<Source> = sources.iter().map(|s| source(s)).collect();
            prop_assert_eq!(read(&merge(&built).unwrap()), model(&sources));
        }
    }

    #[test]
    fn sources_that_do_not_overlap_are_copied_as_slices_in_time_order() {
        let late = source(&[(1, 0, Some(1.0), None), (1, 1, Some(2.0), None)]);
        let live = source(&[(1, 5, Some(3.0), None)]);
        let merged = merge(&[live, late]).unwrap();
        assert_eq!(times(&merged.batch).unwrap(), [0, 1, 5]);
    }
}
