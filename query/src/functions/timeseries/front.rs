//! One name, two forms: with GROUP BY and as a window.
//!
//! Owns: the way from a call to its form. DataFusion asks a function for the same accumulator in
//! both cases, but it rewrites calls in GROUP BY before they are planned and those of windows not;
//! so the form with GROUP BY stands behind that rewrite.
//! Why: a window repeats its result for every row, and neither that nor what its accumulator keeps
//! is counted by the query's memory. Functions with large results have no window form.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, FieldRef},
    common::plan_err,
    error::Result,
    logical_expr::{
        Accumulator, AggregateUDF, AggregateUDFImpl, Expr, Signature,
        expr::AggregateFunction,
        function::{AccumulatorArgs, AggregateFunctionSimplification, StateFieldsArgs},
        utils::AggregateOrderSensitivity,
    },
};

use super::running::Windowed;

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Front {
    grouped: Arc<AggregateUDF>,
    window: Option<Windowed>,
}

impl Front {
    /// A function without a window form.
    pub(super) fn grouped(function: impl AggregateUDFImpl + 'static) -> Self {
        Self { grouped: Arc::new(AggregateUDF::new_from_impl(function)), window: None }
    }

    /// A function with both forms.
    pub(super) fn both(function: impl AggregateUDFImpl + 'static, window: Windowed) -> Self {
        Self { window: Some(window), ..Self::grouped(function) }
    }

    fn window(&self, args: &AccumulatorArgs<'_>, slides: bool) -> Result<Box<dyn Accumulator>> {
        match &self.window {
            Some(window) => window.accumulator(args, slides),
            None => plan_err!("`{}` has no window form; use it with GROUP BY", self.name()),
        }
    }
}

impl AggregateUDFImpl for Front {
    fn name(&self) -> &str {
        self.grouped.name()
    }

    fn signature(&self) -> &Signature {
        self.grouped.signature()
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        self.grouped.coerce_types(given)
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        self.grouped.return_type(given)
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.grouped.state_fields(args)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.grouped.order_sensitivity()
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        let grouped = Arc::clone(&self.grouped);
        Some(Box::new(move |call, _| {
            let func = Arc::clone(&grouped);
            Ok(Expr::AggregateFunction(AggregateFunction { func, params: call.params }))
        }))
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        self.window(&args, false)
    }

    fn create_sliding_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn Accumulator>> {
        self.window(&args, true)
    }
}
