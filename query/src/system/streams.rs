//! `system.streams`: how far each stream of the caller's devices is.
//!
//! | column | unit | meaning |
//! |---|---|---|
//! | `device`, `stream` | | which |
//! | `epoch` | | which life of the device's queue |
//! | `watermark` | row number | every row of the stream up to this one is durable |

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::Result,
};

use super::{
    Sources,
    columns::{COUNT, TEXT, counts, texts},
};

pub(super) fn schema() -> SchemaRef {
    super::columns::schema(
        &[("device", TEXT), ("stream", TEXT), ("epoch", COUNT), ("watermark", COUNT)],
        &[],
    )
}

pub(super) fn rows(from: &Sources) -> Result<RecordBatch> {
    let all = from.storage.streams(from.tenant);
    let columns = vec![
        texts(all.iter().map(|s| s.key.device.to_string())),
        texts(all.iter().map(|s| s.key.stream.as_str())),
        counts(all.iter().map(|s| s.key.epoch.0)),
        counts(all.iter().map(|s| s.watermark.0)),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
