//! What to send next, and what an answer means: delivery without sockets, threads or timers.
//!
//! One value is one connection. The shell (`uplink`) asks [`Delivery::next`] what to do, does it,
//! and reports what came of it; the crash suite does the same with a model server.
//! Owns: the order of sending, what is in flight, when a stream forks, when the queue may trim.
//! Two lanes read one log: *backfill* the frames before the queue's split, *live* those behind it.
//! Rows behind a split are of another epoch, so the order of one lane says nothing about the other.
//! Never: counts anything but a `PutAck` for rows that were sent as an ack; sends a row before the
//! server said where its stream stands.
//! Invariants: D2 numbers of a (stream, epoch) are sent in order and without holes. Where rows are
//! missing the rest goes on under a new epoch, stored before it is used, with a gap record.
//! A server that knows less than it acknowledged gets again what the log still holds.
//! A message that the server refuses for good is put aside, and its stream goes on behind it.

mod pace;
mod reader;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use millrace_platform::clock::Clock;
use millrace_protocol::{
    ids::{DeviceId, Epoch, SeqNo, StreamId},
    stream::{PutAck, PutHeader, StreamKey},
};

use crate::{
    gap::{self, Cause, Gap},
    planted::{Bug, planted},
    queue::{Next, Part, Queue, QueueError, Section},
};
use pace::{Lane, Pace};
use reader::Reader;

pub use pace::Share;

/// Messages sent and not yet acknowledged.
pub const IN_FLIGHT_MAX: usize = 64;
/// Bytes of them, so that memory does not grow with a slow link.
const IN_FLIGHT_BYTES_MAX: usize = 8 << 20;
/// What of both backfill may fill, so that a live row always finds room.
const BACKFILL_MAX: (usize, usize) = (IN_FLIGHT_MAX / 4 * 3, IN_FLIGHT_BYTES_MAX / 4 * 3);
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
struct Stand {
    queued_epoch: u64,
    section: Section,
    /// What the server has.
    server: u64,
    /// The last number that was sent on this connection.
    sent: u64,
}

struct Sent {
    key: (StreamId, u64),
    hi: u64,
    bytes: usize,
    lane: Lane,
}

/// A question to the server that is not answered yet.
struct Asked {
    key: (StreamId, u64),
    queued_epoch: u64,
    section: Section,
}

/// See the module head.
pub struct Delivery {
    queue: Arc<Queue>,
    clock: Arc<dyn Clock>,
    device: DeviceId,
    live: Reader,
    backfill: Reader,
    pace: Pace,
    rewound: bool,
    asked: Option<Asked>,
    /// (stream, epoch as sent) -> where it stands.
    stands: BTreeMap<(StreamId, u64), Stand>,
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
    pub fn new(queue: Arc<Queue>, clock: Arc<dyn Clock>, device: DeviceId, share: Share) -> Self {
        if queue.rows_live() > share.split_rows
            && let Err(error) = queue.split()
        {
            // Everything goes on in the order in which it came.
            tracing::warn!(%error, "live rows wait behind the backlog: the state is not stored");
        }
        let (from, split) = (queue.settled(), queue.split_at());
        let now = clock.monotonic();
        Self {
            live: Reader::new(&queue, from.max(split), u64::MAX),
            backfill: Reader::new(&queue, from, split),
            pace: Pace::new(share, BACKFILL_MAX.1, now),
            queue,
            clock,
            device,
            rewound: false,
            asked: None,
            stands: BTreeMap::new(),
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

    /// Messages of a stream in an epoch in flight.
    pub fn in_flight_of(&self, stream: &StreamId, epoch: u64) -> usize {
        self.in_flight.values().filter(|s| s.key.0 == *stream && s.key.1 == epoch).count()
    }

    fn is_full(&self) -> bool {
        self.in_flight.len() >= IN_FLIGHT_MAX || self.in_flight_bytes >= IN_FLIGHT_BYTES_MAX
    }

    /// Messages and bytes of backfill in flight.
    fn flying(&self) -> (usize, usize) {
        let of = self.in_flight.values().filter(|s| s.lane == Lane::Backfill);
        of.fold((0, 0), |(n, bytes), s| (n + 1, bytes + s.bytes))
    }

    fn reader(&mut self, lane: Lane) -> &mut Reader {
        match lane {
            Lane::Live => &mut self.live,
            Lane::Backfill => &mut self.backfill,
        }
    }

    /// What to do now.
    pub fn next(&mut self) -> Result<Action, DeliveryError> {
        if self.is_full() {
            return Ok(Action::Wait);
        }
        let (messages, bytes) = self.flying();
        let now = self.clock.monotonic();
        for lane in self.pace.order(now, bytes).into_iter().flatten() {
            if lane == Lane::Backfill && messages >= BACKFILL_MAX.0 {
                continue;
            }
            if let Some(action) = self.advance(lane)? {
                return Ok(action);
            }
        }
        Ok(Action::Wait)
    }

    /// What a lane does now; `None`: it has to wait.
    fn advance(&mut self, lane: Lane) -> Result<Option<Action>, DeliveryError> {
        loop {
            let queue = Arc::clone(&self.queue);
            let mut moved = false;
            let reader = self.reader(lane);
            let filled = reader.fill(&queue, &mut moved)?;
            let front = reader.pending.front().cloned();
            self.unsettled |= moved;
            let Some((lsn, part)) = front.filter(|_| filled) else { return Ok(None) };
            let section = queue.section(&part.stream, part.epoch, part.seq_hi());
            let key = (part.stream.clone(), section.epoch);
            let Some(stand) = self.stands.get(&key) else {
                let (queued_epoch, asked) = (part.epoch, key.clone());
                self.asked = Some(Asked { key, queued_epoch, section });
                return Ok(Some(Action::Ask(asked.0, asked.1)));
            };
            let (lo, hi) = (part.seq_lo, part.seq_hi());
            let (server, known) = (stand.server, stand.server.max(stand.sent));
            let passed = hi > section.end && known >= section.end;
            if lo > section.end || passed {
                // Inside a hole that is recorded.
                self.reader(lane).pending.pop_front();
                continue;
            }
            let sendable = queue.sendable(&part.stream, part.epoch);
            if lo <= server && lo > sendable && !planted(Bug::EpochKept) {
                // Numbered since the start and never sent, yet the server has the number: a copy
                // of this device used it.
                let what = "another copy of this device uses its numbers";
                self.fork(part, known, Cause::Fork, 0, what)?;
                continue;
            }
            if hi <= known {
                if hi <= server {
                    queue.moved(&part.stream, part.epoch, hi);
                }
                self.reader(lane).pending.pop_front();
                continue;
            }
            if lo > known + 1 {
                if lane == Lane::Live && !self.backfill.is_done() {
                    // The rows between may be of the other lane.
                    return Ok(None);
                }
                self.hole(part, known)?;
                continue;
            }
            self.reader(lane).pending.pop_front();
            return Ok(Some(self.send(lane, lsn, part, section)));
        }
    }

    fn send(&mut self, lane: Lane, lsn: u64, part: Part, section: Section) -> Action {
        let key = (part.stream.clone(), section.epoch);
        let hi = part.seq_hi();
        if let Some(stand) = self.stands.get_mut(&key) {
            stand.sent = hi;
        }
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
            seq_lo: SeqNo(part.seq_lo.saturating_sub(section.offset).max(1)),
            seq_hi: SeqNo(hi - section.offset),
        };
        self.sent += 1;
        self.in_flight_bytes += part.bytes;
        self.pace.sent(lane, part.bytes);
        self.in_flight.insert((lsn, self.sent), Sent { key, hi, bytes: part.bytes, lane });
        Action::Send(Box::new(Outgoing { header, part }))
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
        self.in_flight.retain(|_, sent| sent.key != key || sent.hi != hi);
        self.in_flight_bytes = self.in_flight.values().map(|s| s.bytes).sum();
        if let Some(stand) = self.stands.get_mut(&key) {
            stand.sent = part.seq_lo - 1;
        }
        let missing = part.batch.rows() as u64;
        let gap =
            Gap::new(part.stream.as_str(), Cause::Rejected, self.clock.now_ns(), missing, why)
                .numbers(part.epoch, part.seq_lo, hi);
        let place = (hi, part.seq_lo - 1);
        Ok(self.queue.fork(&part.stream, part.epoch, place, Some(gap))?)
    }

    /// The server refuses a stream's oldest message on its way, for good: its rows are put aside
    /// with a gap record, and the rest of the stream is sent behind them, in a new epoch.
    pub fn refused(
        &mut self,
        stream: &StreamId,
        epoch: u64,
        why: &str,
    ) -> Result<(), DeliveryError> {
        let key = (stream.clone(), epoch);
        let ours = self.in_flight.iter().filter(|(_, sent)| sent.key == key);
        let Some((lsn, hi, lane)) = ours.map(|(at, sent)| (at.0, sent.hi, sent.lane)).next() else {
            return Ok(());
        };
        let mut cursor = self.queue.cursor(lsn);
        let part = match self.queue.read(&mut cursor)? {
            Some(Next::Frame(frame)) if frame.lsn == lsn => {
                frame.parts.into_iter().find(|p| p.stream == *stream && p.seq_hi() == hi)
            }
            _ => None,
        };
        // Without its frame it is a hole, which reading again will find.
        if let Some(part) = part {
            let server = self.stands.get(&key).map_or(0, |s| s.server);
            self.queue.put_aside(&part, server.max(part.seq_lo - 1), why)?;
        }
        self.in_flight.retain(|_, sent| sent.key != key);
        self.in_flight_bytes = self.in_flight.values().map(|s| s.bytes).sum();
        if let Some(stand) = self.stands.get_mut(&key) {
            stand.sent = stand.server;
        }
        let queue = Arc::clone(&self.queue);
        let reader = self.reader(lane);
        // Another refusal may have sent it back further.
        let from = if planted(Bug::RereadFromLast) { lsn } else { lsn.min(reader.low()) };
        if !planted(Bug::RefusedNotRead) {
            reader.restart(&queue, from);
        }
        self.unsettled = true;
        Ok(())
    }

    /// The server's answer to [`Action::Ask`]: it has every row up to `hi`.
    pub fn answered(&mut self, stream: StreamId, epoch: u64, hi: u64) {
        let Some(asked) = self.asked.take_if(|a| a.key.0 == stream && a.key.1 == epoch) else {
            return;
        };
        let Asked { key, queued_epoch, section } = asked;
        let mut server = hi.saturating_add(section.offset);
        let should = self.queue.floor(&stream, queued_epoch).min(section.end);
        if planted(Bug::LowerFloorIgnored) {
            server = server.max(should);
        }
        self.stands.insert(key, Stand { queued_epoch, section, server, sent: 0 });
        if server < should && !self.rewound && !planted(Bug::LowerFloorIgnored) {
            tracing::error!(server, should, "the server has less than it had acknowledged");
            self.rewind();
        }
    }

    /// Reads all that the log holds again. What is in flight is not sent twice, and nothing is
    /// given up before it has been read again.
    fn rewind(&mut self) {
        self.rewound = true;
        let queue = Arc::clone(&self.queue);
        let from = queue.first_lsn();
        self.backfill.restart(&queue, from);
        self.live.restart(&queue, from.max(queue.split_at()));
    }

    /// Takes an ack.
    pub fn acked(&mut self, ack: &PutAck) -> Result<(), DeliveryError> {
        let mut key = (ack.key.stream.clone(), ack.key.epoch.0);
        if planted(Bug::AckOfAnother)
            && let Some(sent) = self.in_flight.values().next()
        {
            key = sent.key.clone();
        }
        let named = || format!("stream {} in epoch {:016x}", ack.key.stream, ack.key.epoch.0);
        let Some(stand) = self.stands.get_mut(&key) else {
            return Err(DeliveryError::NotOurs(named()));
        };
        let hi = ack.hi.0.saturating_add(stand.section.offset);
        let ours = self.queue.sendable(&key.0, stand.queued_epoch).max(stand.server);
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
        stand.server = stand.server.max(hi);
        self.queue.moved(&key.0, stand.queued_epoch, hi);
        let mut freed = 0;
        self.in_flight.retain(|_, sent| {
            let keep = sent.key != key || sent.hi > hi;
            freed += if keep { 0 } else { sent.bytes };
            keep
        });
        self.in_flight_bytes -= freed;
        self.unsettled = true;
        self.progress_at = self.clock.monotonic();
        self.pace.acked(freed, self.progress_at);
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
        let mut oldest = self.in_flight.keys().next().map_or(u64::MAX, |(lsn, _)| *lsn);
        if planted(Bug::TrimBeforeAck) {
            oldest = u64::MAX;
        } else if !planted(Bug::LiveSettlesAll) {
            oldest = oldest.min(self.backfill.low());
        }
        let read = self.live.low();
        self.unsettled = self.queue.settle(oldest.min(read))?;
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
