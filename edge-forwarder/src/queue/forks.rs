//! Under which epoch and number a row is sent, and what the server may know of it.
//!
//! Owns: forks and splits. Never: sends under an epoch that is not stored.

use millrace_platform::entropy::random_u64;
use millrace_protocol::ids::StreamId;

use super::{
    Aside, Inner, Queue, QueueError, STREAMS_MAX, Section,
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
        place: (u64, u64),
        gap: Option<Gap>,
    ) -> Result<(), QueueError> {
        self.fork_with(&mut self.lock(), (stream, epoch), place, gap, None)
    }

    /// The same for rows `known + 1 ..= offset` that were put aside.
    pub(super) fn fork_with(
        &self,
        inner: &mut Inner,
        (stream, epoch): (&StreamId, u64),
        (offset, known): (u64, u64),
        gap: Option<Gap>,
        aside: Option<Aside>,
    ) -> Result<(), QueueError> {
        let mut fork = Fork { offset, epoch: random_u64(self.file.entropy.as_ref()), known };
        let settled = inner.state.settled;
        let lane = inner.state.lane_mut(stream, epoch);
        // Its rows wait in a frame that is not settled, so the lane must not be forgotten.
        lane.last_lsn = lane.last_lsn.max(settled);
        let forks = &mut lane.forks;
        if forks.last().is_some_and(|last| last.offset >= offset) {
            // Numbers of an epoch only rise, so this is a broken queue; it must not loop.
            return Err(self.file.fail(format!("numbers of {stream} go back to {offset}")));
        }
        // Nothing came to be known under the fork before: one takes the place of both, so that a
        // stream that is refused for ever does not fill the state.
        let replaced = forks.pop_if(|last| last.offset == known);
        fork.known = replaced.map_or(known, |last| last.known);
        forks.push(fork);
        let before = (inner.state.gaps.clone(), inner.state.aside.len());
        if let Some(gap) = gap {
            inner.note(gap);
        }
        inner.state.aside.extend(aside);
        if planted(Bug::ForkNotStored) {
            return Ok(());
        }
        let saved = self.save(inner);
        if saved.is_err() {
            // Nothing was sent under it yet; the next attempt makes another.
            let forks = &mut inner.state.lane_mut(stream, epoch).forks;
            forks.pop();
            forks.extend(replaced);
            inner.state.gaps = before.0;
            inner.state.aside.truncate(before.1);
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

    /// Where live rows begin: every frame before is backfill.
    pub fn split_at(&self) -> u64 {
        self.lock().state.split
    }

    /// Rows of the newest epoch that are not acknowledged.
    pub fn rows_live(&self) -> u64 {
        let inner = self.lock();
        let mark = format!("@{:016x}", inner.state.epoch);
        let lanes = inner.state.lanes.iter().filter(|(key, _)| key.ends_with(&mark));
        lanes.map(|(_, lane)| lane.end.saturating_sub(lane.floor)).sum()
    }

    /// Makes everything that is queued backfill: rows from here on are of a new epoch, so they need
    /// not wait for it.
    pub fn split(&self) -> Result<(), QueueError> {
        let mut inner = self.lock();
        if inner.state.lanes.len() > STREAMS_MAX / 2 {
            // Each stream takes a place more; numbering new tables matters more.
            return Ok(());
        }
        let before = (inner.state.epoch, inner.state.split);
        if !planted(Bug::SplitKeepsEpoch) {
            inner.state.epoch = random_u64(self.file.entropy.as_ref());
        }
        inner.state.split = self.wal.next_lsn();
        // Before the first row of the new epoch, so that no start takes it for one of the old.
        let saved = self.save(&mut inner);
        if saved.is_err() {
            (inner.state.epoch, inner.state.split) = before;
        }
        saved
    }
}
