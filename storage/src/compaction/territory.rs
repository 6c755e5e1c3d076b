//! Which window a file belongs to: hot windows, days, and the longer windows that have a base.
//!
//! Owns: the lengths, the border between hot and sealed times, the slots into which a flush cuts
//! old rows. Pure: a table's files and limits in, windows out.
//! The border follows the table's newest row and not the clock alone, so that history which is
//! loaded in order is taken like live data.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::level;
use crate::{limits::EngineLimits, manifest::FileEntry};

/// Hot windows of a day, as the limits' defaults have them.
const DAY_WINDOWS: i64 = 12;
/// Days in the longer windows.
const DAYS: [i64; 2] = [32, 8];

/// A window: its length and its start, ns. A file that fits into none has length `i64::MAX`.
pub(crate) type Home = (i64, i64);

/// See the module head.
#[derive(Debug)]
pub(crate) struct Territory {
    window_ns: i64,
    /// Times from here on are hot.
    border: i64,
    /// Longer windows that have a base and are not too large to be merged as a whole.
    wide: BTreeSet<Home>,
    /// Days with so many bytes that they are not merged as a whole.
    large_days: BTreeSet<i64>,
}

/// The start of the window of length `ns` that `t` lies in.
pub(crate) fn floor(t: i64, ns: i64) -> i64 {
    t.div_euclid(ns.max(1)).saturating_mul(ns.max(1))
}

/// Whether the times lie in one window of length `ns`.
fn fits(t_min: i64, t_max: i64, ns: i64) -> bool {
    t_min.div_euclid(ns.max(1)) == t_max.div_euclid(ns.max(1))
}

/// Bytes of a window that can still be merged as a whole, with room for late files.
fn whole_max(limits: &EngineLimits) -> u64 {
    limits.merge_bytes_max / 4 * 3
}

impl Territory {
    /// Of a table with `files`, where rows up to `newest` are known.
    pub(crate) fn new(files: &[Arc<FileEntry>], limits: &EngineLimits, newest: i64) -> Self {
        let window_ns = limits.window_ns.max(1);
        let day = window_ns.saturating_mul(DAY_WINDOWS);
        // One more window: stragglers of the last one still come.
        let border = floor(newest.saturating_sub(window_ns), window_ns);
        let mut bytes: BTreeMap<Home, u64> = BTreeMap::new();
        let mut based = BTreeSet::new();
        for file in files {
            let middle = file.t_min.midpoint(file.t_max);
            for length in [day, day.saturating_mul(8), day.saturating_mul(32)] {
                *bytes.entry((length, floor(middle, length))).or_default() += file.bytes;
            }
            let days = match file.level {
                level::DAYS_8 => 8,
                level::DAYS_32 => 32,
                _ => continue,
            };
            let length = day.saturating_mul(days);
            if fits(file.t_min, file.t_max, length) {
                based.insert((length, floor(file.t_min, length)));
            }
        }
        let large = |home: &Home| bytes.get(home).is_some_and(|b| *b > whole_max(limits));
        let large_days = bytes.keys().filter(|h| h.0 == day && large(h)).map(|h| h.1).collect();
        based.retain(|home| !large(home));
        Self { window_ns, border, wide: based, large_days }
    }

    /// A day, ns.
    pub(crate) fn day(&self) -> i64 {
        self.window_ns.saturating_mul(DAY_WINDOWS)
    }

    /// The longer windows, ns, longest first.
    pub(crate) fn lengths(&self) -> [i64; 2] {
        DAYS.map(|days| self.day().saturating_mul(days))
    }

    /// Whether no more rows in order are to come for a window.
    pub(crate) fn sealed(&self, (length, start): Home) -> bool {
        start.saturating_add(length) <= self.border
    }

    /// Whether a window is among the hot ones.
    pub(crate) fn is_hot(&self, (length, start): Home) -> bool {
        length <= self.window_ns && start >= self.border
    }

    /// The window in which a file with these bounds is merged.
    pub(crate) fn home(&self, t_min: i64, t_max: i64) -> Home {
        let at = |ns: i64| (ns, floor(t_min, ns));
        if t_max < self.border {
            let wide = self.lengths().into_iter().filter(|ns| fits(t_min, t_max, *ns)).map(at);
            if let Some(home) = wide.into_iter().find(|home| self.wide.contains(home)) {
                return home;
            }
            let day = self.day();
            if fits(t_min, t_max, day) && !self.large_days.contains(&floor(t_min, day)) {
                return at(day);
            }
        }
        let [days_32, days_8] = self.lengths();
        let all = [self.window_ns, self.day(), days_8, days_32];
        let smallest = all.into_iter().find(|ns| fits(t_min, t_max, *ns));
        smallest.map_or((i64::MAX, 0), at)
    }

    /// The start of the slot in which a flush puts a row: rows of one slot make one file.
    pub(crate) fn slot(&self, t: i64) -> i64 {
        self.home(t, t).1
    }
}
