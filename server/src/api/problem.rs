//! Errors as RFC 9457 problem documents with stable codes (`super::code`).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use millrace_control::{CatalogError, Denied};
use millrace_query::QueryError;
use millrace_storage::WriteError;

use super::Code;
use crate::ingest::OverBudget;

/// A problem document on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) code: Code,
    pub(crate) detail: String,
    retry_after_s: Option<u64>,
    /// Unit and quota per second of the budget that was used up.
    budget: Option<(&'static str, u64)>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after_s: None, budget: None }
    }

    pub(crate) const fn status(&self) -> StatusCode {
        self.code.status()
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(Code::Forbidden, detail)
    }

    pub(crate) fn unauthenticated() -> Self {
        Self::new(Code::Unauthenticated, "a valid token is needed: Authorization: Bearer TOKEN")
    }

    /// The same, which passes by itself: try again after so many seconds.
    pub(crate) const fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Adds what every refusal that passes by itself says: when to try again.
    pub(crate) fn decorate(&self, mut response: Response) -> Response {
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let (Some((unit, quota)), Some(seconds)) = (self.budget, self.retry_after_s) {
            // draft-ietf-httpapi-ratelimit-headers: the policy, and how much of it is left.
            let policy = format!("\"{unit}\";q={quota};w=1");
            let left = format!("\"{unit}\";r=0;t={seconds}");
            for (name, value) in [("ratelimit-policy", policy), ("ratelimit", left)] {
                if let Ok(value) = HeaderValue::from_str(&value) {
                    response.headers_mut().insert(name, value);
                }
            }
        }
        if self.code == Code::Unauthenticated {
            let scheme = HeaderValue::from_static("Bearer realm=\"millrace\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = millrace_protocol::problem::Problem {
            kind: format!("https://millrace.dev/problems/{}", self.code.as_str()),
            title: self.status().canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status().as_u16(),
            code: self.code.as_str().to_owned(),
            detail: self.detail.clone(),
        };
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        self.decorate((self.status(), content_type, Json(body)).into_response_with_type())
    }
}

/// `Json` sets its own content type; this puts ours back.
trait WithType {
    fn into_response_with_type(self) -> Response;
}

impl WithType
    for (
        StatusCode,
        [(header::HeaderName, &'static str); 1],
        Json<millrace_protocol::problem::Problem>,
    )
{
    fn into_response_with_type(self) -> Response {
        let mut response = (self.0, self.2).into_response();
        for (name, value) in self.1 {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        response
    }
}

impl From<OverBudget> for Problem {
    fn from(over: OverBudget) -> Self {
        Self {
            budget: Some((over.unit, over.quota)),
            ..Self::new(Code::OverBudget, over.to_string()).retry_after(over.seconds())
        }
    }
}

impl From<Denied> for Problem {
    fn from(e: Denied) -> Self {
        Self::forbidden(e.to_string())
    }
}

impl From<QueryError> for Problem {
    fn from(e: QueryError) -> Self {
        let (code, _) = e.code();
        let out = Self::new(Code::of_query(code), e.to_string());
        match e {
            QueryError::Busy { .. } | QueryError::Unavailable(_) => out.retry_after(1),
            _ => out,
        }
    }
}

impl From<WriteError> for Problem {
    fn from(e: WriteError) -> Self {
        let (code, retry) = match &e {
            WriteError::TenantGone => (Code::TenantGone, None),
            WriteError::KeysUnavailable(_) => (Code::KeysUnavailable, Some(5)),
            WriteError::Unreadable(_) => (Code::DataUnavailable, Some(5)),
            WriteError::Missing { .. } => (Code::RowsMissing, None),
            WriteError::Sequence(_) => (Code::BadSequence, None),
            WriteError::Database(_) => (Code::BadDatabase, None),
            WriteError::Batch(_) => (Code::BadBatch, None),
            WriteError::TooLarge(_) => (Code::BodyTooLarge, None),
            WriteError::Log(_) => (Code::LogUnavailable, Some(1)),
            WriteError::DiskFull(_) => (Code::DiskFull, Some(10)),
            WriteError::Busy(_) => (Code::Busy, Some(1)),
            WriteError::Stopped | WriteError::Broken(_) => (Code::Stopped, Some(5)),
        };
        // Paths of the server are not the client's business.
        let detail = match &e {
            WriteError::Unreadable(_) => "the tenant's tables cannot be loaded now; nothing was acknowledged, send the rows again".to_owned(),
            WriteError::Log(_) => "the write-ahead log cannot take rows now; nothing was acknowledged, send the rows again".to_owned(),
            WriteError::DiskFull(_) => "the disk is full; nothing was acknowledged, send the rows again when there is space".to_owned(),
            other => other.to_string(),
        };
        if code.status().is_server_error() {
            tracing::error!(error = %e, "a write failed");
        }
        Self { retry_after_s: retry, ..Self::new(code, detail) }
    }
}

impl From<CatalogError> for Problem {
    fn from(e: CatalogError) -> Self {
        let code = match &e {
            CatalogError::File { .. } => {
                tracing::error!(error = %e, "the catalogue failed");
                return Self::new(
                    Code::CatalogUnavailable,
                    "the change could not be stored; nothing was changed, try again",
                );
            }
            CatalogError::Name(_) => Code::BadName,
            CatalogError::Exists(_) => Code::Exists,
            CatalogError::NotFound(_) => Code::NotFound,
            CatalogError::Scope(_) => Code::BadScope,
            CatalogError::Claim => Code::BadClaim,
            CatalogError::Plan(_) => Code::BadPlan,
            CatalogError::OperatorHold => Code::Forbidden,
            CatalogError::Certificate(_) => Code::BadSigningRequest,
        };
        Self::new(code, e.to_string())
    }
}
