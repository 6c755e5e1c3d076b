//! What a run found, for people (a table on standard error) and for programs (one JSON line, the
//! last line of standard output).
//!
//! Owns: the names of the figures; they are compared across runs, so they do not change.

use std::time::Duration;

use serde::Serialize;

/// The figures of one whole-system run.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// The workload.
    pub bench: String,
    /// Rows sent and acked.
    pub rows: u64,
    /// Acked rows per second of wall time, while loading.
    pub rows_per_s: f64,
    /// Server CPU seconds per million rows, user and system, until everything is settled in files.
    pub cpu_s_per_mrow: f64,
    /// Bytes on disk per row when settled, without the log.
    pub bytes_per_row: f64,
    /// Median time from the first byte of a request to its whole answer, ms.
    pub ack_ms_p50: f64,
    /// 99th percentile of the same, ms.
    pub ack_ms_p99: f64,
    /// Peak resident memory of the server, MiB.
    pub rss_mib: f64,
    /// Acked rows that a query did not find.
    pub lost: u64,
    /// Rows that a query found beyond those sent.
    pub doubled: u64,
    /// Whatever the workload adds.
    #[serde(flatten)]
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Figures {
    /// Prints the table and then, last of all, the line.
    pub fn print(&self) {
        eprintln!();
        let value = serde_json::to_value(self).unwrap_or_default();
        for (name, value) in value.as_object().into_iter().flatten() {
            eprintln!("{name:<24} {value}");
        }
        println!("{value}");
    }
}

/// The value below which `share` (0 to 1) of the samples lie, in ms; 0 without samples. Sorts.
pub fn percentile_ms(samples: &mut [Duration], share: f64) -> f64 {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    let at = ((samples.len() as f64 * share).ceil() as usize).saturating_sub(1).min(last);
    samples.get(at).map_or(0.0, |d| round(d.as_secs_f64() * 1e3, 2))
}

/// Rounds to a number of decimals, so that figures read well.
pub fn round(value: f64, decimals: i32) -> f64 {
    let scale = 10f64.powi(decimals);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples_and_not_interpolated() {
        let mut samples: Vec<Duration> = (1..=100).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile_ms(&mut samples, 0.5), 50.0);
        assert_eq!(percentile_ms(&mut samples, 0.99), 99.0);
        assert_eq!(percentile_ms(&mut [], 0.5), 0.0);
    }
}
