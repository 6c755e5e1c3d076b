//! The durable queue: the wal crate, with rows numbered per stream.
//!
//! Owns: numbering, epochs and forks, the ledger of gaps, the order of deletion. The frame's bytes
//! are `payload`, the file beside the log is `state`; `docs/formats/queue.md` describes both.
//! Never: uses a number twice in an epoch; trims before the state says so durably; hands out a
//! frame that is not synced; wipes, or refuses to start over, what it cannot read.
//! Invariants: E9 a group that was stored is delivered, once, or lies inside a recorded gap;
//! E8 a gap is in the state or in the log from before its evidence goes.
//! Crash order of a group: frame, sync; then memory. Of an ack: memory; state, then segments.
//! Of a gap: state, then its row in the log, then the state without it.

mod payload;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::key::TenantKeySource;
use millrace_platform::{
    clock::Clock,
    disk::Disk,
    durable,
    entropy::{Entropy, random_u64},
};
use millrace_protocol::ids::{DeviceId, StreamId};
use millrace_wal::{
    KeyRef, LogCursor, OnDamage, Options, Recovery, Scanned, SegmentKeys, TenantSegmentKeys, Wal,
    WalError,
};

use crate::{
    gap::{self, Cause, Gap},
    planted::{Bug, planted},
};

pub use payload::{Group, Incoming, NoRoom, Part, Queued};
use state::{Fork, State, StateFile};

/// Streams that are numbered at a time; more come from a source whose table names never repeat.
const STREAMS_MAX: usize = 16_384;
/// Gaps that wait to become rows; beyond, they are counted together.
const GAPS_MAX: usize = 1_024;
/// Gaps that become rows at once.
const GAPS_PER_GROUP: usize = 256;

/// Why the queue cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The log.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The state file.
    #[error("{path}: {detail}")]
    State {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// The room that is kept for the state is in use; rows must not take it.
    #[error(
        "{0}: the disk is full; free space, or wait for the server to take rows: it goes on by itself"
    )]
    Full(PathBuf),
    /// A group that can never be stored as it is.
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
}

impl QueueError {
    /// Whether smaller groups may pass.
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::NoRoom(_) | Self::Log(WalError::TooLarge { .. }))
    }

    /// Whether the disk is full.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Log(e) => e.is_disk_full(),
            Self::Full(_) => true,
            Self::State { .. } | Self::NoRoom(_) => false,
        }
    }
}

/// Sizes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of a segment: whole segments are deleted, so it bounds what acknowledged rows still
    /// occupy.
    pub segment: u64,
    /// Bytes kept for the state on a full disk.
    pub reserve: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { segment: 8 << 20, reserve: 1 << 20 }
    }
}

/// What the queue stands on.
#[derive(Clone)]
pub struct Ground {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// For epochs and seals.
    pub entropy: Arc<dyn Entropy>,
    /// For the times of gaps.
    pub clock: Arc<dyn Clock>,
    /// The queue key.
    pub keys: Arc<dyn TenantKeySource>,
}

/// What is read next.
#[derive(Debug)]
pub enum Next {
    /// A group.
    Frame(Box<Queued>),
    /// A stretch that does not read any more.
    Lost {
        /// First log number.
        first: u64,
        /// Last log number.
        last: u64,
        /// For people.
        what: String,
    },
}

/// Under which epoch a row is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// The epoch that the server sees.
    pub epoch: u64,
    /// What is taken off the queue's number.
    pub offset: u64,
    /// The number up to which the server should have this section; rows behind are in the next.
    pub end: u64,
}

struct Inner {
    state: State,
    /// The last durable frame that the state reflects.
    last_lsn: u64,
    /// What the stored state reflects; the one before may reflect less.
    stored: u64,
    /// Bytes queued since the state was stored.
    unsaved: u64,
    /// Lane -> last number that the server may know from this device.
    sendable: BTreeMap<String, u64>,
    rows_queued: u64,
    /// Gaps up to this id are on their way into the log and must not change.
    gaps_sealed: u64,
}

/// See the module head.
pub struct Queue {
    wal: Wal,
    file: StateFile,
    clock: Arc<dyn Clock>,
    sizes: Sizes,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("sizes", &self.sizes).finish_non_exhaustive()
    }
}

/// A stream's name begins with its source: `source/table`.
fn source_of(stream: &str) -> &str {
    stream.split('/').next().unwrap_or_default()
}

/// Opens the log. A last segment whose frames are whole but do not open (sealed under another key)
/// is put aside, under a name that the log does not know; says which were.
fn open_log(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    keys: &Arc<dyn SegmentKeys>,
    entropy: &dyn Entropy,
    options: &Options,
) -> Result<(Wal, Recovery, Vec<String>), QueueError> {
    let mut aside = Vec::new();
    loop {
        let opened = Wal::open(Arc::clone(disk), dir, Arc::clone(keys), entropy, options.clone());
        let damage = match opened {
            Ok((wal, recovery)) => return Ok((wal, recovery, aside)),
            Err(WalError::Damaged(damage)) => damage,
            Err(e) => return Err(e.into()),
        };
        let name = format!("{:020}.wal", damage.segment);
        let (from, to) = (dir.join(&name), dir.join(format!("{name}.unreadable")));
        durable::publish(disk.as_ref(), &from, &to)
            .map_err(|e| QueueError::State { path: from, detail: e.to_string() })?;
        let what = format!("{damage}; the segment is kept as {name}.unreadable");
        tracing::error!(what, "a segment of the queue does not open");
        aside.push(what);
    }
}

/// Where a group was put: log number, and the last number of each of its streams.
struct Placed {
    lsn: u64,
    ends: Vec<(StreamId, u64, u64)>,
    bytes: u64,
}

impl Inner {
    /// Takes a durable group into account.
    fn stored(&mut self, lsn: u64, source: &str, position: Option<&[u8]>) {
        self.last_lsn = self.last_lsn.max(lsn);
        let Some(position) = position else { return };
        if source == gap::STREAM {
            let through = position.try_into().map_or(0, u64::from_le_bytes);
            self.state.gaps.retain(|g| g.id > through);
            self.state.gap_id = self.state.gap_id.max(through);
        } else {
            self.state.positions.insert(source.to_owned(), hex::encode(position));
        }
    }

    /// A log that ends before what the state reflects has lost its end: log numbers start again
    /// behind what is left. `true` if so.
    fn fit(&mut self, recovery: &Recovery, now_ns: i64) -> bool {
        let (last, through) = (recovery.last_lsn(), self.state.through);
        if last >= through {
            return false;
        }
        let first = self.state.settled.max(last + 1);
        if first <= through {
            let what = "the log ends before what the state says";
            let gap = Gap::new("queue", Cause::Quarantine, now_ns, 0, what);
            self.note(gap.numbers(0, first, through));
        }
        self.state.settled = self.state.settled.min(recovery.next_lsn());
        self.state.through = last;
        self.last_lsn = last;
        true
    }

    fn numbered(&mut self, stream: &StreamId, epoch: u64, hi: u64, lsn: u64) {
        let lane = self.state.lane_mut(stream, epoch);
        lane.end = lane.end.max(hi);
        lane.last_lsn = lane.last_lsn.max(lsn);
    }

    fn note(&mut self, mut gap: Gap) {
        if planted(Bug::GapDropped) {
            return;
        }
        let sealed = self.gaps_sealed;
        let mut open = self.state.gaps.iter_mut().filter(|g| g.id > sealed);
        if open.any(|g| g.absorb(&gap)) {
            return;
        }
        if self.state.gaps.len() >= GAPS_MAX
            && let Some(last) = self.state.gaps.last_mut()
            && last.id > sealed
        {
            last.stream = "many".to_owned();
            last.rows = last.rows.saturating_add(gap.rows);
            last.to_ns = last.to_ns.max(gap.to_ns);
            (last.epoch, last.first, last.last) = (0, 0, 0);
            return;
        }
        self.state.gap_id += 1;
        gap.id = self.state.gap_id;
        self.state.gaps.push(gap);
    }
}

impl Queue {
    /// Opens the queue in `dir`, or makes it with a new epoch.
    pub fn open(
        ground: &Ground,
        device: DeviceId,
        dir: &Path,
        sizes: Sizes,
    ) -> Result<Self, QueueError> {
        let Ground { disk, entropy, clock, keys } = ground.clone();
        let file = StateFile::new(
            Arc::clone(&disk),
            Arc::clone(&entropy),
            Arc::clone(&keys),
            device.0,
            dir,
            sizes.reserve,
        );
        disk.create_dir_all(dir)
            .map_err(|e| QueueError::State { path: dir.to_path_buf(), detail: e.to_string() })?;
        let options = Options {
            segment_bytes: sizes.segment,
            on_damage: OnDamage::Quarantine,
            clock: Arc::clone(&clock),
            ..Options::default()
        };
        let loaded = file.load()?;
        let segment_keys: Arc<dyn SegmentKeys> = Arc::new(TenantSegmentKeys::new(keys));
        let (wal, recovery, aside) =
            open_log(&disk, dir, &segment_keys, entropy.as_ref(), &options)?;
        let fresh = || State {
            version: state::VERSION,
            epoch: if planted(Bug::EpochKept) { 7 } else { random_u64(entropy.as_ref()) },
            settled: recovery.first_lsn(),
            // Ids of gaps that a lost state gave are not given again.
            gap_id: random_u64(entropy.as_ref()) >> 8,
            through: recovery.first_lsn().saturating_sub(1),
            ..State::default()
        };
        let (state, lost) = match loaded {
            (Some(state), wrong) => (state, wrong),
            (None, Some(wrong)) => (fresh(), Some(wrong)),
            // Frames without a state: somebody removed it.
            (None, None) if recovery.last_lsn() > 0 => {
                (fresh(), Some("the queue has no state".to_owned()))
            }
            (None, None) => (fresh(), None),
        };
        let mut inner = Inner {
            last_lsn: state.through,
            stored: state.through,
            state,
            unsaved: 0,
            sendable: BTreeMap::new(),
            rows_queued: 0,
            gaps_sealed: 0,
        };
        if let Some(error) = &lost {
            tracing::error!(%error, "the queue's state does not read; a new epoch begins");
            let now = clock.now_ns();
            inner.note(Gap::new("queue", Cause::StateLost, now, 0, error));
        }
        for what in &aside {
            inner.note(Gap::new("queue", Cause::Quarantine, clock.now_ns(), 0, what));
        }
        let short = inner.fit(&recovery, clock.now_ns());
        let damaged = short | Self::catch_up(&mut inner, &recovery)?;
        if (damaged || lost.is_some() || !aside.is_empty()) && !planted(Bug::EpochKept) {
            // Numbers behind the damage may have been used: only a new epoch is safe.
            inner.state.epoch = random_u64(entropy.as_ref());
        }
        inner.sendable = inner.state.lanes.iter().map(|(k, l)| (k.clone(), l.end)).collect();
        let queue = Self { wal, file, clock, sizes, inner: Mutex::new(inner) };
        queue.file.keep_reserve();
        // Frames say their epoch themselves, so a disk that is full now is no reason not to start:
        // delivery is what makes room.
        if let Err(error) = queue.save(&mut queue.lock()) {
            tracing::warn!(%error, "the queue's state could not be stored yet");
        }
        Ok(queue)
    }

    /// Takes the frames behind the stored state into account; `true` if some do not read.
    fn catch_up(inner: &mut Inner, recovery: &Recovery) -> Result<bool, QueueError> {
        let mut damaged = false;
        let from = inner.state.through + 1;
        recovery.scan(from, &mut |scanned| -> Result<(), QueueError> {
            let queued = match scanned {
                Scanned::Frame(frame) => payload::decode(frame.lsn, &frame.payload),
                Scanned::KeyGone { .. } | Scanned::Damage(_) => None,
            };
            let Some(queued) = queued else {
                damaged = true;
                return Ok(());
            };
            inner.stored(queued.lsn, &queued.source, queued.position.as_deref());
            for part in &queued.parts {
                if !planted(Bug::NumberReused) {
                    inner.numbered(&part.stream, part.epoch, part.seq_hi(), queued.lsn);
                }
                inner.rows_queued += part.batch.rows() as u64;
            }
            Ok(())
        })?;
        inner.last_lsn = inner.last_lsn.max(recovery.last_lsn());
        Ok(damaged)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, inner: &mut Inner) -> Result<(), QueueError> {
        inner.state.through = inner.last_lsn;
        inner.state.prune(self.wal.first_lsn());
        inner.state.generation += 1;
        let saved = self.file.save(&inner.state);
        if saved.is_err() {
            // The same file again, so that the one that was stored stays.
            inner.state.generation -= 1;
        } else {
            inner.stored = inner.state.through;
            inner.unsaved = 0;
        }
        saved
    }

    fn place(
        &self,
        inner: &Inner,
        group: &Group,
        ends: &mut BTreeMap<StreamId, u64>,
    ) -> Result<Placed, QueueError> {
        let epoch = inner.state.epoch;
        let mut firsts = Vec::with_capacity(group.parts.len());
        let mut placed = Vec::with_capacity(group.parts.len());
        for part in &group.parts {
            let lane = inner.state.lane(&part.stream, epoch);
            if lane.is_none() && inner.state.lanes.len() >= STREAMS_MAX {
                return Err(NoRoom("there are too many streams (tables times sources)").into());
            }
            let end = ends.get(&part.stream).copied().or(lane.map(|l| l.end)).unwrap_or(0);
            firsts.push(end + 1);
            placed.push((part.stream.clone(), end + 1, end + part.batch.rows() as u64));
        }
        let payload = payload::encode(group, epoch, &firsts)?;
        let key = KeyRef { owner: self.file.owner, version: 1 };
        let lsn = self.wal.append(key, &payload)?;
        ends.extend(placed.iter().map(|(stream, _, hi)| (stream.clone(), *hi)));
        Ok(Placed { lsn, ends: placed, bytes: payload.len() as u64 })
    }

    /// Whether this frame is durable. A failure that concerns other frames is told here first, so
    /// it is asked again.
    fn commit(&self, lsn: u64) -> Result<(), WalError> {
        for _ in 0..3 {
            match self.wal.commit_group(lsn, lsn) {
                Err(WalError::Poisoned { lsn: void, .. }) if void != lsn => {}
                Err(e) if !planted(Bug::VoidBelieved) => return Err(e),
                _ => return Ok(()),
            }
        }
        self.wal.commit_group(lsn, lsn).map(|_| ())
    }

    /// Makes groups durable under one sync, each wholly or not at all, and says for each which.
    /// A group that was not stored may be offered again: its numbers are not used.
    pub fn append(&self, groups: &[Group]) -> Vec<Result<u64, QueueError>> {
        if !self.file.keep_reserve() {
            return groups.iter().map(|_| Err(QueueError::Full(self.file.dir.clone()))).collect();
        }
        let mut inner = self.lock();
        // The first state tells a later start that this queue is not a lost one.
        if inner.state.generation == 0
            && let Err(e) = self.save(&mut inner)
        {
            let detail = e.to_string();
            let refused = |_| Err(self.file.fail(&detail));
            return groups.iter().map(refused).collect();
        }
        if planted(Bug::PositionEarly) {
            for group in groups {
                inner.stored(0, &group.source, group.position.as_deref());
            }
            drop(self.save(&mut inner));
        }
        let mut ends = BTreeMap::new();
        let placed: Vec<_> =
            groups.iter().map(|group| self.place(&inner, group, &mut ends)).collect();
        let epoch = inner.state.epoch;
        let mut void = false;
        let mut results = Vec::with_capacity(groups.len());
        for (placed, group) in placed.into_iter().zip(groups) {
            let result = placed.map(|p| (self.commit(p.lsn), p)).and_then(|(done, p)| {
                for (stream, lo, hi) in &p.ends {
                    let lsn = if done.is_ok() { p.lsn } else { 0 };
                    inner.numbered(stream, epoch, *hi, lsn);
                    if done.is_err() {
                        inner.state.lane_mut(stream, epoch).void.push((*lo, *hi));
                    }
                }
                void |= done.is_err();
                done?;
                Ok(p)
            });
            results.push(result.map(|p| {
                inner.stored(p.lsn, &group.source, group.position.as_deref());
                inner.rows_queued += group.rows();
                inner.unsaved += p.bytes;
                p.lsn
            }));
        }
        if void {
            // Numbers are used once in an epoch, and these were.
            inner.state.epoch = random_u64(self.file.entropy.as_ref());
        }
        // So that a start reads at most about a segment, however long the outage was.
        if inner.unsaved > self.sizes.segment
            && let Err(error) = self.save(&mut inner)
        {
            tracing::warn!(%error, "the queue's state could not be stored yet");
        }
        results
    }

    /// Records a gap. It is durable with the next [`Self::settle`] or [`Self::flush_gaps`].
    pub fn note(&self, gap: Gap) {
        self.lock().note(gap);
    }

    /// Records a stretch of the log that does not read, once.
    pub fn lost(&self, first: u64, last: u64, what: &str) {
        let mut inner = self.lock();
        if inner.state.lost.iter().any(|(a, b)| *a <= first && last <= *b) {
            return;
        }
        tracing::error!(first, last, what, "a stretch of the queue does not read; it is a gap");
        inner.state.lost.push((first, last));
        let gap = Gap::new("queue", Cause::Quarantine, self.clock.now_ns(), 0, what);
        inner.note(gap.numbers(0, first, last));
    }

    /// Whether gaps wait to become rows.
    #[cfg(test)]
    pub fn has_gaps(&self) -> bool {
        !self.lock().state.gaps.is_empty()
    }

    /// Turns gaps that wait into rows of the queue.
    pub fn flush_gaps(&self) -> Result<(), QueueError> {
        let gaps = {
            let mut inner = self.lock();
            // Durable before they are rows, so that a crash in between repeats their ids.
            if inner.state.gaps.is_empty() {
                return Ok(());
            }
            self.save(&mut inner)?;
            let gaps: Vec<Gap> = inner.state.gaps.iter().take(GAPS_PER_GROUP).cloned().collect();
            inner.gaps_sealed = gaps.last().map_or(0, |g| g.id);
            gaps
        };
        let Some(group) = gap::group(&gaps) else { return Ok(()) };
        self.append(&[group]).into_iter().try_for_each(|result| result.map(drop))
    }

    /// Under which epoch row `hi` of a stream is sent.
    pub fn section(&self, stream: &StreamId, epoch: u64, hi: u64) -> Section {
        let inner = self.lock();
        let mut section = Section { epoch, offset: 0, end: u64::MAX };
        let forks = inner.state.lane(stream, epoch).map(|l| l.forks.as_slice()).unwrap_or_default();
        for fork in forks {
            if fork.offset >= hi {
                section.end = fork.known;
                break;
            }
            section = Section { epoch: fork.epoch, offset: fork.offset, end: u64::MAX };
        }
        section
    }

    /// Sends rows behind `offset` under a new random epoch, durably, because `gap`.
    pub fn fork(
        &self,
        stream: &StreamId,
        epoch: u64,
        (offset, known): (u64, u64),
        gap: Option<Gap>,
    ) -> Result<(), QueueError> {
        let mut inner = self.lock();
        let fork = Fork { offset, epoch: random_u64(self.file.entropy.as_ref()), known };
        let forks = &mut inner.state.lane_mut(stream, epoch).forks;
        if forks.last().is_some_and(|last| last.offset >= offset) {
            // Numbers of an epoch only rise, so this is a broken queue; it must not loop.
            return Err(self.file.fail(format!("numbers of {stream} go back to {offset}")));
        }
        forks.push(fork);
        if let Some(gap) = gap {
            inner.note(gap);
        }
        if planted(Bug::ForkNotStored) {
            return Ok(());
        }
        let saved = self.save(&mut inner);
        if saved.is_err() {
            // Nothing was sent under it yet; the next attempt makes another.
            inner.state.lane_mut(stream, epoch).forks.pop();
        }
        saved
    }

    /// Rows of `from..=to` that their source kept, because the disk refused them.
    pub fn void_rows(&self, stream: &StreamId, epoch: u64, from: u64, to: u64) -> u64 {
        let inner = self.lock();
        let void = inner.state.lane(stream, epoch).map(|l| l.void.as_slice()).unwrap_or_default();
        void.iter().map(|(a, b)| ((*b).min(to) + 1).saturating_sub((*a).max(from))).sum()
    }

    /// The last number of a stream that the server may know from this device.
    pub fn sendable(&self, stream: &StreamId, epoch: u64) -> u64 {
        self.lock().sendable.get(&State::key(stream, epoch)).copied().unwrap_or(0)
    }

    /// Notes that rows up to `hi` are about to be sent.
    pub fn sending(&self, stream: &StreamId, epoch: u64, hi: u64) {
        let mut inner = self.lock();
        let sent = inner.sendable.entry(State::key(stream, epoch)).or_insert(0);
        *sent = (*sent).max(hi);
    }

    /// The last durable position of a source.
    pub fn position(&self, source: &str) -> Option<Vec<u8>> {
        hex::decode(self.lock().state.positions.get(source)?).ok()
    }

    /// The acknowledged floor of a stream in an epoch.
    pub fn floor(&self, stream: &StreamId, epoch: u64) -> u64 {
        self.lock().state.lane(stream, epoch).map_or(0, |l| l.floor)
    }

    /// Notes that the server has rows up to `hi`; durable with the next [`Self::settle`].
    pub fn moved(&self, stream: &StreamId, epoch: u64, hi: u64) {
        let mut inner = self.lock();
        let lane = inner.state.lane_mut(stream, epoch);
        let more = hi.saturating_sub(lane.floor);
        lane.floor = lane.floor.max(hi);
        *inner.state.acked.entry(source_of(stream.as_str()).to_owned()).or_insert(0) += more;
    }

    /// Rows acknowledged in all epochs.
    pub fn rows_acknowledged(&self) -> u64 {
        self.lock().state.acked.values().sum()
    }

    /// The same per source.
    pub fn acknowledged(&self) -> BTreeMap<String, u64> {
        self.lock().state.acked.clone()
    }

    /// Stores what moved, then gives up whole segments below `lsn`: every frame below is
    /// acknowledged or recorded as lost. `true` if the next call may give up more.
    pub fn settle(&self, lsn: u64) -> Result<bool, QueueError> {
        let allowed = {
            let mut inner = self.lock();
            // Frames go only when both files of the state reflect them: if one is damaged, the
            // other and the log still tell everything.
            let allowed = lsn.min(inner.stored + 1);
            inner.state.settled = inner.state.settled.max(lsn);
            // Before deletion: a crash in between only sends rows again.
            self.save(&mut inner)?;
            allowed
        };
        self.wal.trim_below(allowed)?;
        Ok(allowed < lsn && self.bytes() > self.sizes.segment)
    }

    /// A reader of durable frames from `lsn` on.
    pub fn cursor(&self, lsn: u64) -> LogCursor {
        self.wal.cursor(lsn.max(1))
    }

    /// The first frame that may still be there.
    pub fn first_lsn(&self) -> u64 {
        self.wal.first_lsn()
    }

    /// The first frame that is not settled.
    pub fn settled(&self) -> u64 {
        self.lock().state.settled
    }

    /// The next durable frame, if there is one.
    pub fn read(&self, cursor: &mut LogCursor) -> Result<Option<Next>, QueueError> {
        let Some(scanned) = self.wal.read_next(cursor)? else { return Ok(None) };
        Ok(Some(match scanned {
            Scanned::Frame(frame) => match payload::decode(frame.lsn, &frame.payload) {
                Some(queued) => Next::Frame(Box::new(queued)),
                None => Next::Lost {
                    first: frame.lsn,
                    last: frame.lsn,
                    what: format!("frame {} of another version", frame.lsn),
                },
            },
            Scanned::KeyGone { lsn, .. } => {
                let what = format!("frame {lsn} was sealed under a key that is not here");
                Next::Lost { first: lsn, last: lsn, what }
            }
            Scanned::Damage(damage) => Next::Lost {
                first: damage.first_lsn,
                last: damage.last_lsn.unwrap_or(damage.first_lsn).max(damage.first_lsn),
                what: damage.to_string(),
            },
        }))
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.wal.bytes_on_disk()
    }

    /// Rows that are durable here and not acknowledged, of all epochs.
    pub fn rows_pending(&self) -> u64 {
        let inner = self.lock();
        let settled = inner.state.settled;
        let pending = inner.state.lanes.values().filter(|l| l.last_lsn >= settled);
        pending.map(|l| l.end.saturating_sub(l.floor)).sum()
    }

    /// Rows queued by this start, and found at its beginning behind the stored state.
    pub fn rows_queued(&self) -> u64 {
        self.lock().rows_queued
    }
}
