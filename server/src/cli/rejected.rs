//! `millrace rejected`: look at refused rows and send them again.
//!
//! Owns: the filters and the pages. Rows are read by SQL from `_rejected` and sent in order of
//! arrival; the server stores them and marks those that it takes, so that a replay that is cut off
//! goes on where it was. Never: sends a row whose text was cut, or that was no UTF-8.

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Failure, Remote, client::Client, say};
use crate::api::rejected::{RejectedRow, Replay};

/// Rows of one page.
const PAGE: usize = 200;

/// `millrace rejected …`
#[derive(Debug, Subcommand)]
pub(crate) enum RejectedCommand {
    /// Show refused rows, the newest first.
    #[command(
        after_help = "Examples:\n  millrace rejected list --url https://localhost:8443 --ca ./data/tls/ca.pem\n  millrace rejected list --table cpu --code out_of_window --since 2h --json --url https://localhost:8443"
    )]
    List {
        #[command(flatten)]
        filter: Filter,
        /// Rows shown at most.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// Also those that were replayed.
        #[arg(long)]
        all: bool,
    },
    /// Send refused rows again, after what they were refused for was mended.
    #[command(
        after_help = "Examples:\n  millrace rejected replay --dry-run --url https://localhost:8443 --ca ./data/tls/ca.pem\n  millrace rejected replay --code quota --since 2026-01-31T08:00:00Z --url https://localhost:8443\n\nThe token needs the scopes read and write. A row that is refused again stays as it is;\none whose text was cut or is not UTF-8 is skipped."
    )]
    Replay {
        #[command(flatten)]
        filter: Filter,
        /// Say how many rows would be sent, and send none.
        #[arg(long)]
        dry_run: bool,
    },
}

/// Which rows.
#[derive(Debug, Args)]
pub(crate) struct Filter {
    #[command(flatten)]
    remote: Remote,
    /// Database.
    #[arg(long, default_value = "default")]
    db: String,
    /// Only rows meant for this table.
    #[arg(long)]
    table: Option<String>,
    /// Only rows refused with this code, for instance quota.
    #[arg(long)]
    code: Option<String>,
    /// Only rows of this source: a token's id, or DEVICE/STREAM.
    #[arg(long)]
    source: Option<String>,
    /// Only rows refused since then: 30m, 2h, 7d, or a time as 2026-01-31T08:00:00Z.
    #[arg(long)]
    since: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// SQL text for `--since`; only what these shapes allow gets into it.
fn since(text: &str) -> Result<String, Failure> {
    let amount = text.get(..text.len().saturating_sub(1)).and_then(|n| n.parse::<u32>().ok());
    let unit = match text.chars().last() {
        Some('s') => Some("seconds"),
        Some('m') => Some("minutes"),
        Some('h') => Some("hours"),
        Some('d') => Some("days"),
        _ => None,
    };
    if let (Some(amount), Some(unit)) = (amount, unit) {
        return Ok(format!("now() - INTERVAL '{amount} {unit}'"));
    }
    let plain = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | ':' | '.' | 'T' | 'Z');
    if text.len() < 10 || !text.chars().all(plain) {
        return Err(Failure(format!(
            "--since {text}: give a length as 30m, 2h or 7d, or a time as 2026-01-31T08:00:00Z"
        )));
    }
    Ok(format!("TIMESTAMP '{text}'"))
}

impl Filter {
    /// The condition, and the parameters that it names.
    fn condition(&self, unsent: bool) -> Result<(String, Map<String, Value>), Failure> {
        let mut all = vec!["true".to_owned()];
        let mut params = Map::new();
        for (column, wanted) in
            [("table_name", &self.table), ("code", &self.code), ("source", &self.source)]
        {
            if let Some(wanted) = wanted {
                all.push(format!("{column} = ${column}"));
                params.insert(column.to_owned(), json!(wanted));
            }
        }
        if let Some(text) = &self.since {
            all.push(format!("time >= {}", since(text)?));
        }
        if unsent {
            all.push("replayed_at = 0".to_owned());
        }
        Ok((all.join(" AND "), params))
    }

    fn ask<T: for<'a> Deserialize<'a>>(
        &self,
        client: &Client,
        sql: &str,
        params: &Map<String, Value>,
    ) -> Result<Vec<T>, Failure> {
        let mut body = json!({ "db": self.db, "q": sql, "format": "json" });
        if let (false, Some(body)) = (params.is_empty(), body.as_object_mut()) {
            body.insert("params".to_owned(), Value::Object(params.clone()));
        }
        Ok(serde_json::from_slice(&client.post("/api/v3/query_sql", &body)?)?)
    }

    /// Whether the database has refused rows at all; without any there is no table.
    fn any(&self, client: &Client) -> Result<bool, Failure> {
        let sql = "SELECT table_name FROM information_schema.tables WHERE table_schema = $db AND table_name = '_rejected'";
        let params = Map::from_iter([("db".to_owned(), json!(self.db))]);
        Ok(!self.ask::<Value>(client, sql, &params)?.is_empty())
    }
}

/// Runs the command.
pub(crate) fn run(command: RejectedCommand) -> Result<(), Failure> {
    match command {
        RejectedCommand::List { filter, limit, all } => list(&filter, limit, all),
        RejectedCommand::Replay { filter, dry_run } => replay(&filter, dry_run),
    }
}

fn list(filter: &Filter, limit: u32, all: bool) -> Result<(), Failure> {
    let client = filter.remote.client()?;
    let (condition, params) = filter.condition(!all)?;
    let rows: Vec<Value> = if filter.any(&client)? {
        let sql = format!(
            "SELECT time, id, table_name, source, code, line_number, column_number, reason, raw, replayed_at FROM _rejected WHERE {condition} ORDER BY time DESC LIMIT {limit}"
        );
        filter.ask(&client, &sql, &params)?
    } else {
        Vec::new()
    };
    if filter.json {
        say(&serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    let text =
        |row: &Value, name: &str| row.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    for row in &rows {
        let raw: String = text(row, "raw").chars().take(120).collect();
        let [time, table, code, reason] =
            ["time", "table_name", "code", "reason"].map(|name| text(row, name));
        say(&format!("{time}  {table}  {code}: {reason}\n    {raw}"));
    }
    say(&format!("{} refused rows", rows.len()));
    Ok(())
}

#[derive(Debug, Deserialize)]
struct Counted {
    n: u64,
}

/// What became of the rows.
#[derive(Debug, Default, serde::Serialize)]
struct Outcome {
    found: u64,
    replayed: u64,
    refused: Vec<Value>,
    skipped: u64,
}

fn replay(filter: &Filter, dry_run: bool) -> Result<(), Failure> {
    let client = filter.remote.client()?;
    let (condition, params) = filter.condition(true)?;
    let mut outcome = Outcome::default();
    if filter.any(&client)? {
        let count = |more: &str| -> Result<u64, Failure> {
            let sql = format!("SELECT count(*) AS n FROM _rejected WHERE {condition}{more}");
            let counted: Vec<Counted> = filter.ask(&client, &sql, &params)?;
            Ok(counted.first().map_or(0, |c| c.n))
        };
        outcome.found = count("")?;
        outcome.skipped = outcome.found.saturating_sub(count(WHOLE)?);
        if !dry_run {
            send(filter, &client, &condition, &params, &mut outcome)?;
        }
    }
    report(filter, dry_run, &outcome)
}

/// Rows that are as they came.
const WHOLE: &str = " AND raw_bytes = octet_length(raw) AND code <> 'not_utf8'";

fn send(
    filter: &Filter,
    client: &Client,
    condition: &str,
    params: &Map<String, Value>,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let wanted = outcome.found - outcome.skipped;
    let progress = if filter.json { ProgressBar::hidden() } else { ProgressBar::new(wanted) };
    progress.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} rows, {eta} left")?);
    let mut after = String::new();
    loop {
        let sql = format!(
            "SELECT id, code, source, table_name, precision, raw FROM _rejected WHERE {condition}{WHOLE} AND id > '{after}' ORDER BY id LIMIT {PAGE}"
        );
        let rows: Vec<RejectedRow> = filter.ask(client, &sql, params)?;
        let Some(last) = rows.last() else { break };
        // It goes into SQL again, and ids are all that it may be.
        after = last.id.chars().filter(char::is_ascii_hexdigit).collect();
        progress.inc(rows.len() as u64);
        let body = serde_json::to_value(Replay { db: filter.db.clone(), rows })?;
        let answer: Value =
            serde_json::from_slice(&client.post("/api/v1/rejected/replay", &body)?)?;
        outcome.replayed += answer.get("replayed").and_then(Value::as_u64).unwrap_or(0);
        let refused = answer.get("refused").and_then(Value::as_array);
        outcome.refused.extend(refused.into_iter().flatten().cloned());
    }
    progress.finish_and_clear();
    Ok(())
}

fn report(filter: &Filter, dry_run: bool, outcome: &Outcome) -> Result<(), Failure> {
    if filter.json {
        say(&serde_json::to_string_pretty(outcome)?);
        return Ok(());
    }
    let Outcome { found, replayed, refused, skipped } = outcome;
    if dry_run {
        let rows = found - skipped;
        say(&format!(
            "{rows} rows would be sent, {skipped} cannot: their text is cut or not UTF-8"
        ));
        return Ok(());
    }
    for row in refused.iter().take(10) {
        let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or("-");
        say(&format!("{}  {}: {}", text("id"), text("code"), text("reason")));
    }
    say(&format!(
        "{replayed} rows are stored now, {} are refused again, {skipped} were skipped",
        refused.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lengths_and_times_get_into_the_statement() {
        assert_eq!(since("2h").unwrap(), "now() - INTERVAL '2 hours'");
        assert_eq!(since("2026-01-31T08:00:00Z").unwrap(), "TIMESTAMP '2026-01-31T08:00:00Z'");
        for bad in ["", "h", "2x", "yesterday", "2026-01-31' OR 'a'='a", "2026"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
