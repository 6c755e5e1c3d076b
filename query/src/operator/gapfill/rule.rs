//! Turns `GROUP BY date_bin_gapfill(...)` into an aggregate by `date_bin` with the node above it.
//!
//! Owns: where the calls may stand. The aggregate's columns keep their names, so that everything
//! above it finds them; each `locf(x)` and `interpolate(x)` above becomes a column of the node.
//! Runs before all of DataFusion's rules, on a plan whose types are settled.
//! Never: leaves a call in the plan: one that cannot be placed is refused and says where it belongs.

use std::sync::Arc;

use datafusion::{
    arrow::datatypes::{DataType, IntervalMonthDayNano},
    common::{
        Column, DFSchema, plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    error::{DataFusionError, Result},
    functions::datetime::date_bin,
    logical_expr::{Aggregate, Expr, Extension, LogicalPlan, Projection, expr::ScalarFunction},
    optimizer::{OptimizerConfig, OptimizerRule},
    scalar::ScalarValue,
};

use super::{
    ROWS_MAX,
    bounds::{self, Bounds, Constants},
    buckets::Buckets,
    calls::{Call, call_of},
    node::{Fill, GapFill},
};
use crate::error::QueryError;

/// See the module head.
#[derive(Debug)]
pub(in crate::operator) struct GapFillRule;

impl OptimizerRule for GapFillRule {
    fn name(&self) -> &str {
        "gap_fill"
    }

    fn rewrite(
        &self,
        plan: LogicalPlan,
        config: &dyn OptimizerConfig,
    ) -> Result<Transformed<LogicalPlan>> {
        if first_call(&plan)?.is_none() {
            return Ok(Transformed::no(plan));
        }
        let know = Constants::new(config);
        let placed = plan.transform_up_with_subqueries(|node| {
            let node = match node {
                LogicalPlan::Aggregate(aggregate) => filled(aggregate, &know)?,
                other => with_columns(other)?,
            };
            // A made row has nulls, so columns above can have them, too.
            Ok(Transformed::yes(node.recompute_schema()?))
        })?;
        match first_call(&placed.data)? {
            Some(call) => call.misplaced(),
            None => Ok(placed),
        }
    }
}

/// The first of our calls anywhere in a plan.
fn first_call(plan: &LogicalPlan) -> Result<Option<Call>> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found = found.or(call_in(expr)?);
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(found)
}

fn call_in(expr: &Expr) -> Result<Option<Call>> {
    let mut found = None;
    expr.apply(|e| {
        found = found.or(call_of(e).map(|(call, _)| call));
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// The call that makes the buckets, if an expression is that call.
fn bucket_call(expr: &Expr) -> Option<&ScalarFunction> {
    match expr {
        Expr::Alias(alias) => bucket_call(&alias.expr),
        other => match call_of(other) {
            Some((Call::Bucket, function)) => Some(function),
            _ => None,
        },
    }
}

/// An aggregate that groups by our call, filled; others as they are.
fn filled(aggregate: Aggregate, know: &Constants) -> Result<LogicalPlan> {
    let places: Vec<usize> = (0..aggregate.group_expr.len())
        .filter(|at| aggregate.group_expr.get(*at).and_then(bucket_call).is_some())
        .collect();
    let (place, function) = match places.as_slice() {
        [] => return Ok(LogicalPlan::Aggregate(aggregate)),
        [place] => match aggregate.group_expr.get(*place).and_then(bucket_call) {
            Some(function) => (*place, function.clone()),
            None => return Call::Bucket.misplaced(),
        },
        _ => return Call::Bucket.misplaced(),
    };
    let buckets = buckets(&aggregate, &function, know)?;
    let groups = aggregate.group_expr.len();
    let named = Arc::clone(&aggregate.schema);
    let mut group_expr = aggregate.group_expr;
    if let Some(slot) = group_expr.get_mut(place) {
        *slot = Expr::ScalarFunction(ScalarFunction { func: date_bin(), args: function.args });
    }
    let inner = Aggregate::try_new(aggregate.input, group_expr, aggregate.aggr_expr)?;
    let columns = (0..inner.schema.fields().len()).map(|at| {
        let column = Expr::Column(Column::from(inner.schema.qualified_field(at)));
        if at != place {
            return column;
        }
        let (table, field) = named.qualified_field(at);
        column.alias_qualified(table.cloned(), field.name())
    });
    let columns: Vec<Expr> = columns.collect();
    let fills = (0..columns.len()).map(|at| match at {
        at if at == place => Fill::Time,
        at if at < groups => Fill::Key,
        _ => Fill::Null,
    });
    let fills: Arc<[Fill]> = fills.collect();
    let input = Projection::try_new(columns, Arc::new(LogicalPlan::Aggregate(inner)))?;
    node(GapFill::try_new(Arc::new(LogicalPlan::Projection(input)), fills, buckets)?)
}

fn node(fill: GapFill) -> Result<LogicalPlan> {
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(fill) }))
}

fn invalid(text: String) -> DataFusionError {
    DataFusionError::External(Box::new(QueryError::Invalid(text)))
}

/// The buckets that the conditions below an aggregate leave; none if no time can pass them.
fn buckets(
    aggregate: &Aggregate,
    function: &ScalarFunction,
    know: &Constants,
) -> Result<Option<Buckets>> {
    let [stride, time, origin @ ..] = function.args.as_slice() else {
        return Call::Bucket.misplaced();
    };
    let Some(stride) = know.value(stride).and_then(interval) else {
        return plan_err!("`date_bin_gapfill` takes a constant interval as its stride");
    };
    let origin_ns = match origin {
        [] => 0,
        [origin, ..] => know.time_ns(origin).ok_or_else(|| {
            invalid("`date_bin_gapfill` takes a constant time as its origin".to_owned())
        })?,
    };
    let Some(column) = bounds::column_of(time, aggregate.input.schema()) else {
        return plan_err!("`date_bin_gapfill` takes a column as its time");
    };
    let mut found = Bounds::default();
    bounds::collect(&aggregate.input, column, know, &mut found);
    let (from_ns, to_ns) = match (found.from_ns, found.to_ns) {
        (Some(from), Some(to)) => (from, to),
        (from, to) => {
            let missing = match (from, to) {
                (None, None) => "a lower and an upper bound",
                (None, _) => "a lower bound",
                _ => "an upper bound",
            };
            return Err(invalid(format!(
                "`date_bin_gapfill` needs {missing} on {column}; add to WHERE: {column} >= ... AND {column} < ...",
            )));
        }
    };
    if from_ns > to_ns {
        return Ok(None);
    }
    let buckets = Buckets::between(stride, origin_ns, from_ns, to_ns)?;
    if buckets.count() > ROWS_MAX {
        return Err(too_many());
    }
    Ok(Some(buckets))
}

/// The refusal of more rows than may be made.
pub(super) fn too_many() -> DataFusionError {
    DataFusionError::External(Box::new(QueryError::TooComplex(format!(
        "date_bin_gapfill would make more than {ROWS_MAX} rows; narrow the time range or use a longer stride"
    ))))
}

fn interval(value: ScalarValue) -> Option<IntervalMonthDayNano> {
    use datafusion::arrow::datatypes::IntervalUnit;
    match value.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano)).ok()? {
        ScalarValue::IntervalMonthDayNano(interval) => interval,
        _ => None,
    }
}

/// A node whose `locf` and `interpolate` became columns of the filling below it.
fn with_columns(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut wanted: Vec<(String, Fill, Expr)> = Vec::new();
    plan.apply_expressions(|expr| {
        expr.apply(|e| {
            if let Some((call, function)) = call_of(e)
                && let Some(column) = column(call, function, e)?
                && !wanted.contains(&column)
            {
                wanted.push(column);
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    if wanted.is_empty() {
        return Ok(plan);
    }
    let [input] = plan.inputs()[..] else { return Ok(plan) };
    let Some(input) = widened(input, &wanted)? else { return Ok(plan) };
    let exprs = plan.expressions().into_iter().map(|expr| {
        expr.transform_up(|e| match call_of(&e) {
            Some((Call::Locf | Call::Interpolate, _)) => {
                let name = e.schema_name().to_string();
                Ok(Transformed::yes(Expr::Column(Column::new_unqualified(name))))
            }
            _ => Ok(Transformed::no(e)),
        })
        .map(|t| t.data)
    });
    let exprs = exprs.collect::<Result<Vec<Expr>>>()?;
    let made = plan.with_new_exprs(exprs, vec![input])?.recompute_schema()?;
    restored(made, plan.schema())
}

/// The plan without the columns that were only needed within it.
fn restored(plan: LogicalPlan, schema: &DFSchema) -> Result<LogicalPlan> {
    if plan.schema().fields().len() == schema.fields().len() {
        return Ok(plan);
    }
    let columns = schema.iter().map(|c| Expr::Column(Column::from(c))).collect();
    Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
}

/// What a fill call needs: a name, how it is filled, and what of.
fn column(
    call: Call,
    function: &ScalarFunction,
    expr: &Expr,
) -> Result<Option<(String, Fill, Expr)>> {
    let fill = match call {
        Call::Bucket => return Ok(None),
        Call::Locf => Fill::Previous,
        Call::Interpolate => Fill::Linear,
    };
    match function.args.as_slice() {
        [arg] if call_in(arg)?.is_none() => {
            Ok(Some((expr.schema_name().to_string(), fill, arg.clone())))
        }
        _ => call.misplaced(),
    }
}

/// The input with more columns in the filling beneath it; None if there is none in reach.
fn widened(plan: &LogicalPlan, wanted: &[(String, Fill, Expr)]) -> Result<Option<LogicalPlan>> {
    match plan {
        LogicalPlan::Extension(extension) => {
            let fill: Option<&GapFill> = extension.node.as_any().downcast_ref();
            fill.map(|fill| with_more(fill, wanted)).transpose().map(Option::flatten)
        }
        LogicalPlan::Projection(projection) => through(projection, wanted),
        LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_) => {
            let [input] = plan.inputs()[..] else { return Ok(None) };
            let Some(input) = widened(input, wanted)? else { return Ok(None) };
            let plan = plan.with_new_exprs(plan.expressions(), vec![input])?;
            Ok(Some(plan.recompute_schema()?))
        }
        _ => Ok(None),
    }
}

/// A projection between, as there is below an ORDER BY: passes the new columns on.
fn through(
    projection: &Projection,
    wanted: &[(String, Fill, Expr)],
) -> Result<Option<LogicalPlan>> {
    let beneath = |column: &Column| {
        let at = projection.schema.maybe_index_of_column(column)?;
        projection.expr.get(at).cloned().map(Expr::unalias)
    };
    let inner = wanted.iter().map(|(name, fill, arg)| {
        let arg = arg.clone().transform_up(|e| match &e {
            Expr::Column(column) => {
                Ok(beneath(column).map_or(Transformed::no(e), Transformed::yes))
            }
            _ => Ok(Transformed::no(e)),
        })?;
        Ok((name.clone(), *fill, arg.data))
    });
    let inner = inner.collect::<Result<Vec<_>>>()?;
    let Some(input) = widened(&projection.input, &inner)? else { return Ok(None) };
    let has = |name: &str| projection.schema.has_column_with_unqualified_name(name);
    let new = wanted.iter().filter(|(name, ..)| !has(name));
    let new = new.map(|(name, ..)| Expr::Column(Column::new_unqualified(name)));
    let exprs = projection.expr.iter().cloned().chain(new).collect();
    Ok(Some(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?)))
}

fn with_more(fill: &GapFill, wanted: &[(String, Fill, Expr)]) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Projection(projection) = fill.input.as_ref() else { return Ok(None) };
    let has = |name: &str| fill.input.schema().has_column_with_unqualified_name(name);
    // The name of the bucket's column exists above the projection only.
    let known = |c: &Column| projection.input.schema().has_column(c);
    let mut exprs = projection.expr.clone();
    let mut fills = fill.fills.to_vec();
    for (name, how, arg) in wanted.iter().filter(|(name, ..)| !has(name)) {
        if !arg.column_refs().into_iter().all(known) {
            return Ok(None);
        }
        exprs.push(arg.clone().alias(name));
        fills.push(*how);
    }
    let input = Projection::try_new(exprs, Arc::clone(&projection.input))?;
    let input = Arc::new(LogicalPlan::Projection(input));
    node(GapFill::try_new(input, fills.into(), fill.buckets)?).map(Some)
}
