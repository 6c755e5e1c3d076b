//! `increase`, `rate`, `delta` and `time_weighted_avg`.
//!
//! Owns: their place in DataFusion: types, the accumulator of groups and the partial state between
//! the two phases. Invariant: rows may come in any order.

use std::{fmt::Debug, sync::Arc};

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, PrimitiveArray},
        datatypes::{DataType, FieldRef},
    },
    common::{
        cast::{as_list_array, as_primitive_array},
        internal_err,
    },
    error::Result,
    logical_expr::{
        Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
};

use super::{
    argument,
    number::Number,
    samples::{self, Samples},
    walk::{Measure, Walk},
    whole::Whole,
};

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Measured {
    measure: Measure,
    signature: Signature,
}

impl Measured {
    pub(super) fn new(measure: Measure) -> Self {
        Self { measure, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for Measured {
    fn name(&self) -> &str {
        self.measure.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match given {
            [value, time] => {
                Ok(vec![argument::number(self.name(), value)?, argument::time(self.name(), time)?])
            }
            _ => argument::count(self.name(), "value, time"),
        }
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        let value = args.input_fields.first().map_or(&DataType::Float64, |f| f.data_type());
        Ok(samples::state_fields(args.name, value))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        argument::plain(self.name(), &args)?;
        let measure = self.measure;
        Ok(match args.expr_fields.first().map(|f| f.data_type()) {
            Some(DataType::Float64) => Box::new(Whole::new(Many::<f64>::one(measure))),
            Some(DataType::Int64) => Box::new(Whole::new(Many::<i64>::one(measure))),
            Some(DataType::UInt64) => Box::new(Whole::new(Many::<u64>::one(measure))),
            other => return internal_err!("{} of {other:?}", self.name()),
        })
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        let measure = self.measure;
        Ok(match args.expr_fields.first().map(|f| f.data_type()) {
            Some(DataType::Float64) => Box::new(Many::<f64>::new(measure)),
            Some(DataType::Int64) => Box::new(Many::<i64>::new(measure)),
            Some(DataType::UInt64) => Box::new(Many::<u64>::new(measure)),
            other => return internal_err!("{} of {other:?}", self.name()),
        })
    }
}

/// The column of values, as its own type.
fn numbers<N: Number>(values: &dyn Array) -> Result<&PrimitiveArray<N::Arrow>> {
    as_primitive_array(values)
}

/// Calls `row` with the number, time and value of each row that counts.
pub(super) fn each<N: Number>(
    columns: &[ArrayRef],
    filter: Option<&BooleanArray>,
    mut row: impl FnMut(usize, i64, N),
) -> Result<()> {
    let [values, times] = columns else { return internal_err!("a value and a time") };
    let (values, times) = (numbers::<N>(values)?, argument::nanoseconds(times)?);
    for (at, (value, time)) in values.iter().zip(times).enumerate() {
        let (Some(value), Some(time)) = (value, time) else { continue };
        if !value.says_nothing() && argument::passes(filter, at) {
            row(at, time, value);
        }
    }
    Ok(())
}

/// Calls `row` with the list's number, time and value of each element of partial states.
fn each_kept<N: Number>(columns: &[ArrayRef], mut row: impl FnMut(usize, i64, N)) -> Result<()> {
    let [times, values] = columns else { return internal_err!("times and values") };
    let (times, values) = (as_list_array(times)?, as_list_array(values)?);
    for (at, (times, values)) in times.iter().zip(values.iter()).enumerate() {
        let (Some(times), Some(values)) = (times, values) else { continue };
        let (times, values) = (argument::state_nanoseconds(&times)?, numbers::<N>(&values)?);
        for (time, value) in times.values().iter().zip(values.values()) {
            row(at, *time, *value);
        }
    }
    Ok(())
}

/// Values as a column.
fn column<N: Number>(values: impl Iterator<Item = N>) -> ArrayRef {
    Arc::new(PrimitiveArray::<N::Arrow>::from_iter_values(values))
}

/// Many groups.
#[derive(Debug)]
struct Many<N> {
    measure: Measure,
    samples: Samples<N>,
}

impl<N: Number> Many<N> {
    fn new(measure: Measure) -> Self {
        Self { measure, samples: Samples::default() }
    }

    /// With one group, rows or not.
    fn one(measure: Measure) -> Self {
        let mut one = Self::new(measure);
        one.samples.at_least(1);
        one
    }
}

impl<N: Number> GroupsAccumulator for Many<N> {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.samples.at_least(total_num_groups);
        each::<N>(values, opt_filter, |row, time, value| {
            if let Some(group) = group_indices.get(row) {
                self.samples.push(*group, time, value);
            }
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let taken = self.samples.take(emit_to, N::order);
        let result = |rows: &[samples::Sample<N>]| {
            let mut walk = Walk::default();
            rows.iter().for_each(|s| walk.add(s.time, s.value));
            walk.result(self.measure)
        };
        Ok(Arc::new(taken.by_group().map(result).collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let taken = self.samples.take(emit_to, N::order);
        taken.lists(column(taken.rows.iter().map(|s| s.value)))
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.samples.at_least(total_num_groups);
        each_kept::<N>(values, |row, time, value| {
            if let Some(group) = group_indices.get(row) {
                self.samples.push(*group, time, value);
            }
        })
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let mut lengths = vec![0; values.first().map_or(0, |v| v.len())];
        let (mut times, mut kept) = (Vec::new(), Vec::new());
        each::<N>(values, opt_filter, |row, time, value| {
            if let Some(length) = lengths.get_mut(row) {
                *length = 1;
            }
            times.push(time);
            kept.push(value);
        })?;
        let times = Arc::new(Int64Array::from(times));
        samples::lists(lengths.into_iter(), times, column(kept.into_iter()))
    }

    fn size(&self) -> usize {
        self.samples.bytes()
    }
}

#[cfg(test)]
mod tests;
