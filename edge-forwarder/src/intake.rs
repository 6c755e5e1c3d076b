//! The way into the queue: one thread, one sync for all groups that wait, one policy for no room.
//!
//! Owns: the cap, and what happens to rows at it: sources that can wait offer them again, rows of
//! sources that cannot are counted as a gap. Never: says *stored* about a group that is not
//! durable; waits for room while holding rows that nobody counted.

use std::sync::{Arc, Mutex, PoisonError};

use millrace_platform::clock::Clock;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::{
    gap::{Cause, Gap},
    queue::{Group, Queue, QueueError},
};

/// Groups that one sync covers.
const GROUPS_PER_SYNC: usize = 32;

/// What became of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable.
    Stored,
    /// There was no room; its rows are counted in a gap.
    Dropped,
    /// Not stored; offer it again in a while.
    Later,
    /// It can never be stored as it is; offer less at a time.
    Refused(String),
}

/// Whether rows are taken in, as the status file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Room {
    /// Rows are stored.
    #[default]
    Ok,
    /// The queue has reached its cap.
    QueueFull,
    /// The disk has no room.
    DiskFull,
    /// The disk refuses to write.
    DiskFailing,
}

impl Room {
    /// As the status file says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::QueueFull => "queue_full",
            Self::DiskFull => "disk_full",
            Self::DiskFailing => "disk_failing",
        }
    }
}

/// A group that wants to be durable.
#[derive(Debug)]
pub struct Offer {
    /// The rows.
    pub group: Group,
    /// Whether it may be dropped, as a gap, when there is no room; otherwise the source waits.
    pub droppable: bool,
    /// Told what became of it.
    pub done: oneshot::Sender<Outcome>,
}

/// See the module head.
#[derive(Debug)]
pub struct Intake {
    /// The queue.
    pub queue: Arc<Queue>,
    /// For the times of gaps.
    pub clock: Arc<dyn Clock>,
    /// Bytes that the queue may take.
    pub cap: u64,
    /// For the status.
    pub room: Arc<Mutex<Room>>,
}

impl Intake {
    /// Stores what can be stored, and says for each group what became of it.
    pub fn take(&self, groups: &[(Group, bool)]) -> Vec<Outcome> {
        let full = self.queue.bytes() >= self.cap;
        let results: Vec<Result<u64, Option<QueueError>>> = if full {
            groups.iter().map(|_| Err(None)).collect()
        } else {
            let all: Vec<Group> = groups.iter().map(|(g, _)| g.clone()).collect();
            self.queue.append(&all).into_iter().map(|r| r.map_err(Some)).collect()
        };
        let mut room = if full { Room::QueueFull } else { Room::Ok };
        let mut outcomes = Vec::with_capacity(groups.len());
        for (result, (group, droppable)) in results.into_iter().zip(groups) {
            let error = match result {
                Ok(_) => {
                    outcomes.push(Outcome::Stored);
                    continue;
                }
                Err(error) => error,
            };
            let why = match &error {
                Some(e) if e.is_too_large() => {
                    outcomes.push(Outcome::Refused(e.to_string()));
                    continue;
                }
                Some(e) => {
                    room = if e.is_disk_full() { Room::DiskFull } else { Room::DiskFailing };
                    e.to_string()
                }
                None => "the queue was full".to_owned(),
            };
            outcomes.push(if *droppable {
                let (now, rows) = (self.clock.now_ns(), group.rows());
                self.queue.note(Gap::new(&group.source, Cause::BufferFull, now, rows, &why));
                Outcome::Dropped
            } else {
                Outcome::Later
            });
        }
        self.see(room);
        outcomes
    }

    /// One log line per change, not per row.
    fn see(&self, room: Room) {
        let mut seen = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != room {
            tracing::warn!(was = ?*seen, now = ?room, "room for rows has changed");
            *seen = room;
        }
    }

    /// The queue's thread.
    pub fn run(&self, mut incoming: mpsc::Receiver<Offer>, fresh: &Notify) {
        while let Some(first) = incoming.blocking_recv() {
            let mut offers = vec![first];
            while offers.len() < GROUPS_PER_SYNC {
                match incoming.try_recv() {
                    Ok(offer) => offers.push(offer),
                    Err(_) => break,
                }
            }
            let (groups, done): (Vec<_>, Vec<_>) =
                offers.into_iter().map(|o| ((o.group, o.droppable), o.done)).unzip();
            for (outcome, done) in self.take(&groups).into_iter().zip(done) {
                if done.send(outcome).is_err() {
                    tracing::debug!("a source has gone before its answer");
                }
            }
            fresh.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use millrace_platform::sim::{SimClock, SimDisk, SimEntropy, disk::Faults};
    use millrace_protocol::ids::DeviceId;

    use super::*;
    use crate::{
        crash::{Keys, group},
        queue::{Ground, Sizes},
    };

    fn intake(disk: &SimDisk, cap: u64) -> Intake {
        let clock = Arc::new(SimClock::at(5));
        let ground = Ground {
            disk: Arc::new(disk.clone()),
            entropy: Arc::new(SimEntropy::seeded(1)),
            clock: Arc::clone(&clock) as _,
            keys: Arc::new(Keys([7; 32])),
        };
        let sizes = Sizes { segment: 16 << 10, reserve: 4 << 10 };
        let queue = Queue::open(&ground, DeviceId([9; 16]), Path::new("/q"), sizes).unwrap();
        Intake { queue: Arc::new(queue), clock, cap, room: Arc::default() }
    }

    fn both() -> [(Group, bool); 2] {
        let ids: Vec<u64> = (1..=20).collect();
        [(group("tail", &ids, 1, Some(21)), false), (group("host", &ids, 1, None), true)]
    }

    fn room(intake: &Intake) -> Room {
        *intake.room.lock().unwrap()
    }

    #[test]
    fn e8_at_the_cap_sources_that_can_wait_do_and_rows_of_others_are_counted() {
        let disk = SimDisk::new();
        let intake = intake(&disk, 0);
        assert_eq!(intake.take(&both()), [Outcome::Later, Outcome::Dropped]);
        assert_eq!(intake.take(&both()), [Outcome::Later, Outcome::Dropped]);
        assert_eq!(room(&intake), Room::QueueFull);
        assert!(intake.queue.has_gaps());
        assert_eq!(intake.queue.position("tail"), None);
    }

    #[test]
    fn e8_a_full_disk_is_said_counted_and_over_by_itself() {
        let disk = SimDisk::new();
        let intake = intake(&disk, 1 << 30);
        let capacity = Some(disk.used() + (40 << 10));
        disk.set_faults(Faults { capacity, ..Faults::default() });
        let mut outcomes = Vec::new();
        for _ in 0..200 {
            outcomes.extend(intake.take(&both()));
        }
        assert!(outcomes.contains(&Outcome::Stored) && outcomes.contains(&Outcome::Later));
        assert_eq!(room(&intake), Room::DiskFull);
        disk.set_faults(Faults::default());
        assert_eq!(intake.take(&both()), [Outcome::Stored, Outcome::Stored]);
        assert_eq!(room(&intake), Room::Ok);
        assert!(intake.queue.has_gaps(), "what was dropped meanwhile is counted");
    }
}
