//! What the writer, the flush and the readers of one shard share.
//!
//! Owns: the map of tenants, awake or asleep (idle.rs), the durable log position, the memtable's size and what of the memory
//! budget rows and series hold.
//! Never: holds a lock longer than a map operation, but for the one under which a tenant is woken,
//! which reads its series.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use millrace_platform::{
    budget::{Held, MemoryBudget, MemoryClass},
    metric::Metric,
};
use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};

use crate::{
    idle::{Asleep, Bed, WakeError},
    manifest::parts::Packed,
    memtable::chunk::Chunk,
    schema::TableSchema,
    shard::{table::TableHandle, tenant::TenantHandle, watermark::Watermarks},
    tail::Tail,
};

/// What of the budget this shard holds for as long as it is there.
#[derive(Debug)]
struct Holdings {
    rows: Held,
    series: Held,
}

/// A tenant that the manifest or the log knows.
#[derive(Debug, Clone)]
enum Slot {
    Awake(Arc<TenantHandle>),
    /// Everything of it is in files.
    Asleep(Asleep),
}

/// See the module head.
#[derive(Debug)]
pub(crate) struct Shared {
    memory: Arc<MemoryBudget>,
    holdings: Mutex<Holdings>,
    tenants: RwLock<BTreeMap<TenantId, Slot>>,
    bed: Bed,
    /// Held while a tenant is woken or put to sleep, disk reads included.
    waking: Mutex<()>,
    durable_lsn: AtomicU64,
    memtable_bytes: AtomicUsize,
    memtable_rows: AtomicUsize,
    /// How much of `memtable_bytes` a flush has already.
    sealed_bytes: AtomicUsize,
    stopped: AtomicBool,
    /// Tenants whose new series per table and day have a limit of their own.
    series_per_day: RwLock<BTreeMap<TenantId, u64>>,
    /// What was stored just now, for those who watch.
    pub(crate) tail: Tail,
}

impl Shared {
    /// A shard without tenants, counted against `memory`.
    pub(crate) fn new(memory: &Arc<MemoryBudget>, bed: Bed) -> Self {
        Self {
            memory: Arc::clone(memory),
            holdings: Mutex::new(Holdings {
                rows: memory.hold(MemoryClass::Memtable, 0),
                series: memory.hold(MemoryClass::Series, 0),
            }),
            tenants: RwLock::default(),
            bed,
            waking: Mutex::default(),
            durable_lsn: AtomicU64::new(0),
            memtable_bytes: AtomicUsize::new(0),
            memtable_rows: AtomicUsize::new(0),
            sealed_bytes: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
            series_per_day: RwLock::default(),
            tail: Tail::default(),
        }
    }

    /// The budget.
    pub(crate) fn memory(&self) -> &Arc<MemoryBudget> {
        &self.memory
    }

    fn slots(&self) -> RwLockReadGuard<'_, BTreeMap<TenantId, Slot>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn slots_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<TenantId, Slot>> {
        self.tenants.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn waking(&self) -> MutexGuard<'_, ()> {
        self.waking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant's handle, if it has ever written. One that sleeps is woken: its series are read.
    pub(crate) fn tenant(&self, id: TenantId) -> Result<Option<Arc<TenantHandle>>, WakeError> {
        let awake = match self.slots().get(&id) {
            None => return Ok(None),
            Some(Slot::Awake(handle)) => Some(Arc::clone(handle)),
            Some(Slot::Asleep(_)) => None,
        };
        let handle = match awake {
            Some(handle) => handle,
            None => self.wake(id)?,
        };
        handle.touch(self.bed.now());
        Ok(Some(handle))
    }

    fn wake(&self, id: TenantId) -> Result<Arc<TenantHandle>, WakeError> {
        let _one = self.waking();
        let slot = self.slots().get(&id).cloned();
        let handle = match slot {
            Some(Slot::Awake(handle)) => return Ok(handle),
            Some(Slot::Asleep(asleep)) => Arc::new(self.bed.wake(id, &asleep)?),
            None => Arc::new(TenantHandle::new(id, BTreeMap::new(), Watermarks::default(), 1)),
        };
        let series: usize = handle.tables().values().map(|t| t.dictionary.bytes()).sum();
        self.slots_mut().insert(id, Slot::Awake(Arc::clone(&handle)));
        let mut holdings = self.holdings();
        let now = holdings.series.bytes() + series;
        holdings.series.resize(now);
        Ok(handle)
    }

    /// The tenant's handle, made if needed.
    pub(crate) fn tenant_or_new(&self, id: TenantId) -> Result<Arc<TenantHandle>, WakeError> {
        if let Some(handle) = self.tenant(id)? {
            return Ok(handle);
        }
        let handle = self.wake(id)?;
        handle.touch(self.bed.now());
        Ok(handle)
    }

    /// The tenant's handle if it is awake.
    pub(crate) fn awake(&self, id: TenantId) -> Option<Arc<TenantHandle>> {
        match self.slots().get(&id) {
            Some(Slot::Awake(handle)) => Some(Arc::clone(handle)),
            _ => None,
        }
    }

    /// All tenants that are awake: every one that has rows in memory is.
    pub(crate) fn all_awake(&self) -> Vec<Arc<TenantHandle>> {
        let awake = |slot: &Slot| match slot {
            Slot::Awake(handle) => Some(Arc::clone(handle)),
            Slot::Asleep(_) => None,
        };
        self.slots().values().filter_map(awake).collect()
    }

    /// Puts a recovered tenant in place, asleep.
    pub(crate) fn insert(&self, id: TenantId, asleep: Asleep) {
        self.slots_mut().insert(id, Slot::Asleep(asleep));
    }

    /// Lets a tenant go. Only the writer calls it, which has made sure that files have everything
    /// of it, while the flush and merges stand still.
    pub(crate) fn put_to_sleep(&self, id: TenantId, asleep: Asleep) {
        let _one = self.waking();
        self.insert(id, asleep);
    }

    /// The manifest's part of a tenant that sleeps has changed: its series are elsewhere.
    /// False if it is awake.
    pub(crate) fn moved(&self, id: TenantId, part: Packed) -> bool {
        let _one = self.waking();
        match self.slots_mut().get_mut(&id) {
            Some(Slot::Asleep(asleep)) => asleep.part = part,
            Some(Slot::Awake(_)) => return false,
            None => {}
        }
        true
    }

    /// Since when a tenant may have been asked for the last time to be let go; `None` if that is
    /// too early for any.
    pub(crate) fn idle_since(&self, idle: Duration) -> Option<Duration> {
        self.bed.now().checked_sub(idle)
    }

    /// The highest durable number of a stream, asleep or not; 0 if it is new.
    pub(crate) fn watermark(&self, id: TenantId, key: &StreamKey) -> Result<SeqNo, WakeError> {
        let slot = self.slots().get(&id).cloned();
        Ok(match slot {
            Some(Slot::Awake(handle)) => handle.durable(key),
            Some(Slot::Asleep(asleep)) => asleep.watermark(key)?,
            None => SeqNo::default(),
        })
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
        for tenant in self.all_awake() {
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
