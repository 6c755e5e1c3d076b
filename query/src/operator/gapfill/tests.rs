//! Gap filling as SQL asks for it: against a computation of its own on random rows, the edges of
//! time and of groups, what is refused, and what it may cost.

use std::{collections::BTreeMap, fmt::Write as _};

use proptest::{prelude::*, test_runner::TestRunner};

use crate::fixture::{MINUTE_NS, NEW_YEAR_NS, TENANT, World};

const SECOND_NS: i64 = 1_000_000_000;

/// One row: host, time, and values that may be missing.
#[derive(Debug, Clone)]
struct Row {
    host: usize,
    second: i64,
    n: Option<i64>,
    f: Option<i32>,
}

/// The fourth host has no tag at all.
fn tag(host: usize) -> String {
    if host == 3 { String::new() } else { format!(",host=h{host}") }
}

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let row = (
        0..4usize,
        -5000..5000i64,
        prop::option::of(-50..50i64),
        prop::option::weighted(0.7, -100..100i32),
    );
    let row = row.prop_map(|(host, second, n, f)| Row { host, second, n, f });
    prop::collection::vec(row, 0..40)
}

/// Writes the rows to a table of their own, half of them to a file; all columns exist in it,
/// whatever the rows have.
fn write(world: &World, table: &str, rows: &[Row]) {
    let line = |row: &Row| {
        let mut fields = "other=1i".to_owned();
        if let Some(n) = row.n {
            write!(fields, ",n={n}i").unwrap();
        }
        if let Some(f) = row.f {
            write!(fields, ",f={}", f64::from(f) / 8.0).unwrap();
        }
        format!("{table}{} {fields} {}\n", tag(row.host), row.second * SECOND_NS)
    };
    let all = format!("{table},host=never n=0i,f=0,other=0i 4000000000000000\n");
    world.write(TENANT, "default", &all);
    for (half, part) in rows.chunks(rows.len().div_ceil(2).max(1)).enumerate() {
        world.write(TENANT, "default", &part.iter().map(line).collect::<String>());
        if half == 0 {
            world.flush();
        }
    }
}

/// What each bucket of one group must be: bucket, count, sum, its locf and line, min, its line.
fn expected(rows: &[Row], host: Option<usize>, case: &Case) -> Vec<String> {
    // Of two rows at one time the values that were written last count, each field for itself.
    let mut merged: BTreeMap<(usize, i64), (Option<i64>, Option<i32>)> = BTreeMap::new();
    for row in rows {
        let slot = merged.entry((row.host, row.second)).or_default();
        *slot = (row.n.or(slot.0), row.f.or(slot.1));
    }
    let bucket_of =
        |second: i64| case.origin + (second - case.origin).div_euclid(case.stride) * case.stride;
    let buckets: Vec<i64> =
        (bucket_of(case.from)..=bucket_of(case.to - 1)).step_by(case.stride as usize).collect();
    type Cell = (Option<i64>, Option<i32>);
    let mut cells: BTreeMap<i64, Vec<Cell>> = BTreeMap::new();
    for ((of, second), values) in merged {
        if host.is_none_or(|h| h == of) && (case.from..case.to).contains(&second) {
            cells.entry(bucket_of(second)).or_default().push(values);
        }
    }
    if cells.is_empty() && host.is_some() {
        return Vec::new();
    }
    let sum = |b: &i64| -> Option<f64> {
        let all: Vec<i64> = cells.get(b)?.iter().filter_map(|v| v.0).collect();
        (!all.is_empty()).then(|| all.iter().sum::<i64>() as f64)
    };
    let min = |b: &i64| -> Option<f64> {
        cells.get(b)?.iter().filter_map(|v| v.1).min().map(|f| f64::from(f) / 8.0)
    };
    let line = |value: &dyn Fn(&i64) -> Option<f64>, b: &i64| -> Option<f64> {
        let before = buckets.iter().rev().find(|o| *o <= b && value(o).is_some())?;
        let after = buckets.iter().find(|o| *o >= b && value(o).is_some())?;
        let (low, high) = (value(before)?, value(after)?);
        if before == after {
            return Some(low);
        }
        Some(low + (high - low) * (b - before) as f64 / (after - before) as f64)
    };
    let show = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{v:.3}"));
    let whole = |v: Option<f64>| v.map_or_else(String::new, |v| format!("{:.3}", v.round()));
    let row = |b: &i64| {
        let carried = buckets.iter().rev().filter(|o| *o <= b).find_map(sum);
        [
            (b * SECOND_NS).to_string(),
            cells.get(b).map_or_else(String::new, |c| c.len().to_string()),
            show(sum(b)),
            show(carried),
            whole(line(&sum, b)),
            show(min(b)),
            show(line(&min, b)),
        ]
        .join(",")
    };
    buckets.iter().map(row).collect()
}

#[derive(Debug, Clone)]
struct Case {
    stride: i64,
    origin: i64,
    from: i64,
    to: i64,
    grouped: bool,
}

fn case() -> impl Strategy<Value = Case> {
    (1..3000i64, -9000..9000i64, -6000..6000i64, 1..7000i64, any::<bool>()).prop_map(
        |(stride, origin, from, length, grouped)| {
            let stride = stride.max(length / 300);
            Case { stride, origin, from, to: from + length, grouped }
        },
    )
}

fn statement(table: &str, case: &Case) -> String {
    let host = if case.grouped { "host, " } else { "" };
    format!(
        "SELECT {host}CAST(b AS BIGINT), c, round(s, 3), round(l, 3), round(i, 3), m, x FROM ( \
         SELECT {host}date_bin_gapfill(INTERVAL '{stride} seconds', time, to_timestamp_nanos({origin})) AS b, \
         count(*) AS c, sum(n) AS s, locf(sum(n)) AS l, interpolate(sum(n)) AS i, \
         min(f) AS m, interpolate(min(f)) AS x \
         FROM {table} WHERE time >= to_timestamp_nanos({from}) AND time < to_timestamp_nanos({to}) \
         GROUP BY {host}b) ORDER BY {host}b",
        stride = case.stride,
        origin = case.origin * SECOND_NS,
        from = case.from * SECOND_NS,
        to = case.to * SECOND_NS,
    )
}

/// Numbers in one spelling.
fn spelled(line: &str, skip: usize) -> String {
    let cells = line.split(',').enumerate().map(|(at, cell)| match cell.parse::<f64>() {
        Ok(number) if at > skip + 1 => format!("{number:.3}"),
        _ => cell.to_owned(),
    });
    cells.collect::<Vec<_>>().join(",")
}

/// Whether two rows are equal, but for the last of three decimals: half-way between two of them
/// it hangs on the order in which a line was computed.
fn same_row(a: &str, b: &str) -> bool {
    let same = |(a, b): (&str, &str)| match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(x), Ok(y)) => (x - y).abs() < 0.0011,
        _ => a == b,
    };
    a.split(',').count() == b.split(',').count() && a.split(',').zip(b.split(',')).all(same)
}

#[test]
fn buckets_of_random_rows_are_those_of_another_computation() {
    let config = ProptestConfig { cases: 24, max_shrink_iters: 60, ..ProptestConfig::default() };
    // One world for all: a new one for each would cost more than the cases.
    let (world, tables) = (World::empty(), std::cell::Cell::new(0));
    let outcome = TestRunner::new(config).run(
        &(rows(), prop::collection::vec(case(), 6)),
        |(rows, cases)| {
            tables.set(tables.get() + 1);
            let table = format!("m{}", tables.get());
            write(&world, &table, &rows);
            for case in cases {
                let found = world.csv(&statement(&table, &case));
                let skip = usize::from(case.grouped);
                let found: Vec<String> = found.iter().map(|l| spelled(l, skip)).collect();
                let wanted: Vec<String> = if case.grouped {
                    let hosts = [(0, "h0"), (1, "h1"), (2, "h2"), (3, "")];
                    hosts
                        .iter()
                        .flat_map(|(host, name)| {
                            let lines = expected(&rows, Some(*host), &case);
                            lines.into_iter().map(move |l| format!("{name},{l}"))
                        })
                        .collect()
                } else {
                    expected(&rows, None, &case)
                };
                prop_assert_eq!(found.len(), wanted.len(), "{:?}", &case);
                for (found, wanted) in found.iter().zip(&wanted) {
                    prop_assert!(same_row(found, wanted), "{found} and not {wanted}: {case:?}");
                }
            }
            Ok(())
        },
    );
    outcome.unwrap();
}

fn check(world: &World, sql: &str, expected: &[&str]) {
    assert_eq!(world.csv(sql), expected, "{sql}");
}

/// A SELECT over the sample's first four minutes.
fn sample(columns: &str, rest: &str) -> String {
    format!(
        "SELECT {columns} FROM cpu WHERE time >= '2026-01-01T00:00:00Z' AND time < '2026-01-01T00:04:00Z' {rest}"
    )
}

const MINUTE: &str = "date_bin_gapfill(INTERVAL '1 minute', time)";

#[test]
fn a_fill_stands_wherever_a_column_may() {
    let world = World::sample();
    let usage = "round(interpolate(avg(usage)) + 1, 2) AS u, coalesce(locf(max(n)), 0) AS l";
    let sql = sample(
        &format!("{MINUTE} AS minute, {usage}"),
        "AND host = 'h2' GROUP BY minute HAVING locf(max(n)) > 3 ORDER BY locf(max(n)) DESC, minute DESC LIMIT 2",
    );
    check(&world, &sql, &["2026-01-01T00:03:00Z,,6", "2026-01-01T00:02:00Z,,6"]);
    let sql = sample(
        &format!("{MINUTE} AS minute, sum(locf(max(n))) OVER (ORDER BY {MINUTE}) AS s"),
        "AND host = 'h1' GROUP BY minute ORDER BY minute",
    );
    let lines =
        ["00:00Z,1", "01:00Z,3", "02:00Z,7", "03:00Z,11"].map(|l| format!("2026-01-01T00:{l}"));
    assert_eq!(world.csv(&sql), lines);
    let inner =
        sample(&format!("{MINUTE} AS minute, host, locf(last(n, time)) AS n"), "GROUP BY 1, 2");
    let outer = format!(
        "SELECT host, count(*), sum(n) FROM ({inner}) WHERE host <> 'h2' GROUP BY host ORDER BY host"
    );
    check(&world, &outer, &["h1,4,11", "h3,4,24"]);
    let joined = format!(
        "SELECT a.host, b.n FROM ({inner}) a JOIN ({inner}) b ON a.host = b.host AND a.minute = b.minute \
         WHERE a.minute = '2026-01-01T00:03:00Z' ORDER BY 1"
    );
    check(&world, &joined, &["h1,4", "h2,6", "h3,7"]);
    let scalar = format!(
        "SELECT (SELECT count(*) FROM ({inner})) AS n, (SELECT max(n) FROM ({inner})) AS m"
    );
    check(&world, &scalar, &["12,7"]);
    let union = format!("SELECT count(*) FROM ({inner} UNION ALL {inner})");
    check(&world, &union, &["24"]);
    let expression = sample(
        &format!("{MINUTE} AS minute, locf(max(n) * 10 + count(*)) AS n"),
        "AND host = 'h3' GROUP BY minute ORDER BY minute",
    );
    assert_eq!(
        world.csv(&expression),
        ["00:00Z,51", "01:00Z,51", "02:00Z,71", "03:00Z,71"].map(|l| format!("2026-01-01T00:{l}"))
    );
}

#[test]
fn bounds_are_found_wherever_they_hold() {
    let world = World::sample();
    let count = |from: &str| {
        format!("SELECT count(*) FROM (SELECT {MINUTE} AS b, count(*) FROM {from} GROUP BY b)")
    };
    for (from, buckets) in [
        ("cpu WHERE time BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T00:03:00Z'", "4"),
        ("cpu WHERE '2026-01-01T00:00:30Z' < time AND '2026-01-01T00:03:00Z' > time", "3"),
        ("cpu WHERE time = '2026-01-01T00:01:00Z'", "1"),
        (
            "(SELECT time, host FROM cpu WHERE time >= '2026-01-01T00:00:00Z') WHERE time <= '2026-01-01T00:09:00Z'",
            "10",
        ),
        (
            "(SELECT c.time FROM cpu AS c WHERE c.time >= '2026-01-01T00:00:00Z' AND c.time < '2026-01-01T00:02:00Z' ORDER BY 1 LIMIT 9) AS z",
            "2",
        ),
        (
            "(SELECT DISTINCT time FROM cpu) WHERE time >= '2026-01-01T00:00:00Z' AND time < '2026-01-01T00:05:00Z'",
            "5",
        ),
        (
            "cpu JOIN (SELECT 'h1' AS k) AS j ON cpu.host = j.k AND time < '2026-01-01T00:07:00Z' WHERE time >= '2026-01-01T00:00:00Z'",
            "7",
        ),
        (
            "cpu WHERE time >= to_timestamp('2026-01-01T00:00:00Z') - INTERVAL '2 minutes' AND time < CAST(DATE '2026-01-01' AS TIMESTAMP) + INTERVAL '1 minute'",
            "3",
        ),
        ("cpu WHERE time >= '2026-01-01T00:05:00Z' AND time < '2026-01-01T00:05:00Z'", "0"),
        ("cpu WHERE time >= '2026-01-02T00:00:00Z' AND time < '2026-01-02T00:05:00Z'", "5"),
    ] {
        check(&world, &count(from), &[buckets]);
    }
    // What `now()` is decides how many, but that there is a bound is known.
    assert_eq!(
        world.code(&count("cpu WHERE time > now() - INTERVAL '1 hour' AND time < now()")),
        "ok"
    );
    for (from, missing) in [
        ("cpu", "needs a lower and an upper bound on cpu.time"),
        ("cpu WHERE time < '2026-01-01T00:05:00Z'", "needs a lower bound"),
        ("cpu WHERE time > '2026-01-01T00:05:00Z' AND n > 1", "needs an upper bound"),
        (
            "cpu WHERE time > '2026-01-01T00:05:00Z' OR time < '2026-01-01T00:05:00Z'",
            "needs a lower and",
        ),
        ("cpu WHERE time > (SELECT min(time) FROM cpu)", "needs a lower and"),
    ] {
        let error = world.ask(&count(from)).unwrap_err();
        assert_eq!(error.code().0, "sql_invalid", "{from}: {error}");
        assert!(error.to_string().contains(missing), "{from}: {error}");
    }
}

#[test]
fn a_group_without_rows_is_none_and_one_without_other_columns_is_always_there() {
    let world = World::sample();
    let empty = "FROM cpu WHERE time >= '2027-01-01T00:00:00Z' AND time < '2027-01-01T00:02:00Z'";
    let one = format!("SELECT {MINUTE} AS b, count(*), locf(max(n)) {empty} GROUP BY b ORDER BY b");
    check(&world, &one, &["2027-01-01T00:00:00Z,,", "2027-01-01T00:01:00Z,,"]);
    check(&world, &format!("SELECT {MINUTE} AS b, host {empty} GROUP BY b, host"), &[]);
    for none in
        ["false", "1 > 2", "(SELECT count(*) FROM cpu) > 100", "random() > 2", "max(n) > 100"]
    {
        check(
            &world,
            &format!("SELECT {MINUTE} AS b, count(*) {empty} GROUP BY b HAVING {none}"),
            &[],
        );
    }
    let through = format!(
        "SELECT * FROM (SELECT {MINUTE} AS b, count(*) {empty} GROUP BY b) WHERE random() > 2"
    );
    check(&world, &through, &[]);
}

#[test]
fn months_and_origins_are_those_of_date_bin() {
    let world = World::empty();
    let day = |n: i64| NEW_YEAR_NS + n * 24 * 60 * MINUTE_NS;
    world.write(TENANT, "default", &format!("d v=1i {}\nd v=5i {}\n", day(-365), day(-235)));
    let sql = "SELECT date_bin_gapfill(INTERVAL '1 month', time) AS month, interpolate(sum(v)) AS v \
               FROM d WHERE time >= '2025-01-01' AND time < '2025-06-01' GROUP BY month ORDER BY month";
    let months = [
        "01-01T00:00:00Z,1",
        "02-01T00:00:00Z,2",
        "03-01T00:00:00Z,3",
        "04-01T00:00:00Z,4",
        "05-01T00:00:00Z,5",
    ];
    assert_eq!(world.csv(sql), months.map(|m| format!("2025-{m}")));
}

#[test]
fn calls_out_of_place_say_where_they_belong() {
    let world = World::sample();
    let from = "FROM cpu WHERE time >= '2026-01-01' AND time < '2026-01-02'";
    for (sql, says) in [
        (format!("SELECT {MINUTE} {from}"), "stands by itself in GROUP BY"),
        (format!("SELECT DISTINCT {MINUTE} {from}"), "stands by itself in GROUP BY"),
        (
            format!(
                "SELECT count(*) {from} GROUP BY {MINUTE}, date_bin_gapfill(INTERVAL '2 minutes', time)"
            ),
            "stands by itself",
        ),
        (format!("SELECT count(*) {from} GROUP BY ROLLUP({MINUTE})"), "stands by itself"),
        (format!("SELECT locf(n) {from}"), "`locf` takes an aggregate"),
        (format!("SELECT interpolate(avg(n)) {from}"), "`interpolate` takes an aggregate"),
        (
            format!("SELECT {MINUTE} AS b, locf(interpolate(avg(n))) {from} GROUP BY b"),
            "no other fill function",
        ),
        (
            format!("SELECT {MINUTE} AS b, interpolate(min(host)) {from} GROUP BY b"),
            "takes a number, not",
        ),
        (
            format!("SELECT date_bin_gapfill(INTERVAL '0 seconds', time) AS b {from} GROUP BY b"),
            "stride",
        ),
        (format!("SELECT date_bin_gapfill(5, time) AS b {from} GROUP BY b"), "takes an interval"),
        (
            format!("SELECT date_bin_gapfill(INTERVAL '1 day') AS b {from} GROUP BY b"),
            "is called as date_bin_gapfill(stride, time",
        ),
        (
            format!("SELECT date_bin_gapfill(INTERVAL '1 day', time, time) AS b {from} GROUP BY b"),
            "constant time as its origin",
        ),
        (
            format!(
                "SELECT date_bin_gapfill(INTERVAL '1 day', time + INTERVAL '1 day') AS b {from} GROUP BY b"
            ),
            "takes a column",
        ),
    ] {
        let error = world.ask(&sql).unwrap_err();
        assert!(error.to_string().contains(says), "{sql}: {error}");
    }
}

#[test]
fn what_is_made_is_bounded_however_it_is_asked_for() {
    let world = World::sample();
    let day = "FROM cpu WHERE time >= '2026-01-01' AND time < '2026-01-02' GROUP BY";
    let over = format!("SELECT date_bin_gapfill(INTERVAL '1 millisecond', time) AS b {day} b");
    let error = world.ask(&over).unwrap_err();
    assert_eq!(error.code().0, "sql_too_complex", "{error}");
    // 3 hosts of 4,320,000 buckets: under the limit each, over it together.
    let host = format!(
        "SELECT count(*) FROM (SELECT date_bin_gapfill(INTERVAL '20 milliseconds', time) AS b, host {day} b, host)"
    );
    assert_eq!(world.code(&host), "sql_too_complex");
    let early = format!(
        "SELECT date_bin_gapfill(INTERVAL '20 milliseconds', time) AS b, host {day} b, host LIMIT 5"
    );
    assert_eq!(world.csv(&early).len(), 5);
    let wide = format!(
        "SELECT date_bin_gapfill(INTERVAL '1 second', time) AS b, repeat(host, 100000) AS h {day} b, h"
    );
    assert_eq!(world.code(&wide), "sql_invalid");
    let sorted = format!(
        "SELECT date_bin_gapfill(INTERVAL '20 milliseconds', time) AS b, count(*) AS c {day} b ORDER BY c, b DESC"
    );
    assert_eq!(world.code(&sorted), "query_memory");
}
