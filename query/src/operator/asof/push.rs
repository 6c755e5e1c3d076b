//! Passes conditions on the left side below an ASOF join.
//!
//! Owns: this one rule, which runs before DataFusion's own, while the condition still stands on the
//! join. DataFusion passes a condition to all inputs of a node or to none. Every row
//! of the left side comes out as it is, so a condition on it alone may come first; a condition on
//! the right side may not, because it would change which row is the nearest. Never: moves what is
//! computed anew for each row.

use std::sync::Arc;

use datafusion::{
    common::tree_node::Transformed,
    error::Result,
    logical_expr::{
        Expr, Extension, Filter, LogicalPlan,
        utils::{conjunction, split_conjunction_owned},
    },
    optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule},
};

use super::node::AsofJoin;

/// See the module head.
#[derive(Debug)]
pub(in crate::operator) struct AsofPush;

impl OptimizerRule for AsofPush {
    fn name(&self) -> &str {
        "asof_push"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(
        &self,
        plan: LogicalPlan,
        _config: &dyn OptimizerConfig,
    ) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = &plan else { return Ok(Transformed::no(plan)) };
        let LogicalPlan::Extension(extension) = filter.input.as_ref() else {
            return Ok(Transformed::no(plan));
        };
        let Some(join) = extension.node.as_any().downcast_ref::<AsofJoin>() else {
            return Ok(Transformed::no(plan));
        };
        let left = join.left.schema();
        let (low, high): (Vec<Expr>, Vec<Expr>) =
            split_conjunction_owned(filter.predicate.clone()).into_iter().partition(|c| {
                let columns = c.column_refs();
                let ours = |c: &&datafusion::common::Column| left.has_column(c);
                !c.is_volatile() && !columns.is_empty() && columns.iter().all(ours)
            });
        let Some(low) = conjunction(low) else { return Ok(Transformed::no(plan)) };
        let below = LogicalPlan::Filter(Filter::try_new(low, Arc::clone(&join.left))?);
        let node = AsofJoin { left: Arc::new(below), ..join.clone() };
        let node = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(Transformed::yes(match conjunction(high) {
            Some(high) => LogicalPlan::Filter(Filter::try_new(high, Arc::new(node))?),
            None => node,
        }))
    }
}
