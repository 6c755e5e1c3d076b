//! Stable error codes, shared by the HTTP layer (RFC 9457), Flight and the forwarder.

use serde::{Deserialize, Serialize};

/// A problem document (RFC 9457) with Millrace's extension members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `https://millrace.dev/problems/<code>`: stable, one page per code in docs/http-api.md.
    #[serde(rename = "type")]
    pub kind: String,
    /// Short summary of the kind.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// The stable code alone.
    pub code: String,
    /// What was wrong, where, and what to do.
    pub detail: String,
}
