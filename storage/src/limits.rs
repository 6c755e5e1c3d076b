//! What the engine allows, as data.

use std::{sync::Arc, time::Duration};

use millrace_platform::budget::MemoryBudget;

use crate::{retention::Book, shard::rejected::RejectedLimits};

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
    /// Files of one window at which they are merged, at least 2. Late files wait for twice as
    /// many.
    pub merge_files: usize,
    /// Rows of one merge's inputs at most.
    pub merge_rows_max: u64,
    /// Sealed bytes of one merge's inputs at most.
    pub merge_bytes_max: u64,
    /// Files of this mean size that do not overlap are left as they are, bytes.
    pub merge_small_bytes: u64,
    /// Days of a table are merged into 8 or 32 days of at most this many bytes.
    pub wide_bytes_max: u64,
    /// Sealed bytes after which a merge closes its file and begins the next: as much of its
    /// output as it holds in memory.
    pub merge_file_bytes: usize,
    /// Bytes of rows, as they are in memory, that a merge reads at once from all its inputs.
    pub merge_group_bytes: usize,
    /// Versions over one point of time at which merging them goes before everything else.
    pub overlap_relief: usize,
    /// Versions over one point of time at which writes to the table wait for merges: one base, 8
    /// late files and 12 flushes.
    pub overlap_max: usize,
    /// How far in the future a row's time may lie, ns.
    pub future_ns: i64,
    /// Series per table.
    pub series_per_table: usize,
    /// New series per table and UTC day, for tenants without a limit of their own; 0 is no limit.
    pub series_per_day: u64,
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
    /// A tenant that was neither written nor asked for so long is let go at the next flush: only
    /// what is needed to find its files again stays in memory.
    pub idle_after: Duration,
    /// Files with deleted rows are rewritten when nothing else is to be merged, this long after the
    /// deletion, so that several become one.
    pub erase_after: Duration,
    /// And before everything else when half of this is over.
    pub erase_within: Duration,
    /// What retention was told; shared by all that this engine opens.
    pub retention: Arc<Book>,
    /// What memory is counted against; shared with whoever reserves for requests.
    pub memory: Arc<MemoryBudget>,
}

/// Memory of one row's way through a merge, for each sealed byte of the input: unpacked it is
/// about eight times as large, and input, output and encoder hold it at the same time.
const MERGE_BYTES_PER_SEALED: usize = 20;
/// The same for each row: ten doubles, its time, its series, three times.
const MERGE_BYTES_PER_ROW: usize = 256;

impl EngineLimits {
    /// Limits of an engine that has `memory` for rows, flushes and merges.
    ///
    /// Writers wait at half of it (`MemoryBudget::soft`); a flush starts at a quarter, so that
    /// another quarter fills while it runs. The other half is for the flush's sorted copy and
    /// files, or for a merge, which the same thread does after it.
    pub fn within(memory: Arc<MemoryBudget>) -> Self {
        let total = memory.total();
        let default = Self::default();
        let merge = total / 8 * 3;
        Self {
            flush_bytes: default.flush_bytes.min(total / 4),
            memtable_bytes_max: total / 8 * 5,
            merge_bytes_max: default.merge_bytes_max.min((merge / MERGE_BYTES_PER_SEALED) as u64),
            merge_rows_max: default.merge_rows_max.min((merge / MERGE_BYTES_PER_ROW) as u64),
            merge_file_bytes: default.merge_file_bytes.min(total / 8),
            merge_group_bytes: default.merge_group_bytes.min(total / 16),
            open_files: default.open_files.min((total >> 20).max(64)),
            memory,
            ..default
        }
    }
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            flush_bytes: 256 << 20,
            memtable_bytes_max: 768 << 20,
            flush_age: Duration::from_secs(600),
            window_ns: 2 * 3600 * 1_000_000_000,
            merge_files: 4,
            merge_rows_max: 128 << 20,
            merge_bytes_max: 512 << 20,
            merge_small_bytes: 16 << 20,
            wide_bytes_max: 128 << 20,
            merge_file_bytes: 64 << 20,
            merge_group_bytes: 16 << 20,
            overlap_relief: 16,
            overlap_max: 21,
            future_ns: 15 * 60 * 1_000_000_000,
            series_per_table: 1_000_000,
            series_per_day: 0,
            tags_per_table: 256,
            fields_per_table: 1024,
            rejected: RejectedLimits::default(),
            queue: 1024,
            group_writes: 256,
            group_bytes: 8 << 20,
            segment_bytes: 64 << 20,
            open_files: 1024,
            checkpoint_every: 64,
            idle_after: Duration::from_secs(600),
            erase_after: Duration::from_secs(24 * 3600),
            erase_within: Duration::from_secs(30 * 24 * 3600),
            retention: Arc::default(),
            memory: MemoryBudget::unlimited(),
        }
    }
}
