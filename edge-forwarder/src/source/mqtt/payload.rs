//! From a payload to items.
//!
//! Owns: JSON and single values, and the time in a payload. Never: goes deeper than 64 levels or
//! makes more than 1,024 items of one message.

use std::borrow::Cow;

use millrace_protocol::batch::RowLimits;
use serde::Deserialize;
use serde_json::Value as Json;

use crate::mapping::{time::TimeFormat, value::Value};

/// Levels of JSON at most.
const DEPTH_MAX: usize = 64;

/// What a payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// JSON if it reads as such, else text.
    #[default]
    Auto,
    /// JSON.
    Json,
    /// One text.
    Text,
}

/// A payload that was read.
#[derive(Debug)]
pub struct Payload<'a> {
    json: Json,
    text: Option<&'a str>,
}

impl<'a> Payload<'a> {
    /// Reads it.
    pub fn read(kind: Kind, bytes: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "the payload is no UTF-8".to_owned());
        if kind != Kind::Text {
            match serde_json::from_slice(bytes) {
                Ok(json) => return Ok(Self { json, text: None }),
                Err(e) if kind == Kind::Json => return Err(format!("the payload is no JSON: {e}")),
                // What begins like JSON was meant as such.
                Err(e) if matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) => {
                    return Err(format!("the payload is no JSON: {e}"));
                }
                Err(_) => {}
            }
        }
        Ok(Self { json: Json::Null, text: Some(text?) })
    }

    /// The time at a pointer.
    pub fn time(&self, pointer: &str, format: TimeFormat) -> Result<i64, String> {
        let found = self.json.pointer(pointer);
        let found = found.ok_or_else(|| format!("the payload has no {pointer} for its time"))?;
        let text = match found {
            Json::String(text) => Cow::Borrowed(text.as_str()),
            other => Cow::Owned(other.to_string()),
        };
        format.parse(&text).ok_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            format!("`{shown}` at {pointer} is no time in {}", format.name())
        })
    }

    /// A value that a rule points at.
    pub fn at(&self, pointer: &str) -> Option<String> {
        match self.json.pointer(pointer)? {
            Json::String(text) => Some(text.clone()),
            Json::Bool(v) => Some(v.to_string()),
            Json::Number(v) => Some(v.to_string()),
            Json::Null | Json::Array(_) | Json::Object(_) => None,
        }
    }

    /// Its values with their paths, but the one at `time`. A single value has no path.
    pub fn values(&self, time: Option<&str>) -> Result<Vec<(String, Value<'_>)>, String> {
        let mut out = Vec::new();
        if let Some(text) = self.text {
            out.push((String::new(), Value::Text(Cow::Borrowed(text))));
            return Ok(out);
        }
        let mut path = String::new();
        flatten(&self.json, &mut path, 0, time, &mut out)?;
        Ok(out)
    }
}

/// Numbers come as they are written; a rule or its absence decides what they become.
fn scalar(json: &Json) -> Option<Value<'_>> {
    match json {
        Json::Bool(v) => Some(Value::Bool(*v)),
        Json::String(v) => Some(Value::Text(Cow::Borrowed(v))),
        Json::Number(v) => match (v.as_i64(), v.as_u64()) {
            (Some(v), _) => Some(Value::I64(v)),
            (None, Some(v)) => Some(Value::U64(v)),
            (None, None) => v.as_f64().map(Value::F64),
        },
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

fn flatten<'j>(
    json: &'j Json,
    path: &mut String,
    depth: usize,
    time: Option<&str>,
    out: &mut Vec<(String, Value<'j>)>,
) -> Result<(), String> {
    if depth > DEPTH_MAX {
        return Err(format!("the payload has more than {DEPTH_MAX} levels"));
    }
    if let Some(value) = scalar(json) {
        if time.and_then(|t| t.strip_prefix('/')) == Some(path.as_str()) {
            return Ok(());
        }
        let most = RowLimits::default().fields;
        if out.len() >= most {
            return Err(format!("the payload has more than {most} values"));
        }
        out.push((path.clone(), value));
        return Ok(());
    }
    let mut each = |name: &str, inner: &'j Json| {
        let len = path.len();
        if len > 0 {
            path.push('/');
        }
        path.push_str(name);
        let done = flatten(inner, path, depth + 1, time, out);
        path.truncate(len);
        done
    };
    match json {
        Json::Object(members) => members.iter().try_for_each(|(name, inner)| each(name, inner)),
        Json::Array(all) => {
            (0usize..).zip(all).try_for_each(|(n, inner)| each(&n.to_string(), inner))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Kind, bytes: &[u8], expected: &str) {
        let shown = match Payload::read(kind, bytes).and_then(|p| {
            let values = p.values(Some("/ts"))?;
            Ok(format!("{values:?}"))
        }) {
            Ok(shown) | Err(shown) => shown,
        };
        assert!(shown.contains(expected), "{expected} is not in {shown}");
    }

    #[test]
    fn payloads_become_values_with_paths() {
        check(Kind::Auto, b"12.5", r#"[("", F64(12.5))]"#);
        check(Kind::Auto, b"true", r#"[("", Bool(true))]"#);
        check(Kind::Auto, b"RUNNING", r#"[("", Text("RUNNING"))]"#);
        check(Kind::Text, b"12", r#"[("", Text("12"))]"#);
        check(
            Kind::Json,
            br#"{"ts":1,"a":{"b":[1,-2]},"n":null,"c":18446744073709551615}"#,
            r#"[("a/b/0", I64(1)), ("a/b/1", I64(-2)), ("c", U64(18446744073709551615))]"#,
        );
        check(Kind::Json, b"{}", "[]");
    }

    #[test]
    fn hostile_payloads_are_refused_with_a_reason() {
        check(Kind::Auto, &[0xff, 0xfe], "no UTF-8");
        check(Kind::Json, b"{", "no JSON");
        check(Kind::Auto, b"{\"a\":", "no JSON");
        let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
        check(Kind::Auto, &deep, "no JSON: recursion limit");
        let deep = [b"[".repeat(100), b"1".to_vec(), b"]".repeat(100)].concat();
        check(Kind::Auto, &deep, "more than 64 levels");
        let wide = format!("[{}1]", "1,".repeat(2000));
        check(Kind::Auto, wide.as_bytes(), "more than 1024 values");
        check(Kind::Json, b"1e999", "no JSON");
    }

    #[test]
    fn a_time_is_read_or_its_fault_is_named() {
        let time = |text: &str, format| {
            Payload::read(Kind::Json, text.as_bytes()).unwrap().time("/ts", format)
        };
        assert_eq!(time(r#"{"ts":1.5}"#, TimeFormat::S), Ok(1_500_000_000));
        assert_eq!(time(r#"{"ts":"12"}"#, TimeFormat::Ms), Ok(12_000_000));
        assert!(time(r#"{"ts":"noon"}"#, TimeFormat::Ms).unwrap_err().contains("`noon`"));
        assert!(time("{}", TimeFormat::Ms).unwrap_err().contains("no /ts"));
    }
}
