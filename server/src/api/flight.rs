//! Arrow Flight: DoPut for forwarders, DoGet for InfluxDB 3 clients, and Flight SQL.
//!
//! DoPut: a schema message, then data messages, each with a [`PutHeader`] in `app_metadata`; each
//! is answered, in order, with a [`PutAck`] once its rows are durable. The device's certificate is
//! the credential and is looked up again for every message, so a revoked device stops at once.
//! DoGet: the ticket is JSON `{"database", "sql_query", "query_type": "sql"}`, or one of Flight
//! SQL's (sql.rs), which the other calls speak too.
//! Never: acks before the receipt; more than [`AHEAD`] messages of one stream in flight; takes a
//! message while memory for rows is full: it stays in the connection, and its ack out.

mod metadata;
mod prepared;
mod rows;
mod sql;

use std::sync::Arc;

use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo,
    HandshakeRequest, HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket,
    flight_service_server::{FlightService, FlightServiceServer},
    sql::Any,
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use millrace_control::{Principal, policy};
use millrace_platform::metric::Metric;
use millrace_protocol::{
    arrow::{MessageDecoder, REFUSALS_LISTED_MAX, from_record_batch_listing},
    batch::RowLimits,
    ids::DeviceId,
    stream::{PutAck, PutHeader},
};
use millrace_query::Params;
use millrace_storage::{Origin, REJECTED_ROWS_PER_WRITE, Rejects, Sender, WriteRequest};
use prost::Message;
use serde::Deserialize;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::prepared::Prepared;
use self::sql::Asker;
use super::{Code, Problem, State, auth, query::database};
use crate::{
    ingest::raw::{self, BatchRows},
    listener::Peer,
};

/// The actions of Flight SQL that are offered.
const CREATE_PREPARED_STATEMENT: &str = "CreatePreparedStatement";
const CLOSE_PREPARED_STATEMENT: &str = "ClosePreparedStatement";
/// Messages of one stream that wait for their sync at once.
const AHEAD: usize = 8;
/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// The service for the router.
pub(super) fn service(state: Arc<State>) -> FlightServiceServer<Flight> {
    FlightServiceServer::new(Flight { state })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Flight {
    state: Arc<State>,
}

/// A problem as a gRPC status: the code goes first in the message.
fn status(problem: Problem) -> Status {
    let message = format!("{}: {}", problem.code.as_str(), problem.detail);
    match problem.status().as_u16() {
        401 => Status::unauthenticated(message),
        403 => Status::permission_denied(message),
        404 => Status::not_found(message),
        409 => Status::failed_precondition(message),
        408 => Status::deadline_exceeded(message),
        413 | 429 | 507 => Status::resource_exhausted(message),
        503 => Status::unavailable(message),
        s if s >= 500 => Status::internal(message),
        _ => Status::invalid_argument(message),
    }
}

fn refused(code: Code, detail: impl Into<String>) -> Status {
    status(Problem::new(code, detail))
}

fn unimplemented<T>(what: &str) -> Result<Response<T>, Status> {
    Err(Status::unimplemented(format!(
        "{what} is not offered; use Flight SQL, DoGet with a JSON ticket, or HTTP"
    )))
}

impl Flight {
    fn principal<T>(&self, request: &Request<T>) -> Result<Principal, Status> {
        let peer = request.extensions().get::<Peer>();
        let headers = request.metadata().clone().into_headers();
        auth::principal(&self.state, &headers, peer)
            .ok_or_else(|| status(Problem::unauthenticated()))
    }

    /// Who asks with the right to read.
    fn asker<T>(&self, request: &Request<T>) -> Result<Asker<'_>, Status> {
        let headers = request.metadata().clone().into_headers();
        Asker::new(&self.state, self.principal(request)?, &headers)
    }

    /// DoPut of somebody who is no device: the values of a prepared statement.
    async fn put_values(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<PutResult, Status> {
        self.principal(&request)?;
        let asker = self.asker(&request);
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let from = first.flight_descriptor.as_ref().map(|d| sql::command(&d.cmd));
        match from {
            Some(Ok(_)) => asker?.put(first, messages).await,
            // Who has a token but no certificate is somebody, but not a device.
            _ => Err(refused(Code::Forbidden, "DoPut of rows needs a device certificate")),
        }
    }

    /// DoGet of a ticket in JSON.
    async fn get_json(
        &self,
        principal: &Principal,
        ticket: &[u8],
    ) -> Result<sql::Messages, Status> {
        let scope = policy::to_read(principal).map_err(|e| status(Problem::from(e)))?;
        let ticket: JsonTicket = serde_json::from_slice(ticket).map_err(|e| {
            refused(Code::BadTicket, format!("the ticket is not JSON with sql_query: {e}"))
        })?;
        if ticket.query_type.as_deref().is_some_and(|t| t != "sql") {
            return Err(refused(Code::BadTicket, "only query_type `sql` is offered"));
        }
        let params = Params::from_json(ticket.params).map_err(|e| status(Problem::from(e)))?;
        let database = database(ticket.database).map_err(status)?;
        let answer = self.state.query.run(scope, &database, &ticket.sql_query, params).await;
        Ok(rows::messages(answer.map_err(|e| status(Problem::from(e)))?))
    }
}

#[derive(Debug, Deserialize)]
struct JsonTicket {
    #[serde(default)]
    database: Option<String>,
    sql_query: String,
    #[serde(default)]
    query_type: Option<String>,
    #[serde(default)]
    params: serde_json::Value,
}

/// Counts an open stream.
struct OpenStream;

impl OpenStream {
    fn new() -> Self {
        metrics::gauge!(Metric::ForwarderStreams.name()).increment(1.0);
        Self
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        metrics::gauge!(Metric::ForwarderStreams.name()).decrement(1.0);
    }
}

/// Hands one message to storage, in order; the returned future is its ack.
fn put(
    state: &Arc<State>,
    device: DeviceId,
    serial: u64,
    decoder: &mut MessageDecoder,
    message: Result<FlightData, Status>,
) -> BoxFuture<'static, Result<Option<PutResult>, Status>> {
    let queued = (|| {
        let message = message?;
        let decoded = decoder
            .message(&message.data_header, &message.data_body.clone().into())
            .map_err(|e| refused(Code::BadIpc, format!("{e}")))?;
        let Some(batch) = decoded else { return Ok(None) };
        let header = PutHeader::from_bytes(&message.app_metadata)
            .map_err(|e| refused(Code::BadSequence, format!("{e}")))?;
        if header.rows() != batch.num_rows() as u64 {
            return Err(refused(
                Code::BadSequence,
                format!(
                    "the header numbers {} rows, the message has {}",
                    header.rows(),
                    batch.num_rows()
                ),
            ));
        }
        let principal = state
            .catalog
            .device_principal(device, serial)
            .ok_or_else(|| refused(Code::Forbidden, "this device has been revoked"))?;
        let scope = policy::to_write_stream(&principal, header.key.device)
            .map_err(|e| status(Problem::from(e)))?;
        let (limits, most) = (RowLimits::default(), REJECTED_ROWS_PER_WRITE);
        let (database, table, mut refusals) =
            from_record_batch_listing(&batch, &limits, state.seed, most)
                .map_err(|e| refused(Code::BadBatch, format!("{e}")))?;
        // The list is cut at a hundred; the count is not.
        let refused = (batch.num_rows() - table.rows()) as u64;
        let held = state.admission.hold(message.data_body.len() + table.memory_bytes());
        let bytes = message.data_body.len() as u64;
        state.budgets.charge(scope.tenant(), batch.num_rows() as u64, bytes);
        let rows = BatchRows(batch);
        let listed = raw::rejected(&refusals, Some(&table.table), &rows);
        refusals.truncate(REFUSALS_LISTED_MAX);
        let rejects = Rejects { listed, count: refused, raw: Arc::new(rows), precision: "ns" };
        let source = raw::stream_source(&header.key);
        let request = WriteRequest {
            tenant: scope.tenant(),
            database,
            origin: Origin::Stream(header.clone()),
            tables: vec![table],
            sender: Sender { source, rejects: Some(rejects) },
        };
        Ok(Some((header, refusals, refused, state.engine.write(request), held)))
    })();
    async move {
        let Some((header, mut refusals, refused, write, _held)) = queued? else {
            return Ok(None);
        };
        let receipt = write.await.map_err(|e| status(Problem::from(e)))?;
        let counted = refused + receipt.refused();
        refusals.extend(receipt.refusals().iter().cloned());
        let hi = receipt.watermark().unwrap_or(header.seq_hi);
        let ack = PutAck::new(header.key, hi, receipt.duplicate(), refusals, counted);
        Ok(Some(PutResult { app_metadata: ack.to_bytes().into() }))
    }
    .boxed()
}

#[tonic::async_trait]
impl FlightService for Flight {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoExchangeStream = BoxStream<'static, Result<FlightData, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;

    async fn handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        self.principal(&request)?;
        let headers = request.metadata().clone().into_headers();
        // The token is the session: it is handed back in the form that later calls show.
        let token = auth::token_of(&headers).ok_or_else(|| status(Problem::unauthenticated()))?;
        let answer = HandshakeResponse { protocol_version: 0, ..HandshakeResponse::default() };
        let mut response = Response::new(futures::stream::iter([Ok(answer)]).boxed());
        if let Ok(value) = format!("Bearer {token}").parse() {
            response.metadata_mut().insert("authorization", value);
        }
        Ok(response)
    }

    async fn list_flights(
        &self,
        _: Request<Criteria>,
    ) -> Result<Response<Self::ListFlightsStream>, Status> {
        unimplemented("ListFlights")
    }

    async fn get_flight_info(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let asker = self.asker(&request)?;
        Ok(Response::new(asker.info(request.into_inner()).await?))
    }

    async fn poll_flight_info(
        &self,
        _: Request<FlightDescriptor>,
    ) -> Result<Response<PollInfo>, Status> {
        unimplemented("PollFlightInfo")
    }

    async fn get_schema(
        &self,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<SchemaResult>, Status> {
        let asker = self.asker(&request)?;
        let schema = asker.info(request.into_inner()).await?.schema;
        Ok(Response::new(SchemaResult { schema }))
    }

    async fn do_get(
        &self,
        request: Request<Ticket>,
    ) -> Result<Response<Self::DoGetStream>, Status> {
        let principal = self.principal(&request)?;
        let ticket = &request.get_ref().ticket;
        // Anything that is text is taken for JSON, so that its author reads what is wrong with it.
        let stream = if ticket.first() == Some(&b'{') || Any::decode(ticket.as_ref()).is_err() {
            self.get_json(&principal, ticket).await?
        } else {
            self.asker(&request)?.get(ticket).await?
        };
        Ok(Response::new(stream))
    }

    async fn do_put(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoPutStream>, Status> {
        let Some((device, serial)) = request.extensions().get::<Peer>().and_then(|p| p.0) else {
            let bound = self.put_values(request).await?;
            return Ok(Response::new(futures::stream::iter([Ok(bound)]).boxed()));
        };
        let Some(Principal::Device { tenant, .. }) =
            self.state.catalog.device_principal(device, serial)
        else {
            return Err(status(Problem::unauthenticated()));
        };
        let state = Arc::clone(&self.state);
        let open = OpenStream::new();
        let mut decoder = MessageDecoder::new();
        let paced = Arc::clone(&state);
        let acks = request
            .into_inner()
            // Over budget the stream stands still: nothing of it is refused or dropped.
            .then(move |message| {
                let state = Arc::clone(&paced);
                async move {
                    state.admission.room().await;
                    state.budgets.wait(tenant).await;
                    message
                }
            })
            .map(move |message| put(&state, device, serial, &mut decoder, message))
            .buffered(AHEAD)
            .filter_map(move |ack| {
                let _open = &open;
                futures::future::ready(ack.transpose())
            });
        Ok(Response::new(until_error(until_revoked(&self.state, device, serial, acks.boxed()))))
    }

    async fn do_exchange(
        &self,
        _: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        unimplemented("DoExchange")
    }

    async fn do_action(
        &self,
        request: Request<Action>,
    ) -> Result<Response<Self::DoActionStream>, Status> {
        let asker = self.asker(&request)?;
        let action = request.into_inner();
        let results = match action.r#type.as_str() {
            CREATE_PREPARED_STATEMENT => {
                let body = asker.prepare(&action.body).await?;
                vec![Ok(arrow_flight::Result { body })]
            }
            CLOSE_PREPARED_STATEMENT => {
                asker.close(&action.body)?;
                Vec::new()
            }
            _ => return unimplemented("this action"),
        };
        Ok(Response::new(futures::stream::iter(results).boxed()))
    }

    async fn list_actions(
        &self,
        _: Request<Empty>,
    ) -> Result<Response<Self::ListActionsStream>, Status> {
        let action = |name: &str, what: &str| {
            Ok(ActionType { r#type: name.to_owned(), description: what.to_owned() })
        };
        let actions = [
            action(CREATE_PREPARED_STATEMENT, "keeps a statement and says what it answers"),
            action(CLOSE_PREPARED_STATEMENT, "forgets a statement"),
        ];
        Ok(Response::new(futures::stream::iter(actions).boxed()))
    }
}

/// Ends the stream as soon as the device is revoked, also while it is idle.
fn until_revoked(
    state: &Arc<State>,
    device: DeviceId,
    serial: u64,
    acks: BoxStream<'static, Result<PutResult, Status>>,
) -> BoxStream<'static, Result<PutResult, Status>> {
    let catalog = Arc::clone(&state.catalog);
    let revoked = futures::stream::once(async move {
        catalog.revoked(device, serial).await;
        Some(Err(refused(Code::Forbidden, "this device has been revoked")))
    });
    let acks = acks.map(Some).chain(futures::stream::once(futures::future::ready(None)));
    // `None` is the stream's own end, after which nobody waits for a revocation.
    futures::stream::select(acks, revoked)
        .take_while(|ack| futures::future::ready(ack.is_some()))
        .filter_map(futures::future::ready)
        .boxed()
}

/// Ends the stream at its first error: rows after a failed message would leave a hole.
fn until_error(
    acks: BoxStream<'static, Result<PutResult, Status>>,
) -> BoxStream<'static, Result<PutResult, Status>> {
    acks.scan(false, |failed, ack| {
        let go_on = !*failed;
        *failed = ack.is_err();
        futures::future::ready(go_on.then_some(ack))
    })
    .boxed()
}
