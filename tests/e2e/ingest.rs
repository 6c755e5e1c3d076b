//! Getting data in: every shape that clients send, and what they are told when it is wrong.

use std::io::Write;

use millrace_tests::{World, corpus, http::encode, process, wire};
use serde_json::Value;

use crate::{NEW_YEAR_NS, ledger_lines};

const DB: &str = "default";

#[test]
fn d4_a_bad_line_is_named_and_the_good_ones_are_kept() {
    let (_world, client) = World::with_tenant();
    let body = format!("m v=1 {t}\nm v=oops {t}\nm v=3 {}\n", NEW_YEAR_NS + 1, t = NEW_YEAR_NS);
    let answer = client.try_write(DB, &body).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["error"], "partial write of line protocol occurred");
    let data = json["data"].as_array().unwrap();
    assert_eq!(data.len(), 1);
    assert_eq!(data[0]["line_number"], 2);
    assert!(data[0]["original_line"].as_str().unwrap().contains("oops"));
    assert!(data[0]["error_message"].as_str().unwrap().contains("oops"));
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM m"), 2);
}

#[test]
fn d4_the_older_write_endpoints_say_it_in_their_own_shape() {
    let (_world, client) = World::with_tenant();
    let body = format!("m v=1 {NEW_YEAR_NS}\nm v= {NEW_YEAR_NS}\n");
    let second = "/api/v2/write?bucket=default&org=any&precision=ns";
    for (path, member) in [(second, "message"), ("/write?db=default&precision=ns", "error")] {
        let answer = client.post(path, &[], body.as_bytes());
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
        let said = answer.json()[member].as_str().unwrap_or_default().to_owned();
        assert!(said.contains("line 2"), "{path}: {}", answer.text());
    }
    assert_eq!(client.post(second, &[], body.as_bytes()).json()["code"], "invalid");
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM m"), 1);
}

#[test]
fn every_write_endpoint_takes_every_precision() {
    let (_world, client) = World::with_tenant();
    let seconds = NEW_YEAR_NS / 1_000_000_000;
    for (table, path, factor) in [
        ("a", "/api/v3/write_lp?db=default&precision=nanosecond", 1_000_000_000),
        ("b", "/api/v3/write_lp?db=default&precision=microsecond", 1_000_000),
        ("c", "/api/v3/write_lp?db=default&precision=millisecond", 1_000),
        ("d", "/api/v3/write_lp?db=default&precision=second", 1),
        ("e", "/api/v2/write?bucket=default&precision=ns", 1_000_000_000),
        ("f", "/api/v2/write?bucket=default&precision=us", 1_000_000),
        ("g", "/api/v2/write?bucket=default&precision=ms", 1_000),
        ("h", "/api/v2/write?bucket=default&precision=s", 1),
        ("i", "/write?db=default&precision=n", 1_000_000_000),
        ("j", "/write?db=default&precision=u", 1_000_000),
        ("k", "/write?db=default&precision=ms", 1_000),
        ("l", "/write?db=default&precision=s", 1),
        ("m", "/write?db=default", 1_000_000_000),
    ] {
        let answer = client.post(path, &[], format!("{table} v=1 {}", seconds * factor).as_bytes());
        assert!((200..300).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
        let sql = format!(
            "SELECT count(*) AS n FROM {table} WHERE time = TIMESTAMP '2026-01-01T00:00:00Z'"
        );
        assert_eq!(client.number(DB, &sql), 1, "{path}");
    }
}

#[test]
fn compressed_bodies_are_taken_and_a_bomb_is_refused() {
    let (_world, client) = World::with_tenant();
    let path = "/api/v3/write_lp?db=default&precision=nanosecond";
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let answer = client.post(
        path,
        &[("content-encoding", "gzip")],
        &gzip(ledger_lines("gz", 1, 1, 1000).as_bytes()),
    );
    assert!((200..300).contains(&answer.status), "{}", answer.text());
    let zstd = zstd::encode_all(ledger_lines("zs", 1, 1, 1000).as_bytes(), 1).unwrap();
    let answer = client.post(path, &[("content-encoding", "zstd")], &zstd);
    assert!((200..300).contains(&answer.status), "{}", answer.text());
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM gz"), 1000);
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM zs"), 1000);
    // 100 MiB of line feeds in about 100 KiB.
    let bomb = gzip(&vec![b'\n'; 100 << 20]);
    let answer = client.post(path, &[("content-encoding", "gzip")], &bomb);
    assert_eq!(answer.status, 413, "{}", answer.text());
}

#[test]
fn a_write_without_a_newline_at_its_end_with_comments_and_crlf_is_taken() {
    let (_world, client) = World::with_tenant();
    let t = NEW_YEAR_NS;
    client.write(
        DB,
        &format!(
            "# a comment\r\n\r\nq,k=a\\ b,l=c\\,d v=1,s=\"x\\\"y\\\\z\" {t}\r\nq,k=e v=2u {}",
            t + 1
        ),
    );
    let rows = client.sql(DB, "SELECT k, l, v, s FROM q ORDER BY time");
    assert_eq!(rows[0]["k"], "a b");
    assert_eq!(rows[0]["l"], "c,d");
    assert_eq!(rows[0]["s"], "x\"y\\z");
    // A whole number fits a float column without loss, so it is taken.
    assert_eq!((&rows[1]["k"], &rows[1]["v"]), (&"e".into(), &2.0.into()));
    assert_eq!(rows.len(), 2);
}

/// Sends one entry of the corpus as it says.
fn send(world: &World, entry: &corpus::Entry, tokens: &Tokens) -> (u16, String) {
    if let Some(raw) = entry.raw.get("raw").and_then(Value::as_str) {
        let raw = raw.replace("{TOKEN}", &tokens.full);
        let answer = wire::exchange(&world.server().base, &world.ca(), raw.as_bytes());
        return (answer.map_or(0, |a| wire::status(&a)), String::new());
    }
    let token = match entry.text("token") {
        "" | "full" => Some(tokens.full.clone()),
        "read" => Some(tokens.read.clone()),
        "write" => Some(tokens.write.clone()),
        "operator" => Some(tokens.operator.clone()),
        "none" => None,
        other => Some(other.replace("{TOKEN}", &tokens.full)),
    };
    let client = world.client(token.as_deref());
    let headers = entry.headers();
    let headers: Vec<(&str, &str)> =
        headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let method = match entry.text("method") {
        "" => "POST",
        method => method,
    };
    let path = match entry.raw.get("sql").and_then(Value::as_str) {
        Some(sql) => format!("/api/v3/query_sql?db=default&format=json&q={}", encode(sql)),
        None => entry.text("path").to_owned(),
    };
    match client.send_twice(method, &path, &headers, &entry.body()) {
        Ok(answer) => (answer.status, answer.code()),
        Err(_) => (0, String::new()),
    }
}

struct Tokens {
    full: String,
    read: String,
    write: String,
    operator: String,
}

#[test]
fn d4_hostile_requests_get_the_status_and_code_that_the_corpus_says() {
    let mut world = World::empty();
    world.tenant("acme");
    let tokens = Tokens {
        full: world.token("acme", "read,write,admin"),
        read: world.token("acme", "read"),
        write: world.token("acme", "write"),
        operator: String::new(),
    };
    world.start();
    let tokens = Tokens { operator: world.operator_token(), ..tokens };
    let client = world.client(Some(&tokens.full));
    client.write(
        DB,
        &format!("known,tag=a number=1.5,whole=1i,flag=true,text=\"x\" {NEW_YEAR_NS}\n"),
    );
    let mut wrong = Vec::new();
    let mut sent = 0;
    for mut file in corpus::files("http") {
        let name = file.path.file_name().unwrap().to_string_lossy().into_owned();
        let mut changed = false;
        for entry in &mut file.entries {
            let (status, code) = send(&world, entry, &tokens);
            sent += 1;
            if status != entry.status() {
                wrong.push(format!(
                    "{name}: {}: status {status}, not {}",
                    entry.name,
                    entry.status()
                ));
            }
            if code != entry.text("code") {
                if corpus::accepting() {
                    entry.raw.insert("code".into(), code.into());
                    changed = true;
                } else {
                    wrong.push(format!(
                        "{name}: {}: code `{code}`, not `{}`",
                        entry.name,
                        entry.text("code")
                    ));
                }
            }
        }
        if changed {
            file.save();
        }
    }
    // After all of that the server is the same: it answers, and the row is there alone.
    assert_eq!(client.get("/health").status, 200);
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM known"), 1);
    assert!(wrong.is_empty(), "{} of {sent}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sent >= 200, "the corpus lost entries: {sent}");
}

#[test]
fn curl_writes_and_reads_with_the_lines_of_the_readme() {
    let (world, client) = World::with_tenant();
    let token = client.token.clone().unwrap();
    let curl = |args: &[&str], body: &str| {
        let mut command = std::process::Command::new("curl");
        command
            .args(["--silent", "--show-error", "--fail-with-body", "--cacert"])
            .arg(world.ca_path())
            .arg("--header")
            .arg(format!("Authorization: Bearer {token}"))
            .args(args);
        if !body.is_empty() {
            command.arg("--data-binary").arg(body);
        }
        process::run("curl", &mut command)
    };
    let base = &client.base;
    curl(
        &[&format!("{base}/api/v3/write_lp?db=default")],
        &format!("cpu,host=a usage=0.5 {NEW_YEAR_NS}"),
    );
    let said = curl(
        &[
            "--get",
            &format!("{base}/api/v3/query_sql"),
            "--data-urlencode",
            "db=default",
            "--data-urlencode",
            "format=csv",
            "--data-urlencode",
            "q=SELECT host, usage FROM cpu",
        ],
        "",
    );
    assert_eq!(said.trim().lines().collect::<Vec<_>>(), ["host,usage", "a,0.5"]);
}
