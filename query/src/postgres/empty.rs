//! Queries over what never has a row.
//!
//! Owns: one rule. A client asks for policies, triggers, publications and the like in SQL that only
//! PostgreSQL plans; where such a table stands in FROM so that no row of it means no row at all,
//! the answer is known: the query becomes one without rows and with the same columns.
//! Never: touches a query that reads any other table only, or one that groups, where no rows make
//! a row.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, Expr, GroupByExpr, Ident, JoinOperator, ObjectName, Query, Select, SelectItem,
    SetExpr, TableFactor, Value,
};

use super::{PG_CATALOG, spec};

/// Whether a name is that of a table without rows.
fn never_has_rows(name: &ObjectName) -> bool {
    let parts: Vec<&str> =
        name.0.iter().filter_map(|p| p.as_ident()).map(|i| i.value.as_str()).collect();
    match parts.as_slice() {
        [table] | [PG_CATALOG, table] => spec::is_empty(&table.to_ascii_lowercase()),
        _ => false,
    }
}

fn factor_is_empty(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::Table { name, args: None, .. } => never_has_rows(name),
        TableFactor::NestedJoin { table_with_joins, .. } => {
            factor_is_empty(&table_with_joins.relation)
        }
        _ => false,
    }
}

/// Whether the FROM has no row whatever the other tables have.
fn from_is_empty(select: &Select) -> bool {
    select.from.iter().any(|from| {
        let optional = |op: &JoinOperator| {
            matches!(
                op,
                JoinOperator::Right(_) | JoinOperator::RightOuter(_) | JoinOperator::FullOuter(_)
            )
        };
        let outer = from.joins.iter().any(|j| optional(&j.join_operator));
        let first = !outer && factor_is_empty(&from.relation);
        let inner = |op: &JoinOperator| {
            matches!(
                op,
                JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_)
            )
        };
        first
            || (!outer
                && from
                    .joins
                    .iter()
                    .any(|j| inner(&j.join_operator) && factor_is_empty(&j.relation)))
    })
}

/// Whether no rows make no rows: nothing groups or counts.
fn plain(select: &Select) -> bool {
    const GROUPING: [&str; 9] =
        ["count", "max", "min", "sum", "avg", "bool_or", "bool_and", "array_agg", "string_agg"];
    let grouped = match &select.group_by {
        GroupByExpr::Expressions(by, _) => !by.is_empty(),
        GroupByExpr::All(_) => true,
    };
    let counts = |expr: &Expr| {
        let Expr::Function(f) = expr else { return false };
        let last = f.name.0.last().and_then(|p| p.as_ident());
        last.is_some_and(|i| GROUPING.contains(&i.value.to_ascii_lowercase().as_str()))
    };
    let counting = select.projection.iter().any(|item| match item {
        SelectItem::UnnamedExpr(e) | SelectItem::ExprWithAlias { expr: e, .. } => counts(e),
        _ => false,
    });
    !grouped && !counting && select.having.is_none()
}

/// Whether the query has no rows, and no row is what it answers.
pub(super) fn has_no_rows(query: &Query) -> bool {
    let SetExpr::Select(select) = query.body.as_ref() else { return false };
    query.with.is_none() && plain(select) && from_is_empty(select)
}

/// Turns each part of a query that has no rows into one that says so.
pub(super) fn settle(query: &mut Query) {
    let mut settled = false;
    settle_body(&mut query.body, &mut settled);
    if settled {
        // What it sorts by may be a column that is not there any more.
        query.order_by = None;
    }
}

fn settle_body(body: &mut SetExpr, settled: &mut bool) {
    match body {
        SetExpr::Select(select) if plain(select) && from_is_empty(select) => {
            empty(select);
            *settled = true;
        }
        SetExpr::SetOperation { left, right, .. } => {
            settle_body(left, settled);
            settle_body(right, settled);
        }
        _ => {}
    }
}

pub(super) fn null() -> Expr {
    Expr::Value(Value::Null.with_empty_span())
}

fn empty(select: &mut Select) {
    for item in &mut select.projection {
        let alias = match item {
            SelectItem::UnnamedExpr(expr) => Ident::with_quote('"', name_of(expr)),
            SelectItem::ExprWithAlias { alias, .. } => alias.clone(),
            _ => Ident::with_quote('"', "?column?"),
        };
        *item = SelectItem::ExprWithAlias { expr: null(), alias };
    }
    unique(&mut select.projection);
    select.from.clear();
    select.distinct = None;
    let zero = || Box::new(Expr::Value(Value::Number("0".to_owned(), false).with_empty_span()));
    let one = Box::new(Expr::Value(Value::Number("1".to_owned(), false).with_empty_span()));
    select.selection = Some(Expr::BinaryOp { left: zero(), op: BinaryOperator::Eq, right: one });
}

/// Two columns of one name cannot be planned; PostgreSQL has them.
fn unique(projection: &mut [SelectItem]) {
    let mut seen = std::collections::BTreeSet::new();
    for item in projection {
        if let SelectItem::ExprWithAlias { alias, .. } = item {
            let mut n = 1;
            while !seen.insert(alias.value.clone()) {
                n += 1;
                alias.value = format!("{}_{n}", alias.value.trim_end_matches(char::is_numeric));
            }
        }
    }
}

/// The name that PostgreSQL gives to a column without one.
pub(super) fn name_of(expr: &Expr) -> String {
    match expr {
        Expr::Identifier(i) => i.value.clone(),
        Expr::CompoundIdentifier(parts) => {
            parts.last().map_or_else(String::new, |i| i.value.clone())
        }
        Expr::Cast { expr, .. } | Expr::Nested(expr) | Expr::Collate { expr, .. } => name_of(expr),
        Expr::Function(f) => {
            let last = f.name.0.last().and_then(|p| p.as_ident());
            last.map_or_else(|| "?column?".to_owned(), |i| i.value.to_ascii_lowercase())
        }
        Expr::Case { .. } => "case".to_owned(),
        Expr::Exists { .. } => "exists".to_owned(),
        _ => "?column?".to_owned(),
    }
}
