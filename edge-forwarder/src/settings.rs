//! The configuration file: sources that need more than a word.
//!
//! Owns: its shape, defaults and ranges. Never: takes a file of which it does not understand every
//! word; stops at the first problem. A changed file never discards the queue: streams are named by
//! source and table.

mod mqtt;
mod mtconnect;
mod sparkplug;

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::{
    mapping::{Ground, Mapping, RawRule},
    source::{
        SourceKind,
        modbus::{self, Device, map},
        peer::host_port,
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    modbus: Vec<RawModbus>,
    #[serde(default)]
    mqtt: Vec<mqtt::RawBroker>,
    #[serde(default)]
    sparkplug: Vec<sparkplug::RawHost>,
    #[serde(default)]
    mtconnect: Vec<mtconnect::RawAgent>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModbus {
    name: String,
    /// `host` or `host:port`.
    address: String,
    #[serde(default = "unit")]
    unit: u8,
    #[serde(default = "second")]
    interval_ms: u64,
    #[serde(default = "second")]
    timeout_ms: u64,
    table: String,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    #[serde(default)]
    register: Vec<map::Register>,
    #[serde(default)]
    map: Vec<RawRule>,
}

fn unit() -> u8 {
    1
}

fn second() -> u64 {
    1_000
}

/// Where Modbus TCP listens by its standard.
const MODBUS_PORT: u16 = 502;

/// What is wrong with one source, each problem with the source's name.
#[derive(Debug)]
struct Wrong<'a> {
    source: String,
    all: &'a mut Vec<String>,
    before: usize,
}

impl<'a> Wrong<'a> {
    fn of(kind: &str, name: &str, all: &'a mut Vec<String>) -> Self {
        let before = all.len();
        let mut wrong = Self { source: format!("{kind} `{name}`"), all, before };
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 40 || !name.chars().all(fine) {
            wrong.say("name: use 1 to 40 letters, digits, - and _");
        }
        wrong
    }

    fn say(&mut self, what: impl std::fmt::Display) {
        self.all.push(format!("{}: {what}", self.source));
    }

    /// A value, or nothing and its problem.
    fn take<T, E: std::fmt::Display>(&mut self, what: Result<T, E>) -> Option<T> {
        what.map_err(|e| self.say(e)).ok()
    }

    fn take_all<T>(&mut self, what: Result<T, Vec<String>>) -> Option<T> {
        what.map_err(|all| all.into_iter().for_each(|e| self.say(e))).ok()
    }

    fn range(&mut self, what: &str, value: u64, least: u64, most: u64) {
        if !(least..=most).contains(&value) {
            self.say(format_args!("{what}: use {least} to {most}, not {value}"));
        }
    }

    fn table(&mut self, table: &str) {
        if table.is_empty() || table.len() > 128 || table.starts_with('_') {
            self.say("table: use 1 to 128 bytes, the first no _");
        }
    }

    fn none(&self) -> bool {
        self.all.len() == self.before
    }
}

fn modbus_device(raw: RawModbus, wrong: &mut Vec<String>) -> Option<Device> {
    let mut wrong = Wrong::of("modbus", &raw.name, wrong);
    wrong.table(&raw.table);
    wrong.range("interval_ms", raw.interval_ms, 50, 3_600_000);
    wrong.range("timeout_ms", raw.timeout_ms, 50, 60_000);
    let place = host_port(&raw.address, MODBUS_PORT);
    if place.is_none() {
        wrong.say(format_args!("address: `{}` is no host or host:port", raw.address));
    }
    map::problems(&raw.register).iter().for_each(|what| wrong.say(what));
    let ground = Ground {
        table: &raw.table,
        field: "{field}",
        tags: &raw.tags,
        attributes: &modbus::ATTRIBUTES,
        pointers: false,
        floats: false,
    };
    let mapping = wrong.take_all(Mapping::resolve(&raw.map, &ground));
    let (host, port) = place.filter(|_| wrong.none())?;
    Some(Device {
        name: raw.name,
        host,
        port,
        unit: raw.unit,
        interval: Duration::from_millis(raw.interval_ms),
        timeout: Duration::from_millis(raw.timeout_ms),
        registers: raw.register,
        mapping: mapping?,
    })
}

/// The sources of a file, or everything that is wrong with it.
pub fn sources(text: &str) -> Result<Vec<SourceKind>, Vec<String>> {
    let raw: RawFile = toml::from_str(text).map_err(|e| vec![e.to_string()])?;
    let mut wrong = Vec::new();
    let mut sources = Vec::new();
    for raw in raw.modbus {
        let device = modbus_device(raw, &mut wrong);
        sources.extend(device.map(|d| SourceKind::Modbus(Box::new(d))));
    }
    for raw in raw.mqtt {
        let broker = mqtt::broker(raw, &mut wrong);
        sources.extend(broker.map(|b| SourceKind::Mqtt(Box::new(b))));
    }
    for raw in raw.sparkplug {
        let host = sparkplug::host(raw, &mut wrong);
        sources.extend(host.map(|h| SourceKind::Sparkplug(Box::new(h))));
    }
    for raw in raw.mtconnect {
        let agent = mtconnect::agent(raw, &mut wrong);
        sources.extend(agent.map(|a| SourceKind::MtConnect(Box::new(a))));
    }
    if wrong.is_empty() { Ok(sources) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/edge.md");

    #[test]
    fn every_example_of_the_page_is_a_valid_file() {
        let mut found = Vec::new();
        for example in PAGE.split("```toml\n").skip(1) {
            let example = &example[..example.find("```").unwrap()];
            found.extend(sources(example).unwrap_or_else(|e| panic!("{example}\n{e:#?}")));
        }
        let names: Vec<String> = found.iter().map(SourceKind::name).collect();
        assert_eq!(names, ["modbus-press", "mqtt-plant", "sparkplug-cells", "mtconnect-mazak"]);
        let SourceKind::Modbus(device) = &found[0] else { panic!("a Modbus device") };
        assert_eq!((device.host.as_str(), device.port, device.unit), ("10.0.0.5", 502, 1));
        assert_eq!(device.registers.len(), 2);
    }

    #[test]
    fn the_package_brings_a_valid_file_and_the_unit_of_the_page() {
        assert_eq!(sources(include_str!("../packaging/edge.toml")), Ok(Vec::new()));
        let unit = include_str!("../packaging/millrace-edge.service");
        assert!(PAGE.contains(unit), "docs/edge.md shows another unit");
        // Any privilege that comes back has to be argued for here.
        for line in [
            "NoNewPrivileges=yes",
            "ProtectSystem=strict",
            "SocketBindDeny=any",
            "CapabilityBoundingSet=\n",
        ] {
            assert!(unit.contains(line), "{line} is missing");
        }
    }

    #[test]
    fn every_problem_of_a_file_is_said_at_once() {
        let text = "[[modbus]]\nname = 'a b'\naddress = ':1'\ntable = ''\ninterval_ms = 1\n";
        let said = sources(text).unwrap_err().join("\n");
        for expected in ["name:", "address:", "table:", "interval_ms:", "registers"] {
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
        assert!(sources("[[modbus]]\nsurprise = 1\n").unwrap_err()[0].contains("surprise"));
    }
}
