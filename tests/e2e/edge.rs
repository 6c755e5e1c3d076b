//! The forwarder with the real server: enrolment, exactly once through outages, no open port.

use std::{collections::BTreeMap, time::Duration};

use millrace_tests::{Forwarder, Ledger, Random, World, ledger, process::PATIENCE, scan};

use crate::ledger_lines;

const DB: &str = "default";
const TABLE: &str = "edge";

/// Reads the table until the condition holds; the test fails if it never does. Each look is a
/// query, so this waits by asking, not by sleeping.
fn until(world: &World, client: &millrace_tests::Client, what: &str, rows: usize) -> BTreeMap<ledger::RowName, u64> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let found = ledger::found(client, DB, TABLE);
        if found.len() >= rows {
            return found;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{what}: {} of {rows} rows arrived; the server said:\n{}",
            found.len(),
            String::from_utf8_lossy(&world.said())
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn e3_a_device_enrols_once_with_its_claim_and_its_rows_arrive() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    assert!(edge.process().write(ledger_lines(TABLE, 1, 1, 500).as_bytes()));
    let found = until(&world, &client, "a first batch", 500);
    assert!(found.values().all(|times| *times == 1));
    // The claim is spent: a second device cannot use it, and an invented one is refused.
    let another = tempfile::tempdir().unwrap();
    let mut enrol = std::process::Command::new(millrace_tests::process::binary("millrace-edge"));
    enrol.arg("enroll").arg("--data-dir").arg(another.path().join("edge"));
    enrol.arg(&client.base).args(["--claim", "not-a-claim", "--ca"]).arg(world.ca_path());
    let (fine, _, said) = millrace_tests::process::attempt(&mut enrol);
    assert!(!fine && !said.is_empty());
}

#[test]
fn e1_the_forwarder_listens_nowhere() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    edge.process().write(ledger_lines(TABLE, 1, 1, 10).as_bytes());
    until(&world, &client, "a first batch", 10);
    let open = scan::listening(edge.process().id());
    assert!(open.is_empty(), "{open:?}");
    assert!(!scan::listening(world.server().process.id()).is_empty(), "the look at sockets works");
}

#[test]
fn e7_what_was_acked_leaves_the_queue() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    for batch in 0..20 {
        edge.process().write(ledger_lines(TABLE, 1, 1 + batch * 2000, 2000).as_bytes());
        until(&world, &client, "a batch", usize::try_from((batch + 1) * 2000).unwrap());
    }
    let held: u64 = scan::files(&edge.folder())
        .iter()
        .filter_map(|f| std::fs::metadata(f).ok())
        .map(|m| std::os::unix::fs::MetadataExt::blocks(&m) * 512)
        .sum();
    assert!(held < 64 << 20, "{held} bytes are still in the forwarder's folder");
}

#[test]
fn d2_e6_e9_forwarder_and_server_are_killed_again_and_again_and_every_row_arrives_once() {
    let mut random = Random::for_test("forwarder crash suite");
    let (mut world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    let mut next = 1u64;
    // The first row that the running forwarder was given.
    let mut given_from = 1u64;
    let mut certain = Ledger::default();
    let rounds: u64 = std::env::var("MILLRACE_TEST_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(100);
    for round in 1..=rounds {
        let count = random.between(1, 200);
        // What is on its way through standard input when the forwarder dies was never taken in:
        // it may arrive or not, but never twice.
        certain.sending((next..next + count).map(|n| (1, n)));
        let wrote = edge.process().write(ledger_lines(TABLE, 1, next, count).as_bytes());
        assert!(wrote, "round {round}: the forwarder stopped reading: {}", String::from_utf8_lossy(&edge.said()));
        let last = next + count - 1;
        next += count;
        std::thread::park_timeout(Duration::from_millis(random.between(0, 60)));
        match random.between(0, 3) {
            0 => {
                world.kill9();
                std::thread::park_timeout(Duration::from_millis(random.between(0, 60)));
                world.start();
            }
            1 => {
                edge.kill9();
                edge.start();
                given_from = next;
            }
            _ => {
                // A quiet round: everything that this forwarder was given must arrive.
                let deadline = std::time::Instant::now() + PATIENCE;
                while client.number(DB, &format!("SELECT max(n) AS n FROM {TABLE}")) < i64::try_from(last).unwrap() {
                    assert!(std::time::Instant::now() < deadline, "round {round}: row {last} never arrived");
                    std::thread::park_timeout(Duration::from_millis(20));
                }
                certain.acked((given_from..=last).map(|n| (1, n)));
            }
        }
        if round % 10 == 0 {
            certain.check(&client, DB, TABLE).is_clean(&format!("round {round}"));
        }
    }
    // Rows that reached the table stay, and none is there twice or from nowhere.
    let before = ledger::found(&client, DB, TABLE);
    world.kill9();
    edge.kill9();
    world.start();
    edge.start();
    certain.acked(before.keys().copied());
    certain.check(&client, DB, TABLE).is_clean("at the end");
}

#[test]
fn e6_rows_taken_in_during_an_outage_arrive_after_it() {
    let (mut world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    edge.process().write(ledger_lines(TABLE, 1, 1, 100).as_bytes());
    until(&world, &client, "before the outage", 100);
    world.kill9();
    for batch in 1..=10u64 {
        edge.process().write(ledger_lines(TABLE, 1, 1 + batch * 100, 100).as_bytes());
    }
    world.start();
    let found = until(&world, &client, "after the outage", 1100);
    assert_eq!(found.len(), 1100);

}
