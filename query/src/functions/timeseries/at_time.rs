//! `first`, `last` and `state_at`: the value of the row that comes first or last in time.
//!
//! Owns: the names and which rows count. The work is done by DataFusion's `first_value` and
//! `last_value` with an order, which keep one row of each group and need no sorted input; a call
//! is rewritten to one of them before it is planned.
//! Never: returns a null that stands in a row; a row without the value says nothing about it.

use datafusion::{
    arrow::datatypes::DataType,
    common::plan_err,
    error::Result,
    functions_aggregate::first_last::{first_value_udaf, last_value_udaf},
    logical_expr::{
        Accumulator, AggregateUDFImpl, Expr, Signature, SortExpr, Volatility,
        expr::AggregateFunction,
        function::{AccumulatorArgs, AggregateFunctionSimplification},
        utils::AggregateOrderSensitivity,
    },
};

use super::argument;

/// Which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Pick {
    /// The first.
    First,
    /// The last.
    Last,
    /// The last one that is not after a time.
    LastUntil,
}

impl Pick {
    pub(super) const ALL: [Self; 3] = [Self::First, Self::Last, Self::LastUntil];

    fn name(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Last => "last",
            Self::LastUntil => "state_at",
        }
    }

    fn arguments(self) -> &'static str {
        match self {
            Self::First | Self::Last => "value, time",
            Self::LastUntil => "state, time, at",
        }
    }
}

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct AtTime {
    pick: Pick,
    signature: Signature,
}

impl AtTime {
    pub(super) fn new(pick: Pick) -> Self {
        Self { pick, signature: Signature::user_defined(Volatility::Immutable) }
    }
}

/// The same call in DataFusion's words.
fn rewritten(pick: Pick, call: AggregateFunction) -> Result<Expr> {
    let params = call.params;
    if params.distinct || !params.order_by.is_empty() || params.null_treatment.is_some() {
        return plan_err!(
            "`{0}` is called as {0}({1}), without DISTINCT, ORDER BY and IGNORE NULLS",
            pick.name(),
            pick.arguments()
        );
    }
    let (value, time, until) = match (pick, params.args.as_slice()) {
        (Pick::First | Pick::Last, [value, time]) => (value, time, None),
        (Pick::LastUntil, [value, time, at]) => (value, time, Some(time.clone().lt_eq(at.clone()))),
        _ => return argument::count(pick.name(), pick.arguments()),
    };
    let counts = value.clone().is_not_null().and(time.clone().is_not_null());
    let given = params.filter.map(|f| *f);
    let filter = [until, given].into_iter().flatten().fold(counts, Expr::and);
    let function = match pick {
        Pick::First => first_value_udaf(),
        Pick::Last | Pick::LastUntil => last_value_udaf(),
    };
    Ok(Expr::AggregateFunction(AggregateFunction::new_udf(
        function,
        vec![value.clone()],
        false,
        Some(Box::new(filter)),
        vec![SortExpr::new(time.clone(), true, false)],
        None,
    )))
}

impl AggregateUDFImpl for AtTime {
    fn name(&self) -> &str {
        self.pick.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        // A tag as plain text: for that DataFusion has a fast path, and for dictionaries none.
        let plain = |value: &DataType| match value {
            DataType::Dictionary(_, text) => text.as_ref().clone(),
            other => other.clone(),
        };
        match (self.pick, given) {
            (Pick::First | Pick::Last, [value, time]) => {
                Ok(vec![plain(value), argument::time(self.name(), time)?])
            }
            (Pick::LastUntil, [value, time, at]) => {
                argument::time(self.name(), at)?;
                let time = argument::time(self.name(), time)?;
                Ok(vec![plain(value), time.clone(), time])
            }
            _ => argument::count(self.name(), self.pick.arguments()),
        }
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        match given.first() {
            Some(value) => Ok(value.clone()),
            None => argument::count(self.name(), self.pick.arguments()),
        }
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        AggregateOrderSensitivity::Insensitive
    }

    fn simplify(&self) -> Option<AggregateFunctionSimplification> {
        let pick = self.pick;
        Some(Box::new(move |call, _| rewritten(pick, call)))
    }

    fn accumulator(&self, _args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        plan_err!(
            "`{}` has no window form; use first_value or last_value OVER (... ORDER BY time)",
            self.name()
        )
    }
}
