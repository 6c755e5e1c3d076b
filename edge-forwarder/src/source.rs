//! Sources: where rows come from. Each runs in its own task and hands line protocol over.
//!
//! Owns: the shape that every source has, the names of streams, the way from text to groups.
//! Never: lets one source stop another; moves a position apart from the rows before it.
//! Invariant: text, position and the gap of its refused lines are one group, so one frame.

pub mod host;
pub mod http;
pub mod lines;
pub mod modbus;
pub mod mqtt;
pub mod mtconnect;
pub mod peer;
pub mod rate;
pub mod sparkplug;
pub mod stdin;
pub mod tail;
#[cfg(test)]
mod testing;

use std::{hash::BuildHasher, str::FromStr, sync::Arc, time::Duration};

use millrace_platform::{
    clock::Clock,
    entropy::{Entropy, random_u64},
    map::Seeded,
};
use millrace_protocol::{
    batch::RowLimits,
    ids::DeviceId,
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
    /// Topics of an MQTT broker; only in the configuration file.
    Mqtt(Box<mqtt::Broker>),
    /// Sparkplug nodes of a broker; only in the configuration file.
    Sparkplug(Box<sparkplug::Host>),
    /// An MTConnect agent; only in the configuration file.
    MtConnect(Box<mtconnect::Agent>),
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
            Self::Mqtt(broker) => format!("mqtt-{}", broker.name),
            Self::MtConnect(agent) => format!("mtconnect-{}", agent.name),
            Self::Sparkplug(host) => format!("sparkplug-{}", host.name),
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
    /// This device.
    pub device: DeviceId,
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

/// Rows and gaps on their way into the queue.
#[derive(Debug)]
pub struct Pending<'a> {
    rows: &'a [String],
    gaps: &'a [Gap],
    done: usize,
    backoff: Backoff,
}

impl<'a> Pending<'a> {
    /// Nothing of it is stored yet.
    pub fn new(sink: &Sink, rows: &'a [String], gaps: &'a [Gap]) -> Self {
        Self { rows, gaps, done: 0, backoff: sink.backoff() }
    }

    fn pause(&mut self, sink: &Sink) -> Duration {
        self.backoff.pause(sink.entropy.as_ref())
    }
}

impl Sink {
    /// Pauses between offers of the same rows.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(AGAIN.0, AGAIN.1)
    }

    fn gap_part(&self, cause: Cause, rows: u64, detail: &str) -> Option<Incoming> {
        self.part(Gap::new(&self.name, cause, self.clock.now_ns(), rows, detail))
    }

    /// A gap of this source with an id of its own, as a part of a group.
    fn part(&self, mut gap: Gap) -> Option<Incoming> {
        gap.id = random_u64(self.entropy.as_ref());
        gap::group(&[gap])?.parts.pop()
    }

    /// One text and gaps as one group; `None` if it holds nothing.
    fn group(&self, text: &[u8], gaps: &[Gap], position: Option<Vec<u8>>) -> Option<Group> {
        let options = LineOptions {
            precision: Precision::Nanosecond,
            default_time_ns: self.clock.now_ns(),
            // Every line is an event: equal times would make one row of them.
            default_time_step_ns: 1,
            limits: RowLimits::default(),
            refusals_max: 3,
        };
        let parsed = line::parse(text, &options);
        let mut parts: Vec<Incoming> =
            gaps.iter().filter_map(|gap| self.part(gap.clone())).collect();
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

    /// Makes a text durable, in pieces if it must be. `middle` says where a piece may be cut.
    /// Returns how many bytes are dealt with.
    async fn pieces(
        &self,
        text: &[u8],
        middle: &(dyn Fn(usize, usize) -> Option<usize> + Send + Sync),
        position: Position<'_>,
        droppable: bool,
    ) -> usize {
        let mut done = 0;
        // Ends of the pieces that are still to be offered, the nearest last.
        let mut ends = vec![text.len()];
        while let Some(end) = ends.pop() {
            let piece = text.get(done..end).unwrap_or_default();
            let Some(group) = self.group(piece, &[], position(end)) else {
                done = end;
                continue;
            };
            match self.offer(group, droppable).await {
                Outcome::Stored | Outcome::Dropped => done = end,
                Outcome::Later => return done,
                Outcome::Refused(why) => match middle(done, end) {
                    Some(middle) => ends.extend([end, middle]),
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

    /// Parses whole lines and makes them durable. Returns how many bytes are dealt with: stored,
    /// or recorded as a gap. The rest must be offered again.
    pub async fn lines(&self, text: &[u8], position: Position<'_>, droppable: bool) -> usize {
        let middle = |from: usize, to: usize| {
            lines::middle(text.get(from..to).unwrap_or_default()).map(|at| from + at)
        };
        self.pieces(text, &middle, position, droppable).await
    }

    /// Makes rows durable, each one text of line protocol with its line feed; a text value in it
    /// may hold line feeds. `position` is asked with a number of rows. Returns how many rows are
    /// dealt with.
    pub async fn rows(&self, rows: &[String], position: Position<'_>, droppable: bool) -> usize {
        let mut ends = Vec::with_capacity(rows.len());
        let mut text = Vec::new();
        for row in rows {
            text.extend_from_slice(row.as_bytes());
            ends.push(text.len());
        }
        // Rows that end at or before a byte.
        let count = |byte: usize| ends.partition_point(|end| *end <= byte);
        let middle = |from: usize, to: usize| {
            let (first, last) = (count(from), count(to));
            let at = first + (last - first) / 2;
            if at == first { None } else { ends.get(at - 1).copied() }
        };
        let position = |byte: usize| position(count(byte));
        count(self.pieces(&text, &middle, &position, droppable).await)
    }

    /// One attempt to make gaps durable, and rows with them; `None` when all of it is, else how
    /// long to wait before the next. The first group that is stored holds the gaps; positions move
    /// as [`Self::rows`] says.
    pub async fn attempt(
        &self,
        pending: &mut Pending<'_>,
        position: Position<'_>,
    ) -> Option<Duration> {
        let all = pending.rows;
        if !pending.gaps.is_empty() {
            let group = self.first(all, pending.gaps, position)?;
            match self.offer(group, false).await {
                Outcome::Stored | Outcome::Dropped => return None,
                Outcome::Later => return Some(pending.pause(self)),
                // Too large as one: the gaps go first, with the place where the rows begin.
                Outcome::Refused(_) => {
                    let group = self.group(&[], pending.gaps, position(0))?;
                    if self.offer(group, false).await == Outcome::Later {
                        return Some(pending.pause(self));
                    }
                    pending.gaps = &[];
                }
            }
        }
        let done = pending.done;
        let left = all.get(done..).unwrap_or_default();
        let stored = self.rows(left, &|n| position(done + n), false).await;
        pending.done += stored;
        if stored > 0 {
            pending.backoff.reset();
        }
        (pending.done < all.len()).then(|| pending.pause(self))
    }

    /// Makes gaps and rows durable, and waits for room as long as it takes.
    pub async fn store(&self, rows: &[String], gaps: &[Gap], position: Position<'_>) {
        let mut pending = Pending::new(self, rows, gaps);
        while let Some(pause) = self.attempt(&mut pending, position).await {
            self.clock.sleep(pause).await;
        }
    }

    fn first(&self, rows: &[String], gaps: &[Gap], position: Position<'_>) -> Option<Group> {
        self.group(rows.concat().as_bytes(), gaps, position(rows.len()))
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
