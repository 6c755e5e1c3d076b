//! Budgets of tenants as they meet them: over HTTP, over Flight, and for the operator.

use std::time::Instant;

use millrace_tests::{Device, World, device};

use crate::ledger_lines;

const DB: &str = "default";

#[test]
fn over_budget_is_429_with_when_to_come_back_and_stores_nothing() {
    let (world, client) = World::with_tenant();
    world.tenant("beta");
    let other = world.client(Some(&world.token("beta", "write,read")));
    world.admin(&["tenant", "limits", "acme", "--rows-per-s", "100"]);
    // More than a second's worth is taken whole, and then owed.
    client.write(DB, &ledger_lines("t", 1, 1, 3000));
    let answer = client.try_write(DB, &ledger_lines("t", 1, 5001, 1)).unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (429, "over_budget"), "{}", answer.text());
    let wait: u64 = answer.header("retry-after").parse().unwrap();
    assert!((1..=29).contains(&wait), "{wait} s");
    assert_eq!(answer.header("ratelimit-policy"), "\"rows\";q=100;w=1");
    assert_eq!(answer.header("ratelimit"), format!("\"rows\";r=0;t={wait}"));
    let body = ledger_lines("t", 1, 5001, 1);
    for path in ["/api/v2/write?bucket=default", "/write?db=default"] {
        let answer = client.post(path, &[], body.as_bytes());
        assert_eq!(answer.status, 429, "{path}: {}", answer.text());
        assert!(!answer.header("retry-after").is_empty(), "{path}");
    }
    // Nobody else is over anything, and reading costs nothing of it.
    other.write(DB, &ledger_lines("t", 1, 1, 3000));
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM t"), 3000);
    // A changed limit counts at once and forgets what was owed.
    world.admin(&["tenant", "limits", "acme", "--bytes-per-s", "1000000"]);
    client.write(DB, &body);
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM t"), 3001);
    world.admin(&["tenant", "limits", "acme", "--bytes-per-s", "1000"]);
    client.write(DB, &ledger_lines("t", 2, 1, 300));
    let answer = client.try_write(DB, &body).unwrap();
    assert_eq!(answer.header("ratelimit-policy"), "\"bytes\";q=1000;w=1", "{}", answer.text());
}

#[test]
fn a_stream_over_budget_waits_and_loses_nothing() {
    let (world, client) = World::with_tenant();
    let device = Device::enrol(&world, "acme");
    world.admin(&["tenant", "limits", "acme", "--rows-per-s", "200"]);
    let key = device.stream("paced", 1);
    let frames: Vec<_> = (0..5)
        .map(|n| {
            let lines = ledger_lines("paced", 1, n * 200 + 1, 200);
            (device::header(&key, n * 200 + 1, (n + 1) * 200), device::batch(&lines))
        })
        .collect();
    let begun = Instant::now();
    let acks = device.put(device::messages(&frames)).unwrap();
    let took = begun.elapsed();
    assert_eq!(acks.len(), 5);
    assert_eq!((acks[4].hi.0, acks[4].refused), (1000, 0));
    // The burst pays for the first two; each of the others waits a second for the one before it.
    assert!(took.as_secs_f64() > 2.5, "{took:?}");
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM paced"), 1000);
}

#[test]
fn limits_are_shown_and_kept_and_only_the_operator_sets_them() {
    let mut world = World::empty();
    world.tenant("acme");
    world.admin(&["tenant", "limits", "acme", "--rows-per-s", "7", "--series-per-day", "0"]);
    let own = world.token("acme", "read,write,admin");
    world.settings(&["--tenant-bytes-per-s", "5000"]);
    world.start();
    let shown = world.admin(&["tenant", "show", "acme", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["limits"], serde_json::json!({ "rows_per_s": 7, "series_per_day": 0 }));
    let counts = serde_json::json!({ "rows_per_s": 7, "bytes_per_s": 5000, "series_per_day": 0 });
    assert_eq!(shown["effective_limits"], counts);
    let said = world.admin(&["tenant", "show", "acme"]);
    assert!(said.contains("5000 (the server's default)") && said.contains("no limit"), "{said}");
    assert!(world.admin(&["tenant", "list"]).contains("rows/s: 7"));
    let client = world.client(Some(&own));
    let json = [("content-type", "application/json")];
    let path = "/api/v1/tenants/acme/limits";
    let answer = client.send("PUT", path, &json, b"{\"rows_per_s\":0}").unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"));
    assert_eq!(client.get("/api/v1/tenants/acme").status, 403);
    let operator = world.client(Some(&world.operator_token()));
    let answer = operator.send("PUT", path, &json, b"{\"rows_per_sec\":0}").unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (400, "bad_json"));
    let nobody = "/api/v1/tenants/nobody/limits";
    let answer = operator.send("PUT", nobody, &json, b"{}").unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (404, "not_found"));
    // A name is not a path.
    let args = ["tenant", "show", "../tokens", "--url", &world.server().base];
    let (fine, _, said) = millrace_tests::process::attempt(&mut world.millrace(&args));
    assert!(!fine && said.contains("not a valid name"), "{said}");
}
