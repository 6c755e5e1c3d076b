//! Which connection a cancel request means.
//!
//! Owns: the numbers of connections and their secrets. A request comes over a connection of its
//! own, often without TLS, and holds nothing but the two. Never: says whether it found one.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicI32, Ordering},
};

use millrace_platform::{
    entropy::{Entropy, random_bytes},
    map::Map,
};
use tokio::sync::Notify;

/// A connection's secret, and how its statement is told to end.
type Open = ([u8; 4], Arc<Notify>);

/// All open connections.
#[derive(Debug)]
pub(super) struct Connections {
    entropy: Arc<dyn Entropy>,
    last: AtomicI32,
    open: Mutex<Map<i32, Open>>,
}

/// One connection's place in the list; left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    of: Arc<Connections>,
    pub(super) pid: i32,
    pub(super) secret: [u8; 4],
    /// Told when the running statement is to end.
    pub(super) cancelled: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
        metrics::gauge!(millrace_platform::metric::Metric::PgConnections.name()).decrement(1.0);
    }
}

impl Connections {
    pub(super) fn new(entropy: Arc<dyn Entropy>) -> Self {
        Self { entropy, last: AtomicI32::new(0), open: Mutex::default() }
    }

    /// A place for a new connection.
    pub(super) fn enter(self: &Arc<Self>) -> Place {
        let secret = random_bytes(self.entropy.as_ref());
        let cancelled = Arc::new(Notify::new());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers come again after 2^31 connections; one that is still open is not given twice.
        let pid = loop {
            let next = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1) & i32::MAX;
            if !open.contains_key(&next) {
                break next;
            }
        };
        open.insert(pid, (secret, Arc::clone(&cancelled)));
        metrics::gauge!(millrace_platform::metric::Metric::PgConnections.name()).increment(1.0);
        Place { of: Arc::clone(self), pid, secret, cancelled }
    }

    /// Ends the statement that runs on the connection with this number and secret, if there is one.
    pub(super) fn cancel(&self, pid: i32, secret: &[u8]) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((own, cancelled)) = open.get(&pid)
            && same(own, secret)
        {
            cancelled.notify_waiters();
        }
    }
}

/// Compares without saying by its time how much was right.
fn same(own: &[u8; 4], given: &[u8]) -> bool {
    own.len() == given.len() && own.iter().zip(given).fold(0, |d, (a, b)| d | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use millrace_platform::sim::SimEntropy;

    use super::*;

    #[test]
    fn only_the_number_with_its_secret_ends_a_statement() {
        let all = Arc::new(Connections::new(Arc::new(SimEntropy::seeded(1))));
        let (one, two) = (all.enter(), all.enter());
        let mut waits = Box::pin(one.cancelled.notified());
        assert!((&mut waits).now_or_never().is_none());
        all.cancel(one.pid, &two.secret);
        all.cancel(two.pid, &two.secret);
        all.cancel(one.pid, b"");
        all.cancel(99, &one.secret);
        assert!((&mut waits).now_or_never().is_none());
        all.cancel(one.pid, &one.secret);
        assert!(waits.now_or_never().is_some());
        drop((one, two));
        assert!(all.open.lock().unwrap().is_empty());
    }
}
