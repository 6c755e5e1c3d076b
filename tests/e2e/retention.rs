//! Plans, holds and deletions as operators, admins and forwarders meet them.

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_tests::{
    World,
    device::{Device, batch, header, messages},
    process,
};
use serde_json::{Value, json};

use crate::NEW_YEAR_NS;

const DB: &str = "default";
const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

fn now_ns() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

fn parse(said: &str) -> Value {
    serde_json::from_str(said).unwrap_or_else(|e| panic!("{e}: {said}"))
}

#[test]
fn r1_r2_a_plan_counts_for_ingest_and_queries_and_a_shorter_one_is_announced() {
    let mut world = World::empty();
    world.tenant("acme");
    assert!(world.admin(&["plan", "list"]).contains("starter  rows 731 days"));
    // Set while no server runs: it counts from the next start on.
    let shown = world.admin(&["plan", "set", "acme", "free"]);
    assert!(shown.contains("the next start: free (184 days)"), "{shown}");
    let token = world.token("acme", "read,write,admin");
    world.start();
    let client = world.client(Some(&token));
    let day = |ago: i64| now_ns() - ago * DAY_NS;
    let lines = format!("m,host=a v=1i {}\nm,host=a v=2i {}\n", day(190), day(100));
    let answer = client.try_write(DB, &lines).unwrap();
    assert_eq!((&answer.json()["kept"], &answer.json()["refused"]), (&1.into(), &1.into()));
    assert_eq!(answer.json()["data"][0]["code"], "out_of_retention", "{}", answer.text());
    let rejected = client.sql(DB, "SELECT code, line_number FROM _rejected");
    assert_eq!(rejected, [json!({ "code": "out_of_retention", "line_number": 1 })]);
    // Up, and what is older is taken; down, and it is shown for 30 days more.
    world.admin(&["plan", "set", "acme", "growth"]);
    client.write(DB, &format!("m,host=a v=3i {}\n", day(300)));
    let shown = parse(&world.admin(&["plan", "set", "acme", "free", "--json"]));
    assert_eq!(shown["countdown"]["days_left"], 36, "{shown}");
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM m"), 2);
    world.stop();
    world.start();
    let client = world.client(Some(&token));
    let preview = parse(&world.admin(&["plan", "preview", "acme", "--json"]));
    let files = preview["files"].as_array().unwrap();
    assert_eq!(files.len(), 1, "{preview}");
    let at = files[0]["at_ns"].as_i64().unwrap();
    assert!((36 * DAY_NS..37 * DAY_NS).contains(&(at - now_ns())), "{preview}");
    let said = world.admin(&["plan", "preview", "acme", "--plan", "unlimited"]);
    assert_eq!(said.trim(), "nothing goes");
    let view = client.sql(DB, "SELECT table_name, keep_days, hides_at IS NOT NULL AS told, held, next_drop_rows FROM system.retention WHERE table_name = 'm'");
    let expected = json!({ "table_name": "m", "keep_days": 184, "told": true, "held": false, "next_drop_rows": 1 });
    assert_eq!(view, [expected]);
    // The tenant's admin may shorten, and neither set a plan nor confirm.
    let body = json!({ "table": "m", "days": 30 }).to_string();
    let answer = client.send("PUT", "/api/v1/retention/tables", &JSON, body.as_bytes()).unwrap();
    assert_eq!(answer.json()["tables"][0]["days"], 30, "{}", answer.text());
    let longer = json!({ "table": "m", "days": 300 }).to_string();
    let answer = client.send("PUT", "/api/v1/retention/tables", &JSON, longer.as_bytes()).unwrap();
    assert_eq!(answer.code(), "bad_plan", "{}", answer.text());
    let plan = json!({ "plan": "unlimited" }).to_string();
    let answer = client.send("PUT", "/api/v1/tenants/acme/plan", &JSON, plan.as_bytes()).unwrap();
    assert_eq!(answer.status, 403);
    let answer = client.post("/api/v1/retention/confirm", &JSON, b"{\"clock\":true}");
    assert_eq!(answer.status, 403);
    let args = ["plan", "confirm", "acme", "--url", &world.server().base, "--ca"];
    let mut confirm = world.millrace(&args);
    confirm.arg(world.ca_path()).env("MILLRACE_TOKEN", world.operator_token());
    let (fine, _, said) = process::attempt(&mut confirm);
    assert!(!fine && said.contains("nothing of this tenant waits"), "{said}");
    assert!(world.admin(&["plan", "confirm", "--clock"]).contains("retention goes by 20"));
}

#[test]
fn r4_a_deleted_row_is_gone_at_once_and_stays_gone_whatever_is_sent_again() {
    let (mut world, client) = World::with_tenant();
    let admin = world.token("acme", "admin,read");
    let mut device = Device::enrol(&world, "acme");
    let key = device.stream("press", 1);
    let line = |host: &str, n: i64| format!("press,host={host} v={n}i {}\n", NEW_YEAR_NS + n);
    let first: String = (0..10).map(|n| line(if n % 2 == 0 { "a" } else { "b" }, n)).collect();
    device.put(messages(&[(header(&key, 1, 10), batch(&first))])).unwrap();
    let count = |world: &World, host: &str| {
        let sql = format!("SELECT count(*) AS n FROM press WHERE host = '{host}'");
        world.client(Some(&admin)).number(DB, &sql)
    };
    let delete = |world: &World, sql: &str, token: &str| {
        let body = json!({ "q": sql }).to_string();
        world.client(Some(token)).post("/api/v1/delete", &JSON, body.as_bytes())
    };
    // Who may not, what may not, and what a hold keeps.
    let sql = "DELETE FROM press WHERE host = 'a'";
    assert_eq!(delete(&world, sql, client.token.as_deref().unwrap()).status, 403);
    assert_eq!(delete(&world, sql, &world.operator_token()).status, 403);
    assert_eq!(client.sql_as(DB, sql, "json").code(), "sql_not_allowed");
    assert_eq!(delete(&world, "DELETE FROM press WHERE v > 3", &admin).code(), "sql_invalid");
    let hold = parse(
        &world.admin(&["hold", "add", "acme", "--table", "press", "--reason", "case 7", "--json"]),
    );
    for sql in [sql, "DROP TABLE press"] {
        let answer = delete(&world, sql, &admin);
        assert_eq!((answer.status, answer.code().as_str()), (409, "held"), "{}", answer.text());
    }
    let own = format!("/api/v1/holds/{}", hold["id"].as_str().unwrap());
    let answer = world.client(Some(&admin)).send("DELETE", &own, &[], b"").unwrap();
    assert_eq!(answer.status, 403, "the operator's hold: {}", answer.text());
    assert_eq!(count(&world, "a"), 5);
    world.admin(&["hold", "remove", "acme", hold["id"].as_str().unwrap()]);
    assert!(world.admin(&["hold", "list", "acme"]).contains("released"));
    let answer = delete(&world, sql, &admin);
    assert_eq!((answer.status, &answer.json()["series"]), (200, &1.into()), "{}", answer.text());
    for when in ["at once", "after a kill", "after a stop"] {
        assert_eq!((count(&world, "a"), count(&world, "b")), (0, 5), "{when}");
        // The forwarder missed its ack: the rows are known, and stay deleted.
        device.follow(&world);
        let acks = device.put(messages(&[(header(&key, 1, 10), batch(&first))])).unwrap();
        assert!(acks[0].duplicate, "{when}");
        assert_eq!((count(&world, "a"), count(&world, "b")), (0, 5), "{when}, sent again");
        if when == "at once" {
            world.kill9();
        } else {
            world.stop();
        }
        world.start();
    }
    // What comes later lives, though it is the same row.
    world.client(client.token.as_deref()).write(DB, &line("a", 0));
    assert_eq!(count(&world, "a"), 1);
    let mut drop =
        world.millrace(&["delete", "DROP TABLE press", "--url", &world.server().base, "--ca"]);
    drop.arg(world.ca_path()).env("MILLRACE_TOKEN", &admin);
    assert!(process::run("millrace delete", &mut drop).contains("table press is dropped"));
    let gone = world.client(Some(&admin)).sql_as(DB, "SELECT * FROM press", "json");
    assert_eq!(gone.code(), "sql_unknown_name");
    world.client(client.token.as_deref()).write(DB, "press,line=x other=true 5\n");
    world.kill9();
    world.start();
    let rows = world.client(Some(&admin)).sql(DB, "SELECT line, other FROM press");
    assert_eq!(rows, [json!({ "line": "x", "other": true })]);
}
