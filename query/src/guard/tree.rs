//! Limits and refusals that need the syntax tree.
//!
//! Owns: the count of relations and expressions after expansion. The planner puts a common table
//! expression in place of every use of its name, so thirty of them that each use the one before
//! twice are a billion nodes. Here each one is weighed once and its weight is added at every use.
//! Never: recurses by itself; the parser's limits bound the depth of what is visited.

use std::{collections::BTreeMap, ops::ControlFlow};

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, DataType, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments,
    GroupByExpr, ObjectName, ObjectNamePart, Query, Select, SetExpr, Statement, TableFactor, Value,
    Visit, Visitor,
};

use super::{over, refused};
use crate::error::QueryError;

/// Tables, subqueries and table functions after expansion.
const RELATIONS_MAX: usize = 64;
/// Expressions after expansion.
const EXPRESSIONS_MAX: usize = 50_000;
/// Expressions inside each other.
const DEPTH_MAX: usize = 600;
/// Grouping sets that GROUP BY unfolds to.
const GROUPING_SETS_MAX: usize = 128;
/// Elements of an array type of fixed size, all dimensions multiplied.
const ARRAY_ELEMENTS_MAX: u64 = 4096;
/// Third argument of `approx_percentile_cont`: it is allocated before the first row.
const CENTROIDS_MAX: u64 = 10_000;

/// Refuses a query over any limit or with a clause that is not allowed.
pub(super) fn check(query: &Query) -> Result<(), QueryError> {
    match query.visit(&mut Walk::default()) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(e) => Err(e),
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    relations: usize,
    expressions: usize,
}

impl Weight {
    fn add(&mut self, other: Self) {
        self.relations = self.relations.saturating_add(other.relations);
        self.expressions = self.expressions.saturating_add(other.expressions);
    }

    fn check(self) -> Result<(), QueryError> {
        if self.relations > RELATIONS_MAX {
            return Err(over(
                "tables, with those of common table expressions counted at each use",
                RELATIONS_MAX,
            ));
        }
        if self.expressions > EXPRESSIONS_MAX {
            return Err(over(
                "expressions, with those of common table expressions counted at each use",
                EXPRESSIONS_MAX,
            ));
        }
        Ok(())
    }
}

/// A query that is being visited.
#[derive(Default)]
struct Frame {
    /// The bodies of its WITH, by address: the visitor shows bodies without their names.
    bodies: Vec<(*const Query, String)>,
    /// Those already weighed.
    known: BTreeMap<String, Weight>,
    weight: Weight,
}

#[derive(Default)]
struct Walk {
    frames: Vec<Frame>,
    depth: usize,
}

impl Walk {
    fn add(&mut self, weight: Weight) -> ControlFlow<QueryError> {
        match self.frames.last_mut() {
            Some(frame) => {
                frame.weight.add(weight);
                flow(frame.weight.check())
            }
            None => flow(weight.check()),
        }
    }
}

fn flow(result: Result<(), QueryError>) -> ControlFlow<QueryError> {
    match result {
        Ok(()) => ControlFlow::Continue(()),
        Err(e) => ControlFlow::Break(e),
    }
}

/// A name as the planner compares it: folded unless quoted.
fn folded(value: &str, quoted: bool) -> String {
    if quoted { value.to_owned() } else { value.to_lowercase() }
}

impl Visitor for Walk {
    type Break = QueryError;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        flow(clauses(query))?;
        let with = query.with.iter().flat_map(|w| &w.cte_tables);
        let bodies = with
            .map(|cte| {
                let name = &cte.alias.name;
                let body: *const Query = cte.query.as_ref();
                (body, folded(&name.value, name.quote_style.is_some()))
            })
            .collect();
        self.frames.push(Frame { bodies, ..Frame::default() });
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        let Some(done) = self.frames.pop() else { return ControlFlow::Continue(()) };
        let named = self.frames.last_mut().and_then(|parent| {
            let at = parent.bodies.iter().position(|(body, _)| std::ptr::eq(*body, query))?;
            Some((parent.bodies.swap_remove(at).1, parent))
        });
        match named {
            Some((name, parent)) => {
                parent.known.insert(name, done.weight);
                ControlFlow::Continue(())
            }
            None => self.add(done.weight),
        }
    }

    fn pre_visit_relation(&mut self, name: &ObjectName) -> ControlFlow<QueryError> {
        let known = match name.0.as_slice() {
            [ObjectNamePart::Identifier(only)] => {
                let name = folded(&only.value, only.quote_style.is_some());
                self.frames.iter().rev().find_map(|f| f.known.get(&name).copied())
            }
            _ => None,
        };
        self.add(known.unwrap_or_default())?;
        self.add(Weight { relations: 1, expressions: 0 })
    }

    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<QueryError> {
        match factor {
            TableFactor::Table { .. }
            | TableFactor::Derived { .. }
            | TableFactor::NestedJoin { .. } => ControlFlow::Continue(()),
            TableFactor::Function { .. } => self.add(Weight { relations: 1, expressions: 0 }),
            other => ControlFlow::Break(refused(&other.to_string())),
        }
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<QueryError> {
        if select.into.is_some() {
            return ControlFlow::Break(refused("SELECT INTO"));
        }
        flow(grouping(&select.group_by))
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<QueryError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return ControlFlow::Break(over("expressions inside each other", DEPTH_MAX));
        }
        match expr {
            Expr::Cast { data_type, .. } => flow(elements(data_type).map(drop))?,
            Expr::Function(function) => flow(called(function))?,
            _ => {}
        }
        self.add(Weight { relations: 0, expressions: 1 })
    }

    fn post_visit_expr(&mut self, _expr: &Expr) -> ControlFlow<QueryError> {
        self.depth = self.depth.saturating_sub(1);
        ControlFlow::Continue(())
    }

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<QueryError> {
        ControlFlow::Break(refused(&statement.to_string()))
    }
}

fn clauses(query: &Query) -> Result<(), QueryError> {
    if !query.locks.is_empty() {
        return Err(refused("SELECT ... FOR UPDATE"));
    }
    if query.with.as_ref().is_some_and(|w| w.recursive) {
        return Err(refused("WITH RECURSIVE"));
    }
    if query.for_clause.is_some() || query.settings.is_some() || query.format_clause.is_some() {
        return Err(refused("FOR, SETTINGS and FORMAT"));
    }
    if !query.pipe_operators.is_empty() {
        return Err(refused("|> operators"));
    }
    match query.body.as_ref() {
        SetExpr::Insert(s) | SetExpr::Update(s) | SetExpr::Delete(s) | SetExpr::Merge(s) => {
            Err(refused(&s.to_string()))
        }
        _ => Ok(()),
    }
}

/// CUBE and its kin unfold to many groupings of every row.
fn grouping(group_by: &GroupByExpr) -> Result<(), QueryError> {
    let GroupByExpr::Expressions(expressions, modifiers) = group_by else { return Ok(()) };
    if !modifiers.is_empty() {
        return Err(refused("GROUP BY with modifiers"));
    }
    let mut sets = 1usize;
    for expression in expressions {
        let factor = match expression {
            Expr::Cube(of) => 1usize.checked_shl(of.len() as u32).unwrap_or(usize::MAX),
            Expr::Rollup(of) => of.len() + 1,
            Expr::GroupingSets(of) => of.len().max(1),
            _ => 1,
        };
        sets = sets.saturating_mul(factor);
    }
    if sets > GROUPING_SETS_MAX {
        return Err(over("grouping sets", GROUPING_SETS_MAX));
    }
    Ok(())
}

/// Elements of one value of the type. A null of a fixed size takes the room of all its elements.
fn elements(data_type: &DataType) -> Result<u64, QueryError> {
    let count = match data_type {
        DataType::Array(ArrayElemTypeDef::SquareBracket(inner, size)) => {
            elements(inner)?.saturating_mul(size.unwrap_or(1))
        }
        DataType::Array(
            ArrayElemTypeDef::AngleBracket(inner) | ArrayElemTypeDef::Parenthesis(inner),
        ) => elements(inner)?,
        _ => 1,
    };
    if count > ARRAY_ELEMENTS_MAX {
        return Err(over("elements in an array type", ARRAY_ELEMENTS_MAX as usize));
    }
    Ok(count)
}

/// Functions that the planner knows without the list of functions, and arguments that are memory.
fn called(function: &Function) -> Result<(), QueryError> {
    let Some(ObjectNamePart::Identifier(last)) = function.name.0.last() else { return Ok(()) };
    match last.value.to_lowercase().as_str() {
        "unnest" => Err(refused("unnest")),
        "approx_percentile_cont" => centroids(function, 2),
        "approx_percentile_cont_with_weight" => centroids(function, 3),
        _ => Ok(()),
    }
}

fn centroids(function: &Function, place: usize) -> Result<(), QueryError> {
    let FunctionArguments::List(list) = &function.args else { return Ok(()) };
    // WITHIN GROUP takes the first argument out of the list.
    let place = if function.within_group.is_empty() { place } else { place - 1 };
    let Some(argument) = list.args.get(place) else { return Ok(()) };
    let literal = match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(v))) => match &v.value {
            Value::Number(n, _) => n.to_string().parse::<u64>().ok(),
            _ => None,
        },
        _ => None,
    };
    if literal.is_none_or(|n| n > CENTROIDS_MAX) {
        return Err(over(
            "centroids in approx_percentile_cont, given as a whole number",
            CENTROIDS_MAX as usize,
        ));
    }
    Ok(())
}
