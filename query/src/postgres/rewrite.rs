//! PostgreSQL's own names, operators and casts, as the rest of the engine has them.
//!
//! Owns: the walk over the tree. Never: changes a statement that uses none of them.

use std::ops::ControlFlow;

use datafusion::sql::{
    parser::Statement,
    sqlparser::ast::{
        Array, BinaryOperator, DataType, Expr, Function, FunctionArguments, Ident, ObjectName,
        ObjectNamePart, Query, Select, SelectItem, VisitMut, VisitorMut,
    },
};

use super::{
    PG_CATALOG,
    catalog::Facts,
    empty,
    functions::{self, cast, text, truth},
    spec,
};

/// See the module head.
pub(super) fn rewrite(statement: &mut Statement, facts: &Facts) {
    let sql = match statement {
        Statement::Statement(sql) => sql,
        Statement::Explain(explain) => return rewrite(&mut explain.statement, facts),
        _ => return,
    };
    // Nothing breaks the walk off.
    let ControlFlow::Continue(()) = sql.visit(&mut Walk { facts });
}

struct Walk<'a> {
    facts: &'a Facts,
}

fn idents(name: &ObjectName) -> Option<Vec<&Ident>> {
    name.0.iter().map(ObjectNamePart::as_ident).collect()
}

/// A name as the planner compares it.
fn folded(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// The last part of a name that stands alone or in `pg_catalog`.
fn own_name(name: &ObjectName) -> Option<String> {
    match idents(name)?.as_slice() {
        [only] => Some(folded(only)),
        [schema, last] if folded(schema) == PG_CATALOG => Some(folded(last)),
        _ => None,
    }
}

impl VisitorMut for Walk<'_> {
    type Break = std::convert::Infallible;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        empty::settle(query);
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut Select) -> ControlFlow<Self::Break> {
        let mut taken: Vec<String> = Vec::new();
        for item in &mut select.projection {
            let SelectItem::UnnamedExpr(expr) = item else { continue };
            let foreign = match expr {
                Expr::Function(f) => own_name(&f.name)
                    .is_some_and(|n| functions::replaced(f, &n, self.facts).is_some()),
                Expr::Cast { data_type, .. } => named_type(data_type).is_some(),
                Expr::Subquery(query) => empty::has_no_rows(query),
                Expr::Identifier(i) => is_current_schema(i),
                _ => false,
            };
            // What takes its place would be named after itself.
            let name = empty::name_of(expr);
            if foreign && !taken.contains(&name) {
                taken.push(name.clone());
                let expr = std::mem::replace(expr, empty::null());
                *item = SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, name: &mut ObjectName) -> ControlFlow<Self::Break> {
        let Some(parts) = idents(name) else { return ControlFlow::Continue(()) };
        let parts: Vec<Ident> = parts.into_iter().cloned().collect();
        let next = match parts.as_slice() {
            // PostgreSQL looks there first.
            [only]
                if spec::is_catalog_table(&folded(only)) && !self.facts.has_table(&only.value) =>
            {
                Some(vec![Ident::new(PG_CATALOG), only.clone()])
            }
            // The connection's own database in front of its schema.
            [catalog, schema, table] if folded(catalog) == self.facts.database => {
                Some(vec![schema.clone(), table.clone()])
            }
            _ => None,
        };
        if let Some(next) = next {
            *name = ObjectName::from(next);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        // Before the walk goes into what is not planned at all.
        let next = match expr {
            Expr::Subquery(query) if empty::has_no_rows(query) => Some(empty::null()),
            Expr::Exists { subquery, negated } if empty::has_no_rows(subquery) => {
                Some(truth(*negated))
            }
            Expr::Function(f) => match &f.args {
                FunctionArguments::Subquery(query) if empty::has_no_rows(query) => {
                    Some(cast(empty::null(), DataType::Text))
                }
                _ => None,
            },
            // psql adds the options of a table's overflow, which no table has.
            Expr::BinaryOp { left, op: BinaryOperator::StringConcat, right }
                if is_array_of_unnested(right) =>
            {
                Some(left.as_ref().clone())
            }
            // "one of the schemas that are searched", as Grafana asks it.
            Expr::InSubquery { expr, subquery, negated }
                if subquery.to_string().contains("current_setting('search_path')") =>
            {
                let list = vec![text(&self.facts.database)];
                Some(Expr::InList { expr: expr.clone(), list, negated: *negated })
            }
            _ => None,
        };
        if let Some(next) = next {
            *expr = next;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Self::Break> {
        if let Some(next) = self.replaced(expr) {
            *expr = next;
        }
        ControlFlow::Continue(())
    }
}

impl Walk<'_> {
    fn replaced(&self, expr: &mut Expr) -> Option<Expr> {
        match expr {
            Expr::Collate { expr, collation } => {
                let name = own_name(collation)?;
                ["default", "c", "posix"]
                    .contains(&name.to_lowercase().as_str())
                    .then(|| expr.as_ref().clone())
            }
            Expr::BinaryOp { op, .. } => {
                if let BinaryOperator::PGCustomBinaryOperator(parts) = op
                    && let Some(plain) = operator(parts)
                {
                    *op = plain;
                }
                None
            }
            Expr::Function(function) => {
                let name = own_name(&function.name)?;
                let next = functions::replaced(function, &name, self.facts);
                if next.is_none() && function.name.0.len() == 2 {
                    function.name = ObjectName::from(vec![Ident::new(name)]);
                }
                next
            }
            Expr::Cast { expr: of, data_type, .. } => match named_type(data_type)? {
                Named::Plain(plain) => {
                    *data_type = plain;
                    None
                }
                Named::Thing(to) => Some(functions::named(of, to, self.facts)),
            },
            // The one of these words that the parser takes for a column.
            Expr::Identifier(i) if is_current_schema(i) => Some(text(&self.facts.database)),
            Expr::AnyOp { left, compare_op: BinaryOperator::Eq, right, .. } => {
                Some(any_of(left, right)?)
            }
            _ => None,
        }
    }
}

fn is_array_of_unnested(expr: &Expr) -> bool {
    let Expr::Function(Function { name, args: FunctionArguments::Subquery(query), .. }) = expr
    else {
        return false;
    };
    own_name(name).is_some_and(|n| n == "array") && query.to_string().contains("unnest(")
}

fn is_current_schema(ident: &Ident) -> bool {
    ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("current_schema")
}

/// `x = ANY (ARRAY[...])` and `x = ANY ('{...}')`.
fn any_of(left: &Expr, right: &Expr) -> Option<Expr> {
    let list = match right {
        Expr::Nested(inner) => return any_of(left, inner),
        Expr::Cast { expr, .. } => return any_of(left, expr),
        Expr::Array(Array { elem, .. }) => elem.clone(),
        other => {
            let list = functions::literal(other)?.strip_prefix('{')?.strip_suffix('}')?;
            list.split(',').filter(|e| !e.is_empty()).map(|e| text(e.trim_matches('"'))).collect()
        }
    };
    let expr = Box::new(left.clone());
    if list.is_empty() {
        return Some(truth(false));
    }
    Some(Expr::InList { expr, list, negated: false })
}

/// `OPERATOR(pg_catalog.~)` and its kin.
fn operator(parts: &[String]) -> Option<BinaryOperator> {
    use BinaryOperator as Op;
    Some(match parts.last()?.as_str() {
        "~" => Op::PGRegexMatch,
        "~*" => Op::PGRegexIMatch,
        "!~" => Op::PGRegexNotMatch,
        "!~*" => Op::PGRegexNotIMatch,
        "~~" => Op::PGLikeMatch,
        "!~~" => Op::PGNotLikeMatch,
        "=" => Op::Eq,
        "<>" | "!=" => Op::NotEq,
        "<" => Op::Lt,
        "<=" => Op::LtEq,
        ">" => Op::Gt,
        ">=" => Op::GtEq,
        _ => return None,
    })
}

/// A type that only PostgreSQL has.
enum Named {
    /// Another name for one that is here.
    Plain(DataType),
    /// The name of a table, type or the like.
    Thing(&'static str),
}

fn named_type(data_type: &DataType) -> Option<Named> {
    let name = match data_type {
        DataType::Regclass => return Some(Named::Thing("regclass")),
        DataType::Custom(name, _) => own_name(name)?,
        _ => return None,
    };
    Some(match name.as_str() {
        "text" | "name" | "varchar" | "bpchar" | "char" | "citext" | "json" | "jsonb" | "uuid"
        | "int2vector" | "oidvector" | "xid" | "aclitem" => Named::Plain(DataType::Text),
        "oid" | "int8" | "bigint" => Named::Plain(DataType::BigInt(None)),
        "int4" | "int" | "integer" => Named::Plain(DataType::Integer(None)),
        "int2" | "smallint" => Named::Plain(DataType::SmallInt(None)),
        "bool" | "boolean" => Named::Plain(DataType::Boolean),
        "float8" => {
            Named::Plain(DataType::Double(datafusion::sql::sqlparser::ast::ExactNumberInfo::None))
        }
        "regclass" => Named::Thing("regclass"),
        "regtype" => Named::Thing("regtype"),
        "regnamespace" => Named::Thing("regnamespace"),
        "regproc" | "regprocedure" => Named::Thing("regproc"),
        "regrole" => Named::Thing("regrole"),
        _ => return None,
    })
}
