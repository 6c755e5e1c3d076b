//! Starting: what is there, what counts, and the first segment of this start.
//!
//! Owns: the table of segments, the new segment that every start opens, replay.
//! Never: writes to a segment of an earlier start, or syncs one (except on a full disk, below).
//! Invariants: D1.
//!
//! Order of a start: sweep `.tmp`, read all headers, walk the last segment to its end, make a
//! new segment, remove segments without a frame that counts.
//! Carrying over. The frames at the end of the last segment that no later frame marks as durable
//! may be in the page cache only, and if the process before died after a failed sync, no sync
//! will ever write them, while reading shows them. So they are sealed again, with the same
//! numbers, into the new segment before it gets its name; from then on they count there. If there
//! is no room for the new segment, the old one is synced instead, once, and appends wait for room.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_platform::{
    disk::{Disk, OpenMode},
    durable,
};

use crate::{
    error::{Damage, WalError},
    keys::{KeyRef, SegmentKeys},
    planted::{Bug, planted},
    reader::{LogReader, Scanned, SegmentScan, Tail, highest_lsn, live_end},
    segment::{Entry, Found, number_of, read_header},
    writer::OnDamage,
};

/// A frame read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its log number.
    pub lsn: u64,
    /// Its key.
    pub key: KeyRef,
    /// What was appended.
    pub payload: Vec<u8>,
}

/// What replay hands out, in order of log numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replayed {
    /// A frame.
    Frame(Frame),
    /// A frame whose key is gone for good (a shredded tenant). Not damage.
    KeyGone {
        /// Its log number.
        lsn: u64,
        /// Its key.
        key: KeyRef,
    },
}

/// The segments of a directory.
pub(crate) struct Table {
    pub(crate) entries: Vec<Entry>,
    /// Files that a trim destroyed and did not come to unlink.
    pub(crate) destroyed: Vec<PathBuf>,
    /// Whether a file that does not read lies before the first segment.
    pub(crate) unreadable_first: bool,
    /// The last number that counts.
    pub(crate) through: u64,
    pub(crate) tail: Option<Tail>,
    /// No frame of a new segment may have a lower number.
    pub(crate) next_lsn: u64,
    /// The number of the next segment file.
    pub(crate) next_number: u64,
}

impl Table {
    /// Where a scan of all there is begins: at 1 if frames may be in a file before the first
    /// segment that reads, so that their loss is reported.
    pub(crate) fn scan_from(&self) -> u64 {
        if self.unreadable_first { 1 } else { self.first_lsn() }
    }

    /// The lowest number from which the log is complete.
    pub(crate) fn first_lsn(&self) -> u64 {
        self.entries.first().map_or(self.next_lsn, |e| e.header.continues_after + 1)
    }
}

/// Reads all headers and walks the last segment.
pub(crate) fn load_table(disk: &dyn Disk, dir: &Path, policy: OnDamage) -> Result<Table, WalError> {
    let listed = disk.list(dir).map_err(WalError::io("list", dir))?;
    let mut numbers: Vec<(u64, String)> = listed
        .into_iter()
        .filter(|e| !e.is_dir)
        .filter_map(|e| number_of(&e.name).map(|n| (n, e.name)))
        .collect();
    numbers.sort();
    let mut entries: Vec<Entry> = Vec::with_capacity(numbers.len());
    let mut destroyed = Vec::new();
    let mut behind_unreadable = None;
    let mut unreadable_first = false;
    for (number, name) in &numbers {
        let path = dir.join(name);
        let found = match read_header(disk, &path, *number)? {
            Found::Segment(entry) => in_order(&entries, entry),
            other => other,
        };
        match found {
            Found::Segment(entry) => {
                behind_unreadable = None;
                entries.push(entry);
            }
            Found::Destroyed => destroyed.push(path),
            Found::Damage(mut damage) => {
                damage.first_lsn = entries.last().map_or(1, |e| e.header.first_lsn);
                if policy == OnDamage::Refuse {
                    return Err(damage.into());
                }
                unreadable_first |= entries.is_empty();
                behind_unreadable = behind_unreadable.max(highest_lsn(disk, &path)?);
            }
        }
    }
    let next_number = numbers.last().map_or(1, |(n, _)| n + 1);
    let Some(last) = entries.last() else {
        // Frames in files that cannot be read at all: their numbers are not used again.
        let through = behind_unreadable.unwrap_or(0);
        let next_lsn = through + 1;
        return Ok(Table {
            entries,
            destroyed,
            unreadable_first,
            through,
            tail: None,
            next_lsn,
            next_number,
        });
    };
    let mut tail = SegmentScan::open(disk, last)?.tail(policy)?;
    if let Some(lsn) = behind_unreadable
        && lsn > tail.last_lsn
    {
        tail.damaged = true;
        tail.last_lsn = lsn;
        tail.next_lsn = lsn + 1;
    }
    // A last segment without a frame adds nothing to what it continues after.
    let through = if tail.last_lsn < last.header.first_lsn {
        last.header.continues_after
    } else {
        tail.last_lsn
    };
    let next_lsn = tail.next_lsn;
    let tail = Some(tail);
    Ok(Table { entries, destroyed, unreadable_first, through, tail, next_lsn, next_number })
}

fn in_order(before: &[Entry], entry: Entry) -> Found {
    let Some(last) = before.last() else { return Found::Segment(entry) };
    if entry.header.continues_after >= last.header.continues_after
        && entry.header.incarnation >= last.header.incarnation
    {
        return Found::Segment(entry);
    }
    Found::Damage(Damage {
        segment: entry.header.number,
        byte: 0,
        byte_end: entry.len,
        first_lsn: 0,
        last_lsn: None,
        what: "the header contradicts the segment before",
    })
}

/// What a restart must write again.
pub(crate) struct CarryOver {
    /// Everything up to here is durable where it is, or void.
    pub(crate) continues_after: u64,
    pub(crate) first_lsn: u64,
    pub(crate) frames: Vec<Replayed>,
}

/// The frames of the last segment that are not known to be durable.
pub(crate) fn carry_over(
    disk: &Arc<dyn Disk>,
    keys: &Arc<dyn SegmentKeys>,
    table: &Table,
) -> Result<CarryOver, WalError> {
    let nothing =
        CarryOver { continues_after: table.through, first_lsn: table.next_lsn, frames: Vec::new() };
    let (Some(tail), Some(last)) = (table.tail, table.entries.last()) else { return Ok(nothing) };
    if tail.durable >= tail.last_lsn || planted(Bug::TailTrusted) {
        return Ok(nothing);
    }
    if tail.damaged {
        // Numbers are missing in between, so it cannot be written again; best that can be done.
        sync_in_place(disk.as_ref(), last)?;
        return Ok(nothing);
    }
    let mut reader =
        LogReader::new(Arc::clone(disk), Arc::clone(keys), OnDamage::Refuse, tail.durable + 1);
    let mut frames = Vec::new();
    while let Some(scanned) = reader.next(std::slice::from_ref(last), tail.last_lsn)? {
        match scanned {
            Scanned::Frame(frame) => frames.push(Replayed::Frame(frame)),
            Scanned::KeyGone { lsn, key } => frames.push(Replayed::KeyGone { lsn, key }),
            Scanned::Damage(damage) => return Err(damage.into()),
        }
    }
    let continues_after = if tail.durable < last.header.first_lsn {
        last.header.continues_after
    } else {
        tail.durable
    };
    Ok(CarryOver { continues_after, first_lsn: tail.durable + 1, frames })
}

/// Syncs the segment of an earlier start: the second best, when its end cannot be carried over.
pub(crate) fn sync_in_place(disk: &dyn Disk, entry: &Entry) -> Result<(), WalError> {
    let file =
        disk.open(&entry.path, OpenMode::ReadWrite).map_err(WalError::io("open", &entry.path))?;
    file.sync_data().map_err(WalError::io("sync", &entry.path))
}

/// Removes segments, except the newest, that hold no frame that counts, and destroyed ones.
pub(crate) fn remove_empty(
    disk: &dyn Disk,
    dir: &Path,
    entries: &mut Vec<Entry>,
    destroyed: &[PathBuf],
) -> Result<(), WalError> {
    let mut empty = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        if !last && live_end(entries, index, 0) < entry.header.first_lsn {
            empty.push(entry.header.number);
        }
    }
    if empty.is_empty() && destroyed.is_empty() {
        return Ok(());
    }
    let of_no_use = entries.iter().filter(|e| empty.contains(&e.header.number)).map(|e| &e.path);
    for path in of_no_use.chain(destroyed) {
        disk.remove(path).map_err(WalError::io("remove", path))?;
    }
    disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
    entries.retain(|e| !empty.contains(&e.header.number));
    Ok(())
}

/// Makes the directory and sweeps what a crash left half-made.
pub(crate) fn prepare(disk: &dyn Disk, dir: &Path) -> Result<(), WalError> {
    disk.create_dir_all(dir).map_err(WalError::io("create", dir))?;
    durable::sweep_temp(disk, dir).map_err(WalError::io("sweep", dir))?;
    Ok(())
}

/// What a start found.
pub struct Recovery {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) keys: Arc<dyn SegmentKeys>,
    pub(crate) policy: OnDamage,
    pub(crate) entries: Arc<Vec<Entry>>,
    pub(crate) first_lsn: u64,
    pub(crate) through: u64,
    pub(crate) next_lsn: u64,
    pub(crate) torn_bytes: u64,
    pub(crate) carried: u64,
}

impl std::fmt::Debug for Recovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recovery")
            .field("first_lsn", &self.first_lsn)
            .field("through", &self.through)
            .field("torn_bytes", &self.torn_bytes)
            .finish_non_exhaustive()
    }
}

impl Recovery {
    /// The lowest number that may be read from; lower ones were trimmed.
    pub fn first_lsn(&self) -> u64 {
        self.first_lsn
    }

    /// The last number that the log held at the start; 0 if none.
    pub fn last_lsn(&self) -> u64 {
        self.through
    }

    /// The number that the first append of this start gets.
    pub fn next_lsn(&self) -> u64 {
        self.next_lsn
    }

    /// Bytes of a torn tail that were cut off. They were never acknowledged.
    pub fn torn_tail_bytes(&self) -> u64 {
        self.torn_bytes
    }

    /// Frames at the end that were written again because their sync was not certain.
    pub fn carried_frames(&self) -> u64 {
        self.carried
    }

    /// Reads every frame from `from_lsn` on that the log held at the start, in order, once.
    /// Damage ends it with [`WalError::Damaged`]; numbers below [`Self::first_lsn`] are an error.
    /// Each segment is read through a window; memory does not grow with the log.
    pub fn read<E: From<WalError>>(
        &self,
        from_lsn: u64,
        each: &mut dyn FnMut(Replayed) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader = LogReader::new(
            Arc::clone(&self.disk),
            Arc::clone(&self.keys),
            OnDamage::Refuse,
            from_lsn,
        );
        while let Some(scanned) = reader.next(&self.entries, self.through)? {
            match scanned {
                Scanned::Frame(frame) => each(Replayed::Frame(frame))?,
                Scanned::KeyGone { lsn, key } => each(Replayed::KeyGone { lsn, key })?,
                Scanned::Damage(damage) => return Err(WalError::from(damage).into()),
            }
        }
        Ok(())
    }

    /// Like [`Self::read`], but goes on behind damage and reports it, when the log was opened
    /// with [`OnDamage::Quarantine`].
    pub fn scan<E: From<WalError>>(
        &self,
        from_lsn: u64,
        each: &mut dyn FnMut(Scanned) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut reader =
            LogReader::new(Arc::clone(&self.disk), Arc::clone(&self.keys), self.policy, from_lsn);
        while let Some(scanned) = reader.next(&self.entries, self.through)? {
            each(scanned)?;
        }
        Ok(())
    }
}
