//! Flight SQL: statements, prepared statements, metadata.
//!
//! Owns: what each command does. A statement's ticket is its own text and database: it holds no
//! secret, and whoever shows it asks in the tenant of the credential shown with it, so that there
//! is nothing to forge. Nothing is kept between the calls but prepared statements.
//! Never: reads rows before DoGet, runs what HTTP would refuse, or answers differently for what is
//! another's than for what is not there.

use arrow::datatypes::{Field, Schema};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::{
    FlightData, FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, PutResult, SchemaAsIpc,
    Ticket,
    sql::{
        ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
        ActionCreatePreparedStatementResult, Any, Command, DoPutPreparedStatementResult,
        ProstMessageExt, TicketStatementQuery,
    },
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream::BoxStream};
use http::HeaderMap;
use millrace_control::{Principal, ReadScope, policy};
use millrace_protocol::arrow::MessageDecoder;
use millrace_query::{Params, QueryError};
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::{
    Code, Problem, State, metadata,
    prepared::{Owner, Statement},
    refused, rows, status,
};
use crate::api::query::database;

/// Bytes of a ticket or command; the text in it may have 256 KiB.
const COMMAND_BYTES_MAX: usize = 512 << 10;
/// Entries of a list in a command.
const LIST_MAX: usize = 1000;
/// Bytes of the values of one prepared statement.
const VALUES_BYTES_MAX: usize = 2 << 20;

pub(super) type Messages = BoxStream<'static, Result<FlightData, Status>>;

/// Who asks, with the right to read.
pub(super) struct Asker<'a> {
    state: &'a State,
    scope: ReadScope,
    owner: Owner,
    database: String,
}

/// What a statement's ticket says.
#[derive(Serialize, Deserialize)]
struct Question {
    database: String,
    sql: String,
}

fn failed(e: QueryError) -> Status {
    status(Problem::from(e))
}

fn unreadable(what: &str) -> Status {
    refused(Code::BadTicket, format!("{what} is not one of Flight SQL's"))
}

fn not_there() -> Status {
    refused(Code::NotFound, "there is no such prepared statement, or it ended for want of use")
}

fn not_offered(what: &str) -> Status {
    Status::unimplemented(format!("{what} is not offered: rows are written as line protocol"))
}

/// The command in some bytes.
pub(super) fn command(bytes: &[u8]) -> Result<Command, Status> {
    if bytes.len() > COMMAND_BYTES_MAX {
        return Err(refused(
            Code::BodyTooLarge,
            format!("a command has at most {COMMAND_BYTES_MAX} bytes"),
        ));
    }
    let any = Any::decode(bytes).map_err(|_| unreadable("the command"))?;
    let command = Command::try_from(any).map_err(|_| unreadable("the command"))?;
    let entries = match &command {
        Command::CommandGetSqlInfo(ask) => ask.info.len(),
        Command::CommandGetTables(ask) => ask.table_types.len(),
        Command::Unknown(_) => return Err(unreadable("the command")),
        _ => 0,
    };
    if entries > LIST_MAX {
        return Err(refused(Code::BadTicket, format!("a list has at most {LIST_MAX} entries")));
    }
    Ok(command)
}

fn ipc(schema: &Schema) -> Result<Bytes, Status> {
    let message: Result<IpcMessage, _> =
        SchemaAsIpc::new(schema, &IpcWriteOptions::default()).try_into();
    message.map(|m| m.0).map_err(|e| failed(QueryError::Invalid(e.to_string())))
}

/// Where rows with this schema are to be had.
fn info(schema: &Schema, ticket: Bytes, from: FlightDescriptor) -> Result<FlightInfo, Status> {
    let info = FlightInfo::new()
        .try_with_schema(schema)
        .map_err(|e| failed(QueryError::Invalid(e.to_string())))?;
    let endpoint = FlightEndpoint::new().with_ticket(Ticket { ticket });
    Ok(info.with_endpoint(endpoint).with_descriptor(from))
}

impl<'a> Asker<'a> {
    /// The right to read, and the database that the header `database` names.
    pub(super) fn new(
        state: &'a State,
        principal: Principal,
        headers: &HeaderMap,
    ) -> Result<Self, Status> {
        let scope = policy::to_read(&principal).map_err(|e| status(Problem::from(e)))?;
        let Principal::Token { tenant, token, .. } = principal else {
            return Err(status(Problem::unauthenticated()));
        };
        let named = headers.get("database").and_then(|d| d.to_str().ok());
        let database = database(named.map(str::to_owned)).map_err(status)?;
        Ok(Self { state, scope, owner: (tenant, token), database })
    }

    fn statement(&self, handle: &[u8]) -> Result<Statement, Status> {
        self.state.prepared.get(&self.owner, handle).ok_or_else(not_there)
    }

    /// GetFlightInfo.
    pub(super) async fn info(self, from: FlightDescriptor) -> Result<FlightInfo, Status> {
        let asked = command(&from.cmd)?;
        if metadata::is_metadata(&asked) {
            let empty = metadata::answer(asked, &[]).map_err(|e| unreadable(&e.to_string()))?;
            return info(&empty.schema(), from.cmd.clone(), from);
        }
        match asked {
            Command::CommandStatementQuery(ask) => {
                let told =
                    self.state.query.describe(self.scope, &self.database, &ask.query, vec![]);
                let told = told.await.map_err(failed)?;
                let question = Question { database: self.database, sql: ask.query };
                let text = serde_json::to_vec(&question).unwrap_or_default();
                let ticket = TicketStatementQuery { statement_handle: text.into() };
                let ticket = ticket.as_any().encode_to_vec().into();
                info(&rows::plain_schema(&told.schema), ticket, from)
            }
            Command::CommandPreparedStatementQuery(ask) => {
                let kept = self.statement(&ask.prepared_statement_handle)?;
                let types = kept.params.types();
                let told = self.state.query.describe(self.scope, &kept.database, &kept.sql, types);
                let told = told.await.map_err(failed)?;
                info(&rows::plain_schema(&told.schema), from.cmd.clone(), from)
            }
            other => Err(not_offered(other.type_url())),
        }
    }

    /// DoGet of a Flight SQL ticket.
    pub(super) async fn get(self, ticket: &[u8]) -> Result<Messages, Status> {
        let asked = command(ticket)?;
        if metadata::is_metadata(&asked) {
            let tables = if metadata::needs_tables(&asked) {
                let tables = self.state.query.tables(self.scope, &self.database);
                tables.await.map_err(failed)?
            } else {
                Vec::new()
            };
            let answer = metadata::answer(asked, &tables);
            return Ok(rows::batch(answer.map_err(|e| unreadable(&e.to_string()))?));
        }
        let (database, sql, params) = match asked {
            Command::TicketStatementQuery(ticket) => {
                let question: Question = serde_json::from_slice(&ticket.statement_handle)
                    .map_err(|_| unreadable("the ticket"))?;
                (database(Some(question.database)).map_err(status)?, question.sql, Params::None)
            }
            Command::CommandPreparedStatementQuery(ask) => {
                let kept = self.statement(&ask.prepared_statement_handle)?;
                (kept.database, kept.sql, kept.params)
            }
            other => return Err(not_offered(other.type_url())),
        };
        let answer = self.state.query.run(self.scope, &database, &sql, params).await;
        Ok(rows::messages(answer.map_err(failed)?))
    }

    /// DoPut: the values of a prepared statement. `first` carries the command.
    pub(super) async fn put(
        self,
        first: FlightData,
        rest: impl Stream<Item = Result<FlightData, Status>> + Unpin,
    ) -> Result<PutResult, Status> {
        let from = first.flight_descriptor.clone().unwrap_or_default();
        let handle = match command(&from.cmd)? {
            Command::CommandPreparedStatementQuery(ask) => ask.prepared_statement_handle,
            other => return Err(not_offered(other.type_url())),
        };
        self.statement(&handle)?;
        let params = values(first, rest).await?;
        if !self.state.prepared.bind(&self.owner, &handle, params) {
            return Err(not_there());
        }
        let same = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
        Ok(PutResult { app_metadata: same.encode_to_vec().into() })
    }

    /// CreatePreparedStatement.
    pub(super) async fn prepare(self, body: &[u8]) -> Result<Bytes, Status> {
        let ask: ActionCreatePreparedStatementRequest = unpack(body)?;
        let told = self.state.query.describe(self.scope, &self.database, &ask.query, vec![]);
        let told = told.await.map_err(failed)?;
        let places = told.places.iter().map(|p| {
            // A place without a type takes whatever is bound.
            Field::new(
                &p.name,
                p.data_type.clone().unwrap_or(arrow::datatypes::DataType::Utf8),
                true,
            )
        });
        let places = Schema::new(places.collect::<Vec<_>>());
        let (dataset_schema, parameter_schema) =
            (ipc(&rows::plain_schema(&told.schema))?, ipc(&rows::plain_schema(&places))?);
        let statement = Statement { database: self.database, sql: ask.query, params: Params::None };
        let handle = self.state.prepared.keep(self.owner, statement);
        let made = ActionCreatePreparedStatementResult {
            prepared_statement_handle: Bytes::copy_from_slice(&handle),
            dataset_schema,
            parameter_schema,
        };
        Ok(made.as_any().encode_to_vec().into())
    }

    /// ClosePreparedStatement; closing what is not there is no error, whoever's it may be.
    pub(super) fn close(self, body: &[u8]) -> Result<(), Status> {
        let ask: ActionClosePreparedStatementRequest = unpack(body)?;
        self.state.prepared.close(&self.owner, &ask.prepared_statement_handle);
        Ok(())
    }
}

fn unpack<M: ProstMessageExt>(body: &[u8]) -> Result<M, Status> {
    if body.len() > COMMAND_BYTES_MAX {
        return Err(refused(Code::BodyTooLarge, "the action is too large"));
    }
    let any = Any::decode(body).map_err(|_| unreadable("the action"))?;
    any.unpack().ok().flatten().ok_or_else(|| unreadable("the action"))
}

/// The one row of values in some messages.
async fn values(
    first: FlightData,
    rest: impl Stream<Item = Result<FlightData, Status>> + Unpin,
) -> Result<Params, Status> {
    let mut decoder = MessageDecoder::new();
    let mut messages = futures::stream::iter([Ok(first)]).chain(rest);
    let (mut found, mut bytes) = (None, 0);
    while let Some(message) = messages.next().await {
        let message = message?;
        bytes += message.data_header.len() + message.data_body.len();
        if bytes > VALUES_BYTES_MAX {
            return Err(refused(
                Code::BodyTooLarge,
                format!("the values have more than {VALUES_BYTES_MAX} bytes"),
            ));
        }
        if message.data_header.is_empty() {
            continue;
        }
        let batch = decoder
            .message(&message.data_header, &message.data_body.into())
            .map_err(|e| refused(Code::BadIpc, e.to_string()))?;
        let Some(batch) = batch.filter(|b| b.num_rows() > 0) else { continue };
        if found.replace(Params::from_batch(&batch).map_err(failed)?).is_some() {
            return Err(refused(Code::SqlParams, "one row of values is bound at a time"));
        }
    }
    Ok(found.unwrap_or_default())
}
