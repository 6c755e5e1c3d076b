//! Values of parameters, from text and from binary.
//!
//! Owns: both forms of the types that a client may declare. Never: pastes a value into text.

use std::sync::Arc;

use arrow::{
    array::*,
    compute::{CastOptions, cast_with_options},
    datatypes::DataType,
};
use bytes::{Buf, Bytes};

use super::value::{EPOCH_DAYS, EPOCH_MICROS, Format};

/// A column with the one value.
pub(super) fn column(
    value: Option<&Bytes>,
    oid: u32,
    format: Format,
    to: &DataType,
) -> Result<ArrayRef, String> {
    let Some(value) = value else { return Ok(new_null_array(to, 1)) };
    let given = match format {
        Format::Text => from_text(value, to)?,
        Format::Binary => from_binary(value, oid)
            .ok_or_else(|| format!("a value of type {oid} has not the form of its type"))?,
    };
    if given.data_type() == to {
        return Ok(given);
    }
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(&given, to, &strict).map_err(|e| e.to_string())
}

fn from_text(value: &Bytes, to: &DataType) -> Result<ArrayRef, String> {
    let text = std::str::from_utf8(value).map_err(|_| "a value is not UTF-8".to_owned())?;
    if *to == DataType::Binary {
        let digits = text.strip_prefix("\\x").ok_or("bytea is written \\x and hex digits")?;
        let bytes: Option<Vec<u8>> = digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect();
        let bytes = bytes.ok_or("bytea is written \\x and hex digits")?;
        return Ok(Arc::new(BinaryArray::from(vec![bytes.as_slice()])));
    }
    Ok(Arc::new(StringArray::from(vec![text])))
}

fn from_binary(value: &Bytes, oid: u32) -> Option<ArrayRef> {
    let mut at = value.clone();
    let micros = |at: &mut Bytes| at.try_get_i64().ok()?.checked_add(EPOCH_MICROS);
    let column: ArrayRef = match oid {
        16 => Arc::new(BooleanArray::from(vec![at.try_get_u8().ok()? != 0])),
        17 => {
            let bytes = at.split_to(at.len());
            Arc::new(BinaryArray::from(vec![bytes.as_ref()]))
        }
        20 => Arc::new(Int64Array::from(vec![at.try_get_i64().ok()?])),
        21 => Arc::new(Int16Array::from(vec![at.try_get_i16().ok()?])),
        23 => Arc::new(Int32Array::from(vec![at.try_get_i32().ok()?])),
        26 => Arc::new(UInt32Array::from(vec![at.try_get_u32().ok()?])),
        700 => Arc::new(Float32Array::from(vec![at.try_get_f32().ok()?])),
        701 => Arc::new(Float64Array::from(vec![at.try_get_f64().ok()?])),
        1082 => Arc::new(Date32Array::from(vec![at.try_get_i32().ok()?.checked_add(EPOCH_DAYS)?])),
        1114 => {
            let ns = micros(&mut at)?.checked_mul(1000)?;
            Arc::new(TimestampNanosecondArray::from(vec![ns]))
        }
        1184 => {
            let ns = micros(&mut at)?.checked_mul(1000)?;
            Arc::new(TimestampNanosecondArray::from(vec![ns]).with_timezone("UTC"))
        }
        1700 => Arc::new(StringArray::from(vec![numeric(&mut at)?])),
        2950 => {
            let hex: String = at.split_to(at.len()).iter().map(|b| format!("{b:02x}")).collect();
            let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|r| hex.get(r));
            let parts: Option<Vec<&str>> = parts.into_iter().collect();
            Arc::new(StringArray::from(vec![parts?.join("-")]))
        }
        3802 => {
            // A version number stands before the text.
            (at.try_get_u8().ok()? == 1).then_some(())?;
            let text = at.split_to(at.len());
            Arc::new(StringArray::from(vec![std::str::from_utf8(&text).ok()?]))
        }
        _ => {
            let text = at.split_to(at.len());
            Arc::new(StringArray::from(vec![std::str::from_utf8(&text).ok()?]))
        }
    };
    at.is_empty().then_some(column)
}

/// Digits to the base of 10,000 as a decimal text.
fn numeric(at: &mut Bytes) -> Option<String> {
    let count = at.try_get_u16().ok()?;
    let weight = i32::from(at.try_get_i16().ok()?);
    let sign = at.try_get_u16().ok()?;
    let scale = usize::from(at.try_get_u16().ok()?);
    if sign == 0xc000 {
        return Some("NaN".to_owned());
    }
    // A number of 64 bits has five groups, a decimal of 128 bits ten.
    if count > 16 || weight.abs() > 16 || scale > 64 {
        return None;
    }
    let groups: Option<Vec<u16>> = (0..count).map(|_| at.try_get_u16().ok()).collect();
    let groups = groups?;
    let group = |place: i32| {
        let index = usize::try_from(weight - place).ok();
        index.and_then(|i| groups.get(i)).copied().unwrap_or(0)
    };
    let whole: String = (0..=weight.max(0)).rev().map(|p| format!("{:04}", group(p))).collect();
    let fraction: String =
        (1..=scale.div_ceil(4) as i32).map(|p| format!("{:04}", group(-p))).collect();
    let minus = if sign == 0x4000 { "-" } else { "" };
    let whole = whole.trim_start_matches('0');
    let whole = if whole.is_empty() { "0" } else { whole };
    let fraction = fraction.get(..scale)?;
    let point = if scale > 0 { "." } else { "" };
    Some(format!("{minus}{whole}{point}{fraction}"))
}

#[cfg(test)]
mod tests {
    use arrow::{datatypes::TimeUnit, util::display::array_value_to_string};
    use bytes::{BufMut, BytesMut};

    use super::*;

    fn shown(bytes: &[u8], oid: u32, format: Format, to: DataType) -> String {
        let value = Bytes::copy_from_slice(bytes);
        match column(Some(&value), oid, format, &to) {
            Ok(column) => {
                assert_eq!(column.data_type(), &to);
                array_value_to_string(&column, 0).unwrap()
            }
            Err(_) => "refused".to_owned(),
        }
    }

    #[test]
    fn text_takes_the_type_of_its_place() {
        let time = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        for (text, to, expected) in [
            ("12", DataType::Int64, "12"),
            ("1.5", DataType::Float64, "1.5"),
            ("t", DataType::Boolean, "true"),
            ("x", DataType::Utf8, "x"),
            ("x", DataType::Int64, "refused"),
            ("2026-01-01 00:00:00+00", time.clone(), "2026-01-01T00:00:00Z"),
            ("2026-01-01T01:00:00.5+01:00", time, "2026-01-01T00:00:00.500Z"),
            ("\\x00ff", DataType::Binary, "00ff"),
            ("\\x0", DataType::Binary, "00"),
            ("\\xzz", DataType::Binary, "refused"),
        ] {
            assert_eq!(shown(text.as_bytes(), 0, Format::Text, to), expected, "{text}");
        }
    }

    #[test]
    fn binary_has_the_form_of_its_type_or_is_refused() {
        let binary = |bytes: &[u8], oid, to| shown(bytes, oid, Format::Binary, to);
        assert_eq!(binary(&[0, 0, 0, 7], 23, DataType::Int64), "7");
        assert_eq!(binary(&[0, 0, 0], 23, DataType::Int64), "refused");
        assert_eq!(binary(&[0, 0, 0, 7, 0], 23, DataType::Int64), "refused");
        assert_eq!(binary(&[0xff], 25, DataType::Utf8), "refused");
        let time = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        assert_eq!(binary(&[0; 8], 1184, time.clone()), "2000-01-01T00:00:00Z");
        assert_eq!(binary(&i64::MAX.to_be_bytes(), 1184, time), "refused");
        let mut number = BytesMut::new();
        for part in [2u16, 0, 0x4000, 2, 123, 4500] {
            number.put_u16(part);
        }
        assert_eq!(binary(&number, 1700, DataType::Float64), "-123.45");
        let huge = [0xff; 8];
        assert_eq!(binary(&huge, 1700, DataType::Float64), "refused");
        assert_eq!(binary(&[0; 16], 2950, DataType::Utf8), "00000000-0000-0000-0000-000000000000");
    }
}
