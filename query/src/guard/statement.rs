//! Which statements may run.
//!
//! Owns: the list, which names what is allowed and nothing else. Never: lets an EXPLAIN carry a
//! statement that could not run by itself.

use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{Query, Statement as Sql},
};

use super::{refused, tree};
use crate::error::QueryError;

/// Refuses what is not on the list.
pub(super) fn allow(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(sql) => match sql.as_ref() {
            Sql::ShowTables { .. } | Sql::ShowColumns { .. } | Sql::ExplainTable { .. } => Ok(()),
            Sql::Explain { statement, .. } => tree::check(query_of(statement)?),
            other => tree::check(query_of(other)?),
        },
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(sql) => tree::check(query_of(sql)?),
            other => Err(refused(&other.to_string())),
        },
        other => Err(refused(&other.to_string())),
    }
}

fn query_of(sql: &Sql) -> Result<&Query, QueryError> {
    match sql {
        Sql::Query(query) => Ok(query),
        other => Err(refused(&other.to_string())),
    }
}
