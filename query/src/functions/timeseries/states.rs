//! `state_durations`: how long each state held.
//!
//! Owns: the sum for each state, the map that is returned, the partial state, in which the names
//! are a dictionary.
//! Invariants: a state holds from its row to the next row of the group, and the last one for no
//! time; no result is larger than one batch may be, however many groups repeat a long name.

use std::{cmp::Ordering, sync::Arc};

use datafusion::{
    arrow::{
        array::{
            Array, ArrayRef, BooleanArray, DictionaryArray, Float64Builder, Int32Array, Int64Array,
            ListArray, MapBuilder, MapFieldNames, StringArray, StringBuilder,
        },
        datatypes::{DataType, Field, FieldRef, Fields, Int32Type},
    },
    common::{
        cast::{as_dictionary_array, as_list_array, as_string_array},
        internal_err, plan_err,
    },
    error::{DataFusionError, Result},
    logical_expr::{
        Accumulator, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility,
        function::{AccumulatorArgs, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
};

use super::{
    super::stop::Stop,
    argument,
    names::Names,
    samples::{self, Sample, Samples, Taken},
    whole::Whole,
};
use crate::error::QueryError;

const NAME: &str = "state_durations";
const NS_PER_S: f64 = 1e9;
/// Bytes of all maps that are emitted at once.
const RESULT_BYTES_MAX: usize = 128 << 20;

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct StateDurations {
    stop: Stop,
    signature: Signature,
}

impl StateDurations {
    pub(super) fn new(stop: Stop) -> Self {
        Self { stop, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

/// The type of a dictionary of names, as a partial state has it.
fn names_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

/// The type that a state is read as.
fn state(given: &DataType) -> Result<DataType> {
    match given {
        DataType::Dictionary(_, inner) => state(inner),
        DataType::Null
        | DataType::Boolean
        | DataType::Utf8
        | DataType::Utf8View
        | DataType::LargeUtf8 => Ok(DataType::Utf8),
        other if other.is_integer() => Ok(DataType::Utf8),
        other => plan_err!("`{NAME}` takes a text, a boolean or a whole number, not {other}"),
    }
}

impl AggregateUDFImpl for StateDurations {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match given {
            [value, time] => Ok(vec![state(value)?, argument::time(NAME, time)?]),
            _ => argument::count(NAME, "state, time"),
        }
    }

    fn return_type(&self, _given: &[DataType]) -> Result<DataType> {
        let fields = Fields::from(vec![
            Field::new("key", DataType::Utf8, false),
            Field::new("value", DataType::Float64, true),
        ]);
        let entries = Field::new("entries", DataType::Struct(fields), false);
        Ok(DataType::Map(Arc::new(entries), false))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(samples::state_fields(args.name, &names_type()))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        argument::plain(NAME, &args)?;
        let mut durations = Durations::new(self.stop.clone());
        durations.samples.at_least(1);
        Ok(Box::new(Whole::new(durations)))
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        !args.is_distinct
    }

    fn create_groups_accumulator(
        &self,
        _args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Durations::new(self.stop.clone())))
    }
}

#[derive(Debug)]
struct Durations {
    stop: Stop,
    names: Names,
    samples: Samples<u32>,
}

/// Calls `row` with each row that counts.
fn each(
    columns: &[ArrayRef],
    filter: Option<&BooleanArray>,
    mut row: impl FnMut(usize, i64, &str) -> Result<()>,
) -> Result<()> {
    let [states, times] = columns else { return internal_err!("a state and a time") };
    let (states, times) = (as_string_array(states)?, argument::nanoseconds(times)?);
    for (at, (state, time)) in states.iter().zip(times).enumerate() {
        let (Some(state), Some(time)) = (state, time) else { continue };
        if argument::passes(filter, at) {
            row(at, time, state)?;
        }
    }
    Ok(())
}

/// A column of numbers of names, with the names.
fn column(numbers: impl Iterator<Item = u32>, names: &Names) -> Result<ArrayRef> {
    let keys = Int32Array::from_iter_values(numbers.map(|n| n as i32));
    Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, Arc::new(names.column()))?))
}

/// Nanoseconds of each state of a group; `held` has a place for each name and is empty before and
/// after.
fn held(rows: &[Sample<u32>], held: &mut [Option<u64>], mut state: impl FnMut(u32, u64)) {
    let mut seen = Vec::new();
    let ends = rows.iter().skip(1).chain(rows.last());
    for (row, end) in rows.iter().zip(ends) {
        let Some(sum) = held.get_mut(row.value as usize) else { continue };
        if sum.is_none() {
            seen.push(row.value);
        }
        // Intervals do not overlap, so their sum is at most the range of times.
        *sum = Some(sum.unwrap_or(0) + end.time.abs_diff(row.time));
    }
    for number in seen {
        if let Some(sum) = held.get_mut(number as usize).and_then(Option::take) {
            state(number, sum);
        }
    }
}

impl Durations {
    fn new(stop: Stop) -> Self {
        Self { stop, names: Names::default(), samples: Samples::default() }
    }

    fn take(&mut self, emit_to: EmitTo) -> Taken<u32> {
        let ranks = self.names.ranks();
        let rank = |number: &u32| ranks.get(*number as usize).copied();
        self.samples.take(emit_to, |a: &u32, b: &u32| -> Ordering { rank(a).cmp(&rank(b)) })
    }

    fn too_large(&self) -> DataFusionError {
        self.stop.refuse(QueryError::ValueTooLarge {
            function: NAME.to_owned(),
            mebibytes: (RESULT_BYTES_MAX >> 20) as u64,
        })
    }

    /// The rows of one list of a partial state, whose names are numbered by `known`.
    fn merge_list(
        &mut self,
        group: usize,
        (times, keys): (&[i64], &[i32]),
        known: &mut Known<'_>,
    ) -> Result<()> {
        for (time, key) in times.iter().zip(keys) {
            if let Some(number) = known.number(*key, &mut self.names)? {
                self.samples.push(group, *time, number);
            }
        }
        Ok(())
    }
}

/// Numbers here of the names of a dictionary from elsewhere, looked up once each.
struct Known<'a> {
    names: &'a StringArray,
    numbers: Vec<Option<u32>>,
}

impl Known<'_> {
    fn number(&mut self, key: i32, names: &mut Names) -> Result<Option<u32>> {
        let Ok(key) = usize::try_from(key) else { return Ok(None) };
        let Some(known) = self.numbers.get_mut(key) else { return Ok(None) };
        if known.is_none() {
            *known = Some(names.number(self.names.value(key))?);
        }
        Ok(*known)
    }
}

/// The elements of a list in a slice of all elements.
fn of_list<'a, T>(list: &ListArray, row: usize, items: &'a [T]) -> &'a [T] {
    let offsets = list.value_offsets();
    let place = |at: usize| offsets.get(at).and_then(|o| usize::try_from(*o).ok());
    match (place(row), place(row + 1)) {
        (Some(start), Some(end)) => items.get(start..end).unwrap_or_default(),
        _ => &[],
    }
}

impl GroupsAccumulator for Durations {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        opt_filter: Option<&BooleanArray>,
        total_num_groups: usize,
    ) -> Result<()> {
        self.samples.at_least(total_num_groups);
        each(values, opt_filter, |row, time, state| {
            if let Some(group) = group_indices.get(row) {
                let number = self.names.number(state)?;
                self.samples.push(*group, time, number);
            }
            Ok(())
        })
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let taken = self.take(emit_to);
        let ranks = self.names.ranks();
        let names = MapFieldNames {
            entry: "entries".to_owned(),
            key: "key".to_owned(),
            value: "value".to_owned(),
        };
        let mut maps = MapBuilder::new(Some(names), StringBuilder::new(), Float64Builder::new());
        let mut sums = vec![None; self.names.len()];
        let (mut of_group, mut bytes) = (Vec::new(), 0);
        for rows in taken.by_group() {
            held(rows, &mut sums, |number, sum| of_group.push((number, sum)));
            of_group.sort_unstable_by_key(|(number, _)| ranks.get(*number as usize).copied());
            for (number, sum) in of_group.drain(..) {
                let name = self.names.name(number);
                bytes += name.len() + size_of::<f64>() + size_of::<i32>();
                if bytes > RESULT_BYTES_MAX {
                    return Err(self.too_large());
                }
                maps.keys().append_value(name);
                maps.values().append_value(sum as f64 / NS_PER_S);
            }
            maps.append(!rows.is_empty())?;
        }
        Ok(Arc::new(maps.finish()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let taken = self.take(emit_to);
        taken.lists(column(taken.rows.iter().map(|s| s.value), &self.names)?)
    }

    fn merge_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        total_num_groups: usize,
    ) -> Result<()> {
        self.samples.at_least(total_num_groups);
        let [times, states] = values else { return internal_err!("times and states") };
        let (times, states) = (as_list_array(times)?, as_list_array(states)?);
        let every_time = argument::state_nanoseconds(times.values())?.values();
        let every_state = as_dictionary_array::<Int32Type>(states.values())?;
        let names = as_string_array(every_state.values())?;
        let keys = every_state.keys().values();
        let mut known = Known { names, numbers: vec![None; names.len()] };
        for (row, group) in group_indices.iter().enumerate() {
            let list = (of_list(times, row, every_time), of_list(states, row, keys));
            self.merge_list(*group, list, &mut known)?;
        }
        Ok(())
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        opt_filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        let mut lengths = vec![0; values.first().map_or(0, |v| v.len())];
        let (mut names, mut times, mut numbers) = (Names::default(), Vec::new(), Vec::new());
        each(values, opt_filter, |row, time, state| {
            if let Some(length) = lengths.get_mut(row) {
                *length = 1;
            }
            times.push(time);
            numbers.push(names.number(state)?);
            Ok(())
        })?;
        let states = column(numbers.into_iter(), &names)?;
        samples::lists(lengths.into_iter(), Arc::new(Int64Array::from(times)), states)
    }

    fn size(&self) -> usize {
        self.samples.bytes() + self.names.bytes()
    }
}

#[cfg(test)]
mod tests;
