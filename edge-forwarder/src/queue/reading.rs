//! Reading frames, what was acknowledged, and giving up what is settled.
//!
//! Owns: the order of deletion: state, then segments. Never: hands out a frame that is not synced.

use std::collections::BTreeMap;

use millrace_protocol::ids::StreamId;
use millrace_wal::{LogCursor, Scanned};

use super::{Next, Queue, QueueError, payload, source_of};

impl Queue {
    /// The last durable position of a source.
    pub fn position(&self, source: &str) -> Option<Vec<u8>> {
        hex::decode(self.lock().state.positions.get(source)?).ok()
    }

    /// The acknowledged floor of a stream in an epoch.
    pub fn floor(&self, stream: &StreamId, epoch: u64) -> u64 {
        self.lock().state.lane(stream, epoch).map_or(0, |l| l.floor)
    }

    /// Notes that the server has rows up to `hi`; durable with the next [`Self::settle`].
    pub fn moved(&self, stream: &StreamId, epoch: u64, hi: u64) {
        let mut inner = self.lock();
        let lane = inner.state.lane_mut(stream, epoch);
        let more = hi.saturating_sub(lane.floor);
        lane.floor = lane.floor.max(hi);
        *inner.state.acked.entry(source_of(stream.as_str()).to_owned()).or_insert(0) += more;
    }

    /// Rows acknowledged in all epochs.
    pub fn rows_acknowledged(&self) -> u64 {
        self.lock().state.acked.values().sum()
    }

    /// The same per source.
    pub fn acknowledged(&self) -> BTreeMap<String, u64> {
        self.lock().state.acked.clone()
    }

    /// Stores what moved, then gives up whole segments below `lsn`: every frame below is
    /// acknowledged or recorded as lost. `true` if the next call may give up more.
    pub fn settle(&self, lsn: u64) -> Result<bool, QueueError> {
        let allowed = {
            let mut inner = self.lock();
            // Frames go only when both files of the state reflect them: if one is damaged, the
            // other and the log still tell everything.
            let allowed = lsn.min(inner.stored + 1);
            inner.state.settled = inner.state.settled.max(lsn);
            // Before deletion: a crash in between only sends rows again.
            self.save(&mut inner)?;
            allowed
        };
        self.wal.trim_below(allowed)?;
        Ok(allowed < lsn && self.bytes() > self.sizes.segment)
    }

    /// A reader of durable frames from `lsn` on.
    pub fn cursor(&self, lsn: u64) -> LogCursor {
        self.wal.cursor(lsn.max(1))
    }

    /// The first frame that may still be there.
    pub fn first_lsn(&self) -> u64 {
        self.wal.first_lsn()
    }

    /// The first frame that is not settled.
    pub fn settled(&self) -> u64 {
        self.lock().state.settled
    }

    /// The next durable frame, if there is one.
    pub fn read(&self, cursor: &mut LogCursor) -> Result<Option<Next>, QueueError> {
        let Some(scanned) = self.wal.read_next(cursor)? else { return Ok(None) };
        Ok(Some(match scanned {
            Scanned::Frame(frame) => match payload::decode(frame.lsn, &frame.payload) {
                Some(queued) => Next::Frame(Box::new(queued)),
                None => Next::Lost {
                    first: frame.lsn,
                    last: frame.lsn,
                    what: format!("frame {} of another version", frame.lsn),
                },
            },
            Scanned::KeyGone { lsn, .. } => {
                let what = format!("frame {lsn} was sealed under a key that is not here");
                Next::Lost { first: lsn, last: lsn, what }
            }
            Scanned::Damage(damage) => Next::Lost {
                first: damage.first_lsn,
                last: damage.last_lsn.unwrap_or(damage.first_lsn).max(damage.first_lsn),
                what: damage.to_string(),
            },
        }))
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.wal.bytes_on_disk()
    }

    /// Rows that are durable here and not acknowledged, of all epochs.
    pub fn rows_pending(&self) -> u64 {
        let inner = self.lock();
        let settled = inner.state.settled;
        let pending = inner.state.lanes.values().filter(|l| l.last_lsn >= settled);
        pending.map(|l| l.end.saturating_sub(l.floor)).sum()
    }

    /// Rows queued by this start, and found at its beginning behind the stored state.
    pub fn rows_queued(&self) -> u64 {
        self.lock().rows_queued
    }
}
