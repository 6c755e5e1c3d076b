//! Keys that cannot be had, now or for ever, at a start.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use millrace_crypto::key::{KeyError, TenantKeySource, TenantKeys};

use super::world::{TENANT, World};
use crate::OpenError;

const THERE: u8 = 0;
/// Old versions are cached, the current one has to be asked for and is not answered.
const UNREACHABLE: u8 = 1;
const GONE: u8 = 2;

struct Switched {
    inner: Arc<dyn TenantKeySource>,
    state: Arc<AtomicU8>,
}

impl TenantKeySource for Switched {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        let state = if *tenant == TENANT.0 { self.state.load(Ordering::Relaxed) } else { THERE };
        match state {
            UNREACHABLE => Err(KeyError::Unavailable("the key service is away".into())),
            GONE => Err(KeyError::Gone { tenant: TENANT.to_string() }),
            _ => self.inner.current(tenant),
        }
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        if *tenant == TENANT.0 && self.state.load(Ordering::Relaxed) == GONE {
            return self.current(tenant);
        }
        self.inner.version(tenant, version)
    }
}

fn switched(w: &mut World) -> Arc<AtomicU8> {
    let state = Arc::new(AtomicU8::new(THERE));
    w.keys = Arc::new(Switched { inner: Arc::clone(&w.keys), state: Arc::clone(&state) });
    state
}

#[test]
fn d1_a_start_without_reach_to_the_keys_is_refused_and_a_later_one_has_every_row() {
    let mut w = World::seeded(4);
    let state = switched(&mut w);
    w.open().unwrap();
    let rows = w.some_rows(5);
    assert!(w.stream(rows) && w.flush());
    w.crash();
    state.store(UNREACHABLE, Ordering::Relaxed);
    let refused = w.open();
    assert!(matches!(refused, Err(OpenError::Keys(_))), "{refused:?}");
    w.crash();
    state.store(THERE, Ordering::Relaxed);
    w.open().unwrap();
    w.check("when the keys are back");
    let rows = w.some_rows(5);
    assert!(w.stream(rows) && w.flush());
    w.check("and it goes on");
}

#[test]
fn a_start_after_a_tenant_was_destroyed_drops_its_files_and_goes_on() {
    let mut w = World::seeded(4);
    let state = switched(&mut w);
    w.open().unwrap();
    let rows = w.some_rows(5);
    assert!(w.stream(rows) && w.flush());
    let rows = w.some_rows(5);
    assert!(w.stream(rows), "these are in the log only");
    w.crash();
    state.store(GONE, Ordering::Relaxed);
    w.open().unwrap();
    assert!(w.shard().snapshot(TENANT).is_err());
    let left: Vec<_> = w.disk.paths().into_iter().filter(|p| p.starts_with("/data/data")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn rows_of_a_destroyed_tenant_leave_memory_with_the_next_flush() {
    let mut w = World::seeded(4);
    let state = switched(&mut w);
    w.open().unwrap();
    let rows = w.some_rows(5);
    assert!(w.stream(rows));
    assert!(w.shard().memtable_rows() > 0);
    state.store(GONE, Ordering::Relaxed);
    assert!(w.flush());
    assert_eq!(w.shard().memtable_rows(), 0);
    assert!(w.flush(), "and nothing is left to trip over");
}
