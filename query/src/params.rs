//! Query parameters: bound as values, never pasted into text.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::DataType},
    common::ParamValues,
    logical_expr::LogicalPlan,
    scalar::ScalarValue,
};
use serde_json::Value;

use crate::error::QueryError;

/// Bytes of one text.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Values for `$1`, `$2` … or `$name`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Params {
    /// None given.
    #[default]
    None,
    /// By position.
    List(Vec<Value>),
    /// By name, without the `$`.
    Named(BTreeMap<String, Value>),
    /// With Arrow types: by name if every name is that of a place, else by position.
    Typed(Typed),
}

/// Values with Arrow types, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Typed(Vec<(String, ScalarValue)>);

impl Typed {
    /// Bytes that the values hold.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.size()).sum()
    }
}

impl Params {
    /// From a JSON array or object; `null` is none.
    pub fn from_json(json: Value) -> Result<Self, QueryError> {
        match json {
            Value::Null => Ok(Self::None),
            Value::Array(values) => Ok(Self::List(values)),
            Value::Object(map) => Ok(Self::Named(map.into_iter().collect())),
            other => Err(QueryError::Params(format!(
                "expected a JSON array or object, not {}",
                kind(&other)
            ))),
        }
    }

    /// From the one row of a batch: a column is a value.
    pub fn from_batch(batch: &RecordBatch) -> Result<Self, QueryError> {
        if batch.num_rows() != 1 {
            return Err(QueryError::Params(format!(
                "one row of values is bound at a time, not {}",
                batch.num_rows()
            )));
        }
        let named =
            batch.schema_ref().fields().iter().zip(batch.columns()).map(|(field, column)| {
                let value = ScalarValue::try_from_array(column, 0)?;
                if value.size() > TEXT_BYTES_MAX {
                    return Err(QueryError::Params(format!(
                        "a value has {} bytes, the limit is {TEXT_BYTES_MAX}",
                        value.size()
                    )));
                }
                Ok((field.name().clone(), value))
            });
        Ok(Self::Typed(Typed(named.collect::<Result<_, QueryError>>()?)))
    }

    /// The types of values by position, for describing; empty for those that have none.
    pub fn types(&self) -> Vec<Option<DataType>> {
        match self {
            Self::Typed(Typed(values)) => values.iter().map(|(_, v)| Some(v.data_type())).collect(),
            _ => Vec::new(),
        }
    }

    /// Puts the values in the places of a plan; every place has a value and every value a place.
    pub(crate) fn bind(self, plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
        let places: BTreeSet<String> =
            plan.get_parameter_names()?.iter().map(|p| p.trim_start_matches('$').into()).collect();
        let values = self.named(&places)?;
        if let Some(missing) = places.iter().find(|p| !values.contains_key(*p)) {
            return Err(QueryError::Params(format!("`${missing}` has no value")));
        }
        if let Some(extra) = values.keys().find(|v| !places.contains(*v)) {
            return Err(QueryError::Params(format!(
                "there is a value for `${extra}`, which the statement does not use"
            )));
        }
        if places.is_empty() {
            return Ok(plan);
        }
        let values: Vec<(String, ScalarValue)> = values.into_iter().collect();
        Ok(plan.with_param_values(ParamValues::from(values))?)
    }

    /// All values by name; positions are the names `1`, `2` …
    fn named(self, places: &BTreeSet<String>) -> Result<BTreeMap<String, ScalarValue>, QueryError> {
        let named: BTreeMap<String, Value> = match self {
            Self::Typed(Typed(values)) => return Ok(typed(values, places)),
            Self::None => BTreeMap::new(),
            Self::List(values) => (1u32..).map(|n| n.to_string()).zip(values).collect(),
            Self::Named(map) => {
                map.into_iter().map(|(n, v)| (n.trim_start_matches('$').to_owned(), v)).collect()
            }
        };
        named.into_iter().map(|(name, value)| Ok((name, scalar(&value)?))).collect()
    }
}

fn typed(
    values: Vec<(String, ScalarValue)>,
    places: &BTreeSet<String>,
) -> BTreeMap<String, ScalarValue> {
    let bare = |name: &str| name.trim_start_matches('$').to_owned();
    if values.iter().all(|(name, _)| places.contains(&bare(name))) {
        return values.into_iter().map(|(name, value)| (bare(&name), value)).collect();
    }
    (1u32..).map(|n| n.to_string()).zip(values.into_iter().map(|(_, value)| value)).collect()
}

fn scalar(value: &Value) -> Result<ScalarValue, QueryError> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(b) => ScalarValue::Boolean(Some(*b)),
        Value::String(s) if s.len() > TEXT_BYTES_MAX => {
            return Err(QueryError::Params(format!(
                "a text has {} bytes, the limit is {TEXT_BYTES_MAX}",
                s.len()
            )));
        }
        Value::String(s) => ScalarValue::Utf8(Some(s.clone())),
        Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
            (Some(i), _, _) => ScalarValue::Int64(Some(i)),
            (_, Some(u), _) => ScalarValue::UInt64(Some(u)),
            (_, _, Some(f)) => ScalarValue::Float64(Some(f)),
            _ => return Err(QueryError::Params(format!("`{n}` is not a number SQL has"))),
        },
        other => {
            return Err(QueryError::Params(format!(
                "a value must be null, a boolean, a number or a string, not {}",
                kind(other)
            )));
        }
    })
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Format, fixture::World};

    fn ask(world: &World, sql: &str, params: Value) -> Result<String, QueryError> {
        let bytes = world.bytes(sql, Params::from_json(params)?, Format::JsonLines)?;
        Ok(String::from_utf8(bytes).unwrap().trim_end().to_owned())
    }

    fn check(world: &World, sql: &str, params: Value, expected: &str) {
        let got = ask(world, sql, params).unwrap_or_else(|e| format!("{}: {e}", e.code().0));
        assert_eq!(got, expected, "{sql}");
    }

    #[test]
    fn values_are_bound_by_place_and_by_name() {
        let world = World::sample();
        let count = "SELECT count(*) AS n FROM cpu WHERE host =";
        check(&world, &format!("{count} $1"), json!(["h1"]), r#"{"n":3}"#);
        check(&world, &format!("{count} $host"), json!({ "host": "h1" }), r#"{"n":3}"#);
        check(&world, &format!("{count} $host"), json!({ "$host": "h1" }), r#"{"n":3}"#);
        check(&world, "SELECT $2 - $1 AS n", json!([1, 10]), r#"{"n":9}"#);
        check(
            &world,
            "SELECT count(*) AS n FROM cpu WHERE time >= $from AND n > $least LIMIT $rows",
            json!({ "from": "2026-01-01T00:01:00Z", "least": 4, "rows": 1 }),
            r#"{"n":2}"#,
        );
    }

    #[test]
    fn a_value_is_never_read_as_sql() {
        let world = World::sample();
        for hostile in ["h1' OR '1'='1", "h1'; DROP TABLE cpu; --", "$1", "\\", "host", "\0"] {
            let sql = "SELECT count(*) AS n FROM cpu WHERE host = $1";
            check(&world, sql, json!([hostile]), r#"{"n":0}"#);
            let sql = "SELECT $1 AS v";
            check(&world, sql, json!([hostile]), &json!({ "v": hostile }).to_string());
        }
    }

    #[test]
    fn json_types_become_sql_types() {
        let world = World::sample();
        let sql = "SELECT arrow_typeof($1) AS t";
        for (value, name) in [
            (json!("x"), "Utf8"),
            (json!(true), "Boolean"),
            (json!(-1), "Int64"),
            (json!(u64::MAX), "UInt64"),
            (json!(1.5), "Float64"),
            (Value::Null, "Null"),
        ] {
            check(&world, sql, json!([value]), &json!({ "t": name }).to_string());
        }
    }

    #[test]
    fn missing_extra_and_foreign_values_are_named() {
        let world = World::sample();
        for (sql, params, message) in [
            ("SELECT $1 + $2", json!([1]), "`$2` has no value"),
            ("SELECT $a", json!({}), "`$a` has no value"),
            ("SELECT $a", Value::Null, "`$a` has no value"),
            ("SELECT 1", json!([1]), "there is a value for `$1`, which the statement does not use"),
            (
                "SELECT $a",
                json!({ "a": 1, "b": 2 }),
                "there is a value for `$b`, which the statement does not use",
            ),
            (
                "SELECT $1",
                json!([[1]]),
                "a value must be null, a boolean, a number or a string, not an array",
            ),
            ("SELECT 1", json!("x"), "expected a JSON array or object, not a string"),
        ] {
            check(&world, sql, params, &format!("sql_params: parameters: {message}"));
        }
    }

    #[test]
    fn a_value_in_a_subquery_is_bound_too() {
        let world = World::sample();
        let sql = "SELECT (SELECT max(n) FROM cpu WHERE host = $1) AS n";
        check(&world, sql, json!(["h2"]), r#"{"n":6}"#);
        check(&world, sql, Value::Null, "sql_params: parameters: `$1` has no value");
    }
}
