//! Exactly once: which sequence numbers of a stream have been taken.
//!
//! Owns: the decision what to do with rows numbered `seq_lo..=seq_hi`. Pure; no I/O.
//! Invariants: D2_WATERMARK_NEVER_BACK; a sequence number is applied once. The decision is taken
//! on the *pending* watermark (records appended to the log), the answer to a client only ever
//! shows the *durable* one.

use millrace_protocol::{
    ids::SeqNo,
    stream::{PutHeader, StreamKey},
};

use crate::planted::{Bug, planted};

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Take the rows from number `from` on (earlier ones are known).
    Take { from: SeqNo },
    /// All known: acknowledge, change nothing.
    Duplicate,
    /// Rows between the watermark and this frame are missing.
    Missing,
    /// `seq_lo` is 0 or above `seq_hi`.
    Invalid,
}

/// Decides about a frame against the highest contiguous number taken so far (0: none).
pub(crate) fn decide(hi: SeqNo, header: &PutHeader) -> Verdict {
    let (lo, last) = (header.seq_lo, header.seq_hi);
    if lo.0 == 0 || lo > last {
        Verdict::Invalid
    } else if last <= hi {
        Verdict::Duplicate
    } else if lo.0 > hi.0 + 1 && !planted(Bug::HoleTaken) {
        Verdict::Missing
    } else {
        Verdict::Take { from: SeqNo(hi.0 + 1) }
    }
}

/// The line of a frame that has number `from`: line i (from 1) has number `seq_lo + i - 1`. A
/// line past what a batch can count is one that the batch does not have.
pub(crate) fn line_of(header: &PutHeader, from: SeqNo) -> u32 {
    let line = from.0.saturating_sub(header.seq_lo.0).saturating_add(1);
    u32::try_from(line).unwrap_or(u32::MAX)
}

/// Watermarks of one tenant's streams.
#[derive(Debug, Default, Clone)]
pub(crate) struct Watermarks {
    hi: std::collections::BTreeMap<StreamKey, SeqNo>,
}

impl Watermarks {
    /// The highest contiguous number of a stream; 0 if it is new.
    pub(crate) fn get(&self, key: &StreamKey) -> SeqNo {
        self.hi.get(key).copied().unwrap_or_default()
    }

    /// Moves a stream forward.
    pub(crate) fn advance(
        &mut self,
        key: &StreamKey,
        to: SeqNo,
    ) -> Result<(), millrace_platform::invariant::Broken> {
        let from = self.get(key);
        millrace_platform::invariant!(D2_WATERMARK_NEVER_BACK, to >= from, from, to)?;
        self.hi.insert(key.clone(), to);
        Ok(())
    }

    /// Puts a stream back to its durable mark after a failed sync.
    pub(crate) fn reset(&mut self, key: &StreamKey, to: SeqNo) {
        self.hi.insert(key.clone(), to);
    }

    /// All streams.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&StreamKey, &SeqNo)> {
        self.hi.iter()
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::ids::{DeviceId, Epoch};

    use super::*;

    fn header(lo: u64, hi: u64) -> PutHeader {
        let key =
            StreamKey { device: DeviceId([1; 16]), stream: "s".parse().unwrap(), epoch: Epoch(1) };
        PutHeader { key, seq_lo: SeqNo(lo), seq_hi: SeqNo(hi) }
    }

    #[test]
    fn d2_a_number_is_taken_once_however_frames_overlap() {
        for (lo, hi, verdict) in [
            (1, 10, Verdict::Duplicate),
            (5, 20, Verdict::Take { from: SeqNo(11) }),
            (11, 20, Verdict::Take { from: SeqNo(11) }),
            (12, 20, Verdict::Missing),
            (0, 20, Verdict::Invalid),
            (20, 11, Verdict::Invalid),
        ] {
            assert_eq!(decide(SeqNo(10), &header(lo, hi)), verdict, "{lo}..={hi}");
        }
    }

    #[test]
    fn d2_lines_are_counted_from_one_and_never_wrap() {
        for (lo, from, line) in [
            (1, 1, 1),
            (11, 15, 5),
            (1, u64::from(u32::MAX), u32::MAX),
            (1, 1 << 32, u32::MAX),
            (1, (1 << 32) + 5, u32::MAX),
            (1, u64::MAX, u32::MAX),
        ] {
            assert_eq!(line_of(&header(lo, u64::MAX), SeqNo(from)), line, "{lo}, {from}");
        }
    }
}
