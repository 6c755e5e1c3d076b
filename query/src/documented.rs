//! Runs the examples of `docs/sql.md` and compares what the page shows beneath them.
//!
//! Owns: the page's promise that its examples are true. A block marked `sql` is run against the
//! sample store; what follows the word is JSON parameters. The block marked `text` beneath it is
//! its result as a table, or its error as `code: message`. `UPDATE_EXPECT=1` writes the results
//! into the page. Never: skips an example.

use std::collections::BTreeSet;

use datafusion::execution::FunctionRegistry;

use crate::{
    Format, Params, QueryError,
    fixture::{World, limits},
    functions::Stop,
    pool::SharedMemory,
    session::{self, Bounds},
    system::Sources,
};

const PAGE: &str = include_str!("../../docs/sql.md");

fn result(world: &World, sql: &str, params: &str) -> String {
    let params = match params.trim() {
        "" => Params::None,
        json => {
            Params::from_json(serde_json::from_str(json).expect("parameters are JSON")).unwrap()
        }
    };
    match world.bytes(sql, params, Format::Pretty) {
        Ok(bytes) => String::from_utf8(bytes).unwrap(),
        Err(e) => format!("{}: {e}\n", e.code().0),
    }
}

/// The page with every result as it is now, and the number of examples.
fn rewritten(world: &World) -> (String, usize) {
    let (mut out, mut examples) = (String::new(), 0);
    let mut lines = PAGE.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(params) = line.strip_prefix("```sql") else { continue };
        let sql: Vec<&str> = lines.by_ref().take_while(|l| *l != "```").collect();
        for line in &sql {
            out.push_str(line);
            out.push('\n');
        }
        out.push_str("```\n\n```text\n");
        let opening: Vec<&str> = lines.by_ref().take(2).collect();
        assert_eq!(opening, ["", "```text"], "an example has its result beneath it: {sql:?}");
        lines.by_ref().take_while(|l| *l != "```").for_each(drop);
        out.push_str(&result(world, &sql.join("\n"), params));
        out.push_str("```\n");
        examples += 1;
    }
    (out, examples)
}

#[test]
fn every_example_of_the_page_returns_what_the_page_shows() {
    let (page, examples) = rewritten(&World::sample());
    assert!(examples >= 15, "only {examples} examples");
    expect_test::expect_file!["../../docs/sql.md"].assert_eq(&page);
}

#[test]
fn the_page_lists_every_error_code() {
    for (code, status) in QueryError::CODES {
        let row = format!("| `{code}` | {status} |");
        assert!(PAGE.contains(&row), "the page has no row `{row}`");
    }
}

/// The names in back quotes between a heading and the next one.
fn listed(heading: &str) -> BTreeSet<&str> {
    let (_, part) = PAGE.split_once(heading).expect("the heading is there");
    let part = part.split("\n## ").next().unwrap_or(part);
    part.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_page_lists_every_function_and_no_other() {
    let world = World::sample();
    let tenant = crate::fixture::TENANT;
    let snapshot = world.storage.snapshot(tenant).unwrap();
    let storage = std::sync::Arc::clone(&world.storage);
    let sources = Sources { snapshot, storage, tenant, now_ns: 0 };
    let (limits, memory, stop) = (limits(), SharedMemory::new(1), Stop::default());
    let bounds = Bounds { limits: &limits, memory: &memory, stop: &stop };
    let state = session::open(&sources, "default", &bounds).unwrap().state();
    let mut known: BTreeSet<String> = state.udfs().into_iter().collect();
    known.extend(state.udafs());
    known.extend(state.udwfs());
    known.extend(state.table_functions().keys().cloned());
    let listed = listed("## Functions");
    let shown =
        |f: &str| listed.contains(f) || listed.contains(f.replace("list_", "array_").as_str());
    let missing: Vec<&String> = known.iter().filter(|f| !shown(f)).collect();
    let unknown: Vec<&&str> = listed.iter().filter(|f| !known.contains(**f)).collect();
    assert!(missing.is_empty() && unknown.is_empty(), "missing {missing:?}, unknown {unknown:?}");
}
