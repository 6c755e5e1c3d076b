//! The functions as SQL calls them: against stock SQL that says the same, over rows in files and
//! in memory, in two partitions; what they refuse; what they may cost.

use crate::fixture::{MINUTE_NS, NEW_YEAR_NS, TENANT, World};

/// 600 hosts with 1 to 9 rows each, every part of them out of order, with gaps and resets.
fn world() -> World {
    let world = World::empty();
    let mut parts = vec![String::new(); 3];
    for host in 0..600i64 {
        for row in 0..=host % 9 {
            // 7 steps of 11 meet each residue once, in an order that is not that of time.
            let step = row * 7 % 11;
            let counted = (host * 31 + step * step * 17) % 50;
            let time = NEW_YEAR_NS + step * MINUTE_NS + host;
            let field = if (host + row) % 5 == 0 { "other=1i".to_owned() } else { values(counted) };
            parts[(row % 3) as usize].push_str(&format!("m,host=h{host} {field} {time}\n"));
        }
    }
    for (n, part) in parts.iter().enumerate() {
        world.write(TENANT, "default", part);
        if n < 2 {
            world.flush();
        }
    }
    world
}

fn values(counted: i64) -> String {
    let state = ["idle", "run", "stop"][(counted % 3) as usize];
    format!("f={}.5,i={counted}i,u={counted}u,up={},state=\"{state}\"", counted, counted % 2 == 0)
}

/// Both statements return the same rows, and some.
fn same(world: &World, ours: &str, stock: &str) {
    let (ours_rows, stock_rows) = (world.csv(ours), world.csv(stock));
    assert!(ours_rows.len() > 1, "{ours}");
    assert_eq!(ours_rows, stock_rows, "{ours}\n{stock}");
}

#[test]
fn counters_agree_with_stock_sql() {
    let world = world();
    for field in ["f", "i", "u"] {
        let ours = format!(
            "SELECT host, increase({field}, time) AS a, round(rate({field}, time) * 1e6) AS b, \
             delta({field}, time) AS c FROM m GROUP BY host ORDER BY host"
        );
        let stock = format!(
            "WITH f AS (SELECT host, time, CAST({field} AS DOUBLE) AS v FROM m WHERE {field} IS NOT NULL), \
             s AS (SELECT host, time, v, lag(v) OVER (PARTITION BY host ORDER BY time) AS p FROM f), \
             g AS (SELECT host, sum(CASE WHEN v < p THEN v ELSE v - p END) AS a, min(time) AS t0, \
             max(time) AS t1, last_value(v ORDER BY time) - first_value(v ORDER BY time) AS c, \
             count(*) AS n FROM s GROUP BY host) \
             SELECT h.host, g.a, round(g.a / ((CAST(t1 AS BIGINT) - CAST(t0 AS BIGINT)) / 1e9) * 1e6) AS b, \
             CASE WHEN n > 1 THEN c END AS c \
             FROM (SELECT DISTINCT host FROM m) h LEFT JOIN g ON g.host = h.host ORDER BY h.host"
        );
        same(&world, &ours, &stock);
    }
}

#[test]
fn averages_weighted_by_time_agree_with_stock_sql() {
    same(
        &world(),
        "SELECT host, round(time_weighted_avg(f, time) * 1e6) AS a FROM m GROUP BY host \
         HAVING time_weighted_avg(f, time) IS NOT NULL ORDER BY host",
        "WITH f AS (SELECT host, CAST(time AS BIGINT) AS t, f FROM m WHERE f IS NOT NULL), \
         s AS (SELECT host, f, lead(t) OVER (PARTITION BY host ORDER BY t) - t AS d FROM f) \
         SELECT host, round(sum(f * d) / sum(d) * 1e6) AS a FROM s WHERE d > 0 \
         GROUP BY host ORDER BY host",
    );
}

#[test]
fn durations_of_states_agree_with_stock_sql() {
    let world = world();
    let states = [("state", "run"), ("state", "none"), ("up", "true"), ("i", "8"), ("host", "h5")];
    for (field, state) in states {
        let ours = format!(
            "SELECT host, round(state_durations({field}, time)['{state}'] * 1e6) AS a \
             FROM m GROUP BY host HAVING count({field}) > 0 ORDER BY host"
        );
        let stock = format!(
            "WITH f AS (SELECT host, CAST(time AS BIGINT) AS t, CAST({field} AS VARCHAR) AS s FROM m \
             WHERE {field} IS NOT NULL), \
             d AS (SELECT host, s, lead(t) OVER (PARTITION BY host ORDER BY t) - t AS d FROM f) \
             SELECT host, round(coalesce(sum(d) FILTER (WHERE s = '{state}'), \
             CASE WHEN bool_or(s = '{state}') THEN 0 END) / 1e3) AS a \
             FROM d GROUP BY host ORDER BY host"
        );
        same(&world, &ours, &stock);
    }
}

#[test]
fn first_last_and_state_at_agree_with_an_order_in_stock_sql() {
    let world = world();
    for value in ["f", "i", "u", "up", "state", "host", "time"] {
        same(
            &world,
            &format!(
                "SELECT host, first({value}, time) AS a, last({value}, time) AS b, \
                 state_at({value}, time, '2026-01-01T00:04:00Z') AS c, \
                 last({value}, time) FILTER (WHERE time < '2026-01-01T00:02:00Z') AS d \
                 FROM m GROUP BY host ORDER BY host"
            ),
            &format!(
                "WITH f AS (SELECT host, time, {value} AS v FROM m WHERE {value} IS NOT NULL), \
                 g AS (SELECT host, first_value(v ORDER BY time) AS a, \
                 last_value(v ORDER BY time) AS b, last_value(v ORDER BY time) \
                 FILTER (WHERE time <= TIMESTAMP '2026-01-01T00:04:00Z') AS c, last_value(v ORDER BY time) \
                 FILTER (WHERE time < TIMESTAMP '2026-01-01T00:02:00Z') AS d FROM f GROUP BY host) \
                 SELECT h.host, a, b, c, d FROM (SELECT DISTINCT host FROM m) h \
                 LEFT JOIN g ON g.host = h.host ORDER BY h.host"
            ),
        );
    }
}

#[test]
fn histograms_agree_with_stock_sql() {
    same(
        &world(),
        "SELECT host, array_to_string(histogram(f, 10, 40, 3), ',') AS a FROM m GROUP BY host \
         HAVING count(f) > 0 ORDER BY host",
        "SELECT host, concat_ws(',', sum(CAST(f < 10 AS INT)), \
         sum(CAST(f >= 10 AND f < 20 AS INT)), sum(CAST(f >= 20 AND f < 30 AS INT)), \
         sum(CAST(f >= 30 AND f < 40 AS INT)), sum(CAST(f >= 40 AS INT))) AS a \
         FROM m WHERE f IS NOT NULL GROUP BY host ORDER BY host",
    );
}

#[test]
fn groups_that_come_in_order_are_emitted_on_the_way() {
    let world = world();
    let all = "SELECT host, increase(i, time) AS a, \
               array_to_string(histogram(i, 0, 50, 5), ',') AS b";
    let ordered = format!(
        "{all}, cardinality(state_durations(state, time)) AS c \
         FROM (SELECT * FROM m WHERE i IS NOT NULL ORDER BY host LIMIT 100000) \
         GROUP BY host ORDER BY host"
    );
    let plan = world.csv(&format!("EXPLAIN {ordered}")).join("\n");
    assert!(plan.contains("ordering_mode=Sorted"), "{plan}");
    let plain = format!(
        "{all}, count(DISTINCT state) AS c FROM m WHERE i IS NOT NULL GROUP BY host ORDER BY host"
    );
    same(&world, &ordered, &plain);
}

#[test]
fn a_running_increase_is_the_increase_so_far() {
    same(
        &world(),
        "SELECT host, time, increase(i, time) OVER (PARTITION BY host ORDER BY time) AS a \
         FROM m WHERE i IS NOT NULL ORDER BY host, time",
        "WITH s AS (SELECT host, time, i, lag(i) OVER (PARTITION BY host ORDER BY time) AS p \
         FROM m WHERE i IS NOT NULL) SELECT host, time, CAST(sum(CASE WHEN i < p THEN i ELSE i - p END) \
         OVER (PARTITION BY host ORDER BY time) AS DOUBLE) AS a FROM s ORDER BY host, time",
    );
}

#[test]
fn a_window_that_slides_is_a_group_of_the_rows_that_it_covers() {
    let world = world();
    same(
        &world,
        "SELECT host, time, round(rate(i, time) OVER (PARTITION BY host ORDER BY time \
         RANGE BETWEEN INTERVAL '3 minutes' PRECEDING AND CURRENT ROW) * 1e6) AS a \
         FROM m ORDER BY host, time",
        "SELECT a.host, a.time, round(rate(b.i, b.time) * 1e6) AS a FROM m AS a JOIN m AS b \
         ON a.host = b.host AND b.time <= a.time AND b.time >= a.time - INTERVAL '3 minutes' \
         GROUP BY a.host, a.time ORDER BY a.host, a.time",
    );
    same(
        &world,
        "SELECT host, time, increase(i, time) OVER (PARTITION BY host ORDER BY time ROWS 1 PRECEDING) AS a \
         FROM m WHERE i IS NOT NULL ORDER BY host, time",
        "WITH s AS (SELECT host, time, i, lag(i) OVER (PARTITION BY host ORDER BY time) AS p \
         FROM m WHERE i IS NOT NULL) SELECT host, time, CAST(CASE WHEN i < p THEN i ELSE i - p END \
         AS DOUBLE) AS a FROM s ORDER BY host, time",
    );
}

#[test]
fn no_rows_give_null_and_no_groups_give_no_rows() {
    let world = world();
    let all = "increase(i, time), rate(f, time), delta(u, time), time_weighted_avg(f, time), \
               first(i, time), last(state, time), state_at(up, time, now()), \
               cardinality(state_durations(state, time)), cardinality(histogram(i, 0, 9, 3))";
    let none = format!("SELECT {all} FROM m WHERE host = 'nobody'");
    assert_eq!(world.csv(&none), [",,,,,,,,"]);
    let none: Vec<String> = world.csv(&format!("{none} GROUP BY host"));
    assert!(none.is_empty(), "{none:?}");
    let null = "SELECT increase(NULL, time), last(NULL, time), state_durations(NULL, time)['a'], \
                histogram(NULL, 0, 1, 2)[1], rate(f, NULL) FROM m";
    assert_eq!(world.csv(null), [",,,,"]);
}

/// The refusal of a statement.
fn refused(world: &World, call: &str) -> String {
    world.ask(&format!("SELECT {call} FROM m")).unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_is_named() {
    let world = world();
    for (call, says) in [
        ("increase(state, time)", "`increase` takes a number, not Utf8"),
        ("rate(i, u)", "`rate` takes a time, not UInt64"),
        ("delta(i)", "`delta` is called as delta(value, time)"),
        ("time_weighted_avg(up, time)", "`time_weighted_avg` takes a number, not Boolean"),
        ("increase(DISTINCT i, time)", "leave out DISTINCT"),
        ("state_durations(DISTINCT state, time)", "leave out DISTINCT"),
        ("last(DISTINCT i, time)", "without DISTINCT"),
        ("first(i, time ORDER BY i)", "without DISTINCT, ORDER BY"),
        ("first(i, f)", "`first` takes a time, not Float64"),
        ("state_at(i, time)", "`state_at` is called as state_at(state, time, at)"),
        ("state_durations(f, time)", "a text, a boolean or a whole number, not Float64"),
        ("histogram(i, 0, 10)", "`histogram` is called as histogram(value, min, max, n)"),
        ("histogram(i, u, 10, 5)", "takes constants as min, max and n"),
        ("histogram(i, 10, 0, 5)", "takes a min below its max"),
        ("histogram(i, 0, 10, 100000)", "makes 1 to 256 ranges, not 100000"),
        (
            "rate(i, time) OVER (PARTITION BY host ORDER BY time DESC)",
            "`rate` as a window takes rows in",
        ),
        (
            "rate(i, time) OVER (PARTITION BY host ORDER BY i ROWS 3 PRECEDING)",
            "`rate` as a window takes",
        ),
        ("last(i, time) OVER ()", "`last` has no window form"),
        ("state_durations(state, time) OVER ()", "`state_durations` has no window form"),
        ("histogram(i, 0, 1, 256) OVER (ORDER BY time)", "`histogram` has no window form"),
    ] {
        let found = refused(&world, call);
        assert!(found.contains(says), "{call}: {found}");
    }
}

#[test]
fn values_at_a_time_need_no_sort() {
    let world = world();
    let plan = world.csv("EXPLAIN SELECT host, last(i, time) FROM m GROUP BY host").join("\n");
    assert!(plan.contains("last_value") && !plan.contains("SortExec"), "{plan}");
}

#[test]
fn the_memory_of_a_query_bounds_what_is_kept() {
    let world = World::sample();
    let rows =
        "(SELECT value AS v, to_timestamp_nanos(value) AS t FROM generate_series(1, 100000000))";
    for call in [
        "increase(v, t)",
        "time_weighted_avg(v, t)",
        "state_durations(v, t)",
        "state_durations(v % 2, t)",
    ] {
        assert_eq!(world.code(&format!("SELECT {call} FROM {rows}")), "query_memory", "{call}");
        let grouped = format!("SELECT v % 1000 AS g, {call} FROM {rows} GROUP BY g");
        assert_eq!(world.code(&grouped), "query_memory", "{grouped}");
    }
    let counts = format!("SELECT v AS g, histogram(v, 0, 1, 256) FROM {rows} GROUP BY g");
    assert_eq!(world.code(&counts), "query_memory");
    assert_eq!(world.code(&format!("SELECT last(v, t) FROM {rows} WHERE v < 1000000")), "ok");
}

#[test]
fn percentiles_are_exact_or_close_as_the_page_says() {
    let world = World::sample();
    let rows = "FROM generate_series(0, 100000)";
    let within = "WITHIN GROUP (ORDER BY value)";
    for (percent, rank) in [(1, 1000), (10, 10_000), (50, 50_000), (90, 90_000), (99, 99_000)] {
        let share = f64::from(percent) / 100.0;
        let exact = world.csv(&format!("SELECT percentile_cont({share}) {within} {rows}"));
        assert_eq!(exact, [format!("{rank}.0")]);
        let close = world.csv(&format!("SELECT approx_percentile_cont({share}) {within} {rows}"));
        let off = (close[0].parse::<f64>().unwrap() - f64::from(rank)).abs();
        assert!(off <= 1000.0, "{percent} %: off by {off} of 100,000 ranks");
    }
}
