//! Errors as RFC 9457 problem documents with stable codes (docs/http-api.md lists them).

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use millrace_control::{CatalogError, Denied};
use millrace_query::QueryError;
use millrace_storage::WriteError;

/// A problem document on its way out.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) detail: String,
    retry_after_s: Option<u64>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after_s: None }
    }

    pub(crate) fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    pub(crate) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "unauthenticated",
            "a valid token is needed: Authorization: Bearer TOKEN",
        )
    }

    pub(crate) fn busy(detail: impl Into<String>) -> Self {
        let mut out = Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", detail);
        out.retry_after_s = Some(1);
        out
    }

    /// Adds what every refusal that passes by itself says: when to try again.
    pub(crate) fn decorate(&self, mut response: Response) -> Response {
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let scheme = HeaderValue::from_static("Bearer realm=\"millrace\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = millrace_protocol::problem::Problem {
            kind: format!("https://millrace.dev/problems/{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: self.status.as_u16(),
            code: self.code.to_owned(),
            detail: self.detail.clone(),
        };
        let content_type = [(header::CONTENT_TYPE, "application/problem+json")];
        self.decorate((self.status, content_type, Json(body)).into_response_with_type())
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

impl From<Denied> for Problem {
    fn from(e: Denied) -> Self {
        Self::forbidden(e.to_string())
    }
}

impl From<QueryError> for Problem {
    fn from(e: QueryError) -> Self {
        let (code, status) = e.code();
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut out = Self::new(status, code, e.to_string());
        if matches!(e, QueryError::Busy { .. } | QueryError::Unavailable(_)) {
            out.retry_after_s = Some(1);
        }
        out
    }
}

impl From<WriteError> for Problem {
    fn from(e: WriteError) -> Self {
        let (status, code, retry) = match &e {
            WriteError::TenantGone => (StatusCode::FORBIDDEN, "tenant_gone", None),
            WriteError::KeysUnavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "keys_unavailable", Some(5))
            }
            WriteError::Missing { .. } => (StatusCode::CONFLICT, "rows_missing", None),
            WriteError::Sequence(_) => (StatusCode::BAD_REQUEST, "bad_sequence", None),
            WriteError::Database(_) => (StatusCode::BAD_REQUEST, "bad_database", None),
            WriteError::Batch(_) => (StatusCode::BAD_REQUEST, "bad_batch", None),
            WriteError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", None),
            WriteError::Log(_) => (StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", Some(1)),
            WriteError::DiskFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "disk_full", Some(10)),
            WriteError::Busy(_) => (StatusCode::TOO_MANY_REQUESTS, "busy", Some(1)),
            WriteError::Stopped | WriteError::Broken(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "stopped", Some(5))
            }
        };
        // Paths of the server are not the client's business.
        let detail = match &e {
            WriteError::Log(_) => "the write-ahead log cannot take rows now; nothing was acknowledged, send the rows again".to_owned(),
            WriteError::DiskFull(_) => "the disk is full; nothing was acknowledged, send the rows again when there is space".to_owned(),
            other => other.to_string(),
        };
        if status.is_server_error() {
            tracing::error!(error = %e, "a write failed");
        }
        let mut out = Self::new(status, code, detail);
        out.retry_after_s = retry;
        out
    }
}

impl From<CatalogError> for Problem {
    fn from(e: CatalogError) -> Self {
        let (status, code) = match &e {
            CatalogError::File { .. } => {
                tracing::error!(error = %e, "the catalogue failed");
                return Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "catalog_unavailable",
                    "the change could not be stored; nothing was changed, try again",
                );
            }
            CatalogError::Name(_) => (StatusCode::BAD_REQUEST, "bad_name"),
            CatalogError::Exists(_) => (StatusCode::CONFLICT, "exists"),
            CatalogError::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            CatalogError::Scope(_) => (StatusCode::BAD_REQUEST, "bad_scope"),
            CatalogError::Claim => (StatusCode::FORBIDDEN, "bad_claim"),
            CatalogError::Certificate(_) => (StatusCode::BAD_REQUEST, "bad_signing_request"),
        };
        Self::new(status, code, e.to_string())
    }
}
