//! What is known of Sparkplug nodes: births, numbers, deaths.
//!
//! Owns: the state of each node, and what a message means. Never: does I/O; takes a value whose
//! name is not sure: after a lost message the names behind aliases are not, until the next birth.
//! Invariant: E8 each metric becomes part of a row, is not wanted, or is counted in a gap.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use prost::Message as _;

use super::proto::{Metric, Payload, rebirth};
use crate::{
    gap::{Cause, Gap},
    mapping::{
        Item, Mapping,
        row::{Rows, Units, head},
        value::Value,
    },
    source::mqtt::codec::Message,
};

/// The topics' first part.
pub const SPACE: &str = "spBv1.0";
/// Nodes, and names over all of them, that are remembered: a bound for memory.
const NODES_MAX: usize = 4_096;
const NAMES_MAX: usize = 200_000;
/// A node is asked for its births this often at most.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Beside captures, what rules of Sparkplug sources may name.
pub const ATTRIBUTES: [&str; 6] = ["group", "node", "device", "metric", "field", "historical"];

/// What a birth said of a metric.
#[derive(Debug, Clone)]
struct Known {
    device: String,
    name: String,
    datatype: u32,
    unit: Option<String>,
}

#[derive(Debug, Default)]
struct Node {
    /// Its births are known and no message is missing since.
    sure: bool,
    next: u8,
    birth: Option<u64>,
    by_alias: BTreeMap<u64, Known>,
    by_name: BTreeMap<(String, String), Known>,
    asked: Option<Duration>,
    last_ns: i64,
}

impl Node {
    fn names(&self) -> usize {
        self.by_alias.len() + self.by_name.len()
    }
}

/// What a message comes to.
#[derive(Debug, Default)]
pub struct Out {
    /// Rows, each with its line feed.
    pub lines: Vec<String>,
    /// Gaps with their own causes.
    pub gaps: Vec<Gap>,
    /// Metrics that made no row, and the last reason.
    pub rejected: u64,
    /// The reason.
    pub why: String,
    /// To publish.
    pub commands: Vec<Message>,
}

impl Out {
    fn reject(&mut self, count: u64, why: String) {
        self.rejected += count;
        self.why = why;
    }
}

/// When a message came.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// ns since the Unix epoch.
    pub now_ns: i64,
    /// Monotonic.
    pub monotonic: Duration,
}

/// See the module head.
#[derive(Debug)]
pub struct Nodes<'a> {
    source: &'a str,
    mapping: &'a Mapping,
    units: Units,
    nodes: BTreeMap<(String, String), Node>,
    names: usize,
}

fn ns(ms: Option<u64>) -> Option<i64> {
    i64::try_from(ms?).ok()?.checked_mul(1_000_000)
}

/// Group, kind, node, device.
fn parts(topic: &str) -> Option<(&str, &str, &str, Option<&str>)> {
    let mut parts = topic.split('/');
    let space = parts.next()?;
    let found = (parts.next()?, parts.next()?, parts.next()?, parts.next());
    (space == SPACE && parts.next().is_none()).then_some(found)
}

impl<'a> Nodes<'a> {
    /// Nothing is known yet.
    pub fn new(source: &'a str, mapping: &'a Mapping) -> Self {
        let (units, nodes) = (Units::default(), BTreeMap::new());
        Self { source, mapping, units, nodes, names: 0 }
    }

    /// The connection is new: no number follows on another.
    pub fn forget(&mut self) {
        self.nodes.clear();
        self.names = 0;
    }

    /// Takes a message.
    pub fn take(&mut self, topic: &str, payload: &[u8], at: Moment) -> Out {
        let mut out = Out::default();
        let Some((group, kind, name, device)) = parts(topic) else { return out };
        if matches!(kind, "NCMD" | "DCMD") || group == "STATE" {
            return out;
        }
        let payload = match Payload::decode(payload) {
            Ok(payload) if payload.uuid.as_deref() == Some("SPBV1.0_COMPRESSED") => {
                out.reject(1, format!("{topic}: compressed payloads are not read"));
                return out;
            }
            Ok(payload) => payload,
            Err(e) => {
                out.reject(1, format!("{topic}: no Sparkplug B payload: {e}"));
                return out;
            }
        };
        let key = (group.to_owned(), name.to_owned());
        let mut node = match self.nodes.remove(&key) {
            Some(node) => node,
            None if self.nodes.len() >= NODES_MAX => {
                let why = format!("{topic}: more than {NODES_MAX} nodes");
                out.reject(payload.metrics.len() as u64, why);
                return out;
            }
            None => Node::default(),
        };
        self.names = self.names.saturating_sub(node.names());
        match (kind, device) {
            ("NBIRTH", None) => self.birth(&key, &mut node, &payload, at, &mut out),
            ("DBIRTH" | "DDATA", Some(device)) => {
                let births = kind == "DBIRTH";
                self.data(&key, &mut node, device, births, &payload, at, &mut out);
            }
            ("NDATA", None) => self.data(&key, &mut node, "-", false, &payload, at, &mut out),
            ("NDEATH", None) => self.death(&key, &mut node, &payload, at, &mut out),
            ("DDEATH", Some(device)) => {
                self.follows(&key, &mut node, &payload, at, &mut out);
                self.down(&key, device, node.last_ns, at, &mut out);
            }
            _ => out.reject(1, format!("{topic}: no topic of Sparkplug B")),
        }
        self.names += node.names();
        self.nodes.insert(key, node);
        out
    }

    /// A row that says whether a node or device is there.
    fn presence(key: &(String, String), device: &str, online: bool, now: i64) -> String {
        let tags = [("group", key.0.as_str()), ("node", key.1.as_str()), ("device", device)];
        format!("{} online={online} {now}\n", head("sparkplug_presence", tags.into_iter()))
    }

    fn down(&self, key: &(String, String), device: &str, from: i64, at: Moment, out: &mut Out) {
        out.lines.push(Self::presence(key, device, false, at.now_ns));
        let detail = format!("{}/{}/{device} says that it is offline", key.0, key.1);
        let mut gap = Gap::new(self.source, Cause::SourceDown, at.now_ns, 0, &detail);
        gap.from_ns = if from == 0 { at.now_ns } else { from.min(at.now_ns) };
        out.gaps.push(gap);
    }

    fn birth(
        &mut self,
        key: &(String, String),
        node: &mut Node,
        payload: &Payload,
        at: Moment,
        out: &mut Out,
    ) {
        let bd_seq = bd_seq(payload);
        if node.birth.is_some() && node.birth != bd_seq {
            let detail = format!("{}/{} was born again; its death was not seen", key.0, key.1);
            let mut gap = Gap::new(self.source, Cause::SourceRestart, at.now_ns, 0, &detail);
            gap.from_ns = if node.last_ns == 0 { at.now_ns } else { node.last_ns };
            out.gaps.push(gap);
        }
        let asked = node.asked;
        *node = Node { sure: true, birth: bd_seq, asked, ..Node::default() };
        node.next = number(payload).wrapping_add(1);
        out.lines.push(Self::presence(key, "-", true, at.now_ns));
        self.metrics(key, node, "-", true, payload, at, out);
    }

    fn death(
        &mut self,
        key: &(String, String),
        node: &mut Node,
        payload: &Payload,
        at: Moment,
        out: &mut Out,
    ) {
        // The will of an earlier connection of a node that is back.
        if node.birth.is_some() && bd_seq(payload) != node.birth {
            return;
        }
        let last = node.last_ns;
        *node = Node::default();
        self.down(key, "-", last, at, out);
    }

    /// Whether this message's number follows on the last. If not, what is missing is a gap and
    /// the node is asked for its births.
    fn follows(
        &self,
        key: &(String, String),
        node: &mut Node,
        payload: &Payload,
        at: Moment,
        out: &mut Out,
    ) -> bool {
        let number = number(payload);
        if node.sure && number != node.next {
            let missing = number.wrapping_sub(node.next);
            let (group, name) = key;
            let detail = format!(
                "{group}/{name}: message {number} came where {} was due: {missing} are missing",
                node.next
            );
            let mut gap = Gap::new(self.source, Cause::SourceOverrun, at.now_ns, 0, &detail);
            gap.from_ns = if node.last_ns == 0 { at.now_ns } else { node.last_ns };
            out.gaps.push(gap);
            node.sure = false;
        }
        node.next = number.wrapping_add(1);
        let due = node.asked.is_none_or(|t| at.monotonic.saturating_sub(t) >= ASK_EVERY);
        if !node.sure && due {
            node.asked = Some(at.monotonic);
            let now_ms = u64::try_from(at.now_ns / 1_000_000).unwrap_or(0);
            out.commands.push(Message {
                topic: format!("{SPACE}/{}/NCMD/{}", key.0, key.1),
                payload: rebirth(now_ms),
                at_least_once: false,
                retain: false,
            });
        }
        node.sure
    }

    #[expect(clippy::too_many_arguments, reason = "a message has that many parts")]
    fn data(
        &mut self,
        key: &(String, String),
        node: &mut Node,
        device: &str,
        births: bool,
        payload: &Payload,
        at: Moment,
        out: &mut Out,
    ) {
        if !self.follows(key, node, payload, at, out) {
            let (group, name) = key;
            let why = format!("{group}/{name}/{device}: what came before its birth is not known");
            out.reject(payload.metrics.len() as u64, why);
            return;
        }
        if births {
            node.by_alias.retain(|_, k| k.device != device);
            node.by_name.retain(|(of, _), _| of != device);
            out.lines.push(Self::presence(key, device, true, at.now_ns));
        }
        self.metrics(key, node, device, births, payload, at, out);
    }

    #[expect(clippy::too_many_arguments, reason = "a message has that many parts")]
    fn metrics(
        &mut self,
        key: &(String, String),
        node: &mut Node,
        device: &str,
        births: bool,
        payload: &Payload,
        at: Moment,
        out: &mut Out,
    ) {
        node.last_ns = at.now_ns;
        let mut rows = Rows::default();
        for bytes in &payload.metrics {
            let Ok(metric) = Metric::decode(bytes.clone()) else {
                out.reject(1, format!("{}/{}: a metric does not read", key.0, key.1));
                continue;
            };
            if births {
                if self.names + node.names() >= NAMES_MAX {
                    out.reject(1, format!("more than {NAMES_MAX} metrics of all nodes"));
                    continue;
                }
                learn(node, device, &metric);
            }
            let Some(known) = known(node, device, &metric) else {
                let name = metric.name.clone().unwrap_or_default();
                let alias = metric.alias.unwrap_or_default();
                let why =
                    format!("{}/{}/{device}: no birth named `{name}`, alias {alias}", key.0, key.1);
                out.reject(1, why);
                continue;
            };
            if known.name == "bdSeq" || known.name.starts_with("Node Control/") {
                continue;
            }
            let time = ns(metric.timestamp.or(payload.timestamp)).unwrap_or(at.now_ns);
            match metric.value(known.datatype) {
                Ok(None) => {}
                Err(e) => out.reject(1, format!("{}: {e}", known.name)),
                Ok(Some(value)) => {
                    let historical = metric.is_historical == Some(true);
                    let one = One { key, known: &known, value, historical, time };
                    self.one(one, at.now_ns, &mut rows, out);
                }
            }
        }
        out.lines.extend(rows.into_lines());
    }

    fn one(&mut self, one: One<'_>, now: i64, rows: &mut Rows, out: &mut Out) {
        let One { key, known, value, historical, time } = one;
        let path = format!("{}/{}/{}/{}", key.0, key.1, known.device, known.name);
        let attribute = |name: &str| {
            Some(match name {
                "group" => Cow::Borrowed(key.0.as_str()),
                "node" => Cow::Borrowed(key.1.as_str()),
                "device" => Cow::Borrowed(known.device.as_str()),
                "metric" => Cow::Borrowed(known.name.as_str()),
                "field" => Cow::Owned(known.name.replace('/', "_")),
                "historical" => Cow::Borrowed(if historical { "true" } else { "false" }),
                _ => return None,
            })
        };
        let unit = known.unit.as_deref();
        match self.mapping.apply(Item { path: &path, value, unit, attribute: &attribute }) {
            Ok(Some(mapped)) => {
                if let Some(unit) = &mapped.unit {
                    out.lines.extend(self.units.row(&mapped.table, &mapped.field, unit, now));
                }
                rows.add(mapped, time);
            }
            Ok(None) => {}
            Err(fault) => out.reject(1, fault.to_string()),
        }
    }
}

/// A value of a metric, and whose it is.
struct One<'m> {
    key: &'m (String, String),
    known: &'m Known,
    value: Value<'m>,
    historical: bool,
    time: i64,
}

#[expect(clippy::cast_possible_truncation, reason = "the protocol counts to 255")]
fn number(payload: &Payload) -> u8 {
    payload.seq.unwrap_or(0) as u8
}

/// Which birth this is, or which one a death ends.
fn bd_seq(payload: &Payload) -> Option<u64> {
    let metrics = payload.metrics.iter().filter_map(|m| Metric::decode(m.clone()).ok());
    let found = metrics.filter(|m| m.name.as_deref() == Some("bdSeq")).last()?;
    match found.value(8).ok()?? {
        Value::U64(v) => Some(v),
        Value::I64(v) => u64::try_from(v).ok(),
        _ => None,
    }
}

fn learn(node: &mut Node, device: &str, metric: &Metric) {
    let Some(name) = metric.name.clone() else { return };
    let known = Known {
        device: device.to_owned(),
        name: name.clone(),
        datatype: metric.datatype.unwrap_or(0),
        unit: metric.unit().map(str::to_owned),
    };
    if let Some(alias) = metric.alias {
        node.by_alias.insert(alias, known.clone());
    }
    node.by_name.insert((device.to_owned(), name), known);
}

fn known(node: &Node, device: &str, metric: &Metric) -> Option<Known> {
    let named = metric.name.as_ref().filter(|n| !n.is_empty());
    match (named, metric.alias) {
        (Some(name), _) => node.by_name.get(&(device.to_owned(), name.clone())).cloned(),
        (None, Some(alias)) => node.by_alias.get(&alias).filter(|k| k.device == device).cloned(),
        (None, None) => None,
    }
}

#[cfg(test)]
pub(super) mod tests;
