//! Query parameters: bound as values, never pasted into text.

use std::collections::BTreeMap;

use datafusion::{common::ParamValues, scalar::ScalarValue};
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

    pub(crate) fn bind(&self) -> Result<Option<ParamValues>, QueryError> {
        match self {
            Self::None => Ok(None),
            Self::List(values) => {
                let values: Result<Vec<ScalarValue>, _> = values.iter().map(scalar).collect();
                Ok(Some(ParamValues::from(values?)))
            }
            Self::Named(map) => {
                #[expect(
                    clippy::disallowed_types,
                    reason = "DataFusion's parameter map is a std one"
                )]
                let mut out = std::collections::HashMap::new();
                for (name, value) in map {
                    out.insert(name.trim_start_matches('$').to_owned(), scalar(value)?);
                }
                Ok(Some(ParamValues::from(out)))
            }
        }
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
