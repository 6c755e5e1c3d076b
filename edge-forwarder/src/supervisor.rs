//! Starts everything and keeps it running: the queue's thread, the sources, the uplink, status.
//!
//! Owns: restarts, the status file, the stop. Never: goes on when the queue's thread has died: the
//! process ends with an error, and the service manager starts it again. Invariant: E12 a source that panics or ends is started again by itself and
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
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    backoff::Backoff,
    delivery::Share,
    gap::{Cause, Gap},
    identity::{self, Identity, IdentityError},
    intake::{Intake, Room},
    quarantine,
    queue::{Aside, Ground, Queue, QueueError, Sizes, list_aside},
    source::{self, Sink, SourceKind},
    status::{self, Status},
    uplink::{self, Connection, Seen, Uplink},
};

/// Groups that wait for the queue's thread.
const GROUPS_MAX: usize = 64;
/// How often the status file is looked at, and written if more than its time has changed.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// The status file is written this often even if nothing changed.
const STATUS_AT_LEAST: Duration = Duration::from_secs(30);
/// How long a stop waits for acks of what is queued.
const DRAIN: Duration = Duration::from_secs(5);
/// Pause before a source is started again; one that ran for the longest pause starts afresh.
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
    /// How live rows and backfill share the link.
    pub share: Share,
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
    #[error("{0} is in use by another forwarder; stop it, or use another --data-dir")]
    Locked(String),
    /// The queue's thread.
    #[error("the queue's thread has ended unexpectedly; the log says why")]
    QueueDied,
    /// The system.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

type Restarts = Arc<Mutex<BTreeMap<String, u64>>>;

/// What the status is made of.
struct Watch {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    data_dir: PathBuf,
    queue: Arc<Queue>,
    seen: Arc<Mutex<Seen>>,
    room: Arc<Mutex<Room>>,
    restarts: Restarts,
    last: Mutex<(Option<Status>, Duration)>,
}

fn copy<T: Clone>(of: &Mutex<T>) -> T {
    of.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl Watch {
    fn status(&self) -> Status {
        let seen = copy(&self.seen);
        let acked = self.queue.acknowledged();
        Status {
            time_ns: self.clock.now_ns(),
            connected: seen.connected,
            last_error: seen.last_error,
            room: copy(&self.room),
            rows_acked: acked.values().sum(),
            acked,
            rows_queued: self.queue.rows_queued(),
            rows_pending: self.queue.rows_pending(),
            rows_live: self.queue.rows_live(),
            put_aside: self.queue.aside().len() as u64,
            frames_in_flight: seen.in_flight,
            queue_bytes: self.queue.bytes(),
            sources: copy(&self.restarts),
        }
    }

    /// Gaps become rows, and the file is written if it would say something new: each write is two
    /// syncs, and flash wears out.
    fn report(&self, always: bool) {
        if let Err(error) = self.queue.flush_gaps() {
            tracing::debug!(%error, "gaps wait in the queue's state");
        }
        quarantine::answer(self.disk.as_ref(), &self.data_dir, &self.queue);
        let status = self.status();
        let now = self.clock.monotonic();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            last.0.as_ref().is_some_and(|l| Status { time_ns: l.time_ns, ..status.clone() } == *l);
        if same && !always && now.saturating_sub(last.1) < STATUS_AT_LEAST {
            return;
        }
        match status::write(self.disk.as_ref(), &self.data_dir, &status) {
            Ok(()) => *last = (Some(status), now),
            Err(error) => tracing::warn!(%error, "the status file cannot be written"),
        }
    }
}

fn lock(
    disk: &dyn Disk,
    dir: &std::path::Path,
) -> Result<millrace_platform::disk::DiskLock, RunError> {
    disk.lock_exclusive(&dir.join("lock")).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => RunError::Locked(dir.display().to_string()),
        _ => RunError::Io(e),
    })
}

fn ground(disk: &Arc<dyn Disk>, identity: &Identity) -> Ground {
    Ground {
        disk: Arc::clone(disk),
        entropy: Arc::new(OsEntropy),
        clock: Arc::new(SystemClock::new()),
        keys: identity.queue_keys(),
    }
}

/// What the server refused and is kept in this data directory.
pub fn put_aside(data_dir: &std::path::Path) -> Result<Vec<Aside>, RunError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let identity = Identity::load(disk.as_ref(), data_dir)?;
    Ok(list_aside(&ground(&disk, &identity), identity.device, &data_dir.join("queue"))?)
}

/// Has rows sent again that were put aside: by the running forwarder (`None`), or here.
pub fn send_again(
    data_dir: &std::path::Path,
    request: &quarantine::Request,
) -> Result<Option<(usize, u64)>, RunError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let identity = Identity::load(disk.as_ref(), data_dir)?;
    let _lock = match lock(disk.as_ref(), data_dir) {
        Ok(lock) => lock,
        Err(RunError::Locked(_)) => {
            quarantine::ask(disk.as_ref(), data_dir, request)?;
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let dir = data_dir.join("queue");
    let queue = Queue::open(&ground(&disk, &identity), identity.device, &dir, Sizes::default())?;
    Ok(Some(quarantine::retry(&queue, request)?))
}

/// Renews the certificate now; for when it should not wait. No forwarder may run.
pub async fn renew(data_dir: &std::path::Path) -> Result<i64, RunError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let identity = Identity::load(disk.as_ref(), data_dir)?;
    let _lock = lock(disk.as_ref(), data_dir)?;
    let refused = |why: String| RunError::Io(std::io::Error::other(why));
    let connection = Connection::open(&identity, Arc::new(TcpDialer)).await;
    let connection = connection.map_err(|e| refused(e.to_string()))?;
    let home = (disk, data_dir.to_owned());
    Ok(uplink::renewed(&connection, &home).await.map_err(refused)?.not_after_ns)
}

/// Runs until a signal.
pub async fn run(plan: Plan) -> Result<(), RunError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let identity = Arc::new(Identity::load(disk.as_ref(), &plan.data_dir)?);
    let _lock = lock(disk.as_ref(), &plan.data_dir)?;
    let ground = Ground {
        disk: Arc::clone(&disk),
        entropy: Arc::clone(&entropy),
        clock: Arc::clone(&clock),
        keys: identity.queue_keys(),
    };
    let dir = plan.data_dir.join("queue");
    let queue = Arc::new(Queue::open(&ground, identity.device, &dir, Sizes::default())?);
    let fresh = Arc::new(Notify::new());
    let room: Arc<Mutex<Room>> = Arc::default();
    let (offers, incoming) = mpsc::channel(GROUPS_MAX);
    let (alive, mut died) = oneshot::channel::<()>();
    {
        let intake = Intake {
            queue: Arc::clone(&queue),
            clock: Arc::clone(&clock),
            cap: plan.queue_bytes,
            room: Arc::clone(&room),
        };
        let fresh = Arc::clone(&fresh);
        std::thread::Builder::new().name("queue".into()).spawn(move || {
            // Dropped when the thread ends, however it ends.
            let _alive = alive;
            intake.run(incoming, &fresh);
        })?;
    }
    let restarts = Restarts::default();
    let mut tasks = tokio::task::JoinSet::new();
    for kind in plan.sources.clone() {
        let sink = Sink {
            name: kind.name(),
            device: identity.device,
            offers: offers.clone(),
            queue: Arc::clone(&queue),
            clock: Arc::clone(&clock),
            entropy: Arc::clone(&entropy),
            database: plan.database.clone(),
        };
        tasks.spawn(keep_running(kind, sink, plan.interval, Arc::clone(&restarts)));
    }
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let uplink = Arc::new(Uplink {
        queue: Arc::clone(&queue),
        identity: Mutex::new(identity),
        home: (Arc::clone(&disk), plan.data_dir.clone()),
        clock: Arc::clone(&clock),
        entropy,
        dialer: Arc::new(TcpDialer),
        share: plan.share,
        fresh,
        seen: Arc::clone(&seen),
    });
    tokio::spawn(keep_delivering(uplink, Arc::clone(&clock)));
    let last = Mutex::new((None, Duration::ZERO));
    let watch = Watch {
        disk,
        clock: Arc::clone(&clock),
        data_dir: plan.data_dir.clone(),
        queue: Arc::clone(&queue),
        seen,
        room,
        restarts,
        last,
    };
    let mut signal = Box::pin(stop_signal());
    loop {
        tokio::task::block_in_place(|| watch.report(false));
        tokio::select! {
            () = clock.sleep(STATUS_EVERY) => {}
            () = &mut signal => break,
            _ = &mut died => return Err(RunError::QueueDied),
        }
    }
    tracing::info!("stopping; what is not acknowledged stays in the queue");
    // No source adds rows any more; what is queued gets a moment to be delivered.
    tasks.shutdown().await;
    let deadline = clock.monotonic() + DRAIN;
    while queue.rows_pending() > 0 && clock.monotonic() < deadline {
        clock.sleep(Duration::from_millis(50)).await;
    }
    // What was acknowledged need not be asked for at the next start.
    if let Err(error) = queue.settle(queue.settled()) {
        tracing::warn!(%error, "what was acknowledged could not be stored");
    }
    watch.report(true);
    Ok(())
}

/// Starts delivery again if it panics.
async fn keep_delivering(uplink: Arc<Uplink>, clock: Arc<dyn Clock>) {
    loop {
        let again = Arc::clone(&uplink);
        let mut running = tokio::task::JoinSet::new();
        running.spawn(async move { again.run().await });
        drop(running.join_next().await);
        tracing::error!("delivery ended unexpectedly and is started again");
        clock.sleep(RESTART.0).await;
    }
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
async fn keep_running(kind: SourceKind, sink: Sink, interval: Duration, restarts: Restarts) {
    let mut backoff = Backoff::new(RESTART.0, RESTART.1);
    loop {
        let started = sink.clock.monotonic();
        let run = {
            let sink = sink.clone();
            match kind.clone() {
                SourceKind::HostMetrics => {
                    source::host::run(sink, interval, identity::host_name()).boxed()
                }
                SourceKind::Stdin => source::stdin::run(sink).boxed(),
                SourceKind::Modbus(device) => {
                    source::modbus::run(sink, *device, Arc::new(TcpDialer)).boxed()
                }
                SourceKind::Mqtt(broker) => {
                    source::mqtt::run(sink, *broker, Arc::new(TcpDialer)).boxed()
                }
                SourceKind::Sparkplug(host) => {
                    source::sparkplug::run(sink, *host, Arc::new(TcpDialer)).boxed()
                }
                SourceKind::MtConnect(agent) => {
                    source::mtconnect::run(sink, *agent, Arc::new(TcpDialer)).boxed()
                }
                SourceKind::Tail(path) => {
                    let start = sink.queue.position(&sink.name);
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
        sink.queue.note(Gap::new(&sink.name, Cause::SourceDown, now, 0, "restarted"));
        *restarts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(sink.name.clone())
            .or_insert(0) += 1;
        if sink.clock.monotonic().saturating_sub(started) > RESTART.1 {
            backoff.reset();
        }
        sink.clock.sleep(backoff.pause(sink.entropy.as_ref())).await;
    }
}
