//! Bounded channels with a name and a gauge.
//!
//! Owns: the only channels between threads in the tree. Never: unbounded.

mod fair;

use crossbeam::channel;

pub use self::fair::{FairReceiver, FairSender, fair};
use crate::metric::Metric;

/// The sending half.
#[derive(Debug)]
pub struct Sender<T> {
    inner: channel::Sender<T>,
    name: &'static str,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), name: self.name }
    }
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver<T> {
    inner: channel::Receiver<T>,
    name: &'static str,
}

/// Why an item could not be queued; gives the item back.
#[derive(Debug)]
pub enum Refused<T> {
    /// The bound is reached: push back on whoever sends.
    Full(T),
    /// The receiver is gone: the component has stopped.
    Closed(T),
}

/// A queue of at most `bound` items, shown as `millrace_queue_depth{queue="name"}`.
pub fn bounded<T>(name: &'static str, bound: usize) -> (Sender<T>, Receiver<T>) {
    let (tx, rx) = channel::bounded(bound);
    (Sender { inner: tx, name }, Receiver { inner: rx, name })
}

fn gauge(name: &'static str, depth: usize) {
    metrics::gauge!(Metric::QueueDepth.name(), "queue" => name).set(depth as f64);
}

impl<T> Sender<T> {
    /// Queues without waiting.
    pub fn try_send(&self, item: T) -> Result<(), Refused<T>> {
        let sent = self.inner.try_send(item).map_err(|e| match e {
            channel::TrySendError::Full(item) => Refused::Full(item),
            channel::TrySendError::Disconnected(item) => Refused::Closed(item),
        });
        gauge(self.name, self.inner.len());
        sent
    }

    /// Queues, blocking the thread while the queue is full. `Err` gives the item back when the
    /// receiver is gone. Not for async code.
    pub fn send(&self, item: T) -> Result<(), T> {
        let sent = self.inner.send(item).map_err(|e| e.0);
        gauge(self.name, self.inner.len());
        sent
    }
}

impl<T> Receiver<T> {
    /// Takes the next item, blocking the thread; `None` when every sender is gone.
    pub fn recv(&self) -> Option<T> {
        let item = self.inner.recv().ok();
        gauge(self.name, self.inner.len());
        item
    }

    /// Takes the next item if one is waiting.
    pub fn try_recv(&self) -> Option<T> {
        self.inner.try_recv().ok()
    }

    /// As [`Self::recv`], but gives up after `timeout` with `Ok(None)`; `Err(())` when closed.
    #[expect(clippy::result_unit_err, reason = "closed carries no detail")]
    pub fn recv_timeout(&self, timeout: std::time::Duration) -> Result<Option<T>, ()> {
        match self.inner.recv_timeout(timeout) {
            Ok(item) => {
                gauge(self.name, self.inner.len());
                Ok(Some(item))
            }
            Err(channel::RecvTimeoutError::Timeout) => Ok(None),
            Err(channel::RecvTimeoutError::Disconnected) => Err(()),
        }
    }

    /// Items waiting now.
    pub fn len(&self) -> usize {
        self.inner.len()
    }

    /// Whether nothing waits now.
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }
}
