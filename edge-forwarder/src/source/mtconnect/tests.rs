//! Against an agent of our own on a simulated network that does what real ones do, and worse.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt::Write as _,
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
use crate::{mapping::Ground, source::testing::Bench};

const PORT: u16 = 5000;

/// The agent: a ring of observations, and what goes wrong with it.
struct Mock {
    instance: u64,
    capacity: usize,
    next: u64,
    ring: VecDeque<(u64, String)>,
    /// Numbers whose element is no XML.
    poison: BTreeSet<u64>,
    /// The connection of a stream is cut after so many bytes, inside a part.
    torn_after: Option<usize>,
    /// Streams say nothing any more.
    silent: bool,
    /// Answers this instead of a document.
    instead: Option<Vec<u8>>,
    namespace: &'static str,
    streams: u64,
    cut_readers: u64,
}

type Shared = Arc<Mutex<Mock>>;

fn mock(capacity: usize) -> Shared {
    Arc::new(Mutex::new(Mock {
        instance: 100,
        capacity,
        next: 1,
        ring: VecDeque::new(),
        poison: BTreeSet::new(),
        torn_after: None,
        silent: false,
        instead: None,
        namespace: "urn:mtconnect.org:MTConnectStreams:2.0",
        streams: 0,
        cut_readers: 0,
    }))
}

impl Mock {
    /// One more observation: samples, events and conditions in turn.
    fn add(&mut self) {
        let seq = self.next;
        let value = self.instance * 1_000_000 + seq;
        let at =
            format!("timestamp=\"2026-11-21T19:00:00.{:06}Z\" sequence=\"{seq}\"", seq % 1_000_000);
        let element = match seq % 3 {
            0 => format!(
                "<Samples><Position dataItemId=\"x\" name=\"Xact\" subType=\"ACTUAL\" {at}>{value}</Position></Samples>"
            ),
            1 => format!("<Events><Line dataItemId=\"l\" {at}>{value}</Line></Events>"),
            _ => format!(
                "<Condition><Warning dataItemId=\"c\" type=\"LOAD\" nativeCode=\"{value}\" {at}>hot &amp; loud</Warning></Condition>"
            ),
        };
        let element = if self.poison.contains(&seq) { "<Broken <<".to_owned() } else { element };
        self.ring.push_back((seq, element));
        self.next += 1;
        while self.ring.len() > self.capacity {
            self.ring.pop_front();
        }
    }

    fn first(&self) -> u64 {
        self.ring.front().map_or(self.next, |(seq, _)| *seq)
    }

    fn restart(&mut self) {
        self.instance += 1;
        self.next = 1;
        self.ring.clear();
    }

    fn document(&self, elements: &[&(u64, String)], next: u64) -> String {
        let mut out = format!(
            "<?xml version=\"1.0\"?><MTConnectStreams xmlns=\"{}\"><Header creationTime=\"2020-01-01T00:00:00Z\" instanceId=\"{}\" version=\"2.0\" bufferSize=\"{}\" firstSequence=\"{}\" lastSequence=\"{}\" nextSequence=\"{next}\"/><Streams><DeviceStream name=\"VMC\" uuid=\"u\"><ComponentStream component=\"Linear\" name=\"X\" componentId=\"x\">",
            self.namespace,
            self.instance,
            self.capacity,
            self.first(),
            self.next - 1
        );
        for (_, element) in elements {
            out.push_str(element);
        }
        out.push_str("</ComponentStream></DeviceStream></Streams></MTConnectStreams>");
        out
    }

    /// From a number on: the document and the next number; `None`: out of range.
    fn sample(&self, from: u64, count: usize) -> Option<(String, u64)> {
        if from < self.first() || from > self.next {
            return None;
        }
        let found: Vec<&(u64, String)> =
            self.ring.iter().filter(|(seq, _)| *seq >= from).take(count).collect();
        let next = found.last().map_or(from, |(seq, _)| seq + 1);
        Some((self.document(&found, next), next))
    }

    fn current(&self) -> String {
        // The last of each kind.
        let last: Vec<&(u64, String)> =
            (0..3).filter_map(|kind| self.ring.iter().rfind(|(seq, _)| seq % 3 == kind)).collect();
        self.document(&last, self.next)
    }
}

const PROBE: &str = "<MTConnectDevices><Header instanceId=\"1\"/><Devices><Device name=\"VMC\"><DataItems><DataItem id=\"x\" units=\"MILLIMETER\"/></DataItems></Device></Devices></MTConnectDevices>";
const OUT_OF_RANGE: &str = "<MTConnectError><Header/><Errors><Error errorCode=\"OUT_OF_RANGE\">'from' must be greater</Error></Errors></MTConnectError>";

async fn respond(stream: &mut Box<dyn Stream>, status: &str, body: &[u8]) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    stream.write_all(body).await.ok()?;
    stream.shutdown().await.ok()
}

/// Streams parts in chunks that are cut anywhere.
async fn stream_out(
    stream: &mut Box<dyn Stream>,
    shared: &Shared,
    mut from: u64,
    count: usize,
    heartbeat: Duration,
) -> Option<()> {
    let clock = SystemClock::new();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=B42\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    let (mut sent, mut last) = (0, clock.monotonic());
    loop {
        let part = {
            let mut mock = shared.lock().unwrap();
            if mock.silent {
                None
            } else if from < mock.first() {
                // The reader fell behind.
                mock.cut_readers += 1;
                return None;
            } else {
                let (document, next) = mock.sample(from, count)?;
                let due = next > from || clock.monotonic() - last >= heartbeat;
                from = next;
                due.then_some(document)
            }
        };
        if let Some(document) = part {
            last = clock.monotonic();
            let part = format!(
                "--B42\r\nContent-type: text/xml\r\nContent-length: {}\r\n\r\n{document}\r\n",
                document.len()
            );
            let (a, b) = part.as_bytes().split_at(part.len() / 3);
            for piece in [a, b] {
                let torn =
                    shared.lock().unwrap().torn_after.is_some_and(|n| sent + piece.len() > n);
                if torn {
                    shared.lock().unwrap().torn_after = None;
                    return None;
                }
                sent += piece.len();
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.ok()?;
                stream.write_all(piece).await.ok()?;
                stream.write_all(b"\r\n").await.ok()?;
            }
        }
        clock.sleep(Duration::from_millis(2)).await;
    }
}

async fn serve_one(mut stream: Box<dyn Stream>, shared: Shared) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.ok()?);
    }
    let request = String::from_utf8(request).ok()?;
    let target = request.split(' ').nth(1)?.to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let of = |name: &str| {
        let found = query.split('&').find_map(|p| p.strip_prefix(&format!("{name}=")));
        found.and_then(|v| v.parse::<u64>().ok())
    };
    let instead = shared.lock().unwrap().instead.clone();
    if let Some(body) = instead {
        return respond(&mut stream, "200 OK", &body).await;
    }
    let (from, count) = (of("from").unwrap_or(0), of("count").unwrap_or(100) as usize);
    match (path, of("interval")) {
        ("/probe", _) => respond(&mut stream, "200 OK", PROBE.as_bytes()).await,
        ("/current", _) => {
            let body = shared.lock().unwrap().current();
            respond(&mut stream, "200 OK", body.as_bytes()).await
        }
        ("/sample", Some(_)) if shared.lock().unwrap().sample(from, count).is_some() => {
            shared.lock().unwrap().streams += 1;
            let heartbeat = Duration::from_millis(of("heartbeat").unwrap_or(1000));
            stream_out(&mut stream, &shared, from, count, heartbeat).await
        }
        ("/sample", _) => {
            let found = shared.lock().unwrap().sample(from, count);
            match found {
                Some((body, _)) => respond(&mut stream, "200 OK", body.as_bytes()).await,
                None => respond(&mut stream, "404 Not Found", OUT_OF_RANGE.as_bytes()).await,
            }
        }
        _ => respond(&mut stream, "404 Not Found", b"").await,
    }
}

fn serve(net: &SimNet, shared: &Shared) -> tokio::task::JoinHandle<()> {
    let listener: Box<dyn Listener> = net.listen(PORT);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serve_one(stream, Arc::clone(&shared)));
        }
    })
}

fn agent(stream: bool) -> Agent {
    let tags: BTreeMap<String, String> =
        rows::TAGS.map(|name| (name.to_owned(), format!("{{{name}}}"))).into_iter().collect();
    let ground = Ground {
        table: "machine",
        field: "{field}",
        tags: &tags,
        attributes: &rows::ATTRIBUTES,
        pointers: false,
        floats: false,
    };
    Agent {
        name: "t".into(),
        peer: Peer { host: "agent".into(), port: PORT, tls: None, path: String::new() },
        device: None,
        path: None,
        stream,
        interval: Duration::from_millis(10),
        heartbeat: Duration::from_millis(500),
        count: 50,
        document_max: 64 << 10,
        rows_per_s: 1_000_000,
        mapping: Mapping::resolve(&[], &ground).unwrap(),
    }
}

fn start(bench: &Bench, net: &SimNet, agent: &Agent) -> tokio::task::JoinHandle<()> {
    tokio::spawn(run(bench.sink("mtconnect-t"), agent.clone(), Arc::new(net.clone())))
}

async fn stop(task: tokio::task::JoinHandle<()>) {
    task.abort();
    drop(task.await);
}

fn add(shared: &Shared, count: u64) {
    (0..count).for_each(|_| shared.lock().unwrap().add());
}

/// The numbers (with 1,000,000 times the instance) of all stored rows, sorted.
fn stored(bench: &Bench) -> Vec<u64> {
    let mut all: Vec<u64> = bench
        .table("machine")
        .iter()
        .map(|row| {
            let digits = |at: usize| {
                let rest = &row[at..];
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest[..end].parse::<u64>().unwrap()
            };
            let code = row.find(",code=").map(|at| at + 6);
            let value = row.find(" value=").map(|at| at + 7);
            let text = row.find(" text=\"").map(|at| at + 7);
            digits(code.or(value).or(text).unwrap())
        })
        .collect();
    all.sort_unstable();
    all
}

fn numbers(instance: u64, range: std::ops::Range<u64>) -> Vec<u64> {
    range.map(|n| instance * 1_000_000 + n).collect()
}

fn lost(bench: &Bench) -> u64 {
    bench.gaps().iter().map(|g| g.rows).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_still_has_is_read_streamed_and_polled_and_a_restart_goes_on() {
    for streamed in [true, false] {
        let (net, shared) = (SimNet::new(), mock(10_000));
        let mut bench = Bench::new();
        let server = serve(&net, &shared);
        add(&shared, 200);
        let task = start(&bench, &net, &agent(streamed));
        bench.until("the buffer", |b| stored(b).len() == 200).await;
        add(&shared, 77);
        bench.until("live rows", |b| stored(b).len() == 277).await;
        stop(task).await;
        bench = bench.power_cycle(&SimEntropy::seeded(3));
        add(&shared, 100);
        let task = start(&bench, &net, &agent(streamed));
        bench.until("what came meanwhile", |b| stored(b).len() >= 377).await;
        stop(task).await;
        assert_eq!(stored(&bench), numbers(100, 1..378), "streamed: {streamed}");
        assert_eq!(bench.gaps(), []);
        let rows = bench.table("machine");
        let expected = [
            "machine,component=Linear,device=VMC,item=l,type=Line text=\"100000001\"",
            "machine,code=100000002,component=Linear,device=VMC,item=c,type=LOAD level=\"Warning\",message=\"hot & loud\"",
            "machine,component=Linear,device=VMC,item=Xact,type=Position,unit=MILLIMETER value=100000003",
        ];
        for row in expected {
            assert!(rows.iter().any(|r| r == row), "{row} is not in {:?}", &rows[..5]);
        }
        // The agent's clock says 2020.
        assert_eq!(bench.table("edge_skew").len(), 2);
        assert!(bench.table("edge_skew")[0].contains("seconds=-"));
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_an_agent_that_began_anew_is_a_gap_and_its_new_run_is_read_from_the_beginning() {
    for streamed in [true, false] {
        let (net, shared, bench) = (SimNet::new(), mock(10_000), Bench::new());
        let server = serve(&net, &shared);
        add(&shared, 30);
        let task = start(&bench, &net, &agent(streamed));
        bench.until("the buffer", |b| stored(b).len() == 30).await;
        {
            // Lower numbers than before, at once.
            let mut mock = shared.lock().unwrap();
            mock.restart();
            (0..10).for_each(|_| mock.add());
            mock.torn_after = Some(0);
        }
        bench.until("the new run", |b| stored(b).len() == 40).await;
        assert_eq!(stored(&bench), [numbers(100, 1..31), numbers(101, 1..11)].concat());
        let gaps = bench.gaps();
        assert_eq!((gaps.len(), gaps[0].cause.as_str(), gaps[0].rows), (1, "source_restart", 0));
        assert!(gaps[0].detail.contains("from number 31 on"), "{gaps:?}");
        stop(task).await;
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_out_of_range_is_a_gap_with_the_exact_span() {
    let (net, shared, bench) = (SimNet::new(), mock(40), Bench::new());
    let server = serve(&net, &shared);
    add(&shared, 30);
    let task = start(&bench, &net, &agent(true));
    bench.until("the buffer", |b| stored(b).len() == 30).await;
    stop(task).await;
    add(&shared, 100);
    let task = start(&bench, &net, &agent(true));
    bench.until("what is left", |b| stored(b).len() == 70).await;
    assert_eq!(stored(&bench), [numbers(100, 1..31), numbers(100, 91..131)].concat());
    let gaps = bench.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].cause.as_str(), gaps[0].rows), ("source_overrun", 60));
    assert_eq!((gaps[0].first, gaps[0].last), (31, 90));
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_e8_e9_rows_and_gaps_are_all_that_was_generated_through_cuts_torn_chunks_and_overruns() {
    for seed in 0..10 {
        let dice = SimEntropy::seeded(seed);
        let (net, shared) = (SimNet::new(), mock(150));
        let mut bench = Bench::new();
        let server = serve(&net, &shared);
        // The first number is there before the first start, so that nothing is older.
        add(&shared, 1);
        for round in 0..8 {
            shared.lock().unwrap().torn_after = Some((random_u64(&dice) % 40_000) as usize);
            let streamed = !random_u64(&dice).is_multiple_of(3);
            let task = start(&bench, &net, &agent(streamed));
            if round == 0 {
                bench.until("a first row", |b| !stored(b).is_empty()).await;
            }
            for _ in 0..random_u64(&dice) % 6 {
                add(&shared, random_u64(&dice) % 60);
                SystemClock::new().sleep(Duration::from_millis(random_u64(&dice) % 8)).await;
            }
            stop(task).await;
            bench = bench.power_cycle(&dice);
            add(&shared, random_u64(&dice) % 120);
        }
        shared.lock().unwrap().torn_after = None;
        let task = start(&bench, &net, &agent(true));
        let all = shared.lock().unwrap().next - 1;
        bench.until("the end", |b| stored(b).len() as u64 + lost(b) >= all).await;
        stop(task).await;
        let rows = stored(&bench);
        let unique: BTreeSet<&u64> = rows.iter().collect();
        assert_eq!(unique.len(), rows.len(), "seed {seed}: a number is stored twice");
        assert_eq!(rows.len() as u64 + lost(&bench), all, "seed {seed}: {:#?}", bench.gaps());
        // And each gap names numbers that are not there.
        for gap in bench.gaps() {
            let inside = (gap.first..=gap.last).filter(|n| unique.contains(&(100_000_000 + n)));
            let spanned = gap.last - gap.first + 1;
            assert_eq!(spanned - inside.count() as u64, gap.rows, "seed {seed}: {gap:?}");
        }
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_an_observation_that_does_not_read_is_counted_and_passed() {
    let (net, shared, bench) = (SimNet::new(), mock(1_000), Bench::new());
    shared.lock().unwrap().poison = BTreeSet::from([40, 41, 130]);
    let server = serve(&net, &shared);
    add(&shared, 60);
    let task = start(&bench, &net, &agent(true));
    bench.until("the first", |b| stored(b).len() == 58).await;
    add(&shared, 90);
    bench.until("all others", |b| stored(b).len() == 147).await;
    let gaps = bench.gaps();
    let spans: Vec<(u64, u64)> = gaps.iter().map(|g| (g.first, g.last)).collect();
    assert_eq!((lost(&bench), spans), (3, vec![(40, 40), (41, 41), (130, 130)]), "{gaps:?}");
    assert!(gaps.iter().all(|g| g.cause == "rejected"));
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn e12_hostile_answers_cost_nothing_and_are_over_when_the_agent_is_back() {
    let mut bomb = String::from("<!DOCTYPE l [<!ENTITY a \"aaaaaaaaaa\">");
    for n in 0..30 {
        write!(bomb, "<!ENTITY b{n} \"&a;&a;&a;&a;&a;&a;&a;&a;\">").unwrap();
    }
    bomb.push_str("]><MTConnectStreams><Header/>&b29;</MTConnectStreams>");
    let answers: [Vec<u8>; 5] = [
        b"<html><body>Please log in</body></html>".to_vec(),
        bomb.into_bytes(),
        vec![b'<'; 1 << 20],
        "<a>".repeat(20_000).into_bytes(),
        vec![0xff; 5_000],
    ];
    for answer in answers {
        let (net, shared, bench) = (SimNet::new(), mock(1_000), Bench::new());
        let server = serve(&net, &shared);
        shared.lock().unwrap().instead = Some(answer);
        let task = start(&bench, &net, &agent(true));
        SystemClock::new().sleep(Duration::from_millis(50)).await;
        assert!(!task.is_finished());
        assert!(bench.rows().is_empty() && bench.gaps().is_empty());
        shared.lock().unwrap().instead = None;
        add(&shared, 5);
        bench.until("rows", |b| stored(b).len() == 5).await;
        stop(task).await;
        server.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_falls_silent_is_opened_again_within_three_heartbeats() {
    let (net, shared, bench) = (SimNet::new(), mock(1_000), Bench::new());
    let server = serve(&net, &shared);
    add(&shared, 5);
    let task = start(&bench, &net, &agent(true));
    bench.until("a stream", |b| shared.lock().unwrap().streams == 1 && stored(b).len() == 5).await;
    shared.lock().unwrap().silent = true;
    add(&shared, 5);
    // The old stream stays silent for ever; what came is asked for on another connection.
    bench.until("the rest", |b| stored(b).len() == 10).await;
    shared.lock().unwrap().silent = false;
    bench.until("another stream", |_| shared.lock().unwrap().streams >= 2).await;
    assert_eq!(bench.gaps(), []);
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn e7_a_slow_reader_is_cut_by_the_agent_and_the_loss_is_exact() {
    let (net, shared) = (SimNet::new(), mock(100));
    let bench = Bench::on(SimDisk::new(), 0);
    let server = serve(&net, &shared);
    add(&shared, 20);
    // No room: the source holds what it has read and reads no more.
    let task = start(&bench, &net, &agent(true));
    SystemClock::new().sleep(Duration::from_millis(100)).await;
    assert!(bench.rows().is_empty());
    stop(task).await;
    let bench = bench.power_cycle(&SimEntropy::seeded(1));
    let task = start(&bench, &net, &agent(true));
    bench.until("a stream", |b| shared.lock().unwrap().streams == 1 && stored(b).len() == 20).await;
    // More than the ring holds, between two looks of the stream.
    {
        let mut mock = shared.lock().unwrap();
        (0..500).for_each(|_| mock.add());
    }
    bench.until("what is left", |b| stored(b).len() == 120).await;
    assert_eq!(shared.lock().unwrap().cut_readers, 1);
    let gaps = bench.gaps();
    assert_eq!((gaps.len(), gaps[0].first, gaps[0].last, gaps[0].rows), (1, 21, 420, 400));
    stop(task).await;
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_of_the_documents_is_read() {
    for namespace in [
        "urn:mtconnect.org:MTConnectStreams:1.3",
        "urn:mtconnect.org:MTConnectStreams:1.8",
        "urn:mtconnect.org:MTConnectStreams:2.5",
    ] {
        let (net, shared, bench) = (SimNet::new(), mock(100), Bench::new());
        shared.lock().unwrap().namespace = namespace;
        let server = serve(&net, &shared);
        add(&shared, 10);
        let task = start(&bench, &net, &agent(false));
        bench.until("rows", |b| stored(b).len() == 10).await;
        stop(task).await;
        server.abort();
    }
}
