//! Malformed lines as data: `tests/corpus/line/malformed.json`, one body per entry with the code,
//! line and column of its one refusal and the number of good rows around it.
//!
//! A body is `body` (text), `hex`, or `build`: texts, and `[text, n]` for n copies (`t` and `f`
//! stand for n tags or fields of different names).

use serde_json::Value;

use super::*;
use crate::batch::RefusalCode;

fn built(parts: &[Value]) -> Vec<u8> {
    let mut out = String::new();
    for part in parts {
        match part {
            Value::String(text) => out += text,
            Value::Array(pair) => {
                let (what, n) = (pair[0].as_str().unwrap(), pair[1].as_u64().unwrap() as usize);
                match what {
                    "t" => (0..n).for_each(|i| out += &format!(",t{i}=1")),
                    "f" => out += &(0..n).map(|i| format!("f{i}=1")).collect::<Vec<_>>().join(","),
                    other => out += &other.repeat(n),
                }
            }
            other => panic!("{other} is no part of a body"),
        }
    }
    out.into_bytes()
}

fn body(entry: &Value) -> Vec<u8> {
    match (&entry["body"], &entry["hex"], &entry["build"]) {
        (Value::String(text), ..) => text.clone().into_bytes(),
        (_, Value::String(digits), _) => hex::decode(digits).unwrap(),
        (.., Value::Array(parts)) => built(parts),
        _ => panic!("{entry} has no body"),
    }
}

#[test]
fn d4_malformed_lines_are_refused_with_code_line_and_column() {
    let text = include_str!("../../../../tests/corpus/line/malformed.json");
    let entries: Vec<Value> = serde_json::from_str(text).unwrap();
    assert!(entries.len() >= 120, "the corpus lost entries: {}", entries.len());
    let mut wrong = Vec::new();
    for entry in &entries {
        let name = entry["name"].as_str().unwrap();
        let body = body(entry);
        let precision = entry["precision"].as_str().unwrap_or("ns").parse().unwrap();
        let parsed = parse(&body, &LineOptions { precision, ..LineOptions::default() });
        let rows: usize = parsed.tables.iter().map(TableBatch::rows).sum();
        for batch in &parsed.tables {
            batch.check().unwrap();
            assert!(batch.fields.iter().all(|f| f.present.count() > 0), "{name}: an empty column");
        }
        let refused: Vec<(u64, u64, RefusalCode)> =
            parsed.refusals.iter().map(|r| (r.line.into(), r.column.into(), r.code)).collect();
        let code: RefusalCode = serde_json::from_value(entry["code"].clone()).unwrap();
        let line = entry["line"].as_u64().unwrap_or(1);
        // A column that would be tedious to count is 0.
        let column = entry["column"].as_u64().filter(|c| *c > 0);
        let column = column.unwrap_or(refused.first().map_or(0, |r| r.1));
        let good = entry["good"].as_u64().unwrap_or(0) as usize;
        if refused != [(line, column, code)] || rows != good {
            let why: Vec<&str> = parsed.refusals.iter().map(|r| r.reason.as_str()).collect();
            wrong.push(format!(
                "{name}: {rows} rows, refused {refused:?}, not {good} and {:?}: {why:?}",
                (line, column, code)
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), entries.len(), wrong.join("\n"));
}
