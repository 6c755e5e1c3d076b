//! The engine's resident memory against its budget, on a real disk: what is counted must be what
//! is there. A test binary of its own, because peak memory belongs to a process.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test measures a real process and stops at the first surprise"
)]

use std::sync::Arc;

use futures::executor::block_on;
use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{
    budget::{MemoryBudget, MemoryClass},
    clock::SystemClock,
    disk::RealDisk,
    entropy::OsEntropy,
};
use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    ids::TenantId,
    value::{FieldType, FieldValues},
};
use millrace_storage::{Engine, EngineConfig, EngineLimits, Origin, WriteRequest};

const TENANT: TenantId = TenantId([7; 16]);
/// The budget, MiB.
const BUDGET_MIB: usize = 64;
/// Beyond the budget and what was there before it: the log's buffers, the record that is being
/// sealed, encoder state, and what the allocator keeps for a moment. MiB.
const FIXED_MIB: usize = 96;
/// The server's allocator, set as there: the system's own keeps what a flush took.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Rows of one batch, half a mebibyte.
const ROWS: usize = 4096;
/// Numbers in a row.
const FIELDS: usize = 14;
/// Batches of numbers, and of texts as large.
const BATCHES: usize = 150;

struct Fixed;

impl TenantKeySource for Fixed {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], _: u32) -> Result<Arc<TenantKeys>, KeyError> {
        Ok(Arc::new(TenantKeys::new(*tenant, 1, Key256::new([42; 32]))))
    }
}

/// Peak resident memory of this process, MiB.
fn peak_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() / 1024
}

fn rows(table: &str, number: usize, count: usize) -> TableBatch {
    let first = (number * count) as i64;
    let keys = (0..100).map(|h| {
        let host = format!("host_{h}");
        SeriesKey::from_sorted([("host", host.as_str())])
    });
    TableBatch {
        table: table.to_owned(),
        time: (0..count as i64).map(|n| (first + n) * 1_000_000).collect(),
        series: (0..count as u32).map(|n| n % 100).collect(),
        series_keys: keys.collect(),
        fields: Vec::new(),
        line: (1..=count as u32).collect(),
    }
}

/// Numbers that no encoding makes small.
fn numbers(number: usize) -> TableBatch {
    let mut batch = rows("numbers", number, ROWS);
    for f in 0..FIELDS {
        let mut field = FieldColumn::new(format!("f{f}"), FieldType::F64);
        if let FieldValues::F64(values) = &mut field.values {
            // Grows as a parser's columns do, so that capacity is not length.
            for n in 0..ROWS {
                values.push(((number * ROWS + n) as f64 * 0.618_033_988_7 + f as f64).sin());
                field.present.push(true);
            }
        }
        batch.fields.push(field);
    }
    batch
}

/// Texts of 4 KiB, each another one.
fn texts(number: usize) -> TableBatch {
    let count = 128;
    let mut batch = rows("texts", number, count);
    let mut field = FieldColumn::new("text", FieldType::Utf8);
    if let FieldValues::Utf8(values) = &mut field.values {
        for n in 0..count {
            values.push(&format!("{:08x}", number * count + n).repeat(512));
            field.present.push(true);
        }
    }
    batch.fields.push(field);
    batch
}

#[test]
fn d1_what_is_counted_is_what_is_there() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let memory = MemoryBudget::new(BUDGET_MIB << 20);
    let config = EngineConfig {
        disk: Arc::new(RealDisk),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(OsEntropy),
        dir: folder.path().to_path_buf(),
        keys: Arc::new(Fixed),
        limits: EngineLimits::within(Arc::clone(&memory)),
    };
    let engine = block_on(Engine::open(config.clone())).unwrap();
    let idle = peak_mib();
    let mut most = 0;
    let mut waited = 0;
    for number in 0..BATCHES {
        for batch in [numbers(number), texts(number)] {
            waited += usize::from(memory.over_soft());
            block_on(memory.room());
            let _held = memory.hold(MemoryClass::Parse, batch.memory_bytes());
            let tables = vec![batch];
            let origin = Origin::Plain;
            let request = WriteRequest {
                tenant: TENANT,
                database: "d".into(),
                origin,
                tables,
                sender: Default::default(),
            };
            block_on(engine.write(request)).unwrap();
            most = most.max(engine.stats().memtable_bytes >> 20);
        }
    }
    let (peak, counted) = (peak_mib(), memory.peak() >> 20);
    eprintln!(
        "idle {idle} MiB, peak {peak} MiB, counted {counted} MiB, memtables {most} MiB, waited {waited} times"
    );
    assert!(peak <= idle + BUDGET_MIB + FIXED_MIB, "{peak} MiB, {idle} MiB when idle");
    // Rows that no encoding makes small: a flush's files are as large as its rows were, which is
    // more than the half of the budget above the soft line.
    assert!(counted <= BUDGET_MIB / 4 * 5, "{counted} MiB were counted at once");
    // Numbers: 14 doubles, time and series of each row.
    let written = (BATCHES * (ROWS * (FIELDS * 8 + 12) + 128 * 4096)) >> 20;
    assert!(written > 2 * BUDGET_MIB, "{written} MiB are not a load");
    let snapshot = engine.snapshot(TENANT).unwrap();
    let stored: u64 =
        snapshot.databases.values().flat_map(|d| d.values()).map(|t| t.rows_upper_bound()).sum();
    assert_eq!(stored, (BATCHES * (ROWS + 128)) as u64, "every row is there");
    engine.close();
    drop(engine);
    assert_eq!(memory.held(), 0, "who is gone holds nothing");
}
