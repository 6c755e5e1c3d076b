//! The words that the crash tests are told in: a log on a simulated disk, a model of what it must
//! hold, and the ways it can be hurt.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use millrace_crypto::{
    aead::{FrameOpener, FrameSealer},
    key::Key256,
};
use millrace_platform::{
    disk::Disk,
    sim::{SimClock, SimDisk, SimEntropy},
};

use crate::{
    Frame, KeyRef, KeyRefError, OnDamage, Options, Recovery, Replayed, Scanned, SegmentContext,
    SegmentKeys, Wal, WalError,
};

pub(super) const DIR: &str = "/wal";

/// Keys derived as in production, which remembers every key that it gave out for sealing.
#[derive(Default)]
pub(super) struct RecordingKeys {
    pub(super) sealing: Mutex<BTreeSet<[u8; 32]>>,
    pub(super) reused: Mutex<u64>,
    pub(super) gone: Mutex<BTreeSet<[u8; 16]>>,
    pub(super) away: Mutex<bool>,
    /// Planted bug: the key does not depend on the segment.
    pub(super) one_key_for_all: bool,
}

impl RecordingKeys {
    fn key(&self, key: KeyRef, context: &SegmentContext) -> Result<Key256, KeyRefError> {
        if self.gone.lock().unwrap().contains(&key.owner) {
            return Err(KeyRefError::Gone);
        }
        if *self.away.lock().unwrap() {
            return Err(KeyRefError::Unavailable("the provider is away".into()));
        }
        let root = Key256::new([key.owner[0]; 32]);
        let version = key.version.to_le_bytes();
        if self.one_key_for_all {
            return Ok(root.derive(&[], &[&version]));
        }
        Ok(root.derive(&context.salt, &[&version, &context.info()]))
    }

    /// Times that a sealing key was given out a second time, so that nonces repeat.
    pub(super) fn reused(&self) -> u64 {
        *self.reused.lock().unwrap()
    }
}

impl SegmentKeys for RecordingKeys {
    fn sealer(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameSealer, KeyRefError> {
        let key = self.key(key, context)?;
        if !self.sealing.lock().unwrap().insert(*key.expose()) {
            *self.reused.lock().unwrap() += 1;
        }
        Ok(FrameSealer::new(&key))
    }

    fn opener(&self, key: KeyRef, context: &SegmentContext) -> Result<FrameOpener, KeyRefError> {
        Ok(FrameOpener::new(&self.key(key, context)?))
    }
}

pub(super) fn owner(n: u8) -> KeyRef {
    KeyRef { owner: [n; 16], version: 1 }
}

/// Frames whose fate is open, in order, by the segment life they were appended in: after a crash,
/// a prefix of one group may be there, of the others nothing.
type Group = BTreeMap<u64, Vec<u8>>;

pub(super) struct World {
    pub(super) disk: SimDisk,
    pub(super) seen_by_log: Arc<dyn Disk>,
    pub(super) dice: SimEntropy,
    pub(super) keys: Arc<RecordingKeys>,
    pub(super) options: Options,
    pub(super) wal: Option<Wal>,
    pub(super) acked: BTreeMap<u64, Vec<u8>>,
    groups: Vec<Group>,
    voids_seen: u64,
    pub(super) floor: u64,
    payloads: u64,
    pub(super) frames_sealed: u64,
}

impl World {
    pub(super) fn seeded(seed: u64) -> Self {
        let disk = SimDisk::new();
        Self {
            seen_by_log: Arc::new(disk.clone()),
            disk,
            dice: SimEntropy::seeded(seed),
            keys: Arc::new(RecordingKeys::default()),
            options: Options {
                segment_bytes: 24 << 10,
                buffer_bytes: 6 << 10,
                on_damage: OnDamage::Refuse,
                clock: Arc::new(SimClock::default()),
            },
            wal: None,
            acked: BTreeMap::new(),
            groups: vec![Group::new()],
            voids_seen: 0,
            floor: 1,
            payloads: 0,
            frames_sealed: 0,
        }
    }

    pub(super) fn try_open(&mut self) -> Result<Recovery, WalError> {
        self.wal = None;
        let keys: Arc<dyn SegmentKeys> = Arc::clone(&self.keys) as _;
        let (wal, recovery) = Wal::open(
            Arc::clone(&self.seen_by_log),
            Path::new(DIR),
            keys,
            &self.dice,
            self.options.clone(),
        )?;
        self.wal = Some(wal);
        Ok(recovery)
    }

    /// Opens, reads everything from the floor on, and compares it with the model. What was found
    /// must stay from now on. The inner error is the disk's.
    pub(super) fn start(&mut self) -> Result<Result<(), WalError>, String> {
        self.note_voids();
        let recovery = match self.try_open() {
            Ok(recovery) => recovery,
            Err(e @ (WalError::Io { .. } | WalError::DiskFull { .. })) => return Ok(Err(e)),
            Err(e) => return Err(format!("does not open: {e}")),
        };
        let mut found = Vec::new();
        recovery
            .read(self.floor, &mut |r| -> Result<(), WalError> {
                if let Replayed::Frame(frame) = r {
                    found.push(frame);
                }
                Ok(())
            })
            .map_err(|e| format!("does not read: {e}"))?;
        self.compare(&found)?;
        self.acked = found.into_iter().map(|f| (f.lsn, f.payload)).collect();
        self.groups = vec![Group::new()];
        self.voids_seen = 0;
        Ok(Ok(()))
    }

    /// As [`Self::start`], on a disk that works.
    pub(super) fn open(&mut self) -> Result<(), String> {
        self.start()?.map_err(|e| format!("does not open: {e}"))
    }

    /// Frames that a failed sync made void form groups of their own.
    fn note_voids(&mut self) {
        let Some((first, last)) = self.wal.as_ref().and_then(Wal::latest_void) else { return };
        if last > self.voids_seen {
            self.voids_seen = last;
            let mut durable = self.groups.pop().unwrap();
            let later = durable.split_off(&(last + 1));
            let void = durable.split_off(&first);
            // A rotation synced them, though nobody asked.
            self.acked.append(&mut durable);
            self.groups.extend([void, later]);
        }
    }

    fn compare(&self, found: &[Frame]) -> Result<(), String> {
        if !found.windows(2).all(|w| w[0].lsn < w[1].lsn) {
            return Err("log numbers do not rise".into());
        }
        let by_lsn: BTreeMap<u64, &Vec<u8>> = found.iter().map(|f| (f.lsn, &f.payload)).collect();
        for (lsn, payload) in self.acked.range(self.floor..) {
            match by_lsn.get(lsn) {
                None => return Err(format!("acknowledged frame {lsn} is missing")),
                Some(p) if *p != payload => return Err(format!("frame {lsn} has other bytes")),
                Some(_) => {}
            }
        }
        let open: Vec<(u64, &Vec<u8>)> = by_lsn
            .iter()
            .filter(|(lsn, _)| **lsn >= self.floor && !self.acked.contains_key(lsn))
            .map(|(lsn, p)| (*lsn, *p))
            .collect();
        let prefix_of = |group: &Group| {
            open.len() <= group.len()
                && open.iter().zip(group).all(|(a, b)| a.0 == *b.0 && a.1 == b.1)
        };
        if open.is_empty() || self.groups.iter().any(prefix_of) {
            return Ok(());
        }
        let lsns: Vec<u64> = open.iter().map(|o| o.0).collect();
        let groups: Vec<Vec<u64>> =
            self.groups.iter().map(|g| g.keys().copied().collect()).collect();
        Err(format!(
            "frames {lsns:?} are there, but are no prefix of what was appended: {groups:?}"
        ))
    }

    /// Compares what a cursor on the running log reads with what is acknowledged.
    pub(super) fn check_live(&self) -> Result<(), String> {
        let Some(wal) = self.wal.as_ref() else { return Ok(()) };
        let mut cursor = wal.cursor(self.floor.max(wal.first_lsn()));
        let mut found = BTreeMap::new();
        while let Some(scanned) = wal.read_next(&mut cursor).map_err(|e| e.to_string())? {
            if let Scanned::Frame(f) = scanned {
                found.insert(f.lsn, f.payload);
            }
        }
        let acked: BTreeMap<u64, Vec<u8>> =
            self.acked.range(self.floor..).map(|(l, p)| (*l, p.clone())).collect();
        found.retain(|lsn, _| *lsn >= self.floor);
        if found == acked { Ok(()) } else { Err("a cursor reads something else".into()) }
    }

    pub(super) fn payload(&mut self) -> Vec<u8> {
        self.payloads += 1;
        let len = match self.dice.below(8) {
            0 => 0,
            1 => 5000 + self.dice.below(4000),
            _ => 20 + self.dice.below(900),
        };
        let mut out = format!("payload {} of ", self.payloads).into_bytes();
        // A part of every payload is zero: zeroes in the plaintext must not look like holes.
        out.resize(len as usize, if self.payloads.is_multiple_of(2) { 0 } else { b'x' });
        out
    }

    pub(super) fn append(&mut self) -> Result<u64, WalError> {
        let payload = self.payload();
        let key = owner(1 + self.dice.below(3) as u8);
        let wal = self.wal.as_ref().unwrap();
        let lsn = wal.append(key, &payload)?;
        self.frames_sealed += 1;
        self.note_voids();
        self.groups.last_mut().unwrap().insert(lsn, payload);
        Ok(lsn)
    }

    pub(super) fn commit(&mut self, lsn: u64) -> Result<(), WalError> {
        let answer = self.wal.as_ref().unwrap().commit(lsn);
        self.note_voids();
        let through = answer?.through();
        assert!(through >= lsn, "a proof covers what was asked");
        let mut durable = self.groups.pop().unwrap();
        let later = durable.split_off(&(through + 1));
        self.acked.append(&mut durable);
        // Something newer is durable, so what failed before can not come back.
        self.groups = vec![later];
        Ok(())
    }

    pub(super) fn trim(&mut self) -> Result<(), WalError> {
        if let Some(last) = self.acked.keys().next_back().copied() {
            // The caller's floor is durable before it trims.
            self.floor = self.floor.max(last.saturating_sub(self.dice.below(6)));
            self.acked = self.acked.split_off(&self.floor);
        }
        self.wal.as_ref().unwrap().trim_below(self.floor).map(|_| ())
    }

    /// The reference trace: appends, commits, rotations, trims and restarts. `stubborn` goes on
    /// after an error, as a server does; otherwise the first error ends it, as a power cut does.
    pub(super) fn trace(&mut self, stubborn: bool) -> Result<(), String> {
        for round in 0..18u64 {
            let mut last = None;
            for _ in 0..=self.dice.below(3) {
                match self.append() {
                    Ok(lsn) => last = Some(lsn),
                    Err(_) if stubborn => {}
                    Err(_) => return Ok(()),
                }
            }
            if round % 4 != 3
                && let Some(lsn) = last
                && self.commit(lsn).is_err()
                && !stubborn
            {
                return Ok(());
            }
            if round % 5 == 4 && self.trim().is_err() && !stubborn {
                return Ok(());
            }
            // The process is replaced; the machine goes on. One failing operation fails once, so
            // the second try of a stubborn operator works.
            if matches!(round, 6 | 10) && self.start()?.is_err() {
                if !stubborn {
                    return Ok(());
                }
                self.open()?;
            }
        }
        Ok(())
    }

    /// The power fails and comes back with one of the states that the disk may be in.
    pub(super) fn power_cut(&mut self) {
        self.wal = None;
        self.disk.power_cycle(&self.dice);
    }

    /// The process dies; everything written is still there, also what was never synced.
    pub(super) fn kill(&mut self) {
        self.wal = None;
        self.disk.kill_process();
    }

    pub(super) fn segments(&self) -> Vec<PathBuf> {
        self.disk
            .paths()
            .into_iter()
            .filter(|p| p.extension().is_some_and(|e| e == "wal"))
            .collect()
    }

    pub(super) fn note_sealing(&self) -> Result<(), String> {
        match self.keys.reused() {
            0 => Ok(()),
            n => Err(format!("{n} (key, nonce) pairs were used again")),
        }
    }
}
