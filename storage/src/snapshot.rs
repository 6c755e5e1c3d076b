//! What a reader holds: one tenant's tables at one moment, immutable.
//!
//! Owns: the pictures. Never: shows rows that are not durable, or another tenant's.

use std::{collections::BTreeMap, sync::Arc};

use millrace_protocol::ids::{Lsn, TenantId};

use crate::{
    files::FileAccess,
    manifest::{TableManifest, TenantManifest},
    retention::TableName,
    schema::TableSchema,
    series::dictionary::SeriesView,
    shard::{table::TableVersion, tenant::TenantHandle},
};

/// One tenant's tables.
#[derive(Debug, Clone)]
pub struct TenantSnapshot {
    /// Whose.
    pub tenant: TenantId,
    /// Every write acknowledged up to here is in it.
    pub lsn: Lsn,
    /// Database -> table -> picture.
    pub databases: BTreeMap<String, BTreeMap<String, Arc<TableSnapshot>>>,
}

/// One table at one moment.
#[derive(Debug, Clone)]
pub struct TableSnapshot {
    /// The columns.
    pub schema: Arc<TableSchema>,
    /// The series, in sort order; may hold series whose rows are not in this picture.
    pub series: Arc<SeriesView>,
    pub(crate) version: Arc<TableVersion>,
    /// Rows before this are out of retention, ns.
    pub(crate) shown_from: i64,
    pub(crate) access: FileAccess,
}

impl TableSnapshot {
    /// Rows in files plus rows in memory: an upper bound, since equal rows collapse.
    pub fn rows_upper_bound(&self) -> u64 {
        let files: u64 = self.version.files.iter().map(|f| f.rows).sum();
        files + self.memtable_rows()
    }

    /// Rows not yet in files.
    pub fn memtable_rows(&self) -> u64 {
        let chunks = self.version.flushing.iter().chain(&self.version.active);
        chunks.map(|c| c.rows() as u64).sum()
    }

    /// Committed files.
    pub fn files(&self) -> &[Arc<crate::manifest::FileEntry>] {
        &self.version.files
    }

    /// The last write that any of its rows is from; `None` if there are no rows.
    pub fn newest_lsn(&self) -> Option<Lsn> {
        let chunks = self.version.flushing.iter().chain(&self.version.active);
        let memory = chunks.map(|c| c.lsn.end.saturating_sub(1));
        memory.chain(self.version.files.iter().map(|f| f.lsn_hi)).max().map(Lsn)
    }

    /// Rows before this, by their time in ns, are out of retention and not shown.
    pub fn shown_from(&self) -> i64 {
        self.shown_from
    }

    /// Smallest and largest time that any row may have; `None` if there are no rows.
    pub fn time_bounds(&self) -> Option<(i64, i64)> {
        let chunks = self.version.flushing.iter().chain(&self.version.active);
        let mem = chunks.map(|c| (c.t_min, c.t_max));
        let files = self.version.files.iter().map(|f| (f.t_min, f.t_max));
        let all = mem.chain(files).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))?;
        (all.1 >= self.shown_from).then(|| (all.0.max(self.shown_from), all.1))
    }
}

impl TenantSnapshot {
    /// Its tables as a forecast looks at them: names and files.
    pub(crate) fn tables(&self) -> TenantManifest {
        let mut out = TenantManifest::default();
        let all =
            self.databases.iter().flat_map(|(db, tables)| tables.values().map(move |t| (db, t)));
        for (database, table) in all {
            let known = TableManifest {
                database: database.clone(),
                schema: TableSchema::clone(&table.schema),
                files: table.version.files.clone(),
                series_sections: Vec::new(),
                tombstones: Vec::new(),
            };
            out.tables.insert(table.schema.table_id, known);
        }
        out
    }
}

/// Takes the picture of one tenant.
pub(crate) fn take(
    tenant: &TenantHandle,
    lsn: u64,
    access: &FileAccess,
    shown_from: impl Fn(&TableName) -> i64,
) -> TenantSnapshot {
    let mut databases: BTreeMap<String, BTreeMap<String, Arc<TableSnapshot>>> = BTreeMap::new();
    for (name, handle) in tenant.tables().iter() {
        let (database, table) = name;
        // Version before series: a row's series is in the dictionary before the row is visible.
        let version = handle.current.load_full();
        if version.schema.version == 0 {
            // Its first rows are still on their way to the log.
            continue;
        }
        let snapshot = TableSnapshot {
            schema: Arc::clone(&version.schema),
            series: handle.dictionary.view(),
            version,
            shown_from: shown_from(name),
            access: access.clone(),
        };
        databases.entry(database.clone()).or_default().insert(table.clone(), Arc::new(snapshot));
    }
    TenantSnapshot { tenant: tenant.id, lsn: Lsn(lsn), databases }
}
