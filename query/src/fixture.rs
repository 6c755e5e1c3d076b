//! A small store for tests: simulated disk and clock, two tenants, rows in files and in memory.
//!
//! Owns: how tests of this crate ask. Never: sleeps; time passes when a test says so, except for
//! the worlds that ask for the real clock.

use std::{path::PathBuf, sync::Arc};

use datafusion::arrow::array::RecordBatch;
use futures::TryStreamExt;
use millrace_control::{Principal, ReadScope, policy};
use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{
    clock::Clock,
    sim::{SimClock, SimDisk, SimEntropy},
};
use millrace_protocol::{
    batch::RowLimits,
    ids::TenantId,
    line::{self, LineOptions, Precision},
};
use millrace_storage::{Engine, EngineConfig, EngineLimits, Origin, Sender, WriteRequest};

use crate::{Format, Params, QueryEngine, QueryError, QueryLimits, result};

/// The tenant that asks.
pub(crate) const TENANT: TenantId = TenantId([7; 16]);
/// The one whose data must not be seen.
pub(crate) const STRANGER: TenantId = TenantId([8; 16]);
/// A word that stands only in the stranger's data.
pub(crate) const CANARY: &str = "canary-of-the-stranger";
/// 2026-01-01T00:00:00Z.
pub(crate) const NEW_YEAR_NS: i64 = 1_767_225_600_000_000_000;
pub(crate) const MINUTE_NS: i64 = 60_000_000_000;

#[derive(Debug)]
struct Fixed;

impl TenantKeySource for Fixed {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], _version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([tenant[0]; 32]))))
    }
}

pub(crate) struct World {
    pub(crate) clock: SimClock,
    pub(crate) storage: Arc<Engine>,
    pub(crate) query: QueryEngine,
    runtime: tokio::runtime::Runtime,
}

pub(crate) fn limits() -> QueryLimits {
    QueryLimits {
        memory_bytes: 32 << 20,
        memory_total_bytes: 64 << 20,
        partitions: 2,
        threads: 2,
        ..QueryLimits::default()
    }
}

impl World {
    /// An empty store whose queries never run out of time by themselves.
    pub(crate) fn empty() -> Self {
        let clock = SimClock::at(NEW_YEAR_NS + 60 * MINUTE_NS);
        Self::with(limits(), clock.clone(), Arc::new(clock))
    }

    /// A store with chosen limits, whose queries run on `query_clock`.
    pub(crate) fn with(limits: QueryLimits, clock: SimClock, query_clock: Arc<dyn Clock>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let config = EngineConfig {
            disk: Arc::new(SimDisk::new()),
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(SimEntropy::seeded(1)),
            dir: PathBuf::from("/data"),
            keys: Arc::new(Fixed),
            limits: EngineLimits { merge_files: 100, ..EngineLimits::default() },
        };
        let storage = Arc::new(runtime.block_on(Engine::open(config)).unwrap());
        let query = QueryEngine::new(Arc::clone(&storage), query_clock, limits).unwrap();
        Self { clock, storage, query, runtime }
    }

    /// The store that docs/sql.md shows.
    pub(crate) fn sample() -> Self {
        let world = Self::empty();
        world.fill();
        world
    }

    /// Writes the sample: half of it to files, half to memory, with one row written twice.
    pub(crate) fn fill(&self) {
        let row = |host: &str, region: &str, minute: i64, values: &str| {
            format!(
                "cpu,host={host},region={region} {values} {}\n",
                NEW_YEAR_NS + minute * MINUTE_NS
            )
        };
        let first = [
            row("h1", "eu", 0, "usage=10.5,n=1i,up=true"),
            row("h1", "eu", 1, "usage=99,n=2i,up=true"),
            row("h2", "eu", 0, "usage=20,n=3i,up=true"),
            row("h3", "us", 0, "usage=30,n=5i,up=false,note=\"first boot\""),
        ];
        self.write(TENANT, "default", &first.concat());
        self.flush();
        let second = [
            row("h1", "eu", 1, "usage=12"),
            row("h1", "eu", 2, "usage=14.25,n=4i,up=true"),
            row("h2", "eu", 1, "usage=22,n=6i,up=false"),
            row("h3", "us", 2, "n=7i,up=true"),
        ];
        self.write(TENANT, "default", &second.concat());
        let press = format!("press,line=a force=7.5 {NEW_YEAR_NS}\n");
        self.write(TENANT, "factory", &press);
        let secret = format!("secret,owner={CANARY} word=\"{CANARY}\" {NEW_YEAR_NS}\n");
        self.write(STRANGER, "default", &secret);
        self.write(STRANGER, "vault", &secret);
    }

    pub(crate) fn write(&self, tenant: TenantId, database: &str, lines: &str) {
        let options = LineOptions {
            precision: Precision::Nanosecond,
            default_time_ns: 0,
            default_time_step_ns: 0,
            limits: RowLimits::default(),
            refusals_max: 10,
        };
        let tables = line::parse(lines.as_bytes(), &options).tables;
        let request = WriteRequest {
            tenant,
            database: database.to_owned(),
            origin: Origin::Plain,
            tables,
            sender: Sender { source: "press-line".to_owned(), rejects: None },
        };
        let receipt = self.runtime.block_on(self.storage.write(request)).unwrap();
        assert_eq!(receipt.refused(), 0, "{lines}");
    }

    pub(crate) fn flush(&self) {
        self.runtime.block_on(self.storage.flush()).unwrap();
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// All rows of a statement.
    pub(crate) fn ask(&self, sql: &str) -> Result<Vec<RecordBatch>, QueryError> {
        self.ask_with(sql, Params::None)
    }

    pub(crate) fn ask_with(
        &self,
        sql: &str,
        params: Params,
    ) -> Result<Vec<RecordBatch>, QueryError> {
        self.block_on(async {
            let answer = self.query.run(scope(), "default", sql, params).await?;
            answer.rows.try_collect().await
        })
    }

    /// A statement's result in a format.
    pub(crate) fn bytes(
        &self,
        sql: &str,
        params: Params,
        format: Format,
    ) -> Result<Vec<u8>, QueryError> {
        self.block_on(async {
            let answer = self.query.run(scope(), "default", sql, params).await?;
            let pieces: Vec<bytes::Bytes> = result::encode(format, answer).try_collect().await?;
            Ok(pieces.concat())
        })
    }

    /// A statement's result as lines of CSV without the header.
    pub(crate) fn csv(&self, sql: &str) -> Vec<String> {
        let bytes = self.bytes(sql, Params::None, Format::Csv).unwrap();
        String::from_utf8(bytes).unwrap().lines().skip(1).map(str::to_owned).collect()
    }

    /// The code of a statement's error, or `ok`.
    pub(crate) fn code(&self, sql: &str) -> &'static str {
        self.ask(sql).map_or_else(|e| e.code().0, |_| "ok")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.storage.close();
    }
}

/// The right to read [`TENANT`].
pub(crate) fn scope() -> ReadScope {
    policy::to_read(&Principal::Token {
        tenant: TENANT,
        token: "t".to_owned(),
        read: true,
        write: false,
        admin: false,
    })
    .unwrap()
}
