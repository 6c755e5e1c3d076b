//! An agent's documents: streams, devices, errors; versions 1.3 to 2.x.
//!
//! Owns: reading them with a pull parser, by local names, since every version has a namespace of
//! its own. Never: keeps a document as a tree; expands entities but XML's own five; takes a
//! document with a DOCTYPE; goes deeper than 64 levels.

use std::collections::BTreeMap;

use quick_xml::{
    Reader, XmlVersion,
    events::{BytesStart, Event},
};

/// Levels at most.
const DEPTH_MAX: usize = 64;
/// Data items of one agent that are remembered: a bound for memory.
const ITEMS_MAX: usize = 100_000;

/// Why a document is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The XML.
    #[error("the agent's document is no XML that is read: {0}")]
    Xml(String),
    /// The content.
    #[error("the agent's document is no MTConnect: {0}")]
    Content(&'static str),
}

fn xml(e: impl std::fmt::Display) -> DocumentError {
    DocumentError::Xml(e.to_string())
}

/// What an agent says of itself in each document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Which run of the agent this is.
    pub instance: u64,
    /// The oldest number in its buffer.
    pub first: u64,
    /// The newest.
    pub last: u64,
    /// The one behind the newest of this document.
    pub next: u64,
    /// The agent's clock.
    pub created: String,
    /// The agent's version.
    pub version: String,
}

/// The kind of a data item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// Measured.
    Sample,
    /// A state or message.
    Event,
    /// Fine, or what is wrong.
    Condition,
}

impl Category {
    /// As rules see it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Event => "event",
            Self::Condition => "condition",
        }
    }
}

/// One observation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observation {
    /// The device's name.
    pub device: String,
    /// The component's type and name (or id).
    pub component: (String, String),
    /// Its kind; `None` outside of every list of a kind.
    pub category: Option<Category>,
    /// The element's name: the type, or the level of a condition.
    pub element: String,
    /// Attributes.
    pub attributes: BTreeMap<String, String>,
    /// The text, or entries as JSON.
    pub text: String,
    entries: BTreeMap<String, String>,
}

impl Observation {
    /// An attribute, or nothing.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.get(name).map_or("", String::as_str)
    }

    /// Its number.
    pub fn sequence(&self) -> Option<u64> {
        self.attribute("sequence").parse().ok()
    }
}

/// A document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Observations.
    Streams(Header, Vec<Observation>),
    /// Devices: units by id of the data item.
    Devices(Header, BTreeMap<String, String>),
    /// Errors: code and text.
    Error(Vec<(String, String)>),
}

type Attributes = BTreeMap<String, String>;

fn attributes(start: &BytesStart<'_>) -> Result<Attributes, DocumentError> {
    let mut out = Attributes::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(xml)?;
        let value = attribute.normalized_value(XmlVersion::Explicit1_0).map_err(xml)?;
        out.insert(attribute.key.local_name().into_inner().to_owned(), value.into_owned());
    }
    Ok(out)
}

fn number(of: &Attributes, name: &str) -> u64 {
    of.get(name).and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn header(a: &Attributes) -> Header {
    let text = |name: &str| a.get(name).cloned().unwrap_or_default();
    Header {
        instance: number(a, "instanceId"),
        first: number(a, "firstSequence"),
        last: number(a, "lastSequence"),
        next: number(a, "nextSequence"),
        created: text("creationTime"),
        version: text("version"),
    }
}

/// What is being read.
#[derive(Debug, Default)]
struct State {
    root: String,
    header: Option<Header>,
    /// Names of open elements.
    open: Vec<String>,
    device: String,
    component: (String, String),
    category: Option<Category>,
    /// The observation that is open, and the depth of its element.
    current: Option<(Observation, usize)>,
    entry: Option<String>,
    found: Vec<Observation>,
    units: BTreeMap<String, String>,
    errors: Vec<(String, String)>,
    text: String,
}

fn either(a: &Attributes, names: &[&str]) -> String {
    let found = names.iter().find_map(|n| a.get(*n).filter(|v| !v.is_empty()));
    found.cloned().unwrap_or_default()
}

impl State {
    fn start(&mut self, name: String, a: Attributes) -> Result<(), DocumentError> {
        if self.open.len() >= DEPTH_MAX {
            return Err(DocumentError::Content("more than 64 levels"));
        }
        let depth = self.open.len();
        if depth == 0 {
            self.root.clone_from(&name);
        }
        self.text.clear();
        match name.as_str() {
            "Header" if depth == 1 => self.header = Some(header(&a)),
            _ if a.contains_key("errorCode") => {
                self.errors.push((either(&a, &["errorCode"]), String::new()));
            }
            _ if self.root == "MTConnectStreams" => self.streams(&name, a, depth),
            "DataItem" if self.units.len() < ITEMS_MAX => {
                let unit = either(&a, &["units", "nativeUnits"]);
                if let (Some(id), false) = (a.get("id"), unit.is_empty()) {
                    self.units.insert(id.clone(), unit);
                }
            }
            _ => {}
        }
        self.open.push(name);
        Ok(())
    }

    fn streams(&mut self, name: &str, a: Attributes, depth: usize) {
        match name {
            "Entry" | "Cell" if self.current.is_some() => {
                let key = a.get("key").cloned().unwrap_or_default();
                // A cell lies inside an entry.
                let whole = match (&self.entry, name) {
                    (Some(entry), "Cell") => format!("{entry}.{key}"),
                    _ => key,
                };
                self.entry = Some(whole);
            }
            _ if self.current.is_some() => {}
            "DeviceStream" => self.device = either(&a, &["name", "uuid"]),
            "ComponentStream" => {
                let kind = either(&a, &["component"]);
                self.component = (kind, either(&a, &["name", "componentId"]));
            }
            "Samples" => self.category = Some(Category::Sample),
            "Events" => self.category = Some(Category::Event),
            "Condition" => self.category = Some(Category::Condition),
            _ if self.category.is_some() && a.contains_key("sequence") => {
                let observation = Observation {
                    device: self.device.clone(),
                    component: self.component.clone(),
                    category: self.category,
                    element: name.to_owned(),
                    attributes: a,
                    ..Observation::default()
                };
                self.current = Some((observation, depth));
            }
            _ => {}
        }
    }

    fn end(&mut self) {
        let Some(name) = self.open.pop() else { return };
        let text = std::mem::take(&mut self.text);
        if let Some((_, said)) = self.errors.last_mut()
            && said.is_empty()
        {
            said.push_str(text.trim());
        }
        let depth = self.open.len();
        match &mut self.current {
            Some((_, at)) if *at == depth => {
                if let Some((mut done, _)) = self.current.take() {
                    done.text = match done.entries.is_empty() {
                        true => text.trim().to_owned(),
                        false => serde_json::to_string(&done.entries).unwrap_or_default(),
                    };
                    self.found.push(done);
                }
                self.entry = None;
            }
            Some((current, _)) => {
                if let Some(key) = self.entry.clone() {
                    let text = text.trim();
                    if !text.is_empty() {
                        current.entries.insert(key.clone(), text.to_owned());
                    }
                    // Out of a cell one is in its entry again.
                    let outer = key.rsplit_once('.').map(|(outer, _)| outer.to_owned());
                    self.entry = if name == "Cell" { outer } else { None };
                }
            }
            None if matches!(name.as_str(), "Samples" | "Events" | "Condition") => {
                self.category = None;
            }
            None => {}
        }
    }

    fn document(self) -> Result<Document, DocumentError> {
        if !self.open.is_empty() {
            return Err(DocumentError::Content("it ends before its end"));
        }
        let header = self.header.ok_or(DocumentError::Content("no Header"));
        match self.root.as_str() {
            "MTConnectStreams" => Ok(Document::Streams(header?, self.found)),
            "MTConnectDevices" => Ok(Document::Devices(header?, self.units)),
            "MTConnectError" => Ok(Document::Error(self.errors)),
            _ => Err(DocumentError::Content("its root is no document of an agent")),
        }
    }
}

/// The header of a streams document of which the rest may not read.
pub fn read_header(bytes: &[u8]) -> Option<Header> {
    // The header is near the front; what does not read may be no UTF-8 further on.
    let front = bytes.get(..bytes.len().min(16 * 1024))?;
    let text = match std::str::from_utf8(front) {
        Ok(text) => text,
        Err(e) => std::str::from_utf8(front.get(..e.valid_up_to())?).ok()?,
    };
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut root = None;
    loop {
        match reader.read_event().ok()? {
            Event::Start(start) | Event::Empty(start) => {
                let name = start.local_name().into_inner().to_owned();
                if root.is_none() {
                    root = Some(name);
                } else if name == "Header" {
                    let fine = root.as_deref() == Some("MTConnectStreams");
                    return fine.then(|| attributes(&start).ok()).flatten().map(|a| header(&a));
                }
            }
            Event::Eof | Event::DocType(_) => return None,
            _ => {}
        }
    }
}

/// Reads a document.
pub fn read(bytes: &[u8]) -> Result<Document, DocumentError> {
    let text = std::str::from_utf8(bytes).map_err(xml)?;
    let mut reader = Reader::from_str(text.trim_start_matches('\u{feff}'));
    let mut state = State::default();
    loop {
        match reader.read_event().map_err(xml)? {
            Event::Start(start) => {
                let name = start.local_name().into_inner().to_owned();
                state.start(name, attributes(&start)?)?;
            }
            Event::Empty(start) => {
                let name = start.local_name().into_inner().to_owned();
                state.start(name, attributes(&start)?)?;
                state.end();
            }
            Event::End(_) => state.end(),
            Event::Text(text) => state.text.push_str(&text),
            Event::CData(text) => state.text.push_str(&text),
            Event::GeneralRef(of) => match (of.resolve_char_ref().map_err(xml)?, &*of) {
                (Some(c), _) => state.text.push(c),
                (None, "amp") => state.text.push('&'),
                (None, "lt") => state.text.push('<'),
                (None, "gt") => state.text.push('>'),
                (None, "quot") => state.text.push('"'),
                (None, "apos") => state.text.push('\''),
                (None, _) => return Err(DocumentError::Content("an entity of its own")),
            },
            Event::DocType(_) => return Err(DocumentError::Content("a DOCTYPE")),
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            Event::Eof => return state.document(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAMS: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<m:MTConnectStreams xmlns:m="urn:mtconnect.org:MTConnectStreams:1.3"><m:Header creationTime="2026-11-21T19:00:00Z" instanceId="7" version="1.3.0.18" nextSequence="5" firstSequence="1" lastSequence="4"/>
<m:Streams><m:DeviceStream name="VMC" uuid="u"><m:ComponentStream component="Linear" name="X" componentId="x"><m:Samples>
<m:Position dataItemId="xpos" name="Xact" subType="ACTUAL" timestamp="2026-11-21T18:59:59.5Z" sequence="2">1.25</m:Position></m:Samples>
<m:Events><m:Message dataItemId="msg" timestamp="2026-11-21T18:59:59Z" sequence="1">a &lt; b &amp; &#65;<![CDATA[<c>]]></m:Message>
<m:VariableDataSet dataItemId="v" timestamp="2026-11-21T18:59:59Z" sequence="4" count="2"><m:Entry key="a">1</m:Entry><m:Entry key="t"><m:Cell key="x">2</m:Cell></m:Entry></m:VariableDataSet></m:Events>
<m:Condition><m:Fault dataItemId="c" type="SYSTEM" nativeCode="E7" timestamp="2026-11-21T18:59:59Z" sequence="3">hot</m:Fault></m:Condition>
</m:ComponentStream></m:DeviceStream></m:Streams></m:MTConnectStreams>"#;

    #[test]
    fn observations_of_every_kind_are_read() {
        let Document::Streams(header, found) = read(STREAMS.as_bytes()).unwrap() else {
            panic!("streams")
        };
        assert_eq!((header.instance, header.first, header.last, header.next), (7, 1, 4, 5));
        let shown: Vec<String> = found
            .iter()
            .map(|o| {
                let kind = o.category.unwrap().name();
                let place = (&o.device, &o.component.0, &o.component.1);
                format!("{:?} {kind} {place:?} {} {}", o.sequence(), o.element, o.text)
            })
            .collect();
        let expected = [
            r#"Some(2) sample ("VMC", "Linear", "X") Position 1.25"#,
            r#"Some(1) event ("VMC", "Linear", "X") Message a < b & A<c>"#,
            r#"Some(4) event ("VMC", "Linear", "X") VariableDataSet {"a":"1","t.x":"2"}"#,
            r#"Some(3) condition ("VMC", "Linear", "X") Fault hot"#,
        ];
        assert_eq!(shown, expected);
        assert_eq!(found[3].attribute("nativeCode"), "E7");
    }

    #[test]
    fn devices_and_errors_of_old_and_new_versions_are_read() {
        let devices = r#"<MTConnectDevices><Header instanceId="7"/><Devices><Device id="d"><DataItems><DataItem id="a" units="MILLIMETER" nativeUnits="INCH"/><DataItem id="b"/></DataItems></Device></Devices></MTConnectDevices>"#;
        let Document::Devices(header, units) = read(devices.as_bytes()).unwrap() else {
            panic!("devices")
        };
        assert_eq!((header.instance, units["a"].as_str(), units.len()), (7, "MILLIMETER", 1));
        for error in [
            r#"<MTConnectError><Header/><Errors><Error errorCode="OUT_OF_RANGE">too old</Error></Errors></MTConnectError>"#,
            r#"<MTConnectError><Header/><Errors><OutOfRange errorCode="OUT_OF_RANGE"><ErrorMessage>too old</ErrorMessage></OutOfRange></Errors></MTConnectError>"#,
        ] {
            let expected = vec![("OUT_OF_RANGE".to_owned(), "too old".to_owned())];
            assert_eq!(read(error.as_bytes()), Ok(Document::Error(expected)));
        }
    }

    #[test]
    fn hostile_documents_are_refused() {
        let bomb = r#"<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><MTConnectStreams><Header/>&b;</MTConnectStreams>"#;
        let entity = "<MTConnectStreams><Header/>&xxe;</MTConnectStreams>";
        let deep = format!("<MTConnectStreams>{}", "<a>".repeat(100_000));
        let torn = &STREAMS[..STREAMS.len() - 30];
        for (text, expected) in [
            (bomb, "DOCTYPE"),
            (entity, "entity"),
            (deep.as_str(), "64 levels"),
            (torn, "end"),
            ("<html><body>Login</body></html>", "root"),
            ("<MTConnectStreams></MTConnectStreams>", "Header"),
            ("<a></b>", "XML"),
            ("", "root"),
        ] {
            let said = read(text.as_bytes()).unwrap_err().to_string();
            assert!(said.contains(expected), "{expected} is not in {said}");
        }
        assert!(read(&[0xff, 0xfe, 0]).is_err());
        assert_eq!(read_header(torn.as_bytes()).map(|h| h.next), Some(5));
        assert_eq!(read_header(b"<html><Header/></html>"), None);
    }

    proptest! {
        #[test]
        fn damage_anywhere_is_a_fault_or_a_document(at in 0usize..1800, byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = STREAMS.as_bytes().to_vec();
            let at = at.min(bytes.len() - 1);
            bytes[at] = byte;
            if cut {
                bytes.truncate(at);
            }
            if let Ok(Document::Streams(_, found)) = read(&bytes) {
                prop_assert!(found.len() <= 4 && !cut);
            }
        }
    }
}
