//! What is refused before planning: size, depth and kind of a statement.
//!
//! Owns: the order of the checks. Text size, then tokens (before the recursive parser), then the
//! kind of statement, then its syntax tree with every common table expression counted as often as
//! it will be expanded. 4 kB of flat SQL once aborted a process, and thirty chained expressions of
//! 40 bytes each plan for ever, so both are counted here, where counting is cheap.
//! Never: trusts a later stage to refuse.

pub(crate) mod deletion;
mod dialect;
mod statement;
mod tokens;
mod tree;

use datafusion::sql::parser::{DFParserBuilder, Statement};

use crate::{error::QueryError, operator};

/// Bytes of SQL text.
pub(crate) const SQL_BYTES_MAX: usize = 256 * 1024;

/// Parses one allowed statement.
pub(crate) fn parse(sql: &str) -> Result<Statement, QueryError> {
    parse_with(sql, |_| {})
}

/// The same with a change between parsing and weighing: what is weighed is what comes of it.
pub(crate) fn parse_with(
    sql: &str,
    change: impl FnOnce(&mut Statement),
) -> Result<Statement, QueryError> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(over("bytes of SQL", SQL_BYTES_MAX));
    }
    tokens::check(sql)?;
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&dialect::Postgres)
        .with_recursion_limit(tokens::DEPTH_MAX)
        .build()
        .and_then(|mut p| p.parse_statements())
        .map_err(QueryError::from)?;
    let mut statement =
        statements.pop_front().ok_or_else(|| QueryError::Syntax("it is empty".into()))?;
    if !statements.is_empty() {
        return Err(QueryError::NotAllowed("more than one statement".into()));
    }
    change(&mut statement);
    statement::allow(&statement)?;
    // Only now: what was weighed is what was written.
    operator::nested(&mut statement);
    Ok(statement)
}

/// The refusal of a count over its limit.
fn over(what: &str, limit: usize) -> QueryError {
    QueryError::TooComplex(format!("more than {limit} {what}"))
}

/// The refusal of a statement or clause; says its first words only.
fn refused(text: &str) -> QueryError {
    let words: Vec<&str> = text.split_whitespace().take(3).collect();
    QueryError::NotAllowed(words.join(" ").chars().take(60).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(sql: &str, expected: &str) {
        let shown: String = sql.chars().take(100).collect();
        let got = parse(sql);
        let detail = got.as_ref().map_or_else(ToString::to_string, |_| String::new());
        assert_eq!(got.map_or_else(|e| e.code().0, |_| "ok"), expected, "{shown}: {detail}");
    }

    #[test]
    fn statements_that_only_read_are_allowed() {
        for sql in [
            "SELECT 1",
            "select * from t where a = 1 order by b limit 3",
            "WITH a AS (SELECT 1 AS x) SELECT * FROM a",
            "VALUES (1), (2)",
            "(SELECT 1) UNION ALL (SELECT 2)",
            "EXPLAIN SELECT 1",
            "EXPLAIN ANALYZE SELECT 1",
            "SHOW TABLES",
            "SHOW COLUMNS FROM t",
            "DESCRIBE t",
            "SELECT count(*) FROM a JOIN b ON a.x = b.x",
            "SELECT 1;",
        ] {
            check(sql, "ok");
        }
    }

    #[test]
    fn statements_that_change_or_reach_outside_are_named_and_refused() {
        for sql in [
            "INSERT INTO t VALUES (1)",
            "UPDATE t SET a = 1",
            "DELETE FROM t",
            "DROP TABLE t",
            "SET a = 1",
            "COPY t TO 'x'",
            "EXPLAIN ANALYZE COPY t TO 'x'",
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION 'x'",
            "SELECT 1; SELECT 2",
            "SELECT * INTO u FROM t",
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM (SELECT * FROM t FOR SHARE) s",
            "WITH RECURSIVE r AS (SELECT 1 UNION ALL SELECT * FROM r) SELECT * FROM r",
            "SELECT (WITH RECURSIVE r AS (SELECT 1) SELECT * FROM r)",
            "SELECT * FROM unnest([1])",
            "SELECT unnest([1])",
        ] {
            check(sql, "sql_not_allowed");
        }
    }

    #[test]
    fn every_limit_lets_its_own_number_pass_and_the_next_one_not() {
        let sum = |n: usize| format!("SELECT {}1", "1 + ".repeat(n));
        check(&sum(500), "ok");
        check(&sum(501), "sql_too_complex");
        let nested = |n: usize| format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n));
        check(&nested(20), "ok");
        check(&nested(49), "sql_too_complex");
        let unions = |n: usize| format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n));
        check(&unions(40), "ok");
        check(&unions(101), "sql_too_complex");
        let comma = |n: usize| format!("SELECT 1 FROM t{}", ", t".repeat(n - 1));
        check(&comma(64), "ok");
        check(&comma(65), "sql_too_complex");
        let text = |n: usize| format!("SELECT '{}'", "x".repeat(n));
        check(&text(64 * 1024), "ok");
        check(&text(64 * 1024 + 1), "sql_too_complex");
        check(&format!("SELECT 1 {}", " ".repeat(SQL_BYTES_MAX)), "sql_too_complex");
        check("SELECT a, count(*) FROM t GROUP BY CUBE (a, b, c, d, e, f, g)", "ok");
        check(
            "SELECT a, count(*) FROM t GROUP BY CUBE (a, b, c, d, e, f, g, h)",
            "sql_too_complex",
        );
    }

    #[test]
    fn chains_that_nest_without_brackets_are_counted_too() {
        for link in ["::int", " IN (1)", "[1]", " IS NULL", " COLLATE c", " AT TIME ZONE 'UTC'"] {
            check(&format!("SELECT a{} FROM t", link.repeat(600)), "sql_too_complex");
        }
        check(&format!("SELECT {} a FROM t", "NOT ".repeat(600)), "sql_too_complex");
        check(&format!("SELECT {} 1", "- ".repeat(600)), "sql_too_complex");
    }

    #[test]
    fn a_common_table_expression_counts_as_often_as_it_is_used() {
        let doubling = |levels: usize| {
            let mut sql = "WITH c0 AS (SELECT 1 AS x)".to_owned();
            for n in 1..=levels {
                sql.push_str(&format!(", c{n} AS (SELECT a.x FROM c{0} a, c{0} b)", n - 1));
            }
            format!("{sql} SELECT * FROM c{levels}")
        };
        check(&doubling(4), "ok");
        check(&doubling(6), "sql_too_complex");
        check(&doubling(60), "sql_too_complex");
        // The inner name hides the outer one, whatever its case.
        check("WITH A AS (SELECT 1) SELECT * FROM (WITH a AS (SELECT 2) SELECT * FROM A) s", "ok");
    }

    #[test]
    fn whatever_nests_is_parsed_in_time() {
        for (open, close) in [
            ("lower(", ")"),
            ("concat('a', ", ")"),
            ("(", ")"),
            ("(1, ", ")"),
            ("[", "]"),
            ("CASE WHEN true THEN ", " END"),
            ("(SELECT ", ")"),
            ("CAST(", " AS TEXT)"),
            ("coalesce((", "))"),
            ("trim(BOTH ", ")"),
            ("substring(", " FROM 1)"),
            ("position(", " IN 'a')"),
            ("extract(epoch FROM ", ")"),
            ("array_agg(DISTINCT ", " ORDER BY 1)"),
            ("NOT EXISTS (SELECT ", ")"),
            ("a IN (", ")"),
            ("x[", "]"),
            ("{'a': ", "}"),
            ("f(a => ", ")"),
            ("INTERVAL (", ")"),
        ] {
            let sql = format!("SELECT {}1{}", open.repeat(40), close.repeat(40));
            // Any answer will do; none would be a statement that parses for ever.
            drop(parse(&sql));
            let from = format!("SELECT 1 FROM {}t{}", open.repeat(40), close.repeat(40));
            drop(parse(&from));
        }
    }

    #[test]
    fn arrays_of_a_fixed_size_are_bounded_however_they_are_nested() {
        check("SELECT CAST(NULL AS INT[16])", "ok");
        check("SELECT CAST(NULL AS INT[2000000000])", "sql_too_complex");
        check("SELECT CAST(NULL AS INT[1000][1000])", "sql_too_complex");
        check("SELECT TRY_CAST(NULL AS INT[5000])", "sql_too_complex");
    }

    #[test]
    fn the_refusal_says_what_and_where_the_limit_is() {
        let e = parse(&format!("SELECT {}1", "1 + ".repeat(501))).unwrap_err();
        assert_eq!(e.to_string(), "the query is too large: more than 500 operators");
        let e = parse("DROP TABLE cpu CASCADE").unwrap_err();
        assert!(e.to_string().starts_with("this statement is not allowed: DROP TABLE cpu;"), "{e}");
    }
}
