//! Refused rows as rows: what a tenant finds in the table `_rejected` of the same database.
//!
//! Owns: who sent a write, which of its refused rows are recorded, what a recorded row looks like,
//! and the caps. The rows go into the same log record as the rows that were taken, so that an
//! answer "n rows refused" is given only when both are durable, and a frame that is sent again
//! (whose known rows are dropped by their line) records nothing twice.
//! Never: makes a write fail: what does not fit a cap is counted as dropped. Never records a
//! refusal of `_rejected` itself.
//! Invariant: no two rows of one `_rejected` table have the same time, so that none replaces
//! another and the time alone names a row.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use millrace_protocol::{
    batch::{FieldColumn, RefusalCode, SeriesKey, TableBatch},
    name::REJECTED_TABLE,
    value::{FieldType, FieldValues},
};

use super::table::TableHandle;

/// Rows that one write may record; a decoder need not list more.
pub const REJECTED_ROWS_PER_WRITE: usize = 10_000;

/// One day, ns.
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;

/// How much of what is refused is kept.
#[derive(Debug, Clone, Copy)]
pub struct RejectedLimits {
    /// Rows of one tenant and UTC day.
    pub rows_per_day: u64,
    /// Bytes of raw text of one tenant and UTC day.
    pub bytes_per_day: u64,
    /// Rows of one write.
    pub rows_per_write: usize,
    /// Bytes of raw text of one write: far below what a log record may hold.
    pub bytes_per_write: usize,
    /// Bytes of raw text of one row; what is longer is cut, and `raw_bytes` says so.
    pub raw_bytes: usize,
    /// Series of one `_rejected` table beyond which a table name that does not exist is left out.
    pub series: usize,
}

impl Default for RejectedLimits {
    fn default() -> Self {
        Self {
            rows_per_day: 1_000_000,
            bytes_per_day: 256 << 20,
            rows_per_write: REJECTED_ROWS_PER_WRITE,
            bytes_per_write: 4 << 20,
            raw_bytes: 64 << 10,
            series: 10_000,
        }
    }
}

/// The text of refused rows. Storage sees columns, and asks here for what the sender wrote.
pub trait RawRows: Send + Sync + std::fmt::Debug {
    /// The row of this line (from 1), as line protocol.
    fn raw(&self, line: u32) -> Cow<'_, [u8]>;

    /// Column (from 1) of what was refused in the row, 0 if it cannot be said.
    fn column(&self, _raw: &[u8], _code: RefusalCode, _reason: &str) -> u32 {
        0
    }
}

/// A row that was refused before storage saw it.
#[derive(Debug, Clone)]
pub struct Rejected {
    /// The table it was meant for, as far as that can be read.
    pub table: Option<String>,
    /// Line or row number, from 1.
    pub line: u32,
    /// Column, from 1; 0 where there is none.
    pub column: u32,
    /// Stable code.
    pub code: RefusalCode,
    /// One sentence.
    pub reason: String,
}

/// What refused rows are recorded with.
#[derive(Debug, Clone)]
pub struct Rejects {
    /// Rows refused before storage saw them, in line order.
    pub listed: Vec<Rejected>,
    /// All of them, counted.
    pub count: u64,
    /// The text of any row of the write.
    pub raw: Arc<dyn RawRows>,
    /// The unit of the times in that text, as the write endpoints spell it.
    pub precision: &'static str,
}

/// Who sent a write, and what of it was refused already. The default is nobody, and records
/// nothing.
#[derive(Debug, Clone, Default)]
pub struct Sender {
    /// A token's id, or `device/stream`.
    pub source: String,
    /// With it, refused rows are recorded; without, they are only counted.
    pub rejects: Option<Rejects>,
}

/// What a tenant has recorded today, and the last time given in each database.
#[derive(Debug, Default)]
pub(crate) struct Allowance {
    day: i64,
    rows: u64,
    bytes: u64,
    last_ns: BTreeMap<String, i64>,
}

impl Allowance {
    /// Whether something of today's is used up, which a tenant that was idle must not get again.
    pub(crate) fn in_use(&self, now_ns: i64) -> bool {
        self.rows > 0 && self.day == now_ns.div_euclid(DAY_NS)
    }

    fn turn_day(&mut self, now_ns: i64) {
        let day = now_ns.div_euclid(DAY_NS);
        if day != self.day {
            (self.day, self.rows, self.bytes) = (day, 0, 0);
        }
    }

    /// The first of `rows` times that no row of the database's table has.
    fn times(&mut self, database: &str, table: &TableHandle, now_ns: i64, rows: usize) -> i64 {
        let newest = || table.newest_ns().unwrap_or(i64::MIN);
        let last = self.last_ns.get(database).copied().unwrap_or_else(newest);
        let first = now_ns.max(last.saturating_add(1));
        self.last_ns.insert(database.to_owned(), first.saturating_add(rows as i64 - 1));
        first
    }
}

#[derive(Debug)]
struct Row {
    table: Option<String>,
    line: u32,
    column: u32,
    code: RefusalCode,
    reason: String,
    raw: String,
    raw_bytes: i64,
}

/// Gathers the refused rows of one write.
#[derive(Debug)]
pub(crate) struct Collector {
    raw: Arc<dyn RawRows>,
    precision: &'static str,
    rows: Vec<Row>,
    bytes: usize,
    rows_max: usize,
    bytes_max: usize,
    raw_max: usize,
    /// Refused rows that are over a cap.
    pub(crate) dropped: u64,
}

impl Collector {
    /// Takes what was refused already. Rows with a line below `first_line` were recorded by the
    /// frame that brought them first.
    pub(crate) fn new(
        rejects: Rejects,
        first_line: u32,
        allowance: &mut Allowance,
        limits: &RejectedLimits,
        now_ns: i64,
    ) -> Self {
        allowance.turn_day(now_ns);
        let rows_left = limits.rows_per_day.saturating_sub(allowance.rows);
        let bytes_left = limits.bytes_per_day.saturating_sub(allowance.bytes);
        let at_most = |left: u64, most: usize| usize::try_from(left).unwrap_or(most).min(most);
        let mut out = Self {
            raw: rejects.raw,
            precision: rejects.precision,
            rows: Vec::new(),
            bytes: 0,
            rows_max: at_most(rows_left, limits.rows_per_write),
            bytes_max: at_most(bytes_left, limits.bytes_per_write),
            raw_max: limits.raw_bytes,
            dropped: rejects.count.saturating_sub(rejects.listed.len() as u64),
        };
        for row in rejects.listed {
            if row.line >= first_line {
                out.add(row);
            }
        }
        out
    }

    /// Records one refused row, if there is room.
    pub(crate) fn add(&mut self, row: Rejected) {
        let raw = Arc::clone(&self.raw);
        if self.rows.len() >= self.rows_max || self.bytes >= self.bytes_max {
            self.dropped += 1;
            return;
        }
        let text = raw.raw(row.line);
        let column = match row.column {
            0 => raw.column(&text, row.code, &row.reason),
            column => column,
        };
        let cut = cut(&text, self.raw_max.min(self.bytes_max - self.bytes));
        self.bytes += cut.len();
        self.rows.push(Row {
            table: row.table,
            line: row.line,
            column,
            code: row.code,
            reason: row.reason,
            raw: cut,
            raw_bytes: i64::try_from(text.len()).unwrap_or(i64::MAX),
        });
    }

    /// Rows gathered.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows as a batch of `_rejected`. `known` tells whether a table exists: others are named
    /// only while the table of refusals has few series, because a sender of garbage would make a
    /// series of every line.
    pub(crate) fn batch(
        mut self,
        into: &Destination<'_>,
        known: impl Fn(&str) -> bool,
        limits: &RejectedLimits,
        allowance: &mut Allowance,
        now_ns: i64,
    ) -> TableBatch {
        allowance.rows += self.rows.len() as u64;
        allowance.bytes += self.bytes as u64;
        let few = into.table.dictionary.len() < limits.series;
        for row in &mut self.rows {
            row.table = row.table.take().filter(|t| !t.is_empty() && (few || known(t)));
        }
        let first = allowance.times(into.database, into.table, now_ns, self.rows.len());
        batch(&self.rows, into.source, self.precision, first)
    }
}

/// Where recorded rows go, and who sent them.
pub(crate) struct Destination<'a> {
    pub(crate) source: &'a str,
    pub(crate) database: &'a str,
    pub(crate) table: &'a TableHandle,
}

/// The row's name: its time as 16 hexadecimal digits.
fn id_of(time: i64) -> String {
    format!("{time:016x}")
}

fn batch(rows: &[Row], source: &str, precision: &str, first: i64) -> TableBatch {
    let mut out = TableBatch { table: REJECTED_TABLE.to_owned(), ..TableBatch::default() };
    let mut known: BTreeMap<(RefusalCode, Option<&str>), u32> = BTreeMap::new();
    for (row, time) in rows.iter().zip(first..) {
        let series = *known.entry((row.code, row.table.as_deref())).or_insert_with(|| {
            let pairs = [("code", Some(row.code.as_str())), ("source", Some(source))];
            let pairs = pairs.into_iter().chain([("table_name", row.table.as_deref())]);
            let pairs = pairs.filter_map(|(n, v)| Some((n, v.filter(|v| !v.is_empty())?)));
            out.series_keys.push(SeriesKey::from_sorted(pairs));
            out.series_keys.len() as u32 - 1
        });
        out.series.push(series);
        out.time.push(time);
        out.line.push(row.line);
    }
    let ids: Vec<String> = out.time.iter().map(|t| id_of(*t)).collect();
    out.fields = vec![
        texts("id", ids.iter().map(String::as_str)),
        integers("line_number", rows.iter().map(|r| i64::from(r.line))),
        integers("column_number", rows.iter().map(|r| i64::from(r.column))),
        texts("reason", rows.iter().map(|r| r.reason.as_str())),
        texts("raw", rows.iter().map(|r| r.raw.as_str())),
        integers("raw_bytes", rows.iter().map(|r| r.raw_bytes)),
        texts("precision", rows.iter().map(|_| precision)),
        // There from the first row on, so that queries can name it.
        integers("replayed_at", rows.iter().map(|_| 0)),
    ];
    out
}

fn texts<'a>(name: &str, values: impl Iterator<Item = &'a str>) -> FieldColumn {
    let mut out = FieldColumn::new(name, FieldType::Utf8);
    for value in values {
        if let FieldValues::Utf8(texts) = &mut out.values {
            texts.push(value);
        }
        out.present.push(true);
    }
    out
}

fn integers(name: &str, values: impl Iterator<Item = i64>) -> FieldColumn {
    let mut out = FieldColumn::new(name, FieldType::I64);
    for value in values {
        if let FieldValues::I64(integers) = &mut out.values {
            integers.push(value);
        }
        out.present.push(true);
    }
    out
}

/// As much of the text as fits `max` bytes; what is no UTF-8 becomes U+FFFD.
fn cut(text: &[u8], max: usize) -> String {
    let mut out = String::from_utf8_lossy(text.get(..max).unwrap_or(text)).into_owned();
    while out.len() > max {
        out.pop();
    }
    out
}

#[cfg(test)]
mod tests;
