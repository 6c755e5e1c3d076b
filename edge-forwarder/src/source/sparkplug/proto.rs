//! Sparkplug B's protobuf messages, as far as they are read and written here.
//!
//! Owns: field numbers, from the specification (version 3.0, chapter 6.4.1), and what a metric's
//! value is. Never: decodes metrics before they are looked at: a payload of empty ones would need
//! a hundred times its size.
//!
//! ```proto
//! message Payload { uint64 timestamp = 1; repeated Metric metrics = 2; uint64 seq = 3; string uuid = 4; bytes body = 5; }
//! message Metric {
//!   string name = 1; uint64 alias = 2; uint64 timestamp = 3; uint32 datatype = 4;
//!   bool is_historical = 5; bool is_transient = 6; bool is_null = 7; PropertySet properties = 9;
//!   oneof value { uint32 int = 10; uint64 long = 11; float float = 12; double double = 13;
//!                 bool boolean = 14; string string = 15; bytes bytes = 16; }
//! }
//! message PropertySet { repeated string keys = 1; repeated PropertyValue values = 2; }
//! message PropertyValue { uint32 type = 1; bool is_null = 2; oneof value { string string = 8; } }
//! ```

use std::borrow::Cow;

use bytes::Bytes;
use prost::Message;

use crate::mapping::value::Value;

/// What a message holds.
#[derive(Clone, PartialEq, Message)]
pub struct Payload {
    /// When it was made, ms since the Unix epoch.
    #[prost(uint64, optional, tag = "1")]
    pub timestamp: Option<u64>,
    /// Metrics, not decoded yet.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub metrics: Vec<Bytes>,
    /// The message's number, 0 to 255.
    #[prost(uint64, optional, tag = "3")]
    pub seq: Option<u64>,
    /// `SPBV1.0_COMPRESSED`, if the body is a compressed payload.
    #[prost(string, optional, tag = "4")]
    pub uuid: Option<String>,
}

/// One metric.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// Its name; births have it.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
    /// A number instead of the name.
    #[prost(uint64, optional, tag = "2")]
    pub alias: Option<u64>,
    /// ms since the Unix epoch.
    #[prost(uint64, optional, tag = "3")]
    pub timestamp: Option<u64>,
    /// The type's number.
    #[prost(uint32, optional, tag = "4")]
    pub datatype: Option<u32>,
    /// It was held back and is no current value.
    #[prost(bool, optional, tag = "5")]
    pub is_historical: Option<bool>,
    /// It has no value.
    #[prost(bool, optional, tag = "7")]
    pub is_null: Option<bool>,
    /// More about it.
    #[prost(message, optional, tag = "9")]
    pub properties: Option<PropertySet>,
    /// Its value.
    #[prost(oneof = "Held", tags = "10, 11, 12, 13, 14, 15, 16")]
    pub value: Option<Held>,
}

/// A value on the wire.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Held {
    /// Integers of 8 to 32 bits.
    #[prost(uint32, tag = "10")]
    Int(u32),
    /// Integers of 64 bits, and times.
    #[prost(uint64, tag = "11")]
    Long(u64),
    /// 32 bits, floating.
    #[prost(float, tag = "12")]
    Float(f32),
    /// 64 bits, floating.
    #[prost(double, tag = "13")]
    Double(f64),
    /// True or false.
    #[prost(bool, tag = "14")]
    Boolean(bool),
    /// Text.
    #[prost(string, tag = "15")]
    String(String),
    /// Bytes.
    #[prost(bytes = "bytes", tag = "16")]
    Bytes(Bytes),
}

/// Properties of a metric.
#[derive(Clone, PartialEq, Message)]
pub struct PropertySet {
    /// Names.
    #[prost(string, repeated, tag = "1")]
    pub keys: Vec<String>,
    /// Their values, in the same order.
    #[prost(message, repeated, tag = "2")]
    pub values: Vec<PropertyValue>,
}

/// A property's value; only texts are of use here.
#[derive(Clone, PartialEq, Message)]
pub struct PropertyValue {
    /// A text.
    #[prost(string, optional, tag = "8")]
    pub string: Option<String>,
}

/// The type of true and false.
pub const BOOLEAN: u32 = 11;

/// A value that no field can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a value of type {0} becomes no field")]
pub struct NoField(pub u32);

impl Metric {
    /// Its value as type `datatype`; `None`: it has none.
    pub fn value(&self, datatype: u32) -> Result<Option<Value<'_>>, NoField> {
        if self.is_null == Some(true) {
            return Ok(None);
        }
        let Some(held) = &self.value else { return Ok(None) };
        // The low bits are the value, in two's complement; `as` takes exactly them.
        #[expect(clippy::cast_possible_truncation, reason = "the low bits are the value")]
        #[expect(clippy::cast_possible_wrap, reason = "two's complement is what the wire says")]
        let value = match (held, datatype) {
            (Held::Int(v), 1) => Value::I64(i64::from(*v as u8 as i8)),
            (Held::Int(v), 2) => Value::I64(i64::from(*v as u16 as i16)),
            (Held::Int(v), 3) => Value::I64(i64::from(*v as i32)),
            (Held::Int(v), 4) => Value::I64(i64::from(*v as i32)),
            (Held::Int(v), 5..=8) => Value::U64(u64::from(*v)),
            (Held::Long(v), 1..=4 | 13) => Value::I64(*v as i64),
            (Held::Long(v), 5..=8) => Value::U64(*v),
            (Held::Float(v), 9 | 10) => Value::F64(f64::from(*v)),
            (Held::Double(v), 9 | 10) => Value::F64(*v),
            (Held::Boolean(v), BOOLEAN) => Value::Bool(*v),
            (Held::String(v), 12 | 14 | 15) => Value::Text(Cow::Borrowed(v)),
            _ => return Err(NoField(datatype)),
        };
        Ok(Some(value))
    }

    /// Its unit, where births say it.
    pub fn unit(&self) -> Option<&str> {
        let set = self.properties.as_ref()?;
        let at = set.keys.iter().position(|k| k.eq_ignore_ascii_case("engUnit"))?;
        set.values.get(at)?.string.as_deref()
    }
}

/// The command that asks a node for its births.
pub fn rebirth(now_ms: u64) -> Vec<u8> {
    let metric = Metric {
        name: Some("Node Control/Rebirth".to_owned()),
        timestamp: Some(now_ms),
        datatype: Some(BOOLEAN),
        value: Some(Held::Boolean(true)),
        ..Metric::default()
    };
    let metrics = vec![metric.encode_to_vec().into()];
    Payload { timestamp: Some(now_ms), metrics, ..Payload::default() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_type_are_read_as_their_type_says() {
        let check = |held: Held, datatype, expected: Option<Value<'_>>| {
            let metric = Metric { value: Some(held), ..Metric::default() };
            let read = Metric::decode(metric.encode_to_vec().as_slice()).unwrap();
            assert_eq!(read.value(datatype).ok().flatten(), expected, "{datatype}");
        };
        check(Held::Int(0xffff_ffff), 1, Some(Value::I64(-1)));
        check(Held::Int(0xff), 1, Some(Value::I64(-1)));
        check(Held::Int(0xfffe), 2, Some(Value::I64(-2)));
        check(Held::Int(0xffff_fffd), 3, Some(Value::I64(-3)));
        check(Held::Int(200), 5, Some(Value::U64(200)));
        check(Held::Long(u64::MAX), 4, Some(Value::I64(-1)));
        check(Held::Long(u64::MAX), 8, Some(Value::U64(u64::MAX)));
        check(Held::Long(7), 13, Some(Value::I64(7)));
        check(Held::Float(1.5), 9, Some(Value::F64(1.5)));
        check(Held::Double(2.5), 10, Some(Value::F64(2.5)));
        check(Held::Boolean(true), 11, Some(Value::Bool(true)));
        check(Held::String("x".into()), 12, Some(Value::Text("x".into())));
        check(Held::Bytes(Bytes::from_static(b"x")), 17, None);
        check(Held::String("x".into()), 3, None);
        let null = Metric { is_null: Some(true), value: Some(Held::Int(1)), ..Metric::default() };
        assert_eq!(null.value(3), Ok(None));
    }

    #[test]
    fn a_command_for_a_rebirth_reads_as_one() {
        let payload = Payload::decode(rebirth(5).as_slice()).unwrap();
        let metric = Metric::decode(payload.metrics[0].clone()).unwrap();
        assert_eq!(metric.name.as_deref(), Some("Node Control/Rebirth"));
        assert_eq!(metric.value(BOOLEAN), Ok(Some(Value::Bool(true))));
    }
}
