//! `system.compactions`: the last merges of the caller's tables, at most 32, since the start of
//! the server.
//!
//! | column | unit | meaning |
//! |---|---|---|
//! | `started`, `ended` | time | by the server's clock |
//! | `database`, `table_name` | | whose files |
//! | `reason` | | `overlap`, `hot`, `late`, `late into base` or `seal` |
//! | `level` | | of the files that were written |
//! | `files_in`, `files_out` | files | read and written |
//! | `rows_in`, `rows_out` | rows | the difference was replaced by newer rows |
//! | `bytes_in`, `bytes_out` | bytes | sealed |

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::Result,
};
use millrace_storage::CompactionRecord;

use super::{
    Sources,
    columns::{COUNT, TEXT, counts, texts, time, times},
};

pub(super) fn schema() -> SchemaRef {
    super::columns::schema(
        &[
            ("started", time()),
            ("ended", time()),
            ("database", TEXT),
            ("table_name", TEXT),
            ("reason", TEXT),
            ("level", COUNT),
            ("files_in", COUNT),
            ("files_out", COUNT),
            ("rows_in", COUNT),
            ("rows_out", COUNT),
            ("bytes_in", COUNT),
            ("bytes_out", COUNT),
        ],
        &[],
    )
}

pub(super) fn rows(from: &Sources) -> Result<RecordBatch> {
    let all = from.storage.compactions(from.tenant);
    let count = |of: fn(&CompactionRecord) -> u64| counts(all.iter().map(of));
    let columns = vec![
        times(all.iter().map(|c| Some(c.start_ns))),
        times(all.iter().map(|c| Some(c.end_ns))),
        texts(all.iter().map(|c| &c.database)),
        texts(all.iter().map(|c| &c.table)),
        texts(all.iter().map(|c| c.reason.as_str())),
        count(|c| u64::from(c.level)),
        count(|c| c.inputs as u64),
        count(|c| c.outputs as u64),
        count(|c| c.rows_in),
        count(|c| c.rows_out),
        count(|c| c.bytes_in),
        count(|c| c.bytes_out),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
