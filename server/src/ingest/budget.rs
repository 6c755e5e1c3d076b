//! What each tenant may send per second: rows and bytes, on the injected clock.
//!
//! Owns: two token buckets per tenant, kept as the time up to which what came is paid for, with a
//! second's worth of burst. A request may take more than is left: it is taken whole when nothing
//! is owed, and the next one waits until that is paid back. So a batch may be larger than a second's
//! budget and the mean rate still holds. HTTP is told when to come back; a Flight stream waits here.
//! Never: stores part of a request; keeps anything for a tenant that owes nothing, or that has no
//! limit; sets a timer (a waiting stream's own is the only one).

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_control::{Catalog, Limits};
use millrace_platform::{clock::Clock, map::Map, metric::Metric};
use millrace_protocol::ids::TenantId;

/// How much of an unused budget is kept.
const BURST: Duration = Duration::from_secs(1);
/// A waiting stream looks again at least this often, because its limits may have changed.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// Tenants that are remembered before those that owe nothing are forgotten.
const PRUNE_FROM: usize = 1024;

/// Options of the server: the limits of tenants that have none of their own.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RawBudget {
    /// Rows per second that a tenant may write; 0 is no limit. `millrace tenant limits` sets one tenant's own.
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    pub tenant_rows_per_s: u64,
    /// Uncompressed bytes per second that a tenant may write; 0 is no limit.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub tenant_bytes_per_s: u64,
    /// New series per table and UTC day that a tenant may make; 0 is no limit.
    #[arg(long, value_name = "SERIES", default_value_t = 100_000)]
    pub tenant_series_per_day: u64,
}

impl RawBudget {
    /// As the limits that count.
    pub fn limits(&self) -> Limits {
        Limits {
            rows_per_s: self.tenant_rows_per_s,
            bytes_per_s: self.tenant_bytes_per_s,
            series_per_day: self.tenant_series_per_day,
        }
    }
}

/// A tenant is over its budget; nothing of the request was stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this tenant may write {quota} {unit} per second and is over it; nothing of this request was stored, send it again in {} s or ask the operator for a higher limit",
    self.seconds()
)]
pub struct OverBudget {
    /// `rows` or `bytes`.
    pub unit: &'static str,
    /// How many per second.
    pub quota: u64,
    /// Until when.
    pub wait: Duration,
}

impl OverBudget {
    /// Whole seconds to wait, at least one.
    pub fn seconds(&self) -> u64 {
        let whole = self.wait.as_secs();
        whole.saturating_add(u64::from(self.wait.subsec_nanos() > 0)).max(1)
    }
}

/// Monotonic times up to which a tenant's rows and bytes are paid for.
#[derive(Debug, Clone, Copy, Default)]
struct Paid {
    rows: Duration,
    bytes: Duration,
}

#[derive(Debug, Default)]
struct Open {
    paid: Map<TenantId, Paid>,
    prune_at: usize,
}

/// See the module head.
#[derive(Debug)]
pub struct Budgets {
    clock: Arc<dyn Clock>,
    catalog: Arc<Catalog>,
    default: Limits,
    open: Mutex<Open>,
}

/// Time that `count` takes at `per_s`.
fn cost(count: u64, per_s: u64) -> Duration {
    let ns = u128::from(count) * 1_000_000_000 / u128::from(per_s.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

fn owed(paid: Duration, now: Duration, unit: &'static str, quota: u64) -> Result<(), OverBudget> {
    // What was paid before a limit was lifted is forgiven.
    match paid.checked_sub(now).filter(|wait| quota > 0 && !wait.is_zero()) {
        Some(wait) => Err(OverBudget { unit, quota, wait }),
        None => Ok(()),
    }
}

fn pay(paid: &mut Duration, now: Duration, count: u64, quota: u64) {
    if quota > 0 {
        *paid = (*paid).max(now.saturating_sub(BURST)).saturating_add(cost(count, quota));
    }
}

impl Budgets {
    /// Budgets of the catalogue's tenants, with these defaults.
    pub fn new(clock: Arc<dyn Clock>, catalog: Arc<Catalog>, default: Limits) -> Self {
        Self { clock, catalog, default, open: Mutex::default() }
    }

    /// The defaults.
    pub fn default_limits(&self) -> Limits {
        self.default
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limits(&self, tenant: TenantId) -> Option<Limits> {
        let limits = self.catalog.limits(tenant).over(&self.default);
        (limits.rows_per_s > 0 || limits.bytes_per_s > 0).then_some(limits)
    }

    /// Time on our clock; never less than a burst, so that a new server has its burst too.
    fn now(&self) -> Duration {
        self.clock.monotonic().saturating_add(BURST)
    }

    fn counted(&self, tenant: TenantId, over: OverBudget) -> OverBudget {
        metrics::counter!(Metric::IngestOverBudget.name(), "tenant" => tenant.to_string())
            .increment(1);
        over
    }

    /// Whether the tenant may send now; asked before anything is read for it.
    pub fn check(&self, tenant: TenantId) -> Result<(), OverBudget> {
        let Some(limits) = self.limits(tenant) else { return Ok(()) };
        let paid = self.lock().paid.get(&tenant).copied().unwrap_or_default();
        let now = self.now();
        owed(paid.rows, now, "rows", limits.rows_per_s)
            .and_then(|()| owed(paid.bytes, now, "bytes", limits.bytes_per_s))
            .map_err(|over| self.counted(tenant, over))
    }

    /// Takes what a request needs, or nothing.
    pub fn take(&self, tenant: TenantId, rows: u64, bytes: u64) -> Result<(), OverBudget> {
        let Some(limits) = self.limits(tenant) else { return Ok(()) };
        let now = self.now();
        let mut open = self.lock();
        let mut paid = open.paid.get(&tenant).copied().unwrap_or_default();
        let free = owed(paid.rows, now, "rows", limits.rows_per_s)
            .and_then(|()| owed(paid.bytes, now, "bytes", limits.bytes_per_s));
        if let Err(over) = free {
            drop(open);
            return Err(self.counted(tenant, over));
        }
        pay(&mut paid.rows, now, rows, limits.rows_per_s);
        pay(&mut paid.bytes, now, bytes, limits.bytes_per_s);
        open.paid.insert(tenant, paid);
        open.prune(now);
        Ok(())
    }

    /// Counts what cannot be put off any more: a message of a stream, which has waited before.
    pub fn charge(&self, tenant: TenantId, rows: u64, bytes: u64) {
        let Some(limits) = self.limits(tenant) else { return };
        let now = self.now();
        let mut open = self.lock();
        let mut paid = open.paid.get(&tenant).copied().unwrap_or_default();
        pay(&mut paid.rows, now, rows, limits.rows_per_s);
        pay(&mut paid.bytes, now, bytes, limits.bytes_per_s);
        open.paid.insert(tenant, paid);
        open.prune(now);
    }

    /// Ready when the tenant may send.
    pub async fn wait(&self, tenant: TenantId) {
        while let Err(over) = self.check(tenant) {
            self.clock.sleep(over.wait.min(WAIT_MAX)).await;
        }
    }

    /// Forgets what a tenant owes: its limits have changed.
    pub fn forgive(&self, tenant: TenantId) {
        self.lock().paid.remove(&tenant);
    }
}

impl Open {
    /// Forgets who has a full bucket, now and then: each pass pays for as many new entries.
    fn prune(&mut self, now: Duration) {
        if self.paid.len() < self.prune_at.max(PRUNE_FROM) {
            return;
        }
        let full = now.saturating_sub(BURST);
        self.paid.retain(|_, paid| paid.rows > full || paid.bytes > full);
        self.paid.shrink_to_fit();
        self.prune_at = 2 * self.paid.len();
    }
}

#[cfg(test)]
mod tests;
