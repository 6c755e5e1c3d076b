//! The first system under test: the real log, and behind it the smallest store that flushes.
//!
//! Owns: the order of steps that storage has. Store: append, sync, acknowledge. Flush: write a
//! numbered file of items (create only), then the floor, then trim the log. Start: files up to
//! the floor, then the log behind it.
//! Crash order of a flush: file, floor, trim; any prefix is a legal start. A file above the floor
//! is an orphan: its items are still in the log.

use std::path::{Path, PathBuf};

use millrace_platform::{
    disk::read_file,
    durable,
    sim::{SimClock, SimEntropy},
};
use millrace_wal::{KeyRef, OnDamage, Options, Replayed, Wal, WalError};

use crate::{
    bug::Bug,
    page_reader,
    stage::{Stage, Stop, System, TENANT},
};

const LOG: &str = "/data/wal";
const FILES: &str = "/data/files";
const KEY: KeyRef = KeyRef { owner: TENANT, version: 1 };

/// See the module head.
pub struct LogAndStore {
    log: Wal,
    /// Items in the log, with their log numbers.
    memory: Vec<(u64, u64)>,
    flushed: Vec<u64>,
    next_file: u64,
}

/// An item's bytes: its number, then a filling that follows from it.
fn bytes_of(item: u64) -> Vec<u8> {
    let dice = SimEntropy::seeded(item);
    let mut out = item.to_le_bytes().to_vec();
    let len = if item.is_multiple_of(7) { 5000 + dice.below(3000) } else { dice.below(700) };
    out.extend((0..len).map(|i| if i.is_multiple_of(3) { 0 } else { dice.below(256) as u8 }));
    out
}

fn item_of(bytes: &[u8]) -> Result<u64, Stop> {
    let item = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    match bytes_of(item) == bytes {
        true => Ok(item),
        false => Err(Stop::Changed(format!("{} bytes that are no item", bytes.len()))),
    }
}

fn disk(e: std::io::Error) -> Stop {
    Stop::Disk(e.to_string())
}

fn log(e: WalError) -> Stop {
    match e {
        WalError::Io { .. } | WalError::DiskFull { .. } | WalError::Poisoned { .. } => {
            Stop::Disk(e.to_string())
        }
        other => Stop::Refused(other.to_string()),
    }
}

impl From<WalError> for Stop {
    fn from(e: WalError) -> Self {
        log(e)
    }
}

fn file(number: u64) -> PathBuf {
    Path::new(FILES).join(format!("{number:08}"))
}

fn floor_path() -> PathBuf {
    PathBuf::from("/data/floor")
}

/// (next file, log number up to which everything is in files).
fn read_floor(stage: &Stage) -> Result<(u64, u64), Stop> {
    if !stage.disk.exists(&floor_path()).map_err(disk)? {
        return Ok((0, 0));
    }
    let bytes = read_file(stage.disk.as_ref(), &floor_path(), 64).map_err(disk)?;
    let [a, b] = [0, 8].map(|at| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()));
    match (a, b) {
        (Some(a), Some(b)) => Ok((u64::from_le_bytes(a), u64::from_le_bytes(b))),
        _ => Err(Stop::Refused("the floor file is short".into())),
    }
}

fn replay(
    stage: &Stage,
    recovery: &millrace_wal::Recovery,
    flushed: u64,
) -> Result<Vec<(u64, u64)>, Stop> {
    let from = match stage.bug {
        Some(Bug::DoubleApply) => recovery.first_lsn(),
        Some(Bug::ReplaySkipsOne) => flushed + 2,
        _ => flushed + 1,
    };
    let mut memory = Vec::new();
    if stage.has(Bug::ChecksumIgnored) {
        let frames = page_reader::read(stage.disk.as_ref(), Path::new(LOG), from, false)?;
        for (lsn, payload) in frames {
            memory.push((lsn, item_of(&payload)?));
        }
        return Ok(memory);
    }
    let read = recovery.read(from, &mut |replayed| -> Result<(), Stop> {
        match replayed {
            Replayed::Frame(frame) => memory.push((frame.lsn, item_of(&frame.payload)?)),
            Replayed::KeyGone { lsn, .. } => {
                return Err(Stop::Changed(format!("the key of frame {lsn} is not gone")));
            }
        }
        Ok(())
    });
    match read {
        Err(Stop::Refused(_)) if stage.has(Bug::ReplayErrorSwallowed) => {}
        other => other?,
    }
    // A second opinion, from the format page.
    let second = page_reader::read(stage.disk.as_ref(), Path::new(LOG), from, true)?;
    let same = stage.has(Bug::ReplayErrorSwallowed)
        || second.len() == memory.len()
            && second.iter().zip(&memory).all(|((lsn, payload), (l, item))| {
                lsn == l && item_of(payload).as_ref() == Ok(item)
            });
    match same {
        true => Ok(memory),
        false => Err(Stop::Changed("two readers of one log disagree".into())),
    }
}

impl System for LogAndStore {
    fn start(stage: &Stage) -> Result<(Self, Vec<u64>), Stop> {
        for dir in [LOG, FILES] {
            stage.disk.create_dir_all(Path::new(dir)).map_err(disk)?;
        }
        for dir in ["/data", FILES] {
            durable::sweep_temp(stage.disk.as_ref(), Path::new(dir)).map_err(disk)?;
        }
        let (next_file, flushed_lsn) = read_floor(stage)?;
        let mut flushed = Vec::new();
        for number in 0..next_file {
            let bytes = read_file(stage.disk.as_ref(), &file(number), 1 << 20)
                .map_err(|e| Stop::Refused(format!("file {number}: {e}")))?;
            flushed.extend(
                bytes
                    .chunks_exact(8)
                    .map(|b| b.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))),
            );
        }
        // An orphan above the floor: its items are in the log.
        if stage.disk.exists(&file(next_file)).map_err(disk)? {
            durable::remove(stage.disk.as_ref(), &file(next_file)).map_err(disk)?;
        }
        let options = Options {
            segment_bytes: 20 << 10,
            buffer_bytes: 8 << 10,
            clock: std::sync::Arc::new(SimClock::default()),
            on_damage: match stage.bug {
                Some(Bug::ChecksumIgnored | Bug::ReplayErrorSwallowed) => OnDamage::Quarantine,
                _ => OnDamage::Refuse,
            },
        };
        let keys =
            std::sync::Arc::clone(&stage.keys) as std::sync::Arc<dyn millrace_wal::SegmentKeys>;
        let disk = std::sync::Arc::clone(&stage.disk);
        let (log, recovery) = Wal::open(disk, Path::new(LOG), keys, &stage.dice, options)?;
        let memory = replay(stage, &recovery, flushed_lsn)?;
        let held = flushed.iter().copied().chain(memory.iter().map(|(_, item)| *item)).collect();
        Ok((Self { log, memory, flushed, next_file }, held))
    }

    fn store(&mut self, stage: &Stage, items: &[u64]) -> Result<(), Stop> {
        let mut appended = Vec::new();
        for item in items {
            appended.push((self.log.append(KEY, &bytes_of(*item))?, *item));
        }
        let last = appended.last().map_or(0, |(lsn, _)| *lsn);
        if !stage.has(Bug::AckEarly) {
            match self.log.commit(last) {
                Err(WalError::Poisoned { .. }) if stage.has(Bug::PoisonedIsAcked) => {}
                other => {
                    other?;
                }
            }
        }
        self.memory.extend(appended);
        Ok(())
    }

    fn flush(&mut self, stage: &Stage) -> Result<(), Stop> {
        let Some((last, _)) = self.memory.last().copied() else { return Ok(()) };
        let mut bytes = Vec::new();
        for (_, item) in &self.memory {
            bytes.extend_from_slice(&item.to_le_bytes());
        }
        let floor = [(self.next_file + 1).to_le_bytes(), last.to_le_bytes()].concat();
        let target = file(self.next_file);
        let write_file = || -> Result<(), Stop> {
            // A flush that failed half-way is done again under the same number.
            durable::replace(stage.disk.as_ref(), &target, &bytes).map_err(disk)
        };
        let write_floor =
            || durable::replace(stage.disk.as_ref(), &floor_path(), &floor).map_err(disk);
        if stage.has(Bug::TrimEarly) {
            self.log.trim_below(last + 1)?;
        }
        if stage.has(Bug::FloorEarly) {
            write_floor()?;
            write_file()?;
        } else {
            write_file()?;
            write_floor()?;
        }
        self.next_file += 1;
        self.flushed.extend(self.memory.drain(..).map(|(_, item)| item));
        self.log.trim_below(last + 1)?;
        Ok(())
    }

    fn held(&mut self, _stage: &Stage) -> Result<Vec<u64>, Stop> {
        let mut out = self.flushed.clone();
        // What readers see of the log, frame by frame.
        let from = self.memory.first().map_or(self.log.next_lsn(), |(lsn, _)| *lsn);
        let mut cursor = self.log.cursor(from);
        while let Some(scanned) = self.log.read_next(&mut cursor)? {
            match scanned {
                millrace_wal::Scanned::Frame(frame) => out.push(item_of(&frame.payload)?),
                other => return Err(Stop::Changed(format!("{other:?}"))),
            }
        }
        Ok(out)
    }
}
