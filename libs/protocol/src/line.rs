//! InfluxDB line protocol, as InfluxDB accepts it, to column batches.
//!
//! Owns: the grammar, the list of differences below, the sentence of every refusal, and the way
//! back from a batch to lines. Never: sinks a body for one row; keeps a part of a refused row;
//! allocates per row or looks at single tags of a series it has seen in this body.
//! Invariants: every row is either in a batch or counted in `refused`; a refused row leaves no
//! value, series, column or table behind.
//!
//! ```text
//! table[,tag=value...] field=value[,field=value...] [time]
//! ```
//! Tables, names and tag values end at a space, comma or equals sign that has no backslash before
//! it. A backslash before `,` `=` space or `\` stands for that character (in a table's name `=`
//! needs none), before anything else it is itself. Values: `1.5`, `-3e10`, `1i`, `1u`, `t` `T`
//! `true` `True` `TRUE` `f` ..., or text in double quotes, where `\"` and `\\` are escapes and
//! line feeds are allowed. Lines that are empty or start with `#` are skipped. A line may end in
//! CRLF, start with spaces or tabs and end with them.
//!
//! Deliberate differences from InfluxDB 3's parser, each tested in `line/oracle.rs`:
//! * refused here: a name against the rules of [`crate::name`], a repeated tag or field, a name
//!   that is tag and field of one row, infinite values (`1e999`), an unescaped comma in a tag or
//!   field name (InfluxDB 2 refuses it too), a backslash as the last character of a line;
//! * accepted here, as in InfluxDB 1 and 2: CRLF, spaces after the last value, tabs in tag
//!   values and after the time, `1.` and `.5`; and `\\` at the end of a name or tag value, so that
//!   every text can be exported;
//! * a comment ends with its line, whatever quotes it holds;
//! * a quoted text that spans lines is believed only if a comma, a space or the line's end
//!   follows its closing quote. Otherwise the refused row ends with its first line, so that one
//!   forgotten quote does not swallow the rows after it.

mod fault;
mod parser;
mod rows;
mod scan;
mod table;
mod write;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;

use std::str::FromStr;

pub use rows::{RowTexts, table_of};
pub(crate) use write::escape;
pub use write::write_lines;

use crate::batch::{Refusal, RowLimits, TableBatch};

/// The unit of a body's times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Guessed for each time from its size, as InfluxDB 3 does: below 5e9 seconds, below 5e12
    /// milliseconds, below 5e15 microseconds, else nanoseconds.
    Auto,
    /// ns.
    Nanosecond,
    /// µs.
    Microsecond,
    /// ms.
    Millisecond,
    /// s.
    Second,
    /// 60 s.
    Minute,
    /// 3600 s.
    Hour,
}

impl Precision {
    /// Its shortest spelling.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nanosecond => "ns",
            Self::Microsecond => "us",
            Self::Millisecond => "ms",
            Self::Second => "s",
            Self::Minute => "m",
            Self::Hour => "h",
        }
    }

    /// Nanoseconds of `time` in this unit; `None` if they do not fit.
    pub const fn to_ns(self, time: i64) -> Option<i64> {
        let factor = match self {
            Self::Auto => match time.unsigned_abs() / 1_000_000_000 {
                0..5 => 1_000_000_000,
                5..5_000 => 1_000_000,
                5_000..5_000_000 => 1_000,
                _ => 1,
            },
            Self::Nanosecond => return Some(time),
            Self::Microsecond => 1_000,
            Self::Millisecond => 1_000_000,
            Self::Second => 1_000_000_000,
            Self::Minute => 60 * 1_000_000_000,
            Self::Hour => 3600 * 1_000_000_000,
        };
        time.checked_mul(factor)
    }
}

/// A precision that clients do not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("precision `{0}` is unknown: use ns, us, ms, s, m, h or auto")]
pub struct UnknownPrecision(String);

impl FromStr for Precision {
    type Err = UnknownPrecision;

    fn from_str(text: &str) -> Result<Self, UnknownPrecision> {
        Ok(match text {
            "auto" => Self::Auto,
            "ns" | "n" | "nanosecond" | "nanoseconds" => Self::Nanosecond,
            "us" | "u" | "µ" | "µs" | "microsecond" | "microseconds" => Self::Microsecond,
            "ms" | "millisecond" | "milliseconds" => Self::Millisecond,
            "s" | "second" | "seconds" => Self::Second,
            "m" | "minute" | "minutes" => Self::Minute,
            "h" | "hour" | "hours" => Self::Hour,
            other => return Err(UnknownPrecision(other.chars().take(32).collect())),
        })
    }
}

/// How to read a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineOptions {
    /// The unit of its times.
    pub precision: Precision,
    /// The time of rows that have none, ns since the Unix epoch.
    pub default_time_ns: i64,
    /// How far the rows of a body that have no time stand apart, ns: 0 for one request, which is
    /// one moment; 1 where every line is an event of its own that must not replace another.
    pub default_time_step_ns: i64,
    /// Limits of each row. `limits.fields` also bounds the different fields of one table in a body.
    pub limits: RowLimits,
    /// Refusals listed; all are counted.
    pub refusals_max: usize,
}

impl Default for LineOptions {
    fn default() -> Self {
        Self {
            precision: Precision::Nanosecond,
            default_time_ns: 0,
            default_time_step_ns: 0,
            limits: RowLimits::default(),
            refusals_max: 100,
        }
    }
}

/// What a body held.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Parsed {
    /// Good rows by table, tables in order of first appearance, none of them empty.
    pub tables: Vec<TableBatch>,
    /// The first refusals, at most `refusals_max`, in line order.
    pub refusals: Vec<Refusal>,
    /// All refused rows.
    pub refused: u64,
    /// All rows: lines that are neither empty nor comments; a row with a text of many lines is one.
    pub lines: u64,
}

/// Reads a body.
pub fn parse(body: &[u8], options: &LineOptions) -> Parsed {
    parse_seeded(body, options, 0)
}

/// Reads a body with a secret seed for its hash tables, so that a sender cannot choose series that
/// collide. Bodies from outside are read with one drawn from entropy at start.
pub fn parse_seeded(body: &[u8], options: &LineOptions, seed: u64) -> Parsed {
    parser::Parser::new(body, options, seed).run()
}
