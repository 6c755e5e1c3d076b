//! What is refused before planning: size, depth and kind of a statement.
//!
//! Owns: the limits on SQL text and the list of statements that may run. Runs before the parser
//! (tokens) and before the planner (syntax tree), because 4 kB of flat SQL once aborted a process.
//! Never: trusts a later stage to refuse.

use datafusion::sql::{
    parser::{DFParserBuilder, Statement},
    sqlparser::{
        ast::{Query, SetExpr, Statement as Sql},
        dialect::PostgreSqlDialect,
        keywords::Keyword,
        tokenizer::{Token, Tokenizer},
    },
};

use crate::error::QueryError;

/// Bytes of SQL text.
const SQL_BYTES_MAX: usize = 256 * 1024;
/// Tokens that are not white space.
const TOKENS_MAX: usize = 50_000;
/// Operators (AND, OR, arithmetic, comparison, concatenation).
const OPERATORS_MAX: usize = 500;
/// Nesting of parentheses and brackets.
const DEPTH_MAX: usize = 48;
/// Joins and commas in FROM are counted as keywords JOIN here; cross joins by comma are bounded
/// by the operator and token limits and by time.
const JOINS_MAX: usize = 64;
/// UNION, INTERSECT, EXCEPT.
const SETS_MAX: usize = 100;
/// Bytes of one literal.
const LITERAL_BYTES_MAX: usize = 64 * 1024;

/// Parses one allowed statement.
pub(crate) fn parse(sql: &str) -> Result<Statement, QueryError> {
    if sql.len() > SQL_BYTES_MAX {
        return Err(QueryError::TooComplex(format!(
            "{} bytes of SQL, the limit is {SQL_BYTES_MAX}",
            sql.len()
        )));
    }
    check_tokens(sql)?;
    let dialect = PostgreSqlDialect {};
    let mut statements = DFParserBuilder::new(sql)
        .with_dialect(&dialect)
        .with_recursion_limit(DEPTH_MAX)
        .build()
        .and_then(|mut p| p.parse_statements())
        .map_err(QueryError::from)?;
    let statement =
        statements.pop_front().ok_or_else(|| QueryError::Syntax("it is empty".into()))?;
    if !statements.is_empty() {
        return Err(QueryError::NotAllowed("more than one statement".into()));
    }
    allow(&statement)?;
    Ok(statement)
}

fn check_tokens(sql: &str) -> Result<(), QueryError> {
    let dialect = PostgreSqlDialect {};
    let tokens =
        Tokenizer::new(&dialect, sql).tokenize().map_err(|e| QueryError::Syntax(e.to_string()))?;
    let (mut count, mut operators, mut depth, mut joins, mut sets) = (0, 0, 0usize, 0, 0);
    let over =
        |what: &str, limit: usize| Err(QueryError::TooComplex(format!("more than {limit} {what}")));
    for token in &tokens {
        match token {
            Token::Whitespace(_) => continue,
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::Mod
            | Token::Eq
            | Token::Neq
            | Token::Lt
            | Token::Gt
            | Token::LtEq
            | Token::GtEq
            | Token::StringConcat
            | Token::DoubleEq
            | Token::Pipe
            | Token::Ampersand
            | Token::Caret
            | Token::Tilde
            | Token::Colon
            | Token::DoubleColon => operators += 1,
            Token::Word(word) => match word.keyword {
                Keyword::AND | Keyword::OR | Keyword::NOT | Keyword::LIKE | Keyword::IS => {
                    operators += 1;
                }
                Keyword::CASE => depth += 1,
                Keyword::END => depth = depth.saturating_sub(1),
                Keyword::JOIN => joins += 1,
                Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => sets += 1,
                _ => {}
            },
            Token::SingleQuotedString(s)
            | Token::DoubleQuotedString(s)
            | Token::NationalStringLiteral(s)
            | Token::HexStringLiteral(s)
            | Token::EscapedStringLiteral(s)
                if s.len() > LITERAL_BYTES_MAX =>
            {
                return over("bytes in one literal", LITERAL_BYTES_MAX);
            }
            _ => {}
        }
        count += 1;
        if count > TOKENS_MAX {
            return over("tokens", TOKENS_MAX);
        }
        if depth > DEPTH_MAX {
            return over("levels of nesting", DEPTH_MAX);
        }
        if operators > OPERATORS_MAX {
            return over("operators", OPERATORS_MAX);
        }
        if joins > JOINS_MAX {
            return over("joins", JOINS_MAX);
        }
        if sets > SETS_MAX {
            return over("UNION, INTERSECT and EXCEPT", SETS_MAX);
        }
    }
    Ok(())
}

fn allow(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(sql) => allow_sql(sql),
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(sql) => match sql.as_ref() {
                Sql::Query(query) => allow_query(query),
                other => Err(refused(&other.to_string())),
            },
            other => Err(refused(&other.to_string())),
        },
        other => Err(refused(&other.to_string())),
    }
}

fn allow_sql(sql: &Sql) -> Result<(), QueryError> {
    match sql {
        Sql::Query(query) => allow_query(query),
        Sql::ShowTables { .. } | Sql::ShowColumns { .. } | Sql::ExplainTable { .. } => Ok(()),
        Sql::Explain { statement, .. } => match statement.as_ref() {
            Sql::Query(query) => allow_query(query),
            other => Err(refused(&other.to_string())),
        },
        other => Err(refused(&other.to_string())),
    }
}

fn allow_query(query: &Query) -> Result<(), QueryError> {
    if !query.locks.is_empty() {
        return Err(refused("SELECT ... FOR UPDATE"));
    }
    if let Some(with) = &query.with {
        if with.recursive {
            return Err(refused("WITH RECURSIVE"));
        }
        for cte in &with.cte_tables {
            allow_query(&cte.query)?;
        }
    }
    allow_body(&query.body)
}

fn allow_body(body: &SetExpr) -> Result<(), QueryError> {
    match body {
        SetExpr::Select(select) if select.into.is_some() => Err(refused("SELECT INTO")),
        SetExpr::Select(_) | SetExpr::Values(_) | SetExpr::Table(_) => Ok(()),
        SetExpr::Query(query) => allow_query(query),
        SetExpr::SetOperation { left, right, .. } => {
            allow_body(left)?;
            allow_body(right)
        }
        other => Err(refused(&other.to_string())),
    }
}

/// The first words of what was refused.
fn refused(text: &str) -> QueryError {
    let words: Vec<&str> = text.split_whitespace().take(3).collect();
    QueryError::NotAllowed(format!("{} ...", words.join(" ").chars().take(60).collect::<String>()))
}
