//! Rows of line protocol from mapped items, and the rows that name their units.
//!
//! Owns: escaping of names, the merge of items of one moment and series into one row. Never: puts
//! two values of one field into a row: the second begins another.

use std::collections::BTreeSet;

use super::Mapped;

/// A name or tag value as line protocol writes it.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, ',' | '=' | ' ') {
            out.push('\\');
        }
        // A backslash before one of these would escape it; no name needs one.
        out.push(if c == '\\' || c.is_control() { '_' } else { c });
    }
    out
}

/// Table and tags as line protocol writes them; tags without a value are left out.
pub fn head<'a>(table: &str, tags: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = escaped(table);
    for (name, value) in tags.filter(|(_, value)| !value.is_empty()) {
        out.push(',');
        out.push_str(&escaped(name));
        out.push('=');
        out.push_str(&escaped(value));
    }
    out
}

#[derive(Debug)]
struct Row {
    head: String,
    time_ns: i64,
    /// Names of the fields that it has.
    fields: Vec<String>,
    text: String,
}

/// Items of one message, as rows.
#[derive(Debug, Default)]
pub struct Rows(Vec<Row>);

impl Rows {
    /// Takes an item in, to the row of its series and time if there is one.
    pub fn add(&mut self, item: Mapped, time_ns: i64) {
        let field = escaped(&item.field);
        let same = |r: &&mut Row| r.time_ns == time_ns && r.head == item.head;
        if let Some(row) = self.0.iter_mut().rev().find(same)
            && !row.fields.contains(&field)
        {
            row.text.push(',');
            row.text.push_str(&field);
            row.text.push('=');
            row.text.push_str(&item.literal);
            row.fields.push(field);
            return;
        }
        let text = format!("{} {field}={}", item.head, item.literal);
        self.0.push(Row { head: item.head, time_ns, fields: vec![field], text });
    }

    /// Each as one line with its end.
    pub fn into_lines(self) -> Vec<String> {
        self.0.into_iter().map(|r| format!("{} {}\n", r.text, r.time_ns)).collect()
    }
}

/// Units that were told since the start, so that each is told once.
#[derive(Debug, Default)]
pub struct Units(BTreeSet<(String, String, String)>);

/// Units kept at most: a source must not fill the memory with names.
const UNITS_MAX: usize = 20_000;

impl Units {
    /// The row that names the unit of a column, the first time that it is seen.
    pub fn row(&mut self, table: &str, field: &str, unit: &str, now_ns: i64) -> Option<String> {
        if unit.is_empty() || self.0.len() >= UNITS_MAX {
            return None;
        }
        let key = (table.to_owned(), field.to_owned(), unit.to_owned());
        if !self.0.insert(key) {
            return None;
        }
        let text = unit.replace(['"', '\\', '\n', '\r'], "_");
        let (table, field) = (escaped(table), escaped(field));
        Some(format!("edge_units,field={field},table={table} unit=\"{text}\" {now_ns}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(head: &str, field: &str, literal: &str) -> Mapped {
        Mapped {
            head: head.into(),
            table: String::new(),
            field: field.into(),
            literal: literal.into(),
            unit: None,
        }
    }

    #[test]
    fn items_of_one_moment_and_series_are_one_row_and_no_value_is_lost() {
        let mut rows = Rows::default();
        rows.add(mapped("t,a=1", "x", "1i"), 5);
        rows.add(mapped("t,a=2", "x", "2i"), 5);
        rows.add(mapped("t,a=1", "y z", "3i"), 5);
        rows.add(mapped("t,a=1", "x", "4i"), 5);
        rows.add(mapped("t,a=1", "x", "5i"), 6);
        let lines = rows.into_lines();
        let expected =
            ["t,a=1 x=1i,y\\ z=3i 5\n", "t,a=2 x=2i 5\n", "t,a=1 x=4i 5\n", "t,a=1 x=5i 6\n"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_unit_is_told_once() {
        let mut units = Units::default();
        assert!(units.row("t", "f", "bar", 1).unwrap().starts_with("edge_units,field=f,table=t "));
        assert_eq!(units.row("t", "f", "bar", 2), None);
        assert_eq!(units.row("t", "f", "", 2), None);
        assert!(units.row("t", "f", "psi", 3).is_some());
    }
}
