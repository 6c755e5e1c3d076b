//! Bugs that this crate's crash suite plants to prove that it catches them.
//!
//! Owns: which. The switch is `millrace_platform`'s.

millrace_platform::planted_bugs! {
    /// A bug, one at a time per thread (simulation runs on one thread).
    pub(crate) enum Bug {
        /// A commit answers before the sync.
        AckEarly,
        /// Trim removes a segment that still holds a frame at or above the floor.
        TrimEarly,
        /// Neither checksum nor seal is looked at.
        ChecksumIgnored,
        /// Replay takes damage for the end of the log.
        ReplayErrorSwallowed,
        /// A failed sync is tried again and believed.
        SyncRetried,
        /// The tail that a restart found is taken for durable.
        TailTrusted,
    }
}
