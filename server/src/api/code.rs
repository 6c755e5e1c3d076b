//! The stable codes of refusals, with the HTTP status of each.
//!
//! Owns: every code that an answer can carry. Clients match on codes, so one is never renamed or
//! given another meaning; docs/http-api.md lists them and a test compares the two.

use axum::http::StatusCode;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:ident;)+) => {
        /// A stable code.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Code {
            $($(#[$doc])* $variant,)+
        }

        impl Code {
            /// All codes.
            #[cfg(test)]
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// As it stands in an answer.
            pub(crate) const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The status that goes with it.
            pub(crate) const fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)+
                }
            }
        }
    };
}

codes! {
    /// No such path, tenant, token or device.
    NotFound = "not_found", NOT_FOUND;
    /// The path has no such method.
    MethodNotAllowed = "method_not_allowed", METHOD_NOT_ALLOWED;
    /// No valid credential.
    Unauthenticated = "unauthenticated", UNAUTHORIZED;
    /// A valid credential without this right.
    Forbidden = "forbidden", FORBIDDEN;
    /// A query parameter that cannot be read.
    BadParameter = "bad_parameter", BAD_REQUEST;
    /// A JSON body that cannot be read.
    BadJson = "bad_json", BAD_REQUEST;
    /// A body whose content type is not JSON.
    BadContentType = "bad_content_type", UNSUPPORTED_MEDIA_TYPE;
    /// An unknown content encoding.
    BadEncoding = "bad_encoding", UNSUPPORTED_MEDIA_TYPE;
    /// A body that is not what its headers say, or that ended early.
    BadBody = "bad_body", BAD_REQUEST;
    /// A body over a limit.
    BodyTooLarge = "body_too_large", PAYLOAD_TOO_LARGE;
    /// An unknown precision.
    BadPrecision = "bad_precision", BAD_REQUEST;
    /// A database name that cannot be.
    BadDatabase = "bad_database", BAD_REQUEST;
    /// A name of a tenant that cannot be.
    BadName = "bad_name", BAD_REQUEST;
    /// No tenant was named where one is needed.
    BadTenant = "bad_tenant", BAD_REQUEST;
    /// An unknown scope.
    BadScope = "bad_scope", BAD_REQUEST;
    /// A claim code that is wrong, used or over.
    BadClaim = "bad_claim", FORBIDDEN;
    /// A certificate signing request that cannot be signed.
    BadSigningRequest = "bad_signing_request", BAD_REQUEST;
    /// A Flight ticket that cannot be read.
    BadTicket = "bad_ticket", BAD_REQUEST;
    /// A broken Arrow message.
    BadIpc = "bad_ipc", BAD_REQUEST;
    /// Sequence numbers that do not fit the rows or the stream.
    BadSequence = "bad_sequence", BAD_REQUEST;
    /// A batch whose shape cannot be stored.
    BadBatch = "bad_batch", BAD_REQUEST;
    /// Rows before these have not come: open the stream again.
    RowsMissing = "rows_missing", CONFLICT;
    /// The name is taken.
    Exists = "exists", CONFLICT;
    /// A plan, a table's own limit or a hold that cannot be.
    BadPlan = "bad_plan", BAD_REQUEST;
    /// A legal hold keeps what would be deleted.
    Held = "held", CONFLICT;
    /// The tenant has been removed.
    TenantGone = "tenant_gone", FORBIDDEN;
    /// More at once than there is room for.
    Busy = "busy", TOO_MANY_REQUESTS;
    /// The tenant is over its own budget.
    OverBudget = "over_budget", TOO_MANY_REQUESTS;
    /// The disk is full.
    DiskFull = "disk_full", INSUFFICIENT_STORAGE;
    /// The write-ahead log takes no rows.
    LogUnavailable = "log_unavailable", SERVICE_UNAVAILABLE;
    /// Keys cannot be had now.
    KeysUnavailable = "keys_unavailable", SERVICE_UNAVAILABLE;
    /// The catalogue could not be stored.
    CatalogUnavailable = "catalog_unavailable", SERVICE_UNAVAILABLE;
    /// The server is stopping.
    Stopped = "stopped", SERVICE_UNAVAILABLE;
    /// SQL that cannot be read.
    SqlSyntax = "sql_syntax", BAD_REQUEST;
    /// SQL that is not offered.
    SqlNotAllowed = "sql_not_allowed", FORBIDDEN;
    /// A table, column or function that does not exist.
    SqlUnknownName = "sql_unknown_name", BAD_REQUEST;
    /// SQL that is too long or too deep.
    SqlTooComplex = "sql_too_complex", BAD_REQUEST;
    /// Parameters that do not fit the statement.
    SqlParams = "sql_params", BAD_REQUEST;
    /// SQL that cannot be planned or run.
    SqlInvalid = "sql_invalid", BAD_REQUEST;
    /// The statement took too long.
    QueryTimeout = "query_timeout", REQUEST_TIMEOUT;
    /// The statement needed too much memory.
    QueryMemory = "query_memory", PAYLOAD_TOO_LARGE;
    /// One value, or the values of one batch, grew too large.
    QueryValueTooLarge = "query_value_too_large", PAYLOAD_TOO_LARGE;
    /// Too many statements run and wait.
    TooManyQueries = "too_many_queries", TOO_MANY_REQUESTS;
    /// Data cannot be read now.
    DataUnavailable = "data_unavailable", SERVICE_UNAVAILABLE;
    /// A fault of the server.
    Internal = "internal", INTERNAL_SERVER_ERROR;
}

impl Code {
    /// The code of a query's error; `Internal` if the two lists went apart, which a test forbids.
    pub(crate) fn of_query(text: &str) -> Self {
        match text {
            "sql_syntax" => Self::SqlSyntax,
            "sql_not_allowed" => Self::SqlNotAllowed,
            "sql_unknown_name" => Self::SqlUnknownName,
            "sql_too_complex" => Self::SqlTooComplex,
            "sql_params" => Self::SqlParams,
            "sql_invalid" => Self::SqlInvalid,
            "query_timeout" => Self::QueryTimeout,
            "query_memory" => Self::QueryMemory,
            "query_value_too_large" => Self::QueryValueTooLarge,
            "too_many_queries" => Self::TooManyQueries,
            "data_unavailable" => Self::DataUnavailable,
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millrace_query::QueryError;

    use super::*;

    const DOCUMENT: &str =
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/http-api.md"));

    /// Rows `| 400 | \`code\` | text |` of the document's table of problems.
    fn documented() -> BTreeSet<(u16, String)> {
        let table = DOCUMENT.split("## Codes").nth(1).expect("the document lists codes");
        let rows = table.lines().filter_map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let status = cells.next()?.parse().ok()?;
            Some((status, cells.next()?.trim_matches('`').to_owned()))
        });
        rows.collect()
    }

    #[test]
    fn the_document_lists_exactly_these_codes() {
        let ours: BTreeSet<_> =
            Code::ALL.iter().map(|c| (c.status().as_u16(), c.as_str().to_owned())).collect();
        assert_eq!(ours.len(), Code::ALL.len(), "a code stands twice");
        assert_eq!(documented(), ours);
    }

    #[test]
    fn every_code_of_a_query_is_one_of_these_with_the_same_status() {
        for (text, status) in QueryError::CODES {
            let code = Code::of_query(text);
            assert_eq!((code.as_str(), code.status().as_u16()), (*text, *status));
        }
    }
}
