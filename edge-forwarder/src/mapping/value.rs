//! Values on their way from a source to a field.
//!
//! Owns: what may become what, scaling, and how line protocol writes a value. Never: rounds
//! silently: a number that does not fit the wanted type is a fault.

use std::borrow::Cow;

use serde::Deserialize;

/// A source's value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// True or false.
    Bool(bool),
    /// With sign.
    I64(i64),
    /// Without sign.
    U64(u64),
    /// Floating.
    F64(f64),
    /// Text.
    Text(Cow<'a, str>),
}

/// The type that a rule wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// Floating.
    Float,
    /// With sign.
    Int,
    /// Without sign.
    Uint,
    /// True or false.
    Bool,
    /// Text.
    Text,
}

impl Wanted {
    fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Int => "int",
            Self::Uint => "uint",
            Self::Bool => "bool",
            Self::Text => "text",
        }
    }
}

/// Why a value becomes no field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueFault {
    /// Another type.
    #[error("`{value}` is no {wanted}")]
    Type {
        /// The value's beginning.
        value: String,
        /// What was wanted.
        wanted: &'static str,
    },
    /// NaN or infinite.
    #[error("NaN and infinities are no numbers of a field")]
    NotFinite,
    /// Too long.
    #[error("a text of {0} bytes is longer than 64 KiB")]
    Long(usize),
}

/// Bytes of a text at most, as for every field.
const TEXT_MAX: usize = 64 * 1024;
/// The first float that is beyond every u64.
const U64_END: f64 = 18_446_744_073_709_551_616.0;
/// The first float that is beyond every i64.
const I64_END: f64 = 9_223_372_036_854_775_808.0;

/// A whole float as an integer.
#[expect(clippy::cast_possible_truncation, reason = "whole and in range")]
#[expect(clippy::cast_sign_loss, reason = "whole and in range")]
fn whole(v: f64) -> Option<Value<'static>> {
    if v.fract() != 0.0 {
        None
    } else if (-I64_END..I64_END).contains(&v) {
        Some(Value::I64(v as i64))
    } else {
        (0.0..U64_END).contains(&v).then_some(Value::U64(v as u64))
    }
}

impl<'a> Value<'a> {
    /// As text.
    pub fn text(&self) -> Cow<'_, str> {
        match self {
            Self::Bool(v) => Cow::Borrowed(if *v { "true" } else { "false" }),
            Self::I64(v) => Cow::Owned(v.to_string()),
            Self::U64(v) => Cow::Owned(v.to_string()),
            Self::F64(v) => Cow::Owned(v.to_string()),
            Self::Text(v) => Cow::Borrowed(v),
        }
    }

    fn fault(&self, wanted: &'static str) -> ValueFault {
        ValueFault::Type { value: self.text().chars().take(40).collect(), wanted }
    }

    #[expect(clippy::cast_precision_loss, reason = "a float was asked for")]
    fn float(&self) -> Option<f64> {
        match self {
            Self::Bool(_) => None,
            Self::I64(v) => Some(*v as f64),
            Self::U64(v) => Some(*v as f64),
            Self::F64(v) => Some(*v),
            Self::Text(v) => v.trim().parse().ok(),
        }
    }

    /// As this type.
    pub fn into_type(self, wanted: Wanted) -> Result<Self, ValueFault> {
        let name = wanted.name();
        let number = match &self {
            Self::F64(v) => whole(*v),
            Self::Text(v) => {
                let v = v.trim();
                let signed = v.parse().ok().map(Value::I64);
                signed.or_else(|| v.parse().ok().map(Value::U64))
            }
            _ => None,
        };
        let found = match wanted {
            Wanted::Float => self.float().map(Value::F64),
            Wanted::Int => match number.as_ref().unwrap_or(&self) {
                Self::I64(v) => Some(Value::I64(*v)),
                Self::U64(v) => i64::try_from(*v).ok().map(Value::I64),
                _ => None,
            },
            Wanted::Uint => match number.as_ref().unwrap_or(&self) {
                Self::U64(v) => Some(Value::U64(*v)),
                Self::I64(v) => u64::try_from(*v).ok().map(Value::U64),
                _ => None,
            },
            Wanted::Bool => match &self {
                Self::Bool(v) => Some(Value::Bool(*v)),
                Self::Text(v) if v.eq_ignore_ascii_case("true") => Some(Value::Bool(true)),
                Self::Text(v) if v.eq_ignore_ascii_case("false") => Some(Value::Bool(false)),
                Self::I64(v @ (0 | 1)) => Some(Value::Bool(*v == 1)),
                Self::U64(v @ (0 | 1)) => Some(Value::Bool(*v == 1)),
                _ => None,
            },
            Wanted::Text => Some(Value::Text(Cow::Owned(self.text().into_owned()))),
        };
        found.ok_or_else(|| self.fault(name))
    }

    /// `value * scale + offset`, a float.
    pub fn scaled(self, scale: f64, offset: f64) -> Result<Self, ValueFault> {
        match self {
            Self::Bool(_) | Self::Text(_) => Err(self.fault("number to scale")),
            _ => Ok(Self::F64(self.float().unwrap_or_default() * scale + offset)),
        }
    }

    /// As line protocol writes it.
    pub fn literal(&self, out: &mut String) -> Result<(), ValueFault> {
        use std::fmt::Write;
        // Writing to a string cannot fail.
        match self {
            Self::Bool(v) => out.push_str(if *v { "true" } else { "false" }),
            Self::I64(v) => drop(write!(out, "{v}i")),
            Self::U64(v) => drop(write!(out, "{v}u")),
            Self::F64(v) if !v.is_finite() => return Err(ValueFault::NotFinite),
            Self::F64(v) => drop(write!(out, "{v}")),
            Self::Text(v) if v.len() > TEXT_MAX => return Err(ValueFault::Long(v.len())),
            Self::Text(v) => {
                out.push('"');
                for c in v.chars() {
                    if matches!(c, '"' | '\\') {
                        out.push('\\');
                    }
                    out.push(c);
                }
                out.push('"');
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(v: &str) -> Value<'_> {
        Value::Text(Cow::Borrowed(v))
    }

    #[test]
    fn a_value_becomes_the_wanted_type_or_a_fault_and_is_never_rounded() {
        let check = |value: Value<'_>, wanted, expected: Option<Value<'_>>| {
            let shown = format!("{value:?} as {wanted:?}");
            assert_eq!(value.into_type(wanted).ok(), expected, "{shown}");
        };
        check(text(" 12.5 "), Wanted::Float, Some(Value::F64(12.5)));
        check(text("twelve"), Wanted::Float, None);
        check(Value::F64(3.0), Wanted::Int, Some(Value::I64(3)));
        check(Value::F64(3.5), Wanted::Int, None);
        check(Value::F64(9.3e18), Wanted::Uint, Some(Value::U64(9_300_000_000_000_000_000)));
        check(Value::F64(1e30), Wanted::Uint, None);
        check(Value::U64(u64::MAX), Wanted::Int, None);
        check(text("18446744073709551615"), Wanted::Uint, Some(Value::U64(u64::MAX)));
        check(Value::I64(-1), Wanted::Uint, None);
        check(Value::I64(1), Wanted::Bool, Some(Value::Bool(true)));
        check(Value::I64(2), Wanted::Bool, None);
        check(text("TRUE"), Wanted::Bool, Some(Value::Bool(true)));
        check(Value::Bool(true), Wanted::Float, None);
        check(Value::F64(1.5), Wanted::Text, Some(text("1.5")));
    }

    #[test]
    fn what_no_field_can_hold_is_a_fault() {
        let literal = |v: &Value<'_>| {
            let mut out = String::new();
            v.literal(&mut out).map(|()| out)
        };
        assert_eq!(literal(&Value::F64(f64::NAN)), Err(ValueFault::NotFinite));
        assert_eq!(literal(&Value::F64(-0.0)).unwrap(), "-0");
        assert_eq!(literal(&Value::U64(1 << 63)).unwrap(), "9223372036854775808u");
        assert_eq!(literal(&text("a\"b\\c")).unwrap(), r#""a\"b\\c""#);
        assert!(matches!(literal(&text(&"x".repeat(70_000))), Err(ValueFault::Long(_))));
        assert!(text("x").scaled(2.0, 0.0).is_err());
        assert_eq!(Value::I64(655).scaled(0.1, -40.0).unwrap(), Value::F64(25.5));
    }
}
