//! Numbers that can be measured over time.
//!
//! Owns: differences that are exact where the numbers are. Never: overflows.

use std::cmp::Ordering;

use datafusion::arrow::datatypes::{
    ArrowNativeType, ArrowPrimitiveType, Float64Type, Int64Type, UInt64Type,
};

/// A number of one of the types that a field can have.
pub(super) trait Number: ArrowNativeType {
    /// Its column type.
    type Arrow: ArrowPrimitiveType<Native = Self>;

    /// Whether it says nothing: not a number.
    fn says_nothing(self) -> bool {
        false
    }

    /// A total order, to make rows of equal time come in one order.
    fn order(&self, other: &Self) -> Ordering;

    /// `self - before`.
    fn above(self, before: Self) -> f64;

    /// The nearest float.
    fn float(self) -> f64;
}

impl Number for f64 {
    type Arrow = Float64Type;

    fn says_nothing(self) -> bool {
        self.is_nan()
    }

    fn order(&self, other: &Self) -> Ordering {
        self.total_cmp(other)
    }

    fn above(self, before: Self) -> f64 {
        self - before
    }

    fn float(self) -> f64 {
        self
    }
}

impl Number for i64 {
    type Arrow = Int64Type;

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn above(self, before: Self) -> f64 {
        (i128::from(self) - i128::from(before)) as f64
    }

    fn float(self) -> f64 {
        self as f64
    }
}

impl Number for u64 {
    type Arrow = UInt64Type;

    fn order(&self, other: &Self) -> Ordering {
        self.cmp(other)
    }

    fn above(self, before: Self) -> f64 {
        (i128::from(self) - i128::from(before)) as f64
    }

    fn float(self) -> f64 {
        self as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_of_large_whole_numbers_are_exact() {
        assert_eq!((u64::MAX).above(u64::MAX - 1), 1.0);
        assert_eq!(0u64.above(3), -3.0);
        assert_eq!((i64::MAX - 1).above(i64::MAX), -1.0);
        assert_eq!(i64::MAX.above(i64::MIN), 18_446_744_073_709_551_615.0);
    }
}
