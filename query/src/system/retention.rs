//! `system.retention`: what is kept of each table of the caller, and what goes when.
//!
//! | column | unit | meaning |
//! |---|---|---|
//! | `database`, `table_name` | | which |
//! | `keep_days` | days | how long rows are kept by their time, once all that is announced has come; null for ever |
//! | `visible_from` | time | rows before this are not shown; null if all are |
//! | `hides_at` | time | when a shorter limit hides rows that are shown now; null if none is announced |
//! | `drops_at` | time | when what it hides is dropped for good |
//! | `held` | | whether a legal hold keeps files of the table |
//! | `next_drop` | time | when the next file goes; null if none does |
//! | `next_drop_rows` | rows | of the files that go in the day after that |
//! | `next_drop_bytes` | bytes | of the same |

use datafusion::{
    arrow::{
        array::{ArrayRef, BooleanArray, Int64Array, RecordBatch},
        datatypes::{DataType, SchemaRef},
    },
    error::{DataFusionError, Result},
};
use millrace_storage::retention::{DAY_NS, Leaving, Rules, TableName};

use super::{
    Sources,
    columns::{COUNT, NUMBER, TEXT, counts, texts, time, times},
};

pub(super) fn schema() -> SchemaRef {
    super::columns::schema(
        &[
            ("database", TEXT),
            ("table_name", TEXT),
            ("keep_days", NUMBER),
            ("visible_from", time()),
            ("hides_at", time()),
            ("drops_at", time()),
            ("held", DataType::Boolean),
            ("next_drop", time()),
            ("next_drop_rows", COUNT),
            ("next_drop_bytes", COUNT),
        ],
        &["keep_days", "visible_from", "hides_at", "drops_at", "next_drop"],
    )
}

struct Row {
    table: TableName,
    keep_days: Option<i64>,
    visible_from: Option<i64>,
    countdown: Option<(i64, i64)>,
    held: bool,
    next: Option<i64>,
    rows: u64,
    bytes: u64,
}

fn row(table: TableName, shown_from: i64, rules: &Rules, now: i64, leaving: &[Leaving]) -> Row {
    let own = || leaving.iter().filter(|f| f.table == table && f.at_ns.is_some());
    let next = own().filter_map(|f| f.at_ns).min();
    let day = next.map_or(i64::MIN, |at| at.saturating_add(DAY_NS));
    let soon = || own().filter(|f| f.at_ns.is_some_and(|at| at < day));
    Row {
        keep_days: rules.last(&table).map(|ns| ns / DAY_NS),
        visible_from: Some(shown_from).filter(|ns| *ns != i64::MIN),
        countdown: rules.countdown(&table, now),
        held: rules.holds.holds(&table),
        next,
        rows: soon().map(|f| f.rows).sum(),
        bytes: soon().map(|f| f.bytes).sum(),
        table,
    }
}

pub(super) fn rows(from: &Sources) -> Result<RecordBatch> {
    let rules = from.storage.retention(from.tenant).unwrap_or_default();
    let now = from.storage.clock_state().now_ns;
    let forecast = from.storage.forecast(from.tenant, &rules, i64::MAX);
    let leaving = forecast.map_err(|e| DataFusionError::External(Box::new(e)))?.files;
    let mut all = Vec::new();
    for (database, tables) in &from.snapshot.databases {
        for (name, table) in tables {
            let name = (database.clone(), name.clone());
            all.push(row(name, table.shown_from(), &rules, now, &leaving));
        }
    }
    let held: ArrayRef =
        std::sync::Arc::new(BooleanArray::from_iter(all.iter().map(|r| Some(r.held))));
    let columns = vec![
        texts(all.iter().map(|r| &r.table.0)),
        texts(all.iter().map(|r| &r.table.1)),
        std::sync::Arc::new(Int64Array::from_iter(all.iter().map(|r| r.keep_days))) as ArrayRef,
        times(all.iter().map(|r| r.visible_from)),
        times(all.iter().map(|r| r.countdown.map(|c| c.0))),
        times(all.iter().map(|r| r.countdown.map(|c| c.1))),
        held,
        times(all.iter().map(|r| r.next)),
        counts(all.iter().map(|r| r.rows)),
        counts(all.iter().map(|r| r.bytes)),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}
