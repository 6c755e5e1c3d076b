//! What clients ask, in their own words, and what they get.

use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;

use super::*;
use crate::{
    Params,
    fixture::{CANARY, World, scope},
};

fn caller() -> Caller {
    Caller { user: "ann".to_owned(), pid: 7 }
}

/// Rows as texts, joined by `|`; an error as its code.
fn ask(world: &World, sql: &str) -> Vec<String> {
    let asked = world.block_on(async {
        let answer =
            world.query.run_for(scope(), "default", sql, Params::None, Some(caller())).await?;
        answer.rows.try_collect::<Vec<_>>().await
    });
    let batches = match asked {
        Ok(batches) => batches,
        Err(e) => return vec![format!("{}: {e}", e.code().0)],
    };
    let options = FormatOptions::default().with_null("-");
    let mut out = Vec::new();
    for batch in batches {
        let columns: Vec<_> =
            batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            let cells: Vec<String> = columns.iter().map(|c| c.value(row).to_string()).collect();
            out.push(cells.join("|"));
        }
    }
    out
}

#[test]
fn l1_psql_lists_databases_and_tables() {
    let world = World::sample();
    let databases = r#"SELECT d.datname as "Name",
       pg_catalog.pg_get_userbyid(d.datdba) as "Owner",
       pg_catalog.pg_encoding_to_char(d.encoding) as "Encoding",
       d.datcollate as "Collate", d.datctype as "Ctype", d.daticulocale as "ICU Locale",
       CASE d.datlocprovider WHEN 'c' THEN 'libc' WHEN 'i' THEN 'icu' END AS "Locale Provider",
       pg_catalog.array_to_string(d.datacl, E'\n') AS "Access privileges"
       FROM pg_catalog.pg_database d ORDER BY 1;"#;
    assert_eq!(
        ask(&world, databases),
        ["default|ann|UTF8|C|C|-|libc|-", "factory|ann|UTF8|C|C|-|libc|-"]
    );
    let tables = r#"SELECT n.nspname as "Schema", c.relname as "Name",
      CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' END as "Type",
      pg_catalog.pg_get_userbyid(c.relowner) as "Owner"
      FROM pg_catalog.pg_class c
      LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
      WHERE c.relkind IN ('r','p','') AND n.nspname <> 'pg_catalog'
      AND n.nspname !~ '^pg_toast' AND n.nspname <> 'information_schema'
      AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 1,2;"#;
    assert_eq!(ask(&world, tables), ["default|cpu|table|ann"]);
}

#[test]
fn l1_psql_describes_a_table() {
    let world = World::sample();
    let find = r"SELECT c.oid, n.nspname, c.relname FROM pg_catalog.pg_class c
      LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
      WHERE c.relname OPERATOR(pg_catalog.~) '^(cpu)$' COLLATE pg_catalog.default
      AND pg_catalog.pg_table_is_visible(c.oid) ORDER BY 2, 3;";
    let found = ask(&world, find);
    let oid = found[0].split('|').next().unwrap();
    assert_eq!(found, [format!("{oid}|default|cpu")]);
    let about = format!(
        "SELECT c.relchecks, c.relkind, c.relhasindex, false AS relhasoids, c.relispartition, '',
        c.reltablespace, CASE WHEN c.reloftype = 0 THEN '' ELSE
        c.reloftype::pg_catalog.regtype::pg_catalog.text END, c.relpersistence, am.amname
        FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class tc ON (c.reltoastrelid = tc.oid)
        LEFT JOIN pg_catalog.pg_am am ON (c.relam = am.oid) WHERE c.oid = '{oid}';"
    );
    assert_eq!(ask(&world, &about), ["0|r|false|false|false||0||p|heap"]);
    let columns = format!(
        "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
        (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid, true) FROM pg_catalog.pg_attrdef d
         WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.atthasdef),
        a.attnotnull,
        (SELECT c.collname FROM pg_catalog.pg_collation c, pg_catalog.pg_type t
         WHERE c.oid = a.attcollation AND t.oid = a.atttypid
         AND a.attcollation <> t.typcollation) AS attcollation,
        a.attidentity, a.attgenerated FROM pg_catalog.pg_attribute a
        WHERE a.attrelid = '{oid}' AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum;"
    );
    let columns = ask(&world, &columns);
    assert_eq!(columns[0], "host|text|-|false|-||");
    assert!(
        columns.contains(&"time|timestamp with time zone|-|true|-||".to_owned()),
        "{columns:?}"
    );
    assert!(columns.contains(&"n|bigint|-|false|-||".to_owned()), "{columns:?}");
    for nothing in [
        format!(
            "SELECT c.oid::pg_catalog.regclass FROM pg_catalog.pg_class c, pg_catalog.pg_inherits i
            WHERE c.oid = i.inhparent AND i.inhrelid = '{oid}' ORDER BY inhseqno;"
        ),
        format!(
            "SELECT pol.polname, pol.polpermissive, CASE WHEN pol.polroles = '{{0}}' THEN NULL ELSE
            pg_catalog.array_to_string(array(select rolname from pg_catalog.pg_roles where oid =
            any (pol.polroles) order by 1),',') END, pg_catalog.pg_get_expr(pol.polqual,
            pol.polrelid) FROM pg_catalog.pg_policy pol WHERE pol.polrelid = '{oid}' ORDER BY 1;"
        ),
        format!(
            "SELECT pubname, NULL, NULL FROM pg_catalog.pg_publication p
            JOIN pg_catalog.pg_publication_rel pr ON p.oid = pr.prpubid WHERE pr.prrelid = '{oid}'
            UNION SELECT pubname, NULL, NULL FROM pg_catalog.pg_publication p
            WHERE p.puballtables ORDER BY 1;"
        ),
    ] {
        assert_eq!(ask(&world, &nothing), Vec::<String>::new(), "{nothing}");
    }
}

#[test]
fn l1_grafana_finds_tables_columns_and_buckets() {
    let world = World::sample();
    let tables = r#"select quote_ident(table_name) as "table" from information_schema.tables
    where quote_ident(table_schema) not in ('information_schema', 'pg_catalog')
    and quote_ident(table_schema) IN (
          SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
          FROM generate_series(array_lower(string_to_array(current_setting('search_path'),','),1),
              array_upper(string_to_array(current_setting('search_path'),','),1)) as i,
            string_to_array(current_setting('search_path'),',') s)"#;
    assert_eq!(ask(&world, tables), ["cpu"]);
    let columns = r#"select quote_ident(column_name) as "column", data_type as "type"
        from information_schema.columns where quote_ident(table_name) = 'cpu'"#;
    let columns = ask(&world, columns);
    assert!(columns.contains(&"time|timestamp with time zone".to_owned()), "{columns:?}");
    assert!(columns.contains(&"usage|double precision".to_owned()), "{columns:?}");
    let version = "SELECT current_setting('server_version_num')::int/100 as version";
    assert_eq!(ask(&world, version), ["1500"]);
    let none = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'";
    assert_eq!(ask(&world, none), Vec::<String>::new());
    let graph = r#"SELECT floor(extract(epoch from time)/60)*60 AS "time", avg(usage) AS "usage"
        FROM cpu WHERE time BETWEEN '2026-01-01T00:00:00Z' AND '2026-01-01T01:00:00Z'
        GROUP BY 1 ORDER BY 1"#;
    assert_eq!(ask(&world, graph).len(), 3);
    assert!(ask(&world, "SELECT version()")[0].starts_with("PostgreSQL 15.0 (Millrace"));
}

#[test]
fn sessions_tell_who_and_where() {
    let world = World::sample();
    for (sql, expected) in [
        (
            "SELECT current_user, session_user, current_database(), current_schema()",
            "ann|ann|default|default",
        ),
        ("SELECT pg_backend_pid()", "7"),
        ("select current_schema", "default"),
        ("SELECT 'cpu'::regclass = (SELECT oid FROM pg_class WHERE relname = 'cpu')", "true"),
        ("SELECT has_table_privilege('cpu', 'select')", "true"),
        ("SELECT setting FROM pg_settings WHERE name = 'timezone'", "UTC"),
        ("SELECT count(*) FROM pg_type WHERE typname = ANY (ARRAY['int8', 'text'])", "2"),
        ("SELECT count(*) FROM pg_index", "0"),
        ("SELECT EXISTS (SELECT 1 FROM pg_trigger t WHERE t.oid = 1)", "false"),
        ("SELECT count(*) FROM \"default\".\"default\".cpu", "7"),
        ("SELECT quote_ident('Odd name')", "\"Odd name\""),
    ] {
        assert_eq!(ask(&world, sql), [expected], "{sql}");
    }
}

#[test]
fn a1_the_catalogue_names_nothing_of_another_tenant() {
    let world = World::sample();
    for table in spec::FILLED.iter().chain(&spec::EMPTY) {
        let rows = ask(&world, &format!("SELECT * FROM pg_catalog.{}", table.0)).join("\n");
        assert!(!rows.starts_with("sql_"), "{}: {rows}", table.0);
        assert!(!rows.contains(CANARY) && !rows.contains("vault") && !rows.contains("secret"));
    }
    for table in spec::INFORMATION.iter().chain(&spec::INFORMATION_EMPTY) {
        let rows = ask(&world, &format!("SELECT * FROM information_schema.{}", table.0)).join("\n");
        assert!(!rows.starts_with("sql_"), "{}: {rows}", table.0);
        assert!(!rows.contains(CANARY) && !rows.contains("vault") && !rows.contains("secret"));
    }
}

#[test]
fn guards_hold_behind_the_rewriting() {
    let world = World::sample();
    let nested =
        format!("SELECT {}relname{} FROM pg_class", "quote_ident(".repeat(40), ")".repeat(40));
    for (sql, code) in [
        ("DROP TABLE cpu", "sql_not_allowed"),
        ("SELECT * FROM pg_class, pg_class, pg_read_file('x')", "sql_"),
        ("SELECT pg_read_file('/etc/passwd')", "sql_unknown_name"),
        ("SELECT pg_sleep(10)", "sql_unknown_name"),
        ("SELECT * INTO t FROM pg_class", "sql_not_allowed"),
        (nested.as_str(), "sql_unknown_name"),
        ("COPY cpu TO '/tmp/x'", "sql_not_allowed"),
    ] {
        let got = ask(&world, sql);
        assert!(got[0].starts_with(code), "{sql}: {got:?}");
    }
}

#[test]
fn without_a_caller_there_is_no_such_catalogue() {
    let world = World::sample();
    assert_eq!(world.code("SELECT * FROM pg_catalog.pg_class"), "sql_unknown_name");
    assert_eq!(world.code("SELECT version()"), "sql_unknown_name");
}
