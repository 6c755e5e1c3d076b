//! What the writer, the flush and the readers of one shard share.
//!
//! Owns: the map of tenants, the durable log position, the memtable's size.
//! Never: does I/O; holds a lock longer than a map operation.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use millrace_platform::metric::Metric;
use millrace_protocol::ids::TenantId;

use crate::{
    memtable::chunk::Chunk,
    shard::{tenant::TenantHandle, watermark::Watermarks},
};

/// See the module head.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    tenants: RwLock<BTreeMap<TenantId, Arc<TenantHandle>>>,
    next_table_ids: RwLock<BTreeMap<TenantId, u64>>,
    durable_lsn: AtomicU64,
    memtable_bytes: AtomicUsize,
    memtable_rows: AtomicUsize,
    stopped: AtomicBool,
    /// Tenants whose new series per table and day have a limit of their own.
    series_per_day: RwLock<BTreeMap<TenantId, u64>>,
}

impl Shared {
    /// The tenant's handle, if it has ever written.
    pub(crate) fn tenant(&self, id: TenantId) -> Option<Arc<TenantHandle>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The tenant's handle, made if needed.
    pub(crate) fn tenant_or_new(&self, id: TenantId) -> Arc<TenantHandle> {
        let mut tenants = self.tenants.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(tenants.entry(id).or_insert_with(|| {
            Arc::new(TenantHandle::new(id, BTreeMap::new(), Watermarks::default()))
        }))
    }

    /// Puts a recovered tenant in place.
    pub(crate) fn insert(&self, handle: TenantHandle, next_table_id: u64) {
        let id = handle.id;
        self.tenants.write().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::new(handle));
        self.next_table_ids
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, next_table_id);
    }

    /// All tenants.
    pub(crate) fn tenants(&self) -> Vec<Arc<TenantHandle>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The first table id that the tenant has never used, as far as the manifest knows.
    pub(crate) fn next_table_id(&self, id: TenantId) -> u64 {
        let ids = self.next_table_ids.read().unwrap_or_else(PoisonError::into_inner);
        ids.get(&id).copied().unwrap_or(1)
    }

    /// Sets or lifts a tenant's own limit of new series per table and day.
    pub(crate) fn limit_new_series(&self, id: TenantId, per_day: Option<u64>) {
        let mut own = self.series_per_day.write().unwrap_or_else(PoisonError::into_inner);
        match per_day {
            Some(per_day) => own.insert(id, per_day),
            None => own.remove(&id),
        };
    }

    /// New series per table and day that the tenant may make; 0 is no limit.
    pub(crate) fn series_per_day(&self, id: TenantId, default: u64) -> u64 {
        let own = self.series_per_day.read().unwrap_or_else(PoisonError::into_inner);
        own.get(&id).copied().unwrap_or(default)
    }

    /// Another owner has taken over: no write may be acknowledged any more.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// Whether another owner has taken over.
    pub(crate) fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The last published log position.
    pub(crate) fn durable_lsn(&self) -> u64 {
        self.durable_lsn.load(Ordering::Acquire)
    }

    /// Notes a published log position.
    pub(crate) fn note_lsn(&self, lsn: u64) {
        self.durable_lsn.fetch_max(lsn, Ordering::AcqRel);
    }

    /// Counts a published chunk.
    pub(crate) fn charge(&self, chunk: &Chunk) {
        let bytes = self.memtable_bytes.fetch_add(chunk.bytes, Ordering::AcqRel) + chunk.bytes;
        let rows = self.memtable_rows.fetch_add(chunk.rows(), Ordering::AcqRel) + chunk.rows();
        show(bytes, rows);
    }

    /// Sets the size after a flush, recounted from what is still there.
    pub(crate) fn recount(&self) {
        let (mut bytes, mut rows) = (0, 0);
        for tenant in self.tenants() {
            for table in tenant.tables().values() {
                let version = table.current.load();
                for chunk in version.flushing.iter().chain(&version.active) {
                    bytes += chunk.bytes;
                    rows += chunk.rows();
                }
            }
        }
        self.memtable_bytes.store(bytes, Ordering::Release);
        self.memtable_rows.store(rows, Ordering::Release);
        show(bytes, rows);
    }

    /// Bytes in memtables.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.memtable_bytes.load(Ordering::Acquire)
    }

    /// Rows in memtables.
    pub(crate) fn memtable_rows(&self) -> usize {
        self.memtable_rows.load(Ordering::Acquire)
    }
}

fn show(bytes: usize, rows: usize) {
    metrics::gauge!(Metric::MemtableBytes.name()).set(bytes as f64);
    metrics::gauge!(Metric::MemtableRows.name()).set(rows as f64);
}
