//! Bugs that the crash suite plants to prove that it catches them.
//!
//! Owns: the switch. In every build but this crate's own tests the switch is a constant `false`
//! and the planted code is not compiled in.

/// A bug, one at a time per thread (simulation runs on one thread).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
