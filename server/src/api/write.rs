//! Line protocol over HTTP, in the three shapes that InfluxDB clients speak.
//!
//! Each handler: authenticate, scope, admit, decode, parse, store, answer. Good rows are kept and
//! bad ones named; an answer without an error means that every row is durable.

use std::sync::Arc;

use axum::{
    Json,
    extract::State as Given,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use millrace_control::policy;
use millrace_platform::metric::Metric;
use millrace_protocol::{
    batch::{Refusal, RowLimits, TableBatch},
    ids::TenantId,
    line::{self, LineOptions, Precision, RowTexts},
};
use millrace_storage::{Origin, REJECTED_ROWS_PER_WRITE, Rejects, Sender, WriteRequest};
use serde::Deserialize;
use serde_json::json;

use super::{
    Code, Problem, Shared, State,
    auth::Caller,
    request::{Parameters, Payload, Received, no_room},
};
use crate::ingest::{
    decode, locate,
    raw::{self, BodyRows},
};

/// Refused lines that an answer lists.
const LISTED_MAX: usize = 100;

/// Query parameters of all three endpoints; unknown ones are ignored, as clients expect.
#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    db: Option<String>,
    bucket: Option<String>,
    precision: Option<String>,
    #[serde(default)]
    accept_partial: Option<String>,
}

/// What became of a body.
struct Outcome {
    kept: u64,
    refused: u64,
    listed: Vec<Refusal>,
}

/// The unit of times, or `default` if the client named none.
fn precision_of(target: &Target, default: Precision) -> Result<Precision, Problem> {
    let Some(text) = target.precision.as_deref() else { return Ok(default) };
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(20).collect();
        Problem::new(
            Code::BadPrecision,
            format!("precision `{shown}` is unknown; use ns, us, ms, s, m, h or auto"),
        )
    })
}

#[expect(clippy::too_many_arguments, reason = "one call per endpoint, each with its own shape")]
async fn store(
    state: &Arc<State>,
    tenant: TenantId,
    source: String,
    database: String,
    precision: Precision,
    all_or_nothing: bool,
    headers: &HeaderMap,
    body: Received,
) -> Result<Outcome, Problem> {
    let encoding =
        headers.get(header::CONTENT_ENCODING).map(|v| v.to_str().unwrap_or("?").to_owned());
    let Received { bytes: body, room: _room } = body;
    let wire = body.len();
    // The body's own room is held already. Text becomes columns of about its own size; a compressed body may become far more.
    let reserved = match encoding {
        Some(_) => state.admission.reserve_unpacked(wire, decode::DECODED_BYTES_MAX),
        None => state.admission.reserve(wire),
    };
    let mut reserved = reserved.ok_or_else(no_room)?;
    let compressed = encoding.is_some();
    let options = LineOptions {
        precision,
        default_time_ns: state.clock.now_ns(),
        default_time_step_ns: 0,
        limits: RowLimits::default(),
        refusals_max: REJECTED_ROWS_PER_WRITE,
    };
    let seed = state.seed;
    let (text, text_bytes, parsed, listed) = tokio::task::spawn_blocking(move || {
        let text = decode::decode(encoding.as_deref(), body)?;
        let parsed = line::parse_seeded(&text, &options, seed);
        let text_bytes = text.len();
        let text = Arc::new(BodyRows(RowTexts::new(text)));
        let listed = raw::rejected(&parsed.refusals, None, text.as_ref());
        Ok::<_, decode::DecodeError>((text, text_bytes, parsed, listed))
    })
    .await
    .map_err(|_| Problem::new(Code::Internal, "the body could not be parsed"))?
    .map_err(decode_problem)?;
    // Now it is known; sparse rows and unpacked bodies are larger than anybody could tell.
    let unpacked = if compressed { text_bytes } else { 0 };
    reserved.resize(unpacked + parsed.tables.iter().map(TableBatch::memory_bytes).sum::<usize>());
    let rows: usize = parsed.tables.iter().map(TableBatch::rows).sum();
    // Text counts whether its lines are good or not: parsing them is what it costs.
    state.budgets.take(tenant, rows as u64, text_bytes as u64)?;
    metrics::counter!(Metric::IngestBytes.name(), "tenant" => tenant.to_string())
        .increment(wire as u64);
    let mut outcome = Outcome { kept: 0, refused: parsed.refused, listed: parsed.refusals };
    outcome.listed.truncate(LISTED_MAX);
    let nothing = parsed.tables.is_empty() && parsed.refused == 0;
    if nothing || (all_or_nothing && parsed.refused > 0) {
        return Ok(outcome);
    }
    // Refused rows are recorded together with the good ones: the answer says that both are durable.
    let count = parsed.refused;
    let rejects =
        Rejects { listed, count, raw: Arc::clone(&text) as _, precision: precision.as_str() };
    let request = WriteRequest {
        tenant,
        database,
        origin: Origin::Plain,
        tables: parsed.tables,
        sender: Sender { source, rejects: Some(rejects) },
    };
    let receipt = state.engine.write(request).await?;
    outcome.kept = receipt.rows();
    outcome.refused += receipt.refused();
    for refusal in receipt.refusals().iter().take(LISTED_MAX.saturating_sub(outcome.listed.len())) {
        let line = String::from_utf8_lossy(text.0.row(refusal.line));
        let column = locate::column(&line, refusal.code, &refusal.reason);
        let raw = line.chars().take(256).collect();
        outcome.listed.push(Refusal { raw, column, ..refusal.clone() });
    }
    outcome.listed.sort_by_key(|r| r.line);
    Ok(outcome)
}

fn decode_problem(e: decode::DecodeError) -> Problem {
    let code = match e {
        decode::DecodeError::Encoding(_) => Code::BadEncoding,
        decode::DecodeError::TooLarge => Code::BodyTooLarge,
        decode::DecodeError::Corrupt(_) => Code::BadBody,
    };
    Problem::new(code, e.to_string())
}

fn first_sentence(outcome: &Outcome) -> String {
    outcome.listed.first().map_or_else(String::new, |r| {
        if r.column > 0 {
            format!("line {}, column {}: {}", r.line, r.column, r.reason)
        } else {
            format!("line {}: {}", r.line, r.reason)
        }
    })
}

fn database_of(target: &Target) -> String {
    let given = target.db.as_deref().or(target.bucket.as_deref());
    given.filter(|d| !d.is_empty()).unwrap_or("default").to_owned()
}

/// `POST /api/v3/write_lp`: InfluxDB 3.
pub(crate) async fn v3(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(target): Parameters<Target>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Result<Response, Problem> {
    let (scope, source) = (policy::to_write(&principal)?, raw::token_source(&principal));
    let partial = target.accept_partial.as_deref() != Some("false");
    let precision = precision_of(&target, Precision::Auto)?;
    let database = database_of(&target);
    let outcome =
        store(&state, scope.tenant(), source, database, precision, !partial, &headers, body?)
            .await?;
    if outcome.refused == 0 {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // Only lines that cannot be parsed are found before anything is stored.
    let error = if partial || outcome.kept > 0 {
        "partial write of line protocol occurred"
    } else {
        "parsing failed for write_lp endpoint"
    };
    let data: Vec<_> = outcome
        .listed
        .iter()
        .map(|r| {
            json!({
                "original_line": r.raw,
                "line_number": r.line,
                "column": r.column,
                "code": r.code,
                "error_message": r.reason,
            })
        })
        .collect();
    let body = json!({
        "error": error,
        "code": "rows_refused",
        "kept": outcome.kept,
        "refused": outcome.refused,
        "data": data,
    });
    Ok((StatusCode::BAD_REQUEST, Json(body)).into_response())
}

/// `POST /api/v2/write`: InfluxDB 2.
pub(crate) async fn v2(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(target): Parameters<Target>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Response {
    let answer = async {
        let (scope, source) = (policy::to_write(&principal)?, raw::token_source(&principal));
        let precision = precision_of(&target, Precision::Nanosecond)?;
        let database = database_of(&target);
        store(&state, scope.tenant(), source, database, precision, false, &headers, body?).await
    };
    match answer.await {
        Ok(outcome) if outcome.refused == 0 => StatusCode::NO_CONTENT.into_response(),
        Ok(outcome) => {
            let message = format!(
                "partial write: {} of {} lines were refused, the others are stored; first: {}",
                outcome.refused,
                outcome.refused + outcome.kept,
                first_sentence(&outcome)
            );
            let line = outcome.listed.first().map_or(0, |r| r.line);
            let body = json!({ "code": "invalid", "message": message, "line": line });
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
        Err(problem) => {
            let body = json!({ "code": v2_code(problem.status()), "message": problem.detail });
            problem.decorate((problem.status(), Json(body)).into_response())
        }
    }
}

/// InfluxDB 2's own error codes.
fn v2_code(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not found",
        StatusCode::PAYLOAD_TOO_LARGE => "request too large",
        StatusCode::TOO_MANY_REQUESTS => "too many requests",
        s if s.is_server_error() => "unavailable",
        _ => "invalid",
    }
}

/// `POST /write`: InfluxDB 1.
pub(crate) async fn v1(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(target): Parameters<Target>,
    headers: HeaderMap,
    Payload(body): Payload,
) -> Response {
    let answer = async {
        let (scope, source) = (policy::to_write(&principal)?, raw::token_source(&principal));
        let precision = precision_of(&target, Precision::Nanosecond)?;
        let database = database_of(&target);
        store(&state, scope.tenant(), source, database, precision, false, &headers, body?).await
    };
    match answer.await {
        Ok(outcome) if outcome.refused == 0 => StatusCode::NO_CONTENT.into_response(),
        Ok(outcome) => {
            let message =
                format!("partial write: {} dropped={}", first_sentence(&outcome), outcome.refused);
            (StatusCode::BAD_REQUEST, Json(json!({ "error": message }))).into_response()
        }
        Err(problem) => {
            let body = json!({ "error": problem.detail });
            problem.decorate((problem.status(), Json(body)).into_response())
        }
    }
}
