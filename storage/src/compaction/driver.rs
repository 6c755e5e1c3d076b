//! The maintenance's part that merges: keeps the list of what is wanted, does one job at a time,
//! commits it.
//!
//! Owns: which tables are to be looked at again, and whether a table's writes wait.
//! Crash order: outputs -> one commit -> swap. A crash before the commit leaves outputs that
//! nobody names, which the next start sweeps, and the same job is planned again.
//! Never: lets a table wait for a merge that cannot be had: files that cannot be read are
//! reported and the table goes on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use millrace_crypto::key::KeyError;
use millrace_platform::{entropy::random_bytes, metric::Metric};
use millrace_protocol::ids::TenantId;

use super::{
    history::{CompactionRecord, Reason},
    overlap::overlap,
    planner::{self, Job},
    runner::{MergeError, Merger, Sizes},
    scheduler::Scheduler,
};
use crate::{
    column_file::{bundle::BundleWriter, writer::ColumnFileParts},
    erase::{Cause, Tombstone},
    flush::{FlushError, Maintenance},
    idle::WakeError,
    limits::EngineLimits,
    manifest::{Delta, FileEntry, TableDelta, TenantDelta, TenantManifest},
    shard::{
        table::{TableHandle, TableVersion},
        tenant::TenantHandle,
    },
};

/// A duration in ns.
fn ns(age: Duration) -> i64 {
    i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)
}

/// A table of a tenant, by its number.
type TableKey = (TenantId, u64);

/// What is wanted.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Tables whose files have changed since they were looked at.
    changed: BTreeSet<TableKey>,
    jobs: BTreeMap<TableKey, Job>,
    /// Tables whose last merge failed.
    failing: BTreeSet<TableKey>,
    /// Tables whose writes wait.
    slowed: BTreeSet<TableKey>,
    /// Tables with deleted rows, and when files are to be rewritten without them.
    erasing: BTreeMap<TableKey, i64>,
    scheduler: Scheduler,
}

/// A table and whose it is.
type Found = (Arc<TenantHandle>, Arc<TableHandle>);

impl Wanted {
    /// What a start finds wanted. A table in which nothing is to be merged is not looked at, so that
    /// its tenant need not be loaded.
    pub(crate) fn at_start(
        &mut self,
        tenant: TenantId,
        part: &TenantManifest,
        limits: &EngineLimits,
        now_ns: i64,
    ) {
        for (id, table) in &part.tables {
            let deep = overlap(&table.files) >= limits.overlap_max;
            let statement = |t: &&Arc<Tombstone>| t.cause == Cause::Statement;
            if deep || planner::plan(&table.files, limits, now_ns).is_some() {
                self.changed(tenant, *id);
            } else if let Some(first) = table.tombstones.iter().find(statement) {
                // Looked at when it is due, so that the tenant need not be loaded before.
                let at = first.made_ns.saturating_add(ns(limits.erase_after));
                self.erasing.insert((tenant, *id), at);
            }
        }
    }

    /// Notes that a table's files have changed.
    pub(crate) fn changed(&mut self, tenant: TenantId, table_id: u64) {
        self.changed.insert((tenant, table_id));
    }

    /// A table is no more.
    pub(crate) fn gone(&mut self, tenant: TenantId, table_id: u64) {
        let key = (tenant, table_id);
        self.changed.remove(&key);
        self.jobs.remove(&key);
        self.failing.remove(&key);
        self.slowed.remove(&key);
        self.erasing.remove(&key);
    }

    /// Looks again at the tables whose deleted rows are to be rewritten by now.
    pub(crate) fn erasable(&mut self, now_ns: i64) {
        let due: Vec<TableKey> =
            self.erasing.iter().filter(|(_, at)| **at <= now_ns).map(|(key, _)| *key).collect();
        for key in due {
            self.erasing.remove(&key);
            self.changed.insert(key);
        }
    }

    /// Whether there is anything to do, or to look at, for a tenant.
    pub(crate) fn concerns(&self, tenant: TenantId) -> bool {
        let all = (tenant, 0)..=(tenant, u64::MAX);
        self.changed.range(all.clone()).next().is_some()
            || self.jobs.range(all.clone()).next().is_some()
            || self.slowed.range(all).next().is_some()
    }

    /// Each tenant's most urgent job, without tables in `skip`.
    fn by_tenant(&self, skip: &BTreeSet<TableKey>) -> BTreeMap<TenantId, (Reason, u64, TableKey)> {
        let mut out: BTreeMap<TenantId, (Reason, u64, TableKey)> = BTreeMap::new();
        for (key, job) in self.jobs.iter().filter(|(key, _)| !skip.contains(key)) {
            let this = (job.reason, job.bytes(), *key);
            let best = out.entry(key.0).or_insert(this);
            if this.0 < best.0 {
                *best = this;
            }
        }
        out
    }
}

/// The outputs of a job, stored but not yet committed.
struct Merged {
    files: Vec<Arc<FileEntry>>,
    start_ns: i64,
}

impl Maintenance {
    /// Does one merge job if any table wants one; returns whether it did. A table whose files
    /// cannot be read does not keep the others from being merged.
    pub(crate) async fn compact_once(&mut self) -> Result<bool, FlushError> {
        self.look();
        let mut skip = BTreeSet::new();
        let mut failed = None;
        loop {
            let waiting = self.wanted.by_tenant(&skip);
            let lean = waiting.iter().map(|(id, (reason, bytes, _))| (*id, (*reason, *bytes)));
            let picked = self.wanted.scheduler.pick(&lean.collect());
            let Some((tenant, (_, _, key))) = picked.and_then(|id| Some((id, *waiting.get(&id)?)))
            else {
                return failed.map_or(Ok(false), Err);
            };
            match self.compact(tenant, key).await {
                Ok(()) => {
                    self.wanted.failing.remove(&key);
                    return Ok(true);
                }
                Err(error @ (FlushError::Read(_) | FlushError::Keys(_) | FlushError::Wake(_))) => {
                    skip.insert(key);
                    self.wanted.failing.insert(key);
                    self.slow(key, false);
                    failed = failed.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether some table's writes wait for merges.
    pub(crate) fn must_merge(&self) -> bool {
        !self.wanted.slowed.is_empty()
    }

    /// Plans the tables whose files have changed.
    pub(crate) fn look(&mut self) {
        let now = self.clock.now_ns();
        for key in std::mem::take(&mut self.wanted.changed) {
            let handle = match self.find(key) {
                Ok(Some((_, handle))) => handle,
                Ok(None) => {
                    self.wanted.jobs.remove(&key);
                    continue;
                }
                Err(error) => {
                    tracing::error!(%error, "a table cannot be merged");
                    self.wanted.jobs.remove(&key);
                    continue;
                }
            };
            let version = handle.current.load_full();
            let job = self.plan(key, &handle, &version, now);
            let deep = overlap(&version.files) >= self.limits.overlap_max;
            if deep && job.is_none() {
                tracing::warn!(
                    table = version.schema.name,
                    files = version.files.len(),
                    "many files overlap and cannot be merged within the limit of one merge"
                );
            }
            self.slow(key, deep && job.is_some() && !self.wanted.failing.contains(&key));
            match job {
                Some(job) => self.wanted.jobs.insert(key, job),
                None => self.wanted.jobs.remove(&key),
            };
        }
        metrics::gauge!(Metric::CompactionsWaiting.name()).set(self.wanted.jobs.len() as f64);
    }

    /// What to merge of a table next: what queries wait for, or what was deleted long ago.
    fn plan(
        &mut self,
        key: TableKey,
        handle: &TableHandle,
        version: &TableVersion,
        now: i64,
    ) -> Option<Job> {
        if version.tombstones.is_empty() {
            return planner::plan(&version.files, &self.limits, now);
        }
        let name = (handle.database.clone(), version.schema.name.clone());
        let rules = self.limits.retention.rules(key.0);
        if rules.is_some_and(|rules| rules.holds.holds(&name)) {
            // A merge would leave out deleted rows, which a hold keeps.
            return None;
        }
        let trusted = self.trusted().now_ns;
        let before = |age: Duration| trusted.saturating_sub(ns(age));
        let rewrite = |made| planner::rewrite(&version.files, &version.tombstones, made);
        let job = rewrite(before(self.limits.erase_within / 2))
            .or_else(|| planner::plan(&version.files, &self.limits, now))
            .or_else(|| rewrite(before(self.limits.erase_after)));
        let statements = version.tombstones.iter().filter(|t| t.cause == Cause::Statement);
        if let Some(first) = statements.map(|t| t.made_ns).min().filter(|_| job.is_none()) {
            let at = first.saturating_add(ns(self.limits.erase_after));
            self.wanted.erasing.insert(key, at.max(trusted.saturating_add(1)));
        }
        job
    }

    /// Lets a table's writes wait for merges, or go on.
    fn slow(&mut self, key: TableKey, slowed: bool) {
        if let Ok(Some((_, handle))) = self.find(key)
            && handle.slow(slowed) != slowed
        {
            tracing::warn!(
                table = handle.current.load().schema.name,
                slowed,
                "writes to a table wait until its files are merged, or go on"
            );
        }
        if slowed {
            self.wanted.slowed.insert(key);
        } else {
            self.wanted.slowed.remove(&key);
        }
        metrics::gauge!(Metric::TablesSlowed.name()).set(self.wanted.slowed.len() as f64);
    }

    fn find(&self, (tenant, table): TableKey) -> Result<Option<Found>, WakeError> {
        let Some(tenant) = self.shared.tenant(tenant)? else { return Ok(None) };
        let handle = tenant.tables().values().find(|t| t.table_id == table).cloned();
        Ok(handle.map(|handle| (tenant, handle)))
    }

    async fn compact(&mut self, id: TenantId, key: TableKey) -> Result<(), FlushError> {
        let (Some((tenant, handle)), Some(job)) = (self.find(key)?, self.wanted.jobs.remove(&key))
        else {
            return Ok(());
        };
        let merged = match self.merge(&tenant, &handle, &job).await {
            Ok(merged) => merged,
            // Destroyed: its files are nobody's.
            Err(FlushError::Keys(KeyError::Gone { .. })) => return Ok(()),
            Err(error) => {
                self.wanted.jobs.insert(key, job);
                return Err(error);
            }
        };
        let done = self.install(&tenant, &handle, &job, merged).await;
        // Whatever came of it: look again, at the files that are there now.
        self.wanted.changed(id, handle.table_id);
        done
    }

    /// Writes the job's outputs, one object each, so that one at a time is in memory.
    async fn merge(
        &self,
        tenant: &TenantHandle,
        handle: &TableHandle,
        job: &Job,
    ) -> Result<Merged, FlushError> {
        let start_ns = self.clock.now_ns();
        let keys = self.keys.current(&tenant.id.0)?;
        let schema = Arc::clone(&handle.current.load().schema);
        let lsn_lo = job.inputs.iter().map(|f| f.lsn_lo).min().unwrap_or(0);
        let lsn_hi = job.inputs.iter().map(|f| f.lsn_hi).max().unwrap_or(0);
        let access = self.access(tenant.id);
        let view = handle.dictionary.view();
        let sizes =
            Sizes { file: self.limits.merge_file_bytes, group: self.limits.merge_group_bytes };
        let stones = handle.current.load().tombstones.clone();
        // All that concern an input are heeded, so that the outputs are free of every one of them.
        let erased_to = stones.iter().map(|t| t.id).max().unwrap_or(0);
        let mut merger =
            Merger::open(job, Arc::clone(&schema), view, &access, sizes, &stones).await?;
        let mut files = Vec::new();
        while let Some(parts) = merger.next_file().await.map_err(flush_error)? {
            let ColumnFileParts { parquet, directory, rows, t_min, t_max } = parts;
            let mut bundle = BundleWriter::new(random_bytes(self.entropy.as_ref()));
            let parquet = bundle.add(&keys, self.entropy.as_ref(), &parquet)?;
            let directory = bundle.add(&keys, self.entropy.as_ref(), &directory)?;
            self.put(bundle).await?;
            files.push(Arc::new(FileEntry {
                id: random_bytes(self.entropy.as_ref()),
                table_id: handle.table_id,
                bytes: parquet.len + directory.len,
                parquet,
                directory,
                level: job.level,
                t_min,
                t_max,
                rows,
                lsn_lo,
                lsn_hi,
                erased_to,
            }));
        }
        Ok(Merged { files, start_ns })
    }

    async fn install(
        &mut self,
        tenant: &TenantHandle,
        handle: &TableHandle,
        job: &Job,
        Merged { files, start_ns }: Merged,
    ) -> Result<(), FlushError> {
        let removed: Vec<[u8; 16]> = job.inputs.iter().map(|f| f.id).collect();
        let over = handle.ended(&files, &removed);
        let delta = TableDelta {
            added_files: files.clone(),
            removed_files: removed.clone(),
            removed_tombstones: over.clone(),
            ..TableDelta::of(&handle.database, &handle.current.load().schema)
        };
        let tables = BTreeMap::from([(handle.table_id, delta)]);
        let tenant_delta = TenantDelta { tables, ..TenantDelta::default() };
        let flushed_lsn = self.manifest.flushed_lsn();
        self.commit(Delta { flushed_lsn, tenants: BTreeMap::from([(tenant.id, tenant_delta)]) })
            .await?;
        handle.compacted(&files, &removed, &over);
        job.inputs.iter().for_each(|file| self.garbage.file_left(file));
        self.cache.forget(tenant.id, &removed);
        let record = CompactionRecord {
            start_ns,
            end_ns: self.clock.now_ns(),
            database: handle.database.clone(),
            table: handle.current.load().schema.name.clone(),
            inputs: job.inputs.len(),
            outputs: files.len(),
            rows_in: job.inputs.iter().map(|f| f.rows).sum(),
            rows_out: files.iter().map(|f| f.rows).sum(),
            bytes_in: job.bytes(),
            bytes_out: files.iter().map(|f| f.bytes).sum(),
            level: job.level,
            reason: job.reason,
        };
        note(handle, &record);
        tenant.history.push(record);
        Ok(())
    }
}

fn flush_error(error: MergeError) -> FlushError {
    match error {
        MergeError::Read(e) => e.into(),
        MergeError::Write(e) => e.into(),
    }
}

/// Counts a merge.
fn note(handle: &TableHandle, record: &CompactionRecord) {
    handle.writes.merged(record.reason.is_late(), record.rows_out, record.bytes_out);
    metrics::counter!(Metric::Compactions.name(), "reason" => record.reason.as_str()).increment(1);
    let arrival = if record.reason.is_late() { "late" } else { "in_order" };
    metrics::counter!(Metric::FileBytesWritten.name(), "cause" => "compaction", "arrival" => arrival)
        .increment(record.bytes_out);
    metrics::counter!(Metric::FileRowsWritten.name(), "cause" => "compaction", "arrival" => arrival)
        .increment(record.rows_out);
    let writes = handle.writes.get();
    for (arrival, value) in
        [("in_order", writes.writes_per_row()), ("late", writes.writes_per_late_byte())]
    {
        if let Some(value) = value {
            metrics::histogram!(Metric::TableWriteAmplification.name(), "arrival" => arrival)
                .record(value);
        }
    }
}
