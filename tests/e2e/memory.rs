//! Memory of the real server under more rows than its flushes can take: it stays within its
//! budget, refuses with 429, and every acknowledged row is there.

use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};

use millrace_tests::{Client, Ledger, World};

use crate::NEW_YEAR_NS;

/// The smallest budget, MiB.
const BUDGET_MIB: u64 = 64;
/// What the process may take beyond its budget and what it takes when idle, MiB: buffers of
/// sockets and TLS of the writers, the log's buffers, the query at the end, the allocator's slack.
const FIXED_MIB: u64 = 96;
/// Bytes of text in a row.
const TEXT_BYTES: usize = 8 << 10;
/// Rows of one request: two MiB.
const ROWS: u64 = 256;
/// Requests in all: six times the budget.
const REQUESTS: u64 = 200;
/// Connections that write at the same time.
const WRITERS: u64 = 6;

/// Peak resident memory of a process, MiB.
fn peak_mib(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// Sends request `number` until it is taken; how often it was put off.
fn send(client: &Client, number: u64) -> u64 {
    let mut lines = String::new();
    for n in number * ROWS..(number + 1) * ROWS {
        // Not twice the same: a dictionary would make the files small.
        let text = format!("{n:08x}").repeat(TEXT_BYTES / 8);
        let time = NEW_YEAR_NS + i64::try_from(n).unwrap() * 1_000_000;
        lines.push_str(&format!("big,writer={} n={n}i,text=\"{text}\" {time}\n", n % 50));
    }
    let mut put_off = 0;
    loop {
        let answer = client.try_write("default", &lines).expect("the server answers");
        match answer.status {
            200..300 => return put_off,
            429 => {
                let says =
                    |name: &str| answer.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
                assert!(says("retry-after"), "429 says when to come back");
                put_off += 1;
                assert!(put_off < 100_000, "memory never becomes free again");
            }
            status => panic!("{status} {}", answer.text()),
        }
    }
}

#[test]
fn d1_more_rows_than_flushes_take_stay_within_the_memory_budget() {
    let mut world = World::empty();
    world.settings(&["--memory-mib", &BUDGET_MIB.to_string(), "--query-mib", "16"]);
    world.tenant("acme");
    let token = world.token("acme", "write,read");
    world.start();
    let client = world.client(Some(&token));
    let idle = peak_mib(world.server().process.id());
    let (next, put_off, ledger) =
        (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(Ledger::default()));
    std::thread::scope(|scope| {
        for _ in 0..WRITERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= REQUESTS {
                        return;
                    }
                    let rows = (number * ROWS..(number + 1) * ROWS).map(|n| (n % 50, n));
                    ledger.lock().unwrap().sending(rows.clone());
                    put_off.fetch_add(send(&client, number), Ordering::Relaxed);
                    ledger.lock().unwrap().acked(rows);
                }
            });
        }
    });
    let peak = peak_mib(world.server().process.id());
    let put_off = put_off.into_inner();
    eprintln!("idle {idle} MiB, peak {peak} MiB, {put_off} requests put off");
    assert!(put_off > 0, "the test is about a full budget");
    assert!(peak <= idle + BUDGET_MIB + FIXED_MIB, "{peak} MiB, idle {idle} MiB");
    ledger.into_inner().unwrap().check(&client, "default", "big").is_clean("after the load");
    // What a start needs is no more than what running needed.
    world.kill9();
    world.start();
    let replayed = peak_mib(world.server().process.id());
    eprintln!("replay: peak {replayed} MiB");
    assert!(replayed <= idle + BUDGET_MIB + FIXED_MIB, "{replayed} MiB after a replay");
    world.stop();
}
