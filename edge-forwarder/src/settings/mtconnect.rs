//! `[[mtconnect]]`: an agent.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;

use super::{Wrong, mqtt};
use crate::{
    mapping::{Ground, Mapping, RawRule},
    source::{
        mtconnect::{Agent, rows},
        peer::Peer,
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Stream,
    Poll,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgent {
    name: String,
    url: String,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    device: Option<String>,
    path: Option<String>,
    #[serde(default)]
    mode: Mode,
    interval_ms: Option<u64>,
    #[serde(default = "heartbeat")]
    heartbeat_ms: u64,
    #[serde(default = "count")]
    count: u32,
    #[serde(default = "document_kib")]
    document_kib: u64,
    #[serde(default = "mqtt::rows_per_s")]
    rows_per_s: u64,
    table: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    map: Vec<RawRule>,
}

fn heartbeat() -> u64 {
    10_000
}

fn count() -> u32 {
    1_000
}

fn document_kib() -> u64 {
    8 * 1024
}

/// A text as a part of a query.
fn encoded(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// One agent, or nothing and what is wrong with it.
pub(super) fn agent(raw: RawAgent, wrong: &mut Vec<String>) -> Option<Agent> {
    let mut wrong = Wrong::of("mtconnect", &raw.name, wrong);
    let stream = raw.mode == Mode::Stream;
    let interval_ms = raw.interval_ms.unwrap_or(if stream { 100 } else { 1_000 });
    wrong.table(&raw.table);
    wrong.range("interval_ms", interval_ms, 10, 3_600_000);
    wrong.range("heartbeat_ms", raw.heartbeat_ms, 100, 300_000);
    wrong.range("count", raw.count.into(), 1, 100_000);
    wrong.range("document_kib", raw.document_kib, 64, 65_536);
    wrong.range("rows_per_s", raw.rows_per_s, 1, 1_000_000);
    let link =
        mqtt::RawLink { url: raw.url, ca: raw.ca, certificate: raw.certificate, key: raw.key };
    let (url, files) = mqtt::files(link, &mut wrong);
    let peer = wrong.take(Peer::parse(&url, ("http", 5000), ("https", 443), files));
    let mut tags: BTreeMap<String, String> =
        rows::TAGS.map(|name| (name.to_owned(), format!("{{{name}}}"))).into_iter().collect();
    tags.extend(raw.tags);
    let ground = Ground {
        table: &raw.table,
        field: "{field}",
        tags: &tags,
        attributes: &rows::ATTRIBUTES,
        pointers: false,
        floats: false,
    };
    let mapping = wrong.take_all(Mapping::resolve(&raw.map, &ground));
    if !wrong.none() {
        return None;
    }
    Some(Agent {
        name: raw.name,
        peer: peer?,
        device: raw.device.as_deref().map(encoded),
        path: raw.path.as_deref().map(encoded),
        stream,
        interval: Duration::from_millis(interval_ms),
        heartbeat: Duration::from_millis(raw.heartbeat_ms),
        count: raw.count,
        document_max: usize::try_from(raw.document_kib << 10).ok()?,
        rows_per_s: raw.rows_per_s,
        mapping: mapping?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_an_agent_is_said() {
        let text = "[[mtconnect]]\nname = 'm'\nurl = 'https://a'\ncount = 0\nheartbeat_ms = 1\ntable = ''\n";
        let said = crate::settings::sources(text).unwrap_err().join("\n");
        for expected in ["ca:", "count:", "heartbeat_ms:", "table:"] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
    }

    #[test]
    fn a_path_is_sent_as_one_part_of_the_query() {
        assert_eq!(encoded("//Axes[@id=\"x\"]"), "%2F%2FAxes%5B%40id%3D%22x%22%5D");
    }
}
