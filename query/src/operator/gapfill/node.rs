//! The logical node: what is filled, between which buckets.
//!
//! Owns: what the optimizer may do with it: pass conditions on the columns of a group below it, and
//! nothing else. DataFusion also passes down conditions without any column, which must hold for
//! made rows as well; they are kept here as gates. Invariant: columns are those of the input, in
//! its order; what can be missing in a made row can be null.

use std::{cmp::Ordering, fmt, sync::Arc};

use datafusion::{
    common::{DFSchema, DFSchemaRef, plan_err},
    error::Result,
    logical_expr::{
        Expr, LogicalPlan, UserDefinedLogicalNodeCore,
        utils::{conjunction, split_conjunction_owned},
    },
};

use super::buckets::Buckets;

/// What a column holds in a row that is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fill {
    /// The group's own value.
    Key,
    /// The bucket.
    Time,
    /// Nothing.
    Null,
    /// The last value before that is not null.
    Previous,
    /// A line from the value before to the value after.
    Linear,
}

/// See the module head.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct GapFill {
    pub(super) input: Arc<LogicalPlan>,
    /// For each column.
    pub(super) fills: Arc<[Fill]>,
    /// None if no time can pass the bounds.
    pub(super) buckets: Option<Buckets>,
    /// Conditions without a column that every row has to pass afterwards.
    pub(super) gates: Vec<Expr>,
    schema: DFSchemaRef,
}

/// Takes conditions without a column off the top of an input.
pub(in crate::operator) fn take_gates(input: LogicalPlan, gates: &mut Vec<Expr>) -> LogicalPlan {
    let LogicalPlan::Filter(mut filter) = input else { return input };
    let conditions = split_conjunction_owned(filter.predicate.clone());
    let (own, free): (Vec<Expr>, Vec<Expr>) =
        conditions.into_iter().partition(|c| !c.column_refs().is_empty());
    gates.extend(free);
    match conjunction(own) {
        Some(predicate) => {
            filter.predicate = predicate;
            LogicalPlan::Filter(filter)
        }
        None => Arc::unwrap_or_clone(filter.input),
    }
}

impl PartialOrd for GapFill {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (self == other).then_some(Ordering::Equal)
    }
}

impl GapFill {
    pub(super) fn try_new(
        input: Arc<LogicalPlan>,
        fills: Arc<[Fill]>,
        buckets: Option<Buckets>,
    ) -> Result<Self> {
        if input.schema().fields().len() != fills.len() {
            return plan_err!("gap filling has {} fills for other columns", fills.len());
        }
        let columns = input.schema().iter().zip(fills.iter()).map(|((table, field), fill)| {
            let missing = matches!(fill, Fill::Null | Fill::Previous | Fill::Linear);
            let field = if missing {
                Arc::new(field.as_ref().clone().with_nullable(true))
            } else {
                Arc::clone(field)
            };
            (table.cloned(), field)
        });
        let schema =
            DFSchema::new_with_metadata(columns.collect(), input.schema().metadata().clone())?;
        Ok(Self { input, fills, buckets, gates: Vec::new(), schema: Arc::new(schema) })
    }
}

impl UserDefinedLogicalNodeCore for GapFill {
    fn name(&self) -> &str {
        "GapFill"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }

    fn expressions(&self) -> Vec<Expr> {
        self.gates.clone()
    }

    #[expect(clippy::disallowed_types, reason = "the trait asks for it")]
    fn prevent_predicate_push_down_columns(&self) -> std::collections::HashSet<String> {
        let columns = self.schema.fields().iter().zip(self.fills.iter());
        columns.filter(|(_, fill)| **fill != Fill::Key).map(|(f, _)| f.name().clone()).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GapFill: buckets={}", self.buckets.map_or(0, |b| b.count()))?;
        for (field, fill) in self.schema.fields().iter().zip(self.fills.iter()) {
            match fill {
                Fill::Previous | Fill::Linear => write!(f, ", {}", field.name())?,
                Fill::Key | Fill::Time | Fill::Null => {}
            }
        }
        Ok(())
    }

    fn with_exprs_and_inputs(
        &self,
        mut gates: Vec<Expr>,
        inputs: Vec<LogicalPlan>,
    ) -> Result<Self> {
        match <[LogicalPlan; 1]>::try_from(inputs) {
            Ok([input]) => {
                let input = Arc::new(take_gates(input, &mut gates));
                let node = Self::try_new(input, Arc::clone(&self.fills), self.buckets)?;
                Ok(Self { gates, ..node })
            }
            Err(_) => plan_err!("gap filling has one input"),
        }
    }
}
