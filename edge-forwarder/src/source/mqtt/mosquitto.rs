//! Against a real broker: mosquitto of Debian, restarted with and without what it has stored.

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use millrace_platform::{
    clock::{Clock, SystemClock},
    entropy::random_u64,
    net::TcpDialer,
    sim::SimEntropy,
};
use tempfile::TempDir;

use super::{
    client::{Client, Dial},
    codec::{Connect, Message, Packet, Version},
    tests::broker,
    *,
};
use crate::source::testing::Bench;

/// A mosquitto process with its folder.
pub(in crate::source) struct Mosquitto {
    folder: TempDir,
    pub(in crate::source) port: u16,
    child: Child,
}

#[expect(clippy::disallowed_methods, reason = "a free port for a peer of a test")]
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn spawn(folder: &TempDir) -> Child {
    let conf = folder.path().join("mosquitto.conf");
    // Debian puts it where only root's path looks.
    let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
    let program = program.into_iter().find(|p| std::path::Path::new(p).exists());
    let mut command = Command::new(program.unwrap_or("mosquitto"));
    command.arg("-c").arg(conf).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("mosquitto is missing: install the Debian package mosquitto")
}

impl Mosquitto {
    #[expect(clippy::disallowed_methods, reason = "the configuration of a peer of a test")]
    pub(in crate::source) async fn start() -> Self {
        let folder = TempDir::with_prefix("millrace-mosquitto-").unwrap();
        let port = free_port();
        let conf = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\nuser root\nmax_queued_messages 0\n",
            folder.path().display()
        );
        std::fs::write(folder.path().join("mosquitto.conf"), conf).unwrap();
        let child = spawn(&folder);
        let broker = Self { folder, port, child };
        broker.wait().await;
        broker
    }

    /// Until it accepts connections.
    async fn wait(&self) {
        let clock = SystemClock::new();
        while TcpDialer.dial("127.0.0.1", self.port).await.is_err() {
            assert!(clock.monotonic() < Duration::from_secs(30), "mosquitto does not listen");
            clock.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Stops it as a service is stopped, and starts it again; `forget`: without what it stored.
    #[expect(clippy::disallowed_methods, reason = "the folder of a peer of a test")]
    pub(in crate::source) async fn restart(&mut self, forget: bool) {
        let stop = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status();
        assert!(stop.unwrap().success());
        self.child.wait().unwrap();
        if forget {
            std::fs::remove_file(self.folder.path().join("mosquitto.db")).unwrap();
        }
        self.child = spawn(&self.folder);
        self.wait().await;
    }

    pub(in crate::source) fn peer(&self) -> Peer {
        Peer { host: "127.0.0.1".into(), port: self.port, tls: None, path: String::new() }
    }

    /// A plain client with a clean session.
    pub(in crate::source) async fn client(&self, id: &str) -> Client {
        let clock = Arc::new(SystemClock::new());
        let dialer = Arc::new(TcpDialer);
        let dial = Dial { peer: self.peer(), dialer, clock, message_max: 1 << 20 };
        let connect = Connect {
            version: Version::V4,
            client_id: id.to_owned(),
            clean: true,
            keep_alive_s: 60,
            session_expiry_s: 0,
            receive_max: 100,
            packet_max: 1 << 20,
            user: None,
            password: None,
            will: None,
        };
        Client::connect(&dial, &connect).await.unwrap().0
    }

    /// Publishes at QoS 1 and waits until the broker has each.
    async fn publish(&self, messages: impl Iterator<Item = (String, String)>) {
        let mut client = self.client("publisher").await;
        let mut waiting = 0;
        for (topic, payload) in messages {
            let payload = payload.into_bytes();
            let message = Message { topic, payload, at_least_once: true, retain: false };
            client.publish(&message).await.unwrap();
            waiting += 1;
            while waiting > 10 {
                assert!(matches!(client.next().await.unwrap(), Packet::PubAck(_)));
                waiting -= 1;
            }
        }
        for _ in 0..waiting {
            assert!(matches!(client.next().await.unwrap(), Packet::PubAck(_)));
        }
        client.disconnect().await;
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn numbers(from: u64, count: u64) -> impl Iterator<Item = (String, String)> {
    (from..from + count).map(|n| (format!("plant/{}", n % 3), format!("{n}")))
}

fn source(mosquitto: &Mosquitto, version: Version) -> Broker {
    Broker { peer: mosquitto.peer(), version, ..broker("", Kind::Auto) }
}

fn start(bench: &Bench, broker: Broker) -> tokio::task::JoinHandle<()> {
    tokio::spawn(run(bench.sink("mqtt-t"), broker, Arc::new(TcpDialer)))
}

async fn stop(task: tokio::task::JoinHandle<()>) {
    task.abort();
    drop(task.await);
}

/// The numbers that were stored, in order.
fn stored(bench: &Bench) -> Vec<u64> {
    let rows = bench.table("plant");
    let mut all: Vec<u64> =
        rows.iter().map(|r| r.strip_prefix("plant value=").unwrap().parse().unwrap()).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn e9_mosquitto_keeps_what_we_did_not_acknowledge_also_through_its_own_restart() {
    for version in [Version::V4, Version::V5] {
        let mut mosquitto = Mosquitto::start().await;
        let bench = Bench::new();
        let task = start(&bench, source(&mosquitto, version));
        bench.until("the session", |b| b.table("edge_sessions").len() == 1).await;
        mosquitto.publish(numbers(0, 10)).await;
        bench.until("ten rows", |b| stored(b).len() == 10).await;
        stop(task).await;
        mosquitto.publish(numbers(10, 200)).await;
        mosquitto.restart(false).await;
        mosquitto.publish(numbers(210, 20)).await;
        let task = start(&bench, source(&mosquitto, version));
        bench.until("all rows", |b| stored(b).len() >= 230).await;
        stop(task).await;
        assert_eq!(stored(&bench), (0..230).collect::<Vec<_>>(), "{version:?}");
        assert_eq!(bench.gaps(), [], "{version:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn e8_mosquitto_that_forgot_the_session_is_a_gap() {
    let mut mosquitto = Mosquitto::start().await;
    let bench = Bench::new();
    let task = start(&bench, source(&mosquitto, Version::V5));
    bench.until("the session", |b| b.table("edge_sessions").len() == 1).await;
    mosquitto.publish(numbers(0, 5)).await;
    bench.until("five rows", |b| stored(b).len() == 5).await;
    mosquitto.restart(true).await;
    bench.until("the gap", |b| b.gaps().len() == 1).await;
    assert_eq!(bench.gaps()[0].cause, "session_lost");
    mosquitto.publish(numbers(5, 5)).await;
    bench.until("the rest", |b| stored(b).len() == 10).await;
    stop(task).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn d2_e9_with_mosquitto_every_message_is_one_row_through_power_cuts() {
    let mosquitto = Mosquitto::start().await;
    let dice = SimEntropy::seeded(11);
    let mut bench = Bench::new();
    let mut next = 0;
    for round in 0..12 {
        let version = if round % 2 == 0 { Version::V5 } else { Version::V4 };
        let task = start(&bench, source(&mosquitto, version));
        if round == 0 {
            bench.until("the session", |b| b.table("edge_sessions").len() == 1).await;
        }
        let more = random_u64(&dice) % 80;
        mosquitto.publish(numbers(next, more)).await;
        next += more;
        let wait = Duration::from_millis(random_u64(&dice) % 40);
        SystemClock::new().sleep(wait).await;
        stop(task).await;
        bench = bench.power_cycle(&dice);
    }
    let task = start(&bench, source(&mosquitto, Version::V4));
    bench.until("the end", |b| stored(b).len() as u64 >= next).await;
    stop(task).await;
    assert_eq!(stored(&bench), (0..next).collect::<Vec<_>>());
    assert_eq!(bench.gaps(), []);
}
