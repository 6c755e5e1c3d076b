//! The text of refused rows, for the table `_rejected`.
//!
//! Owns: where storage finds what a sender wrote: in the decoded body, or in the record batch.
//! Never: copies either; a row becomes text only when it was refused.

use std::borrow::Cow;

use bytes::Bytes;
use millrace_control::Principal;
use millrace_protocol::{
    arrow::{RecordBatch, row_as_line},
    batch::{Refusal, RefusalCode},
    line::{RowTexts, table_of},
    stream::StreamKey,
};
use millrace_storage::{RawRows, Rejected};

use super::locate;

/// Rows of a body of line protocol.
#[derive(Debug)]
pub struct BodyRows(pub RowTexts<Bytes>);

impl RawRows for BodyRows {
    fn raw(&self, line: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.0.row(line))
    }

    fn column(&self, raw: &[u8], code: RefusalCode, reason: &str) -> u32 {
        locate::column(&String::from_utf8_lossy(raw), code, reason)
    }
}

/// Rows of a Flight message.
#[derive(Debug)]
pub struct BatchRows(pub RecordBatch);

impl RawRows for BatchRows {
    fn raw(&self, line: u32) -> Cow<'_, [u8]> {
        Cow::Owned(row_as_line(&self.0, line.saturating_sub(1) as usize))
    }
}

/// What a decoder refused, as storage records it. A decoder that knows the table says so; from
/// text it is read as far as that goes.
pub fn rejected(refusals: &[Refusal], table: Option<&str>, rows: &dyn RawRows) -> Vec<Rejected> {
    let one = |r: &Refusal| Rejected {
        table: table.map(str::to_owned).or_else(|| table_of(&rows.raw(r.line))),
        line: r.line,
        column: r.column,
        code: r.code,
        reason: r.reason.clone(),
    };
    refusals.iter().map(one).collect()
}

/// The source of a token's writes: its id.
pub fn token_source(principal: &Principal) -> String {
    match principal {
        Principal::Token { token, .. } => token.clone(),
        Principal::Device { device, .. } => device.to_string(),
        Principal::Operator => String::new(),
    }
}

/// The source of a stream's rows: `device/stream`.
pub fn stream_source(key: &StreamKey) -> String {
    format!("{}/{}", key.device, key.stream.as_str())
}
