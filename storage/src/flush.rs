//! From sealed memtables to committed files, and small files to larger ones: the manifest's only
//! writer.
//!
//! Owns: the manifest store and the order sections -> one object -> one commit -> swap -> log
//! floor. Never: trims the log before the commit; publishes a file that is not committed.
//! Crash order: any prefix is a legal start: objects without a commit are orphans that gc.rs
//! sweeps; a commit without a trimmed log is replayed up to the flushed position and no further.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_crypto::key::{KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{
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
    compaction,
    files::{FileAccess, FileCache},
    gc::{Garbage, SweepError},
    limits::EngineLimits,
    manifest::{
        CommitError, Delta, FileEntry, ManifestStore, SeriesSection, StreamState, TableDelta,
        TenantDelta,
    },
    memtable::{
        chunk::Chunk,
        sort::{RowFilter, sort_chunks},
    },
    planted::{Bug, planted},
    run::{Run, RunError},
    scan::ReadError,
    schema::TableSchema,
    series::section,
    shard::{table::TableHandle, tenant::TenantHandle, writer::Sealed},
    shared::Shared,
};

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
}

impl std::fmt::Debug for Maintenance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maintenance").finish_non_exhaustive()
    }
}

/// What is left to do for one table once the commit is durable.
struct Swap {
    handle: Arc<TableHandle>,
    chunks: Vec<Arc<Chunk>>,
    files: Vec<Arc<FileEntry>>,
    series: usize,
    tags: usize,
}

impl Maintenance {
    /// Writes what was sealed, commits, swaps, trims the log.
    pub(crate) async fn flush(&mut self, sealed: &Sealed) -> Result<FlushReport, FlushError> {
        let mut bundle = BundleWriter::new(random_bytes(self.entropy.as_ref()));
        let mut report = FlushReport::default();
        let mut tenants: BTreeMap<TenantId, TenantDelta> = BTreeMap::new();
        let mut swaps = Vec::new();
        for tenant in self.shared.tenants() {
            let keys = match self.keys.current(&tenant.id.0) {
                Ok(keys) => keys,
                // A destroyed tenant's rows cannot be sealed and must not be kept.
                Err(KeyError::Gone { .. }) => {
                    tenant.tables().values().for_each(|table| table.forget_rows());
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            let tables = self.flush_tenant(
                &tenant,
                &keys,
                sealed.day,
                &mut bundle,
                &mut swaps,
                &mut report,
            )?;
            if !tables.is_empty() {
                tenants.insert(tenant.id, TenantDelta { tables, ..TenantDelta::default() });
            }
        }
        self.add_marks(sealed, &mut tenants);
        let dirty = swaps.iter().any(|s| !s.chunks.is_empty() || !s.files.is_empty());
        if !dirty && sealed.lsn <= self.manifest.current().flushed_lsn {
            self.shared.recount();
            return Ok(report);
        }
        report.bytes = self.put(bundle).await?;
        if planted(Bug::TrimEarly) {
            self.wal.trim_below(sealed.lsn + 1)?;
        }
        self.commit(Delta { flushed_lsn: sealed.lsn, tenants }).await?;
        for swap in &swaps {
            swap.handle.flushed(&swap.files, &swap.chunks, swap.series, swap.tags);
        }
        self.shared.recount();
        metrics::counter!(Metric::Flushes.name()).increment(1);
        metrics::counter!(Metric::FileBytesWritten.name(), "cause" => "flush")
            .increment(report.bytes);
        self.wal.trim_below(sealed.lsn + 1)?;
        Ok(report)
    }

    /// Adds what moved beside the rows: watermarks and table ids. A tenant of which the manifest
    /// knows all of it already has no part in the record, however many tenants there are.
    fn add_marks(&self, sealed: &Sealed, tenants: &mut BTreeMap<TenantId, TenantDelta>) {
        let current = self.manifest.current();
        // A destroyed tenant has no part in the record; its marks would only be left out later.
        let gone = |id: &TenantId| matches!(self.keys.current(&id.0), Err(KeyError::Gone { .. }));
        for (id, key, hi) in &sealed.streams {
            let state = StreamState { hi: *hi };
            let known = current.tenants.get(id).and_then(|t| t.streams.get(key));
            if known != Some(&state) && !gone(id) {
                tenants.entry(*id).or_default().streams.insert(key.clone(), state);
            }
        }
        for (id, next) in &sealed.next_table_ids {
            let known = current.tenants.get(id).map_or(1, |t| t.next_table_id);
            if *next > known && !gone(id) {
                tenants.entry(*id).or_default().next_table_id = Some(*next);
            }
        }
    }

    fn flush_tenant(
        &self,
        tenant: &TenantHandle,
        keys: &Arc<TenantKeys>,
        day: u32,
        bundle: &mut BundleWriter,
        swaps: &mut Vec<Swap>,
        report: &mut FlushReport,
    ) -> Result<BTreeMap<u64, TableDelta>, FlushError> {
        let mut deltas = BTreeMap::new();
        for handle in tenant.tables().values() {
            let version = handle.current.load_full();
            let chunks = version.flushing.clone();
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
            let lsn_lo = chunks.iter().map(|c| c.lsn.start).min().unwrap_or(0);
            let lsn_hi = chunks.iter().map(|c| c.lsn.end).max().unwrap_or(1) - 1;
            let fields: Vec<(u32, FieldType)> =
                schema.fields.iter().map(|f| (f.id, f.ty)).collect();
            let all = RowFilter { time: i64::MIN..i64::MAX, series: None };
            let runs = sort_chunks(&chunks, &all, &fields, &view, self.limits.window_ns)?;
            let mut files = Vec::new();
            for run in runs.values() {
                let run = without_empty_columns(run);
                let entry = self.add_file(&run, &schema, keys, bundle, 0, (lsn_lo, lsn_hi))?;
                report.files += 1;
                report.rows += entry.rows;
                files.push(Arc::new(entry));
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
                    database: handle.database.clone(),
                    schema: TableSchema::clone(&schema),
                    added_files: files.clone(),
                    removed_files: Vec::new(),
                    added_series: sections,
                },
            );
            swaps.push(Swap {
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
        let ColumnFileParts { parquet, directory, rows, t_min, t_max, .. } =
            write_column_file(run, schema, FileProfile::Hot)?;
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
        })
    }

    async fn put(&self, bundle: BundleWriter) -> Result<u64, FlushError> {
        if bundle.is_empty() {
            return Ok(0);
        }
        let (path, bytes) = bundle.finish();
        let len = bytes.len() as u64;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        self.store.put_opts(&path, bytes.into(), options).await?;
        Ok(len)
    }

    /// Does one merge job if any table wants one; returns whether it did. A table whose files
    /// cannot be read does not keep the others from being merged.
    pub(crate) async fn compact_once(&mut self) -> Result<bool, FlushError> {
        let mut unread = None;
        for tenant in self.shared.tenants() {
            let keys = match self.keys.current(&tenant.id.0) {
                Ok(keys) => keys,
                Err(KeyError::Gone { .. }) => continue,
                Err(e) => return Err(e.into()),
            };
            for handle in tenant.tables().values() {
                let version = handle.current.load_full();
                if let Some(job) = compaction::planner::plan(&version.files, &self.limits) {
                    match self.compact(&tenant, handle, &keys, &version.schema, &job).await {
                        Ok(()) => return Ok(true),
                        Err(FlushError::Read(e)) => unread = unread.or(Some(e)),
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        unread.map_or(Ok(false), |e| Err(e.into()))
    }

    async fn compact(
        &mut self,
        tenant: &TenantHandle,
        handle: &Arc<TableHandle>,
        keys: &Arc<TenantKeys>,
        schema: &Arc<TableSchema>,
        job: &compaction::planner::Job,
    ) -> Result<(), FlushError> {
        let access = self.access(tenant.id);
        let view = handle.dictionary.view();
        let run = compaction::runner::run(job, schema, &view, &access).await?;
        let run = without_empty_columns(&run);
        let lsn_lo = job.inputs.iter().map(|f| f.lsn_lo).min().unwrap_or(0);
        let lsn_hi = job.inputs.iter().map(|f| f.lsn_hi).max().unwrap_or(0);
        let level = job.inputs.iter().map(|f| f.level).max().unwrap_or(0).saturating_add(1);
        let mut bundle = BundleWriter::new(random_bytes(self.entropy.as_ref()));
        let entry = self.add_file(&run, schema, keys, &mut bundle, level, (lsn_lo, lsn_hi))?;
        let bytes = self.put(bundle).await?;
        let added = vec![Arc::new(entry)];
        let removed: Vec<[u8; 16]> = job.inputs.iter().map(|f| f.id).collect();
        let delta = TableDelta {
            database: handle.database.clone(),
            schema: TableSchema::clone(schema),
            added_files: added.clone(),
            removed_files: removed.clone(),
            added_series: Vec::new(),
        };
        let tables = BTreeMap::from([(handle.table_id, delta)]);
        let tenant_delta = TenantDelta { tables, streams: BTreeMap::new(), next_table_id: None };
        let flushed_lsn = self.manifest.current().flushed_lsn;
        self.commit(Delta { flushed_lsn, tenants: BTreeMap::from([(tenant.id, tenant_delta)]) })
            .await?;
        handle.compacted(&added, &removed);
        job.inputs.iter().for_each(|file| self.garbage.file_left(file));
        self.cache.forget(tenant.id, &removed);
        metrics::counter!(Metric::Compactions.name()).increment(1);
        metrics::counter!(Metric::FileBytesWritten.name(), "cause" => "compaction")
            .increment(bytes);
        Ok(())
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
    async fn commit(&mut self, delta: Delta) -> Result<(), CommitError> {
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
