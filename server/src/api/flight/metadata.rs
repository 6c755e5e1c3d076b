//! What Flight SQL clients ask about the server itself: catalogues, schemas, tables, types.
//!
//! Owns: the answers. There is one catalogue, `millrace`; its schemas are the tenant's databases
//! and the two that stand in each. Never: lists what the caller could not query.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use arrow_flight::{
    error::FlightError,
    sql::{
        Command, Nullable, Searchable, SqlInfo, SqlSupportedTransaction, XdbcDataType,
        metadata::{
            SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData,
            XdbcTypeInfoDataBuilder,
        },
    },
};
use millrace_query::Listed;

use super::rows::plain_schema;

/// The one catalogue.
const CATALOG: &str = "millrace";
/// What a tenant wrote, and what is made when it is read.
const TABLE_TYPES: [&str; 2] = ["TABLE", "VIEW"];

/// Whether a command asks for metadata.
pub(super) fn is_metadata(command: &Command) -> bool {
    use Command as C;
    matches!(
        command,
        C::CommandGetCatalogs(_)
            | C::CommandGetDbSchemas(_)
            | C::CommandGetTables(_)
            | C::CommandGetTableTypes(_)
            | C::CommandGetSqlInfo(_)
            | C::CommandGetPrimaryKeys(_)
            | C::CommandGetExportedKeys(_)
            | C::CommandGetImportedKeys(_)
            | C::CommandGetCrossReference(_)
            | C::CommandGetXdbcTypeInfo(_)
    )
}

/// Whether the answer needs the list of tables.
pub(super) fn needs_tables(command: &Command) -> bool {
    matches!(command, Command::CommandGetDbSchemas(_) | Command::CommandGetTables(_))
}

/// The answer to a metadata command, over the tables that the caller has; none is the same answer
/// without rows that name tables, which is enough to tell its columns.
pub(super) fn answer(command: Command, tables: &[Listed]) -> Result<RecordBatch, FlightError> {
    use Command as C;
    match command {
        C::CommandGetCatalogs(ask) => {
            let mut out = ask.into_builder();
            out.append(CATALOG);
            out.build()
        }
        C::CommandGetDbSchemas(ask) => {
            let mut out = ask.into_builder();
            let mut last = None;
            for listed in tables {
                if last.replace(&listed.database) != Some(&listed.database) {
                    out.append(CATALOG, &listed.database);
                }
            }
            out.build()
        }
        C::CommandGetTables(ask) => {
            let mut out = ask.into_builder();
            for l in tables {
                let kind = TABLE_TYPES[usize::from(l.view)];
                out.append(CATALOG, &l.database, &l.table, kind, &plain_schema(&l.schema))?;
            }
            out.build()
        }
        C::CommandGetTableTypes(ask) => {
            let mut out = ask.into_builder();
            TABLE_TYPES.iter().for_each(|t| out.append(t));
            out.build()
        }
        C::CommandGetSqlInfo(ask) => ask.into_builder(&about()?).build(),
        C::CommandGetXdbcTypeInfo(ask) => ask.into_builder(&types()?).build(),
        C::CommandGetPrimaryKeys(_) => Ok(RecordBatch::new_empty(primary_keys())),
        _ => Ok(RecordBatch::new_empty(foreign_keys())),
    }
}

fn columns(columns: &[(&str, DataType, bool)]) -> SchemaRef {
    let fields = columns.iter().map(|(name, ty, null)| Field::new(*name, ty.clone(), *null));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A table has no declared key: tags and time are its identity, and that is no SQL key.
fn primary_keys() -> SchemaRef {
    columns(&[
        ("catalog_name", DataType::Utf8, true),
        ("db_schema_name", DataType::Utf8, true),
        ("table_name", DataType::Utf8, false),
        ("column_name", DataType::Utf8, false),
        ("key_name", DataType::Utf8, true),
        ("key_sequence", DataType::Int32, false),
    ])
}

fn foreign_keys() -> SchemaRef {
    columns(&[
        ("pk_catalog_name", DataType::Utf8, true),
        ("pk_db_schema_name", DataType::Utf8, true),
        ("pk_table_name", DataType::Utf8, false),
        ("pk_column_name", DataType::Utf8, false),
        ("fk_catalog_name", DataType::Utf8, true),
        ("fk_db_schema_name", DataType::Utf8, true),
        ("fk_table_name", DataType::Utf8, false),
        ("fk_column_name", DataType::Utf8, false),
        ("key_sequence", DataType::Int32, false),
        ("fk_key_name", DataType::Utf8, true),
        ("pk_key_name", DataType::Utf8, true),
        ("update_rule", DataType::UInt8, false),
        ("delete_rule", DataType::UInt8, false),
    ])
}

fn about() -> Result<SqlInfoData, FlightError> {
    let mut out = SqlInfoDataBuilder::new();
    out.append(SqlInfo::FlightSqlServerName, "Millrace");
    out.append(SqlInfo::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    // The Arrow columnar format that is spoken, not the library's version.
    out.append(SqlInfo::FlightSqlServerArrowVersion, "1.3");
    out.append(SqlInfo::FlightSqlServerReadOnly, true);
    out.append(SqlInfo::FlightSqlServerSql, true);
    out.append(SqlInfo::FlightSqlServerSubstrait, false);
    out.append(SqlInfo::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    out.append(SqlInfo::FlightSqlServerCancel, false);
    out.append(SqlInfo::SqlIdentifierQuoteChar, "\"");
    out.append(SqlInfo::SqlCatalogTerm, "server");
    out.append(SqlInfo::SqlSchemaTerm, "database");
    out.append(SqlInfo::SqlDdlCatalog, false);
    out.append(SqlInfo::SqlDdlSchema, false);
    out.append(SqlInfo::SqlDdlTable, false);
    out.build()
}

fn kind(name: &str, ty: XdbcDataType, size: i32, quoted: bool) -> XdbcTypeInfo {
    let quote = quoted.then(|| "'".to_owned());
    XdbcTypeInfo {
        type_name: name.to_owned(),
        data_type: ty,
        column_size: Some(size),
        literal_prefix: quote.clone(),
        literal_suffix: quote,
        nullable: Nullable::NullabilityNullable,
        case_sensitive: quoted,
        searchable: Searchable::Full,
        unsigned_attribute: (!quoted).then_some(name.ends_with("UNSIGNED")),
        auto_increment: Some(false),
        local_type_name: Some(name.to_owned()),
        sql_data_type: ty,
        ..XdbcTypeInfo::default()
    }
}

/// The types that columns of tables have.
fn types() -> Result<XdbcTypeInfoData, FlightError> {
    let mut out = XdbcTypeInfoDataBuilder::new();
    out.append(kind("BOOLEAN", XdbcDataType::XdbcBit, 1, false));
    out.append(kind("BIGINT", XdbcDataType::XdbcBigint, 19, false));
    out.append(kind("BIGINT UNSIGNED", XdbcDataType::XdbcBigint, 20, false));
    out.append(kind("DOUBLE", XdbcDataType::XdbcDouble, 17, false));
    out.append(kind("VARCHAR", XdbcDataType::XdbcVarchar, 64 * 1024, true));
    out.append(kind("TIMESTAMP", XdbcDataType::XdbcTimestamp, 30, true));
    out.build()
}
