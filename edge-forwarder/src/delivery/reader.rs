//! One lane's place in the log.
//!
//! Owns: the cursor and the parts of the frame that was read last. Never: reads a frame of the other
//! lane: backfill ends where live begins.

use std::collections::VecDeque;

use millrace_wal::LogCursor;

use super::DeliveryError;
use crate::queue::{Next, Part, Queue};

/// See the module head.
pub(super) struct Reader {
    cursor: LogCursor,
    /// Parts of the frame that was read last and are not yet dealt with.
    pub(super) pending: VecDeque<(u64, Part)>,
    /// The frame behind the one that was read last.
    pub(super) next_lsn: u64,
    /// The first frame that is not this lane's.
    end: u64,
}

impl Reader {
    pub(super) fn new(queue: &Queue, from: u64, end: u64) -> Self {
        Self { cursor: queue.cursor(from), pending: VecDeque::new(), next_lsn: from, end }
    }

    /// Whether everything of this lane has been read and dealt with.
    pub(super) fn is_done(&self) -> bool {
        self.pending.is_empty() && self.next_lsn >= self.end
    }

    /// The first frame that is not dealt with, as far as reading goes.
    pub(super) fn low(&self) -> u64 {
        if self.is_done() {
            return u64::MAX;
        }
        self.pending.front().map_or(self.next_lsn, |(lsn, _)| *lsn)
    }

    /// Reads again from a frame on.
    pub(super) fn restart(&mut self, queue: &Queue, from: u64) {
        self.pending.clear();
        self.cursor = queue.cursor(from);
        self.next_lsn = from;
    }

    /// Reads until a part waits; `false` if there is none. `moved` is set if the place has moved.
    pub(super) fn fill(&mut self, queue: &Queue, moved: &mut bool) -> Result<bool, DeliveryError> {
        while self.pending.is_empty() {
            if self.next_lsn >= self.end {
                return Ok(false);
            }
            let Some(next) = queue.read(&mut self.cursor)? else { return Ok(false) };
            *moved = true;
            match next {
                Next::Frame(frame) if frame.lsn >= self.end => self.next_lsn = self.end,
                Next::Frame(frame) => {
                    let lsn = frame.lsn;
                    self.next_lsn = self.next_lsn.max(lsn + 1);
                    self.pending.extend(frame.parts.into_iter().map(|part| (lsn, part)));
                }
                Next::Lost { first, last, what } => {
                    queue.lost(first, last, &what);
                    self.next_lsn = self.next_lsn.max(last.saturating_add(1));
                }
            }
        }
        Ok(true)
    }
}
