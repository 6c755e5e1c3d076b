//! Exactly-once streams: which rows a frame carries, and what an ack says.
//!
//! Owns: the bytes of [`PutHeader`] and [`PutAck`] (Flight `app_metadata`), described in
//! docs/formats/stream.md. One stream carries rows of one table; rows are numbered from 1 without
//! holes inside one (device, stream, epoch).

use serde::{Deserialize, Serialize};

use crate::{
    batch::Refusal,
    ids::{DeviceId, Epoch, SeqNo, StreamId},
};

const VERSION: u8 = 1;

/// A stream of one device in one queue life.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamKey {
    /// Whose.
    pub device: DeviceId,
    /// Which of its streams.
    pub stream: StreamId,
    /// Which life of its queue.
    pub epoch: Epoch,
}

/// What a data message carries: rows `seq_lo..=seq_hi` of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutHeader {
    /// The stream.
    pub key: StreamKey,
    /// Number of the first row.
    pub seq_lo: SeqNo,
    /// Number of the last row.
    pub seq_hi: SeqNo,
}

/// What the server answers to a data message once its rows are durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutAck {
    /// Format version, 1.
    pub version: u8,
    /// The stream.
    #[serde(flatten)]
    pub key: StreamKey,
    /// Every row up to here is durable.
    pub hi: SeqNo,
    /// Whether the message changed nothing because all its rows were known.
    pub duplicate: bool,
    /// Rows that were refused, the first hundred.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
    /// All refused rows, counted.
    #[serde(default)]
    pub refused: u64,
}

/// The answer to "where shall I go on": `GET /api/v1/device/streams?stream=&epoch=`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenAnswer {
    /// The stream.
    #[serde(flatten)]
    pub key: StreamKey,
    /// Every row up to here is durable; send from the next one.
    pub hi: SeqNo,
    /// The server's wall clock, ns since the Unix epoch, to estimate skew.
    pub server_time_ns: i64,
}

/// Bytes that are no valid header or ack.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stream metadata is invalid: {0}")]
pub struct StreamError(pub String);

impl PutHeader {
    /// `u8` version, 16 device, `u64` epoch, `u64` seq_lo, `u64` seq_hi, then the stream name.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.key.device.0);
        for n in [self.key.epoch.0, self.seq_lo.0, self.seq_hi.0] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        out.extend_from_slice(self.key.stream.as_str().as_bytes());
        out
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StreamError> {
        let short = || StreamError("it ends early".to_owned());
        let (version, rest) = bytes.split_first().ok_or_else(short)?;
        if *version != VERSION {
            return Err(StreamError(format!("version {version}, expected {VERSION}")));
        }
        let (device, rest) = rest.split_first_chunk::<16>().ok_or_else(short)?;
        let (epoch, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        let (lo, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        let (hi, name) = rest.split_first_chunk::<8>().ok_or_else(short)?;
        let name = std::str::from_utf8(name).map_err(|e| StreamError(e.to_string()))?;
        let stream = name.parse().map_err(|e| StreamError(format!("{e}")))?;
        let key = StreamKey {
            device: DeviceId(*device),
            stream,
            epoch: Epoch(u64::from_le_bytes(*epoch)),
        };
        let (seq_lo, seq_hi) = (SeqNo(u64::from_le_bytes(*lo)), SeqNo(u64::from_le_bytes(*hi)));
        if seq_lo.0 == 0 || seq_lo > seq_hi {
            return Err(StreamError(format!("rows {seq_lo} to {seq_hi}")));
        }
        Ok(Self { key, seq_lo, seq_hi })
    }

    /// Rows numbered; what [`Self::from_bytes`] lets in has at least one.
    pub fn rows(&self) -> u64 {
        self.seq_hi.0.saturating_sub(self.seq_lo.0).saturating_add(1)
    }
}

impl PutAck {
    /// An ack of the current version.
    pub fn new(
        key: StreamKey,
        hi: SeqNo,
        duplicate: bool,
        refusals: Vec<Refusal>,
        refused: u64,
    ) -> Self {
        Self { version: VERSION, key, hi, duplicate, refusals, refused }
    }

    /// JSON, because acks are rare and carry refusals for people.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what [`Self::to_bytes`] wrote; anything else is no ack.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StreamError> {
        let ack: Self = serde_json::from_slice(bytes).map_err(|e| StreamError(e.to_string()))?;
        if ack.version != VERSION {
            return Err(StreamError(format!("version {}, expected {VERSION}", ack.version)));
        }
        Ok(ack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_page_are_what_the_code_reads_and_writes() {
        let page = include_str!("../../../docs/formats/stream.md");
        let block =
            |kind: &str| page.split(kind).nth(1).and_then(|b| b.split("```").next()).unwrap();
        let digits = |line: &str| line.split('#').next().unwrap_or("").replace(' ', "");
        let bytes = hex::decode(block("```hex\n").lines().map(digits).collect::<String>()).unwrap();
        let header = PutHeader::from_bytes(&bytes).unwrap();
        assert_eq!(header.to_bytes(), bytes);
        assert_eq!((header.seq_lo, header.seq_hi, header.rows()), (SeqNo(101), SeqNo(200), 100));
        let json = block("```json\n").trim();
        let ack = PutAck::from_bytes(json.as_bytes()).unwrap();
        assert_eq!((ack.key, ack.hi), (header.key, SeqNo(200)));
        let value = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
        let written =
            PutAck { refusals: Vec::new(), ..PutAck::from_bytes(json.as_bytes()).unwrap() };
        let mut expected = value(json.as_bytes());
        // An empty list is left out.
        expected.as_object_mut().unwrap().remove("refusals");
        assert_eq!(value(&written.to_bytes()), expected);
    }

    #[test]
    fn headers_and_acks_come_back_and_prefixes_do_not() {
        let key = StreamKey {
            device: DeviceId([4; 16]),
            stream: "host/cpu".parse().unwrap(),
            epoch: Epoch(9),
        };
        let header = PutHeader { key: key.clone(), seq_lo: SeqNo(3), seq_hi: SeqNo(8) };
        let bytes = header.to_bytes();
        assert_eq!(PutHeader::from_bytes(&bytes).unwrap(), header);
        for cut in 0..42 {
            assert!(PutHeader::from_bytes(&bytes[..cut]).is_err(), "prefix of {cut}");
        }
        let ack = PutAck::new(key, SeqNo(8), false, Vec::new(), 0);
        assert_eq!(PutAck::from_bytes(&ack.to_bytes()).unwrap(), ack);
        assert!(PutAck::from_bytes(b"<html>ok</html>").is_err());
    }
}
