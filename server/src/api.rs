//! HTTP and gRPC on one port.
//!
//! Owns: routes and the shapes of answers. Handlers read as the steps of the two walks and little
//! else. Never: decides about rights (control/policy) or keeps state of its own.

pub(crate) mod admin;
mod auth;
mod code;
mod delete;
mod flight;
mod problem;
mod query;
pub(crate) mod rejected;
mod request;
pub(crate) mod retention;
mod subscribe;
mod write;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request},
    http::header,
    middleware::map_request,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use millrace_control::{Catalog, Principal};
use millrace_crypto::ledger::KeyLedger;
use millrace_platform::clock::Clock;
use millrace_query::QueryEngine;
use millrace_storage::Engine;
use tokio::sync::watch;

use crate::ingest::{Admission, Budgets, decode::WIRE_BYTES_MAX};

pub(crate) use code::Code;
pub(crate) use flight::Prepared;
pub(crate) use problem::Problem;
pub(crate) use query::database;
pub(crate) use subscribe::Subscriptions;

/// What handlers share.
#[derive(Debug)]
pub struct State {
    pub clock: Arc<dyn Clock>,
    pub catalog: Arc<Catalog>,
    pub ledger: Arc<KeyLedger>,
    pub engine: Arc<Engine>,
    pub query: Arc<QueryEngine>,
    pub metrics: PrometheusHandle,
    pub admission: Admission,
    /// What each tenant may send.
    pub budgets: Budgets,
    /// Statements that Flight SQL clients prepared.
    pub prepared: Prepared,
    /// How many subscribers there are.
    pub subscriptions: Subscriptions,
    /// Turns true when the server stops: what has no end by itself ends then.
    pub stopping: watch::Receiver<bool>,
    /// Secret seed of the hash tables that outside input fills.
    pub seed: u64,
}

/// The shared state as axum hands it out.
pub type Shared = axum::extract::State<Arc<State>>;

/// All routes.
pub fn router(state: Arc<State>) -> Router {
    let clock = Arc::clone(&state.clock);
    let flight = tonic::service::Routes::new(flight::service(Arc::clone(&state)));
    Router::new()
        .route("/health", get(health))
        .route("/ping", get(ping))
        .route("/metrics", get(metrics))
        .route("/.well-known/security.txt", get(security_txt))
        .route("/api/v3/write_lp", post(write::v3))
        .route("/api/v2/write", post(write::v2))
        .route("/write", post(write::v1))
        .route("/api/v3/query_sql", get(query::get).post(query::post))
        .route("/api/v1/subscribe", get(subscribe::get))
        .route("/api/v1/tenants", get(admin::tenants).post(admin::create_tenant))
        .route("/api/v1/tenants/{name}", get(admin::tenant))
        .route("/api/v1/tenants/{name}/limits", axum::routing::put(admin::set_limits))
        .route("/api/v1/tenants/{name}/plan", axum::routing::put(retention::put_tenant_plan))
        .route("/api/v1/plans", get(retention::plans))
        .route("/api/v1/plans/{name}", axum::routing::put(retention::put_plan))
        .route("/api/v1/retention", get(retention::get_retention))
        .route("/api/v1/retention/preview", get(retention::preview))
        .route("/api/v1/retention/confirm", post(retention::confirm))
        .route("/api/v1/retention/tables", axum::routing::put(retention::put_table))
        .route("/api/v1/holds", get(retention::holds).post(retention::create_hold))
        .route("/api/v1/holds/{id}", axum::routing::delete(retention::delete_hold))
        .route("/api/v1/delete", post(delete::post))
        .route("/api/v1/tokens", get(admin::tokens).post(admin::create_token))
        .route("/api/v1/tokens/{id}", axum::routing::delete(admin::revoke_token))
        .route("/api/v1/devices", get(admin::devices))
        .route("/api/v1/devices/{id}", axum::routing::delete(admin::revoke_device))
        .route("/api/v1/devices/{id}/replacement", post(admin::replace_device))
        .route("/api/v1/claims", post(admin::create_claim))
        .route("/api/v1/status", get(admin::status))
        .route("/api/v1/rejected/replay", post(rejected::replay))
        .route("/api/v1/device/enrol", post(admin::enrol))
        .route("/api/v1/device/renew", post(admin::renew))
        .route("/api/v1/device/streams", get(admin::streams))
        .layer(DefaultBodyLimit::max(WIRE_BYTES_MAX))
        .with_state(state)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(map_request(move |request: Request| {
            std::future::ready(request::read_leftovers(Arc::clone(&clock), request))
        }))
        .merge(flight.into_axum_router().reset_fallback())
}

async fn not_found() -> Problem {
    Problem::new(Code::NotFound, "there is nothing at this path")
}

async fn method_not_allowed() -> Problem {
    Problem::new(Code::MethodNotAllowed, "this path exists, but not with this method")
}

async fn health() -> Response {
    Json(serde_json::json!({
        "name": "millrace",
        "status": "pass",
        "message": "ready for queries and writes",
        "checks": [],
        "version": env!("CARGO_PKG_VERSION"),
    }))
    .into_response()
}

async fn ping() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    (
        [("x-influxdb-version", version), ("x-influxdb-build", "millrace")],
        Json(serde_json::json!({ "version": version })),
    )
        .into_response()
}

async fn security_txt() -> Response {
    let text = "Contact: mailto:security@millrace.dev\nExpires: 2027-11-20T00:00:00.000Z\nPreferred-Languages: en\n";
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// The operator sees everything; a tenant's admin sees the lines of its own tenant.
async fn metrics(
    axum::extract::State(state): Shared,
    auth::Caller(principal): auth::Caller,
) -> Result<Response, Problem> {
    let text = state.metrics.render();
    let text = match &principal {
        Principal::Operator => text,
        Principal::Token { tenant, admin: true, .. } => {
            let own = format!("tenant=\"{tenant}\"");
            text.lines()
                .filter(|l| l.contains(&own))
                .fold(String::new(), |all, line| all + line + "\n")
        }
        _ => {
            return Err(Problem::forbidden(
                "the operator's token or a tenant's admin token is needed",
            ));
        }
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}
