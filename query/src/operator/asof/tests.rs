//! ASOF joins as SQL asks for them: against a computation that compares every pair.

use proptest::{prelude::*, test_runner::TestRunner};

use crate::fixture::{TENANT, World};

#[derive(Debug, Clone)]
struct Row {
    host: usize,
    second: i64,
    v: i64,
}

fn rows(most: usize) -> impl Strategy<Value = Vec<Row>> {
    let row =
        (0..4usize, -60..60i64, 0..100i64).prop_map(|(host, second, v)| Row { host, second, v });
    prop::collection::vec(row, 0..most)
}

/// Writes rows, the later of two at one time in place of the earlier; returns those that count.
fn write(world: &World, table: &str, rows: &[Row]) -> Vec<Row> {
    let mut lines = format!("{table},host=never v=0i 5000000000000\n");
    for row in rows {
        // The fourth host has no tag: a null, which matches nothing.
        let tag = if row.host == 3 { String::new() } else { format!(",host=h{}", row.host) };
        lines.push_str(&format!("{table}{tag} v={}i {}\n", row.v, row.second * 1_000_000_000));
    }
    world.write(TENANT, "default", &lines);
    let last = |row: &Row| rows.iter().rfind(|r| (r.host, r.second) == (row.host, row.second));
    let mut left: Vec<Row> = rows.iter().filter_map(|r| last(r).cloned()).collect();
    left.sort_by_key(|r| (r.host, r.second));
    left.dedup_by_key(|r| (r.host, r.second));
    left
}

/// The nearest row by comparing all.
fn nearest<'a>(row: &Row, others: &'a [Row], op: &str, hosts: bool) -> Option<&'a Row> {
    let fits = |other: &&Row| {
        let host = !hosts || row.host == other.host && row.host != 3;
        host && match op {
            ">=" => row.second >= other.second,
            ">" => row.second > other.second,
            "<=" => row.second <= other.second,
            _ => row.second < other.second,
        }
    };
    others.iter().filter(fits).min_by_key(|other| (row.second - other.second).abs())
}

#[test]
fn every_row_meets_the_row_that_comparing_every_pair_finds() {
    let (world, tables) = (World::empty(), std::cell::Cell::new(0));
    let config = ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&(rows(40), rows(60)), |(a, b)| {
        tables.set(tables.get() + 1);
        let name = |side: &str| format!("{side}{}", tables.get());
        let (left, right) = (write(&world, &name("a"), &a), write(&world, &name("b"), &b));
        // Without hosts several rows have one time, and any of them may be taken: so only their
        // time is compared.
        for (hosts, value) in [(true, "b.v"), (false, "NULL")] {
            for op in [">=", ">", "<=", "<"] {
                let on = if hosts { "ON a.host = b.host" } else { "" };
                let found = world.csv(&format!(
                    "SELECT a.host, CAST(a.time AS BIGINT) / 1000000000, a.v, \
                     CAST(b.time AS BIGINT) / 1000000000, {value} \
                     FROM {} a ASOF JOIN {} b MATCH_CONDITION (a.time {op} b.time) {on} \
                     WHERE a.time < '1970-01-01T01:00:00Z' ORDER BY a.host NULLS LAST, a.time",
                    name("a"),
                    name("b"),
                ));
                let mut others = right.clone();
                if !hosts {
                    others.push(Row { host: 4, second: 5000, v: 0 });
                }
                let wanted: Vec<String> = left
                    .iter()
                    .map(|row| {
                        let host =
                            if row.host == 3 { String::new() } else { format!("h{}", row.host) };
                        let other = nearest(row, &others, op, hosts);
                        let cells = other.map_or_else(
                            || ",".to_owned(),
                            |o| {
                                let v = if hosts { o.v.to_string() } else { String::new() };
                                format!("{},{v}", o.second)
                            },
                        );
                        format!("{host},{},{},{cells}", row.second, row.v)
                    })
                    .collect();
                prop_assert_eq!(&found, &wanted, "{} {}", op, hosts);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}

fn two() -> World {
    let world = World::empty();
    let trades = "t,s=x,venue=v q=1i 10\nt,s=x,venue=w q=2i 20\nt,s=y q=3i 30\nt,s=z q=4i 5\n";
    let quotes = "p,s=x c=1.5 5\np,s=x c=1.75 20\np,s=y c=9 31\n";
    world.write(TENANT, "default", &format!("{trades}{quotes}"));
    world
}

const JOIN: &str = "t ASOF JOIN p MATCH_CONDITION (t.time >= p.time) ON t.s = p.s";

#[test]
fn an_asof_join_stands_wherever_a_table_may() {
    let world = two();
    for (sql, expected) in [
        (format!("SELECT q, c FROM {JOIN} ORDER BY q"), vec!["1,1.5", "2,1.75", "3,", "4,"]),
        (format!("SELECT q, c FROM {JOIN} WHERE c > 1.6"), vec!["2,1.75"]),
        (format!("SELECT q FROM {JOIN} WHERE c IS NULL ORDER BY q DESC"), vec!["4", "3"]),
        (format!("SELECT sum(q), count(c) FROM {JOIN} WHERE t.s = 'x'"), vec!["3,2"]),
        (format!("SELECT count(*) FROM {JOIN}"), vec!["4"]),
        (format!("SELECT count(*) FROM {JOIN} WHERE random() > 2"), vec!["0"]),
        (format!("SELECT j.q FROM ({JOIN}) AS j (s1, v1, t1, q, s2, t2, c) ORDER BY 1 LIMIT 1"), vec!["1"]),
        (format!("SELECT q, c, d.x FROM {JOIN} JOIN (VALUES (1, 'one')) AS d (n, x) ON d.n = q"), vec!["1,1.5,one"]),
        ("SELECT a.q, b.c, d.c FROM t a ASOF JOIN p b MATCH_CONDITION (a.time >= b.time) ON a.s = b.s \
          ASOF JOIN p d MATCH_CONDITION (d.time > a.time) ON d.s = a.s ORDER BY 1".to_owned(),
         vec!["1,1.5,1.75", "2,1.75,", "3,,9.0", "4,,"]),
        (format!("WITH w AS (SELECT q, c FROM {JOIN}) SELECT max(c) FROM w WHERE q < 2"), vec!["1.5"]),
    ] {
        assert_eq!(world.csv(&sql), expected, "{sql}");
    }
}

#[test]
fn conditions_on_the_left_side_are_read_with_it_and_on_the_right_side_after_it() {
    let world = two();
    let plan =
        world.csv(&format!("EXPLAIN SELECT q, c FROM {JOIN} WHERE t.s = 'x' AND c > 1")).join("\n");
    assert!(
        plan.contains("table=t, columns=[s, time, q], time=[, ), files=0/0, series=2/4"),
        "{plan}"
    );
    assert!(
        plan.contains("table=p, columns=[s, time, c], time=[, ), files=0/0, series=2/2"),
        "{plan}"
    );
}

#[test]
fn what_an_asof_join_cannot_do_is_named() {
    let world = two();
    for (rest, says) in [
        ("MATCH_CONDITION (t.time = p.time) ON t.s = p.s", "by >=, >, <= or <, not by ="),
        ("MATCH_CONDITION (t.time >= t.time) ON t.s = p.s", "compares a column of the left side"),
        ("MATCH_CONDITION (t.time >= p.time) ON t.s > p.s", "ON of an ASOF JOIN"),
        ("MATCH_CONDITION (t.time >= p.time) ON t.s = p.s OR t.q = 1", "ON of an ASOF JOIN"),
        ("MATCH_CONDITION (t.time >= p.time) USING (s)", "no USING"),
        ("ON t.s = p.s", "MATCH_CONDITION"),
    ] {
        let error = world.ask(&format!("SELECT * FROM t ASOF JOIN p {rest}")).unwrap_err();
        assert!(error.to_string().contains(says), "{rest}: {error}");
    }
}

#[test]
fn the_memory_of_a_query_bounds_an_asof_join() {
    let world = two();
    let series = "FROM generate_series(1, 30000000)";
    let sql = format!(
        "SELECT count(*) FROM (SELECT value AS v {series}) AS a \
         ASOF JOIN (SELECT 5 - value AS v {series}) AS b MATCH_CONDITION (a.v >= b.v)"
    );
    assert_eq!(world.code(&sql), "query_memory");
}
