//! What can go wrong with a query, with stable codes.
//!
//! Never: names a path, another tenant or an internal type in a message.

use datafusion::{error::DataFusionError, sql::sqlparser::parser::ParserError};

/// Why a query was refused or ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueryError {
    /// The text is not SQL.
    #[error("the SQL does not parse: {0}")]
    Syntax(String),
    /// The statement is not one that may be run.
    #[error(
        "this statement is not allowed: {0}; allowed are SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES, SHOW COLUMNS and DESCRIBE"
    )]
    NotAllowed(String),
    /// A table, column or function that does not exist.
    #[error("{0}")]
    Unknown(String),
    /// Over a limit that is checked before planning.
    #[error("the query is too large: {0}")]
    TooComplex(String),
    /// A parameter is missing, extra or of no type that SQL has.
    #[error("parameters: {0}")]
    Params(String),
    /// Types or values do not fit.
    #[error("the query cannot be run: {0}")]
    Invalid(String),
    /// Out of time.
    #[error("the query ran longer than {seconds} s and was ended; narrow its time range")]
    Timeout {
        /// The limit.
        seconds: u64,
    },
    /// Out of memory.
    #[error("the query needs more memory than it may use; narrow its time range or group by less")]
    Memory,
    /// A function would make a value that is larger than a value may be.
    #[error(
        "`{function}` would make more than {mebibytes} MiB of one value or too much of one batch; use a smaller number or a shorter text"
    )]
    ValueTooLarge {
        /// The function.
        function: String,
        /// The limit, MiB.
        mebibytes: u64,
    },
    /// Too many at once.
    #[error(
        "this tenant already has {running} queries running and {queued} waiting; try again in a moment"
    )]
    Busy {
        /// Running.
        running: usize,
        /// Waiting.
        queued: usize,
    },
    /// The tenant's data cannot be read.
    #[error("{0}")]
    Unavailable(String),
    /// A bug or damage; details are in the server's log.
    #[error(
        "the query failed inside the server; the operator finds the reason in the server log under {0}"
    )]
    Internal(String),
}

impl QueryError {
    /// All stable codes with the HTTP status of each.
    pub const CODES: &'static [(&'static str, u16)] = &[
        ("sql_syntax", 400),
        ("sql_not_allowed", 403),
        ("sql_unknown_name", 400),
        ("sql_too_complex", 400),
        ("sql_params", 400),
        ("sql_invalid", 400),
        ("query_timeout", 408),
        ("query_memory", 413),
        ("too_many_queries", 429),
        ("data_unavailable", 503),
        ("internal", 500),
        ("query_value_too_large", 413),
    ];

    /// The stable code and HTTP status.
    pub fn code(&self) -> (&'static str, u16) {
        let index = match self {
            Self::Syntax(_) => 0,
            Self::NotAllowed(_) => 1,
            Self::Unknown(_) => 2,
            Self::TooComplex(_) => 3,
            Self::Params(_) => 4,
            Self::Invalid(_) => 5,
            Self::Timeout { .. } => 6,
            Self::Memory => 7,
            Self::Busy { .. } => 8,
            Self::Unavailable(_) => 9,
            Self::Internal(_) => 10,
            Self::ValueTooLarge { .. } => 11,
        };
        Self::CODES.get(index).copied().unwrap_or(("internal", 500))
    }

    /// The work ended by a bug; the panic itself is in the server's log.
    pub(crate) fn panicked() -> Self {
        internal("panic")
    }

    /// The work ended without saying so, as it does when the server stops.
    pub(crate) fn cut_off() -> Self {
        Self::Unavailable("the query was cut off because the server is stopping".to_owned())
    }
}

/// One line of a DataFusion message, without the catalogue's own name, without the stage that it
/// comes from and without the list of everything else that was tried.
fn clean(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(", errors: ").next().unwrap_or(line);
    let mut line = line.replace("millrace.", "");
    for stage in ["Internal error: ", "Error during planning: ", "Execution error: "] {
        line = line.replace(stage, "");
    }
    line.chars().take(400).collect()
}

impl From<DataFusionError> for QueryError {
    fn from(e: DataFusionError) -> Self {
        match e.find_root() {
            DataFusionError::SQL(e, _) => match e.as_ref() {
                ParserError::RecursionLimitExceeded => {
                    Self::TooComplex("it nests too deeply".to_owned())
                }
                ParserError::ParserError(text) | ParserError::TokenizerError(text) => {
                    Self::Syntax(clean(text))
                }
            },
            DataFusionError::SchemaError(e, _) => Self::Unknown(clean(&e.to_string())),
            DataFusionError::ResourcesExhausted(_) => Self::Memory,
            DataFusionError::Plan(text) if text.contains("not found") => Self::Unknown(clean(text)),
            DataFusionError::Plan(text) if text.contains("Invalid function") => {
                Self::Unknown(clean(text))
            }
            DataFusionError::Plan(text)
                if text.contains("parameter") || text.contains("placeholder") =>
            {
                Self::Params(clean(text))
            }
            DataFusionError::Plan(text) if text.contains("not supported: ") => {
                Self::NotAllowed(clean(text))
            }
            DataFusionError::Plan(text)
            | DataFusionError::Execution(text)
            | DataFusionError::NotImplemented(text)
            | DataFusionError::Configuration(text) => Self::Invalid(clean(text)),
            DataFusionError::ArrowError(e, _) => Self::Invalid(clean(&e.to_string())),
            DataFusionError::External(e) => match e.downcast_ref::<QueryError>() {
                Some(inner) => inner.clone(),
                None => foreign(&e.to_string()),
            },
            DataFusionError::Diagnostic(_, inner) => Self::Invalid(clean(&inner.to_string())),
            other => internal(&other.to_string()),
        }
    }
}

/// An error of a library that DataFusion passes on. The regex engine's refusals are the author's
/// to mend; their last line says why.
fn foreign(text: &str) -> QueryError {
    if !text.starts_with("regex parse error") && !text.starts_with("Compiled regex exceeds") {
        return internal(text);
    }
    let why = text.lines().last().unwrap_or_default();
    QueryError::Invalid(clean(&format!("the pattern cannot be used: {why}")))
}

fn internal(detail: &str) -> QueryError {
    // The message may hold names of the tenant's own columns, so it goes to the log only as a
    // kind; the id joins the two.
    let id = format!("query-{:08x}", crc_of(detail));
    tracing::error!(id, "a query failed inside the server");
    tracing::debug!(id, detail, "detail of a failed query");
    QueryError::Internal(id)
}

fn crc_of(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fixture::World;

    #[test]
    fn every_error_has_a_code_of_its_own() {
        let text = || "x".to_owned();
        let all = [
            QueryError::Syntax(text()),
            QueryError::NotAllowed(text()),
            QueryError::Unknown(text()),
            QueryError::TooComplex(text()),
            QueryError::Params(text()),
            QueryError::Invalid(text()),
            QueryError::Timeout { seconds: 1 },
            QueryError::Memory,
            QueryError::Busy { running: 1, queued: 1 },
            QueryError::Unavailable(text()),
            QueryError::Internal(text()),
            QueryError::ValueTooLarge { function: text(), mebibytes: 1 },
        ];
        let codes: BTreeSet<&str> = all.iter().map(|e| e.code().0).collect();
        assert_eq!(codes.len(), QueryError::CODES.len());
        assert_eq!(all.len(), codes.len());
    }

    #[test]
    fn what_datafusion_says_becomes_a_stable_code() {
        let world = World::sample();
        for (sql, code) in [
            ("SELECT 1", "ok"),
            ("SELEC 1", "sql_syntax"),
            ("", "sql_syntax"),
            ("DROP TABLE cpu", "sql_not_allowed"),
            ("SELECT * FROM nowhere", "sql_unknown_name"),
            ("SELECT * FROM nowhere.cpu", "sql_unknown_name"),
            ("SELECT nothing FROM cpu", "sql_unknown_name"),
            ("SELECT nothing(1)", "sql_unknown_name"),
            ("SELECT $1", "sql_params"),
            ("SELECT sum(host) FROM cpu", "sql_invalid"),
            ("SELECT 1 / 0", "sql_invalid"),
            ("SELECT CAST('x' AS INT)", "sql_invalid"),
            ("SELECT host FROM cpu GROUP BY region", "sql_invalid"),
            ("SELECT host FROM cpu a JOIN cpu b ON true", "sql_unknown_name"),
            ("SELECT repeat('x', 1000000000)", "query_value_too_large"),
        ] {
            assert_eq!(world.code(sql), code, "{sql}: {:?}", world.ask(sql).err());
        }
    }

    #[test]
    fn a_message_is_one_line_and_names_nothing_inside() {
        let world = World::sample();
        for sql in ["SELECT * FROM nowhere", "SELECT nothing FROM cpu", "SELECT sum(host) FROM cpu"]
        {
            let message = world.ask(sql).unwrap_err().to_string();
            assert!(!message.contains('\n') && message.len() < 500, "{message}");
            for inside in ["millrace.", "DataFusion", "datafusion", ".rs"] {
                assert!(!message.contains(inside), "{message}");
            }
        }
    }
}
