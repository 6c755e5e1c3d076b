//! From text to the node.
//!
//! Owns: what MATCH_CONDITION and ON may say. DataFusion's planner asks us about each relation but
//! not about joins, so an ASOF join is first put into brackets of its own: `(a ASOF JOIN b ...)` is
//! a relation. Never: guesses which side is meant; a condition that is not understood is refused.

use std::ops::ControlFlow;

use datafusion::{
    common::{DFSchema, plan_err},
    error::Result,
    logical_expr::{
        BinaryExpr, Expr, ExprSchemable, Extension, LogicalPlan, Operator,
        binary::BinaryTypeCoercer,
        planner::{PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning},
        utils::split_conjunction_owned,
    },
    sql::{
        parser::Statement,
        sqlparser::ast::{
            Join, JoinConstraint, JoinOperator, Select, TableFactor, TableWithJoins, VisitMut,
            VisitorMut,
        },
    },
};

use super::node::{AsofJoin, Pair};

/// Puts every ASOF join and what stands before it into brackets.
pub(crate) fn nested(statement: &mut Statement) {
    match statement {
        Statement::Statement(sql) => {
            // It visits everything: there is nothing to break off for.
            let _broken = sql.visit(&mut Nesting).is_break();
        }
        Statement::Explain(explain) => nested(&mut explain.statement),
        _ => {}
    }
}

struct Nesting;

impl VisitorMut for Nesting {
    type Break = ();

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<()> {
        select.from.iter_mut().for_each(bracket);
        ControlFlow::Continue(())
    }

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::NestedJoin { table_with_joins: tables, .. } = factor {
            // One that comes last has these brackets already.
            let last = tables.joins.pop_if(|join| asof(join));
            bracket(tables);
            tables.joins.extend(last);
        }
        ControlFlow::Continue(())
    }
}

fn asof(join: &Join) -> bool {
    matches!(join.join_operator, JoinOperator::AsOf { .. })
}

/// Every ASOF join becomes a relation, together with what stands before it.
fn bracket(tables: &mut TableWithJoins) {
    let mut before: Vec<Join> = Vec::new();
    for join in std::mem::take(&mut tables.joins) {
        let closes = asof(&join);
        before.push(join);
        if closes {
            let joins = std::mem::take(&mut before);
            let inner = TableWithJoins { relation: tables.relation.clone(), joins };
            tables.relation =
                TableFactor::NestedJoin { table_with_joins: Box::new(inner), alias: None };
        }
    }
    tables.joins = before;
}

/// Plans `(a ASOF JOIN b ...)`.
#[derive(Debug)]
pub(crate) struct AsofSyntax;

impl RelationPlanner for AsofSyntax {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        let TableFactor::NestedJoin { mut table_with_joins, alias } = relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let last = table_with_joins.joins.pop();
        let (right, near, constraint) = match last {
            Some(Join {
                relation,
                join_operator: JoinOperator::AsOf { match_condition, constraint },
                ..
            }) => (relation, match_condition, constraint),
            other => {
                table_with_joins.joins.extend(other);
                let relation = TableFactor::NestedJoin { table_with_joins, alias };
                return Ok(RelationPlanning::Original(Box::new(relation)));
            }
        };
        let left = if table_with_joins.joins.is_empty() {
            table_with_joins.relation
        } else {
            TableFactor::NestedJoin { table_with_joins, alias: None }
        };
        let (left, right) = (context.plan(left)?, context.plan(right)?);
        let both = left.schema().join(right.schema())?;
        let near = context.sql_to_expr(near, &both)?;
        let on = match constraint {
            JoinConstraint::On(on) => split_conjunction_owned(context.sql_to_expr(on, &both)?),
            JoinConstraint::None => Vec::new(),
            JoinConstraint::Using(_) | JoinConstraint::Natural => {
                return plan_err!("ASOF JOIN takes ON a.x = b.x and no USING or NATURAL");
            }
        };
        let plan = joined(left, right, near, on)?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
    }
}

fn joined(left: LogicalPlan, right: LogicalPlan, near: Expr, on: Vec<Expr>) -> Result<LogicalPlan> {
    let sides = (left.schema().as_ref(), right.schema().as_ref());
    let Some((near, op)) = pair(near, sides)? else {
        return plan_err!(
            "MATCH_CONDITION compares a column of the left side with one of the right by >=, >, <= or <"
        );
    };
    if !matches!(op, Operator::Gt | Operator::GtEq | Operator::Lt | Operator::LtEq) {
        return plan_err!("MATCH_CONDITION compares by >=, >, <= or <, not by {op}");
    }
    let mut equal = Vec::new();
    for condition in on {
        match pair(condition, sides)? {
            Some((pair, Operator::Eq)) => equal.push(pair),
            _ => {
                return plan_err!(
                    "ON of an ASOF JOIN says that columns of the left side are equal to columns of the right, joined with AND"
                );
            }
        }
    }
    let node = AsofJoin::try_new(left, right, equal, near, op)?;
    Ok(LogicalPlan::Extension(Extension { node: std::sync::Arc::new(node) }))
}

/// A comparison of both sides, the left one first, with one type.
fn pair(
    condition: Expr,
    (left, right): (&DFSchema, &DFSchema),
) -> Result<Option<(Pair, Operator)>> {
    let Expr::BinaryExpr(BinaryExpr { left: a, op, right: b }) = condition else { return Ok(None) };
    let of = |expr: &Expr, side: &DFSchema| {
        let columns = expr.column_refs();
        !columns.is_empty() && columns.into_iter().all(|c| side.has_column(c))
    };
    let (a, b, op) = if of(&a, left) && of(&b, right) {
        (*a, *b, op)
    } else if let (true, true, Some(op)) = (of(&a, right), of(&b, left), op.swap()) {
        (*b, *a, op)
    } else {
        return Ok(None);
    };
    let (type_a, type_b) = (a.get_type(left)?, b.get_type(right)?);
    let (type_a, type_b) = BinaryTypeCoercer::new(&type_a, &op, &type_b).get_input_types()?;
    let pair = Pair { left: a.cast_to(&type_a, left)?, right: b.cast_to(&type_b, right)? };
    Ok(Some((pair, op)))
}
