//! Flight SQL as a client sees it: statements, prepared statements, metadata, and who may not.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Int64Type, Schema},
};
use arrow_flight::{
    Action, FlightDescriptor, FlightInfo, IpcMessage, Ticket,
    error::FlightError,
    flight_service_client::FlightServiceClient,
    sql::{
        Any, CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo,
        CommandPreparedStatementQuery, ProstMessageExt, SqlInfo, TicketStatementQuery,
        client::FlightSqlServiceClient,
    },
};
use futures::{StreamExt, TryStreamExt};
use millrace_tests::{Client, World, device, scan};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{Code, Status, transport::Channel};

use crate::NEW_YEAR_NS;

type FlightSql = FlightSqlServiceClient<Channel>;

fn runtime() -> Runtime {
    Runtime::new().unwrap()
}

async fn client(world: &World, token: Option<&str>) -> FlightSql {
    let inner: FlightServiceClient<Channel> =
        device::connect(&world.server().base, &world.ca(), None).await.unwrap();
    let mut client = FlightSqlServiceClient::new_from_inner(inner);
    if let Some(token) = token {
        client.set_token(token.to_owned());
    }
    client
}

fn status(e: FlightError) -> Status {
    match e {
        FlightError::Tonic(status) => *status,
        other => panic!("no status: {other}"),
    }
}

/// All rows behind an information, which must have the columns that it says.
async fn rows(client: &mut FlightSql, info: FlightInfo) -> Result<RecordBatch, Status> {
    let told: Schema = IpcMessage(info.schema.clone()).try_into().unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let stream = client.do_get(ticket).await.map_err(status)?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(status)?;
    for batch in &batches {
        assert_eq!(batch.schema().as_ref(), &told);
    }
    Ok(arrow::compute::concat_batches(&Arc::new(told), &batches).unwrap())
}

async fn ask(client: &mut FlightSql, sql: &str) -> Result<RecordBatch, Status> {
    let info = client.execute(sql.to_owned(), None).await.map_err(status)?;
    rows(client, info).await
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let column = batch.column_by_name(column).unwrap().as_string::<i32>();
    column.iter().map(|t| t.unwrap_or("-").to_owned()).collect()
}

fn number(batch: &RecordBatch) -> i64 {
    batch.column(0).as_primitive::<Int64Type>().value(0)
}

fn fill(client: &Client) {
    let lines: String = (0..100)
        .map(|n| {
            let time = NEW_YEAR_NS + n * 1_000_000_000;
            format!("cpu,host=h{} n={n}i,usage={n}.5,up={} {time}\n", n % 4, n % 2 == 0)
        })
        .collect();
    client.write("default", &lines);
    client.write("factory", &format!("press,line=a force=7.5 {NEW_YEAR_NS}"));
}

#[test]
fn l1_flight_sql_answers_statements_as_http_does() {
    let (world, http) = World::with_tenant();
    fill(&http);
    runtime().block_on(async {
        let mut flight = client(&world, http.token.as_deref()).await;
        let sql = "SELECT host, count(*) AS rows, sum(n) AS n, max(time) AS t FROM cpu GROUP BY host ORDER BY host";
        let answer = ask(&mut flight, sql).await.unwrap();
        assert_eq!(texts(&answer, "host"), ["h0", "h1", "h2", "h3"]);
        let expected = http.sql("default", sql);
        let sums = answer.column_by_name("n").unwrap().as_primitive::<Int64Type>();
        for (row, expected) in expected.iter().enumerate() {
            assert_eq!(sums.value(row), expected["n"].as_i64().unwrap());
        }
        let ty = answer.schema().field_with_name("t").unwrap().data_type().to_string();
        assert_eq!(ty, "Timestamp(ns, \"UTC\")");
        for (sql, code, text) in [
            ("SELEC 1", Code::InvalidArgument, "sql_syntax"),
            ("DROP TABLE cpu", Code::PermissionDenied, "sql_not_allowed"),
            ("SELECT nothing FROM cpu", Code::InvalidArgument, "sql_unknown_name"),
        ] {
            let refused = ask(&mut flight, sql).await.unwrap_err();
            assert_eq!((refused.code(), refused.message().split(':').next()), (code, Some(text)));
        }
        let unknown = ask(&mut flight, "SELECT * FROM press").await.unwrap_err();
        assert_eq!(unknown.code(), Code::InvalidArgument);
        flight.set_header("database", "factory");
        assert_eq!(ask(&mut flight, "SELECT * FROM press").await.unwrap().num_rows(), 1);
    });
}

#[test]
fn l1_prepared_statements_take_typed_values_and_tell_their_columns() {
    let (world, http) = World::with_tenant();
    fill(&http);
    runtime().block_on(async {
        let mut flight = client(&world, http.token.as_deref()).await;
        let sql = "SELECT count(*) AS rows FROM cpu WHERE host = $1 AND n >= $2 AND up = $3";
        let mut statement = flight.prepare(sql.to_owned(), None).await.unwrap();
        let places = statement.parameter_schema().unwrap();
        let types: Vec<&DataType> = places.fields().iter().map(|f| f.data_type()).collect();
        assert_eq!(types, [&DataType::Utf8, &DataType::Int64, &DataType::Boolean]);
        assert_eq!(statement.dataset_schema().unwrap().field(0).name(), "rows");
        for (host, least, expected) in [("h0", 0, 25), ("h0", 50, 12), ("h' OR 1=1", 0, 0)] {
            let values: Vec<(&str, ArrayRef)> = vec![
                ("a", Arc::new(StringArray::from(vec![host]))),
                ("b", Arc::new(Int64Array::from(vec![least]))),
                ("c", Arc::new(BooleanArray::from(vec![true]))),
            ];
            statement.set_parameters(RecordBatch::try_from_iter(values).unwrap()).unwrap();
            let info = statement.execute().await.unwrap();
            assert_eq!(number(&rows(&mut flight, info).await.unwrap()), expected, "{host} {least}");
        }
        let two: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        statement.set_parameters(RecordBatch::try_from_iter([("a", two)]).unwrap()).unwrap();
        let refused = status(statement.execute().await.unwrap_err());
        assert!(refused.message().starts_with("sql_params"), "{refused:?}");
        let unbound = flight.prepare("SELECT $1 + n FROM cpu".to_owned(), None).await.unwrap();
        unbound.close().await.unwrap();
    });
}

#[test]
fn l1_metadata_calls_list_databases_tables_types_and_abilities() {
    let (world, http) = World::with_tenant();
    fill(&http);
    runtime().block_on(async {
        let mut flight = client(&world, http.token.as_deref()).await;
        let info = flight.get_catalogs().await.unwrap();
        assert_eq!(texts(&rows(&mut flight, info).await.unwrap(), "catalog_name"), ["millrace"]);
        let all = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None };
        let info = flight.get_db_schemas(all).await.unwrap();
        let schemas = rows(&mut flight, info).await.unwrap();
        let names = texts(&schemas, "db_schema_name");
        assert_eq!(names, ["default", "factory", "information_schema", "system"]);
        let tables = CommandGetTables {
            db_schema_filter_pattern: Some("default".to_owned()),
            table_types: vec!["TABLE".to_owned()],
            include_schema: true,
            ..CommandGetTables::default()
        };
        let info = flight.get_tables(tables).await.unwrap();
        let tables = rows(&mut flight, info).await.unwrap();
        assert_eq!(texts(&tables, "table_name"), ["cpu"]);
        let columns = tables.column_by_name("table_schema").unwrap().as_binary::<i32>().value(0);
        let columns: Schema = IpcMessage(columns.to_vec().into()).try_into().unwrap();
        let columns: Vec<&str> = columns.fields().iter().map(|f| f.name().as_str()).collect();
        assert_eq!(columns, ["host", "time", "n", "usage", "up"]);
        let info = flight.get_table_types().await.unwrap();
        assert_eq!(rows(&mut flight, info).await.unwrap().num_rows(), 2);
        let info = flight.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
        assert_eq!(rows(&mut flight, info).await.unwrap().num_rows(), 1);
        let keys = CommandGetPrimaryKeys { table: "cpu".to_owned(), ..Default::default() };
        let info = flight.get_primary_keys(keys).await.unwrap();
        assert_eq!(rows(&mut flight, info).await.unwrap().num_rows(), 0);
        let types = CommandGetXdbcTypeInfo { data_type: None };
        let info = flight.get_xdbc_type_info(types).await.unwrap();
        assert_eq!(rows(&mut flight, info).await.unwrap().num_rows(), 6);
    });
}

#[test]
fn a3_the_handshake_takes_a_token_as_password_and_nothing_else() {
    let (world, http) = World::with_tenant();
    fill(&http);
    let token = http.token.clone().unwrap();
    runtime().block_on(async {
        let mut flight = client(&world, None).await;
        assert_eq!(ask(&mut flight, "SELECT 1").await.unwrap_err().code(), Code::Unauthenticated);
        assert!(flight.handshake("any", "wrong").await.is_err());
        assert_eq!(ask(&mut flight, "SELECT 1").await.unwrap_err().code(), Code::Unauthenticated);
        flight.handshake("any", &token).await.unwrap();
        assert_eq!(ask(&mut flight, "SELECT 1").await.unwrap().num_rows(), 1);
        let writer = world.token("acme", "write");
        let mut flight = client(&world, Some(&writer)).await;
        assert_eq!(ask(&mut flight, "SELECT 1").await.unwrap_err().code(), Code::PermissionDenied);
        assert!(flight.get_catalogs().await.is_err(), "metadata is reading, too");
    });
}

#[test]
fn a1_flight_sql_shows_no_tenant_anything_of_another() {
    let mut world = World::empty();
    world.tenant("acme");
    world.tenant("bolt");
    let (a, b) = (world.token("acme", "read,write"), world.token("bolt", "read,write"));
    world.start();
    let acme = world.client(Some(&a));
    acme.write("default", &scan::canary_lines(NEW_YEAR_NS));
    acme.write(scan::CANARIES[0], &scan::canary_lines(NEW_YEAR_NS));
    world.client(Some(&b)).write("default", &format!("own v=1 {NEW_YEAR_NS}"));
    runtime().block_on(async {
        let (mut mine, mut theirs) =
            (client(&world, Some(&a)).await, client(&world, Some(&b)).await);
        let sql = "SELECT * FROM canarytableqzx";
        let info = mine.execute(sql.to_owned(), None).await.unwrap();
        assert_eq!(rows(&mut mine, info.clone()).await.unwrap().num_rows(), 1);
        // A ticket that was seen is the other's own question, in the other's own tenant.
        let stolen = theirs.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap_err();
        assert_eq!(status(stolen).code(), Code::InvalidArgument);
        // A handle that was seen is nothing, and says the same as one that never was.
        let prepared = handle_of(&mut mine, sql).await;
        assert_eq!(get_handle(&mut mine, &prepared).await.unwrap(), 1);
        let seen = get_handle(&mut theirs, &prepared).await.unwrap_err();
        let never = get_handle(&mut theirs, &[7; 16]).await.unwrap_err();
        assert_eq!((seen.code(), seen.message()), (never.code(), never.message()));
        assert_eq!(seen.code(), Code::NotFound);
        let close = arrow_flight::sql::ActionClosePreparedStatementRequest {
            prepared_statement_handle: prepared.clone().into(),
        };
        let close = Action::new("ClosePreparedStatement", close.as_any().encode_to_vec());
        drop(theirs.do_action(close).await.unwrap());
        assert_eq!(get_handle(&mut mine, &prepared).await.unwrap(), 1, "only its owner closes it");
        // Nothing that lists shows a name.
        let tables = CommandGetTables { include_schema: true, ..Default::default() };
        let info = theirs.get_tables(tables).await.unwrap();
        let mut seen = format!("{:?}", rows(&mut theirs, info).await.unwrap());
        let schemas = CommandGetDbSchemas { catalog: None, db_schema_filter_pattern: None };
        let info = theirs.get_db_schemas(schemas).await.unwrap();
        seen.push_str(&format!("{:?}", rows(&mut theirs, info).await.unwrap()));
        assert!(seen.contains("own"));
        assert!(scan::canaries_in(seen.as_bytes()).is_empty(), "{seen}");
    });
}

async fn handle_of(client: &mut FlightSql, sql: &str) -> Vec<u8> {
    let ask = arrow_flight::sql::ActionCreatePreparedStatementRequest {
        query: sql.to_owned(),
        transaction_id: None,
    };
    let action = Action::new("CreatePreparedStatement", ask.as_any().encode_to_vec());
    let mut answer = client.do_action(action).await.unwrap();
    let body = answer.message().await.unwrap().unwrap().body;
    let made: arrow_flight::sql::ActionCreatePreparedStatementResult =
        Any::decode(body).unwrap().unpack().unwrap().unwrap();
    made.prepared_statement_handle.to_vec()
}

async fn get_handle(client: &mut FlightSql, handle: &[u8]) -> Result<usize, Status> {
    let ask = CommandPreparedStatementQuery { prepared_statement_handle: handle.to_vec().into() };
    let ticket = Ticket::new(ask.as_any().encode_to_vec());
    let stream = client.do_get(ticket).await.map_err(status)?;
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(status)?;
    Ok(batches.iter().map(RecordBatch::num_rows).sum())
}

#[test]
fn a3_a_revoked_token_ends_its_prepared_statements_too() {
    let (world, http) = World::with_tenant();
    fill(&http);
    let token = world.token("acme", "read");
    runtime().block_on(async {
        let mut flight = client(&world, Some(&token)).await;
        let handle = handle_of(&mut flight, "SELECT * FROM cpu").await;
        assert_eq!(get_handle(&mut flight, &handle).await.unwrap(), 100);
        let id = token.split('_').nth(1).unwrap().to_owned();
        tokio::task::block_in_place(|| {
            world.admin(&["token", "revoke", &id, "--tenant", "acme"]);
        });
        let refused = get_handle(&mut flight, &handle).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    });
}

#[test]
fn clients_that_leave_in_the_middle_leave_no_query_behind() {
    let (world, http) = World::with_tenant();
    fill(&http);
    runtime().block_on(async {
        // More than may run and wait together.
        for _ in 0..30 {
            let mut flight = client(&world, http.token.as_deref()).await;
            let endless = "SELECT value FROM generate_series(1, 1000000000000)";
            let info = flight.execute(endless.to_owned(), None).await.unwrap();
            let mut stream = flight.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
            assert!(
                stream.next().await.unwrap().unwrap().num_rows() > 0,
                "rows come as they are made"
            );
        }
        let mut flight = client(&world, http.token.as_deref()).await;
        assert_eq!(number(&ask(&mut flight, "SELECT count(*) FROM cpu").await.unwrap()), 100);
    });
}

#[test]
fn broken_commands_are_refused_and_the_server_lives() {
    let (world, http) = World::with_tenant();
    fill(&http);
    let large = "x".repeat(600 << 10);
    let wrong_ticket = TicketStatementQuery { statement_handle: b"{\"sql\":1}".to_vec().into() };
    let unknown = Any { type_url: "type.googleapis.com/nothing".to_owned(), value: vec![1].into() };
    let long_list = arrow_flight::sql::CommandGetSqlInfo { info: (0..100_000).collect() }.as_any();
    let hostile: Vec<Vec<u8>> = vec![
        Vec::new(),
        vec![0xff; 100],
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f],
        unknown.encode_to_vec(),
        long_list.encode_to_vec(),
        wrong_ticket.as_any().encode_to_vec(),
        CommandPreparedStatementQuery { prepared_statement_handle: vec![0; 1 << 16].into() }
            .as_any()
            .encode_to_vec(),
        arrow_flight::sql::CommandStatementQuery { query: large, transaction_id: None }
            .as_any()
            .encode_to_vec(),
        arrow_flight::sql::CommandStatementUpdate {
            query: "DELETE FROM cpu".to_owned(),
            transaction_id: None,
        }
        .as_any()
        .encode_to_vec(),
    ];
    runtime().block_on(async {
        let mut flight = client(&world, http.token.as_deref()).await;
        for bytes in hostile {
            let shown = format!("{:?}", &bytes[..bytes.len().min(40)]);
            let got = flight.do_get(Ticket::new(bytes.clone())).await;
            assert!(got.is_err(), "DoGet {shown}");
            let mut request = tonic::Request::new(FlightDescriptor::new_cmd(bytes.clone()));
            let token = http.token.clone().unwrap();
            let bearer = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", bearer);
            let got = flight.inner_mut().get_flight_info(request).await;
            // A list that is too long is the only one whose columns could be told.
            assert!(got.is_err(), "GetFlightInfo {shown}: {got:?}");
            let first = arrow_flight::FlightData {
                flight_descriptor: Some(FlightDescriptor::new_cmd(bytes.clone())),
                data_header: bytes.clone().into(),
                data_body: bytes.clone().into(),
                ..Default::default()
            };
            assert!(flight.do_put(futures::stream::iter([first])).await.is_err(), "DoPut {shown}");
            for action in ["CreatePreparedStatement", "ClosePreparedStatement", "BeginTransaction"]
            {
                let got = flight.do_action(Action::new(action, bytes.clone())).await;
                assert!(got.is_err(), "{action} {shown}");
            }
        }
        assert_eq!(number(&ask(&mut flight, "SELECT count(*) FROM cpu").await.unwrap()), 100);
    });
}
