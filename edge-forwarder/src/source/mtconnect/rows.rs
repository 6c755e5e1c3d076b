//! From observations to rows.
//!
//! Owns: paths and attributes of items, the fields of a condition. Never: makes a number of
//! UNAVAILABLE, which is a value of its own.

use std::{borrow::Cow, collections::BTreeMap};

use super::document::{Category, Observation};
use crate::mapping::{
    Item, Mapped, Mapping,
    row::{Rows, Units, escaped},
    time::rfc3339,
    value::Value,
};

/// Beside captures, what rules of MTConnect sources may name.
pub const ATTRIBUTES: [&str; 13] = [
    "device",
    "component",
    "component_name",
    "item",
    "id",
    "type",
    "subtype",
    "category",
    "unit",
    "code",
    "field",
    "sequence",
    "available",
];

/// Tags of every row, unless the configuration says otherwise. The code keeps conditions that are
/// active at once apart.
pub const TAGS: [&str; 6] = ["device", "component", "item", "type", "unit", "code"];

/// What one observation comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Made {
    /// A row, after new units.
    Row(Vec<String>),
    /// Not wanted.
    Skipped,
    /// No row, and why.
    Refused(String),
}

fn value(o: &Observation) -> (Value<'_>, &'static str) {
    if o.text == "UNAVAILABLE" || o.element == "Unavailable" {
        return (Value::Bool(false), "available");
    }
    match o.category {
        Some(Category::Condition) => (Value::Text(Cow::Borrowed(&o.element)), "level"),
        Some(Category::Sample) => match o.text.parse::<f64>() {
            Ok(number) if number.is_finite() => (Value::F64(number), "value"),
            _ => (Value::Text(Cow::Borrowed(&o.text)), "text"),
        },
        _ => (Value::Text(Cow::Borrowed(&o.text)), "text"),
    }
}

/// The other fields of a condition.
fn extras(o: &Observation, mapped: &mut Mapped) {
    if o.category != Some(Category::Condition) {
        return;
    }
    for (name, text) in [
        ("severity", o.attribute("nativeSeverity")),
        ("qualifier", o.attribute("qualifier")),
        ("message", o.text.as_str()),
    ] {
        if text.is_empty() || text == "UNAVAILABLE" {
            continue;
        }
        let mut literal = String::new();
        if Value::Text(Cow::Borrowed(text)).literal(&mut literal).is_ok() {
            mapped.literal.push_str(&format!(",{}={literal}", escaped(name)));
        }
    }
}

/// One observation as a row.
pub fn row(
    o: &Observation,
    mapping: &Mapping,
    units: &BTreeMap<String, String>,
    told: &mut Units,
    now_ns: i64,
) -> Made {
    let id = o.attribute("dataItemId");
    let name = if o.attribute("name").is_empty() { id } else { o.attribute("name") };
    let Some(time) = rfc3339(o.attribute("timestamp")) else {
        let shown: String = o.attribute("timestamp").chars().take(40).collect();
        return Made::Refused(format!("{name}: `{shown}` is no time"));
    };
    let (value, field) = value(o);
    let condition = o.category == Some(Category::Condition);
    let kind = if condition { o.attribute("type") } else { o.element.as_str() };
    let category = o.category.map_or("", Category::name);
    let unit = units.get(id).map(String::as_str);
    let attribute = |what: &str| {
        Some(Cow::Borrowed(match what {
            "device" => o.device.as_str(),
            "component" => &o.component.0,
            "component_name" => &o.component.1,
            "item" => name,
            "id" => id,
            "type" => kind,
            "subtype" => o.attribute("subType"),
            "category" => category,
            "unit" => unit.unwrap_or_default(),
            "code" => o.attribute("nativeCode"),
            "field" => field,
            "sequence" => o.attribute("sequence"),
            "available" => {
                if field == "available" {
                    "false"
                } else {
                    "true"
                }
            }
            _ => return None,
        }))
    };
    let path = format!("{}/{}/{name}", o.device, o.component.1);
    match mapping.apply(Item { path: &path, value, unit, attribute: &attribute }) {
        Ok(None) => Made::Skipped,
        Err(fault) => Made::Refused(fault.to_string()),
        Ok(Some(mut mapped)) => {
            let unit = mapped.unit.clone().unwrap_or_default();
            let mut lines: Vec<String> =
                told.row(&mapped.table, &mapped.field, &unit, now_ns).into_iter().collect();
            extras(o, &mut mapped);
            let mut rows = Rows::default();
            rows.add(mapped, time);
            lines.extend(rows.into_lines());
            Made::Row(lines)
        }
    }
}
