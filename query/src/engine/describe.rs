//! What a statement would answer, and what there is to ask, without running anything.
//!
//! Owns: descriptions of statements (columns and parameters) and the list of a tenant's tables.
//! Both are planned under the same guards, admission and deadline as a query. Never: reads rows.

use std::{panic::AssertUnwindSafe, sync::Arc};

use datafusion::{
    arrow::datatypes::{DataType, SchemaRef},
    catalog::information_schema::INFORMATION_SCHEMA,
    common::ParamValues,
    scalar::ScalarValue,
};
use futures::{FutureExt, future::BoxFuture};
use millrace_control::ReadScope;
use tokio::sync::oneshot;

use super::{Deadline, QueryEngine, Work, planned};
use crate::{
    error::QueryError,
    functions::{Stop, StopOnDrop},
    params::Params,
    postgres::Caller,
    session::{self, Bounds},
    system::Sources,
};

/// A place for a value in a statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Without the `$`: `1`, `2` … or a name.
    pub name: String,
    /// What the caller said, or else what follows from where it stands.
    pub data_type: Option<DataType>,
}

/// What a statement would answer.
#[derive(Debug, Clone)]
pub struct Described {
    /// The columns of its rows.
    pub schema: SchemaRef,
    /// Its places, `1`, `2` … in this order, then names in theirs.
    pub places: Vec<Place>,
}

/// A table or view that may be asked.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The database, or `system`, or `information_schema`.
    pub database: String,
    /// Its name.
    pub table: String,
    /// Made when it is read, rather than written by the tenant.
    pub view: bool,
    /// Its columns.
    pub schema: SchemaRef,
}

impl QueryEngine {
    /// Plans one statement; `types` are those of `$1`, `$2` … where the caller knows them.
    pub fn describe(
        &self,
        scope: ReadScope,
        database: &str,
        sql: &str,
        types: Vec<Option<DataType>>,
    ) -> BoxFuture<'static, Result<Described, QueryError>> {
        self.describe_for(scope, database, sql, types, None)
    }

    /// The same; with a caller in a session as PostgreSQL's clients expect one.
    pub fn describe_for(
        &self,
        scope: ReadScope,
        database: &str,
        sql: &str,
        types: Vec<Option<DataType>>,
        caller: Option<Caller>,
    ) -> BoxFuture<'static, Result<Described, QueryError>> {
        self.short(scope, database, sql, move |work| {
            describe(Work { caller, ..work }, types).boxed()
        })
    }

    /// All tables and views of the scope's tenant, with their columns.
    pub fn tables(
        &self,
        scope: ReadScope,
        database: &str,
    ) -> BoxFuture<'static, Result<Vec<Listed>, QueryError>> {
        self.short(scope, database, "", |work| list(work).boxed())
    }

    /// Work on the query threads that ends with one value: admitted and with a deadline, as a
    /// query is, and stopped when nobody waits for it.
    fn short<T: Send + 'static>(
        &self,
        scope: ReadScope,
        database: &str,
        sql: &str,
        work: impl FnOnce(Work) -> BoxFuture<'static, Result<T, QueryError>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, QueryError>> {
        let present = self.admission.arrive(scope.tenant(), &self.limits);
        let clock = Arc::clone(&self.clock);
        let handle = self.runtime.as_ref().map(|r| r.handle().clone());
        let timeout = self.limits.timeout;
        let stop = Stop::default();
        let mine = self.work(scope.tenant(), database, sql, Params::None, stop.clone());
        async move {
            let present = present?;
            let deadline: Deadline = (clock.sleep(timeout) as BoxFuture<'static, ()>).shared();
            let late = QueryError::Timeout { seconds: timeout.as_secs() };
            let admitted = futures::select_biased! {
                admitted = present.admitted().fuse() => admitted?,
                () = deadline.clone().fuse() => return Err(late),
            };
            let handle = handle.ok_or_else(QueryError::cut_off)?;
            let _stopper = StopOnDrop(stop);
            let (mut answer, done) = oneshot::channel();
            let (ends, too_late) = (deadline.clone(), late.clone());
            handle.spawn(async move {
                let working = AssertUnwindSafe(work(mine)).catch_unwind();
                let outcome = futures::select_biased! {
                    done = working.fuse() => done.unwrap_or_else(|_| Err(QueryError::panicked())),
                    () = ends.fuse() => Err(too_late),
                    () = answer.closed().fuse() => return,
                };
                // The reader may be gone; then nobody wants to know.
                drop(answer.send(outcome));
                drop(admitted);
            });
            futures::select_biased! {
                done = done.fuse() => done.unwrap_or_else(|_| Err(QueryError::cut_off())),
                () = deadline.fuse() => Err(late),
            }
        }
        .boxed()
    }
}

/// `1`, `2`, `10`, then names.
fn by_number(name: &str) -> (u32, String) {
    (name.parse().unwrap_or(u32::MAX), name.to_owned())
}

async fn describe(work: Work, types: Vec<Option<DataType>>) -> Result<Described, QueryError> {
    let (context, plan) = planned(&work).await?;
    let mut places: Vec<Place> = plan
        .get_parameter_types()?
        .into_iter()
        .map(|(name, inferred)| {
            let name = name.trim_start_matches('$').to_owned();
            let number = name.parse::<usize>().ok().and_then(|n| n.checked_sub(1));
            let said = number.and_then(|n| types.get(n).cloned()).flatten();
            Place { name, data_type: said.or(inferred.filter(|t| *t != DataType::Null)) }
        })
        .collect();
    places.sort_by_key(|p| by_number(&p.name));
    let nulls = places
        .iter()
        .map(|p| {
            let data_type = p.data_type.as_ref().unwrap_or(&DataType::Utf8);
            Ok((p.name.clone(), ScalarValue::try_new_null(data_type)?))
        })
        .collect::<Result<Vec<(String, ScalarValue)>, QueryError>>()?;
    let plan =
        if nulls.is_empty() { plan } else { plan.with_param_values(ParamValues::from(nulls))? };
    let plan = context.state().optimize(&plan)?;
    Ok(Described { schema: Arc::clone(plan.schema().inner()), places })
}

async fn list(work: Work) -> Result<Vec<Listed>, QueryError> {
    let snapshot =
        work.storage.snapshot(work.tenant).map_err(|e| QueryError::Unavailable(e.to_string()))?;
    let bounds = Bounds { limits: &work.limits, memory: &work.memory, stop: &work.stop };
    let sources = Sources {
        snapshot: Arc::clone(&snapshot),
        storage: Arc::clone(&work.storage),
        tenant: work.tenant,
        now_ns: work.now_ns,
    };
    let context = session::open(&sources, &work.database, &bounds)?;
    let Some(catalog) = context.catalog(session::CATALOG) else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for database in catalog.schema_names() {
        let Some(schema) = catalog.schema(&database) else { continue };
        for table in schema.table_names() {
            let Some(provider) = schema.table(&table).await? else { continue };
            let view = !snapshot.databases.contains_key(&database);
            out.push(Listed { database: database.clone(), table, view, schema: provider.schema() });
        }
    }
    // The tenant's own first, then what stands in every database.
    let last = |l: &Listed| (l.view, l.database == INFORMATION_SCHEMA);
    out.sort_by(|a, b| (last(a), &a.database, &a.table).cmp(&(last(b), &b.database, &b.table)));
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{CANARY, World, scope};

    fn check(sql: &str, types: Vec<Option<DataType>>, expected: &str) {
        let world = World::sample();
        let got = world.block_on(world.query.describe(scope(), "default", sql, types));
        let shown = match got {
            Ok(d) => {
                let columns = d.schema.fields().iter();
                let columns: Vec<String> =
                    columns.map(|f| format!("{}: {}", f.name(), f.data_type())).collect();
                let places: Vec<String> = d
                    .places
                    .iter()
                    .map(|p| {
                        let t = p.data_type.as_ref().map_or("?".to_owned(), ToString::to_string);
                        format!("${} {t}", p.name)
                    })
                    .collect();
                format!("{} <- {}", columns.join(", "), places.join(", "))
            }
            Err(e) => e.code().0.to_owned(),
        };
        assert_eq!(shown, expected, "{sql}");
    }

    #[test]
    fn columns_and_places_are_told_without_values() {
        check("SELECT n, usage FROM cpu", vec![], "n: Int64, usage: Float64 <- ");
        check(
            "SELECT n FROM cpu WHERE n > $1 AND up = $2",
            vec![],
            "n: Int64 <- $1 Int64, $2 Boolean",
        );
        check("SELECT $1 AS a", vec![], "a: Utf8 <- $1 ?");
        check("SELECT $1 AS a", vec![Some(DataType::Int64)], "a: Int64 <- $1 Int64");
        check(
            "SELECT n FROM cpu WHERE n > $10 AND n < $2 AND up = $ok",
            vec![],
            "n: Int64 <- $2 Int64, $10 Int64, $ok Boolean",
        );
        check("DROP TABLE cpu", vec![], "sql_not_allowed");
        check("SELECT nothing FROM cpu", vec![], "sql_unknown_name");
    }

    #[test]
    fn a1_the_list_has_the_tenants_own_tables_and_the_views_and_nothing_else() {
        let world = World::sample();
        let all = world.block_on(world.query.tables(scope(), "default")).unwrap();
        let own: Vec<String> =
            all.iter().filter(|l| !l.view).map(|l| format!("{}.{}", l.database, l.table)).collect();
        assert_eq!(own, ["default.cpu", "factory.press"]);
        assert!(all.iter().any(|l| l.database == "system" && l.table == "tables"));
        assert!(!format!("{all:?}").contains(CANARY));
        assert!(!format!("{all:?}").contains("vault"));
    }

    #[test]
    fn what_is_described_is_what_comes() {
        let world = World::sample();
        for sql in [
            "SELECT * FROM cpu",
            "SELECT host, count(*), avg(usage), max(time) FROM cpu GROUP BY host",
            "SELECT date_bin(INTERVAL '1 minute', time) AS t, sum(n) FROM cpu GROUP BY 1",
            "SHOW TABLES",
            "EXPLAIN SELECT 1",
            "SELECT CASE WHEN up THEN 1 ELSE 2.5 END FROM cpu UNION ALL SELECT n FROM cpu",
        ] {
            let told = world.block_on(world.query.describe(scope(), "default", sql, vec![]));
            let came = world.block_on(world.query.run(scope(), "default", sql, Params::None));
            let types = |schema: &SchemaRef| -> Vec<(String, DataType)> {
                let fields = schema.fields().iter();
                fields.map(|f| (f.name().clone(), f.data_type().clone())).collect()
            };
            assert_eq!(types(&told.unwrap().schema), types(&came.unwrap().schema), "{sql}");
        }
    }
}
