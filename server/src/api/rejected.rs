//! `POST /api/v1/rejected/replay`: refused rows once more, and a mark on those that are taken now.
//!
//! Owns: the order: rows first, then the marks in `_rejected`. A crash between the two leaves rows
//! unmarked that are stored; sent again they replace themselves, because a row without a time of
//! its own gets the time at which it was refused. Never: records a second refusal of a row that
//! has one, or marks a row that `_rejected` does not have a series for.

use std::collections::BTreeSet;

use axum::{
    Json,
    extract::{State as Given, rejection::JsonRejection},
    response::{IntoResponse, Response},
};
use millrace_control::policy;
use millrace_protocol::{
    batch::{FieldColumn, Presence, RefusalCode, RowLimits, SeriesKey, TableBatch},
    ids::TenantId,
    line::{self, LineOptions},
    name::REJECTED_TABLE,
    value::FieldValues,
};
use millrace_storage::{Origin, Sender, WriteRequest};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Code, Problem, Shared, State, auth::Caller, request::json_problem};
use crate::ingest::raw::token_source;

/// Rows of one request.
pub(crate) const ROWS_MAX: usize = 1000;

/// A row of `_rejected`, as it was read from there.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct RejectedRow {
    /// Its time in hexadecimal, which names it.
    pub(crate) id: String,
    pub(crate) code: String,
    #[serde(default)]
    pub(crate) source: Option<String>,
    #[serde(default)]
    pub(crate) table_name: Option<String>,
    pub(crate) precision: String,
    pub(crate) raw: String,
}

/// What to send again.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Replay {
    pub(crate) db: String,
    pub(crate) rows: Vec<RejectedRow>,
}

impl RejectedRow {
    fn key(&self) -> SeriesKey {
        let pairs = [
            ("code", Some(&self.code)),
            ("source", self.source.as_ref()),
            ("table_name", self.table_name.as_ref()),
        ];
        let pairs = pairs.into_iter().filter_map(|(n, v)| Some((n, v?.as_str())));
        SeriesKey::from_sorted(pairs.filter(|(_, v)| !v.is_empty()))
    }

    fn time(&self) -> Option<i64> {
        u64::from_str_radix(&self.id, 16).ok().and_then(|t| i64::try_from(t).ok())
    }
}

/// A row that is refused again.
#[derive(Debug, Serialize)]
struct StillRefused {
    id: String,
    code: &'static str,
    reason: String,
}

/// Reads each row as a body of its own; what is good goes to `tables` under the row's number.
fn parse(state: &State, rows: &[RejectedRow], refused: &mut Refused) -> Vec<TableBatch> {
    let mut tables = Vec::new();
    for (n, row) in (1u32..).zip(rows) {
        let (Some(time), Ok(precision)) = (row.time(), row.precision.parse()) else {
            refused.add(n, RefusalCode::BadTime, "its id or precision cannot be read".to_owned());
            continue;
        };
        let options = LineOptions {
            precision,
            default_time_ns: time,
            default_time_step_ns: 0,
            limits: RowLimits::default(),
            refusals_max: 1,
        };
        let parsed = line::parse_seeded(row.raw.as_bytes(), &options, state.seed);
        if let Some(first) = parsed.refusals.into_iter().next() {
            refused.add(n, first.code, first.reason);
        } else if parsed.lines == 0 {
            refused.add(n, RefusalCode::Syntax, "there is no row in it".to_owned());
        } else {
            tables.extend(parsed.tables.into_iter().map(|mut table| {
                table.line.fill(n);
                table
            }));
        }
    }
    tables
}

/// Numbers (from 1) of the rows that are refused, with why.
#[derive(Debug, Default)]
struct Refused {
    numbers: BTreeSet<u32>,
    said: Vec<(u32, RefusalCode, String)>,
}

impl Refused {
    fn add(&mut self, row: u32, code: RefusalCode, reason: String) {
        if self.numbers.insert(row) {
            self.said.push((row, code, reason));
        }
    }
}

/// Marks for the rows that were taken.
fn marks<'a>(rows: impl Iterator<Item = &'a RejectedRow>, now_ns: i64) -> TableBatch {
    let mut out = TableBatch { table: REJECTED_TABLE.to_owned(), ..TableBatch::default() };
    for row in rows {
        let key = row.key();
        let known = out.series_keys.iter().position(|k| *k == key);
        let series = known.unwrap_or_else(|| {
            out.series_keys.push(key);
            out.series_keys.len() - 1
        });
        out.series.push(series as u32);
        out.time.push(row.time().unwrap_or_default());
        out.line.push(out.time.len() as u32);
    }
    let (values, present) = (vec![now_ns; out.time.len()], Presence::full(out.time.len()));
    let name = "replayed_at".to_owned();
    out.fields.push(FieldColumn { name, values: FieldValues::I64(values), present });
    out
}

/// The rows whose series `_rejected` has; another mark would be a row of the client's making.
fn known(state: &State, tenant: TenantId, replay: &Replay) -> Result<Vec<bool>, Problem> {
    let snapshot = state
        .engine
        .snapshot(tenant)
        .map_err(|e| Problem::new(Code::DataUnavailable, e.to_string()))?;
    let table = snapshot.databases.get(&replay.db).and_then(|d| d.get(REJECTED_TABLE));
    let series = table.iter().flat_map(|t| t.series.entries.iter().map(|e| e.key.as_bytes()));
    let series: BTreeSet<&[u8]> = series.collect();
    Ok(replay.rows.iter().map(|r| series.contains(r.key().as_bytes())).collect())
}

/// See the module head.
pub(crate) async fn replay(
    Given(state): Shared,
    Caller(principal): Caller,
    body: Result<Json<Replay>, JsonRejection>,
) -> Result<Response, Problem> {
    let tenant = policy::to_write(&principal)?.tenant();
    let Json(replay) = body.map_err(json_problem)?;
    if replay.rows.len() > ROWS_MAX {
        let most =
            format!("{} rows are too many for one request; send {ROWS_MAX}", replay.rows.len());
        return Err(Problem::new(Code::BadParameter, most));
    }
    let mut refused = Refused::default();
    for (n, there) in (1u32..).zip(known(&state, tenant, &replay)?) {
        if !there {
            let reason = "`_rejected` has no such row".to_owned();
            refused.add(n, RefusalCode::BadName, reason);
        }
    }
    let mut tables = parse(&state, &replay.rows, &mut refused);
    tables.retain(|t| t.line.first().is_none_or(|n| !refused.numbers.contains(n)));
    let write = |tables| WriteRequest {
        tenant,
        database: replay.db.clone(),
        origin: Origin::Plain,
        tables,
        sender: Sender { source: token_source(&principal), rejects: None },
    };
    // A row at a time can be many tables; storage names at most a hundred refusals of one write.
    let mut tables = tables.into_iter().peekable();
    while tables.peek().is_some() {
        let some: Vec<TableBatch> = tables.by_ref().take(100).collect();
        let receipt = state.engine.write(write(some)).await?;
        for r in receipt.refusals() {
            refused.add(r.line, r.code, r.reason.clone());
        }
    }
    let taken = (1u32..).zip(&replay.rows).filter(|(n, _)| !refused.numbers.contains(n));
    let batch = marks(taken.map(|(_, row)| row), state.clock.now_ns());
    let replayed = batch.rows();
    if replayed > 0 {
        state.engine.write(write(vec![batch])).await?;
    }
    Ok(Json(json!({ "replayed": replayed, "refused": said(&replay, refused) })).into_response())
}

fn said(replay: &Replay, refused: Refused) -> Vec<StillRefused> {
    let id = |row: u32| replay.rows.get(row as usize - 1).map_or("", |r| r.id.as_str()).to_owned();
    refused
        .said
        .into_iter()
        .map(|(row, code, reason)| StillRefused { id: id(row), code: code.as_str(), reason })
        .collect()
}
