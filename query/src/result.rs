//! Query results as bytes: streamed, one small piece at a time.
//!
//! Owns: the formats. Never: holds a whole result, except for the pretty table, which is bounded.
//! An error in mid-stream comes out as `Err`, so that the transport can break off visibly.

mod encoder;

use std::str::FromStr;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};

use crate::{engine::QueryAnswer, error::QueryError};

/// How a result is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A JSON array of objects.
    #[default]
    Json,
    /// One JSON object a line.
    JsonLines,
    /// CSV with a header line.
    Csv,
    /// Arrow IPC stream.
    Arrow,
    /// One Parquet file.
    Parquet,
    /// A table for people, the first 10,000 rows.
    Pretty,
}

impl Format {
    /// All names.
    pub const NAMES: &'static [&'static str] =
        &["json", "jsonl", "csv", "arrow", "parquet", "pretty"];

    /// The HTTP content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::JsonLines => "application/jsonl",
            Self::Csv => "text/csv",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
            Self::Pretty => "text/plain; charset=utf-8",
        }
    }
}

impl FromStr for Format {
    type Err = QueryError;

    fn from_str(s: &str) -> Result<Self, QueryError> {
        Ok(match s {
            "json" => Self::Json,
            "jsonl" | "json_lines" => Self::JsonLines,
            "csv" => Self::Csv,
            "arrow" => Self::Arrow,
            "parquet" => Self::Parquet,
            "pretty" => Self::Pretty,
            other => {
                return Err(QueryError::Params(format!(
                    "format `{}` is unknown; use one of {}",
                    other.chars().take(20).collect::<String>(),
                    Self::NAMES.join(", ")
                )));
            }
        })
    }
}

/// Encodes an answer piece by piece.
pub fn encode(
    format: Format,
    answer: QueryAnswer,
) -> BoxStream<'static, Result<Bytes, QueryError>> {
    let encoder = match encoder::Encoder::new(format, &answer.schema) {
        Ok(encoder) => encoder,
        Err(e) => return futures::stream::once(async { Err(e) }).boxed(),
    };
    let state = (Some(encoder), answer.rows);
    futures::stream::try_unfold(state, |(encoder, mut rows)| async move {
        let Some(mut encoder) = encoder else { return Ok(None) };
        loop {
            match rows.next().await {
                Some(batch) => {
                    encoder.write(&batch?)?;
                    let bytes = encoder.take();
                    if !bytes.is_empty() {
                        return Ok(Some((bytes, (Some(encoder), rows))));
                    }
                }
                None => return Ok(Some((encoder.finish()?, (None, rows)))),
            }
        }
    })
    .boxed()
}
