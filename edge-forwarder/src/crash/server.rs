//! A model of the server: applies rows by watermark and keeps a ledger of them.
//!
//! Owns: what `docs/formats/stream.md` demands of a server, in the fewest lines.

use std::collections::BTreeMap;

use millrace_protocol::{
    batch::TableBatch,
    ids::SeqNo,
    stream::{PutAck, PutHeader},
    value::FieldValues,
};

use crate::gap;

/// A gap as it arrived.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct GapRow {
    pub(super) id: String,
    pub(super) stream: String,
    pub(super) cause: String,
    pub(super) epoch: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) rows: u64,
}

/// Rows by (stream, epoch); row `i` has number `i + 1`.
#[derive(Debug, Default)]
pub(super) struct Server {
    pub(super) ledger: BTreeMap<(String, u64), Vec<u64>>,
    pub(super) gaps: Vec<GapRow>,
    /// Every row that was ever in a message, and its stream.
    pub(super) seen: BTreeMap<u64, String>,
    /// All rows in the order in which they came.
    pub(super) arrived: Vec<u64>,
    /// Rows that it refuses, with the whole message that holds them.
    pub(super) poison: std::collections::BTreeSet<u64>,
}

/// What the server says to a message.
#[derive(Debug)]
pub(super) enum Answer {
    /// An ack.
    Ack(PutAck),
    /// The message is refused for good, and with it the call.
    Refused,
    /// Rows before it are missing.
    Hole,
}

/// The ids of the rows of a batch, as the sources of the suite write them.
pub(super) fn ids(batch: &TableBatch) -> Vec<u64> {
    let column = batch.fields.iter().find(|f| f.name == "id").unwrap();
    let FieldValues::U64(values) = &column.values else { panic!("ids are unsigned") };
    values.clone()
}

fn numbers(batch: &TableBatch, name: &str) -> Vec<u64> {
    match batch.fields.iter().find(|f| f.name == name).map(|f| &f.values) {
        Some(FieldValues::U64(values)) => values.clone(),
        _ => vec![0; batch.rows()],
    }
}

fn gap_rows(batch: &TableBatch) -> Vec<GapRow> {
    let (first, last) = (numbers(batch, "first"), numbers(batch, "last"));
    let rows = numbers(batch, "rows");
    let epochs = batch.fields.iter().find(|f| f.name == "epoch").unwrap();
    let FieldValues::Utf8(epochs) = &epochs.values else { panic!("epochs are text") };
    (0..batch.rows())
        .map(|n| {
            let tags = &batch.series_keys[batch.series[n] as usize];
            GapRow {
                id: tags.get("id").unwrap().to_owned(),
                stream: tags.get("stream").unwrap().to_owned(),
                cause: tags.get("cause").unwrap().to_owned(),
                epoch: u64::from_str_radix(epochs.get(n), 16).unwrap(),
                first: first[n],
                last: last[n],
                rows: rows[n],
            }
        })
        .collect()
}

impl Server {
    pub(super) fn floor(&self, stream: &str, epoch: u64) -> u64 {
        self.ledger.get(&(stream.to_owned(), epoch)).map_or(0, |rows| rows.len() as u64)
    }

    /// Applies a message.
    pub(super) fn put(&mut self, header: &PutHeader, batch: &TableBatch) -> Answer {
        let stream = header.key.stream.as_str();
        let rows = header.seq_hi.0 + 1 - header.seq_lo.0;
        let floor = self.floor(stream, header.key.epoch.0);
        if rows != batch.rows() as u64 || header.seq_lo.0 > floor + 1 {
            return Answer::Hole;
        }
        let known = (floor + 1 - header.seq_lo.0).min(rows) as usize;
        if stream != gap::STREAM {
            self.seen.extend(ids(batch).into_iter().map(|id| (id, stream.to_owned())));
        }
        let fresh = if stream == gap::STREAM {
            let gaps = gap_rows(batch);
            self.gaps.extend_from_slice(&gaps[known..]);
            vec![0; gaps.len() - known]
        } else {
            ids(batch)[known..].to_vec()
        };
        if fresh.iter().any(|id| self.poison.contains(id)) {
            return Answer::Refused;
        }
        self.arrived.extend(fresh.iter().filter(|_| stream != gap::STREAM));
        let duplicate = fresh.is_empty();
        let ledger = self.ledger.entry((stream.to_owned(), header.key.epoch.0)).or_default();
        ledger.extend(fresh);
        Answer::Ack(PutAck {
            version: 1,
            key: header.key.clone(),
            hi: SeqNo(ledger.len() as u64),
            duplicate,
            refusals: Vec::new(),
            refused: 0,
        })
    }

    /// Loses the last rows of a stream, as a restored backup does. Gaps are spared, so that what
    /// the device recorded can still be looked at.
    pub(super) fn forget(&mut self, nth: usize, rows: usize) {
        let mut others: Vec<_> =
            self.ledger.iter_mut().filter(|((stream, _), _)| stream != gap::STREAM).collect();
        if others.is_empty() {
            return;
        }
        let at = nth % others.len();
        let ledger = &mut others[at].1;
        let keep = ledger.len().saturating_sub(rows);
        ledger.truncate(keep);
    }
}
