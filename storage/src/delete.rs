//! Deleting rows and tables because somebody says so.
//!
//! Owns: the order of a deletion. Everything acknowledged is flushed first, so that each row it
//! takes is in a file; then one manifest record has the tombstone, or leaves the table out; then
//! readers see it. The answer comes last.
//! Crash order: before the record nothing is deleted and nothing was answered; after it the rows
//! are gone for good, whatever the log still has: it is read from the flushed position on.
//! Exactly once: watermarks stay, so that a deleted row that is sent again is known and stays
//! deleted. Rows that come after the deletion live.
//! Never: deletes what a hold keeps.

use std::{collections::BTreeMap, sync::Arc};

use millrace_platform::metric::Metric;
use millrace_protocol::ids::{Lsn, SeriesId, TenantId};

use crate::{
    erase::{Cause, Tombstone},
    flush::{FlushError, Maintenance},
    idle::WakeError,
    manifest::{CommitError, Delta, TableDelta, TenantDelta},
    planted::{Bug, planted},
    retention::TableName,
    shard::table::TableHandle,
};

/// Series that one deletion may name: their list is part of the manifest until the rows are gone.
pub const DELETED_SERIES_MAX: usize = 65_536;
/// Deletions of one table that may wait to be rewritten.
pub(crate) const TOMBSTONES_MAX: usize = 1_000;

/// Rows to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRequest {
    /// Whose.
    pub tenant: TenantId,
    /// Database and table.
    pub table: TableName,
    /// Of these series; `None` for all.
    pub series: Option<Vec<SeriesId>>,
    /// First and last time, ns.
    pub times: (i64, i64),
}

/// A deletion that is durable and visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deleted {
    /// It took rows up to this log position.
    pub lsn: Lsn,
    /// Files that still have bytes of such rows, until they are rewritten.
    pub files: u64,
}

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// No such table.
    #[error("there is no table `{}` in database `{}`", .0.1, .0.0)]
    NoTable(TableName),
    /// A legal hold.
    #[error("a legal hold keeps table `{}`; nothing was deleted: release the hold first", .0.1)]
    Held(TableName),
    /// Too many series in one statement.
    #[error(
        "the condition picks {0} series, more than {DELETED_SERIES_MAX} in one statement; delete in several parts, or without a condition on tags"
    )]
    TooManySeries(usize),
    /// Too many deletions wait.
    #[error(
        "{TOMBSTONES_MAX} deletions of this table wait to be rewritten; try again after the next merges"
    )]
    TooMany,
    /// What is in memory could not be flushed first.
    #[error("rows in memory could not be flushed first, so nothing was deleted: {0}; try again")]
    Flush(String),
    /// The manifest.
    #[error("the deletion could not be stored: {0}; try again")]
    Store(#[from] FlushError),
    /// The tenant could not be loaded.
    #[error("the tenant's tables cannot be loaded: {0}")]
    Unreadable(#[from] WakeError),
    /// The engine has stopped, or is being opened again.
    #[error("the storage engine takes no deletions now; try again")]
    Stopped,
}

impl From<CommitError> for DeleteError {
    fn from(e: CommitError) -> Self {
        Self::Store(e.into())
    }
}

impl Maintenance {
    /// Whether a table may lose rows; its handle.
    pub(crate) fn deletable(
        &self,
        tenant: TenantId,
        table: &TableName,
    ) -> Result<Arc<TableHandle>, DeleteError> {
        let rules = self.limits.retention.rules(tenant);
        if rules.is_some_and(|rules| rules.holds.holds(table)) {
            return Err(DeleteError::Held(table.clone()));
        }
        let known = self.shared.tenant(tenant)?;
        let handle = known.and_then(|t| t.tables().get(table).cloned());
        handle
            .filter(|h| h.current.load().schema.version > 0)
            .ok_or_else(|| DeleteError::NoTable(table.clone()))
    }

    /// Deletes rows. Everything acknowledged before must have been flushed.
    pub(crate) async fn delete(&mut self, request: DeleteRequest) -> Result<Deleted, DeleteError> {
        let handle = self.deletable(request.tenant, &request.table)?;
        if let Some(series) = request.series.as_ref().filter(|s| s.len() > DELETED_SERIES_MAX) {
            return Err(DeleteError::TooManySeries(series.len()));
        }
        let version = handle.current.load_full();
        if version.tombstones.len() >= TOMBSTONES_MAX {
            return Err(DeleteError::TooMany);
        }
        let mut series = request.series;
        if let Some(series) = &mut series {
            series.sort_unstable();
            series.dedup();
        }
        let seq = self.manifest.flushed_lsn();
        let stone = Arc::new(Tombstone {
            id: self.manifest.number() + 1,
            seq,
            t_min: request.times.0,
            t_max: request.times.1,
            series,
            cause: Cause::Statement,
            made_ns: self.trusted().now_ns,
        });
        let files = version.files.iter().filter(|f| stone.concerns(f)).count() as u64;
        let nothing = stone.series.as_ref().is_some_and(Vec::is_empty) || stone.t_min > stone.t_max;
        if files == 0 || nothing {
            return Ok(Deleted { lsn: Lsn(seq), files: 0 });
        }
        let change = TableDelta {
            added_tombstones: vec![stone],
            ..TableDelta::of(&handle.database, &version.schema)
        };
        let tables = BTreeMap::from([(handle.table_id, change)]);
        let delta = TenantDelta { tables, ..TenantDelta::default() };
        if !planted(Bug::DeleteNotCommitted) {
            let tenants = BTreeMap::from([(request.tenant, delta.clone())]);
            self.commit(Delta { flushed_lsn: seq, tenants }).await?;
        }
        self.install_erased(request.tenant, &delta)?;
        metrics::counter!(Metric::Deletions.name(), "kind" => "rows").increment(1);
        Ok(Deleted { lsn: Lsn(seq), files })
    }

    /// Drops a table that takes no rows any more and of which everything is flushed.
    pub(crate) async fn drop_table(
        &mut self,
        tenant: TenantId,
        table: &TableName,
        handle: &TableHandle,
    ) -> Result<Deleted, DeleteError> {
        let version = handle.current.load_full();
        let flushed_lsn = self.manifest.flushed_lsn();
        let part = self.manifest.tenant(&tenant).map_err(CommitError::Record)?;
        if part.is_some_and(|p| p.tables.contains_key(&handle.table_id)) {
            let dropped_tables = vec![handle.table_id];
            let delta = TenantDelta { dropped_tables, ..TenantDelta::default() };
            self.commit(Delta { flushed_lsn, tenants: BTreeMap::from([(tenant, delta)]) }).await?;
        }
        version.files.iter().for_each(|file| self.garbage.file_left(file));
        let gone: Vec<[u8; 16]> = version.files.iter().map(|f| f.id).collect();
        self.cache.forget(tenant, &gone);
        self.wanted.gone(tenant, handle.table_id);
        metrics::counter!(Metric::Deletions.name(), "kind" => "table").increment(1);
        tracing::info!(%tenant, table = table.1, files = gone.len(), "a table was dropped");
        Ok(Deleted { lsn: Lsn(flushed_lsn), files: gone.len() as u64 })
    }
}
