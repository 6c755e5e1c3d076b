//! The reference: a sorted map and a list of what was acknowledged. A few lines on purpose.

use std::collections::BTreeMap;

/// (table, host, time).
pub type Cell = (String, String, i64);
/// Field `a` and field `b`.
pub type Value = (Option<f64>, Option<String>);

/// One row to write.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub table: &'static str,
    pub host: String,
    pub time: i64,
    pub a: Option<f64>,
    pub b: Option<String>,
}

/// What the store must hold.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model(pub BTreeMap<Cell, Value>);

impl Model {
    /// Last write wins, field by field.
    pub fn apply(&mut self, rows: &[Row]) {
        for row in rows {
            let cell = (row.table.to_owned(), row.host.clone(), row.time);
            let slot = self.0.entry(cell).or_default();
            if row.a.is_some() {
                slot.0 = row.a;
            }
            if row.b.is_some() {
                slot.1.clone_from(&row.b);
            }
        }
    }

    pub fn with(&self, rows: &[Row]) -> Self {
        let mut out = self.clone();
        out.apply(rows);
        out
    }
}
