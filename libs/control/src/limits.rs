//! What one tenant may send: its own limits, and the server's defaults where it has none.
//!
//! Owns: the figures and how an override and a default make one. Never: counts, refuses or knows
//! a clock; `millrace_server::ingest` and the storage engine do.

use serde::{Deserialize, Serialize};

/// A tenant's own limits; `None` takes the server's default, 0 means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantLimits {
    /// Rows per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_per_s: Option<u64>,
    /// Bytes of rows per second: line protocol as text, Arrow as its message, both uncompressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_s: Option<u64>,
    /// New series per table and UTC day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series_per_day: Option<u64>,
}

impl TenantLimits {
    /// Whether everything is the server's default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The own figures, and the plan's where there are none.
    pub fn or(&self, plan: &Self) -> Self {
        Self {
            rows_per_s: self.rows_per_s.or(plan.rows_per_s),
            bytes_per_s: self.bytes_per_s.or(plan.bytes_per_s),
            series_per_day: self.series_per_day.or(plan.series_per_day),
        }
    }

    /// What counts: the own figure, else the default's.
    pub fn over(&self, default: &Limits) -> Limits {
        Limits {
            rows_per_s: self.rows_per_s.unwrap_or(default.rows_per_s),
            bytes_per_s: self.bytes_per_s.unwrap_or(default.bytes_per_s),
            series_per_day: self.series_per_day.unwrap_or(default.series_per_day),
        }
    }
}

/// Limits that count; 0 means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Rows per second.
    pub rows_per_s: u64,
    /// Bytes of rows per second.
    pub bytes_per_s: u64,
    /// New series per table and UTC day.
    pub series_per_day: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_override_counts_before_the_default_also_when_it_lifts_the_limit() {
        let default = Limits { rows_per_s: 10, bytes_per_s: 20, series_per_day: 30 };
        let own = TenantLimits { rows_per_s: Some(5), bytes_per_s: Some(0), series_per_day: None };
        assert_eq!(
            own.over(&default),
            Limits { rows_per_s: 5, bytes_per_s: 0, series_per_day: 30 }
        );
        assert!(TenantLimits::default().is_default() && !own.is_default());
        assert_eq!(TenantLimits::default().over(&default), default);
    }
}
