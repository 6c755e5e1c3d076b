//! Whose merge is next: a pure state machine.
//!
//! Owns: the order between tenants. What hurts most goes first (history.rs `Reason`); among
//! equals, deficit round-robin by bytes, so that a tenant with large merges gets no more than
//! one with many small ones.
//! Invariant: while another tenant waits, no tenant gets a merge when more than half of the
//! recent work was its own. State is kept only of tenants that wait.

use std::collections::{BTreeMap, VecDeque};

use millrace_protocol::ids::TenantId;

use super::history::Reason;

/// Bytes that a tenant may spend more in each round.
const QUANTUM: u64 = 32 << 20;
/// Work that counts as recent, bytes.
const RECENT_BYTES: u64 = 1 << 30;
/// Merges that count as recent at most.
const RECENT_MAX: usize = 1024;

/// See the module head.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    deficits: BTreeMap<TenantId, u64>,
    last: Option<TenantId>,
    recent: VecDeque<(TenantId, u64)>,
}

impl Scheduler {
    /// The tenant whose merge is next, of those that wait with their most urgent one: why, and
    /// how many bytes it reads. Counts it as done.
    pub(crate) fn pick(&mut self, waiting: &BTreeMap<TenantId, (Reason, u64)>) -> Option<TenantId> {
        self.deficits.retain(|tenant, _| waiting.contains_key(tenant));
        if waiting.len() < 2 {
            self.recent.clear();
            self.last = waiting.keys().next().copied();
            return self.last;
        }
        let total: u64 = self.recent.iter().map(|r| r.1).sum();
        let own = |tenant: &TenantId| -> u64 {
            self.recent.iter().filter(|r| r.0 == *tenant).map(|r| r.1).sum()
        };
        // More than half of the whole can be one tenant's only, so somebody is left.
        let allowed: Vec<(TenantId, Reason, u64)> = waiting
            .iter()
            .filter(|(tenant, _)| own(tenant).saturating_mul(2) <= total)
            .map(|(tenant, (reason, bytes))| (*tenant, *reason, *bytes))
            .collect();
        let urgent = allowed.iter().map(|w| w.1).min()?;
        let ring: Vec<(TenantId, u64)> =
            allowed.iter().filter(|w| w.1 == urgent).map(|w| (w.0, w.2)).collect();
        let (tenant, bytes) = self.round_robin(&ring)?;
        self.last = Some(tenant);
        self.note(tenant, bytes);
        Some(tenant)
    }

    fn round_robin(&mut self, ring: &[(TenantId, u64)]) -> Option<(TenantId, u64)> {
        let after = ring.iter().position(|(tenant, _)| Some(*tenant) > self.last).unwrap_or(0);
        let mut turn = ring.iter().cycle().skip(after);
        // Each round adds a quantum to everybody, so the most expensive merge gets its turn.
        let dearest = ring.iter().map(|r| r.1).max()?;
        let rounds = usize::try_from(dearest / QUANTUM).unwrap_or(usize::MAX).saturating_add(1);
        for _ in 0..rounds.saturating_mul(ring.len()) {
            let (tenant, bytes) = turn.next()?;
            let deficit = self.deficits.entry(*tenant).or_default();
            *deficit = deficit.saturating_add(QUANTUM);
            if *deficit >= *bytes {
                *deficit -= *bytes;
                return Some((*tenant, *bytes));
            }
        }
        ring.first().copied()
    }

    fn note(&mut self, tenant: TenantId, bytes: u64) {
        // A merge of nothing still takes a turn.
        self.recent.push_back((tenant, bytes.max(1)));
        let mut total: u64 = self.recent.iter().map(|r| r.1).sum();
        while let Some((_, oldest)) = self.recent.front()
            && (total - oldest > RECENT_BYTES || self.recent.len() > RECENT_MAX)
        {
            total -= oldest;
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tenant(id: u8) -> TenantId {
        TenantId([id; 16])
    }

    /// Bytes that each tenant got in `picks` picks, all of them always waiting.
    fn shares(waiting: &[(u8, Reason, u64)], picks: usize) -> Vec<u64> {
        let map = waiting.iter().map(|(id, r, b)| (tenant(*id), (*r, *b * MIB))).collect();
        let mut scheduler = Scheduler::default();
        let mut got: BTreeMap<TenantId, u64> = BTreeMap::new();
        for _ in 0..picks {
            let picked = scheduler.pick(&map).unwrap();
            *got.entry(picked).or_default() += map[&picked].1 / MIB;
        }
        waiting.iter().map(|(id, _, _)| got.get(&tenant(*id)).copied().unwrap_or(0)).collect()
    }

    #[test]
    fn a_tenant_alone_gets_everything_and_an_idle_house_nothing() {
        assert_eq!(shares(&[(1, Reason::Small, 500)], 10), [5000]);
        assert_eq!(Scheduler::default().pick(&BTreeMap::new()), None);
    }

    #[test]
    fn equals_share_by_bytes_and_not_by_number_of_merges() {
        let got =
            shares(&[(1, Reason::Small, 512), (2, Reason::Small, 8), (3, Reason::Small, 8)], 400);
        assert!(got[0] * 2 <= got.iter().sum::<u64>() + 2 * 512, "{got:?}");
        assert!(got[1].abs_diff(got[2]) <= 64, "{got:?}");
    }

    #[test]
    fn the_urgent_go_first_but_never_take_more_than_half_while_another_waits() {
        let got = shares(&[(1, Reason::Overlap, 64), (2, Reason::Seal, 64)], 100);
        assert_eq!(got, [50 * 64, 50 * 64]);
        let got = shares(
            &[(1, Reason::Overlap, 64), (2, Reason::Overlap, 64), (3, Reason::Seal, 64)],
            100,
        );
        assert!(got[2] == 0 && got[0].abs_diff(got[1]) <= 64, "{got:?}");
    }

    #[test]
    fn picks_repeat_exactly() {
        let waiting = [(1, Reason::Small, 100), (2, Reason::Late, 3), (3, Reason::Small, 40)];
        assert_eq!(shares(&waiting, 57), shares(&waiting, 57));
    }
}
