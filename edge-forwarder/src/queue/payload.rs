//! What one frame of the log holds: a group of batches that became durable together.
//!
//! ```text
//! u8  version = 2
//! u8  length + source name
//! u16 length + source position (opaque to the queue; empty if none)
//! u16 parts, then for each:
//!   u8  length + stream name
//!   u64 epoch, u64 number of the first row
//!   u8  length + database
//!   u32 length + batch (protocol frame.rs)
//! ```
//! Little endian; `docs/formats/queue.md` has an example that a test reads.
//! Owns: these bytes. Never: writes a length that does not fit its field.
//! Invariant: a group and its position are one frame, so a cut keeps both or neither.

use millrace_protocol::{batch::TableBatch, frame, ids::StreamId};

const VERSION: u8 = 2;

/// Rows of one table on their way in.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The stream.
    pub stream: StreamId,
    /// The database.
    pub database: String,
    /// The rows, of one table.
    pub batch: TableBatch,
}

/// Batches that become durable together, or not at all.
#[derive(Debug, Clone)]
pub struct Group {
    /// Who hands them over.
    pub source: String,
    /// Where the source is once they are durable.
    pub position: Option<Vec<u8>>,
    /// The batches; each stream at most once.
    pub parts: Vec<Incoming>,
}

impl Group {
    /// Rows of all parts.
    pub fn rows(&self) -> u64 {
        self.parts.iter().map(|p| p.batch.rows() as u64).sum()
    }
}

/// A durable batch on its way out.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The stream.
    pub stream: StreamId,
    /// The life of the queue that numbered it.
    pub epoch: u64,
    /// Number of its first row.
    pub seq_lo: u64,
    /// The database.
    pub database: String,
    /// The rows.
    pub batch: TableBatch,
    /// Bytes that it took in the frame.
    pub bytes: usize,
}

impl Part {
    /// Number of its last row.
    pub fn seq_hi(&self) -> u64 {
        self.seq_lo + self.batch.rows() as u64 - 1
    }
}

/// A durable group.
#[derive(Debug, Clone, PartialEq)]
pub struct Queued {
    /// Its place in the log.
    pub lsn: u64,
    /// Who handed it over.
    pub source: String,
    /// Where the source was.
    pub position: Option<Vec<u8>>,
    /// The batches.
    pub parts: Vec<Part>,
}

/// A group that no frame can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a group of rows does not fit a frame of the queue: {0}")]
pub struct NoRoom(pub &'static str);

fn short(text: &str, what: &'static str, out: &mut Vec<u8>) -> Result<(), NoRoom> {
    out.push(u8::try_from(text.len()).map_err(|_| NoRoom(what))?);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Encodes a group whose parts begin at the numbers `firsts` of `epoch`.
pub fn encode(group: &Group, epoch: u64, firsts: &[u64]) -> Result<Vec<u8>, NoRoom> {
    let mut out = vec![VERSION];
    short(&group.source, "the source's name is too long", &mut out)?;
    let position = group.position.as_deref().unwrap_or_default();
    let len = u16::try_from(position.len()).map_err(|_| NoRoom("the position is too long"))?;
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(position);
    let parts = u16::try_from(group.parts.len()).map_err(|_| NoRoom("too many tables"))?;
    out.extend_from_slice(&parts.to_le_bytes());
    for (part, first) in group.parts.iter().zip(firsts) {
        short(part.stream.as_str(), "the stream's name is too long", &mut out)?;
        out.extend_from_slice(&epoch.to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        short(&part.database, "the database's name is too long", &mut out)?;
        let at = out.len();
        out.extend_from_slice(&[0; 4]);
        frame::encode_batch(&part.batch, &mut out);
        let len = u32::try_from(out.len() - at - 4).map_err(|_| NoRoom("too many bytes"))?;
        if let Some(place) = out.get_mut(at..at + 4) {
            place.copy_from_slice(&len.to_le_bytes());
        }
    }
    Ok(out)
}

/// Takes bytes from the front of what is left.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn short(&mut self) -> Option<&'a str> {
        let [len] = self.array()?;
        std::str::from_utf8(self.take(usize::from(len))?).ok()
    }
}

/// Decodes a frame; `None` if it is not one that this version wrote.
pub fn decode(lsn: u64, bytes: &[u8]) -> Option<Queued> {
    let mut rest = Rest(bytes);
    if rest.array()? != [VERSION] {
        return None;
    }
    let source = rest.short()?.to_owned();
    let len = u16::from_le_bytes(rest.array()?);
    let position = rest.take(usize::from(len))?.to_vec();
    let count = u16::from_le_bytes(rest.array()?);
    let mut parts = Vec::new();
    for _ in 0..count {
        let stream = rest.short()?.parse().ok()?;
        let epoch = u64::from_le_bytes(rest.array()?);
        let seq_lo = u64::from_le_bytes(rest.array()?);
        let database = rest.short()?.to_owned();
        let bytes = u32::from_le_bytes(rest.array()?) as usize;
        let batch = frame::decode_batch(rest.take(bytes)?).ok()?;
        let numbered = seq_lo.checked_add(batch.rows() as u64).is_some_and(|end| end > seq_lo);
        if !numbered || seq_lo == 0 {
            return None;
        }
        parts.push(Part { stream, epoch, seq_lo, database, batch, bytes });
    }
    let position = (!position.is_empty()).then_some(position);
    (rest.0.is_empty() && !parts.is_empty()).then_some(Queued { lsn, source, position, parts })
}
