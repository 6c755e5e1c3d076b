//! Bugs that this crate's crash suite plants to prove that it catches them.
//!
//! Owns: which. The switch is `millrace_platform`'s.

millrace_platform::planted_bugs! {
    /// A bug, one at a time per thread (simulation runs on one thread).
    pub(crate) enum Bug {
        /// Frames are given up when they are sent, not when they are acknowledged.
        TrimBeforeAck,
        /// A queue that was lost begins in the same epoch again, and the server is not doubted.
        EpochKept,
        /// Numbers of frames behind the stored state are given again after a restart.
        NumberReused,
        /// The state is renamed into place without a sync.
        StateNotSynced,
        /// An ack is taken for whatever was sent first.
        AckOfAnother,
        /// Gaps are not recorded.
        GapDropped,
        /// The position of a source moves although its rows could not be stored.
        PositionEarly,
        /// A fork is known in memory only.
        ForkNotStored,
        /// A group whose sync failed is taken for stored.
        VoidBelieved,
        /// A server that knows less than it acknowledged is taken at the device's word.
        LowerFloorIgnored,
        /// What live has read counts as settled although backfill waits.
        LiveSettlesAll,
        /// Rows behind a split are of the epoch before it.
        SplitKeepsEpoch,
        /// What was on its way behind a refused message is not read again.
        RefusedNotRead,
        /// A second refusal forgets that the first had the log read again from further back.
        RereadFromLast,
        /// A refused message is left out without a gap record.
        RefusedNotRecorded,
        /// Rows that were put aside and sent again stay put aside.
        AsideKept,
    }
}
