//! Arrow types and PostgreSQL's: numbers, names, and what `pg_type` says.
//!
//! Owns: the map, which is the same wherever a type is told. A type that PostgreSQL lacks is told
//! as `text`, unsigned 64-bit integers as `numeric`.

use datafusion::arrow::datatypes::{DataType, IntervalUnit, TimeUnit};

/// A type of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PgType {
    /// Its number.
    pub oid: u32,
    /// Its short name.
    pub name: &'static str,
    /// Its name in the SQL standard.
    pub long: &'static str,
    /// Bytes of a value, -1 if they vary.
    pub len: i16,
    /// The number of its array type.
    pub array: u32,
    /// As `typcategory`.
    pub category: &'static str,
}

const fn ty(
    oid: u32,
    name: &'static str,
    long: &'static str,
    len: i16,
    array: u32,
    category: &'static str,
) -> PgType {
    PgType { oid, name, long, len, array, category }
}

/// `boolean`
pub const BOOL: PgType = ty(16, "bool", "boolean", 1, 1000, "B");
/// `bytea`
pub const BYTEA: PgType = ty(17, "bytea", "bytea", -1, 1001, "U");
/// `bigint`
pub const INT8: PgType = ty(20, "int8", "bigint", 8, 1016, "N");
/// `smallint`
pub const INT2: PgType = ty(21, "int2", "smallint", 2, 1005, "N");
/// `integer`
pub const INT4: PgType = ty(23, "int4", "integer", 4, 1007, "N");
/// `text`
pub const TEXT: PgType = ty(25, "text", "text", -1, 1009, "S");
/// `real`
pub const FLOAT4: PgType = ty(700, "float4", "real", 4, 1021, "N");
/// `double precision`
pub const FLOAT8: PgType = ty(701, "float8", "double precision", 8, 1022, "N");
/// `date`
pub const DATE: PgType = ty(1082, "date", "date", 4, 1182, "D");
/// `time`
pub const TIME: PgType = ty(1083, "time", "time without time zone", 8, 1183, "D");
/// `timestamp`
pub const TIMESTAMP: PgType = ty(1114, "timestamp", "timestamp without time zone", 8, 1115, "D");
/// `timestamptz`
pub const TIMESTAMPTZ: PgType = ty(1184, "timestamptz", "timestamp with time zone", 8, 1185, "D");
/// `interval`
pub const INTERVAL: PgType = ty(1186, "interval", "interval", 16, 1187, "T");
/// `numeric`
pub const NUMERIC: PgType = ty(1700, "numeric", "numeric", -1, 1231, "N");

/// Types that results have.
pub const RESULTS: [PgType; 14] = [
    BOOL,
    BYTEA,
    INT8,
    INT2,
    INT4,
    TEXT,
    FLOAT4,
    FLOAT8,
    DATE,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    INTERVAL,
    NUMERIC,
];

/// Types that clients name in parameters and casts, beside those.
pub const NAMED: [PgType; 10] = [
    ty(18, "char", "\"char\"", 1, 1002, "Z"),
    ty(19, "name", "name", 64, 1003, "S"),
    ty(26, "oid", "oid", 4, 1028, "N"),
    ty(114, "json", "json", -1, 199, "U"),
    ty(705, "unknown", "unknown", -2, 0, "X"),
    ty(1042, "bpchar", "character", -1, 1014, "S"),
    ty(1043, "varchar", "character varying", -1, 1015, "S"),
    ty(2205, "regclass", "regclass", 4, 2210, "N"),
    ty(2950, "uuid", "uuid", 16, 2951, "U"),
    ty(3802, "jsonb", "jsonb", -1, 3807, "U"),
];

/// All of them.
pub fn all() -> impl Iterator<Item = PgType> {
    RESULTS.into_iter().chain(NAMED)
}

/// How a column is told.
pub fn of(data_type: &DataType) -> PgType {
    match data_type {
        DataType::Boolean => BOOL,
        DataType::Int8 | DataType::UInt8 | DataType::Int16 => INT2,
        DataType::UInt16 | DataType::Int32 => INT4,
        DataType::UInt32 | DataType::Int64 => INT8,
        DataType::UInt64 | DataType::Decimal128(..) | DataType::Decimal256(..) => NUMERIC,
        DataType::Float16 | DataType::Float32 => FLOAT4,
        DataType::Float64 => FLOAT8,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => BYTEA,
        DataType::FixedSizeBinary(_) => BYTEA,
        DataType::Date32 | DataType::Date64 => DATE,
        DataType::Time32(_) | DataType::Time64(_) => TIME,
        DataType::Timestamp(_, None) => TIMESTAMP,
        DataType::Timestamp(_, Some(_)) => TIMESTAMPTZ,
        DataType::Interval(_) | DataType::Duration(_) => INTERVAL,
        DataType::Dictionary(_, value) => of(value),
        _ => TEXT,
    }
}

/// The Arrow type of a parameter; `None` if the client leaves it to the server.
pub fn parameter(oid: u32) -> Option<DataType> {
    Some(match oid {
        16 => DataType::Boolean,
        17 => DataType::Binary,
        20 | 26 => DataType::Int64,
        21 => DataType::Int16,
        23 => DataType::Int32,
        700 => DataType::Float32,
        701 | 1700 => DataType::Float64,
        1082 => DataType::Date32,
        1114 => DataType::Timestamp(TimeUnit::Nanosecond, None),
        1184 => DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        1186 => DataType::Interval(IntervalUnit::MonthDayNano),
        // Text of no declared type takes the type of its place, as in PostgreSQL.
        0 | 705 => return None,
        _ => DataType::Utf8,
    })
}
