//! What a file's level says: where in its life a row is.
//!
//! Owns: the numbers and their names. Levels steer effort only; which value of a row counts is
//! decided by log positions alone.

/// Written by a flush.
pub const L0: u8 = 0;
/// Flushes of one hot window, merged once.
pub const HOT: u8 = 1;
/// Base of a sealed window: a day, or a hot window that had to be merged as a whole.
pub const DAY: u8 = 2;
/// Base of 8 days.
pub const DAYS_8: u8 = 3;
/// Base of 32 days.
pub const DAYS_32: u8 = 4;
/// A late run merged `k` times has level `LATE + k`.
pub const LATE: u8 = 8;
/// Late runs are told apart up to this many merges.
pub const LATE_MERGES_MAX: u8 = 5;

/// The level of a late run made of files of which the most merged one has `level`.
pub(crate) fn late_above(level: u8) -> u8 {
    LATE + late_merges(level).saturating_add(1).min(LATE_MERGES_MAX)
}

/// How often the rows of a file on top of a base have been merged among themselves.
pub(crate) fn late_merges(level: u8) -> u8 {
    level.saturating_sub(LATE)
}

/// Whether a file is a sealed window's base.
pub(crate) fn is_base(level: u8) -> bool {
    (DAY..LATE).contains(&level)
}

/// The level's name, as tables and logs show it.
pub fn name(level: u8) -> &'static str {
    match level {
        L0 => "flush",
        HOT => "hot",
        DAY => "day",
        DAYS_8 => "8 days",
        DAYS_32 => "32 days",
        LATE.. => "late",
        _ => "base",
    }
}
