//! `[[sparkplug]]`: a broker whose nodes speak Sparkplug B.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;

use super::{Wrong, mqtt};
use crate::{
    mapping::{Ground, Mapping, RawRule},
    source::{
        peer::Peer,
        sparkplug::{Host, nodes},
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHost {
    name: String,
    url: String,
    ca: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    #[serde(default = "mqtt::version")]
    version: String,
    host_id: String,
    user: Option<String>,
    password_file: Option<PathBuf>,
    #[serde(default = "mqtt::keep_alive")]
    keep_alive_s: u16,
    #[serde(default = "mqtt::message_kib")]
    message_kib: u64,
    #[serde(default = "mqtt::rows_per_s")]
    rows_per_s: u64,
    #[serde(default = "all")]
    groups: Vec<String>,
    table: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    map: Vec<RawRule>,
}

fn all() -> Vec<String> {
    vec!["+".to_owned()]
}

/// A name that can stand between the slashes of a topic.
fn level(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && !text.contains(['/', '+', '#', '\0'])
}

/// One host, or nothing and what is wrong with it.
pub(super) fn host(raw: RawHost, wrong: &mut Vec<String>) -> Option<Host> {
    let mut wrong = Wrong::of("sparkplug", &raw.name, wrong);
    wrong.table(&raw.table);
    wrong.range("keep_alive_s", raw.keep_alive_s.into(), 5, 3_600);
    wrong.range("message_kib", raw.message_kib, 1, 16_384);
    wrong.range("rows_per_s", raw.rows_per_s, 1, 1_000_000);
    wrong.range("groups", raw.groups.len() as u64, 1, 256);
    if !level(&raw.host_id) {
        wrong.say("host_id: use 1 to 128 bytes without /, + and #");
    }
    for group in raw.groups.iter().filter(|g| *g != "+" && !level(g)) {
        wrong.say(format_args!("groups: `{group}` is no group; + is all of them"));
    }
    if raw.password_file.is_some() && raw.user.is_none() {
        wrong.say("password_file: needs user");
    }
    let link =
        mqtt::RawLink { url: raw.url, ca: raw.ca, certificate: raw.certificate, key: raw.key };
    let (url, files) = mqtt::files(link, &mut wrong);
    let peer = wrong.take(Peer::parse(&url, ("mqtt", 1883), ("mqtts", 8883), files));
    let version = mqtt::protocol(&raw.version, &mut wrong);
    let mut tags: BTreeMap<String, String> = ["group", "node", "device"]
        .map(|name| (name.to_owned(), format!("{{{name}}}")))
        .into_iter()
        .collect();
    tags.extend(raw.tags);
    let ground = Ground {
        table: &raw.table,
        field: "{field}",
        tags: &tags,
        attributes: &nodes::ATTRIBUTES,
        pointers: false,
        floats: false,
    };
    let mapping = wrong.take_all(Mapping::resolve(&raw.map, &ground));
    if !wrong.none() {
        return None;
    }
    Some(Host {
        name: raw.name,
        peer: peer?,
        version: version?,
        host_id: raw.host_id,
        user: raw.user,
        password_file: raw.password_file,
        keep_alive_s: raw.keep_alive_s,
        message_max: usize::try_from(raw.message_kib << 10).ok()?,
        rows_per_s: raw.rows_per_s,
        groups: raw.groups,
        mapping: mapping?,
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_problem_of_a_host_is_said() {
        let text =
            "[[sparkplug]]\nname = 's'\nurl = 'b'\nhost_id = 'a/b'\ngroups = ['x/y']\ntable = ''\n";
        let said = crate::settings::sources(text).unwrap_err().join("\n");
        for expected in ["`b` is no", "host_id:", "groups:", "table:"] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
    }
}
