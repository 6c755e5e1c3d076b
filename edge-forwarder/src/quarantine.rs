//! The operator's view of rows that the server refused: list them, have them sent again.
//!
//! Owns: the request file by which a running forwarder is asked; without one the queue is opened
//! here. Never: opens a queue that a forwarder has open; reads a request twice once it was done.

use std::path::Path;

use millrace_platform::{
    disk::{Disk, read_file},
    durable,
};
use serde::{Deserialize, Serialize};

use crate::queue::{Aside, Queue, QueueError};

/// The request's name in the data directory.
const FILE: &str = "retry.json";

/// Which rows to send again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Ids of what was put aside; none: all.
    pub ids: Vec<u64>,
}

/// Asks the running forwarder; it looks every second.
pub fn ask(disk: &dyn Disk, dir: &Path, request: &Request) -> std::io::Result<()> {
    let json = serde_json::to_vec(request).map_err(std::io::Error::other)?;
    durable::replace(disk, &dir.join(FILE), &json)
}

/// Sends rows again; how many groups and rows.
pub fn retry(queue: &Queue, request: &Request) -> Result<(usize, u64), QueueError> {
    let wanted = |a: &Aside| request.ids.is_empty() || request.ids.contains(&a.id);
    let mut done = (0, 0);
    for aside in queue.aside().into_iter().filter(wanted) {
        done.1 += queue.retry(aside.id)?;
        done.0 += 1;
    }
    Ok(done)
}

/// Does what was asked, if something was. What could not be done is asked again.
pub fn answer(disk: &dyn Disk, dir: &Path, queue: &Queue) {
    let path = dir.join(FILE);
    if !disk.exists(&path).unwrap_or(false) {
        return;
    }
    let read = read_file(disk, &path, 1 << 20).map_err(|e| e.to_string());
    let done = read
        .and_then(|json| serde_json::from_slice::<Request>(&json).map_err(|e| e.to_string()))
        .and_then(|request| retry(queue, &request).map_err(|e| e.to_string()));
    match done {
        Ok((groups, rows)) => tracing::info!(groups, rows, "rows that were put aside go again"),
        Err(error) => {
            tracing::warn!(error, "rows that were put aside cannot go again now");
            return;
        }
    }
    if let Err(error) = durable::remove(disk, &path) {
        tracing::warn!(%error, "the request to send rows again cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_platform::sim::{SimClock, SimDisk, SimEntropy};
    use millrace_protocol::ids::DeviceId;

    use super::*;
    use crate::{
        crash::{Keys, group},
        queue::{Ground, Next, Sizes, list_aside},
    };

    #[test]
    fn d4_what_was_put_aside_is_listed_and_goes_again_once_when_it_is_asked_for() {
        let disk = SimDisk::new();
        let ground = Ground {
            disk: Arc::new(disk.clone()),
            entropy: Arc::new(SimEntropy::seeded(1)),
            clock: Arc::new(SimClock::at(5)),
            keys: Arc::new(Keys([7; 32])),
        };
        let (device, dir) = (DeviceId([9; 16]), Path::new("/edge/queue"));
        let queue = Queue::open(&ground, device, dir, Sizes::default()).unwrap();
        assert!(queue.append(&[group("stdin", &[1, 2, 3], 1, None)])[0].is_ok());
        let mut cursor = queue.cursor(1);
        let Some(Next::Frame(frame)) = queue.read(&mut cursor).unwrap() else { panic!("a frame") };
        // The server has row 1 already.
        queue.put_aside(&frame.parts[0], 1, "no such table").unwrap();
        let listed = list_aside(&ground, device, dir).unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].first, listed[0].last), (2, 3));
        assert_eq!(listed[0].why, "no such table");
        let (edge, before) = (Path::new("/edge"), queue.rows_queued());
        ask(&disk, edge, &Request { ids: vec![listed[0].id] }).unwrap();
        for _ in 0..3 {
            answer(&disk, edge, &queue);
        }
        // Two rows, and the record that says so.
        assert_eq!(queue.rows_queued() - before, 3);
        assert!(queue.aside().is_empty());
        assert!(list_aside(&ground, device, dir).unwrap().is_empty());
        assert!(!disk.paths().iter().any(|p| p.to_string_lossy().contains("aside-")));
    }
}
