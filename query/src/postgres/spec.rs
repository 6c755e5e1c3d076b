//! The columns of the tables that PostgreSQL's clients read.
//!
//! Owns: names and types, no rows. A column is `name:t`, where t is `i` number, `t` text, `b` truth,
//! `f` float, `l` list of texts; `?` before the name lets it be null, without it what no row says
//! is 0, '' or false. Only columns that some client reads are here.

/// A table's name and columns.
pub(super) type Spec = (&'static str, &'static str);

/// Tables of `pg_catalog` that have rows.
pub(super) const FILLED: [Spec; 12] = [
    ("pg_namespace", "oid:i nspname:t nspowner:i ?nspacl:l"),
    (
        "pg_class",
        "oid:i relname:t relnamespace:i reltype:i reloftype:i relowner:i relam:i relfilenode:i \
         reltablespace:i relpages:i reltuples:f relallvisible:i reltoastrelid:i relhasindex:b \
         relisshared:b relpersistence:t relkind:t relnatts:i relchecks:i relhasrules:b \
         relhastriggers:b relhassubclass:b relrowsecurity:b relforcerowsecurity:b \
         relispopulated:b relreplident:t relispartition:b ?relacl:l ?reloptions:l ?relpartbound:t",
    ),
    (
        "pg_attribute",
        "attrelid:i attname:t atttypid:i attstattarget:i attlen:i attnum:i attndims:i \
         atttypmod:i attbyval:b attstorage:t attalign:t attcompression:t attnotnull:b atthasdef:b \
         atthasmissing:b attidentity:t attgenerated:t attisdropped:b attislocal:b attinhcount:i \
         attcollation:i ?attacl:l ?attoptions:l ?attfdwoptions:l",
    ),
    (
        "pg_type",
        "oid:i typname:t typnamespace:i typowner:i typlen:i typbyval:b typtype:t typcategory:t \
         typispreferred:b typisdefined:b typdelim:t typrelid:i typelem:i typarray:i typinput:t \
         typreceive:t typnotnull:b typbasetype:i typtypmod:i typndims:i typcollation:i ?typdefault:t",
    ),
    (
        "pg_database",
        "oid:i datname:t datdba:i encoding:i datlocprovider:t datistemplate:b datallowconn:b \
         datconnlimit:i dattablespace:i datcollate:t datctype:t ?daticulocale:t \
         ?datcollversion:t ?datacl:l",
    ),
    (
        "pg_roles",
        "oid:i rolname:t rolsuper:b rolinherit:b rolcreaterole:b rolcreatedb:b rolcanlogin:b \
         rolreplication:b rolconnlimit:i rolbypassrls:b ?rolvaliduntil:t ?rolconfig:l",
    ),
    ("pg_user", "usename:t usesysid:i usecreatedb:b usesuper:b userepl:b usebypassrls:b"),
    ("pg_am", "oid:i amname:t amhandler:t amtype:t"),
    ("pg_settings", "name:t setting:t ?unit:t category:t short_desc:t vartype:t source:t"),
    (
        "pg_tables",
        "schemaname:t tablename:t tableowner:t ?tablespace:t hasindexes:b hasrules:b \
         hastriggers:b rowsecurity:b",
    ),
    ("pg_views", "schemaname:t viewname:t viewowner:t ?definition:t"),
    ("pg_tablespace", "oid:i spcname:t spcowner:i ?spcacl:l ?spcoptions:l"),
];

/// Tables of `pg_catalog` that describe what Millrace does not have. They never have a row.
pub(super) const EMPTY: [Spec; 35] = [
    ("pg_attrdef", "oid:i adrelid:i adnum:i adbin:t"),
    ("pg_auth_members", "roleid:i member:i grantor:i admin_option:b"),
    ("pg_cast", "oid:i castsource:i casttarget:i castfunc:i castcontext:t castmethod:t"),
    ("pg_collation", "oid:i collname:t collnamespace:i collowner:i collprovider:t"),
    (
        "pg_constraint",
        "oid:i conname:t connamespace:i contype:t condeferrable:b condeferred:b convalidated:b \
         conrelid:i contypid:i conindid:i conparentid:i confrelid:i confupdtype:t confdeltype:t \
         confmatchtype:t conislocal:b coninhcount:i connoinherit:b ?conkey:l ?confkey:l conbin:t",
    ),
    ("pg_db_role_setting", "setdatabase:i setrole:i ?setconfig:l"),
    ("pg_depend", "classid:i objid:i objsubid:i refclassid:i refobjid:i refobjsubid:i deptype:t"),
    ("pg_description", "objoid:i classoid:i objsubid:i description:t"),
    ("pg_enum", "oid:i enumtypid:i enumsortorder:f enumlabel:t"),
    ("pg_event_trigger", "oid:i evtname:t evtevent:t evtowner:i evtfoid:i evtenabled:t"),
    ("pg_extension", "oid:i extname:t extowner:i extnamespace:i extversion:t"),
    ("pg_foreign_data_wrapper", "oid:i fdwname:t fdwowner:i"),
    ("pg_foreign_server", "oid:i srvname:t srvowner:i srvfdw:i"),
    ("pg_foreign_table", "ftrelid:i ftserver:i ?ftoptions:l"),
    (
        "pg_index",
        "indexrelid:i indrelid:i indnatts:i indnkeyatts:i indisunique:b indnullsnotdistinct:b \
         indisprimary:b indisexclusion:b indimmediate:b indisclustered:b indisvalid:b indisready:b \
         indislive:b indisreplident:b ?indkey:l ?indclass:l ?indoption:l indexprs:t indpred:t",
    ),
    ("pg_indexes", "schemaname:t tablename:t indexname:t ?tablespace:t indexdef:t"),
    ("pg_inherits", "inhrelid:i inhparent:i inhseqno:i inhdetachpending:b"),
    ("pg_language", "oid:i lanname:t lanowner:i"),
    ("pg_locks", "locktype:t database:i relation:i pid:i mode:t granted:b"),
    ("pg_matviews", "schemaname:t matviewname:t matviewowner:t hasindexes:b ispopulated:b"),
    ("pg_opclass", "oid:i opcname:t opcnamespace:i opcmethod:i"),
    ("pg_operator", "oid:i oprname:t oprnamespace:i oprleft:i oprright:i oprresult:i"),
    ("pg_partitioned_table", "partrelid:i partstrat:t partnatts:i"),
    (
        "pg_policy",
        "oid:i polname:t polrelid:i polcmd:t polpermissive:b ?polroles:l polqual:t polwithcheck:t",
    ),
    (
        "pg_proc",
        "oid:i proname:t pronamespace:i proowner:i prolang:i prokind:t proretset:b prorettype:i \
         pronargs:i ?proargtypes:l ?proargnames:l prosrc:t",
    ),
    ("pg_publication", "oid:i pubname:t pubowner:i puballtables:b"),
    ("pg_publication_namespace", "oid:i pnpubid:i pnnspid:i"),
    ("pg_publication_rel", "oid:i prpubid:i prrelid:i prqual:t ?prattrs:l"),
    ("pg_range", "rngtypid:i rngsubtype:i"),
    ("pg_rewrite", "oid:i rulename:t ev_class:i ev_type:t ev_enabled:t is_instead:b"),
    ("pg_sequence", "seqrelid:i seqtypid:i seqstart:i seqincrement:i seqmax:i seqmin:i"),
    ("pg_shdescription", "objoid:i classoid:i description:t"),
    (
        "pg_statistic_ext",
        "oid:i stxrelid:i stxname:t stxnamespace:i stxowner:i stxstattarget:i ?stxkeys:l ?stxkind:l",
    ),
    (
        "pg_trigger",
        "oid:i tgrelid:i tgparentid:i tgname:t tgfoid:i tgtype:i tgenabled:t tgisinternal:b \
         tgconstraint:i",
    ),
    ("pg_stat_activity", "datid:i datname:t pid:i usename:t state:t query:t"),
];

/// Tables of `information_schema`.
pub(super) const INFORMATION: [Spec; 4] = [
    ("schemata", "catalog_name:t schema_name:t schema_owner:t"),
    (
        "tables",
        "table_catalog:t table_schema:t table_name:t table_type:t is_insertable_into:t is_typed:t",
    ),
    (
        "columns",
        "table_catalog:t table_schema:t table_name:t column_name:t ordinal_position:i \
         ?column_default:t is_nullable:t data_type:t ?character_maximum_length:i \
         ?numeric_precision:i ?numeric_precision_radix:i ?numeric_scale:i ?datetime_precision:i \
         udt_catalog:t udt_schema:t udt_name:t is_identity:t is_generated:t is_updatable:t",
    ),
    ("views", "table_catalog:t table_schema:t table_name:t ?view_definition:t"),
];

/// Tables of `information_schema` without rows.
pub(super) const INFORMATION_EMPTY: [Spec; 5] = [
    (
        "key_column_usage",
        "constraint_catalog:t constraint_schema:t constraint_name:t table_catalog:t \
         table_schema:t table_name:t column_name:t ordinal_position:i",
    ),
    (
        "table_constraints",
        "constraint_catalog:t constraint_schema:t constraint_name:t table_catalog:t \
         table_schema:t table_name:t constraint_type:t",
    ),
    (
        "referential_constraints",
        "constraint_catalog:t constraint_schema:t constraint_name:t unique_constraint_name:t",
    ),
    ("constraint_column_usage", "table_schema:t table_name:t column_name:t constraint_name:t"),
    (
        "routines",
        "specific_schema:t specific_name:t routine_schema:t routine_name:t routine_type:t",
    ),
];

/// Whether a table of `pg_catalog` has this name.
pub(super) fn is_catalog_table(name: &str) -> bool {
    FILLED.iter().chain(&EMPTY).any(|(n, _)| *n == name)
}

/// Whether it is one that never has a row.
pub(super) fn is_empty(name: &str) -> bool {
    EMPTY.iter().any(|(n, _)| *n == name)
}
