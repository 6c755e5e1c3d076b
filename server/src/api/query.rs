//! `GET|POST /api/v3/query_sql`: one SQL statement, streamed back.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{State as Given, rejection::JsonRejection},
    http::{HeaderValue, header},
    response::Response,
};
use futures::StreamExt;
use millrace_control::{Principal, policy};
use millrace_query::{Format, Params, result};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Code, Problem, Shared, State,
    auth::Caller,
    request::{Parameters, json_problem},
};

/// A question, from the query string or from a JSON body.
#[derive(Debug, Deserialize)]
pub(crate) struct Question {
    #[serde(default)]
    db: Option<String>,
    #[serde(default, alias = "query")]
    q: Option<String>,
    #[serde(default)]
    format: Option<String>,
    /// A JSON array or object; in a query string, its text.
    #[serde(default)]
    params: Option<Value>,
}

/// Asked by URL.
pub(crate) async fn get(
    Given(state): Shared,
    Caller(principal): Caller,
    Parameters(mut question): Parameters<Question>,
) -> Result<Response, Problem> {
    if let Some(Value::String(text)) = &question.params {
        let parsed = serde_json::from_str(text);
        question.params = Some(
            parsed
                .map_err(|e| Problem::new(Code::SqlParams, format!("params is not JSON: {e}")))?,
        );
    }
    answer(&state, &principal, question).await
}

/// Asked by JSON.
pub(crate) async fn post(
    Given(state): Shared,
    Caller(principal): Caller,
    question: Result<Json<Question>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(question) = question.map_err(json_problem)?;
    answer(&state, &principal, question).await
}

/// An unknown format is a wrong parameter of the request, not of the SQL.
fn bad_format(e: millrace_query::QueryError) -> Problem {
    Problem::new(Code::BadParameter, e.to_string())
}

/// Where names without a database are looked up.
pub(crate) fn database(named: Option<String>) -> Result<String, Problem> {
    let database = named.filter(|d| !d.is_empty()).unwrap_or_else(|| "default".to_owned());
    if database.len() > 63
        || !database.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    {
        return Err(Problem::new(
            Code::BadDatabase,
            "a database has 1 to 63 characters of A-Z a-z 0-9 _ . -",
        ));
    }
    Ok(database)
}

async fn answer(
    state: &Arc<State>,
    principal: &Principal,
    question: Question,
) -> Result<Response, Problem> {
    let scope = policy::to_read(principal)?;
    let sql = question
        .q
        .filter(|q| !q.trim().is_empty())
        .ok_or_else(|| Problem::new(Code::SqlSyntax, "there is no SQL: give it as `q`"))?;
    let format: Format =
        question.format.as_deref().unwrap_or("json").parse().map_err(bad_format)?;
    let params = Params::from_json(question.params.unwrap_or(Value::Null))?;
    let database = database(question.db)?;
    let answer = state.query.run(scope, &database, &sql, params).await?;
    let mut pieces = result::encode(format, answer);
    // The first piece decides the status: most errors come before any row.
    let first = match pieces.next().await {
        Some(first) => first?,
        None => bytes::Bytes::new(),
    };
    let body = futures::stream::once(async { Ok(first) }).chain(pieces);
    let mut response = Response::new(Body::from_stream(body));
    let content_type = HeaderValue::from_static(format.content_type());
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    Ok(response)
}
