//! What a tenant that does nothing costs in memory, counted by an allocator of our own.
//!
//! Owns: the figure, which the promise of 4 KiB is made from (storage/src/idle.rs).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a test stops at the first surprise, and its figure is for people too"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::executor::block_on;
use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::{clock::SystemClock, disk::RealDisk, entropy::OsEntropy};
use millrace_protocol::{
    batch::{FieldColumn, SeriesKey, TableBatch},
    ids::TenantId,
    value::{FieldType, FieldValues},
};
use millrace_storage::{EngineConfig, EngineLimits, Origin, Shard, WriteRequest};

/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
struct Counted;

// SAFETY: every call is passed on unchanged to the system's allocator; counting does not allocate.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

/// Keys are derived each time: what a ledger keeps of them is not storage's.
struct Keys;

impl TenantKeySource for Keys {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        Ok(Arc::new(TenantKeys::new(*tenant, version, Key256::new([42; 32]))))
    }
}

const TENANTS: u128 = 40;
const TABLES: usize = 20;
/// Bytes per idle tenant of twenty tables with two series and one file each, counters included.
const GUARD_BYTES: usize = 3500;

fn batch(table: usize) -> TableBatch {
    let mut field = FieldColumn::new("value", FieldType::F64);
    let mut out = TableBatch { table: format!("device_{table}"), ..TableBatch::default() };
    for unit in 0..2u32 {
        out.series_keys.push(SeriesKey::from_sorted([("unit", format!("u{unit}").as_str())]));
        out.series.push(unit);
        out.line.push(unit + 1);
        out.time.push(1);
        if let FieldValues::F64(values) = &mut field.values {
            values.push(0.5);
        }
        field.present.push(true);
    }
    out.fields.push(field);
    out
}

#[test]
fn an_idle_tenant_of_twenty_tables_costs_less_than_4_kib() {
    let folder = tempfile::tempdir().unwrap();
    let config = EngineConfig {
        disk: Arc::new(RealDisk),
        clock: Arc::new(SystemClock::new()),
        entropy: Arc::new(OsEntropy),
        dir: folder.path().join("data"),
        keys: Arc::new(Keys),
        limits: EngineLimits {
            segment_bytes: 1 << 20,
            idle_after: std::time::Duration::ZERO,
            ..EngineLimits::default()
        },
    };
    let mut shard = block_on(Shard::open(config.clone())).unwrap();
    let mut round = |tenants: std::ops::Range<u128>| {
        for n in tenants {
            let request = WriteRequest {
                tenant: TenantId((n + 1).to_be_bytes()),
                database: "default".to_owned(),
                origin: Origin::Plain,
                tables: (0..TABLES).map(batch).collect(),
                sender: Default::default(),
            };
            assert_eq!(shard.write(vec![request]).remove(0).unwrap().refused(), 0);
        }
        block_on(shard.flush()).unwrap();
        LIVE.load(Ordering::Relaxed)
    };
    // The first makes buffers that stay; what grows with tenants is what comes after.
    let before = round(0..1);
    let after = round(1..TENANTS + 1);
    let running = after.saturating_sub(before) / TENANTS as usize;
    drop(shard);
    let before = LIVE.load(Ordering::Relaxed);
    let shard = block_on(Shard::open(config)).unwrap();
    let opened = (LIVE.load(Ordering::Relaxed) - before) / TENANTS as usize;
    drop(shard);
    eprintln!("bytes per idle tenant: {running} after a flush, {opened} after a start");
    assert!(running <= GUARD_BYTES && opened <= GUARD_BYTES, "{running} and {opened} bytes");
}
