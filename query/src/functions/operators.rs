//! What is bounded although SQL does not call it by name.
//!
//! Owns: the rewrite of `||`, of functions that the planner takes from elsewhere than the list
//! (`[a, b]`, `overlay`, arrays on both sides of `||`), and the refusal of patterns that change
//! from row to row. Runs on every expression of a plan before any of them is evaluated.
//! Never: changes a result.

use std::sync::Arc;

use datafusion::{
    common::{DFSchema, tree_node::Transformed},
    config::ConfigOptions,
    error::{DataFusionError, Result},
    logical_expr::{
        BinaryExpr, Expr, ExprSchemable, Operator, ScalarUDF, binary::BinaryTypeCoercer,
        expr::ScalarFunction, expr_rewriter::FunctionRewrite,
    },
};

use super::{bound, bounded::Bounded, concat::ConcatOperator, growth::Growth, stop::Stop};
use crate::error::QueryError;

/// See the module head.
#[derive(Debug)]
pub(crate) struct Operators {
    stop: Stop,
    concat: Arc<ScalarUDF>,
}

impl Operators {
    pub(crate) fn new(stop: &Stop) -> Self {
        let concat = Arc::new(ScalarUDF::new_from_impl(ConcatOperator::default()));
        let concat = Bounded::new(concat, Growth::Sum, stop.clone());
        Self { stop: stop.clone(), concat: Arc::new(ScalarUDF::new_from_impl(concat)) }
    }

    fn function(&self, call: ScalarFunction) -> Transformed<Expr> {
        if call.func.inner().is::<Bounded>() {
            return Transformed::no(Expr::ScalarFunction(call));
        }
        let func = bound(&call.func, &self.stop);
        if Arc::ptr_eq(&func, &call.func) {
            return Transformed::no(Expr::ScalarFunction(call));
        }
        Transformed::yes(Expr::ScalarFunction(ScalarFunction { func, args: call.args }))
    }

    fn concat(&self, binary: BinaryExpr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let (left, right) = (binary.left.get_type(schema)?, binary.right.get_type(schema)?);
        let coercer = BinaryTypeCoercer::new(&left, &Operator::StringConcat, &right);
        let texts = coercer.get_result_type().is_ok_and(|t| t.is_string() || t.is_binary());
        if !texts {
            // The planner says better what is wrong.
            return Ok(Transformed::no(Expr::BinaryExpr(binary)));
        }
        Ok(Transformed::yes(Expr::ScalarFunction(ScalarFunction {
            func: Arc::clone(&self.concat),
            args: vec![*binary.left, *binary.right],
        })))
    }
}

/// A pattern is compiled once if it is known; compiling one for each row can take minutes.
fn known(pattern: &Expr) -> Result<()> {
    let bare = match pattern {
        Expr::Cast(cast) => cast.expr.as_ref(),
        Expr::Alias(alias) => alias.expr.as_ref(),
        other => other,
    };
    match bare {
        Expr::Literal(..) => Ok(()),
        _ => Err(DataFusionError::External(Box::new(QueryError::Invalid(
            "the pattern of ~ and SIMILAR TO must be a literal or a parameter".to_owned(),
        )))),
    }
}

impl FunctionRewrite for Operators {
    fn name(&self) -> &str {
        "bounds"
    }

    fn rewrite(
        &self,
        expr: Expr,
        schema: &DFSchema,
        _config: &ConfigOptions,
    ) -> Result<Transformed<Expr>> {
        match expr {
            Expr::ScalarFunction(call) => Ok(self.function(call)),
            Expr::BinaryExpr(binary) => match binary.op {
                Operator::StringConcat => self.concat(binary, schema),
                Operator::RegexMatch
                | Operator::RegexIMatch
                | Operator::RegexNotMatch
                | Operator::RegexNotIMatch => {
                    known(&binary.right)?;
                    Ok(Transformed::no(Expr::BinaryExpr(binary)))
                }
                _ => Ok(Transformed::no(Expr::BinaryExpr(binary))),
            },
            Expr::SimilarTo(like) => {
                known(&like.pattern)?;
                Ok(Transformed::no(Expr::SimilarTo(like)))
            }
            other => Ok(Transformed::no(other)),
        }
    }
}
