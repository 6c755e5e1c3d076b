//! Wall time, monotonic time and timers.
//!
//! Owns: the only reads of the system clock and the only timers in the tree.
//! Never: decides what a time means; callers pass deadlines and cutoffs as values.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A timer's future: ready once the duration has passed on the clock that made it.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Time as an argument.
pub trait Clock: Send + Sync + Debug {
    /// Wall-clock time in nanoseconds since the Unix epoch, UTC. May step in either direction.
    fn now_ns(&self) -> i64;

    /// Time since an arbitrary fixed start; never goes backward.
    fn monotonic(&self) -> Duration;

    /// A future that is ready after `duration` of monotonic time. On the real clock it must be
    /// awaited inside a tokio runtime with timers enabled.
    fn sleep(&self, duration: Duration) -> Sleep;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Monotonic time counts from this call.
    #[expect(clippy::disallowed_methods, reason = "this is the clock's real implementation")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock's real implementation")]
    fn now_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    #[expect(clippy::disallowed_methods, reason = "this is the timer's real implementation")]
    fn sleep(&self, duration: Duration) -> Sleep {
        Box::pin(async move { tokio::time::sleep(duration).await })
    }
}
