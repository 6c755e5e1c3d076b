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
    }
}
