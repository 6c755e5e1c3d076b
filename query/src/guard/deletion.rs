//! The two statements that take something away, apart from all others: only the endpoint for
//! deletions asks for them.
//!
//! Owns: what of them is understood; anything else in them is refused, not ignored.

use datafusion::sql::{
    parser::{DFParserBuilder, Statement},
    sqlparser::{
        ast::{Delete, FromTable, ObjectName, ObjectType, Statement as Sql, TableFactor},
        dialect::PostgreSqlDialect,
    },
};

use super::{SQL_BYTES_MAX, over, tokens};
use crate::error::QueryError;

/// What is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Deletion {
    /// The database, if the statement names one.
    pub(crate) database: Option<String>,
    pub(crate) table: String,
    /// The condition as SQL; `None` drops the table.
    pub(crate) condition: Option<String>,
}

fn refused(why: &str) -> QueryError {
    QueryError::Invalid(format!(
        "{why}; deletions are `DELETE FROM table WHERE …` with a condition on tags and time, and `DROP TABLE table`"
    ))
}

/// Parses `DELETE FROM t WHERE …` or `DROP TABLE t`.
pub(crate) fn parse(sql: &str) -> Result<Deletion, QueryError> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(over("bytes of SQL", SQL_BYTES_MAX));
    }
    tokens::check(sql)?;
    let dialect = PostgreSqlDialect {};
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&dialect)
        .with_recursion_limit(tokens::DEPTH_MAX)
        .build()
        .and_then(|mut p| p.parse_statements())
        .map_err(QueryError::from)?;
    let first = statements.pop_front().ok_or_else(|| QueryError::Syntax("it is empty".into()))?;
    if !statements.is_empty() {
        return Err(refused("there is more than one statement"));
    }
    let Statement::Statement(sql) = first else { return Err(refused("this deletes nothing")) };
    match *sql {
        Sql::Delete(delete) => of_delete(delete),
        Sql::Drop { object_type: ObjectType::Table, names, if_exists: false, .. } => {
            let [name] = names.as_slice() else { return Err(refused("name one table")) };
            named(name, None)
        }
        _ => Err(refused("this deletes nothing")),
    }
}

fn of_delete(delete: Delete) -> Result<Deletion, QueryError> {
    let Delete { tables, from, using, selection, returning, order_by, limit, .. } = delete;
    let plain = tables.is_empty()
        && using.is_none()
        && returning.is_none()
        && order_by.is_empty()
        && limit.is_none();
    if !plain {
        return Err(refused("USING, RETURNING, ORDER BY and LIMIT are not offered"));
    }
    let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = from;
    let [one] = from.as_slice() else { return Err(refused("name one table")) };
    let TableFactor::Table { name, alias: None, args: None, .. } = &one.relation else {
        return Err(refused("name a table, without an alias"));
    };
    if !one.joins.is_empty() {
        return Err(refused("joins are not offered"));
    }
    let condition = selection.ok_or_else(|| refused("a DELETE needs a WHERE"))?;
    named(name, Some(condition.to_string()))
}

fn named(name: &ObjectName, condition: Option<String>) -> Result<Deletion, QueryError> {
    let fold = |part: &datafusion::sql::sqlparser::ast::ObjectNamePart| {
        let ident = part.as_ident()?;
        // As in a query: without quotes, case does not count.
        Some(match ident.quote_style {
            Some(_) => ident.value.clone(),
            None => ident.value.to_ascii_lowercase(),
        })
    };
    let parts: Option<Vec<String>> = name.0.iter().map(fold).collect();
    match parts.as_deref() {
        Some([table]) => Ok(Deletion { database: None, table: table.clone(), condition }),
        Some([database, table]) => {
            Ok(Deletion { database: Some(database.clone()), table: table.clone(), condition })
        }
        _ => Err(refused("name the table as `table` or `database.table`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, database: Option<&str>, table: &str, condition: Option<&str>) {
        let expected = Deletion {
            database: database.map(str::to_owned),
            table: table.to_owned(),
            condition: condition.map(str::to_owned),
        };
        assert_eq!(parse(sql).unwrap(), expected, "{sql}");
    }

    #[test]
    fn deletions_are_understood_whole() {
        check("DELETE FROM Cpu WHERE host = 'a'", None, "cpu", Some("host = 'a'"));
        check("delete from d.\"Cpu\" where time < $1;", Some("d"), "Cpu", Some("time < $1"));
        check("DROP TABLE cpu", None, "cpu", None);
        check("DROP TABLE d.cpu", Some("d"), "cpu", None);
    }

    #[test]
    fn whatever_is_not_understood_is_refused_and_not_ignored() {
        for sql in [
            "DELETE FROM cpu",
            "DELETE FROM cpu c WHERE c.host = 'a'",
            "DELETE FROM a, b WHERE x = 1",
            "DELETE FROM a USING b WHERE a.x = b.x",
            "DELETE FROM a WHERE x = 1 RETURNING x",
            "DELETE FROM a WHERE x = 1 LIMIT 3",
            "DROP TABLE a, b",
            "DROP TABLE IF EXISTS a",
            "DROP VIEW a",
            "DROP TABLE a.b.c",
            "SELECT 1",
            "DELETE FROM a WHERE x = 1; DROP TABLE a",
            "",
        ] {
            assert!(parse(sql).is_err(), "{sql}");
        }
    }
}
