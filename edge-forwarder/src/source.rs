//! Sources: where rows come from. Each runs in its own task and hands line protocol over.
//!
//! Owns: the shape that every source has, the names of streams, the way from text to groups.
//! Never: lets one source stop another; moves a position apart from the rows before it.
//! Invariant: text, position and the gap of its refused lines are one group, so one frame.

pub mod host;
pub mod lines;
pub mod modbus;
pub mod stdin;
pub mod tail;

use std::{hash::BuildHasher, str::FromStr, sync::Arc, time::Duration};

use millrace_platform::{
    clock::Clock,
    entropy::{Entropy, random_u64},
    map::Seeded,
};
use millrace_protocol::{
    batch::RowLimits,
    line::{self, LineOptions, Precision},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    backoff::Backoff,
    gap::{self, Cause, Gap},
    intake::{Offer, Outcome},
    queue::{Group, Incoming, Queue},
};

/// Characters of a stream's name at most.
const NAME_MAX: usize = 128;
/// First and longest pause before rows are offered again.
const AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Which source to run.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// This machine's own metrics.
    HostMetrics,
    /// Line protocol on standard input.
    Stdin,
    /// A line-protocol file that grows.
    Tail(std::path::PathBuf),
    /// A Modbus device; only in the configuration file.
    Modbus(Box<modbus::Device>),
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
    /// The name that its streams begin with: of a file, with a mark of its whole path, because
    /// two files of one name must not share a position.
    pub fn name(&self) -> String {
        match self {
            Self::HostMetrics => "host".to_owned(),
            Self::Stdin => "stdin".to_owned(),
            Self::Modbus(device) => format!("modbus-{}", device.name),
            Self::Tail(path) => {
                let whole = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let file = path.file_name().map(|n| n.to_string_lossy().into_owned());
                let file: String = file.unwrap_or_default().chars().take(40).collect();
                let mark = mark(&whole.to_string_lossy());
                format!("tail-{}-{mark}", cleaned(&file).replace('/', "_"))
            }
        }
    }
}

fn mark(text: &str) -> String {
    format!("{:08x}", Seeded::default().hash_one(text.as_bytes()) >> 32)
}

fn cleaned(name: &str) -> String {
    let fine = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' }
    };
    name.chars().map(fine).collect()
}

/// The stream of a source's table. Two tables never share one: a name that had to be changed or
/// cut ends in a mark of the whole name.
pub fn stream_name(source: &str, table: &str) -> String {
    let plain = cleaned(table);
    let room = NAME_MAX.saturating_sub(source.len() + 1);
    if plain == table && plain.len() <= room {
        return format!("{source}/{plain}");
    }
    let head: String = plain.chars().take(room.saturating_sub(9)).collect();
    format!("{source}/{head}-{}", mark(table))
}

/// A source's way to the queue.
#[derive(Debug, Clone)]
pub struct Sink {
    /// The source's name.
    pub name: String,
    /// The queue's thread.
    pub offers: mpsc::Sender<Offer>,
    /// The queue, for gaps.
    pub queue: Arc<Queue>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Jitter, and the ids of gaps.
    pub entropy: Arc<dyn Entropy>,
    /// The database for its rows.
    pub database: String,
}

/// Where a source is after the first so many bytes of a text.
pub type Position<'a> = &'a (dyn Fn(usize) -> Option<Vec<u8>> + Send + Sync);

impl Sink {
    /// Pauses between offers of the same rows.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(AGAIN.0, AGAIN.1)
    }

    fn gap_part(&self, cause: Cause, rows: u64, detail: &str) -> Option<Incoming> {
        let mut gap = Gap::new(&self.name, cause, self.clock.now_ns(), rows, detail);
        gap.id = random_u64(self.entropy.as_ref());
        gap::group(&[gap])?.parts.pop()
    }

    /// One text as one group; `None` if it holds nothing.
    fn group(&self, text: &[u8], position: Option<Vec<u8>>) -> Option<Group> {
        let options = LineOptions {
            precision: Precision::Nanosecond,
            default_time_ns: self.clock.now_ns(),
            // Every line is an event: equal times would make one row of them.
            default_time_step_ns: 1,
            limits: RowLimits::default(),
            refusals_max: 3,
        };
        let parsed = line::parse(text, &options);
        let mut parts = Vec::new();
        if parsed.refused > 0 {
            let first = parsed.refusals.first();
            let detail =
                first.map(|r| format!("line {}, column {}: {}", r.line, r.column, r.reason));
            let detail = detail.unwrap_or_default();
            parts.extend(self.gap_part(Cause::Rejected, parsed.refused, &detail));
        }
        for mut batch in parsed.tables {
            let Ok(stream) = stream_name(&self.name, &batch.table).parse() else { continue };
            // From here on a row is known by its number in the frame.
            batch.line = (1..).take(batch.rows()).collect();
            parts.push(Incoming { stream, database: self.database.clone(), batch });
        }
        let source = self.name.clone();
        (!parts.is_empty()).then_some(Group { source, position, parts })
    }

    async fn offer(&self, group: Group, droppable: bool) -> Outcome {
        let (done, answer) = oneshot::channel();
        if self.offers.send(Offer { group, droppable, done }).await.is_err() {
            return Outcome::Later;
        }
        answer.await.unwrap_or(Outcome::Later)
    }

    /// Parses whole lines and makes them durable. Returns how many bytes are dealt with: stored,
    /// or recorded as a gap. The rest must be offered again.
    pub async fn lines(&self, text: &[u8], position: Position<'_>, droppable: bool) -> usize {
        let mut done = 0;
        // Ends of the pieces that are still to be offered, the nearest last.
        let mut ends = vec![text.len()];
        while let Some(end) = ends.pop() {
            let piece = text.get(done..end).unwrap_or_default();
            let Some(group) = self.group(piece, position(end)) else {
                done = end;
                continue;
            };
            match self.offer(group, droppable).await {
                Outcome::Stored | Outcome::Dropped => done = end,
                Outcome::Later => return done,
                Outcome::Refused(why) => match lines::middle(piece) {
                    Some(middle) => ends.extend([end, done + middle]),
                    None => {
                        let now = self.clock.now_ns();
                        self.queue.note(Gap::new(&self.name, Cause::Rejected, now, 1, &why));
                        done = end;
                    }
                },
            }
        }
        done
    }

    /// Records a gap of this source together with its new position; tries until it is durable.
    pub async fn gap(&self, cause: Cause, rows: u64, detail: &str, position: Option<Vec<u8>>) {
        let mut backoff = self.backoff();
        loop {
            let Some(part) = self.gap_part(cause, rows, detail) else { return };
            let group =
                Group { source: self.name.clone(), position: position.clone(), parts: vec![part] };
            match self.offer(group, false).await {
                Outcome::Later => {}
                _ => return,
            }
            self.clock.sleep(backoff.pause(self.entropy.as_ref())).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tables_never_share_a_stream_and_two_files_never_share_a_source() {
        let long = "t".repeat(300);
        let longer = format!("{long}x");
        let tables = ["a_b", "a b", "a,b", "a/b", "ä", "ö", &long, &longer];
        let names: std::collections::BTreeSet<String> =
            tables.iter().map(|t| stream_name("host", t)).collect();
        assert_eq!(names.len(), tables.len(), "{names:?}");
        for name in &names {
            assert!(name.parse::<millrace_protocol::ids::StreamId>().is_ok(), "{name}");
            assert_eq!(name.split('/').count(), 2, "{name}");
        }
        let one = SourceKind::Tail("/a/press.lp".into()).name();
        let two = SourceKind::Tail("/b/press.lp".into()).name();
        assert_ne!(one, two);
        assert_eq!(one, SourceKind::Tail("/a/press.lp".into()).name(), "the same at every start");
    }
}
