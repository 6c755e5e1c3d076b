//! One group by means of an accumulator of many.
//!
//! Owns: the way around a second accumulator for each function.
//! Never: is asked twice; what was asked for is gone. Windows, which ask after every row, have
//! accumulators of their own.

use std::fmt::Debug;

use datafusion::{
    arrow::array::{Array, ArrayRef},
    common::internal_err,
    error::Result,
    logical_expr::{Accumulator, EmitTo, GroupsAccumulator},
    scalar::ScalarValue,
};

/// See the module head.
#[derive(Debug)]
pub(super) struct Whole<G>(G);

impl<G: GroupsAccumulator> Whole<G> {
    /// `group` has one group already.
    pub(super) fn new(group: G) -> Self {
        Self(group)
    }
}

fn groups(columns: &[ArrayRef]) -> Vec<usize> {
    vec![0; columns.first().map_or(0, |c| c.len())]
}

impl<G: GroupsAccumulator + Sync + Debug> Accumulator for Whole<G> {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        self.0.update_batch(values, &groups(values), None, 1)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let result = self.0.evaluate(EmitTo::All)?;
        if result.is_empty() {
            return internal_err!("a result was asked for twice");
        }
        ScalarValue::try_from_array(&result, 0)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let columns = self.0.state(EmitTo::All)?;
        columns.iter().map(|column| ScalarValue::try_from_array(column, 0)).collect()
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.0.merge_batch(states, &groups(states), 1)
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.0.size()
    }
}
