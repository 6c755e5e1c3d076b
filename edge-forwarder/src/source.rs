//! Sources: where rows come from. Each runs in its own task and hands line protocol over.
//!
//! Owns: the shape that every source has and the way from text to queue frames.
//! Never: lets one source stop another; moves a position before the rows are durable.

pub mod host;
pub mod stdin;
pub mod tail;

use std::{str::FromStr, sync::Arc, time::Duration};

use millrace_platform::clock::Clock;
use millrace_protocol::{
    batch::RowLimits,
    line::{self, LineOptions, Precision},
};
use tokio::sync::{mpsc, oneshot};

use crate::queue::Incoming;

/// Lines that one frame holds at most.
pub const LINES_MAX: usize = 5_000;
/// How long a line waits for company.
pub const BATCH_WAIT: Duration = Duration::from_millis(200);

/// Which source to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceKind {
    /// This machine's own metrics.
    HostMetrics,
    /// Line protocol on standard input.
    Stdin,
    /// A line-protocol file that grows.
    Tail(std::path::PathBuf),
}

impl FromStr for SourceKind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "host-metrics" => Ok(Self::HostMetrics),
            "stdin" => Ok(Self::Stdin),
            other => match other.strip_prefix("tail:") {
                Some(path) if !path.is_empty() => Ok(Self::Tail(path.into())),
                _ => {
                    Err(format!("`{other}` is not a source; use host-metrics, stdin or tail:PATH"))
                }
            },
        }
    }
}

impl SourceKind {
    /// The name that its streams begin with.
    pub fn name(&self) -> String {
        match self {
            Self::HostMetrics => "host".to_owned(),
            Self::Stdin => "stdin".to_owned(),
            Self::Tail(path) => {
                let file = path.file_name().map(|n| n.to_string_lossy().into_owned());
                sanitise(&format!("tail-{}", file.unwrap_or_default())).replace('/', "_")
            }
        }
    }
}

/// A group of frames that wants to be durable; answered when it is, or when it never will be.
#[derive(Debug)]
pub struct Group {
    /// The frames.
    pub frames: Vec<Incoming>,
    /// Whether it may be dropped, as a gap, when there is no room; otherwise the source waits.
    pub droppable: bool,
    /// Told `true` once durable.
    pub done: oneshot::Sender<bool>,
}

/// A source's way to the queue.
#[derive(Debug, Clone)]
pub struct Sink {
    /// The source's name.
    pub name: String,
    /// The queue's thread.
    pub queue: mpsc::Sender<Group>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// The database for its rows.
    pub database: String,
}

/// A name that streams may have.
pub fn sanitise(name: &str) -> String {
    let fine = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '/' | '-') { c } else { '_' }
    };
    name.chars().map(fine).take(128).collect()
}

impl Sink {
    /// Parses lines and makes them durable. `position` moves with the last frame. `false` means
    /// that they are not durable and must be offered again.
    pub async fn lines(&self, text: &[u8], position: Option<Vec<u8>>, droppable: bool) -> bool {
        let now = self.clock.now_ns();
        let options = LineOptions {
            precision: Precision::Nanosecond,
            default_time_ns: now,
            limits: RowLimits::default(),
            refusals_max: 3,
        };
        let parsed = line::parse(text, &options);
        let mut frames = Vec::new();
        if parsed.refused > 0 {
            let first = parsed
                .refusals
                .first()
                .map(|r| format!("line {}, column {}: {}", r.line, r.column, r.reason));
            let detail = first.unwrap_or_default();
            frames.extend(crate::gap::record(
                &self.name,
                crate::gap::Cause::Rejected,
                now,
                now,
                parsed.refused,
                &detail,
            ));
        }
        for mut batch in parsed.tables {
            let Ok(stream) = sanitise(&format!("{}/{}", self.name, batch.table)).parse() else {
                continue;
            };
            // From here on a row is known by its number in the frame.
            batch.line = (1..).take(batch.rows()).collect();
            frames.push(Incoming {
                stream,
                database: self.database.clone(),
                batch,
                position: None,
            });
        }
        // Only the last frame moves the source on: if a crash keeps just the first ones, the
        // lines are read again and equal rows collapse.
        if let (Some(last), Some(position)) = (frames.last_mut(), position) {
            last.position = Some(position);
        }
        if frames.is_empty() {
            return true;
        }
        let (done, answer) = oneshot::channel();
        if self.queue.send(Group { frames, droppable, done }).await.is_err() {
            return false;
        }
        answer.await.unwrap_or(false)
    }
}
