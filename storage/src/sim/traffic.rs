//! What clients of the simulation send: rows of a small space, so that series, times and fields
//! collide often, over several windows from now back to weeks ago.

use std::collections::BTreeSet;

use millrace_platform::sim::SimEntropy;

use super::reference::{Fields, Row, Tags, Value};

pub const MINUTE_NS: i64 = 60 * 1_000_000_000;
pub const HOUR_NS: i64 = 60 * MINUTE_NS;
/// Where the simulation's time starts.
pub const NOW_NS: i64 = 10_000 * HOUR_NS;
/// Rows up to this far ahead of the clock are taken.
pub const FUTURE_NS: i64 = 15 * MINUTE_NS;
pub const TABLES: [&str; 2] = ["cpu", "press"];

/// A row as it is sent, and what of it must be kept if its time is allowed when it arrives:
/// nothing if it must be refused.
#[derive(Debug, Clone)]
pub struct Sent {
    pub row: Row,
    pub kept: Option<Row>,
}

/// One client's view of time: which windows it writes to.
#[derive(Debug)]
pub struct Traffic {
    /// Hours back, one of them per row. Each is one window, so that a flush makes few files:
    /// reading them back is what a schedule costs.
    ages: [i64; 3],
}

impl Traffic {
    /// Live rows, and two kinds of late ones: hours to weeks old.
    pub fn new(dice: &SimEntropy) -> Self {
        let late = [3, 9, 50, 170, 336, 700];
        let pick = || late[dice.below(late.len() as u64) as usize];
        Self { ages: [0, pick(), pick()] }
    }

    /// Rows of a write. `typed` names the tables whose field `a` is known to hold floats.
    pub fn rows(&self, dice: &SimEntropy, count: u64, typed: &BTreeSet<&'static str>) -> Vec<Sent> {
        (0..count).map(|_| self.row(dice, typed)).collect()
    }

    fn row(&self, dice: &SimEntropy, typed: &BTreeSet<&'static str>) -> Sent {
        let age = self.ages[dice.below(8).saturating_sub(5) as usize] * HOUR_NS;
        let time = NOW_NS - age - (1 + dice.below(8) as i64) * 5 * MINUTE_NS;
        let table = TABLES[usize::from(dice.below(4) == 0)];
        let row = Row { table, tags: tags(dice), time, fields: fields(dice) };
        let sent = |row: Row, kept: Option<Row>| Sent { row, kept };
        match dice.below(24) {
            0 if typed.contains(table) => {
                // A text where the table holds floats.
                let mut other = row;
                other.fields.insert("a".into(), Value::Text("no number".into()));
                sent(other, None)
            }
            1 if typed.contains(table) => {
                // A tag of a field's name.
                let mut other = row;
                other.tags.insert(0, ("a".into(), "x".into()));
                sent(other, None)
            }
            2 if typed.contains(table) => {
                // A whole number, which a float holds without loss.
                let (mut whole, mut kept) = (row.clone(), row);
                let n = dice.below(100) as i64;
                whole.fields.insert("a".into(), Value::Int(n));
                kept.fields.insert("a".into(), Value::Float((n as f64).to_bits()));
                sent(whole, Some(kept))
            }
            _ => sent(row.clone(), Some(row)),
        }
    }
}

/// Whether rows that were kept make it certain that the table's field `a` holds floats.
pub fn types_a(row: &Row) -> bool {
    matches!(row.fields.get("a"), Some(Value::Float(_)))
}

fn tags(dice: &SimEntropy) -> Tags {
    let mut tags = vec![("host".to_owned(), format!("h{}", dice.below(3)))];
    // A tag that most tables get to know late.
    if dice.below(6) == 0 {
        tags.push(("zone".to_owned(), format!("z{}", dice.below(2))));
    }
    tags
}

fn fields(dice: &SimEntropy) -> Fields {
    let mut fields = Fields::new();
    if dice.below(3) > 0 {
        fields.insert("a".into(), Value::Float((dice.below(1000) as f64 / 10.0).to_bits()));
    }
    if dice.below(3) == 0 {
        fields.insert("b".into(), Value::Text(format!("s{}", dice.below(10))));
    }
    // Fields that most tables get to know late.
    match dice.below(12) {
        0 => drop(fields.insert("c".into(), Value::Int(dice.below(9) as i64))),
        1 => drop(fields.insert("d".into(), Value::Flag(dice.below(2) == 0))),
        _ => {}
    }
    if fields.is_empty() {
        fields.insert("a".into(), Value::Float(0));
    }
    fields
}
