//! What retention was told from outside, and what it waits for: rules by tenant, the trusted clock,
//! passes that the fuse has stopped.
//!
//! Owns: nothing durable: the control catalogue has the plans, the manifest the clock. It outlives
//! a shard that is opened again, so that no rule is forgotten in between.
//! Never: holds a lock across I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use millrace_platform::metric::Metric;
use millrace_protocol::ids::TenantId;

use super::{
    clock::{ClockMark, ClockState, TrustedClock},
    forecast::Fuse,
    rules::{Rules, TableName},
};

/// A pass that the fuse has stopped: it is done when somebody confirms that much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Files that would go although ordinary ageing does not explain it.
    pub files: u64,
    /// Rows of these.
    pub rows: u64,
    /// Sealed bytes of these.
    pub bytes: u64,
    /// Bytes of all files of the tenant.
    pub bytes_all: u64,
}

impl Blocked {
    fn within(&self, confirmed: &Self) -> bool {
        self.files <= confirmed.files && self.bytes <= confirmed.bytes
    }
}

#[derive(Debug, Default)]
struct Waiting {
    clock: Option<TrustedClock>,
    /// Whether the clock was wrong when it was last looked at.
    wrong: bool,
    /// Tenants whose rules have changed since the last pass.
    changed: BTreeSet<TenantId>,
    blocked: BTreeMap<TenantId, Blocked>,
    confirmed: BTreeMap<TenantId, Blocked>,
}

/// See the module head.
#[derive(Debug, Default)]
pub struct Book {
    rules: RwLock<BTreeMap<TenantId, Arc<Rules>>>,
    waiting: Mutex<Waiting>,
    fuse: Fuse,
}

impl Book {
    /// A book whose fuse is set like this.
    pub fn with_fuse(fuse: Fuse) -> Self {
        Self { fuse, ..Self::default() }
    }

    pub(crate) fn fuse(&self) -> Fuse {
        self.fuse
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what counts for a tenant.
    pub(crate) fn set(&self, tenant: TenantId, rules: Rules) {
        let mut all = self.rules.write().unwrap_or_else(PoisonError::into_inner);
        if rules.terms.is_empty() && rules.holds.is_empty() {
            all.remove(&tenant);
        } else {
            all.insert(tenant, Arc::new(rules));
        }
        drop(all);
        let mut waiting = self.lock();
        waiting.changed.insert(tenant);
        // What was asked or confirmed was under other rules.
        waiting.blocked.remove(&tenant);
        waiting.confirmed.remove(&tenant);
    }

    /// What counts for a tenant; `None` if nothing was ever said.
    pub(crate) fn rules(&self, tenant: TenantId) -> Option<Arc<Rules>> {
        let all = self.rules.read().unwrap_or_else(PoisonError::into_inner);
        all.get(&tenant).cloned()
    }

    /// Tenants whose rules have changed since this was last asked.
    pub(crate) fn take_changed(&self) -> BTreeSet<TenantId> {
        std::mem::take(&mut self.lock().changed)
    }

    /// All tenants that have rules: a shard that is opened again looks at each.
    pub(crate) fn all_changed(&self) {
        let all: Vec<TenantId> =
            self.rules.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect();
        self.lock().changed.extend(all);
    }

    /// A shard is opened: the clock goes on from what is durable, unless this process knows better.
    pub(crate) fn start_clock(&self, mark: Option<ClockMark>, wall_ns: i64, now: Duration) {
        self.lock().clock.get_or_insert_with(|| TrustedClock::start(mark, wall_ns, now));
    }

    /// What time it is. Says so in the log when the clock goes wrong or right.
    pub(crate) fn tell(&self, wall_ns: i64, now: Duration) -> ClockState {
        let mut waiting = self.lock();
        let clock = waiting.clock.get_or_insert_with(|| TrustedClock::start(None, wall_ns, now));
        let told = clock.tell(wall_ns, now);
        let distrust = if told.ahead_ns > 0 { told.ahead_ns } else { -told.behind_ns };
        metrics::gauge!(Metric::ClockDistrust.name()).set(distrust as f64 / 1e9);
        if told.wrong() != waiting.wrong {
            waiting.wrong = told.wrong();
            let (ahead_s, behind_s) =
                (told.ahead_ns / 1_000_000_000, told.behind_ns / 1_000_000_000);
            if told.wrong() {
                tracing::error!(
                    ahead_s,
                    behind_s,
                    "the wall clock is not what this server's history supports: retention goes by the time that has passed, and drops nothing while the clock is behind; set the clock, or say that it is right: millrace plan confirm --clock"
                );
            } else {
                tracing::info!("the wall clock is believed again");
            }
        }
        told
    }

    /// An operator says that the wall clock is right.
    pub(crate) fn believe_clock(&self, wall_ns: i64, now: Duration) {
        if let Some(clock) = &mut self.lock().clock {
            clock.believe(wall_ns, now);
        }
    }

    /// What the next record says of the clock.
    pub(crate) fn clock_mark(&self) -> Option<ClockMark> {
        self.lock().clock.as_ref().map(TrustedClock::mark)
    }

    /// Rows of a table before this are not shown at `now`.
    pub(crate) fn shown_from(&self, tenant: TenantId, table: &TableName, now: i64) -> i64 {
        self.rules(tenant).map_or(i64::MIN, |rules| rules.shown_from(table, now))
    }

    /// Whether a pass may drop so much more than ordinary ageing; if not, it waits for an answer.
    pub(crate) fn may_drop(&self, tenant: TenantId, more: Blocked) -> bool {
        let mut waiting = self.lock();
        if waiting.confirmed.get(&tenant).is_some_and(|confirmed| more.within(confirmed)) {
            return true;
        }
        if waiting.blocked.insert(tenant, more).is_none() {
            tracing::error!(
                %tenant,
                files = more.files,
                bytes = more.bytes,
                of_bytes = more.bytes_all,
                "retention would drop more of a tenant than ageing explains and has stopped: look with `millrace plan preview`, then `millrace plan confirm`"
            );
        }
        metrics::gauge!(Metric::RetentionBlocked.name()).set(waiting.blocked.len() as f64);
        false
    }

    /// A tenant's pass was done.
    pub(crate) fn dropped(&self, tenant: TenantId) {
        let mut waiting = self.lock();
        waiting.confirmed.remove(&tenant);
        waiting.blocked.remove(&tenant);
        metrics::gauge!(Metric::RetentionBlocked.name()).set(waiting.blocked.len() as f64);
    }

    /// What waits for an answer.
    pub(crate) fn blocked(&self, tenant: TenantId) -> Option<Blocked> {
        self.lock().blocked.get(&tenant).copied()
    }

    /// Confirms what waits; says what that was.
    pub(crate) fn confirm(&self, tenant: TenantId) -> Option<Blocked> {
        let mut waiting = self.lock();
        let blocked = waiting.blocked.remove(&tenant)?;
        waiting.confirmed.insert(tenant, blocked);
        waiting.changed.insert(tenant);
        Some(blocked)
    }
}
