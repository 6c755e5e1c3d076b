//! `POST /api/v1/delete`: rows or a table, by one SQL statement.
//!
//! An endpoint of its own, so that the one for queries stays one that cannot change anything.
//! Answered when what it takes is durably gone from every query.

use axum::{
    Json,
    extract::{State as Given, rejection::JsonRejection},
    response::{IntoResponse, Response},
};
use millrace_control::{Principal, policy};
use millrace_query::{DeletionError, Params};
use millrace_storage::DeleteError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Code, Problem, Shared, auth::Caller, request::json_problem};

/// The statement.
#[derive(Debug, Deserialize)]
pub(crate) struct Statement {
    #[serde(default)]
    db: Option<String>,
    #[serde(default, alias = "query")]
    q: Option<String>,
    #[serde(default)]
    params: Option<Value>,
}

pub(crate) async fn post(
    Given(state): Shared,
    Caller(principal): Caller,
    statement: Result<Json<Statement>, JsonRejection>,
) -> Result<Response, Problem> {
    // A5: operating the server gives no right over rows.
    let Principal::Token { tenant, token, .. } = &principal else {
        return Err(Problem::forbidden("a token of the tenant with scope `admin` is needed"));
    };
    let scope = policy::to_administer(&principal, *tenant)?;
    let Json(Statement { db, q, params }) = statement.map_err(json_problem)?;
    let sql = q
        .filter(|q| !q.trim().is_empty())
        .ok_or_else(|| Problem::new(Code::SqlSyntax, "there is no statement: give it as `q`"))?;
    let params = Params::from_json(params.unwrap_or(Value::Null))?;
    let database = db.filter(|d| !d.is_empty()).unwrap_or_else(|| "default".to_owned());
    let done = state.query.delete(scope, &database, &sql, params).await?;
    tracing::info!(
        %tenant,
        token,
        table = done.table.1,
        dropped = done.dropped,
        lsn = done.done.lsn.0,
        "rows were deleted by statement"
    );
    Ok(Json(json!({
        "database": done.table.0,
        "table": done.table.1,
        "dropped": done.dropped,
        "series": done.series,
        "from_ns": (!done.dropped).then_some(done.times.0),
        "to_ns": (!done.dropped).then_some(done.times.1),
        "lsn": done.done.lsn,
        "files": done.done.files,
    }))
    .into_response())
}

impl From<DeletionError> for Problem {
    fn from(e: DeletionError) -> Self {
        let e = match e {
            DeletionError::Statement(e) => return e.into(),
            DeletionError::Storage(e) => e,
        };
        let code = match &e {
            DeleteError::NoTable(_) => Code::SqlUnknownName,
            DeleteError::Held(_) => Code::Held,
            DeleteError::TooManySeries(_) => Code::SqlTooComplex,
            DeleteError::TooMany => Code::Busy,
            DeleteError::Flush(_) | DeleteError::Store(_) | DeleteError::Unreadable(_) => {
                tracing::error!(error = %e, "a deletion failed");
                let detail = "the deletion could not be stored and nothing was deleted, or it cannot be told; ask again, which does no harm";
                return Self::new(Code::DataUnavailable, detail).retry_after(5);
            }
            DeleteError::Stopped => {
                return Self::new(Code::Stopped, e.to_string()).retry_after(5);
            }
        };
        let problem = Self::new(code, e.to_string());
        if code == Code::Busy { problem.retry_after(60) } else { problem }
    }
}
