//! Watching a tenant write, on a simulated machine.

use std::path::PathBuf;

use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};
use millrace_platform::sim::{SimClock, SimDisk, SimEntropy};
use millrace_protocol::{
    batch::RowLimits,
    line::{self, LineOptions, Precision},
};
use tokio::runtime::Runtime;

use super::*;
use crate::{Engine, EngineConfig, EngineLimits, Origin, Sender, WriteRequest};

const A: TenantId = TenantId([1; 16]);
const B: TenantId = TenantId([2; 16]);

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

struct World {
    clock: SimClock,
    engine: Engine,
    runtime: Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let clock = SimClock::at(0);
        let config = EngineConfig {
            disk: Arc::new(SimDisk::new()),
            clock: Arc::new(clock.clone()),
            entropy: Arc::new(SimEntropy::seeded(1)),
            dir: PathBuf::from("/data"),
            keys: Arc::new(Fixed),
            limits: EngineLimits::default(),
        };
        let engine = runtime.block_on(Engine::open(config)).unwrap();
        Self { clock, engine, runtime }
    }

    fn write(&self, tenant: TenantId, lines: &str) {
        let options = LineOptions {
            precision: Precision::Nanosecond,
            default_time_ns: 0,
            default_time_step_ns: 0,
            limits: RowLimits::default(),
            refusals_max: 10,
        };
        let request = WriteRequest {
            tenant,
            database: "default".to_owned(),
            origin: Origin::Plain,
            tables: line::parse(lines.as_bytes(), &options).tables,
            sender: Sender { source: "x".to_owned(), rejects: None },
        };
        self.runtime.block_on(self.engine.write(request)).unwrap();
    }

    fn flush(&self) {
        self.runtime.block_on(self.engine.flush()).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.engine.close();
    }
}

/// Rows of a step, and where it ends.
fn step(watch: &Watch, after: Lsn, table: &str) -> Result<(u64, Lsn), Lagged> {
    let fresh = watch.since(after, "default", table)?;
    let rows = fresh.rows.map_or(0, |picture| {
        assert_eq!(picture.databases.len(), 1);
        picture.databases["default"][table].rows_upper_bound()
    });
    Ok((rows, fresh.upto))
}

#[test]
fn l2_a_watcher_gets_each_row_once_however_it_is_flushed() {
    let world = World::new();
    world.write(A, "cpu,host=a v=1 1");
    let watch = world.engine.watch(A);
    let start = watch.newest();
    assert_eq!(step(&watch, start, "cpu"), Ok((0, start)));
    world.write(A, "cpu,host=a v=1 2\ncpu,host=b v=1 2\nmem v=1 2");
    world.runtime.block_on(watch.beyond(start));
    let (rows, first) = step(&watch, start, "cpu").unwrap();
    assert_eq!(rows, 2);
    world.flush();
    world.write(A, "cpu,host=c v=1 3");
    let (rows, second) = step(&watch, first, "cpu").unwrap();
    assert_eq!(rows, 1);
    assert_eq!(step(&watch, start, "cpu").unwrap().0, 3, "from an earlier place again");
    assert_eq!(step(&watch, start, "mem").unwrap().0, 1);
    assert_eq!(step(&watch, second, "cpu"), Ok((0, second)));
}

#[test]
fn a1_a_watcher_is_not_told_what_another_tenant_writes() {
    let world = World::new();
    let watch = world.engine.watch(A);
    let start = watch.newest();
    world.write(B, "cpu v=1 1");
    assert_eq!(watch.newest(), start);
    assert_eq!(step(&watch, start, "cpu"), Ok((0, start)));
    assert!(!world.engine.watch(B).is(&watch));
    assert!(world.engine.watch(A).is(&watch));
}

#[test]
fn what_is_not_kept_is_said_to_be_missing() {
    let world = World::new();
    world.write(A, "cpu v=1 1");
    let watch = world.engine.watch(A);
    let start = watch.newest();
    assert!(step(&watch, Lsn(start.0 - 1), "cpu").is_err(), "written before anybody watched");
    assert!(step(&watch, Lsn(start.0 + 1000), "cpu").is_err(), "not written yet");
    let text = "x".repeat(10_000);
    for n in 0..10 {
        let lines: String = (0..100).map(|i| format!("cpu v=1,t=\"{text}\" {n}{i}\n")).collect();
        world.write(A, &lines);
    }
    let lagged = step(&watch, start, "cpu").unwrap_err();
    assert_eq!(lagged.resume, watch.newest());
    assert_eq!(step(&watch, lagged.resume, "cpu"), Ok((0, lagged.resume)));
    let ring = watch.watched.ring();
    assert!(ring.bytes <= KEPT_BYTES && ring.kept.len() < 10 && !ring.kept.is_empty());
    assert_eq!(ring.held.bytes(), ring.bytes);
}

#[test]
fn a_write_that_nobody_watched_when_it_began_is_said_to_be_missing() {
    let tail = Tail::default();
    let memory = MemoryBudget::new(1 << 20);
    assert!(!tail.wants(A));
    // Somebody begins to watch while the write is on its way.
    let watched = tail.watch(A, || 6, &memory);
    assert!(tail.wants(A));
    tail.missed(A, 7);
    assert_eq!(watched.ring().floor, 7);
    assert_eq!(*watched.newest.borrow(), 7);
}

#[test]
fn a_large_backlog_is_taken_in_steps_of_whole_writes() {
    let world = World::new();
    let watch = world.engine.watch(A);
    let start = watch.newest();
    for n in 0..60 {
        let lines: String = (0..1000).map(|i| format!("cpu v=1 {}\n", n * 1000 + i)).collect();
        world.write(A, &lines);
    }
    let (mut at, mut rows, mut steps) = (start, 0, 0);
    while at < watch.newest() {
        let (more, upto) = step(&watch, at, "cpu").unwrap();
        assert!(upto > at && more % 1000 == 0);
        (at, rows, steps) = (upto, rows + more, steps + 1);
    }
    assert_eq!(rows, 60_000);
    assert!(steps > 1, "{steps}");
}

#[test]
fn nothing_is_kept_for_a_tenant_that_nobody_has_watched_for_a_minute() {
    let world = World::new();
    let watch = world.engine.watch(A);
    let start = watch.newest();
    drop(watch);
    world.write(A, "cpu v=1 1");
    let again = world.engine.watch(A);
    assert_eq!(step(&again, start, "cpu").unwrap().0, 1, "one that comes back soon misses nothing");
    drop(again);
    world.write(B, "cpu v=1 1");
    world.write(A, "cpu v=1 2");
    world.clock.advance(LINGER);
    world.write(A, "cpu v=1 3");
    let late = world.engine.watch(A);
    assert!(step(&late, start, "cpu").is_err());
    assert!(late.watched.ring().kept.is_empty());
}
