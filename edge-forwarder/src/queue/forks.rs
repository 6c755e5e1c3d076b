//! Under which epoch and number a row is sent, and what the server may know of it.
//!
//! Owns: forks. Never: sends under an epoch that is not stored.

use millrace_platform::entropy::random_u64;
use millrace_protocol::ids::StreamId;

use super::{
    Queue, QueueError, Section,
    state::{Fork, State},
};
use crate::{
    gap::Gap,
    planted::{Bug, planted},
};

impl Queue {
    /// Under which epoch row `hi` of a stream is sent.
    pub fn section(&self, stream: &StreamId, epoch: u64, hi: u64) -> Section {
        let inner = self.lock();
        let mut section = Section { epoch, offset: 0, end: u64::MAX };
        let forks = inner.state.lane(stream, epoch).map(|l| l.forks.as_slice()).unwrap_or_default();
        for fork in forks {
            if fork.offset >= hi {
                section.end = fork.known;
                break;
            }
            section = Section { epoch: fork.epoch, offset: fork.offset, end: u64::MAX };
        }
        section
    }

    /// Sends rows behind `offset` under a new random epoch, durably, because `gap`.
    pub fn fork(
        &self,
        stream: &StreamId,
        epoch: u64,
        (offset, known): (u64, u64),
        gap: Option<Gap>,
    ) -> Result<(), QueueError> {
        let mut inner = self.lock();
        let fork = Fork { offset, epoch: random_u64(self.file.entropy.as_ref()), known };
        let forks = &mut inner.state.lane_mut(stream, epoch).forks;
        if forks.last().is_some_and(|last| last.offset >= offset) {
            // Numbers of an epoch only rise, so this is a broken queue; it must not loop.
            return Err(self.file.fail(format!("numbers of {stream} go back to {offset}")));
        }
        forks.push(fork);
        if let Some(gap) = gap {
            inner.note(gap);
        }
        if planted(Bug::ForkNotStored) {
            return Ok(());
        }
        let saved = self.save(&mut inner);
        if saved.is_err() {
            // Nothing was sent under it yet; the next attempt makes another.
            inner.state.lane_mut(stream, epoch).forks.pop();
        }
        saved
    }

    /// Rows of `from..=to` that their source kept, because the disk refused them.
    pub fn void_rows(&self, stream: &StreamId, epoch: u64, from: u64, to: u64) -> u64 {
        let inner = self.lock();
        let void = inner.state.lane(stream, epoch).map(|l| l.void.as_slice()).unwrap_or_default();
        void.iter().map(|(a, b)| ((*b).min(to) + 1).saturating_sub((*a).max(from))).sum()
    }

    /// The last number of a stream that the server may know from this device.
    pub fn sendable(&self, stream: &StreamId, epoch: u64) -> u64 {
        self.lock().sendable.get(&State::key(stream, epoch)).copied().unwrap_or(0)
    }

    /// Notes that rows up to `hi` are about to be sent.
    pub fn sending(&self, stream: &StreamId, epoch: u64, hi: u64) {
        let mut inner = self.lock();
        let sent = inner.sendable.entry(State::key(stream, epoch)).or_insert(0);
        *sent = (*sent).max(hi);
    }
}
