//! A manifest as a query finds it.
//!
//! Owns: the SQL that recomputes every figure of a manifest, and reading its answers. Sums of
//! decimals are taken over whole units of the last digit, so they are exact in any order; a value
//! that is not the nearest double to its decimal is counted as wrong.

use serde_json::Value;

use crate::{
    http::Connection,
    manifest::{Column, Facts, Kind, Manifest, SeriesFacts, Verdict, hash_of},
    server::Failed,
};

/// A table to check.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    /// Its name.
    pub name: &'a str,
    /// The tag that names a series.
    pub series_tag: &'a str,
    /// Its fields.
    pub columns: &'a [Column],
}

/// The columns of the answer that concern field `at`: values as they are, times in ns.
fn aggregates(at: usize, column: &Column) -> String {
    let name = column.name;
    let has = format!("FILTER (WHERE {name} IS NOT NULL)");
    let mut sql = format!(
        ", count({name}) AS n{at}\
         , first_value({name} ORDER BY time) {has} AS first{at}\
         , last_value({name} ORDER BY time) {has} AS last{at}\
         , min(CAST(time AS BIGINT)) {has} AS from{at}\
         , max(CAST(time AS BIGINT)) {has} AS to{at}"
    );
    match column.kind {
        Kind::Decimal(digits) => {
            let unit = format!("{:.1}", 10f64.powi(digits as i32));
            sql += &format!(
                ", sum(CAST(round({name} * {unit}) AS BIGINT)) AS sum{at}\
                 , min({name}) AS min{at}, max({name}) AS max{at}\
                 , count(*) FILTER (WHERE {name} <> round({name} * {unit}) / {unit}) AS bad{at}"
            );
        }
        Kind::Count => {
            sql += &format!(
                ", sum({name}) AS sum{at}, min({name}) AS min{at}, max({name}) AS max{at}"
            );
        }
        Kind::Text => {}
    }
    sql
}

/// One row per series of a table with all its figures but the sums of texts.
pub fn sql(table: &Table<'_>) -> String {
    let each: String =
        table.columns.iter().enumerate().map(|(at, column)| aggregates(at, column)).collect();
    let (name, tag) = (table.name, table.series_tag);
    format!(
        "SELECT '{name}' AS of_table, {tag} AS series, count(*) AS n{each} FROM {name} GROUP BY {tag}"
    )
}

fn integer(row: &Value, key: &str) -> i64 {
    row.get(key).and_then(Value::as_i64).unwrap_or(0)
}

/// A value of a column as the manifest counts it.
fn value(row: &Value, key: &str, kind: Kind) -> i64 {
    let found = row.get(key);
    match kind {
        Kind::Decimal(digits) => {
            let value = found.and_then(Value::as_f64).unwrap_or(0.0);
            (value * 10f64.powi(digits as i32)).round() as i64
        }
        Kind::Count => integer(row, key),
        Kind::Text => found.and_then(Value::as_str).map_or(0, hash_of),
    }
}

/// The series of one row of the answer, and how many of its decimals are not exact.
fn read(row: &Value, columns: &[Column]) -> (SeriesFacts, u64) {
    let count = |key: &str| integer(row, key).unsigned_abs();
    let mut inexact = 0;
    let one = |(at, column): (usize, &Column)| {
        let get = |what: &str| value(row, &format!("{what}{at}"), column.kind);
        inexact += count(&format!("bad{at}"));
        let sum = if column.kind == Kind::Text { 0 } else { integer(row, &format!("sum{at}")) };
        let (min, max) = if column.kind == Kind::Text { (0, 0) } else { (get("min"), get("max")) };
        Facts {
            count: count(&format!("n{at}")),
            sum,
            min,
            max,
            first: (integer(row, &format!("from{at}")), get("first")),
            last: (integer(row, &format!("to{at}")), get("last")),
        }
    };
    let facts = columns.iter().enumerate().map(one).collect();
    (SeriesFacts { rows: count("n"), columns: facts }, inexact)
}

/// The manifest that rows of [`sql`] stand for, and how many decimals are not exact.
pub fn found(rows: &[Value], columns: &[Column]) -> (Manifest, u64) {
    let mut manifest = Manifest::default();
    let mut inexact = 0;
    for row in rows {
        let series = row.get("series").and_then(Value::as_str).unwrap_or_default();
        let (facts, bad) = read(row, columns);
        inexact += bad;
        manifest.series.insert(series.to_owned(), facts);
    }
    (manifest, inexact)
}

/// Adds the hashes of a text column, which SQL gives as values and how often each occurs.
fn add_texts(
    connection: &mut Connection,
    table: &Table<'_>,
    at: usize,
    manifest: &mut Manifest,
) -> Result<(), Failed> {
    let Some(column) = table.columns.get(at) else { return Ok(()) };
    let (name, tag, text) = (table.name, table.series_tag, column.name);
    let rows = connection.ask(&format!(
        "SELECT {tag} AS series, {text} AS text, count(*) AS n FROM {name} \
         WHERE {text} IS NOT NULL GROUP BY {tag}, {text}"
    ))?;
    for row in &rows {
        let series = row.get("series").and_then(Value::as_str).unwrap_or_default();
        let facts = manifest.series.get_mut(series).and_then(|s| s.columns.get_mut(at));
        if let Some(facts) = facts {
            let hashes = value(row, "text", Kind::Text).wrapping_mul(integer(row, "n"));
            facts.sum = facts.sum.wrapping_add(hashes);
        }
    }
    Ok(())
}

/// Asks for every figure of a table and compares it with what must be there.
pub fn check(
    connection: &mut Connection,
    table: &Table<'_>,
    expected: &Manifest,
) -> Result<Verdict, Failed> {
    let rows = connection.ask(&sql(table))?;
    let (mut manifest, inexact) = found(&rows, table.columns);
    for at in 0..table.columns.len() {
        if table.columns.get(at).is_some_and(|c| c.kind == Kind::Text) {
            add_texts(connection, table, at, &mut manifest)?;
        }
    }
    Ok(judge(table.columns, expected, &manifest, inexact))
}

/// The comparison, with decimals that are not exact counted as wrong.
pub fn judge(columns: &[Column], expected: &Manifest, found: &Manifest, inexact: u64) -> Verdict {
    let mut verdict = expected.compare(columns, found);
    if inexact > 0 {
        verdict.note(|| format!("{inexact} decimals are not what was sent, bit for bit"));
    }
    verdict
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::manifest::Cell;

    const COLUMNS: [Column; 2] =
        [Column { name: "t", kind: Kind::Decimal(3) }, Column { name: "state", kind: Kind::Text }];

    #[test]
    fn an_answer_becomes_the_manifest_that_was_sent() {
        let mut sent = Manifest::default();
        sent.add("a", 5, &[Cell::Number(1_500), Cell::Text("on")]);
        sent.add("a", 9, &[Cell::Number(-250), Cell::Absent]);
        let row = json!({
            "series": "a", "n": 2,
            "n0": 2, "sum0": 1250, "min0": -0.25, "max0": 1.5, "bad0": 0,
            "first0": 1.5, "last0": -0.25, "from0": 5, "to0": 9,
            "n1": 1, "first1": "on", "last1": "on", "from1": 5, "to1": 5,
        });
        let (mut manifest, inexact) = found(&[row], &COLUMNS);
        manifest.series.get_mut("a").unwrap().columns[1].sum = hash_of("on");
        assert!(judge(&COLUMNS, &sent, &manifest, inexact).is_clean());
        assert!(!judge(&COLUMNS, &sent, &manifest, 1).is_clean(), "an inexact decimal is wrong");
        manifest.series.get_mut("a").unwrap().rows = 1;
        assert_eq!(judge(&COLUMNS, &sent, &manifest, 0).lost, 1);
    }
}
