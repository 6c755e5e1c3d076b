//! Plans, what is kept of a tenant, legal holds.
//!
//! Shared by the HTTP handlers here and by the command line on a stopped server's folder. What needs
//! the files themselves (preview, confirmation) needs a server that runs.

use axum::{
    Json,
    extract::{Path, State as Given, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use millrace_control::{
    AdminScope, Catalog, Hold, Plan, Principal, Shorter, Tenant, Terms, policy,
};
use millrace_storage::retention::{DAY_NS, Forecast, Rules};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Code, Problem, Shared, State,
    admin::{OfTenant, administer},
    auth::Caller,
    request::{Parameters, json_problem},
};
use crate::retention;

type Body<T> = Result<Json<T>, JsonRejection>;

/// Files that a preview lists one by one; the sums are of all.
const FILES_MAX: usize = 1_000;
/// Days that a preview looks ahead if nothing is said: grace, hidden days and one more.
const AHEAD_DAYS: u32 = 38;

/// Who does something, as a history names it.
fn who(principal: &Principal) -> &str {
    match principal {
        Principal::Token { token, .. } => token,
        Principal::Device { .. } => "a device",
        Principal::Operator => "operator",
    }
}

/// All plans: for the operator and for tenants' admins.
pub(crate) fn list_plans(catalog: &Catalog, principal: &Principal) -> Result<Value, Problem> {
    match principal {
        Principal::Operator | Principal::Token { admin: true, .. } => Ok(json!(catalog.plans())),
        _ => Err(Problem::forbidden("a tenant's admin token, or the operator's token, is needed")),
    }
}

/// Makes a plan.
pub(crate) fn define_plan(
    catalog: &Catalog,
    principal: &Principal,
    plan: Plan,
) -> Result<Value, Problem> {
    let scope = policy::to_operate(principal)?;
    Ok(json!(catalog.define_plan(scope, plan)?))
}

/// Sets a tenant's plan.
pub(crate) fn set_plan(
    catalog: &Catalog,
    principal: &Principal,
    tenant: &str,
    plan: &str,
    now_ns: Option<i64>,
) -> Result<Tenant, Problem> {
    let scope = policy::to_operate(principal)?;
    Ok(catalog.set_plan(scope, tenant, plan, who(principal), now_ns)?)
}

/// Lets a table keep less than the plan says, or what it says.
pub(crate) fn shorten(
    catalog: &Catalog,
    scope: AdminScope,
    principal: &Principal,
    (database, table): (&str, &str),
    days: Option<u32>,
    now_ns: Option<i64>,
) -> Result<Tenant, Problem> {
    let shorter =
        Shorter { database: database.to_owned(), table: table.to_owned(), days: days.unwrap_or(0) };
    Ok(catalog.shorten(scope, shorter, days.is_none(), who(principal), now_ns)?)
}

/// Places a hold.
pub(crate) fn add_hold(
    catalog: &Catalog,
    scope: AdminScope,
    principal: &Principal,
    table: Option<(String, String)>,
    reason: &str,
) -> Result<Hold, Problem> {
    let operator = matches!(principal, Principal::Operator);
    Ok(catalog.add_hold(scope, table, reason, who(principal), operator)?)
}

/// Releases a hold.
pub(crate) fn release_hold(
    catalog: &Catalog,
    scope: AdminScope,
    principal: &Principal,
    id: &str,
) -> Result<Hold, Problem> {
    let operator = matches!(principal, Principal::Operator);
    Ok(catalog.release_hold(scope, id, who(principal), operator)?)
}

/// A tenant's terms and holds.
pub(crate) fn show(catalog: &Catalog, scope: AdminScope) -> Result<Value, Problem> {
    let tenant = catalog.tenant(scope.tenant())?;
    let terms = tenant.terms.last();
    Ok(json!({
        "tenant": tenant.name,
        "plan": tenant.plan,
        "raw_days": terms.and_then(|t| t.raw_days),
        "rollup_days": terms.and_then(|t| t.rollup_days),
        "hot_days": terms.and_then(|t| t.hot_days),
        "tables": terms.map(|t| t.tables.clone()).unwrap_or_default(),
        "history": tenant.terms,
        "holds": catalog.holds(tenant.id),
    }))
}

/// The same with what only a running server knows.
fn show_running(state: &State, scope: AdminScope) -> Result<Value, Problem> {
    let mut shown = show(&state.catalog, scope)?;
    let clock = state.engine.clock_state();
    let rules = state.engine.retention(scope.tenant()).unwrap_or_default();
    let countdown = rules.countdown(&(String::new(), String::new()), clock.now_ns);
    let blocked = state.engine.retention_blocked(scope.tenant()).map(
        |b| json!({ "files": b.files, "rows": b.rows, "bytes": b.bytes, "bytes_all": b.bytes_all }),
    );
    if let Some(shown) = shown.as_object_mut() {
        shown.insert(
            "countdown".into(),
            json!(countdown.map(|(hides_ns, drops_ns)| json!({
                "hides_ns": hides_ns,
                "drops_ns": drops_ns,
                "days_left": (drops_ns - clock.now_ns).max(0) / DAY_NS,
            }))),
        );
        shown.insert("waits_for_confirmation".into(), json!(blocked));
        shown.insert(
            "clock".into(),
            json!({
                "trusted_ns": clock.now_ns,
                "wall_ahead_ns": clock.ahead_ns,
                "wall_behind_ns": clock.behind_ns,
            }),
        );
    }
    Ok(shown)
}

/// What leaves of one table.
struct Sum<'a> {
    table: &'a (String, String),
    files: u64,
    rows: u64,
    bytes: u64,
    /// When the first file leaves; none does while the table is held.
    first_ns: Option<i64>,
}

/// A forecast: sums by table, and the files one by one.
fn forecast_json(forecast: &Forecast, now_ns: i64) -> Value {
    let mut tables: Vec<Sum<'_>> = Vec::new();
    for file in &forecast.files {
        let at = match tables.iter().position(|t| *t.table == file.table) {
            Some(at) => at,
            None => {
                tables.push(Sum {
                    table: &file.table,
                    files: 0,
                    rows: 0,
                    bytes: 0,
                    first_ns: None,
                });
                tables.len() - 1
            }
        };
        if let Some(sum) = tables.get_mut(at) {
            sum.files += 1;
            sum.rows += file.rows;
            sum.bytes += file.bytes;
            sum.first_ns = [sum.first_ns, file.at_ns].into_iter().flatten().min();
        }
    }
    let tables: Vec<Value> = tables
        .into_iter()
        .map(|t| {
            json!({
                "database": t.table.0, "table": t.table.1, "files": t.files, "rows": t.rows,
                "bytes": t.bytes, "first_ns": t.first_ns, "held": t.first_ns.is_none(),
            })
        })
        .collect();
    let files: Vec<Value> = forecast
        .files
        .iter()
        .take(FILES_MAX)
        .map(|f| {
            json!({
                "database": f.table.0, "table": f.table.1, "from_ns": f.times.0, "to_ns": f.times.1,
                "rows": f.rows, "bytes": f.bytes, "at_ns": f.at_ns,
            })
        })
        .collect();
    json!({
        "now_ns": now_ns,
        "bytes_all": forecast.bytes_all,
        "tables": tables,
        "files": files,
        "files_left_out": forecast.files.len().saturating_sub(FILES_MAX),
    })
}

pub(crate) async fn plans(
    Given(state): Shared,
    Caller(principal): Caller,
) -> Result<Response, Problem> {
    Ok(Json(list_plans(&state.catalog, &principal)?).into_response())
}

/// What of a plan stands in the body; the name is in the path.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanBody {
    raw_days: Option<u32>,
    #[serde(default)]
    rollup_days: Option<u32>,
    #[serde(default)]
    hot_days: Option<u32>,
    #[serde(default)]
    limits: millrace_control::TenantLimits,
}

/// `PUT /api/v1/plans/NAME`.
pub(crate) async fn put_plan(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(name): Path<String>,
    body: Body<PlanBody>,
) -> Result<Response, Problem> {
    policy::to_operate(&principal)?;
    let Json(PlanBody { raw_days, rollup_days, hot_days, limits }) = body.map_err(json_problem)?;
    let plan = Plan { name, raw_days, rollup_days, hot_days, limits };
    let made = define_plan(&state.catalog, &principal, plan)?;
    Ok(Json(made).into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct SetPlan {
    plan: String,
}

/// `PUT /api/v1/tenants/NAME/plan`: counts from the answer on.
pub(crate) async fn put_tenant_plan(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(name): Path<String>,
    body: Body<SetPlan>,
) -> Result<Response, Problem> {
    policy::to_operate(&principal)?;
    let Json(SetPlan { plan }) = body.map_err(json_problem)?;
    let now = state.engine.clock_state().now_ns;
    let tenant = set_plan(&state.catalog, &principal, &name, &plan, Some(now))?;
    retention::tell(&state.catalog, &state.engine, tenant.id);
    state.budgets.forgive(tenant.id);
    let scope = administer(&state.catalog, &principal, Some(&name))?;
    Ok(Json(show_running(&state, scope)?).into_response())
}

pub(crate) async fn get_retention(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(of): Parameters<OfTenant>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    Ok(Json(show_running(&state, scope)?).into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct Shorten {
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    database: Option<String>,
    table: String,
    /// Absent lifts it.
    #[serde(default)]
    days: Option<u32>,
}

/// `PUT /api/v1/retention/tables`: one table keeps less.
pub(crate) async fn put_table(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Body<Shorten>,
) -> Result<Response, Problem> {
    let Json(Shorten { tenant, database, table, days }) = body.map_err(json_problem)?;
    let scope = administer(&state.catalog, &principal, tenant.as_deref())?;
    let now = state.engine.clock_state().now_ns;
    let name = (database.as_deref().unwrap_or("default"), table.as_str());
    let tenant = shorten(&state.catalog, scope, &principal, name, days, Some(now))?;
    retention::tell(&state.catalog, &state.engine, tenant.id);
    Ok(Json(show_running(&state, scope)?).into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct Preview {
    #[serde(default)]
    tenant: Option<String>,
    /// What would go if this plan were set now.
    #[serde(default)]
    plan: Option<String>,
    #[serde(default)]
    days: Option<u32>,
}

/// `GET /api/v1/retention/preview`: what goes, and when.
pub(crate) async fn preview(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(Preview { tenant, plan, days }): Parameters<Preview>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, tenant.as_deref())?;
    let now = state.engine.clock_state().now_ns;
    let rules = match plan {
        None => {
            state.engine.retention(scope.tenant()).map(|r| Rules::clone(&r)).unwrap_or_default()
        }
        Some(plan) => with_plan(&state.catalog, scope, &plan, now)?,
    };
    let ahead = i64::from(days.unwrap_or(AHEAD_DAYS)).saturating_mul(DAY_NS);
    let forecast = state.engine.forecast(scope.tenant(), &rules, now.saturating_add(ahead));
    let forecast = forecast.map_err(|error| {
        tracing::error!(%error, "a preview of retention failed");
        Problem::new(Code::DataUnavailable, "the tenant's tables cannot be loaded now; try again")
    })?;
    Ok(Json(forecast_json(&forecast, now)).into_response())
}

/// The rules as they would be with another plan from now on.
fn with_plan(catalog: &Catalog, scope: AdminScope, plan: &str, now: i64) -> Result<Rules, Problem> {
    let plan = catalog.plans().into_iter().find(|p| p.name == plan);
    let plan = plan.ok_or(millrace_control::CatalogError::NotFound("plan"))?;
    let mut history: Vec<Terms> = catalog.tenant(scope.tenant())?.terms;
    let tables = history.last().map(|t| t.tables.clone()).unwrap_or_default();
    let Plan { name, raw_days, rollup_days, hot_days, .. } = plan;
    let (from_ns, by) = (Some(now), String::new());
    history.push(Terms { from_ns, plan: name, raw_days, rollup_days, hot_days, tables, by });
    Ok(retention::rules_of(&history, &catalog.holds(scope.tenant())))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Confirm {
    #[serde(default)]
    tenant: Option<String>,
    /// That the server's clock is right, instead of what a tenant loses.
    #[serde(default)]
    clock: bool,
}

/// `POST /api/v1/retention/confirm`: the operator's answer to the fuse, or to the clock's alarm.
pub(crate) async fn confirm(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Body<Confirm>,
) -> Result<Response, Problem> {
    policy::to_operate(&principal)?;
    let Json(Confirm { tenant, clock }) = body.map_err(json_problem)?;
    if clock {
        let clock = state.engine.believe_clock();
        return Ok(Json(json!({ "trusted_ns": clock.now_ns })).into_response());
    }
    let scope = administer(&state.catalog, &principal, tenant.as_deref())?;
    let confirmed = state.engine.confirm_retention(scope.tenant()).ok_or_else(|| {
        Problem::new(Code::NotFound, "nothing of this tenant waits for a confirmation")
    })?;
    Ok(Json(json!({
        "files": confirmed.files, "rows": confirmed.rows, "bytes": confirmed.bytes,
        "bytes_all": confirmed.bytes_all,
    }))
    .into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewHold {
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    database: Option<String>,
    /// Absent holds everything.
    #[serde(default)]
    table: Option<String>,
    reason: String,
}

pub(crate) async fn create_hold(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Body<NewHold>,
) -> Result<Response, Problem> {
    let Json(NewHold { tenant, database, table, reason }) = body.map_err(json_problem)?;
    let scope = administer(&state.catalog, &principal, tenant.as_deref())?;
    let table = table.map(|table| (database.unwrap_or_else(|| "default".to_owned()), table));
    let hold = add_hold(&state.catalog, scope, &principal, table, &reason)?;
    retention::tell(&state.catalog, &state.engine, scope.tenant());
    Ok((StatusCode::CREATED, Json(json!(hold))).into_response())
}

pub(crate) async fn holds(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(of): Parameters<OfTenant>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    Ok(Json(json!(state.catalog.holds(scope.tenant()))).into_response())
}

pub(crate) async fn delete_hold(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(id): Path<String>,
    Parameters(of): Parameters<OfTenant>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    let hold = release_hold(&state.catalog, scope, &principal, &id)?;
    retention::tell(&state.catalog, &state.engine, scope.tenant());
    Ok(Json(json!(hold)).into_response())
}
