//! What was submitted and what was acknowledged, kept outside the system under test.
//!
//! Owns: the oracle. Never: asks the system what it thinks it has acknowledged.

use std::collections::{BTreeMap, BTreeSet};

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// An acknowledged item is not there.
    #[error("{when}: acknowledged item {item} is missing")]
    Lost {
        /// The item.
        item: u64,
        /// When it was noticed.
        when: String,
    },
    /// An item is there twice.
    #[error("{when}: item {item} is there {times} times")]
    Doubled {
        /// The item.
        item: u64,
        /// How often.
        times: usize,
        /// When it was noticed.
        when: String,
    },
    /// An item is there that was never submitted, or that an earlier start did not have.
    #[error("{when}: item {item} comes from nowhere")]
    Phantom {
        /// The item.
        item: u64,
        /// When it was noticed.
        when: String,
    },
    /// An item has other bytes than were submitted.
    #[error("{when}: {what}")]
    Changed {
        /// What was seen.
        what: String,
        /// When it was noticed.
        when: String,
    },
    /// The system refuses to start although nothing but power and operations failed.
    #[error("{when}: refuses to start: {why}")]
    Refused {
        /// Its words.
        why: String,
        /// When it was noticed.
        when: String,
    },
    /// A (key, nonce) pair was used twice (T6).
    #[error("{when}: {times} sealing keys were given out twice")]
    NonceReused {
        /// How often.
        times: u64,
        /// When it was noticed.
        when: String,
    },
}

/// Items and their fate. An item is a number; its bytes follow from it.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    next: u64,
    acked: BTreeSet<u64>,
    open: BTreeSet<u64>,
}

impl Ledger {
    /// `count` new items, submitted now.
    pub fn submit(&mut self, count: u64) -> Vec<u64> {
        let items: Vec<u64> = (self.next + 1..=self.next + count).collect();
        self.next += count;
        self.open.extend(&items);
        items
    }

    /// The system said that these are stored.
    pub fn ack(&mut self, items: &[u64]) {
        for item in items {
            self.open.remove(item);
            self.acked.insert(*item);
        }
    }

    /// Acknowledged items.
    pub fn acked(&self) -> &BTreeSet<u64> {
        &self.acked
    }

    /// Compares what the running system holds: all that is acknowledged, once, nothing unknown.
    pub fn check(&self, held: &[u64], when: &str) -> Result<(), Violation> {
        let mut times: BTreeMap<u64, usize> = BTreeMap::new();
        for item in held {
            *times.entry(*item).or_default() += 1;
        }
        if let Some((item, times)) = times.iter().find(|(_, n)| **n > 1) {
            return Err(Violation::Doubled { item: *item, times: *times, when: when.into() });
        }
        if let Some(item) = self.acked.iter().find(|i| !times.contains_key(i)) {
            return Err(Violation::Lost { item: *item, when: when.into() });
        }
        let known = |i: &&u64| !self.acked.contains(i) && !self.open.contains(i);
        if let Some(item) = times.keys().find(known) {
            return Err(Violation::Phantom { item: *item, when: when.into() });
        }
        Ok(())
    }

    /// Compares what a start found. From now on that must stay, and the rest must not come back.
    pub fn settle(&mut self, found: &[u64], when: &str) -> Result<(), Violation> {
        self.check(found, when)?;
        self.acked = found.iter().copied().collect();
        self.open.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ledger_sees_loss_doubles_and_phantoms() {
        let mut ledger = Ledger::default();
        let items = ledger.submit(3);
        ledger.ack(&items[..2]);
        assert_eq!(ledger.check(&[1, 2], "t"), Ok(()));
        assert_eq!(ledger.check(&[1, 2, 3], "t"), Ok(()));
        assert!(matches!(ledger.check(&[1], "t"), Err(Violation::Lost { item: 2, .. })));
        assert!(matches!(ledger.check(&[1, 2, 2], "t"), Err(Violation::Doubled { item: 2, .. })));
        assert!(matches!(ledger.check(&[1, 2, 9], "t"), Err(Violation::Phantom { item: 9, .. })));
    }

    #[test]
    fn what_a_start_did_not_find_must_not_come_back() {
        let mut ledger = Ledger::default();
        ledger.submit(2);
        assert_eq!(ledger.settle(&[1], "t"), Ok(()));
        assert!(matches!(ledger.check(&[1, 2], "t"), Err(Violation::Phantom { item: 2, .. })));
        assert!(matches!(ledger.check(&[], "t"), Err(Violation::Lost { item: 1, .. })));
    }
}
