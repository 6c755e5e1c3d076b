//! The storage engine: the only public door.
//!
//! Owns: the shard's threads and the order of start and stop. `Shard` is the same engine without
//! threads, for simulation: every step happens when the caller says so.
//! Never: asks who is calling; knows HTTP, SQL or a policy.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{channel::oneshot, future::BoxFuture};
use millrace_crypto::key::{KeyError, TenantKeySource};
use millrace_platform::{
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
use millrace_wal::{Replayed, Wal};
use object_store::ObjectStore;

use crate::{
    column_file::{
        bundle::SectionRef,
        reader::{ColumnFileError, read_section},
    },
    files::{FileAccess, FileCache},
    flush::{FlushError, FlushReport, Maintenance},
    gc::{self, Garbage, SweepError},
    limits::EngineLimits,
    manifest::{ManifestError, ManifestStore},
    object::local::DurableLocalStore,
    planted::{Bug, planted},
    series::{dictionary::SeriesDictionary, section},
    shard::{
        replay::{self, ReplayError, ReplayReport},
        table::TableHandle,
        tenant::{Tables, TenantHandle},
        watermark::Watermarks,
        writer::{Receipt, Sealed, ShardWriter, WriteError, WriteRequest},
    },
    shared::Shared,
    snapshot::{self, TenantSnapshot},
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
    /// A series section.
    #[error("series of table `{table}`: {detail}")]
    Series {
        /// The table.
        table: String,
        /// What is wrong.
        detail: String,
    },
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
}

/// The engine without threads.
#[derive(Debug)]
pub struct Shard {
    writer: ShardWriter,
    maintenance: Maintenance,
    unfinished: Option<Sealed>,
    /// What replay did at the start.
    pub replay: ReplayReport,
}

impl Shard {
    /// Recovers: manifest, series, log; then a new epoch and a new log segment are open.
    pub async fn open(config: EngineConfig) -> Result<Self, OpenError> {
        let EngineConfig { disk, clock, entropy, dir, keys, limits } = config;
        let wal_dir = dir.join("shard/0/wal");
        for path in [&dir, &wal_dir] {
            disk.create_dir_all(path)
                .map_err(|source| OpenError::Directory { path: path.clone(), source })?;
        }
        let store = open_store(&disk, &dir, entropy.as_ref())
            .map_err(|source| OpenError::Directory { path: dir.clone(), source })?;
        let manifest = ManifestStore::open(
            Arc::clone(&store),
            Arc::clone(&keys),
            Arc::clone(&entropy),
            0,
            limits.checkpoint_every,
        )
        .await?;
        let shared = Arc::new(Shared::default());
        let cache = Arc::new(FileCache::new(limits.open_files));
        let current = manifest.current();
        for (id, tenant) in &current.tenants {
            let tenant_keys = match keys.current(&id.0) {
                Ok(keys) => keys,
                Err(KeyError::Gone { .. }) => continue,
                // Left out, it would be taken for new at its next write, its files forgotten.
                Err(e) => return Err(OpenError::Keys(e)),
            };
            let mut tables = Tables::new();
            for table in tenant.tables.values() {
                let dictionary = SeriesDictionary::new(tenant_keys.series_secret());
                for part in &table.series_sections {
                    let body = read_section(&store, &keys, *id, &part.section).await;
                    load_series(&dictionary, &table.schema, &part.section, body)?;
                }
                let handle = TableHandle::new(
                    table.database.clone(),
                    table.schema.clone(),
                    dictionary,
                    table.files.clone(),
                    true,
                );
                let name = (table.database.clone(), table.schema.name.clone());
                tables.insert(name, Arc::new(handle));
            }
            let mut marks = Watermarks::default();
            for (key, state) in &tenant.streams {
                marks.reset(key, state.hi);
            }
            shared.insert(TenantHandle::new(*id, tables, marks), tenant.next_table_id);
        }
        shared.note_lsn(current.flushed_lsn);
        let options =
            millrace_wal::Options { segment_bytes: limits.segment_bytes, ..Default::default() };
        let segment_keys = Arc::new(millrace_wal::TenantSegmentKeys::new(Arc::clone(&keys)));
        let (wal, recovery) = Wal::open(disk, &wal_dir, segment_keys, entropy.as_ref(), options)?;
        if wal.next_lsn() <= current.flushed_lsn {
            return Err(OpenError::LogBehind {
                log: wal.next_lsn(),
                manifest: current.flushed_lsn,
            });
        }
        let mut report = ReplayReport::default();
        let from = current.flushed_lsn + 1 + u64::from(planted(Bug::ReplaySkipsOne));
        let replayed = recovery.read(from, &mut |replayed| -> Result<(), OpenError> {
            match replayed {
                Replayed::Frame(frame) => {
                    replay::apply(&frame, &shared, keys.as_ref(), &mut report)?;
                }
                Replayed::KeyGone { lsn, .. } => {
                    report.keys_gone += 1;
                    shared.note_lsn(lsn);
                }
            }
            Ok(())
        });
        if !planted(Bug::ReplayErrorSwallowed) {
            replayed?;
        }
        let wal = Arc::new(wal);
        let writer = ShardWriter::new(
            Arc::clone(&wal),
            Arc::clone(&keys),
            clock,
            limits.clone(),
            Arc::clone(&shared),
            shared.durable_lsn(),
        );
        let maintenance = Maintenance {
            manifest,
            store,
            keys,
            entropy,
            shared,
            cache,
            limits,
            wal,
            garbage: Garbage::default(),
        };
        // Nobody reads yet: whatever no manifest names is left over from a crash.
        let mut maintenance = maintenance;
        maintenance.sweep(Duration::ZERO, Duration::ZERO).await?;
        Ok(Self { writer, maintenance, unfinished: None, replay: report })
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
        }
        done
    }

    /// Does one merge job; returns whether there was one.
    pub async fn compact_once(&mut self) -> Result<bool, FlushError> {
        self.maintenance.compact_once().await
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

    /// One tenant's tables now.
    pub fn snapshot(&self, tenant: TenantId) -> Result<TenantSnapshot, SnapshotError> {
        take_snapshot(&self.maintenance.shared, &self.maintenance.access(tenant))
    }

    /// The durable watermark of a stream; 0 if it is new.
    pub fn watermark(&self, tenant: TenantId, key: &StreamKey) -> SeqNo {
        watermark(&self.maintenance.shared, tenant, key)
    }
}

/// The store of manifest and data, without what a crash left half-written. The log's folder is
/// not among those swept: the log knows its own files.
fn open_store(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    entropy: &dyn Entropy,
) -> std::io::Result<Arc<dyn ObjectStore>> {
    let store = DurableLocalStore::open(Arc::clone(disk), dir, entropy)?;
    let mut swept = 0;
    for folder in ["data", "shard/0/m", "shard/0/c", "shard/0/epoch"] {
        swept += store.sweep(&folder.into())?;
    }
    if swept > 0 {
        tracing::info!(files = swept, "files that were being written at the last end are removed");
    }
    Ok(Arc::new(store))
}

fn load_series(
    dictionary: &SeriesDictionary,
    schema: &crate::schema::TableSchema,
    at: &SectionRef,
    body: Result<bytes::Bytes, ColumnFileError>,
) -> Result<(), OpenError> {
    let fail = |detail: String| OpenError::Series { table: schema.name.clone(), detail };
    let body = body.map_err(|e| fail(e.to_string()))?;
    let damaged = |e: &dyn std::fmt::Display| fail(format!("{at}: {e}"));
    for (sid, key) in section::decode(&body).map_err(|e| damaged(&e))? {
        dictionary.restore(sid, &key, &schema.tags).map_err(|e| damaged(&e))?;
    }
    Ok(())
}

fn watermark(shared: &Shared, tenant: TenantId, key: &StreamKey) -> SeqNo {
    shared.tenant(tenant).map(|t| t.durable(key)).unwrap_or_default()
}

fn take_snapshot(shared: &Shared, access: &FileAccess) -> Result<TenantSnapshot, SnapshotError> {
    match access.keys.current(&access.tenant.0) {
        Ok(_) => {}
        Err(KeyError::Gone { .. }) => return Err(SnapshotError::TenantGone),
        Err(e) => return Err(SnapshotError::KeysUnavailable(e.to_string())),
    }
    // Position before tables: whatever was acknowledged up to it is in the tables.
    let lsn = shared.durable_lsn();
    Ok(match shared.tenant(access.tenant) {
        Some(tenant) => snapshot::take(&tenant, lsn, access),
        None => TenantSnapshot {
            tenant: access.tenant,
            lsn: Lsn(lsn),
            databases: std::collections::BTreeMap::new(),
        },
    })
}

type Answer = oneshot::Sender<Result<Receipt, WriteError>>;

#[derive(Debug)]
enum ToWriter {
    Write(Box<WriteRequest>, Answer),
    Seal(oneshot::Sender<Sealed>),
    Stop,
}

#[derive(Debug)]
enum ToMaintenance {
    /// Flush now; answer if asked.
    Flush(Option<oneshot::Sender<Result<FlushReport, String>>>),
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

/// See the module head.
#[derive(Debug)]
pub struct Engine {
    to_writer: queue::Sender<ToWriter>,
    to_maintenance: queue::Sender<ToMaintenance>,
    shared: Arc<Shared>,
    access: FileAccess,
    wal: Arc<Wal>,
    limits: EngineLimits,
    threads: std::sync::Mutex<Vec<std::thread::JoinHandle<()>>>,
    /// What replay did at the start.
    pub replay: ReplayReport,
}

impl Engine {
    /// Recovers and starts the shard's writer and maintenance threads.
    pub fn open(config: EngineConfig) -> BoxFuture<'static, Result<Self, OpenError>> {
        Box::pin(async move {
            let clock = Arc::clone(&config.clock);
            let shard = Shard::open(config).await?;
            Self::start(shard, clock).map_err(OpenError::Thread)
        })
    }

    fn start(shard: Shard, clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let Shard { writer, maintenance, replay, .. } = shard;
        let limits = maintenance.limits.clone();
        let (to_writer, writer_queue) = queue::bounded("shard_writer", limits.queue.max(1));
        let (to_maintenance, maintenance_queue) = queue::bounded("maintenance", 64);
        let shared = Arc::clone(&maintenance.shared);
        let access = maintenance.access(TenantId::default());
        let wal = Arc::clone(&maintenance.wal);
        let write_thread = {
            let limits = limits.clone();
            let notify = to_maintenance.clone();
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("shard-writer".into())
                .spawn(move || write_loop(writer, &writer_queue, &notify, &shared, &limits))?
        };
        let maintain_thread = {
            let to_writer = to_writer.clone();
            std::thread::Builder::new().name("maintenance".into()).spawn(move || {
                maintain_loop(maintenance, &maintenance_queue, &to_writer, clock.as_ref())
            })?
        };
        let threads = std::sync::Mutex::new(vec![write_thread, maintain_thread]);
        Ok(Self { to_writer, to_maintenance, shared, access, wal, limits, threads, replay })
    }

    /// Stores rows; ready when they are durable and visible.
    pub fn write(&self, request: WriteRequest) -> BoxFuture<'static, Result<Receipt, WriteError>> {
        if self.shared.memtable_bytes() > self.limits.memtable_bytes_max {
            return Box::pin(async {
                Err(WriteError::Busy("memory is full until a flush is done"))
            });
        }
        let (answer, done) = oneshot::channel();
        let sent = self.to_writer.try_send(ToWriter::Write(Box::new(request), answer));
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
        watermark(&self.shared, tenant, key)
    }

    /// One tenant's tables now; never blocks the writer.
    pub fn snapshot(&self, tenant: TenantId) -> Result<Arc<TenantSnapshot>, SnapshotError> {
        let access = FileAccess { tenant, ..self.access.clone() };
        take_snapshot(&self.shared, &access).map(Arc::new)
    }

    /// What the tenant's views are made of (stats.rs).
    pub(crate) fn tenant_handle(&self, tenant: TenantId) -> Option<Arc<TenantHandle>> {
        self.shared.tenant(tenant)
    }

    /// Forgets cached files of a tenant whose keys were destroyed.
    pub fn purge(&self, tenant: TenantId) {
        self.access.cache.purge(tenant);
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

    /// Figures now.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            lsn: Lsn(self.shared.durable_lsn()),
            memtable_bytes: self.shared.memtable_bytes(),
            memtable_rows: self.shared.memtable_rows(),
            wal_bytes: self.wal.bytes_on_disk(),
        }
    }

    /// Flushes, then stops the threads. Later writes are refused. Blocks the calling thread.
    pub fn close(&self) {
        if self.to_maintenance.send(ToMaintenance::Stop).is_err() {
            tracing::warn!("the maintenance thread had stopped before");
        }
        let mut threads = self.threads.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Maintenance first: its last flush needs the writer.
        while let Some(thread) = threads.pop() {
            if thread.join().is_err() {
                tracing::error!("a storage thread panicked");
            }
            if self.to_writer.send(ToWriter::Stop).is_err() {
                tracing::debug!("the writer has stopped");
            }
        }
    }
}

fn write_loop(
    mut writer: ShardWriter,
    queue: &queue::Receiver<ToWriter>,
    notify: &queue::Sender<ToMaintenance>,
    shared: &Shared,
    limits: &EngineLimits,
) {
    let mut flush_asked_at = 0usize;
    let ask_for_flush = |asked_at: &mut usize| {
        let memtable = shared.memtable_bytes();
        if memtable >= limits.flush_bytes && memtable >= *asked_at {
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
    while let Some(message) = waiting.take().or_else(|| queue.recv()) {
        match message {
            ToWriter::Stop => return,
            ToWriter::Seal(answer) => {
                flush_asked_at = 0;
                if answer.send(writer.seal()).is_err() {
                    tracing::error!("a sealed memtable has no flush; the next flush takes it");
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

fn maintain_loop(
    mut maintenance: Maintenance,
    queue: &queue::Receiver<ToMaintenance>,
    to_writer: &queue::Sender<ToWriter>,
    clock: &dyn Clock,
) {
    let mut unfinished: Option<Sealed> = None;
    let mut last = clock.monotonic();
    loop {
        let age = maintenance.limits.flush_age;
        let message = queue.recv_timeout(age);
        let (stop, answer) = match message {
            Ok(Some(ToMaintenance::Flush(answer))) => (false, answer),
            Ok(Some(ToMaintenance::Stop)) | Err(()) => (true, None),
            Ok(None) => {
                if clock.monotonic().saturating_sub(last) < age
                    || maintenance.shared.memtable_rows() == 0
                {
                    continue;
                }
                (false, None)
            }
        };
        last = clock.monotonic();
        let done = flush_once(&mut maintenance, &mut unfinished, to_writer);
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
            return;
        }
        while queue.is_empty() {
            match futures::executor::block_on(maintenance.compact_once()) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::error!(%error, "a merge failed; its inputs stay");
                    break;
                }
            }
        }
        let swept = futures::executor::block_on(maintenance.sweep(clock.monotonic(), gc::GRACE));
        if let Err(error) = swept {
            tracing::warn!(%error, "merged files could not be removed and are tried again");
        }
    }
}

fn flush_once(
    maintenance: &mut Maintenance,
    unfinished: &mut Option<Sealed>,
    to_writer: &queue::Sender<ToWriter>,
) -> Result<FlushReport, String> {
    let sealed = match unfinished.take() {
        Some(sealed) => sealed,
        None => {
            let (answer, done) = oneshot::channel();
            to_writer
                .send(ToWriter::Seal(answer))
                .map_err(|_| "the writer has stopped".to_owned())?;
            futures::executor::block_on(done).map_err(|_| "the writer has stopped".to_owned())?
        }
    };
    futures::executor::block_on(maintenance.flush(&sealed)).map_err(|e| {
        *unfinished = Some(sealed);
        e.to_string()
    })
}
