//! What the stage benchmarks stand on: keys without a ledger, and TSBS rows as batches.
//!
//! Owns: fixtures only; the stages themselves are the product's own functions.

use std::{path::Path, sync::Arc};

use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{clock::SystemClock, disk::RealDisk, entropy::OsEntropy};
use millrace_protocol::{
    batch::{RowLimits, TableBatch},
    ids::TenantId,
    line::{self, LineOptions, Precision},
};
use millrace_storage::{Engine, EngineConfig, EngineLimits, OpenError};

use crate::tsbs::Generator;

/// The tenant of every fixture.
pub const TENANT: [u8; 16] = [7; 16];

/// One tenant's keys, made anew for each run.
#[derive(Debug, Clone)]
pub struct OneTenant(Arc<TenantKeys>);

impl Default for OneTenant {
    fn default() -> Self {
        Self(Arc::new(TenantKeys::new(TENANT, 1, Key256::random(&OsEntropy))))
    }
}

impl OneTenant {
    /// The keys themselves.
    pub fn keys(&self) -> &TenantKeys {
        &self.0
    }
}

impl TenantKeySource for OneTenant {
    fn current(&self, _tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        Ok(Arc::clone(&self.0))
    }

    fn version(&self, _tenant: &[u8; 16], _version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        Ok(Arc::clone(&self.0))
    }
}

/// Line protocol of `rows` TSBS rows over `hosts` hosts, in bodies of `batch` lines.
pub fn bodies(hosts: usize, rows: usize, batch: usize) -> Vec<Vec<u8>> {
    let hours = (rows as f64 / hosts as f64).ceil() * 10.0 / 3600.0;
    let mut generator = Generator::new(42, hosts, hours);
    let mut bodies = Vec::new();
    let mut left = rows;
    while left > 0 {
        let mut body = Vec::with_capacity(batch * 360);
        let wrote = generator.fill(&mut body, batch.min(left));
        if wrote == 0 {
            break;
        }
        left -= wrote;
        bodies.push(body);
    }
    bodies
}

/// How the server reads a body in nanoseconds.
pub fn options() -> LineOptions {
    LineOptions {
        precision: Precision::Nanosecond,
        default_time_ns: 0,
        default_time_step_ns: 0,
        limits: RowLimits::default(),
        refusals_max: 100,
    }
}

/// The same rows as column batches.
pub fn batches(hosts: usize, rows: usize, batch: usize) -> Vec<Vec<TableBatch>> {
    bodies(hosts, rows, batch).iter().map(|body| line::parse(body, &options()).tables).collect()
}

/// The tenant as storage names it.
pub fn tenant() -> TenantId {
    TenantId(TENANT)
}

/// An engine over a folder, with room for `memory_bytes` of rows before it flushes by itself.
pub async fn engine(folder: &Path, memory_bytes: usize) -> Result<Engine, OpenError> {
    Engine::open(EngineConfig {
        disk: Arc::new(RealDisk),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(OsEntropy),
        dir: folder.to_path_buf(),
        keys: Arc::new(OneTenant::default()),
        limits: EngineLimits {
            flush_bytes: memory_bytes,
            memtable_bytes_max: 2 * memory_bytes,
            ..EngineLimits::default()
        },
    })
    .await
}

/// A folder on the executable's own disk: /tmp is often memory, which would make a sync free.
pub fn folder() -> std::io::Result<tempfile::TempDir> {
    let exe = std::env::current_exe()?;
    tempfile::Builder::new().prefix("bench-").tempdir_in(exe.parent().unwrap_or(Path::new(".")))
}
