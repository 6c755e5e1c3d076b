//! What the queue knows beside its frames: the sealed files `state-0` and `state-1`.
//!
//! Owns: their members, their seal, their replacement in turns, and the reserve that keeps room for
//! them on a full disk. Never: leaves a half-written state under a final name; holds a row.
//! Crash order: one file is replaced in one step while the other stays, so a start finds the state
//! before or after, and after damage to one file the state before.
//! The members are listed in `docs/formats/queue.md`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use millrace_crypto::{
    key::TenantKeySource,
    sealed_file::{open_object, seal_object},
};
use millrace_platform::{
    disk::{Disk, OpenMode, read_file},
    durable,
    entropy::Entropy,
};
use millrace_protocol::ids::StreamId;
use serde::{Deserialize, Serialize};

use crate::{
    gap::Gap,
    planted::{Bug, planted},
};

use super::{QueueError, aside::Aside};

pub(super) const VERSION: u32 = 1;
const OBJECT: [u8; 16] = *b"edge-queue-state";
/// A state over this is not read: a thousand times what a busy device needs.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// From some number on, a stream's rows are sent under another epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fork {
    /// The last number that is sent under the epoch before.
    pub(crate) offset: u64,
    /// The epoch from then on; its numbers are the queue's less `offset`.
    pub(crate) epoch: u64,
    /// The number up to which the server had the epoch before.
    pub(crate) known: u64,
}

/// One stream in one epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lane {
    /// The last number that was given to a row.
    pub(crate) end: u64,
    /// The last number that the server acknowledged.
    pub(crate) floor: u64,
    /// The last frame with rows of it.
    pub(crate) last_lsn: u64,
    /// Oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) forks: Vec<Fork>,
    /// Numbers of rows that were refused by the disk, so that their source kept them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) void: Vec<(u64, u64)>,
}

/// Everything in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) version: u32,
    /// Counts how often the state was stored; the higher of two files counts.
    pub(crate) generation: u64,
    /// The epoch of new rows.
    pub(crate) epoch: u64,
    /// Frames up to this log number are reflected here.
    pub(crate) through: u64,
    /// Frames below this log number are settled: acknowledged or recorded as lost.
    pub(crate) settled: u64,
    /// Frames from this log number on are live, those below are backfill.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) split: u64,
    /// `stream@epoch`, the epoch as 16 hex digits.
    pub(crate) lanes: BTreeMap<String, Lane>,
    /// Source -> its last durable position, as hex.
    pub(crate) positions: BTreeMap<String, String>,
    /// Source -> rows acknowledged, ever.
    pub(crate) acked: BTreeMap<String, u64>,
    /// Gaps that are not yet rows of the queue.
    pub(crate) gaps: Vec<Gap>,
    /// The highest id that a gap was given.
    pub(crate) gap_id: u64,
    /// Stretches of log numbers that were recorded as lost.
    pub(crate) lost: Vec<(u64, u64)>,
    /// Rows that the server refused and that are kept in files of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) aside: Vec<Aside>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl State {
    pub(crate) fn key(stream: &StreamId, epoch: u64) -> String {
        format!("{stream}@{epoch:016x}")
    }

    pub(crate) fn lane(&self, stream: &StreamId, epoch: u64) -> Option<&Lane> {
        self.lanes.get(&Self::key(stream, epoch))
    }

    pub(crate) fn lane_mut(&mut self, stream: &StreamId, epoch: u64) -> &mut Lane {
        self.lanes.entry(Self::key(stream, epoch)).or_default()
    }

    /// Forgets lanes of older epochs and losses of which the log holds nothing any more.
    pub(super) fn prune(&mut self, first_lsn: u64) {
        let current = format!("@{:016x}", self.epoch);
        let settled = self.settled;
        self.lanes.retain(|key, lane| {
            key.ends_with(&current) || lane.last_lsn >= first_lsn || lane.last_lsn >= settled
        });
        self.lost.retain(|(_, last)| *last >= first_lsn);
    }
}

/// Where the state lies.
pub(super) struct StateFile {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) entropy: Arc<dyn Entropy>,
    pub(super) keys: Arc<dyn TenantKeySource>,
    pub(super) owner: [u8; 16],
    pub(super) dir: PathBuf,
    reserve_bytes: u64,
    reserved: AtomicBool,
}

impl StateFile {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        entropy: Arc<dyn Entropy>,
        keys: Arc<dyn TenantKeySource>,
        owner: [u8; 16],
        dir: &Path,
        reserve_bytes: u64,
    ) -> Self {
        Self {
            disk,
            entropy,
            keys,
            owner,
            dir: dir.to_path_buf(),
            reserve_bytes,
            reserved: AtomicBool::new(false),
        }
    }

    fn path(&self, generation: u64) -> PathBuf {
        self.dir.join(format!("state-{}", generation % 2))
    }

    pub(super) fn fail(&self, detail: impl std::fmt::Display) -> QueueError {
        QueueError::State { path: self.path(0), detail: detail.to_string() }
    }

    /// One file: `None` if there is none, `Some(Err)` if what is there does not read.
    fn load_one(&self, path: &Path) -> Result<Option<Result<State, String>>, QueueError> {
        if !self.disk.exists(path).map_err(|e| self.fail(e))? {
            return Ok(None);
        }
        let read = || read_file(self.disk.as_ref(), path, STATE_BYTES_MAX);
        // Twice, because a loose cable is no loss; a sector that never reads is one, and must not
        // keep the device from working.
        let bytes = match read().or_else(|_| read()) {
            Ok(bytes) => bytes,
            Err(e) => return Ok(Some(Err(e.to_string()))),
        };
        let opened = open_object(self.keys.as_ref(), &self.owner, OBJECT, &bytes)
            .map_err(|e| e.to_string())
            .and_then(|json| serde_json::from_slice::<State>(&json).map_err(|e| e.to_string()))
            .and_then(|state| match state.version {
                VERSION => Ok(state),
                other => Err(format!("version {other} is not known")),
            });
        Ok(Some(opened))
    }

    /// The newest state that reads, and what is wrong with a file that does not.
    pub(super) fn load(&self) -> Result<(Option<State>, Option<String>), QueueError> {
        let (mut newest, mut wrong): (Option<State>, _) = (None, None);
        for turn in 0..2 {
            let path = self.path(turn);
            match self.load_one(&path)? {
                Some(Ok(state)) => {
                    newest = newest.into_iter().chain([state]).max_by_key(|s| s.generation)
                }
                Some(Err(error)) => wrong = Some(format!("{}: {error}", path.display())),
                None => {}
            }
        }
        Ok((newest, wrong))
    }

    /// The bytes of the file.
    pub(super) fn seal(&self, state: &State) -> Result<Vec<u8>, QueueError> {
        let json = serde_json::to_vec(state).map_err(|e| self.fail(e))?;
        let keys = self.keys.current(&self.owner).map_err(|e| self.fail(e))?;
        Ok(seal_object(&keys, self.entropy.as_ref(), OBJECT, &json))
    }

    /// Replaces the state durably; on a full disk in the room of the reserve.
    pub(super) fn save(&self, state: &State) -> Result<(), QueueError> {
        let sealed = self.seal(state)?;
        let path = self.path(state.generation);
        let put = || {
            if planted(Bug::StateNotSynced) {
                let temp = self.dir.join("state.tmp");
                let file = self.disk.create_new(&temp)?;
                file.write_at(&sealed, 0)?;
                return durable::publish(self.disk.as_ref(), &temp, &path);
            }
            durable::replace(self.disk.as_ref(), &path, &sealed)
        };
        match put() {
            Err(e) if is_full(&e) && self.give_reserve() => put(),
            other => other,
        }
        .map_err(|e| self.fail(e))
    }

    fn reserve(&self) -> PathBuf {
        self.dir.join("reserve")
    }

    fn give_reserve(&self) -> bool {
        self.reserved.store(false, Ordering::Relaxed);
        durable::remove(self.disk.as_ref(), &self.reserve()).is_ok()
    }

    /// Sets room aside, if there is none yet; `false` if the disk has no room for it.
    pub(super) fn keep_reserve(&self) -> bool {
        if self.reserved.load(Ordering::Relaxed) {
            return true;
        }
        let path = self.reserve();
        let there = self.disk.open(&path, OpenMode::Read).and_then(|f| f.len());
        if there.is_ok_and(|len| len == self.reserve_bytes) {
            self.reserved.store(true, Ordering::Relaxed);
            return true;
        }
        let made = durable::remove(self.disk.as_ref(), &path)
            .and_then(|()| self.disk.create_new(&path))
            .and_then(|file| file.allocate(self.reserve_bytes));
        match &made {
            Ok(()) => self.reserved.store(true, Ordering::Relaxed),
            Err(error) => {
                tracing::debug!(%error, "no room for the queue's reserve");
                // Half a reserve would be taken for none, but its bytes are of use.
                drop(durable::remove(self.disk.as_ref(), &path));
            }
        }
        made.is_ok()
    }
}

pub(super) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
