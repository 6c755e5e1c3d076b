//! What a query must find: per series and column count, sum, smallest, largest, first and last.
//!
//! Owns: the figures, their naive addition, and the comparison of two manifests: what was sent
//! against what a query found. Exact: decimals are whole numbers of their last digit, texts are
//! 64-bit hashes whose wrapping sum does not depend on order.
//! Never: talks to a server (`verify` does).

use std::{collections::BTreeMap, fmt::Write};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A double of so many decimals, counted in units of the last one.
    Decimal(u32),
    /// An integer.
    Count,
    /// A text, counted as [`hash_of`] it.
    Text,
}

/// A field column of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
}

/// One value of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    /// The row has none.
    Absent,
    /// A count, or a decimal in units of its last digit.
    Number(i64),
    /// A text.
    Text(&'a str),
}

/// FNV-1a: the same everywhere, and good enough to tell two sets of texts apart.
pub fn hash_of(text: &str) -> i64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash as i64
}

/// Appends one row of line protocol: `head` ends with a space, `cells` has one per column.
pub fn write_line(out: &mut String, head: &str, columns: &[Column], cells: &[Cell<'_>], ns: i64) {
    out.push_str(head);
    let mut comma = "";
    for (column, cell) in columns.iter().zip(cells) {
        let name = column.name;
        // Writing to a String cannot fail.
        match (cell, column.kind) {
            (Cell::Absent, _) => continue,
            (Cell::Number(n), Kind::Decimal(digits)) => {
                let unit = 10u64.pow(digits);
                let (sign, n) = (if *n < 0 { "-" } else { "" }, n.unsigned_abs());
                let (whole, rest, width) = (n / unit, n % unit, digits as usize);
                write!(out, "{comma}{name}={sign}{whole}.{rest:0width$}").ok();
            }
            (Cell::Number(n), _) => drop(write!(out, "{comma}{name}={n}i")),
            (Cell::Text(text), _) => drop(write!(out, "{comma}{name}=\"{text}\"")),
        }
        comma = ",";
    }
    writeln!(out, " {ns}").ok();
}

/// The figures of one column in one series. A column without values has zeroes everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Values.
    pub count: u64,
    /// Their sum; of texts the wrapping sum of hashes.
    pub sum: i64,
    /// The smallest; 0 for texts.
    pub min: i64,
    /// The largest; 0 for texts.
    pub max: i64,
    /// Time and value of the first point.
    pub first: (i64, i64),
    /// Time and value of the last point.
    pub last: (i64, i64),
}

impl Facts {
    fn add(&mut self, time_ns: i64, cell: Cell<'_>) {
        let (value, ordered) = match cell {
            Cell::Absent => return,
            Cell::Number(n) => (n, n),
            Cell::Text(text) => (hash_of(text), 0),
        };
        if self.count == 0 {
            (self.min, self.max) = (ordered, ordered);
            (self.first, self.last) = ((time_ns, value), (time_ns, value));
        }
        self.count += 1;
        self.sum = self.sum.wrapping_add(value);
        self.min = self.min.min(ordered);
        self.max = self.max.max(ordered);
        if time_ns < self.first.0 {
            self.first = (time_ns, value);
        }
        if time_ns > self.last.0 {
            self.last = (time_ns, value);
        }
    }
}

/// One series.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeriesFacts {
    /// Rows, each counted once however often it was sent.
    pub rows: u64,
    /// One entry per column.
    pub columns: Vec<Facts>,
}

/// All series of one table, by the value of the tag that names them. A series is in it from its
/// first row on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// By name.
    pub series: BTreeMap<String, SeriesFacts>,
}

impl Manifest {
    /// Adds a row. A row that is sent again must not be added again.
    pub fn add(&mut self, series: &str, time_ns: i64, cells: &[Cell<'_>]) {
        if !self.series.contains_key(series) {
            let none = SeriesFacts { rows: 0, columns: vec![Facts::default(); cells.len()] };
            self.series.insert(series.to_owned(), none);
        }
        let Some(facts) = self.series.get_mut(series) else { return };
        facts.rows += 1;
        for (column, cell) in facts.columns.iter_mut().zip(cells) {
            column.add(time_ns, *cell);
        }
    }

    /// Rows of all series.
    pub fn rows(&self) -> u64 {
        self.series.values().map(|s| s.rows).sum()
    }

    /// Values of the columns for which `which` holds, over all series.
    pub fn values(&self, columns: &[Column], which: impl Fn(Kind) -> bool) -> u64 {
        let of = |s: &SeriesFacts| -> u64 {
            let all = columns.iter().zip(&s.columns);
            all.filter(|(c, _)| which(c.kind)).map(|(_, facts)| facts.count).sum()
        };
        self.series.values().map(of).sum()
    }

    /// Compares what was found with this, which is what must be there.
    pub fn compare(&self, columns: &[Column], found: &Manifest) -> Verdict {
        let mut verdict = Verdict::default();
        let none = SeriesFacts::default();
        for (name, expected) in &self.series {
            let found = found.series.get(name).unwrap_or(&none);
            verdict.lost += expected.rows.saturating_sub(found.rows);
            verdict.doubled += found.rows.saturating_sub(expected.rows);
            let all = columns.iter().zip(&expected.columns).zip(&found.columns);
            for ((column, expected), found) in all.filter(|((_, e), f)| e != f) {
                verdict
                    .note(|| format!("{name}, {}: {found:?} instead of {expected:?}", column.name));
            }
        }
        for (name, found) in found.series.iter().filter(|(n, _)| !self.series.contains_key(*n)) {
            verdict.doubled += found.rows;
            verdict.note(|| format!("series {name}, which nobody sent, has {} rows", found.rows));
        }
        verdict
    }
}

/// Differences shown of one comparison.
const SHOWN_MAX: usize = 5;

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Rows that were acked and not found.
    pub lost: u64,
    /// Rows that were found and not sent.
    pub doubled: u64,
    /// Columns of a series whose figures differ.
    pub wrong: u64,
    /// The first of them, for people.
    pub shown: Vec<String>,
}

impl Verdict {
    /// Whether everything is as it must be.
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.wrong == 0
    }

    /// Counts a difference and keeps its sentence if it is among the first.
    pub fn note(&mut self, sentence: impl FnOnce() -> String) {
        self.wrong += 1;
        if self.shown.len() < SHOWN_MAX {
            self.shown.push(sentence());
        }
    }

    /// Adds the outcome of another comparison; its sentences are put under `place`.
    pub fn merge(&mut self, place: &str, other: Verdict) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.wrong += other.wrong;
        let room = SHOWN_MAX.saturating_sub(self.shown.len());
        self.shown.extend(other.shown.into_iter().take(room).map(|s| format!("{place}: {s}")));
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} rows lost, {} doubled, {} figures wrong",
            self.lost, self.doubled, self.wrong
        )?;
        self.shown.iter().try_for_each(|sentence| write!(f, "\n  {sentence}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] = [
        Column { name: "a", kind: Kind::Decimal(3) },
        Column { name: "n", kind: Kind::Count },
        Column { name: "s", kind: Kind::Text },
    ];

    #[test]
    fn a_line_holds_what_is_there_and_decimals_keep_their_sign_and_digits() {
        let mut out = String::new();
        let cells = [Cell::Number(-5), Cell::Absent, Cell::Text("on")];
        write_line(&mut out, "t,m=x ", &COLUMNS, &cells, 7);
        write_line(&mut out, "t ", &COLUMNS[..2], &[Cell::Number(12_345), Cell::Number(3)], 8);
        assert_eq!(out, "t,m=x a=-0.005,s=\"on\" 7\nt a=12.345,n=3i 8\n");
    }

    #[test]
    fn order_of_arrival_changes_nothing() {
        let rows = [(3, 10), (1, -4), (2, 7)];
        let of = |order: [usize; 3]| {
            let mut manifest = Manifest::default();
            for at in order {
                let (time, value) = rows[at];
                manifest.add("x", time, &[Cell::Number(value), Cell::Absent, Cell::Text("on")]);
            }
            manifest
        };
        assert_eq!(of([0, 1, 2]), of([2, 0, 1]));
        let facts = of([0, 1, 2]).series["x"].columns[0];
        assert_eq!((facts.count, facts.sum, facts.min, facts.max), (3, 13, -4, 10));
        assert_eq!((facts.first, facts.last), ((1, -4), (3, 10)));
    }

    #[test]
    fn a_lost_a_doubled_a_changed_and_a_foreign_row_are_each_seen() {
        let add = |manifest: &mut Manifest, series: &str, time, value| {
            manifest.add(series, time, &[Cell::Number(value), Cell::Absent, Cell::Absent]);
        };
        let mut sent = Manifest::default();
        for series in ["a", "b", "c"] {
            add(&mut sent, series, 1, 1);
            add(&mut sent, series, 2, 2);
        }
        assert!(sent.compare(&COLUMNS, &sent).is_clean());
        let mut found = sent.clone();
        found.series.remove("a");
        add(&mut found, "b", 2, 2);
        found.series.get_mut("c").unwrap().columns[0].last.1 = 9;
        add(&mut found, "d", 1, 1);
        let verdict = sent.compare(&COLUMNS, &found);
        assert_eq!((verdict.lost, verdict.doubled, verdict.wrong), (2, 2, 3));
        assert!(!verdict.is_clean() && verdict.to_string().contains("series d, which nobody sent"));
    }
}
