//! A tenant as the writer and the readers share it: its tables and its durable watermarks.
//!
//! Owns: the map from (database, table) to handle. Locks are short and never held across an
//! await or I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};

use super::{table::TableHandle, watermark::Watermarks};
use crate::compaction::history::History;
use crate::stats::TenantIngest;

/// (database, table) -> handle.
pub(crate) type Tables = BTreeMap<(String, String), Arc<TableHandle>>;

/// Shared state of one tenant.
#[derive(Debug)]
pub(crate) struct TenantHandle {
    pub(crate) id: TenantId,
    /// The first table id that the manifest knows to be unused.
    next_table_id: AtomicU64,
    /// Tables that were dropped.
    pub(crate) dropped: BTreeSet<u64>,
    /// When it was last asked for, monotonic seconds: what has long not been may be let go.
    used_s: AtomicU64,
    tables: RwLock<Arc<Tables>>,
    durable: Mutex<Watermarks>,
    /// Its last merges.
    pub(crate) history: History,
    /// Counters of its ingest.
    pub(crate) ingest: TenantIngest,
}

impl TenantHandle {
    pub(crate) fn new(
        id: TenantId,
        tables: Tables,
        durable: Watermarks,
        next_table_id: u64,
    ) -> Self {
        Self {
            id,
            next_table_id: AtomicU64::new(next_table_id),
            dropped: BTreeSet::new(),
            used_s: AtomicU64::new(0),
            tables: RwLock::new(Arc::new(tables)),
            durable: Mutex::new(durable),
            history: History::default(),
            ingest: TenantIngest::default(),
        }
    }

    /// Notes that it is asked for.
    pub(crate) fn touch(&self, now: Duration) {
        self.used_s.fetch_max(now.as_secs(), Ordering::Relaxed);
    }

    /// When it was last asked for, monotonic.
    pub(crate) fn used(&self) -> Duration {
        Duration::from_secs(self.used_s.load(Ordering::Relaxed))
    }

    /// All tables at this moment.
    pub(crate) fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds a table; the writer alone calls it.
    pub(crate) fn add_table(&self, table: &str, handle: Arc<TableHandle>) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut tables).insert((handle.database.clone(), table.to_owned()), handle);
    }

    /// Takes a dropped table away; the writer alone calls it.
    pub(crate) fn remove_table(&self, name: &(String, String)) {
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(gone) = Arc::make_mut(&mut tables).remove(name) {
            // Its number is never used again: the log may still have something under it.
            self.next_table_id.fetch_max(gone.table_id.saturating_add(1), Ordering::AcqRel);
        }
    }

    /// The first table id that is known to be unused.
    pub(crate) fn next_table_id(&self) -> u64 {
        self.next_table_id.load(Ordering::Acquire)
    }

    /// The highest contiguous durable number of a stream; 0 if nothing is.
    pub(crate) fn durable(&self, key: &StreamKey) -> SeqNo {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).get(key)
    }

    /// Moves durable marks forward after a sync.
    pub(crate) fn advance_durable(
        &self,
        key: &StreamKey,
        to: SeqNo,
    ) -> Result<(), millrace_platform::invariant::Broken> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).advance(key, to)
    }

    /// A copy of all durable marks.
    pub(crate) fn all_durable(&self) -> Watermarks {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
