//! Runs queries: admission, planning, execution on threads of their own, a deadline.
//!
//! Owns: the query runtime (its own threads with large stacks, because planning recurses) and the
//! deadline, which both sides keep: the task that works, and the reader, who gets the timeout even
//! while the task computes and cannot be interrupted.
//! Never: plans on a thread that serves I/O; keeps running when the reader has gone; ends a stream
//! of rows as if it were complete when it is not.
//! Invariant: a slot is held until the work has really ended, so that a tenant cannot start more
//! work than it may by giving up early.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    logical_expr::LogicalPlan,
    prelude::{SQLOptions, SessionContext},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use millrace_control::ReadScope;
use millrace_platform::{clock::Clock, metric::Metric};
use millrace_protocol::ids::TenantId;
use millrace_storage::{Engine, TenantSnapshot};
use tokio::sync::{mpsc, oneshot};

mod describe;

pub use describe::{Described, Listed, Place};

use crate::{
    admission::Admission,
    error::QueryError,
    functions::{Stop, StopOnDrop},
    guard,
    params::Params,
    pool::SharedMemory,
    postgres::{Caller, Dialect},
    session::{self, Bounds},
    system::Sources,
};

/// Bounds of every query.
#[derive(Debug, Clone)]
pub struct QueryLimits {
    /// Memory of one query, bytes.
    pub memory_bytes: usize,
    /// Memory of all queries together, bytes; at least that of one is allowed.
    pub memory_total_bytes: usize,
    /// Time of one query.
    pub timeout: Duration,
    /// Queries of one tenant at once.
    pub running: usize,
    /// Queries of one tenant that wait.
    pub queued: usize,
    /// Streams that a scan is split into.
    pub partitions: usize,
    /// Threads of the query runtime.
    pub threads: usize,
}

impl Default for QueryLimits {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
        Self {
            memory_bytes: 512 << 20,
            memory_total_bytes: 2 << 30,
            timeout: Duration::from_secs(30),
            running: 4,
            queued: 16,
            partitions: cores.min(8),
            threads: cores.min(8),
        }
    }
}

/// Stack of a query thread: the guard's limits need a fraction of it.
const STACK_BYTES: usize = 32 << 20;
/// Batches that wait for the reader.
const BATCHES_AHEAD: usize = 2;

/// A running query's schema and rows.
pub struct QueryAnswer {
    /// Columns of every batch.
    pub schema: SchemaRef,
    /// The rows; an error ends them.
    pub rows: BoxStream<'static, Result<RecordBatch, QueryError>>,
}

impl std::fmt::Debug for QueryAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryAnswer")
            .field("columns", &self.schema.fields().len())
            .finish_non_exhaustive()
    }
}

/// See the module head.
pub struct QueryEngine {
    pub(crate) storage: Arc<Engine>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: QueryLimits,
    admission: Admission,
    pub(crate) memory: SharedMemory,
    /// Taken out when dropped: a runtime must not be dropped inside another one's task.
    pub(crate) runtime: Option<tokio::runtime::Runtime>,
}

impl std::fmt::Debug for QueryEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryEngine").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Drop for QueryEngine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What the working task sends.
enum Piece {
    Rows(RecordBatch),
    /// All rows were sent. Without it, a stream that ends has been cut off.
    End,
}

type Pieces = mpsc::Sender<Result<Piece, QueryError>>;
type Deadline = futures::future::Shared<BoxFuture<'static, ()>>;

/// One query on its way to its thread.
struct Work {
    storage: Arc<Engine>,
    tenant: TenantId,
    now_ns: i64,
    database: String,
    sql: String,
    params: Params,
    /// Of a PostgreSQL session.
    caller: Option<Caller>,
    /// The picture to look at, if it is not the newest of everything.
    picture: Option<Arc<TenantSnapshot>>,
    limits: QueryLimits,
    memory: SharedMemory,
    stop: Stop,
}

impl QueryEngine {
    /// Starts the query runtime.
    pub fn new(
        storage: Arc<Engine>,
        clock: Arc<dyn Clock>,
        limits: QueryLimits,
    ) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(limits.threads.max(1))
            .thread_name("query")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()?;
        let memory = SharedMemory::new(limits.memory_total_bytes.max(limits.memory_bytes));
        let admission = Admission::default();
        Ok(Self { storage, clock, limits, admission, memory, runtime: Some(runtime) })
    }

    /// Bytes that running queries have reserved.
    pub fn memory_reserved(&self) -> usize {
        self.memory.reserved()
    }

    fn work(
        &self,
        tenant: TenantId,
        database: &str,
        sql: &str,
        params: Params,
        stop: Stop,
    ) -> Work {
        Work {
            storage: Arc::clone(&self.storage),
            tenant,
            now_ns: self.clock.now_ns(),
            database: database.to_owned(),
            sql: sql.to_owned(),
            params,
            caller: None,
            picture: None,
            limits: self.limits.clone(),
            memory: self.memory.clone(),
            stop,
        }
    }

    /// Runs one statement in the scope's tenant, with `database` as the default schema. Ready
    /// when the schema is known; dropping the answer ends the query.
    pub fn run(
        &self,
        scope: ReadScope,
        database: &str,
        sql: &str,
        params: Params,
    ) -> BoxFuture<'static, Result<QueryAnswer, QueryError>> {
        self.run_for(scope, database, sql, params, None)
    }

    /// The same; with a caller in a session as PostgreSQL's clients expect one.
    pub fn run_for(
        &self,
        scope: ReadScope,
        database: &str,
        sql: &str,
        params: Params,
        caller: Option<Caller>,
    ) -> BoxFuture<'static, Result<QueryAnswer, QueryError>> {
        let work = self.work(scope.tenant(), database, sql, params, Stop::default());
        self.work_off(Work { caller, ..work })
    }

    /// Runs one statement over a picture of the scope's tenant, and of nobody else.
    pub fn run_over(
        &self,
        scope: ReadScope,
        picture: Arc<TenantSnapshot>,
        database: &str,
        sql: &str,
    ) -> BoxFuture<'static, Result<QueryAnswer, QueryError>> {
        if picture.tenant != scope.tenant() {
            let e = QueryError::Unavailable("this picture is not the caller's".to_owned());
            return futures::future::ready(Err(e)).boxed();
        }
        let work = self.work(scope.tenant(), database, sql, Params::None, Stop::default());
        self.work_off(Work { picture: Some(picture), ..work })
    }

    fn work_off(&self, work: Work) -> BoxFuture<'static, Result<QueryAnswer, QueryError>> {
        let tenant = work.tenant;
        let present = self.admission.arrive(tenant, &self.limits);
        let clock = Arc::clone(&self.clock);
        let handle = self.runtime.as_ref().map(|r| r.handle().clone());
        let timeout = self.limits.timeout;
        let stop = work.stop.clone();
        async move {
            // Counted as present from here on; a client that leaves while waiting is uncounted.
            let present = present?;
            let started = clock.monotonic();
            let deadline: Deadline = (clock.sleep(timeout) as BoxFuture<'static, ()>).shared();
            let late = QueryError::Timeout { seconds: timeout.as_secs() };
            let admitted = futures::select_biased! {
                admitted = present.admitted().fuse() => admitted?,
                () = deadline.clone().fuse() => return Err(late),
            };
            let handle = handle.ok_or_else(|| QueryError::Internal("stopped".into()))?;
            let (send_schema, schema) = oneshot::channel();
            let (pieces, rows) = mpsc::channel(BATCHES_AHEAD);
            let task = task(work, send_schema, pieces, deadline.clone(), late.clone());
            handle.spawn(async move {
                let outcome = task.await;
                let took = clock.monotonic().saturating_sub(started);
                count(tenant, outcome.as_ref().err(), took);
                drop(admitted);
            });
            let reader = Reader { rows, deadline, late, stop: StopOnDrop(stop), done: false };
            reader.answer(schema).await
        }
        .boxed()
    }
}

fn count(tenant: TenantId, error: Option<&QueryError>, took: Duration) {
    let outcome = error.map_or("ok", |e| e.code().0);
    metrics::counter!(Metric::Queries.name(), "tenant" => tenant.to_string(), "outcome" => outcome)
        .increment(1);
    metrics::histogram!(Metric::QuerySeconds.name()).record(took.as_secs_f64());
}

/// Works until done, late, or nobody reads; whatever the outcome, the reader learns of it.
async fn task(
    work: Work,
    schema: oneshot::Sender<SchemaRef>,
    pieces: Pieces,
    deadline: Deadline,
    late: QueryError,
) -> Result<(), QueryError> {
    let working = AssertUnwindSafe(execute(work, schema, pieces.clone())).catch_unwind();
    let outcome = futures::select_biased! {
        done = working.fuse() => done.unwrap_or_else(|_| Err(QueryError::panicked())),
        () = deadline.fuse() => Err(late),
        () = pieces.closed().fuse() => return Ok(()),
    };
    let last = outcome.clone().map(|()| Piece::End);
    // The reader may be gone; then nobody wants to know.
    drop(pieces.send(last).await);
    outcome
}

/// Guarded, parsed and planned; parameters are not bound yet.
async fn planned(work: &Work) -> Result<(SessionContext, LogicalPlan), QueryError> {
    let snapshot = match &work.picture {
        Some(picture) => Arc::clone(picture),
        None => {
            let newest = work.storage.snapshot(work.tenant);
            newest.map_err(|e| QueryError::Unavailable(e.to_string()))?
        }
    };
    let dialect = work.caller.as_ref().map(|c| Dialect::new(c, &snapshot, &work.database));
    let statement = match &dialect {
        Some(dialect) => guard::parse_with(&work.sql, |statement| dialect.rewrite(statement))?,
        None => guard::parse(&work.sql)?,
    };
    let bounds = Bounds { limits: &work.limits, memory: &work.memory, stop: &work.stop };
    let sources = Sources {
        snapshot,
        storage: Arc::clone(&work.storage),
        tenant: work.tenant,
        now_ns: work.now_ns,
    };
    let context = session::open(&sources, &work.database, &bounds)?;
    if let Some(dialect) = &dialect {
        dialect.register(&context)?;
    }
    let plan = context.state().statement_to_plan(statement).await?;
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)?;
    Ok((context, plan))
}

async fn execute(
    work: Work,
    schema: oneshot::Sender<SchemaRef>,
    pieces: Pieces,
) -> Result<(), QueryError> {
    let (context, plan) = planned(&work).await?;
    let plan = work.params.bind(plan)?;
    let mut state = context.state();
    let plan = state.optimize(&plan)?;
    let rows = session::batch_rows(&plan)?;
    *state.config_mut() = state.config().clone().with_batch_size(rows);
    let physical = state.query_planner().create_physical_plan(&plan, &state).await?;
    let mut stream = datafusion::physical_plan::execute_stream(physical, state.task_ctx())?;
    if schema.send(stream.schema()).is_err() {
        return Ok(());
    }
    while let Some(batch) = stream.next().await {
        if pieces.send(Ok(Piece::Rows(batch?))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// The reader's side of a query.
struct Reader {
    rows: mpsc::Receiver<Result<Piece, QueryError>>,
    deadline: Deadline,
    late: QueryError,
    stop: StopOnDrop,
    done: bool,
}

impl Reader {
    async fn answer(
        mut self,
        schema: oneshot::Receiver<SchemaRef>,
    ) -> Result<QueryAnswer, QueryError> {
        let schema = futures::select_biased! {
            schema = schema.fuse() => schema,
            () = self.deadline.clone().fuse() => return Err(self.late.clone()),
        };
        match schema {
            Ok(schema) => {
                let rows = futures::stream::unfold(self, |mut reader| async move {
                    Some((reader.next().await?, reader))
                });
                Ok(QueryAnswer { schema, rows: rows.boxed() })
            }
            // No schema: the first thing in the channel says why.
            Err(_) => match self.next().await {
                Some(Err(e)) => Err(e),
                _ => Err(QueryError::cut_off()),
            },
        }
    }

    /// The next rows. The deadline counts here too: the task may be busy where it cannot look.
    async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        if self.done {
            return None;
        }
        let piece = futures::select_biased! {
            piece = self.rows.recv().fuse() => piece,
            () = self.deadline.clone().fuse() => Some(Err(self.late.clone())),
        };
        let item = match piece {
            Some(Ok(Piece::Rows(batch))) => return Some(Ok(batch)),
            Some(Ok(Piece::End)) => None,
            Some(Err(e)) => Some(Err(e)),
            None => Some(Err(QueryError::cut_off())),
        };
        self.done = true;
        self.stop.0.set();
        item
    }
}

#[cfg(test)]
mod tests;
