//! Bugs that the crash suite plants to prove that it catches them.
//!
//! Owns: the switch. In every build but this crate's own tests the switch is a constant `false`
//! and the planted code is not compiled in.

/// A bug, one at a time per thread (simulation runs on one thread).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
}

#[cfg(test)]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` with a bug planted on this thread.
#[cfg(test)]
pub(crate) fn with<T>(bug: Option<Bug>, f: impl FnOnce() -> T) -> T {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            PLANTED.with(|p| p.set(None));
        }
    }
    PLANTED.with(|p| p.set(bug));
    let _clear = Clear;
    f()
}

/// Whether a bug is planted here and now.
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.with(std::cell::Cell::get) == Some(bug)
}

/// Never, outside tests.
#[cfg(not(test))]
pub(crate) const fn planted(_bug: Bug) -> bool {
    false
}
