//! The logical node of an ASOF join.
//!
//! Owns: which columns come out, and which of them are read below. Invariant: expressions of one
//! side name columns of that side only, and both sides of a pair have one type.

use std::{cmp::Ordering, fmt, sync::Arc};

use datafusion::{
    common::{DFSchemaRef, plan_err},
    error::Result,
    logical_expr::{
        Expr, JoinType, LogicalPlan, Operator, UserDefinedLogicalNodeCore, build_join_schema,
    },
};

use crate::operator::gapfill::take_gates;

/// An expression of the left side and one of the right.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    pub(super) left: Expr,
    pub(super) right: Expr,
}

/// See the module head.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct AsofJoin {
    pub(super) left: Arc<LogicalPlan>,
    pub(super) right: Arc<LogicalPlan>,
    /// What has to be equal.
    pub(super) on: Vec<Pair>,
    /// What has to be near, and how left compares to right.
    pub(super) near: Pair,
    pub(super) op: Operator,
    /// Conditions without a column that every row has to pass afterwards.
    pub(super) gates: Vec<Expr>,
    pub(super) schema: DFSchemaRef,
}

impl PartialOrd for AsofJoin {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl AsofJoin {
    pub(super) fn try_new(
        left: LogicalPlan,
        right: LogicalPlan,
        on: Vec<Pair>,
        near: Pair,
        op: Operator,
    ) -> Result<Self> {
        let schema = build_join_schema(left.schema(), right.schema(), &JoinType::Left)?;
        let (left, right, schema) = (Arc::new(left), Arc::new(right), Arc::new(schema));
        Ok(Self { left, right, on, near, op, gates: Vec::new(), schema })
    }

    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.on.iter().chain([&self.near])
    }
}

impl UserDefinedLogicalNodeCore for AsofJoin {
    fn name(&self) -> &str {
        "AsofJoin"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.left, &self.right]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        let pairs = self.pairs().flat_map(|p| [p.left.clone(), p.right.clone()]);
        pairs.chain(self.gates.iter().cloned()).collect()
    }

    fn necessary_children_exprs(&self, output: &[usize]) -> Option<Vec<Vec<usize>>> {
        let width = self.left.schema().fields().len();
        let left = output.iter().copied().filter(|at| *at < width).collect();
        let right = output.iter().filter_map(|at| at.checked_sub(width)).collect();
        Some(vec![left, right])
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AsofJoin: {} {} {}", self.near.left, self.op, self.near.right)?;
        for pair in &self.on {
            write!(f, ", {} = {}", pair.left, pair.right)?;
        }
        Ok(())
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let Ok([left, right]) = <[LogicalPlan; 2]>::try_from(inputs) else {
            return plan_err!("an ASOF join has two inputs");
        };
        let mut exprs = exprs.into_iter();
        let mut pairs: Vec<Pair> = Vec::new();
        for _ in self.pairs() {
            let (Some(left), Some(right)) = (exprs.next(), exprs.next()) else {
                return plan_err!("an ASOF join compares two sides");
            };
            pairs.push(Pair { left, right });
        }
        let Some(near) = pairs.pop() else { return plan_err!("an ASOF join compares times") };
        let mut gates: Vec<Expr> = exprs.collect();
        // A condition without columns is passed down to both sides; once is enough.
        let left = take_gates(left, &mut gates);
        let right = take_gates(right, &mut Vec::new());
        let node = Self::try_new(left, right, pairs, near, self.op)?;
        Ok(Self { gates, ..node })
    }
}
