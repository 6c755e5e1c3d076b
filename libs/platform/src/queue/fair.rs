//! A bounded queue that is fair between keys: deficit round robin.
//!
//! Owns: one lane per key that has something waiting, the order in which lanes are served, and a
//! lane in front of all for the component's own messages.
//! Bounds: a key may wait with as many items as are still free, so one that floods the queue holds
//! at most half of it, two a third each, and there is room for a newcomer.
//! Order: within a key first in, first out. Between keys each round gives every lane `quantum` of
//! cost; an item is served when its lane has saved up its cost. A key with nothing waiting saves
//! nothing and costs no memory.
//! Never: unbounded; a lane without items.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{Refused, gauge};

/// The order alone, without threads.
#[derive(Debug)]
struct Lanes<K, T> {
    lanes: BTreeMap<K, Lane<T>>,
    /// Keys of all lanes, the one that is served next in front.
    round: VecDeque<K>,
    waiting: usize,
    bound: usize,
    quantum: usize,
}

#[derive(Debug)]
struct Lane<T> {
    items: VecDeque<(usize, T)>,
    /// Cost that the lane may still take out in its turn.
    credit: usize,
}

impl<K: Ord + Copy, T> Lanes<K, T> {
    fn new(bound: usize, quantum: usize) -> Self {
        Self {
            lanes: BTreeMap::new(),
            round: VecDeque::new(),
            waiting: 0,
            bound: bound.max(1),
            quantum: quantum.max(1),
        }
    }

    fn push(&mut self, key: K, cost: usize, item: T) -> Result<(), T> {
        let held = self.lanes.get(&key).map_or(0, |lane| lane.items.len());
        if held >= self.bound.saturating_sub(self.waiting) {
            return Err(item);
        }
        if held == 0 {
            self.round.push_back(key);
        }
        // A new lane's first turn begins with a quantum, like everybody's.
        let new = || Lane { items: VecDeque::new(), credit: self.quantum };
        self.lanes.entry(key).or_insert_with(new).items.push_back((cost, item));
        self.waiting += 1;
        Ok(())
    }

    fn pop(&mut self) -> Option<T> {
        let mut turned = 0;
        loop {
            let key = *self.round.front()?;
            let Some(lane) = self.lanes.get_mut(&key) else {
                self.round.pop_front();
                continue;
            };
            let cost = lane.items.front().map_or(0, |(cost, _)| *cost);
            if cost > lane.credit {
                lane.credit = lane.credit.saturating_add(self.quantum);
                self.round.rotate_left(1);
                turned += 1;
                if turned == self.round.len() {
                    self.catch_up();
                    turned = 0;
                }
                continue;
            }
            lane.credit -= cost;
            let item = lane.items.pop_front();
            if lane.items.is_empty() {
                self.lanes.remove(&key);
                self.round.pop_front();
            }
            self.waiting -= usize::from(item.is_some());
            return item.map(|(_, item)| item);
        }
    }

    /// Skips rounds in which nobody could be served, after one that was: an item of many quanta
    /// must not make the receiver turn as many times.
    fn catch_up(&mut self) {
        let short = self.lanes.values().map(|lane| {
            let cost = lane.items.front().map_or(0, |(cost, _)| *cost);
            cost.saturating_sub(lane.credit).div_ceil(self.quantum)
        });
        // The last of them is left to the round itself, which knows whose turn it is.
        let rounds = short.min().unwrap_or(0).saturating_sub(1);
        if rounds > 0 {
            let credit = rounds.saturating_mul(self.quantum);
            for lane in self.lanes.values_mut() {
                lane.credit = lane.credit.saturating_add(credit);
            }
        }
    }
}

#[derive(Debug)]
struct State<K, T> {
    lanes: Lanes<K, T>,
    /// The component's own messages, served before all others.
    first: VecDeque<T>,
    senders: usize,
    receiver_gone: bool,
}

#[derive(Debug)]
struct Shared<K, T> {
    state: Mutex<State<K, T>>,
    arrived: Condvar,
    name: &'static str,
}

impl<K, T> Shared<K, T> {
    fn lock(&self) -> MutexGuard<'_, State<K, T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending half.
#[derive(Debug)]
pub struct FairSender<K, T>(Arc<Shared<K, T>>);

/// The receiving half.
#[derive(Debug)]
pub struct FairReceiver<K, T>(Arc<Shared<K, T>>);

/// A queue of at most `bound` items of all keys, shown as `millrace_queue_depth{queue="name"}`;
/// `quantum` is the cost that each key may take out per round.
pub fn fair<K: Ord + Copy, T>(
    name: &'static str,
    bound: usize,
    quantum: usize,
) -> (FairSender<K, T>, FairReceiver<K, T>) {
    let state = State {
        lanes: Lanes::new(bound, quantum),
        first: VecDeque::new(),
        senders: 1,
        receiver_gone: false,
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new(), name });
    (FairSender(Arc::clone(&shared)), FairReceiver(shared))
}

impl<K, T> Clone for FairSender<K, T> {
    fn clone(&self) -> Self {
        self.0.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<K, T> Drop for FairSender<K, T> {
    fn drop(&mut self) {
        self.0.lock().senders -= 1;
        self.0.arrived.notify_one();
    }
}

impl<K, T> Drop for FairReceiver<K, T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver_gone = true;
        // What nobody will take is dropped, so that who waits for an answer hears of it. Outside
        // the lock: an item's end may do anything.
        let lanes = std::mem::take(&mut state.lanes.lanes);
        let first = std::mem::take(&mut state.first);
        state.lanes.round.clear();
        state.lanes.waiting = 0;
        drop(state);
        drop((lanes, first));
    }
}

impl<K: Ord + Copy, T> FairSender<K, T> {
    /// Queues without waiting.
    pub fn try_send(&self, key: K, cost: usize, item: T) -> Result<(), Refused<T>> {
        let mut state = self.0.lock();
        if state.receiver_gone {
            return Err(Refused::Closed(item));
        }
        let queued = state.lanes.push(key, cost, item).map_err(Refused::Full);
        let waiting = state.lanes.waiting;
        drop(state);
        gauge(self.0.name, waiting);
        self.0.arrived.notify_one();
        queued
    }

    /// Queues a message of the component itself, in front of all keys. Not counted against the
    /// bound: who sends these waits for each answer. `Err` gives it back when the receiver is gone.
    pub fn send_first(&self, item: T) -> Result<(), T> {
        let mut state = self.0.lock();
        if state.receiver_gone {
            return Err(item);
        }
        state.first.push_back(item);
        drop(state);
        self.0.arrived.notify_one();
        Ok(())
    }
}

impl<K: Ord + Copy, T> FairReceiver<K, T> {
    /// Takes the next item, blocking the thread; `None` when every sender is gone and nothing waits.
    pub fn recv(&self) -> Option<T> {
        let mut state = self.0.lock();
        loop {
            let item = state.first.pop_front().or_else(|| state.lanes.pop());
            if item.is_some() || state.senders == 0 {
                let waiting = state.lanes.waiting;
                drop(state);
                gauge(self.0.name, waiting);
                return item;
            }
            state = self.0.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes the next item if one is waiting.
    pub fn try_recv(&self) -> Option<T> {
        let mut state = self.0.lock();
        state.first.pop_front().or_else(|| state.lanes.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUANTUM: usize = 100;

    /// Serves until empty; the keys in order.
    fn drain(lanes: &mut Lanes<char, char>) -> String {
        std::iter::from_fn(|| lanes.pop()).collect()
    }

    fn push(lanes: &mut Lanes<char, char>, key: char, cost: usize, times: usize) -> usize {
        (0..times).filter(|_| lanes.push(key, cost, key).is_ok()).count()
    }

    #[test]
    fn a_flood_of_one_key_does_not_come_before_another() {
        let mut lanes = Lanes::new(1000, QUANTUM);
        push(&mut lanes, 'a', QUANTUM, 50);
        push(&mut lanes, 'v', QUANTUM, 3);
        assert!(drain(&mut lanes).starts_with("avavavaaaa"));
        // An item that is small beside the quantum waits for one round, not for the flood.
        push(&mut lanes, 'a', QUANTUM, 50);
        push(&mut lanes, 'v', 10, 3);
        assert!(drain(&mut lanes).starts_with("avvvaaaa"));
    }

    #[test]
    fn shares_are_of_cost_and_not_of_items() {
        let mut lanes = Lanes::new(10_000, QUANTUM);
        push(&mut lanes, 'b', 10 * QUANTUM, 100);
        push(&mut lanes, 's', QUANTUM / 2, 2000);
        let served: Vec<char> = std::iter::from_fn(|| lanes.pop()).take(1050).collect();
        let cost = |of: char, each: usize| served.iter().filter(|c| **c == of).count() * each;
        let (big, small) = (cost('b', 10 * QUANTUM), cost('s', QUANTUM / 2));
        assert!(big.abs_diff(small) <= 20 * QUANTUM, "{big} and {small}");
    }

    #[test]
    fn whatever_the_others_do_each_key_waits_at_most_a_round_of_all() {
        // Many floods with items of all sizes: the victim's single item is served before anybody
        // has had more than the victim's cost and a quantum, plus one item of its own.
        for flooders in 1..=8u8 {
            for cost in [1, 50, 100, 350, 1000] {
                let mut lanes = Lanes::new(10_000, QUANTUM);
                for n in 0..flooders {
                    push(&mut lanes, char::from(b'a' + n), cost, 200);
                }
                (0..7).for_each(|_| assert!(lanes.pop().is_some()));
                push(&mut lanes, 'v', 250, 1);
                let mut had = BTreeMap::new();
                while let Some(key) = lanes.pop().filter(|key| *key != 'v') {
                    *had.entry(key).or_insert(0) += cost;
                }
                let most = had.values().max().copied().unwrap_or(0);
                assert!(most <= 250 + 2 * QUANTUM + cost, "{flooders} x {cost}: {most}");
            }
        }
    }

    #[test]
    fn a_flood_leaves_room_for_others_whoever_came_first() {
        let mut lanes = Lanes::new(1000, QUANTUM);
        assert_eq!(push(&mut lanes, 'a', 1, 5000), 500, "half");
        assert_eq!(push(&mut lanes, 'b', 1, 5000), 250);
        assert_eq!(push(&mut lanes, 'v', 1, 10), 10, "there is still room");
        assert_eq!(push(&mut lanes, 'a', 1, 1), 0);
        drain(&mut lanes);
        assert_eq!(push(&mut lanes, 'a', 1, 1), 1);
        assert_eq!(lanes.lanes.len(), 1, "an empty lane does not stay");
    }

    #[test]
    fn an_item_of_many_quanta_is_served_without_as_many_turns() {
        let mut lanes = Lanes::new(10, 1);
        push(&mut lanes, 'a', usize::MAX / 2, 2);
        push(&mut lanes, 'b', usize::MAX / 4, 1);
        assert_eq!(drain(&mut lanes), "baa");
    }

    #[test]
    fn own_messages_go_first_and_ends_are_told() {
        let (tx, rx) = fair::<u8, &str>("test", 4, 10);
        tx.try_send(1, 1, "row").unwrap();
        tx.send_first("seal").unwrap();
        assert_eq!(rx.recv(), Some("seal"));
        let other = tx.clone();
        drop(tx);
        assert_eq!(rx.try_recv(), Some("row"));
        drop(other);
        assert_eq!(rx.recv(), None);
        let (tx, rx) = fair::<u8, &str>("test", 4, 10);
        let waits = std::thread::spawn(move || rx.recv());
        tx.try_send(1, 1, "row").unwrap();
        assert_eq!(waits.join().unwrap(), Some("row"));
        assert!(matches!(tx.try_send(1, 1, "late"), Err(Refused::Closed("late"))));
        assert!(tx.send_first("late").is_err());
    }
}
