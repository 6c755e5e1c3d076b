//! `ASOF JOIN`: to each row of the left side the one row of the right side that is nearest in time.
//!
//! Owns: Snowflake's syntax, `a ASOF JOIN b MATCH_CONDITION (a.time >= b.time) ON a.host = b.host`,
//! and the operator. Every row of the left side comes out once, with nulls where nothing matches.
//! Never: matches a null; holds a side as a whole (the sort beneath it does, in the query's memory).

mod exec;
mod node;
mod push;
mod syntax;

pub(crate) use self::syntax::{AsofSyntax, nested};
pub(super) use self::{exec::AsofPlanner, push::AsofPush};

#[cfg(test)]
mod tests;
