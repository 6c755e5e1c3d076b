//! Plans, the terms that a tenant has by them, and legal holds: the contract as data.
//!
//! Owns: what a plan says, which plans are built in, and the history of what counted for whom from
//! when on. Terms are a copy: changing a plan changes nothing for tenants that have it until it is
//! set for them again. Never: knows what time it is, or what is stored.

use millrace_protocol::ids::TenantId;
use serde::{Deserialize, Serialize};

use crate::{catalog::CatalogError, limits::TenantLimits};

/// The plan of a tenant that was given none: everything is kept.
pub const UNLIMITED: &str = "unlimited";
/// Days that something may be kept at most.
const DAYS_MAX: u32 = 100 * 366;
/// Tables of one tenant that may keep less than its plan.
pub const TABLES_MAX: usize = 1_000;
/// Characters of a reason.
const REASON_MAX: usize = 500;

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name, unique.
    pub name: String,
    /// Days that rows are kept, by their time; `None` for ever.
    pub raw_days: Option<u32>,
    /// Days that rollups are kept, at least as long as the rows; `None` for ever.
    #[serde(default)]
    pub rollup_days: Option<u32>,
    /// Days on fast storage, at most as long as the rows; `None` for all of them.
    #[serde(default)]
    pub hot_days: Option<u32>,
    /// What tenants with it may send, where they have no limits of their own.
    #[serde(default, skip_serializing_if = "TenantLimits::is_default")]
    pub limits: TenantLimits,
}

impl Plan {
    fn of(name: &str, raw_days: Option<u32>) -> Self {
        let limits = TenantLimits::default();
        Self { name: name.to_owned(), raw_days, rollup_days: raw_days, hot_days: None, limits }
    }

    /// Those that are always there. Months and years are taken at their longest.
    pub fn built_in() -> [Self; 4] {
        [
            Self::of("free", Some(184)),
            Self::of("growth", Some(3653)),
            Self::of("starter", Some(731)),
            Self::of(UNLIMITED, None),
        ]
    }

    /// Whether this can be a plan.
    pub(crate) fn check(&self) -> Result<(), CatalogError> {
        let wrong = |what: &str| Err(CatalogError::Plan(what.to_owned()));
        let sane = |days: Option<u32>| days.is_none_or(|d| (1..=DAYS_MAX).contains(&d));
        if ![self.raw_days, self.rollup_days, self.hot_days].into_iter().all(sane) {
            return wrong("days are 1 to 36600; leave a figure out for `for ever`");
        }
        if Self::built_in().iter().any(|b| b.name == self.name) {
            return wrong("a built-in plan cannot be changed; define one of another name");
        }
        let (raw, rollup) =
            (self.raw_days.unwrap_or(u32::MAX), self.rollup_days.unwrap_or(u32::MAX));
        if rollup < raw {
            return wrong("rollups are kept at least as long as the rows that they stand for");
        }
        if self.hot_days.is_some_and(|hot| hot > raw) {
            return wrong("rows cannot be on fast storage for longer than they are kept");
        }
        Ok(())
    }
}

/// A table that keeps less than its tenant's plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shorter {
    /// Its database.
    pub database: String,
    /// The table.
    pub table: String,
    /// Days that its rows are kept.
    pub days: u32,
}

/// What counts for a tenant from one moment on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// From when, ns since 1970; `None` until a server that runs has said what time it is.
    pub from_ns: Option<i64>,
    /// The plan's name.
    pub plan: String,
    /// As in [`Plan`], at that moment.
    pub raw_days: Option<u32>,
    /// As in [`Plan`].
    pub rollup_days: Option<u32>,
    /// As in [`Plan`].
    pub hot_days: Option<u32>,
    /// Tables that keep less.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<Shorter>,
    /// Who said so: a token's id, or the operator.
    pub by: String,
}

impl Terms {
    /// A plan's terms, with the tables that keep less as they were.
    pub(crate) fn by_plan(plan: &Plan, before: Option<&Self>, by: &str) -> Self {
        Self {
            from_ns: None,
            plan: plan.name.clone(),
            raw_days: plan.raw_days,
            rollup_days: plan.rollup_days,
            hot_days: plan.hot_days,
            tables: before.map(|b| b.tables.clone()).unwrap_or_default(),
            by: by.to_owned(),
        }
    }

    /// Sets what one table keeps, or lets it keep what the plan says.
    pub(crate) fn shorten(&mut self, table: Shorter, lift: bool) -> Result<(), CatalogError> {
        self.tables.retain(|t| (&t.database, &t.table) != (&table.database, &table.table));
        if lift {
            return Ok(());
        }
        if !(1..=DAYS_MAX).contains(&table.days) {
            return Err(CatalogError::Plan("days are 1 to 36600".to_owned()));
        }
        if let Some(raw) = self.raw_days.filter(|raw| table.days > *raw) {
            return Err(CatalogError::Plan(format!(
                "plan `{}` keeps {raw} days; a table may keep less, not more",
                self.plan
            )));
        }
        if self.tables.len() >= TABLES_MAX {
            return Err(CatalogError::Plan(format!("{TABLES_MAX} tables keep less already")));
        }
        self.tables.push(table);
        self.tables.sort();
        Ok(())
    }
}

/// Adds terms to a history; those that no server has dated yet are replaced.
pub(crate) fn add_terms(history: &mut Vec<Terms>, mut terms: Terms, now_ns: Option<i64>) {
    history.retain(|t| t.from_ns.is_some());
    let after = history.last().and_then(|t| t.from_ns).map(|at| at.saturating_add(1));
    terms.from_ns = now_ns.map(|now| after.map_or(now, |after| now.max(after)));
    history.push(terms);
}

/// A legal hold: what it names stays, whatever a plan or a deletion says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// Its id.
    pub id: String,
    /// Whose data.
    pub tenant: TenantId,
    /// Database and table; `None` for everything.
    pub table: Option<(String, String)>,
    /// Why.
    pub reason: String,
    /// Who placed it: a token's id, or the operator.
    pub by: String,
    /// Whether only the operator may release it.
    pub operator: bool,
    /// When it was placed, ns since 1970.
    pub since_ns: i64,
    /// When and by whom it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released: Option<(i64, String)>,
}

impl Hold {
    /// Whether it counts.
    pub fn active(&self) -> bool {
        self.released.is_none()
    }

    pub(crate) fn check(&self) -> Result<(), CatalogError> {
        let length = self.reason.trim().chars().count();
        if (1..=REASON_MAX).contains(&length) {
            return Ok(());
        }
        Err(CatalogError::Plan(format!("a hold needs a reason of 1 to {REASON_MAX} characters")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r1_built_in_plans_keep_six_months_two_and_ten_years() {
        let days: Vec<_> = Plan::built_in().iter().map(|p| (p.name.clone(), p.raw_days)).collect();
        let expected = [
            ("free", Some(184)),
            ("growth", Some(3653)),
            ("starter", Some(731)),
            (UNLIMITED, None),
        ];
        assert_eq!(days, expected.map(|(name, days)| (name.to_owned(), days)));
    }

    #[test]
    fn a_plan_that_contradicts_itself_is_refused() {
        let plan =
            |raw, rollup, hot| Plan { rollup_days: rollup, hot_days: hot, ..Plan::of("own", raw) };
        assert!(plan(Some(90), Some(365), Some(30)).check().is_ok());
        assert!(plan(None, None, Some(30)).check().is_ok());
        for (plan, why) in [
            (plan(Some(0), None, None), "1 to 36600"),
            (plan(Some(90), Some(30), None), "rollups"),
            (plan(None, Some(30), None), "rollups"),
            (plan(Some(90), None, Some(91)), "fast storage"),
            (Plan::of("free", Some(9)), "built-in"),
        ] {
            let refused = plan.check().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn r1_a_table_may_keep_less_than_its_plan_and_not_more() {
        let mut terms = Terms::by_plan(&Plan::of("own", Some(90)), None, "me");
        let table = |days| Shorter { database: "d".into(), table: "t".into(), days };
        terms.shorten(table(30), false).unwrap();
        terms.shorten(table(20), false).unwrap();
        assert_eq!(terms.tables, [table(20)]);
        assert!(terms.clone().shorten(table(91), false).is_err());
        terms.shorten(table(0), true).unwrap();
        assert!(terms.tables.is_empty());
    }

    #[test]
    fn terms_are_dated_in_order_and_by_a_server_that_runs() {
        let plan = Plan::of("own", Some(90));
        let terms = || Terms::by_plan(&plan, None, "me");
        let mut history = Vec::new();
        add_terms(&mut history, terms(), Some(10));
        add_terms(&mut history, terms(), Some(5));
        add_terms(&mut history, terms(), None);
        add_terms(&mut history, terms(), None);
        let dates: Vec<_> = history.iter().map(|t| t.from_ns).collect();
        assert_eq!(dates, [Some(10), Some(11), None]);
    }
}
