//! What to send next, and what an answer means: delivery without sockets, threads or timers.
//!
//! One value is one connection. The shell (`uplink`) asks [`Delivery::next`] what to do, does it,
//! and reports what came of it; the crash suite does the same with a model server.
//! Owns: the order of sending, what is in flight, when a stream forks, when the queue may trim.
//! Never: counts anything but a `PutAck` for rows that were sent as an ack; sends a row before the
//! server said where its stream stands.
//! Invariants: D2 numbers of a (stream, epoch) are sent in order and without holes. Where rows are
//! missing the rest goes on under a new epoch, stored before it is used, with a gap record.
//! A server that knows less than it acknowledged gets again what the log still holds.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use millrace_platform::clock::Clock;
use millrace_protocol::{
    ids::{DeviceId, Epoch, SeqNo, StreamId},
    stream::{PutAck, PutHeader, StreamKey},
};
use millrace_wal::LogCursor;

use crate::{
    gap::{self, Cause, Gap},
    planted::{Bug, planted},
    queue::{Next, Part, Queue, QueueError, Section},
};

/// Messages sent and not yet acknowledged.
pub const IN_FLIGHT_MAX: usize = 64;
/// Bytes of them, so that memory does not grow with a slow link.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// How often floors are made durable: each time costs two syncs, and a crash in between only has
/// the server say again what it knows.
const SETTLE_EVERY: Duration = Duration::from_secs(1);
/// A server that acknowledges nothing for this long is not working.
const ACK_PATIENCE: Duration = Duration::from_secs(60);

/// What the shell must do.
#[derive(Debug)]
pub enum Action {
    /// Ask the server where this stream stands; tell [`Delivery::answered`].
    Ask(StreamId, u64),
    /// Send this message.
    Send(Box<Outgoing>),
    /// Nothing to send before an ack comes, or before rows come.
    Wait,
}

/// One data message.
#[derive(Debug)]
pub struct Outgoing {
    /// What it carries.
    pub header: PutHeader,
    /// The rows.
    pub part: Part,
}

/// Why the connection must end.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// The queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// An ack that does not belong to what was sent.
    #[error("the server acknowledged what was not sent: {0}")]
    NotOurs(String),
    /// No acks.
    #[error("the server has not acknowledged anything for {} seconds", ACK_PATIENCE.as_secs())]
    Silent,
}

/// One stream under one epoch as the server sees it, in the queue's numbers.
struct Lane {
    queued_epoch: u64,
    section: Section,
    /// What the server has.
    server: u64,
    /// The last number that was sent on this connection.
    sent: u64,
}

struct Sent {
    lane: (StreamId, u64),
    hi: u64,
    bytes: usize,
}

/// See the module head.
pub struct Delivery {
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    device: DeviceId,
    cursor: LogCursor,
    /// Parts of the frame that was read last and are not yet dealt with.
    pending: VecDeque<(u64, Part)>,
    /// The frame behind the one that was read last.
    next_lsn: u64,
    rewound: bool,
    /// (stream, epoch as sent) -> where it stands.
    lanes: BTreeMap<(StreamId, u64), Lane>,
    /// (log number, nth part) -> what was sent.
    in_flight: BTreeMap<(u64, u64), Sent>,
    in_flight_bytes: usize,
    sent: u64,
    unsettled: bool,
    settled_at: Duration,
    progress_at: Duration,
}

impl Delivery {
    /// A new connection.
    pub fn new(queue: Arc<Queue>, clock: Arc<dyn Clock>, device: DeviceId) -> Self {
        let from = queue.settled();
        let now = clock.monotonic();
        Self {
            cursor: queue.cursor(from),
            queue,
            clock,
            device,
            pending: VecDeque::new(),
            next_lsn: from,
            rewound: false,
            lanes: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            in_flight_bytes: 0,
            sent: 0,
            unsettled: false,
            settled_at: now,
            progress_at: now,
        }
    }

    /// Messages in flight.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Messages of a stream in flight.
    pub fn in_flight_of(&self, stream: &StreamId) -> usize {
        self.in_flight.values().filter(|s| s.lane.0 == *stream).count()
    }

    fn is_full(&self) -> bool {
        self.in_flight.len() >= IN_FLIGHT_MAX || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
    }

    /// What to do now.
    pub fn next(&mut self) -> Result<Action, DeliveryError> {
        loop {
            if self.is_full() {
                return Ok(Action::Wait);
            }
            let Some((lsn, part)) = self.pending.front() else {
                match self.queue.read(&mut self.cursor)? {
                    Some(Next::Frame(frame)) => {
                        self.next_lsn = self.next_lsn.max(frame.lsn + 1);
                        let lsn = frame.lsn;
                        self.pending.extend(frame.parts.into_iter().map(|part| (lsn, part)));
                        self.unsettled = true;
                    }
                    Some(Next::Lost { first, last, what }) => {
                        self.queue.lost(first, last, &what);
                        self.next_lsn = self.next_lsn.max(last.saturating_add(1));
                        self.unsettled = true;
                    }
                    None => return Ok(Action::Wait),
                }
                continue;
            };
            let lsn = *lsn;
            let section = self.queue.section(&part.stream, part.epoch, part.seq_hi());
            let key = (part.stream.clone(), section.epoch);
            let Some(lane) = self.lanes.get_mut(&key) else {
                return Ok(Action::Ask(key.0, key.1));
            };
            let (lo, hi) = (part.seq_lo, part.seq_hi());
            let known = lane.server.max(lane.sent);
            if lo > section.end {
                // Inside a hole that is recorded.
                self.pending.pop_front();
                continue;
            }
            let sendable = self.queue.sendable(&part.stream, part.epoch);
            if lo <= lane.server && lo > sendable && !planted(Bug::EpochKept) {
                // Numbered since the start and never sent, yet the server has the number: a copy
                // of this device used it.
                let what = "another copy of this device uses its numbers";
                self.fork(part.clone(), known, Cause::Fork, 0, what)?;
                continue;
            }
            if hi <= known {
                if hi <= lane.server {
                    self.queue.moved(&part.stream, part.epoch, hi);
                }
                self.pending.pop_front();
                continue;
            }
            if lo > known + 1 {
                self.hole(part.clone(), known)?;
                continue;
            }
            let Some((_, part)) = self.pending.pop_front() else { continue };
            lane.sent = hi;
            if self.in_flight.is_empty() {
                self.progress_at = self.clock.monotonic();
            }
            self.queue.sending(&part.stream, part.epoch, hi);
            let header = PutHeader {
                key: StreamKey {
                    device: self.device,
                    stream: part.stream.clone(),
                    epoch: Epoch(section.epoch),
                },
                seq_lo: SeqNo(lo.saturating_sub(section.offset).max(1)),
                seq_hi: SeqNo(hi - section.offset),
            };
            self.sent += 1;
            self.in_flight_bytes += part.bytes;
            self.in_flight.insert((lsn, self.sent), Sent { lane: key, hi, bytes: part.bytes });
            return Ok(Action::Send(Box::new(Outgoing { header, part })));
        }
    }

    /// Rows between `known` and a part are not to be had from here on.
    fn hole(&mut self, part: Part, known: u64) -> Result<(), DeliveryError> {
        let floor = self.queue.floor(&part.stream, part.epoch);
        if known < floor && !self.rewound && !planted(Bug::LowerFloorIgnored) {
            // Segments are kept whole, so the log may still hold some of it.
            self.rewind();
            return Ok(());
        }
        let (first, last) = (known + 1, part.seq_lo - 1);
        let void = self.queue.void_rows(&part.stream, part.epoch, first, last);
        let missing = (last + 1 - first).saturating_sub(void);
        let (cause, what) = if known < floor {
            (Cause::Fork, "the server knows less than it had acknowledged")
        } else {
            (Cause::Quarantine, "the queue does not hold them any more")
        };
        self.fork(part, known, cause, missing, what)
    }

    /// Sends a part and what comes behind it in its stream under a new epoch.
    fn fork(
        &mut self,
        part: Part,
        known: u64,
        cause: Cause,
        missing: u64,
        what: &str,
    ) -> Result<(), DeliveryError> {
        let offset = part.seq_lo - 1;
        let recorded = missing > 0 || cause == Cause::Fork;
        let gap = recorded.then(|| {
            tracing::error!(stream = %part.stream, missing, what, "a stream goes on in a new epoch");
            let now = self.clock.now_ns();
            let gap = Gap::new(part.stream.as_str(), cause, now, missing, what);
            if missing > 0 { gap.numbers(part.epoch, known + 1, offset) } else { gap }
        });
        Ok(self.queue.fork(&part.stream, part.epoch, (offset, known), gap)?)
    }

    /// A message that cannot be written: its rows are a gap, what is behind goes on.
    pub fn unsendable(&mut self, message: &Outgoing, why: &str) -> Result<(), DeliveryError> {
        let part = &message.part;
        let key = (part.stream.clone(), message.header.key.epoch.0);
        let hi = part.seq_hi();
        self.in_flight.retain(|_, sent| sent.lane != key || sent.hi != hi);
        self.in_flight_bytes = self.in_flight.values().map(|s| s.bytes).sum();
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.sent = part.seq_lo - 1;
        }
        let missing = part.batch.rows() as u64;
        let gap =
            Gap::new(part.stream.as_str(), Cause::Rejected, self.clock.now_ns(), missing, why)
                .numbers(part.epoch, part.seq_lo, hi);
        let place = (hi, part.seq_lo - 1);
        Ok(self.queue.fork(&part.stream, part.epoch, place, Some(gap))?)
    }

    /// The server's answer to [`Action::Ask`]: it has every row up to `hi`.
    pub fn answered(&mut self, stream: StreamId, epoch: u64, hi: u64) {
        let Some((_, part)) = self.pending.front() else { return };
        let section = self.queue.section(&part.stream, part.epoch, part.seq_hi());
        if part.stream != stream || section.epoch != epoch {
            return;
        }
        let mut server = hi.saturating_add(section.offset);
        let should = self.queue.floor(&stream, part.epoch).min(section.end);
        if planted(Bug::LowerFloorIgnored) {
            server = server.max(should);
        }
        let lane = Lane { queued_epoch: part.epoch, section, server, sent: 0 };
        self.lanes.insert((stream, epoch), lane);
        if server < should && !self.rewound && !planted(Bug::LowerFloorIgnored) {
            tracing::error!(server, should, "the server has less than it had acknowledged");
            self.rewind();
        }
    }

    /// Reads all that the log holds again. What is in flight is not sent twice, and nothing is
    /// given up before it has been read again.
    fn rewind(&mut self) {
        self.rewound = true;
        self.pending.clear();
        let from = self.queue.first_lsn();
        self.cursor = self.queue.cursor(from);
        self.next_lsn = from;
    }

    /// Takes an ack.
    pub fn acked(&mut self, ack: &PutAck) -> Result<(), DeliveryError> {
        let mut key = (ack.key.stream.clone(), ack.key.epoch.0);
        if planted(Bug::AckOfAnother)
            && let Some(sent) = self.in_flight.values().next()
        {
            key = sent.lane.clone();
        }
        let named = || format!("stream {} in epoch {:016x}", ack.key.stream, ack.key.epoch.0);
        let Some(lane) = self.lanes.get_mut(&key) else {
            return Err(DeliveryError::NotOurs(named()));
        };
        let hi = ack.hi.0.saturating_add(lane.section.offset);
        let ours = self.queue.sendable(&key.0, lane.queued_epoch).max(lane.server);
        let strange = ack.key.device != self.device || hi > ours;
        if strange && !planted(Bug::AckOfAnother) {
            return Err(DeliveryError::NotOurs(format!("{} up to row {}", named(), ack.hi)));
        }
        if ack.refused > 0 && ack.key.stream.as_str() != gap::STREAM {
            let first = ack.refusals.first().map(|r| r.reason.clone()).unwrap_or_default();
            let now = self.clock.now_ns();
            let stream = ack.key.stream.as_str();
            self.queue.note(Gap::new(stream, Cause::Rejected, now, ack.refused, &first));
        }
        lane.server = lane.server.max(hi);
        self.queue.moved(&key.0, lane.queued_epoch, hi);
        let mut freed = 0;
        self.in_flight.retain(|_, sent| {
            let keep = sent.lane != key || sent.hi > hi;
            freed += if keep { 0 } else { sent.bytes };
            keep
        });
        self.in_flight_bytes -= freed;
        self.unsettled = true;
        self.progress_at = self.clock.monotonic();
        Ok(())
    }

    /// To be called now and then: stores floors and trims, at most once in a while unless `now`.
    /// A disk that refuses is no reason to stop delivering; the next call tries again.
    pub fn settle(&mut self, now: bool) -> Result<(), QueueError> {
        let time = self.clock.monotonic();
        let due = time.saturating_sub(self.settled_at) >= SETTLE_EVERY;
        if !self.unsettled || !(now || due) {
            return Ok(());
        }
        self.settled_at = time;
        let sent = self.in_flight.keys().next().map(|(lsn, _)| *lsn);
        let pending = self.pending.front().map(|(lsn, _)| *lsn);
        let mut oldest = sent.unwrap_or(u64::MAX).min(pending.unwrap_or(u64::MAX));
        if planted(Bug::TrimBeforeAck) {
            oldest = u64::MAX;
        }
        self.unsettled = self.queue.settle(oldest.min(self.next_lsn))?;
        Ok(())
    }

    /// Whether the server has been silent for too long.
    pub fn check_alive(&self) -> Result<(), DeliveryError> {
        let quiet = self.clock.monotonic().saturating_sub(self.progress_at);
        if self.in_flight.is_empty() || quiet < ACK_PATIENCE {
            return Ok(());
        }
        Err(DeliveryError::Silent)
    }
}
