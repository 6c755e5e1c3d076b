//! One device, one server, and everything that can happen between them.
//!
//! Two sources. `tail` can be read again from its stored position; `stdin` cannot, so what was not
//! stored when the power went is allowed to be missing, and only then. Rows carry ids; the books
//! at the end say for each id whether it is at the server once, and for each that is missing
//! which gap holds it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::sim::{SimClock, SimDisk, SimEntropy};
use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    frame,
    ids::DeviceId,
    stream::{PutAck, PutHeader},
    value::{FieldType, FieldValues},
};

use crate::{
    delivery::{Action, Delivery, Share},
    gap,
    queue::{Ground, Group, Incoming, Next, Queue, Sizes},
};

use super::server::{Answer, Server};

pub(super) const DIR: &str = "/edge/queue";
pub(super) const DEVICE: DeviceId = DeviceId([9; 16]);
/// Small, so that a short history fills and trims segments.
pub(super) const SIZES: Sizes = Sizes { segment: 16 << 10, reserve: 16 << 10 };
const STDIN_FROM: u64 = 1_000_000;

/// One key for all; the owner is the device.
#[derive(Debug)]
pub(crate) struct Keys(pub(crate) [u8; 32]);

impl TenantKeySource for Keys {
    fn current(&self, owner: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(owner, 1)
    }

    fn version(&self, owner: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if *owner != DEVICE.0 {
            return Err(KeyError::Gone { tenant: hex::encode(owner) });
        }
        Ok(Arc::new(TenantKeys::new(*owner, version, Key256::new(self.0))))
    }
}

/// A batch of rows with these ids.
pub(super) fn rows(table: &str, ids: &[u64]) -> TableBatch {
    let mut id = FieldColumn::new("id", FieldType::U64);
    let mut batch = TableBatch { table: table.to_owned(), ..TableBatch::default() };
    batch.series_keys.push(SeriesKey::from_sorted([]));
    for (n, value) in (1..).zip(ids) {
        batch.time.push(i64::try_from(*value).unwrap());
        batch.series.push(0);
        batch.line.push(n);
        if let FieldValues::U64(values) = &mut id.values {
            values.push(*value);
        }
        id.present.push(true);
    }
    batch.fields.push(id);
    batch
}

/// A group of a source: `ids`, dealt out over `tables` tables.
pub(crate) fn group(source: &str, ids: &[u64], tables: usize, position: Option<u64>) -> Group {
    let each = ids.len().div_ceil(tables.max(1)).max(1);
    let parts = ids.chunks(each).enumerate().map(|(n, ids)| Incoming {
        stream: format!("{source}/t{n}").parse().unwrap(),
        database: "default".to_owned(),
        batch: rows(&format!("t{n}"), ids),
    });
    Group {
        source: source.to_owned(),
        position: position.map(|p| p.to_le_bytes().to_vec()),
        parts: parts.collect(),
    }
}

/// Where a stored row lies.
#[derive(Debug, Clone)]
struct Stored {
    stream: String,
    epoch: u64,
    seq: u64,
    lsn: u64,
}

pub(super) struct World {
    pub(super) disk: SimDisk,
    pub(super) clock: SimClock,
    pub(super) dice: SimEntropy,
    entropy: Arc<SimEntropy>,
    pub(super) queue: Option<Arc<Queue>>,
    delivery: Option<Delivery>,
    pub(super) server: Server,
    to_server: VecDeque<u8>,
    to_device: VecDeque<u8>,
    /// Acks that went out, for sending one again.
    old_acks: Vec<Vec<u8>>,
    /// Calls of this connection that the server has ended.
    ended: BTreeSet<(String, u64)>,
    /// How the link is shared.
    pub(super) share: Share,
    /// Whether gap records count every row that is missing.
    pub(super) exact: bool,
    /// Groups that were put back.
    pub(super) retried: u64,
    /// Percent of groups that hold a row which the server refuses.
    pub(super) poisonous: u64,
    stored: BTreeMap<u64, Stored>,
    tail_next: u64,
    pub(super) stdin_next: u64,
    /// Offered and not stored; the same process offers them again.
    retry: Vec<u64>,
    pub(super) crashes: u64,
    /// Whether gaps other than those of a disk that refuses are to be expected.
    pub(super) may_lose: bool,
    /// Whether the source that can be read again stays out.
    pub(super) stdin_only: bool,
}

fn framed(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    for part in parts {
        out.extend_from_slice(&u32::try_from(part.len()).unwrap().to_le_bytes());
        out.extend_from_slice(part);
    }
    out
}

/// Takes `count` framed parts off a pipe, if they are there whole.
fn unframed(pipe: &mut VecDeque<u8>, count: usize) -> Option<Vec<Vec<u8>>> {
    let bytes = pipe.make_contiguous();
    let mut at = 0;
    let mut parts = Vec::new();
    for _ in 0..count {
        let len = u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().unwrap()) as usize;
        parts.push(bytes.get(at + 4..at + 4 + len)?.to_vec());
        at += 4 + len;
    }
    pipe.drain(..at);
    Some(parts)
}

impl World {
    pub(super) fn seeded(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(),
            clock: SimClock::at(1_000_000_000),
            dice: SimEntropy::seeded(seed),
            entropy: Arc::new(SimEntropy::seeded(seed ^ 0x5eed)),
            queue: None,
            delivery: None,
            server: Server::default(),
            to_server: VecDeque::new(),
            to_device: VecDeque::new(),
            old_acks: Vec::new(),
            ended: BTreeSet::new(),
            // A handful, so that short outages split.
            share: Share { split_rows: 25, ..Share::default() },
            exact: true,
            retried: 0,
            poisonous: 0,
            stored: BTreeMap::new(),
            tail_next: 1,
            stdin_next: STDIN_FROM,
            retry: Vec::new(),
            crashes: 0,
            may_lose: false,
            stdin_only: false,
        }
    }

    pub(super) fn ground(&self) -> Ground {
        Ground {
            disk: Arc::new(self.disk.clone()),
            entropy: Arc::clone(&self.entropy) as _,
            clock: Arc::new(self.clock.clone()),
            keys: Arc::new(Keys([7; 32])),
        }
    }

    /// The queue, opened if it is not; `None` if the disk refuses.
    fn up(&mut self) -> Option<Arc<Queue>> {
        if self.queue.is_none() {
            let queue = Queue::open(&self.ground(), DEVICE, Path::new(DIR), SIZES).ok()?;
            let position = queue.position("tail").map(|p| p.try_into().unwrap());
            self.tail_next = position.map_or(1, u64::from_le_bytes);
            self.queue = Some(Arc::new(queue));
        }
        self.queue.clone()
    }

    pub(super) fn cut_connection(&mut self) {
        // Any part of what was on its way may have arrived.
        let kept = self.dice.below(self.to_server.len() as u64 + 1) as usize;
        self.to_server.truncate(kept);
        self.serve();
        let kept = self.dice.below(self.to_device.len() as u64 + 1) as usize;
        self.to_device.truncate(kept);
        self.take_acks(usize::MAX);
        self.delivery = None;
        self.to_server.clear();
        self.to_device.clear();
        self.old_acks.clear();
        self.ended.clear();
    }

    /// The process ends without notice; the disk keeps what it has.
    pub(super) fn kill(&mut self) {
        self.delivery = None;
        self.cut_connection();
        self.queue = None;
        self.retry.clear();
        self.disk.kill_process();
    }

    /// The power goes; the disk keeps what was synced and some of the rest.
    pub(super) fn power_cut(&mut self) {
        self.kill();
        self.crashes += 1;
        self.disk.power_cycle(&self.dice);
    }

    /// Notes where the rows of a durable group are.
    fn note_stored(&mut self, queue: &Queue, lsn: u64) {
        let mut cursor = queue.cursor(lsn);
        let Ok(Some(Next::Frame(frame))) = queue.read(&mut cursor) else { return };
        assert_eq!(frame.lsn, lsn);
        for part in frame.parts.iter().filter(|p| p.stream.as_str() != gap::STREAM) {
            for (seq, id) in (part.seq_lo..).zip(super::server::ids(&part.batch)) {
                let stream = part.stream.to_string();
                self.stored.insert(id, Stored { stream, epoch: part.epoch, seq, lsn });
            }
        }
    }

    /// Sources hand over some rows.
    pub(super) fn offer(&mut self) {
        let Some(queue) = self.up() else { return };
        // A source has one group on its way at a time.
        let mut groups = Vec::new();
        let which = if self.stdin_only { 0 } else { self.dice.below(3) };
        let count = 1 + self.dice.below(40);
        let tables = 1 + self.dice.below(3) as usize;
        if which != 0 {
            let ids: Vec<u64> = (self.tail_next..self.tail_next + count).collect();
            let end = self.tail_next + count;
            groups.push((group("tail", &ids, tables, Some(end)), ids));
        }
        if which != 1 {
            let mut ids = std::mem::take(&mut self.retry);
            if ids.is_empty() {
                ids = (self.stdin_next..self.stdin_next + count).collect();
                self.stdin_next += count;
            }
            groups.push((group("stdin", &ids, tables, None), ids));
        }
        for (_, ids) in &groups {
            if self.poisonous > 0 && self.dice.below(100) < self.poisonous {
                let at = self.dice.below(ids.len() as u64) as usize;
                self.server.poison.insert(ids[at]);
            }
        }
        let offered: Vec<Group> = groups.iter().map(|(g, _)| g.clone()).collect();
        for (result, (group, ids)) in queue.append(&offered).into_iter().zip(groups) {
            let is_tail = group.source == "tail";
            match result {
                Ok(lsn) => {
                    self.note_stored(&queue, lsn);
                    if is_tail {
                        self.tail_next = ids.last().unwrap() + 1;
                    }
                }
                Err(_) if is_tail => {}
                Err(_) => self.retry = ids,
            }
        }
    }

    /// The device does up to `steps` things on its connection, dialling if it has none.
    pub(super) fn pump(&mut self, steps: u64) -> bool {
        let Some(queue) = self.up() else { return false };
        let clock = Arc::new(self.clock.clone());
        let mut delivery = self
            .delivery
            .take()
            .unwrap_or_else(|| Delivery::new(Arc::clone(&queue), clock, DEVICE, self.share));
        for _ in 0..steps {
            match delivery.next() {
                Ok(Action::Ask(stream, epoch)) => {
                    let floor = self.server.floor(stream.as_str(), epoch);
                    delivery.answered(stream, epoch, floor);
                }
                Ok(Action::Send(message)) => {
                    let mut batch = Vec::new();
                    frame::encode_batch(&message.part.batch, &mut batch);
                    self.to_server.extend(framed(&[&message.header.to_bytes(), &batch]));
                }
                Ok(Action::Wait) => {
                    self.delivery = Some(delivery);
                    return true;
                }
                Err(_) => {
                    self.cut_connection();
                    return false;
                }
            }
        }
        self.delivery = Some(delivery);
        false
    }

    /// The server takes every whole message and answers.
    pub(super) fn serve(&mut self) {
        while let Some(parts) = unframed(&mut self.to_server, 2) {
            let header = PutHeader::from_bytes(&parts[0]).unwrap();
            let batch = frame::decode_batch(&parts[1]).unwrap();
            let call = (header.key.stream.to_string(), header.key.epoch.0);
            if self.ended.contains(&call) {
                continue;
            }
            match self.server.put(&header, &batch) {
                Answer::Ack(ack) => {
                    let ack = ack.to_bytes();
                    self.to_device.extend(framed(&[&ack]));
                    self.old_acks.push(ack);
                }
                Answer::Refused => {
                    self.to_device.extend(framed(&[&header.to_bytes()]));
                    self.ended.insert(call);
                }
                Answer::Hole => {
                    assert!(self.may_lose, "a message left a hole: {header:?}");
                    self.to_server.clear();
                    return;
                }
            }
        }
    }

    /// An ack of this connection comes a second time.
    pub(super) fn repeat_ack(&mut self) {
        if self.old_acks.is_empty() {
            return;
        }
        let at = self.dice.below(self.old_acks.len() as u64) as usize;
        let again = framed(&[&self.old_acks[at]]);
        self.to_device.extend(again);
    }

    /// The device takes up to `count` acks.
    pub(super) fn take_acks(&mut self, count: usize) {
        for _ in 0..count {
            let Some(delivery) = self.delivery.as_mut() else { return };
            let Some(parts) = unframed(&mut self.to_device, 1) else { return };
            // An ack is JSON; a refusal is the header of what was refused.
            let taken = match PutAck::from_bytes(&parts[0]) {
                Ok(ack) => delivery.acked(&ack),
                Err(_) => {
                    let header = PutHeader::from_bytes(&parts[0]).unwrap();
                    let key = header.key;
                    delivery.refused(&key.stream, key.epoch.0, "it is poison")
                }
            };
            if taken.is_err() {
                self.delivery = None;
                return;
            }
        }
    }

    pub(super) fn settle(&mut self) {
        if let Some(delivery) = self.delivery.as_mut() {
            // A disk that refuses is asked again later.
            drop(delivery.settle(true));
        }
    }

    /// An operator has everything that was put aside sent again.
    pub(super) fn retry(&mut self) {
        let Some(queue) = self.up() else { return };
        for aside in queue.aside() {
            let before = queue.rows_queued();
            // A disk that refuses is asked again later.
            drop(queue.retry(aside.id));
            if queue.rows_queued() > before {
                self.retried += 1;
            }
        }
    }

    pub(super) fn flush_gaps(&mut self) {
        if let Some(queue) = self.up() {
            drop(queue.flush_gaps());
        }
    }

    /// Something happens.
    pub(super) fn step(&mut self) {
        self.clock.advance(Duration::from_millis(1 + self.dice.below(700)));
        match self.dice.below(16) {
            0..=3 => self.offer(),
            4..=6 => {
                let steps = 1 + self.dice.below(8);
                self.pump(steps);
            }
            7..=8 => self.serve(),
            9..=10 => {
                let count = 1 + self.dice.below(4) as usize;
                self.take_acks(count);
            }
            11 => self.settle(),
            12 => self.repeat_ack(),
            13 => self.cut_connection(),
            14 => self.flush_gaps(),
            _ => self.kill(),
        }
    }

    /// Everything works again: all that is queued is delivered, and the queue empties.
    pub(super) fn drain(&mut self) {
        self.offer();
        for _ in 0..400 {
            self.clock.advance(Duration::from_secs(2));
            self.flush_gaps();
            let idle = self.pump(1000);
            self.serve();
            self.take_acks(usize::MAX);
            self.settle();
            let Some(queue) = self.queue.as_ref() else { continue };
            let flying = self.delivery.as_ref().map_or(1, Delivery::in_flight);
            if idle && flying == 0 && queue.rows_pending() == 0 && !queue.has_gaps() {
                self.settle();
                return;
            }
        }
        let pending = self.queue.as_ref().map(|q| q.rows_pending());
        panic!("delivery does not come to an end; {pending:?} rows are pending");
    }

    /// All findings; none is what we want.
    pub(super) fn books(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut times: BTreeMap<u64, u64> = BTreeMap::new();
        for ((stream, epoch), ids) in &self.server.ledger {
            if stream == gap::STREAM {
                continue;
            }
            ids.iter().for_each(|id| *times.entry(*id).or_insert(0) += 1);
            if self.retried == 0 && ids.windows(2).any(|w| w[0] >= w[1]) {
                wrong.push(format!("{stream} in epoch {epoch:x} is out of order"));
            }
        }
        let doubled = times.iter().filter(|(_, n)| **n > 1).map(|(id, _)| *id);
        wrong.extend(doubled.map(|id| format!("row {id} is there more than once")));
        for (id, at) in self.stored.iter().filter(|(id, _)| !times.contains_key(id)) {
            let held = self.server.gaps.iter().any(|g| {
                let number = if g.stream == "queue" { at.lsn } else { at.seq };
                let place = g.stream == "queue" || (g.stream == at.stream && g.epoch == at.epoch);
                place && g.first <= number && number <= g.last
            });
            if !held {
                let gaps: Vec<_> =
                    self.server.gaps.iter().filter(|g| g.stream == at.stream).collect();
                wrong.push(format!("row {id} ({at:?}) is lost and in no gap of {gaps:?}"));
            }
        }
        // A tail is whole up to its position, whatever it was told.
        for id in 1..self.tail_next {
            if !times.contains_key(&id) && !self.stored.contains_key(&id) && !self.may_lose {
                wrong.push(format!("row {id} of the file was passed over"));
            }
        }
        wrong.extend(self.equation());
        let mut seen = BTreeSet::new();
        for gap in &self.server.gaps {
            if !seen.insert(&gap.id) {
                wrong.push(format!("{gap:?} was recorded twice"));
            }
            let refused = matches!(gap.cause.as_str(), "rejected" | "retried");
            let expected = refused && !self.server.poison.is_empty();
            if !self.may_lose && !expected {
                wrong.push(format!("nothing was lost, yet there is {gap:?}"));
            }
        }
        wrong
    }

    pub(super) fn was_stored(&self, id: u64) -> bool {
        self.stored.contains_key(&id)
    }

    /// Delivered + gaps - retried = queued, for each stream.
    fn equation(&self) -> Vec<String> {
        let mut queued: BTreeMap<&str, u64> = BTreeMap::new();
        // A group may be durable although nobody was told, because the power went just then.
        let told = self.stored.iter().map(|(id, at)| (*id, &at.stream));
        let all: BTreeMap<u64, &String> =
            self.server.seen.iter().map(|(id, stream)| (*id, stream)).chain(told).collect();
        all.values().for_each(|stream| *queued.entry(stream).or_insert(0) += 1);
        let mut wrong = Vec::new();
        for (stream, queued) in queued.into_iter().filter(|_| self.exact) {
            let rows = self.server.ledger.iter().filter(|((s, _), _)| s == stream);
            let delivered: usize = rows.map(|(_, ids)| ids.len()).sum();
            let of = |retried: bool| -> u64 {
                let gaps = self.server.gaps.iter().filter(|g| g.stream == stream);
                gaps.filter(|g| (g.cause == "retried") == retried).map(|g| g.rows).sum()
            };
            let (gaps, retried) = (of(false), of(true));
            if delivered as u64 + gaps != queued + retried {
                wrong.push(format!(
                    "{stream}: {delivered} delivered + {gaps} in gaps - {retried} retried are not {queued}"
                ));
            }
        }
        wrong
    }

    /// Segments and state of the queue.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.disk.paths().into_iter().filter(|p| p.starts_with(DIR)).collect()
    }
}
