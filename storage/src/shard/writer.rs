//! The shard's writer: takes a group of writes, logs them, syncs once, publishes, answers.
//!
//! Owns: the log's write side, pending schemas and pending watermarks. One thread, no locks of
//! its own.
//! Never: answers a write with a [`Receipt`] before the log's `Synced` covers it; publishes rows
//! of a write that did not sync.
//! Invariants: D1 a receipt needs a `Synced`; D2 a sequence number is applied once.
//! Crash order: append, sync, publish, answer; any prefix is a legal start (replay.rs).
//! After a failed sync the group is refused and its pending watermarks go back; columns and
//! series that it added stay in memory, harmless, because every record defines what it uses.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use millrace_crypto::key::{KeyError, TenantKeySource};
use millrace_platform::{clock::Clock, metric::Metric};
use millrace_protocol::{
    batch::{Refusal, TableBatch},
    ids::{Lsn, SeqNo, TenantId},
    name::REJECTED_TABLE,
    stream::StreamKey,
};
use millrace_wal::{KeyRef, Synced, Wal, WalError};

use super::{
    record::{Origin, Record, RecordTable},
    rejected::{Allowance, Collector, Destination, Rejects, Sender},
    resolve::{NewSeries, Refusals, Resolved, resolve},
    table::TableHandle,
    tenant::TenantHandle,
    watermark::{Verdict, Watermarks, decide, line_of},
};
use crate::{
    idle::{Asleep, WakeError, counters, settled},
    limits::EngineLimits,
    manifest::{TenantManifest, parts::Packed},
    memtable::chunk::{Chunk, ChunkField},
    planted::{Bug, planted},
    schema::TableSchema,
    series::dictionary::SeriesDictionary,
    shared::Shared,
    stats::{LATE_NS, Noted},
    tail::Piece,
};

/// Rows to store.
#[derive(Debug, Clone)]
pub struct WriteRequest {
    /// Whose rows.
    pub tenant: TenantId,
    /// Into which database; made at first use. 1 to 63 bytes of `[A-Za-z0-9_.-]`.
    pub database: String,
    /// With or without exactly-once numbering.
    pub origin: Origin,
    /// The rows.
    pub tables: Vec<TableBatch>,
    /// Who sent them, and what was refused on the way.
    pub sender: Sender,
}

/// Proof that a write is durable. Made only from the log's `Synced`:
///
/// ```compile_fail
/// let forged = millrace_storage::Receipt { lsn: millrace_protocol::ids::Lsn(1) };
/// ```
#[derive(Debug, Clone)]
pub struct Receipt {
    lsn: Lsn,
    rows: u64,
    refusals: Vec<Refusal>,
    refused: u64,
    duplicate: bool,
    watermark: Option<SeqNo>,
}

impl Receipt {
    fn after(proof: &Synced, lsn: u64, rows: u64, refusals: Refusals, mark: Option<SeqNo>) -> Self {
        debug_assert!(proof.through() >= lsn, "a receipt needs a sync that covers it");
        Self {
            lsn: Lsn(lsn),
            rows,
            refusals: refusals.listed,
            refused: refusals.count,
            duplicate: false,
            watermark: mark,
        }
    }

    /// A write that changed nothing needs no new sync: what it repeats is durable already.
    fn unchanged(refusals: Refusals, duplicate: bool, mark: Option<SeqNo>) -> Self {
        Self {
            lsn: Lsn(0),
            rows: 0,
            refusals: refusals.listed,
            refused: refusals.count,
            duplicate,
            watermark: mark,
        }
    }

    /// Log position; 0 if nothing was logged.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Rows taken.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The first refused rows.
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// All refused rows, counted.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Whether every row was known already.
    pub fn duplicate(&self) -> bool {
        self.duplicate
    }

    /// The stream's durable contiguous watermark, for writes with a sequence.
    pub fn watermark(&self) -> Option<SeqNo> {
        self.watermark
    }
}

/// Why a write was refused as a whole. Nothing of it is stored, unless said otherwise.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The tenant's keys are destroyed or unknown.
    #[error("this tenant's keys are gone; its data can neither be written nor read")]
    TenantGone,
    /// The tenant's keys cannot be had now.
    #[error("the tenant's keys cannot be reached: {0}; try again")]
    KeysUnavailable(String),
    /// The frame starts past the watermark.
    #[error("rows {} to {} of stream `{}` are missing; send from {}", .durable.0 + 1, .seq_lo.0 - 1, .key.stream, .durable.0 + 1)]
    Missing {
        /// The stream.
        key: Box<StreamKey>,
        /// Its durable watermark.
        durable: SeqNo,
        /// The frame's first number.
        seq_lo: SeqNo,
    },
    /// The numbering makes no sense.
    #[error("sequence numbers are invalid: {0}")]
    Sequence(String),
    /// The database name is not allowed.
    #[error(
        "`{0}` is not a database name: use 1 to 63 characters of A-Z a-z 0-9 _ . - (information_schema and system are taken)"
    )]
    Database(String),
    /// A batch whose columns do not fit together.
    #[error(transparent)]
    Batch(#[from] millrace_protocol::batch::Inconsistent),
    /// The log cannot take it now; the rows may or may not survive a crash, so send them again.
    #[error(
        "the write-ahead log cannot take rows now: {0}; nothing was acknowledged, send the rows again"
    )]
    Log(String),
    /// The disk is full.
    #[error(
        "the disk is full: {0}; nothing was acknowledged, send the rows again when there is space"
    )]
    DiskFull(String),
    /// Too much waits already.
    #[error("the server is busy ({0}); send the rows again after a moment")]
    Busy(&'static str),
    /// The engine has stopped.
    #[error("the storage engine has stopped; look at the server's log for the first error")]
    Stopped,
    /// One write is larger than a log record may be.
    #[error("{0}")]
    TooLarge(String),
    /// What the tenant has in files, and was not in memory, cannot be read.
    #[error("the tenant's tables cannot be loaded: {0}")]
    Unreadable(WakeError),
    /// An internal rule was broken; the shard refuses further writes.
    #[error(transparent)]
    Broken(#[from] millrace_platform::invariant::Broken),
}

impl From<KeyError> for WriteError {
    fn from(e: KeyError) -> Self {
        match e {
            KeyError::Gone { .. } => Self::TenantGone,
            other => Self::KeysUnavailable(other.to_string()),
        }
    }
}

impl From<WakeError> for WriteError {
    fn from(e: WakeError) -> Self {
        match e {
            WakeError::Keys(e) => e.into(),
            other => Self::Unreadable(other),
        }
    }
}

impl From<WalError> for WriteError {
    fn from(e: WalError) -> Self {
        match e {
            WalError::TooLarge { .. } => Self::TooLarge(e.to_string()),
            e if e.is_disk_full() => Self::DiskFull(e.to_string()),
            e => Self::Log(e.to_string()),
        }
    }
}

/// Why a write to a table whose files overlap too much is refused.
const SLOWED: &str = "merging of this table's files has to catch up";

/// Why a write to a table that is being dropped is refused.
const CLOSING: &str = "this table is being dropped; its name is free in a moment";

/// What the writer knows of a table beyond what readers see.
struct TableState {
    handle: Arc<TableHandle>,
    /// Includes columns of records that are appended but not yet synced.
    schema: Arc<TableSchema>,
    /// The largest time written, ns; what rows are late against.
    newest_ns: Option<i64>,
}

struct TenantState {
    handle: Arc<TenantHandle>,
    key: KeyRef,
    secret: u64,
    tables: BTreeMap<(String, String), TableState>,
    next_table_id: u64,
    pending: Watermarks,
    /// What it has recorded of refused rows.
    allowance: Allowance,
}

/// A write that is appended and waits for the sync.
struct Appended {
    lsn: u64,
    tenant: TenantId,
    rows: u64,
    refusals: Refusals,
    mark: Option<(StreamKey, SeqNo)>,
    chunks: Vec<((String, String), Chunk)>,
    /// Refused rows that are among the chunks.
    recorded: u64,
    noted: Noted,
}

enum Prepared {
    Appended(Appended),
    Unchanged(Refusals, bool, Option<(TenantId, StreamKey)>),
}

/// What a flush has to write: everything up to `lsn`.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    /// The last log position that the sealed chunks hold.
    pub(crate) lsn: u64,
    /// Durable watermarks at that position, of all streams of all tenants that wrote.
    pub(crate) streams: Vec<(TenantId, StreamKey, SeqNo)>,
    /// The next table id of each tenant.
    pub(crate) next_table_ids: Vec<(TenantId, u64)>,
    /// The UTC day of the seal, as [`day_of`] counts them.
    pub(crate) day: u32,
}

/// The UTC day of a wall-clock time, counted from 1970.
pub(crate) fn day_of(now_ns: i64) -> u32 {
    const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
    u32::try_from(now_ns.div_euclid(DAY_NS)).unwrap_or(0)
}

/// See the module head.
pub(crate) struct ShardWriter {
    wal: Arc<Wal>,
    keys: Arc<dyn TenantKeySource>,
    clock: Arc<dyn Clock>,
    limits: EngineLimits,
    shared: Arc<Shared>,
    tenants: BTreeMap<TenantId, TenantState>,
    /// What tenants that were let go have recorded of refused rows today.
    allowances: BTreeMap<TenantId, Allowance>,
    last_lsn: u64,
    payload: Vec<u8>,
    broken: Option<WriteError>,
}

impl std::fmt::Debug for ShardWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardWriter").field("last_lsn", &self.last_lsn).finish_non_exhaustive()
    }
}

fn valid_database(name: &str) -> bool {
    // These are schemas of the catalogue itself.
    let reserved = ["information_schema", "system"].iter().any(|r| name.eq_ignore_ascii_case(r));
    (1..=63).contains(&name.len())
        && !reserved
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

impl ShardWriter {
    /// A writer over a recovered shard: `shared` holds all tables and watermarks.
    pub(crate) fn new(
        wal: Arc<Wal>,
        keys: Arc<dyn TenantKeySource>,
        clock: Arc<dyn Clock>,
        limits: EngineLimits,
        shared: Arc<Shared>,
        last_lsn: u64,
    ) -> Self {
        Self {
            wal,
            keys,
            clock,
            limits,
            shared,
            tenants: BTreeMap::new(),
            allowances: BTreeMap::new(),
            last_lsn,
            payload: Vec::new(),
            broken: None,
        }
    }

    /// Refuses every write from now on.
    pub(crate) fn refuse(&mut self, why: WriteError) {
        self.broken = Some(why);
    }

    /// Stores a group of writes under one sync; answers in order.
    pub(crate) fn commit_group(
        &mut self,
        requests: Vec<WriteRequest>,
    ) -> Vec<Result<Receipt, WriteError>> {
        let prepared: Vec<Result<Prepared, WriteError>> =
            requests.into_iter().map(|r| self.prepare(r)).collect();
        let last = prepared
            .iter()
            .filter_map(|p| match p {
                Ok(Prepared::Appended(a)) => Some(a.lsn),
                _ => None,
            })
            .max();
        #[cfg(test)]
        if planted(Bug::AckEarly) {
            return self.answer_early(prepared);
        }
        let synced = last.map(|lsn| self.wal.commit(lsn));
        match synced {
            None => prepared.into_iter().map(|p| p.map(|p| self.answer_unchanged(p))).collect(),
            Some(Ok(proof)) => prepared
                .into_iter()
                .map(|p| match p? {
                    Prepared::Appended(a) => self.publish(&proof, a),
                    other => Ok(self.answer_unchanged(other)),
                })
                .collect(),
            Some(Err(e)) => {
                let error = WriteError::from(e);
                prepared
                    .into_iter()
                    .map(|p| match p? {
                        Prepared::Appended(a) => {
                            self.roll_back(&a);
                            Err(error.clone())
                        }
                        // A duplicate of a row in this very group is not durable either.
                        Prepared::Unchanged(_, true, _) => Err(error.clone()),
                        other => Ok(self.answer_unchanged(other)),
                    })
                    .collect()
            }
        }
    }

    /// The planted bug: publishes and answers without a sync.
    #[cfg(test)]
    fn answer_early(
        &mut self,
        prepared: Vec<Result<Prepared, WriteError>>,
    ) -> Vec<Result<Receipt, WriteError>> {
        let publish = |writer: &mut Self, a: Appended| {
            for (name, chunk) in a.chunks {
                if let Some(table) = writer.tenants.get(&a.tenant).and_then(|t| t.tables.get(&name))
                {
                    writer.shared.publish(&table.handle, &table.schema, chunk);
                }
            }
            writer.shared.note_lsn(a.lsn);
            Receipt::unchanged(a.refusals, false, None)
        };
        prepared
            .into_iter()
            .map(|p| {
                p.map(|p| match p {
                    Prepared::Appended(a) => publish(self, a),
                    other => self.answer_unchanged(other),
                })
            })
            .collect()
    }

    fn answer_unchanged(&self, prepared: Prepared) -> Receipt {
        match prepared {
            Prepared::Unchanged(refusals, duplicate, stream) => {
                let mark = stream.and_then(|(tenant, key)| {
                    self.tenants.get(&tenant).map(|t| t.handle.durable(&key))
                });
                Receipt::unchanged(refusals, duplicate, mark)
            }
            // Unreachable by construction: appended writes are answered by `publish`.
            Prepared::Appended(a) => Receipt::unchanged(a.refusals, false, None),
        }
    }

    fn tenant(&mut self, id: TenantId) -> Result<&mut TenantState, WriteError> {
        // Asking each time keeps a shredded tenant from writing under a cached key.
        let keys = self.keys.current(&id.0)?;
        let key = KeyRef { owner: id.0, version: keys.version() };
        let secret = keys.series_secret();
        let state = match self.tenants.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let handle = self.shared.tenant_or_new(id)?;
                let tables = handle
                    .tables()
                    .iter()
                    .map(|(name, table)| (name.clone(), TableState::of(Arc::clone(table))))
                    .collect::<BTreeMap<_, _>>();
                let highest = tables.values().map(|t| t.handle.table_id).max().unwrap_or(0);
                let pending = handle.all_durable();
                let next_table_id = handle.next_table_id().max(highest + 1);
                let allowance = self.allowances.remove(&id).unwrap_or_default();
                new.insert(TenantState {
                    handle,
                    key,
                    secret,
                    tables,
                    next_table_id,
                    pending,
                    allowance,
                })
            }
        };
        state.handle.touch(self.clock.monotonic());
        state.key = key;
        Ok(state)
    }

    fn prepare(&mut self, request: WriteRequest) -> Result<Prepared, WriteError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        if self.shared.stopped() {
            return Err(WriteError::Stopped);
        }
        if !valid_database(&request.database) {
            return Err(WriteError::Database(request.database.chars().take(80).collect()));
        }
        let (now_ns, monotonic) = (self.clock.now_ns(), self.clock.monotonic());
        let limits = self.limits.clone();
        let shared = Arc::clone(&self.shared);
        let day = day_of(now_ns);
        let per_day = self.shared.series_per_day(request.tenant, limits.series_per_day);
        let tenant = self.tenant(request.tenant)?;
        let mut refusals = Refusals::default();
        let mut first_line = 0;
        let mut mark = None;
        if let Origin::Stream(header) = &request.origin {
            let rows = header.seq_hi.0.wrapping_sub(header.seq_lo.0).wrapping_add(1);
            let highest = request.tables.iter().flat_map(|t| t.line.iter()).max().copied();
            if highest.is_some_and(|line| u64::from(line) > rows) {
                return Err(WriteError::Sequence(format!(
                    "the frame numbers {rows} rows but carries row {}",
                    highest.unwrap_or(0)
                )));
            }
            match decide(tenant.pending.get(&header.key), header) {
                Verdict::Duplicate if planted(Bug::DoubleApply) => first_line = 1,
                Verdict::Duplicate => {
                    let stream = Some((request.tenant, header.key.clone()));
                    metrics::counter!(Metric::IngestDuplicates.name(), "tenant" => request.tenant.to_string())
                        .increment(1);
                    let table = request.tables.first().map_or("", |t| t.table.as_str());
                    let known = tenant.knows(&request.database, table);
                    let table = if known { table } else { "" };
                    let noted = Noted::duplicate(
                        &request.database,
                        table,
                        request.sender.source,
                        header.rows(),
                        now_ns,
                    );
                    tenant.handle.ingest.note(&noted);
                    return Ok(Prepared::Unchanged(refusals, true, stream));
                }
                Verdict::Missing => {
                    return Err(WriteError::Missing {
                        key: Box::new(header.key.clone()),
                        // Not the pending mark: rows of this group may still be lost.
                        durable: tenant.handle.durable(&header.key),
                        seq_lo: header.seq_lo,
                    });
                }
                Verdict::Invalid => {
                    return Err(WriteError::Sequence(format!(
                        "{} to {}; numbers start at 1 and do not run backward",
                        header.seq_lo, header.seq_hi
                    )));
                }
                Verdict::Take { from } => {
                    first_line = line_of(header, from);
                    mark = Some((header.key.clone(), header.seq_hi));
                }
            }
        }
        for batch in &request.tables {
            batch.check()?;
        }
        let slowed = |batch: &TableBatch| {
            let name = (request.database.clone(), batch.table.clone());
            tenant.tables.get(&name).is_some_and(|t| t.handle.slowed())
        };
        let closing = |batch: &TableBatch| {
            let name = (request.database.clone(), batch.table.clone());
            tenant.tables.get(&name).is_some_and(|t| t.handle.closing())
        };
        if request.tables.iter().any(closing) {
            return Err(WriteError::Busy(CLOSING));
        }
        if request.tables.iter().any(slowed) {
            metrics::counter!(Metric::WritesSlowed.name()).increment(1);
            return Err(WriteError::Busy(SLOWED));
        }
        let id = request.tenant;
        let rules = Rules {
            limits: &limits,
            shared: &shared,
            now_ns,
            monotonic,
            day,
            per_day,
            first_line,
            id,
        };
        let WriteRequest { tenant: id, database, origin, tables: batches, sender } = request;
        let mut noted = Noted { database, source: sender.source, ..Noted::default() };
        let database = &noted.database.clone();
        if let Some(rejects) = sender.rejects {
            tenant.note_rejects(&rejects, &batches, first_line, &mut noted);
            let collector = Collector::new(
                rejects,
                first_line,
                &mut tenant.allowance,
                &limits.rejected,
                now_ns,
            );
            refusals.collector = Some(collector);
        }
        if let (Some(first), known @ 1..) = (batches.first(), first_line.saturating_sub(1)) {
            noted.table(&first.table).duplicates += u64::from(known);
        }
        let mut tables = Vec::with_capacity(batches.len() + 1);
        let mut ordinals = Vec::with_capacity(batches.len() + 1);
        for batch in batches {
            let fitted = tenant.fit(database, batch, &rules, &mut refusals, &mut noted);
            if let Some((table, by_key)) = fitted {
                tenant.note_rows(database, &table.batch, &mut noted);
                tables.push(table);
                ordinals.push(by_key);
            }
        }
        let rows = tables.iter().map(|t| t.batch.rows() as u64).sum();
        let mut recorded = 0;
        if let Some(collector) = refusals.collector.take() {
            recorded = collector.len() as u64;
            let mut dropped = collector.dropped;
            let part = tenant.rejected(&noted, collector, &rules);
            if let Some((table, by_key)) = part {
                tables.push(table);
                ordinals.push(by_key);
            } else {
                dropped += std::mem::take(&mut recorded);
            }
            if dropped > 0 {
                noted.table("").dropped += dropped;
            }
        }
        noted.at(now_ns);
        if tables.is_empty() && mark.is_none() {
            tenant.handle.ingest.note(&noted);
            noted.count(id);
            return Ok(Prepared::Unchanged(refusals, false, None));
        }
        let key = tenant.key;
        let mut record = Record { origin, database: noted.database.clone(), tables };
        self.payload.clear();
        record.encode(&mut self.payload);
        let lsn = match self.wal.append(key, &self.payload) {
            // Good rows that fit are not refused because of what was said about bad ones.
            Err(WalError::TooLarge { .. }) if recorded > 0 => {
                record.tables.pop();
                ordinals.pop();
                noted.table("").dropped += recorded;
                recorded = 0;
                self.payload.clear();
                record.encode(&mut self.payload);
                self.wal.append(key, &self.payload)?
            }
            other => other?,
        };
        self.last_lsn = lsn;
        // Borrowed again: the log and the tenant are different fields of one writer.
        if let Some((stream, to)) = &mark
            && let Some(tenant) = self.tenants.get_mut(&id)
            && let Err(e) = tenant.pending.advance(stream, *to)
        {
            self.broken = Some(WriteError::Broken(e.clone()));
            return Err(e.into());
        }
        let database = record.database;
        let chunks = record
            .tables
            .into_iter()
            .zip(ordinals)
            .map(|(t, by_key)| {
                let name = (database.clone(), t.batch.table.clone());
                (name, into_chunk(lsn, t.batch, &t.field_ids, &by_key))
            })
            .collect();
        Ok(Prepared::Appended(Appended {
            lsn,
            tenant: id,
            rows,
            recorded,
            refusals,
            mark,
            chunks,
            noted,
        }))
    }

    fn publish(&mut self, proof: &Synced, write: Appended) -> Result<Receipt, WriteError> {
        let Some(tenant) = self.tenants.get(&write.tenant) else { return Err(WriteError::Stopped) };
        let watched = self.shared.tail.wants(write.tenant);
        let mut pieces = Vec::new();
        for (name, chunk) in write.chunks {
            if let Some(table) = tenant.tables.get(&name) {
                if watched {
                    pieces.push(Piece {
                        database: name.0.clone(),
                        table: name.1.clone(),
                        schema: Arc::clone(&table.schema),
                        handle: Arc::clone(&table.handle),
                        chunk: chunk.clone(),
                    });
                }
                self.shared.publish(&table.handle, &table.schema, chunk);
            }
        }
        let mut mark = None;
        if let Some((stream, to)) = &write.mark {
            if let Err(e) = tenant.handle.advance_durable(stream, *to) {
                self.broken = Some(WriteError::Broken(e.clone()));
                return Err(e.into());
            }
            mark = Some(*to);
        }
        self.shared.note_lsn(write.lsn);
        if watched {
            self.shared.tail.note(write.tenant, write.lsn, pieces, self.clock.monotonic());
        } else if self.shared.tail.wants(write.tenant) {
            self.shared.tail.missed(write.tenant, write.lsn);
        }
        tenant.handle.ingest.note(&write.noted);
        write.noted.count(write.tenant);
        let id = write.tenant.to_string();
        metrics::counter!(Metric::IngestRows.name(), "tenant" => id.clone()).increment(write.rows);
        if write.recorded > 0 {
            metrics::counter!(Metric::RejectedRecorded.name(), "tenant" => id)
                .increment(write.recorded);
        }
        Ok(Receipt::after(proof, write.lsn, write.rows, write.refusals, mark))
    }

    fn roll_back(&mut self, write: &Appended) {
        if let Some((stream, _)) = &write.mark
            && !planted(Bug::MarksKeptAfterFailure)
            && let Some(tenant) = self.tenants.get_mut(&write.tenant)
        {
            let durable = tenant.handle.durable(stream);
            tenant.pending.reset(stream, durable);
        }
    }

    /// A table has been dropped: the next rows of this name make a new one.
    pub(crate) fn forget_table(&mut self, tenant: TenantId, name: &(String, String)) {
        if let Some(state) = self.tenants.get_mut(&tenant) {
            state.forget(name);
        }
        if let Some(handle) = self.shared.awake(tenant) {
            handle.remove_table(name);
        }
    }

    /// Moves every table's active chunks to the flush and says what they cover.
    pub(crate) fn seal(&mut self) -> Sealed {
        let mut streams = Vec::new();
        let mut next_table_ids = Vec::new();
        for (id, tenant) in &self.tenants {
            for table in tenant.tables.values() {
                table.handle.seal(&table.schema);
            }
            for (key, hi) in tenant.handle.all_durable().iter() {
                streams.push((*id, key.clone(), *hi));
            }
            next_table_ids.push((*id, tenant.next_table_id));
        }
        // Chunks replayed for tenants that have not written since the start.
        for handle in self.shared.all_awake() {
            if self.tenants.contains_key(&handle.id) {
                continue;
            }
            for table in handle.tables().values() {
                table.seal(&table.current.load().schema);
            }
            for (key, hi) in handle.all_durable().iter() {
                streams.push((handle.id, key.clone(), *hi));
            }
        }
        self.shared.sealed();
        let day = day_of(self.clock.now_ns());
        Sealed { lsn: self.shared.durable_lsn(), streams, next_table_ids, day }
    }
}

/// A tenant that may be let go, and what the manifest says of it.
#[derive(Debug, Clone)]
pub(crate) struct Idle {
    pub(crate) id: TenantId,
    pub(crate) manifest: Arc<TenantManifest>,
    /// The same, small.
    pub(crate) part: Packed,
}

impl ShardWriter {
    /// Lets go of those of the tenants of which files have everything; says how many. While it
    /// runs, neither a flush nor a merge does.
    pub(crate) fn let_go(&mut self, idle: Vec<Idle>) -> usize {
        let now_ns = self.clock.now_ns();
        self.allowances.retain(|_, allowance| allowance.in_use(now_ns));
        let mut gone = 0;
        for Idle { id, manifest, part } in idle {
            let Some(handle) = self.shared.awake(id) else { continue };
            let known = self.tenants.get(&id);
            let kept = known.is_none_or(|state| state.settled(&manifest));
            if !kept || !settled(&handle, &manifest) {
                continue;
            }
            let Ok(counters) = counters(&handle) else { continue };
            self.shared.put_to_sleep(id, Asleep { part, counters });
            let state = self.tenants.remove(&id);
            if let Some(state) = state.filter(|s| s.allowance.in_use(now_ns)) {
                self.allowances.insert(id, state.allowance);
            }
            gone += 1;
        }
        gone
    }
}

/// What decides about the rows of one write.
struct Rules<'a> {
    limits: &'a EngineLimits,
    shared: &'a Shared,
    now_ns: i64,
    monotonic: Duration,
    /// Whose write.
    id: TenantId,
    /// The UTC day, and how many new series a table may have in it.
    day: u32,
    per_day: u64,
    /// The number of the write's first row.
    first_line: u32,
}

impl Rules<'_> {
    /// The oldest time that is still taken, ns. Where wall clock and trusted time differ, the one
    /// that refuses less counts.
    fn oldest_ns(&self, table: &(String, String)) -> i64 {
        let book = &self.limits.retention;
        if book.rules(self.id).is_none() {
            return i64::MIN;
        }
        let told = book.tell(self.now_ns, self.monotonic);
        book.shown_from(self.id, table, told.now_ns.min(self.now_ns))
    }
}

impl TenantState {
    /// Forgets a table that was dropped.
    fn forget(&mut self, name: &(String, String)) {
        self.tables.remove(name);
    }

    /// Whether the writer knows nothing that the manifest does not. Nothing is pending: it is
    /// asked between two groups of writes.
    fn settled(&self, part: &TenantManifest) -> bool {
        let stored = |table: &TableState| {
            let schema = part.tables.get(&table.handle.table_id).map(|t| t.schema.version);
            schema.unwrap_or(0) == table.schema.version
        };
        let mark = |(key, hi): (&StreamKey, &SeqNo)| {
            part.streams.get(key).map(|s| s.hi).unwrap_or_default() == *hi
        };
        self.next_table_id <= part.next_table_id.max(1)
            && self.tables.values().all(stored)
            && self.pending.iter().all(mark)
    }

    fn table(&mut self, name: &(String, String)) -> &mut TableState {
        let (handle, next, secret) = (&self.handle, &mut self.next_table_id, self.secret);
        self.tables.entry(name.clone()).or_insert_with(|| {
            let id = *next;
            *next += 1;
            let schema = TableSchema::new(id, &name.1);
            let dictionary = SeriesDictionary::new(secret);
            let table = Arc::new(TableHandle::new(
                name.0.clone(),
                schema.clone(),
                dictionary,
                Vec::new(),
                false,
            ));
            handle.add_table(&name.1, Arc::clone(&table));
            TableState::of(table)
        })
    }

    /// Fits one batch to its table; `None` if no row is left.
    fn fit(
        &mut self,
        database: &str,
        batch: TableBatch,
        rules: &Rules<'_>,
        refusals: &mut Refusals,
        noted: &mut Noted,
    ) -> Option<(RecordTable, Vec<u32>)> {
        let name = (database.to_owned(), batch.table.clone());
        let table = self.table(&name);
        let refused = refusals.count;
        let mut schema = TableSchema::clone(&table.schema);
        let version = schema.version;
        refusals.table.clone_from(&name.1);
        let series_before = table.handle.dictionary.bytes();
        let known = table.handle.dictionary.len();
        let seen = table.handle.new_series(rules.day);
        let oldest_ns = rules.oldest_ns(&name);
        let resolved = resolve(
            batch,
            &mut schema,
            &table.handle.dictionary,
            rules.limits,
            NewSeries { per_day: rules.per_day, seen },
            rules.now_ns,
            rules.first_line,
            oldest_ns,
            refusals,
        );
        let added = table.handle.dictionary.len().saturating_sub(known);
        table.handle.count_new_series(rules.day, added as u64);
        rules.shared.note_series(&table.handle, series_before);
        if schema.version != version {
            table.schema = Arc::new(schema);
        }
        if refusals.count > refused {
            // A table that does not come to be has no name here: senders of garbage would fill the list.
            let name = if table.schema.version > 0 { name.1.as_str() } else { "" };
            noted.table(name).rejected += refusals.count - refused;
        }
        let Resolved { batch, field_ids, sids, ordinals } = resolved?;
        let tags = if table.schema.tags.len() > table.handle.flushed_tags() {
            table.schema.tags.clone()
        } else {
            Vec::new()
        };
        let table_id = table.handle.table_id;
        Some((RecordTable { table_id, tags, field_ids, sids, batch }, ordinals))
    }

    /// Whether a table has ever had a row.
    fn knows(&self, database: &str, table: &str) -> bool {
        let state = self.tables.get(&(database.to_owned(), table.to_owned()));
        state.is_some_and(|t| t.schema.version > 0)
    }

    /// The refused rows of a write as rows of `_rejected`; `None` if there are none, or if even
    /// that table refuses them.
    fn rejected(
        &mut self,
        noted: &Noted,
        collector: Collector,
        rules: &Rules<'_>,
    ) -> Option<(RecordTable, Vec<u32>)> {
        if collector.len() == 0 {
            return None;
        }
        let database = noted.database.as_str();
        let handle = Arc::clone(&self.table(&(database.to_owned(), REJECTED_TABLE.into())).handle);
        if handle.closing() {
            return None;
        }
        let mut allowance = std::mem::take(&mut self.allowance);
        let into = Destination { source: &noted.source, database, table: &handle };
        let known = |table: &str| self.knows(database, table);
        let batch =
            collector.batch(&into, known, &rules.limits.rejected, &mut allowance, rules.now_ns);
        self.allowance = allowance;
        let (mut refusals, mut counts) = (Refusals::default(), Noted::default());
        self.fit(database, batch, rules, &mut refusals, &mut counts)
    }

    /// Counts what was refused before storage saw it, by table where the table exists.
    fn note_rejects(
        &self,
        rejects: &Rejects,
        batches: &[TableBatch],
        first_line: u32,
        noted: &mut Noted,
    ) {
        let database = noted.database.clone();
        let unlisted = rejects.count.saturating_sub(rejects.listed.len() as u64);
        if unlisted > 0 {
            noted.table("").rejected += unlisted;
        }
        for row in rejects.listed.iter().filter(|r| r.line >= first_line) {
            let named = row.table.as_deref().filter(|name| {
                batches.iter().any(|b| b.table == *name) || self.knows(&database, name)
            });
            noted.table(named.unwrap_or("")).rejected += 1;
        }
    }

    /// Counts the rows of a batch that were taken, and how many of them are late.
    fn note_rows(&mut self, database: &str, batch: &TableBatch, noted: &mut Noted) {
        let table = self.table(&(database.to_owned(), batch.table.clone()));
        let late_below = table.newest_ns.map_or(i64::MIN, |n| n.saturating_sub(LATE_NS));
        let late = batch.time.iter().filter(|t| **t < late_below).count();
        table.newest_ns = table.newest_ns.max(batch.time.iter().max().copied());
        let counts = noted.table(&batch.table);
        counts.rows += batch.rows() as u64;
        counts.late += late as u64;
        counts.bytes += batch.memory_bytes() as u64;
    }
}

impl TableState {
    fn of(handle: Arc<TableHandle>) -> Self {
        let schema = Arc::clone(&handle.current.load().schema);
        let newest_ns = handle.newest_ns();
        Self { handle, schema, newest_ns }
    }
}

/// The chunk of a resolved batch; `by_key` gives each batch series its ordinal.
pub(super) fn into_chunk(lsn: u64, batch: TableBatch, field_ids: &[u32], by_key: &[u32]) -> Chunk {
    let ordinal =
        batch.series.iter().map(|s| by_key.get(*s as usize).copied().unwrap_or(u32::MAX)).collect();
    let fields = batch
        .fields
        .into_iter()
        .zip(field_ids)
        .map(|(f, id)| ChunkField { id: *id, values: f.values, present: f.present })
        .collect();
    Chunk::new(lsn, batch.time, ordinal, fields)
}
