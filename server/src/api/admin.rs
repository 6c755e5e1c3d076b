//! Administration: tenants, tokens, claims, devices; and a device's own enrolment.
//!
//! Shared by the HTTP handlers here and by the command line on a stopped server's folder: the
//! functions that take a catalogue are the same.

use axum::{
    Extension, Json,
    extract::{Path, State as Given, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use millrace_control::{
    AdminScope, Catalog, CatalogError, Limits, Principal, Tenant, TenantLimits, TokenScopes, policy,
};
use millrace_crypto::ledger::KeyLedger;
use millrace_protocol::{
    device::{EnrolAnswer, EnrolRequest, RenewRequest},
    ids::{DeviceId, Epoch, StreamId},
    stream::{OpenAnswer, StreamKey},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Code, Problem, Shared,
    auth::Caller,
    request::{Parameters, json_problem},
};
use crate::listener::Peer;

type Body<T> = Result<Json<T>, JsonRejection>;

/// Makes a tenant and its keys. Keys first: a tenant without keys must not exist.
pub(crate) fn make_tenant(
    catalog: &Catalog,
    ledger: &KeyLedger,
    principal: &Principal,
    name: &str,
) -> Result<Tenant, Problem> {
    let scope = policy::to_operate(principal)?;
    // Before any key is made: a refused name must leave nothing behind.
    Catalog::check_name(name)?;
    if catalog.tenant_by_name(name).is_ok() {
        return Err(CatalogError::Exists(name.to_owned()).into());
    }
    let id = catalog.new_tenant_id();
    ledger.create(&id.0).map_err(|error| {
        tracing::error!(%error, "a tenant's keys could not be made");
        Problem::new(Code::KeysUnavailable, "the tenant's keys could not be made; try again")
    })?;
    Ok(catalog.create_tenant(scope, id, name)?)
}

/// The scope over the named tenant; a token may leave the name out and means its own.
pub(crate) fn administer(
    catalog: &Catalog,
    principal: &Principal,
    name: Option<&str>,
) -> Result<AdminScope, Problem> {
    let tenant = match (name, principal) {
        (Some(name), _) => match catalog.tenant_by_name(name) {
            Ok(tenant) => tenant.id,
            // Only the operator may learn which tenants exist.
            Err(e) if matches!(principal, Principal::Operator) => return Err(e.into()),
            Err(_) => return Err(Problem::forbidden(DENIED)),
        },
        (None, Principal::Token { tenant, .. }) => *tenant,
        (None, Principal::Operator) => {
            return Err(Problem::new(Code::BadTenant, "name the tenant: tenant=NAME"));
        }
        (None, Principal::Device { .. }) => return Err(Problem::forbidden(DENIED)),
    };
    policy::to_administer(principal, tenant).map_err(|_| Problem::forbidden(DENIED))
}

const DENIED: &str =
    "a token of this tenant with scope `admin`, or the operator's token, is needed";

/// A new token as JSON, its secret included: shown once.
pub(crate) fn make_token(
    catalog: &Catalog,
    scope: AdminScope,
    scopes: TokenScopes,
    label: &str,
) -> Result<Value, Problem> {
    let (token, secret) = catalog.create_token(scope, scopes, label, None)?;
    let tenant = catalog.tenant(scope.tenant())?;
    Ok(json!({
        "id": token.id,
        "tenant": tenant.name,
        "scopes": scope_names(scopes),
        "label": token.label,
        "token": secret.reveal(),
    }))
}

fn scope_names(scopes: TokenScopes) -> Vec<&'static str> {
    let all = [("read", scopes.read), ("write", scopes.write), ("admin", scopes.admin)];
    all.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect()
}

/// A new claim as JSON, its code included: shown once.
pub(crate) fn make_claim(
    catalog: &Catalog,
    scope: AdminScope,
    name: &str,
) -> Result<Value, Problem> {
    let (code, expires_ns) = catalog.create_claim(scope, name)?;
    let tenant = catalog.tenant(scope.tenant())?;
    Ok(json!({ "tenant": tenant.name, "code": code.reveal(), "expires_ns": expires_ns }))
}

/// A claim for a box that becomes this device, as JSON.
pub(crate) fn make_replacement(
    catalog: &Catalog,
    scope: AdminScope,
    id: &str,
) -> Result<Value, Problem> {
    let id = id.parse().map_err(|_| millrace_control::CatalogError::NotFound("device"))?;
    let (code, expires_ns) = catalog.create_replacement(scope, id)?;
    let tenant = catalog.tenant(scope.tenant())?;
    Ok(
        json!({ "tenant": tenant.name, "code": code.reveal(), "expires_ns": expires_ns, "device": id }),
    )
}

/// A tenant's tokens without their secrets.
pub(crate) fn list_tokens(catalog: &Catalog, scope: AdminScope) -> Value {
    let all = catalog.tokens(scope);
    let one = |t: &millrace_control::Token| {
        let scopes = TokenScopes { read: t.read, write: t.write, admin: t.admin };
        json!({ "id": t.id, "label": t.label, "scopes": scope_names(scopes),
                "created_ns": t.created_ns, "expires_ns": t.expires_ns })
    };
    Value::Array(all.iter().map(one).collect())
}

/// A tenant's devices.
pub(crate) fn list_devices(catalog: &Catalog, scope: AdminScope) -> Value {
    let one = |d: &millrace_control::Device| json!({ "id": d.id, "name": d.name, "enrolled_ns": d.enrolled_ns, "revoked": d.revoked });
    Value::Array(catalog.devices(scope).iter().map(one).collect())
}

/// All tenants, for the operator.
pub(crate) fn list_tenants(catalog: &Catalog, principal: &Principal) -> Result<Value, Problem> {
    let scope = policy::to_operate(principal)?;
    Ok(json!(catalog.tenants(scope)))
}

/// One tenant with its own limits, for the operator; with what counts if the defaults are known.
pub(crate) fn show_tenant(
    catalog: &Catalog,
    principal: &Principal,
    name: &str,
    default: Option<&Limits>,
) -> Result<Value, Problem> {
    policy::to_operate(principal)?;
    let tenant = catalog.tenant_by_name(name)?;
    let effective = default.map(|default| tenant.limits.over(default));
    let mut shown = json!(tenant);
    if let Some(shown) = shown.as_object_mut() {
        shown.insert("limits".into(), json!(tenant.limits));
        if let Some(effective) = effective {
            shown.insert("effective_limits".into(), json!(effective));
        }
    }
    Ok(shown)
}

/// Sets all of a tenant's own limits.
pub(crate) fn limit_tenant(
    catalog: &Catalog,
    principal: &Principal,
    name: &str,
    limits: TenantLimits,
) -> Result<Tenant, Problem> {
    let scope = policy::to_operate(principal)?;
    Ok(catalog.set_limits(scope, name, limits)?)
}

pub(crate) async fn tenant(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    let default = state.budgets.default_limits();
    Ok(Json(show_tenant(&state.catalog, &principal, &name, Some(&default))?).into_response())
}

/// `PUT /api/v1/tenants/NAME/limits`: counts from the answer on, without a restart.
pub(crate) async fn set_limits(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(name): Path<String>,
    body: Body<TenantLimits>,
) -> Result<Response, Problem> {
    policy::to_operate(&principal)?;
    let Json(limits) = body.map_err(json_problem)?;
    let tenant = limit_tenant(&state.catalog, &principal, &name, limits)?;
    state.budgets.forgive(tenant.id);
    state.engine.limit_new_series(tenant.id, limits.series_per_day);
    let default = state.budgets.default_limits();
    Ok(Json(show_tenant(&state.catalog, &principal, &name, Some(&default))?).into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewTenant {
    name: String,
}

pub(crate) async fn create_tenant(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Body<NewTenant>,
) -> Result<Response, Problem> {
    policy::to_operate(&principal)?;
    let Json(new) = body.map_err(json_problem)?;
    let tenant = make_tenant(&state.catalog, &state.ledger, &principal, &new.name)?;
    Ok((StatusCode::CREATED, Json(tenant)).into_response())
}

pub(crate) async fn tenants(
    Given(state): Shared,
    Caller(principal): Caller,
) -> Result<Response, Problem> {
    Ok(Json(list_tenants(&state.catalog, &principal)?).into_response())
}

#[derive(Debug, Deserialize)]
pub(crate) struct OfTenant {
    #[serde(default)]
    pub(crate) tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewToken {
    #[serde(default)]
    tenant: Option<String>,
    scopes: Vec<String>,
    #[serde(default)]
    label: String,
}

pub(crate) async fn create_token(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Body<NewToken>,
) -> Result<Response, Problem> {
    let Json(new) = body.map_err(json_problem)?;
    let scope = administer(&state.catalog, &principal, new.tenant.as_deref())?;
    let scopes = new.scopes.join(",").parse()?;
    let made = make_token(&state.catalog, scope, scopes, &new.label)?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

pub(crate) async fn tokens(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(of): Parameters<OfTenant>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    Ok(Json(list_tokens(&state.catalog, scope)).into_response())
}

pub(crate) async fn revoke_token(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(id): Path<String>,
    Parameters(of): Parameters<OfTenant>,
) -> Result<StatusCode, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    state.catalog.revoke_token(scope, &id)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize)]
pub(crate) struct NewClaim {
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    name: String,
}

pub(crate) async fn create_claim(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Body<NewClaim>,
) -> Result<Response, Problem> {
    let Json(new) = body.map_err(json_problem)?;
    let scope = administer(&state.catalog, &principal, new.tenant.as_deref())?;
    let made = make_claim(&state.catalog, scope, &new.name)?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

pub(crate) async fn devices(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(of): Parameters<OfTenant>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    Ok(Json(list_devices(&state.catalog, scope)).into_response())
}

pub(crate) async fn revoke_device(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(id): Path<String>,
    Parameters(of): Parameters<OfTenant>,
) -> Result<StatusCode, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    let id = id.parse().map_err(|_| millrace_control::CatalogError::NotFound("device"))?;
    state.catalog.revoke_device(scope, id)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /api/v1/devices/{id}/replacement`.
pub(crate) async fn replace_device(
    Given(state): Shared,
    Caller(principal): Caller,
    Path(id): Path<String>,
    Parameters(of): Parameters<OfTenant>,
) -> Result<Response, Problem> {
    let scope = administer(&state.catalog, &principal, of.tenant.as_deref())?;
    let made = make_replacement(&state.catalog, scope, &id)?;
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Figures of the server for its operator; of nobody's data.
pub(crate) async fn status(
    Given(state): Shared,
    Caller(principal): Caller,
) -> Result<Response, Problem> {
    policy::to_operate(&principal)?;
    let stats = state.engine.stats();
    Ok(Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "lsn": stats.lsn,
        "memtable_bytes": stats.memtable_bytes,
        "memtable_rows": stats.memtable_rows,
        "wal_bytes": stats.wal_bytes,
    }))
    .into_response())
}

/// `POST /api/v1/device/enrol`: the claim code is the credential.
pub(crate) async fn enrol(
    Given(state): Shared,
    body: Body<EnrolRequest>,
) -> Result<Response, Problem> {
    let Json(request) = body.map_err(json_problem)?;
    let made = state.catalog.redeem_claim(&request.claim_code, &request.csr_pem, &request.name)?;
    Ok(enrolled(&state, made))
}

/// `POST /api/v1/device/renew`: the certificate is the credential.
pub(crate) async fn renew(
    Given(state): Shared,
    peer: Option<Extension<Peer>>,
    body: Body<RenewRequest>,
) -> Result<Response, Problem> {
    let (device, serial) = peer
        .and_then(|p| p.0.0)
        .ok_or_else(|| Problem::forbidden("a device certificate is needed"))?;
    let Json(request) = body.map_err(json_problem)?;
    let made = state.catalog.renew_device(device, serial, &request.csr_pem)?;
    Ok(enrolled(&state, made))
}

fn enrolled(
    state: &super::State,
    (device, certificate_pem, not_after_ns): (millrace_control::Device, String, i64),
) -> Response {
    Json(EnrolAnswer {
        device_id: device.id,
        tenant_id: device.tenant,
        certificate_pem,
        ca_pem: state.catalog.device_ca_pem().to_owned(),
        not_after_ns,
    })
    .into_response()
}

#[derive(Debug, Deserialize)]
pub(crate) struct OfStream {
    stream: StreamId,
    epoch: u64,
}

/// `GET /api/v1/device/streams`: where a forwarder goes on after a reconnect.
pub(crate) async fn streams(
    Given(state): Shared,
    Caller(principal): Caller,
    peer: Option<Extension<Peer>>,
    Parameters(of): Parameters<OfStream>,
) -> Result<Response, Problem> {
    let device: DeviceId = peer
        .and_then(|p| p.0.0)
        .map(|(device, _)| device)
        .ok_or_else(|| Problem::forbidden("a device certificate is needed"))?;
    let scope = policy::to_write_stream(&principal, device)?;
    let key = StreamKey { device, stream: of.stream, epoch: Epoch(of.epoch) };
    let hi = state.engine.watermark(scope.tenant(), &key);
    Ok(Json(OpenAnswer { key, hi, server_time_ns: state.clock.now_ns() }).into_response())
}
