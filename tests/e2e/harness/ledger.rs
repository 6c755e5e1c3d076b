//! The client's own books: which rows it sent, which of them were acknowledged.
//!
//! Owns: the verdict. A row that was acked must be there once; a row that was sent without an
//! answer may be there once or not at all; nothing else may be there.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http::Client;

/// One row's name: who wrote it, and its number.
pub type RowName = (u64, u64);

/// What is known about a row that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// No answer came: it may be there or not.
    Unanswered,
    /// The server said that it is safe.
    Acked,
}

/// The difference between the books and the database.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acked, but not there.
    pub missing: u64,
    /// There more than once.
    pub doubled: u64,
    /// There, but never sent.
    pub phantom: u64,
}

impl Verdict {
    /// Fails the test unless the books agree.
    #[track_caller]
    pub fn is_clean(&self, moment: &str) {
        assert_eq!(*self, Self::default(), "{moment}");
    }
}

/// The books.
#[derive(Debug, Default)]
pub struct Ledger {
    rows: BTreeMap<RowName, Sent>,
}

impl Ledger {
    /// Notes rows about to be sent, before the first byte leaves.
    pub fn sending(&mut self, rows: impl IntoIterator<Item = RowName>) {
        for row in rows {
            self.rows.entry(row).or_insert(Sent::Unanswered);
        }
    }

    /// Notes that the server acknowledged these rows.
    pub fn acked(&mut self, rows: impl IntoIterator<Item = RowName>) {
        for row in rows {
            self.rows.insert(row, Sent::Acked);
        }
    }

    /// Rows sent so far.
    pub fn sent(&self) -> usize {
        self.rows.len()
    }

    /// Rows acked so far.
    pub fn acked_rows(&self) -> usize {
        self.rows.values().filter(|s| **s == Sent::Acked).count()
    }

    /// Compares with what a query found: each row's name as often as it was found.
    pub fn judge(&self, found: &BTreeMap<RowName, u64>) -> Verdict {
        let mut verdict = Verdict::default();
        for (row, sent) in &self.rows {
            let times = found.get(row).copied().unwrap_or(0);
            verdict.missing += u64::from(times == 0 && *sent == Sent::Acked);
            verdict.doubled += times.saturating_sub(1);
        }
        verdict.phantom = found.keys().filter(|row| !self.rows.contains_key(row)).count() as u64;
        verdict
    }

    /// Reads every row of a table written by the ledger's writers (tag `writer`, integer field
    /// `n`) and compares.
    pub fn check(&self, client: &Client, db: &str, table: &str) -> Verdict {
        self.judge(&found(client, db, table))
    }
}

/// Every row of a table as the ledger names them, with how often each was found.
pub fn found(client: &Client, db: &str, table: &str) -> BTreeMap<RowName, u64> {
    let answer = client.sql_as(db, &format!("SELECT writer, n FROM {table}"), "jsonl");
    let mut found = BTreeMap::new();
    if answer.status == 404 || (answer.status == 400 && answer.text().contains("not found")) {
        // Nothing was ever stored: the table does not exist.
        return found;
    }
    assert_eq!(answer.status, 200, "{}", answer.text());
    for line in answer.text().lines().filter(|l| !l.is_empty()) {
        let row: Value = serde_json::from_str(line).expect("one JSON object per line");
        let writer = row["writer"].as_str().and_then(|w| w.parse().ok());
        let n = row["n"].as_u64();
        let name = (writer.expect("a writer's number"), n.expect("a row number"));
        *found.entry(name).or_insert(0) += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_books_find_what_is_missing_doubled_and_made_up() {
        let mut ledger = Ledger::default();
        ledger.sending([(1, 1), (1, 2), (1, 3)]);
        ledger.acked([(1, 1), (1, 2)]);
        let kept = BTreeMap::from([((1, 1), 1), ((1, 2), 1)]);
        assert_eq!(ledger.judge(&kept), Verdict::default());
        let wrong = BTreeMap::from([((1, 1), 2), ((7, 7), 1)]);
        assert_eq!(ledger.judge(&wrong), Verdict { missing: 1, doubled: 1, phantom: 1 });
    }
}
