//! Functions that tell about the server, put in place as values or plain SQL.
//!
//! Owns: what each one becomes. None is registered, so none needs a bound of its own: what stands
//! in the statement afterwards is weighed by the guards. Never: repeats an argument that is more
//! than a name, which would let a nest of them grow without limit.

use datafusion::sql::sqlparser::ast::{
    BinaryOperator, CaseWhen, CastKind, DataType, Expr, Function, FunctionArg, FunctionArgExpr,
    FunctionArgumentList, FunctionArguments, Ident, ObjectName, Value,
    helpers::attached_token::AttachedToken,
};

use super::{
    SERVER_VERSION,
    catalog::{FOREIGN, Facts},
    empty::null,
    types,
};

pub(super) fn text(value: &str) -> Expr {
    Expr::Value(Value::SingleQuotedString(value.to_owned()).with_empty_span())
}

pub(super) fn number(value: i64) -> Expr {
    Expr::Value(Value::Number(value.to_string(), false).with_empty_span())
}

pub(super) fn truth(value: bool) -> Expr {
    Expr::Value(Value::Boolean(value).with_empty_span())
}

pub(super) fn cast(expr: Expr, data_type: DataType) -> Expr {
    let expr = Box::new(expr);
    Expr::Cast { kind: CastKind::DoubleColon, expr, data_type, array: false, format: None }
}

fn null_text() -> Expr {
    cast(null(), DataType::Text)
}

fn binary(left: Expr, op: BinaryOperator, right: Expr) -> Expr {
    let both = Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) };
    Expr::Nested(Box::new(both))
}

/// A call of one of the functions that are there.
fn call(name: &str, args: Vec<Expr>) -> Expr {
    let args = args.into_iter().map(|a| FunctionArg::Unnamed(FunctionArgExpr::Expr(a))).collect();
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args,
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

fn case(operand: Option<Expr>, when: Vec<(Expr, Expr)>, otherwise: Expr) -> Expr {
    Expr::Case {
        case_token: AttachedToken::empty(),
        end_token: AttachedToken::empty(),
        operand: operand.map(Box::new),
        conditions: when
            .into_iter()
            .map(|(condition, result)| CaseWhen { condition, result })
            .collect(),
        else_result: Some(Box::new(otherwise)),
    }
}

/// A literal's text.
pub(super) fn literal(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Value(v) => match &v.value {
            Value::SingleQuotedString(s) | Value::EscapedStringLiteral(s) => Some(s),
            _ => None,
        },
        Expr::Nested(e) => literal(e),
        Expr::Cast { expr, .. } => literal(expr),
        _ => None,
    }
}

fn repeatable(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Value(_))
}

/// `quote_ident` of a name: quoted unless it need not be.
fn quote_ident(of: &Expr) -> Option<Expr> {
    if !repeatable(of) {
        return None;
    }
    let fine = call("regexp_like", vec![of.clone(), text("^[a-z_][a-z0-9_$]*$")]);
    let doubled = call("replace", vec![of.clone(), text("\""), text("\"\"")]);
    let quoted = call("concat", vec![text("\""), doubled, text("\"")]);
    Some(case(None, vec![(fine, of.clone())], quoted))
}

/// The long name of a type by its number.
fn format_type(oid: Expr) -> Expr {
    let names = types::all().map(|t| (number(i64::from(t.oid)), text(t.long))).collect();
    case(Some(oid), names, text("???"))
}

fn args_of(function: &Function) -> Option<Vec<Expr>> {
    match &function.args {
        FunctionArguments::None => Some(Vec::new()),
        FunctionArguments::Subquery(_) => None,
        FunctionArguments::List(list) => list
            .args
            .iter()
            .map(|a| match a {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(e)) => Some(e.clone()),
                _ => None,
            })
            .collect(),
    }
}

/// What a call becomes; `None` if it stays.
pub(super) fn replaced(function: &Function, name: &str, facts: &Facts) -> Option<Expr> {
    let args = args_of(function)?;
    let first = args.first();
    Some(match (name, args.len()) {
        ("version", 0) => {
            let own = env!("CARGO_PKG_VERSION");
            text(&format!("PostgreSQL {SERVER_VERSION} (Millrace {own})"))
        }
        ("current_database" | "current_catalog" | "current_schema", 0) => text(&facts.database),
        ("current_user" | "session_user" | "user" | "current_role", 0) => text(&facts.caller.user),
        ("current_schemas", 1) => call("make_array", vec![text(&facts.database)]),
        ("pg_backend_pid", 0) => number(i64::from(facts.caller.pid)),
        ("pg_is_in_recovery" | "pg_is_wal_replay_paused", 0) => truth(false),
        ("txid_current" | "pg_postmaster_start_time", 0) => null(),
        ("inet_server_addr" | "inet_client_addr", 0) => null_text(),
        ("pg_my_temp_schema", 0) => number(0),
        ("current_setting", 1 | 2) => match facts.setting(literal(first?)?) {
            Some(value) => text(&value),
            None => null_text(),
        },
        ("set_config", 3) => args.get(1)?.clone(),
        ("pg_get_userbyid", 1) => text(&facts.caller.user),
        ("pg_encoding_to_char", 1) => text("UTF8"),
        ("pg_table_is_visible", 1) => binary(first?.clone(), BinaryOperator::Lt, number(FOREIGN)),
        ("pg_type_is_visible" | "pg_function_is_visible" | "pg_is_other_temp_schema", 1) => {
            truth(name != "pg_is_other_temp_schema")
        }
        ("format_type", 2) => format_type(first?.clone()),
        ("quote_ident", 1) => quote_ident(first?)?,
        ("pg_get_expr", 2 | 3)
        | ("obj_description" | "shobj_description", 1 | 2)
        | ("col_description", 2)
        | ("pg_get_viewdef" | "pg_get_indexdef" | "pg_get_constraintdef", 1..=3)
        | ("pg_get_partkeydef" | "pg_get_serial_sequence", 1 | 2) => null_text(),
        (
            "pg_relation_size" | "pg_table_size" | "pg_total_relation_size" | "pg_indexes_size",
            1,
        )
        | ("pg_database_size", 1) => cast(null(), DataType::BigInt(None)),
        ("pg_size_pretty", 1) => cast(first?.clone(), DataType::Text),
        (n, 1..=3) if n.starts_with("has_") && n.ends_with("_privilege") => truth(true),
        ("pg_has_role", 2 | 3) => truth(true),
        ("to_regclass", 1) => match facts.oid_of(literal(first?)?) {
            Some(oid) => number(oid),
            None => cast(null(), DataType::BigInt(None)),
        },
        _ => return None,
    })
}

/// A cast to a type that is a name of something: `'cpu'::regclass`, `23::regtype`.
pub(super) fn named(expr: &Expr, to: &str, facts: &Facts) -> Expr {
    match (to, literal(expr)) {
        ("regclass", Some(name)) => match name.parse::<i64>().ok().or_else(|| facts.oid_of(name)) {
            Some(oid) => number(oid),
            None => cast(null(), DataType::BigInt(None)),
        },
        ("regtype", Some(name)) => {
            let ty = types::all().find(|t| t.name == name || t.long == name);
            ty.map_or_else(null, |t| number(i64::from(t.oid)))
        }
        ("regtype", None) => format_type(expr.clone()),
        ("regnamespace" | "regproc" | "regrole" | "regclass", _) => {
            cast(expr.clone(), DataType::Text)
        }
        _ => expr.clone(),
    }
}
