//! Through a real broker: mosquitto; with a node of a test, and with npm's `sparkplug-client`.

use std::process::{Command, Stdio};

use millrace_platform::net::TcpDialer;
use prost::Message as _;

use super::{
    nodes::tests::mapping,
    proto::{Held, Metric, Payload},
    *,
};
use crate::source::{mqtt::mosquitto::Mosquitto, testing::Bench};

fn host(mosquitto: &Mosquitto) -> Host {
    Host {
        name: "t".into(),
        peer: mosquitto.peer(),
        version: Version::V5,
        host_id: "millrace".into(),
        user: None,
        password_file: None,
        keep_alive_s: 30,
        message_max: 256 << 10,
        rows_per_s: 100_000,
        groups: vec!["+".into()],
        mapping: mapping(),
    }
}

fn start(bench: &Bench, mosquitto: &Mosquitto) -> tokio::task::JoinHandle<()> {
    tokio::spawn(run(bench.sink("sparkplug-t"), host(mosquitto), Arc::new(TcpDialer)))
}

fn data(seq: u64, names: bool, value: i32) -> Vec<u8> {
    let metric = Metric {
        name: names.then(|| "speed".to_owned()),
        alias: Some(1),
        timestamp: Some(1_700_000_000_000 + u64::try_from(value).unwrap()),
        datatype: names.then_some(3),
        value: Some(Held::Int(value.cast_unsigned())),
        ..Metric::default()
    };
    let metrics = vec![metric.encode_to_vec().into()];
    Payload { timestamp: Some(7), metrics, seq: Some(seq), uuid: None }.encode_to_vec()
}

async fn say(client: &mut Client, kind: &str, payload: Vec<u8>) {
    let topic = format!("spBv1.0/g/{kind}/n");
    let message = Message { topic, payload, at_least_once: false, retain: false };
    client.publish(&message).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_births_is_asked_and_its_data_counted_and_states_are_told() {
    let mosquitto = Mosquitto::start().await;
    let bench = Bench::new();
    let mut node = mosquitto.client("node").await;
    let filters = ["spBv1.0/g/NCMD/n".to_owned(), "spBv1.0/STATE/millrace".to_owned()];
    node.subscribe(&filters, false).await.unwrap();
    let task = start(&bench, &mosquitto);
    let Packet::Publish(state) = node.next().await.unwrap() else { panic!("STATE") };
    assert!(String::from_utf8(state.payload).unwrap().starts_with("{\"online\":true,"));
    say(&mut node, "NDATA", data(5, false, 1)).await;
    let Packet::Publish(command) = node.next().await.unwrap() else { panic!("a command") };
    assert_eq!(command.topic, "spBv1.0/g/NCMD/n");
    say(&mut node, "NBIRTH", data(0, true, 2)).await;
    for n in 1..=300 {
        say(&mut node, "NDATA", data(n % 256, false, 2 + i32::try_from(n).unwrap())).await;
    }
    bench.until("all data", |b| b.table("plant").len() == 301).await;
    let gaps = bench.gaps();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].cause.as_str(), gaps[0].rows), ("rejected", 1));
    // Away: the will says so, and what was sent meanwhile is a gap.
    task.abort();
    drop(task.await);
    let Packet::Publish(state) = node.next().await.unwrap() else { panic!("STATE") };
    assert!(String::from_utf8(state.payload).unwrap().starts_with("{\"online\":false,"));
    let task = start(&bench, &mosquitto);
    bench.until("the gap", |b| b.gaps().iter().any(|g| g.cause == "session_lost")).await;
    task.abort();
}

/// Where `cargo xtask test` has put npm's `sparkplug-client`: beside this build's profiles.
fn npm() -> std::path::PathBuf {
    let exe = std::env::current_exe().unwrap();
    let found = exe.ancestors().map(|folder| folder.join("npm")).find(|f| f.is_dir());
    found.expect("no npm folder under the target folder: run `cargo xtask test` once, it makes one")
}

const NODE: &str = r#"
const client = require('sparkplug-client').newClient({
  serverUrl: 'tcp://127.0.0.1:' + process.argv[1], username: '', password: '',
  groupId: 'npm', edgeNode: 'node', clientId: 'node', version: 'spBv1.0', publishDeath: true });
const at = (value) => ({ timestamp: 1700000000000 + value, metrics: [
  { name: 'speed', type: 'Double', value: value + 0.5 }, { name: 'on', type: 'Boolean', value: true } ] });
client.on('birth', () => {
  client.publishNodeBirth(at(0));
  client.publishDeviceBirth('press', { timestamp: 1700000000000, metrics: [{ name: 'count', type: 'Int32', value: -1 }] });
  for (let n = 1; n <= 300; n++) client.publishNodeData(at(n));
  client.publishDeviceData('press', { timestamp: 1700000000001, metrics: [{ name: 'count', type: 'Int32', value: -2 }] });
  setTimeout(() => client.stop(), 500);
});
"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_node_of_npm_is_understood() {
    let mosquitto = Mosquitto::start().await;
    let bench = Bench::new();
    let task = start(&bench, &mosquitto);
    let port = mosquitto.port.to_string();
    // Data may come before we have subscribed; the rebirth makes up for it only in part.
    let mut node = mosquitto.client("watch").await;
    node.subscribe(&["spBv1.0/STATE/millrace".to_owned()], false).await.unwrap();
    assert!(matches!(node.next().await.unwrap(), Packet::Publish(_)));
    let mut command = Command::new("node");
    command.arg("-e").arg(NODE).arg("--").arg(port).current_dir(npm());
    let mut child = command.stdin(Stdio::null()).spawn().expect("node runs");
    bench.until("all data", |b| b.table("plant").len() == 303).await;
    bench.until("the death", |b| b.gaps().iter().any(|g| g.cause == "source_down")).await;
    child.wait().unwrap();
    let rows = bench.table("plant");
    assert!(rows.contains(&"plant,device=press,group=npm,node=node count=-2i".to_owned()));
    assert!(rows.contains(&"plant,device=-,group=npm,node=node speed=300.5,on=true".to_owned()));
    let rejected: u64 = bench.gaps().iter().map(|g| g.rows).sum();
    assert_eq!(rejected, 0, "{:?}", bench.gaps());
    task.abort();
}
