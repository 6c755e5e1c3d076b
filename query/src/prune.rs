//! From WHERE to what the store must read: a time range and a set of series.
//!
//! Owns: which filters are exact. A filter that compares `time` with a literal becomes part of the
//! range; a filter over tags alone is evaluated once per series on the series table, not once per
//! row. Both are exact in the scan, so DataFusion need not repeat them. Everything else stays with
//! DataFusion. Never: guesses; what is not understood is left alone.

use std::{ops::Range, sync::Arc};

use datafusion::{
    arrow::{
        array::{Array, ArrayRef, BooleanArray, RecordBatch, StringArray, cast::AsArray},
        datatypes::{Field, Schema},
    },
    catalog::Session,
    common::{
        DFSchema,
        tree_node::{Transformed, TreeNode},
    },
    error::Result,
    logical_expr::{BinaryExpr, Expr, Operator},
    scalar::ScalarValue,
};
use millrace_storage::{TableSnapshot, tag_type};

/// What a filter can be turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Part of the time range.
    Time,
    /// A predicate on the series table.
    Tags,
    /// Neither.
    Other,
}

/// Says what a filter can be turned into.
pub(crate) fn kind(filter: &Expr, table: &TableSnapshot) -> Kind {
    if time_range(filter).is_some() {
        return Kind::Time;
    }
    let columns = filter.column_refs();
    let tags_only = !columns.is_empty()
        && columns.iter().all(|c| table.schema.tag(&c.name).is_some())
        && !filter.is_volatile()
        && !has_subquery(filter);
    if tags_only { Kind::Tags } else { Kind::Other }
}

fn has_subquery(filter: &Expr) -> bool {
    filter
        .exists(|e| {
            Ok(matches!(
                e,
                Expr::ScalarSubquery(_)
                    | Expr::InSubquery(_)
                    | Expr::Exists(_)
                    | Expr::OuterReferenceColumn(..)
            ))
        })
        .unwrap_or(true)
}

fn literal_ns(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::Literal(ScalarValue::TimestampNanosecond(Some(ns), _), _) => Some(*ns),
        Expr::Literal(ScalarValue::TimestampMicrosecond(Some(us), _), _) => us.checked_mul(1_000),
        Expr::Literal(ScalarValue::TimestampMillisecond(Some(ms), _), _) => {
            ms.checked_mul(1_000_000)
        }
        Expr::Literal(ScalarValue::TimestampSecond(Some(s), _), _) => s.checked_mul(1_000_000_000),
        _ => None,
    }
}

fn is_time(expr: &Expr) -> bool {
    matches!(expr, Expr::Column(c) if c.name == "time")
}

/// The half-open range that a filter on `time` alone stands for.
fn time_range(filter: &Expr) -> Option<Range<i64>> {
    let all = i64::MIN..i64::MAX;
    match filter {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::And, right }) => {
            let (a, b) = (time_range(left)?, time_range(right)?);
            Some(a.start.max(b.start)..a.end.min(b.end))
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (op, ns) = if is_time(left) {
                (*op, literal_ns(right)?)
            } else if is_time(right) {
                (op.swap()?, literal_ns(left)?)
            } else {
                return None;
            };
            match op {
                Operator::Eq => Some(ns..ns.checked_add(1)?),
                Operator::Lt => Some(all.start..ns),
                Operator::LtEq => Some(all.start..ns.checked_add(1)?),
                Operator::Gt => Some(ns.checked_add(1)?..all.end),
                Operator::GtEq => Some(ns..all.end),
                _ => None,
            }
        }
        Expr::Between(b) if !b.negated && is_time(&b.expr) => {
            Some(literal_ns(&b.low)?..literal_ns(&b.high)?.checked_add(1)?)
        }
        _ => None,
    }
}

/// The range that all time filters leave.
pub(crate) fn time_of(filters: &[Expr]) -> Range<i64> {
    filters
        .iter()
        .filter_map(time_range)
        .fold(i64::MIN..i64::MAX, |a, b| a.start.max(b.start)..a.end.min(b.end))
}

/// The series that pass every tag filter; `None` if there is no such filter.
pub(crate) fn series_of(
    filters: &[Expr],
    table: &TableSnapshot,
    state: &dyn Session,
) -> Result<Option<Arc<Vec<bool>>>> {
    let filters: Vec<&Expr> = filters.iter().filter(|f| kind(f, table) == Kind::Tags).collect();
    if filters.is_empty() {
        return Ok(None);
    }
    let batch = series_batch(table)?;
    let schema = DFSchema::try_from(batch.schema())?;
    let mut keep = vec![true; batch.num_rows()];
    for filter in filters {
        let bare = unqualified((*filter).clone())?;
        let physical = state.create_physical_expr(bare, &schema)?;
        let passed = physical.evaluate(&batch)?.into_array(batch.num_rows())?;
        let passed: &BooleanArray = passed.as_boolean();
        for (row, keep) in keep.iter_mut().enumerate() {
            *keep &= passed.is_valid(row) && passed.value(row);
        }
    }
    Ok(Some(Arc::new(keep)))
}

fn unqualified(expr: Expr) -> Result<Expr> {
    expr.transform(|e| {
        Ok(match e {
            Expr::Column(c) if c.relation.is_some() => {
                Transformed::yes(Expr::Column(datafusion::common::Column::new_unqualified(c.name)))
            }
            other => Transformed::no(other),
        })
    })
    .map(|t| t.data)
}

/// The series table: one row per series, one column per tag.
fn series_batch(table: &TableSnapshot) -> Result<RecordBatch> {
    let fields: Vec<Field> =
        table.schema.tags.iter().map(|t| Field::new(&t.name, tag_type(), true)).collect();
    let columns: Vec<ArrayRef> = table
        .schema
        .tags
        .iter()
        .map(|tag| {
            let values = table.series.entries.iter().map(|e| e.key.get(&tag.name));
            let plain: StringArray = values.collect();
            datafusion::arrow::compute::cast(&plain, &tag_type())
        })
        .collect::<std::result::Result<_, _>>()?;
    let options = datafusion::arrow::array::RecordBatchOptions::new()
        .with_row_count(Some(table.series.len()));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::fixture::{MINUTE_NS, NEW_YEAR_NS, TENANT, World};

    const HOSTS: i64 = 4;
    const MINUTES: i64 = 10;

    /// Rows of every host and minute; half in files, half in memory, some hosts without a rack.
    fn world() -> World {
        let world = World::empty();
        for half in 0..2 {
            let mut lines = String::new();
            for host in 0..HOSTS {
                for minute in (half..MINUTES).step_by(2) {
                    let rack =
                        if host == 3 { String::new() } else { format!(",rack=r{}", host % 2) };
                    let time = NEW_YEAR_NS + minute * MINUTE_NS;
                    lines.push_str(&format!(
                        "m,host=h{host}{rack} v={}i {time}\n",
                        host * 100 + minute
                    ));
                }
            }
            world.write(TENANT, "default", &lines);
            if half == 0 {
                world.flush();
            }
        }
        world
    }

    /// A condition that is pushed down, and the same one hidden from pruning: `CASE` around a
    /// time, and a field beside a tag.
    fn both(condition: &str) -> (String, String) {
        let select = "SELECT host, rack, time, v FROM m WHERE";
        let order = "ORDER BY host, time";
        (
            format!("{select} {condition} {order}"),
            format!("{select} CASE WHEN v IS NOT NULL THEN ({condition}) END {order}"),
        )
    }

    fn plan(world: &World, sql: &str) -> String {
        world.csv(&format!("EXPLAIN {sql}")).join("\n")
    }

    fn literal() -> impl Strategy<Value = String> {
        (-1..=MINUTES, 0..3i64).prop_map(|(minute, off)| {
            let ns = NEW_YEAR_NS + minute * MINUTE_NS + off - 1;
            format!("to_timestamp_nanos({ns})")
        })
    }

    fn time() -> impl Strategy<Value = String> {
        let op = prop::sample::select(vec!["=", "<", "<=", ">", ">=", "<>"]);
        prop_oneof![
            (op.clone(), literal()).prop_map(|(op, t)| format!("time {op} {t}")),
            (op, literal()).prop_map(|(op, t)| format!("{t} {op} time")),
            (literal(), literal()).prop_map(|(a, b)| format!("time BETWEEN {a} AND {b}")),
            (literal(), literal()).prop_map(|(a, b)| format!("time NOT BETWEEN {a} AND {b}")),
            literal().prop_map(|t| format!("time IN ({t})")),
        ]
    }

    fn tag() -> impl Strategy<Value = String> {
        let host = prop::sample::select(vec!["h0", "h1", "h3", "h9", "", "H1"]);
        prop_oneof![
            host.clone().prop_map(|h| format!("host = '{h}'")),
            host.clone().prop_map(|h| format!("host <> '{h}'")),
            host.clone().prop_map(|h| format!("host >= '{h}'")),
            host.prop_map(|h| format!("host IN ('{h}', 'h2')")),
            Just("rack IS NULL".to_owned()),
            Just("rack IS NOT NULL".to_owned()),
            Just("rack = 'r1'".to_owned()),
            Just("NOT (rack = 'r1')".to_owned()),
            Just("host LIKE '%2'".to_owned()),
            Just("host ~ '[13]$'".to_owned()),
            Just("concat(host, rack) = 'h1r1'".to_owned()),
            Just("coalesce(rack, 'none') = 'none'".to_owned()),
            Just("host = rack OR rack IS NULL".to_owned()),
        ]
    }

    fn condition() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            3 => time(),
            3 => tag(),
            1 => (0..400i64).prop_map(|v| format!("v > {v}")),
        ];
        leaf.prop_recursive(2, 6, 2, |inner| {
            prop_oneof![
                4 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) AND ({b})")),
                1 => (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) OR ({b})")),
                1 => inner.prop_map(|a| format!("NOT ({a})")),
            ]
        })
    }

    /// One world for all cases: a new one for each would cost more than the cases.
    #[test]
    fn a_pruned_query_returns_what_an_unpruned_one_does() {
        let world = world();
        let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
            cases: 96,
            ..ProptestConfig::default()
        });
        let outcome = runner.run(&condition(), |condition| {
            let (pruned, whole) = both(&condition);
            prop_assert_eq!(world.csv(&pruned), world.csv(&whole), "{}", condition);
            Ok(())
        });
        outcome.unwrap();
    }

    #[test]
    fn the_oracle_itself_reads_everything() {
        let world = world();
        let (pruned, whole) =
            both("host = 'h1' AND time < to_timestamp_nanos(1767225660000000000)");
        assert_eq!(world.csv(&pruned).len(), 1);
        assert!(plan(&world, &whole).contains("series=4/4, rows<=40"), "{}", plan(&world, &whole));
    }

    fn check(world: &World, condition: &str, expected: &str) {
        let plan = plan(world, &format!("SELECT v FROM m WHERE {condition}"));
        assert!(plan.contains(expected), "{condition}: {plan}");
    }

    #[test]
    fn time_becomes_a_range_and_tags_become_series() {
        let world = world();
        let filtered = |condition: &str, expected: &str, again: bool| {
            check(&world, condition, expected);
            let plan = plan(&world, &format!("SELECT v FROM m WHERE {condition}"));
            assert_eq!(plan.contains("FilterExec"), again, "{condition}: {plan}");
        };
        filtered("host = 'h1'", "series=1/4, rows<=10", false);
        filtered("rack IS NULL", "series=1/4, rows<=10", false);
        filtered("host IN ('h0', 'h2') AND rack = 'r0'", "series=2/4, rows<=20", false);
        filtered(
            "time >= '2026-01-01T00:02:00Z' AND time < '2026-01-01T00:04:00Z'",
            "time=[2026-01-01T00:02:00Z, 2026-01-01T00:04:00Z)",
            false,
        );
        filtered(
            "time = '2026-01-01T00:02:00Z'",
            "time=[2026-01-01T00:02:00Z, 2026-01-01T00:02:00.000000001Z)",
            false,
        );
        filtered("time >= '2027-01-01T00:00:00Z'", "files=0/1, series=0/4, rows<=0", false);
        filtered("host = 'h1' AND v > 104", "series=1/4", true);
        filtered("host = 'h1' OR v > 104", "series=4/4", true);
        filtered("random() > 2 AND host = 'h1'", "series=1/4", true);
    }

    #[test]
    fn the_last_and_first_nanoseconds_of_time_are_no_overflow() {
        let world = world();
        for condition in [
            "time > to_timestamp_nanos(9223372036854775807)",
            "time = to_timestamp_nanos(9223372036854775807)",
            "time BETWEEN to_timestamp_nanos(5) AND to_timestamp_nanos(4)",
            "time < to_timestamp_nanos(-9223372036854775807)",
        ] {
            assert_eq!(
                world.csv(&format!("SELECT v FROM m WHERE {condition}")).len(),
                0,
                "{condition}"
            );
        }
        let all = "time <= to_timestamp_nanos(9223372036854775807)";
        assert_eq!(world.csv(&format!("SELECT v FROM m WHERE {all}")).len(), 40);
    }
}
