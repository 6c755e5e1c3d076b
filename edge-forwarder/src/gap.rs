//! The ledger of what could not be captured or delivered.
//!
//! Owns: the shape of a gap and of its row. Gaps are rows of table `edge_gaps` in their own
//! stream, so they are durable and delivered exactly once like all others; until they are rows
//! they are members of the queue's state.

use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    value::{FieldType, FieldValues},
};
use serde::{Deserialize, Serialize};

use crate::queue::{Group, Incoming};

/// Why rows are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The queue had no room, or the disk did not take the rows.
    BufferFull,
    /// Frames did not read any more.
    Quarantine,
    /// The server refused rows, or a line made no row.
    Rejected,
    /// A source stopped and was started again.
    SourceDown,
    /// A source lost what was not read in time: a file was cut or taken away.
    SourceOverrun,
    /// The server knows less than it acknowledged, or more than it was sent.
    Fork,
    /// The queue's state did not read; a new epoch began.
    StateLost,
    /// A broker or agent began anew and does not have what we had not read yet.
    SessionLost,
    /// A source was restarted: what it had before is gone.
    SourceRestart,
    /// A source that is asked every so often was not, or gave no answer.
    PollMissed,
    /// No gap but the end of one: rows of an earlier `rejected` were queued again.
    Retried,
}

impl Cause {
    /// The stored name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::Quarantine => "quarantine",
            Self::Rejected => "rejected",
            Self::SourceDown => "source_down",
            Self::SourceOverrun => "source_overrun",
            Self::Fork => "fork",
            Self::StateLost => "state_lost",
            Self::SessionLost => "session_lost",
            Self::SourceRestart => "source_restart",
            Self::PollMissed => "poll_missed",
            Self::Retried => "retried",
        }
    }

    /// Whether gaps of this cause and stream may be counted together while they wait.
    fn adds_up(self) -> bool {
        matches!(self, Self::BufferFull | Self::Rejected | Self::SourceDown | Self::PollMissed)
    }
}

/// The stream of gap rows, and the source that they are queued under.
pub const STREAM: &str = "gaps";
/// Bytes of a detail at most.
const DETAIL_CHARS: usize = 500;

/// Rows that are missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Rises by 1; given by the queue.
    pub id: u64,
    /// The stream, the source, or `queue` for frames of the log.
    pub stream: String,
    /// Why.
    pub cause: Cause,
    /// The queue's epoch of the rows; 0 if they have none.
    pub epoch: u64,
    /// First missing number (of stream `queue`: log number); 0 if not known.
    pub first: u64,
    /// Last missing number; 0 if not known.
    pub last: u64,
    /// Start, ns since the Unix epoch by the device's clock.
    pub from_ns: i64,
    /// End.
    pub to_ns: i64,
    /// Rows, as far as they are known.
    pub rows: u64,
    /// For people.
    pub detail: String,
}

impl Gap {
    /// A gap of `rows` rows at a moment.
    pub fn new(stream: &str, cause: Cause, now_ns: i64, rows: u64, detail: &str) -> Self {
        Self {
            id: 0,
            stream: stream.to_owned(),
            cause,
            epoch: 0,
            first: 0,
            last: 0,
            from_ns: now_ns,
            to_ns: now_ns,
            rows,
            detail: detail.chars().take(DETAIL_CHARS).collect(),
        }
    }

    /// With the numbers that are missing.
    pub fn numbers(mut self, epoch: u64, first: u64, last: u64) -> Self {
        (self.epoch, self.first, self.last) = (epoch, first, last);
        self
    }

    /// Takes a later gap in, if both are of one kind.
    pub fn absorb(&mut self, later: &Self) -> bool {
        // A gap that names rows stays one of its own.
        let named = self.last > 0 || later.last > 0;
        let same = self.cause == later.cause && self.stream == later.stream && !named;
        if !same || !self.cause.adds_up() {
            return false;
        }
        self.rows = self.rows.saturating_add(later.rows);
        self.from_ns = self.from_ns.min(later.from_ns);
        self.to_ns = self.to_ns.max(later.to_ns);
        true
    }
}

fn push_u64(column: &mut FieldColumn, value: u64, known: bool) {
    if let FieldValues::U64(values) = &mut column.values {
        values.push(value);
        column.present.push(known);
    }
}

fn push_text(column: &mut FieldColumn, value: &str) {
    if let FieldValues::Utf8(values) = &mut column.values {
        values.push(value);
        column.present.push(true);
    }
}

/// Gaps as a group for the queue, whose position is the id of the last; `None` for no gaps.
pub fn group(gaps: &[Gap]) -> Option<Group> {
    let last = gaps.last()?;
    let mut batch = TableBatch { table: "edge_gaps".to_owned(), ..TableBatch::default() };
    let mut to = FieldColumn::new("to_ns", FieldType::I64);
    let mut rows = FieldColumn::new("rows", FieldType::U64);
    let mut detail = FieldColumn::new("detail", FieldType::Utf8);
    let mut epoch = FieldColumn::new("epoch", FieldType::Utf8);
    let mut first = FieldColumn::new("first", FieldType::U64);
    let mut end = FieldColumn::new("last", FieldType::U64);
    for (n, gap) in (1u32..).zip(gaps) {
        // The id keeps two gaps of one moment apart.
        let id = gap.id.to_string();
        let tags = [("cause", gap.cause.name()), ("id", id.as_str()), ("stream", &gap.stream)];
        batch.time.push(gap.from_ns);
        batch.series.push(n - 1);
        batch.series_keys.push(SeriesKey::from_sorted(tags));
        batch.line.push(n);
        if let FieldValues::I64(values) = &mut to.values {
            values.push(gap.to_ns);
            to.present.push(true);
        }
        push_u64(&mut rows, gap.rows, true);
        push_text(&mut detail, &gap.detail);
        push_text(&mut epoch, &format!("{:016x}", gap.epoch));
        push_u64(&mut first, gap.first, gap.first > 0);
        push_u64(&mut end, gap.last, gap.last > 0);
    }
    batch.fields = vec![to, rows, detail, epoch, first, end];
    // A column without a value is no column.
    batch.fields.retain(|f| f.present.count() > 0);
    let stream = STREAM.parse().ok()?;
    Some(Group {
        source: STREAM.to_owned(),
        position: Some(last.id.to_le_bytes().to_vec()),
        parts: vec![Incoming { stream, database: "default".to_owned(), batch }],
    })
}
