//! What was stored just now, for those who watch.
//!
//! Owns: for each tenant that is watched, the rows of its last writes, within bounds: 8 MiB and
//! 4096 pieces; the oldest make room, and who had not taken them is told so ([`Lagged`]). The rows
//! are copies, counted like memtables. A tenant that nobody has watched for a minute has none.
//! Never: shows rows before they are durable and visible to queries; waits for a watcher; keeps
//! anything of a tenant that is not watched.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering, fence},
    },
    time::Duration,
};

use millrace_platform::budget::{Held, MemoryBudget, MemoryClass};
use millrace_protocol::ids::{Lsn, TenantId};
use tokio::sync::watch;

use crate::{
    files::FileAccess,
    memtable::chunk::Chunk,
    schema::TableSchema,
    shard::table::{TableHandle, TableVersion},
    snapshot::{TableSnapshot, TenantSnapshot},
};

/// Bytes of rows that are kept of one tenant.
const KEPT_BYTES: usize = 8 << 20;
/// Pieces that are kept of one tenant.
const KEPT_PIECES: usize = 4096;
/// How long rows are kept for a watcher that may come back.
const LINGER: Duration = Duration::from_secs(60);
/// Bytes of rows that are taken at once, unless one write has more.
const STEP_BYTES: usize = 1 << 20;

/// The rows of one table from one write.
#[derive(Debug)]
pub(crate) struct Piece {
    pub database: String,
    pub table: String,
    pub schema: Arc<TableSchema>,
    pub handle: Arc<TableHandle>,
    pub chunk: Chunk,
}

#[derive(Debug)]
struct Kept {
    lsn: u64,
    database: String,
    table: String,
    schema: Arc<TableSchema>,
    handle: Arc<TableHandle>,
    chunk: Arc<Chunk>,
}

#[derive(Debug)]
struct Ring {
    kept: VecDeque<Kept>,
    bytes: usize,
    /// Writes up to here may be missing.
    floor: u64,
    held: Held,
}

/// One tenant's last writes.
#[derive(Debug)]
struct Watched {
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

impl Watched {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Entry {
    watched: Arc<Watched>,
    /// Since when nobody watches.
    lonely: Option<Duration>,
}

/// All tenants that are watched.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    tenants: Mutex<BTreeMap<TenantId, Entry>>,
    /// How many, so that a write of nobody's looks at one number.
    count: AtomicUsize,
}

impl Tail {
    fn tenants(&self) -> MutexGuard<'_, BTreeMap<TenantId, Entry>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether somebody watches the tenant or may come back. Asked again after a write is visible:
    /// who begins to watch meanwhile has not seen the write's position, or is seen here.
    pub(crate) fn wants(&self, tenant: TenantId) -> bool {
        fence(Ordering::SeqCst);
        self.count.load(Ordering::Acquire) > 0 && self.tenants().contains_key(&tenant)
    }

    /// Starts to keep a tenant's writes, those after `durable`, which is asked once writes are kept.
    fn watch(
        &self,
        tenant: TenantId,
        durable: impl FnOnce() -> u64,
        memory: &Arc<MemoryBudget>,
    ) -> Arc<Watched> {
        let mut tenants = self.tenants();
        if let Some(entry) = tenants.get_mut(&tenant) {
            entry.lonely = None;
            return Arc::clone(&entry.watched);
        }
        let held = memory.hold(MemoryClass::Memtable, 0);
        let ring = Ring { kept: VecDeque::new(), bytes: 0, floor: 0, held };
        let watched = Arc::new(Watched { ring: Mutex::new(ring), newest: watch::Sender::new(0) });
        // Nothing is noted before the position is known: the writer waits for the lock on the ring.
        let mut ring = watched.ring();
        tenants.insert(tenant, Entry { watched: Arc::clone(&watched), lonely: None });
        self.count.store(tenants.len(), Ordering::Release);
        fence(Ordering::SeqCst);
        ring.floor = durable();
        watched.newest.send_replace(ring.floor);
        drop(ring);
        watched
    }

    /// A write is durable and visible whose rows were not kept, because nobody watched when it
    /// began.
    pub(crate) fn missed(&self, tenant: TenantId, lsn: u64) {
        let watched = self.tenants().get(&tenant).map(|e| Arc::clone(&e.watched));
        if let Some(watched) = watched {
            let mut ring = watched.ring();
            ring.floor = ring.floor.max(lsn);
            watched.newest.send_if_modified(|n| lsn > std::mem::replace(n, lsn.max(*n)));
        }
    }

    /// Takes in a write that is durable and visible.
    pub(crate) fn note(&self, tenant: TenantId, lsn: u64, pieces: Vec<Piece>, now: Duration) {
        let mut tenants = self.tenants();
        tenants.retain(|_, entry| {
            if Arc::strong_count(&entry.watched) > 1 {
                entry.lonely = None;
            } else {
                entry.lonely.get_or_insert(now);
            }
            entry.lonely.is_none_or(|since| now.saturating_sub(since) < LINGER)
        });
        self.count.store(tenants.len(), Ordering::Release);
        let Some(watched) = tenants.get(&tenant).map(|e| Arc::clone(&e.watched)) else { return };
        drop(tenants);
        let mut ring = watched.ring();
        ring.push(lsn, pieces);
        watched.newest.send_replace(lsn);
    }
}

impl Ring {
    fn push(&mut self, lsn: u64, pieces: Vec<Piece>) {
        for piece in pieces {
            self.bytes += piece.chunk.bytes;
            self.kept.push_back(Kept {
                lsn,
                database: piece.database,
                table: piece.table,
                schema: piece.schema,
                handle: piece.handle,
                chunk: Arc::new(piece.chunk),
            });
        }
        while self.bytes > KEPT_BYTES || self.kept.len() > KEPT_PIECES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= oldest.chunk.bytes;
            self.floor = self.floor.max(oldest.lsn);
        }
        self.held.resize(self.bytes);
    }
}

/// Rows that a watcher wanted are not kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lagged {
    /// From here on everything is there again.
    pub resume: Lsn,
}

/// New rows of one table.
#[derive(Debug, Clone)]
pub struct Fresh {
    /// A picture that has the table with the new rows and nothing else; `None` if there are none.
    pub rows: Option<Arc<TenantSnapshot>>,
    /// Everything up to here is in it.
    pub upto: Lsn,
}

/// A look at what a tenant writes.
#[derive(Debug, Clone)]
pub struct Watch {
    watched: Arc<Watched>,
    access: FileAccess,
}

impl Watch {
    pub(crate) fn new(
        tail: &Tail,
        durable: impl FnOnce() -> u64,
        memory: &Arc<MemoryBudget>,
        access: FileAccess,
    ) -> Self {
        Self { watched: tail.watch(access.tenant, durable, memory), access }
    }

    /// Whether both look at the same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.watched, &other.watched)
    }

    /// The last write that is known here.
    pub fn newest(&self) -> Lsn {
        Lsn(*self.watched.newest.borrow())
    }

    /// Ends when there is a write after `after`.
    pub async fn beyond(&self, after: Lsn) {
        let mut newest = self.watched.newest.subscribe();
        // The sender is `self`'s own, so it does not end before.
        drop(newest.wait_for(|n| *n > after.0).await);
    }

    /// The rows of a table that were written after `after`, as far as they make one step.
    pub fn since(&self, after: Lsn, database: &str, table: &str) -> Result<Fresh, Lagged> {
        let ring = self.watched.ring();
        let newest = self.newest().0;
        if after.0 < ring.floor || after.0 > newest {
            return Err(Lagged { resume: Lsn(ring.floor.max(newest)) });
        }
        let (mut upto, mut bytes) = (newest, 0);
        let mut taken: Vec<&Kept> = Vec::new();
        for kept in ring.kept.iter().filter(|k| k.lsn > after.0 && k.lsn <= newest) {
            if kept.database != database || kept.table != table {
                continue;
            }
            // A write is taken whole or not at all. A tenant that slept meanwhile numbers its
            // series anew, so what it wrote before and after does not go together.
            if let Some(last) = taken.last()
                && last.lsn != kept.lsn
                && (bytes > STEP_BYTES || !Arc::ptr_eq(&last.handle, &kept.handle))
            {
                upto = last.lsn;
                break;
            }
            bytes += kept.chunk.bytes;
            taken.push(kept);
        }
        let rows = taken.last().map(|last| Arc::new(self.picture(&taken, last, upto)));
        Ok(Fresh { rows, upto: Lsn(upto) })
    }

    fn picture(&self, taken: &[&Kept], last: &Kept, upto: u64) -> TenantSnapshot {
        let version = TableVersion {
            schema: Arc::clone(&last.schema),
            active: taken.iter().map(|k| Arc::clone(&k.chunk)).collect(),
            flushing: Vec::new(),
            files: Vec::new(),
            sealed: None,
            // What was deleted meanwhile is not shown any more.
            tombstones: last.handle.current.load().tombstones.clone(),
        };
        let snapshot = TableSnapshot {
            schema: Arc::clone(&last.schema),
            series: last.handle.dictionary.view(),
            version: Arc::new(version),
            access: self.access.clone(),
            // Rows out of retention are refused when they are written.
            shown_from: i64::MIN,
        };
        let tables = BTreeMap::from([(last.table.clone(), Arc::new(snapshot))]);
        let databases = BTreeMap::from([(last.database.clone(), tables)]);
        TenantSnapshot { tenant: self.access.tenant, lsn: Lsn(upto), databases }
    }
}

#[cfg(test)]
mod tests;
