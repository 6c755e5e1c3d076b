//! The record of one write in the log: what was accepted, self-contained.
//!
//! Layout (little endian; sealed by the log under the tenant's key):
//! ```text
//! u8  version = 1
//! u8  origin: 0 plain, 1 stream
//!     if stream: 16 device, u8 length + stream name, u64 epoch, u64 seq_lo, u64 seq_hi
//! u8  length + database name
//! u16 number of tables, then for each:
//!   u64 table id
//!   u16 number of tags, each u32 id, u16 length + name   (0 when the manifest has them all)
//!   u16 number of fields, each u32 column id             (in the order of the batch)
//!   u32 number of series, each u64 series id             (in the order of the batch)
//!   u32 length + batch (protocol frame.rs)
//! ```
//! Validity: every length is checked before it is used; trailing bytes are an error. A record
//! defines every column and series that it uses, so replay needs no earlier record.
//! Evolution: a new layout takes a new version; old versions stay readable.

use millrace_protocol::{
    batch::TableBatch,
    frame,
    ids::{DeviceId, Epoch, SeqNo, SeriesId},
    stream::{PutHeader, StreamKey},
};

use crate::schema::TagColumn;

const VERSION: u8 = 1;

/// Where rows came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// No sequence: at least once; equal rows collapse by last write wins.
    Plain,
    /// A forwarder's stream: exactly once.
    Stream(PutHeader),
}

/// One table's part of a record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RecordTable {
    pub table_id: u64,
    /// The table's whole tag order, if it is newer than the last committed manifest.
    pub tags: Vec<TagColumn>,
    /// Column ids, parallel to `batch.fields`.
    pub field_ids: Vec<u32>,
    /// Series ids, parallel to `batch.series_keys`.
    pub sids: Vec<SeriesId>,
    pub batch: TableBatch,
}

/// A decoded record.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub origin: Origin,
    pub database: String,
    pub tables: Vec<RecordTable>,
}

/// A record that authenticates but does not decode: written by a newer version, or a bug.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "log record cannot be read: {0}; it was written by another version, start the version that wrote this data directory"
)]
pub struct RecordError(pub String);

fn put_text(out: &mut Vec<u8>, wide: bool, text: &str) {
    // Names are capped at 64 KiB - 1 by every decoder, databases and streams at 128 bytes.
    if wide {
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    } else {
        out.push(text.len() as u8);
    }
    out.extend_from_slice(text.as_bytes());
}

impl Record {
    /// Encodes onto the end of `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        match &self.origin {
            Origin::Plain => out.push(0),
            Origin::Stream(h) => {
                out.push(1);
                out.extend_from_slice(&h.key.device.0);
                put_text(out, false, h.key.stream.as_str());
                for n in [h.key.epoch.0, h.seq_lo.0, h.seq_hi.0] {
                    out.extend_from_slice(&n.to_le_bytes());
                }
            }
        }
        put_text(out, false, &self.database);
        out.extend_from_slice(&(self.tables.len() as u16).to_le_bytes());
        for t in &self.tables {
            out.extend_from_slice(&t.table_id.to_le_bytes());
            out.extend_from_slice(&(t.tags.len() as u16).to_le_bytes());
            for tag in &t.tags {
                out.extend_from_slice(&tag.id.to_le_bytes());
                put_text(out, true, &tag.name);
            }
            out.extend_from_slice(&(t.field_ids.len() as u16).to_le_bytes());
            for id in &t.field_ids {
                out.extend_from_slice(&id.to_le_bytes());
            }
            out.extend_from_slice(&(t.sids.len() as u32).to_le_bytes());
            for sid in &t.sids {
                out.extend_from_slice(&sid.0.to_le_bytes());
            }
            let at = out.len();
            out.extend_from_slice(&[0; 4]);
            frame::encode_batch(&t.batch, out);
            let len = (out.len() - at - 4) as u32;
            if let Some(slot) = out.get_mut(at..at + 4) {
                slot.copy_from_slice(&len.to_le_bytes());
            }
        }
    }

    /// Decodes a whole record.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader(bytes);
        let version = r.u8()?;
        if version != VERSION {
            return Err(RecordError(format!("version {version}, this server knows {VERSION}")));
        }
        let origin = match r.u8()? {
            0 => Origin::Plain,
            1 => {
                let device = DeviceId(r.array()?);
                let len = r.u8()? as usize;
                let stream = r.text(len)?.parse().map_err(|e| RecordError(format!("{e}")))?;
                let key = StreamKey { device, stream, epoch: Epoch(r.u64()?) };
                Origin::Stream(PutHeader { key, seq_lo: SeqNo(r.u64()?), seq_hi: SeqNo(r.u64()?) })
            }
            other => return Err(RecordError(format!("origin {other}"))),
        };
        let len = r.u8()? as usize;
        let database = r.text(len)?.to_owned();
        let count = r.u16()?;
        let mut tables = Vec::new();
        for _ in 0..count {
            let table_id = r.u64()?;
            let mut tags = Vec::new();
            for _ in 0..r.u16()? {
                let id = r.u32()?;
                let len = r.u16()? as usize;
                tags.push(TagColumn { id, name: r.text(len)?.to_owned() });
            }
            let mut field_ids = Vec::new();
            for _ in 0..r.u16()? {
                field_ids.push(r.u32()?);
            }
            let series = r.u32()? as usize;
            let sids = r
                .take(series.checked_mul(8).ok_or_else(|| RecordError("series count".into()))?)?
                .chunks_exact(8)
                .map(|c| SeriesId(u64::from_le_bytes(c.try_into().unwrap_or_default())))
                .collect::<Vec<_>>();
            let len = r.u32()? as usize;
            let batch =
                frame::decode_batch(r.take(len)?).map_err(|e| RecordError(e.to_string()))?;
            if batch.fields.len() != field_ids.len() || batch.series_keys.len() != sids.len() {
                return Err(RecordError("ids do not match the batch".into()));
            }
            tables.push(RecordTable { table_id, tags, field_ids, sids, batch });
        }
        if !r.0.is_empty() {
            return Err(RecordError(format!("{} bytes too many", r.0.len())));
        }
        Ok(Self { origin, database, tables })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], RecordError> {
        let (head, rest) =
            self.0.split_at_checked(n).ok_or_else(|| RecordError("it ends early".into()))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, RecordError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self, n: usize) -> Result<&'a str, RecordError> {
        std::str::from_utf8(self.take(n)?).map_err(|_| RecordError("a name is not UTF-8".into()))
    }
}

#[cfg(test)]
mod tests {
    use millrace_protocol::{
        batch::{FieldColumn, Presence, SeriesKey},
        value::FieldValues,
    };

    use super::*;

    fn record() -> Record {
        let batch = TableBatch {
            table: "cpu".into(),
            time: vec![1, 2],
            series: vec![0, 0],
            series_keys: vec![SeriesKey::from_sorted([("host", "a")])],
            fields: vec![FieldColumn {
                name: "v".into(),
                values: FieldValues::I64(vec![3, 4]),
                present: Presence::full(2),
            }],
            line: vec![1, 2],
        };
        let key = StreamKey {
            device: DeviceId([7; 16]),
            stream: "host/cpu".parse().unwrap(),
            epoch: Epoch(9),
        };
        Record {
            origin: Origin::Stream(PutHeader { key, seq_lo: SeqNo(1), seq_hi: SeqNo(2) }),
            database: "default".into(),
            tables: vec![RecordTable {
                table_id: 5,
                tags: vec![TagColumn { id: 1, name: "host".into() }],
                field_ids: vec![2],
                sids: vec![SeriesId(77)],
                batch,
            }],
        }
    }

    #[test]
    fn a_record_comes_back_and_no_prefix_of_it_decodes() {
        let mut bytes = Vec::new();
        record().encode(&mut bytes);
        assert_eq!(Record::decode(&bytes).unwrap(), record());
        for cut in 0..bytes.len() {
            assert!(Record::decode(&bytes[..cut]).is_err(), "prefix of {cut} bytes");
        }
        bytes.push(0);
        assert!(Record::decode(&bytes).is_err());
    }
}
