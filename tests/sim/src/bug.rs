//! Bugs on purpose. A suite is worth what it catches.
//!
//! Owns: the list and where each is planted: in the simulated disk, in a disk that lies, or in the
//! toy system of this crate. Never: in code that ships.

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A file sync does nothing and says yes (disk).
    SyncSkipped,
    /// A directory sync does nothing and says yes (disk).
    DirectorySyncSkipped,
    /// A sync that failed is believed to have worked (disk).
    FailedSyncBelieved,
    /// Items are acknowledged when they are appended.
    AckEarly,
    /// The log is trimmed before the store and the floor are durable.
    TrimEarly,
    /// The floor is written before the store that it speaks of.
    FloorEarly,
    /// Replay starts at the first frame that is there instead of the floor.
    DoubleApply,
    /// Neither checksums nor seals are looked at.
    ChecksumIgnored,
    /// Replay takes an error for the end of the log.
    ReplayErrorSwallowed,
    /// Replay starts one frame too late.
    ReplaySkipsOne,
    /// A refused item is not offered again to anyone, yet counted as stored.
    PoisonedIsAcked,
    /// Segment keys do not depend on the segment.
    NonceReused,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::SyncSkipped,
        Self::DirectorySyncSkipped,
        Self::FailedSyncBelieved,
        Self::AckEarly,
        Self::TrimEarly,
        Self::FloorEarly,
        Self::DoubleApply,
        Self::ChecksumIgnored,
        Self::ReplayErrorSwallowed,
        Self::ReplaySkipsOne,
        Self::PoisonedIsAcked,
        Self::NonceReused,
    ];
}
