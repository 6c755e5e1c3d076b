//! The three functions as SQL names them.
//!
//! Owns: names and argument types. A call stands for work of the operator; the rule takes it away
//! before anything is evaluated. Never: computes.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, IntervalUnit},
    common::plan_err,
    error::Result,
    logical_expr::{
        ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
        expr::ScalarFunction,
    },
};

use crate::functions::argument;

/// What a call stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Call {
    /// The bucket.
    Bucket,
    /// The last value before.
    Locf,
    /// A line between the values around.
    Interpolate,
}

impl Call {
    const ALL: [Self; 3] = [Self::Bucket, Self::Locf, Self::Interpolate];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bucket => "date_bin_gapfill",
            Self::Locf => "locf",
            Self::Interpolate => "interpolate",
        }
    }

    /// Why a call that is left in a plan cannot be there.
    pub(super) fn misplaced<T>(self) -> Result<T> {
        match self {
            Self::Bucket => plan_err!(
                "`date_bin_gapfill` stands by itself in GROUP BY, once, and in SELECT as it stands there"
            ),
            Self::Locf | Self::Interpolate => plan_err!(
                "`{}` takes an aggregate of a SELECT that groups by date_bin_gapfill, and no other fill function",
                self.name()
            ),
        }
    }
}

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Marker {
    call: Call,
    signature: Signature,
}

impl ScalarUDFImpl for Marker {
    fn name(&self) -> &str {
        self.call.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, given: &[DataType]) -> Result<Vec<DataType>> {
        match (self.call, given) {
            (Call::Bucket, [stride, time]) => {
                Ok(vec![interval(stride)?, argument::time(self.name(), time)?])
            }
            (Call::Bucket, [stride, time, origin]) => {
                argument::time(self.name(), origin)?;
                let time = argument::time(self.name(), time)?;
                Ok(vec![interval(stride)?, time.clone(), time])
            }
            (Call::Bucket, _) => argument::count(self.name(), "stride, time [, origin]"),
            (Call::Locf, [value]) => Ok(vec![value.clone()]),
            (Call::Interpolate, [value]) => Ok(vec![argument::number(self.name(), value)?]),
            (Call::Locf | Call::Interpolate, _) => argument::count(self.name(), "aggregate"),
        }
    }

    fn return_type(&self, given: &[DataType]) -> Result<DataType> {
        let place = usize::from(self.call == Call::Bucket);
        match given.get(place) {
            Some(value) => Ok(value.clone()),
            None => self.call.misplaced(),
        }
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.call.misplaced()
    }
}

fn interval(given: &DataType) -> Result<DataType> {
    match given {
        DataType::Interval(_) | DataType::Null => {
            Ok(DataType::Interval(IntervalUnit::MonthDayNano))
        }
        text if text.is_string() => Ok(DataType::Interval(IntervalUnit::MonthDayNano)),
        other => plan_err!(
            "`date_bin_gapfill` takes an interval as its stride, such as INTERVAL '1 minute', not {other}"
        ),
    }
}

/// All of them.
pub(in crate::operator) fn all() -> Vec<Arc<ScalarUDF>> {
    // Volatile, so that no rule computes, moves or merges a call before ours has seen it.
    let signature = Signature::user_defined(Volatility::Volatile);
    Call::ALL
        .map(|call| ScalarUDF::new_from_impl(Marker { call, signature: signature.clone() }))
        .map(Arc::new)
        .to_vec()
}

/// The call that an expression is, if it is one of ours.
pub(super) fn call_of(expr: &Expr) -> Option<(Call, &ScalarFunction)> {
    match expr {
        Expr::ScalarFunction(function) => {
            let marker = function.func.inner().downcast_ref::<Marker>()?;
            Some((marker.call, function))
        }
        _ => None,
    }
}
