//! The storage engine: the only public door.
//!
//! Owns: the shard's threads and the order of start and stop. `Shard` is the same engine without
//! threads, for simulation: every step happens when the caller says so.
//! Never: asks who is calling; knows HTTP, SQL or a policy.

mod keeper;

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use arc_swap::ArcSwap;

use futures::{channel::oneshot, future::BoxFuture};
use millrace_crypto::key::{KeyError, TenantKeySource};
use millrace_platform::{
    budget::MemoryBudget,
    clock::Clock,
    disk::Disk,
    entropy::Entropy,
    metric::Metric,
    queue::{self, Refused},
};
use millrace_protocol::{
    ids::{Lsn, SeqNo, TenantId},
    stream::StreamKey,
};
use millrace_wal::{Recovery, Replayed, Wal, WalError};
use object_store::ObjectStore;

use crate::{
    compaction::{
        driver::Wanted,
        history::{CompactionRecord, TableStats},
    },
    delete::{DeleteError, DeleteRequest, Deleted},
    files::{FileAccess, FileCache},
    flush::{FlushError, FlushReport, Maintenance},
    gc::{self, Garbage, SweepError},
    idle::{Asleep, Bed, WakeError},
    limits::EngineLimits,
    manifest::{ManifestError, ManifestStore, record::RecordError},
    object::local::DurableLocalStore,
    planted::{Bug, planted},
    retention::{
        Blocked, ClockState, Forecast, RetentionReport, Rules, TableName, due::DueQueue, forecast,
    },
    shard::{
        replay::{self, ReplayError, ReplayReport},
        tenant::TenantHandle,
        writer::{Idle, Receipt, Sealed, ShardWriter, WriteError, WriteRequest, day_of},
    },
    shared::Shared,
    snapshot::{self, TenantSnapshot},
    tail::Watch,
};

/// What the engine is built from.
#[derive(Clone)]
pub struct EngineConfig {
    /// Where files live.
    pub disk: Arc<dyn Disk>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness for ids and keys.
    pub entropy: Arc<dyn Entropy>,
    /// The data directory; the engine uses `shard/` and `data/` in it.
    pub dir: PathBuf,
    /// Tenant keys.
    pub keys: Arc<dyn TenantKeySource>,
    /// Bounds.
    pub limits: EngineLimits,
}

impl std::fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineConfig").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Why the engine did not start. It never starts with less than what was acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory could not be made or read.
    #[error("the data directory {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Garbage of a crash could not be removed.
    #[error(transparent)]
    Sweep(#[from] SweepError),
    /// A tenant's keys cannot be had now.
    #[error(
        "a tenant of the manifest cannot be opened: {0}; start again when its keys can be reached"
    )]
    Keys(KeyError),
    /// The log.
    #[error(transparent)]
    Log(#[from] millrace_wal::WalError),
    /// A record of the log.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A tenant's part of the manifest.
    #[error("a tenant's part of the manifest does not read: {0}")]
    Part(#[from] RecordError),
    /// The log ends before what the manifest says is flushed.
    #[error(
        "the log ends at record {log} but the manifest covers {manifest}; the log directory is not the one that belongs to this manifest"
    )]
    LogBehind {
        /// The log's next record.
        log: u64,
        /// The manifest's flushed position.
        manifest: u64,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Why a snapshot cannot be had.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SnapshotError {
    /// The tenant's keys are destroyed or unknown.
    #[error("this tenant's keys are gone; its data cannot be read")]
    TenantGone,
    /// The keys cannot be had now.
    #[error("the tenant's keys cannot be reached: {0}; try again")]
    KeysUnavailable(String),
    /// What the tenant has in files, and was not in memory, cannot be read.
    #[error("the tenant's tables cannot be loaded: {0}")]
    Unreadable(WakeError),
}

impl From<WakeError> for SnapshotError {
    fn from(e: WakeError) -> Self {
        match e {
            WakeError::Keys(KeyError::Gone { .. }) => Self::TenantGone,
            WakeError::Keys(e) => Self::KeysUnavailable(e.to_string()),
            e => Self::Unreadable(e),
        }
    }
}

/// Whether an opening claims the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Claim {
    /// Or fails.
    Now,
    /// The disk takes none: rows can be read, and nothing is written until it is opened again.
    Later {
        /// It is not full, it may not be written.
        read_only: bool,
    },
}

/// The engine without threads.
#[derive(Debug)]
pub struct Shard {
    writer: ShardWriter,
    /// A sync of a directory of the store has failed.
    poisoned: Arc<AtomicBool>,
    maintenance: Maintenance,
    unfinished: Option<Sealed>,
    /// What replay did at the start.
    pub replay: ReplayReport,
}

impl Shard {
    /// Recovers: manifest, series, log; then a new epoch and a new log segment are open.
    pub async fn open(config: EngineConfig) -> Result<Self, OpenError> {
        Self::recover(config, Claim::Now).await
    }

    /// The same, but a disk that is full or may only be read does not keep it from opening: rows
    /// are there, writes are refused, and [`Self::claimed`] is false.
    pub async fn open_to_read(config: EngineConfig) -> Result<Self, OpenError> {
        match Self::recover(config.clone(), Claim::Now).await {
            Err(OpenError::Manifest(error)) if error.takes_no_claim().is_some() => {
                let read_only = error.takes_no_claim() == Some(ErrorKind::ReadOnlyFilesystem);
                tracing::error!(
                    %error,
                    "the disk takes nothing, so rows can be read but not written; writes go on by themselves when there is space"
                );
                Self::recover(config, Claim::Later { read_only }).await
            }
            other => other,
        }
    }

    /// Whether this is the shard's owner. One that is not refuses writes until it is opened again.
    pub fn claimed(&self) -> bool {
        !self.maintenance.manifest.wants_reopening()
    }

    /// Whether nothing more can be committed until the shard is opened again: it was never
    /// claimed, or a failed sync has left a commit in doubt.
    pub fn wants_reopening(&self) -> bool {
        keeper::wants_reopening(&self.maintenance, &self.poisoned)
    }

    async fn recover(config: EngineConfig, claim: Claim) -> Result<Self, OpenError> {
        let EngineConfig { disk, clock, entropy, dir, keys, limits } = config;
        let wal_dir = dir.join("shard/0/wal");
        for path in [&dir, &wal_dir] {
            disk.create_dir_all(path)
                .map_err(|source| OpenError::Directory { path: path.clone(), source })?;
        }
        let (store, poisoned) = open_store(&disk, &dir, entropy.as_ref())
            .map_err(|source| OpenError::Directory { path: dir.clone(), source })?;
        let parts = (Arc::clone(&store), Arc::clone(&keys), Arc::clone(&entropy));
        let mut manifest = match claim {
            Claim::Now => {
                ManifestStore::open(parts.0, parts.1, parts.2, 0, limits.checkpoint_every).await?
            }
            Claim::Later { .. } => {
                ManifestStore::load_unclaimed(parts.0, parts.1, parts.2, 0).await?
            }
        };
        let bed =
            Bed { store: Arc::clone(&store), keys: Arc::clone(&keys), clock: Arc::clone(&clock) };
        let shared = Arc::new(Shared::new(&limits.memory, bed));
        let cache = Arc::new(FileCache::new(limits.open_files));
        let mut wanted = Wanted::default();
        for id in manifest.tenants() {
            match keys.current(&id.0) {
                Ok(_) => {}
                Err(KeyError::Gone { .. }) => continue,
                // Left out, it would be taken for new at its next write, its files forgotten.
                Err(e) => return Err(OpenError::Keys(e)),
            }
            if let Some(tenant) = manifest.tenant(&id)? {
                wanted.at_start(id, &tenant, &limits, clock.now_ns());
            }
            // Its series are read when somebody wants them.
            if let Some(part) = manifest.pack(&id)? {
                shared.insert(id, Asleep { part, counters: None });
            }
        }
        limits.retention.start_clock(manifest.clock(), clock.now_ns(), clock.monotonic());
        // A shard that is opened again in one process was told of its tenants before.
        limits.retention.all_changed();
        let flushed_lsn = manifest.flushed_lsn();
        shared.note_lsn(flushed_lsn);
        shared.recount();
        let options =
            millrace_wal::Options { segment_bytes: limits.segment_bytes, ..Default::default() };
        let segment_keys = Arc::new(millrace_wal::TenantSegmentKeys::new(Arc::clone(&keys)));
        let (wal, recovery) = Wal::open(disk, &wal_dir, segment_keys, entropy.as_ref(), options)?;
        if wal.next_lsn() <= flushed_lsn {
            return Err(OpenError::LogBehind { log: wal.next_lsn(), manifest: flushed_lsn });
        }
        let wal = Arc::new(wal);
        let mut writer = ShardWriter::new(
            Arc::clone(&wal),
            Arc::clone(&keys),
            Arc::clone(&clock),
            limits.clone(),
            Arc::clone(&shared),
            flushed_lsn,
        );
        let mut maintenance = Maintenance {
            manifest,
            store,
            keys,
            entropy,
            shared,
            cache,
            limits,
            wal,
            garbage: Garbage::default(),
            clock,
            wanted,
            due: DueQueue::default(),
        };
        let report = replay_all(&recovery, &mut writer, &mut maintenance, claim).await?;
        match claim {
            // Nobody reads yet: whatever no manifest names is left over from a crash.
            Claim::Now => {
                maintenance.sweep(Duration::ZERO, Duration::ZERO).await?;
            }
            Claim::Later { read_only: true } => {
                writer.refuse(WriteError::Log("the disk may only be read".to_owned()));
            }
            Claim::Later { read_only: false } => {
                writer.refuse(WriteError::DiskFull("it was at the start".to_owned()));
            }
        }
        Ok(Self { writer, maintenance, poisoned, unfinished: None, replay: report })
    }

    /// Stores a group of writes under one sync; answers in order.
    pub fn write(&mut self, group: Vec<WriteRequest>) -> Vec<Result<Receipt, WriteError>> {
        self.writer.commit_group(group)
    }

    /// Flushes everything that is acknowledged.
    pub async fn flush(&mut self) -> Result<FlushReport, FlushError> {
        let sealed = match self.unfinished.take() {
            Some(sealed) => sealed,
            None => self.writer.seal(),
        };
        let done = self.maintenance.flush(&sealed).await;
        if done.is_err() {
            self.unfinished = Some(sealed);
        } else if let Ok(idle) = self.maintenance.idle() {
            self.maintenance.let_gone(self.writer.let_go(idle));
        }
        done
    }

    /// Does one merge job; returns whether there was one.
    pub async fn compact_once(&mut self) -> Result<bool, FlushError> {
        self.maintenance.compact_once().await
    }

    /// As [`Engine::set_retention`].
    pub fn set_retention(&self, tenant: TenantId, rules: Rules) {
        self.maintenance.limits.retention.set(tenant, rules);
    }

    /// Lets go of what is out of retention, as the maintenance thread does it.
    pub async fn retain(&mut self) -> Result<RetentionReport, FlushError> {
        self.maintenance.retain().await
    }

    /// As [`Engine::confirm_retention`].
    pub fn confirm_retention(&self, tenant: TenantId) -> Option<Blocked> {
        self.maintenance.limits.retention.confirm(tenant)
    }

    /// Deletes rows, as [`Engine::delete`].
    pub async fn delete(&mut self, request: DeleteRequest) -> Result<Deleted, DeleteError> {
        self.maintenance.deletable(request.tenant, &request.table)?;
        self.flush_all().await?;
        self.maintenance.delete(request).await
    }

    /// Drops a table, as [`Engine::drop_table`].
    pub async fn drop_table(
        &mut self,
        tenant: TenantId,
        table: &TableName,
    ) -> Result<Deleted, DeleteError> {
        let handle = self.maintenance.deletable(tenant, table)?;
        handle.close(true);
        let done = match self.flush_all().await {
            Ok(()) => self.maintenance.drop_table(tenant, table, &handle).await,
            Err(e) => Err(e),
        };
        if done.is_ok() {
            self.writer.forget_table(tenant, table);
        } else {
            handle.close(false);
        }
        done
    }

    /// Flushes what is acknowledged now, whatever an earlier flush left.
    async fn flush_all(&mut self) -> Result<(), DeleteError> {
        let again = self.unfinished.is_some();
        for _ in 0..=usize::from(again) {
            self.flush().await.map_err(|e| DeleteError::Flush(e.to_string()))?;
        }
        Ok(())
    }

    /// Trusted time and what the wall clock is worth.
    pub fn clock_state(&self) -> ClockState {
        self.maintenance.trusted()
    }

    /// As [`Engine::believe_clock`].
    pub fn believe_clock(&self) {
        let clock = &self.maintenance.clock;
        self.maintenance.limits.retention.believe_clock(clock.now_ns(), clock.monotonic());
    }

    /// Tenants that are loaded.
    #[cfg(test)]
    pub(crate) fn awake(&self) -> usize {
        self.maintenance.shared.all_awake().len()
    }

    /// Rows in memtables.
    #[cfg(test)]
    pub(crate) fn memtable_rows(&self) -> usize {
        self.maintenance.shared.memtable_rows()
    }

    /// Removes left-over objects as the maintenance thread does; `now` is monotonic.
    #[cfg(test)]
    pub(crate) async fn sweep(
        &mut self,
        now: Duration,
        grace: Duration,
    ) -> Result<usize, SweepError> {
        self.maintenance.sweep(now, grace).await
    }

    /// Plans merges without doing one.
    #[cfg(test)]
    pub(crate) fn look_at_tables(&mut self) {
        self.maintenance.look();
    }

    /// Moves series out of bundles without rows as the maintenance thread does.
    #[cfg(test)]
    pub(crate) async fn relocate_series(&mut self) -> Result<usize, FlushError> {
        self.maintenance.relocate_series().await
    }

    /// One tenant's tables now.
    pub fn snapshot(&self, tenant: TenantId) -> Result<TenantSnapshot, SnapshotError> {
        let now = self.maintenance.trusted().now_ns;
        let book = &self.maintenance.limits.retention;
        let shown = |table: &TableName| book.shown_from(tenant, table, now);
        take_snapshot(&self.maintenance.shared, &self.maintenance.access(tenant), shown)
    }

    /// As [`Engine::table_stats`].
    pub fn table_stats(&self, tenant: TenantId) -> Vec<TableStats> {
        table_stats(&self.maintenance.shared, tenant)
    }

    /// As [`Engine::compactions`].
    pub fn compactions(&self, tenant: TenantId) -> Vec<CompactionRecord> {
        let tenant = awoken(&self.maintenance.shared, tenant);
        tenant.map(|t| t.history.all()).unwrap_or_default()
    }

    /// The durable watermark of a stream; 0 if it is new.
    pub fn watermark(&self, tenant: TenantId, key: &StreamKey) -> SeqNo {
        watermark(&self.maintenance.shared, tenant, key)
    }
}

/// Why a replay stopped.
enum Interrupt {
    /// Memory is full; it goes on from this record.
    Full(u64),
    Failed(OpenError),
}

impl From<WalError> for Interrupt {
    fn from(e: WalError) -> Self {
        Self::Failed(e.into())
    }
}

/// Applies what the manifest does not cover. Rows that are more than a flush's worth are flushed
/// on the way, so that a start needs no more memory than running did.
async fn replay_all(
    recovery: &Recovery,
    writer: &mut ShardWriter,
    maintenance: &mut Maintenance,
    claim: Claim,
) -> Result<ReplayReport, OpenError> {
    let mut report = ReplayReport::default();
    let shared = Arc::clone(&maintenance.shared);
    let flush_bytes = maintenance.limits.flush_bytes;
    let mut flush_at = if claim == Claim::Now { flush_bytes } else { usize::MAX };
    let flushed = maintenance.manifest.flushed_lsn();
    let mut from = flushed + 1 + u64::from(planted(Bug::ReplaySkipsOne));
    loop {
        match replay_until(recovery, from, flush_at, &shared, &maintenance.keys, &mut report) {
            Ok(()) => {
                count_replayed_series(&shared, day_of(maintenance.clock.now_ns()));
                return Ok(report);
            }
            Err(Interrupt::Failed(_)) if planted(Bug::ReplayErrorSwallowed) => return Ok(report),
            Err(Interrupt::Failed(e)) => return Err(e),
            Err(Interrupt::Full(next)) => from = next,
        }
        // What a flush takes is not replayed series any more.
        count_replayed_series(&shared, day_of(maintenance.clock.now_ns()));
        match maintenance.flush(&writer.seal()).await {
            Ok(_) => report.flushes += 1,
            // A full disk must not keep the server from starting: the rows stay in memory, where
            // they were before, and in the log.
            Err(error) => tracing::error!(%error, "a flush during replay failed"),
        }
        flush_at = shared.memtable_bytes().saturating_add(flush_bytes);
    }
}

/// Applies records from `from` on until memtables hold `flush_at` bytes.
fn replay_until(
    recovery: &Recovery,
    from: u64,
    flush_at: usize,
    shared: &Shared,
    keys: &Arc<dyn TenantKeySource>,
    report: &mut ReplayReport,
) -> Result<(), Interrupt> {
    recovery.read(from, &mut |replayed| {
        let lsn = match replayed {
            Replayed::Frame(frame) => {
                replay::apply(&frame, shared, keys.as_ref(), report)
                    .map_err(|e| Interrupt::Failed(e.into()))?;
                frame.lsn
            }
            Replayed::KeyGone { lsn, .. } => {
                report.keys_gone += 1;
                shared.note_lsn(lsn);
                lsn
            }
        };
        if shared.memtable_bytes() >= flush_at { Err(Interrupt::Full(lsn + 1)) } else { Ok(()) }
    })
}

/// Series of the log are counted as made today: perhaps a little too many, never too few.
fn count_replayed_series(shared: &Shared, today: u32) {
    for tenant in shared.all_awake() {
        for table in tenant.tables().values() {
            let replayed = table.dictionary.len().saturating_sub(table.flushed_series());
            table.count_new_series(today, replayed as u64);
        }
    }
}

/// The store of manifest and data, without what a crash left half-written. The log's folder is
/// not among those swept: the log knows its own files.
fn open_store(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    entropy: &dyn Entropy,
) -> std::io::Result<(Arc<dyn ObjectStore>, Arc<AtomicBool>)> {
    let store = DurableLocalStore::open(Arc::clone(disk), dir, entropy)?;
    let mut swept = 0;
    for folder in ["data", "shard/0/m", "shard/0/c", "shard/0/epoch"] {
        swept += store.sweep(&folder.into())?;
    }
    if swept > 0 {
        tracing::info!(files = swept, "files that were being written at the last end are removed");
    }
    let poisoned = store.poisoned();
    Ok((Arc::new(store), poisoned))
}

/// The tenant's handle, if it has ever written and can be loaded.
fn awoken(shared: &Shared, tenant: TenantId) -> Option<Arc<TenantHandle>> {
    shared.tenant(tenant).unwrap_or_else(|error| {
        tracing::error!(%error, "a tenant cannot be loaded");
        None
    })
}

fn table_stats(shared: &Shared, tenant: TenantId) -> Vec<TableStats> {
    let tables = awoken(shared, tenant).map(|t| t.tables());
    tables.iter().flat_map(|t| t.values()).map(|table| table.stats()).collect()
}

fn watermark(shared: &Shared, tenant: TenantId, key: &StreamKey) -> SeqNo {
    shared.watermark(tenant, key).unwrap_or_else(|error| {
        // Too low a mark costs a frame that is sent again and known.
        tracing::error!(%error, "a stream's watermark cannot be read");
        SeqNo::default()
    })
}

fn take_snapshot(
    shared: &Shared,
    access: &FileAccess,
    shown_from: impl Fn(&TableName) -> i64,
) -> Result<TenantSnapshot, SnapshotError> {
    match access.keys.current(&access.tenant.0) {
        Ok(_) => {}
        Err(KeyError::Gone { .. }) => return Err(SnapshotError::TenantGone),
        Err(e) => return Err(SnapshotError::KeysUnavailable(e.to_string())),
    }
    // Position before tables: whatever was acknowledged up to it is in the tables.
    let lsn = shared.durable_lsn();
    Ok(match shared.tenant(access.tenant)? {
        Some(tenant) => snapshot::take(&tenant, lsn, access, shown_from),
        None => TenantSnapshot {
            tenant: access.tenant,
            lsn: Lsn(lsn),
            databases: std::collections::BTreeMap::new(),
        },
    })
}

/// Bytes of rows that each tenant has stored in its turn when several wait: a small batch is never
/// behind more than this of every other tenant, or one batch of it.
const FAIR_BYTES: usize = 64 << 10;

type Answer = oneshot::Sender<Result<Receipt, WriteError>>;

#[derive(Debug)]
enum ToWriter {
    Write(Box<WriteRequest>, Answer),
    Seal(oneshot::Sender<Sealed>),
    /// Let go of idle tenants; answer how many went.
    LetGo(Vec<Idle>, oneshot::Sender<usize>),
    /// A table was dropped.
    Forget(TenantId, TableName, oneshot::Sender<()>),
    Stop,
}

type DeleteAnswer = oneshot::Sender<Result<Deleted, DeleteError>>;

#[derive(Debug)]
enum ToMaintenance {
    /// Flush now; answer if asked.
    Flush(Option<oneshot::Sender<Result<FlushReport, String>>>),
    /// Look at retention now: rules have changed.
    Retain,
    Delete(Box<DeleteRequest>, DeleteAnswer),
    DropTable(TenantId, TableName, DeleteAnswer),
    Stop,
}

/// Figures of a running engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineStats {
    /// The last durable log position.
    pub lsn: Lsn,
    /// Bytes in memtables.
    pub memtable_bytes: usize,
    /// Rows in memtables.
    pub memtable_rows: usize,
    /// Bytes of log on disk.
    pub wal_bytes: u64,
}

/// What requests go through: replaced as a whole when the shard is opened again.
#[derive(Debug)]
struct Running {
    to_writer: queue::FairSender<TenantId, ToWriter>,
    shared: Arc<Shared>,
    access: FileAccess,
    wal: Arc<Wal>,
}

/// See the module head.
#[derive(Debug)]
pub struct Engine {
    running: Arc<ArcSwap<Running>>,
    to_maintenance: queue::Sender<ToMaintenance>,
    limits: EngineLimits,
    clock: Arc<dyn Clock>,
    thread: std::sync::Mutex<Option<std::thread::JoinHandle<()>>>,
    /// What replay did at the start.
    pub replay: ReplayReport,
}

impl Engine {
    /// Recovers and starts the shard's writer and maintenance threads. A full disk does not keep
    /// it from starting: writes are refused until there is space.
    pub fn open(config: EngineConfig) -> BoxFuture<'static, Result<Self, OpenError>> {
        Box::pin(async move {
            let shard = Shard::open_to_read(config.clone()).await?;
            let (limits, replay) = (config.limits.clone(), shard.replay);
            let clock = Arc::clone(&config.clock);
            let started = keeper::start(shard, config).map_err(OpenError::Thread)?;
            let (running, to_maintenance, thread) = started;
            let thread = std::sync::Mutex::new(Some(thread));
            Ok(Self { running, to_maintenance, limits, clock, thread, replay })
        })
    }

    /// What memory is counted against.
    pub fn memory(&self) -> &Arc<MemoryBudget> {
        &self.limits.memory
    }

    /// Stores rows; ready when they are durable and visible.
    pub fn write(&self, request: WriteRequest) -> BoxFuture<'static, Result<Receipt, WriteError>> {
        let running = self.running.load();
        if running.shared.memtable_bytes() > self.limits.memtable_bytes_max {
            return Box::pin(async {
                Err(WriteError::Busy("memory is full until a flush is done"))
            });
        }
        let (answer, done) = oneshot::channel();
        let (tenant, cost) = (request.tenant, request_bytes(&request));
        let message = ToWriter::Write(Box::new(request), answer);
        let sent = running.to_writer.try_send(tenant, cost, message);
        Box::pin(async move {
            match sent {
                Ok(()) => done.await.unwrap_or(Err(WriteError::Stopped)),
                Err(Refused::Full(_)) => Err(WriteError::Busy("too many writes are waiting")),
                Err(Refused::Closed(_)) => Err(WriteError::Stopped),
            }
        })
    }

    /// The durable watermark of a stream; 0 if it is new.
    pub fn watermark(&self, tenant: TenantId, key: &StreamKey) -> SeqNo {
        watermark(&self.running.load().shared, tenant, key)
    }

    /// One tenant's tables now; never blocks the writer.
    pub fn snapshot(&self, tenant: TenantId) -> Result<Arc<TenantSnapshot>, SnapshotError> {
        let running = self.running.load();
        let access = FileAccess { tenant, ..running.access.clone() };
        let book = &self.limits.retention;
        let now = book.rules(tenant).map_or(0, |_| self.clock_state().now_ns);
        let shown = |table: &TableName| book.shown_from(tenant, table, now);
        take_snapshot(&running.shared, &access, shown).map(Arc::new)
    }

    /// Starts to look at what a tenant writes, from now on. Look again now and then: an engine that
    /// opened its shard again after a failed disk knows of no earlier watcher.
    pub fn watch(&self, tenant: TenantId) -> Watch {
        let running = self.running.load();
        let access = FileAccess { tenant, ..running.access.clone() };
        let shared = &running.shared;
        Watch::new(&shared.tail, || shared.durable_lsn(), &self.limits.memory, access)
    }

    /// Figures of a tenant's tables: files, overlap, and what its rows have cost.
    pub fn table_stats(&self, tenant: TenantId) -> Vec<TableStats> {
        table_stats(&self.running.load().shared, tenant)
    }

    /// The last merges of a tenant's tables, oldest first; at most
    /// [`crate::HISTORY_MAX`].
    pub fn compactions(&self, tenant: TenantId) -> Vec<CompactionRecord> {
        awoken(&self.running.load().shared, tenant).map(|t| t.history.all()).unwrap_or_default()
    }

    /// What the tenant's views are made of (stats.rs).
    pub(crate) fn tenant_handle(&self, tenant: TenantId) -> Option<Arc<TenantHandle>> {
        awoken(&self.running.load().shared, tenant)
    }

    /// Forgets cached files of a tenant whose keys were destroyed.
    pub fn purge(&self, tenant: TenantId) {
        self.running.load().access.cache.purge(tenant);
    }

    /// Flushes everything acknowledged so far, then merges what wants merging.
    pub fn flush(&self) -> BoxFuture<'static, Result<FlushReport, String>> {
        let (answer, done) = oneshot::channel();
        let sent = self.to_maintenance.try_send(ToMaintenance::Flush(Some(answer)));
        Box::pin(async move {
            sent.map_err(|_| "the maintenance thread is busy or has stopped".to_owned())?;
            done.await.unwrap_or_else(|_| Err("the maintenance thread has stopped".to_owned()))
        })
    }

    /// Sets a tenant's own limit of new series per table and UTC day; `None` takes the engine's, 0
    /// is no limit.
    pub fn limit_new_series(&self, tenant: TenantId, per_day: Option<u64>) {
        self.running.load().shared.limit_new_series(tenant, per_day);
    }

    /// Sets what of a tenant is kept, and what a legal hold keeps; counts from now on.
    pub fn set_retention(&self, tenant: TenantId, rules: Rules) {
        self.limits.retention.set(tenant, rules);
        self.nudge();
    }

    /// What of a tenant is kept; `None` if everything is.
    pub fn retention(&self, tenant: TenantId) -> Option<Arc<Rules>> {
        self.limits.retention.rules(tenant)
    }

    /// Trusted time and what the wall clock is worth.
    pub fn clock_state(&self) -> ClockState {
        self.limits.retention.tell(self.clock.now_ns(), self.clock.monotonic())
    }

    /// An operator says that the wall clock is right.
    pub fn believe_clock(&self) -> ClockState {
        self.limits.retention.believe_clock(self.clock.now_ns(), self.clock.monotonic());
        self.nudge();
        self.clock_state()
    }

    /// Which files of a tenant leave until `until` (ns), by its rules or by others.
    pub fn forecast(
        &self,
        tenant: TenantId,
        rules: &Rules,
        until: i64,
    ) -> Result<Forecast, SnapshotError> {
        let snapshot = self.snapshot(tenant)?;
        Ok(forecast::forecast(&snapshot.tables(), rules, self.clock_state().now_ns, until))
    }

    /// What of a tenant waits for a confirmation because it is more than ageing explains.
    pub fn retention_blocked(&self, tenant: TenantId) -> Option<Blocked> {
        self.limits.retention.blocked(tenant)
    }

    /// Confirms that; says what it was.
    pub fn confirm_retention(&self, tenant: TenantId) -> Option<Blocked> {
        let confirmed = self.limits.retention.confirm(tenant);
        self.nudge();
        confirmed
    }

    /// Lets maintenance look at retention now; it does so every ten minutes by itself.
    fn nudge(&self) {
        if self.to_maintenance.try_send(ToMaintenance::Retain).is_err() {
            tracing::debug!("retention is looked at by the next pass");
        }
    }

    /// Deletes rows that were acknowledged before this call; when it is ready they are durably gone
    /// from every query. Rows that come later live.
    pub fn delete(
        &self,
        request: DeleteRequest,
    ) -> BoxFuture<'static, Result<Deleted, DeleteError>> {
        self.ask_to_delete(|answer| ToMaintenance::Delete(Box::new(request), answer))
    }

    /// Drops a table. Rows of the same name that come later make a new one.
    pub fn drop_table(
        &self,
        tenant: TenantId,
        table: TableName,
    ) -> BoxFuture<'static, Result<Deleted, DeleteError>> {
        self.ask_to_delete(|answer| ToMaintenance::DropTable(tenant, table, answer))
    }

    fn ask_to_delete(
        &self,
        message: impl FnOnce(DeleteAnswer) -> ToMaintenance,
    ) -> BoxFuture<'static, Result<Deleted, DeleteError>> {
        let (answer, done) = oneshot::channel();
        let sent = self.to_maintenance.try_send(message(answer));
        Box::pin(async move {
            sent.map_err(|_| DeleteError::Stopped)?;
            done.await.unwrap_or(Err(DeleteError::Stopped))
        })
    }

    /// Figures now.
    pub fn stats(&self) -> EngineStats {
        let running = self.running.load();
        EngineStats {
            lsn: Lsn(running.shared.durable_lsn()),
            memtable_bytes: running.shared.memtable_bytes(),
            memtable_rows: running.shared.memtable_rows(),
            wal_bytes: running.wal.bytes_on_disk(),
        }
    }

    /// Flushes, then stops the threads. Later writes are refused. Blocks the calling thread.
    pub fn close(&self) {
        if self.to_maintenance.send(ToMaintenance::Stop).is_err() {
            tracing::warn!("the maintenance thread had stopped before");
        }
        let mut thread = self.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("a storage thread panicked");
        }
    }
}

fn write_loop(
    mut writer: ShardWriter,
    queue: &queue::FairReceiver<TenantId, ToWriter>,
    notify: &queue::Sender<ToMaintenance>,
    shared: &Shared,
    limits: &EngineLimits,
) {
    let mut flush_asked_at = 0usize;
    let ask_for_flush = |asked_at: &mut usize| {
        let memtable = shared.active_bytes();
        if shared.flush_due(limits.flush_bytes) && memtable >= *asked_at {
            // Ask again only after a good deal more, not for every write.
            *asked_at = memtable + limits.flush_bytes / 4;
            if notify.try_send(ToMaintenance::Flush(None)).is_err() {
                tracing::debug!("a flush is already waiting");
            }
        }
    };
    // What a replay brought back may be due already: a server that dies again and again before its
    // next write would else replay more every time.
    ask_for_flush(&mut flush_asked_at);
    let mut waiting = None;
    let mut stopping = false;
    let next = |stopping| if stopping { queue.try_recv() } else { queue.recv() };
    while let Some(message) = waiting.take().or_else(|| next(stopping)) {
        match message {
            // What waits already is still stored: the stop itself came before it.
            ToWriter::Stop => stopping = true,
            ToWriter::Seal(answer) => {
                flush_asked_at = 0;
                if answer.send(writer.seal()).is_err() {
                    tracing::error!("a sealed memtable has no flush; the next flush takes it");
                }
            }
            ToWriter::LetGo(idle, answer) => {
                if answer.send(writer.let_go(idle)).is_err() {
                    tracing::debug!("maintenance has ended before tenants were let go");
                }
            }
            ToWriter::Forget(tenant, table, answer) => {
                writer.forget_table(tenant, &table);
                if answer.send(()).is_err() {
                    tracing::debug!("maintenance has ended before a dropped table was forgotten");
                }
            }
            ToWriter::Write(request, answer) => {
                let mut bytes = request_bytes(&request);
                let mut group = vec![*request];
                let mut answers = vec![answer];
                while group.len() < limits.group_writes && bytes < limits.group_bytes {
                    match queue.try_recv() {
                        Some(ToWriter::Write(request, answer)) => {
                            bytes += request_bytes(&request);
                            group.push(*request);
                            answers.push(answer);
                        }
                        other => {
                            waiting = other;
                            break;
                        }
                    }
                }
                let receipts = writer.commit_group(group);
                for (answer, receipt) in answers.into_iter().zip(receipts) {
                    // The client has gone away: the rows are durable all the same.
                    drop(answer.send(receipt));
                }
                ask_for_flush(&mut flush_asked_at);
            }
        }
    }
}

fn request_bytes(request: &WriteRequest) -> usize {
    request.tables.iter().map(millrace_protocol::batch::TableBatch::memory_bytes).sum()
}

/// Why maintenance ended.
enum End {
    /// It was told to.
    Stop,
    /// Nothing more can be committed until the shard is opened again.
    Reopen,
}

fn maintain_loop(
    maintenance: &mut Maintenance,
    poisoned: &AtomicBool,
    queue: &queue::Receiver<ToMaintenance>,
    to_writer: &queue::FairSender<TenantId, ToWriter>,
    clock: &dyn Clock,
) -> End {
    let mut unfinished: Option<Sealed> = None;
    let mut failures = 0u32;
    let mut last = clock.monotonic();
    loop {
        let age = maintenance.limits.flush_age;
        let pressed = failures > 0 || maintenance.shared.memory().over_soft();
        let wait = if pressed { keeper::retry_after(failures).min(age) } else { age };
        let message = queue.recv_timeout(wait);
        let (stop, answer) = match message {
            Ok(Some(ToMaintenance::Flush(answer))) => (false, answer),
            Ok(Some(ToMaintenance::Retain)) => {
                retain(maintenance);
                if keeper::wants_reopening(maintenance, poisoned) {
                    return End::Reopen;
                }
                continue;
            }
            Ok(Some(ToMaintenance::Delete(request, answer))) => {
                let done = delete(maintenance, &mut unfinished, to_writer, *request);
                drop(answer.send(done));
                if keeper::wants_reopening(maintenance, poisoned) {
                    return End::Reopen;
                }
                continue;
            }
            Ok(Some(ToMaintenance::DropTable(tenant, table, answer))) => {
                let done = drop_table(maintenance, &mut unfinished, to_writer, tenant, &table);
                drop(answer.send(done));
                if keeper::wants_reopening(maintenance, poisoned) {
                    return End::Reopen;
                }
                continue;
            }
            Ok(Some(ToMaintenance::Stop)) | Err(()) => (true, None),
            Ok(None) => {
                let aged = clock.monotonic().saturating_sub(last) >= age;
                if !(pressed || aged) || maintenance.shared.memtable_rows() == 0 {
                    failures = 0;
                    retain(maintenance);
                    merge_what_waits(maintenance, queue);
                    let_go(maintenance, to_writer);
                    continue;
                }
                (false, None)
            }
        };
        last = clock.monotonic();
        let done = flush_once(maintenance, &mut unfinished, to_writer);
        failures = if done.is_ok() { 0 } else { failures.saturating_add(1) };
        if let Err(error) = &done {
            metrics::counter!(Metric::FlushFailures.name()).increment(1);
            tracing::error!(
                error,
                "a flush failed; its rows stay in the log and it is tried again"
            );
        }
        if let Some(answer) = answer {
            drop(answer.send(done));
        }
        if stop {
            return End::Stop;
        }
        if failures == 0 {
            retain(maintenance);
        }
        // Where a table waits for merges, the next flush waits for one of these, too.
        let mut forced = failures == 0 && maintenance.must_merge();
        while failures == 0 && (queue.is_empty() || std::mem::take(&mut forced)) {
            match futures::executor::block_on(maintenance.compact_once()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::error!(%error, "a merge failed; its inputs stay");
                    break;
                }
            }
        }
        if let Err(error) = futures::executor::block_on(maintenance.relocate_series()) {
            tracing::warn!(%error, "series could not be moved out of old files; tried again");
        }
        let swept = futures::executor::block_on(maintenance.sweep(clock.monotonic(), gc::GRACE));
        if let Err(error) = swept {
            tracing::warn!(%error, "merged files could not be removed and are tried again");
        }
        if keeper::wants_reopening(maintenance, poisoned) {
            return End::Reopen;
        }
        let_go(maintenance, to_writer);
    }
}

/// Lets go of what is out of retention.
fn retain(maintenance: &mut Maintenance) {
    loop {
        match futures::executor::block_on(maintenance.retain()) {
            Ok(report) if report.more => {}
            Ok(_) => return,
            Err(error) => {
                tracing::error!(%error, "what is out of retention could not be let go; tried again");
                return;
            }
        }
    }
}

/// What time alone has made due: files with deleted rows.
fn merge_what_waits(maintenance: &mut Maintenance, queue: &queue::Receiver<ToMaintenance>) {
    while queue.is_empty() {
        match futures::executor::block_on(maintenance.compact_once()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::error!(%error, "a merge failed; its inputs stay");
                return;
            }
        }
    }
}

/// Flushes what is acknowledged now, whatever an earlier flush left.
fn flush_all(
    maintenance: &mut Maintenance,
    unfinished: &mut Option<Sealed>,
    to_writer: &queue::FairSender<TenantId, ToWriter>,
) -> Result<(), DeleteError> {
    for _ in 0..=usize::from(unfinished.is_some()) {
        flush_once(maintenance, unfinished, to_writer).map_err(DeleteError::Flush)?;
    }
    Ok(())
}

fn delete(
    maintenance: &mut Maintenance,
    unfinished: &mut Option<Sealed>,
    to_writer: &queue::FairSender<TenantId, ToWriter>,
    request: DeleteRequest,
) -> Result<Deleted, DeleteError> {
    maintenance.deletable(request.tenant, &request.table)?;
    flush_all(maintenance, unfinished, to_writer)?;
    futures::executor::block_on(maintenance.delete(request))
}

/// Order: no new rows, everything in files, the record, the writer's own picture.
fn drop_table(
    maintenance: &mut Maintenance,
    unfinished: &mut Option<Sealed>,
    to_writer: &queue::FairSender<TenantId, ToWriter>,
    tenant: TenantId,
    table: &TableName,
) -> Result<Deleted, DeleteError> {
    let handle = maintenance.deletable(tenant, table)?;
    handle.close(true);
    let done = flush_all(maintenance, unfinished, to_writer)
        .and_then(|()| futures::executor::block_on(maintenance.drop_table(tenant, table, &handle)));
    if done.is_err() {
        handle.close(false);
        return done;
    }
    let (answer, forgotten) = oneshot::channel();
    if to_writer.send_first(ToWriter::Forget(tenant, table.clone(), answer)).is_ok()
        && futures::executor::block_on(forgotten).is_err()
    {
        tracing::debug!("the writer has ended before it forgot a dropped table");
    }
    done
}

/// Lets go of idle tenants. It waits for the writer, so that no flush and no merge runs meanwhile.
fn let_go(maintenance: &mut Maintenance, to_writer: &queue::FairSender<TenantId, ToWriter>) {
    let idle = match maintenance.idle() {
        Ok(idle) if idle.is_empty() => return,
        Ok(idle) => idle,
        Err(error) => {
            tracing::warn!(%error, "idle tenants stay in memory");
            return;
        }
    };
    let (answer, done) = oneshot::channel();
    if to_writer.send_first(ToWriter::LetGo(idle, answer)).is_err() {
        return;
    }
    if let Ok(gone) = futures::executor::block_on(done) {
        maintenance.let_gone(gone);
    }
}

fn flush_once(
    maintenance: &mut Maintenance,
    unfinished: &mut Option<Sealed>,
    to_writer: &queue::FairSender<TenantId, ToWriter>,
) -> Result<FlushReport, String> {
    let sealed = match unfinished.take() {
        Some(sealed) => sealed,
        None => {
            let (answer, done) = oneshot::channel();
            to_writer
                .send_first(ToWriter::Seal(answer))
                .map_err(|_| "the writer has stopped".to_owned())?;
            futures::executor::block_on(done).map_err(|_| "the writer has stopped".to_owned())?
        }
    };
    futures::executor::block_on(maintenance.flush(&sealed)).map_err(|e| {
        *unfinished = Some(sealed);
        e.to_string()
    })
}
