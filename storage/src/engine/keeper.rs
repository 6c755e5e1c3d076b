//! Keeps one shard running: its writer thread, its maintenance, and a new opening when a failed
//! sync or a full disk has stopped it.
//!
//! Owns: the order in which a shard is stopped and opened again inside one process, and how long
//! whatever failed waits before it is tried again.
//! Never: lets two writers of one log live at the same time; retries a failed sync. What a failed
//! sync left in doubt is settled as a start settles it: a new epoch, the manifest read again, the
//! log replayed from what is durable. A shard that another owner has taken over is left alone.
//! Readers keep the picture of the old shard until the new one is there.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use arc_swap::ArcSwap;
use millrace_platform::queue;
use millrace_protocol::ids::TenantId;

use super::{
    End, EngineConfig, FAIR_BYTES, Running, Shard, ToMaintenance, ToWriter, maintain_loop,
    write_loop,
};
use crate::{flush::Maintenance, shard::writer::ShardWriter};

/// Messages that may wait for maintenance.
const MAINTENANCE_QUEUE: usize = 64;
/// The longest wait before something is tried again: writes resume within ten seconds of space
/// coming back, and a flush after this wait has to be done in that time too.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// How long to wait after so many failures in a row: 1, 2, 2 … seconds.
pub(super) fn retry_after(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.saturating_sub(1).min(2)).min(RETRY_MAX)
}

/// Whether nothing more can be committed until the shard is opened again.
pub(super) fn wants_reopening(maintenance: &Maintenance, poisoned: &AtomicBool) -> bool {
    maintenance.manifest.wants_reopening()
        || (poisoned.load(Ordering::Acquire) && !maintenance.shared.stopped())
}

type Started = (Arc<ArcSwap<Running>>, queue::Sender<ToMaintenance>, JoinHandle<()>);

/// Starts the threads of a shard that was just opened.
pub(super) fn start(shard: Shard, config: EngineConfig) -> io::Result<Started> {
    let (to_maintenance, messages) = queue::bounded("maintenance", MAINTENANCE_QUEUE);
    let mut keeper = Keeper { config, messages, notify: to_maintenance.clone() };
    let (running, alive) = keeper.launch(shard)?;
    let running = Arc::new(ArcSwap::from_pointee(running));
    let seen = Arc::clone(&running);
    let thread = std::thread::Builder::new()
        .name("maintenance".into())
        .spawn(move || keeper.run(alive, &seen))?;
    Ok((running, to_maintenance, thread))
}

struct Keeper {
    config: EngineConfig,
    messages: queue::Receiver<ToMaintenance>,
    /// For writers, which ask for flushes.
    notify: queue::Sender<ToMaintenance>,
}

/// A shard with a writer thread.
struct Alive {
    maintenance: Maintenance,
    poisoned: Arc<AtomicBool>,
    to_writer: queue::FairSender<TenantId, ToWriter>,
    writer: JoinHandle<()>,
}

impl Alive {
    /// Ends the writer: when this returns, nothing is appended to its log any more.
    fn stop_writer(self) {
        if self.to_writer.send_first(ToWriter::Stop).is_err() {
            tracing::debug!("the writer has stopped");
        }
        if self.writer.join().is_err() {
            tracing::error!("the writer panicked");
        }
    }
}

impl Keeper {
    fn launch(&mut self, shard: Shard) -> io::Result<(Running, Alive)> {
        let Shard { writer, maintenance, poisoned, .. } = shard;
        let (to_writer, thread) = self.spawn_writer(writer, &maintenance)?;
        let running = Running {
            to_writer: to_writer.clone(),
            shared: Arc::clone(&maintenance.shared),
            access: maintenance.access(TenantId::default()),
            wal: Arc::clone(&maintenance.wal),
        };
        Ok((running, Alive { maintenance, poisoned, to_writer, writer: thread }))
    }

    fn spawn_writer(
        &self,
        writer: ShardWriter,
        maintenance: &Maintenance,
    ) -> io::Result<(queue::FairSender<TenantId, ToWriter>, JoinHandle<()>)> {
        let limits = maintenance.limits.clone();
        let (to_writer, requests) = queue::fair("shard_writer", limits.queue, FAIR_BYTES);
        let (notify, shared) = (self.notify.clone(), Arc::clone(&maintenance.shared));
        let thread = std::thread::Builder::new()
            .name("shard-writer".into())
            .spawn(move || write_loop(writer, &requests, &notify, &shared, &limits))?;
        Ok((to_writer, thread))
    }

    fn run(mut self, mut alive: Alive, running: &ArcSwap<Running>) {
        let clock = Arc::clone(&self.config.clock);
        loop {
            // One that was never claimed has nothing to maintain; its writer only refuses, and in
            // its own words, so it stays until the next one is there.
            let mut refusing = None;
            if alive.maintenance.manifest.wants_reopening() {
                refusing = Some(alive);
            } else {
                let Alive { maintenance, poisoned, to_writer, .. } = &mut alive;
                let end =
                    maintain_loop(maintenance, poisoned, &self.messages, to_writer, clock.as_ref());
                alive.stop_writer();
                if matches!(end, End::Stop) {
                    return;
                }
                tracing::error!(
                    "a failed sync has left in doubt what is stored; the shard is opened again from what is durable"
                );
            }
            let next = self.reopen();
            if let Some(refusing) = refusing {
                refusing.stop_writer();
            }
            let Some((now, next)) = next else { return };
            tracing::info!("the shard is open again and takes rows");
            running.store(Arc::new(now));
            alive = next;
        }
    }

    /// Opens the shard again, as often as it takes; `None` when told to stop.
    fn reopen(&mut self) -> Option<(Running, Alive)> {
        let mut failures = 0u32;
        let mut asked = Vec::new();
        loop {
            match self.messages.recv_timeout(retry_after(failures)) {
                Ok(Some(ToMaintenance::Stop)) | Err(()) => return None,
                // Whoever wants a flush now wants the shard now.
                Ok(Some(ToMaintenance::Flush(answer))) => asked.extend(answer),
                // Nobody can delete now; whoever asked is told to try again.
                Ok(Some(
                    ToMaintenance::Retain
                    | ToMaintenance::Delete(..)
                    | ToMaintenance::DropTable(..),
                ))
                | Ok(None) => {}
            }
            let opened = futures::executor::block_on(Shard::open(self.config.clone()));
            let opened = opened.map_err(|e| e.to_string());
            match opened.and_then(|shard| self.launch(shard).map_err(|e| e.to_string())) {
                Ok(alive) => {
                    for answer in asked {
                        if self.notify.try_send(ToMaintenance::Flush(Some(answer))).is_err() {
                            tracing::debug!("more flushes are asked for than can wait");
                        }
                    }
                    return Some(alive);
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::error!(error, "the shard cannot be opened yet and is tried again");
                    asked.drain(..).for_each(|answer| drop(answer.send(Err(error.clone()))));
                }
            }
        }
    }
}
