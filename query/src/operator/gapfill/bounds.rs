//! The bounds that WHERE puts on a column of time.
//!
//! Owns: the way from an aggregate down to every filter that its rows have passed. Only conditions
//! that are joined with AND and compare the column itself with a constant count, so a bound that is
//! found holds for every row. Never: guesses; what is not understood bounds nothing.

use datafusion::{
    arrow::datatypes::{DataType, TimeUnit},
    common::{Column, DFSchema},
    logical_expr::{
        BinaryExpr, Distinct, Expr, JoinType, LogicalPlan, Operator, simplify::SimplifyContext,
        utils::split_conjunction,
    },
    optimizer::{OptimizerConfig, simplify_expressions::ExprSimplifier},
    scalar::ScalarValue,
};

/// The smallest and the largest nanosecond that may come, as far as conditions say.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bounds {
    pub(super) from_ns: Option<i64>,
    pub(super) to_ns: Option<i64>,
}

impl Bounds {
    fn from(&mut self, ns: i64) {
        self.from_ns = Some(self.from_ns.map_or(ns, |old| old.max(ns)));
    }

    fn to(&mut self, ns: i64) {
        self.to_ns = Some(self.to_ns.map_or(ns, |old| old.min(ns)));
    }

    /// Takes in `column op value`.
    fn compared(&mut self, op: Operator, ns: i64) {
        match op {
            Operator::Eq => {
                self.from(ns);
                self.to(ns);
            }
            Operator::GtEq => self.from(ns),
            Operator::LtEq => self.to(ns),
            // Nothing is after the end of time: the bound before it stands for that.
            Operator::Gt => self.from(ns.saturating_add(1)),
            Operator::Lt => self.to(ns.saturating_sub(1)),
            _ => {}
        }
    }
}

/// What is read besides the plan: when `now()` is.
pub(super) struct Constants {
    simplifier: ExprSimplifier,
}

impl Constants {
    pub(super) fn new(config: &dyn OptimizerConfig) -> Self {
        let context = SimplifyContext::builder()
            .with_query_execution_start_time(config.query_execution_start_time())
            .with_config_options(config.options())
            .build();
        Self { simplifier: ExprSimplifier::new(context) }
    }

    /// The value of an expression without columns.
    pub(super) fn value(&self, expr: &Expr) -> Option<ScalarValue> {
        let fixed = expr.column_refs().is_empty() && !expr.is_volatile() && !has_subquery(expr);
        match self.simplifier.simplify(fixed.then(|| expr.clone())?).ok()? {
            Expr::Literal(value, _) => Some(value),
            _ => None,
        }
    }

    /// The same as a time, nanoseconds.
    pub(super) fn time_ns(&self, expr: &Expr) -> Option<i64> {
        let value = self.value(expr)?;
        let time = matches!(
            value.data_type(),
            DataType::Timestamp(..) | DataType::Date32 | DataType::Date64
        );
        let ns = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
        match value.cast_to(&time.then_some(ns)?).ok()? {
            ScalarValue::TimestampNanosecond(ns, _) => ns,
            _ => None,
        }
    }
}

fn has_subquery(expr: &Expr) -> bool {
    use datafusion::common::tree_node::TreeNode as _;
    expr.exists(|e| {
        Ok(matches!(
            e,
            Expr::ScalarSubquery(_)
                | Expr::InSubquery(_)
                | Expr::Exists(_)
                | Expr::OuterReferenceColumn(..)
                | Expr::Placeholder(_)
        ))
    })
    .unwrap_or(true)
}

/// The column beneath casts that change no time.
pub(super) fn column_of<'a>(expr: &'a Expr, schema: &DFSchema) -> Option<&'a Column> {
    use datafusion::logical_expr::ExprSchemable as _;
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Alias(alias) => column_of(&alias.expr, schema),
        Expr::Cast(cast) => {
            let from = cast.expr.get_type(schema).ok()?;
            exact(&from, cast.field.data_type()).then(|| column_of(&cast.expr, schema))?
        }
        _ => None,
    }
}

/// Whether a cast between two types keeps every time.
fn exact(from: &DataType, to: &DataType) -> bool {
    let utc = |zone: &Option<std::sync::Arc<str>>| {
        zone.as_ref().is_none_or(|z| ["UTC", "+00:00", "Z"].contains(&z.as_ref()))
    };
    match (from, to) {
        (DataType::Timestamp(unit, a), DataType::Timestamp(TimeUnit::Nanosecond, b)) => {
            (a == b || utc(a) && utc(b)) && *unit <= TimeUnit::Nanosecond
        }
        _ => from == to,
    }
}

/// Takes in every condition on the column between here and the tables.
pub(super) fn collect(plan: &LogicalPlan, column: &Column, know: &Constants, out: &mut Bounds) {
    match plan {
        LogicalPlan::Filter(filter) => {
            conditions(&filter.predicate, plan.schema(), column, know, out);
            collect(&filter.input, column, know, out);
        }
        LogicalPlan::Projection(projection) => {
            let inner = place(plan.schema(), column).and_then(|at| projection.expr.get(at));
            if let Some(inner) = inner.and_then(|e| column_of(e, projection.input.schema())) {
                collect(&projection.input, inner, know, out);
            }
        }
        LogicalPlan::SubqueryAlias(alias) => {
            if let Some(at) = place(plan.schema(), column) {
                let inner = Column::from(alias.input.schema().qualified_field(at));
                collect(&alias.input, &inner, know, out);
            }
        }
        LogicalPlan::Aggregate(aggregate) => {
            let inner = place(plan.schema(), column).and_then(|at| aggregate.group_expr.get(at));
            if let Some(inner) = inner.and_then(|e| column_of(e, aggregate.input.schema())) {
                collect(&aggregate.input, inner, know, out);
            }
        }
        LogicalPlan::Join(join) => {
            if let (Some(on), JoinType::Inner) = (&join.filter, join.join_type) {
                conditions(on, plan.schema(), column, know, out);
            }
            for side in [&join.left, &join.right] {
                if place(side.schema(), column).is_some() {
                    return collect(side, column, know, out);
                }
            }
        }
        LogicalPlan::TableScan(scan) => {
            for filter in &scan.filters {
                conditions(filter, plan.schema(), column, know, out);
            }
        }
        LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => {
            if let [input] = plan.inputs().as_slice()
                && place(input.schema(), column).is_some()
            {
                collect(input, column, know, out);
            }
        }
        _ => {}
    }
}

fn place(schema: &DFSchema, column: &Column) -> Option<usize> {
    schema.maybe_index_of_column(column)
}

fn conditions(
    predicate: &Expr,
    schema: &DFSchema,
    column: &Column,
    know: &Constants,
    out: &mut Bounds,
) {
    let wanted = place(schema, column);
    let ours = |expr: &Expr| {
        wanted.is_some() && column_of(expr, schema).is_some_and(|c| place(schema, c) == wanted)
    };
    for condition in split_conjunction(predicate) {
        match condition {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                let (value, op) = if ours(left) {
                    (right, Some(*op))
                } else if ours(right) {
                    (left, op.swap())
                } else {
                    continue;
                };
                if let (Some(op), Some(ns)) = (op, know.time_ns(value)) {
                    out.compared(op, ns);
                }
            }
            Expr::Between(between) if !between.negated && ours(&between.expr) => {
                let (low, high) = (know.time_ns(&between.low), know.time_ns(&between.high));
                for (op, ns) in [(Operator::GtEq, low), (Operator::LtEq, high)] {
                    if let Some(ns) = ns {
                        out.compared(op, ns);
                    }
                }
            }
            _ => {}
        }
    }
}
