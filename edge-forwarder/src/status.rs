//! What the forwarder says about itself: a local file, replaced atomically. No socket.

use std::{collections::BTreeMap, path::Path};

use millrace_platform::{
    disk::{Disk, read_file},
    durable,
};
use serde::{Deserialize, Serialize};

use crate::intake::Room;

/// The file's name in the data directory.
pub const FILE: &str = "status.json";

/// The forwarder's state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// When it was written, ns since the Unix epoch.
    pub time_ns: i64,
    /// Whether the server answers.
    pub connected: bool,
    /// The last thing that went wrong with the server.
    pub last_error: Option<String>,
    /// Whether rows are taken in: `ok`, `queue_full`, `disk_full` or `disk_failing`.
    #[serde(default)]
    pub room: Room,
    /// Rows acknowledged by the server, ever.
    pub rows_acked: u64,
    /// The same per source; table names stay in the sealed queue.
    pub acked: BTreeMap<String, u64>,
    /// Rows queued since the start, and found in the queue then.
    pub rows_queued: u64,
    /// Rows that are durable here and not acknowledged.
    #[serde(default)]
    pub rows_pending: u64,
    /// Of them, those of the newest epoch, which go first.
    #[serde(default)]
    pub rows_live: u64,
    /// Messages that the server refused and that are kept; see `millrace-edge quarantine list`.
    #[serde(default)]
    pub put_aside: u64,
    /// Messages sent and not yet acknowledged.
    pub frames_in_flight: usize,
    /// Bytes of the queue on disk.
    pub queue_bytes: u64,
    /// Sources and how often each was restarted.
    pub sources: BTreeMap<String, u64>,
}

/// Writes the file.
pub fn write(disk: &dyn Disk, dir: &Path, status: &Status) -> std::io::Result<()> {
    let json = serde_json::to_vec_pretty(status).map_err(std::io::Error::other)?;
    durable::replace(disk, &dir.join(FILE), &json)
}

/// Reads the file.
pub fn read(disk: &dyn Disk, dir: &Path) -> std::io::Result<Status> {
    let bytes = read_file(disk, &dir.join(FILE), 1 << 20)?;
    serde_json::from_slice(&bytes).map_err(std::io::Error::other)
}
