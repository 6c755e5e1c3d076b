//! Runs queries: admission, planning, execution on threads of their own, a deadline.
//!
//! Owns: the query runtime (its own threads with large stacks, because planning recurses), the
//! per-tenant admission. Never: plans on a thread that serves I/O; runs past the deadline; keeps
//! running when the reader has gone.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use datafusion::{
    arrow::{array::RecordBatch, datatypes::SchemaRef},
    prelude::SQLOptions,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use millrace_control::ReadScope;
use millrace_platform::{clock::Clock, map::Map, metric::Metric};
use millrace_protocol::ids::TenantId;
use millrace_storage::Engine;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::{error::QueryError, guard, params::Params, session};

/// Bounds of every query.
#[derive(Debug, Clone)]
pub struct QueryLimits {
    /// Memory of one query, bytes.
    pub memory_bytes: usize,
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

#[derive(Debug)]
struct Gate {
    running: Arc<Semaphore>,
    present: AtomicUsize,
}

/// See the module head.
pub struct QueryEngine {
    storage: Arc<Engine>,
    clock: Arc<dyn Clock>,
    limits: QueryLimits,
    gates: Mutex<Map<TenantId, Arc<Gate>>>,
    /// Taken out when dropped: a runtime must not be dropped inside another one's task.
    runtime: Option<tokio::runtime::Runtime>,
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

/// Held while a query runs or waits.
struct Admitted {
    gate: Arc<Gate>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.gate.present.fetch_sub(1, Ordering::AcqRel);
    }
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
        Ok(Self { storage, clock, limits, gates: Mutex::default(), runtime: Some(runtime) })
    }

    fn admit(&self, tenant: TenantId) -> Result<(Arc<Gate>, Arc<Semaphore>), QueryError> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        let gate = gates.entry(tenant).or_insert_with(|| {
            Arc::new(Gate {
                running: Arc::new(Semaphore::new(self.limits.running)),
                present: AtomicUsize::new(0),
            })
        });
        let present = gate.present.fetch_add(1, Ordering::AcqRel);
        if present >= self.limits.running + self.limits.queued {
            gate.present.fetch_sub(1, Ordering::AcqRel);
            return Err(QueryError::Busy {
                running: self.limits.running,
                queued: self.limits.queued,
            });
        }
        Ok((Arc::clone(gate), Arc::clone(&gate.running)))
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
        let tenant = scope.tenant();
        let (database, sql) = (database.to_owned(), sql.to_owned());
        let admitted = self.admit(tenant);
        let storage = Arc::clone(&self.storage);
        let clock = Arc::clone(&self.clock);
        let limits = self.limits.clone();
        let handle = self.runtime.as_ref().map(|r| r.handle().clone());
        async move {
            let (gate, semaphore) = admitted?;
            let started = clock.monotonic();
            let seconds = limits.timeout.as_secs();
            // Counted as present from here on; a client that leaves while waiting is uncounted.
            let waiting = Waiting { gate: Some(gate) };
            let deadline = clock.sleep(limits.timeout).shared();
            let permit = futures::select! {
                permit = semaphore.acquire_owned().fuse() =>
                    permit.map_err(|_| QueryError::Internal("admission".into()))?,
                () = deadline.clone().fuse() => return Err(QueryError::Timeout { seconds }),
            };
            let admitted = waiting.admitted(permit);
            let handle = handle.ok_or_else(|| QueryError::Internal("stopped".into()))?;
            let (send_schema, schema) = tokio::sync::oneshot::channel();
            let (batches, rows) = mpsc::channel(BATCHES_AHEAD);
            let work = execute(storage, tenant, database, sql, params, limits, send_schema, batches.clone());
            let guarded = {
                let deadline = deadline.clone();
                let clock = Arc::clone(&clock);
                async move {
                    let _admitted = admitted;
                    let outcome = futures::select! {
                        done = work.fuse() => done,
                        () = deadline.fuse() => Err(QueryError::Timeout { seconds }),
                        () = closed(batches.clone()).fuse() => Ok(()),
                    };
                    let label = outcome.as_ref().err().map_or("ok", |e| e.code().0);
                    metrics::counter!(Metric::Queries.name(), "tenant" => tenant.to_string(), "outcome" => label)
                        .increment(1);
                    let took = clock.monotonic().saturating_sub(started);
                    metrics::histogram!(Metric::QuerySeconds.name()).record(took.as_secs_f64());
                    if let Err(e) = outcome {
                        // The reader may be gone; then nobody wants the error.
                        drop(batches.send(Err(e)).await);
                    }
                }
            };
            handle.spawn(guarded);
            let mut rows = tokio_stream::wrappers::ReceiverStream::new(rows);
            match schema.await {
                Ok(schema) => Ok(QueryAnswer { schema, rows: rows.boxed() }),
                // No schema: the first thing in the channel says why.
                Err(_) => match rows.next().await {
                    Some(Err(e)) => Err(e),
                    _ => Err(QueryError::Internal("ended".into())),
                },
            }
        }
        .boxed()
    }
}

async fn closed(batches: mpsc::Sender<Result<RecordBatch, QueryError>>) {
    batches.closed().await;
}

/// Uncounts a query that never got to run.
struct Waiting {
    gate: Option<Arc<Gate>>,
}

impl Waiting {
    fn admitted(mut self, permit: OwnedSemaphorePermit) -> Option<Admitted> {
        self.gate.take().map(|gate| Admitted { gate, _permit: permit })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            gate.present.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of one query, moved to its thread")]
async fn execute(
    storage: Arc<Engine>,
    tenant: TenantId,
    database: String,
    sql: String,
    params: Params,
    limits: QueryLimits,
    schema: tokio::sync::oneshot::Sender<SchemaRef>,
    batches: mpsc::Sender<Result<RecordBatch, QueryError>>,
) -> Result<(), QueryError> {
    let statement = guard::parse(&sql)?;
    let snapshot = storage.snapshot(tenant).map_err(|e| QueryError::Unavailable(e.to_string()))?;
    let context = session::open(&snapshot, &database, &limits)?;
    let mut plan = context.state().statement_to_plan(statement).await?;
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(&plan)?;
    if let Some(values) = params.bind()? {
        plan = plan.with_param_values(values)?;
    }
    let frame = context.execute_logical_plan(plan).await?;
    let mut stream = frame.execute_stream().await?;
    if schema.send(stream.schema()).is_err() {
        return Ok(());
    }
    while let Some(batch) = stream.next().await {
        if batches.send(Ok(batch?)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
