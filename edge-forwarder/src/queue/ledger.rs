//! The ledger of gaps on its way: members of the state first, then rows of the log.
//!
//! Owns: that order. Never: forgets a gap before it is a row; counts two kinds as one while there
//! is room for both.

use super::{GAPS_MAX, GAPS_PER_GROUP, Inner, Queue, QueueError};
use crate::{
    gap::{self, Cause, Gap},
    planted::{Bug, planted},
};

impl Inner {
    pub(super) fn note(&mut self, mut gap: Gap) {
        if planted(Bug::GapDropped) {
            return;
        }
        let sealed = self.gaps_sealed;
        let mut open = self.state.gaps.iter_mut().filter(|g| g.id > sealed);
        if open.any(|g| g.absorb(&gap)) {
            return;
        }
        if self.state.gaps.len() >= GAPS_MAX
            && let Some(last) = self.state.gaps.last_mut()
            && last.id > sealed
        {
            last.stream = "many".to_owned();
            last.rows = last.rows.saturating_add(gap.rows);
            last.to_ns = last.to_ns.max(gap.to_ns);
            (last.epoch, last.first, last.last) = (0, 0, 0);
            return;
        }
        self.state.gap_id += 1;
        gap.id = self.state.gap_id;
        self.state.gaps.push(gap);
    }
}

impl Queue {
    /// Records a gap. It is durable with the next [`Self::settle`] or [`Self::flush_gaps`].
    pub fn note(&self, gap: Gap) {
        self.lock().note(gap);
    }

    /// Records a stretch of the log that does not read, once.
    pub fn lost(&self, first: u64, last: u64, what: &str) {
        let mut inner = self.lock();
        if inner.state.lost.iter().any(|(a, b)| *a <= first && last <= *b) {
            return;
        }
        tracing::error!(first, last, what, "a stretch of the queue does not read; it is a gap");
        inner.state.lost.push((first, last));
        let gap = Gap::new("queue", Cause::Quarantine, self.clock.now_ns(), 0, what);
        inner.note(gap.numbers(0, first, last));
    }

    /// Whether gaps wait to become rows.
    #[cfg(test)]
    pub fn has_gaps(&self) -> bool {
        !self.lock().state.gaps.is_empty()
    }

    /// Turns gaps that wait into rows of the queue.
    pub fn flush_gaps(&self) -> Result<(), QueueError> {
        let gaps = {
            let mut inner = self.lock();
            // Durable before they are rows, so that a crash in between repeats their ids.
            if inner.state.gaps.is_empty() {
                return Ok(());
            }
            self.save(&mut inner)?;
            let gaps: Vec<Gap> = inner.state.gaps.iter().take(GAPS_PER_GROUP).cloned().collect();
            inner.gaps_sealed = gaps.last().map_or(0, |g| g.id);
            gaps
        };
        let Some(group) = gap::group(&gaps) else { return Ok(()) };
        self.append(&[group]).into_iter().try_for_each(|result| result.map(drop))
    }
}
