//! The log on a simulated disk: every crash point, every failed sync, every damage.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, Barrier, Mutex},
};

use millrace_crypto::{
    aead::{FrameOpener, FrameSealer},
    key::Key256,
};
use millrace_platform::{
    disk::Disk,
    sim::{SimDisk, SimEntropy, disk::Faults, disk::Op},
};

use super::*;

const DIR: &str = "/wal";
const OWNERS: [KeyRef; 2] =
    [KeyRef { owner: [1; 16], version: 1 }, KeyRef { owner: [2; 16], version: 1 }];

/// Derives keys from fixed bytes, records every sealing key that was made, and can forget one.
#[derive(Default)]
struct Keys {
    made: Mutex<BTreeSet<Vec<u8>>>,
    gone: Mutex<BTreeSet<[u8; 16]>>,
}

impl Keys {
    fn key(key: KeyRef, salt: &[u8; 32], context: &[u8]) -> Key256 {
        Key256::new([9; 32]).derive(salt, &[&key.owner, context])
    }
}

impl SegmentKeys for Keys {
    fn sealer(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<FrameSealer, KeyRefError> {
        let key = Self::key(key, salt, context);
        assert!(
            self.made.lock().unwrap().insert(key.expose().to_vec()),
            "T6: a key was made twice"
        );
        Ok(FrameSealer::new(&key))
    }

    fn opener(
        &self,
        key: KeyRef,
        salt: &[u8; 32],
        context: &[u8],
    ) -> Result<FrameOpener, KeyRefError> {
        if self.gone.lock().unwrap().contains(&key.owner) {
            return Err(KeyRefError::Gone);
        }
        Ok(FrameOpener::new(&Self::key(key, salt, context)))
    }
}

struct World {
    disk: SimDisk,
    dice: SimEntropy,
    keys: Arc<Keys>,
    opens: u64,
    seed: u64,
    wal: Option<Wal>,
    /// (position, payload) of acknowledged and not yet trimmed frames.
    acked: Vec<(u64, Vec<u8>)>,
    /// Frames appended whose commit failed or never came.
    maybe: Vec<(u64, Vec<u8>)>,
    /// Frames that were refused: they may be there after a crash, or not.
    refused: Vec<(u64, Vec<u8>)>,
    written: u64,
    trimmed_below: u64,
}

impl World {
    fn seeded(seed: u64) -> Self {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        Self {
            disk,
            dice: SimEntropy::seeded(seed),
            keys: Arc::default(),
            opens: 0,
            seed,
            wal: None,
            acked: Vec::new(),
            maybe: Vec::new(),
            refused: Vec::new(),
            written: 0,
            trimmed_below: 1,
        }
    }

    fn open(&mut self) -> Result<Vec<Replayed>, WalError> {
        self.opens += 1;
        let entropy = SimEntropy::seeded(self.seed * 7919 + self.opens);
        let options = Options { segment_bytes: 32 << 10 };
        let keys: Arc<dyn SegmentKeys> = Arc::clone(&self.keys) as _;
        let (wal, recovery) =
            Wal::open(Arc::new(self.disk.clone()), Path::new(DIR), keys, &entropy, options)?;
        let mut out = Vec::new();
        recovery.read(1, &mut |r| -> Result<(), WalError> {
            out.push(r);
            Ok(())
        })?;
        self.wal = Some(wal);
        Ok(out)
    }

    fn append(&mut self) -> Option<u64> {
        self.written += 1;
        let mut payload = vec![0u8; 1 + self.dice.below(6000) as usize];
        millrace_platform::entropy::Entropy::fill(&self.dice, &mut payload);
        payload.extend_from_slice(&self.written.to_le_bytes());
        let owner = OWNERS[self.dice.below(2) as usize];
        let lsn = self.wal.as_ref()?.append(owner, &payload).ok()?;
        self.maybe.push((lsn, payload));
        Some(lsn)
    }

    fn commit(&mut self, lsn: u64) -> bool {
        let Some(Ok(proof)) = self.wal.as_ref().map(|w| w.commit(lsn)) else {
            self.refused.append(&mut self.maybe);
            return false;
        };
        assert!(proof.through() >= lsn);
        let (durable, rest) = self.maybe.drain(..).partition(|m| m.0 <= lsn);
        let mut durable: Vec<_> = durable;
        self.acked.append(&mut durable);
        self.maybe = rest;
        true
    }

    fn step(&mut self) -> bool {
        let n = 1 + self.dice.below(3);
        let mut last = None;
        for _ in 0..n {
            last = self.append();
            if last.is_none() {
                self.refused.append(&mut self.maybe);
                return false;
            }
        }
        last.is_some_and(|lsn| self.commit(lsn))
    }

    fn trim(&mut self) -> bool {
        let Some(middle) = self.acked.get(self.acked.len() / 2).map(|a| a.0) else { return true };
        self.trimmed_below = middle;
        self.wal.as_ref().is_some_and(|w| w.trim_below(middle).is_ok())
    }

    fn crash(&mut self) {
        self.wal = None;
        self.disk.power_cycle(&self.dice);
    }

    /// Every acknowledged frame at or above the trim floor is there once, in order, unchanged;
    /// whatever else is there was appended once.
    fn check(&mut self, found: &[Replayed], when: &str) {
        let context = format!("seed {}, {when}", self.seed);
        let frames: Vec<(u64, Vec<u8>)> = found
            .iter()
            .map(|r| match r {
                Replayed::Frame(f) => (f.lsn, f.payload.clone()),
                Replayed::KeyGone { lsn, .. } => panic!("{context}: key gone at {lsn}"),
            })
            .collect();
        assert!(frames.is_sorted_by(|a, b| a.0 < b.0), "{context}: positions out of order");
        for (lsn, payload) in self.acked.iter().filter(|a| a.0 >= self.trimmed_below) {
            let got = frames.iter().find(|f| f.0 == *lsn);
            assert!(got.is_some_and(|g| g.1 == *payload), "{context}: acked frame {lsn} is lost");
        }
        for (lsn, payload) in &frames {
            let known = self
                .acked
                .iter()
                .chain(&self.maybe)
                .chain(&self.refused)
                .any(|k| k.0 == *lsn && k.1 == *payload);
            assert!(known, "{context}: phantom frame {lsn}");
        }
        // What survived is data from now on.
        self.maybe.append(&mut self.refused);
        self.maybe.retain(|m| frames.iter().any(|f| f.0 == m.0 && f.1 == m.1));
        self.acked.append(&mut self.maybe);
        self.acked.sort();
    }

    fn trace(&mut self) {
        for round in 0..12 {
            if !self.step() || (round % 5 == 4 && !self.trim()) {
                return;
            }
        }
    }
}

fn seeds(default: u64) -> u64 {
    std::env::var("MILLRACE_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

fn power_cuts(seed: u64, faults: Faults) {
    let mut whole = World::seeded(seed);
    whole.open().unwrap();
    whole.trace();
    let operations = whole.disk.ops();
    assert!(operations > 30, "the trace does real work");
    for cut in 0..operations {
        let mut w = World::seeded(seed);
        w.disk.set_faults(Faults { cut_after: Some(cut), ..faults });
        if w.open().is_ok() {
            w.trace();
        }
        for again in 0..3 {
            w.crash();
            let found = w.open().unwrap_or_else(|e| panic!("seed {seed}, cut {cut}: {e}"));
            w.check(&found, &format!("cut {cut}, start {again}"));
            w.step();
        }
    }
}

#[test]
fn d1_power_cut_at_every_operation_keeps_every_acked_frame_once() {
    for seed in 0..seeds(6) {
        power_cuts(seed, Faults::default());
    }
}

#[test]
fn d1_a_skipped_sync_is_caught_by_the_power_cuts() {
    for faults in [
        Faults { skip_sync: true, ..Faults::default() },
        Faults { skip_sync_dir: true, ..Faults::default() },
    ] {
        let caught =
            (0..20).any(|seed| std::panic::catch_unwind(|| power_cuts(seed, faults)).is_err());
        assert!(caught, "planted bug not caught: {faults:?}");
    }
}

#[test]
fn d1_a_failed_write_or_sync_fails_its_frames_for_good_and_the_log_goes_on() {
    for seed in 0..seeds(4) {
        for fail in 1..60 {
            let mut w = World::seeded(seed);
            w.open().unwrap();
            w.disk.set_faults(Faults { fail_op: Some(w.disk.ops() + fail), ..Faults::default() });
            let mut failures = 0;
            for _ in 0..14 {
                failures += u32::from(!w.step());
            }
            let context = format!("seed {seed}, failed operation {fail}");
            assert!(failures <= 1, "{context}: one failure must fail one group, not {failures}");
            let trace = w.disk.trace();
            if let Some(Op::Sync(path)) = trace.get(w.disk.ops() as usize - 1)
                && failures == 1
            {
                assert!(!path.as_os_str().is_empty());
            }
            w.crash();
            let found = w.open().unwrap_or_else(|e| panic!("{context}: {e}"));
            w.check(&found, &context);
        }
    }
}

#[test]
fn d1_a_segment_whose_sync_failed_is_never_synced_again() {
    let mut w = World::seeded(1);
    w.open().unwrap();
    assert!(w.step());
    let before = w.disk.ops();
    // The next commit writes (1) and syncs (2).
    w.disk.set_faults(Faults { fail_op: Some(before + 2), ..Faults::default() });
    let lsn = w.append().unwrap();
    assert!(matches!(w.wal.as_ref().unwrap().commit(lsn), Err(WalError::Io { .. })));
    assert!(matches!(w.wal.as_ref().unwrap().commit(lsn), Err(WalError::Poisoned { .. })));
    for _ in 0..3 {
        assert!(w.step());
    }
    let trace = w.disk.trace();
    let failed = trace[before as usize + 1].clone();
    assert!(matches!(failed, Op::Sync(_)));
    let again = trace[before as usize + 2..].iter().filter(|op| **op == failed).count();
    assert_eq!(again, 0, "the failed segment was synced again");
}

#[test]
fn a_full_disk_refuses_appends_and_the_log_resumes_without_a_restart() {
    let mut w = World::seeded(2);
    w.open().unwrap();
    w.disk.set_faults(Faults { capacity: Some(100), ..Faults::default() });
    let full = w.wal.as_ref().unwrap().append(OWNERS[0], b"x").unwrap_err();
    assert!(full.is_disk_full(), "{full}");
    w.disk.set_faults(Faults::default());
    assert!(w.step());
    w.crash();
    let found = w.open().unwrap();
    w.check(&found, "after space came back");
}

#[test]
fn d1_damage_before_the_recorded_end_is_refused_and_a_torn_tail_is_cut() {
    let mut w = World::seeded(3);
    w.open().unwrap();
    for _ in 0..4 {
        assert!(w.step());
    }
    w.wal = None;
    w.disk.kill_process();
    // The second start records where the first segment ends.
    w.open().unwrap();
    assert!(w.step());
    w.wal = None;
    let first = segment::path(Path::new(DIR), 1);
    let used = w.acked.iter().map(|a| a.1.len() as u64 + 84).sum::<u64>().min(20_000);
    let mut refused = 0;
    for byte in (0..used).step_by(37) {
        w.disk.kill_process();
        w.disk.flip_bit(&first, byte, (byte % 8) as u8).unwrap();
        match w.open() {
            Err(WalError::Damaged { segment: 1, .. }) => refused += 1,
            Err(e) => panic!("byte {byte}: {e}"),
            // Padding carries nothing.
            Ok(found) => w.check(&found, &format!("byte {byte} flipped")),
        }
        w.wal = None;
        w.disk.flip_bit(&first, byte, (byte % 8) as u8).unwrap();
    }
    assert!(refused > 100, "only {refused} flips were noticed");
}

#[test]
fn a_scan_past_damage_reports_the_stretch_and_gives_the_rest() {
    let mut w = World::seeded(4);
    w.open().unwrap();
    for _ in 0..4 {
        assert!(w.step());
    }
    w.wal = None;
    w.disk.kill_process();
    w.open().unwrap();
    assert!(w.step());
    w.wal = None;
    w.disk.kill_process();
    w.disk.flip_bit(&segment::path(Path::new(DIR), 1), HEADER_BYTES + 100, 3).unwrap();
    let keys: Arc<dyn SegmentKeys> = Arc::clone(&w.keys) as _;
    let recovery = Recovery::find(Arc::new(w.disk.clone()), Path::new(DIR), keys).unwrap();
    let (mut frames, mut damage) = (Vec::new(), Vec::new());
    recovery
        .scan(1, &mut |s| -> Result<(), WalError> {
            match s {
                Scanned::Replayed(Replayed::Frame(f)) => frames.push(f.lsn),
                Scanned::Replayed(Replayed::KeyGone { lsn, .. }) => panic!("key gone at {lsn}"),
                Scanned::Damage(d) => damage.push(d),
            }
            Ok(())
        })
        .unwrap();
    assert_eq!(damage.len(), 1, "{damage:?}");
    let lost: Vec<u64> = damage[0].lsns.clone().collect();
    let all: Vec<u64> = w.acked.iter().map(|a| a.0).collect();
    let mut told: Vec<u64> = frames.iter().copied().chain(lost).collect();
    told.sort_unstable();
    assert_eq!(told, all, "every frame is either given or named as lost");
}

#[test]
fn frames_of_a_destroyed_owner_are_skipped_and_said_so() {
    let mut w = World::seeded(5);
    w.open().unwrap();
    for _ in 0..6 {
        assert!(w.step());
    }
    w.keys.gone.lock().unwrap().insert(OWNERS[0].owner);
    w.crash();
    let found = w.open().unwrap();
    let gone = found.iter().filter(|r| matches!(r, Replayed::KeyGone { .. })).count();
    assert!(gone > 0 && gone < found.len());
    assert_eq!(found.len(), w.acked.len());
}

#[test]
fn one_sync_covers_many_waiters() {
    let mut w = World::seeded(6);
    w.open().unwrap();
    let wal = Arc::new(w.wal.take().unwrap());
    let threads = 8;
    let each = 50;
    let barrier = Arc::new(Barrier::new(threads));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (wal, barrier) = (Arc::clone(&wal), Arc::clone(&barrier));
            std::thread::spawn(move || {
                for _ in 0..each {
                    barrier.wait();
                    let lsn = wal.append(OWNERS[0], b"payload").unwrap();
                    barrier.wait();
                    assert!(wal.commit(lsn).unwrap().through() >= lsn);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().unwrap();
    }
    let syncs = w.disk.trace().iter().filter(|op| matches!(op, Op::Sync(_))).count();
    assert!(syncs <= each + 10, "{syncs} syncs for {} commits", threads * each);
}

#[test]
fn a_payload_larger_than_a_segment_gets_a_segment_of_its_own() {
    let mut w = World::seeded(7);
    w.open().unwrap();
    let big = vec![5u8; 100 << 10];
    let wal = w.wal.as_ref().unwrap();
    let lsn = wal.append(OWNERS[1], &big).unwrap();
    wal.commit(lsn).unwrap();
    w.crash();
    let found = w.open().unwrap();
    assert!(matches!(&found[..], [Replayed::Frame(f)] if f.payload == big));
}
