//! `histogram(value, min, max, n)`: how many values are in each of `n` equal ranges.
//!
//! Owns: the counts, and the limit of their number: they are made for each group with its first
//! row. The first count is of values below `min`, the last one of those at or above `max`.
//! Invariant: the counts are there, and counted as memory, before they are emitted without a copy.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, BooleanArray, Int64Array, ListArray},
        buffer::{NullBuffer, OffsetBuffer},
        datatypes::{DataType, Field, FieldRef},
    },
    common::{
        cast::{as_float64_array, as_int64_array, as_list_array},
        internal_err, plan_err,
    },
    error::{DataFusionError, Result},
    logical_expr::{
        Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
    physical_expr::{PhysicalExpr, expressions::Literal},
    scalar::ScalarValue,
};

use super::{argument, whole::Whole};

const NAME: &str = "histogram";
/// Ranges of a histogram. 8192 groups, as many as a batch can bring, take 17 MB of counts.
const RANGES_MAX: usize = 256;

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Histogram {
    signature: Signature,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for Histogram {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        let [value, min, max, ranges] = given else {
            return argument::count(NAME, "value, min, max, n");
        };
        for number in [value, min, max, ranges] {
            argument::number(NAME, number)?;
        }
        let float = DataType::Float64;
        Ok(vec![float.clone(), float.clone(), float, DataType::Int64])
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let counts = self.return_type(&[])?;
        Ok(vec![Arc::new(Field::new(format!("{}[counts]", args.name), counts, true))])
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        argument::plain(NAME, &args)?;
        let mut counts = Counts::new(Ranges::of(args.exprs)?);
        counts.at_least(1);
        Ok(Box::new(Whole::new(counts)))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Counts::new(Ranges::of(args.exprs)?)))
    }
}

/// The ranges of one call.
#[derive(Debug, Clone, Copy)]
struct Ranges {
    min: f64,
    max: f64,
    count: usize,
}

impl Ranges {
    fn of(arguments: &[Arc<dyn PhysicalExpr>]) -> Result<Self> {
        let constant = |at: usize| {
            let literal = arguments.get(at).and_then(|a| a.downcast_ref::<Literal>());
            literal.map(Literal::value)
        };
        match (constant(1), constant(2), constant(3)) {
            (
                Some(ScalarValue::Float64(Some(min))),
                Some(ScalarValue::Float64(Some(max))),
                Some(ScalarValue::Int64(Some(count))),
            ) => Self::new(*min, *max, *count),
            _ => plan_err!("`{NAME}` takes constants as min, max and n"),
        }
    }

    fn new(min: f64, max: f64, count: i64) -> Result<Self> {
        if !(min < max && (max - min).is_finite()) {
            return plan_err!("`{NAME}` takes a min below its max, not {min} and {max}");
        }
        match usize::try_from(count) {
            Ok(count @ 1..=RANGES_MAX) => Ok(Self { min, max, count }),
            _ => plan_err!("`{NAME}` makes 1 to {RANGES_MAX} ranges, not {count}"),
        }
    }

    /// Counts of a group: the ranges, and what is below and above.
    fn width(self) -> usize {
        self.count + 2
    }

    /// Which count a value belongs to; none if it is not a number.
    fn place(self, value: f64) -> Option<usize> {
        if value.is_nan() {
            None
        } else if value < self.min {
            Some(0)
        } else if value >= self.max {
            Some(self.count + 1)
        } else {
            let share = (value - self.min) / (self.max - self.min);
            // Rounding must not move a value below `max` out of the last range.
            Some(1 + ((share * self.count as f64) as usize).min(self.count - 1))
        }
    }
}

#[derive(Debug)]
struct Counts {
    ranges: Ranges,
    counts: Vec<i64>,
}

impl Counts {
    fn new(ranges: Ranges) -> Self {
        Self { ranges, counts: Vec::new() }
    }

    fn at_least(&mut self, groups: usize) {
        let wanted = groups * self.ranges.width();
        if wanted > self.counts.len() {
            self.counts.resize(wanted, 0);
        }
    }

    fn add(&mut self, group: usize, place: usize, count: i64) {
        if let Some(sum) = self.counts.get_mut(group * self.ranges.width() + place) {
            *sum += count;
        }
    }

    /// Lists of counts, which take the counts over. A group without a value has none.
    fn lists(&self, counts: Vec<i64>) -> Result<ArrayRef> {
        if i32::try_from(counts.len()).is_err() {
            return Err(DataFusionError::ResourcesExhausted("too many counts".to_owned()));
        }
        let width = self.ranges.width();
        let any: NullBuffer = counts.chunks(width).map(|c| c.iter().any(|n| *n > 0)).collect();
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(width, any.len()));
        let item = Arc::new(Field::new_list_field(DataType::Int64, true));
        let counts = Arc::new(Int64Array::from(counts));
        Ok(Arc::new(ListArray::try_new(item, offsets, counts, Some(any))?))
    }

    fn emit(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let counts = match emit_to {
            EmitTo::All => std::mem::take(&mut self.counts),
            EmitTo::First(groups) => {
                let kept = self.counts.split_off(groups * self.ranges.width());
                std::mem::replace(&mut self.counts, kept)
            }
        };
        self.lists(counts)
    }
}

impl GroupsAccumulator for Counts {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.at_least(total_num_groups);
        let Some(values) = values.first() else { return internal_err!("a value") };
        for (row, (value, group)) in as_float64_array(values)?.iter().zip(group_indices).enumerate()
        {
            let place = value.and_then(|v| self.ranges.place(v));
            if let Some(place) = place.filter(|_| argument::passes(opt_filter, row)) {
                self.add(*group, place, 1);
            }
        }
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.emit(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(vec![self.emit(emit_to)?])
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.at_least(total_num_groups);
        let Some(lists) = values.first() else { return internal_err!("counts") };
        for (counts, group) in as_list_array(lists)?.iter().zip(group_indices) {
            let Some(counts) = counts else { continue };
            for (place, count) in as_int64_array(&counts)?.values().iter().enumerate() {
                self.add(*group, place, *count);
            }
        }
        Ok(())
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |v| v.len());
        let each: Vec<usize> = (0..rows).collect();
        let mut counts = Self::new(self.ranges);
        counts.update_batch(values, &each, opt_filter, rows)?;
        Ok(vec![counts.emit(EmitTo::All)?])
    }

    fn size(&self) -> usize {
        self.counts.capacity() * size_of::<i64>()
    }
}

#[cfg(test)]
mod tests {
    use datafusion::arrow::array::Float64Array;
    use proptest::prelude::*;

    use super::*;

    fn column(values: &[Option<f64>]) -> Vec<ArrayRef> {
        vec![Arc::new(values.iter().copied().collect::<Float64Array>())]
    }

    fn shown(column: &ArrayRef) -> Vec<Option<Vec<i64>>> {
        let lists = as_list_array(column).unwrap();
        let list = |l: ArrayRef| as_int64_array(&l).unwrap().values().to_vec();
        lists.iter().map(|l| l.map(list)).collect()
    }

    #[test]
    fn edges_belong_to_the_range_that_they_begin() {
        let ranges = Ranges::new(0.0, 1.0, 10).unwrap();
        let below_one = 1.0f64.next_down();
        let places = [-0.1, -0.0, 0.0, 0.1, 0.3, below_one, 1.0, f64::INFINITY, f64::NEG_INFINITY];
        let found = places.map(|v| ranges.place(v));
        assert_eq!(found, [0, 1, 1, 2, 4, 10, 11, 11, 0].map(Some));
        assert_eq!(ranges.place(f64::NAN), None);
    }

    #[test]
    fn ranges_that_make_no_sense_are_refused() {
        for (min, max, count) in [
            (1.0, 1.0, 5),
            (2.0, 1.0, 5),
            (f64::NAN, 1.0, 5),
            (f64::MIN, f64::MAX, 5),
            (0.0, f64::INFINITY, 5),
            (0.0, 1.0, 0),
            (0.0, 1.0, -1),
            (0.0, 1.0, 257),
            (0.0, 1.0, i64::MAX),
        ] {
            assert!(Ranges::new(min, max, count).is_err(), "{min} {max} {count}");
        }
    }

    proptest! {
        #[test]
        fn partial_counts_add_up_to_what_a_plain_count_finds(
            rows in prop::collection::vec((0usize..4, prop::option::of(-1.0f64..6.0), 0usize..3), 0..200),
        ) {
            let ranges = Ranges::new(0.0, 5.0, 5).unwrap();
            let mut whole = Counts::new(ranges);
            whole.at_least(4);
            for part in 0..3 {
                let own: Vec<_> = rows.iter().filter(|r| r.2 == part).collect();
                let groups: Vec<usize> = own.iter().map(|r| r.0).collect();
                let values = column(&own.iter().map(|r| r.1).collect::<Vec<_>>());
                let state = if part == 0 {
                    whole.convert_to_state(&values, None).unwrap()
                } else {
                    let mut partial = Counts::new(ranges);
                    partial.update_batch(&values, &groups, None, 4).unwrap();
                    partial.state(EmitTo::All).unwrap()
                };
                let groups = if part == 0 { groups } else { vec![0, 1, 2, 3] };
                whole.merge_batch(&state, &groups, 4).unwrap();
            }
            let expected = |group: usize| {
                let mut counts = vec![0i64; 7];
                for value in rows.iter().filter(|r| r.0 == group).filter_map(|r| r.1) {
                    counts[(value.floor() + 1.0).clamp(0.0, 6.0) as usize] += 1;
                }
                counts.iter().any(|n| *n > 0).then_some(counts)
            };
            let first = shown(&whole.evaluate(EmitTo::First(1)).unwrap());
            let rest = shown(&whole.evaluate(EmitTo::All).unwrap());
            prop_assert_eq!([first, rest].concat(), (0..4).map(expected).collect::<Vec<_>>());
        }
    }
}
