//! Rows that the server refused for good: kept in sealed files until somebody sends them again.
//!
//! Owns: the files `aside-…`, their list in the state, and the way back into the queue.
//! Never: keeps a file that the state does not list; puts rows back twice.
//! Invariant: E8 delivered + gaps - retried = queued, per stream: putting rows aside is a gap of
//! cause `rejected` with their numbers, putting them back is a record of cause `retried`.
//! Crash order aside: file; then state with gap, fork and entry, in one step. Back: rows, record and
//! the entry's id as position in one group; then state without the entry; then the file. A start
//! drops entries whose group is in the log, and files without an entry.

use std::path::{Path, PathBuf};

use millrace_crypto::sealed_file::{open_object, seal_object};
use millrace_platform::{
    disk::{Disk, read_file},
    durable,
    entropy::random_u64,
};
use millrace_protocol::{
    batch::{Presence, TableBatch},
    ids::DeviceId,
    value::{FieldType, FieldValues},
};
use serde::{Deserialize, Serialize};

use super::{
    Ground, Group, Incoming, Part, Queue, QueueError, payload,
    state::{State, StateFile},
};
use crate::{
    gap::{self, Cause, Gap},
    planted::{Bug, planted},
};

/// The source that rows are queued under when they are sent again.
pub(super) const SOURCE: &str = "retry";
const OBJECT: [u8; 16] = *b"edge-queue-aside";
/// Files and bytes that are kept; refused rows beyond are a gap only.
const KEPT_MAX: (usize, u64) = (4_096, 256 << 20);
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Rows that were put aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The id of their gap record, and in the file's name.
    pub id: u64,
    /// The stream.
    pub stream: String,
    /// The queue's epoch of the rows.
    pub epoch: u64,
    /// First number.
    pub first: u64,
    /// Last number.
    pub last: u64,
    /// When, ns since the Unix epoch.
    pub at_ns: i64,
    /// Bytes of the file.
    pub bytes: u64,
    /// The server's words.
    pub why: String,
}

fn path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("aside-{id:020}"))
}

/// Removes files that no entry names: a crash left them behind.
pub(super) fn sweep(disk: &dyn Disk, dir: &Path, state: &State) {
    let known: Vec<PathBuf> = state.aside.iter().map(|a| path(dir, a.id)).collect();
    for entry in disk.list(dir).unwrap_or_default() {
        let file = dir.join(&entry.name);
        if file.to_string_lossy().contains("/aside-") && !known.contains(&file) {
            drop(durable::remove(disk, &file));
        }
    }
}

fn cut<T: Clone>(values: &mut Vec<T>, skip: usize) {
    values.drain(..skip.min(values.len()));
}

/// The batch without its first rows.
fn behind(batch: &TableBatch, skip: usize) -> TableBatch {
    let mut out = batch.clone();
    cut(&mut out.time, skip);
    cut(&mut out.series, skip);
    cut(&mut out.line, skip);
    for field in &mut out.fields {
        let mut present = Presence::default();
        (skip..batch.rows()).for_each(|n| present.push(field.present.get(n)));
        field.present = present;
        match &mut field.values {
            FieldValues::F64(v) => cut(v, skip),
            FieldValues::I64(v) => cut(v, skip),
            FieldValues::U64(v) => cut(v, skip),
            FieldValues::Bool(v) => cut(v, skip),
            FieldValues::Utf8(texts) => {
                let mut rest = FieldValues::empty(FieldType::Utf8);
                if let FieldValues::Utf8(rest) = &mut rest {
                    (skip..texts.len()).for_each(|n| rest.push(texts.get(n)));
                }
                field.values = rest;
            }
        }
    }
    out.fields.retain(|f| f.present.count() > 0);
    out
}

/// What is put aside in the queue of a folder, whether or not a forwarder runs on it.
pub fn list(ground: &Ground, device: DeviceId, dir: &Path) -> Result<Vec<Aside>, QueueError> {
    let Ground { disk, entropy, keys, .. } = ground.clone();
    let file = StateFile::new(disk, entropy, keys, device.0, dir, 0);
    Ok(file.load()?.0.map(|state| state.aside).unwrap_or_default())
}

impl Queue {
    /// Puts the rows of a part behind number `known` aside, with a gap record, and has the stream
    /// go on behind them in a new epoch.
    pub fn put_aside(&self, part: &Part, known: u64, why: &str) -> Result<(), QueueError> {
        let skip = usize::try_from((known + 1).saturating_sub(part.seq_lo)).unwrap_or(usize::MAX);
        let batch = behind(&part.batch, skip);
        let (first, last, rows) = (known + 1, part.seq_hi(), batch.rows() as u64);
        let now = self.clock.now_ns();
        let mut gap = Gap::new(part.stream.as_str(), Cause::Rejected, now, rows, why)
            .numbers(part.epoch, first, last);
        tracing::error!(stream = %part.stream, rows, why, "the server refuses rows; they are kept");
        let mut inner = self.lock();
        let bytes: u64 = inner.state.aside.iter().map(|a| a.bytes).sum();
        let full = inner.state.aside.len() >= KEPT_MAX.0 || bytes >= KEPT_MAX.1;
        let kept = if full {
            gap.detail = format!("not kept, because too much is put aside: {}", gap.detail);
            None
        } else {
            let stream = part.stream.clone();
            let database = part.database.clone();
            let parts = vec![Incoming { stream, database, batch }];
            let group = Group { source: SOURCE.to_owned(), position: None, parts };
            let plain = payload::encode(&group, part.epoch, &[first])?;
            // The id that the gap will get.
            let id = inner.state.gap_id + 1;
            Some(Aside {
                id,
                stream: part.stream.to_string(),
                epoch: part.epoch,
                first,
                last,
                at_ns: now,
                bytes: self.write_aside(id, &plain)?,
                why: gap.detail.clone(),
            })
        };
        let gap = (!planted(Bug::RefusedNotRecorded)).then_some(gap);
        self.fork_with(&mut inner, (&part.stream, part.epoch), (last, known), gap, kept)
    }

    fn write_aside(&self, id: u64, plain: &[u8]) -> Result<u64, QueueError> {
        let keys = self.file.keys.current(&self.file.owner).map_err(|e| self.file.fail(e))?;
        let sealed = seal_object(&keys, self.file.entropy.as_ref(), OBJECT, plain);
        durable::replace(self.file.disk.as_ref(), &path(&self.file.dir, id), &sealed)
            .map_err(|e| self.file.fail(e))?;
        Ok(sealed.len() as u64)
    }

    /// What is put aside.
    pub fn aside(&self) -> Vec<Aside> {
        self.lock().state.aside.clone()
    }

    /// Queues rows again that were put aside; how many.
    pub fn retry(&self, id: u64) -> Result<u64, QueueError> {
        let Some(aside) = self.lock().state.aside.iter().find(|a| a.id == id).cloned() else {
            return Ok(0);
        };
        let file = path(&self.file.dir, id);
        let read = read_file(self.file.disk.as_ref(), &file, FILE_BYTES_MAX)
            .map_err(|e| self.file.fail(format!("{}: {e}", file.display())))?;
        let plain = open_object(self.file.keys.as_ref(), &self.file.owner, OBJECT, &read)
            .map_err(|e| self.file.fail(format!("{}: {e}", file.display())))?;
        let Some(queued) = payload::decode(0, &plain) else {
            return Err(self.file.fail(format!("{} is of another version", file.display())));
        };
        let parts = queued.parts.into_iter();
        let mut parts: Vec<Incoming> = parts
            .map(|p| Incoming { stream: p.stream, database: p.database, batch: p.batch })
            .collect();
        let rows: u64 = parts.iter().map(|p| p.batch.rows() as u64).sum();
        let what = format!("rows of gap {id} were queued again");
        let mut record = Gap::new(&aside.stream, Cause::Retried, self.clock.now_ns(), rows, &what)
            .numbers(aside.epoch, aside.first, aside.last);
        record.id = random_u64(self.file.entropy.as_ref());
        parts.extend(gap::group(&[record]).map(|g| g.parts).unwrap_or_default());
        let position = Some(id.to_le_bytes().to_vec());
        let group = Group { source: SOURCE.to_owned(), position, parts };
        self.append(&[group]).into_iter().try_for_each(|result| result.map(drop))?;
        // The entry is gone since the group is in the log; without this save it would come back
        // with the state and go again.
        self.save(&mut self.lock())?;
        drop(durable::remove(self.file.disk.as_ref(), &file));
        Ok(rows)
    }
}

impl super::Inner {
    /// The group that puts these rows back is in the log.
    pub(super) fn put_back(&mut self, position: &[u8]) {
        let id = position.try_into().map_or(0, u64::from_le_bytes);
        if !planted(Bug::AsideKept) {
            self.state.aside.retain(|a| a.id != id);
        }
    }
}
