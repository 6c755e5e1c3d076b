//! Admission, deadlines, cancellation and what a query sees, through the engine's own door.

use futures::FutureExt;

use super::*;
use crate::fixture::{CANARY, MINUTE_NS, NEW_YEAR_NS, TENANT, World, limits, scope};

/// Rows without an end: its stream waits for its reader, so it runs as long as a test wants.
const ENDLESS: &str = "SELECT value FROM generate_series(1, 1000000000000)";
/// Work without an end and without rows.
const BUSY: &str = "SELECT count(*) FROM generate_series(1, 1000000000000)";

fn start(world: &World, sql: &str) -> BoxFuture<'static, Result<QueryAnswer, QueryError>> {
    world.query.run(scope(), "default", sql, Params::None)
}

fn code<T>(result: Result<T, QueryError>) -> &'static str {
    result.map_or_else(|e| e.code().0, |_| "ok")
}

#[test]
fn the_fifth_query_waits_and_the_twenty_first_is_refused() {
    let world = World::sample();
    let mut running: Vec<QueryAnswer> =
        (0..4).map(|_| world.block_on(start(&world, ENDLESS)).unwrap()).collect();
    let mut queued: Vec<_> = (0..16).map(|_| start(&world, "SELECT 1 AS one")).collect();
    for waiting in &mut queued {
        assert!(world.block_on(async { waiting.now_or_never().is_none() }), "it waits");
    }
    assert_eq!(code(world.block_on(start(&world, "SELECT 1"))), "too_many_queries");
    running.truncate(3);
    for waiting in queued {
        assert_eq!(code(world.block_on(waiting)), "ok", "one slot is free, so they run in turn");
    }
    drop(running);
    assert_eq!(world.csv("SELECT count(*) FROM cpu"), ["7"]);
}

#[test]
fn a_late_query_is_ended_wherever_it_is_and_gives_its_slot_back() {
    let world = World::sample();
    let second = Duration::from_secs(1);
    let mut answers: Vec<QueryAnswer> =
        (0..3).map(|_| world.block_on(start(&world, ENDLESS)).unwrap()).collect();
    let mut busy = start(&world, BUSY);
    world.block_on(async { drop((&mut busy).now_or_never()) });
    let mut waiting = start(&world, "SELECT 1");
    assert!(world.block_on(async { (&mut waiting).now_or_never().is_none() }));
    world.clock.advance(limits().timeout + second);
    assert_eq!(code(world.block_on(waiting)), "query_timeout", "while waiting for a slot");
    let busy = world.block_on(busy).map(|mut a| world.block_on(a.rows.next()).unwrap());
    assert_eq!(code(busy.and_then(|rows| rows)), "query_timeout", "while computing");
    for answer in &mut answers {
        let ended = world.block_on(async {
            while let Some(rows) = answer.rows.next().await {
                if rows.is_err() {
                    return code(rows);
                }
            }
            "complete"
        });
        assert_eq!(ended, "query_timeout", "while sending rows");
        assert!(world.block_on(answer.rows.next()).is_none(), "an error is the last item");
    }
    assert_eq!(world.csv("SELECT count(*) FROM cpu"), ["7"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_query() {
    let world = World::sample();
    for _ in 0..12 {
        drop(world.block_on(start(&world, ENDLESS)).unwrap());
        let mut busy = start(&world, BUSY);
        world.block_on(async { drop((&mut busy).now_or_never()) });
    }
    assert_eq!(world.csv("SELECT count(*) FROM cpu"), ["7"]);
}

#[test]
fn a_stream_that_is_cut_off_ends_in_an_error() {
    let world = World::sample();
    let (pieces, rows) = mpsc::channel(1);
    let reader = |rows| Reader {
        rows,
        deadline: futures::future::pending().boxed().shared(),
        late: QueryError::Timeout { seconds: 1 },
        stop: StopOnDrop(Stop::default()),
        done: false,
    };
    drop(pieces);
    assert_eq!(code(world.block_on(reader(rows).next()).unwrap()), "data_unavailable");
    let (pieces, rows) = mpsc::channel(1);
    world.block_on(pieces.send(Ok(Piece::End))).unwrap();
    assert!(world.block_on(reader(rows).next()).is_none());
}

#[test]
fn a_panic_is_an_error_and_not_an_end() {
    let world = World::sample();
    let (pieces, mut rows) = mpsc::channel(1);
    let failing = AssertUnwindSafe(async { panic!("planted") }).catch_unwind();
    let outcome: Result<(), QueryError> =
        world.block_on(failing).unwrap_or_else(|_| Err(QueryError::panicked()));
    world.block_on(async { drop(pieces.send(outcome.map(|()| Piece::End)).await) });
    let last = rows.try_recv().unwrap().map(|_| ());
    assert_eq!(code(last), "internal");
}

#[test]
fn the_last_write_of_a_field_wins_in_memory_and_in_files() {
    let world = World::empty();
    let write = |values: &str| {
        world.write(TENANT, "default", &format!("m,host=a {values} {NEW_YEAR_NS}\n"));
    };
    let all = "SELECT host, x, y, z FROM m";
    write("x=1i,y=1i");
    write("y=2i");
    assert_eq!(world.csv("SELECT host, x, y FROM m"), ["a,1,2"]);
    world.flush();
    assert_eq!(world.csv("SELECT host, x, y FROM m"), ["a,1,2"]);
    write("x=3i");
    assert_eq!(world.csv("SELECT host, x, y FROM m"), ["a,3,2"]);
    world.flush();
    write("z=4i");
    assert_eq!(world.csv(all), ["a,3,2,4"]);
    world.flush();
    write("z=5i,y=6i");
    assert_eq!(world.csv(all), ["a,3,6,5"]);
    assert_eq!(world.csv("SELECT count(*), sum(z) FROM m WHERE y = 6"), ["1,5"]);
    assert_eq!(world.csv("SELECT count(*) FROM m WHERE y = 2 OR z = 4"), ["0"]);
}

#[test]
fn rows_in_files_and_in_memory_are_one_table() {
    let world = World::empty();
    for part in 0..3 {
        let line =
            |n: i64| format!("m,host=h{} v={n}i {}\n", n % 5, NEW_YEAR_NS + n * MINUTE_NS / 60);
        let lines: String = (part * 1000..(part + 1) * 1000).map(line).collect();
        world.write(TENANT, "default", &lines);
        if part < 2 {
            world.flush();
        }
    }
    assert_eq!(world.csv("SELECT count(*), sum(v), max(v) FROM m"), ["3000,4498500,2999"]);
    let hosts = world.csv("SELECT host, count(*) FROM m GROUP BY host ORDER BY host");
    assert_eq!(hosts, ["h0,600", "h1,600", "h2,600", "h3,600", "h4,600"]);
    let last = world.csv("SELECT v FROM m WHERE host = 'h4' ORDER BY time DESC LIMIT 3");
    assert_eq!(last, ["2999", "2994", "2989"]);
    assert_eq!(world.csv("SELECT v FROM m LIMIT 7").len(), 7);
}

#[test]
fn a1_another_tenant_is_not_seen_in_any_listing() {
    let world = World::sample();
    for sql in [
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM information_schema.schemata",
        "SELECT * FROM information_schema.views",
        "SHOW TABLES",
    ] {
        let seen = world.csv(sql).join("\n");
        for hidden in [CANARY, "secret", "vault", "df_settings", "routines"] {
            assert!(!seen.contains(hidden), "{sql} shows {hidden}: {seen}");
        }
    }
    let tables = world.csv("SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE' ORDER BY 1");
    assert_eq!(tables, ["default,cpu", "factory,press"]);
}

#[test]
fn explain_says_what_pruning_left() {
    let world = World::sample();
    let plan = |sql: &str| world.csv(sql).join("\n");
    let asked = "SELECT usage FROM cpu WHERE host = 'h1' AND time >= '2026-01-01T00:01:00Z'";
    let shown = plan(&format!("EXPLAIN {asked}"));
    let expected = "TelemetryScanExec: table=cpu, columns=[usage], time=[2026-01-01T00:01:00Z, ), files=1/1, series=1/3, rows<=4, partitions=1";
    assert!(shown.contains(expected), "{shown}");
    let run = plan(&format!("EXPLAIN ANALYZE {asked}"));
    for metric in [
        "output_rows=2",
        "files_total=1",
        "files_pruned=0",
        "series_total=3",
        "series_matched=1",
        "rows_planned=4",
    ] {
        assert!(run.contains(metric), "{metric}: {run}");
    }
    let shown = plan("EXPLAIN SELECT usage FROM cpu LIMIT 2");
    assert!(shown.contains("limit=2"), "{shown}");
}

#[test]
fn a_query_takes_and_returns_memory() {
    let world = World::sample();
    assert_eq!(world.query.memory_reserved(), 0);
    let sorted = "SELECT value FROM generate_series(1, 200000) ORDER BY value DESC";
    let mut answer = world.block_on(start(&world, sorted)).unwrap();
    world.block_on(answer.rows.next()).unwrap().unwrap();
    let held = world.query.memory_reserved();
    drop(answer);
    assert!(held > 0, "a sort holds its rows");
    world.block_on(async {
        while world.query.memory_reserved() > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn more_memory_than_a_query_may_use_is_refused() {
    let world = World::sample();
    let sorted = "SELECT value FROM generate_series(1, 20000000) ORDER BY value DESC";
    assert_eq!(world.code(sorted), "query_memory");
    assert_eq!(world.csv("SELECT count(*) FROM cpu"), ["7"]);
}
