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
