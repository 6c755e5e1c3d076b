//! A table as the writer and the readers share it.
//!
//! Owns: the swap. A reader loads one [`TableVersion`] and sees chunks and files that fit
//! together; the writer and the flush replace it in one step, so that a row moves from memtable
//! to file without ever being in both or in neither.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;

use crate::{
    compaction::{
        history::{TableStats, WriteCounters},
        overlap::overlap,
    },
    erase::{Tombstone, ended},
    manifest::FileEntry,
    memtable::chunk::{CHUNK_ROWS, Chunk},
    schema::TableSchema,
    series::dictionary::SeriesDictionary,
};

/// What a flush stores beside the rows. The writer takes it between two groups of writes, when
/// columns and series fit together: every tag of these series is in this schema. At any other
/// moment a series may be known whose tags are not, and stored like that it would lose them.
#[derive(Debug, Clone)]
pub(crate) struct SealedColumns {
    /// The writer's schema: may have columns of writes that failed, which is harmless.
    pub schema: Arc<TableSchema>,
    /// Entries of the dictionary, from the first.
    pub series: usize,
}

/// One consistent picture of a table.
#[derive(Debug, Clone)]
pub(crate) struct TableVersion {
    /// The columns.
    pub schema: Arc<TableSchema>,
    /// Chunks that take new rows, oldest first.
    pub active: Vec<Arc<Chunk>>,
    /// Chunks that a flush is writing, oldest first; older than `active`.
    pub flushing: Vec<Arc<Chunk>>,
    /// Committed files.
    pub files: Vec<Arc<FileEntry>>,
    /// Rows of them that are deleted.
    pub tombstones: Vec<Arc<Tombstone>>,
    /// Set by the last seal.
    pub sealed: Option<SealedColumns>,
}

impl TableVersion {
    /// All memtable chunks, oldest first.
    pub(crate) fn chunks(&self) -> Vec<Arc<Chunk>> {
        self.flushing.iter().chain(&self.active).cloned().collect()
    }
}

/// A table of one tenant and database.
#[derive(Debug)]
pub(crate) struct TableHandle {
    /// The database.
    pub database: String,
    /// The table's number inside its tenant.
    pub table_id: u64,
    /// Its series.
    pub dictionary: SeriesDictionary,
    /// What readers load.
    pub current: ArcSwap<TableVersion>,
    /// How many dictionary entries the manifest has.
    flushed_series: AtomicUsize,
    /// How many tags the manifest's schema has.
    flushed_tags: AtomicUsize,
    /// What its rows have cost.
    pub writes: WriteCounters,
    /// Whether new rows wait until merges have caught up.
    slowed: AtomicBool,
    /// Whether the table is being dropped.
    closing: AtomicBool,
    /// The UTC day (since 1970) of the last new series, and how many that day had: 32 bits each.
    new_series: AtomicU64,
}

impl TableHandle {
    /// A table as the manifest knows it, or a new one with no files and an empty schema.
    pub(crate) fn new(
        database: String,
        schema: TableSchema,
        dictionary: SeriesDictionary,
        files: Vec<Arc<FileEntry>>,
        committed: bool,
    ) -> Self {
        let flushed_series = dictionary.len();
        let flushed_tags = if committed { schema.tags.len() } else { 0 };
        Self {
            database,
            table_id: schema.table_id,
            dictionary,
            flushed_series: AtomicUsize::new(flushed_series),
            flushed_tags: AtomicUsize::new(flushed_tags),
            writes: WriteCounters::default(),
            slowed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            new_series: AtomicU64::new(0),
            current: ArcSwap::from_pointee(TableVersion {
                schema: Arc::new(schema),
                active: Vec::new(),
                flushing: Vec::new(),
                files,
                tombstones: Vec::new(),
                sealed: None,
            }),
        }
    }

    /// Whether new rows wait until merges have caught up.
    pub(crate) fn slowed(&self) -> bool {
        self.slowed.load(Ordering::Acquire)
    }

    /// Whether the table is being dropped and takes no rows.
    pub(crate) fn closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Takes no rows from the next group of writes on, or takes them again.
    pub(crate) fn close(&self, closing: bool) {
        self.closing.store(closing, Ordering::Release);
    }

    /// Lets new rows wait or not; returns what it was.
    pub(crate) fn slow(&self, slowed: bool) -> bool {
        self.slowed.swap(slowed, Ordering::AcqRel)
    }

    /// The table's figures now.
    pub(crate) fn stats(&self) -> TableStats {
        let version = self.current.load();
        TableStats {
            database: self.database.clone(),
            table: version.schema.name.clone(),
            files: version.files.len(),
            rows: version.files.iter().map(|f| f.rows).sum(),
            bytes: version.files.iter().map(|f| f.bytes).sum(),
            overlap: overlap(&version.files),
            slowed: self.slowed(),
            writes: self.writes.get(),
        }
    }

    pub(crate) fn flushed_series(&self) -> usize {
        self.flushed_series.load(Ordering::Acquire)
    }

    pub(crate) fn flushed_tags(&self) -> usize {
        self.flushed_tags.load(Ordering::Acquire)
    }

    /// The largest time of any row, ns; `None` if there are none.
    pub(crate) fn newest_ns(&self) -> Option<i64> {
        let now = self.current.load();
        let files = now.files.iter().map(|f| f.t_max);
        let chunks = now.flushing.iter().chain(&now.active).map(|c| c.t_max);
        files.chain(chunks).max()
    }

    /// New series that `day` has had.
    pub(crate) fn new_series(&self, day: u32) -> u64 {
        let seen = self.new_series.load(Ordering::Acquire);
        if seen >> 32 == u64::from(day) { seen & u64::from(u32::MAX) } else { 0 }
    }

    /// Counts new series of `day`. Only the writer calls it, and the start before it.
    pub(crate) fn count_new_series(&self, day: u32, added: u64) {
        if added > 0 {
            let count = (self.new_series(day) + added).min(u64::from(u32::MAX));
            self.new_series.store(u64::from(day) << 32 | count, Ordering::Release);
        }
    }

    /// Shows synced rows to readers; returns the bytes of the chunks that went into a larger one
    /// and of those that came.
    pub(crate) fn publish(&self, schema: &Arc<TableSchema>, chunk: Chunk) -> (usize, usize) {
        let chunk = Arc::new(chunk);
        let mut changed = (0, 0);
        self.current.rcu(|now| {
            let mut next = TableVersion::clone(now);
            next.schema = Arc::clone(schema);
            changed = push_joined(&mut next.active, Arc::clone(&chunk));
            next
        });
        changed
    }

    /// Moves the active chunks to the flush. Chunks of an earlier flush that failed stay first.
    /// `schema` is the writer's, which alone calls this.
    pub(crate) fn seal(&self, schema: &Arc<TableSchema>) {
        let series = self.dictionary.len();
        self.current.rcu(|now| {
            let mut next = TableVersion::clone(now);
            next.flushing.append(&mut next.active);
            next.sealed = Some(SealedColumns { schema: Arc::clone(schema), series });
            next
        });
    }

    /// After a flush commit: its chunks leave and its files enter, in one step.
    pub(crate) fn flushed(
        &self,
        added: &[Arc<FileEntry>],
        chunks: &[Arc<Chunk>],
        series: usize,
        tags: usize,
    ) {
        self.current.rcu(|now| {
            let mut next = TableVersion::clone(now);
            next.flushing.retain(|c| !chunks.iter().any(|done| Arc::ptr_eq(c, done)));
            next.files.extend(added.iter().cloned());
            next
        });
        self.flushed_series.fetch_max(series, Ordering::AcqRel);
        self.flushed_tags.fetch_max(tags, Ordering::AcqRel);
    }

    /// Lets go of the sealed rows, which can be stored no more.
    pub(crate) fn forget_rows(&self) {
        self.current.rcu(|now| {
            let mut next = TableVersion::clone(now);
            next.flushing.clear();
            next
        });
    }

    /// After a commit that deletes: files leave and tombstones begin and end, in one step.
    pub(crate) fn erased(&self, files: &[[u8; 16]], added: &[Arc<Tombstone>], over: &[u64]) {
        self.current.rcu(|now| {
            let mut next = TableVersion::clone(now);
            next.files.retain(|f| !files.contains(&f.id));
            next.tombstones.retain(|t| !over.contains(&t.id) && added.iter().all(|a| a.id != t.id));
            next.tombstones.extend(added.iter().cloned());
            next
        });
    }

    /// Ids of tombstones that take nothing any more once `removed` files have left and `added` are
    /// there.
    pub(crate) fn ended(&self, added: &[Arc<FileEntry>], removed: &[[u8; 16]]) -> Vec<u64> {
        let now = self.current.load();
        let mut files: Vec<_> =
            now.files.iter().filter(|f| !removed.contains(&f.id)).cloned().collect();
        files.extend(added.iter().cloned());
        ended(&now.tombstones, &files).collect()
    }

    /// After a compaction commit: inputs leave and outputs enter, in one step.
    pub(crate) fn compacted(&self, added: &[Arc<FileEntry>], removed: &[[u8; 16]], over: &[u64]) {
        self.current.rcu(|now| {
            let mut next = TableVersion::clone(now);
            next.files.retain(|f| !removed.contains(&f.id));
            next.tombstones.retain(|t| !over.contains(&t.id));
            next.files.extend(added.iter().cloned());
            next
        });
    }
}

/// Appends a chunk, joining it with the last ones while they are not much larger: the number of
/// chunks stays logarithmic in the rows for tiny writes, and each row is copied a bounded number
/// of times. Returns the bytes of the chunks that left the list and of the one that entered it.
fn push_joined(chunks: &mut Vec<Arc<Chunk>>, newest: Arc<Chunk>) -> (usize, usize) {
    let mut tail = newest;
    let mut left = 0;
    while let Some(last) = chunks.last() {
        let rows = last.rows() + tail.rows();
        if rows > CHUNK_ROWS || last.rows() > 2 * tail.rows() {
            break;
        }
        let mut joined = Chunk::clone(last);
        joined.append(&tail);
        left += last.bytes;
        tail = Arc::new(joined);
        chunks.pop();
    }
    let entered = tail.bytes;
    chunks.push(tail);
    (left, entered)
}
