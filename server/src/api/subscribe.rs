//! `GET /api/v1/subscribe`: new rows as they are stored, as server-sent events.
//!
//! Owns: the stream of events of one subscriber. With `table`, each event has rows that are durable
//! since the one before, after `where`; its id is the place to go on from. With `q` and `every`, a
//! small query is asked again and again.
//! Never: holds up a writer or another query: rows come from a bounded buffer, and who does not
//! take them in time is told what is missing (`lagged`). Outlives its token, or the server's stop.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::State as Given,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use millrace_control::{Principal, ReadScope, policy};
use millrace_platform::{clock::Sleep, metric::Metric};
use millrace_protocol::ids::Lsn;
use millrace_query::{Format, Params, QueryAnswer, QueryError, result};
use millrace_storage::{Lagged, Watch};
use serde::Deserialize;
use serde_json::json;

use super::{Code, Problem, Shared, State, auth::Caller, database, request::Parameters};

/// Subscriptions at once.
const SUBSCRIPTIONS_MAX: usize = 256;
/// A comment is sent when nothing else was for so long, so that a dead connection is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Rows that come within this time go together: ten events per second at most.
const GATHER: Duration = Duration::from_millis(100);
/// How long one waits whose queries find no room.
const NO_ROOM: Duration = Duration::from_millis(500);
/// Shortest and longest time between two answers of a repeated query, seconds.
const EVERY: std::ops::RangeInclusive<u64> = 1..=3600;
/// Bytes of one answer of a repeated query.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Debug, Deserialize)]
pub(crate) struct Wanted {
    #[serde(default)]
    db: Option<String>,
    #[serde(default)]
    table: Option<String>,
    #[serde(default)]
    columns: Option<String>,
    #[serde(default, rename = "where")]
    condition: Option<String>,
    #[serde(default)]
    q: Option<String>,
    /// Seconds.
    #[serde(default)]
    every: Option<u64>,
}

/// How many subscriptions there are.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions(Arc<AtomicUsize>);

/// One of them; counted until it is dropped.
struct Open(Arc<AtomicUsize>);

impl Subscriptions {
    fn open(&self) -> Result<Open, Problem> {
        let open = Open(Arc::clone(&self.0));
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        metrics::gauge!(Metric::Subscriptions.name()).increment(1.0);
        if before >= SUBSCRIPTIONS_MAX {
            let text = format!("there are {SUBSCRIPTIONS_MAX} subscriptions already");
            return Err(Problem::new(Code::Busy, text).retry_after(10));
        }
        Ok(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        metrics::gauge!(Metric::Subscriptions.name()).decrement(1.0);
    }
}

/// What is sent again and again.
enum Source {
    Rows { table: String, sql: String, watch: Watch, at: Lsn },
    Query { sql: String, every: Duration },
}

struct Subscriber {
    state: Arc<State>,
    principal: Principal,
    scope: ReadScope,
    database: String,
    source: Source,
    /// Events that are made and not taken.
    ready: VecDeque<Bytes>,
    ended: bool,
    /// When a repeated query is due.
    due: Option<Sleep>,
    _open: Open,
}

fn bad(text: impl Into<String>) -> Problem {
    Problem::new(Code::BadParameter, text)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The statement that picks what is wanted of a table's new rows.
fn statement(table: &str, columns: Option<&str>, condition: Option<&str>) -> String {
    let columns = columns.filter(|c| !c.is_empty()).map_or_else(
        || "*".to_owned(),
        |list| list.split(',').map(|c| quoted(c.trim())).collect::<Vec<_>>().join(", "),
    );
    let table = quoted(table);
    match condition.filter(|c| !c.trim().is_empty()) {
        // On a line of its own, so that a comment in it ends there.
        Some(condition) => format!("SELECT {columns} FROM {table} WHERE (\n{condition}\n)"),
        None => format!("SELECT {columns} FROM {table}"),
    }
}

/// Opens a subscription.
pub(crate) async fn get(
    Given(state): Shared,
    Caller(principal): Caller,
    headers: HeaderMap,
    Parameters(wanted): Parameters<Wanted>,
) -> Result<Response, Problem> {
    let scope = policy::to_read(&principal)?;
    let open = state.subscriptions.open()?;
    let database = database(wanted.db.clone())?;
    let (source, lagged) = source(&state, scope, &database, wanted, &headers).await?;
    let mut ready = VecDeque::from([Bytes::from_static(b"retry: 1000\n\n")]);
    ready.extend(lagged);
    let (ended, due, _open) = (false, None, open);
    let subscriber =
        Subscriber { state, principal, scope, database, source, ready, ended, due, _open };
    let events = futures::stream::unfold(subscriber, |mut s| async move {
        let event = s.next().await?;
        Some((Ok::<_, std::convert::Infallible>(event), s))
    });
    let mut response = Response::new(Body::from_stream(events));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

async fn source(
    state: &Arc<State>,
    scope: ReadScope,
    database: &str,
    wanted: Wanted,
    headers: &HeaderMap,
) -> Result<(Source, Option<Bytes>), Problem> {
    if let (Some(sql), None) = (&wanted.q, &wanted.table) {
        let every = wanted.every.ok_or_else(|| bad("say every how many seconds: `every`"))?;
        if !EVERY.contains(&every) {
            return Err(bad("`every` is 1 to 3600 seconds"));
        }
        state.query.describe(scope, database, sql, vec![]).await?;
        let every = Duration::from_secs(every);
        return Ok((Source::Query { sql: sql.clone(), every }, None));
    }
    let (Some(table), None) = (wanted.table, wanted.q) else {
        return Err(bad("give either `table`, or `q` and `every`"));
    };
    let sql = statement(&table, wanted.columns.as_deref(), wanted.condition.as_deref());
    let snapshot = state.engine.snapshot(scope.tenant());
    let snapshot = snapshot.map_err(|e| Problem::from(QueryError::Unavailable(e.to_string())))?;
    let there = snapshot.databases.get(database).and_then(|tables| tables.get(&table));
    if there.is_some() {
        state.query.describe(scope, database, &sql, vec![]).await?;
    }
    let watch = state.engine.watch(scope.tenant());
    let newest = watch.newest();
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let Some(last) = last.filter(|id| !id.is_empty()) else {
        return Ok((Source::Rows { table, sql, watch, at: newest }, None));
    };
    let from = u64::from_str_radix(last, 16);
    let from = Lsn(from.map_err(|_| bad("Last-Event-ID is not one of these events' ids"))?);
    let at = match watch.since(from, database, &table) {
        Ok(_) => Ok(from),
        // Nothing was written since: all that is missing is what nobody wrote.
        Err(_) if there.is_none_or(|t| t.newest_lsn().is_none_or(|n| n <= from)) => Ok(newest),
        Err(lagged) => Err(lagged),
    };
    let (at, event) = match at {
        Ok(at) => (at, None),
        Err(lagged) => (lagged.resume, Some(lagged_event(scope, from, lagged))),
    };
    Ok((Source::Rows { table, sql, watch, at }, event))
}

fn lagged_event(scope: ReadScope, from: Lsn, lagged: Lagged) -> Bytes {
    let tenant = scope.tenant().to_string();
    metrics::counter!(Metric::SubscriptionsLagged.name(), "tenant" => tenant).increment(1);
    let (from, resume) = (format!("{:x}", from.0), format!("{:x}", lagged.resume.0));
    let text = "rows between these two places are not kept any more; ask for them in SQL";
    let data = json!({ "from": from, "resume": resume, "detail": text });
    event("lagged", Some(lagged.resume), data.to_string().as_bytes())
}

fn event(name: &str, id: Option<Lsn>, data: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(data.len() + 64);
    if let Some(id) = id {
        out.extend_from_slice(format!("id: {:x}\n", id.0).as_bytes());
    }
    out.extend_from_slice(format!("event: {name}\ndata: ").as_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out.freeze()
}

/// Why it ends.
fn end_event(problem: &Problem) -> Bytes {
    let data = json!({ "code": problem.code.as_str(), "detail": problem.detail });
    event("end", None, data.to_string().as_bytes())
}

impl Subscriber {
    /// The next piece of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            let state = Arc::clone(&self.state);
            let principal = self.principal.clone();
            let mut stopping = state.stopping.clone();
            let made = tokio::select! {
                biased;
                () = state.catalog.withdrawn(&principal) => Err(Problem::new(
                    Code::Unauthenticated,
                    "the token has been revoked or has expired",
                )),
                _ = stopping.wait_for(|stop| *stop) => {
                    Err(Problem::new(Code::Stopped, "the server is stopping; come back soon"))
                }
                made = self.make() => made,
            };
            match made {
                Ok(events) => self.ready.extend(events),
                Err(problem) => {
                    self.ended = true;
                    self.ready.push_back(end_event(&problem));
                }
            }
        }
    }

    /// Waits for something to say.
    async fn make(&mut self) -> Result<Vec<Bytes>, Problem> {
        match &self.source {
            Source::Query { every, .. } => {
                let every = *every;
                self.repeat(every).await
            }
            Source::Rows { watch, at, .. } => {
                let (watch, at) = (watch.clone(), *at);
                tokio::select! {
                    () = watch.beyond(at) => {}
                    () = self.state.clock.sleep(HEARTBEAT) => return self.beat(),
                }
                // What comes at the same time goes together.
                self.state.clock.sleep(GATHER).await;
                self.rows().await
            }
        }
    }

    /// Nothing happened. An engine that was opened again is looked at anew.
    fn beat(&mut self) -> Result<Vec<Bytes>, Problem> {
        let tenant = self.scope.tenant();
        if let Source::Rows { watch, at, .. } = &mut self.source {
            let now = self.state.engine.watch(tenant);
            if !now.is(watch) {
                let resume = now.newest();
                let (from, lagged) = (*at, Lagged { resume });
                (*watch, *at) = (now, resume);
                return Ok(vec![lagged_event(self.scope, from, lagged)]);
            }
        }
        Ok(vec![Bytes::from_static(b": still here\n\n")])
    }

    /// The rows since the last event.
    async fn rows(&mut self) -> Result<Vec<Bytes>, Problem> {
        let Source::Rows { table, sql, watch, at } = &mut self.source else {
            return Ok(Vec::new());
        };
        let fresh = match watch.since(*at, &self.database, table) {
            Ok(fresh) => fresh,
            Err(lagged) => {
                let from = std::mem::replace(at, lagged.resume);
                return Ok(vec![lagged_event(self.scope, from, lagged)]);
            }
        };
        let Some(picture) = fresh.rows else {
            *at = fresh.upto;
            return Ok(Vec::new());
        };
        let asked = self.state.query.run_over(self.scope, picture, &self.database, sql);
        let made = match asked.await {
            Ok(answer) => pieces(answer, usize::MAX).await,
            Err(e) => Err(e),
        };
        let (data, rows) = match made {
            Ok(made) => made,
            // The buffer keeps the rows until there is room, or says that it does not.
            Err(QueryError::Busy { .. }) => {
                self.state.clock.sleep(NO_ROOM).await;
                return Ok(Vec::new());
            }
            Err(e) => return Err(e.into()),
        };
        *at = fresh.upto;
        let tenant = self.scope.tenant().to_string();
        metrics::counter!(Metric::SubscriptionRows.name(), "tenant" => tenant).increment(rows);
        // Only behind the last of them is a place to go on from.
        let last = data.len().saturating_sub(1);
        let id = |n| (n == last).then_some(fresh.upto);
        Ok(data.iter().enumerate().map(|(n, d)| event("rows", id(n), d)).collect())
    }

    /// The next answer of a repeated query, the first one at once.
    async fn repeat(&mut self, every: Duration) -> Result<Vec<Bytes>, Problem> {
        let clock = Arc::clone(&self.state.clock);
        let due = self.due.get_or_insert_with(|| clock.sleep(Duration::ZERO));
        tokio::select! {
            biased;
            () = due => {}
            // A longer pause has comments in it.
            () = clock.sleep(HEARTBEAT) => return self.beat(),
        }
        self.due = Some(clock.sleep(every));
        let Source::Query { sql, .. } = &self.source else { return Ok(Vec::new()) };
        let asked = self.state.query.run(self.scope, &self.database, sql, Params::None);
        let made = match asked.await {
            Ok(answer) => pieces(answer, ANSWER_BYTES_MAX).await,
            Err(e) => Err(e),
        };
        match made {
            Ok((data, _)) => {
                let all: Vec<&[u8]> =
                    data.iter().map(|d| d.get(1..d.len().saturating_sub(1)).unwrap_or(d)).collect();
                let joined = [&b"["[..], &all.join(&b','), b"]"].concat();
                Ok(vec![event("result", None, &joined)])
            }
            Err(QueryError::Busy { .. }) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }
}

/// An answer as JSON arrays, one for each batch, and how many rows that were.
async fn pieces(answer: QueryAnswer, most: usize) -> Result<(Vec<Bytes>, u64), QueryError> {
    let QueryAnswer { schema, mut rows } = answer;
    let (mut out, mut count, mut bytes) = (Vec::new(), 0, 0);
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        if batch.num_rows() == 0 {
            continue;
        }
        count += batch.num_rows() as u64;
        let one = futures::stream::iter([Ok(batch)]).boxed();
        let mut text =
            result::encode(Format::Json, QueryAnswer { schema: Arc::clone(&schema), rows: one });
        let mut data = BytesMut::new();
        while let Some(piece) = text.next().await {
            data.extend_from_slice(&piece?);
        }
        bytes += data.len();
        if bytes > most {
            let text = format!("an answer has more than {most} bytes; ask for less");
            return Err(QueryError::Invalid(text));
        }
        out.push(data.freeze());
    }
    Ok((out, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_and_a_condition_stays_inside_its_brackets() {
        assert_eq!(statement("cpu", None, None), "SELECT * FROM \"cpu\"");
        assert_eq!(
            statement("o\"d d", Some("a, b\"c"), Some("n > 1 -- end")),
            "SELECT \"a\", \"b\"\"c\" FROM \"o\"\"d d\" WHERE (\nn > 1 -- end\n)"
        );
    }

    #[test]
    fn an_event_is_one_line_of_data() {
        assert_eq!(event("rows", Some(Lsn(255)), b"[1]"), "id: ff\nevent: rows\ndata: [1]\n\n");
        assert_eq!(event("end", None, b"{}"), "event: end\ndata: {}\n\n");
    }
}
