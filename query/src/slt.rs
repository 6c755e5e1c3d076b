//! Runs the SQL files of `query/tests/slt`, each against a small store of its own.
//!
//! Owns: their words beyond SQL: `write [database]` followed by lines of line protocol, and `flush`.
//! An error is shown as `code: message`. `UPDATE_EXPECT=1` writes the results into the files.

use std::{fmt, path::Path};

use datafusion::arrow::{
    datatypes::DataType,
    util::display::{ArrayFormatter, FormatOptions},
};
use sqllogictest::{DB, DBOutput, DefaultColumnType, Runner, default_column_validator};

use crate::{
    QueryError,
    fixture::{TENANT, World},
};

struct Store(World);

/// An error as the files show it.
#[derive(Debug)]
struct Refused(QueryError);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code().0, self.0)
    }
}

impl std::error::Error for Refused {}

fn kind(data_type: &DataType) -> DefaultColumnType {
    match data_type {
        DataType::Float64 => DefaultColumnType::FloatingPoint,
        t if t.is_integer() => DefaultColumnType::Integer,
        _ => DefaultColumnType::Text,
    }
}

impl DB for Store {
    type Error = Refused;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Refused> {
        if sql == "flush" {
            self.0.flush();
            return Ok(DBOutput::StatementComplete(0));
        }
        if let Some(lines) = sql.strip_prefix("write") {
            let (database, lines) = lines.split_once('\n').unwrap_or_default();
            let database = if database.is_empty() { "default" } else { database.trim() };
            self.0.write(TENANT, database, lines);
            return Ok(DBOutput::StatementComplete(0));
        }
        let batches = self.0.ask(sql).map_err(Refused)?;
        let Some(first) = batches.first() else {
            return Ok(DBOutput::Rows { types: Vec::new(), rows: Vec::new() });
        };
        let types = first.schema().fields().iter().map(|f| kind(f.data_type())).collect();
        let options = FormatOptions::new().with_null("NULL");
        let mut rows = Vec::new();
        for batch in &batches {
            let columns: Vec<ArrayFormatter<'_>> = batch
                .columns()
                .iter()
                .map(|c| ArrayFormatter::try_new(c.as_ref(), &options).unwrap())
                .collect();
            for row in 0..batch.num_rows() {
                let cell = |c: &ArrayFormatter<'_>| match c.value(row).to_string() {
                    empty if empty.is_empty() => "(empty)".to_owned(),
                    text => text,
                };
                rows.push(columns.iter().map(cell).collect());
            }
        }
        Ok(DBOutput::Rows { types, rows })
    }

    fn engine_name(&self) -> &str {
        "millrace"
    }
}

/// Each file's name, and its text as it was compiled.
const FILES: [(&str, &str); 4] = [
    ("asof", include_str!("../tests/slt/asof.slt")),
    ("gapfill", include_str!("../tests/slt/gapfill.slt")),
    ("over_time", include_str!("../tests/slt/over_time.slt")),
    ("tables", include_str!("../tests/slt/tables.slt")),
];

#[test]
fn every_statement_of_the_files_returns_what_stands_beneath_it() {
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    for (name, _) in FILES {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/slt/{name}.slt"));
        let mut runner = Runner::new(|| async { Ok(Store(World::empty())) });
        if update {
            futures::executor::block_on(runner.update_test_file(
                &file,
                " ",
                sqllogictest::default_validator,
                sqllogictest::default_normalizer,
                default_column_validator,
            ))
            .unwrap();
        } else if let Err(error) = runner.run_file(&file) {
            panic!("{name}: {error}");
        }
    }
    let asks = |l: &&str| l.starts_with("query") || l.starts_with("statement error");
    let all: usize = FILES.iter().map(|(_, text)| text.lines().filter(asks).count()).sum();
    assert!(all >= 150, "only {all} statements");
}
