//! Bugs that this crate's crash suite plants to prove that it catches them.
//!
//! Owns: which. The switch is `millrace_platform`'s.

millrace_platform::planted_bugs! {
    /// A bug, one at a time per thread (simulation runs on one thread).
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests plant bugs"))]
    pub(crate) enum Bug {
        /// A write is answered before its sync.
        AckEarly,
        /// The log is trimmed before the manifest commit.
        TrimEarly,
        /// A frame whose numbers are known is applied again.
        DoubleApply,
        /// Replay stops at a record it cannot read and says nothing.
        ReplayErrorSwallowed,
        /// Replay starts past the flushed position.
        ReplaySkipsOne,
        /// A merge forgets its oldest input.
        MergeDropsInput,
        /// An owner does not look whether another one has taken over.
        EpochCheckSkipped,
        /// A manifest record is taken without comparing the digest of the one before it.
        ChecksumIgnored,
        /// A flush forgets the newest chunk that it was given.
        FlushLosesChunk,
        /// A flush leaves out one of several time windows.
        FlushSkipsWindow,
        /// A file with late rows is placed before everything older than it.
        LateFileMisplaced,
        /// A flush stores no watermarks.
        WatermarkNotStored,
        /// Half of an object is stored and taken for the whole.
        PartialBundle,
        /// Of two rows of one series and time the older one counts.
        DedupTakesOlder,
        /// A field that the newest write lacks is not filled from an older one.
        NullFillDropped,
        /// A merge writes one field fewer than its table has.
        MergeDropsField,
        /// Objects that a snapshot reads are removed.
        PinIgnored,
        /// Objects that hold nothing but series are taken for garbage.
        SeriesAreGarbage,
        /// A checkpoint misses the last tenant.
        CheckpointIncomplete,
        /// Columns that a log record brings are not added at replay.
        ColumnsLostOnReplay,
        /// Marks of a write that failed are kept.
        MarksKeptAfterFailure,
        /// A frame behind a hole is taken.
        HoleTaken,
        /// Two tag sets may have one series id (of few, so that it happens).
        SeriesIdShared,
        /// Retention drops what a legal hold keeps.
        HoldIgnored,
        /// A shorter plan drops at once.
        GraceSkipped,
        /// Retention goes by the wall clock.
        ClockTrusted,
        /// A table's own limit may be longer than its plan's.
        OverrideLengthens,
        /// A deletion takes rows that came after it.
        DeleteTakesNewer,
        /// A merge does not leave out deleted rows, and says that it did.
        MergeKeepsDeleted,
        /// A deletion is over while files still have its rows.
        TombstoneEndsEarly,
        /// Deletions are forgotten when a tenant is loaded again.
        TombstonesNotLoaded,
        /// A deletion is answered before its manifest record.
        DeleteNotCommitted,
        /// A dropped table is there again after a start.
        DroppedTableStays,
        /// No bug: few series ids, so that they collide. The suite must hold with it.
        SeriesIdsFew,
    }
}
