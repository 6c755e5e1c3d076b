//! Which files leave, and when: a pure function of a tenant's files, its rules and a moment.
//!
//! Owns: the choice, the fuse that stops a choice that is too large, and the forecast that people
//! are shown; all from one function, so that what was announced is what happens.
//! Never: chooses a file of which a row is within its limit.

use std::sync::Arc;

use super::{
    DAY_NS,
    book::Blocked,
    clock::MARGIN_NS,
    rules::{Rules, TableName},
};
use crate::manifest::{FileEntry, TableManifest, TenantManifest};

/// What has been due for longer than this was not made due by ageing: passes are made every ten
/// minutes, and a server that was off longer asks about its clock first.
const OVERDUE_NS: i64 = 2 * DAY_NS;

/// How much a pass may drop beyond ordinary ageing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fuse {
    /// Per cent of the tenant's bytes.
    pub percent: u64,
    /// Files.
    pub files: u64,
}

impl Default for Fuse {
    fn default() -> Self {
        Self { percent: 10, files: 1000 }
    }
}

/// A file that leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaving {
    /// Database and table.
    pub table: TableName,
    /// The times of its rows, ns, both inclusive.
    pub times: (i64, i64),
    /// Rows.
    pub rows: u64,
    /// Sealed bytes.
    pub bytes: u64,
    /// When it leaves, ns since 1970; `None` while a hold keeps it.
    pub at_ns: Option<i64>,
}

/// What will leave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Soonest first; those that a hold keeps last.
    pub files: Vec<Leaving>,
    /// Bytes of all files of the tenant.
    pub bytes_all: u64,
}

/// The first moment from `now` on at which a file whose newest row has time `t_max` leaves.
pub(crate) fn expiry(rules: &Rules, table: &TableName, t_max: i64, now: i64) -> Option<i64> {
    let mut from = now;
    let changes = rules.changes(now);
    for end in changes.into_iter().map(Some).chain([None]) {
        if let Some(keep) = rules.kept(table, from) {
            let at = t_max.saturating_add(keep).saturating_add(MARGIN_NS).saturating_add(1);
            let at = at.max(from);
            if end.is_none_or(|end| at < end) {
                return Some(at);
            }
        }
        from = end?;
    }
    None
}

pub(crate) fn name_of(table: &TableManifest) -> TableName {
    (table.database.clone(), table.schema.name.clone())
}

/// What leaves until `until`, holds apart.
pub(crate) fn forecast(part: &TenantManifest, rules: &Rules, now: i64, until: i64) -> Forecast {
    let mut out = Forecast::default();
    for table in part.tables.values() {
        let name = name_of(table);
        let held = rules.holds.holds(&name);
        for file in &table.files {
            out.bytes_all += file.bytes;
            let Some(at) = expiry(rules, &name, file.t_max, now).filter(|at| *at <= until) else {
                continue;
            };
            out.files.push(Leaving {
                table: name.clone(),
                times: (file.t_min, file.t_max),
                rows: file.rows,
                bytes: file.bytes,
                at_ns: (!held).then_some(at),
            });
        }
    }
    out.files.sort_by_key(|f| (f.at_ns.is_none(), f.at_ns, f.table.clone(), f.times));
    out
}

/// The files of one table that leave now, and the time below which everything of it is gone.
#[derive(Debug, Clone)]
pub(crate) struct Expired {
    pub(crate) table_id: u64,
    pub(crate) files: Vec<Arc<FileEntry>>,
    pub(crate) below_ns: i64,
}

/// What leaves now.
pub(crate) fn expired(part: &TenantManifest, rules: &Rules, now: i64) -> Vec<Expired> {
    let mut out = Vec::new();
    for (id, table) in &part.tables {
        let name = name_of(table);
        if rules.holds.holds(&name) {
            continue;
        }
        let Some(keep) = rules.kept(&name, now) else { continue };
        let below_ns = now.saturating_sub(keep).saturating_sub(MARGIN_NS);
        let files: Vec<_> = table.files.iter().filter(|f| f.t_max < below_ns).cloned().collect();
        if !files.is_empty() {
            out.push(Expired { table_id: *id, files, below_ns });
        }
    }
    out
}

/// What of that has been due for so long that ageing does not explain it; `None` if it is little.
pub(crate) fn beyond_ageing(
    part: &TenantManifest,
    expired: &[Expired],
    fuse: Fuse,
) -> Option<Blocked> {
    let bytes_all = part.tables.values().flat_map(|t| &t.files).map(|f| f.bytes).sum();
    let mut more = Blocked { bytes_all, ..Blocked::default() };
    for one in expired {
        let overdue = one.below_ns.saturating_sub(OVERDUE_NS);
        for file in one.files.iter().filter(|f| f.t_max < overdue) {
            more.files += 1;
            more.rows += file.rows;
            more.bytes += file.bytes;
        }
    }
    let over = more.bytes.saturating_mul(100) > more.bytes_all.saturating_mul(fuse.percent);
    (over || more.files > fuse.files).then_some(more)
}

/// When a tenant has to be looked at next; `None` if never.
pub(crate) fn next_due(part: &TenantManifest, rules: &Rules, now: i64) -> Option<i64> {
    let of = |table: &TableManifest| {
        let name = name_of(table);
        if rules.holds.holds(&name) {
            return None;
        }
        let oldest = table.files.iter().map(|f| f.t_max).min()?;
        expiry(rules, &name, oldest, now)
    };
    part.tables.values().filter_map(of).min()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        compaction::model::entry,
        retention::rules::{Holds, Terms},
        schema::TableSchema,
    };

    fn part(files: &[(i64, u64)]) -> TenantManifest {
        let file = |(n, (day, _)): (usize, &(i64, u64))| {
            let times = (day * DAY_NS, (day + 1) * DAY_NS - 1);
            Arc::new(entry(n as u64, 0, times, (1, 1), 10))
        };
        let mut files: Vec<Arc<FileEntry>> = files.iter().enumerate().map(file).collect();
        for file in &mut files {
            Arc::make_mut(file).bytes = 100;
        }
        let table = TableManifest {
            database: "d".into(),
            schema: TableSchema::new(1, "t"),
            files,
            series_sections: Vec::new(),
            tombstones: Vec::new(),
        };
        TenantManifest { tables: BTreeMap::from([(1, table)]), ..TenantManifest::default() }
    }

    fn rules(terms: &[(i64, i64)]) -> Rules {
        let terms = terms.iter().map(|(from, keep)| Terms {
            from_ns: from * DAY_NS,
            keep_ns: Some(keep * DAY_NS),
            ..Terms::default()
        });
        Rules { terms: terms.collect(), holds: Holds::default() }
    }

    #[test]
    fn r1_what_is_forecast_is_what_leaves_not_a_moment_earlier() {
        let part = part(&[(0, 0), (50, 0), (100, 0), (400, 0)]);
        for rules in [rules(&[(0, 365)]), rules(&[(0, 365), (390, 180)])] {
            let now = 300 * DAY_NS;
            let forecast = forecast(&part, &rules, now, i64::MAX);
            assert_eq!(forecast.files.len(), 4);
            for file in &forecast.files {
                let at = file.at_ns.unwrap();
                let gone = |at| {
                    let gone = expired(&part, &rules, at);
                    gone.iter().flat_map(|e| &e.files).any(|f| (f.t_min, f.t_max) == file.times)
                };
                assert!(!gone(at - 1) && gone(at), "{file:?}");
            }
            assert_eq!(next_due(&part, &rules, now), forecast.files[0].at_ns);
        }
    }

    #[test]
    fn a_hold_keeps_what_is_due_and_says_so() {
        let part = part(&[(0, 0), (50, 0)]);
        let mut held = rules(&[(0, 100)]);
        held.holds.tables.insert(("d".into(), "t".into()));
        let now = 500 * DAY_NS;
        assert!(expired(&part, &held, now).is_empty());
        assert_eq!(next_due(&part, &held, now), None);
        let shown = forecast(&part, &held, now, now);
        assert!(shown.files.len() == 2 && shown.files.iter().all(|f| f.at_ns.is_none()));
        held.holds.tables.clear();
        assert_eq!(expired(&part, &held, now)[0].files.len(), 2);
    }

    #[test]
    fn r1_the_fuse_stops_what_ageing_does_not_explain() {
        let many: Vec<(i64, u64)> = (0..100).map(|d| (d, 0)).collect();
        let part = part(&many);
        let plan = rules(&[(0, 365)]);
        let check = |day: i64, fuse: Fuse| {
            let expired = expired(&part, &plan, day * DAY_NS);
            (
                expired.iter().map(|e| e.files.len()).sum::<usize>(),
                beyond_ageing(&part, &expired, fuse),
            )
        };
        // Three days in one go, after a pause: the third one is overdue, and little.
        assert_eq!(check(369, Fuse::default()), (3, None));
        let (files, blocked) = check(380, Fuse::default());
        assert_eq!((files, blocked.unwrap().files), (14, 12));
        let (_, blocked) = check(380, Fuse { percent: 12, files: 1000 });
        assert_eq!(blocked, None);
        let (_, blocked) = check(380, Fuse { percent: 100, files: 11 });
        assert_eq!(blocked.unwrap().bytes, 1200);
    }
}
