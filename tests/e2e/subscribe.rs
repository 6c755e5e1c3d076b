//! Live subscriptions: rows as they are stored, over server-sent events.

use std::{
    io::{BufRead, BufReader, Read},
    sync::mpsc,
    time::{Duration, Instant},
};

use millrace_tests::{Client, World, http::encode, scan};
use serde_json::Value;

use crate::NEW_YEAR_NS;

/// One event, as it was read.
#[derive(Debug, Clone, Default)]
struct Event {
    id: Option<String>,
    name: String,
    data: Value,
    at: Option<Instant>,
}

/// A subscriber on a thread of its own.
struct Subscriber {
    events: mpsc::Receiver<Option<Event>>,
}

impl Subscriber {
    fn open(client: &Client, query: &str, last: Option<&str>) -> Self {
        let reader = client.stream(&format!("/api/v1/subscribe?{query}"), last);
        let (tell, events) = mpsc::sync_channel(10_000);
        std::thread::spawn(move || {
            read(reader, |event| tell.send(Some(event)).is_ok());
            // Nobody may be listening any more.
            drop(tell.send(None));
        });
        Self { events }
    }

    /// The next event, which must come within ten seconds; `None` at the end.
    fn next(&self) -> Option<Event> {
        self.events.recv_timeout(Duration::from_secs(10)).expect("an event, or the end")
    }

    /// Rows until there are this many, and the id after them.
    fn rows(&self, count: usize) -> (Vec<Value>, String) {
        let (mut rows, mut id) = (Vec::new(), None);
        while rows.len() < count || id.is_none() {
            let event = self.next().expect("the stream goes on");
            assert_eq!(event.name, "rows", "{event:?}");
            rows.extend(event.data.as_array().unwrap().iter().cloned());
            id = event.id;
        }
        (rows, id.unwrap())
    }
}

fn read(reader: impl Read, mut tell: impl FnMut(Event) -> bool) {
    let mut event = Event::default();
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        if let Some(id) = line.strip_prefix("id: ") {
            event.id = Some(id.to_owned());
        } else if let Some(name) = line.strip_prefix("event: ") {
            event.name = name.to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            event.data = serde_json::from_str(data).unwrap();
            event.at = Some(Instant::now());
        } else if line.is_empty() && !event.name.is_empty() && !tell(std::mem::take(&mut event)) {
            return;
        }
    }
}

fn line(n: i64) -> String {
    format!("cpu,host=h{} n={n}i,usage={n}.5 {}", n % 2, NEW_YEAR_NS + n)
}

#[test]
fn l2_new_rows_come_within_a_second_of_their_ack() {
    let (_world, client) = World::with_tenant();
    client.write("default", &line(0));
    let live = Subscriber::open(&client, "table=cpu", None);
    let mut slowest = Duration::ZERO;
    for n in 1..=10 {
        client.write("default", &line(n));
        let acked = Instant::now();
        let event = live.next().unwrap();
        assert_eq!(event.data[0]["n"], n);
        slowest = slowest.max(event.at.unwrap().saturating_duration_since(acked));
    }
    eprintln!("slowest of ten: {slowest:?} after the ack");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
}

#[test]
fn l2_a_condition_and_columns_narrow_what_comes() {
    let (_world, client) = World::with_tenant();
    client.write("default", &line(0));
    let query = format!("table=cpu&columns=n,host&where={}", encode("host = 'h1' AND n > 3"));
    let live = Subscriber::open(&client, &query, None);
    let lines: Vec<String> = (1..=9).map(line).collect();
    client.write("default", &lines.join("\n"));
    let (rows, _) = live.rows(3);
    let numbers: Vec<i64> = rows.iter().map(|r| r["n"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [5, 7, 9]);
    assert!(rows[0].get("usage").is_none(), "{rows:?}");
    for wrong in [
        "table=cpu&where=nothing%20%3E%201",
        "table=cpu&where=n%20%3E",
        "table=cpu&columns=nothing",
        "q=SELECT%201",
        "q=SELECT%201&every=0",
        "q=DROP%20TABLE%20cpu&every=1",
        "",
    ] {
        let answer = client.get(&format!("/api/v1/subscribe?{wrong}"));
        assert!(matches!(answer.status, 400 | 403), "{wrong}: {}", answer.status);
    }
}

#[test]
fn l2_d2_a_subscriber_that_comes_back_misses_nothing_and_sees_nothing_twice() {
    let (mut world, client) = World::with_tenant();
    client.write("default", &line(0));
    let live = Subscriber::open(&client, "table=cpu", None);
    client.write("default", &line(1));
    let (_, id) = live.rows(1);
    drop(live);
    client.write("default", &line(2));
    client.write("other", &line(3));
    client.write("default", &line(4));
    let again = Subscriber::open(&client, "table=cpu", Some(&id));
    let (rows, id) = again.rows(2);
    let numbers: Vec<i64> = rows.iter().map(|r| r["n"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [2, 4]);
    drop(again);
    // A restart keeps no buffer: one who has everything goes on, others are told.
    world.stop();
    world.start();
    let client = world.client(client.token.as_deref());
    let on = Subscriber::open(&client, "table=cpu", Some(&id));
    client.write("default", &line(5));
    assert_eq!(on.rows(1).0[0]["n"], 5);
    world.stop();
    world.start();
    let client = world.client(client.token.as_deref());
    let behind = Subscriber::open(&client, "table=cpu", Some(&id));
    let lagged = behind.next().unwrap();
    assert_eq!((lagged.name.as_str(), lagged.data["from"].as_str()), ("lagged", Some(id.as_str())));
    assert_eq!(lagged.id.as_deref(), lagged.data["resume"].as_str());
    client.write("default", &line(6));
    assert_eq!(behind.rows(1).0[0]["n"], 6);
}

#[test]
fn a3_a_subscription_ends_at_once_when_its_token_is_revoked_or_the_server_stops() {
    let (mut world, client) = World::with_tenant();
    client.write("default", &line(0));
    let token = world.token("acme", "read");
    let reader = world.client(Some(&token));
    let live = Subscriber::open(&reader, "table=cpu", None);
    client.write("default", &line(1));
    live.rows(1);
    let id = token.split('_').nth(1).unwrap();
    world.admin(&["token", "revoke", id, "--tenant", "acme"]);
    let revoked = Instant::now();
    let end = live.next().unwrap();
    assert_eq!((end.name.as_str(), &end.data["code"]), ("end", &Value::from("unauthenticated")));
    assert!(end.at.unwrap().saturating_duration_since(revoked) < Duration::from_secs(1));
    assert!(live.next().is_none());
    assert_eq!(reader.get("/api/v1/subscribe?table=cpu").status, 401);
    let last = Subscriber::open(&client, "table=cpu", None);
    client.write("default", &line(2));
    last.rows(1);
    let stopping = Instant::now();
    world.stop();
    assert_eq!(last.next().unwrap().data["code"], "stopped");
    assert!(stopping.elapsed() < Duration::from_secs(8), "nobody waits for a subscriber");
}

#[test]
fn a1_a_subscriber_sees_its_own_tenants_rows_only() {
    let mut world = World::empty();
    world.tenant("acme");
    world.tenant("bolt");
    let (a, b) = (world.token("acme", "read,write"), world.token("bolt", "read,write"));
    world.start();
    let (acme, bolt) = (world.client(Some(&a)), world.client(Some(&b)));
    acme.write("default", &scan::canary_lines(NEW_YEAR_NS));
    let live = Subscriber::open(&bolt, "table=canarytableqzx", None);
    let every = Subscriber::open(&bolt, &format!("q={}&every=1", encode("SHOW TABLES")), None);
    acme.write("default", &scan::canary_lines(NEW_YEAR_NS + 1));
    bolt.write("default", &format!("canarytableqzx mine=7i {NEW_YEAR_NS}"));
    let (rows, _) = live.rows(1);
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["mine"], 7);
    assert!(rows[0].get("canaryfieldqzx").is_none(), "{rows:?}");
    for _ in 0..2 {
        let text = every.next().unwrap().data.to_string();
        assert!(!text.contains("canaryfieldqzx"), "{text}");
    }
}

#[test]
fn l2_a_small_query_is_answered_again_and_again() {
    let (_world, client) = World::with_tenant();
    client.write("default", &line(0));
    let query = format!("q={}&every=1", encode("SELECT count(*) AS rows FROM cpu"));
    let live = Subscriber::open(&client, &query, None);
    assert_eq!(live.next().unwrap().data[0]["rows"], 1);
    client.write("default", &line(1));
    let seen: Vec<Value> = (0..3).map(|_| live.next().unwrap().data[0]["rows"].clone()).collect();
    assert!(seen.contains(&Value::from(2)), "{seen:?}");
    let huge = format!("q={}&every=1", encode("SELECT value FROM generate_series(1, 10000000)"));
    let end = Subscriber::open(&client, &huge, None).next().unwrap();
    assert_eq!((end.name.as_str(), &end.data["code"]), ("end", &Value::from("sql_invalid")));
}

#[test]
fn subscribers_that_leave_do_not_stay_counted() {
    let (world, client) = World::with_tenant();
    client.write("default", &line(0));
    for n in 0..40 {
        let live = Subscriber::open(&client, "table=cpu", None);
        client.write("default", &line(n));
        live.rows(1);
    }
    // Each thread ends when its next event finds nobody; then the server notices.
    client.write("default", &line(100));
    let operator = world.client(Some(&world.operator_token()));
    let open = || {
        let text = operator.get("/metrics").text();
        let line =
            text.lines().find(|l| l.starts_with("millrace_subscriptions ")).map(str::to_owned);
        line.and_then(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0)
    };
    for n in 0..200 {
        if open() == 0.0 {
            return;
        }
        client.write("default", &line(101 + n));
    }
    panic!("{} subscriptions are still open", open());
}
