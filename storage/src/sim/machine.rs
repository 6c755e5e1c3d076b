//! One simulated machine: a shard over an injected disk, clock and randomness, its clients, the
//! reference beside it, and every step that may happen to it. One thread is the scheduler: the
//! order of steps is the seed's.
//!
//! Owns: what each step does and which answers are allowed. check.rs says what must hold after it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::executor::block_on;
use millrace_crypto::key::TenantKeySource;
use millrace_platform::{
    disk::Disk,
    sim::{SimClock, SimDisk, SimEntropy, disk::Faults},
};
use millrace_protocol::{
    ids::{DeviceId, Epoch, SeqNo, TenantId},
    stream::{PutHeader, StreamKey},
};

use super::{
    reference::{Cell, Delete, Fields, Reference, Row, Stream, Write},
    traffic::{FUTURE_NS, HOUR_NS, NOW_NS, Sent, TABLES, Traffic, types_a},
    wire, world,
};
use crate::{
    DeleteError, DeleteRequest, Deleted, EngineConfig, EngineLimits, OpenError, Origin, Receipt,
    Shard, TenantSnapshot, WriteError, WriteRequest,
};

pub const TENANTS: u8 = 2;
pub const DEVICES: u8 = 2;
/// Writes of unknown outcome after which a schedule starts anew: 2^n states explain them.
pub const UNKNOWN_MAX: usize = 5;

/// What may happen. The trace of a schedule is a list of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Line protocol: rows without numbers, by one or several tenants under one sync.
    Write {
        clients: u64,
    },
    /// Frames of devices, by one or several of them under one sync.
    Frames {
        devices: u64,
    },
    /// A frame is sent again, with known rows in front of new ones or known ones alone.
    Resend {
        more: bool,
    },
    /// A frame that leaves rows out.
    Hole,
    Flush,
    Compact,
    /// Rows are deleted; a table is dropped.
    Delete,
    DropTable,
    /// Left-over objects go, at once or after the grace.
    Sweep {
        grace: bool,
    },
    /// A query starts and keeps its snapshot, and ends.
    Hold,
    Release,
    /// Time passes.
    Wait {
        minutes: u64,
    },
    /// The wall clock is set.
    Jump {
        hours: i64,
    },
    /// The power fails after so many operations.
    Cut {
        after: u64,
    },
    /// An operation fails.
    Fail {
        nth: u64,
    },
    /// The disk has so many bytes left, and has room again.
    Full {
        left: u64,
    },
    Room,
    /// The power fails now; the process dies now; the power fails again while it recovers.
    PowerCut,
    Kill,
    CutRecovery {
        after: u64,
    },
    /// Another owner starts beside this one; the replaced one wakes.
    Takeover,
    Wake,
}

/// A query that is still running.
#[derive(Debug)]
pub struct Held {
    pub tenant: u8,
    pub snapshot: TenantSnapshot,
    pub expected: BTreeMap<Cell, Fields>,
}

/// See the module head.
pub struct Machine {
    pub seed: u64,
    pub disk: SimDisk,
    pub clock: SimClock,
    pub dice: SimEntropy,
    pub keys: Arc<dyn TenantKeySource>,
    pub shard: Option<Shard>,
    /// The owner that another one has replaced.
    pub zombie: Option<Shard>,
    pub reference: Reference,
    pub held: Vec<Held>,
    pub trace: Vec<Step>,
    /// Faults that stay on, whatever else happens to the disk.
    pub planted: Faults,
    /// A fault was injected since the last start: maintenance may have stopped.
    pub hurt: bool,
    traffic: Traffic,
    opens: u64,
    /// Tables by tenant whose field `a` is certainly a float.
    typed: BTreeMap<u8, BTreeSet<&'static str>>,
    /// Frames acknowledged, newest last, and the one to send again because it failed.
    frames: BTreeMap<Stream, Vec<(u64, Vec<Sent>)>>,
    waiting: BTreeMap<Stream, Vec<Sent>>,
}

pub fn tenant_id(tenant: u8) -> TenantId {
    TenantId([tenant + 1; 16])
}

pub fn stream_key((_, device): Stream) -> StreamKey {
    StreamKey {
        device: DeviceId([device + 1; 16]),
        stream: "line/1".parse().expect("a stream name"),
        epoch: Epoch(7),
    }
}

/// Every other opening lets go of tenants at each flush, so that they are loaded again and again.
pub fn idle_after(nth: u64) -> Duration {
    if nth.is_multiple_of(2) { Duration::ZERO } else { Duration::from_secs(600) }
}

fn limits() -> EngineLimits {
    EngineLimits {
        window_ns: 2 * HOUR_NS,
        merge_files: 2,
        // Rolls over every few writes, so that trims happen.
        segment_bytes: 32 << 10,
        checkpoint_every: 3,
        future_ns: FUTURE_NS,
        ..EngineLimits::default()
    }
}

/// A write: its tenant, its stream and first number if it is a frame, its rows.
type Sending = (u8, Option<(u8, u64)>, Vec<Sent>);

impl Machine {
    /// A machine that has not started yet.
    pub fn seeded(seed: u64) -> Self {
        let dice = SimEntropy::seeded(seed);
        Self {
            seed,
            disk: SimDisk::new(),
            clock: SimClock::at(NOW_NS),
            traffic: Traffic::new(&dice),
            dice,
            keys: world::test_keys(),
            shard: None,
            zombie: None,
            reference: Reference::default(),
            held: Vec::new(),
            trace: Vec::new(),
            planted: Faults::default(),
            hurt: false,
            opens: 0,
            typed: BTreeMap::new(),
            frames: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// A broken promise: what, and how it came to be.
    pub fn violation(&self, what: &str) -> ! {
        panic!("seed {}, after {:?}: {what}", self.seed, self.trace)
    }

    pub fn shard(&mut self) -> &mut Shard {
        self.shard.as_mut().expect("the shard is open")
    }

    /// Whether the power is off.
    pub fn dark(&self) -> bool {
        self.disk.exists(Path::new("/data")).is_err()
    }

    fn faults(&mut self, faults: Faults) {
        self.hurt |= faults != Faults::default();
        let planted = self.planted;
        self.disk.set_faults(Faults {
            skip_sync: planted.skip_sync,
            skip_sync_dir: planted.skip_sync_dir,
            ..faults
        });
    }

    /// One start, which may fail if a fault is on.
    fn try_open(&mut self) -> Result<(), OpenError> {
        self.opens += 1;
        let config = EngineConfig {
            disk: Arc::new(self.disk.clone()),
            clock: Arc::new(self.clock.clone()),
            entropy: Arc::new(SimEntropy::seeded(self.seed * 1000 + self.opens)),
            dir: PathBuf::from("/data"),
            keys: Arc::clone(&self.keys),
            limits: EngineLimits {
                idle_after: idle_after(self.seed + self.opens),
                // Every third opening rewrites at once, so that tombstones end.
                erase_after: Duration::from_secs(
                    86_400 * u64::from(!(self.seed + self.opens).is_multiple_of(3)),
                ),
                ..limits()
            },
        };
        self.shard = Some(block_on(Shard::open(config))?);
        Ok(())
    }

    /// A start without faults, which must succeed and show what was acknowledged.
    pub fn open(&mut self) {
        self.faults(Faults::default());
        self.hurt = false;
        if let Err(e) = self.try_open() {
            self.violation(&format!("it does not start: {e}"));
        }
        self.check_after_start();
        for (stream, mark) in self.reference.now.marks.clone() {
            // A frame that failed and is there all the same is not sent again.
            if let Some(rows) = self.waiting.remove(&stream) {
                let from = self.next_number(stream, &rows, mark);
                if from.is_none() {
                    self.waiting.insert(stream, rows);
                }
            }
        }
    }

    /// `Some` if the frame that waits is covered by the mark.
    fn next_number(&mut self, stream: Stream, rows: &[Sent], mark: u64) -> Option<u64> {
        let sent = self.frames.get(&stream).map_or(0, |f| f.last().map_or(0, |l| last(l.0, &l.1)));
        (mark > sent).then(|| {
            self.frames.entry(stream).or_default().push((sent + 1, rows.to_vec()));
            mark
        })
    }

    /// Everything in memory goes, and the disk keeps what the seed says.
    pub fn stop(&mut self, power: bool) {
        self.shard = None;
        self.zombie = None;
        self.held.clear();
        if power { self.disk.power_cycle(&self.dice) } else { self.disk.kill_process() }
    }

    /// Takes one step.
    pub fn step(&mut self, step: Step) {
        self.trace.push(step);
        match step {
            Step::Write { clients } => {
                let writes = (0..clients).map(|_| self.line_protocol()).collect();
                self.send(writes);
            }
            Step::Frames { devices } => {
                let first = self.dice.below(u64::from(TENANTS * DEVICES));
                let writes = (0..devices)
                    .map(|n| ((first + n) % u64::from(TENANTS * DEVICES)) as u8)
                    .map(|n| self.frame((n % TENANTS, n / TENANTS)))
                    .collect();
                self.send(writes);
            }
            Step::Resend { more } => self.resend(more),
            Step::Hole => self.hole(),
            Step::Flush => {
                let done = block_on(self.shard().flush()).map(drop);
                self.maintained(done);
            }
            Step::Compact => {
                let done = block_on(self.shard().retain()).map(drop);
                self.maintained(done);
                // All that is due, as the maintenance thread does it.
                loop {
                    let done = block_on(self.shard().compact_once());
                    let more = matches!(done, Ok(true));
                    self.maintained(done.map(drop));
                    if !more {
                        break;
                    }
                }
            }
            Step::Delete => self.delete(),
            Step::DropTable => self.drop_table(),
            Step::Sweep { grace } => self.sweep(grace),
            Step::Hold => self.hold(),
            Step::Release => self.release(),
            Step::Wait { minutes } => self.clock.advance(Duration::from_secs(60 * minutes)),
            Step::Jump { hours } => self.clock.set_wall_ns(NOW_NS + hours * HOUR_NS),
            Step::Cut { after } => {
                let cut_after = Some(self.disk.ops() + after);
                self.faults(Faults { cut_after, ..Faults::default() });
            }
            Step::Fail { nth } => {
                let fail_op = Some(self.disk.ops() + nth);
                self.faults(Faults { fail_op, ..Faults::default() });
            }
            Step::Full { left } => {
                let capacity = Some(self.disk.used() + left);
                self.faults(Faults { capacity, ..Faults::default() });
            }
            Step::Room => self.room(),
            Step::PowerCut | Step::Kill => {
                self.stop(step == Step::PowerCut);
                self.open();
            }
            Step::CutRecovery { after } => {
                self.stop(true);
                let cut_after = Some(self.disk.ops() + after);
                self.faults(Faults { cut_after, ..Faults::default() });
                drop(self.try_open());
                self.stop(true);
                self.open();
            }
            Step::Takeover => {
                // Queries of the old process do not outlive what the new owner sweeps.
                self.held.clear();
                self.zombie = self.shard.take();
                self.open();
            }
            Step::Wake => self.wake(),
        }
    }

    fn maintained(&mut self, done: Result<(), crate::FlushError>) {
        if let Err(e) = done
            && !self.hurt
        {
            self.violation(&format!("maintenance fails although nothing is wrong: {e}"));
        }
    }

    /// What must be kept of rows that arrive now.
    fn kept(&self, rows: &[Sent]) -> Vec<Row> {
        let latest = millrace_platform::clock::Clock::now_ns(&self.clock) + FUTURE_NS;
        rows.iter().filter_map(|s| s.kept.clone()).filter(|row| row.time <= latest).collect()
    }

    fn rows(&self, tenant: u8) -> Vec<Sent> {
        let none = BTreeSet::new();
        let typed = self.typed.get(&tenant).unwrap_or(&none);
        let count = 1 + self.dice.below(5);
        self.traffic.rows(&self.dice, count, typed)
    }

    fn line_protocol(&self) -> Sending {
        let tenant = self.dice.below(u64::from(TENANTS)) as u8;
        (tenant, None, self.rows(tenant))
    }

    /// The next frame of a stream: the one that failed, if one did, else new rows.
    fn frame(&self, stream: Stream) -> Sending {
        let lo = self.reference.now.mark(stream) + 1;
        let rows = self.waiting.get(&stream).cloned().unwrap_or_else(|| self.rows(stream.0));
        (stream.0, Some((stream.1, lo)), rows)
    }

    /// Sends a group of writes under one sync and holds the answers against the reference.
    fn send(&mut self, writes: Vec<Sending>) {
        let requests = writes.iter().map(|(t, n, rows)| request(*t, *n, rows)).collect();
        let answers = self.shard().write(requests);
        for ((tenant, numbers, rows), answer) in writes.into_iter().zip(answers) {
            let kept = self.kept(&rows);
            let numbers = numbers.map(|(device, lo)| (device, lo, last(lo, &rows)));
            let write = Write { tenant, numbers, rows: kept };
            match answer {
                Ok(receipt) => self.acknowledged(write, rows, &receipt),
                Err(e) => self.failed(write, rows, &e),
            }
        }
    }

    fn acknowledged(&mut self, write: Write, rows: Vec<Sent>, receipt: &Receipt) {
        let refused = (rows.len() - write.rows.len()) as u64;
        if receipt.duplicate() {
            self.violation("new rows were answered as known ones");
        }
        if (receipt.rows(), receipt.refused()) != (write.rows.len() as u64, refused) {
            let found = (receipt.rows(), receipt.refused(), receipt.refusals());
            self.violation(&format!("{found:?} of {rows:?} taken and refused"));
        }
        for row in write.rows.iter().filter(|r| types_a(r)) {
            self.typed.entry(write.tenant).or_default().insert(row.table);
        }
        if let Some((device, lo, hi)) = write.numbers {
            if receipt.watermark() != Some(SeqNo(hi)) {
                self.violation(&format!("rows to {hi} acked with {:?}", receipt.watermark()));
            }
            let stream = (write.tenant, device);
            self.waiting.remove(&stream);
            self.frames.entry(stream).or_default().push((lo, rows));
        }
        self.reference.acknowledged(write);
    }

    fn failed(&mut self, write: Write, rows: Vec<Sent>, error: &WriteError) {
        let possible = matches!(error, WriteError::Log(_) | WriteError::DiskFull(_));
        if !possible || !self.hurt {
            self.violation(&format!("a good write was refused: {error}"));
        }
        if let Some((device, _, _)) = write.numbers {
            self.waiting.insert((write.tenant, device), rows);
        }
        self.reference.unknown(write);
    }

    fn resend(&mut self, more: bool) {
        let streams: Vec<Stream> = self.frames.keys().copied().collect();
        let Some(at) = streams.len().checked_sub(1) else { return };
        let stream = streams[self.dice.below(at as u64 + 1) as usize];
        let frames = &self.frames[&stream];
        if more && !self.waiting.contains_key(&stream) {
            // Known rows first, as after an ack that got lost; only the new ones count.
            let (lo, known) = frames[frames.len() - 1].clone();
            let new = self.rows(stream.0);
            self.send_behind(stream, lo, &known, new);
            return;
        }
        let (lo, rows) = frames[self.dice.below(frames.len() as u64) as usize].clone();
        let answer = self.shard().write(vec![request(stream.0, Some((stream.1, lo)), &rows)]);
        match &answer[0] {
            Ok(receipt) if receipt.duplicate() && receipt.rows() == 0 => {}
            Err(_) if self.hurt => {}
            other => self.violation(&format!("known rows were answered with {other:?}")),
        }
    }

    fn send_behind(&mut self, stream: Stream, lo: u64, known: &[Sent], new: Vec<Sent>) {
        let mark = self.reference.now.mark(stream);
        if last(lo, known) != mark {
            return;
        }
        let all: Vec<Sent> = known.iter().chain(&new).cloned().collect();
        let answer =
            self.shard().write(vec![request(stream.0, Some((stream.1, lo)), &all)]).remove(0);
        let kept = self.kept(&new);
        let hi = last(mark + 1, &new);
        let write = Write { tenant: stream.0, numbers: Some((stream.1, mark + 1, hi)), rows: kept };
        match answer {
            Ok(receipt) => self.acknowledged(write, new, &receipt),
            Err(e) => self.failed(write, new, &e),
        }
    }

    fn hole(&mut self) {
        let stream = (0, 0);
        let lo = self.reference.now.mark(stream) + 2 + self.dice.below(3);
        let rows = self.rows(0);
        let answer = self.shard().write(vec![request(0, Some((0, lo)), &rows)]).remove(0);
        match answer {
            Err(WriteError::Missing { durable, .. })
                if durable.0 == self.reference.now.mark(stream) => {}
            other => self.violation(&format!("a frame behind a hole was answered with {other:?}")),
        }
    }

    fn sweep(&mut self, grace: bool) {
        let now = millrace_platform::clock::Clock::monotonic(&self.clock);
        let wait = if grace { crate::gc::GRACE } else { Duration::ZERO };
        let done = block_on(self.shard().sweep(now, wait));
        if let Err(e) = done
            && !self.hurt
        {
            self.violation(&format!("a sweep fails although nothing is wrong: {e}"));
        }
    }

    fn hold(&mut self) {
        let tenant = self.dice.below(u64::from(TENANTS)) as u8;
        let snapshot = self.shard().snapshot(tenant_id(tenant)).expect("fixed keys are there");
        let cells = self.reference.now.cells.iter().filter(|(cell, _)| cell.0 == tenant);
        let expected = cells.map(|(cell, fields)| (cell.clone(), fields.clone())).collect();
        self.held.push(Held { tenant, snapshot, expected });
    }

    fn release(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.check_held();
        let at = self.dice.below(self.held.len() as u64) as usize;
        self.held.swap_remove(at);
    }

    /// Rows of one host or of all, hours or weeks of them.
    fn delete(&mut self) {
        let tenant = self.dice.below(u64::from(TENANTS)) as u8;
        let table = TABLES[usize::from(self.dice.below(4) == 0)];
        let host = (self.dice.below(4) > 0).then(|| format!("h{}", self.dice.below(3)));
        let back = [1, 4, 60, 800][self.dice.below(4) as usize] * HOUR_NS;
        let times = match self.dice.below(3) {
            0 => (NOW_NS - back, NOW_NS + HOUR_NS),
            1 => (NOW_NS - 2 * back, NOW_NS - back / 2),
            _ => (i64::MIN, i64::MAX),
        };
        let name = ("default".to_owned(), table.to_owned());
        let snapshot = self.shard().snapshot(tenant_id(tenant)).expect("fixed keys are there");
        let known = snapshot.databases.get("default").and_then(|d| d.get(table).cloned());
        drop(snapshot);
        let series = known.as_ref().zip(host.as_ref()).map(|(known, host)| {
            let of = known.series.entries.iter().filter(|e| e.key.get("host") == Some(host));
            of.map(|e| e.sid).collect()
        });
        let request = DeleteRequest { tenant: tenant_id(tenant), table: name, series, times };
        let answer = block_on(self.shard().delete(request));
        let delete = Delete { tenant, table, host, times, drop: false };
        self.deleted(delete, known.is_some(), answer);
    }

    fn drop_table(&mut self) {
        let tenant = self.dice.below(u64::from(TENANTS)) as u8;
        let table = TABLES[usize::from(self.dice.below(4) > 0)];
        let name = ("default".to_owned(), table.to_owned());
        let snapshot = self.shard().snapshot(tenant_id(tenant)).expect("fixed keys are there");
        let known = snapshot.databases.get("default").is_some_and(|d| d.contains_key(table));
        drop(snapshot);
        let answer = block_on(self.shard().drop_table(tenant_id(tenant), &name));
        // Its columns may have other types from now on.
        if let Some(typed) = self.typed.get_mut(&tenant) {
            typed.remove(table);
        }
        let times = (i64::MIN, i64::MAX);
        let delete = Delete { tenant, table, host: None, times, drop: true };
        self.deleted(delete, known, answer);
    }

    fn deleted(&mut self, delete: Delete, known: bool, answer: Result<Deleted, DeleteError>) {
        match answer {
            Ok(_) if known => self.reference.deleted(delete, true),
            Err(DeleteError::NoTable(_)) if !known => {}
            Err(_) if self.hurt => self.reference.deleted(delete, false),
            other => self.violation(&format!("a deletion was answered with {other:?}")),
        }
    }

    /// There is space again: writes go on at once, without a start.
    fn room(&mut self) {
        self.faults(Faults::default());
        let (tenant, numbers, rows) = self.line_protocol();
        let answer = self.shard().write(vec![request(tenant, numbers, &rows)]).remove(0);
        let kept = self.kept(&rows);
        let write = Write { tenant, numbers: None, rows: kept };
        match answer {
            Ok(receipt) => self.acknowledged(write, rows, &receipt),
            Err(e) => self.violation(&format!("there is space and writes fail: {e}")),
        }
    }

    /// The replaced owner does what owners do; all of it must be refused.
    fn wake(&mut self) {
        let Some(mut zombie) = self.zombie.take() else { return };
        let swept = block_on(zombie.sweep(Duration::from_secs(1 << 20), Duration::ZERO));
        let flushed = block_on(zombie.flush());
        let merged = block_on(zombie.compact_once());
        if matches!(swept, Ok(n) if n > 0)
            || matches!(&flushed, Ok(report) if report.files > 0)
            || matches!(merged, Ok(true))
        {
            self.violation(&format!("a replaced owner did {swept:?}, {flushed:?}, {merged:?}"));
        }
    }
}

fn last(lo: u64, rows: &[Sent]) -> u64 {
    lo + rows.len() as u64 - 1
}

fn request(tenant: u8, numbers: Option<(u8, u64)>, rows: &[Sent]) -> WriteRequest {
    let origin = match numbers {
        None => Origin::Plain,
        Some((device, lo)) => Origin::Stream(PutHeader {
            key: stream_key((tenant, device)),
            seq_lo: SeqNo(lo),
            seq_hi: SeqNo(last(lo, rows)),
        }),
    };
    let rows: Vec<Row> = rows.iter().map(|s| s.row.clone()).collect();
    WriteRequest {
        tenant: tenant_id(tenant),
        database: "default".into(),
        origin,
        tables: wire::batches(&rows),
        sender: Default::default(),
    }
}
