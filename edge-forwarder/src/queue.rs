//! The durable queue: the wal crate, with rows numbered per stream.
//!
//! Frame payload (sealed by the log under the queue key; little endian):
//! ```text
//! u8  version = 1
//! u8  length + stream name
//! u64 epoch, u64 number of the first row
//! u16 length + source position (opaque to the queue; empty if none)
//! u8  length + database
//! batch (protocol frame.rs) to the end
//! ```
//! Beside the log, `state` (a sealed object under the queue key) holds the epoch, the acknowledged floor of each stream and the
//! last position of each source, replaced durably.
//! Owns: numbering, the floor, the order of deletion. Never: uses a number twice in an epoch;
//! trims before the floor is durable; gives the uplink a frame that is not synced.
//! Invariants: E9 a frame that was committed is delivered, once; the epoch lives with the queue,
//! so that a lost queue starts a new one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::{
    key::TenantKeySource,
    sealed_file::{open_object, seal_object},
};
use millrace_platform::{
    disk::{Disk, read_file},
    durable,
    entropy::{Entropy, random_u64},
};
use millrace_protocol::{
    batch::TableBatch,
    frame,
    ids::{DeviceId, StreamId},
};
use millrace_wal::{
    KeyRef, LogCursor, OnDamage, Options, Scanned, TenantSegmentKeys, Wal, WalError,
};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;
const STATE_OBJECT: [u8; 16] = *b"edge-queue-state";
/// A segment: whole segments are deleted, so it bounds what acknowledged rows still occupy.
const SEGMENT_BYTES: u64 = 8 << 20;

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
}

/// Rows on their way in.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The stream.
    pub stream: StreamId,
    /// The database.
    pub database: String,
    /// The rows, of one table.
    pub batch: TableBatch,
    /// Where the source is once these rows are durable.
    pub position: Option<Vec<u8>>,
}

/// A durable frame on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    /// Its place in the log.
    pub lsn: u64,
    /// The stream.
    pub stream: StreamId,
    /// The life of the queue that numbered it.
    pub epoch: u64,
    /// Number of its first row.
    pub seq_lo: u64,
    /// Where the source was.
    pub position: Vec<u8>,
    /// The database.
    pub database: String,
    /// The rows.
    pub batch: TableBatch,
}

impl Queued {
    /// Number of its last row.
    pub fn seq_hi(&self) -> u64 {
        self.seq_lo + self.batch.rows() as u64 - 1
    }
}

/// What the uplink reads next.
#[derive(Debug)]
pub enum Next {
    /// A frame.
    Frame(Box<Queued>),
    /// A stretch that does not read any more; its rows are lost and must be reported.
    Lost {
        /// What is lost, for people.
        what: String,
        /// Frames that were in it.
        frames: u64,
    },
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct State {
    epoch: u64,
    /// `stream@epoch` -> last acknowledged number.
    floors: BTreeMap<String, u64>,
    /// Source -> last durable position of its source, as hex.
    positions: BTreeMap<String, String>,
}

struct Inner {
    state: State,
    /// Stream -> next number, in the current epoch.
    next: BTreeMap<String, u64>,
    rows_queued: u64,
}

/// See the module head.
pub struct Queue {
    wal: Wal,
    disk: Arc<dyn Disk>,
    key: KeyRef,
    keys: Arc<dyn TenantKeySource>,
    entropy: Arc<dyn Entropy>,
    path: PathBuf,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Streams are named `source/table`.
fn source_of(stream: &StreamId) -> &str {
    stream.as_str().split('/').next().unwrap_or_default()
}

fn floor_key(stream: &StreamId, epoch: u64) -> String {
    format!("{stream}@{epoch:016x}")
}

fn encode(row: &Incoming, epoch: u64, seq_lo: u64, out: &mut Vec<u8>) {
    let position = row.position.as_deref().unwrap_or_default();
    out.push(VERSION);
    out.push(row.stream.as_str().len() as u8);
    out.extend_from_slice(row.stream.as_str().as_bytes());
    out.extend_from_slice(&epoch.to_le_bytes());
    out.extend_from_slice(&seq_lo.to_le_bytes());
    out.extend_from_slice(&(position.len() as u16).to_le_bytes());
    out.extend_from_slice(position);
    out.push(row.database.len() as u8);
    out.extend_from_slice(row.database.as_bytes());
    frame::encode_batch(&row.batch, out);
}

fn decode(lsn: u64, bytes: &[u8]) -> Option<Queued> {
    let (version, rest) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    let (len, rest) = rest.split_first()?;
    let (stream, rest) = rest.split_at_checked(usize::from(*len))?;
    let (epoch, rest) = rest.split_first_chunk::<8>()?;
    let (seq_lo, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (position, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let (len, rest) = rest.split_first()?;
    let (database, rest) = rest.split_at_checked(usize::from(*len))?;
    let batch = frame::decode_batch(rest).ok()?;
    if batch.rows() == 0 {
        return None;
    }
    Some(Queued {
        lsn,
        stream: std::str::from_utf8(stream).ok()?.parse().ok()?,
        epoch: u64::from_le_bytes(*epoch),
        seq_lo: u64::from_le_bytes(*seq_lo),
        position: position.to_vec(),
        database: String::from_utf8(database.to_vec()).ok()?,
        batch,
    })
}

impl Queue {
    /// Opens the queue in `dir`, or makes it with a new epoch.
    pub fn open(
        disk: Arc<dyn Disk>,
        entropy: Arc<dyn Entropy>,
        keys: Arc<dyn TenantKeySource>,
        device: DeviceId,
        dir: &Path,
    ) -> Result<Self, QueueError> {
        let path = dir.join("state");
        let fail = |detail: String| QueueError::State { path: path.clone(), detail };
        disk.create_dir_all(dir).map_err(|e| fail(e.to_string()))?;
        let known = disk.exists(&path).map_err(|e| fail(e.to_string()))?;
        let mut state = State { epoch: random_u64(entropy.as_ref()), ..State::default() };
        if known {
            let bytes =
                read_file(disk.as_ref(), &path, 64 << 20).map_err(|e| fail(e.to_string()))?;
            let opened = open_object(keys.as_ref(), &device.0, STATE_OBJECT, &bytes)
                .map_err(|e| e.to_string())
                .and_then(|json| serde_json::from_slice(&json).map_err(|e| e.to_string()));
            match opened {
                Ok(stored) => state = stored,
                // Numbers may have been used: only a new epoch is safe.
                Err(error) => {
                    tracing::error!(%error, "the queue's state does not read; a new epoch begins")
                }
            }
        }
        let options = Options {
            segment_bytes: SEGMENT_BYTES,
            on_damage: OnDamage::Quarantine,
            ..Options::default()
        };
        let state_keys = Arc::clone(&keys);
        let segment_keys = Arc::new(TenantSegmentKeys::new(keys));
        let (wal, recovery) =
            Wal::open(Arc::clone(&disk), dir, segment_keys, entropy.as_ref(), options)?;
        let mut next: BTreeMap<String, u64> = BTreeMap::new();
        for (key, floor) in &state.floors {
            if let Some((stream, epoch)) = key.rsplit_once('@')
                && u64::from_str_radix(epoch, 16).ok() == Some(state.epoch)
            {
                next.insert(stream.to_owned(), floor + 1);
            }
        }
        let mut rows_queued = 0;
        recovery.scan(1, &mut |scanned| -> Result<(), QueueError> {
            if let Scanned::Frame(frame) = scanned
                && let Some(queued) = decode(frame.lsn, &frame.payload)
            {
                if !queued.position.is_empty() {
                    let position = hex::encode(&queued.position);
                    state.positions.insert(source_of(&queued.stream).to_owned(), position);
                }
                if queued.epoch == state.epoch {
                    let next = next.entry(queued.stream.to_string()).or_insert(1);
                    *next = (*next).max(queued.seq_hi() + 1);
                }
                rows_queued += queued.batch.rows() as u64;
            }
            Ok(())
        })?;
        let key = KeyRef { owner: device.0, version: 1 };
        let inner = Mutex::new(Inner { state, next, rows_queued });
        let queue = Self { wal, disk, key, keys: state_keys, entropy, path, inner };
        // Before the first number is used, the epoch must be durable.
        queue.save(&queue.lock().state)?;
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn save(&self, state: &State) -> Result<(), QueueError> {
        let fail = |detail: String| QueueError::State { path: self.path.clone(), detail };
        let json = serde_json::to_vec(state).map_err(|e| fail(e.to_string()))?;
        let keys = self.keys.current(&self.key.owner).map_err(|e| fail(e.to_string()))?;
        let sealed = seal_object(&keys, self.entropy.as_ref(), STATE_OBJECT, &json);
        durable::replace(self.disk.as_ref(), &self.path, &sealed).map_err(|e| fail(e.to_string()))
    }

    /// Makes a group of batches durable under one sync. All or nothing is promised only on `Ok`:
    /// after an error the caller sends the group again, and its numbers are new.
    pub fn append(&self, group: &[Incoming]) -> Result<(), QueueError> {
        let mut inner = self.lock();
        let epoch = inner.state.epoch;
        let mut payload = Vec::new();
        let mut ends: BTreeMap<String, u64> = BTreeMap::new();
        let (mut first, mut last) = (None, None);
        for incoming in group.iter().filter(|i| i.batch.rows() > 0) {
            let name = incoming.stream.to_string();
            let seq_lo = *ends
                .entry(name.clone())
                .or_insert_with(|| inner.next.get(&name).copied().unwrap_or(1));
            payload.clear();
            encode(incoming, epoch, seq_lo, &mut payload);
            let lsn = match self.wal.append(self.key, &payload) {
                Ok(lsn) => lsn,
                Err(e) => {
                    // Frames of this group may yet become durable, so their numbers are used up.
                    self.abandon(&mut inner);
                    return Err(e.into());
                }
            };
            first.get_or_insert(lsn);
            last = Some(lsn);
            ends.insert(name, seq_lo + incoming.batch.rows() as u64);
        }
        let (Some(first), Some(last)) = (first, last) else { return Ok(()) };
        if let Err(e) = self.wal.commit_group(first, last) {
            self.abandon(&mut inner);
            return Err(e.into());
        }
        for (name, end) in ends {
            inner.next.insert(name, end);
        }
        for incoming in group {
            inner.rows_queued += incoming.batch.rows() as u64;
            if let Some(position) = &incoming.position {
                let position = hex::encode(position);
                inner.state.positions.insert(source_of(&incoming.stream).to_owned(), position);
            }
        }
        Ok(())
    }

    /// After a failed append it is not known which frames are durable: a number could be used
    /// twice. A new epoch makes that impossible; equal rows collapse at the server.
    fn abandon(&self, inner: &mut Inner) {
        inner.state.epoch =
            inner.state.epoch.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        inner.next.clear();
        if let Err(error) = self.save(&inner.state) {
            tracing::error!(%error, "the queue's new epoch could not be stored yet");
        }
    }

    /// The last durable position of a source.
    pub fn position(&self, source: &str) -> Option<Vec<u8>> {
        hex::decode(self.lock().state.positions.get(source)?).ok()
    }

    /// The acknowledged floor of a stream in an epoch.
    pub fn floor(&self, stream: &StreamId, epoch: u64) -> u64 {
        self.lock().state.floors.get(&floor_key(stream, epoch)).copied().unwrap_or(0)
    }

    /// Rows acknowledged in all epochs, per source.
    pub fn acknowledged(&self) -> BTreeMap<String, u64> {
        let mut out = BTreeMap::new();
        for (key, floor) in &self.lock().state.floors {
            if let Some((stream, _)) = key.rsplit_once('@') {
                let source = stream.split('/').next().unwrap_or_default();
                *out.entry(source.to_owned()).or_insert(0) += floor;
            }
        }
        out
    }

    /// Notes floors, durably, then gives up whole segments below `lsn`.
    pub fn acknowledge(&self, floors: &[(StreamId, u64, u64)], lsn: u64) -> Result<(), QueueError> {
        {
            let mut inner = self.lock();
            for (stream, epoch, hi) in floors {
                let floor = inner.state.floors.entry(floor_key(stream, *epoch)).or_insert(0);
                *floor = (*floor).max(*hi);
            }
            // Floor before deletion: a crash in between only sends rows again.
            self.save(&inner.state)?;
        }
        self.wal.trim_below(lsn)?;
        Ok(())
    }

    /// A reader of durable frames from `lsn` on.
    pub fn cursor(&self, lsn: u64) -> LogCursor {
        self.wal.cursor(lsn.max(1))
    }

    /// The first frame that may still be there.
    pub fn first_lsn(&self) -> u64 {
        self.wal.first_lsn()
    }

    /// The next durable frame, if there is one.
    pub fn read(&self, cursor: &mut LogCursor) -> Result<Option<Next>, QueueError> {
        let Some(scanned) = self.wal.read_next(cursor)? else { return Ok(None) };
        Ok(Some(match scanned {
            Scanned::Frame(frame) => match decode(frame.lsn, &frame.payload) {
                Some(queued) => Next::Frame(Box::new(queued)),
                None => Next::Lost {
                    what: format!("frame {} of another version", frame.lsn),
                    frames: 1,
                },
            },
            Scanned::KeyGone { lsn, .. } => {
                Next::Lost { what: format!("frame {lsn}, whose key is gone"), frames: 1 }
            }
            Scanned::Damage(damage) => Next::Lost { what: format!("{damage:?}"), frames: 1 },
        }))
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.wal.bytes_on_disk()
    }

    /// Rows of the current epoch that are durable here and not acknowledged.
    pub fn rows_pending(&self) -> u64 {
        let inner = self.lock();
        let epoch = inner.state.epoch;
        let pending = inner.next.iter().map(|(stream, next)| {
            let key = format!("{stream}@{epoch:016x}");
            (next - 1).saturating_sub(inner.state.floors.get(&key).copied().unwrap_or(0))
        });
        pending.sum()
    }

    /// Rows ever queued by this start and found at its beginning.
    pub fn rows_queued(&self) -> u64 {
        self.lock().rows_queued
    }
}
