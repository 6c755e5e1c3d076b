//! Many small tenants on one server: each has its own rows, through a kill and through a flush.

use millrace_tests::{Client, World};
use serde_json::json;

use crate::NEW_YEAR_NS;

const DB: &str = "default";
const TENANTS: usize = 40;
const TABLES: usize = 20;

/// Two rows in each of a tenant's tables, with its number in all of them.
fn rows(tenant: usize, round: i64) -> String {
    let mut out = String::new();
    for table in 0..TABLES {
        for unit in 0..2 {
            let time = NEW_YEAR_NS + round;
            out += &format!("device_{table},unit=u{unit} owner={tenant}i,value={round}.5 {time}\n");
        }
    }
    out
}

fn check(client: &Client, tenant: usize, rounds: usize) {
    let one = |table| {
        format!("SELECT count(*) AS n, min(owner) AS lo, max(owner) AS hi FROM device_{table}")
    };
    let all: Vec<String> = (0..TABLES).map(one).collect();
    let found = client.sql(DB, &all.join(" UNION ALL "));
    assert_eq!(found.len(), TABLES);
    for row in found {
        assert_eq!(row["n"], json!(2 * rounds), "tenant {tenant}");
        assert_eq!((&row["lo"], &row["hi"]), (&json!(tenant), &json!(tenant)));
    }
}

#[test]
fn d1_each_of_many_small_tenants_keeps_exactly_its_rows() {
    let mut world = World::empty();
    world.start();
    let operator = world.client(Some(&world.operator_token()));
    let json_body = [("content-type", "application/json")];
    let mut tokens = Vec::new();
    for n in 0..TENANTS {
        let name = json!({ "name": format!("small-{n}") }).to_string();
        assert_eq!(operator.post("/api/v1/tenants", &json_body, name.as_bytes()).status, 201);
        let asked = json!({ "tenant": format!("small-{n}"), "scopes": ["write", "read"] });
        let made = operator.post("/api/v1/tokens", &json_body, asked.to_string().as_bytes());
        tokens.push(made.json()["token"].as_str().unwrap().to_owned());
    }
    let base = world.client(None);
    let clients: Vec<Client> = tokens.iter().map(|t| base.with_token(Some(t))).collect();
    for (n, client) in clients.iter().enumerate() {
        client.write(DB, &rows(n, 0));
    }
    // From the log, then from one bundle of all, then both.
    world.kill9();
    world.start();
    for (n, client) in clients.iter().enumerate() {
        check(client, n, 1);
    }
    world.stop();
    world.start();
    for (n, client) in clients.iter().enumerate().step_by(3) {
        check(client, n, 1);
        client.write(DB, &rows(n, 1));
    }
    for (n, client) in clients.iter().enumerate() {
        check(client, n, if n % 3 == 0 { 2 } else { 1 });
    }
}
