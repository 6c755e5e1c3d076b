//! From a tenant's plans and holds to what is shown and kept of a table: pure functions of time.
//!
//! Owns: the meaning of a downgrade. Terms that are replaced go on counting for what queries show
//! for 30 days, and for what is stored for 7 days more, so that whatever a shorter plan takes is
//! announced for 30 days and can be had back for 37.
//! Never: lets a table keep longer than its plan; lets a hold change what queries show.

use std::collections::{BTreeMap, BTreeSet};

use super::DAY_NS;
use crate::planted::{Bug, planted};

/// After shorter terms begin, what they would take stays visible so long.
pub const GRACE_NS: i64 = 30 * DAY_NS;
/// After that it is hidden, and there, so long.
pub const HIDDEN_NS: i64 = 7 * DAY_NS;

/// Database and table.
pub type TableName = (String, String);

/// What counts from one moment on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// From when, ns since 1970.
    pub from_ns: i64,
    /// How long rows are kept by their time, ns; `None` for ever.
    pub keep_ns: Option<i64>,
    /// Tables that keep less. A longer one counts as the plan's.
    pub tables: BTreeMap<TableName, i64>,
}

/// What must stay, whatever the terms say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Holds {
    /// Everything of the tenant.
    pub all: bool,
    /// These tables.
    pub tables: BTreeSet<TableName>,
}

impl Holds {
    /// Whether a table is held.
    pub fn holds(&self, table: &TableName) -> bool {
        (self.all || self.tables.contains(table)) && !planted(Bug::HoldIgnored)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        !self.all && self.tables.is_empty()
    }
}

/// What counts for one tenant. Without terms everything is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// Oldest first, each from a later moment than the one before it.
    pub terms: Vec<Terms>,
    /// Legal holds.
    pub holds: Holds,
}

/// How far back something reaches, ns; `None` for ever.
pub type Limit = Option<i64>;

/// The longer of two.
fn longer(a: Limit, b: Limit) -> Limit {
    Some(a?.max(b?))
}

impl Terms {
    /// How long a table is kept.
    pub fn keep(&self, table: &TableName) -> Limit {
        let own = self.tables.get(table).copied();
        if planted(Bug::OverrideLengthens) {
            return own.or(self.keep_ns);
        }
        match (self.keep_ns, own) {
            (Some(plan), Some(own)) => Some(plan.min(own)),
            (plan, own) => plan.or(own),
        }
    }
}

impl Rules {
    /// The longest limit among the terms that count at `now`; those that were replaced count for
    /// `after` longer. `None` if nothing limits.
    fn limit(&self, table: &TableName, now: i64, after: i64) -> Limit {
        let mut limit = Some(i64::MIN);
        for (at, terms) in self.terms.iter().enumerate() {
            let ends = self.terms.get(at + 1).map(|next| next.from_ns.saturating_add(after));
            if terms.from_ns <= now && ends.is_none_or(|end| now < end) {
                limit = longer(limit, terms.keep(table));
            }
        }
        limit.filter(|ns| *ns != i64::MIN)
    }

    /// How far back queries of a table see.
    pub fn shown(&self, table: &TableName, now: i64) -> Limit {
        self.limit(table, now, GRACE_NS)
    }

    /// How far back files of a table are kept, holds apart.
    pub fn kept(&self, table: &TableName, now: i64) -> Limit {
        let after = if planted(Bug::GraceSkipped) { 0 } else { GRACE_NS + HIDDEN_NS };
        self.limit(table, now, after)
    }

    /// What counts once all that is announced has come.
    pub fn last(&self, table: &TableName) -> Limit {
        self.terms.last().and_then(|t| t.keep(table))
    }

    /// Moments after `now` at which [`Self::shown`] or [`Self::kept`] may change, in order.
    pub fn changes(&self, now: i64) -> Vec<i64> {
        let replaced = self.terms.iter().skip(1).map(|t| t.from_ns);
        let mut all: Vec<i64> = replaced
            .flat_map(|at| [0, GRACE_NS, GRACE_NS + HIDDEN_NS].map(|n| at.saturating_add(n)))
            .chain(self.terms.first().map(|t| t.from_ns))
            .filter(|at| *at > now)
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Rows before this are not shown.
    pub fn shown_from(&self, table: &TableName, now: i64) -> i64 {
        self.shown(table, now).map_or(i64::MIN, |keep| now.saturating_sub(keep))
    }

    /// When what queries show of a table becomes less by shorter terms, and when that is dropped;
    /// `None` if nothing of the kind is announced.
    pub fn countdown(&self, table: &TableName, now: i64) -> Option<(i64, i64)> {
        let less = |a: Limit, b: Limit| match (a, b) {
            (None, Some(_)) => true,
            (Some(a), Some(b)) => b < a,
            (_, None) => false,
        };
        let changes = self.changes(now);
        let hides = changes.iter().find(|at| less(self.shown(table, now), self.shown(table, **at)));
        let drops = changes.iter().find(|at| less(self.kept(table, now), self.kept(table, **at)));
        match (hides, drops) {
            (None, None) => None,
            (hides, drops) => Some((hides.copied().unwrap_or(now), drops.copied().unwrap_or(now))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> TableName {
        ("d".into(), "t".into())
    }

    fn terms(from: i64, keep: Option<i64>) -> Terms {
        Terms { from_ns: from * DAY_NS, keep_ns: keep.map(|d| d * DAY_NS), ..Terms::default() }
    }

    fn days(limit: Limit) -> Option<i64> {
        limit.map(|ns| ns / DAY_NS)
    }

    #[test]
    fn r2_a_downgrade_is_shown_30_days_more_and_kept_37() {
        let rules = Rules {
            terms: vec![terms(0, Some(3650)), terms(1000, Some(180))],
            holds: Holds::default(),
        };
        let at = |day: i64, less: i64| {
            let now = day * DAY_NS - less;
            (days(rules.shown(&table(), now)), days(rules.kept(&table(), now)))
        };
        assert_eq!(at(999, 0), (Some(3650), Some(3650)));
        assert_eq!(at(1000, 0), (Some(3650), Some(3650)));
        assert_eq!(at(1030, 1), (Some(3650), Some(3650)));
        assert_eq!(at(1030, 0), (Some(180), Some(3650)), "hidden, and there");
        assert_eq!(at(1037, 1), (Some(180), Some(3650)));
        assert_eq!(at(1037, 0), (Some(180), Some(180)));
        let now = 1010 * DAY_NS;
        let announced = rules.countdown(&table(), now);
        assert_eq!(announced, Some((1030 * DAY_NS, 1037 * DAY_NS)));
        assert_eq!(rules.countdown(&table(), 1031 * DAY_NS), Some((1031 * DAY_NS, 1037 * DAY_NS)));
        assert_eq!(rules.countdown(&table(), 1037 * DAY_NS), None);
    }

    #[test]
    fn r2_an_upgrade_in_between_brings_everything_back() {
        let mut rules = Rules {
            terms: vec![terms(0, None), terms(1000, Some(180)), terms(1036, Some(3650))],
            holds: Holds::default(),
        };
        assert_eq!(days(rules.kept(&table(), 1036 * DAY_NS)), None);
        assert_eq!(days(rules.shown(&table(), 1036 * DAY_NS)), Some(3650));
        // The first terms have come to their end all the same, by their own clock.
        assert_eq!(days(rules.kept(&table(), 1037 * DAY_NS)), Some(3650));
        rules.terms.push(terms(1040, Some(180)));
        assert_eq!(days(rules.kept(&table(), 1076 * DAY_NS)), Some(3650), "37 days begin anew");
        assert_eq!(days(rules.kept(&table(), 1077 * DAY_NS)), Some(180));
    }

    #[test]
    fn r1_an_override_only_shortens_and_no_terms_keep_everything() {
        let mut plan = terms(0, Some(100));
        plan.tables = BTreeMap::from([(table(), 500 * DAY_NS)]);
        assert_eq!(days(plan.keep(&table())), Some(100));
        plan.tables = BTreeMap::from([(table(), 5 * DAY_NS)]);
        assert_eq!(days(plan.keep(&table())), Some(5));
        assert_eq!(days(plan.keep(&("d".into(), "u".into()))), Some(100));
        plan.keep_ns = None;
        assert_eq!(days(plan.keep(&table())), Some(5));
        let none = Rules::default();
        assert_eq!((none.shown(&table(), 9), none.kept(&table(), 9)), (None, None));
        assert_eq!(none.shown_from(&table(), 9), i64::MIN);
        // Terms of the future do not count yet.
        let later = Rules { terms: vec![terms(10, Some(1))], holds: Holds::default() };
        assert_eq!(later.kept(&table(), 9 * DAY_NS), None);
        assert_eq!(later.changes(0), [10 * DAY_NS]);
    }
}
