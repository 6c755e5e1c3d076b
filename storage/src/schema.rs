//! The columns of a table.
//!
//! Owns: names, types and stable ids. Invariants: an id is given once and keeps its name and type;
//! tags and fields are only ever added; a name is a tag or a field, never both.

use millrace_protocol::value::FieldType;
use serde::{Deserialize, Serialize};

/// Columns that column files have by themselves: no tag and no field may take their names, or a
/// file would have two columns of one name and could not be written.
pub(crate) const RESERVED_NAMES: [&str; 2] = ["__sid", "time"];

/// A tag column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagColumn {
    /// Stable id, unique in the table.
    pub id: u32,
    /// Name.
    pub name: String,
}

/// A field column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldDef {
    /// Stable id, unique in the table; the Parquet field id.
    pub id: u32,
    /// Name.
    pub name: String,
    /// Type.
    pub ty: FieldType,
}

/// A table's columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table's number in its tenant.
    pub table_id: u64,
    /// The table's name in its database.
    pub name: String,
    /// Tags in the order in which they were first seen, which is the sort order of rows.
    pub tags: Vec<TagColumn>,
    /// Fields in the order in which they were first seen.
    pub fields: Vec<FieldDef>,
    /// Grows with every change.
    pub version: u64,
}

impl TableSchema {
    /// A table without columns (but for `time`, which every table has).
    pub fn new(table_id: u64, name: &str) -> Self {
        Self { table_id, name: name.to_owned(), tags: Vec::new(), fields: Vec::new(), version: 0 }
    }

    /// The tag of this name.
    pub fn tag(&self, name: &str) -> Option<&TagColumn> {
        self.tags.iter().find(|t| t.name == name)
    }

    /// The field of this name.
    pub fn field(&self, name: &str) -> Option<&FieldDef> {
        self.fields.iter().find(|f| f.name == name)
    }

    /// The field of this id.
    pub fn field_by_id(&self, id: u32) -> Option<&FieldDef> {
        self.fields.iter().find(|f| f.id == id)
    }

    /// An id that no column has. 1 and 2 are the series id and the time.
    pub fn next_column_id(&self) -> u32 {
        let tags = self.tags.iter().map(|t| t.id);
        let fields = self.fields.iter().map(|f| f.id);
        tags.chain(fields).max().unwrap_or(2).max(2).saturating_add(1)
    }
}
