//! Many small tenants: a few tables each, a few rows at a time.
//!
//! Owns: the rows of each tenant and round, and a manifest per tenant and table. Every row carries
//! its tenant's number, so a row that shows up under another tenant changes that one's figures.
//! Same options, same bytes, whoever is asked first.

use serde_json::Value;

use crate::{
    http::Connection,
    manifest::{Cell, Column, Kind, Manifest, Verdict, write_line},
    random::Random,
    server::Failed,
    verify::{self, Table},
};

/// The tag that names a series.
pub const SERIES_TAG: &str = "unit";
/// The fields.
pub const COLUMNS: [Column; 3] = [
    Column { name: "value", kind: Kind::Decimal(3) },
    Column { name: "count", kind: Kind::Count },
    Column { name: "owner", kind: Kind::Count },
];
/// Series per table.
const UNITS: usize = 2;
/// Seconds between two rows of a series.
const STEP_S: u64 = 10;

/// What is generated.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Same seed, same rows.
    pub seed: u64,
    /// Tenants.
    pub tenants: usize,
    /// Tables of each.
    pub tables: usize,
    /// Rows per table and request.
    pub rows: usize,
    /// Time of the first row, seconds since the Unix epoch.
    pub start_s: u64,
}

/// The name of a tenant's table.
pub fn table(number: usize) -> String {
    format!("device_{number}")
}

/// The body that a tenant sends in a round, added to the tenant's manifests (one per table).
pub fn body(options: &Options, tenant: usize, round: u64, manifests: &mut [Manifest]) -> Vec<u8> {
    let mut random = Random::at(options.seed, [tenant as u64, round]);
    let mut out = String::with_capacity(options.tables * options.rows * 80);
    for (number, manifest) in manifests.iter_mut().enumerate().take(options.tables) {
        let table = table(number);
        for row in 0..options.rows {
            let nth = round * options.rows as u64 + row as u64;
            let unit = format!("u{}", nth % UNITS as u64);
            let time_ns = (options.start_s + nth * STEP_S) as i64 * 1_000_000_000;
            let value = 20_000 + (random.normal() * 500.0).round() as i64;
            let cells =
                [Cell::Number(value), Cell::Number(nth as i64), Cell::Number(tenant as i64)];
            let head = format!("{table},{SERIES_TAG}={unit} ");
            write_line(&mut out, &head, &COLUMNS, &cells, time_ns);
            manifest.add(&unit, time_ns, &cells);
        }
    }
    out.into_bytes()
}

/// Tables in one query: more are more than the server takes in one.
const TABLES_PER_QUERY: usize = 4;

/// Asks the tenant that `connection` speaks for for all its tables, some in each query.
pub fn check(connection: &mut Connection, manifests: &[Manifest]) -> Result<Verdict, Failed> {
    let mut verdict = Verdict::default();
    let sent: Vec<(String, &Manifest)> = manifests
        .iter()
        .enumerate()
        .filter(|(_, manifest)| manifest.rows() > 0)
        .map(|(number, manifest)| (table(number), manifest))
        .collect();
    let one = |(name, _): &(String, &Manifest)| {
        verify::sql(&Table { name, series_tag: SERIES_TAG, columns: &COLUMNS })
    };
    let queries: Vec<String> = sent.iter().map(one).collect();
    let mut rows = Vec::new();
    for some in queries.chunks(TABLES_PER_QUERY) {
        rows.extend(connection.ask(&some.join(" UNION ALL "))?);
    }
    for (name, expected) in sent {
        let of = |row: &&Value| row.get("of_table").and_then(Value::as_str) == Some(&name);
        let own: Vec<Value> = rows.iter().filter(of).cloned().collect();
        let (found, inexact) = verify::found(&own, &COLUMNS);
        verdict.merge(&name, verify::judge(&COLUMNS, expected, &found, inexact));
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options =
        Options { seed: 5, tenants: 3, tables: 2, rows: 4, start_s: 1_800_000_000 };

    /// A value of a line: `name=` up to the next comma, space or `i`.
    fn number(line: &str, name: &str) -> i64 {
        let from = line.find(&format!("{name}=")).unwrap() + name.len() + 1;
        let digits = line[from..].split([',', ' ', 'i']).next().unwrap();
        digits.replace('.', "").parse().unwrap()
    }

    #[test]
    fn tenants_and_rounds_are_independent_and_repeatable() {
        let of = |tenant, round| body(&OPTIONS, tenant, round, &mut vec![Manifest::default(); 2]);
        assert_eq!(of(1, 3), of(1, 3));
        assert_ne!(of(1, 3), of(2, 3));
        assert_ne!(of(1, 3), of(1, 2));
    }

    #[test]
    fn the_manifest_is_what_a_naive_recount_finds() {
        let mut manifests = vec![Manifest::default(); OPTIONS.tables];
        let mut text = String::new();
        for round in 0..3 {
            text += &String::from_utf8(body(&OPTIONS, 2, round, &mut manifests)).unwrap();
        }
        for (number_of_table, manifest) in manifests.iter().enumerate() {
            for (unit, facts) in &manifest.series {
                let head = format!("{},{SERIES_TAG}={unit} ", table(number_of_table));
                let lines: Vec<&str> = text.lines().filter(|l| l.starts_with(&head)).collect();
                assert_eq!(lines.len() as u64, facts.rows);
                for (column, facts) in COLUMNS.iter().zip(&facts.columns) {
                    let values = || lines.iter().map(|l| number(l, column.name));
                    let time = |l: &str| l.rsplit(' ').next().unwrap().parse::<i64>().unwrap();
                    assert_eq!(values().sum::<i64>(), facts.sum);
                    assert_eq!(values().min(), Some(facts.min));
                    assert_eq!(values().max(), Some(facts.max));
                    assert_eq!((time(lines[0]), values().next().unwrap()), facts.first);
                    let last = lines.last().unwrap();
                    assert_eq!((time(last), number(last, column.name)), facts.last);
                }
                assert_eq!(facts.columns[2].min, 2, "every row names its tenant");
            }
        }
        assert_eq!(manifests.iter().map(Manifest::rows).sum::<u64>(), 3 * 2 * 4);
    }
}
