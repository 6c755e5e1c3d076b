//! Tenants that do nothing: what is kept of one, how it wakes, and when it may be let go.
//!
//! Owns: the small form of an idle tenant (its part of the manifest and its counters, packed), and
//! the way back: tables, files and watermarks from the part, series from their sections.
//! Never: lets go of a tenant of which the manifest lacks anything: a row, a series, a column, a
//! watermark, a table's number. What a restart would forget (counters, merges) is kept, too.
//! Order: maintenance, between its own jobs, asks the writer, between two groups of writes; so
//! neither holds a handle that somebody else wakes anew. Readers may: what they see was true when
//! they asked.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::Duration,
};

use millrace_crypto::key::{KeyError, TenantKeySource};
use millrace_platform::clock::Clock;
use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};
use object_store::ObjectStore;
use serde::{Deserialize, Serialize};

use crate::{
    column_file::{bundle::SectionRef, reader::read_section},
    compaction::history::{CompactionRecord, TableWrites},
    erase::Tombstone,
    manifest::{FileEntry, TableManifest, TenantManifest, parts::Packed, record::RecordError},
    planted::{Bug, planted},
    schema::TableSchema,
    series::{dictionary::SeriesDictionary, section},
    shard::{
        table::TableHandle,
        tenant::{Tables, TenantHandle},
        watermark::Watermarks,
    },
    stats::IngestEntry,
};

/// Why a tenant that was idle cannot be woken. Its files stay as they are.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WakeError {
    /// A series section.
    #[error("series of table `{table}`: {detail}")]
    Series {
        /// The table.
        table: String,
        /// What is wrong.
        detail: String,
    },
    /// Its keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// What was kept of it.
    #[error("what is kept of an idle tenant does not read: {0}; restart the server")]
    Kept(String),
}

impl From<RecordError> for WakeError {
    fn from(e: RecordError) -> Self {
        Self::Kept(e.to_string())
    }
}

/// What is kept of an idle tenant.
#[derive(Debug, Clone)]
pub(crate) struct Asleep {
    /// Its part of the manifest.
    pub(crate) part: Packed,
    /// Its counters; `None` if it has not written since the start.
    pub(crate) counters: Option<Packed>,
}

impl Asleep {
    /// The highest durable number of a stream; 0 if it is new.
    pub(crate) fn watermark(&self, key: &StreamKey) -> Result<SeqNo, WakeError> {
        let part: TenantManifest = self.part.open()?;
        Ok(part.streams.get(key).map(|state| state.hi).unwrap_or_default())
    }
}

/// What a tenant has counted since the start of the server.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Counters {
    ingest: Vec<IngestEntry>,
    merges: Vec<CompactionRecord>,
    /// By table id, where there is anything.
    writes: BTreeMap<u64, TableWrites>,
}

impl Counters {
    fn of(handle: &TenantHandle) -> Self {
        let tables = handle.tables();
        let writes = tables.values().map(|t| (t.table_id, t.writes.get()));
        Self {
            ingest: handle.ingest.list(),
            merges: handle.history.all(),
            writes: writes.filter(|(_, writes)| *writes != TableWrites::default()).collect(),
        }
    }

    fn give_back(self, handle: &TenantHandle) {
        handle.ingest.restore(&self.ingest);
        self.merges.into_iter().for_each(|record| handle.history.push(record));
        for table in handle.tables().values() {
            if let Some(writes) = self.writes.get(&table.table_id) {
                table.writes.restore(writes);
            }
        }
    }
}

/// The counters of a tenant that is let go.
pub(crate) fn counters(handle: &TenantHandle) -> Result<Option<Packed>, RecordError> {
    let counters = Counters::of(handle);
    (counters != Counters::default()).then(|| Packed::pack(&counters)).transpose()
}

/// Whether files and manifest have everything of a tenant.
pub(crate) fn settled(handle: &TenantHandle, part: &TenantManifest) -> bool {
    let marks = handle.all_durable();
    let stored = |(key, hi): (&StreamKey, &SeqNo)| {
        part.streams.get(key).map(|s| s.hi).unwrap_or_default() == *hi
    };
    let tables = handle.tables();
    let known = |id: &u64| tables.values().any(|t| t.table_id == *id);
    marks.iter().all(stored)
        && part.tables.keys().all(known)
        && tables.values().all(|table| settled_table(table, part.tables.get(&table.table_id)))
}

fn settled_table(table: &TableHandle, stored: Option<&TableManifest>) -> bool {
    let version = table.current.load();
    let in_memory = !version.active.is_empty() || !version.flushing.is_empty();
    if in_memory || table.slowed() || table.closing() {
        return false;
    }
    let series = table.dictionary.len();
    let Some(stored) = stored else {
        // A table that never came to be: only its number is taken, which the tenant keeps.
        return version.schema.version == 0 && series == 0;
    };
    let ids = |files: &[Arc<FileEntry>]| {
        files.iter().map(|f| f.id).collect::<std::collections::BTreeSet<_>>()
    };
    let stones = |all: &[Arc<Tombstone>]| {
        all.iter().map(|t| t.id).collect::<std::collections::BTreeSet<_>>()
    };
    version.schema.version == stored.schema.version
        && stones(&version.tombstones) == stones(&stored.tombstones)
        && table.flushed_series() == series
        && stored.series_sections.iter().map(|s| s.count).sum::<u64>() >= series as u64
        && ids(&version.files) == ids(&stored.files)
}

/// Where idle tenants wake from.
pub(crate) struct Bed {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) keys: Arc<dyn TenantKeySource>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl fmt::Debug for Bed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bed").finish_non_exhaustive()
    }
}

impl Bed {
    /// Monotonic.
    pub(crate) fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    /// Reads a tenant's series and makes its handle. Blocks.
    pub(crate) fn wake(&self, id: TenantId, asleep: &Asleep) -> Result<TenantHandle, WakeError> {
        let part: TenantManifest = asleep.part.open()?;
        let secret = self.keys.current(&id.0)?.series_secret();
        let mut tables = Tables::new();
        for table in part.tables.into_values() {
            let name = (table.database.clone(), table.schema.name.clone());
            tables.insert(name, Arc::new(self.table(id, secret, table)?));
        }
        let mut marks = Watermarks::default();
        for (key, state) in &part.streams {
            marks.reset(key, state.hi);
        }
        let mut handle = TenantHandle::new(id, tables, marks, part.next_table_id.max(1));
        handle.dropped = part.dropped;
        if let Some(counters) = &asleep.counters {
            counters.open::<Counters>()?.give_back(&handle);
        }
        Ok(handle)
    }

    fn table(
        &self,
        id: TenantId,
        secret: u64,
        table: TableManifest,
    ) -> Result<TableHandle, WakeError> {
        let (day, count) = table.last_new_series();
        let dictionary = SeriesDictionary::new(secret);
        for part in &table.series_sections {
            self.series(id, &dictionary, &table.schema, &part.section)?;
        }
        let TableManifest { database, schema, files, tombstones, .. } = table;
        let handle = TableHandle::new(database, schema, dictionary, files, true);
        if !planted(Bug::TombstonesNotLoaded) {
            handle.erased(&[], &tombstones, &[]);
        }
        handle.count_new_series(day, count);
        Ok(handle)
    }

    fn series(
        &self,
        id: TenantId,
        dictionary: &SeriesDictionary,
        schema: &TableSchema,
        at: &SectionRef,
    ) -> Result<(), WakeError> {
        let fail = |detail: String| WakeError::Series { table: schema.name.clone(), detail };
        let body = wait(read_section(&self.store, &self.keys, id, at));
        let body = body.map_err(|e| fail(e.to_string()))?;
        let damaged = |e: &dyn fmt::Display| fail(format!("{at}: {e}"));
        for (sid, key) in section::decode(&body).map_err(|e| damaged(&e))? {
            dictionary.restore(sid, &key, &schema.tags).map_err(|e| damaged(&e))?;
        }
        Ok(())
    }
}

/// Wakes a thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a read where nobody can await it: on the writer's thread, and where a snapshot is
/// taken. The local store's reads are ready at once; `block_on` refuses to be called inside of
/// itself, which a snapshot may be.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}
