//! Who may do what: tenants do not see each other, tokens do what their scopes say.

use millrace_tests::{World, device, http::encode, process, scan};
use serde_json::json;

use crate::NEW_YEAR_NS;

/// Two tenants; the first has written canaries into a database that the second also has.
fn two_tenants() -> (World, millrace_tests::Client, millrace_tests::Client) {
    let mut world = World::empty();
    world.tenant("acme");
    world.tenant("bolt");
    let a = world.token("acme", "read,write,admin");
    let b = world.token("bolt", "read,write,admin");
    world.start();
    let (a, b) = (world.client(Some(&a)), world.client(Some(&b)));
    for database in ["default", scan::CANARIES[0]] {
        let lines: String = (0..50).map(|i| scan::canary_lines(NEW_YEAR_NS + i)).collect();
        a.write(database, &lines);
    }
    b.write("default", &format!("own v=1 {NEW_YEAR_NS}"));
    (world, a, b)
}

/// Every question that a curious neighbour might ask.
fn questions() -> Vec<(&'static str, String)> {
    let sql = [
        "SHOW TABLES",
        "SHOW DATABASES",
        "SHOW COLUMNS FROM canarytableqzx",
        "DESCRIBE canarytableqzx",
        "SELECT * FROM canarytableqzx",
        "SELECT count(*) FROM canarytableqzx",
        "SELECT * FROM canarydbqzx.canarytableqzx",
        "SELECT * FROM acme.default.canarytableqzx",
        "SELECT * FROM \"default\".canarytableqzx",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM information_schema.schemata",
        "SELECT * FROM information_schema.df_settings",
        "SELECT * FROM information_schema.routines",
        "SELECT * FROM information_schema.views",
        "EXPLAIN SELECT * FROM canarytableqzx",
        "EXPLAIN VERBOSE SELECT * FROM own",
        "EXPLAIN ANALYZE SELECT * FROM own",
        "SELECT canaryfieldqzx FROM own",
    ];
    let mut all = Vec::new();
    for db in ["default", scan::CANARIES[0], "information_schema", "acme"] {
        for question in sql {
            for format in ["json", "csv", "pretty", "arrow"] {
                all.push((
                    "GET",
                    format!(
                        "/api/v3/query_sql?db={}&format={format}&q={}",
                        encode(db),
                        encode(question)
                    ),
                ));
            }
        }
    }
    for path in [
        "/health",
        "/metrics",
        "/ping",
        "/api/v1/tenants",
        "/api/v1/tenants/acme",
        "/api/v1/tokens",
        "/api/v1/tokens?tenant=acme",
        "/api/v1/devices",
        "/api/v1/devices?tenant=acme",
        "/api/v1/claims",
        "/api/v1/databases",
        "/api/v1/status",
        "/api/v1/device/streams?stream=host&epoch=1",
        "/api/v3/configure/database?format=json",
        "/query?db=default&q=SHOW%20MEASUREMENTS",
        "/api/v2/query",
        "/.well-known/security.txt",
        "/api/v1/openapi.json",
        "/",
    ] {
        all.push(("GET", path.to_owned()));
        all.push(("POST", path.to_owned()));
    }
    all
}

/// Words that the neighbour has put into the question, and which an error may therefore quote.
fn quoted(path: &str, canary: &str) -> bool {
    path.contains(canary)
}

#[test]
fn a1_nothing_that_a_tenant_wrote_is_seen_by_another_through_any_endpoint() {
    let (world, a, b) = two_tenants();
    let look = |moment: &str| {
        for (method, path) in questions() {
            let answer = b.send_twice(method, &path, &[], b"{}");
            let answer = answer.unwrap_or_else(|e| panic!("{moment}: {method} {path}: {e}"));
            for canary in scan::canaries_in(&answer.everything()) {
                assert!(
                    quoted(&path, &canary),
                    "{moment}: {method} {path} showed {canary}:\n{}",
                    answer.text()
                );
            }
            let text = answer.text();
            for value in ["canaryvalueqzx", "canarytextqzx"] {
                assert!(!text.contains(value), "{moment}: {method} {path} showed {value}:\n{text}");
            }
        }
    };
    look("from memory");
    // Tenant A sees its own, so that the silence above means something.
    assert_eq!(a.number("default", "SELECT count(*) AS n FROM canarytableqzx"), 50);
    assert_eq!(b.number("default", "SELECT count(*) AS n FROM own"), 1);
    let mut world = world;
    world.stop();
    world.start();
    look("from files");
}

#[test]
fn a1_equal_names_are_different_tables_for_different_tenants() {
    let (_world, a, b) = two_tenants();
    b.write("default", &format!("canarytableqzx other=7i {NEW_YEAR_NS}"));
    let rows = b.sql("default", "SELECT * FROM canarytableqzx");
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["other"], 7);
    assert!(rows[0].get("canaryfieldqzx").is_none(), "{rows:?}");
    let rows = a.sql("default", "SELECT * FROM canarytableqzx LIMIT 1");
    assert!(rows[0].get("other").is_none(), "{rows:?}");
}

#[test]
fn a3_a_token_does_what_its_scopes_say_and_nothing_else() {
    let mut world = World::empty();
    world.tenant("acme");
    let read = world.token("acme", "read");
    let write = world.token("acme", "write");
    world.start();
    let (read, write) = (world.client(Some(&read)), world.client(Some(&write)));
    write.write("default", &format!("m v=1 {NEW_YEAR_NS}"));
    assert_eq!(read.number("default", "SELECT count(*) AS n FROM m"), 1);
    assert_eq!(read.try_write("default", "m v=2").unwrap().status, 403);
    assert_eq!(write.sql_as("default", "SELECT 1", "json").status, 403);
    for client in [&read, &write] {
        let body = json!({ "name": "mine" }).to_string();
        let made = client.post(
            "/api/v1/tenants",
            &[("content-type", "application/json")],
            body.as_bytes(),
        );
        assert!(matches!(made.status, 401 | 403), "{}", made.text());
    }
    let nobody = world.client(None);
    assert_eq!(nobody.sql_as("default", "SELECT 1", "json").status, 401);
    assert_eq!(nobody.try_write("default", "m v=2").unwrap().status, 401);
    assert_eq!(nobody.get("/health").status, 200);
}

#[test]
fn a5_the_operators_token_makes_tenants_and_reads_no_rows() {
    let (world, _a, _b) = two_tenants();
    let operator = world.client(Some(&world.operator_token()));
    let answer = operator.sql_as("default", "SELECT * FROM canarytableqzx", "json");
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!(operator.try_write("default", "m v=1").unwrap().status, 403);
    world.admin(&["tenant", "create", "third"]);
    let token = world.token("third", "read,write");
    world.client(Some(&token)).write("default", &format!("m v=1 {NEW_YEAR_NS}"));
}

#[test]
fn a3_tokens_are_taken_in_every_place_where_clients_put_them() {
    let (world, client) = World::with_tenant();
    let token = client.token.clone().unwrap();
    let nobody = world.client(None);
    let basic = format!("Basic {}", base64(format!("any:{token}").as_bytes()));
    for value in
        [format!("Bearer {token}"), format!("Token {token}"), format!("bearer {token}"), basic]
    {
        let answer = nobody
            .send(
                "GET",
                "/api/v3/query_sql?db=default&q=SELECT%201%20AS%20one",
                &[("authorization", &value)],
                b"",
            )
            .unwrap();
        assert_eq!(answer.status, 200, "{value}: {}", answer.text());
    }
}

/// Base64 with padding; too small a need for a dependency.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"; // pragma: allowlist secret
    let mut out = String::new();
    for part in bytes.chunks(3) {
        let mut word = 0u32;
        for i in 0..3 {
            word = word << 8 | u32::from(part.get(i).copied().unwrap_or(0));
        }
        for i in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= part.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[test]
fn a1_flight_shows_each_tenant_its_own_and_nobody_nothing() {
    let (world, a, b) = two_tenants();
    let ticket = |db: &str, sql: &str| {
        json!({ "database": db, "sql_query": sql, "query_type": "sql" }).to_string().into_bytes()
    };
    let ca = world.ca();
    let all = ticket("default", "SELECT * FROM canarytableqzx");
    assert_eq!(device::get(&a, &ca, &all).unwrap(), 50);
    let status = device::get(&b, &ca, &all).unwrap_err();
    for canary in ["canaryvalueqzx", "canaryfieldqzx", "canarytextqzx", "canarytagqzx"] {
        assert!(!format!("{status:?}").contains(canary), "{status:?}");
    }
    assert_eq!(device::get(&b, &ca, &ticket("default", "SELECT * FROM own")).unwrap(), 1);
    let nobody = world.client(None);
    let status = device::get(&nobody, &ca, &all).unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated, "{status:?}");
    for wrong in [&b"not json"[..], b"", b"{}", b"\xff\xfe"] {
        let status = device::get(&a, &ca, wrong).unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{wrong:?}: {status:?}");
    }
}

#[test]
fn a_command_without_the_ca_or_with_a_mistyped_folder_says_so_and_makes_nothing() {
    let (world, client) = World::with_tenant();
    let mut list = world.millrace(&["tenant", "list", "--url", &client.base]);
    let (fine, _, said) = process::attempt(list.env("MILLRACE_TOKEN", world.operator_token()));
    assert!(!fine);
    assert!(said.contains("--ca FILE"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    let nowhere = world.folder().join("nowhere");
    let path = nowhere.display().to_string();
    let (fine, _, said) =
        process::attempt(&mut world.millrace(&["tenant", "list", "--data-dir", &path]));
    assert!(!fine);
    assert!(said.contains("not a data directory"), "{said}");
    assert!(!nowhere.exists());
}
