//! Floats that are decimals in disguise: `i / 10^s` with a whole `i`, and back to the same bits.
//!
//! Owns: the one formula of both directions. A column is decimal only if **every** value comes
//! back bit for bit; -0.0, NaN, infinities, subnormals and what needs more than 51 bits never do.
//! Never: guesses from a sample.
//! Why it is exact: |i| < 2^51 and 10^s with s <= 22 are doubles without error, and IEEE division
//! rounds correctly, so `i / 10^s` is the double nearest to the decimal, which is what a parser
//! makes of its text.

use arrow::{
    array::{Array, ArrayRef, AsArray, Float64Array},
    datatypes::{DataType, Decimal64Type},
    error::ArrowError,
};

/// Digits of the stored decimals: as many as INT64 holds for every reader.
pub(super) const PRECISION: u8 = 18;
const SCALE_MAX: usize = 18;
/// Scales that can be read: powers of ten that are doubles without error.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];
/// 1.5 * 2^52: added to |x| < 2^51 it leaves x, rounded, in the low bits.
const ROUNDER: f64 = 6_755_399_441_055_744.0;
const WHOLE_MAX: f64 = 2_251_799_813_685_248.0;

/// `value * power`, rounded; meaningless if it is too large.
fn scaled(value: f64, power: f64) -> i64 {
    (value * power + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits()) as i64
}

fn exact(value: f64, power: f64) -> bool {
    // Every operand counts: a NaN would otherwise come back as itself.
    let whole = scaled(value, power);
    ((value * power).abs() < WHOLE_MAX) & ((whole as f64 / power).to_bits() == value.to_bits())
}

/// The scale at which all values are exact, at least `at_least`; `None` if there is none.
pub(super) fn scale_of(values: &[f64], at_least: u8) -> Option<u8> {
    let mut scale = usize::from(at_least);
    loop {
        let power = POWERS[scale];
        // Whole pieces without a branch inside: a column that passes costs 2 ns a value.
        let piece = values
            .chunks(256)
            .find(|piece| !piece.iter().fold(true, |ok, v| ok & exact(*v, power)));
        let Some(piece) = piece else { return u8::try_from(scale).ok() };
        let value = piece.iter().copied().find(|v| !exact(*v, power))?;
        scale = (scale + 1..=SCALE_MAX).find(|s| exact(value, POWERS[*s]))?;
    }
}

/// The whole numbers of values that are exact at `scale`.
pub(super) fn to_whole(values: &[f64], scale: u8, out: &mut Vec<i64>) {
    let power = POWERS[usize::from(scale)];
    out.clear();
    out.extend(values.iter().map(|v| scaled(*v, power)));
}

/// What [`to_whole`] was made of.
pub(super) fn to_floats(whole: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let DataType::Decimal64(_, scale) = whole.data_type() else {
        return Err(ArrowError::SchemaError(format!("{} is no decimal", whole.data_type())));
    };
    let power = usize::try_from(*scale).ok().and_then(|s| POWERS.get(s)).copied();
    let power = power.ok_or_else(|| {
        ArrowError::SchemaError(format!("a decimal of scale {scale} is no float"))
    })?;
    let whole = whole.as_primitive::<Decimal64Type>();
    let floats: Vec<f64> = whole.values().iter().map(|i| *i as f64 / power).collect();
    Ok(std::sync::Arc::new(Float64Array::new(floats.into(), whole.nulls().cloned())))
}
