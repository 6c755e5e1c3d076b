//! Against a scripted broker on a simulated network, with power cuts.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use millrace_platform::{
    clock::{Clock, SystemClock},
    entropy::random_u64,
    net::{Listener, Stream},
    sim::{SimDisk, SimEntropy, SimNet},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    mapping::{Ground, RawRule},
    source::testing::Bench,
};

const PORT: u16 = 1883;

/// A message that the broker keeps for us.
#[derive(Debug, Clone)]
struct Kept {
    topic: String,
    payload: Vec<u8>,
    /// Its number once it was sent.
    id: Option<u16>,
}

/// What the broker does; shared with the test.
#[derive(Debug, Default)]
struct Script {
    kept: Vec<Kept>,
    next_id: u16,
    session: bool,
    /// PUBACKs that it loses before it closes the connection.
    lose_acks: usize,
    /// It closes the connection after so many messages.
    close_after: Option<usize>,
    connects: u64,
    filters: Vec<String>,
    acked: u64,
}

type Shared = Arc<Mutex<Script>>;

/// One packet: first byte and body.
async fn packet(stream: &mut Box<dyn Stream>) -> Option<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.ok()?;
    let (mut len, mut shift) = (0usize, 0);
    loop {
        let byte = stream.read_u8().await.ok()?;
        len |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    Some((first, body))
}

/// A PUBLISH of version 3.1.1 at QoS 1.
fn publish(kept: &Kept, dup: bool) -> Vec<u8> {
    let message = codec::Message {
        topic: kept.topic.clone(),
        payload: kept.payload.clone(),
        at_least_once: true,
        retain: false,
    };
    let mut bytes = codec::message(Version::V4, kept.id.unwrap(), &message);
    if dup {
        bytes[0] |= 8;
    }
    bytes
}

/// Messages to send now: again if `all`, else those that were never sent, at most 20 on their way.
fn due(script: &mut Script, all: bool) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut next = script.next_id;
    for kept in script.kept.iter_mut().take(20) {
        match kept.id {
            Some(_) if all => out.push(publish(kept, true)),
            Some(_) => {}
            None => {
                next = if next >= 40 { 1 } else { next + 1 };
                kept.id = Some(next);
                out.push(publish(kept, false));
            }
        }
    }
    script.next_id = next;
    out
}

/// Serves one connection to its end.
async fn serve_one(mut stream: Box<dyn Stream>, shared: Shared) -> Option<()> {
    let (_, body) = packet(&mut stream).await?;
    let clean = body[7] & 2 != 0;
    let present = {
        let mut script = shared.lock().unwrap();
        script.connects += 1;
        script.session && !clean
    };
    stream.write_all(&[0x20, 2, u8::from(present), 0]).await.ok()?;
    let mut sent = 0;
    let mut first = true;
    let mut subscribed = present;
    loop {
        if subscribed {
            let messages = due(&mut shared.lock().unwrap(), first);
            first = false;
            for message in messages {
                stream.write_all(&message).await.ok()?;
                sent += 1;
                if shared.lock().unwrap().close_after.is_some_and(|n| sent >= n) {
                    shared.lock().unwrap().close_after = None;
                    return None;
                }
            }
        }
        let read = tokio::select! {
            read = packet(&mut stream) => read?,
            () = SystemClock::new().sleep(Duration::from_millis(2)) => continue,
        };
        // A packet is never cut in two by our own pause: writers here write whole packets.
        match read.0 >> 4 {
            4 => {
                let id = u16::from_be_bytes([read.1[0], read.1[1]]);
                let mut script = shared.lock().unwrap();
                if script.lose_acks > 0 {
                    script.lose_acks -= 1;
                    if script.lose_acks == 0 {
                        return None;
                    }
                    continue;
                }
                let at =
                    script.kept.iter().position(|k| k.id == Some(id)).expect("it is on its way");
                assert_eq!(at, 0, "acknowledged in order");
                script.kept.remove(at);
                script.acked += 1;
            }
            8 => {
                {
                    let mut script = shared.lock().unwrap();
                    script.session = true;
                    let len = usize::from(u16::from_be_bytes([read.1[2], read.1[3]]));
                    let filter = String::from_utf8(read.1[4..4 + len].to_vec()).unwrap();
                    script.filters.push(filter);
                }
                subscribed = true;
                stream.write_all(&[0x90, 3, read.1[0], read.1[1], 1]).await.ok()?;
            }
            12 => stream.write_all(&[0xd0, 0]).await.ok()?,
            _ => return None,
        }
    }
}

fn serve(net: &SimNet, shared: &Shared) -> tokio::task::JoinHandle<()> {
    let listener: Box<dyn Listener> = net.listen(PORT);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            serve_one(stream, Arc::clone(&shared)).await;
        }
    })
}

pub(super) fn broker(rules: &str, payload: Kind) -> Broker {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        map: Vec<RawRule>,
    }
    let tags = BTreeMap::new();
    let ground = Ground {
        table: "plant",
        field: "{field}",
        tags: &tags,
        attributes: &ATTRIBUTES,
        pointers: true,
        floats: true,
    };
    let file: File = toml::from_str(rules).unwrap();
    Broker {
        name: "t".into(),
        peer: Peer { host: "broker".into(), port: PORT, tls: None, path: String::new() },
        version: Version::V4,
        client_id: None,
        user: None,
        password_file: None,
        keep_alive_s: 30,
        session_expiry_s: 100,
        message_max: 4096,
        rows_per_s: 1_000_000,
        topics: vec![Topic {
            filter: "plant/#".into(),
            pattern: pattern("plant/#").unwrap(),
            payload,
            time: None,
            time_format: TimeFormat::Ms,
        }],
        mapping: Mapping::resolve(&file.map, &ground).unwrap(),
    }
}

fn keep(shared: &Shared, topic: &str, payload: &[u8]) {
    let kept = Kept { topic: topic.into(), payload: payload.into(), id: None };
    shared.lock().unwrap().kept.push(kept);
}

fn start(bench: &Bench, net: &SimNet, broker: &Broker) -> tokio::task::JoinHandle<()> {
    tokio::spawn(run(bench.sink("mqtt-t"), broker.clone(), Arc::new(net.clone())))
}

async fn stop(task: tokio::task::JoinHandle<()>) {
    task.abort();
    drop(task.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_becomes_rows_by_the_rules_and_is_acknowledged() {
    let (net, shared, bench) = (SimNet::new(), Shared::default(), Bench::new());
    let server = serve(&net, &shared);
    keep(&shared, "plant/7/press", br#"{"temp":12,"tool":"T1","ok":true}"#);
    keep(&shared, "plant/8/oven", b"230.5");
    let rules = r#"
        [[map]]
        item = "plant/{line}/press/tool"
        skip = true
        [[map]]
        item = "plant/{line}/press/{name*}"
        table = "press"
        field = "{name}"
        tags = { line = "{line}", tool = "{/tool}" }
        unit = "C"
        [[map]]
        item = "plant/{line}/{machine}"
        table = "{machine}"
        tags = { line = "{line}" }
    "#;
    let task = start(&bench, &net, &broker(rules, Kind::Auto));
    bench.until("both", |b| b.table("oven").len() == 1).await;
    assert_eq!(bench.table("press"), ["press,line=7,tool=T1 ok=true,temp=12"]);
    assert_eq!(bench.table("oven"), ["oven,line=8 value=230.5"]);
    assert_eq!(bench.table("edge_units").len(), 2);
    assert_eq!(bench.table("edge_sessions"), [r#"edge_sessions,source=mqtt-t event="started""#]);
    bench.until("the acks", |_| shared.lock().unwrap().kept.is_empty()).await;
    assert_eq!(shared.lock().unwrap().filters, ["plant/#"]);
    assert_eq!(bench.gaps(), []);
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_hostile_messages_are_counted_and_acknowledged_and_the_rest_goes_on() {
    let (net, shared, bench) = (SimNet::new(), Shared::default(), Bench::new());
    let server = serve(&net, &shared);
    let deep = [b"[".repeat(2000), b"]".repeat(2000)].concat();
    let long = vec![b'x'; 100_000];
    for payload in [&b"{"[..], &[0xff, 0xfe], &deep, &long, b"1.5", br#"{"a":"text"}"#] {
        keep(&shared, "plant/a", payload);
    }
    let rules = "[[map]]\ntype = \"float\"\n";
    let task = start(&bench, &net, &broker(rules, Kind::Auto));
    bench.until("the acks", |_| shared.lock().unwrap().acked == 6).await;
    assert_eq!(bench.table("plant"), ["plant value=1.5"]);
    let gaps = bench.gaps();
    assert_eq!(gaps.iter().map(|g| g.rows).sum::<u64>(), 5, "{gaps:?}");
    assert!(gaps.iter().all(|g| g.cause == "rejected"), "{gaps:?}");
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_a_session_that_the_broker_lost_is_a_gap_and_a_first_one_is_not() {
    let (net, shared, bench) = (SimNet::new(), Shared::default(), Bench::new());
    let server = serve(&net, &shared);
    keep(&shared, "plant/a", b"1");
    let task = start(&bench, &net, &broker("", Kind::Auto));
    bench.until("a row", |b| b.table("plant").len() == 1).await;
    stop(task).await;
    shared.lock().unwrap().session = false;
    let task = start(&bench, &net, &broker("", Kind::Auto));
    bench.until("a gap", |b| !b.gaps().is_empty()).await;
    let gaps = bench.gaps();
    assert_eq!((gaps.len(), gaps[0].cause.as_str(), gaps[0].rows), (1, "session_lost", 0));
    assert_eq!(bench.table("edge_sessions").len(), 2);
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_e9_every_message_is_one_row_through_power_cuts_lost_acks_and_broken_connections() {
    for seed in 0..12 {
        let dice = SimEntropy::seeded(seed);
        let (net, shared) = (SimNet::new(), Shared::default());
        let mut bench = Bench::new();
        let server = serve(&net, &shared);
        let mut generated = 0u64;
        for _ in 0..6 {
            for _ in 0..random_u64(&dice) % 60 {
                generated += 1;
                // Every third payload is no number; equal payloads come often.
                let payload = match generated % 3 {
                    0 => "broken {".to_owned(),
                    n => format!("{n}"),
                };
                keep(&shared, &format!("plant/{}", generated % 5), payload.as_bytes());
            }
            {
                let mut script = shared.lock().unwrap();
                script.lose_acks = (random_u64(&dice) % 12) as usize;
                let close = (random_u64(&dice) % 50) as usize;
                script.close_after = (close > 5).then_some(close);
            }
            let task = start(&bench, &net, &broker("[[map]]\ntype = \"float\"\n", Kind::Auto));
            let wait = Duration::from_millis(random_u64(&dice) % 60);
            SystemClock::new().sleep(wait).await;
            stop(task).await;
            bench = bench.power_cycle(&dice);
        }
        {
            let mut script = shared.lock().unwrap();
            (script.lose_acks, script.close_after) = (0, None);
        }
        let task = start(&bench, &net, &broker("[[map]]\ntype = \"float\"\n", Kind::Auto));
        bench.until("the end", |_| shared.lock().unwrap().kept.is_empty()).await;
        stop(task).await;
        let rows = bench.rows();
        let stored = rows.iter().filter(|r| r.starts_with("plant ")).count() as u64;
        let gaps: u64 = bench.gaps().iter().map(|g| g.rows).sum();
        assert_eq!((stored, gaps), (generated - generated / 3, generated / 3), "seed {seed}");
        let times: BTreeSet<&str> = rows
            .iter()
            .filter(|r| r.starts_with("plant "))
            .map(|r| r.rsplit(' ').next().unwrap())
            .collect();
        assert_eq!(times.len() as u64, stored, "no two rows of one series share a time");
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e7_a_full_queue_holds_the_broker_back_and_loses_nothing() {
    let (net, shared) = (SimNet::new(), Shared::default());
    let bench = Bench::on(SimDisk::new(), 0);
    let server = serve(&net, &shared);
    for n in 0..50 {
        keep(&shared, "plant/a", format!("{n}").as_bytes());
    }
    let task = start(&bench, &net, &broker("", Kind::Auto));
    bench.until("a connection", |_| shared.lock().unwrap().connects == 1).await;
    SystemClock::new().sleep(Duration::from_millis(300)).await;
    assert_eq!(shared.lock().unwrap().acked, 0);
    assert_eq!(bench.rows().len(), 0);
    stop(task).await;
    let bench = bench.power_cycle(&SimEntropy::seeded(1));
    let task = start(&bench, &net, &broker("", Kind::Auto));
    bench.until("all", |_| shared.lock().unwrap().acked == 50).await;
    assert_eq!(bench.table("plant").len(), 50);
    stop(task).await;
    server.abort();
}
