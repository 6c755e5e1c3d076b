//! What the views show, and to whom.

use super::*;
use crate::{
    Params,
    fixture::{CANARY, MINUTE_NS, NEW_YEAR_NS, TENANT, World, scope},
};

fn csv(world: &World, view: &str) -> Vec<String> {
    world.csv(&format!("SELECT * FROM system.{view} ORDER BY 1, 2, 3"))
}

#[test]
fn a1_every_view_shows_the_callers_own_and_nothing_of_a_stranger() {
    let world = World::sample();
    world.flush();
    for view in &VIEWS {
        let rows = csv(&world, view.name);
        let text = rows.join("\n");
        for word in [CANARY, "secret", "vault", "owner"] {
            assert!(!text.contains(word), "{}: {text}", view.name);
        }
        let some = !matches!(view.name, "compactions" | "streams");
        assert_eq!(!rows.is_empty(), some, "{}: {text}", view.name);
    }
    let count = |sql: &str| world.csv(sql).join(",");
    assert_eq!(count("SELECT sum(rows) FROM system.ingest"), "9", "the stranger wrote 2 more");
    assert_eq!(count("SELECT count(*) FROM system.tables"), "2");
    assert_eq!(
        count("SELECT sum(rows) FROM system.files"),
        count("SELECT sum(rows) FROM system.tables")
    );
}

#[test]
fn a1_a_database_named_system_hides_nothing() {
    let world = World::sample();
    let rows = world.block_on(async {
        let answer =
            world.query.run(scope(), "system", "SELECT table_name FROM tables", Params::None);
        let rows: Vec<RecordBatch> =
            futures::TryStreamExt::try_collect(answer.await.unwrap().rows).await.unwrap();
        rows.iter().map(RecordBatch::num_rows).sum::<usize>()
    });
    assert_eq!(rows, 2);
}

#[test]
fn views_are_listed_and_described_like_tables() {
    let world = World::sample();
    let listed = world.csv(
        "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = 'system' ORDER BY 1",
    );
    let expected: Vec<String> = VIEWS.iter().map(|v| format!("{},VIEW", v.name)).collect();
    assert_eq!(listed, expected);
    for view in &VIEWS {
        let described = world.csv(&format!("DESCRIBE system.{}", view.name));
        assert_eq!(described.len(), (view.schema)().fields().len(), "{}", view.name);
    }
    assert_eq!(world.code("SELECT * FROM system.nowhere"), "sql_unknown_name");
    assert_eq!(world.code("INSERT INTO system.tables VALUES (1)"), "sql_not_allowed");
}

#[test]
fn late_rows_are_those_far_behind_the_newest_of_their_table() {
    let world = World::empty();
    let row = |minute: i64| format!("m v=1 {}\n", NEW_YEAR_NS + minute * MINUTE_NS);
    let late = |world: &World| world.csv("SELECT rows, late FROM system.ingest").join(",");
    world.write(TENANT, "default", &(row(0) + &row(50)));
    assert_eq!(late(&world), "2,0", "nothing was there to be behind of");
    world.write(TENANT, "default", &(row(20) + &row(19) + &row(51)));
    assert_eq!(late(&world), "5,1", "30 min are not late, 31 min are");
}
