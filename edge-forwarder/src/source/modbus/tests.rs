//! Against a Modbus server of the same protocol library, over a real socket.

use std::{collections::BTreeMap, future, net::SocketAddr, path::Path, sync::Mutex};

use millrace_platform::{
    entropy::{Entropy, OsEntropy},
    net::TcpDialer,
    sim::SimDisk,
};
use millrace_protocol::ids::DeviceId;
use tokio::sync::mpsc;
use tokio_modbus::{ExceptionCode, Request, Response, server::Service};

use super::*;
use crate::{
    crash::Keys,
    intake::{Offer, Outcome},
    mapping::{Ground as MapGround, RawRule},
    queue::{Ground, Group, Queue, Sizes},
};

/// Holding register n holds n; a read from 900 on is refused.
#[derive(Clone, Default)]
struct Plc {
    asked: Arc<Mutex<Vec<String>>>,
}

impl Service for Plc {
    type Request = Request<'static>;
    type Response = Response;
    type Exception = ExceptionCode;
    type Future = future::Ready<Result<Response, ExceptionCode>>;

    fn call(&self, request: Self::Request) -> Self::Future {
        self.asked.lock().unwrap().push(format!("{request:?}"));
        future::ready(match request {
            Request::ReadHoldingRegisters(at, _) if at >= 900 => {
                Err(ExceptionCode::IllegalDataAddress)
            }
            Request::ReadHoldingRegisters(at, count) => {
                Ok(Response::ReadHoldingRegisters((at..at + count).collect()))
            }
            Request::ReadCoils(_, count) => {
                Ok(Response::ReadCoils((0..count).map(|n| n % 2 == 1).collect()))
            }
            _ => Err(ExceptionCode::IllegalFunction),
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "the server's side of a test")]
async fn serve(plc: Plc) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tokio_modbus::server::tcp::Server::new(listener);
    let task = tokio::spawn(async move {
        let connected = |stream, from| {
            let plc = plc.clone();
            async move {
                tokio_modbus::server::tcp::accept_tcp_connection(stream, from, move |_| {
                    Ok(Some(plc.clone()))
                })
            }
        };
        server.serve(&connected, |_| {}).await.unwrap();
    });
    (at, task)
}

fn register(field: &str, area: Area, address: u16, kind: map::Kind) -> Register {
    let (words, unit) = (map::Words::Big, Some("bar".to_owned()));
    Register { field: field.into(), area, address, kind, words, scale: 1.0, offset: 0.0, unit }
}

fn mapping(rules: &str) -> Mapping {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        map: Vec<RawRule>,
    }
    let tags = BTreeMap::from([("line".to_owned(), "1".to_owned())]);
    let ground = MapGround {
        table: "press",
        field: "{field}",
        tags: &tags,
        attributes: &ATTRIBUTES,
        pointers: false,
        floats: false,
    };
    Mapping::resolve(&toml::from_str::<File>(rules).unwrap().map, &ground).unwrap()
}

fn device(at: SocketAddr, registers: Vec<Register>) -> Device {
    Device {
        name: "press".into(),
        host: at.ip().to_string(),
        port: at.port(),
        unit: 1,
        interval: Duration::from_millis(50),
        timeout: Duration::from_secs(2),
        registers,
        mapping: mapping(""),
    }
}

fn sink() -> (Sink, mpsc::Receiver<Offer>) {
    let clock: Arc<dyn Clock> = Arc::new(millrace_platform::clock::SystemClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);
    let ground = Ground {
        disk: Arc::new(SimDisk::new()),
        entropy: Arc::clone(&entropy),
        clock: Arc::clone(&clock),
        keys: Arc::new(Keys([7; 32])),
    };
    let queue = Queue::open(&ground, DeviceId([9; 16]), Path::new("/q"), Sizes::default()).unwrap();
    let (offers, groups) = mpsc::channel(4);
    let (name, database) = ("modbus-press".to_owned(), "default".to_owned());
    let device = DeviceId([9; 16]);
    (Sink { name, device, offers, queue: Arc::new(queue), clock, entropy, database }, groups)
}

/// The next group, which is taken for stored.
async fn next(groups: &mut mpsc::Receiver<Offer>) -> Group {
    let offer = groups.recv().await.unwrap();
    offer.done.send(Outcome::Stored).unwrap();
    offer.group
}

fn poller(device: Device) -> Poller {
    let clock = Arc::new(millrace_platform::clock::SystemClock::new());
    Poller::new(device, Arc::new(TcpDialer), clock)
}

#[tokio::test]
async fn registers_become_a_row_and_neighbours_one_request() {
    let plc = Plc::default();
    let (at, server) = serve(plc.clone()).await;
    let registers = vec![
        register("low", Area::Holding, 3, map::Kind::U16),
        register("wide", Area::Holding, 4, map::Kind::U32),
        register("open", Area::Coil, 0, map::Kind::Bool),
    ];
    let mut poller = poller(device(at, registers));
    let (rows, wrong) = poller.poll().await;
    assert_eq!(wrong, None);
    assert_eq!(rows.len(), 4, "three units, one row: {rows:?}");
    assert!(rows[0].starts_with("edge_units,field=low,table=press "), "{rows:?}");
    assert!(rows[3].starts_with("press,line=1 low=3u,wide=262149u,open=false "), "{rows:?}");
    assert_eq!(plc.asked.lock().unwrap().len(), 2);
    assert_eq!(poller.poll().await.0.len(), 1, "on the same connection, units known");
    server.abort();
}

#[tokio::test]
async fn e8_an_exception_costs_its_registers_only_and_a_server_that_is_away_the_poll() {
    let (at, server) = serve(Plc::default()).await;
    let registers = vec![
        register("there", Area::Holding, 1, map::Kind::U16),
        register("refused", Area::Holding, 900, map::Kind::U16),
    ];
    let mut poller = poller(device(at, registers));
    let (rows, wrong) = poller.poll().await;
    assert!(rows.last().unwrap().starts_with("press,line=1 there=1u "), "{rows:?}");
    assert!(wrong.unwrap().starts_with("holding 900 to 900: "));
    server.abort();
    drop(server.await);
    poller.open = None;
    let (rows, wrong) = poller.poll().await;
    assert!(rows.is_empty());
    assert!(wrong.is_some());
}

/// The first two dials fail.
#[derive(Debug, Default)]
struct Flaky(std::sync::atomic::AtomicU32);

impl Dialer for Flaky {
    fn dial<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> millrace_platform::net::NetFuture<'a, Box<dyn Stream>> {
        if self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2 {
            return Box::pin(future::ready(Err(std::io::Error::other("unplugged"))));
        }
        TcpDialer.dial(host, port)
    }
}

#[tokio::test]
async fn e8_e12_rows_come_again_by_themselves_and_missed_polls_are_counted() {
    let (at, server) = serve(Plc::default()).await;
    let (sink, mut groups) = sink();
    let queue = Arc::clone(&sink.queue);
    let registers = vec![register("v", Area::Holding, 1, map::Kind::U16)];
    let source = tokio::spawn(run(sink, device(at, registers), Arc::new(Flaky::default())));
    let first = next(&mut groups).await;
    let tables: Vec<(&str, usize)> =
        first.parts.iter().map(|p| (p.batch.table.as_str(), p.batch.rows())).collect();
    assert_eq!(tables, [("edge_units", 1), ("press", 1)]);
    // What was missed before is recorded when the device has answered.
    next(&mut groups).await;
    assert!(queue.has_gaps());
    source.abort();
    server.abort();
}

#[test]
fn e8_missed_polls_are_one_gap_a_minute_and_told_when_the_device_is_back() {
    let (mut sink, _groups) = sink();
    let clock = Arc::new(millrace_platform::sim::SimClock::at(1_000));
    sink.clock = Arc::clone(&clock) as _;
    let mut missed = Missed::default();
    missed.tell(&sink, true);
    assert!(!sink.queue.has_gaps(), "nothing was missed");
    for _ in 0..3 {
        missed.add(1, &sink, "away".to_owned());
        missed.tell(&sink, false);
    }
    assert!(!sink.queue.has_gaps(), "not yet");
    clock.advance(TELL_EVERY);
    missed.tell(&sink, false);
    assert!(sink.queue.has_gaps());
    assert!(!missed.any);
}

#[tokio::test]
async fn rules_send_registers_to_tables_and_fields_of_their_own() {
    let (at, server) = serve(Plc::default()).await;
    let registers = vec![
        register("axis1", Area::Holding, 3, map::Kind::U16),
        register("axis2", Area::Holding, 4, map::Kind::U16),
    ];
    let mut device = device(at, registers);
    device.mapping = mapping(
        "[[map]]\nitem = 'axis{n}'\ntable = 'axes'\nfield = 'load'\ntags = { axis = '{n}', area = '{area}' }\ntype = 'float'\n",
    );
    let mut poller = poller(device);
    let (rows, wrong) = poller.poll().await;
    assert_eq!(wrong, None);
    assert_eq!(rows.len(), 3, "{rows:?}");
    assert!(rows[1].starts_with("axes,area=holding,axis=1,line=1 load=3 "), "{rows:?}");
    assert!(rows[2].starts_with("axes,area=holding,axis=2,line=1 load=4 "), "{rows:?}");
    server.abort();
}
