//! Getting answers out: formats, parameters, what is allowed and what is not.

use millrace_tests::{World, http::encode};
use serde_json::{Value, json};

use crate::NEW_YEAR_NS;

const DB: &str = "default";

fn sample() -> (World, millrace_tests::Client) {
    let (world, client) = World::with_tenant();
    let mut lines = String::new();
    for host in 0..10i64 {
        for step in 0..100i64 {
            let time = NEW_YEAR_NS + step * 10_000_000_000;
            lines.push_str(&format!(
                "cpu,host=h{host},rack=r{} usage={}.25,n={step}i {time}\n",
                host % 3,
                host + step
            ));
        }
    }
    client.write(DB, &lines);
    (world, client)
}

#[test]
fn l1_one_question_has_the_same_answer_in_every_format() {
    let (_world, client) = sample();
    let sql = "SELECT host, count(*) AS rows, sum(n) AS n FROM cpu GROUP BY host ORDER BY host";
    let rows = client.sql(DB, sql);
    assert_eq!(rows.len(), 10);
    assert_eq!(rows[3], json!({ "host": "h3", "rows": 100, "n": 4950 }));
    let lines = client.sql_as(DB, sql, "jsonl").text();
    let parsed: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(parsed, rows);
    let csv = client.sql_as(DB, sql, "csv").text();
    assert_eq!(csv.lines().next(), Some("host,rows,n"));
    assert_eq!(csv.lines().nth(4), Some("h3,100,4950"));
    let pretty = client.sql_as(DB, sql, "pretty").text();
    assert!(pretty.contains("| h3") && pretty.contains("4950"), "{pretty}");
    let arrow = client.sql_as(DB, sql, "arrow");
    let reader = arrow::ipc::reader::StreamReader::try_new(arrow.body.as_slice(), None).unwrap();
    let counted: usize = reader.map(|b| b.unwrap().num_rows()).sum();
    assert_eq!(counted, 10);
    let parquet = client.sql_as(DB, sql, "parquet").body;
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
}

#[test]
fn parameters_are_bound_and_never_pasted() {
    let (_world, client) = sample();
    let ask = |value: Value| {
        let body = json!({
            "db": DB, "q": "SELECT count(*) AS rows FROM cpu WHERE host = $host",
            "format": "json", "params": { "host": value },
        });
        client.post(
            "/api/v3/query_sql",
            &[("content-type", "application/json")],
            body.to_string().as_bytes(),
        )
    };
    assert_eq!(ask(json!("h3")).json(), json!([{ "rows": 100 }]));
    assert_eq!(ask(json!("h3' OR '1'='1")).json(), json!([{ "rows": 0 }]));
}

#[test]
fn what_is_in_the_database_can_be_listed() {
    let (_world, client) = sample();
    let tables = client.sql_as(DB, "SHOW TABLES", "csv").text();
    assert!(tables.contains("cpu"), "{tables}");
    let columns = client.sql_as(DB, "DESCRIBE cpu", "csv").text();
    for column in ["host", "rack", "usage", "n", "time"] {
        assert!(columns.contains(column), "{columns}");
    }
    let plan = client.sql_as(DB, "EXPLAIN SELECT max(usage) FROM cpu WHERE host = 'h1'", "csv");
    assert_eq!(plan.status, 200, "{}", plan.text());
    let listed =
        client.sql(DB, "SELECT table_name FROM information_schema.tables WHERE table_name = 'cpu'");
    assert_eq!(listed.len(), 1);
}

#[test]
fn statements_that_change_or_reach_outside_are_refused_and_change_nothing() {
    let (_world, client) = sample();
    for sql in [
        "INSERT INTO cpu VALUES (1)",
        "CREATE TABLE t AS SELECT 1",
        "CREATE VIEW v AS SELECT * FROM cpu",
        "DROP TABLE cpu",
        "DELETE FROM cpu",
        "UPDATE cpu SET n = 1",
        "COPY cpu TO '/tmp/out.csv'",
        "CREATE EXTERNAL TABLE f STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * FROM '/etc/passwd'",
        "SET datafusion.execution.target_partitions = 99",
        "SELECT 1; SELECT 2",
    ] {
        let answer = client.sql_as(DB, sql, "json");
        assert!((400..500).contains(&answer.status), "{sql}: {} {}", answer.status, answer.text());
        assert!(!answer.text().contains("root:"), "{sql} read a file of the machine");
    }
    assert_eq!(client.number(DB, "SELECT count(*) AS rows FROM cpu"), 1000);
}

#[test]
fn a_query_sees_memory_and_files_as_one_table() {
    let (mut world, client) = sample();
    // A graceful stop flushes, so what follows is half in files and half in memory.
    world.stop();
    world.start();
    client.write(
        DB,
        &format!("cpu,host=h0,rack=r0 usage=1000.5,n=1i {}\n", NEW_YEAR_NS + 5_000_000_000_000),
    );
    client.write(DB, &format!("cpu,host=h0,rack=r0 usage=-1 {NEW_YEAR_NS}\n"));
    assert_eq!(client.number(DB, "SELECT count(*) AS rows FROM cpu"), 1001);
    let ends =
        client.sql(DB, "SELECT max(usage) AS top, min(usage) AS low FROM cpu WHERE host = 'h0'");
    assert_eq!(ends, [json!({ "top": 1000.5, "low": -1.0 })]);
    let some = client.sql(DB, "SELECT n FROM cpu WHERE host = 'h7' AND time >= TIMESTAMP '2026-01-01T00:10:00Z' ORDER BY time LIMIT 2");
    assert_eq!(some, [json!({ "n": 60 }), json!({ "n": 61 })]);
}

#[test]
fn a_question_may_also_be_posted_as_a_form_of_parameters() {
    let (_world, client) = sample();
    let path =
        format!("/api/v3/query_sql?db={DB}&q={}", encode("SELECT count(*) AS rows FROM cpu"));
    assert_eq!(client.get(&path).json(), json!([{ "rows": 1000 }]));
}
