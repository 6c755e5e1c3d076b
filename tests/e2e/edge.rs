//! The forwarder with the real server: enrolment, exactly once through outages, no open port.

use std::{collections::BTreeMap, io::Write, time::Duration};

use millrace_protocol::stream::StreamKey;
use millrace_tests::{
    Device, Forwarder, Ledger, Random, World, corpus, device, ledger, process::PATIENCE, scan,
};

use crate::ledger_lines;

const DB: &str = "default";
const TABLE: &str = "edge";

/// Reads the table until the condition holds; the test fails if it never does. Each look is a
/// query, so this waits by asking, not by sleeping.
fn until(
    world: &World,
    client: &millrace_tests::Client,
    what: &str,
    rows: usize,
) -> BTreeMap<ledger::RowName, u64> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let found = ledger::found(client, DB, TABLE);
        if found.len() >= rows {
            return found;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{what}: {} of {rows} rows arrived; the server said:\n{}",
            found.len(),
            String::from_utf8_lossy(&world.said())
        );
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn e3_a_device_enrols_once_with_its_claim_and_its_rows_arrive() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    assert!(edge.process().write(ledger_lines(TABLE, 1, 1, 500).as_bytes()));
    let found = until(&world, &client, "a first batch", 500);
    assert!(found.values().all(|times| *times == 1));
    // The claim is spent: a second device cannot use it, and an invented one is refused.
    let another = tempfile::tempdir().unwrap();
    let mut enrol = std::process::Command::new(millrace_tests::process::binary("millrace-edge"));
    enrol.arg("enroll").arg("--data-dir").arg(another.path().join("edge"));
    enrol.arg(&client.base).args(["--claim", "not-a-claim", "--ca"]).arg(world.ca_path());
    let (fine, _, said) = millrace_tests::process::attempt(&mut enrol);
    assert!(!fine && !said.is_empty());
}

#[test]
fn e1_the_forwarder_listens_nowhere() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    edge.process().write(ledger_lines(TABLE, 1, 1, 10).as_bytes());
    until(&world, &client, "a first batch", 10);
    let open = scan::listening(edge.process().id());
    assert!(open.is_empty(), "{open:?}");
    assert!(!scan::listening(world.server().process.id()).is_empty(), "the look at sockets works");
}

#[test]
fn e7_what_was_acked_leaves_the_queue() {
    let (world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    for batch in 0..20 {
        edge.process().write(ledger_lines(TABLE, 1, 1 + batch * 2000, 2000).as_bytes());
        until(&world, &client, "a batch", usize::try_from((batch + 1) * 2000).unwrap());
    }
    let held: u64 = scan::files(&edge.folder())
        .iter()
        .filter_map(|f| std::fs::metadata(f).ok())
        .map(|m| std::os::unix::fs::MetadataExt::blocks(&m) * 512)
        .sum();
    assert!(held < 64 << 20, "{held} bytes are still in the forwarder's folder");
}

/// Appends to the file that the forwarder tails.
fn append(path: &std::path::Path, lines: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut f| f.write_all(lines.as_bytes())).expect("the tailed file grows");
}

/// kill -9 and a start, and once more: the second kill may hit the recovery from the first.
fn kill_twice(random: &mut Random, mut kill: impl FnMut(), mut start: impl FnMut()) {
    for patience in [0, random.between(0, 120)] {
        std::thread::park_timeout(Duration::from_millis(patience));
        kill();
        start();
    }
}

#[test]
fn d2_e6_e9_forwarder_and_server_are_killed_again_and_again_and_every_row_arrives_once() {
    let mut random = Random::for_test("forwarder crash suite");
    let (mut world, client) = World::with_tenant();
    world.settings(&["--memtable-mib", "1"]);
    let tailed = world.folder().join("lines.lp");
    append(&tailed, "");
    let source = format!("tail:{}", tailed.display());
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", &source]);
    edge.start();
    let mut next = 1u64;
    let mut ledger = Ledger::default();
    let rounds: u64 =
        std::env::var("MILLRACE_TEST_KILLS").ok().and_then(|k| k.parse().ok()).unwrap_or(100);
    for round in 1..=rounds {
        // The file keeps what the forwarder has not stored, so every row of it must arrive.
        let count = random.between(1, 200);
        append(&tailed, &ledger_lines(TABLE, 1, next, count));
        ledger.acked((next..next + count).map(|n| (1, n)));
        next += count;
        std::thread::park_timeout(Duration::from_millis(random.between(0, 150)));
        if random.between(0, 2) == 0 {
            world.kill9();
            std::thread::park_timeout(Duration::from_millis(random.between(0, 60)));
            world.start();
        } else {
            let edge = std::cell::RefCell::new(&mut edge);
            kill_twice(&mut random, || edge.borrow_mut().kill9(), || edge.borrow_mut().start());
        }
        if round % 10 == 0 || round == rounds {
            let rows = usize::try_from(next - 1).unwrap();
            let what = format!("round {round}: {}", String::from_utf8_lossy(&edge.said()));
            until(&world, &client, &what, rows);
            ledger.check(&client, DB, TABLE).is_clean(&format!("round {round}"));
        }
    }
}

#[test]
fn e6_rows_taken_in_during_an_outage_arrive_after_it() {
    let (mut world, client) = World::with_tenant();
    let mut edge = Forwarder::enrol(&world, "acme", &["--source", "stdin"]);
    edge.start();
    edge.process().write(ledger_lines(TABLE, 1, 1, 100).as_bytes());
    until(&world, &client, "before the outage", 100);
    world.kill9();
    for batch in 1..=10u64 {
        edge.process().write(ledger_lines(TABLE, 1, 1 + batch * 100, 100).as_bytes());
    }
    world.start();
    let found = until(&world, &client, "after the outage", 1100);
    assert_eq!(found.len(), 1100);
}

/// Three rows of the ledger's table, as a forwarder sends them.
fn three_rows(from: u64) -> arrow::record_batch::RecordBatch {
    device::batch(&ledger_lines(TABLE, 9, from, 3))
}

#[test]
fn d2_a_frame_that_is_sent_again_is_acked_and_changes_nothing() {
    let (mut world, client) = World::with_tenant();
    let scripted = Device::enrol(&world, "acme");
    let stream = scripted.stream("press", 1);
    let first = [(device::header(&stream, 1, 3), three_rows(1))];
    let acks = scripted.put(device::messages(&first)).unwrap();
    assert_eq!(acks.last().map(|a| (a.hi.0, a.duplicate)), Some((3, false)));
    // A value changes in between, so that applying the frame again would show.
    let changed = ledger_lines(TABLE, 9, 1, 1).replace("value=1.5", "value=77");
    client.write(DB, &changed);
    for moment in ["at once", "after a kill", "after a flush"] {
        let acks = scripted.put(device::messages(&first)).unwrap();
        assert_eq!(acks.last().map(|a| (a.hi.0, a.duplicate)), Some((3, true)), "{moment}");
        assert_eq!(client.number(DB, &format!("SELECT count(*) AS n FROM {TABLE}")), 3, "{moment}");
        let value = &client.sql(DB, &format!("SELECT value FROM {TABLE} WHERE n = 1"))[0]["value"];
        assert_eq!(value, 77.0, "{moment}");
        if moment == "at once" {
            world.kill9();
        } else {
            world.stop();
        }
        world.start();
    }
}

#[test]
fn d2_streams_and_epochs_are_counted_apart_and_a_frame_that_leaves_a_hole_is_refused() {
    let (world, client) = World::with_tenant();
    let scripted = Device::enrol(&world, "acme");
    for (n, (name, epoch)) in [("press", 1), ("lathe", 1), ("press", 2)].into_iter().enumerate() {
        let stream = scripted.stream(name, epoch);
        let from = 1 + 10 * u64::try_from(n).unwrap();
        let frames = [
            (device::header(&stream, 1, 3), three_rows(from)),
            (device::header(&stream, 4, 6), three_rows(from + 3)),
        ];
        let acks = scripted.put(device::messages(&frames)).unwrap();
        assert_eq!(acks.last().map(|a| a.hi.0), Some(6), "{name} {epoch}");
    }
    let stream = scripted.stream("press", 1);
    let hole = [(device::header(&stream, 9, 11), three_rows(90))];
    match scripted.put(device::messages(&hole)) {
        Ok(acks) => assert!(acks.iter().all(|a| a.hi.0 <= 6), "a hole was acked: {acks:?}"),
        Err(status) => assert_ne!(status.code(), tonic::Code::Internal, "{status:?}"),
    }
    assert_eq!(client.number(DB, &format!("SELECT max(n) AS n FROM {TABLE}")), 26);
}

#[test]
fn e3_a_claim_works_once_and_a_device_speaks_only_for_itself() {
    let (world, _client) = World::with_tenant();
    let nobody = world.client(None);
    let code = world.claim("acme");
    let (_key, request) = device::key_and_request();
    assert!((200..300).contains(&device::enrol(&nobody, &code, &request).status));
    let again = device::enrol(&nobody, &code, &request);
    assert!(
        matches!(again.status, 401 | 403 | 404 | 409 | 410),
        "{} {}",
        again.status,
        again.text()
    );
    let code = world.claim("acme");
    let nonsense = device::enrol(&nobody, &code, "no request at all");
    assert_eq!(nonsense.status, 400, "{}", nonsense.text());
    let (first, second) = (Device::enrol(&world, "acme"), Device::enrol(&world, "acme"));
    let foreign = [(device::header(&second.stream("s", 1), 1, 3), three_rows(1))];
    let status = first.put(device::messages(&foreign)).unwrap_err();
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
    let unknown =
        device::put_with_token(&nobody, &world.ca(), device::messages(&foreign)).unwrap_err();
    assert_eq!(unknown.code(), tonic::Code::Unauthenticated, "{unknown:?}");
}

/// Applies what an entry of the corpus says to a good stream of messages.
fn spoil(entry: &corpus::Entry, stream: &StreamKey) -> Vec<arrow_flight::FlightData> {
    let header = match entry.raw.get("rows").and_then(|r| r.as_array()) {
        Some(rows) => device::header(stream, rows[0].as_u64().unwrap(), rows[1].as_u64().unwrap()),
        None => device::header(stream, 1, 3),
    };
    let mut messages = device::messages(&[(header, three_rows(1))]);
    let number = |key: &str| entry.raw.get(key).and_then(serde_json::Value::as_i64);
    let place = |at: i64, len: usize| {
        usize::try_from(if at < 0 { at + i64::try_from(len).unwrap() } else { at }).unwrap()
    };
    if let Some(at) = number("drop") {
        messages.remove(place(at, messages.len()));
    }
    if let Some(at) = number("double") {
        let message = messages[place(at, messages.len())].clone();
        messages.insert(0, message);
    }
    let Some(at) = number("message") else { return messages };
    let len = messages.len();
    let message = &mut messages[place(at, len)];
    let change = |bytes: &bytes::Bytes, part: &str| -> bytes::Bytes {
        let mut bytes = bytes.to_vec();
        if let Some(hex) = entry.raw.get(part).and_then(|h| h.as_str()) {
            bytes = hex::decode(hex).unwrap();
        }
        if let Some(cut) = number(&format!("cut_{part}")) {
            bytes.truncate(place(cut, bytes.len()));
        }
        if let Some(flip) = number(&format!("flip_{part}")) {
            let at = place(flip, bytes.len()) % bytes.len();
            bytes[at] ^= 0xff;
        }
        if let Some(fill) = number(&format!("fill_{part}")) {
            bytes.fill(u8::try_from(fill).unwrap());
        }
        if let Some(hex) = entry.raw.get(&format!("append_{part}")).and_then(|h| h.as_str()) {
            bytes.extend(hex::decode(hex).unwrap());
        }
        bytes.into()
    };
    message.data_header = change(&message.data_header, "header");
    message.data_body = change(&message.data_body, "body");
    let mut metadata = change(&message.app_metadata, "metadata").to_vec();
    if let Some(device) = entry.raw.get("device").and_then(|d| d.as_str()) {
        metadata[1..17].copy_from_slice(&hex::decode(device).unwrap());
    }
    message.app_metadata = metadata.into();
    messages
}

#[test]
fn d4_hostile_streams_end_with_the_status_that_the_corpus_says_and_leave_nothing() {
    let (world, client) = World::with_tenant();
    let scripted = Device::enrol(&world, "acme");
    let mut wrong = Vec::new();
    for file in corpus::files("ipc") {
        for (n, entry) in file.entries.iter().enumerate() {
            // Each in a stream of its own, so that one cannot hide behind another's watermark.
            let stream = scripted.stream(&format!("s{n}"), 1);
            let said = match scripted.put(spoil(entry, &stream)) {
                Ok(_) => "Ok".to_owned(),
                Err(status) => format!("{:?}", status.code()),
            };
            // A turned byte may hit padding; then the stream is as good as before.
            let lucky = said == "Ok" && entry.raw.contains_key("may_pass");
            if said != entry.text("status") && !lucky {
                wrong.push(format!("{}: {said}, not {}", entry.name, entry.text("status")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
    // Beyond the corpus: bytes turned over at random. Whatever is said, nothing may panic.
    let mut random = Random::for_test("hostile streams");
    for n in 0..300 {
        let stream = scripted.stream(&format!("r{n}"), 1);
        let mut messages = device::messages(&[(device::header(&stream, 1, 3), three_rows(1))]);
        let at = usize::try_from(random.between(0, messages.len() as u64)).unwrap();
        let part = random.between(0, 2);
        let bytes =
            if part == 0 { &mut messages[at].data_header } else { &mut messages[at].data_body };
        let mut changed = bytes.to_vec();
        for _ in 0..random.between(1, 4) {
            if !changed.is_empty() {
                let place = usize::try_from(random.between(0, changed.len() as u64)).unwrap();
                changed[place] ^= u8::try_from(random.between(1, 256)).unwrap();
            }
        }
        *bytes = changed.into();
        if let Err(status) = scripted.put(messages) {
            let expected = matches!(
                status.code(),
                tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition
            );
            assert!(expected, "round {n}: {status:?}");
        }
    }
    let said = world.server().process.text();
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(client.get("/health").status, 200);
    let good = [(device::header(&scripted.stream("good", 1), 1, 3), three_rows(500))];
    assert_eq!(scripted.put(device::messages(&good)).unwrap().last().map(|a| a.hi.0), Some(3));
}

#[test]
fn a3_e4_a_revoked_device_loses_its_open_stream_even_while_it_is_idle() {
    let (world, client) = World::with_tenant();
    let device = Device::enrol(&world, "acme");
    let stream = device.stream("default", 1);
    let frames = [(device::header(&stream, 1, 3), three_rows(1))];
    let status = device.idle_until_ended(device::messages(&frames), || {
        world.admin(&[
            "device",
            "revoke",
            "--tenant",
            "acme",
            &device.enrolled.device_id.to_string(),
        ]);
    });
    let status = status.expect("the stream ends");
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status:?}");
    let again = device.put(device::messages(&[(device::header(&stream, 4, 6), three_rows(4))]));
    assert!(again.is_err(), "{again:?}");
    assert_eq!(client.number(DB, &format!("SELECT count(*) AS n FROM {TABLE}")), 3);
}
