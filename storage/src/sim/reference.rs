//! The reference: what the store must hold, said as plainly as possible.
//!
//! A sorted map from (tenant, table, series, time) to fields, where the last write wins field by
//! field; a ledger of what each stream has been acknowledged; and the list of writes whose answer
//! was an error, which after the next start are there whole or not at all, in log order.
//! Deletions take rows that are there when they come: of one table, of one host or all, in a range of time.
//! Never: shares code with the store.

use std::collections::BTreeMap;

/// A field's value; floats by their bits, so that equal means equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Float(u64),
    Int(i64),
    Flag(bool),
    Text(String),
}

/// (name, value) pairs, sorted by name.
pub type Tags = Vec<(String, String)>;
/// Fields by name.
pub type Fields = BTreeMap<String, Value>;
/// (tenant, table, series, time in ns).
pub type Cell = (u8, String, Tags, i64);
/// (tenant, device).
pub type Stream = (u8, u8);

/// One row as a client sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub table: &'static str,
    pub tags: Tags,
    pub time: i64,
    pub fields: Fields,
}

/// One write as a client sends it.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    pub tenant: u8,
    /// Device, first and last number, for a write with numbers.
    pub numbers: Option<(u8, u64, u64)>,
    /// Rows that must be taken. Those that must be refused are not the reference's business.
    pub rows: Vec<Row>,
}

/// A deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    pub tenant: u8,
    pub table: &'static str,
    /// The value of tag `host`; all if none.
    pub host: Option<String>,
    /// First and last time.
    pub times: (i64, i64),
    /// The whole table goes.
    pub drop: bool,
}

impl Delete {
    fn takes(&self, cell: &Cell) -> bool {
        let host = |tags: &Tags| tags.iter().find(|(n, _)| n == "host").map(|(_, v)| v.clone());
        cell.0 == self.tenant
            && cell.1 == self.table
            && (self.host.is_none() || host(&cell.2) == self.host)
            && (self.times.0..=self.times.1).contains(&cell.3)
    }
}

/// Something that changes what is there.
#[derive(Debug, Clone, PartialEq)]
enum Change {
    Write(Write),
    Delete(Delete),
}

/// What is there, for certain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Every row.
    pub cells: BTreeMap<Cell, Fields>,
    /// The ledger: for each stream the number up to which every row was acknowledged.
    pub marks: BTreeMap<Stream, u64>,
}

impl State {
    /// Takes a write over.
    pub fn apply(&mut self, write: &Write) {
        for row in &write.rows {
            let cell = (write.tenant, row.table.to_owned(), row.tags.clone(), row.time);
            let fields = self.cells.entry(cell).or_default();
            fields.extend(row.fields.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
        if let Some((device, _, last)) = write.numbers {
            self.marks.insert((write.tenant, device), last);
        }
    }

    /// Takes rows away.
    pub fn delete(&mut self, delete: &Delete) {
        self.cells.retain(|cell, _| !delete.takes(cell));
    }

    fn change(&mut self, change: &Change) {
        match change {
            Change::Write(write) => self.apply(write),
            Change::Delete(delete) => self.delete(delete),
        }
    }

    /// The rows of one table of one tenant.
    pub fn table<'a>(
        &'a self,
        tenant: u8,
        table: &str,
    ) -> impl Iterator<Item = (&'a Cell, &'a Fields)> {
        let from = (tenant, table.to_owned(), Vec::new(), i64::MIN);
        let table = table.to_owned();
        self.cells.range(from..).take_while(move |(cell, _)| cell.0 == tenant && cell.1 == table)
    }

    /// The number up to which a stream was acknowledged.
    pub fn mark(&self, stream: Stream) -> u64 {
        self.marks.get(&stream).copied().unwrap_or(0)
    }
}

/// The reference of one store.
#[derive(Debug, Clone, Default)]
pub struct Reference {
    /// What is there now.
    pub now: State,
    /// What was there before the oldest write that is not settled.
    settled: State,
    /// Writes since then in log order, and whether each was acknowledged.
    open: Vec<(Change, bool)>,
}

impl Reference {
    /// A write that was acknowledged.
    pub fn acknowledged(&mut self, write: Write) {
        self.now.apply(&write);
        if !self.open.is_empty() {
            self.open.push((Change::Write(write), true));
        }
    }

    /// A write whose answer was an error that does not say that nothing was kept.
    pub fn unknown(&mut self, write: Write) {
        if self.open.is_empty() {
            self.settled = self.now.clone();
        }
        self.open.push((Change::Write(write), false));
    }

    /// A deletion, and whether it was acknowledged.
    ///
    /// A write of unknown outcome is in the log behind everything that was durable, or nowhere: if
    /// it turns up, it turns up after the deletion. Of a dropped table it never turns up.
    pub fn deleted(&mut self, delete: Delete, acknowledged: bool) {
        if self.open.is_empty() {
            self.settled = self.now.clone();
        }
        if acknowledged {
            self.now.delete(&delete);
        }
        let known = |(change, sure): &(Change, bool)| *sure || matches!(change, Change::Delete(_));
        let at = if delete.drop {
            self.open.len()
        } else {
            self.open.sort_by_key(|entry| !known(entry));
            self.open.iter().filter(|entry| known(entry)).count()
        };
        if acknowledged && self.open.is_empty() {
            return;
        }
        self.open.insert(at, (Change::Delete(delete), acknowledged));
    }

    /// How many writes are not settled.
    pub fn unsettled(&self) -> usize {
        self.open.iter().filter(|(_, acknowledged)| !acknowledged).count()
    }

    /// After a start: finds the choice of unknown writes that explains what `matches` looks at,
    /// takes it as the truth, and says whether there was one.
    pub fn settle(&mut self, matches: impl Fn(&State) -> bool) -> bool {
        let unknown = self.unsettled();
        let found = (0..1u32 << unknown).map(|choice| self.with(choice)).find(|s| matches(s));
        let Some(found) = found else { return false };
        self.now = found;
        self.open.clear();
        true
    }

    /// The state with those unknown writes that `choice` has a bit for.
    fn with(&self, choice: u32) -> State {
        if self.open.is_empty() {
            return self.now.clone();
        }
        let mut state = self.settled.clone();
        let mut bit = 0;
        for (write, acknowledged) in &self.open {
            if *acknowledged {
                state.change(write);
                continue;
            }
            if choice >> bit & 1 == 1 {
                state.change(write);
            }
            bit += 1;
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: i64, numbers: Option<(u8, u64, u64)>) -> Write {
        let fields = Fields::from([("v".to_owned(), Value::Int(value))]);
        let row = Row { table: "t", tags: Vec::new(), time: 1, fields };
        Write { tenant: 0, numbers, rows: vec![row] }
    }

    fn value(state: &State) -> i64 {
        match state.cells.values().next().and_then(|f| f.get("v")) {
            Some(Value::Int(v)) => *v,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_last_write_wins_field_by_field() {
        let mut state = State::default();
        let mut other = write(0, None);
        other.rows[0].fields = Fields::from([("w".to_owned(), Value::Flag(true))]);
        for w in [write(1, None), other, write(2, Some((3, 1, 9)))] {
            state.apply(&w);
        }
        assert_eq!(value(&state), 2);
        assert_eq!(state.cells.values().next().unwrap().len(), 2);
        assert_eq!((state.mark((0, 3)), state.mark((0, 4))), (9, 0));
    }

    #[test]
    fn an_unknown_write_is_there_or_not_and_never_over_a_later_acknowledged_one() {
        let mut reference = Reference::default();
        reference.acknowledged(write(1, None));
        reference.unknown(write(2, Some((1, 1, 4))));
        assert_eq!(value(&reference.now), 1, "until a start nobody sees it");
        let mut kept = reference.clone();
        assert!(kept.settle(|s| value(s) == 2 && s.mark((0, 1)) == 4));
        let mut later = reference.clone();
        later.acknowledged(write(3, None));
        assert!(!later.clone().settle(|s| value(s) == 2), "the later write counts");
        assert!(later.settle(|s| value(s) == 3 && s.mark((0, 1)) == 4));
        assert_eq!(later.unsettled(), 0);
        assert!(reference.settle(|s| value(s) == 1 && s.mark((0, 1)) == 0));
    }
}
