//! Bad input, case by case against the real server: what each answers, that the good rows of the
//! same batch are stored, and that the server is none the worse for it.

use std::{io::Write, sync::Arc};

use arrow::{array::Float64Array, datatypes::DataType, record_batch::RecordBatch};
use millrace_tests::{Client, Device, World, device};

use crate::NEW_YEAR_NS;

const DB: &str = "default";
const PATH: &str = "/api/v3/write_lp?db=default&precision=nanosecond";
/// Resident memory that no case may push the server over: the bombs alone would be twice this.
const RSS_MIB_MAX: u64 = 1024;

/// A line between two good ones, and the code that it is refused with.
struct Case {
    name: &'static str,
    line: String,
    code: &'static str,
}

fn case(name: &'static str, code: &'static str, line: impl Into<String>) -> Case {
    Case { name, line: line.into(), code }
}

fn columns(count: usize) -> String {
    (0..count).map(|n| format!("f{n}=1i")).collect::<Vec<_>>().join(",")
}

/// Every bad row of the issue, for a table `T` whose field `v` is a float and `s` a text.
fn cases() -> Vec<Case> {
    let t = NEW_YEAR_NS;
    let future = "9000000000000000000";
    vec![
        case("a time 258 years ahead", "out_of_window", format!("T,k=a v=1 {future}")),
        case("a time past 64 bits", "bad_time", "T,k=a v=1 9300000000000000000".to_owned()),
        case("a tag over 64 KiB", "too_long", format!("T,k={} v=1 {t}", "x".repeat(65_537))),
        case("a text over 64 KiB", "too_long", format!("T,k=a s=\"{}\" {t}", "x".repeat(65_537))),
        case("2,000 columns", "quota", format!("T,k=a {} {t}", columns(2000))),
        case("2,000 tags", "quota", {
            let tags: String = (0..2000).map(|n| format!(",t{n}=x")).collect();
            format!("T{tags} v=1 {t}")
        }),
        case("a float turns text", "type_conflict", format!("T,k=a v=\"one\" {t}")),
        case("a text turns float", "type_conflict", format!("T,k=a s=1.5 {t}")),
        case("a float turns boolean", "type_conflict", format!("T,k=a v=true {t}")),
        case("a field turns tag", "type_conflict", format!("T,v=a w=1 {t}")),
        case("a tag turns field", "type_conflict", format!("T k=1 {t}")),
        case("NaN", "not_finite", format!("T,k=a v=NaN {t}")),
        case("infinity", "not_finite", format!("T,k=a v=inf {t}")),
        case("minus infinity", "not_finite", format!("T,k=a v=-Infinity {t}")),
        case("a number over 64 bits", "not_finite", format!("T,k=a v=1e999 {t}")),
        case("the same field twice", "bad_name", format!("T,k=a v=1,v=2 {t}")),
        case("the same tag twice", "bad_name", format!("T,k=a,k=b v=1 {t}")),
        case("a field named like a tag", "bad_name", format!("T,k=a k=1 {t}")),
        case("a column that is taken", "bad_name", format!("T,k=a time=1i {t}")),
    ]
}

fn rss_mib(world: &World) -> u64 {
    let status = format!("/proc/{}/status", world.server().process.id());
    let text = std::fs::read_to_string(status).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// The server answers, has not panicked, and has not grown.
fn is_well(world: &World, client: &Client) {
    assert_eq!(client.get("/health").status, 200);
    let said = String::from_utf8_lossy(&world.said()).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    let rss = rss_mib(world);
    assert!(rss < RSS_MIB_MAX, "{rss} MiB");
}

#[test]
fn d4_every_bad_row_has_its_code_and_the_good_rows_beside_it_are_stored() {
    let (world, client) = World::with_tenant();
    let t = NEW_YEAR_NS;
    let mut wrong = Vec::new();
    for (n, case) in cases().into_iter().enumerate() {
        let table = format!("case_{n}");
        // The table's types first: a flip is one against what is stored.
        client.write(DB, &format!("{table},k=a v=0.5,s=\"x\" {t}\n"));
        let line = case.line.replacen('T', &table, 1);
        let good = |at: i64| format!("{table},k=b v={at}.5,s=\"y\" {}\n", t + at);
        let body = format!("{}{line}\n{}", good(1), good(2));
        let answer = client.try_write(DB, &body).unwrap();
        let json = answer.json();
        let found = (answer.status, json["data"][0]["code"].as_str().unwrap_or_default());
        if found != (400, case.code) || json["kept"] != 2 || json["refused"] != 1 {
            let text: String = answer.text().chars().take(300).collect();
            wrong.push(format!("{}: {} {text}", case.name, answer.status));
        }
        let stored = client.number(DB, &format!("SELECT count(v) AS n FROM {table}"));
        if stored != 3 {
            wrong.push(format!("{}: {stored} rows are stored, not 3", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    is_well(&world, &client);
}

#[test]
fn what_is_large_or_old_but_allowed_is_stored() {
    let (world, client) = World::with_tenant();
    let t = NEW_YEAR_NS;
    // Nothing is too old: history is a normal case.
    client.write(DB, "old,k=a v=1 0\nold,k=a v=2 -3000000000000000000\n");
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM old"), 2);
    let tag = "x".repeat(65_536);
    client.write(DB, &format!("large,k={tag} v=1 {t}\n"));
    assert_eq!(client.number(DB, "SELECT max(octet_length(k)) AS n FROM large"), 65_536);
    client.write(DB, &format!("wide,k=a {} {t}\n", columns(1024)));
    // One more column in a row of its own is one too many for the table, and only that row is.
    let body = format!("wide,k=a f0=2i {}\nwide,k=a one_more=1i {}\n", t + 1, t + 2);
    let answer = client.try_write(DB, &body).unwrap();
    assert_eq!(answer.json()["data"][0]["code"], "quota", "{}", answer.text());
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM wide"), 2);
    is_well(&world, &client);
}

#[test]
fn d4_broken_and_explosive_bodies_are_refused_whole() {
    let (world, client) = World::with_tenant();
    let row = format!("body,k=a v=1 {NEW_YEAR_NS}\n");
    let gzip = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let zstd = |bytes: &[u8]| {
        let mut out = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        out.include_checksum(true).unwrap();
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let bomb = row.repeat((24 << 20) / row.len());
    let (gzip_bomb, zstd_bomb) = (gzip(bomb.as_bytes()), zstd(bomb.as_bytes()));
    drop(bomb);
    let mut flipped = zstd(row.repeat(1000).as_bytes());
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let cut = |bytes: Vec<u8>| bytes[..bytes.len() - 5].to_vec();
    // A frame that says it needs a window of 2 GiB.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00].to_vec();
    for (name, encoding, body, status, code) in [
        ("text as zstd", "zstd", row.clone().into_bytes(), 400, "bad_body"),
        ("text as gzip", "gzip", row.clone().into_bytes(), 400, "bad_body"),
        ("zstd with a flipped byte", "zstd", flipped, 400, "bad_body"),
        ("zstd that ends early", "zstd", cut(zstd(row.as_bytes())), 400, "bad_body"),
        ("gzip that ends early", "gzip", cut(gzip(row.as_bytes())), 400, "bad_body"),
        ("a zstd window of 2 GiB", "zstd", window, 400, "bad_body"),
        ("a gzip bomb", "gzip", gzip_bomb.clone(), 413, "body_too_large"),
        ("a zstd bomb", "zstd", zstd_bomb, 413, "body_too_large"),
        ("a bomb in a bomb", "gzip", gzip(&gzip_bomb), 400, "rows_refused"),
        ("an unknown encoding", "br", row.clone().into_bytes(), 415, "bad_encoding"),
        ("17 MiB", "identity", vec![b'\n'; 17 << 20], 413, "body_too_large"),
    ] {
        let answer = client.send("POST", PATH, &[("content-encoding", encoding)], &body);
        let answer = answer.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{name}");
    }
    client.write(DB, &row);
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM body"), 1);
    is_well(&world, &client);
}

#[test]
fn d4_ipc_that_lies_ends_its_stream_and_stores_nothing() {
    let (world, client) = World::with_tenant();
    let device = Device::enrol(&world, "acme");
    let t = NEW_YEAR_NS;
    let rows: String = (1..=10).map(|n| format!("ipc,k=a v={n}.5 {}\n", t + n)).collect();
    let batch = device::batch(&rows);
    type Lie = fn(&mut arrow_flight::FlightData);
    let lies: [(&str, &str, Lie); 6] = [
        ("a body shorter than its lengths", "bad_ipc", |m| m.data_body = m.data_body.slice(..8)),
        ("no body", "bad_ipc", |m| m.data_body = Vec::new().into()),
        ("a header that is noise", "bad_ipc", |m| m.data_header = vec![0xa5; 64].into()),
        ("a header cut in half", "bad_ipc", |m| {
            m.data_header = m.data_header.slice(..m.data_header.len() / 2);
        }),
        ("lengths of nearly 2^63", "bad_ipc", |m| {
            // Every 64-bit length of the header that is small becomes absurd.
            let mut header = m.data_header.to_vec();
            for word in header.chunks_exact_mut(8) {
                if word[1..] == [0; 7] && word[0] >= 10 {
                    word[7] = 0x7f;
                }
            }
            m.data_header = header.into();
        }),
        ("a sequence header cut short", "bad_sequence", |m| {
            let mut header = m.app_metadata.to_vec();
            header.truncate(header.len() / 2);
            m.app_metadata = header.into();
        }),
    ];
    for (epoch, (name, code, lie)) in (1..).zip(lies) {
        let key = device.stream("liar", epoch);
        let mut messages = device::messages(&[(device::header(&key, 1, 10), batch.clone())]);
        lie(messages.last_mut().unwrap());
        let status = device.put(messages).expect_err(name);
        assert!(status.message().starts_with(&format!("{code}: ")), "{name}: {status:?}");
        // The same rows, told the truth about, are taken under the same numbers.
        let truth = device::messages(&[(device::header(&key, 1, 10), batch.clone())]);
        let acks = device.put(truth).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((acks[0].hi.0, acks[0].refused), (10, 0), "{name}");
    }
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM ipc"), 10);
    is_well(&world, &client);
}

#[test]
fn d4_bad_rows_of_a_stream_are_named_in_its_ack_and_the_others_are_stored() {
    let (world, client) = World::with_tenant();
    let device = Device::enrol(&world, "acme");
    let t = NEW_YEAR_NS;
    client.write(DB, &format!("edge,k=a v=0.5 {t}\n"));
    // Line protocol has no text for it, but an Arrow column can hold it.
    let nan = {
        let batch = device::batch(&format!("edge,k=a v=1.5 {}\n", t + 1));
        let float = batch.columns().iter().position(|c| *c.data_type() == DataType::Float64);
        let mut columns = batch.columns().to_vec();
        columns[float.unwrap()] = Arc::new(Float64Array::from(vec![f64::NAN]));
        RecordBatch::try_new(batch.schema(), columns).unwrap()
    };
    let far = device::batch("edge,k=a v=1 9000000000000000000\n");
    let flip = device::batch(&format!("edge,k=a v=\"x\" {}\n", t + 1));
    for (n, (name, code, bad)) in (1..).zip([
        ("the far future", "out_of_window", far),
        ("a type flip", "type_conflict", flip),
        ("not a number", "not_finite", nan),
    ]) {
        let key = device.stream("edge", n);
        let good = format!("edge,k=a v=2.5 {}\n", t + 10 + i64::try_from(n).unwrap());
        // Two batches, because one Arrow column has one type; one stream, so one numbering.
        let mut acks = Vec::new();
        for (seq, batch) in [(1, bad), (2, device::batch(&good))] {
            let frame = (device::header(&key, seq, seq), batch);
            acks.extend(device.put(device::messages(&[frame])).unwrap());
        }
        let codes: Vec<_> = acks[0].refusals.iter().map(|r| serde_json::json!(r.code)).collect();
        assert_eq!((acks[0].refused, acks[0].hi.0), (1, 1), "{name}");
        assert_eq!(codes, [serde_json::json!(code)], "{name}");
        assert_eq!((acks[1].refused, acks[1].hi.0), (0, 2), "{name}");
    }
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM edge"), 4);
    is_well(&world, &client);
}

#[test]
fn a_storm_of_new_series_meets_the_days_limit_also_after_a_kill_and_a_restart() {
    const LIMIT: u64 = 2000;
    let mut world = World::empty();
    world.tenant("acme");
    let token = world.token("acme", "write,read");
    world.settings(&["--tenant-series-per-day", "2000"]);
    world.start();
    let client = world.client(Some(&token));
    let t = NEW_YEAR_NS;
    let storm = |from: u64, count: u64| -> String {
        (from..from + count).map(|n| format!("storm,unit=u{n} v=1 {t}\n")).collect()
    };
    let known = |n: u64| format!("storm,unit=u{n} v=2 {}\n", t + 1);
    let count = |client: &Client| client.number(DB, "SELECT count(*) AS n FROM storm") as u64;
    let answer = client.try_write(DB, &storm(0, 20_000)).unwrap();
    let json = answer.json();
    assert_eq!((&json["kept"], &json["refused"]), (&LIMIT.into(), &18_000.into()));
    assert_eq!(json["data"][0]["code"], "quota");
    assert_eq!(json["data"][0]["line_number"], 2001);
    // Another table has its own, and a known series is never refused, beside refused ones too.
    client.write(DB, &storm(0, 10).replace("storm", "calm"));
    let answer = client.try_write(DB, &(known(5) + &storm(50_000, 1) + &known(6))).unwrap();
    assert_eq!((&answer.json()["kept"], &answer.json()["refused"]), (&2.into(), &1.into()));
    for stop in [World::kill9 as fn(&mut World), World::stop] {
        stop(&mut world);
        world.start();
        let client = world.client(Some(&token));
        assert_eq!(count(&client), LIMIT + 2);
        let answer = client.try_write(DB, &(storm(60_000, 1) + &known(5))).unwrap();
        assert_eq!(answer.json()["data"][0]["code"], "quota", "{}", answer.text());
        assert_eq!(answer.json()["kept"], 1);
    }
    // The operator lifts it for this tenant, while the server runs.
    world.admin(&["tenant", "limits", "acme", "--series-per-day", "2001"]);
    let client = world.client(Some(&token));
    let answer = client.try_write(DB, &storm(70_000, 2)).unwrap();
    assert_eq!((&answer.json()["kept"], &answer.json()["refused"]), (&1.into(), &1.into()));
    is_well(&world, &client);
}
