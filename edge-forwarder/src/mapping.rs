//! The mapping language: from an item of a source to table, tags and field.
//!
//! Owns: rules and their check. An item has a path (`a/b/c`), a value, perhaps a unit, and
//! attributes that its source knows. The first rule whose pattern fits its path says what becomes
//! of it; an item without a rule is not taken. One language for all mapped sources.
//! Never: makes a row of a value that does not fit: that is a fault, which the source counts.

pub mod pattern;
pub mod row;
pub mod time;
pub mod value;

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;

use pattern::{Pattern, Template};
use value::{Value, ValueFault, Wanted};

/// Rules of one source at most.
const RULES_MAX: usize = 4_096;

/// A rule as it stands in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawRule {
    /// Which items; all, if it is not given.
    pub item: Option<String>,
    /// The table; the source's, if it is not given.
    pub table: Option<String>,
    /// The field; the source's normal one, if it is not given.
    pub field: Option<String>,
    /// Tags beside the source's.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The type; as it comes, if it is not given.
    #[serde(rename = "type")]
    pub wanted: Option<Wanted>,
    /// Factor; makes it a float.
    pub scale: Option<f64>,
    /// Added after scaling; makes it a float.
    pub offset: Option<f64>,
    /// The unit, instead of the source's own.
    pub unit: Option<String>,
    /// Items that are not wanted.
    #[serde(default)]
    pub skip: bool,
}

/// What a source says about its items when rules are checked.
#[derive(Debug, Clone, Copy)]
pub struct Ground<'a> {
    /// The table of rules that name none.
    pub table: &'a str,
    /// The field of rules that name none.
    pub field: &'a str,
    /// Tags of every row.
    pub tags: &'a BTreeMap<String, String>,
    /// Names of attributes.
    pub attributes: &'a [&'a str],
    /// Whether `{/a/b}` points into the message.
    pub pointers: bool,
    /// Whether whole numbers become floats where no type is named: for sources that write 1 and
    /// 1.5 for the same item.
    pub floats: bool,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    item: Pattern,
    table: Template,
    field: Template,
    tags: Vec<(String, Template)>,
    wanted: Option<Wanted>,
    scale: Option<(f64, f64)>,
    unit: Option<String>,
    skip: bool,
}

/// The rules of one source.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Mapping {
    rules: Vec<Rule>,
    floats: bool,
}

/// A source's item.
pub struct Item<'a> {
    /// Its path.
    pub path: &'a str,
    /// Its value.
    pub value: Value<'a>,
    /// Its unit, if the source says it.
    pub unit: Option<&'a str>,
    /// Its attributes.
    pub attribute: &'a dyn Fn(&str) -> Option<Cow<'a, str>>,
}

/// Where an item goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Table and tags, as line protocol writes them.
    pub head: String,
    /// The table.
    pub table: String,
    /// The field.
    pub field: String,
    /// The value, as line protocol writes it.
    pub literal: String,
    /// The unit.
    pub unit: Option<String>,
}

/// Why an item becomes no row.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapFault {
    /// The value.
    #[error("{path}: {fault}")]
    Value {
        /// The item.
        path: String,
        /// What is wrong.
        fault: ValueFault,
    },
    /// A name that it needs.
    #[error("{path}: its rule needs `{name}`, which this item does not have")]
    Name {
        /// The item.
        path: String,
        /// The hole.
        name: String,
    },
}

fn rule(raw: &RawRule, ground: &Ground<'_>, wrong: &mut Vec<String>) -> Option<Rule> {
    let item = Pattern::parse(raw.item.as_deref().unwrap_or("#"));
    let item = item.map_err(|e| wrong.push(format!("item {e}"))).ok()?;
    let known = |name: &str| {
        item.names().any(|n| n == name)
            || ground.attributes.contains(&name)
            || (ground.pointers && name.starts_with('/'))
    };
    let mut template = |what: &str, text: &str| {
        let parsed = Template::parse(text).map_err(|e| wrong.push(format!("{what}: {e}"))).ok()?;
        let unknown: Vec<&str> = parsed.names().filter(|n| !known(n)).collect();
        for name in &unknown {
            wrong.push(format!("{what}: `{{{name}}}` is no capture of its item and no attribute"));
        }
        if what != "tags" && text.is_empty() && !raw.skip {
            wrong.push(format!("{what}: is empty"));
        }
        unknown.is_empty().then_some(parsed)
    };
    let table = template("table", raw.table.as_deref().unwrap_or(ground.table));
    let field = template("field", raw.field.as_deref().unwrap_or(ground.field));
    let mut all = ground.tags.clone();
    all.extend(raw.tags.clone());
    let mut tags = Vec::new();
    for (name, value) in all {
        let value = template("tags", &value);
        tags.push((name, value?));
    }
    if tags.iter().any(|(name, _)| name.is_empty()) {
        wrong.push("tags: a tag has no name".to_owned());
    }
    let numbers = (raw.scale.unwrap_or(1.0), raw.offset.unwrap_or(0.0));
    if !(numbers.0.is_finite() && numbers.1.is_finite()) {
        wrong.push("scale and offset must be finite".to_owned());
    }
    let scale = (raw.scale.is_some() || raw.offset.is_some()).then_some(numbers);
    if scale.is_some() && matches!(raw.wanted, Some(Wanted::Bool | Wanted::Text)) {
        wrong.push("scale and offset make a float; they do not go with this type".to_owned());
    }
    let (table, field) = (table?, field?);
    let (wanted, unit, skip) = (raw.wanted, raw.unit.clone(), raw.skip);
    Some(Rule { item, table, field, tags, wanted, scale, unit, skip })
}

impl Mapping {
    /// Checks the rules of a source. No rules: one for all items.
    pub fn resolve(raw: &[RawRule], ground: &Ground<'_>) -> Result<Self, Vec<String>> {
        let mut wrong = Vec::new();
        if raw.len() > RULES_MAX {
            wrong.push(format!("map: at most {RULES_MAX} rules, not {}", raw.len()));
        }
        let all = [RawRule::default()];
        let raw = if raw.is_empty() { all.as_slice() } else { raw };
        let mut rules = Vec::new();
        for (n, one) in (1..).zip(raw) {
            let mut said = Vec::new();
            rules.extend(rule(one, ground, &mut said));
            wrong.extend(said.into_iter().map(|s| format!("map {n}: {s}")));
        }
        if wrong.is_empty() { Ok(Self { rules, floats: ground.floats }) } else { Err(wrong) }
    }

    /// What becomes of an item; `None` if it is not wanted.
    pub fn apply(&self, item: Item<'_>) -> Result<Option<Mapped>, MapFault> {
        let Item { path, value, unit, attribute } = item;
        let found = self.rules.iter().find_map(|r| Some((r, r.item.captures(path)?)));
        let Some((rule, captures)) = found.filter(|(r, _)| !r.skip) else { return Ok(None) };
        let of = |name: &str| {
            let captured = captures.iter().find(|(n, _)| *n == name);
            captured.map(|(_, text)| Cow::Borrowed(*text)).or_else(|| attribute(name))
        };
        let missing = |name: &str| MapFault::Name { path: path.to_owned(), name: name.to_owned() };
        let table = rule.table.fill(&of).map_err(missing)?.into_owned();
        let field = rule.field.fill(&of).map_err(missing)?.into_owned();
        for (name, text) in [("table", &table), ("field", &field)] {
            if text.is_empty() {
                return Err(missing(name));
            }
        }
        // A tag that nothing fills is a tag that this item does not have.
        let tags = rule.tags.iter().filter_map(|(n, t)| Some((n.as_str(), t.fill(&of).ok()?)));
        let tags: Vec<(&str, Cow<'_, str>)> = tags.collect();
        let head = row::head(&table, tags.iter().map(|(n, v)| (*n, v.as_ref())));
        let wrong = |fault| MapFault::Value { path: path.to_owned(), fault };
        let mut value = value;
        let whole = matches!(value, Value::I64(_) | Value::U64(_));
        let wanted = rule.wanted.or((self.floats && whole).then_some(Wanted::Float));
        if let Some(wanted) = wanted {
            value = value.into_type(wanted).map_err(wrong)?;
        }
        if let Some((scale, offset)) = rule.scale {
            value = value.scaled(scale, offset).map_err(wrong)?;
        }
        let mut literal = String::new();
        value.literal(&mut literal).map_err(wrong)?;
        let unit = rule.unit.as_deref().or(unit).map(str::to_owned);
        Ok(Some(Mapped { head, table, field, literal, unit }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<RawRule> {
        #[derive(Deserialize)]
        struct File {
            map: Vec<RawRule>,
        }
        toml::from_str::<File>(text).unwrap().map
    }

    fn ground(tags: &BTreeMap<String, String>) -> Ground<'_> {
        Ground {
            table: "plant",
            field: "value",
            tags,
            attributes: &["kind"],
            pointers: true,
            floats: false,
        }
    }

    fn apply(mapping: &Mapping, path: &str, value: Value<'_>) -> String {
        let attribute = |name: &str| match name {
            "kind" => Some(Cow::Borrowed("sample")),
            "/tool" => Some(Cow::Borrowed("T 1")),
            _ => None,
        };
        match mapping.apply(Item { path, value, unit: Some("mm"), attribute: &attribute }) {
            Ok(Some(m)) => {
                format!("{} {}={} [{}]", m.head, m.field, m.literal, m.unit.unwrap_or_default())
            }
            Ok(None) => "skipped".to_owned(),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn an_item_goes_where_the_first_rule_that_fits_it_says() {
        let text = r#"
            [[map]]
            item = "press/{line}/secret/#"
            skip = true
            [[map]]
            item = "press/{line}/temp"
            table = "press"
            field = "temperature"
            tags = { line = "{line}", tool = "{/tool}", gone = "{/gone}", kind = "{kind}" }
            scale = 0.1
            offset = -40
            unit = "C"
            [[map]]
            item = "press/{line}/{rest*}"
            field = "{rest}"
            type = "int"
        "#;
        let site = BTreeMap::from([("site".to_owned(), "x".to_owned())]);
        let mapping = Mapping::resolve(&rules(text), &ground(&site)).unwrap();
        let check = |path: &str, value, expected: &str| {
            assert_eq!(apply(&mapping, path, value), expected);
        };
        check(
            "press/7/temp",
            Value::I64(655),
            "press,kind=sample,line=7,site=x,tool=T\\ 1 temperature=25.5 [C]",
        );
        check("press/7/a/b", Value::F64(4.0), "plant,site=x a/b=4i [mm]");
        check("press/7/secret/pin", Value::I64(1), "skipped");
        check("oven/1", Value::I64(1), "skipped");
        check("press/7/a", Value::Text("x".into()), "press/7/a: `x` is no int");
        check(
            "press/7",
            Value::I64(1),
            "press/7: its rule needs `field`, which this item does not have",
        );
    }

    #[test]
    fn without_rules_every_item_is_taken_under_the_sources_own_names() {
        let tags = BTreeMap::new();
        let mapping = Mapping::resolve(&[], &ground(&tags)).unwrap();
        assert_eq!(apply(&mapping, "a/b", Value::Bool(true)), "plant value=true [mm]");
        assert_eq!(apply(&mapping, "a/b", Value::I64(1)), "plant value=1i [mm]");
        let floats = Ground { floats: true, ..ground(&tags) };
        let mapping = Mapping::resolve(&[], &floats).unwrap();
        assert_eq!(apply(&mapping, "a/b", Value::I64(1)), "plant value=1 [mm]");
    }

    #[test]
    fn every_problem_of_every_rule_is_said() {
        let text = r#"
            [[map]]
            item = "a/#/b"
            [[map]]
            item = "{x}"
            table = "{y}"
            field = ""
            scale = nan
            [[map]]
            type = "bool"
            scale = 2
            tags = { "" = "a" }
        "#;
        let said = Mapping::resolve(&rules(text), &ground(&BTreeMap::new())).unwrap_err();
        let said = said.join("\n");
        for expected in
            ["map 1: item", "`{y}` is no", "field: is empty", "finite", "map 3: tags", "go with"]
        {
            assert!(said.contains(expected), "{expected} is not in\n{said}");
        }
    }
}
