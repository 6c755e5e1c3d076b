//! What merges have done: the last ones of each tenant, and what each table's rows have cost.
//!
//! Owns: a bounded ring per tenant and counters per table, both since the start of the process.
//! Never: grows with the number of merges; decides anything.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};

/// Merges remembered per tenant. Nothing is kept for a tenant that had none.
pub const HISTORY_MAX: usize = 32;

/// Why a merge was made; in this order when several are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Reason {
    /// So many files overlap that queries suffer and the table's writes are about to wait.
    Overlap,
    /// Small files of a window that is not sealed yet.
    Small,
    /// Late files, among themselves.
    Late,
    /// Late files, into the base that they overlap.
    LateIntoBase,
    /// A window has been sealed.
    Seal,
    /// A file has deleted rows.
    Erase,
}

impl Reason {
    /// As tables show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overlap => "overlap",
            Self::Small => "small",
            Self::Late => "late",
            Self::LateIntoBase => "late into base",
            Self::Seal => "seal",
            Self::Erase => "erase",
        }
    }

    /// Whether late rows are what made it necessary, so that they bear its cost.
    pub fn is_late(self) -> bool {
        matches!(self, Self::Late | Self::LateIntoBase)
    }
}

/// One merge that was committed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompactionRecord {
    /// When it started, ns since 1970.
    pub start_ns: i64,
    /// When it was committed, ns since 1970.
    pub end_ns: i64,
    /// The table's database.
    pub database: String,
    /// The table.
    pub table: String,
    /// Files that left.
    pub inputs: usize,
    /// Files that entered.
    pub outputs: usize,
    /// Rows of the inputs.
    pub rows_in: u64,
    /// Rows of the outputs.
    pub rows_out: u64,
    /// Sealed bytes of the inputs.
    pub bytes_in: u64,
    /// Sealed bytes of the outputs.
    pub bytes_out: u64,
    /// Level of the outputs (compaction/level.rs).
    pub level: u8,
    /// Why.
    pub reason: Reason,
}

/// The last merges of one tenant, oldest first.
#[derive(Debug, Default)]
pub(crate) struct History(Mutex<VecDeque<CompactionRecord>>);

impl History {
    pub(crate) fn push(&self, record: CompactionRecord) {
        let mut ring = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() >= HISTORY_MAX {
            ring.pop_front();
        }
        ring.push_back(record);
    }

    pub(crate) fn all(&self) -> Vec<CompactionRecord> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Rows and sealed bytes of column files written, by what made them necessary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Rows, in order of time.
    pub in_order_rows: u64,
    /// Bytes of the same.
    pub in_order_bytes: u64,
    /// Rows older than what the table already had in files.
    pub late_rows: u64,
    /// Bytes of the same.
    pub late_bytes: u64,
}

/// What one table's rows have cost since the start of the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableWrites {
    /// By flushes: each row once.
    pub flushed: Written,
    /// By merges.
    pub merged: Written,
}

impl TableWrites {
    /// Times that a row in order was written to a column file; `None` without such rows.
    pub fn writes_per_row(&self) -> Option<f64> {
        ratio(self.flushed.in_order_rows, self.merged.in_order_rows)
    }

    /// Bytes written per byte of late rows; `None` without such rows.
    pub fn writes_per_late_byte(&self) -> Option<f64> {
        ratio(self.flushed.late_bytes, self.merged.late_bytes)
    }
}

fn ratio(once: u64, again: u64) -> Option<f64> {
    (once > 0).then(|| (once as f64 + again as f64) / once as f64)
}

/// One table as its maintenance sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct TableStats {
    /// The database.
    pub database: String,
    /// The table.
    pub table: String,
    /// Files.
    pub files: usize,
    /// Their rows.
    pub rows: u64,
    /// Their sealed bytes.
    pub bytes: u64,
    /// Files that one point of time can lie in, at most: what a query of it has to merge.
    pub overlap: usize,
    /// Whether its writes wait for merges.
    pub slowed: bool,
    /// What its rows have cost.
    pub writes: TableWrites,
}

#[derive(Debug, Default)]
struct Counter {
    in_order_rows: AtomicU64,
    in_order_bytes: AtomicU64,
    late_rows: AtomicU64,
    late_bytes: AtomicU64,
}

impl Counter {
    fn add(&self, late: bool, rows: u64, bytes: u64) {
        let (r, b) = if late {
            (&self.late_rows, &self.late_bytes)
        } else {
            (&self.in_order_rows, &self.in_order_bytes)
        };
        r.fetch_add(rows, Ordering::Relaxed);
        b.fetch_add(bytes, Ordering::Relaxed);
    }

    fn get(&self) -> Written {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Written {
            in_order_rows: load(&self.in_order_rows),
            in_order_bytes: load(&self.in_order_bytes),
            late_rows: load(&self.late_rows),
            late_bytes: load(&self.late_bytes),
        }
    }
}

/// The counters of one table.
#[derive(Debug, Default)]
pub(crate) struct WriteCounters {
    flushed: Counter,
    merged: Counter,
}

impl WriteCounters {
    pub(crate) fn flushed(&self, late: bool, rows: u64, bytes: u64) {
        self.flushed.add(late, rows, bytes);
    }

    pub(crate) fn merged(&self, late: bool, rows: u64, bytes: u64) {
        self.merged.add(late, rows, bytes);
    }

    /// Takes back what was counted before its tenant was idle.
    pub(crate) fn restore(&self, writes: &TableWrites) {
        for (counter, was) in [(&self.flushed, &writes.flushed), (&self.merged, &writes.merged)] {
            counter.add(false, was.in_order_rows, was.in_order_bytes);
            counter.add(true, was.late_rows, was.late_bytes);
        }
    }

    pub(crate) fn get(&self) -> TableWrites {
        TableWrites { flushed: self.flushed.get(), merged: self.merged.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_merges_are_kept() {
        let history = History::default();
        for start_ns in 0..100 {
            history.push(CompactionRecord {
                start_ns,
                end_ns: start_ns,
                database: "d".into(),
                table: "t".into(),
                inputs: 2,
                outputs: 1,
                rows_in: 2,
                rows_out: 2,
                bytes_in: 2,
                bytes_out: 2,
                level: 1,
                reason: Reason::Small,
            });
        }
        let all = history.all();
        assert_eq!(all.len(), HISTORY_MAX);
        assert_eq!((all[0].start_ns, all[HISTORY_MAX - 1].start_ns), (68, 99));
    }

    #[test]
    fn amplification_counts_the_first_write_too() {
        let counters = WriteCounters::default();
        assert_eq!(counters.get().writes_per_row(), None);
        counters.flushed(false, 10, 100);
        counters.flushed(true, 5, 50);
        counters.merged(false, 20, 150);
        counters.merged(true, 20, 200);
        assert_eq!(counters.get().writes_per_row(), Some(3.0));
        assert_eq!(counters.get().writes_per_late_byte(), Some(5.0));
    }
}
