//! What the writer, the flush and the readers of one shard share.
//!
//! Owns: the map of tenants, the durable log position, the memtable's size and what of the memory
//! budget rows and series hold.
//! Never: does I/O; holds a lock longer than a map operation.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use millrace_platform::{
    budget::{Held, MemoryBudget, MemoryClass},
    metric::Metric,
};
use millrace_protocol::ids::TenantId;

use crate::{
    memtable::chunk::Chunk,
    schema::TableSchema,
    shard::{table::TableHandle, tenant::TenantHandle, watermark::Watermarks},
};

/// What of the budget this shard holds for as long as it is there.
#[derive(Debug)]
struct Holdings {
    rows: Held,
    series: Held,
}

/// See the module head.
#[derive(Debug)]
pub(crate) struct Shared {
    memory: Arc<MemoryBudget>,
    holdings: Mutex<Holdings>,
    tenants: RwLock<BTreeMap<TenantId, Arc<TenantHandle>>>,
    next_table_ids: RwLock<BTreeMap<TenantId, u64>>,
    durable_lsn: AtomicU64,
    memtable_bytes: AtomicUsize,
    memtable_rows: AtomicUsize,
    /// How much of `memtable_bytes` a flush has already.
    sealed_bytes: AtomicUsize,
    stopped: AtomicBool,
    /// Tenants whose new series per table and day have a limit of their own.
    series_per_day: RwLock<BTreeMap<TenantId, u64>>,
}

impl Shared {
    /// A shard without tenants, counted against `memory`.
    pub(crate) fn new(memory: &Arc<MemoryBudget>) -> Self {
        Self {
            memory: Arc::clone(memory),
            holdings: Mutex::new(Holdings {
                rows: memory.hold(MemoryClass::Memtable, 0),
                series: memory.hold(MemoryClass::Series, 0),
            }),
            tenants: RwLock::default(),
            next_table_ids: RwLock::default(),
            durable_lsn: AtomicU64::new(0),
            memtable_bytes: AtomicUsize::new(0),
            memtable_rows: AtomicUsize::new(0),
            sealed_bytes: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            series_per_day: RwLock::default(),
        }
    }

    /// The budget.
    pub(crate) fn memory(&self) -> &Arc<MemoryBudget> {
        &self.memory
    }

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

    /// Publishes a chunk and counts what the table holds more of.
    pub(crate) fn publish(&self, table: &TableHandle, schema: &Arc<TableSchema>, chunk: Chunk) {
        let rows = chunk.rows();
        let (left, entered) = table.publish(schema, chunk);
        self.memtable_bytes.fetch_add(entered, Ordering::AcqRel);
        self.memtable_bytes.fetch_sub(left, Ordering::AcqRel);
        self.memtable_rows.fetch_add(rows, Ordering::AcqRel);
        self.count();
    }

    /// Counts series that a table's dictionary has more, `before` bytes of them being known.
    pub(crate) fn note_series(&self, table: &TableHandle, before: usize) {
        let more = table.dictionary.bytes().saturating_sub(before);
        if more > 0 {
            let mut holdings = self.holdings();
            let now = holdings.series.bytes() + more;
            holdings.series.resize(now);
        }
    }

    /// Notes that a flush has everything that is in memtables now.
    pub(crate) fn sealed(&self) {
        self.sealed_bytes.store(self.memtable_bytes(), Ordering::Release);
    }

    /// Sets the sizes after a flush, recounted from what is still there.
    pub(crate) fn recount(&self) {
        let (mut bytes, mut rows, mut sealed, mut series) = (0, 0, 0, 0);
        for tenant in self.tenants() {
            for table in tenant.tables().values() {
                let version = table.current.load();
                for chunk in version.flushing.iter().chain(&version.active) {
                    bytes += chunk.bytes;
                    rows += chunk.rows();
                }
                sealed += version.flushing.iter().map(|c| c.bytes).sum::<usize>();
                series += table.dictionary.bytes();
            }
        }
        self.memtable_bytes.store(bytes, Ordering::Release);
        self.memtable_rows.store(rows, Ordering::Release);
        self.sealed_bytes.store(sealed, Ordering::Release);
        self.holdings().series.resize(series);
        self.count();
    }

    fn holdings(&self) -> MutexGuard<'_, Holdings> {
        self.holdings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self) {
        let bytes = self.memtable_bytes();
        self.holdings().rows.resize(bytes);
        metrics::gauge!(Metric::MemtableBytes.name()).set(bytes as f64);
        metrics::gauge!(Metric::MemtableRows.name()).set(self.memtable_rows() as f64);
    }

    /// Bytes in memtables that no flush has yet.
    pub(crate) fn active_bytes(&self) -> usize {
        self.memtable_bytes().saturating_sub(self.sealed_bytes.load(Ordering::Acquire))
    }

    /// Whether a flush should begin.
    pub(crate) fn flush_due(&self, flush_bytes: usize) -> bool {
        let active = self.active_bytes();
        active >= flush_bytes || (active > 0 && self.memory.over_soft())
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
