//! What a manifest says, and what a delta changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use millrace_protocol::{
    ids::{SeqNo, TenantId},
    stream::StreamKey,
};
use serde::{Deserialize, Serialize};

use crate::{
    column_file::bundle::SectionRef,
    erase::Tombstone,
    planted::{Bug, planted},
    schema::TableSchema,
};

/// One column file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Random id.
    #[serde(with = "crate::text::fixed")]
    pub id: [u8; 16],
    /// Its table.
    pub table_id: u64,
    /// The Parquet section.
    pub parquet: SectionRef,
    /// The series directory section.
    pub directory: SectionRef,
    /// 0 for a flush, one more than its inputs for a merge.
    pub level: u8,
    /// Smallest time, ns.
    pub t_min: i64,
    /// Largest time, ns.
    pub t_max: i64,
    /// Rows.
    pub rows: u64,
    /// First log position of its rows.
    pub lsn_lo: u64,
    /// Last log position of its rows: the higher, the newer.
    pub lsn_hi: u64,
    /// Sealed bytes of both sections.
    pub bytes: u64,
    /// Tombstones up to this one were heeded when it was written; 0 for a flush.
    #[serde(default, skip_serializing_if = "is_none")]
    pub erased_to: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_none(number: &u64) -> bool {
    *number == 0
}

/// Series that one flush added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesSection {
    /// Where.
    pub section: SectionRef,
    /// How many.
    pub count: u64,
    /// The UTC day since 1970 on which it was flushed; 0 in records from before days were kept.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub day: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(day: &u32) -> bool {
    *day == 0
}

impl TableManifest {
    /// The last day on which series were flushed, and how many: with those of the log, what the
    /// day's limit has left after a restart.
    pub(crate) fn last_new_series(&self) -> (u32, u64) {
        let day = self.series_sections.iter().map(|s| s.day).max().unwrap_or(0);
        let of_day = self.series_sections.iter().filter(|s| s.day == day);
        (day, of_day.map(|s| s.count).sum())
    }
}

/// A stream's durable state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamState {
    /// The highest contiguous row number.
    pub hi: SeqNo,
}

/// One table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableManifest {
    /// Its database.
    pub database: String,
    /// Its columns.
    pub schema: TableSchema,
    /// Its files.
    #[serde(with = "crate::text::shared")]
    pub files: Vec<Arc<FileEntry>>,
    /// Its series.
    pub series_sections: Vec<SeriesSection>,
    /// Deleted rows that are still in files.
    #[serde(default, with = "crate::text::shared", skip_serializing_if = "Vec::is_empty")]
    pub tombstones: Vec<Arc<Tombstone>>,
}

/// One tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantManifest {
    /// Tables by id.
    pub tables: BTreeMap<u64, TableManifest>,
    /// Streams and their watermarks.
    #[serde(with = "pairs")]
    pub streams: BTreeMap<StreamKey, StreamState>,
    /// The first table id never used.
    pub next_table_id: u64,
    /// Tables that were dropped: what the log may still have of them is not applied.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub dropped: BTreeSet<u64>,
}

/// Everything, at one number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest {
    /// The record that made it.
    pub number: u64,
    /// The epoch that wrote it.
    pub epoch: u64,
    /// Log records up to here are in files.
    pub flushed_lsn: u64,
    /// Tenants whose keys could be had.
    pub tenants: BTreeMap<TenantId, Arc<TenantManifest>>,
}

/// Changes of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableDelta {
    /// Its database.
    pub database: String,
    /// Its columns from now on.
    pub schema: TableSchema,
    /// Files that enter.
    #[serde(with = "crate::text::shared")]
    pub added_files: Vec<Arc<FileEntry>>,
    /// Ids of files that leave.
    #[serde(with = "crate::text::ids")]
    pub removed_files: Vec<[u8; 16]>,
    /// Series that enter.
    pub added_series: Vec<SeriesSection>,
    /// Series sections that leave: what they hold has entered elsewhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_series: Vec<SectionRef>,
    /// Tombstones that begin.
    #[serde(default, with = "crate::text::shared", skip_serializing_if = "Vec::is_empty")]
    pub added_tombstones: Vec<Arc<Tombstone>>,
    /// Ids of tombstones that end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed_tombstones: Vec<u64>,
}

impl TableDelta {
    /// No change but that the table has these columns.
    pub fn of(database: &str, schema: &TableSchema) -> Self {
        Self {
            database: database.to_owned(),
            schema: schema.clone(),
            added_files: Vec::new(),
            removed_files: Vec::new(),
            added_series: Vec::new(),
            removed_series: Vec::new(),
            added_tombstones: Vec::new(),
            removed_tombstones: Vec::new(),
        }
    }
}

/// Changes of one tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantDelta {
    /// By table id.
    pub tables: BTreeMap<u64, TableDelta>,
    /// Watermarks from now on.
    #[serde(with = "pairs")]
    pub streams: BTreeMap<StreamKey, StreamState>,
    /// The first table id never used, if it changed.
    pub next_table_id: Option<u64>,
    /// Tables that leave, with everything that they have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dropped_tables: Vec<u64>,
}

/// One commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delta {
    /// Log records up to here are in files.
    pub flushed_lsn: u64,
    /// Changes by tenant.
    pub tenants: BTreeMap<TenantId, TenantDelta>,
}

impl TenantManifest {
    /// The tenant after a delta.
    pub(crate) fn with(&self, delta: &TenantDelta) -> Self {
        let mut next = self.clone();
        for (id, change) in &delta.tables {
            let table = next.tables.entry(*id).or_insert_with(|| TableManifest {
                database: change.database.clone(),
                schema: change.schema.clone(),
                files: Vec::new(),
                series_sections: Vec::new(),
                tombstones: Vec::new(),
            });
            if change.schema.version >= table.schema.version {
                table.schema = change.schema.clone();
            }
            table.files.retain(|f| !change.removed_files.contains(&f.id));
            table.files.extend(change.added_files.iter().cloned());
            table.series_sections.retain(|s| !change.removed_series.contains(&s.section));
            table.series_sections.extend(change.added_series.iter().cloned());
            table.tombstones.retain(|t| !change.removed_tombstones.contains(&t.id));
            table.tombstones.extend(change.added_tombstones.iter().cloned());
            next.next_table_id = next.next_table_id.max(id.saturating_add(1));
        }
        if !planted(Bug::DroppedTableStays) {
            next.tables.retain(|id, _| !delta.dropped_tables.contains(id));
            next.dropped.extend(&delta.dropped_tables);
        }
        next.streams.extend(delta.streams.iter().map(|(k, v)| (k.clone(), *v)));
        next.next_table_id = next.next_table_id.max(delta.next_table_id.unwrap_or(1));
        next
    }
}

/// JSON has no maps with structured keys: a map of streams is a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    use super::{StreamKey, StreamState};

    pub(super) fn serialize<S: Serializer>(
        map: &BTreeMap<StreamKey, StreamState>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        s.collect_seq(map.iter())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<BTreeMap<StreamKey, StreamState>, D::Error> {
        Ok(Vec::<(StreamKey, StreamState)>::deserialize(d)?.into_iter().collect())
    }
}
