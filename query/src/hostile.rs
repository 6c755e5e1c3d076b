//! Runs the corpus of hostile statements (`tests/corpus/sql/hostile.json`).
//!
//! S2: each statement is refused or ends within its limits; after each one the engine answers a
//! plain question and holds no memory. An entry is `sql` (a text, or parts of which some are
//! repeated: `{n}` is the count from 0, `{m}` from 1), `params`, and `expect`: a code, `ok`,
//! `limit` (out of time, memory or size), or a list of these.

use std::{sync::Arc, time::Duration};

use millrace_platform::{clock::SystemClock, sim::SimClock};
use serde_json::Value;

use crate::{
    Format, Params, QueryError, QueryLimits,
    fixture::{CANARY, MINUTE_NS, NEW_YEAR_NS, World, limits},
};

const CORPUS: &str = include_str!("../../tests/corpus/sql/hostile.json");
/// Far above what any statement needs on a busy machine: only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);
const LIMITS: [&str; 3] = ["query_timeout", "query_memory", "query_value_too_large"];

fn part(part: &Value) -> String {
    if let Some(text) = part.as_str() {
        return text.to_owned();
    }
    let repeat = part["repeat"].as_str().expect("a part is a text or has `repeat`");
    let times = part["times"].as_u64().expect("`times` is a number");
    let join = part["join"].as_str().unwrap_or_default();
    let one = |n: u64| repeat.replace("{n}", &n.to_string()).replace("{m}", &(n + 1).to_string());
    (0..times).map(one).collect::<Vec<_>>().join(join)
}

fn statement(entry: &Value) -> String {
    match &entry["sql"] {
        Value::Array(parts) => parts.iter().map(part).collect(),
        one => part(one),
    }
}

fn expected(entry: &Value) -> Vec<&str> {
    let names: Vec<&str> = match &entry["expect"] {
        Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    let mut codes = Vec::new();
    for name in names {
        match name {
            "limit" => codes.extend(LIMITS),
            "ok" => codes.push("ok"),
            code => {
                let known = QueryError::CODES.iter().any(|(c, _)| *c == code);
                assert!(known, "`{code}` is no code of this crate");
                codes.push(code);
            }
        }
    }
    assert!(!codes.is_empty(), "an entry expects something: {entry}");
    codes
}

/// What came, as a code and as all text that a caller could see.
fn outcome(world: &World, sql: &str, params: Params) -> (&'static str, String) {
    match world.bytes(sql, params, Format::Csv) {
        Ok(bytes) => ("ok", String::from_utf8_lossy(&bytes).into_owned()),
        Err(e) => (e.code().0, e.to_string()),
    }
}

/// Whether a plain question is answered. A step that cannot be interrupted may outlast the first
/// question's own time in an unoptimised build.
fn answers(world: &World) -> bool {
    let ask = || outcome(world, "SELECT count(*) AS n FROM cpu", Params::None).1;
    (0..10).any(|_| ask() == "n\n7\n")
}

/// Memory is given back when the task has ended, which may be a moment after its answer.
fn settled(world: &World) -> bool {
    let given_back = async {
        while world.query.memory_reserved() > 0 {
            tokio::task::yield_now().await;
        }
    };
    world.block_on(async { tokio::time::timeout(HANG, given_back).await.is_ok() })
}

/// A filled store whose queries end after so long by the real clock.
fn world(timeout: Duration) -> World {
    let limits = QueryLimits { timeout, memory_bytes: 16 << 20, ..limits() };
    let clock = SimClock::at(NEW_YEAR_NS + 60 * MINUTE_NS);
    let world = World::with(limits, clock, Arc::new(SystemClock::new()));
    world.fill();
    world
}

/// What is wrong with the answer to one statement.
fn complaint(world: &World, entry: &Value) -> Option<String> {
    let sql = statement(entry);
    let params = Params::from_json(entry["params"].clone()).unwrap();
    let (code, seen) = outcome(world, &sql, params);
    let start: String = seen.chars().take(200).collect();
    let hidden = [CANARY, "root:", "/data"];
    let wrong = if !expected(entry).contains(&code) {
        format!("{code}: {start}")
    } else if hidden.iter().any(|h| seen.contains(h)) {
        format!("shows what it must not: {start}")
    } else if seen.len() > 2000 && code != "ok" {
        format!("answers {} bytes of error: {start}", seen.len())
    } else if !answers(world) {
        "and then a plain question has no answer".to_owned()
    } else if !settled(world) {
        "and then memory that is not given back".to_owned()
    } else {
        return None;
    };
    let shown: String = sql.chars().take(120).collect();
    Some(format!("{shown}\n    {wrong}"))
}

#[test]
fn hostile_statements_are_refused_or_end_and_the_next_question_is_answered() {
    let entries: Vec<Value> = serde_json::from_str(CORPUS).unwrap();
    assert!(entries.len() >= 120, "only {} entries", entries.len());
    // Only a statement that may run out of time is given little: on a busy machine any other
    // would, too.
    let (hasty, patient) = (world(Duration::from_secs(1)), world(HANG));
    let wrong: Vec<String> = entries
        .iter()
        .filter_map(|entry| {
            let may_be_late = expected(entry).contains(&"query_timeout");
            complaint(if may_be_late { &hasty } else { &patient }, entry)
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), entries.len(), wrong.join("\n"));
}
