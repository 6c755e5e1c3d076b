//! Deletions by SQL: from a condition to series and a range of time.
//!
//! Owns: what a condition may be. It is planned as the query that would show the rows; only if the
//! scan alone decides about it, by tags and time, is it one that storage can delete by. Nothing is
//! deleted by a condition that is only nearly what was asked.
//! Never: runs without an admin's scope; answers before the deletion is durable.

use std::sync::Arc;

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    logical_expr::{Expr, LogicalPlan},
};
use futures::{FutureExt, future::BoxFuture};
use millrace_control::AdminScope;
use millrace_protocol::ids::TenantId;
use millrace_storage::{DeleteError, DeleteRequest, Deleted, Engine, TableSnapshot};

use crate::{
    engine::{QueryEngine, QueryLimits},
    error::QueryError,
    functions::Stop,
    guard,
    params::Params,
    pool::SharedMemory,
    prune,
    session::{self, Bounds},
    system::Sources,
};

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeletionError {
    /// The statement.
    #[error(transparent)]
    Statement(#[from] QueryError),
    /// Storage.
    #[error(transparent)]
    Storage(#[from] DeleteError),
}

/// What a deletion was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Database and table.
    pub table: (String, String),
    /// Whether the table was dropped.
    pub dropped: bool,
    /// Series that the condition picked; `None` for all.
    pub series: Option<usize>,
    /// First and last time, ns.
    pub times: (i64, i64),
    /// What storage did.
    pub done: Deleted,
}

/// One statement on its way to its thread.
struct Work {
    storage: Arc<Engine>,
    tenant: TenantId,
    now_ns: i64,
    database: String,
    sql: String,
    params: Params,
    limits: QueryLimits,
    memory: SharedMemory,
}

impl QueryEngine {
    /// Runs `DELETE FROM t WHERE …` or `DROP TABLE t` in the scope's tenant. Ready when what it
    /// takes is durably gone.
    pub fn delete(
        &self,
        scope: AdminScope,
        database: &str,
        sql: &str,
        params: Params,
    ) -> BoxFuture<'static, Result<Deletion, DeletionError>> {
        let work = Work {
            storage: Arc::clone(&self.storage),
            tenant: scope.tenant(),
            now_ns: self.clock.now_ns(),
            database: database.to_owned(),
            sql: sql.to_owned(),
            params,
            limits: self.limits.clone(),
            memory: self.memory.clone(),
        };
        let handle = self.runtime.as_ref().map(|r| r.handle().clone());
        async move {
            let stopped = || QueryError::Unavailable("the server is stopping".to_owned());
            let handle = handle.ok_or_else(stopped)?;
            // Planning recurses, so it has a query's stack.
            handle.spawn(run(work)).await.map_err(|_| QueryError::panicked())?
        }
        .boxed()
    }
}

async fn run(work: Work) -> Result<Deletion, DeletionError> {
    let deletion = guard::deletion::parse(&work.sql)?;
    let table = (deletion.database.unwrap_or(work.database.clone()), deletion.table);
    let Some(condition) = deletion.condition else {
        let done = work.storage.drop_table(work.tenant, table.clone()).await?;
        let times = (i64::MIN, i64::MAX);
        return Ok(Deletion { table, dropped: true, series: None, times, done });
    };
    let snapshot =
        work.storage.snapshot(work.tenant).map_err(|e| QueryError::Unavailable(e.to_string()))?;
    let known = snapshot.databases.get(&table.0).and_then(|d| d.get(&table.1)).cloned();
    let known = known.ok_or_else(|| DeleteError::NoTable(table.clone()))?;
    let sources = Sources {
        snapshot,
        storage: Arc::clone(&work.storage),
        tenant: work.tenant,
        now_ns: work.now_ns,
    };
    let picked = pick(&work, &sources, &table, &known, &condition).await?;
    let Some((series, times)) = picked else {
        // The condition is never true.
        let lsn = sources.snapshot.lsn;
        let done = Deleted { lsn, files: 0 };
        return Ok(Deletion { table, dropped: false, series: Some(0), times: (0, -1), done });
    };
    let count = series.as_ref().map(Vec::len);
    let request = DeleteRequest { tenant: work.tenant, table: table.clone(), series, times };
    let done = work.storage.delete(request).await?;
    Ok(Deletion { table, dropped: false, series: count, times, done })
}

type Picked = (Option<Vec<millrace_protocol::ids::SeriesId>>, (i64, i64));

/// Series and times that a condition picks; `None` if it is never true.
async fn pick(
    work: &Work,
    sources: &Sources,
    table: &(String, String),
    known: &TableSnapshot,
    condition: &str,
) -> Result<Option<Picked>, QueryError> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let sql = format!("SELECT * FROM {}.{} WHERE {condition}", quoted(&table.0), quoted(&table.1));
    // What was written passes the same guard as a query.
    let statement = guard::parse(&sql)?;
    let stop = Stop::default();
    let bounds = Bounds { limits: &work.limits, memory: &work.memory, stop: &stop };
    let context = session::open(sources, &work.database, &bounds)?;
    let plan = context.state().statement_to_plan(statement).await?;
    let plan = work.params.clone().bind(plan)?;
    let state = context.state();
    let plan = state.optimize(&plan)?;
    let Some(filters) = filters(&plan)? else { return Ok(None) };
    let range = prune::time_of(&filters);
    let series = prune::series_of(&filters, known, &state)?;
    let of = |wanted: Arc<Vec<bool>>| {
        let all = known.series.entries.iter().zip(wanted.iter());
        all.filter(|(_, wanted)| **wanted).map(|(entry, _)| entry.sid).collect()
    };
    // The range is half-open, and its end that of time itself.
    let last = if range.end == i64::MAX { i64::MAX } else { range.end - 1 };
    Ok(Some((series.map(of), (range.start, last))))
}

/// The filters of the one scan of a plan, which must be all that decides; `None` if the plan has
/// no rows whatever is stored.
fn filters(plan: &LogicalPlan) -> Result<Option<Vec<Expr>>, QueryError> {
    let (mut scans, mut other, mut empty) = (Vec::new(), false, false);
    plan.apply(|node| {
        match node {
            LogicalPlan::TableScan(scan) => scans.push(scan.filters.clone()),
            LogicalPlan::EmptyRelation(relation) => empty = !relation.produce_one_row,
            LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) => {}
            _ => other = true,
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    if empty && scans.is_empty() && !other {
        return Ok(None);
    }
    match (scans.pop(), scans.is_empty(), other) {
        (Some(filters), true, false) => Ok(Some(filters)),
        _ => Err(QueryError::Invalid(
            "rows can be deleted by tags and time alone: compare `time` with a fixed time, tags with what you like, and join several conditions with AND".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use millrace_control::{Principal, policy};

    use super::*;
    use crate::fixture::{NEW_YEAR_NS, STRANGER, TENANT, World};

    fn admin() -> AdminScope {
        let admin = Principal::Token {
            tenant: TENANT,
            token: "t".into(),
            read: false,
            write: false,
            admin: true,
        };
        policy::to_administer(&admin, TENANT).unwrap()
    }

    fn delete(world: &World, sql: &str) -> Result<Deletion, String> {
        let done = world.query.delete(admin(), "default", sql, Params::None);
        world.block_on(done).map_err(|e| e.to_string())
    }

    fn rows(world: &World) -> String {
        world.csv("SELECT host, count(*) AS n FROM cpu GROUP BY host ORDER BY host").join(" ")
    }

    #[test]
    fn r4_rows_go_by_tags_and_time_and_their_like_that_come_later_stay() {
        let world = World::sample();
        let all = rows(&world);
        assert!(delete(&world, "DELETE FROM cpu WHERE host = 'nobody'").is_ok());
        assert!(delete(&world, "DELETE FROM cpu WHERE 1 = 2").is_ok());
        assert_eq!(rows(&world), all);
        let done = delete(&world, "DELETE FROM cpu WHERE host = 'h1'").unwrap();
        assert_eq!((done.series, done.dropped), (Some(1), false));
        assert!(!rows(&world).contains("h1"), "{}", rows(&world));
        let left = rows(&world);
        delete(&world, "DELETE FROM cpu WHERE host LIKE 'h%' AND time < '2026-01-01T00:01:00Z'")
            .unwrap();
        assert_ne!(rows(&world), left);
        // What is sent after the deletion lives, though it is the same.
        world.fill();
        assert_eq!(rows(&world), all);
        delete(
            &world,
            &format!("DELETE FROM cpu WHERE time >= '{NEW_YEAR_NS}'::bigint::timestamp"),
        )
        .ok();
        delete(&world, "DELETE FROM cpu WHERE time >= '2020-01-01T00:00:00Z'").unwrap();
        assert_eq!(rows(&world), "");
    }

    #[test]
    fn r4_a_condition_that_storage_cannot_decide_deletes_nothing() {
        let world = World::sample();
        let all = rows(&world);
        for sql in [
            "DELETE FROM cpu WHERE usage > 1",
            "DELETE FROM cpu WHERE host = 'h1' OR usage > 1",
            "DELETE FROM cpu WHERE host IN (SELECT host FROM cpu)",
            "DELETE FROM cpu WHERE nothing = 1",
            "DELETE FROM nowhere WHERE host = 'h1'",
            "DELETE FROM system.tables WHERE table_name = 'cpu'",
            "DELETE FROM cpu WHERE random() < 0.5",
        ] {
            let refused = delete(&world, sql);
            assert!(refused.is_err(), "{sql}: {refused:?}");
        }
        assert_eq!(rows(&world), all);
    }

    #[test]
    fn r4_a_dropped_table_is_gone_and_its_name_is_free() {
        let world = World::sample();
        assert!(delete(&world, "DROP TABLE cpu").unwrap().dropped);
        assert_eq!(world.code("SELECT * FROM cpu"), "sql_unknown_name");
        assert!(delete(&world, "DROP TABLE cpu").is_err());
        world.fill();
        assert_ne!(rows(&world), "");
        let others = world.storage.snapshot(STRANGER).unwrap();
        assert!(!others.databases.is_empty(), "another tenant's tables are untouched");
    }
}
