//! What went wrong, as PostgreSQL's clients read it.
//!
//! Owns: the SQLSTATE of each stable code. The message is the same as over HTTP, and the detail
//! names the code. Never: tells more than HTTP does.

use millrace_query::QueryError;

use super::message::{Out, put_text};

/// How far it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// This statement.
    Error,
    /// The connection.
    Fatal,
}

/// A refusal on its way out.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) state: &'static str,
    pub(super) text: String,
    /// The stable code, if it has one.
    pub(super) code: Option<&'static str>,
}

impl Refusal {
    pub(super) fn new(state: &'static str, text: impl Into<String>) -> Self {
        Self { state, text: text.into(), code: None }
    }

    pub(super) fn cancelled() -> Self {
        Self::new("57014", "the statement was cancelled on request")
    }

    pub(super) fn withdrawn() -> Self {
        Self::new("57P01", "the token has been revoked or has expired")
    }

    pub(super) fn put(&self, out: &mut Out, reach: Reach) {
        let severity = match reach {
            Reach::Error => "ERROR",
            Reach::Fatal => "FATAL",
        };
        out.message(b'E', |out| {
            let mut field = |kind: u8, value: &str| {
                out.extend_from_slice(&[kind]);
                put_text(out, value);
            };
            field(b'S', severity);
            field(b'V', severity);
            field(b'C', self.state);
            field(b'M', &self.text);
            if let Some(code) = self.code {
                field(b'D', &format!("code {code}"));
            }
            out.extend_from_slice(&[0]);
        });
    }
}

impl From<QueryError> for Refusal {
    fn from(e: QueryError) -> Self {
        let (code, _) = e.code();
        Self { state: state_of(code, &e.to_string()), text: e.to_string(), code: Some(code) }
    }
}

fn state_of(code: &str, text: &str) -> &'static str {
    match code {
        "sql_syntax" => "42601",
        "sql_not_allowed" => "0A000",
        "sql_unknown_name" if text.contains("function") => "42883",
        "sql_unknown_name" if text.contains("table") => "42P01",
        "sql_unknown_name" => "42703",
        "sql_too_complex" => "54001",
        "sql_params" => "42P02",
        "sql_invalid" => "22000",
        "query_timeout" => "57014",
        "query_memory" | "query_value_too_large" => "53200",
        "too_many_queries" => "53400",
        "data_unavailable" => "58000",
        _ => "XX000",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_a_query_has_a_state_of_its_own_kind() {
        for (code, _) in QueryError::CODES {
            let state = state_of(code, "");
            assert_eq!(state.len(), 5, "{code}");
            assert_eq!(state == "XX000", *code == "internal", "{code}");
        }
    }
}
