//! `system.files`: one row for each column file of the caller.
//!
//! | column | unit | meaning |
//! |---|---|---|
//! | `database`, `table_name` | | whose rows |
//! | `file_id` | | 32 hexadecimal digits; not the name of a stored object, which tenants share |
//! | `level` | | 0 for a flush, more for merges |
//! | `window_start`, `window_end` | time | smallest and largest time of its rows, both included |
//! | `rows` | rows | |
//! | `bytes` | bytes | sealed, with its series directory |
//! | `age_s` | s | from its newest row's time to now |

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    error::Result,
};
use millrace_storage::manifest::FileEntry;

use super::{
    Sources,
    columns::{COUNT, NUMBER, TEXT, counts, numbers, texts, time, times},
};

pub(super) fn schema() -> SchemaRef {
    super::columns::schema(
        &[
            ("database", TEXT),
            ("table_name", TEXT),
            ("file_id", TEXT),
            ("level", COUNT),
            ("window_start", time()),
            ("window_end", time()),
            ("rows", COUNT),
            ("bytes", COUNT),
            ("age_s", NUMBER),
        ],
        &[],
    )
}

fn id(file: &FileEntry) -> String {
    file.id.iter().map(|b| format!("{b:02x}")).collect()
}

pub(super) fn rows(from: &Sources) -> Result<RecordBatch> {
    let mut all: Vec<(&str, &str, &FileEntry)> = Vec::new();
    for (database, tables) in &from.snapshot.databases {
        for table in tables.values() {
            let files = table.files().iter();
            all.extend(files.map(|f| (database.as_str(), table.schema.name.as_str(), f.as_ref())));
        }
    }
    let age = |t_max: i64| from.now_ns.saturating_sub(t_max).div_euclid(1_000_000_000);
    let columns = vec![
        texts(all.iter().map(|f| f.0)),
        texts(all.iter().map(|f| f.1)),
        texts(all.iter().map(|f| id(f.2))),
        counts(all.iter().map(|f| u64::from(f.2.level))),
        times(all.iter().map(|f| Some(f.2.t_min))),
        times(all.iter().map(|f| Some(f.2.t_max))),
        counts(all.iter().map(|f| f.2.rows)),
        counts(all.iter().map(|f| f.2.bytes)),
        numbers(all.iter().map(|f| age(f.2.t_max))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
