//! The maintenance's part that lets go of what is out of retention.
//!
//! Owns: the pass: which tenants are looked at, one commit for all of them, what follows from it.
//! A pass is metadata alone: one manifest record; gc.rs removes the objects later.
//! Crash order: the record, then memory. Before the record nothing has happened, after it a start
//! finds the files gone and sweeps them.
//! Never: wakes a tenant that sleeps; takes more than [`TENANTS_MAX`] tenants at once, so that
//! flushes and merges are not kept waiting.

use std::{collections::BTreeMap, sync::Arc};

use millrace_platform::metric::Metric;
use millrace_protocol::ids::TenantId;

use super::{
    DAY_NS,
    forecast::{Expired, beyond_ageing, expired, next_due},
};
use crate::{
    erase::{Cause, Tombstone, ended},
    flush::{FlushError, Maintenance},
    manifest::{
        CommitError, Delta, TableDelta, TableManifest, TenantDelta, TenantManifest, parts::Packed,
    },
};

/// Tenants of one pass.
const TENANTS_MAX: usize = 256;
/// The durable clock is at most so far behind: half of what a restart is believed.
const CLOCK_NS: i64 = 6 * 3600 * 1_000_000_000;

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Tenants looked at.
    pub tenants: usize,
    /// Files that left.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Their sealed bytes.
    pub bytes: u64,
    /// Tenants whose pass waits for a confirmation.
    pub blocked: usize,
    /// Whether more is due now.
    pub more: bool,
}

/// Whether a table has series and no rows.
fn bare(table: &TableManifest) -> bool {
    table.files.is_empty() && !table.series_sections.is_empty()
}

/// What leaves of one tenant.
struct Leaves {
    id: TenantId,
    expired: Vec<Expired>,
}

impl Maintenance {
    /// Trusted time now.
    pub(crate) fn trusted(&self) -> super::ClockState {
        self.limits.retention.tell(self.clock.now_ns(), self.clock.monotonic())
    }

    /// Lets go of what is due.
    pub(crate) async fn retain(&mut self) -> Result<RetentionReport, FlushError> {
        let told = self.trusted();
        let now = told.now_ns;
        self.wanted.erasable(now);
        for id in self.limits.retention.take_changed() {
            self.due.changed(id);
            self.look_at_deleted(id)?;
        }
        for id in self.due.take_unknown(TENANTS_MAX) {
            self.set_due(id, now)?;
        }
        let mut report = RetentionReport::default();
        if told.may_drop() {
            let due = self.due.take_due(now, TENANTS_MAX);
            report.tenants = due.len();
            // Whatever comes of it, they are looked at again.
            due.iter().for_each(|id| self.due.changed(*id));
            let mut leaving = Vec::new();
            for id in due {
                leaving.extend(self.leaving(id, now, &mut report)?);
            }
            self.let_leave(leaving, now, &mut report).await?;
            self.let_series_leave(now).await?;
            for id in self.due.take_unknown(TENANTS_MAX) {
                self.set_due(id, now)?;
            }
            report.more = self.due.waits(now);
        }
        self.keep_clock(now).await?;
        Ok(report)
    }

    /// When to look at a tenant next. One whose pass waits for an answer is looked at every day.
    fn set_due(&mut self, id: TenantId, now: i64) -> Result<(), FlushError> {
        let mut at = None;
        if let Some(rules) = self.limits.retention.rules(id)
            && let Some(part) = self.manifest.tenant(&id).map_err(CommitError::Record)?
        {
            at = next_due(&part, &rules, now);
            if part.tables.values().any(bare) {
                self.due.set_bare(id, now);
            }
            if self.limits.retention.blocked(id).is_some() {
                at = at.map(|at| at.max(now.saturating_add(DAY_NS)));
            }
        }
        self.due.set(id, at);
        Ok(())
    }

    /// What of a tenant leaves now; nothing if that is so much that somebody has to confirm it.
    fn leaving(
        &self,
        id: TenantId,
        now: i64,
        report: &mut RetentionReport,
    ) -> Result<Option<Leaves>, FlushError> {
        let Some(rules) = self.limits.retention.rules(id) else { return Ok(None) };
        let part = self.manifest.tenant(&id).map_err(CommitError::Record)?;
        let Some(part) = part else { return Ok(None) };
        let expired = expired(&part, &rules, now);
        let more = beyond_ageing(&part, &expired, self.limits.retention.fuse());
        if more.is_some_and(|more| !self.limits.retention.may_drop(id, more)) {
            report.blocked += 1;
            return Ok(None);
        }
        Ok((!expired.is_empty()).then_some(Leaves { id, expired }))
    }

    async fn let_leave(
        &mut self,
        leaving: Vec<Leaves>,
        now: i64,
        report: &mut RetentionReport,
    ) -> Result<(), FlushError> {
        if leaving.is_empty() {
            return Ok(());
        }
        let mut tenants = BTreeMap::new();
        for one in &leaving {
            let part = self.manifest.tenant(&one.id).map_err(CommitError::Record)?;
            let Some(part) = part else { continue };
            let tables = one.expired.iter().filter_map(|expired| {
                let table = part.tables.get(&expired.table_id)?;
                Some((expired.table_id, self.expire(table, expired, now)))
            });
            let delta = TenantDelta { tables: tables.collect(), ..TenantDelta::default() };
            tenants.insert(one.id, delta);
        }
        let deltas = tenants.clone();
        let flushed_lsn = self.manifest.flushed_lsn();
        self.commit(Delta { flushed_lsn, tenants }).await?;
        for one in &leaving {
            if let Some(delta) = deltas.get(&one.id) {
                self.install_erased(one.id, delta)?;
            }
            for file in one.expired.iter().flat_map(|e| &e.files) {
                self.garbage.file_left(file);
                report.files += 1;
                report.rows += file.rows;
                report.bytes += file.bytes;
            }
            self.limits.retention.dropped(one.id);
        }
        metrics::counter!(Metric::RetentionFiles.name()).increment(report.files);
        metrics::counter!(Metric::RetentionBytes.name()).increment(report.bytes);
        tracing::info!(
            files = report.files,
            rows = report.rows,
            bytes = report.bytes,
            "files that are out of retention have left"
        );
        Ok(())
    }

    /// Series of tables without rows leave, too, of tenants that sleep: nobody has them in memory.
    /// First what a waker reads, then the record: should that fail, series are made anew that the
    /// manifest still has, which changes nothing.
    async fn let_series_leave(&mut self, now: i64) -> Result<(), FlushError> {
        let mut tenants = BTreeMap::new();
        for id in self.due.take_bare(now) {
            let part = self.manifest.tenant(&id).map_err(CommitError::Record)?;
            let Some(part) = part else { continue };
            let mut left = TenantManifest::clone(&part);
            let mut tables = BTreeMap::new();
            for (table_id, table) in left.tables.iter_mut().filter(|(_, t)| bare(t)) {
                let mut delta = TableDelta::of(&table.database, &table.schema);
                let sections = table.series_sections.drain(..);
                delta.removed_series = sections.map(|s| s.section).collect();
                tables.insert(*table_id, delta);
            }
            let left = Packed::pack(&left).map_err(CommitError::Record)?;
            if tables.is_empty() {
                continue;
            }
            if self.shared.moved(id, left) {
                tenants.insert(id, TenantDelta { tables, ..TenantDelta::default() });
            } else {
                self.due.set_bare(id, now.saturating_add(DAY_NS));
            }
        }
        if tenants.is_empty() {
            return Ok(());
        }
        let ids: Vec<TenantId> = tenants.keys().copied().collect();
        let flushed_lsn = self.manifest.flushed_lsn();
        self.commit(Delta { flushed_lsn, tenants }).await?;
        for id in ids {
            self.manifest.pack(&id).map_err(CommitError::Record)?;
        }
        Ok(())
    }

    /// The change of one table: its files leave, and what other files still have from before that
    /// time is deleted with them, or a longer plan would show older versions of the same rows.
    fn expire(&self, table: &TableManifest, expired: &Expired, now: i64) -> TableDelta {
        let gone: Vec<[u8; 16]> = expired.files.iter().map(|f| f.id).collect();
        let left: Vec<_> = table.files.iter().filter(|f| !gone.contains(&f.id)).cloned().collect();
        let stone = Arc::new(Tombstone {
            id: self.manifest.number() + 1,
            seq: self.manifest.flushed_lsn(),
            t_min: i64::MIN,
            t_max: expired.below_ns.saturating_sub(1),
            series: None,
            cause: Cause::Retention,
            made_ns: now,
        });
        // One of these says what the one before it said, and more.
        let mut over: Vec<u64> = ended(&table.tombstones, &left).collect();
        let before = table.tombstones.iter().filter(|t| {
            t.cause == Cause::Retention && t.t_max <= stone.t_max && !over.contains(&t.id)
        });
        let before: Vec<u64> = before.map(|t| t.id).collect();
        over.extend(before);
        TableDelta {
            removed_files: gone,
            added_tombstones: vec![stone],
            removed_tombstones: over,
            ..TableDelta::of(&table.database, &table.schema)
        }
    }

    /// Shows readers what a commit has deleted, whether the tenant is awake or not.
    pub(crate) fn install_erased(
        &mut self,
        id: TenantId,
        delta: &TenantDelta,
    ) -> Result<(), FlushError> {
        let mut files = Vec::new();
        loop {
            if let Some(handle) = self.shared.awake(id) {
                for table in handle.tables().values() {
                    if let Some(change) = delta.tables.get(&table.table_id) {
                        let (gone, over) = (&change.removed_files, &change.removed_tombstones);
                        table.erased(gone, &change.added_tombstones, over);
                        files.extend(gone.iter().copied());
                    }
                }
                break;
            }
            let part = self.manifest.pack(&id).map_err(CommitError::Record)?;
            // Somebody may have woken it since, from what was there before.
            if part.is_none_or(|part| self.shared.moved(id, part)) {
                break;
            }
        }
        self.cache.forget(id, &files);
        for table in delta.tables.keys() {
            self.wanted.changed(id, *table);
        }
        Ok(())
    }

    /// A tenant's rules have changed: what was deleted before may have been held.
    fn look_at_deleted(&mut self, id: TenantId) -> Result<(), FlushError> {
        let part = self.manifest.tenant(&id).map_err(CommitError::Record)?;
        for (table, known) in part.iter().flat_map(|p| &p.tables) {
            if !known.tombstones.is_empty() {
                self.wanted.changed(id, *table);
            }
        }
        Ok(())
    }

    /// Writes a record of the time alone, if there was none for long.
    async fn keep_clock(&mut self, now: i64) -> Result<(), FlushError> {
        let behind =
            self.manifest.clock().is_none_or(|c| c.trusted_ns.saturating_add(CLOCK_NS) <= now);
        if behind {
            let flushed_lsn = self.manifest.flushed_lsn();
            self.commit(Delta { flushed_lsn, tenants: BTreeMap::new() }).await?;
        }
        Ok(())
    }
}
