//! One group by means of an accumulator of many, and the refusal of windows.
//!
//! Owns: the way around a second accumulator for functions whose results are large. A window would
//! repeat such a result for every row, beyond what the query's memory knows of, so these functions
//! have no window form.
//! Never: is asked twice; what was asked for is gone.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef},
        datatypes::{DataType, FieldRef},
    },
    common::{internal_err, plan_err},
    error::Result,
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, Expr, GroupsAccumulator, Signature,
        expr::AggregateFunction,
        function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
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

impl<G: GroupsAccumulator + Sync + std::fmt::Debug> Accumulator for Whole<G> {
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

/// A function that is not called as a window. DataFusion rewrites calls in GROUP BY before they
/// are planned and those of windows not, so the function itself stands behind that rewrite.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct NoWindow(Arc<AggregateUDF>);

impl NoWindow {
    pub(super) fn new(function: impl AggregateUDFImpl + 'static) -> Self {
        Self(Arc::new(AggregateUDF::new_from_impl(function)))
    }
}

impl AggregateUDFImpl for NoWindow {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.0.coerce_types(given)
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.0.return_type(given)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(args)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        let function = Arc::clone(&self.0);
        Some(Box::new(move |call, _| {
            let func = Arc::clone(&function);
            Ok(Expr::AggregateFunction(AggregateFunction { func, params: call.params }))
        }))
    }

    fn accumulator(&self, _args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        plan_err!("`{}` has no window form; use it with GROUP BY", self.name())
    }
}
