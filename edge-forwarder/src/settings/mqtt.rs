//! `[[mqtt]]`: a broker and its topics.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::Wrong;
use crate::{
    mapping::{Ground, Mapping, RawRule, time::TimeFormat},
    source::{
        mqtt::{self, Broker, Topic, codec::Version, payload::Kind},
        peer::{Peer, TlsFiles},
    },
};

/// What MQTT sources have in common.
#[derive(Debug, Deserialize)]
pub(super) struct RawLink {
    pub(super) url: String,
    pub(super) ca: Option<PathBuf>,
    pub(super) certificate: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

/// TLS files of a source, if any are named.
pub(super) fn files(link: RawLink, wrong: &mut Wrong<'_>) -> (String, Option<TlsFiles>) {
    let own = match (link.certificate, link.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => {
            wrong.say("certificate and key belong together");
            None
        }
    };
    let files = link.ca.map(|ca| TlsFiles { ca, own });
    (link.url, files)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTopic {
    filter: String,
    #[serde(default)]
    payload: Kind,
    time: Option<String>,
    #[serde(default)]
    time_format: TimeFormat,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawBroker {
    name: String,
    url: String,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default = "version")]
    version: String,
    client_id: Option<String>,
    user: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default = "keep_alive")]
    keep_alive_s: u16,
    #[serde(default = "session_expiry")]
    session_expiry_s: u32,
    #[serde(default = "message_kib")]
    message_kib: u64,
    #[serde(default = "rows_per_s")]
    rows_per_s: u64,
    table: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    topic: Vec<RawTopic>,
    #[serde(default)]
    map: Vec<RawRule>,
}

pub(super) fn version() -> String {
    "5".to_owned()
}

pub(super) fn keep_alive() -> u16 {
    30
}

/// 30 days: longer than most outages.
fn session_expiry() -> u32 {
    30 * 24 * 3600
}

pub(super) fn message_kib() -> u64 {
    256
}

pub(super) fn rows_per_s() -> u64 {
    20_000
}

/// The protocol's version by its name.
pub(super) fn protocol(text: &str, wrong: &mut Wrong<'_>) -> Option<Version> {
    match text {
        "5" => Some(Version::V5),
        "3.1.1" => Some(Version::V4),
        other => {
            wrong.say(format_args!("version: use 5 or 3.1.1, not `{other}`"));
            None
        }
    }
}

/// Topics of one broker at most.
const TOPICS_MAX: usize = 256;

fn topic(raw: RawTopic, wrong: &mut Wrong<'_>) -> Option<Topic> {
    let pattern = wrong.take(mqtt::pattern(&raw.filter).map_err(|e| format!("topic: {e}")));
    if let Some(pointer) = &raw.time
        && (!pointer.starts_with('/') || raw.payload == Kind::Text)
    {
        wrong.say(format_args!("time: `{pointer}` is a pointer into JSON, like /ts"));
    }
    let (payload, time, time_format) = (raw.payload, raw.time, raw.time_format);
    Some(Topic { filter: raw.filter, pattern: pattern?, payload, time, time_format })
}

/// One broker, or nothing and what is wrong with it.
pub(super) fn broker(raw: RawBroker, wrong: &mut Vec<String>) -> Option<Broker> {
    let mut wrong = Wrong::of("mqtt", &raw.name, wrong);
    wrong.table(&raw.table);
    wrong.range("keep_alive_s", raw.keep_alive_s.into(), 5, 3_600);
    wrong.range("session_expiry_s", raw.session_expiry_s.into(), 60, u32::MAX.into());
    wrong.range("message_kib", raw.message_kib, 1, 16_384);
    wrong.range("rows_per_s", raw.rows_per_s, 1, 1_000_000);
    wrong.range("topics", raw.topic.len() as u64, 1, TOPICS_MAX as u64);
    if raw.client_id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 128) {
        wrong.say("client_id: use 1 to 128 bytes");
    }
    if raw.password_file.is_some() && raw.user.is_none() {
        wrong.say("password_file: needs user");
    }
    let link = RawLink { url: raw.url, ca: raw.ca, certificate: raw.certificate, key: raw.key };
    let (url, files) = files(link, &mut wrong);
    let peer = wrong.take(Peer::parse(&url, ("mqtt", 1883), ("mqtts", 8883), files));
    let version = protocol(&raw.version, &mut wrong);
    let topics: Vec<Topic> =
        raw.topic.into_iter().filter_map(|raw| topic(raw, &mut wrong)).collect();
    let mut tags = raw.tags;
    if raw.map.is_empty() {
        // Without rules topics must not overwrite each other in one series.
        tags.entry("topic".to_owned()).or_insert_with(|| "{topic}".to_owned());
    }
    let ground = Ground {
        table: &raw.table,
        field: "{field}",
        tags: &tags,
        attributes: &mqtt::ATTRIBUTES,
        pointers: true,
        floats: true,
    };
    let mapping = wrong.take_all(Mapping::resolve(&raw.map, &ground));
    if !wrong.none() {
        return None;
    }
    Some(Broker {
        name: raw.name,
        peer: peer?,
        version: version?,
        client_id: raw.client_id,
        user: raw.user,
        password_file: raw.password_file,
        keep_alive_s: raw.keep_alive_s,
        session_expiry_s: raw.session_expiry_s,
        message_max: usize::try_from(raw.message_kib << 10).ok()?,
        rows_per_s: raw.rows_per_s,
        topics,
        mapping: mapping?,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_problem_of_a_broker_is_said() {
        let text = r#"
            [[mqtt]]
            name = "x y"
            url = "mqtts://b"
            version = "4"
            table = "_t"
            keep_alive_s = 1
            password_file = "p"
            [[mqtt.topic]]
            filter = "a/#/b"
            [[mqtt.topic]]
            filter = "a"
            time = "ts"
            [[mqtt.map]]
            table = "{nobody}"
        "#;
        let said = crate::settings::sources(text).unwrap_err().join("\n");
        for expected in [
            "name:",
            "ca:",
            "version:",
            "table:",
            "keep_alive_s:",
            "user",
            "topic:",
            "time:",
            "`{nobody}`",
        ] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
    }
}
