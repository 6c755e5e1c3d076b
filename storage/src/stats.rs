//! What a tenant may see of its own ingest: counters by table and source, and its streams.
//!
//! Owns: the counters, since the start of the server, and their bound: a tenant has at most
//! [`ENTRIES_MAX`] of them and a server [`ENTRIES_ALL_MAX`]; what comes after goes to one entry
//! with empty names and the source [`OTHERS`]. Never: shows another tenant's; does I/O; is asked
//! for a decision.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use millrace_platform::metric::Metric;
use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};

use serde::{Deserialize, Serialize};

use crate::Engine;

/// A row is late if its time is more than this behind the newest time that its table had before
/// the write. Longer than the furthest future that is taken, so that a clock that runs ahead does
/// not make everybody else's rows late. 30 min, ns.
pub const LATE_NS: i64 = 30 * 60 * 1_000_000_000;

/// Entries of one tenant.
pub const ENTRIES_MAX: usize = 4096;
/// Entries of all tenants, about 256 bytes each.
pub const ENTRIES_ALL_MAX: usize = 200_000;
/// The source of what has no entry of its own.
pub const OTHERS: &str = "(others)";

/// Counters of one database, table and source since the start of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestCounts {
    /// Rows taken.
    pub rows: u64,
    /// Rows refused.
    pub rejected: u64,
    /// Refused rows that are over the caps of `_rejected` and not recorded there.
    pub dropped: u64,
    /// Rows taken whose time is more than [`LATE_NS`] behind the table's newest.
    pub late: u64,
    /// Rows of frames acknowledged as already known.
    pub duplicates: u64,
    /// Memory of the rows taken, bytes, as columns.
    pub bytes: u64,
    /// When the last write was judged, ns since the Unix epoch.
    pub last_write_ns: i64,
}

impl IngestCounts {
    fn add(&mut self, more: &Self) {
        self.rows += more.rows;
        self.rejected += more.rejected;
        self.dropped += more.dropped;
        self.late += more.late;
        self.duplicates += more.duplicates;
        self.bytes += more.bytes;
        self.last_write_ns = self.last_write_ns.max(more.last_write_ns);
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestEntry {
    /// Database.
    pub database: String,
    /// Table; empty where it could not be read.
    pub table: String,
    /// Who sent it: a token's id, or `device/stream`.
    pub source: String,
    /// How much.
    pub counts: IngestCounts,
}

/// What one write adds: by table.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    pub(crate) database: String,
    pub(crate) source: String,
    pub(crate) tables: BTreeMap<String, IngestCounts>,
}

impl Noted {
    /// A frame whose `rows` rows were known already.
    pub(crate) fn duplicate(
        database: &str,
        table: &str,
        source: String,
        rows: u64,
        now_ns: i64,
    ) -> Self {
        let counts =
            IngestCounts { duplicates: rows, last_write_ns: now_ns, ..IngestCounts::default() };
        let tables = BTreeMap::from([(table.to_owned(), counts)]);
        Self { database: database.to_owned(), source, tables }
    }

    /// Says when the write was judged.
    pub(crate) fn at(&mut self, now_ns: i64) {
        self.tables.values_mut().for_each(|c| c.last_write_ns = now_ns);
    }

    /// Adds to the counters that the operator sees.
    pub(crate) fn count(&self, tenant: TenantId) {
        let sum = |of: fn(&IngestCounts) -> u64| self.tables.values().map(of).sum::<u64>();
        let (rejected, dropped) = (sum(|c| c.rejected), sum(|c| c.dropped));
        for (metric, n) in [(Metric::IngestRefused, rejected), (Metric::RejectedDropped, dropped)] {
            if n > 0 {
                metrics::counter!(metric.name(), "tenant" => tenant.to_string()).increment(n);
            }
        }
    }

    /// The counters of one table of the write.
    pub(crate) fn table(&mut self, table: &str) -> &mut IngestCounts {
        self.tables.entry(table.to_owned()).or_default()
    }
}

type BySource = BTreeMap<String, IngestCounts>;

#[derive(Debug, Default)]
struct Entries {
    /// Database -> table -> source.
    by_name: BTreeMap<String, BTreeMap<String, BySource>>,
    len: usize,
    others: Option<IngestCounts>,
}

/// Counters of one tenant. See the module head.
#[derive(Debug, Default)]
pub(crate) struct TenantIngest(Mutex<Entries>);

/// Entries of all tenants of all engines of this process.
static ENTRIES: AtomicUsize = AtomicUsize::new(0);

impl TenantIngest {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what one write did.
    pub(crate) fn note(&self, noted: &Noted) {
        let mut entries = self.lock();
        for (table, more) in &noted.tables {
            entries.add(&noted.database, table, &noted.source, more);
        }
    }

    /// Takes back what was listed before the tenant was idle.
    pub(crate) fn restore(&self, listed: &[IngestEntry]) {
        let mut entries = self.lock();
        for entry in listed {
            if entry.table.is_empty() && entry.source == OTHERS {
                entries.others.get_or_insert_default().add(&entry.counts);
            } else {
                entries.add(&entry.database, &entry.table, &entry.source, &entry.counts);
            }
        }
    }

    pub(crate) fn list(&self) -> Vec<IngestEntry> {
        let entries = self.lock();
        let entry =
            |database: &str, table: &str, source: &str, counts: &IngestCounts| IngestEntry {
                database: database.to_owned(),
                table: table.to_owned(),
                source: source.to_owned(),
                counts: *counts,
            };
        let mut out = Vec::with_capacity(entries.len + 1);
        for (database, tables) in &entries.by_name {
            for (table, sources) in tables {
                out.extend(sources.iter().map(|(s, c)| entry(database, table, s, c)));
            }
        }
        out.extend(entries.others.iter().map(|c| entry("", "", OTHERS, c)));
        out
    }
}

impl Drop for TenantIngest {
    fn drop(&mut self) {
        let len = self.lock().len;
        ENTRIES.fetch_sub(len, Ordering::AcqRel);
    }
}

impl Entries {
    fn add(&mut self, database: &str, table: &str, source: &str, more: &IngestCounts) {
        // Looked up by reference first: the usual write has its entry and allocates nothing.
        let known = self.by_name.get_mut(database).and_then(|d| d.get_mut(table));
        if let Some(counts) = known.and_then(|t| t.get_mut(source)) {
            counts.add(more);
            return;
        }
        if self.len >= ENTRIES_MAX || ENTRIES.load(Ordering::Acquire) >= ENTRIES_ALL_MAX {
            self.others.get_or_insert_default().add(more);
            return;
        }
        let tables = self.by_name.entry(database.to_owned()).or_default();
        let sources = tables.entry(table.to_owned()).or_default();
        sources.insert(source.to_owned(), *more);
        self.len += 1;
        let all = ENTRIES.fetch_add(1, Ordering::AcqRel) + 1;
        metrics::gauge!(Metric::IngestSources.name()).set(all as f64);
    }
}

/// A stream and how far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamEntry {
    /// Which.
    pub key: StreamKey,
    /// Every row up to here is durable.
    pub watermark: SeqNo,
}

impl Engine {
    /// The tenant's counters since the start of the server, sorted by database, table and source.
    pub fn ingest(&self, tenant: TenantId) -> Vec<IngestEntry> {
        self.tenant_handle(tenant).map(|t| t.ingest.list()).unwrap_or_default()
    }

    /// The tenant's streams, sorted by device, stream and epoch.
    pub fn streams(&self, tenant: TenantId) -> Vec<StreamEntry> {
        let Some(handle) = self.tenant_handle(tenant) else { return Vec::new() };
        let all = handle.all_durable();
        all.iter().map(|(key, hi)| StreamEntry { key: key.clone(), watermark: *hi }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_kept_apart_and_bounded() {
        let ingest = TenantIngest::default();
        let one = IngestCounts { rows: 1, last_write_ns: 5, ..IngestCounts::default() };
        for i in 0..ENTRIES_MAX + 3 {
            let noted = Noted {
                database: "d".to_owned(),
                source: format!("s{i}"),
                tables: BTreeMap::from([("t".to_owned(), one)]),
            };
            ingest.note(&noted);
            ingest.note(&noted);
        }
        let all = ingest.list();
        assert_eq!(all.len(), ENTRIES_MAX + 1);
        let last = all.last().unwrap();
        assert_eq!((last.source.as_str(), last.counts.rows), (OTHERS, 6));
        assert!(all.iter().rev().skip(1).all(|e| e.counts.rows == 2 && e.table == "t"));
        assert!(ENTRIES.load(Ordering::Acquire) >= ENTRIES_MAX);
    }
}
