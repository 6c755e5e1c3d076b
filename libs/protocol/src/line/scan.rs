//! Values, times and line ends, from bytes.
//!
//! Owns: the lexical grammar, on byte offsets into the body. Pure; nothing is copied.

use memchr::{memchr, memchr2};

use super::fault::{Fault, Kind};

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    F64(f64),
    I64(i64),
    U64(u64),
    Bool(bool),
    /// The bytes between the quotes, and whether a backslash is among them.
    Text(&'a [u8], bool),
}

/// Powers of ten that a double holds exactly.
const EXACT_POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
/// Integers up to here are doubles exactly.
const EXACT_MANTISSA_MAX: u64 = 1 << 53;
/// Digits that surely fit a u64 without overflow.
const SAFE_DIGITS: usize = 19;

/// Whether a value may end before this byte.
#[inline]
const fn ends(next: Option<&u8>) -> bool {
    matches!(next, None | Some(b',' | b' ' | b'\n' | b'\r'))
}

/// The value at `at` and where it ends.
#[inline]
pub(super) fn value(body: &[u8], at: usize) -> Result<(Value<'_>, usize), Fault> {
    let rest = body.get(at..).unwrap_or_default();
    match rest.first() {
        Some(b'0'..=b'9' | b'-' | b'.') => match number(rest) {
            Ok((value, len)) => Ok((value, at + len)),
            Err(kind) => Err(not_a_value(rest, at, kind)),
        },
        Some(b'"') => string(body, at),
        _ => match boolean(rest) {
            Some((value, len)) => Ok((Value::Bool(value), at + len)),
            None => Err(not_a_value(rest, at, Kind::NotAValue)),
        },
    }
}

#[cold]
fn not_a_value(rest: &[u8], at: usize, kind: Kind) -> Fault {
    let end = rest.iter().position(|b| ends(Some(b))).unwrap_or(rest.len());
    let word = rest.get(..end).unwrap_or_default();
    let word = word.strip_prefix(b"-").or_else(|| word.strip_prefix(b"+")).unwrap_or(word);
    let not_finite =
        ["nan", "inf", "infinity"].iter().any(|w| word.eq_ignore_ascii_case(w.as_bytes()));
    Fault::new(at, if not_finite { Kind::NotFinite } else { kind })
}

#[inline]
fn digits(rest: &[u8], mut i: usize, mut value: u64) -> (usize, u64) {
    while let Some(b) = rest.get(i) {
        let d = b.wrapping_sub(b'0');
        if d > 9 {
            break;
        }
        // Wraps only past SAFE_DIGITS, where the value is not used.
        value = value.wrapping_mul(10).wrapping_add(u64::from(d));
        i += 1;
    }
    (i, value)
}

/// The value in the first bytes of an integer field: one to six digits, `i`, and a comma or
/// space; and the length before that. Most integers are this short, and all of it is one load.
#[inline]
pub(super) fn short_integer(bytes: [u8; 8]) -> Option<(i64, usize)> {
    let word = u64::from_le_bytes(bytes);
    let low = word.wrapping_sub(0x3030_3030_3030_3030);
    // As in `eight_digits`; a carry may spoil bytes behind the first other byte, never before it.
    let other = (low | word.wrapping_add(0x4646_4646_4646_4646)) & 0x8080_8080_8080_8080;
    let bits = other.trailing_zeros() & !7;
    if !(8..=48).contains(&bits) {
        return None;
    }
    let tail = (word >> bits) as u16;
    if tail != u16::from_le_bytes(*b"i,") && tail != u16::from_le_bytes(*b"i ") {
        return None;
    }
    // Moved to the end, so that zeros fill the places before.
    Some((add_digits(low << (64 - bits)) as i64, bits as usize / 8 + 1))
}

/// An integer field's value in its usual form, and its length with the suffix; `None` sends the
/// caller to [`value`].
#[inline]
pub(super) fn usual_integer(rest: &[u8]) -> Option<(i64, usize)> {
    let negative = rest.first() == Some(&b'-');
    let start = usize::from(negative);
    let (end, magnitude) = digits(rest, start, 0);
    let usual = (1..SAFE_DIGITS).contains(&(end - start))
        && rest.get(end) == Some(&b'i')
        && ends(rest.get(end + 1));
    let value = magnitude as i64;
    usual.then_some((if negative { -value } else { value }, end + 1))
}

/// A float field's value if it is a plain decimal that a double holds with one rounding.
#[inline]
pub(super) fn usual_float(rest: &[u8]) -> Option<(f64, usize)> {
    let negative = rest.first() == Some(&b'-');
    let start = usize::from(negative);
    let (point, whole) = digits(rest, start, 0);
    let (end, mantissa) = match rest.get(point) {
        Some(b'.') => {
            let eight = rest.get(point + 1..).and_then(<[u8]>::first_chunk::<8>);
            match eight.and_then(|eight| eight_digits(*eight)) {
                Some(value) => {
                    let whole = whole.wrapping_mul(100_000_000).wrapping_add(value);
                    digits(rest, point + 9, whole)
                }
                None => digits(rest, point + 1, whole),
            }
        }
        _ => (point, whole),
    };
    let fraction = (end - point).saturating_sub(1);
    let count = point - start + fraction;
    let scale = EXACT_POWERS.get(fraction)?;
    let usual =
        (1..=SAFE_DIGITS).contains(&count) && mantissa <= EXACT_MANTISSA_MAX && ends(rest.get(end));
    let value = mantissa as f64 / scale;
    usual.then_some((if negative { -value } else { value }, end))
}

#[inline]
fn number(rest: &[u8]) -> Result<(Value<'_>, usize), Kind> {
    let negative = rest.first() == Some(&b'-');
    let start = usize::from(negative);
    let (end, magnitude) = digits(rest, start, 0);
    let count = end - start;
    match rest.get(end) {
        Some(b'i') if count > 0 && ends(rest.get(end + 1)) => {
            let value = if count < SAFE_DIGITS {
                let value = magnitude as i64;
                if negative { -value } else { value }
            } else {
                parsed(rest, end).ok_or(Kind::IntegerRange)?
            };
            Ok((Value::I64(value), end + 1))
        }
        Some(b'u') if count > 0 && ends(rest.get(end + 1)) => {
            if negative {
                return Err(Kind::UnsignedSign);
            }
            let value = if count <= SAFE_DIGITS {
                magnitude
            } else {
                parsed(rest, end).ok_or(Kind::UnsignedRange)?
            };
            Ok((Value::U64(value), end + 1))
        }
        Some(b'.' | b'e' | b'E') => float(rest, negative, end, count, magnitude),
        next if count > 0 && ends(next) => {
            if count <= SAFE_DIGITS && magnitude <= EXACT_MANTISSA_MAX {
                let value = magnitude as f64;
                return Ok((Value::F64(if negative { -value } else { value }), end));
            }
            finite(rest, end)
        }
        _ => Err(Kind::NotAValue),
    }
}

/// A decimal with a point or an exponent, or both; its integer digits are read already.
#[inline]
fn float(
    rest: &[u8],
    negative: bool,
    mut i: usize,
    whole: usize,
    mut mantissa: u64,
) -> Result<(Value<'_>, usize), Kind> {
    let mut fraction = 0;
    if rest.get(i) == Some(&b'.') {
        let (end, value) = digits(rest, i + 1, mantissa);
        fraction = end - (i + 1);
        (i, mantissa) = (end, value);
    }
    let count = whole + fraction;
    if count == 0 {
        return Err(Kind::NotAValue);
    }
    let mut exponent = 0i64;
    if let Some(b'e' | b'E') = rest.get(i) {
        i += 1;
        let down = rest.get(i) == Some(&b'-');
        i += usize::from(matches!(rest.get(i), Some(b'-' | b'+')));
        let (end, value) = digits(rest, i, 0);
        // Longer exponents go the slow way, where they become zero or infinite.
        exponent = match end - i {
            0 => return Err(Kind::NotAValue),
            1..=4 => value as i64,
            _ => i64::from(u16::MAX),
        };
        if down {
            exponent = -exponent;
        }
        i = end;
    }
    if !ends(rest.get(i)) {
        return Err(Kind::NotAValue);
    }
    let power = exponent - fraction as i64;
    if count <= SAFE_DIGITS
        && mantissa <= EXACT_MANTISSA_MAX
        && let Some(scale) = EXACT_POWERS.get(power.unsigned_abs() as usize)
    {
        // Both operands are exact, so the one rounding is the right one.
        let value = mantissa as f64;
        let value = if power < 0 { value / scale } else { value * scale };
        return Ok((Value::F64(if negative { -value } else { value }), i));
    }
    finite(rest, i)
}

fn parsed<T: std::str::FromStr>(rest: &[u8], end: usize) -> Option<T> {
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}

fn finite(rest: &[u8], end: usize) -> Result<(Value<'_>, usize), Kind> {
    let value: f64 = parsed(rest, end).ok_or(Kind::NotAValue)?;
    if value.is_finite() { Ok((Value::F64(value), end)) } else { Err(Kind::NotFinite) }
}

fn boolean(rest: &[u8]) -> Option<(bool, usize)> {
    let word = match rest {
        [b't', b'r', b'u', b'e', ..]
        | [b'T', b'r', b'u', b'e', ..]
        | [b'T', b'R', b'U', b'E', ..] => (true, 4),
        [b'f', b'a', b'l', b's', b'e', ..]
        | [b'F', b'a', b'l', b's', b'e', ..]
        | [b'F', b'A', b'L', b'S', b'E', ..] => (false, 5),
        [b't' | b'T', ..] => (true, 1),
        [b'f' | b'F', ..] => (false, 1),
        _ => return None,
    };
    ends(rest.get(word.1)).then_some(word)
}

/// Where the closing quote of a text is whose first byte is at `at`, and whether there are escapes.
fn closing_quote(body: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        at += memchr2(b'"', b'\\', body.get(at..)?)?;
        if body.get(at) == Some(&b'"') {
            return Some((at, escaped));
        }
        escaped = true;
        at += 2;
    }
}

fn string(body: &[u8], at: usize) -> Result<(Value<'_>, usize), Fault> {
    let (close, escaped) = closing_quote(body, at + 1).ok_or(Fault::new(at, Kind::OpenQuote))?;
    let text = body.get(at + 1..close).unwrap_or_default();
    if !ends(body.get(close + 1)) {
        // A quote on a later line with text behind it is hardly the one that was meant.
        let forgotten = memchr(b'\n', text).is_some();
        let (at, kind) =
            if forgotten { (at, Kind::OpenQuote) } else { (close + 1, Kind::AfterValue) };
        return Err(Fault::new(at, kind));
    }
    Ok((Value::Text(text, escaped), close + 1))
}

/// The text between quotes without its escapes, onto the end of `out`.
pub(super) fn unescape_text(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(rest.get(..at).unwrap_or_default());
        match rest.get(at + 1) {
            Some(next @ (b'"' | b'\\')) => {
                out.push(*next);
                rest = rest.get(at + 2..).unwrap_or_default();
            }
            _ => {
                out.push(b'\\');
                rest = rest.get(at + 1..).unwrap_or_default();
            }
        }
    }
    out.extend_from_slice(rest);
}

/// A name or tag value without its escapes; in a table's name `=` has none.
pub(super) fn unescape_name(raw: &str, table: bool) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars().peekable();
    while let Some(c) = chars.next() {
        let escape = |next: &char| matches!(next, ',' | ' ' | '\\') || (*next == '=' && !table);
        match chars.peek().copied().filter(escape) {
            Some(next) if c == '\\' => {
                out.push(next);
                chars.next();
            }
            _ => out.push(c),
        }
    }
    out
}

/// Eight ASCII digits as a number, most significant first in memory; `None` if one is no digit.
#[inline]
fn eight_digits(bytes: [u8; 8]) -> Option<u64> {
    let word = u64::from_le_bytes(bytes);
    let low = word.wrapping_sub(0x3030_3030_3030_3030);
    // A byte below '0' borrows into its high bit, one above '9' carries into it.
    if (low | word.wrapping_add(0x4646_4646_4646_4646)) & 0x8080_8080_8080_8080 != 0 {
        return None;
    }
    Some(add_digits(low))
}

/// Eight digits, one per byte and the most significant in the lowest, as a number: by pairs, then
/// fours, then all.
#[inline]
const fn add_digits(digits: u64) -> u64 {
    let pairs = digits.wrapping_mul(10).wrapping_add(digits >> 8);
    let tens = (pairs & 0x0000_00ff_0000_00ff).wrapping_mul(0x000f_4240_0000_0064);
    let ones = (pairs >> 16 & 0x0000_00ff_0000_00ff).wrapping_mul(0x0000_2710_0000_0001);
    tens.wrapping_add(ones) >> 32
}

/// The time at `at`, in the body's unit, and where it ends.
#[inline]
pub(super) fn time(body: &[u8], at: usize) -> Result<(i64, usize), Fault> {
    let rest = body.get(at..).unwrap_or_default();
    let negative = rest.first() == Some(&b'-');
    let start = usize::from(negative);
    let (mut i, mut magnitude) = (start, 0u64);
    while let Some(value) =
        rest.get(i..).and_then(<[u8]>::first_chunk::<8>).and_then(|c| eight_digits(*c))
    {
        magnitude = magnitude.wrapping_mul(100_000_000).wrapping_add(value);
        i += 8;
    }
    let (end, magnitude) = digits(rest, i, magnitude);
    let count = end - start;
    if count == 0 || !matches!(rest.get(end), None | Some(b' ' | b'\t' | b'\n' | b'\r')) {
        return Err(Fault::new(at, Kind::NotATime));
    }
    let time = if count <= SAFE_DIGITS && magnitude <= i64::MAX as u64 {
        let time = magnitude as i64;
        if negative { -time } else { time }
    } else {
        parsed(rest, end).ok_or(Fault::new(at, Kind::TimeRange))?
    };
    Ok((time, at + end))
}

/// Where a refused row that starts at `start` ends: the index of its line feed or of the body's
/// end. Line feeds inside a believable quoted text do not end it (see the head of `line.rs`).
pub(super) fn row_end(body: &[u8], start: usize) -> usize {
    let line_feed = |at: usize| {
        memchr(b'\n', body.get(at..).unwrap_or_default()).map_or(body.len(), |i| at + i)
    };
    let mut fields = false;
    let (mut equals, mut commas) = (0usize, 0usize);
    let mut at = start;
    while let Some(b) = body.get(at) {
        match b {
            b'\n' => return at,
            b'\\' if body.get(at + 1).is_some_and(|next| *next != b'\n') => at += 1,
            b' ' => fields = true,
            b'=' if fields => equals += 1,
            b',' if fields => commas += 1,
            b'"' if fields && equals > commas => match closing_quote(body, at + 1) {
                Some((close, _)) if ends(body.get(close + 1)) || line_feed(at) > close => {
                    at = close
                }
                _ => return line_feed(at),
            },
            _ => {}
        }
        at += 1;
    }
    body.len()
}

/// Where the name at `at` ends: at an equals sign without a backslash before it.
pub(super) fn name_end(bytes: &[u8], mut at: usize) -> Option<(usize, bool)> {
    let mut escaped = false;
    loop {
        match bytes.get(at)? {
            b'=' => return Some((at, escaped)),
            b',' | b' ' | b'\n' => return None,
            b'\\' if bytes.get(at + 1).is_some_and(|next| *next != b'\n') => {
                escaped = true;
                at += 2;
            }
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn floats_are_what_the_standard_library_reads(text in r"-?([0-9]{1,22}(\.[0-9]{0,22})?|\.[0-9]{1,22})([eE][+-]?[0-9]{1,5})?") {
            let wide: f64 = text.parse().unwrap();
            match value(text.as_bytes(), 0) {
                Ok((Value::F64(read), end)) => {
                    prop_assert_eq!(read.to_bits(), wide.to_bits());
                    prop_assert_eq!(end, text.len());
                }
                Err(fault) => {
                    prop_assert_eq!(fault.kind, Kind::NotFinite);
                    prop_assert!(wide.is_infinite());
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }

        #[test]
        fn every_double_comes_back(value_in in proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO) {
            for text in [format!("{value_in}"), format!("{value_in:e}")] {
                prop_assert_eq!(value(text.as_bytes(), 0).unwrap().0, Value::F64(value_in));
            }
        }

        #[test]
        fn integers_and_times_come_back(i in any::<i64>(), u in any::<u64>()) {
            let (signed, unsigned) = (format!("{i}i"), format!("{u}u"));
            prop_assert_eq!(value(signed.as_bytes(), 0).unwrap().0, Value::I64(i));
            prop_assert_eq!(value(unsigned.as_bytes(), 0).unwrap().0, Value::U64(u));
            prop_assert_eq!(time(format!("{i} ").as_bytes(), 0).unwrap().0, i);
        }

        #[test]
        fn short_integers_are_read_as_long_ones_are(text in "-?[0-9]{0,8}[i,u ]{0,3}") {
            let bytes: Vec<u8> = text.bytes().chain(*b"xxxxxxxx").collect();
            if let Some((value, len)) = short_integer(*bytes.first_chunk().unwrap()) {
                prop_assert_eq!(Some((value, len)), usual_integer(&bytes));
            } else {
                let other = |b: &u8| !b.is_ascii_digit();
                let at = bytes.iter().position(other).unwrap();
                prop_assert!(!(1..=6).contains(&at) || !matches!(bytes[at..at + 2], [b'i', b',' | b' ']));
            }
        }

        #[test]
        fn eight_digits_are_read_at_once_or_not_at_all(bytes in proptest::array::uniform8(prop_oneof![4 => b'0'..=b'9', 1 => any::<u8>()])) {
            let text = std::str::from_utf8(&bytes).ok().filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
            prop_assert_eq!(eight_digits(bytes), text.and_then(|t| t.parse().ok()));
        }
    }
}
