//! Operators that DataFusion has not got, and how its planner comes to them.
//!
//! Owns: the planner that knows our logical nodes. Each operator brings a logical node, the rule or
//! syntax that makes it, and what runs it.
//! Never: keeps rows that the query's memory does not count; computes without coming up for air.

mod asof;
mod gapfill;

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::{
    catalog::Session,
    error::Result,
    execution::context::QueryPlanner,
    logical_expr::{LogicalPlan, ScalarUDF},
    optimizer::{Optimizer, OptimizerRule},
    physical_plan::ExecutionPlan,
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};

pub(crate) use self::asof::{AsofSyntax, nested};
use crate::functions::Stop;

/// See the module head.
#[derive(Debug)]
pub(crate) struct Planner(pub(crate) Stop);

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let ours: Vec<Arc<dyn ExtensionPlanner + Send + Sync>> = vec![
            Arc::new(gapfill::GapFillPlanner(self.0.clone())),
            Arc::new(asof::AsofPlanner(self.0.clone())),
        ];
        DefaultPhysicalPlanner::with_extension_planners(ours)
            .create_physical_plan(plan, session)
            .await
    }
}

/// DataFusion's rules after ours: what stands for an operator has to go before others look at it.
pub(crate) fn rules() -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules: Vec<Arc<dyn OptimizerRule + Send + Sync>> =
        vec![Arc::new(gapfill::GapFillRule), Arc::new(asof::AsofPush)];
    rules.extend(Optimizer::new().rules);
    rules
}

/// The functions that stand for an operator.
pub(crate) fn calls() -> Vec<Arc<ScalarUDF>> {
    gapfill::calls()
}
