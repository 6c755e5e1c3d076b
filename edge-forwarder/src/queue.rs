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

mod append;
mod aside;
mod forks;
mod ledger;
mod opening;
mod payload;
mod reading;
mod state;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::key::TenantKeySource;
use millrace_platform::{clock::Clock, disk::Disk, entropy::Entropy};
use millrace_protocol::ids::StreamId;
use millrace_wal::{Wal, WalError};

use crate::gap;

pub use aside::{Aside, list as list_aside};
pub use payload::{Group, Incoming, NoRoom, Part, Queued};
use state::{State, StateFile};

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
impl Inner {
    /// Takes a durable group into account.
    fn stored(&mut self, lsn: u64, source: &str, position: Option<&[u8]>) {
        self.last_lsn = self.last_lsn.max(lsn);
        let Some(position) = position else { return };
        if source == gap::STREAM {
            let through = position.try_into().map_or(0, u64::from_le_bytes);
            self.state.gaps.retain(|g| g.id > through);
            self.state.gap_id = self.state.gap_id.max(through);
        } else if source == aside::SOURCE {
            self.put_back(position);
        } else {
            self.state.positions.insert(source.to_owned(), hex::encode(position));
        }
    }

    fn numbered(&mut self, stream: &StreamId, epoch: u64, hi: u64, lsn: u64) {
        let lane = self.state.lane_mut(stream, epoch);
        lane.end = lane.end.max(hi);
        lane.last_lsn = lane.last_lsn.max(lsn);
    }
}

impl Queue {
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
}
