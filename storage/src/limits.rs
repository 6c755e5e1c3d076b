//! What the engine allows, as data.

use std::time::Duration;

use crate::shard::rejected::RejectedLimits;

/// Bounds of one engine; the defaults are the design's.
#[derive(Debug, Clone)]
pub struct EngineLimits {
    /// Memtable bytes at which a flush starts.
    pub flush_bytes: usize,
    /// Memtable bytes at which writes are refused until a flush is done.
    pub memtable_bytes_max: usize,
    /// A flush starts at the latest this long after the first unflushed row.
    pub flush_age: Duration,
    /// Length of a hot file's time window, ns.
    pub window_ns: i64,
    /// Files of one window at which they are merged.
    pub merge_files: usize,
    /// Rows of one merged file at most.
    pub merge_rows_max: u64,
    /// Sealed bytes of one merge's inputs at most: a merge holds its rows in memory, and rows of
    /// long texts are large.
    pub merge_bytes_max: u64,
    /// How far in the future a row's time may lie, ns.
    pub future_ns: i64,
    /// Series per table.
    pub series_per_table: usize,
    /// Tags per table.
    pub tags_per_table: usize,
    /// Fields per table.
    pub fields_per_table: usize,
    /// How much of what is refused is recorded.
    pub rejected: RejectedLimits,
    /// Writes that may wait for the shard's writer.
    pub queue: usize,
    /// Writes that one sync may cover.
    pub group_writes: usize,
    /// Bytes of log that one sync may cover.
    pub group_bytes: usize,
    /// Size of a log segment, bytes.
    pub segment_bytes: u64,
    /// Open column files whose footer and directory are kept in memory.
    pub open_files: usize,
    /// Manifest records between two checkpoints.
    pub checkpoint_every: u64,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            flush_bytes: 256 << 20,
            memtable_bytes_max: 768 << 20,
            flush_age: Duration::from_secs(600),
            window_ns: 2 * 3600 * 1_000_000_000,
            merge_files: 4,
            merge_rows_max: 8 << 20,
            merge_bytes_max: 512 << 20,
            future_ns: 15 * 60 * 1_000_000_000,
            series_per_table: 1_000_000,
            tags_per_table: 256,
            fields_per_table: 1024,
            rejected: RejectedLimits::default(),
            queue: 1024,
            group_writes: 256,
            group_bytes: 8 << 20,
            segment_bytes: 64 << 20,
            open_files: 1024,
            checkpoint_every: 64,
        }
    }
}
