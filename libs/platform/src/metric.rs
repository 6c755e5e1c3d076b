//! Metric names as an enum, so that a name is spelt once and the docs can list them all.
//!
//! Owns: the list. Never: carries tenant data; labels are ids, kinds and queue names.

macro_rules! metrics {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal, $kind:literal;)*) => {
        /// Every metric that Millrace exposes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Metric { $($(#[doc = $doc])+ $variant,)* }

        impl Metric {
            /// All metrics: (name, kind, help).
            pub const ALL: &'static [(&'static str, &'static str, &'static str)] =
                &[$(($name, $kind, concat!($($doc),+)),)*];

            /// The Prometheus name.
            pub const fn name(self) -> &'static str {
                match self { $(Metric::$variant => $name,)* }
            }
        }
    };
}

metrics! {
    /// Invariants found broken, by id.
    InvariantBroken = "millrace_invariant_broken_total", "counter";
    /// Items waiting in a bounded queue, by queue name.
    QueueDepth = "millrace_queue_depth", "gauge";
    /// Rows accepted and synced, by tenant.
    IngestRows = "millrace_ingest_rows_total", "counter";
    /// Bytes of request bodies accepted, before decompression, by tenant.
    IngestBytes = "millrace_ingest_bytes_total", "counter";
    /// Rows refused, by tenant.
    IngestRefused = "millrace_ingest_refused_rows_total", "counter";
    /// Requests answered 429 because their tenant was over its budget, by tenant.
    IngestOverBudget = "millrace_ingest_over_budget_total", "counter";
    /// Batches re-sent and acknowledged without effect, by tenant.
    IngestDuplicates = "millrace_ingest_duplicate_batches_total", "counter";
    /// Refused rows recorded in `_rejected`, by tenant.
    RejectedRecorded = "millrace_rejected_rows_recorded_total", "counter";
    /// Refused rows beyond the caps of `_rejected`, which are only counted, by tenant.
    RejectedDropped = "millrace_rejected_rows_dropped_total", "counter";
    /// Entries of `system.ingest`, of all tenants.
    IngestSources = "millrace_ingest_sources", "gauge";
    /// Syncs of the write-ahead log.
    WalSyncs = "millrace_wal_syncs_total", "counter";
    /// Bytes appended to the write-ahead log.
    WalBytes = "millrace_wal_bytes_total", "counter";
    /// Seconds that one log sync took.
    WalSyncSeconds = "millrace_wal_sync_seconds", "histogram";
    /// Rows held in memtables.
    MemtableRows = "millrace_memtable_rows", "gauge";
    /// Bytes held in memtables.
    MemtableBytes = "millrace_memtable_bytes", "gauge";
    /// Bytes counted against the memory budget, by class (parse, memtable, series, flush, compaction).
    MemoryBytes = "millrace_memory_bytes", "gauge";
    /// Flushes committed.
    Flushes = "millrace_flushes_total", "counter";
    /// Flushes that failed and will be tried again.
    FlushFailures = "millrace_flush_failures_total", "counter";
    /// Compactions committed, by reason (overlap, small, late, late into base, seal, erase).
    Compactions = "millrace_compactions_total", "counter";
    /// Tables with files that wait for a compaction.
    CompactionsWaiting = "millrace_compactions_waiting", "gauge";
    /// Bytes of column files written, by cause (flush, compaction) and arrival (in_order, late).
    FileBytesWritten = "millrace_file_bytes_written_total", "counter";
    /// Rows of column files written, by cause (flush, compaction) and arrival (in_order, late).
    FileRowsWritten = "millrace_file_rows_written_total", "counter";
    /// Times that what a table took in has been written to column files, told at each compaction: rows in_order, bytes of late rows.
    TableWriteAmplification = "millrace_table_write_amplification", "histogram";
    /// Tables whose writes wait until merges have caught up.
    TablesSlowed = "millrace_tables_slowed", "gauge";
    /// Writes refused because merges of their table have to catch up.
    WritesSlowed = "millrace_writes_slowed_total", "counter";
    /// Files that left because they are out of retention.
    RetentionFiles = "millrace_retention_files_total", "counter";
    /// Sealed bytes of these.
    RetentionBytes = "millrace_retention_bytes_total", "counter";
    /// Tenants of whom retention would drop more than ageing explains; each waits for `millrace plan confirm`.
    RetentionBlocked = "millrace_retention_blocked_tenants", "gauge";
    /// Seconds that the wall clock is ahead of what retention believes, or behind it (negative); 0 is right.
    ClockDistrust = "millrace_clock_distrust_seconds", "gauge";
    /// Deletions by statement, by kind (rows, table).
    Deletions = "millrace_deletions_total", "counter";
    /// Queries answered, by tenant and outcome.
    Queries = "millrace_queries_total", "counter";
    /// Seconds from a query's arrival to its last row.
    QuerySeconds = "millrace_query_seconds", "histogram";
    /// HTTP requests, by route and status.
    HttpRequests = "millrace_http_requests_total", "counter";
    /// Forwarder connections open now.
    ForwarderStreams = "millrace_forwarder_streams", "gauge";
    /// PostgreSQL connections open now.
    PgConnections = "millrace_pg_connections", "gauge";
    /// Subscriptions open now.
    Subscriptions = "millrace_subscriptions", "gauge";
    /// Rows sent to subscriptions, by tenant.
    SubscriptionRows = "millrace_subscription_rows_total", "counter";
    /// Times that a subscription fell behind and rows were left out, by tenant.
    SubscriptionsLagged = "millrace_subscriptions_lagged_total", "counter";
}
