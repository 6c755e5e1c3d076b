//! Appending, and the one place where a frame becomes acknowledged.
//!
//! Owns: the open segment, group commit, what happens when a sync fails or the disk is full;
//! the only maker of [`Synced`].
//! Never: syncs a file again after its sync failed; writes a page twice; gives out a log number
//! twice in one life of the process.
//! Invariants: D1; frames reach the disk in order of their numbers; a new segment gets its name
//! only when everything that it continues after is synced.
//!
//! An append seals its frame into a buffer in memory under a short lock: one copy of the payload,
//! no system call, no allocation beyond the buffer. The first thread that commits becomes the
//! leader: it takes the buffer, writes it with one pwrite, syncs, and wakes everyone whose frames
//! were in it. Threads that commit meanwhile wait, and the next leader takes all their frames at
//! once. One thread at a time may touch the files (`busy`).
//!
//! A failed write or sync poisons the segment: frames that were not synced are void, their
//! numbers are not used again in this life, commits of them say so, and the next append opens a
//! new segment that continues after the last synced number. So recovery knows which frames of the
//! poisoned segment count without asking the disk what it kept.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::{aead::FrameSealer, key::Key256};
use millrace_platform::{
    clock::{Clock, SystemClock},
    disk::{Disk, DiskFile},
    entropy::{Entropy, random_bytes},
    map::Map,
    metric::Metric,
};

use crate::{
    error::WalError,
    frame::{FLAG_GONE, FRAME_HEADER_BYTES, FRAME_PAYLOAD_MAX, FrameHeader},
    keys::{KeyRef, KeyRefError, SegmentKeys},
    planted::{Bug, planted},
    reader::{LogCursor, LogReader, Scanned, aad},
    recovery::{
        CarryOver, Recovery, Replayed, carry_over, load_table, prepare, remove_empty, sync_in_place,
    },
    segment::{
        self, Entry, PAGE_BYTES, SEGMENT_BYTES_DEFAULT, SEGMENT_BYTES_MIN, SEGMENT_HEADER_BYTES,
        SegmentHeader, TAG, pad,
    },
};

/// What a start and a cursor do with damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnDamage {
    /// Stop and say where (the server).
    #[default]
    Refuse,
    /// Go on behind it and report what is lost (the forwarder).
    Quarantine,
}

/// How a log is written.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of a segment, a multiple of 4096: 64 MiB unless said otherwise; 4-8 MiB suits a
    /// device.
    pub segment_bytes: u64,
    /// Bytes of sealed frames that wait in memory before they are written without a sync: 1 MiB,
    /// because a sync of 1 MiB takes twice as long as one of 64 KiB and of 4 MiB five times.
    pub buffer_bytes: usize,
    /// What happens at damage.
    pub on_damage: OnDamage,
    /// Times syncs, for the metric only.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: SEGMENT_BYTES_DEFAULT,
            buffer_bytes: 1 << 20,
            on_damage: OnDamage::Refuse,
            clock: Arc::new(SystemClock::new()),
        }
    }
}

/// Proof that every frame up to a number is durable or void by a failure that was reported.
/// Only a successful sync makes one:
///
/// ```compile_fail
/// let forged = millrace_wal::Synced { through: 1 };
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Synced {
    through: u64,
}

impl Synced {
    /// The number up to which frames are durable.
    pub fn through(&self) -> u64 {
        self.through
    }
}

/// Seals frames into the batches of one segment.
struct Sealing {
    header: SegmentHeader,
    header_bytes: [u8; SEGMENT_HEADER_BYTES],
    sealers: Map<KeyRef, FrameSealer>,
    last_tag: [u8; TAG],
}

impl Sealing {
    fn new(header: SegmentHeader) -> Self {
        let header_bytes = header.encode();
        Self { header, header_bytes, sealers: Map::default(), last_tag: [0; TAG] }
    }

    fn sealer(&mut self, keys: &dyn SegmentKeys, key: KeyRef) -> Result<&FrameSealer, KeyRefError> {
        if !self.sealers.contains_key(&key) {
            let sealer = keys.sealer(key, &self.header.context())?;
            self.sealers.insert(key, sealer);
        }
        self.sealers.get(&key).ok_or(KeyRefError::Gone)
    }

    /// Appends one frame to `batch`; leaves it as it was on an error.
    fn seal(
        &mut self,
        keys: &dyn SegmentKeys,
        (lsn, durable): (u64, u64),
        key: KeyRef,
        payload: &[u8],
        batch: &mut Vec<u8>,
    ) -> Result<(), WalError> {
        let previous_tag = self.last_tag;
        let header_bytes = self.header_bytes;
        let sealer = self.sealer(keys, key).map_err(WalError::key(key))?;
        let mut header = FrameHeader {
            body_len: (payload.len() + TAG) as u32,
            lsn,
            durable,
            key,
            flags: 0,
            counter: sealer.next_counter(),
            previous_tag,
            body_crc: 0,
        }
        .encode();
        let aad = aad(&header_bytes, &header);
        let at = batch.len();
        batch.extend_from_slice(&header);
        batch.extend_from_slice(payload);
        let body = at + FRAME_HEADER_BYTES;
        if let Err(e) = sealer.seal_from(&aad, batch, body) {
            batch.truncate(at);
            return Err(e.into());
        }
        FrameHeader::finish(&mut header, crc32c::crc32c(&batch[body..]));
        batch[at..body].copy_from_slice(&header);
        self.last_tag = batch.last_chunk().copied().unwrap_or_default();
        Ok(())
    }

    /// Appends the stand-in for a frame whose key is gone.
    fn stand_in(&mut self, (lsn, durable): (u64, u64), key: KeyRef, batch: &mut Vec<u8>) {
        let header = FrameHeader {
            body_len: 0,
            lsn,
            durable,
            key,
            flags: FLAG_GONE,
            counter: 0,
            previous_tag: self.last_tag,
            body_crc: crc32c::crc32c(&[]),
        };
        batch.extend_from_slice(&header.encode());
        self.last_tag = [0; TAG];
    }
}

/// The segment that is being written.
struct OpenSegment {
    file: Arc<dyn DiskFile>,
    sealing: Sealing,
    /// Where the next batch goes.
    written: u64,
    /// Sealed frames that are not yet written.
    buffer: Vec<u8>,
    /// The last frame that this start put here; 0 if none.
    last_lsn: u64,
}

/// Frames that a failed sync made void.
#[derive(Debug, Clone, Copy)]
struct Void {
    first: u64,
    last: u64,
    segment: u64,
    cause: io::ErrorKind,
    /// Whether a commit was told.
    told: bool,
}

impl Void {
    /// Whether a commit of these frames must be told.
    fn concerns(&self, first: u64, last: u64) -> bool {
        self.first <= last && (!self.told || self.last >= first)
    }
}

struct State {
    open: Option<OpenSegment>,
    /// A thread is writing or syncing, or making a segment.
    busy: bool,
    next_lsn: u64,
    /// The last durable number.
    synced: u64,
    void: Vec<Void>,
    /// All segments that are there, the open one last.
    entries: Arc<Vec<Entry>>,
    next_number: u64,
    /// An emptied buffer, to be used again.
    spare: Vec<u8>,
}

/// A log, open for appending. Shared by reference; every method may be called from any thread.
pub struct Wal {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    keys: Arc<dyn SegmentKeys>,
    options: Options,
    incarnation: u64,
    /// Segment salts are derived from this random value, which is nowhere on disk.
    salts: Key256,
    state: Mutex<State>,
    changed: Condvar,
    trim: Mutex<()>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("dir", &self.dir).finish_non_exhaustive()
    }
}

type Guard<'a> = MutexGuard<'a, State>;

impl Wal {
    /// Opens the log in `dir` (made if missing) with a new segment for this start, and says what
    /// was there. Damage where it is seen (headers, the last segment) is an error unless the
    /// options say quarantine; older segments are read by [`Recovery::read`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        keys: Arc<dyn SegmentKeys>,
        entropy: &dyn Entropy,
        options: Options,
    ) -> Result<(Self, Recovery), WalError> {
        if options.segment_bytes < SEGMENT_BYTES_MIN
            || !options.segment_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(WalError::Options("segment bytes: a multiple of 4096, at least 16384"));
        }
        prepare(disk.as_ref(), dir)?;
        let table = load_table(disk.as_ref(), dir, options.on_damage)?;
        let carry = carry_over(&disk, &keys, &table)?;
        let incarnation = table.entries.last().map_or(1, |e| e.header.incarnation + 1);
        let wal = Self {
            disk,
            dir: dir.to_path_buf(),
            keys,
            incarnation,
            salts: Key256::new(random_bytes(entropy)),
            state: Mutex::new(State {
                open: None,
                busy: false,
                next_lsn: table.next_lsn,
                synced: table.through,
                void: Vec::new(),
                entries: Arc::new(table.entries.clone()),
                next_number: table.next_number,
                spare: Vec::new(),
            }),
            changed: Condvar::new(),
            trim: Mutex::new(()),
            options,
        };
        wal.first_segment(&carry, &table.destroyed)?;
        let (entries, next_lsn) = {
            let state = wal.lock();
            (Arc::clone(&state.entries), state.next_lsn)
        };
        let recovery = Recovery {
            disk: Arc::clone(&wal.disk),
            keys: Arc::clone(&wal.keys),
            policy: wal.options.on_damage,
            first_lsn: entries.first().map_or(next_lsn, |e| e.header.continues_after + 1),
            entries,
            through: table.through,
            next_lsn,
            torn_bytes: table.tail.map_or(0, |t| t.torn_bytes),
            carried: carry.frames.len() as u64,
        };
        Ok((wal, recovery))
    }

    /// The first segment of this start, with the frames that must be written again.
    fn first_segment(&self, carry: &CarryOver, destroyed: &[PathBuf]) -> Result<(), WalError> {
        let CarryOver { continues_after, first_lsn, ref frames } = *carry;
        let mut batch = Vec::new();
        let keys = Arc::clone(&self.keys);
        let carried_through = first_lsn + frames.len() as u64 - 1;
        let mut payloads = PAGE_BYTES;
        for frame in frames {
            payloads += (FRAME_HEADER_BYTES + TAG) as u64;
            if let Replayed::Frame(frame) = frame {
                payloads += frame.payload.len() as u64;
            }
        }
        let number = self.lock().next_number;
        let header = SegmentHeader {
            number,
            first_lsn,
            continues_after,
            carried_through,
            incarnation: self.incarnation,
            salt: self.salt(number),
            allocated: self.options.segment_bytes.max(payloads.next_multiple_of(PAGE_BYTES)),
        };
        let mut sealing = Sealing::new(header);
        for frame in frames {
            match frame {
                Replayed::Frame(f) => {
                    let numbers = (f.lsn, continues_after);
                    sealing.seal(keys.as_ref(), numbers, f.key, &f.payload, &mut batch)?;
                }
                Replayed::KeyGone { lsn, key } => {
                    sealing.stand_in((*lsn, continues_after), *key, &mut batch);
                }
            }
        }
        pad(&mut batch);
        let made = segment::create(self.disk.as_ref(), &self.dir, &sealing.header, &batch);
        let mut state = self.lock();
        state.next_number = number + 1;
        match made {
            Ok((file, entry)) => {
                let mut entries = state.entries.as_ref().clone();
                entries.push(entry);
                let swept = remove_empty(self.disk.as_ref(), &self.dir, &mut entries, destroyed);
                state.entries = Arc::new(entries);
                let written = PAGE_BYTES + batch.len() as u64;
                let buffer = Vec::new();
                state.open = Some(OpenSegment { file, sealing, written, buffer, last_lsn: 0 });
                swept
            }
            Err(e @ WalError::DiskFull { .. }) => {
                // Reading and trimming must work on a full disk; appends wait for room.
                tracing::warn!(error = %e, "the log opens without room for a segment");
                match state.entries.last() {
                    Some(last) if !frames.is_empty() => sync_in_place(self.disk.as_ref(), last),
                    _ => Ok(()),
                }
            }
            Err(e) => Err(e),
        }
    }

    /// Puts a frame at the end of the log. It is not durable before [`Self::commit`] says so.
    /// Errors leave the log as it was and use no number.
    pub fn append(&self, key: KeyRef, payload: &[u8]) -> Result<u64, WalError> {
        let max = self.payload_max();
        if payload.len() > max {
            return Err(WalError::TooLarge { len: payload.len(), max });
        }
        let framed = (FRAME_HEADER_BYTES + payload.len() + TAG) as u64;
        let mut state = self.lock();
        loop {
            let busy = state.busy;
            let Some(open) = state.open.as_ref() else {
                state = if busy { self.wait(state) } else { self.new_segment(state)? };
                continue;
            };
            let used = open.written + open.buffer.len() as u64;
            let full = used + framed > open.sealing.header.allocated;
            if !full && open.buffer.len() < self.options.buffer_bytes {
                break;
            }
            let all_synced = open.last_lsn <= state.synced;
            state = match (busy, full, all_synced) {
                (true, _, _) => self.wait(state),
                (false, true, true) => {
                    state.open = None;
                    state
                }
                // A failure poisons the segment; the next round opens another one, and whoever
                // commits the void frames is told.
                (false, true, false) => self.flush(state, true),
                (false, false, _) => self.flush(state, false),
            };
        }
        let numbers = (state.next_lsn, state.synced);
        let Some(open) = state.open.as_mut() else { return Err(WalError::Options("no segment")) };
        open.sealing.seal(self.keys.as_ref(), numbers, key, payload, &mut open.buffer)?;
        open.last_lsn = numbers.0;
        state.next_lsn += 1;
        Ok(numbers.0)
    }

    /// Makes every frame up to `lsn` durable, together with everything that was appended
    /// meanwhile by anyone. Blocks for at most the sync under way and one more.
    ///
    /// An append may have to sync a full segment, and that may fail when nobody is there to be
    /// told. The next commit is, whatever frame it asks for, so one writer that appends a group and
    /// commits its last frame never takes a void frame for stored. Where several threads append
    /// groups, each uses [`Self::commit_group`].
    pub fn commit(&self, lsn: u64) -> Result<Synced, WalError> {
        self.commit_group(lsn, lsn)
    }

    /// As [`Self::commit`]; an error also if any frame from `first` to `last` is void.
    pub fn commit_group(&self, first: u64, last: u64) -> Result<Synced, WalError> {
        let mut state = self.lock();
        if planted(Bug::AckEarly) {
            return Ok(Synced { through: last });
        }
        loop {
            if let Some(void) = state.void.iter_mut().rev().find(|v| v.concerns(first, last)) {
                void.told = true;
                let lsn = void.last.min(last).max(void.first);
                return Err(WalError::Poisoned { segment: void.segment, lsn, cause: void.cause });
            }
            if last <= state.synced {
                return Ok(Synced { through: state.synced });
            }
            state = if state.busy {
                self.wait(state)
            } else if state.open.as_ref().is_some_and(|open| last <= open.last_lsn) {
                self.flush(state, true)
            } else {
                return Err(WalError::NotAppended { lsn: last, next: state.next_lsn });
            };
        }
    }

    /// Writes what is buffered and, if `sync`, makes it durable. The caller has seen that nobody
    /// is busy. Success and failure are in the state.
    fn flush<'a>(&'a self, mut state: Guard<'a>, sync: bool) -> Guard<'a> {
        let spare = std::mem::take(&mut state.spare);
        let Some(open) = state.open.as_mut() else { return state };
        let file = Arc::clone(&open.file);
        let mut batch = std::mem::replace(&mut open.buffer, spare);
        pad(&mut batch);
        let (at, through) = (open.written, open.last_lsn);
        open.written += batch.len() as u64;
        state.busy = true;
        drop(state);
        let done = self.write_and_sync(file.as_ref(), &batch, at, sync);
        let mut state = self.lock();
        state.busy = false;
        match done {
            Ok(()) if sync => state.synced = state.synced.max(through),
            Ok(()) => {}
            Err(e) => self.poison(&mut state, &e),
        }
        // One huge batch must not hold its memory for ever.
        if batch.capacity() <= 4 * self.options.buffer_bytes {
            batch.clear();
            state.spare = batch;
        }
        self.changed.notify_all();
        state
    }

    fn write_and_sync(
        &self,
        file: &dyn DiskFile,
        batch: &[u8],
        at: u64,
        sync: bool,
    ) -> io::Result<()> {
        if !batch.is_empty() {
            file.write_at(batch, at)?;
            metrics::counter!(Metric::WalBytes.name()).increment(batch.len() as u64);
        }
        if sync {
            let start = self.options.clock.monotonic();
            let synced = file.sync_data();
            if synced.is_err() && planted(Bug::SyncRetried) {
                return Ok(());
            }
            synced?;
            let took = self.options.clock.monotonic().saturating_sub(start);
            metrics::counter!(Metric::WalSyncs.name()).increment(1);
            metrics::histogram!(Metric::WalSyncSeconds.name()).record(took.as_secs_f64());
        }
        Ok(())
    }

    /// Gives the open segment up: everything that is not synced is void.
    fn poison(&self, state: &mut State, e: &io::Error) {
        let Some(open) = state.open.take() else { return };
        let void = Void {
            first: state.synced + 1,
            last: state.next_lsn - 1,
            segment: open.sealing.header.number,
            cause: e.kind(),
            told: false,
        };
        tracing::error!(
            segment = void.segment, first = void.first, last = void.last, error = %e,
            "a log segment could not be written; its unsynced records were refused and the log goes on in a new segment"
        );
        // Failures in a row with nothing synced between them are one range, so the list grows
        // only with every success between two failures.
        match state.void.last_mut() {
            Some(before) if before.first == void.first => *before = void,
            _ => state.void.push(void),
        }
    }

    /// Opens a new segment. The caller has seen that nobody is busy and that no segment is open,
    /// so everything below the next number is synced or void.
    fn new_segment<'a>(&'a self, mut state: Guard<'a>) -> Result<Guard<'a>, WalError> {
        let number = state.next_number;
        // A number is used for one attempt, so that no key is ever used for two.
        state.next_number += 1;
        let header = SegmentHeader {
            number,
            first_lsn: state.next_lsn,
            continues_after: state.synced,
            carried_through: state.next_lsn - 1,
            incarnation: self.incarnation,
            salt: self.salt(number),
            allocated: self.options.segment_bytes,
        };
        state.busy = true;
        drop(state);
        let made = segment::create(self.disk.as_ref(), &self.dir, &header, &[]);
        let mut state = self.lock();
        state.busy = false;
        self.changed.notify_all();
        let (file, entry) = made?;
        let mut entries = state.entries.as_ref().clone();
        entries.push(entry);
        state.entries = Arc::new(entries);
        state.open = Some(OpenSegment {
            file,
            sealing: Sealing::new(header),
            written: PAGE_BYTES,
            buffer: Vec::new(),
            last_lsn: 0,
        });
        Ok(state)
    }

    fn salt(&self, number: u64) -> [u8; 32] {
        *self.salts.derive(&number.to_le_bytes(), &[b"millrace log segment salt v1"]).expose()
    }

    fn lock(&self) -> Guard<'_> {
        // A panic under the lock leaves the state as it was before the step that panicked: every
        // step sets it in one go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: Guard<'a>) -> Guard<'a> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The number that the next append gets.
    pub fn next_lsn(&self) -> u64 {
        self.lock().next_lsn
    }

    /// The last durable number; 0 if none.
    pub fn synced_lsn(&self) -> u64 {
        self.lock().synced
    }

    /// The lowest number that may still be read.
    pub fn first_lsn(&self) -> u64 {
        let state = self.lock();
        state.entries.first().map_or(state.next_lsn, |e| e.header.continues_after + 1)
    }

    /// The largest payload that one frame takes.
    pub fn payload_max(&self) -> usize {
        let room = self.options.segment_bytes - PAGE_BYTES - (FRAME_HEADER_BYTES + TAG) as u64;
        FRAME_PAYLOAD_MAX.min(room as usize)
    }

    /// Bytes of all segment files, allocated space included.
    pub fn bytes_on_disk(&self) -> u64 {
        self.entries().iter().map(|e| e.len).sum()
    }

    /// A place from which durable frames are read while the log is written.
    pub fn cursor(&self, from_lsn: u64) -> LogCursor {
        LogCursor(LogReader::new(
            Arc::clone(&self.disk),
            Arc::clone(&self.keys),
            self.options.on_damage,
            from_lsn,
        ))
    }

    /// What comes next at the cursor; `None` when it has read everything that is durable now.
    pub fn read_next(&self, cursor: &mut LogCursor) -> Result<Option<Scanned>, WalError> {
        let (entries, synced) = {
            let state = self.lock();
            (Arc::clone(&state.entries), state.synced)
        };
        cursor.0.next(&entries, synced)
    }

    pub(crate) fn entries(&self) -> Arc<Vec<Entry>> {
        Arc::clone(&self.lock().entries)
    }

    /// Takes the oldest `count` segments out of the table.
    pub(crate) fn forget_first(&self, count: usize) {
        let mut state = self.lock();
        state.entries = Arc::new(state.entries.iter().skip(count).cloned().collect());
    }

    /// The latest numbers that a failed sync made void.
    #[cfg(test)]
    pub(crate) fn latest_void(&self) -> Option<(u64, u64)> {
        self.lock().void.last().map(|v| (v.first, v.last))
    }

    pub(crate) fn trimming(&self) -> MutexGuard<'_, ()> {
        self.trim.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
}
