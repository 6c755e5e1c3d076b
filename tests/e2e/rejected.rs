//! Refused rows: recorded where the good ones go, sealed, once, and sent again when they can be.

use std::time::{SystemTime, UNIX_EPOCH};

use millrace_tests::{
    World,
    device::{Device, batch, header, messages},
    process, scan,
};
use serde_json::Value;

use crate::NEW_YEAR_NS;

const DB: &str = "default";
const ALL: &str = "SELECT table_name, source, code, line_number, column_number, reason, raw, precision, replayed_at FROM _rejected ORDER BY time";

fn now_ns() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

#[test]
fn d4_refused_rows_are_recorded_with_the_good_ones_sealed_and_for_their_tenant_alone() {
    let (mut world, client) = World::with_tenant();
    world.tenant("other");
    let other = world.token("other", "write,read");
    let canary = scan::CANARIES[5];
    client.write(DB, &format!("m,host=a v=1i {NEW_YEAR_NS}\n"));
    let body = format!(
        "m,host=a v=2i {t}\nm,host=a v={canary} {t}\nm,host=a v=\"{canary}\" {t}\nm,host=b v=3i {}\n",
        NEW_YEAR_NS + 1,
        t = NEW_YEAR_NS + 2,
    );
    let answer = client.try_write(DB, &body).unwrap();
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(
        (answer.json()["kept"].as_i64(), answer.json()["refused"].as_i64()),
        (Some(2), Some(2))
    );
    for when in ["at once", "after a kill", "after a flush"] {
        let rows = client.sql(DB, ALL);
        let seen: Vec<_> = rows
            .iter()
            .map(|r| (r["code"].as_str().unwrap(), r["line_number"].as_i64().unwrap()))
            .collect();
        assert_eq!(seen, [("bad_value", 2), ("type_conflict", 3)], "{when}");
        for ((row, raw), column) in rows.iter().zip(body.lines().skip(1)).zip([12, 10]) {
            assert_eq!(row["raw"].as_str(), Some(raw), "{when}");
            assert_eq!((&row["table_name"], &row["column_number"]), (&"m".into(), &column.into()));
            assert_eq!((&row["precision"], &row["replayed_at"]), (&Value::from("ns"), &0.into()));
            assert!(!row["source"].as_str().unwrap().is_empty());
        }
        assert_eq!(client.number(DB, "SELECT count(*) AS n FROM m"), 3, "{when}");
        let found = scan::canaries_below(world.folder());
        assert!(found.is_empty(), "{when}: {found:?}");
        assert!(scan::canaries_in(&world.said()).is_empty(), "{when}: in the log");
        if when == "at once" {
            let sources = client.sql(DB, "SELECT rows, rejected FROM system.ingest ORDER BY 1");
            assert_eq!(sources, [serde_json::json!({ "rows": 3, "rejected": 2 })]);
            world.kill9();
        } else {
            world.stop();
        }
        world.start();
    }
    let other = client.with_token(Some(&other));
    assert_eq!(other.sql_as(DB, ALL, "json").code(), "sql_unknown_name");
    for view in ["tables", "files", "compactions", "ingest", "streams"] {
        let rows = other.sql(DB, &format!("SELECT * FROM system.{view}"));
        assert!(rows.is_empty(), "{view}: {rows:?}");
    }
}

#[test]
fn nobody_writes_to_the_servers_own_tables() {
    let (_world, client) = World::with_tenant();
    for table in ["_rejected", "_other", "__x"] {
        let answer = client.try_write(DB, &format!("{table} v=1 {NEW_YEAR_NS}\n")).unwrap();
        assert_eq!(answer.json()["data"][0]["code"], "bad_name", "{}", answer.text());
    }
    let answer = client.try_write("system", &format!("tables v=1 {NEW_YEAR_NS}\n")).unwrap();
    assert_eq!(answer.code(), "bad_database", "{}", answer.text());
    let forged = serde_json::json!({ "db": DB, "rows": [{
        "id": "00", "code": "syntax", "source": "me", "precision": "ns", "raw": "m v=1 1",
    }] });
    let answer = client.post(
        "/api/v1/rejected/replay",
        &[("content-type", "application/json")],
        forged.to_string().as_bytes(),
    );
    assert_eq!(answer.json()["replayed"], 0, "{}", answer.text());
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM m"), 0);
}

#[test]
fn d2_a_frame_sent_again_records_its_refused_rows_once() {
    let (world, client) = World::with_tenant();
    let device = Device::enrol(&world, "acme");
    let key = device.stream("press", 1);
    let first = batch(&format!("press,line=a v=1i {NEW_YEAR_NS}\n"));
    device.put(messages(&[(header(&key, 1, 1), first)])).unwrap();
    let bad = batch(&format!("press,line=a v=\"text\" {NEW_YEAR_NS}\npress,line=b v=\"x\" 5\n"));
    for again in [false, true] {
        let acks = device.put(messages(&[(header(&key, 2, 3), bad.clone())])).unwrap();
        assert_eq!((acks[0].duplicate, acks[0].hi.0), (again, 3));
    }
    let rows = client.sql(DB, ALL);
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(rows[0]["code"], "type_conflict");
    assert_eq!(rows[0]["raw"], format!("press,line=a v=\"text\" {NEW_YEAR_NS}"));
    let source = format!("{}/press", device.enrolled.device_id);
    assert_eq!(rows[1]["source"], source);
    let counts = client.sql(DB, "SELECT source, rows, rejected, duplicates FROM system.ingest");
    let expected =
        serde_json::json!({ "source": source, "rows": 1, "rejected": 2, "duplicates": 2 });
    assert_eq!(counts, [expected]);
    let stream = client.sql(DB, "SELECT stream, epoch, watermark FROM system.streams");
    assert_eq!(stream, [serde_json::json!({ "stream": "press", "epoch": 1, "watermark": 3 })]);
}

/// Rows from the near future: refused now, good a few seconds later, which is what is waited for.
#[test]
fn d4_what_was_refused_is_stored_once_when_it_is_replayed_after_its_cause_is_gone() {
    let (world, client) = World::with_tenant();
    let ahead_ns = 900_000_000_000 + 8_000_000_000;
    let body = format!("m,host=a v=1i {}\nm,host=b v= 5\nm,host=c v=3i 7\n", now_ns() + ahead_ns);
    let answer = client.try_write(DB, &body).unwrap();
    assert_eq!(answer.json()["refused"], 2, "{}", answer.text());
    let replay = |more: &[&str]| -> Value {
        let mut command = world.millrace(&["rejected", "replay", "--json"]);
        command.args(["--url", &world.server().base, "--ca"]).arg(world.ca_path()).args(more);
        command.env("MILLRACE_TOKEN", client.token.clone().unwrap());
        serde_json::from_str(&process::run("millrace rejected replay", &mut command)).unwrap()
    };
    let dry = replay(&["--dry-run", "--table", "m", "--since", "1h"]);
    assert_eq!((&dry["found"], &dry["replayed"]), (&2.into(), &0.into()));
    assert_eq!(replay(&["--code", "quota"])["found"], 0);
    let deadline = now_ns() + 60_000_000_000;
    let done = loop {
        let done = replay(&[]);
        if done["replayed"] == 1 || now_ns() > deadline {
            break done;
        }
    };
    assert_eq!((&done["found"], &done["replayed"]), (&2.into(), &1.into()), "{done}");
    assert_eq!(done["refused"][0]["code"], "bad_value");
    assert_eq!(replay(&[])["found"], 1, "what was replayed is not sent again");
    assert_eq!(client.number(DB, "SELECT count(*) AS n FROM m"), 2);
    assert_eq!(client.number(DB, "SELECT sum(v) AS n FROM m"), 4);
    let rows = client.sql(DB, ALL);
    assert_eq!(rows.len(), 2, "a replay records nothing new: {rows:?}");
    // What the parser refuses is listed before what storage refuses.
    assert_eq!((&rows[0]["code"], &rows[0]["replayed_at"]), (&"bad_value".into(), &0.into()));
    assert!(rows[1]["replayed_at"].as_i64().unwrap() > 0);
    let mut list = world.millrace(&["rejected", "list", "--url", &world.server().base, "--ca"]);
    list.arg(world.ca_path()).env("MILLRACE_TOKEN", client.token.clone().unwrap());
    assert!(process::run("millrace rejected list", &mut list).contains("bad_value"));
}
