//! Starts everything and keeps it running: the queue's thread, the sources, the uplink, status.
//!
//! Owns: restarts. Invariant: E12 a source that panics or ends is started again by itself and
//! takes nothing else down.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use millrace_platform::{
    clock::{Clock, SystemClock},
    disk::{Disk, RealDisk},
    entropy::{Entropy, OsEntropy},
    net::TcpDialer,
};
use tokio::sync::{Notify, mpsc};

use crate::{
    gap::{self, Cause},
    identity::{self, Identity, IdentityError},
    queue::{Queue, QueueError},
    source::{self, Group, Sink, SourceKind},
    status::{self, Status},
    uplink::{Seen, Uplink},
};

/// Groups that wait for the queue's thread.
const GROUPS_MAX: usize = 64;
/// Groups that one sync covers.
const GROUPS_PER_SYNC: usize = 32;
/// How often the status file is written.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long a stop waits for acks of what is queued.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause before a source is started again.
const RESTART: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Sources.
    pub sources: Vec<SourceKind>,
    /// Pause between two samples of host metrics.
    pub interval: Duration,
    /// Bytes that the queue may take.
    pub queue_bytes: u64,
    /// Database for all rows.
    pub database: String,
}

/// Why the forwarder cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Queue.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Another forwarder.
    #[error("{0} is in use by another forwarder")]
    Locked(String),
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Runs until a signal.
pub async fn run(plan: Plan) -> Result<(), RunError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let identity = Arc::new(Identity::load(disk.as_ref(), &plan.data_dir)?);
    let _lock = disk
        .lock_exclusive(&plan.data_dir.join("lock"))
        .map_err(|_| RunError::Locked(plan.data_dir.display().to_string()))?;
    let queue = Arc::new(Queue::open(
        Arc::clone(&disk),
        Arc::clone(&entropy),
        identity.queue_keys(),
        identity.device,
        &plan.data_dir.join("queue"),
    )?);
    let fresh = Arc::new(Notify::new());
    let (groups, incoming) = mpsc::channel(GROUPS_MAX);
    {
        let (queue, fresh, clock) = (Arc::clone(&queue), Arc::clone(&fresh), Arc::clone(&clock));
        let cap = plan.queue_bytes;
        std::thread::Builder::new()
            .name("queue".into())
            .spawn(move || queue_loop(&queue, incoming, &fresh, clock.as_ref(), cap))?;
    }
    let (gaps, gap_records) = mpsc::channel(GROUPS_MAX);
    tokio::spawn(forward_gaps(gap_records, groups.clone(), Arc::clone(&clock)));
    let restarts: Arc<Mutex<BTreeMap<String, u64>>> = Arc::default();
    let mut sources = tokio::task::JoinSet::new();
    for kind in plan.sources.clone() {
        let sink = Sink {
            name: kind.name(),
            queue: groups.clone(),
            clock: Arc::clone(&clock),
            database: plan.database.clone(),
        };
        sources.spawn(keep_running(
            kind,
            sink,
            Arc::clone(&queue),
            plan.interval,
            Arc::clone(&restarts),
        ));
    }
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let uplink = Uplink {
        queue: Arc::clone(&queue),
        identity,
        clock: Arc::clone(&clock),
        entropy,
        dialer: Arc::new(TcpDialer),
        fresh,
        gaps,
        seen: Arc::clone(&seen),
    };
    tokio::spawn(uplink.run());
    let report = || {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let acked = queue.acknowledged();
        let status = Status {
            time_ns: clock.now_ns(),
            connected: seen.connected,
            last_error: seen.last_error,
            rows_acked: acked.values().sum(),
            acked,
            rows_queued: queue.rows_queued(),
            frames_in_flight: seen.in_flight,
            queue_bytes: queue.bytes(),
            sources: restarts.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        if let Err(error) = status::write(disk.as_ref(), &plan.data_dir, &status) {
            tracing::warn!(%error, "the status file cannot be written");
        }
    };
    let mut signal = Box::pin(stop_signal());
    loop {
        report();
        tokio::select! {
            () = clock.sleep(STATUS_EVERY) => {}
            () = &mut signal => break,
        }
    }
    tracing::info!("stopping; what is not acknowledged stays in the queue");
    // No source adds rows any more; what is queued gets a moment to be delivered.
    sources.shutdown().await;
    let deadline = clock.monotonic() + DRAIN;
    while queue.rows_pending() > 0 && clock.monotonic() < deadline {
        clock.sleep(Duration::from_millis(50)).await;
    }
    report();
    Ok(())
}

async fn stop_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    match signal(SignalKind::terminate()) {
        Ok(mut terminate) => tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// Starts a source again whenever it panics or ends.
async fn keep_running(
    kind: SourceKind,
    sink: Sink,
    queue: Arc<Queue>,
    interval: Duration,
    restarts: Arc<Mutex<BTreeMap<String, u64>>>,
) {
    let mut pause = RESTART.0;
    loop {
        let run = {
            let sink = sink.clone();
            match kind.clone() {
                SourceKind::HostMetrics => {
                    source::host::run(sink, interval, identity::host_name()).boxed()
                }
                SourceKind::Stdin => source::stdin::run(sink).boxed(),
                SourceKind::Tail(path) => {
                    let start = queue.position(&sink.name);
                    source::tail::run(sink, path, start).boxed()
                }
            }
        };
        // In a set, so that the source ends with this task when the forwarder stops.
        let mut running = tokio::task::JoinSet::new();
        running.spawn(run);
        let panicked = matches!(running.join_next().await, Some(Err(_)));
        tracing::error!(source = sink.name, panicked, "a source ended and is started again");
        let now = sink.clock.now_ns();
        if let Some(record) = gap::record(&sink.name, Cause::SourceDown, now, now, 0, "restarted") {
            let (done, _) = tokio::sync::oneshot::channel();
            drop(sink.queue.send(Group { frames: vec![record], droppable: true, done }).await);
        }
        *restarts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(sink.name.clone())
            .or_insert(0) += 1;
        sink.clock.sleep(pause).await;
        pause = (pause * 2).min(RESTART.1);
    }
}

/// Puts gap records into the queue, again and again until they are durable.
async fn forward_gaps(
    mut records: mpsc::Receiver<crate::queue::Incoming>,
    groups: mpsc::Sender<Group>,
    clock: Arc<dyn Clock>,
) {
    while let Some(record) = records.recv().await {
        loop {
            let (done, answer) = tokio::sync::oneshot::channel();
            let group = Group { frames: vec![record.clone()], droppable: false, done };
            if groups.send(group).await.is_err() {
                return;
            }
            if answer.await.unwrap_or(false) {
                break;
            }
            clock.sleep(RESTART.0).await;
        }
    }
}

/// Answers a source, which may have been stopped meanwhile.
fn tell(done: tokio::sync::oneshot::Sender<bool>, durable: bool) {
    if done.send(durable).is_err() {
        tracing::debug!("a source has gone before its answer");
    }
}

/// The queue's thread: one sync for all groups that wait.
fn queue_loop(
    queue: &Queue,
    mut incoming: mpsc::Receiver<Group>,
    fresh: &Notify,
    clock: &dyn Clock,
    cap: u64,
) {
    let mut dropped = 0u64;
    let mut dropped_since = 0i64;
    while let Some(first) = incoming.blocking_recv() {
        let mut groups = vec![first];
        while groups.len() < GROUPS_PER_SYNC {
            match incoming.try_recv() {
                Ok(group) => groups.push(group),
                Err(_) => break,
            }
        }
        let full = queue.bytes() >= cap;
        let mut frames = Vec::new();
        let mut waiting = Vec::new();
        for group in groups {
            let gap = group.frames.iter().all(|f| f.stream.as_str() == gap::STREAM);
            if full && !gap {
                if group.droppable {
                    if dropped == 0 {
                        dropped_since = clock.now_ns();
                    }
                    dropped += group.frames.iter().map(|f| f.batch.rows() as u64).sum::<u64>();
                }
                // A source that can wait offers its rows again.
                tell(group.done, group.droppable);
                continue;
            }
            frames.extend(group.frames);
            waiting.push(group.done);
        }
        if !full && dropped > 0 {
            let now = clock.now_ns();
            frames.extend(gap::record(
                "host",
                Cause::BufferFull,
                dropped_since,
                now,
                dropped,
                "the queue was full",
            ));
            dropped = 0;
        }
        let durable = match queue.append(&frames) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, "rows could not be queued; their sources offer them again");
                false
            }
        };
        for done in waiting {
            tell(done, durable);
        }
        fresh.notify_one();
    }
}
