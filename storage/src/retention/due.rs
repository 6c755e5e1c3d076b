//! When to look at which tenant again: one queue over all of them.
//!
//! Owns: a moment for each tenant that has something to come. A tenant that keeps everything is not
//! in it; one that sleeps costs its two entries.

use std::collections::{BTreeMap, BTreeSet};

use millrace_protocol::ids::TenantId;

/// See the module head.
#[derive(Debug, Default)]
pub(crate) struct DueQueue {
    at: BTreeMap<TenantId, i64>,
    queue: BTreeSet<(i64, TenantId)>,
    /// Tenants whose moment has to be told anew.
    unknown: BTreeSet<TenantId>,
    /// Tenants with series that no row needs, and when to look whether they sleep.
    bare: BTreeMap<TenantId, i64>,
}

impl DueQueue {
    /// A tenant's files or rules have changed.
    pub(crate) fn changed(&mut self, tenant: TenantId) {
        self.unknown.insert(tenant);
    }

    /// Those that changed, at most `most` of them.
    pub(crate) fn take_unknown(&mut self, most: usize) -> Vec<TenantId> {
        let some: Vec<TenantId> = self.unknown.iter().take(most).copied().collect();
        some.iter().for_each(|id| {
            self.unknown.remove(id);
        });
        some
    }

    /// Sets when a tenant is due; `None` if never.
    pub(crate) fn set(&mut self, tenant: TenantId, at: Option<i64>) {
        if let Some(before) = self.at.remove(&tenant) {
            self.queue.remove(&(before, tenant));
        }
        if let Some(at) = at {
            self.at.insert(tenant, at);
            self.queue.insert((at, tenant));
        }
    }

    /// Tenants that are due at `now`, longest due first, at most `most` of them. They leave the
    /// queue and have to be set again.
    pub(crate) fn take_due(&mut self, now: i64, most: usize) -> Vec<TenantId> {
        let due = self.queue.iter().take_while(|(at, _)| *at <= now).take(most);
        let due: Vec<TenantId> = due.map(|(_, id)| *id).collect();
        due.iter().for_each(|id| self.set(*id, None));
        due
    }

    /// A tenant has series that no row needs; looked at from `at` on.
    pub(crate) fn set_bare(&mut self, tenant: TenantId, at: i64) {
        self.bare.insert(tenant, at);
    }

    /// Those to be looked at now.
    pub(crate) fn take_bare(&mut self, now: i64) -> Vec<TenantId> {
        let due: Vec<TenantId> =
            self.bare.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        due.iter().for_each(|id| {
            self.bare.remove(id);
        });
        due
    }

    /// Whether anything is left to do now.
    pub(crate) fn waits(&self, now: i64) -> bool {
        !self.unknown.is_empty() || self.queue.first().is_some_and(|(at, _)| *at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_come_in_the_order_in_which_they_are_due_and_only_once() {
        let id = |n: u8| TenantId([n; 16]);
        let mut due = DueQueue::default();
        for (tenant, at) in [(1, 30), (2, 10), (3, 20), (2, 25)] {
            due.set(id(tenant), Some(at));
        }
        assert!(!due.waits(19) && due.waits(20));
        assert_eq!(due.take_due(29, 1), [id(3)]);
        assert_eq!(due.take_due(29, 9), [id(2)]);
        assert_eq!(due.take_due(29, 9), []);
        due.set(id(1), None);
        assert_eq!(due.take_due(100, 9), []);
        due.changed(id(4));
        assert!(due.waits(0));
        assert_eq!(due.take_unknown(9), [id(4)]);
        assert!(!due.waits(100));
    }
}
