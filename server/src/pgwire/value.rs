//! Values of results, as text and as binary.
//!
//! Owns: both forms of every type that a column can have. A time has microseconds here and
//! nanoseconds in the table: it is rounded down, so that the order of times stays and none moves
//! into the future. Never: loses a value otherwise: unsigned 64-bit integers go as `numeric`, what
//! PostgreSQL has no type for goes as text.

use std::fmt::Write;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::*,
    error::ArrowError,
    util::display::{ArrayFormatter, FormatOptions},
};
use bytes::{BufMut, BytesMut};

/// Days from 1970 to 2000, where PostgreSQL's times begin.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * DAY_MICROS;
const DAY_MICROS: i64 = 86_400_000_000;

/// How a column is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Text,
    Binary,
}

/// The columns of a batch in the few types that are sent.
pub(super) fn columns(batch: &RecordBatch) -> Result<Vec<ArrayRef>, ArrowError> {
    batch.columns().iter().map(simple).collect()
}

fn simple(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let to = match column.data_type() {
        DataType::Dictionary(_, value) => return simple(&cast(column, value)?),
        DataType::Int8 | DataType::UInt8 => DataType::Int16,
        DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        DataType::Float16 => DataType::Float32,
        DataType::LargeUtf8 | DataType::Utf8View => DataType::Utf8,
        DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            DataType::Binary
        }
        DataType::Date64 => DataType::Date32,
        DataType::Time32(_) | DataType::Time64(TimeUnit::Nanosecond) => {
            DataType::Time64(TimeUnit::Microsecond)
        }
        DataType::Timestamp(TimeUnit::Second | TimeUnit::Millisecond, zone) => {
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::Duration(TimeUnit::Second | TimeUnit::Millisecond) => {
            DataType::Duration(TimeUnit::Microsecond)
        }
        DataType::Interval(IntervalUnit::DayTime | IntervalUnit::YearMonth) => {
            DataType::Interval(IntervalUnit::MonthDayNano)
        }
        _ => return Ok(ArrayRef::clone(column)),
    };
    cast(column, &to)
}

/// Writes one value with its length before it.
pub(super) fn put(
    out: &mut BytesMut,
    column: &ArrayRef,
    row: usize,
    format: Format,
) -> Result<(), ArrowError> {
    if column.is_null(row) || *column.data_type() == DataType::Null {
        out.put_i32(-1);
        return Ok(());
    }
    let at = out.len();
    out.put_u32(0);
    match format {
        Format::Binary => binary(out, column, row)?,
        Format::Text => text(out, column, row)?,
    }
    let length = (out.len() - at - 4) as u32;
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// Microseconds since 1970 of a time, rounded down.
fn micros(column: &ArrayRef, row: usize, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Nanosecond => {
            column.as_primitive::<TimestampNanosecondType>().value(row).div_euclid(1000)
        }
        _ => column.as_primitive::<TimestampMicrosecondType>().value(row),
    }
}

fn duration(column: &ArrayRef, row: usize, unit: TimeUnit) -> i64 {
    match unit {
        TimeUnit::Nanosecond => {
            column.as_primitive::<DurationNanosecondType>().value(row).div_euclid(1000)
        }
        _ => column.as_primitive::<DurationMicrosecondType>().value(row),
    }
}

fn binary(out: &mut BytesMut, column: &ArrayRef, row: usize) -> Result<(), ArrowError> {
    match column.data_type() {
        DataType::Boolean => out.put_u8(u8::from(column.as_boolean().value(row))),
        DataType::Int16 => out.put_i16(column.as_primitive::<Int16Type>().value(row)),
        DataType::Int32 => out.put_i32(column.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => out.put_i64(column.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => out.put_f32(column.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => out.put_f64(column.as_primitive::<Float64Type>().value(row)),
        DataType::Binary => out.put_slice(column.as_binary::<i32>().value(row)),
        DataType::Timestamp(unit, _) => {
            out.put_i64(micros(column, row, *unit).saturating_sub(EPOCH_MICROS));
        }
        DataType::Date32 => {
            let days = column.as_primitive::<Date32Type>().value(row);
            out.put_i32(days.saturating_sub(EPOCH_DAYS));
        }
        DataType::Time64(_) => {
            out.put_i64(column.as_primitive::<Time64MicrosecondType>().value(row));
        }
        DataType::Duration(unit) => {
            out.put_i64(duration(column, row, *unit));
            out.put_i64(0);
        }
        DataType::Interval(_) => {
            let of = column.as_primitive::<IntervalMonthDayNanoType>().value(row);
            out.put_i64(of.nanoseconds.div_euclid(1000));
            out.put_i32(of.days);
            out.put_i32(of.months);
        }
        DataType::UInt64 | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            let mut digits = BytesMut::new();
            text(&mut digits, column, row)?;
            numeric(out, &String::from_utf8_lossy(&digits));
        }
        _ => text(out, column, row)?,
    }
    Ok(())
}

fn text(out: &mut BytesMut, column: &ArrayRef, row: usize) -> Result<(), ArrowError> {
    let done = match column.data_type() {
        DataType::Boolean => {
            out.put_u8(if column.as_boolean().value(row) { b't' } else { b'f' });
            Ok(())
        }
        DataType::Int64 => write!(out, "{}", column.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => float(out, column.as_primitive::<Float32Type>().value(row).into(), 4),
        DataType::Float64 => float(out, column.as_primitive::<Float64Type>().value(row), 8),
        DataType::Utf8 => {
            // A zero byte has no place in PostgreSQL's texts.
            out.extend(column.as_string::<i32>().value(row).bytes().filter(|b| *b != 0));
            Ok(())
        }
        DataType::Binary => column
            .as_binary::<i32>()
            .value(row)
            .iter()
            .fold(write!(out, "\\x"), |done, b| done.and_then(|()| write!(out, "{b:02x}"))),
        DataType::Timestamp(unit, zone) => {
            timestamp(out, micros(column, row, *unit), zone.is_some())
        }
        DataType::Date32 => date(out, i64::from(column.as_primitive::<Date32Type>().value(row))),
        DataType::Time64(_) => time(out, column.as_primitive::<Time64MicrosecondType>().value(row)),
        DataType::Duration(unit) => interval(out, 0, 0, duration(column, row, *unit)),
        DataType::Interval(_) => {
            let of = column.as_primitive::<IntervalMonthDayNanoType>().value(row);
            interval(out, of.months, of.days, of.nanoseconds.div_euclid(1000))
        }
        _ => {
            let options = FormatOptions::default().with_display_error(false);
            let shown = ArrayFormatter::try_new(column, &options)?.value(row).to_string();
            out.extend(shown.bytes().filter(|b| *b != 0));
            Ok(())
        }
    };
    done.map_err(|_| ArrowError::ComputeError("a value cannot be written".to_owned()))
}

fn float(out: &mut BytesMut, value: f64, bytes: usize) -> std::fmt::Result {
    if value.is_nan() {
        return out.write_str("NaN");
    }
    if value.is_infinite() {
        return out.write_str(if value > 0.0 { "Infinity" } else { "-Infinity" });
    }
    // The shortest text that is the same number again.
    let small = value.abs();
    let plain = value == 0.0 || (1e-5..1e15).contains(&small);
    match (bytes, plain) {
        (4, true) => write!(out, "{}", value as f32),
        (4, false) => write!(out, "{:e}", value as f32),
        (_, true) => write!(out, "{value}"),
        (_, false) => write!(out, "{value:e}"),
    }
}

/// Year, month and day of a day since 1970 (the proleptic Gregorian calendar).
fn civil(days: i64) -> (i64, i64, i64) {
    // Counted from 0000-03-01, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn date(out: &mut BytesMut, days: i64) -> std::fmt::Result {
    let (year, month, day) = civil(days);
    if year > 0 {
        return write!(out, "{year:04}-{month:02}-{day:02}");
    }
    write!(out, "{:04}-{month:02}-{day:02} BC", 1 - year)
}

fn time(out: &mut BytesMut, micros: i64) -> std::fmt::Result {
    let (seconds, rest) = (micros / 1_000_000, micros % 1_000_000);
    write!(out, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)?;
    if rest == 0 {
        return Ok(());
    }
    let digits = format!("{rest:06}");
    write!(out, ".{}", digits.trim_end_matches('0'))
}

fn timestamp(out: &mut BytesMut, micros: i64, zone: bool) -> std::fmt::Result {
    date(out, micros.div_euclid(DAY_MICROS))?;
    out.put_u8(b' ');
    time(out, micros.rem_euclid(DAY_MICROS))?;
    if zone { out.write_str("+00") } else { Ok(()) }
}

fn interval(out: &mut BytesMut, months: i32, days: i32, micros: i64) -> std::fmt::Result {
    let start = out.len();
    for (count, one, many) in
        [(months / 12, "year", "years"), (months % 12, "mon", "mons"), (days, "day", "days")]
    {
        if count != 0 {
            let gap = if out.len() > start { " " } else { "" };
            write!(out, "{gap}{count} {}", if count == 1 { one } else { many })?;
        }
    }
    if micros != 0 || out.len() == start {
        let gap = if out.len() > start { " " } else { "" };
        write!(out, "{gap}{}", if micros < 0 { "-" } else { "" })?;
        time(out, micros.saturating_abs())?;
    }
    Ok(())
}

/// `numeric` in binary: digits to the base of 10,000, from a decimal text.
fn numeric(out: &mut BytesMut, text: &str) {
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole = whole.trim_start_matches('0');
    let group = |digits: &str| digits.bytes().fold(0u16, |n, d| n * 10 + u16::from(d - b'0'));
    let padded = format!("{whole:0>width$}", width = whole.len().next_multiple_of(4));
    let mut groups: Vec<u16> =
        padded.as_bytes().chunks(4).map(|c| group(&String::from_utf8_lossy(c))).collect();
    let weight = groups.len() as i16 - 1;
    let tail = format!("{fraction:0<width$}", width = fraction.len().next_multiple_of(4));
    groups.extend(tail.as_bytes().chunks(4).map(|c| group(&String::from_utf8_lossy(c))));
    out.put_u16(groups.len() as u16);
    out.put_i16(weight);
    out.put_u16(if negative { 0x4000 } else { 0 });
    out.put_u16(fraction.len() as u16);
    groups.iter().for_each(|g| out.put_u16(*g));
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::*;

    use super::*;

    fn sent(column: ArrayRef, format: Format) -> Vec<u8> {
        let column = simple(&column).unwrap();
        let mut out = BytesMut::new();
        put(&mut out, &column, 0, format).unwrap();
        out.to_vec()
    }

    fn check(column: impl Array + 'static, expected: &str, hex: &str) {
        let column: ArrayRef = Arc::new(column);
        let shown = sent(Arc::clone(&column), Format::Text);
        assert_eq!(String::from_utf8_lossy(&shown[4..]), expected);
        assert_eq!(shown[..4], u32::try_from(expected.len()).unwrap().to_be_bytes());
        let raw = sent(column, Format::Binary);
        let raw: String = raw[4..].iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(raw, hex, "{expected}");
    }

    #[test]
    fn every_type_has_the_two_forms_that_postgresql_gives_it() {
        check(BooleanArray::from(vec![true]), "t", "01");
        check(Int64Array::from(vec![-2]), "-2", "fffffffffffffffe");
        check(Int8Array::from(vec![7]), "7", "0007");
        check(UInt32Array::from(vec![u32::MAX]), "4294967295", "00000000ffffffff");
        check(Float64Array::from(vec![1.5]), "1.5", "3ff8000000000000");
        check(Float64Array::from(vec![f64::NEG_INFINITY]), "-Infinity", "fff0000000000000");
        check(Float32Array::from(vec![0.1]), "0.1", "3dcccccd");
        check(Float64Array::from(vec![1e300]), "1e300", "7e37e43c8800759c");
        check(StringArray::from(vec!["käse"]), "käse", "6bc3a47365");
        check(BinaryArray::from(vec![&b"\x00\xff"[..]]), "\\x00ff", "00ff");
        check(Date32Array::from(vec![EPOCH_DAYS + 1]), "2000-01-02", "00000001");
        check(Time64MicrosecondArray::from(vec![3_661_500_000]), "01:01:01.5", "00000000da3e0e60");
        let none = NullArray::new(1);
        assert_eq!(sent(Arc::new(none), Format::Text), [0xff; 4]);
        let tags: DictionaryArray<Int32Type> = vec!["a"].into_iter().collect();
        check(tags, "a", "61");
    }

    #[test]
    fn times_are_rounded_down_to_microseconds() {
        let at = |ns| TimestampNanosecondArray::from(vec![ns]).with_timezone("UTC");
        check(at(946_684_800_000_000_999), "2000-01-01 00:00:00+00", "0000000000000000");
        check(at(946_684_800_000_001_999), "2000-01-01 00:00:00.000001+00", "0000000000000001");
        check(at(-1), "1969-12-31 23:59:59.999999+00", "fffca2fec4c81fff");
        check(at(i64::MIN), "1677-09-21 00:12:43.145224+00", "ffdbde631ee4cc08");
        let plain = TimestampSecondArray::from(vec![0]);
        check(plain, "1970-01-01 00:00:00", "fffca2fec4c82000");
        check(Date32Array::from(vec![-719_529]), "0002-12-31 BC", "fff4da8a");
    }

    #[test]
    fn unsigned_numbers_and_decimals_are_numeric() {
        check(UInt64Array::from(vec![0]), "0", "0000ffff00000000");
        check(UInt64Array::from(vec![12_345]), "12345", "000200010000000000010929");
        check(
            UInt64Array::from(vec![u64::MAX]),
            "18446744073709551615",
            "000500040000000007341a5802e103bb064f",
        );
        let price = Decimal128Array::from(vec![-12_345]).with_precision_and_scale(10, 2).unwrap();
        check(price, "-123.45", "0002000040000002007b1194");
    }

    #[test]
    fn spans_of_time_are_intervals() {
        let span = IntervalMonthDayNano::new(14, 3, 4_000_001_999);
        check(
            IntervalMonthDayNanoArray::from(vec![span]),
            "1 year 2 mons 3 days 00:00:04.000001",
            "00000000003d0901000000030000000e",
        );
        check(
            DurationNanosecondArray::from(vec![-1_500_000_000]),
            "-00:00:01.5",
            "ffffffffffe91ca00000000000000000",
        );
    }
}
