//! The ledger of what could not be captured or delivered.
//!
//! Owns: the shape of a gap record. Gaps are rows of table `edge_gaps` in their own stream, so
//! they are durable and delivered exactly once like all others.

use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    value::{FieldType, FieldValues},
};

use crate::queue::Incoming;

/// Why rows are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The queue had no room.
    BufferFull,
    /// Frames did not read any more.
    Quarantine,
    /// The server refused rows.
    Rejected,
    /// A source stopped and was started again.
    SourceDown,
    /// The server knows less than was acknowledged.
    Fork,
}

impl Cause {
    /// The stored name.
    pub fn name(self) -> &'static str {
        match self {
            Self::BufferFull => "buffer_full",
            Self::Quarantine => "quarantine",
            Self::Rejected => "rejected",
            Self::SourceDown => "source_down",
            Self::Fork => "fork",
        }
    }
}

/// The stream of gap records.
pub const STREAM: &str = "gaps";

/// A gap as rows for the queue; `None` only if the stream's name were invalid.
pub fn record(
    stream: &str,
    cause: Cause,
    from_ns: i64,
    to_ns: i64,
    count: u64,
    detail: &str,
) -> Option<Incoming> {
    let mut to = FieldColumn::new("to_ns", FieldType::I64);
    let mut rows = FieldColumn::new("rows", FieldType::U64);
    let mut text = FieldColumn::new("detail", FieldType::Utf8);
    if let (FieldValues::I64(a), FieldValues::U64(b), FieldValues::Utf8(c)) =
        (&mut to.values, &mut rows.values, &mut text.values)
    {
        a.push(to_ns);
        b.push(count);
        c.push(&detail.chars().take(500).collect::<String>());
    }
    for field in [&mut to, &mut rows, &mut text] {
        field.present.push(true);
    }
    let batch = TableBatch {
        table: "edge_gaps".to_owned(),
        time: vec![from_ns],
        series: vec![0],
        series_keys: vec![SeriesKey::from_sorted([("cause", cause.name()), ("stream", stream)])],
        fields: vec![to, rows, text],
        line: vec![1],
    };
    let stream = STREAM.parse().ok()?;
    Some(Incoming { stream, database: "default".to_owned(), batch, position: None })
}
