//! Appending: rows get their numbers and become durable.
//!
//! Owns: numbering, and what a refused sync means. Never: gives a number twice in an epoch.

use std::collections::BTreeMap;

use millrace_platform::entropy::random_u64;
use millrace_protocol::ids::StreamId;
use millrace_wal::{KeyRef, WalError};

use super::{Group, Inner, NoRoom, Queue, QueueError, STREAMS_MAX, payload};
use crate::planted::{Bug, planted};

/// Where a group was put: log number, and the last number of each of its streams.
struct Placed {
    lsn: u64,
    ends: Vec<(StreamId, u64, u64)>,
    bytes: u64,
}

impl Queue {
    fn place(
        &self,
        inner: &Inner,
        group: &Group,
        ends: &mut BTreeMap<StreamId, u64>,
    ) -> Result<Placed, QueueError> {
        let epoch = inner.state.epoch;
        let mut firsts = Vec::with_capacity(group.parts.len());
        let mut placed = Vec::with_capacity(group.parts.len());
        for part in &group.parts {
            let lane = inner.state.lane(&part.stream, epoch);
            if lane.is_none() && inner.state.lanes.len() >= STREAMS_MAX {
                return Err(NoRoom("there are too many streams (tables times sources)").into());
            }
            let end = ends.get(&part.stream).copied().or(lane.map(|l| l.end)).unwrap_or(0);
            firsts.push(end + 1);
            placed.push((part.stream.clone(), end + 1, end + part.batch.rows() as u64));
        }
        let payload = payload::encode(group, epoch, &firsts)?;
        let key = KeyRef { owner: self.file.owner, version: 1 };
        let lsn = self.wal.append(key, &payload)?;
        ends.extend(placed.iter().map(|(stream, _, hi)| (stream.clone(), *hi)));
        Ok(Placed { lsn, ends: placed, bytes: payload.len() as u64 })
    }

    /// Whether this frame is durable. A failure that concerns other frames is told here first, so
    /// it is asked again.
    fn commit(&self, lsn: u64) -> Result<(), WalError> {
        for _ in 0..3 {
            match self.wal.commit_group(lsn, lsn) {
                Err(WalError::Poisoned { lsn: void, .. }) if void != lsn => {}
                Err(e) if !planted(Bug::VoidBelieved) => return Err(e),
                _ => return Ok(()),
            }
        }
        self.wal.commit_group(lsn, lsn).map(|_| ())
    }

    /// Makes groups durable under one sync, each wholly or not at all, and says for each which.
    /// A group that was not stored may be offered again: its numbers are not used.
    pub fn append(&self, groups: &[Group]) -> Vec<Result<u64, QueueError>> {
        if !self.file.keep_reserve() {
            return groups.iter().map(|_| Err(QueueError::Full(self.file.dir.clone()))).collect();
        }
        let mut inner = self.lock();
        // The first state tells a later start that this queue is not a lost one.
        if inner.state.generation == 0
            && let Err(e) = self.save(&mut inner)
        {
            let detail = e.to_string();
            let refused = |_| Err(self.file.fail(&detail));
            return groups.iter().map(refused).collect();
        }
        if planted(Bug::PositionEarly) {
            for group in groups {
                inner.stored(0, &group.source, group.position.as_deref());
            }
            drop(self.save(&mut inner));
        }
        let mut ends = BTreeMap::new();
        let placed: Vec<_> =
            groups.iter().map(|group| self.place(&inner, group, &mut ends)).collect();
        let epoch = inner.state.epoch;
        let mut void = false;
        let mut results = Vec::with_capacity(groups.len());
        for (placed, group) in placed.into_iter().zip(groups) {
            let result = placed.map(|p| (self.commit(p.lsn), p)).and_then(|(done, p)| {
                for (stream, lo, hi) in &p.ends {
                    let lsn = if done.is_ok() { p.lsn } else { 0 };
                    inner.numbered(stream, epoch, *hi, lsn);
                    if done.is_err() {
                        inner.state.lane_mut(stream, epoch).void.push((*lo, *hi));
                    }
                }
                void |= done.is_err();
                done?;
                Ok(p)
            });
            results.push(result.map(|p| {
                inner.stored(p.lsn, &group.source, group.position.as_deref());
                inner.rows_queued += group.rows();
                inner.unsaved += p.bytes;
                p.lsn
            }));
        }
        if void {
            // Numbers are used once in an epoch, and these were.
            inner.state.epoch = random_u64(self.file.entropy.as_ref());
        }
        // So that a start reads at most about a segment, however long the outage was.
        if inner.unsaved > self.sizes.segment
            && let Err(error) = self.save(&mut inner)
        {
            tracing::warn!(%error, "the queue's state could not be stored yet");
        }
        results
    }
}
