//! The main job: rows go in over TLS, are acked when they are safe, and are there afterwards.
//!
//! Owns: the crash suite of the server. A kill comes at a random moment under load; afterwards
//! the server is started, killed during its recovery, and started again; then the books are
//! compared. Replay one run with its printed seed.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Duration,
};

use millrace_tests::{Client, Ledger, Random, World, ledger::RowName};

use crate::ledger_lines;

const DB: &str = "default";
const TABLE: &str = "crash";

/// Kills of the suite; fewer by `MILLRACE_TEST_KILLS` while working on it.
fn kills(usual: u64) -> u64 {
    std::env::var("MILLRACE_TEST_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(usual)
}

#[test]
fn l1_a_row_written_over_tls_is_queried_a_moment_later() {
    let (_world, client) = World::with_tenant();
    client.write(DB, "press,line=a temp=21.5,count=7i,ok=true,state=\"run\" 1767225600000000000\n");
    let rows = client.sql(DB, "SELECT line, temp, count, ok, state, time FROM press");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["line"], "a");
    assert_eq!(rows[0]["temp"], 21.5);
    assert_eq!(rows[0]["count"], 7);
    assert_eq!(rows[0]["ok"], true);
    assert_eq!(rows[0]["state"], "run");
}

#[test]
fn d1_rows_survive_a_graceful_restart_and_a_kill() {
    let (mut world, client) = World::with_tenant();
    client.write(DB, &ledger_lines(TABLE, 1, 1, 500));
    world.stop();
    world.start();
    client.write(DB, &ledger_lines(TABLE, 1, 501, 500));
    world.kill9();
    world.start();
    let mut ledger = Ledger::default();
    ledger.acked((1..=1000).map(|n| (1, n)));
    ledger.check(&client, DB, TABLE).is_clean("after a stop and a kill");
}

#[test]
fn d2_a_batch_sent_twice_counts_once_and_the_last_value_wins() {
    let (mut world, client) = World::with_tenant();
    let lines = ledger_lines(TABLE, 1, 1, 100);
    client.write(DB, &lines);
    client.write(DB, &lines);
    client.write(DB, "crash,writer=1 value=99 1767225600001000000\n");
    let check = |moment: &str| {
        assert_eq!(client.number(DB, "SELECT count(*) AS n FROM crash"), 100, "{moment}");
        // Only the field that was sent again changed; its neighbour of the same row stayed.
        let rows = client.sql(DB, "SELECT n, value FROM crash WHERE n = 1");
        assert_eq!(
            (rows[0]["n"].as_i64(), rows[0]["value"].as_f64()),
            (Some(1), Some(99.0)),
            "{moment}"
        );
    };
    check("from memory");
    world.kill9();
    world.start();
    check("after replay");
    world.stop();
    world.start();
    check("from files");
}

/// Shared by the writers of one burst.
struct Load {
    client: Client,
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    acks: mpsc::SyncSender<()>,
}

/// Writes batches until told to stop or until the server is gone; returns the next row number.
fn write_until_stopped(load: &Load, writer: u64, mut next: u64, rows: u64) -> u64 {
    while !load.stop.load(Ordering::Relaxed) {
        let names: Vec<RowName> = (next..next + rows).map(|n| (writer, n)).collect();
        load.ledger.lock().unwrap().sending(names.clone());
        // Padded, so that few rows fill the memtable and kills find it flushing.
        let pad = format!(".5,pad=\"{}\" ", "p".repeat(600));
        let lines = ledger_lines(TABLE, writer, next, rows).replace(".5 ", &pad);
        next += rows;
        match load.client.try_write(DB, &lines) {
            Ok(answer) if (200..300).contains(&answer.status) => {
                load.ledger.lock().unwrap().acked(names);
                load.acks.try_send(()).ok();
            }
            // Refused whole (shutting down, over a limit): not acked, so anything may be true.
            Ok(_) => {}
            // The connection broke: the server is dead or about to be.
            Err(_) => break,
        }
    }
    next
}

#[test]
fn d1_d2_a_hundred_kills_under_load_lose_nothing_double_nothing_and_invent_nothing() {
    const WRITERS: u64 = 4;
    let mut random = Random::for_test("server crash suite");
    let (mut world, client) = World::with_tenant();
    // A small memtable, so that kills hit flushes, commits, trims and merges too.
    world.settings(&["--memtable-mib", "1"]);
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let mut next = BTreeMap::from_iter((1..=WRITERS).map(|w| (w, 1u64)));
    for kill in 1..=kills(100) {
        let stop = Arc::new(AtomicBool::new(false));
        let (acks, acked) = mpsc::sync_channel(1024);
        std::thread::scope(|scope| {
            let mut writers = Vec::new();
            for (writer, from) in &next {
                let load = Load {
                    client: client.clone(),
                    ledger: Arc::clone(&ledger),
                    stop: Arc::clone(&stop),
                    acks: acks.clone(),
                };
                let (writer, from, rows) = (*writer, *from, random.between(1, 60));
                writers.push((
                    writer,
                    scope.spawn(move || write_until_stopped(&load, writer, from, rows)),
                ));
            }
            // A random moment: after some acks, and then a little later.
            for _ in 0..random.between(1, 12) {
                acked.recv_timeout(Duration::from_secs(60)).expect("acks keep coming");
            }
            acked.recv_timeout(Duration::from_micros(random.between(0, 5_000))).ok();
            world.kill9();
            stop.store(true, Ordering::Relaxed);
            for (writer, thread) in writers {
                next.insert(writer, thread.join().unwrap());
            }
        });
        // The first restart is itself killed: during recovery, or when it is already up.
        let mut first = world.launch();
        let patience = Duration::from_millis(random.between(0, 400));
        acked.recv_timeout(patience).ok();
        first.kill9();
        world.start();
        let books = ledger.lock().unwrap();
        books.check(&client, DB, TABLE).is_clean(&format!("after kill {kill}"));
    }
    let books = ledger.lock().unwrap();
    eprintln!("{} rows sent, {} acked", books.sent(), books.acked_rows());
    assert!(books.acked_rows() > 1000, "the suite wrote under load");
    let bundles = millrace_tests::scan::files(&world.data().join("data")).len();
    eprintln!("{bundles} bundles of column files");
    assert!(kills(100) < 20 || bundles > 0, "no kill can have hit a flush");
}
