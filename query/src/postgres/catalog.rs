//! `pg_catalog` and PostgreSQL's `information_schema`, made of one tenant's snapshot.
//!
//! Owns: the rows, and the numbers (oids) of tables and databases. A number is a hash of the name,
//! so that it stays the same between two statements; tables of the session's own database have
//! numbers below [`FOREIGN`], which is how a client's "is it visible" is answered.
//! Never: makes rows of a table that a statement does not read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use datafusion::{
    arrow::{
        array::{ArrayRef, BooleanArray, Float32Array, Int64Array, RecordBatch, StringArray},
        array::{ListBuilder, StringBuilder},
        datatypes::{DataType, Field, Schema, SchemaRef},
    },
    catalog::{
        MemTable, SchemaProvider, Session, TableProvider, information_schema::INFORMATION_SCHEMA,
    },
    datasource::TableType,
    error::Result,
    logical_expr::Expr,
    physical_plan::ExecutionPlan,
};
use millrace_storage::TenantSnapshot;
use serde_json::{Map, Value, json};

use super::{
    Caller, PG_CATALOG, SERVER_VERSION, SERVER_VERSION_NUMBER,
    spec::{EMPTY, FILLED, INFORMATION, INFORMATION_EMPTY, Spec},
    types,
};
use crate::provider::SnapshotTable;

/// First number of what is not PostgreSQL's own.
const OWN: i64 = 16_384;
/// First number of tables in other databases than the session's.
pub(super) const FOREIGN: i64 = OWN + (1 << 30);
/// The one role.
const ROLE: i64 = 10;
/// Numbers of PostgreSQL's own schemas.
const PG_CATALOG_OID: i64 = 11;
const INFORMATION_OID: i64 = 13_000;

type Row = Map<String, Value>;

/// A table of the tenant as the catalogue tells it.
#[derive(Debug)]
struct Relation {
    oid: i64,
    database: String,
    name: String,
    columns: SchemaRef,
}

/// What everything here is made of.
pub(super) struct Facts {
    pub(super) caller: Caller,
    pub(super) database: String,
    snapshot: Arc<TenantSnapshot>,
    relations: OnceLock<Vec<Relation>>,
}

impl fmt::Debug for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Facts").field("database", &self.database).finish_non_exhaustive()
    }
}

/// FNV-1a: no secret, only the same number for the same name.
fn number(of: &[&str]) -> i64 {
    let bytes = of.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    i64::from(hash & 0x3fff_ffff)
}

impl Facts {
    pub(super) fn new(caller: Caller, snapshot: Arc<TenantSnapshot>, database: &str) -> Self {
        let database = database.to_owned();
        Self { caller, database, snapshot, relations: OnceLock::new() }
    }

    /// Whether the session's own database has a table of this name.
    pub(super) fn has_table(&self, name: &str) -> bool {
        self.snapshot.databases.get(&self.database).is_some_and(|t| t.contains_key(name))
    }

    fn databases(&self) -> BTreeSet<&str> {
        let known = self.snapshot.databases.keys().map(String::as_str);
        known.chain([self.database.as_str()]).collect()
    }

    fn relations(&self) -> &[Relation] {
        self.relations.get_or_init(|| {
            let mut taken = BTreeSet::new();
            let mut out = Vec::new();
            for (database, tables) in &self.snapshot.databases {
                for (name, table) in tables {
                    let base = if *database == self.database { OWN } else { FOREIGN };
                    let mut oid = base + number(&[database, name]);
                    while !taken.insert(oid) {
                        oid += 1;
                    }
                    let columns = SnapshotTable::new(Arc::clone(table)).schema();
                    out.push(Relation {
                        oid,
                        database: database.clone(),
                        name: name.clone(),
                        columns,
                    });
                }
            }
            out
        })
    }

    /// The number of a table that is named as SQL names it, if there is one.
    pub(super) fn oid_of(&self, name: &str) -> Option<i64> {
        let bare = name.replace('"', "");
        let (database, table) = bare.rsplit_once('.').unwrap_or((&self.database, &bare));
        let database = database.rsplit('.').next().unwrap_or(database);
        let found = self.relations().iter().find(|r| r.database == database && r.name == table);
        found.map(|r| r.oid)
    }

    /// What `current_setting` says; `None` if there is no such setting.
    pub(super) fn setting(&self, name: &str) -> Option<String> {
        setting(&self.caller, &self.database, name)
    }
}

/// Settings that are not the same for everybody, or not fixed.
const OWN_SETTINGS: [&str; 4] =
    ["search_path", "server_version", "server_version_num", "session_authorization"];

/// What `SHOW` says of a setting; `None` if there is no such setting.
pub fn setting(caller: &Caller, database: &str, name: &str) -> Option<String> {
    Some(match name.to_ascii_lowercase().as_str() {
        "server_version" => SERVER_VERSION.to_owned(),
        "server_version_num" => SERVER_VERSION_NUMBER.to_owned(),
        "search_path" => format!("\"{database}\""),
        "session_authorization" | "role" => caller.user.clone(),
        other => fixed_setting(other)?.to_owned(),
    })
}

/// All settings with their values.
pub fn settings(caller: &Caller, database: &str) -> Vec<(String, String)> {
    let names = OWN_SETTINGS.into_iter().chain(SETTINGS.iter().map(|(name, _)| *name));
    names.filter_map(|n| Some((n.to_owned(), setting(caller, database, n)?))).collect()
}

/// Settings that are the same for everybody; all that are listed.
const SETTINGS: [(&str, &str); 17] = [
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_encoding", "UTF8"),
    ("client_min_messages", "notice"),
    ("datestyle", "ISO, MDY"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "on"),
    ("extra_float_digits", "1"),
    ("integer_datetimes", "on"),
    ("intervalstyle", "postgres"),
    ("lc_collate", "C"),
    ("max_identifier_length", "63"),
    ("server_encoding", "UTF8"),
    ("standard_conforming_strings", "on"),
    ("timezone", "UTC"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "on"),
];

fn fixed_setting(name: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|(n, _)| *n == name).map(|(_, value)| *value)
}

fn row(value: Value) -> Row {
    match value {
        Value::Object(map) => map,
        _ => Row::new(),
    }
}

fn schema_oid(database: &str) -> i64 {
    OWN + number(&[database])
}

fn rows_of(name: &str, facts: &Facts) -> Vec<Row> {
    let user = &facts.caller.user;
    match name {
        "pg_namespace" => {
            let own = facts.databases().into_iter().map(|d| (schema_oid(d), d));
            [(PG_CATALOG_OID, PG_CATALOG), (INFORMATION_OID, INFORMATION_SCHEMA)]
                .into_iter()
                .chain(own)
                .map(|(oid, name)| row(json!({"oid": oid, "nspname": name, "nspowner": ROLE})))
                .collect()
        }
        "pg_class" => facts.relations().iter().map(class).collect(),
        "pg_attribute" => facts.relations().iter().flat_map(attributes).collect(),
        "pg_type" => types::all().flat_map(pg_type).collect(),
        "pg_database" => facts.databases().into_iter().map(database).collect(),
        "pg_roles" => vec![row(json!({
            "oid": ROLE, "rolname": user, "rolinherit": true, "rolcanlogin": true,
            "rolconnlimit": -1,
        }))],
        "pg_user" => vec![row(json!({ "usename": user, "usesysid": ROLE }))],
        "pg_am" => vec![row(json!({
            "oid": 2, "amname": "heap", "amhandler": "heap_tableam_handler", "amtype": "t",
        }))],
        "pg_tablespace" => {
            vec![row(json!({ "oid": 1663, "spcname": "pg_default", "spcowner": ROLE }))]
        }
        "pg_settings" => settings(&facts.caller, &facts.database)
            .into_iter()
            .map(|(name, setting)| {
                row(json!({
                    "name": name, "setting": setting, "vartype": "string", "source": "default",
                }))
            })
            .collect(),
        "pg_tables" => facts
            .relations()
            .iter()
            .map(|r| {
                row(json!({
                    "schemaname": r.database, "tablename": r.name, "tableowner": user,
                }))
            })
            .collect(),
        "schemata" => facts
            .databases()
            .into_iter()
            .chain([PG_CATALOG, INFORMATION_SCHEMA])
            .map(|name| {
                row(json!({
                    "catalog_name": facts.database, "schema_name": name, "schema_owner": user,
                }))
            })
            .collect(),
        "tables" => facts
            .relations()
            .iter()
            .map(|r| {
                row(json!({
                    "table_catalog": facts.database, "table_schema": r.database,
                    "table_name": r.name, "table_type": "BASE TABLE",
                    "is_insertable_into": "NO", "is_typed": "NO",
                }))
            })
            .collect(),
        "columns" => {
            facts.relations().iter().flat_map(|r| information_columns(r, &facts.database)).collect()
        }
        _ => Vec::new(),
    }
}

fn class(r: &Relation) -> Row {
    row(json!({
        "oid": r.oid, "relname": r.name, "relnamespace": schema_oid(&r.database),
        "relowner": ROLE, "relam": 2, "relfilenode": r.oid, "reltuples": -1.0,
        "relpersistence": "p", "relkind": "r", "relnatts": r.columns.fields().len(),
        "relispopulated": true, "relreplident": "d",
    }))
}

fn attributes(r: &Relation) -> Vec<Row> {
    let fields = r.columns.fields().iter().zip(1..);
    fields
        .map(|(field, n)| {
            let ty = types::of(field.data_type());
            row(json!({
                "attrelid": r.oid, "attname": field.name(), "atttypid": ty.oid, "attnum": n,
                "attstattarget": -1, "attlen": ty.len, "atttypmod": -1,
                "attbyval": ty.len > 0, "attstorage": "p", "attalign": "d",
                "attnotnull": !field.is_nullable(), "attislocal": true,
            }))
        })
        .collect()
}

/// A type and the array of it.
fn pg_type(ty: types::PgType) -> Vec<Row> {
    let one = json!({
        "oid": ty.oid, "typname": ty.name, "typnamespace": PG_CATALOG_OID, "typowner": ROLE,
        "typlen": ty.len, "typbyval": ty.len > 0, "typtype": "b", "typcategory": ty.category,
        "typisdefined": true, "typdelim": ",", "typarray": ty.array, "typtypmod": -1,
        "typinput": format!("{}in", ty.name), "typreceive": format!("{}recv", ty.name),
    });
    let array = json!({
        "oid": ty.array, "typname": format!("_{}", ty.name), "typnamespace": PG_CATALOG_OID,
        "typowner": ROLE, "typlen": -1, "typtype": "b", "typcategory": "A", "typisdefined": true,
        "typdelim": ",", "typelem": ty.oid, "typtypmod": -1, "typinput": "array_in",
        "typreceive": "array_recv",
    });
    let mut out = vec![row(one)];
    if ty.array != 0 {
        out.push(row(array));
    }
    out
}

fn database(name: &str) -> Row {
    row(json!({
        "oid": schema_oid(name), "datname": name, "datdba": ROLE, "encoding": 6,
        "datlocprovider": "c", "datallowconn": true, "datconnlimit": -1, "dattablespace": 1663,
        "datcollate": "C", "datctype": "C",
    }))
}

fn information_columns(r: &Relation, catalog: &str) -> Vec<Row> {
    let precision = |ty: types::PgType| match ty.name {
        "int2" => Some((16, 0)),
        "int4" => Some((32, 0)),
        "int8" => Some((64, 0)),
        "float8" => Some((53, 0)),
        _ => None,
    };
    let fields = r.columns.fields().iter().zip(1..);
    fields
        .map(|(field, n)| {
            let ty = types::of(field.data_type());
            let digits = precision(ty);
            row(json!({
                "table_catalog": catalog, "table_schema": r.database, "table_name": r.name,
                "column_name": field.name(), "ordinal_position": n,
                "is_nullable": if field.is_nullable() { "YES" } else { "NO" },
                "data_type": ty.long, "udt_catalog": catalog, "udt_schema": PG_CATALOG,
                "udt_name": ty.name, "is_identity": "NO", "is_generated": "NEVER",
                "is_updatable": "NO", "numeric_precision": digits.map(|d| d.0),
                "numeric_precision_radix": digits.map(|_| 2),
                "numeric_scale": digits.filter(|_| ty.name != "float8").map(|d| d.1),
                "datetime_precision": (ty.category == "D").then_some(6),
            }))
        })
        .collect()
}

/// Which of the two schemas.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pages {
    Catalog,
    Information,
}

impl Pages {
    pub(super) fn schema(self, facts: &Arc<Facts>) -> PgSchema {
        let specs: Vec<Spec> = match self {
            Self::Catalog => FILLED.into_iter().chain(EMPTY).collect(),
            Self::Information => INFORMATION.into_iter().chain(INFORMATION_EMPTY).collect(),
        };
        PgSchema { facts: Arc::clone(facts), specs: specs.into_iter().collect() }
    }
}

/// One of the two schemas.
#[derive(Debug)]
pub(super) struct PgSchema {
    facts: Arc<Facts>,
    specs: BTreeMap<&'static str, &'static str>,
}

#[async_trait]
impl SchemaProvider for PgSchema {
    fn table_names(&self) -> Vec<String> {
        self.specs.keys().map(|n| (*n).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>> {
        let found = self.specs.get_key_value(name);
        Ok(found.map(|(name, spec)| {
            let facts = Arc::clone(&self.facts);
            Arc::new(Page { name, schema: columns_of(spec), facts }) as Arc<dyn TableProvider>
        }))
    }

    fn table_exist(&self, name: &str) -> bool {
        self.specs.contains_key(name)
    }
}

fn columns_of(spec: &str) -> SchemaRef {
    let fields = spec.split_whitespace().filter_map(|column| {
        let (name, ty) = column.split_once(':')?;
        let data_type = match ty {
            "i" => DataType::Int64,
            "b" => DataType::Boolean,
            "f" => DataType::Float32,
            "l" => DataType::List(Arc::new(Field::new("item", DataType::Utf8, true))),
            _ => DataType::Utf8,
        };
        Some(Field::new(name.trim_start_matches('?'), data_type, name.starts_with('?')))
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// One table; its rows are made when it is scanned.
#[derive(Debug)]
struct Page {
    name: &'static str,
    schema: SchemaRef,
    facts: Arc<Facts>,
}

#[async_trait]
impl TableProvider for Page {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = rows_of(self.name, &self.facts);
        let columns = self.schema.fields().iter().map(|f| column(f, &rows)).collect();
        let batch = RecordBatch::try_new(self.schema(), columns)?;
        let table = MemTable::try_new(self.schema(), vec![vec![batch]])?;
        table.scan(state, projection, filters, limit).await
    }
}

fn column(field: &Field, rows: &[Row]) -> ArrayRef {
    let cells = rows.iter().map(|row| row.get(field.name()).filter(|v| !v.is_null()));
    let null = field.is_nullable();
    match field.data_type() {
        DataType::Int64 => {
            let or = (!null).then_some(0);
            Arc::new(cells.map(|c| c.and_then(Value::as_i64).or(or)).collect::<Int64Array>())
        }
        DataType::Boolean => {
            let or = (!null).then_some(false);
            Arc::new(cells.map(|c| c.and_then(Value::as_bool).or(or)).collect::<BooleanArray>())
        }
        DataType::Float32 => {
            let float = |c: Option<&Value>| c.and_then(Value::as_f64).map(|f| f as f32);
            let or = (!null).then_some(0.0);
            Arc::new(cells.map(|c| float(c).or(or)).collect::<Float32Array>())
        }
        DataType::List(_) => {
            // No row has one: privileges and options that are lists are nobody's.
            let mut out = ListBuilder::new(StringBuilder::new());
            cells.for_each(|_| out.append_null());
            Arc::new(out.finish())
        }
        _ => {
            let or = (!null).then_some("");
            Arc::new(cells.map(|c| c.and_then(Value::as_str).or(or)).collect::<StringArray>())
        }
    }
}
