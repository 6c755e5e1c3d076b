//! `system.tables`: one row for each table of the caller.
//!
//! | column | unit | meaning |
//! |---|---|---|
//! | `database`, `table_name` | | which |
//! | `rows` | rows | in files and memory; rows that replace others are counted until a merge drops them |
//! | `memory_rows` | rows | of these, not in files yet |
//! | `files` | | column files |
//! | `bytes` | bytes | of the files, sealed, with their series directories |
//! | `series` | | combinations of tag values |
//! | `tags`, `fields` | | columns |
//! | `time_min`, `time_max` | time | bounds of the rows' times; null without rows |

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::Result,
};
use millrace_storage::TableSnapshot;

use super::{
    Sources,
    columns::{COUNT, TEXT, counts, texts, time, times},
};

pub(super) fn schema() -> SchemaRef {
    super::columns::schema(
        &[
            ("database", TEXT),
            ("table_name", TEXT),
            ("rows", COUNT),
            ("memory_rows", COUNT),
            ("files", COUNT),
            ("bytes", COUNT),
            ("series", COUNT),
            ("tags", COUNT),
            ("fields", COUNT),
            ("time_min", time()),
            ("time_max", time()),
        ],
        &["time_min", "time_max"],
    )
}

pub(super) fn rows(from: &Sources) -> Result<RecordBatch> {
    let databases = &from.snapshot.databases;
    let all: Vec<(&str, &TableSnapshot)> = databases
        .iter()
        .flat_map(|(name, tables)| tables.values().map(move |t| (name.as_str(), t.as_ref())))
        .collect();
    let count = |of: fn(&TableSnapshot) -> u64| counts(all.iter().map(|(_, t)| of(t)));
    let bytes = |t: &TableSnapshot| t.files().iter().map(|f| f.bytes).sum();
    let columns = vec![
        texts(all.iter().map(|(database, _)| database)),
        texts(all.iter().map(|(_, t)| &t.schema.name)),
        count(TableSnapshot::rows_upper_bound),
        count(TableSnapshot::memtable_rows),
        count(|t| t.files().len() as u64),
        count(bytes),
        count(|t| t.series.entries.len() as u64),
        count(|t| t.schema.tags.len() as u64),
        count(|t| t.schema.fields.len() as u64),
        times(all.iter().map(|(_, t)| t.time_bounds().map(|b| b.0))),
        times(all.iter().map(|(_, t)| t.time_bounds().map(|b| b.1))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
