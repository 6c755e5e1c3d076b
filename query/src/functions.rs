//! Which functions SQL may call, and how each may grow.
//!
//! Owns: the list. A function that is not on it is not registered, so that a query that names it
//! gets an unknown function. Left out on purpose: those that tell about the host (`version`), name
//! files (`input_file_name`, `file_row_index`), make arrays of any length from numbers
//! (`array_repeat`, `array_resize`, scalar `range`), take a type as text (`arrow_cast`, which can
//! name one of 2 GB a value), and lambdas.
//! Never: registers a function that can grow without [`bounded::Bounded`] around it.

mod bounded;
mod concat;
mod growth;
mod measure;
mod operators;
mod stop;
mod timeseries;

use std::sync::Arc;

use datafusion::{
    catalog::TableFunction,
    execution::SessionStateDefaults,
    logical_expr::{AggregateUDF, ScalarUDF},
};

use self::{bounded::Bounded, growth::Growth};
pub(crate) use self::{
    measure::bytes as value_bytes,
    operators::Operators,
    stop::{Stop, StopOnDrop},
    timeseries::argument,
};
use crate::operator;

/// Functions whose result is no larger than a fixed number of bytes or than their first argument.
const PLAIN: &[&str] = &[
    // Choice and comparison.
    "coalesce",
    "greatest",
    "least",
    "nullif",
    "nvl",
    "nvl2",
    "arrow_typeof",
    "get_field",
    // Time.
    "current_date",
    "current_time",
    "date_bin",
    "date_part",
    "date_trunc",
    "from_unixtime",
    "make_date",
    "make_time",
    "now",
    "to_date",
    "to_local_time",
    "to_time",
    "to_timestamp",
    "to_timestamp_micros",
    "to_timestamp_millis",
    "to_timestamp_nanos",
    "to_timestamp_seconds",
    "to_unixtime",
    // Numbers.
    "abs",
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cbrt",
    "ceil",
    "cos",
    "cosh",
    "cot",
    "degrees",
    "exp",
    "factorial",
    "floor",
    "gcd",
    "isnan",
    "iszero",
    "lcm",
    "ln",
    "log",
    "log10",
    "log2",
    "nanvl",
    "pi",
    "power",
    "radians",
    "random",
    "round",
    "signum",
    "sin",
    "sinh",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
    // Text.
    "ascii",
    "bit_length",
    "btrim",
    "character_length",
    "chr",
    "contains",
    "ends_with",
    "find_in_set",
    "left",
    "ltrim",
    "octet_length",
    "reverse",
    "right",
    "rtrim",
    "split_part",
    "starts_with",
    "strpos",
    "substr",
    "substr_index",
    "to_hex",
    "uuid",
    // Codes.
    "decode",
    // Arrays, read only.
    "array_any_value",
    "array_avg",
    "array_dims",
    "array_distance",
    "array_distinct",
    "array_element",
    "array_except",
    "array_has",
    "array_has_all",
    "array_has_any",
    "array_intersect",
    "array_length",
    "array_max",
    "array_min",
    "array_ndims",
    "array_pop_back",
    "array_pop_front",
    "array_position",
    "array_positions",
    "array_product",
    "array_remove",
    "array_remove_all",
    "array_remove_n",
    "array_reverse",
    "array_slice",
    "array_sort",
    "array_sum",
    "cardinality",
    "empty",
    "flatten",
    "map_extract",
    "map_keys",
    "map_values",
];

/// Functions whose result can be larger than their arguments.
const GROWING: &[(&str, Growth)] = &[
    ("array_append", Growth::Sum),
    ("array_concat", Growth::Sum),
    ("array_prepend", Growth::Sum),
    ("array_to_string", Growth::Joined),
    ("array_union", Growth::Sum),
    ("concat", Growth::Sum),
    ("concat_ws", Growth::Separated),
    ("encode", Growth::Sum),
    ("initcap", Growth::Sum),
    ("levenshtein", Growth::Table),
    ("lower", Growth::Sum),
    ("lpad", Growth::Padded),
    ("make_array", Growth::Sum),
    ("map", Growth::Sum),
    ("named_struct", Growth::Sum),
    ("overlay", Growth::Sum),
    ("regexp_count", Growth::Pattern),
    ("regexp_instr", Growth::Pattern),
    ("regexp_like", Growth::Pattern),
    ("regexp_match", Growth::Pattern),
    ("regexp_replace", Growth::ReplacedByPattern),
    ("repeat", Growth::Repeated),
    ("replace", Growth::Replaced),
    ("rpad", Growth::Padded),
    ("string_to_array", Growth::Sum),
    ("struct", Growth::Sum),
    ("to_char", Growth::Format),
    ("translate", Growth::Sum),
    ("upper", Growth::Sum),
];

/// DataFusion's aggregates; our own are in [`timeseries`]. What they keep is counted by the query's
/// memory.
const AGGREGATES: &[&str] = &[
    "any_value",
    "approx_distinct",
    "approx_median",
    "approx_percentile_cont",
    "approx_percentile_cont_with_weight",
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar",
    "covar_pop",
    "covar_samp",
    "first_value",
    "grouping",
    "last_value",
    "max",
    "median",
    "min",
    "nth_value",
    "percentile_cont",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "stddev",
    "stddev_pop",
    "string_agg",
    "sum",
    "var",
    "var_pop",
];

/// Functions in FROM. The series is made as it is read, so it is bounded by time.
const TABLES: &[&str] = &["generate_series"];

fn growth(name: &str) -> Option<Growth> {
    GROWING.iter().find(|(n, _)| *n == name).map(|(_, growth)| *growth)
}

/// Wraps a function that can grow; others are returned as they are.
fn bound(function: &Arc<ScalarUDF>, stop: &Stop) -> Arc<ScalarUDF> {
    match growth(function.name()) {
        Some(growth) => Arc::new(ScalarUDF::new_from_impl(Bounded::new(
            Arc::clone(function),
            growth,
            stop.clone(),
        ))),
        None => Arc::clone(function),
    }
}

/// The scalar functions of one query.
pub(crate) fn scalars(stop: &Stop) -> Vec<Arc<ScalarUDF>> {
    SessionStateDefaults::default_scalar_functions()
        .iter()
        .filter(|f| PLAIN.contains(&f.name()) || growth(f.name()).is_some())
        .map(|f| bound(f, stop))
        .chain(operator::calls())
        .collect()
}

/// The aggregate functions of one query.
pub(crate) fn aggregates(stop: &Stop) -> Vec<Arc<AggregateUDF>> {
    SessionStateDefaults::default_aggregate_functions()
        .into_iter()
        .filter(|f| AGGREGATES.contains(&f.name()))
        .chain(timeseries::all(stop))
        .collect()
}

/// The table functions.
pub(crate) fn tables() -> Vec<Arc<TableFunction>> {
    SessionStateDefaults::default_table_functions()
        .into_iter()
        .filter(|f| TABLES.contains(&f.name()))
        .collect()
}
