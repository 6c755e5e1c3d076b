//! A prepared statement: its text, its places and its columns.
//!
//! Owns: what is known before values come. Never: plans; the session asks the engine.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use millrace_query::{Described, postgres};

use super::super::{refusal::Refusal, script::Kind};

/// Columns that a row can tell.
const COLUMNS_MAX: usize = 1664;

/// See the module head.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) kind: Kind,
    /// The type of each `$n`, as it is told.
    pub(super) oids: Vec<u32>,
    /// The places that the statement uses: number (from 1) and type.
    pub(super) places: Vec<(usize, DataType)>,
    /// The columns of its rows, if it has any.
    pub(super) schema: Option<SchemaRef>,
}

impl Statement {
    /// A statement for the engine, with the types that the client declared.
    pub(super) fn query(sql: &str, declared: &[u32], told: Described) -> Result<Self, Refusal> {
        if told.schema.fields().len() > COLUMNS_MAX {
            let text = format!("a row has at most {COLUMNS_MAX} columns here");
            return Err(Refusal::new("54011", text));
        }
        let mut places = Vec::new();
        let mut oids = declared.to_vec();
        for place in told.places {
            let number = place.name.parse::<usize>().ok().filter(|n| (1..=65_535).contains(n));
            let Some(number) = number else {
                let text = format!("parameters are `$1`, `$2` … here, not `${}`", place.name);
                return Err(Refusal::new("42P02", text));
            };
            if oids.len() < number {
                oids.resize(number, 0);
            }
            let data_type = place.data_type.unwrap_or(DataType::Utf8);
            places.push((number, data_type));
        }
        for (number, data_type) in &places {
            if let Some(oid) = number.checked_sub(1).and_then(|n| oids.get_mut(n))
                && matches!(*oid, 0 | 705)
            {
                *oid = postgres::types::of(data_type).oid;
            }
        }
        // A place that is not used takes anything.
        oids.iter_mut().filter(|oid| **oid == 0).for_each(|oid| *oid = postgres::types::TEXT.oid);
        let schema = Some(told.schema);
        Ok(Self { sql: sql.to_owned(), kind: Kind::Query, oids, places, schema })
    }

    /// One that never reaches the engine.
    pub(super) fn other(kind: Kind, schema: Option<SchemaRef>) -> Self {
        Self { sql: String::new(), kind, oids: Vec::new(), places: Vec::new(), schema }
    }
}

/// The rows of SHOW: one column for one setting, two for all.
pub(super) fn shown(
    name: &str,
    rows: &[(String, String)],
) -> Result<(SchemaRef, RecordBatch), Refusal> {
    let values: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.1)));
    let (fields, columns) = if name == "all" {
        let names: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.0)));
        (vec!["name", "setting"], vec![names, values])
    } else {
        (vec![name], vec![values])
    };
    let fields = fields.into_iter().map(|n| Field::new(n, DataType::Utf8, false));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns);
    Ok((schema, batch.map_err(|e| Refusal::new("XX000", e.to_string()))?))
}
