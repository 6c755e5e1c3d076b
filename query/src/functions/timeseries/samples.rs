//! Rows of many groups: group, time and value, in one vector.
//!
//! Owns: what is kept until all rows are there, its order, and its form between the two phases of
//! an aggregation: one list of times and one of values for each group.
//! Invariant: what [`Samples::bytes`] says covers the rows and the copy of them that a partial
//! state is, so that the query's memory knows of it before it is made.

use std::{cmp::Ordering, sync::Arc};

use datafusion::{
    arrow::{
        array::{ArrayRef, Int64Array, ListArray},
        buffer::OffsetBuffer,
        datatypes::{DataType, Field, FieldRef},
    },
    error::{DataFusionError, Result},
    logical_expr::EmitTo,
};

/// One row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample<V> {
    pub(super) group: usize,
    /// Nanoseconds.
    pub(super) time: i64,
    pub(super) value: V,
}

impl<V> Sample<V> {
    fn order(&self, other: &Self, tie: impl Fn(&V, &V) -> Ordering) -> Ordering {
        (self.group, self.time)
            .cmp(&(other.group, other.time))
            .then_with(|| tie(&self.value, &other.value))
    }
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Samples<V> {
    rows: Vec<Sample<V>>,
    groups: usize,
}

impl<V> Default for Samples<V> {
    fn default() -> Self {
        Self { rows: Vec::new(), groups: 0 }
    }
}

impl<V: Copy> Samples<V> {
    /// Groups that there are at least, rows or not.
    pub(super) fn at_least(&mut self, groups: usize) {
        self.groups = self.groups.max(groups);
    }

    pub(super) fn push(&mut self, group: usize, time: i64, value: V) {
        self.rows.push(Sample { group, time, value });
    }

    /// Bytes kept and bytes that a partial state will take.
    pub(super) fn bytes(&self) -> usize {
        let kept = self.rows.capacity() * size_of::<Sample<V>>();
        let copied = self.rows.len() * (size_of::<i64>() + size_of::<V>());
        kept + copied + self.groups * 2 * size_of::<i32>()
    }

    /// The rows that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> &[Sample<V>] {
        &self.rows
    }

    /// Takes the rows of the groups that are to be emitted, in order.
    pub(super) fn take(&mut self, emit_to: EmitTo, tie: impl Fn(&V, &V) -> Ordering) -> Taken<V> {
        // In place, so that it takes no memory that nobody knows of.
        self.rows.sort_unstable_by(|a, b| a.order(b, &tie));
        let groups = match emit_to {
            EmitTo::All => self.groups,
            EmitTo::First(groups) => groups,
        };
        self.groups -= groups;
        let end = self.rows.partition_point(|s| s.group < groups);
        let kept = self.rows.split_off(end);
        let rows = std::mem::replace(&mut self.rows, kept);
        self.rows.iter_mut().for_each(|s| s.group -= groups);
        Taken { rows, groups }
    }
}

/// Rows in order, and the number of groups that they are of; a group may have no rows.
#[derive(Debug)]
pub(super) struct Taken<V> {
    pub(super) rows: Vec<Sample<V>>,
    groups: usize,
}

impl<V> Taken<V> {
    /// The rows of each group.
    pub(super) fn by_group(&self) -> impl Iterator<Item = &[Sample<V>]> {
        let mut rest = self.rows.as_slice();
        (0..self.groups).map(move |group| {
            let end = rest.iter().position(|s| s.group != group).unwrap_or(rest.len());
            let (own, others) = rest.split_at(end);
            rest = others;
            own
        })
    }

    /// The partial state: times and values.
    pub(super) fn lists(&self, values: ArrayRef) -> Result<Vec<ArrayRef>> {
        let times = Int64Array::from_iter_values(self.rows.iter().map(|s| s.time));
        lists(self.by_group().map(<[_]>::len), Arc::new(times), values)
    }
}

/// Two columns of lists, with so many elements in each row.
pub(super) fn lists(
    lengths: impl Iterator<Item = usize>,
    times: ArrayRef,
    values: ArrayRef,
) -> Result<Vec<ArrayRef>> {
    if i32::try_from(times.len()).is_err() {
        return Err(DataFusionError::ResourcesExhausted("too many rows in a state".to_owned()));
    }
    let offsets = OffsetBuffer::from_lengths(lengths);
    let list = |items: ArrayRef, offsets| {
        let item = Arc::new(Field::new_list_field(items.data_type().clone(), true));
        ListArray::try_new(item, offsets, items, None).map(|l| Arc::new(l) as ArrayRef)
    };
    Ok(vec![list(times, offsets.clone())?, list(values, offsets)?])
}

/// Columns of a partial state with values of this type.
pub(super) fn state_fields(function: &str, value: &DataType) -> Vec<FieldRef> {
    let list = |part: &str, item: &DataType| {
        let item = Arc::new(Field::new_list_field(item.clone(), true));
        Arc::new(Field::new(format!("{function}[{part}]"), DataType::List(item), true))
    };
    vec![list("times", &DataType::Int64), list("values", value)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(rows: &[(usize, i64, i64)]) -> Samples<i64> {
        let mut samples = Samples::default();
        for (group, time, value) in rows {
            samples.push(*group, *time, *value);
        }
        samples
    }

    fn values(taken: &Taken<i64>) -> Vec<Vec<i64>> {
        taken.by_group().map(|g| g.iter().map(|s| s.value).collect()).collect()
    }

    #[test]
    fn rows_come_out_by_group_and_time_and_groups_without_rows_too() {
        let mut samples = samples(&[(2, 5, 1), (0, 9, 2), (0, 1, 3), (2, 5, 0)]);
        samples.at_least(4);
        let taken = samples.take(EmitTo::All, i64::cmp);
        assert_eq!(values(&taken), [vec![3, 2], vec![], vec![0, 1], vec![]]);
        assert!(values(&samples.take(EmitTo::All, i64::cmp)).is_empty());
    }

    #[test]
    fn the_first_groups_are_taken_and_the_others_move_up() {
        let mut samples = samples(&[(2, 5, 1), (1, 9, 2), (0, 1, 3)]);
        samples.at_least(3);
        assert_eq!(values(&samples.take(EmitTo::First(2), i64::cmp)), [vec![3], vec![2]]);
        samples.push(0, 3, 7);
        samples.push(1, 3, 8);
        samples.at_least(2);
        assert_eq!(values(&samples.take(EmitTo::All, i64::cmp)), [vec![7, 1], vec![8]]);
    }

    #[test]
    fn the_bytes_grow_with_the_rows() {
        let mut samples = samples(&[]);
        assert_eq!(samples.bytes(), 0);
        (0..1000).for_each(|n| samples.push(0, n, n));
        assert!(samples.bytes() >= 40 * 1000);
    }
}
