//! What must hold after every step: nothing lost, nothing doubled, no wrong value, no watermark
//! that differs from the ledger, counts that add up, queries that see what they saw.

use std::collections::BTreeMap;

use super::{
    machine::{DEVICES, Machine, TENANTS, stream_key, tenant_id},
    reference::{Cell, Fields, State, Stream},
    traffic::{HOUR_NS, NOW_NS, TABLES},
    wire,
};
use crate::{ScanRequest, TenantSnapshot};

/// The first difference, in words.
fn difference(seen: &BTreeMap<Cell, Fields>, expected: &BTreeMap<Cell, Fields>) -> Option<String> {
    if seen == expected {
        return None;
    }
    for (cell, fields) in expected {
        match seen.get(cell) {
            None => return Some(format!("lost: {cell:?} = {fields:?}")),
            Some(other) if other != fields => {
                return Some(format!("wrong value: {cell:?} = {other:?}, not {fields:?}"));
            }
            Some(_) => {}
        }
    }
    let phantom = seen.iter().find(|(cell, _)| !expected.contains_key(*cell));
    phantom.map(|(cell, fields)| format!("phantom: {cell:?} = {fields:?}"))
}

/// Every row of a snapshot, read in one of several shapes, which must not matter.
fn read(
    tenant: u8,
    snapshot: &TenantSnapshot,
    shape: u64,
) -> Result<BTreeMap<Cell, Fields>, String> {
    let mut out = BTreeMap::new();
    for (name, table) in snapshot.databases.values().flatten() {
        let rows = wire::read(tenant, name, table, |all| match shape {
            0 => all,
            _ => ScanRequest { group_rows: 3, partitions: 3, ..all },
        })?;
        if (rows.len() as u64) > table.rows_upper_bound() {
            let bound = table.rows_upper_bound();
            return Err(format!("{} rows of table {name}, which says {bound}", rows.len()));
        }
        out.extend(rows);
    }
    Ok(out)
}

impl Machine {
    fn streams() -> impl Iterator<Item = Stream> {
        (0..TENANTS).flat_map(|t| (0..DEVICES).map(move |d| (t, d)))
    }

    /// After a start: some choice of the unknown writes must explain what is there.
    pub fn check_after_start(&mut self) {
        let mut seen = State::default();
        for tenant in 0..TENANTS {
            let snapshot = self.shard().snapshot(tenant_id(tenant)).expect("fixed keys are there");
            let shape = self.dice.below(2);
            match read(tenant, &snapshot, shape) {
                Ok(rows) => seen.cells.extend(rows),
                Err(e) => self.violation(&e),
            }
        }
        for stream in Self::streams() {
            let mark = self.shard().watermark(tenant_id(stream.0), &stream_key(stream)).0;
            if mark > 0 {
                seen.marks.insert(stream, mark);
            }
        }
        if !self.reference.settle(|state| *state == seen) {
            let unknown = self.reference.unsettled();
            let what = difference(&seen.cells, &self.reference.now.cells).unwrap_or_default();
            let marks = (&seen.marks, &self.reference.now.marks);
            self.violation(&format!("{what}; marks {marks:?}; {unknown} writes unknown"));
        }
    }

    /// After any other step. `everything` reads all rows of one tenant; else a part of one table
    /// of each. (Starts and the end of a schedule read all rows of all tenants.)
    pub fn check(&mut self, everything: bool) {
        self.check_marks();
        let one = self.dice.below(u64::from(TENANTS)) as u8;
        for tenant in (0..TENANTS).filter(|t| !everything || *t == one) {
            let snapshot = self.shard().snapshot(tenant_id(tenant)).expect("fixed keys are there");
            let failed = if everything {
                let shape = self.dice.below(2);
                read(tenant, &snapshot, shape).and_then(|rows| self.compare(tenant, &rows))
            } else {
                self.check_part(tenant, &snapshot)
            };
            if let Err(what) = failed {
                self.violation(&what);
            }
        }
    }

    fn compare(&self, tenant: u8, seen: &BTreeMap<Cell, Fields>) -> Result<(), String> {
        let cells = &self.reference.now.cells;
        let expected: BTreeMap<Cell, Fields> = cells
            .iter()
            .filter(|(c, _)| c.0 == tenant)
            .map(|(c, f)| (c.clone(), f.clone()))
            .collect();
        difference(seen, &expected).map_or(Ok(()), Err)
    }

    /// One table, in a range of time: a pruned scan, and how many rows it counts.
    fn check_part(&self, tenant: u8, snapshot: &TenantSnapshot) -> Result<(), String> {
        let name = TABLES[self.dice.below(TABLES.len() as u64) as usize];
        let table = snapshot.databases.get("default").and_then(|d| d.get(name));
        let back = [2, 4, 60, 800][self.dice.below(4) as usize];
        let range = NOW_NS - back * HOUR_NS..NOW_NS + HOUR_NS;
        let cells = self.reference.now.table(tenant, name);
        let inside = cells.filter(|(cell, _)| range.contains(&cell.3));
        let expected: BTreeMap<Cell, Fields> =
            inside.map(|(c, f)| (c.clone(), f.clone())).collect();
        let Some(table) = table else {
            return if expected.is_empty() { Ok(()) } else { Err(format!("lost: table {name}")) };
        };
        let seen = wire::read(tenant, name, table, |all| ScanRequest { time: range, ..all })?;
        difference(&seen, &expected).map_or(Ok(()), Err)
    }

    fn check_marks(&mut self) {
        for stream in Self::streams() {
            let mark = self.shard().watermark(tenant_id(stream.0), &stream_key(stream)).0;
            let expected = self.reference.now.mark(stream);
            if mark != expected {
                self.violation(&format!("watermark of {stream:?} is {mark}, not {expected}"));
            }
        }
    }

    /// Running queries see what they saw when they began.
    pub fn check_held(&mut self) {
        for held in &self.held {
            let seen = read(held.tenant, &held.snapshot, 0);
            let wrong = seen.map(|seen| difference(&seen, &held.expected));
            match wrong {
                Ok(None) => {}
                Ok(Some(what)) => self.violation(&format!("a running query: {what}")),
                Err(e) => self.violation(&format!("a running query fails: {e}")),
            }
        }
    }
}
