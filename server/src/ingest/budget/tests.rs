//! Budgets on a simulated clock, over a catalogue on a simulated disk.

use std::path::Path;

use futures::FutureExt;
use millrace_control::{Principal, TenantLimits, policy};
use millrace_crypto::{kms::local::LocalKeyFile, ledger::KeyLedger};
use millrace_platform::{
    disk::Disk,
    entropy::Entropy,
    sim::{SimClock, SimDisk, SimEntropy},
};

use super::*;

const MIB: u64 = 1 << 20;

struct World {
    clock: SimClock,
    catalog: Arc<Catalog>,
    budgets: Budgets,
}

impl World {
    fn new(default: Limits) -> Self {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let entropy: Arc<dyn Entropy> = Arc::new(SimEntropy::seeded(1));
        let clock = SimClock::at(0);
        let keys = Path::new("/keys");
        disk.create_dir_all(keys).unwrap();
        let root = keys.join("root.key");
        let provider = LocalKeyFile::open(Arc::clone(&disk), Arc::clone(&entropy), &root).unwrap();
        let ledger = KeyLedger::open(
            Arc::clone(&disk),
            Arc::clone(&entropy),
            Arc::new(provider),
            &keys.join("ledger"),
        );
        let catalog = Catalog::open(
            disk,
            Arc::new(clock.clone()),
            entropy,
            Arc::new(ledger.unwrap()),
            Path::new("/control"),
        );
        let catalog = Arc::new(catalog.unwrap());
        let budgets = Budgets::new(Arc::new(clock.clone()), Arc::clone(&catalog), default);
        Self { clock, catalog, budgets }
    }

    fn tenant(&self, name: &str, limits: TenantLimits) -> TenantId {
        let operator = || policy::to_operate(&Principal::Operator).unwrap();
        let id = self.catalog.new_tenant_id();
        self.catalog.create_tenant(operator(), id, name).unwrap();
        self.catalog.set_limits(operator(), name, limits).unwrap();
        id
    }
}

fn rows(per_s: u64) -> TenantLimits {
    TenantLimits { rows_per_s: Some(per_s), ..TenantLimits::default() }
}

#[test]
fn ten_times_the_budget_gets_the_budget_and_its_burst_and_no_more() {
    let world = World::new(Limits::default());
    let tenant = world.tenant("acme", rows(1000));
    let (mut kept, mut refused) = (0, 0);
    // 100 rows every 10 ms for a minute: ten times what is allowed.
    for _ in 0..6000 {
        match world.budgets.take(tenant, 100, 0) {
            Ok(()) => kept += 100,
            Err(over) => {
                assert_eq!((over.unit, over.quota), ("rows", 1000));
                assert!(over.wait <= Duration::from_millis(100), "{over:?}");
                refused += 1;
            }
        }
        world.clock.advance(Duration::from_millis(10));
    }
    assert!((60_000..=61_200).contains(&kept), "{kept} rows in 60 s");
    assert!(refused > 5000);
}

#[test]
fn a_batch_larger_than_the_budget_is_taken_whole_and_paid_back() {
    let world = World::new(Limits { bytes_per_s: MIB, ..Limits::default() });
    let tenant = world.tenant("acme", TenantLimits::default());
    let other = world.tenant("beta", TenantLimits::default());
    world.budgets.take(tenant, 10, 16 * MIB).unwrap();
    let over = world.budgets.check(tenant).unwrap_err();
    assert_eq!((over.unit, over.seconds()), ("bytes", 15));
    assert!(world.budgets.take(tenant, 1, 1).is_err());
    world.budgets.take(other, 10, 16 * MIB).expect("each tenant has its own");
    world.clock.advance(Duration::from_millis(14_900));
    assert_eq!(world.budgets.check(tenant).unwrap_err().seconds(), 1);
    world.clock.advance(Duration::from_millis(100));
    world.budgets.take(tenant, 1, 1).unwrap();
}

#[test]
fn a_stream_waits_until_its_debt_is_paid_or_its_limit_is_lifted() {
    let world = World::new(Limits::default());
    let tenant = world.tenant("acme", rows(100));
    world.budgets.wait(tenant).now_or_never().expect("nothing is owed");
    world.budgets.charge(tenant, 350, 0);
    let mut wait = Box::pin(world.budgets.wait(tenant));
    for _ in 0..5 {
        assert!(wait.as_mut().now_or_never().is_none());
        world.clock.advance(Duration::from_millis(500));
    }
    wait.as_mut().now_or_never().expect("2.5 s have paid for 250 rows");
    world.budgets.charge(tenant, 100_000, 0);
    let operator = policy::to_operate(&Principal::Operator).unwrap();
    world.catalog.set_limits(operator, "acme", rows(0)).unwrap();
    world.budgets.wait(tenant).now_or_never().expect("there is no limit any more");
}

#[test]
fn tenants_that_owe_nothing_are_forgotten_and_those_without_limits_never_known() {
    let world = World::new(Limits::default());
    let limited = world.tenant("acme", rows(10));
    let free = world.tenant("beta", TenantLimits::default());
    world.budgets.take(free, 1 << 40, 1 << 50).unwrap();
    assert!(world.budgets.lock().paid.is_empty());
    let now = world.budgets.now();
    {
        let mut open = world.budgets.lock();
        for n in 0..PRUNE_FROM as u128 {
            open.paid.insert(TenantId(n.to_le_bytes()), Paid { rows: now, bytes: now });
        }
    }
    world.clock.advance(Duration::from_secs(2));
    world.budgets.take(limited, 100, 0).unwrap();
    assert_eq!(world.budgets.lock().paid.len(), 1, "the one that owes is kept");
}
