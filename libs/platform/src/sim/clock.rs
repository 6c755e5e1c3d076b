//! A clock that moves only when told to.
//!
//! Fault model: wall time may be set anywhere, in either direction, apart from monotonic time,
//! which only advances. Sleepers wake when monotonic time reaches their deadline.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use crate::clock::{Clock, Sleep};

#[derive(Debug, Default)]
struct State {
    wall_ns: i64,
    monotonic: Duration,
    sleepers: Vec<(Duration, Waker)>,
}

/// Cloning gives another handle on the same clock.
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<Mutex<State>>);

impl SimClock {
    /// A clock that stands at `wall_ns` (ns since the Unix epoch).
    pub fn at(wall_ns: i64) -> Self {
        let clock = Self::default();
        clock.lock().wall_ns = wall_ns;
        clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves both clocks on and wakes whoever is due.
    pub fn advance(&self, by: Duration) {
        let mut state = self.lock();
        state.monotonic += by;
        state.wall_ns =
            state.wall_ns.saturating_add(i64::try_from(by.as_nanos()).unwrap_or(i64::MAX));
        let now = state.monotonic;
        let (due, waiting) =
            std::mem::take(&mut state.sleepers).into_iter().partition(|s| s.0 <= now);
        state.sleepers = waiting;
        drop(state);
        let due: Vec<(Duration, Waker)> = due;
        for (_, waker) in due {
            waker.wake();
        }
    }

    /// Steps the wall clock only, as a clock correction or a fault does.
    pub fn set_wall_ns(&self, wall_ns: i64) {
        self.lock().wall_ns = wall_ns;
    }
}

impl Clock for SimClock {
    fn now_ns(&self) -> i64 {
        self.lock().wall_ns
    }

    fn monotonic(&self) -> Duration {
        self.lock().monotonic
    }

    fn sleep(&self, duration: Duration) -> Sleep {
        let clock = self.clone();
        let deadline = self.monotonic() + duration;
        Box::pin(std::future::poll_fn(move |cx| {
            let mut state = clock.lock();
            if state.monotonic >= deadline {
                return Poll::Ready(());
            }
            state.sleepers.push((deadline, cx.waker().clone()));
            Poll::Pending
        }))
    }
}
