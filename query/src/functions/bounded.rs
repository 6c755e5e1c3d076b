//! A function that may not make more than it is allowed to.
//!
//! Owns: the limits of a value and of a batch. Rows are computed in slices whose bound is known
//! beforehand, so that at most one slice is made above what is allowed, and between slices the
//! function looks whether somebody still waits for the query.
//! Never: simplifies by itself: constants go the same bounded way, at planning.

use std::sync::Arc;

use datafusion::{
    arrow::{
        array::{Array, ArrayRef},
        compute::concat,
        datatypes::{DataType, FieldRef},
    },
    common::plan_err,
    error::{DataFusionError, Result},
    logical_expr::{
        ColumnarValue, Expr, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
        Signature,
    },
};

use super::{
    growth::{self, Growth},
    measure,
    stop::Stop,
};
use crate::error::QueryError;

/// Bytes of one value.
pub(crate) const VALUE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of one value made of constants alone. It becomes part of the plan, which is copied, hashed
/// and printed many times, so it is bounded more tightly.
const CONSTANT_BYTES_MAX: u64 = 1 << 20;
/// Bytes of all constants that functions make for one query.
const CONSTANTS_BYTES_MAX: u64 = 8 << 20;
/// Bytes of one call's result for all rows of a batch.
const BATCH_BYTES_MAX: u64 = 128 << 20;
/// A row whose bound is over this many times what a value may have is refused before it is
/// computed: bounds of replacements are far above what they make.
const ROW_BOUND: u64 = 4;
/// Bound of a slice.
const SLICE_BYTES: u64 = VALUE_BYTES_MAX;

/// See the module head.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Bounded {
    inner: Arc<ScalarUDF>,
    growth: Growth,
    stop: Stop,
}

impl Bounded {
    pub(super) fn new(inner: Arc<ScalarUDF>, growth: Growth, stop: Stop) -> Self {
        Self { inner, growth, stop }
    }

    fn refused(&self, limit: u64) -> DataFusionError {
        self.stop.refuse(QueryError::ValueTooLarge {
            function: self.inner.name().to_owned(),
            mebibytes: limit >> 20,
        })
    }

    /// First rows of slices, with the end as the last.
    fn slices(&self, bounds: &[u64], value_max: u64) -> Result<Vec<usize>> {
        let mut starts = vec![0];
        let mut filled = 0u64;
        for (row, bound) in bounds.iter().enumerate() {
            if *bound > ROW_BOUND * value_max {
                return Err(self.refused(value_max));
            }
            if filled.saturating_add(*bound) > SLICE_BYTES && filled > 0 {
                starts.push(row);
                filled = 0;
            }
            filled += bound;
        }
        starts.push(bounds.len());
        Ok(starts)
    }

    /// Refuses a slice with a value over the limit; returns its bytes.
    fn weigh(&self, made: &dyn Array, value_max: u64) -> Result<u64> {
        let all = measure::bytes(made, 0, made.len());
        if all > value_max && (0..made.len()).any(|row| measure::bytes(made, row, 1) > value_max) {
            return Err(self.refused(value_max));
        }
        Ok(all)
    }

    fn by_slices(&self, args: &ScalarFunctionArgs, starts: &[usize]) -> Result<ColumnarValue> {
        let mut parts: Vec<ArrayRef> = Vec::with_capacity(starts.len());
        let mut total = 0u64;
        for (start, end) in starts.iter().zip(starts.iter().skip(1)) {
            self.stop.check()?;
            let rows = end - start;
            let slice = |value: &ColumnarValue| match value {
                ColumnarValue::Array(array) => ColumnarValue::Array(array.slice(*start, rows)),
                scalar => scalar.clone(),
            };
            let part = ScalarFunctionArgs {
                args: args.args.iter().map(slice).collect(),
                number_rows: rows,
                ..args.clone()
            };
            let made = self.inner.invoke_with_args(part)?.into_array(rows)?;
            total = total.saturating_add(self.weigh(made.as_ref(), VALUE_BYTES_MAX)?);
            if total > BATCH_BYTES_MAX {
                return Err(self.refused(BATCH_BYTES_MAX));
            }
            parts.push(made);
        }
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        Ok(ColumnarValue::Array(concat(&parts)?))
    }
}

impl ScalarUDFImpl for Bounded {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        self.inner.schema_name(args)
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arg_types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        self.inner.return_field_from_args(args)
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arg_types)
    }

    fn is_strict(&self) -> bool {
        self.inner.is_strict()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.stop.check()?;
        let scalars = args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_)));
        let rows = if scalars { 1 } else { args.number_rows };
        let bounds = growth::bounds(self.growth, &args.args, rows)?;
        let value_max = if scalars { CONSTANT_BYTES_MAX } else { VALUE_BYTES_MAX };
        let starts = self.slices(&bounds, value_max)?;
        if starts.len() > 2 {
            return self.by_slices(&args, &starts);
        }
        let made = self.inner.invoke_with_args(args)?;
        let bytes = match &made {
            ColumnarValue::Array(array) => self.weigh(array.as_ref(), value_max)?,
            ColumnarValue::Scalar(value) => self.weigh(value.to_array()?.as_ref(), value_max)?,
        };
        if scalars && self.stop.constants(bytes) > CONSTANTS_BYTES_MAX {
            return Err(self.refused(value_max));
        }
        Ok(made)
    }
}

/// Types that an operator accepts, for functions that stand for one.
pub(super) fn two(arg_types: &[DataType]) -> Result<(&DataType, &DataType)> {
    match arg_types {
        [left, right] => Ok((left, right)),
        _ => plan_err!("an operator has two sides"),
    }
}

#[cfg(test)]
mod tests {
    use datafusion::{
        arrow::{
            array::{AsArray, Int64Array, StringArray},
            datatypes::Field,
        },
        config::ConfigOptions,
        execution::SessionStateDefaults,
        scalar::ScalarValue,
    };

    use super::*;

    fn function(name: &str, stop: &Stop) -> Arc<ScalarUDF> {
        let all = SessionStateDefaults::default_scalar_functions();
        super::super::bound(all.iter().find(|f| f.name() == name).unwrap(), stop)
    }

    fn call(name: &str, args: Vec<ColumnarValue>, rows: usize) -> Result<ColumnarValue> {
        call_with(&Stop::default(), name, args, rows)
    }

    fn call_with(
        stop: &Stop,
        name: &str,
        args: Vec<ColumnarValue>,
        rows: usize,
    ) -> Result<ColumnarValue> {
        let field = |a: &ColumnarValue| Arc::new(Field::new("a", a.data_type(), true));
        function(name, stop).invoke_with_args(ScalarFunctionArgs {
            arg_fields: args.iter().map(field).collect(),
            args,
            number_rows: rows,
            return_field: Arc::new(Field::new("out", DataType::Utf8, true)),
            config_options: Arc::new(ConfigOptions::default()),
        })
    }

    fn text(s: &str) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::Utf8(Some(s.to_owned())))
    }

    fn number(n: i64) -> ColumnarValue {
        ColumnarValue::Scalar(ScalarValue::Int64(Some(n)))
    }

    fn refusal(result: Result<ColumnarValue>) -> String {
        QueryError::from(result.unwrap_err()).to_string()
    }

    #[test]
    fn a_value_within_the_limit_is_made_and_one_above_is_named() {
        assert!(call("repeat", vec![text("x"), number(1 << 19)], 1).is_ok());
        assert_eq!(
            refusal(call("repeat", vec![text("x"), number(i64::MAX)], 1)),
            "`repeat` would make more than 1 MiB of one value or too much of one batch; use a smaller number or a shorter text"
        );
        for (name, args) in [
            ("lpad", vec![text("x"), number(1 << 30)]),
            ("rpad", vec![text("x"), number(1 << 30), text("y")]),
            ("replace", vec![text(&"a".repeat(65_000)), text("a"), text(&"b".repeat(65_000))]),
            (
                "regexp_replace",
                vec![text(&"a".repeat(65_000)), text(""), text(&"b".repeat(65_000)), text("g")],
            ),
            ("concat_ws", {
                let mut args = vec![text(&"s".repeat(1 << 20))];
                args.extend((0..100).map(|_| text("x")));
                args
            }),
            ("levenshtein", vec![text(&"a".repeat(65_000)), text(&"b".repeat(65_000))]),
        ] {
            assert!(refusal(call(name, args, 1)).starts_with(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_batch_is_computed_in_slices_and_reads_as_one() {
        let counts = Int64Array::from_iter_values((0..4000).map(|n| n % 7 * 1000));
        let args = vec![text("ab"), ColumnarValue::Array(Arc::new(counts))];
        let made = call("repeat", args, 4000).unwrap().into_array(4000).unwrap();
        let made = made.as_string::<i32>();
        assert_eq!(made.len(), 4000);
        for row in [0, 1, 2500, 3999] {
            assert_eq!(made.value(row).len(), row % 7 * 2000, "row {row}");
        }
    }

    #[test]
    fn a_batch_that_is_too_large_as_a_whole_is_refused_on_the_way() {
        let rows = 8192;
        let words = StringArray::from_iter_values((0..rows).map(|_| "0123456789abcdef"));
        let args = vec![ColumnarValue::Array(Arc::new(words)), number(2000)];
        assert!(refusal(call("repeat", args, rows)).starts_with("`repeat`"));
    }

    #[test]
    fn nulls_and_negative_numbers_do_not_count() {
        let null = ColumnarValue::Scalar(ScalarValue::Int64(None));
        assert!(call("repeat", vec![text("x"), null], 1).is_ok());
        assert!(call("repeat", vec![text("x"), number(-5)], 1).is_ok());
    }

    #[test]
    fn a_stopped_query_computes_no_further_slice() {
        let stop = Stop::default();
        stop.set();
        let result = call_with(&stop, "repeat", vec![text("x"), number(3)], 1);
        assert_eq!(QueryError::from(result.unwrap_err()).code().0, "query_memory");
    }

    #[test]
    fn the_first_refusal_is_given_again_without_computing() {
        let stop = Stop::default();
        let first = call_with(&stop, "repeat", vec![text("x"), number(i64::MAX)], 1);
        let second = call_with(&stop, "upper", vec![text("x")], 1);
        assert_eq!(refusal(first), refusal(second));
    }
}
