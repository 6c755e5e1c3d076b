//! Appends sealed frames and makes them durable.
//!
//! Owns: the open segment, its keys and the block that waits for the next sync. Appends seal into
//! memory; a commit writes the block and syncs once for every frame in it: the first waiter
//! leads, the others follow.
//! Never: reuses a segment after a restart; retries a failed sync; interprets a payload.
//! Invariants: D1 an ack needs a [`Synced`]; T6 a (key, nonce) pair is used once; a block starts
//! only after the sync of the block before it.
//! Crash order: bytes, sync, answer; any prefix is a legal start.
//! After a failed write or sync the segment is given up at the end of its last synced block: the
//! frames after it have failed for good, their positions are never used again, and the next
//! append opens a new segment that records that end.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::aead::FrameSealer;
use millrace_platform::{
    disk::{Disk, DiskFile, OpenMode},
    entropy::{Entropy, random_bytes},
    metric::Metric,
};

use crate::{
    frame::{self, FRAME_HEADER_BYTES, FrameHeader},
    keys::{KeyRef, KeyRefError, SegmentKeys},
    recovery::Recovery,
    segment::{self, HEADER_BYTES, PAGE_BYTES, SegmentHeader},
};

/// Bounds of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Preallocated bytes of a segment; a payload that needs more gets a segment of its own.
    pub segment_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20 }
    }
}

/// Payload bytes of one frame at most.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;

/// Proof that every frame up to a position is durable. Only a commit makes one:
///
/// ```compile_fail
/// let forged = millrace_wal::Synced { through: 7 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synced {
    through: u64,
}

impl Synced {
    /// The last durable log position.
    pub fn through(&self) -> u64 {
        self.through
    }
}

/// What a trim did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TrimReport {
    /// Segments removed.
    pub segments: usize,
    /// Bytes given back.
    pub bytes: u64,
}

/// Why the log cannot do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    /// The disk refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: Arc<io::Error>,
    },
    /// The frame was in a segment whose sync failed; it is not durable and never will be.
    #[error("log position {lsn} was not made durable because its segment failed; send it again")]
    Poisoned {
        /// The position.
        lsn: u64,
    },
    /// Bytes that were durable do not read.
    #[error(
        "log segment {segment:016x} is damaged at byte {byte}: {detail}; run `millrace fsck --segment {segment:x}`"
    )]
    Damaged {
        /// Segment number.
        segment: u64,
        /// Offset of the first bad byte.
        byte: u64,
        /// What is wrong.
        detail: String,
    },
    /// The owner's key is destroyed.
    #[error("the key of this frame's owner is destroyed")]
    KeyGone,
    /// The owner's key cannot be had now.
    #[error("the key of this frame's owner cannot be reached: {0}")]
    Keys(String),
    /// The payload is over [`PAYLOAD_BYTES_MAX`].
    #[error("a log record of {bytes} bytes is over the limit of {max}; send smaller batches")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The position was never handed out.
    #[error("log position {lsn} was never appended")]
    UnknownPosition {
        /// The position.
        lsn: u64,
    },
}

impl WalError {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source: Arc::new(source) }
    }

    /// Whether the reason is a full disk or quota.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

impl From<KeyRefError> for WalError {
    fn from(e: KeyRefError) -> Self {
        match e {
            KeyRefError::Gone => Self::KeyGone,
            KeyRefError::Unavailable(why) => Self::Keys(why),
        }
    }
}

struct OpenSegment {
    header: SegmentHeader,
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    bytes: u64,
    sealers: BTreeMap<KeyRef, FrameSealer>,
    /// Where the next block starts; a multiple of a page.
    next_block: u64,
    /// End of the last synced frame.
    synced_end: u64,
    last_tag: [u8; 16],
}

#[derive(Debug, Clone)]
struct OldSegment {
    path: PathBuf,
    bytes: u64,
    last_lsn: u64,
}

struct State {
    open: Option<OpenSegment>,
    old: Vec<OldSegment>,
    /// Frames sealed for the open segment and not yet written.
    block: Vec<u8>,
    /// A spare buffer, to reuse its memory.
    spare: Vec<u8>,
    /// Predecessor of the next segment: number, end of its valid bytes.
    previous: (u64, u64),
    next_number: u64,
    next_lsn: u64,
    synced_lsn: u64,
    leading: bool,
    /// Positions that failed for good, oldest first, the latest [`FAILED_MAX`] ranges.
    failed: Vec<Range<u64>>,
}

/// Failed ranges kept for waiters: a waiter asks at once, so the latest few are enough.
const FAILED_MAX: usize = 1024;
/// Memory that the spare block may keep.
const SPARE_BYTES_MAX: usize = 16 << 20;

/// See the module head.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    keys: Arc<dyn SegmentKeys>,
    options: Options,
    start: [u8; 16],
    salts: Mutex<SaltSource>,
    state: Mutex<State>,
    synced: Condvar,
}

/// Salts are drawn from one secret seed by hashing, so that the log needs no entropy later.
struct SaltSource {
    seed: millrace_crypto::key::Key256,
    drawn: u64,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Wal {
    /// Recovers what is there. The next append opens a new segment with new keys.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: Arc<dyn SegmentKeys>,
        entropy: &dyn Entropy,
        options: Options,
    ) -> Result<(Self, Recovery), WalError> {
        let recovery = Recovery::find(Arc::clone(&disk), dir, Arc::clone(&keys))?;
        let old = recovery
            .segments
            .iter()
            .map(|s| OldSegment { path: s.path.clone(), bytes: s.file_bytes, last_lsn: s.last_lsn })
            .collect();
        let last = recovery.segments.last();
        let last_lsn = recovery.last_lsn();
        let state = State {
            open: None,
            old,
            block: Vec::new(),
            spare: Vec::new(),
            previous: last.map_or((0, 0), |s| (s.header.number, s.end.unwrap_or(HEADER_BYTES))),
            next_number: last.map_or(1, |s| s.header.number + 1),
            next_lsn: last_lsn + 1,
            synced_lsn: last_lsn,
            leading: false,
            failed: Vec::new(),
        };
        let wal = Self {
            disk,
            dir: dir.to_path_buf(),
            keys,
            options,
            start: random_bytes(entropy),
            salts: Mutex::new(SaltSource {
                seed: millrace_crypto::key::Key256::random(entropy),
                drawn: 0,
            }),
            state: Mutex::new(state),
            synced: Condvar::new(),
        };
        Ok((wal, recovery))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn salt(&self) -> [u8; 32] {
        let mut salts = self.salts.lock().unwrap_or_else(PoisonError::into_inner);
        salts.drawn += 1;
        *salts.seed.derive(&self.start, &[b"salt", &salts.drawn.to_le_bytes()]).expose()
    }

    /// Seals a payload into the next block and gives it a position. Not durable before
    /// [`Self::commit`]. Blocks for I/O only when a segment must be opened or is full.
    pub fn append(&self, key: KeyRef, payload: &[u8]) -> Result<u64, WalError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(WalError::TooLarge { bytes: payload.len(), max: PAYLOAD_BYTES_MAX });
        }
        let frame_bytes = (FRAME_HEADER_BYTES + payload.len() + 16) as u64;
        let mut state = self.lock();
        loop {
            let fits = state.open.as_ref().is_some_and(|open| {
                open.next_block + state.block.len() as u64 + frame_bytes <= open.bytes
            });
            if fits {
                break;
            }
            if state.open.is_some() {
                // Full: what waits must be durable first, since a block follows a synced block.
                state = self.drain(state)?;
                if !state.leading && state.block.is_empty() {
                    Self::retire(&mut state);
                }
            } else {
                self.open_segment(&mut state, frame_bytes)?;
            }
        }
        self.seal(&mut state, key, payload)
    }

    fn seal(&self, state: &mut State, key: KeyRef, payload: &[u8]) -> Result<u64, WalError> {
        let lsn = state.next_lsn;
        let State { open, block, .. } = state;
        let Some(open) = open else { return Err(WalError::UnknownPosition { lsn }) };
        let sealer = match open.sealers.entry(key) {
            std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
            std::collections::btree_map::Entry::Vacant(e) => {
                e.insert(self.keys.sealer(key, &open.header.salt, &open.header.key_context())?)
            }
        };
        let header = FrameHeader {
            sealed_len: (payload.len() + 16) as u32,
            lsn,
            counter: sealer.next_counter(),
            key,
            block_page: (open.next_block / PAGE_BYTES) as u32,
            previous_tag: open.last_tag,
        };
        let aad = header.aad();
        let at = block.len();
        block.reserve(FRAME_HEADER_BYTES + payload.len() + 16 + PAGE_BYTES as usize);
        block.extend_from_slice(&aad);
        block.extend_from_slice(&[0; 4]);
        let body = block.len();
        block.extend_from_slice(payload);
        if let Err(e) = sealer.seal_from(&aad, block, body) {
            block.truncate(at);
            return Err(WalError::Keys(e.to_string()));
        }
        let sealed = block.get(body..).unwrap_or_default();
        open.last_tag = frame::tag_of(sealed);
        let crc = frame::crc(&aad, sealed);
        if let Some(slot) = block.get_mut(at + frame::AAD_BYTES..body) {
            slot.copy_from_slice(&crc.to_le_bytes());
        }
        state.next_lsn += 1;
        Ok(lsn)
    }

    /// Makes every frame up to `lsn` durable and proves it; or says that it never will be.
    pub fn commit(&self, lsn: u64) -> Result<Synced, WalError> {
        let mut state = self.lock();
        if lsn >= state.next_lsn {
            return Err(WalError::UnknownPosition { lsn });
        }
        loop {
            if state.failed.iter().any(|f| f.contains(&lsn)) {
                return Err(WalError::Poisoned { lsn });
            }
            if state.synced_lsn >= lsn {
                return Ok(Synced { through: state.synced_lsn });
            }
            if state.leading {
                state = self.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (next, led) = self.lead(state);
            state = next;
            if let Err(e) = led
                && state.failed.iter().any(|f| f.contains(&lsn))
            {
                return Err(e);
            }
        }
    }

    /// Waits until nothing is being written and nothing waits to be.
    fn drain<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> Result<MutexGuard<'a, State>, WalError> {
        while state.leading {
            state = self.synced.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.block.is_empty() {
            return Ok(state);
        }
        let (state, led) = self.lead(state);
        led?;
        Ok(state)
    }

    /// Writes and syncs the waiting block, without the lock.
    fn lead<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, Result<(), WalError>) {
        let spare = std::mem::take(&mut state.spare);
        let mut block = std::mem::replace(&mut state.block, spare);
        let last = state.next_lsn - 1;
        let Some(open) = state.open.as_mut() else { return (state, Ok(())) };
        let frames_end = open.next_block + block.len() as u64;
        block.resize(block.len().next_multiple_of(PAGE_BYTES as usize), 0);
        let at = open.next_block;
        open.next_block = at + block.len() as u64;
        let file = Arc::clone(&open.file);
        let path = open.path.clone();
        state.leading = true;
        drop(state);

        let done = file
            .write_at(&block, at)
            .map_err(|e| WalError::io("write", &path, e))
            .and_then(|()| file.sync_data().map_err(|e| WalError::io("sync", &path, e)));

        let mut state = self.lock();
        state.leading = false;
        match &done {
            Ok(()) => {
                state.synced_lsn = last;
                if let Some(open) = state.open.as_mut() {
                    open.synced_end = frames_end;
                }
                metrics_after_sync(block.len());
            }
            Err(error) => {
                tracing::error!(%error, "a log segment failed; its unsynced frames are refused and a new segment follows");
                // Frames that were sealed meanwhile belong to the failed segment as well.
                let failed = state.synced_lsn + 1..state.next_lsn;
                state.failed.push(failed);
                if state.failed.len() > FAILED_MAX {
                    state.failed.remove(0);
                }
                state.block.clear();
                Self::retire(&mut state);
                // Later positions start past the failed ones, and none of these is pending.
                state.synced_lsn = state.next_lsn - 1;
            }
        }
        block.clear();
        if block.capacity() <= SPARE_BYTES_MAX {
            state.spare = block;
        }
        self.synced.notify_all();
        (state, done)
    }

    /// The open segment takes no more frames.
    fn retire(state: &mut State) {
        if let Some(open) = state.open.take() {
            state.previous = (open.header.number, open.synced_end);
            state.old.push(OldSegment {
                path: open.path,
                bytes: open.bytes,
                last_lsn: state.synced_lsn,
            });
        }
    }

    fn open_segment(&self, state: &mut State, frame_bytes: u64) -> Result<(), WalError> {
        let number = state.next_number;
        let previous_lsn = state.old.last().map_or(0, |s| s.last_lsn);
        let header = SegmentHeader {
            number,
            first_lsn: state.next_lsn,
            start: self.start,
            salt: self.salt(),
            previous: state.previous.0,
            previous_end: state.previous.1,
            previous_lsn,
        };
        let path = segment::path(&self.dir, number);
        // Whatever happens below, this number and salt are not used again.
        state.next_number += 1;
        let wanted = self.options.segment_bytes.max(HEADER_BYTES + frame_bytes);
        let bytes = wanted.next_multiple_of(PAGE_BYTES);
        let made = self.disk.create_new(&path).and_then(|file| {
            file.allocate(bytes)?;
            file.write_at(&header.encode(), 0)?;
            file.sync_data()?;
            self.disk.sync_dir(&self.dir)?;
            Ok(file)
        });
        let file = made.map_err(|e| {
            // A file without blocks is a remnant that recovery removes; give its space back now
            // if the disk lets us.
            if let Err(error) = self.disk.remove(&path) {
                tracing::debug!(%error, "a half-made log segment stays until the next start");
            }
            WalError::io("create log segment", &path, e)
        })?;
        state.open = Some(OpenSegment {
            header,
            file: Arc::from(file),
            path,
            bytes,
            sealers: BTreeMap::new(),
            next_block: HEADER_BYTES,
            synced_end: HEADER_BYTES,
            last_tag: [0; 16],
        });
        Ok(())
    }

    /// Gives up whole segments whose frames are all below `lsn`, oldest first: destroys their
    /// salts (and so their keys) durably, then removes the files. The last segment of the chain
    /// stays, because it carries the positions.
    pub fn trim_below(&self, lsn: u64) -> Result<TrimReport, WalError> {
        let mut state = self.lock();
        // With no open segment the newest old one must stay.
        let keep = usize::from(state.open.is_none());
        let removable = state.old.len().saturating_sub(keep);
        let count = state.old.iter().take(removable).take_while(|s| s.last_lsn < lsn).count();
        let doomed: Vec<OldSegment> = state.old.drain(..count).collect();
        drop(state);
        let mut report = TrimReport::default();
        let page = segment::destroyed_page();
        let undone = |from: usize| {
            let mut state = self.lock();
            let rest = doomed.get(from..).unwrap_or_default().to_vec();
            state.old.splice(0..0, rest);
        };
        for (index, old) in doomed.iter().enumerate() {
            let wiped = self.disk.open(&old.path, OpenMode::ReadWrite).and_then(|file| {
                file.write_at(&page, 0)?;
                file.sync_data()
            });
            if let Err(e) = wiped {
                undone(index);
                return Err(WalError::io("destroy the key of", &old.path, e));
            }
            if let Err(e) = self.disk.remove(&old.path) {
                undone(index + 1);
                return Err(WalError::io("remove", &old.path, e));
            }
            report.segments += 1;
            report.bytes += old.bytes;
        }
        if report.segments > 0 {
            self.disk.sync_dir(&self.dir).map_err(|e| WalError::io("sync", &self.dir, e))?;
        }
        Ok(report)
    }

    /// The position that the next append gets.
    pub fn next_lsn(&self) -> u64 {
        self.lock().next_lsn
    }

    /// The last durable position.
    pub fn synced_lsn(&self) -> u64 {
        self.lock().synced_lsn
    }

    /// Bytes of all segments on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        let state = self.lock();
        let open = state.open.as_ref().map_or(0, |o| o.bytes);
        open + state.old.iter().map(|s| s.bytes).sum::<u64>()
    }
}

fn metrics_after_sync(bytes: usize) {
    metrics::counter!(Metric::WalSyncs.name()).increment(1);
    metrics::counter!(Metric::WalBytes.name()).increment(bytes as u64);
}
