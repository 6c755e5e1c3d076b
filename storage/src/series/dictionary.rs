//! The series dictionary of one table: append-only, shared by the writer and all readers.
//!
//! Owns: ordinal <-> id <-> tags. An ordinal is a series' place in order of first sight in this
//! process; it is never stored.
//! Invariants: an id names one tag set for ever (checked against the stored tags at first
//! sight; a collision takes the next salted hash); an ordinal never changes.
//! Locks: short, never across an await; readers work on a [`SeriesView`].

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use millrace_platform::map::Map;
use millrace_protocol::{batch::SeriesKey, ids::SeriesId};

use super::id;
use crate::{
    planted::{Bug, planted},
    schema::TagColumn,
};

/// One series.
#[derive(Debug)]
pub struct SeriesEntry {
    /// The id in column files and the log.
    pub sid: SeriesId,
    /// Its tags.
    pub key: SeriesKey,
    sort_key: Box<[u8]>,
}

/// An immutable picture of the dictionary, in order.
#[derive(Debug, Default)]
pub struct SeriesView {
    /// Entries by ordinal.
    pub entries: Vec<Arc<SeriesEntry>>,
    /// Ordinals in sort order (tag tuple in table order, absent first).
    pub order: Vec<u32>,
    /// For each ordinal its place in `order`.
    pub rank: Vec<u32>,
    by_sid: Map<u64, u32>,
}

impl SeriesView {
    /// The ordinal of an id.
    pub fn ordinal(&self, sid: SeriesId) -> Option<u32> {
        self.by_sid.get(&sid.0).copied()
    }

    /// Number of series.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Two tag sets claim one id: the stored dictionary is damaged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "series id {sid} is stored for two different tag sets; the series dictionary is damaged, restore this table from a backup"
)]
pub struct SeriesConflict {
    /// The id.
    pub sid: SeriesId,
}

/// What one series holds beside its tags and its sort key: the entry behind its `Arc`, its places
/// in the list and the two maps, and the same again in the view that readers share.
const ENTRY_BYTES: usize = 240;

#[derive(Debug, Default)]
struct Inner {
    /// Memory held, bytes.
    bytes: usize,
    entries: Vec<Arc<SeriesEntry>>,
    by_sid: Map<u64, u32>,
    /// Ordinals by hash of their tags. Apart from `by_sid`, because a tenant whose key has been
    /// rotated hashes new series under a new secret while the old ones keep their ids.
    by_key: hashbrown::HashTable<u32>,
    view: Option<Arc<SeriesView>>,
}

/// See the module head.
#[derive(Debug)]
pub(crate) struct SeriesDictionary {
    secret: u64,
    inner: RwLock<Inner>,
}

impl SeriesDictionary {
    /// An empty dictionary; `secret` keys the hash (per tenant).
    pub(crate) fn new(secret: u64) -> Self {
        Self { secret, inner: RwLock::default() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of series.
    pub(crate) fn len(&self) -> usize {
        self.read().entries.len()
    }

    /// Memory held, bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.read().bytes
    }

    /// The ordinal and id of `key` if it is known. `guess` is looked at first: senders repeat
    /// their series in the order of first sight, so the one after the last found mostly is it,
    /// which costs a comparison instead of a hash, a probe and a comparison.
    pub(crate) fn find(&self, key: &SeriesKey, guess: u32) -> Option<(u32, SeriesId)> {
        let inner = self.read();
        let same = |o: &u32| inner.entries.get(*o as usize).is_some_and(|e| e.key == *key);
        let known = same(&guess);
        let ordinal = if known { guess } else { *inner.by_key.find(self.hash(key), same)? };
        inner.entries.get(ordinal as usize).map(|e| (ordinal, e.sid))
    }

    fn hash(&self, key: &SeriesKey) -> u64 {
        id::series_id(self.secret, key, 0).0
    }

    /// Adds `key`, which must not be known, under the first free id.
    pub(crate) fn add(&self, key: &SeriesKey, tags: &[TagColumn]) -> (u32, SeriesId) {
        let mut inner = self.write();
        let mut collisions = 0;
        let sid = loop {
            let sid = id::series_id(self.secret, key, collisions);
            if !inner.by_sid.contains_key(&sid.0) || planted(Bug::SeriesIdShared) {
                break sid;
            }
            collisions += 1;
        };
        (inner.push(sid, key.clone(), tags, |k| self.hash(k)), sid)
    }

    /// Adds a series read from the log or from a series section, under its stored id.
    pub(crate) fn restore(
        &self,
        sid: SeriesId,
        key: &SeriesKey,
        tags: &[TagColumn],
    ) -> Result<u32, SeriesConflict> {
        let mut inner = self.write();
        if let Some(ordinal) = inner.by_sid.get(&sid.0).copied() {
            let same = inner.entries.get(ordinal as usize).is_some_and(|e| e.key == *key);
            return if same { Ok(ordinal) } else { Err(SeriesConflict { sid }) };
        }
        Ok(inner.push(sid, key.clone(), tags, |k| self.hash(k)))
    }

    /// Entries from ordinal `from` on: what a flush must store.
    pub(crate) fn since(&self, from: usize) -> Vec<Arc<SeriesEntry>> {
        self.read().entries.get(from..).unwrap_or_default().to_vec()
    }

    /// The current picture; built once per change.
    pub(crate) fn view(&self) -> Arc<SeriesView> {
        if let Some(view) = &self.read().view {
            return Arc::clone(view);
        }
        let mut inner = self.write();
        if let Some(view) = &inner.view {
            return Arc::clone(view);
        }
        let entries = inner.entries.clone();
        // Entry counts are capped far below 2^32 by the series quota.
        let mut order: Vec<u32> = (0..entries.len() as u32).collect();
        order.sort_by(|a, b| {
            let key = |o: &u32| entries.get(*o as usize).map(|e| (&e.sort_key, &e.key));
            key(a).cmp(&key(b))
        });
        let mut rank = vec![0u32; entries.len()];
        for (place, ordinal) in order.iter().enumerate() {
            if let Some(r) = rank.get_mut(*ordinal as usize) {
                *r = place as u32;
            }
        }
        let view = Arc::new(SeriesView { entries, order, rank, by_sid: inner.by_sid.clone() });
        inner.view = Some(Arc::clone(&view));
        view
    }
}

impl Inner {
    fn push(
        &mut self,
        sid: SeriesId,
        key: SeriesKey,
        tags: &[TagColumn],
        hash: impl Fn(&SeriesKey) -> u64,
    ) -> u32 {
        let ordinal = self.entries.len() as u32;
        let sort_key = id::sort_key(&key, tags);
        self.bytes += ENTRY_BYTES + key.as_bytes().len() + sort_key.len();
        let entries = &self.entries;
        self.by_key.insert_unique(hash(&key), ordinal, |o| {
            entries.get(*o as usize).map_or(0, |e| hash(&e.key))
        });
        self.entries.push(Arc::new(SeriesEntry { sid, key, sort_key }));
        self.by_sid.insert(sid.0, ordinal);
        self.view = None;
        ordinal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags() -> Vec<TagColumn> {
        vec![TagColumn { id: 1, name: "host".into() }]
    }

    #[test]
    fn a_colliding_series_gets_the_next_salted_id_and_both_are_found() {
        let dict = SeriesDictionary::new(7);
        let (a, b) =
            (SeriesKey::from_sorted([("host", "a")]), SeriesKey::from_sorted([("host", "b")]));
        // Pretend that b hashes to where a already is.
        let taken = id::series_id(7, &b, 0);
        dict.restore(taken, &a, &tags()).unwrap();
        let (ordinal, sid) = dict.add(&b, &tags());
        assert_eq!(sid, id::series_id(7, &b, 1));
        assert_eq!(dict.find(&b, 0), Some((ordinal, sid)));
        assert_eq!(dict.find(&b, ordinal), Some((ordinal, sid)));
        assert_eq!(dict.restore(sid, &a, &tags()), Err(SeriesConflict { sid }));
    }

    #[test]
    fn the_view_is_in_tag_order_and_grows_with_the_dictionary() {
        let dict = SeriesDictionary::new(7);
        for host in ["c", "a", "b"] {
            dict.add(&SeriesKey::from_sorted([("host", host)]), &tags());
        }
        let view = dict.view();
        assert_eq!(view.order, [1, 2, 0]);
        assert_eq!(view.rank, [2, 0, 1]);
        dict.add(&SeriesKey::from_sorted([("host", "aa")]), &tags());
        assert_eq!(view.len(), 3);
        assert_eq!(dict.view().order, [1, 3, 2, 0]);
    }
}
