//! From the catalogue's terms and holds to the rules that the storage engine goes by.
//!
//! Owns: the translation, and telling the engine. The catalogue is the truth; the engine is told at
//! the start and after each change. Never: decides what anybody may change.

use millrace_control::{Catalog, Hold, Terms};
use millrace_protocol::ids::TenantId;
use millrace_storage::{
    Engine,
    retention::{DAY_NS, Holds, Rules},
};

fn ns(days: u32) -> i64 {
    i64::from(days).saturating_mul(DAY_NS)
}

/// One entry of a history; `None` if no server has dated it yet.
fn terms(terms: &Terms) -> Option<millrace_storage::retention::Terms> {
    let name = |t: &millrace_control::Shorter| (t.database.clone(), t.table.clone());
    Some(millrace_storage::retention::Terms {
        from_ns: terms.from_ns?,
        keep_ns: terms.raw_days.map(ns),
        tables: terms.tables.iter().map(|t| (name(t), ns(t.days))).collect(),
    })
}

/// What counts for a tenant by these terms and holds.
pub(crate) fn rules_of(history: &[Terms], holds: &[Hold]) -> Rules {
    let active = || holds.iter().filter(|h| h.active());
    let holds = Holds {
        all: active().any(|h| h.table.is_none()),
        tables: active().filter_map(|h| h.table.clone()).collect(),
    };
    Rules { terms: history.iter().filter_map(terms).collect(), holds }
}

/// What counts for a tenant.
pub(crate) fn rules(catalog: &Catalog, tenant: TenantId) -> Rules {
    let history = catalog.tenant(tenant).map(|t| t.terms).unwrap_or_default();
    rules_of(&history, &catalog.holds(tenant))
}

/// Tells the engine what counts for a tenant now.
pub(crate) fn tell(catalog: &Catalog, engine: &Engine, tenant: TenantId) {
    engine.set_retention(tenant, rules(catalog, tenant));
    engine.limit_new_series(tenant, catalog.limits(tenant).series_per_day);
}

#[cfg(test)]
mod tests {
    use millrace_control::Shorter;

    use super::*;

    #[test]
    fn r1_terms_and_holds_become_rules_and_what_is_not_dated_does_not_count() {
        let entry = |from_ns, raw_days, days: u32| Terms {
            from_ns,
            plan: "p".into(),
            raw_days,
            rollup_days: None,
            hot_days: None,
            tables: vec![Shorter { database: "d".into(), table: "t".into(), days }],
            by: "operator".into(),
        };
        let hold = |table: Option<&str>, released: bool| Hold {
            id: "h".into(),
            tenant: TenantId([1; 16]),
            table: table.map(|t| ("d".to_owned(), t.to_owned())),
            reason: "case 7".into(),
            by: "operator".into(),
            operator: true,
            since_ns: 0,
            released: released.then(|| (1, "operator".to_owned())),
        };
        let history = [entry(Some(5), Some(90), 30), entry(None, None, 1)];
        let rules = rules_of(&history, &[hold(Some("u"), false), hold(None, true)]);
        assert_eq!(rules.terms.len(), 1);
        assert_eq!(rules.last(&("d".into(), "t".into())), Some(30 * DAY_NS));
        assert_eq!(rules.last(&("d".into(), "u".into())), Some(90 * DAY_NS));
        assert!(rules.holds.holds(&("d".into(), "u".into())) && !rules.holds.all);
    }
}
