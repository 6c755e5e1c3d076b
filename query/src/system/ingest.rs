//! `system.ingest`: what came in, by table and source, since the start of the server.
//!
//! | column | unit | meaning |
//! |---|---|---|
//! | `database`, `table_name` | | where to; the table is empty where a refused row's could not be told or does not exist |
//! | `source` | | a token's id, or `device/stream`; `(others)` for all beyond the bound of the counters |
//! | `rows` | rows | taken |
//! | `rejected` | rows | refused |
//! | `rejected_dropped` | rows | of these, beyond the caps of `_rejected` and not recorded there |
//! | `late` | rows | of those taken, more than 30 min behind the newest time that the table had before |
//! | `duplicates` | rows | of a device's frames, acknowledged as known already |
//! | `bytes` | bytes | of the rows taken, in memory, as columns |
//! | `last_write` | time | of the last write, by the server's clock |

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::Result,
};
use millrace_storage::stats::IngestCounts;

use super::{
    Sources,
    columns::{COUNT, TEXT, counts, texts, time, times},
};

pub(super) fn schema() -> SchemaRef {
    super::columns::schema(
        &[
            ("database", TEXT),
            ("table_name", TEXT),
            ("source", TEXT),
            ("rows", COUNT),
            ("rejected", COUNT),
            ("rejected_dropped", COUNT),
            ("late", COUNT),
            ("duplicates", COUNT),
            ("bytes", COUNT),
            ("last_write", time()),
        ],
        &[],
    )
}

pub(super) fn rows(from: &Sources) -> Result<RecordBatch> {
    let all = from.storage.ingest(from.tenant);
    let count = |of: fn(&IngestCounts) -> u64| counts(all.iter().map(|e| of(&e.counts)));
    let columns = vec![
        texts(all.iter().map(|e| &e.database)),
        texts(all.iter().map(|e| &e.table)),
        texts(all.iter().map(|e| &e.source)),
        count(|c| c.rows),
        count(|c| c.rejected),
        count(|c| c.dropped),
        count(|c| c.late),
        count(|c| c.duplicates),
        count(|c| c.bytes),
        times(all.iter().map(|e| Some(e.counts.last_write_ns))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
