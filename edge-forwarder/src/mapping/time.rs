//! Times as sources write them.
//!
//! Owns: numbers since the Unix epoch and RFC 3339. Never: guesses a unit or a zone: a time without
//! a zone is UTC only where its protocol says so.

use serde::Deserialize;

/// How a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeFormat {
    /// Seconds since the Unix epoch, also with a fraction.
    S,
    /// Milliseconds.
    #[default]
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
    /// `2026-11-21T19:00:00.123Z` or with `+01:00`.
    Rfc3339,
}

impl TimeFormat {
    /// As the configuration says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::S => "s",
            Self::Ms => "ms",
            Self::Us => "us",
            Self::Ns => "ns",
            Self::Rfc3339 => "rfc3339",
        }
    }

    /// Nanoseconds since the Unix epoch.
    pub fn parse(self, text: &str) -> Option<i64> {
        let unit = match self {
            Self::S => 1_000_000_000,
            Self::Ms => 1_000_000,
            Self::Us => 1_000,
            Self::Ns => 1,
            Self::Rfc3339 => return rfc3339(text),
        };
        decimal(text.trim(), unit)
    }
}

/// A decimal number of units of `unit` ns; digits below a nanosecond are cut off.
fn decimal(text: &str, unit: i64) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let fine = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !fine(whole) || !fine(fraction) {
        return None;
    }
    let mut ns = whole.parse::<i64>().ok()?.checked_mul(unit)?;
    let mut worth = unit;
    for digit in fraction.bytes() {
        worth /= 10;
        ns = ns.checked_add(i64::from(digit - b'0') * worth)?;
    }
    if negative { ns.checked_neg() } else { Some(ns) }
}

/// Days from 1970-01-01 to a day of the proleptic Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is the last.
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Days of a month.
fn month_days(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn number(text: Option<&str>, len: usize) -> Option<i64> {
    let text = text.filter(|t| t.len() == len && t.bytes().all(|b| b.is_ascii_digit()))?;
    text.parse().ok()
}

/// An RFC 3339 time; one without a zone is UTC, as XML's `dateTime` of MTConnect is.
pub fn rfc3339(text: &str) -> Option<i64> {
    let text = text.trim();
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split('-');
    let (year, month, day) =
        (number(parts.next(), 4)?, number(parts.next(), 2)?, number(parts.next(), 2)?);
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, "Z"),
    };
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut parts = clock.split(':');
    let (hour, minute, second) =
        (number(parts.next(), 2)?, number(parts.next(), 2)?, number(parts.next(), 2)?);
    let ranges = (1..=12).contains(&month)
        && (1..=month_days(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if parts.next().is_some() || !ranges {
        return None;
    }
    let nanos =
        if fraction.is_empty() { 0 } else { decimal(&format!("0.{fraction}"), 1_000_000_000)? };
    let shift = match zone.strip_prefix(['+', '-']) {
        None => 0,
        Some(zone) => {
            let (hours, minutes) = zone.split_once(':').or_else(|| zone.split_at_checked(2))?;
            number(Some(hours), 2)? * 3600 + number(Some(minutes), 2)? * 60
        }
    };
    let shift = if zone.starts_with('-') { -shift } else { shift };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - shift;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// The date of an HTTP answer: `Sat, 21 Nov 2026 19:00:00 GMT`.
pub fn http_date(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut parts = text.split(' ').skip(1);
    let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
    let month = MONTHS.iter().position(|m| *m == month)? + 1;
    rfc3339(&format!("{year}-{month:02}-{day}T{}Z", parts.next()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_of_every_format_are_read() {
        let check = |format: TimeFormat, text: &str, expected: Option<i64>| {
            assert_eq!(format.parse(text), expected, "{text} as {}", format.name());
        };
        check(TimeFormat::S, "1.5", Some(1_500_000_000));
        check(TimeFormat::S, "-1.5", Some(-1_500_000_000));
        check(TimeFormat::Ms, "1795287600123", Some(1_795_287_600_123_000_000));
        check(TimeFormat::Us, "7.0019", Some(7_001));
        check(TimeFormat::Ns, "9223372036854775807", Some(i64::MAX));
        check(TimeFormat::Ms, "9223372036854775807", None);
        check(TimeFormat::Ms, "1e3", None);
        check(TimeFormat::Ms, "", None);
        let of = |text: &str, expected| check(TimeFormat::Rfc3339, text, expected);
        of("1970-01-01T00:00:00Z", Some(0));
        of("2026-11-21T19:00:00.123456789Z", Some(1_795_287_600_123_456_789));
        of("2026-11-21T20:00:00+01:00", Some(1_795_287_600_000_000_000));
        of("2026-11-21T19:00:00", Some(1_795_287_600_000_000_000));
        of("1969-12-31T23:59:59Z", Some(-1_000_000_000));
        of("2024-02-29T00:00:00Z", Some(1_709_164_800_000_000_000));
        of("2023-02-29T00:00:00Z", None);
        of("2026-13-01T00:00:00Z", None);
        of("9999-12-31T00:00:00Z", None);
        of("yesterday", None);
        let date = http_date("Sat, 21 Nov 2026 19:00:00 GMT");
        assert_eq!(date, Some(1_795_287_600_000_000_000));
        assert_eq!(http_date("now"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_a_time_or_none_and_a_number_is_what_it_says(text in "\\PC{0,40}", n in any::<i32>()) {
            prop_assert_eq!(rfc3339(&text).is_some() && TimeFormat::S.parse(&text).is_some(), false);
            let expected = i64::from(n) * 1_000_000_000;
            prop_assert_eq!(TimeFormat::S.parse(&n.to_string()), Some(expected));
        }
    }
}
