//! Bugs that the crash suite plants to prove that it catches them.
//!
//! Owns: the switch. In every build but this crate's own tests the switch is a constant `false`
//! and the planted code is not compiled in.

/// A bug, one at a time per thread (simulation runs on one thread).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

#[cfg(test)]
std::thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Runs `f` with a bug planted on this thread.
#[cfg(test)]
pub(crate) fn with<T>(bug: Bug, f: impl FnOnce() -> T) -> T {
    struct Clear;
    impl Drop for Clear {
        fn drop(&mut self) {
            PLANTED.with(|p| p.set(None));
        }
    }
    PLANTED.with(|p| p.set(Some(bug)));
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
