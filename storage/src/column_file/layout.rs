//! Which Parquet types the columns of a file have where there is a choice: the unit of `time`,
//! the scale of floats that are decimals.
//!
//! Owns: what a merge may expect of its output from its inputs. Never: promises anything about
//! values: whoever writes looks at all of them.

use std::collections::BTreeMap;

/// Nanoseconds of the coarsest unit of `time`.
pub(super) const COARSEST_NS: i64 = 1_000_000;

/// See the module head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Nanoseconds of a unit of `time`: 1,000,000, 1,000 or 1.
    pub unit_ns: i64,
    /// By stable id: the scale of a decimal, `None` for doubles. Other columns have no choice.
    pub scales: BTreeMap<u32, Option<u8>>,
}

impl Default for Layout {
    /// That of a file without rows.
    fn default() -> Self {
        Self { unit_ns: COARSEST_NS, scales: BTreeMap::new() }
    }
}

impl Layout {
    /// A layout that takes the values of both, unless a decimal of one has too many digits at the
    /// scale of the other.
    pub(crate) fn join(mut self, other: &Self) -> Self {
        self.unit_ns = self.unit_ns.min(other.unit_ns);
        for (id, theirs) in &other.scales {
            let ours = self.scales.entry(*id).or_insert(*theirs);
            *ours = ours.zip(*theirs).map(|(a, b)| a.max(b));
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_input_needs_the_output_has() {
        let of = |unit_ns, scales: &[(u32, Option<u8>)]| Layout {
            unit_ns,
            scales: scales.iter().copied().collect(),
        };
        let a = of(1_000_000, &[(3, Some(1)), (4, Some(2)), (5, None)]);
        let b = of(1_000, &[(3, Some(3)), (4, None), (6, Some(0))]);
        let both = of(1_000, &[(3, Some(3)), (4, None), (5, None), (6, Some(0))]);
        assert_eq!(a.clone().join(&b), both);
        assert_eq!(b.join(&a), both);
        assert_eq!(Layout::default().join(&a), a);
    }
}
