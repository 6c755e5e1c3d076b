//! Storage: from a batch to sealed Parquet, and back as a snapshot. No DataFusion.
//!
//! Owns: shards (writer, log, memtables), series, column files, manifests, flush, merges, scans.
//! Never: asks who is calling; knows HTTP, SQL or a policy.
//! One public door: [`Engine`]; [`Shard`] is the same without threads, for simulation.

pub mod column_file;
mod compaction;
mod delete;
mod engine;
mod erase;
mod files;
mod flush;
#[cfg(test)]
mod formats;
pub mod fsck;
mod gc;
mod idle;
mod limits;
pub mod manifest;
mod memtable;
mod merge;
pub mod object;
mod planted;
mod relocate;
pub mod retention;
mod run;
mod scan;
mod schema;
mod series;
mod shard;
mod shared;
#[cfg(test)]
mod sim;
mod snapshot;
pub mod stats;
mod tail;
mod text;

pub use compaction::{
    history::{CompactionRecord, HISTORY_MAX, Reason, TableStats, TableWrites, Written},
    level,
};
pub use delete::{DELETED_SERIES_MAX, DeleteError, DeleteRequest, Deleted};
pub use engine::{Engine, EngineConfig, EngineStats, OpenError, Shard, SnapshotError};
pub use erase::{Cause, Tombstone};
pub use flush::{FlushError, FlushReport};
pub use gc::SweepError;
pub use idle::WakeError;
pub use limits::EngineLimits;
pub use run::{Run, RunError, SeriesSpan};
pub use scan::{
    ColumnRef, GROUP_ROWS, ReadError, Scan, ScanRequest, ScanStats, arrow_type, tag_type, time_type,
};
pub use schema::{FieldDef, TableSchema, TagColumn};
pub use series::dictionary::{SeriesEntry, SeriesView};
pub use shard::{
    record::Origin,
    rejected::{REJECTED_ROWS_PER_WRITE, RawRows, Rejected, RejectedLimits, Rejects, Sender},
    replay::{ReplayError, ReplayReport},
    writer::{Receipt, WriteError, WriteRequest},
};
pub use snapshot::{TableSnapshot, TenantSnapshot};
pub use tail::{Fresh, Lagged, Watch};
