//! Query parameters: bound as values, never pasted into text.

use std::collections::{BTreeMap, BTreeSet};

use datafusion::{common::ParamValues, logical_expr::LogicalPlan, scalar::ScalarValue};
use serde_json::Value;

use crate::error::QueryError;

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

    /// Puts the values in the places of a plan; every place has a value and every value a place.
    pub(crate) fn bind(self, plan: LogicalPlan) -> Result<LogicalPlan, QueryError> {
        let places: BTreeSet<String> =
            plan.get_parameter_names()?.iter().map(|p| p.trim_start_matches('$').into()).collect();
        let values = self.named()?;
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
    fn named(self) -> Result<BTreeMap<String, ScalarValue>, QueryError> {
        let named: BTreeMap<String, Value> = match self {
            Self::None => BTreeMap::new(),
            Self::List(values) => (1u32..).map(|n| n.to_string()).zip(values).collect(),
            Self::Named(map) => {
                map.into_iter().map(|(n, v)| (n.trim_start_matches('$').to_owned(), v)).collect()
            }
        };
        named.into_iter().map(|(name, value)| Ok((name, scalar(&value)?))).collect()
    }
}

fn scalar(value: &Value) -> Result<ScalarValue, QueryError> {
    Ok(match value {
        Value::Null => ScalarValue::Null,
        Value::Bool(b) => ScalarValue::Boolean(Some(*b)),
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
