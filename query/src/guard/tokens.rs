//! Limits that are counted over tokens, before the parser recurses.
//!
//! Owns: what counts as an operator. Everything that can make a tree deeper by one step without a
//! bracket (infix and postfix operators, casts, subscripts) is one, so that a flat text cannot
//! become a deep tree. Never: parses.

use datafusion::sql::sqlparser::{
    dialect::PostgreSqlDialect,
    keywords::Keyword,
    tokenizer::{Token, Tokenizer},
};

use super::over;
use crate::error::QueryError;

/// Tokens that are not white space.
const TOKENS_MAX: usize = 50_000;
/// Operators (AND, OR, arithmetic, comparison, concatenation, casts, subscripts).
const OPERATORS_MAX: usize = 500;
/// Nesting of parentheses, brackets and CASE; also the parser's own recursion limit.
pub(super) const DEPTH_MAX: usize = 48;
/// The keyword JOIN. All relations together are counted on the tree.
const JOINS_MAX: usize = 64;
/// UNION, INTERSECT, EXCEPT.
const SETS_MAX: usize = 100;
/// Bytes of one literal.
const LITERAL_BYTES_MAX: usize = 64 * 1024;

#[derive(Default)]
struct Counts {
    tokens: usize,
    operators: usize,
    depth: usize,
    joins: usize,
    sets: usize,
}

/// Refuses a text over any limit.
pub(super) fn check(sql: &str) -> Result<(), QueryError> {
    let dialect = PostgreSqlDialect {};
    let tokens =
        Tokenizer::new(&dialect, sql).tokenize().map_err(|e| QueryError::Syntax(e.to_string()))?;
    let mut counts = Counts::default();
    for token in &tokens {
        counts.take(token)?;
    }
    Ok(())
}

impl Counts {
    fn take(&mut self, token: &Token) -> Result<(), QueryError> {
        match token {
            Token::Whitespace(_) => return Ok(()),
            Token::LParen | Token::LBrace => self.depth += 1,
            Token::LBracket => {
                // A subscript nests the tree although it closes again.
                self.depth += 1;
                self.operators += 1;
            }
            Token::RParen | Token::RBracket | Token::RBrace => {
                self.depth = self.depth.saturating_sub(1);
            }
            Token::Word(word) => self.keyword(word.keyword),
            Token::SingleQuotedString(s)
            | Token::DoubleQuotedString(s)
            | Token::NationalStringLiteral(s)
            | Token::HexStringLiteral(s)
            | Token::EscapedStringLiteral(s)
            | Token::UnicodeStringLiteral(s) => literal(s)?,
            Token::DollarQuotedString(s) => literal(&s.value)?,
            Token::Number(..)
            | Token::Comma
            | Token::Period
            | Token::SemiColon
            | Token::Placeholder(_)
            | Token::EOF => {}
            // Whatever else a dialect has is an operator until shown to be none.
            _ => self.operators += 1,
        }
        self.tokens += 1;
        for (count, limit, what) in [
            (self.tokens, TOKENS_MAX, "tokens"),
            (self.depth, DEPTH_MAX, "levels of nesting"),
            (self.operators, OPERATORS_MAX, "operators"),
            (self.joins, JOINS_MAX, "joins"),
            (self.sets, SETS_MAX, "UNION, INTERSECT and EXCEPT"),
        ] {
            if count > limit {
                return Err(over(what, limit));
            }
        }
        Ok(())
    }

    fn keyword(&mut self, keyword: Keyword) {
        match keyword {
            Keyword::AND
            | Keyword::OR
            | Keyword::XOR
            | Keyword::NOT
            | Keyword::LIKE
            | Keyword::ILIKE
            | Keyword::SIMILAR
            | Keyword::RLIKE
            | Keyword::REGEXP
            | Keyword::IS
            | Keyword::NOTNULL
            | Keyword::IN
            | Keyword::BETWEEN
            | Keyword::COLLATE
            | Keyword::AT
            | Keyword::DIV
            | Keyword::OVERLAPS
            | Keyword::OPERATOR
            | Keyword::INTERVAL => self.operators += 1,
            Keyword::CASE => self.depth += 1,
            Keyword::END => self.depth = self.depth.saturating_sub(1),
            Keyword::JOIN => self.joins += 1,
            Keyword::UNION | Keyword::INTERSECT | Keyword::EXCEPT => self.sets += 1,
            _ => {}
        }
    }
}

fn literal(text: &str) -> Result<(), QueryError> {
    if text.len() > LITERAL_BYTES_MAX {
        return Err(over("bytes in one literal", LITERAL_BYTES_MAX));
    }
    Ok(())
}
