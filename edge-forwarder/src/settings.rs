//! The configuration file: sources that need more than a word.
//!
//! Owns: its shape, defaults and ranges. Never: takes a file of which it does not understand every
//! word; stops at the first problem. A changed file never discards the queue: streams are named by
//! source and table.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;

use crate::source::{
    SourceKind,
    modbus::{Device, map},
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    modbus: Vec<RawModbus>,
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
}

fn unit() -> u8 {
    1
}

fn second() -> u64 {
    1_000
}

/// Where Modbus TCP listens by its standard.
const MODBUS_PORT: u16 = 502;

fn host_port(address: &str, port: u16) -> Option<(String, u16)> {
    let (host, port) = match address.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, _)) if host.contains(':') && !host.starts_with('[') => (address, port),
        Some((host, port)) => (host, port.parse().ok()?),
        None => (address, port),
    };
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty() && port > 0).then(|| (host.to_owned(), port))
}

fn modbus(raw: RawModbus, wrong: &mut Vec<String>) -> Option<Device> {
    let before = wrong.len();
    let mut say = |what: String| wrong.push(format!("modbus `{}`: {what}", raw.name));
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if raw.name.is_empty() || raw.name.len() > 40 || !raw.name.chars().all(fine) {
        say("name: use 1 to 40 letters, digits, - and _".to_owned());
    }
    if raw.table.is_empty() || raw.table.len() > 128 {
        say("table: use 1 to 128 bytes".to_owned());
    }
    for (what, value, most) in
        [("interval_ms", raw.interval_ms, 3_600_000), ("timeout_ms", raw.timeout_ms, 60_000)]
    {
        if !(50..=most).contains(&value) {
            say(format!("{what}: use 50 to {most}, not {value}"));
        }
    }
    if raw.tags.keys().any(String::is_empty) {
        say("tags: a tag has no name".to_owned());
    }
    let place = host_port(&raw.address, MODBUS_PORT);
    if place.is_none() {
        say(format!("address: `{}` is no host or host:port", raw.address));
    }
    map::problems(&raw.register).into_iter().for_each(&mut say);
    let (host, port) = place.filter(|_| wrong.len() == before)?;
    Some(Device {
        name: raw.name,
        host,
        port,
        unit: raw.unit,
        interval: Duration::from_millis(raw.interval_ms),
        timeout: Duration::from_millis(raw.timeout_ms),
        table: raw.table,
        tags: raw.tags,
        registers: raw.register,
    })
}

/// The sources of a file, or everything that is wrong with it.
pub fn sources(text: &str) -> Result<Vec<SourceKind>, Vec<String>> {
    let raw: RawFile = toml::from_str(text).map_err(|e| vec![e.to_string()])?;
    let mut wrong = Vec::new();
    let devices = raw.modbus.into_iter().filter_map(|raw| modbus(raw, &mut wrong));
    let sources = devices.map(|d| SourceKind::Modbus(Box::new(d))).collect();
    if wrong.is_empty() { Ok(sources) } else { Err(wrong) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../docs/edge.md");

    #[test]
    fn the_example_of_the_page_is_a_valid_file() {
        let from = PAGE.find("```toml\n").unwrap() + 8;
        let example = &PAGE[from..];
        let example = &example[..example.find("```").unwrap()];
        let found = sources(example).unwrap();
        assert_eq!(found.iter().map(SourceKind::name).collect::<Vec<_>>(), ["modbus-press"]);
        let SourceKind::Modbus(device) = &found[0] else { panic!("a Modbus device") };
        assert_eq!((device.host.as_str(), device.port, device.unit), ("10.0.0.5", 502, 1));
        assert_eq!(device.registers.len(), 2);
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

    #[test]
    fn an_address_is_a_host_with_or_without_a_port() {
        let check = |text: &str, expected: Option<(&str, u16)>| {
            let found = host_port(text, 502);
            assert_eq!(found.as_ref().map(|(h, p)| (h.as_str(), *p)), expected, "{text}");
        };
        check("10.0.0.5", Some(("10.0.0.5", 502)));
        check("plc.local:1502", Some(("plc.local", 1502)));
        check("[fe80::1]:1502", Some(("fe80::1", 1502)));
        check("fe80::1", Some(("fe80::1", 502)));
        check("plc:0", None);
        check("plc:x", None);
    }
}
