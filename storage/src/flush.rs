//! From sealed memtables to committed files, and small files to larger ones: the manifest's only
//! writer.
//!
//! Owns: the manifest store and the order sections -> one object -> one commit -> swap -> log
//! floor. Never: trims the log before the commit; publishes a file that is not committed.
//! Crash order: any prefix is a legal start: objects without a commit are orphans that gc.rs
//! sweeps; a commit without a trimmed log is replayed up to the flushed position and no further.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use millrace_crypto::key::{KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{
    budget::{Held, MemoryClass},
    clock::Clock,
    entropy::{Entropy, random_bytes},
    metric::Metric,
};
use millrace_protocol::{ids::TenantId, value::FieldType};
use millrace_wal::{Wal, WalError};
use object_store::{ObjectStore, PutMode, PutOptions};

use crate::{
    column_file::{
        bundle::{BundleError, BundleWriter},
        writer::{ColumnFileParts, FileProfile, WriteFileError, write_column_file},
    },
    compaction::{driver::Wanted, territory::Territory},
    files::{FileAccess, FileCache},
    gc::{Garbage, SweepError},
    idle::{WakeError, settled},
    limits::EngineLimits,
    manifest::{
        CommitError, Delta, FileEntry, ManifestStore, SeriesSection, StreamState, TableDelta,
        TenantDelta, TenantManifest,
    },
    memtable::{
        chunk::Chunk,
        sort::{RowFilter, SORT_BYTES_PER_ROW, sorted_windows},
    },
    planted::{Bug, planted},
    retention::due::DueQueue,
    run::{Run, RunError},
    scan::ReadError,
    schema::TableSchema,
    series::section,
    shard::{
        table::TableHandle,
        tenant::TenantHandle,
        writer::{Idle, Sealed},
    },
    shared::Shared,
};

/// A flush sorts and encodes at most this part of the memory budget at once: the copy, its encoded
/// form and that sealed are there at the same time.
const FLUSH_PART: usize = 12;

/// Cuts chunks, oldest first, into parts of about `bytes`. The parts of a flush are files whose
/// log positions do not overlap, as if there had been several flushes.
fn parts(chunks: &[Arc<Chunk>], bytes: usize) -> impl Iterator<Item = &[Arc<Chunk>]> {
    let mut rest = chunks;
    std::iter::from_fn(move || {
        let mut held = 0;
        let fits = rest.iter().take_while(|chunk| {
            let first = held == 0;
            held += chunk.bytes;
            first || held <= bytes
        });
        let (part, after) = rest.split_at_checked(fits.count())?;
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// Why a flush or a merge did not happen. Nothing is lost: the rows stay in memory and in the
/// log, and the job is tried again.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// Sorting failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A column file could not be encoded.
    #[error(transparent)]
    Write(#[from] WriteFileError),
    /// A section could not be sealed.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Keys cannot be had now.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The object could not be stored.
    #[error("column files could not be stored: {0}")]
    Store(#[from] object_store::Error),
    /// The manifest refused.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A tenant that was idle could not be loaded.
    #[error(transparent)]
    Wake(#[from] WakeError),
    /// An input could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log could not be trimmed.
    #[error("the log could not be trimmed: {0}")]
    Trim(#[from] WalError),
}

/// What one flush wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Files committed.
    pub files: usize,
    /// Rows in them.
    pub rows: u64,
    /// Bytes of the object, sealed.
    pub bytes: u64,
}

/// See the module head.
pub(crate) struct Maintenance {
    pub(crate) manifest: ManifestStore,
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) keys: Arc<dyn TenantKeySource>,
    pub(crate) entropy: Arc<dyn Entropy>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) cache: Arc<FileCache>,
    pub(crate) limits: EngineLimits,
    pub(crate) wal: Arc<Wal>,
    pub(crate) garbage: Garbage,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) wanted: Wanted,
    pub(crate) due: DueQueue,
}

impl std::fmt::Debug for Maintenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maintenance").finish_non_exhaustive()
    }
}

/// What is left to do for one table once the commit is durable.
struct Swap {
    tenant: TenantId,
    handle: Arc<TableHandle>,
    chunks: Vec<Arc<Chunk>>,
    files: Vec<Arc<FileEntry>>,
    /// Rows up to this time were late.
    late_to: i64,
    series: usize,
    tags: usize,
}

impl Maintenance {
    /// Writes what was sealed, commits, swaps, trims the log.
    pub(crate) async fn flush(&mut self, sealed: &Sealed) -> Result<FlushReport, FlushError> {
        let mut bundle = BundleWriter::new(random_bytes(self.entropy.as_ref()));
        // Counted until the object is stored.
        let mut written = self.hold(0);
        let mut report = FlushReport::default();
        let mut tenants: BTreeMap<TenantId, TenantDelta> = BTreeMap::new();
        let mut swaps = Vec::new();
        for tenant in self.shared.all_awake() {
            let keys = match self.keys.current(&tenant.id.0) {
                Ok(keys) => keys,
                // A destroyed tenant's rows cannot be sealed and must not be kept.
                Err(KeyError::Gone { .. }) => {
                    tenant.tables().values().for_each(|table| table.forget_rows());
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let out = (&mut swaps, &mut written);
            let tables =
                self.flush_tenant(&tenant, &keys, sealed.day, &mut bundle, out, &mut report)?;
            if !tables.is_empty() {
                tenants.insert(tenant.id, TenantDelta { tables, ..TenantDelta::default() });
            }
        }
        self.add_marks(sealed, &mut tenants)?;
        let dirty = swaps.iter().any(|s| !s.chunks.is_empty() || !s.files.is_empty());
        if !dirty && sealed.lsn <= self.manifest.flushed_lsn() {
            self.shared.recount();
            return Ok(report);
        }
        report.bytes = self.put(bundle).await?;
        drop(written);
        if planted(Bug::TrimEarly) {
            self.wal.trim_below(sealed.lsn + 1)?;
        }
        self.commit(Delta { flushed_lsn: sealed.lsn, tenants }).await?;
        for swap in &swaps {
            swap.handle.flushed(&swap.files, &swap.chunks, swap.series, swap.tags);
            self.wanted.changed(swap.tenant, swap.handle.table_id);
            note(swap);
        }
        self.shared.recount();
        metrics::counter!(Metric::Flushes.name()).increment(1);
        self.wal.trim_below(sealed.lsn + 1)?;
        Ok(report)
    }

    /// Counts anew what is in memory, after tenants were let go.
    pub(crate) fn let_gone(&self, tenants: usize) {
        if tenants > 0 {
            self.shared.recount();
            tracing::debug!(tenants, "tenants that do nothing were let go");
        }
    }

    fn hold(&self, bytes: usize) -> Held {
        self.shared.memory().hold(MemoryClass::Flush, bytes)
    }

    /// Adds what moved beside the rows: watermarks and table ids. A tenant of which the manifest
    /// knows all of it already has no part in the record, however many tenants there are.
    fn add_marks(
        &self,
        sealed: &Sealed,
        tenants: &mut BTreeMap<TenantId, TenantDelta>,
    ) -> Result<(), CommitError> {
        let mut known: BTreeMap<TenantId, Option<Arc<TenantManifest>>> = BTreeMap::new();
        let streams = sealed.streams.iter().map(|(id, ..)| *id);
        for id in streams.chain(sealed.next_table_ids.iter().map(|(id, _)| *id)) {
            if let Entry::Vacant(new) = known.entry(id) {
                new.insert(self.manifest.tenant(&id)?);
            }
        }
        let known = |id: &TenantId| known.get(id).and_then(Option::as_ref);
        // A destroyed tenant has no part in the record; its marks would only be left out later.
        let gone = |id: &TenantId| matches!(self.keys.current(&id.0), Err(KeyError::Gone { .. }));
        for (id, key, hi) in sealed.streams.iter().filter(|_| !planted(Bug::WatermarkNotStored)) {
            let state = StreamState { hi: *hi };
            let known = known(id).and_then(|t| t.streams.get(key));
            if known != Some(&state) && !gone(id) {
                tenants.entry(*id).or_default().streams.insert(key.clone(), state);
            }
        }
        for (id, next) in &sealed.next_table_ids {
            let known = known(id).map_or(1, |t| t.next_table_id);
            if *next > known && !gone(id) {
                tenants.entry(*id).or_default().next_table_id = Some(*next);
            }
        }
        Ok(())
    }

    /// Tenants that have long done nothing and of which no merge is wanted, for the writer to let
    /// go of.
    pub(crate) fn idle(&mut self) -> Result<Vec<Idle>, CommitError> {
        let mut out = Vec::new();
        let Some(since) = self.shared.idle_since(self.limits.idle_after) else { return Ok(out) };
        // What a flush has just written is planned first: most of it wants no merge.
        self.look();
        for handle in self.shared.all_awake() {
            let id = handle.id;
            if handle.used() > since || self.wanted.concerns(id) {
                continue;
            }
            let Some(manifest) = self.manifest.tenant(&id)? else { continue };
            // Else the work would be for nothing, and is done again at each flush.
            if !settled(&handle, &manifest) {
                continue;
            }
            if let Some(part) = self.manifest.pack(&id)? {
                out.push(Idle { id, manifest, part });
            }
        }
        Ok(out)
    }

    fn flush_tenant(
        &self,
        tenant: &TenantHandle,
        keys: &Arc<TenantKeys>,
        day: u32,
        bundle: &mut BundleWriter,
        (swaps, written): (&mut Vec<Swap>, &mut Held),
        report: &mut FlushReport,
    ) -> Result<BTreeMap<u64, TableDelta>, FlushError> {
        let mut deltas = BTreeMap::new();
        for handle in tenant.tables().values() {
            let version = handle.current.load_full();
            let chunks = version.flushing.clone();
            let lost = usize::from(planted(Bug::FlushLosesChunk));
            let Some(columns) = version.sealed.clone().filter(|_| version.schema.version > 0)
            else {
                // No row of it has ever been durable.
                continue;
            };
            let (from, to) = (handle.flushed_series(), columns.series);
            let mut new_series = handle.dictionary.since(from);
            new_series.truncate(to.saturating_sub(from));
            if chunks.is_empty() && new_series.is_empty() {
                continue;
            }
            let view = handle.dictionary.view();
            let schema = columns.schema;
            let fields: Vec<(u32, FieldType)> =
                schema.fields.iter().map(|f| (f.id, f.ty)).collect();
            let all = RowFilter { time: i64::MIN..i64::MAX, series: None };
            let newest = |files: &mut dyn Iterator<Item = i64>| files.max().unwrap_or(i64::MIN);
            let known = newest(&mut version.files.iter().map(|f| f.t_max));
            let now = known.max(newest(&mut chunks.iter().map(|c| c.t_max)));
            let territory = Territory::new(&version.files, &self.limits, now);
            let mut files = Vec::new();
            let taken = chunks.get(lost..).unwrap_or_default();
            for part in parts(taken, self.limits.memory.total() / FLUSH_PART) {
                let rows: usize = part.iter().map(|c| c.rows()).sum();
                let _places = self.hold(rows * SORT_BYTES_PER_ROW);
                let lsn_lo = part.iter().map(|c| c.lsn.start).min().unwrap_or(0);
                let lsn_hi = part.iter().map(|c| c.lsn.end).max().unwrap_or(1) - 1;
                let windows = sorted_windows(part, &all, &fields, &view, |t| territory.slot(t));
                let count = windows.len();
                for (nth, window) in windows.enumerate() {
                    let last = nth + 1 == count;
                    if planted(Bug::FlushSkipsWindow) && nth == 0 && !last {
                        continue;
                    }
                    let misplaced = planted(Bug::LateFileMisplaced) && !version.files.is_empty();
                    let lsns = if misplaced { (1, 1) } else { (lsn_lo, lsn_hi) };
                    let run = without_empty_columns(&window?.1);
                    // The sorted copy, its encoded form, and that sealed.
                    let _run = self.hold(run.batch.get_array_memory_size() * 3);
                    let entry = self.add_file(&run, &schema, keys, bundle, 0, lsns)?;
                    report.files += 1;
                    report.rows += entry.rows;
                    files.push(Arc::new(entry));
                    written.resize(bundle.bytes_held());
                }
            }
            let mut sections = Vec::new();
            for part in section::parts(&new_series, section::PART_BYTES) {
                let body = section::encode(part);
                let section = bundle.add(keys, self.entropy.as_ref(), &body)?;
                sections.push(SeriesSection { section, count: part.len() as u64, day });
            }
            deltas.insert(
                handle.table_id,
                TableDelta {
                    added_files: files.clone(),
                    added_series: sections,
                    ..TableDelta::of(&handle.database, &schema)
                },
            );
            swaps.push(Swap {
                tenant: tenant.id,
                late_to: known.saturating_sub(self.limits.window_ns),
                handle: Arc::clone(handle),
                chunks,
                files,
                series: from + new_series.len(),
                tags: schema.tags.len(),
            });
        }
        Ok(deltas)
    }

    fn add_file(
        &self,
        run: &Run,
        schema: &TableSchema,
        keys: &Arc<TenantKeys>,
        bundle: &mut BundleWriter,
        level: u8,
        (lsn_lo, lsn_hi): (u64, u64),
    ) -> Result<FileEntry, FlushError> {
        let profile = if level == 0 { FileProfile::Hot } else { FileProfile::Merged };
        let ColumnFileParts { parquet, directory, rows, t_min, t_max, .. } =
            write_column_file(run, schema, profile)?;
        let parquet = bundle.add(keys, self.entropy.as_ref(), &parquet)?;
        let directory = bundle.add(keys, self.entropy.as_ref(), &directory)?;
        Ok(FileEntry {
            id: random_bytes(self.entropy.as_ref()),
            table_id: schema.table_id,
            bytes: parquet.len + directory.len,
            parquet,
            directory,
            level,
            t_min,
            t_max,
            rows,
            lsn_lo,
            lsn_hi,
            erased_to: 0,
        })
    }

    pub(crate) async fn put(&self, bundle: BundleWriter) -> Result<u64, FlushError> {
        if bundle.is_empty() {
            return Ok(0);
        }
        let (path, mut bytes) = bundle.finish();
        bytes.truncate(bytes.len() >> u32::from(planted(Bug::PartialBundle)));
        let len = bytes.len() as u64;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&path, bytes.into(), options).await?;
        Ok(len)
    }

    /// Removes objects that the manifest has not named for `grace`.
    pub(crate) async fn sweep(
        &mut self,
        now: Duration,
        grace: Duration,
    ) -> Result<usize, SweepError> {
        self.garbage.sweep(self.store.as_ref(), &mut self.manifest, now, grace).await
    }

    /// Commits; an owner that has been replaced also stops taking writes, because nobody would
    /// ever read what it logs from now on.
    pub(crate) async fn commit(&mut self, delta: Delta) -> Result<(), CommitError> {
        self.manifest.set_clock(self.limits.retention.clock_mark());
        delta.tenants.keys().for_each(|id| self.due.changed(*id));
        let done = self.manifest.commit(delta).await;
        if matches!(done, Err(CommitError::Fenced { .. })) {
            self.shared.stop();
        }
        done.map(|_| ())
    }

    pub(crate) fn access(&self, tenant: TenantId) -> FileAccess {
        FileAccess {
            tenant,
            store: Arc::clone(&self.store),
            keys: Arc::clone(&self.keys),
            cache: Arc::clone(&self.cache),
        }
    }
}

/// Counts a table's flush. A file is late as a whole: late rows have files of their own, but for
/// those of the window before the newest.
fn note(swap: &Swap) {
    for file in &swap.files {
        let late = file.t_max < swap.late_to;
        swap.handle.writes.flushed(late, file.rows, file.bytes);
        let arrival = if late { "late" } else { "in_order" };
        metrics::counter!(Metric::FileBytesWritten.name(), "cause" => "flush", "arrival" => arrival)
            .increment(file.bytes);
        metrics::counter!(Metric::FileRowsWritten.name(), "cause" => "flush", "arrival" => arrival)
            .increment(file.rows);
    }
}

/// A file holds only the columns that have a value in it.
fn without_empty_columns(run: &Run) -> Run {
    let keep: Vec<usize> = (1..run.batch.num_columns())
        .filter(|i| run.batch.column(*i).null_count() < run.batch.num_rows())
        .collect();
    if keep.len() + 1 == run.batch.num_columns() {
        return run.clone();
    }
    let columns: Vec<usize> = std::iter::once(0).chain(keep.iter().copied()).collect();
    match run.batch.project(&columns) {
        Ok(batch) => Run {
            field_ids: keep.iter().filter_map(|i| run.field_ids.get(i - 1).copied()).collect(),
            batch,
            series: run.series.clone(),
        },
        Err(_) => run.clone(),
    }
}
