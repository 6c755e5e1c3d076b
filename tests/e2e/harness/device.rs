//! A scripted device: enrols and streams like a forwarder, but sends exactly what a test says.
//!
//! Owns: the device's key and certificate, a Flight connection with them, frames of our own
//! numbering and of nobody's. Exactly-once is proven here at the protocol, apart from the
//! forwarder that usually speaks it.

use std::sync::Arc;

use arrow::{
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
};
use arrow_flight::{
    FlightData, Ticket, flight_service_client::FlightServiceClient, utils::batches_to_flight_data,
};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use millrace_protocol::{
    arrow::to_record_batch,
    batch::RowLimits,
    device::{EnrolAnswer, EnrolRequest},
    ids::{Epoch, SeqNo},
    line::{self, LineOptions, Precision},
    stream::{PutAck, PutHeader, StreamKey},
};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject,
};
use tokio::runtime::Runtime;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{http::Client, server::World};

/// A device that does what it is told.
#[derive(Debug)]
pub struct Device {
    runtime: Runtime,
    base: String,
    ca: String,
    key: rcgen::KeyPair,
    /// What the server answered to the enrolment.
    pub enrolled: EnrolAnswer,
}

/// Enrols by hand; the whole answer of the server.
pub fn enrol(client: &Client, code: &str, csr_pem: &str) -> crate::Answer {
    let request = EnrolRequest {
        claim_code: code.to_owned(),
        csr_pem: csr_pem.to_owned(),
        name: "scripted".to_owned(),
        version: "0.0.0".to_owned(),
    };
    let body = serde_json::to_vec(&request).expect("JSON");
    client.post("/api/v1/device/enrol", &[("content-type", "application/json")], &body)
}

/// A new key and a signing request made with it.
pub fn key_and_request() -> (rcgen::KeyPair, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::new(Vec::<String>::new())
        .and_then(|p| p.serialize_request(&key))
        .and_then(|r| r.pem())
        .expect("a signing request");
    (key, request)
}

impl Device {
    /// The server was started again, perhaps at another port.
    pub fn follow(&mut self, world: &World) {
        self.base.clone_from(&world.server().base);
    }

    /// Enrols a new device of `tenant`.
    pub fn enrol(world: &World, tenant: &str) -> Self {
        let (key, request) = key_and_request();
        let answer = enrol(&world.client(None), &world.claim(tenant), &request);
        assert!((200..300).contains(&answer.status), "{}", answer.text());
        let enrolled = serde_json::from_slice(&answer.body).expect("an enrolment answer");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        Self { runtime, base: world.server().base.clone(), ca: world.ca(), key, enrolled }
    }

    /// The key of one of its streams.
    pub fn stream(&self, name: &str, epoch: u64) -> StreamKey {
        StreamKey {
            device: self.enrolled.device_id,
            stream: name.parse().expect("a stream name"),
            epoch: Epoch(epoch),
        }
    }

    /// Opens a stream that stays open, does something once its rows are acked, and gives back the
    /// status with which the server then ends it, or `None` if it does not within ten seconds.
    pub fn idle_until_ended(
        &self,
        messages: Vec<FlightData>,
        meanwhile: impl FnOnce() + Send,
    ) -> Option<Status> {
        let identity = (self.enrolled.certificate_pem.clone(), self.key.serialize_der());
        self.runtime.block_on(async {
            let client = connect(&self.base, &self.ca, Some(identity)).await;
            let mut client = client.expect("a connection");
            let open = futures::stream::iter(messages).chain(futures::stream::pending());
            let mut acks = client.do_put(Request::new(open)).await.expect("opens").into_inner();
            while acks.next().await.expect("an ack").expect("taken").app_metadata.is_empty() {}
            tokio::task::block_in_place(meanwhile);
            let ended = tokio::time::timeout(std::time::Duration::from_secs(10), acks.next());
            ended.await.ok()?.and_then(Result::err)
        })
    }

    /// Opens a DoPut, sends these messages, ends it; every ack, or the status that ended it.
    pub fn put(&self, messages: Vec<FlightData>) -> Result<Vec<PutAck>, Status> {
        let identity = (self.enrolled.certificate_pem.clone(), self.key.serialize_der());
        self.runtime.block_on(async {
            let mut client = connect(&self.base, &self.ca, Some(identity)).await?;
            let request = Request::new(futures::stream::iter(messages));
            collect(client.do_put(request).await?.into_inner()).await
        })
    }
}

async fn collect(
    mut answers: tonic::Streaming<arrow_flight::PutResult>,
) -> Result<Vec<PutAck>, Status> {
    let mut acks = Vec::new();
    while let Some(answer) = answers.next().await {
        let answer = answer?;
        // An empty answer is Flight's own "schema taken".
        if !answer.app_metadata.is_empty() {
            let ack = PutAck::from_bytes(&answer.app_metadata);
            acks.push(ack.map_err(|e| Status::data_loss(e.to_string()))?);
        }
    }
    Ok(acks)
}

/// A Flight connection that trusts one CA and shows a certificate if it has one.
pub async fn connect(
    base: &str,
    ca: &str,
    identity: Option<(String, Vec<u8>)>,
) -> Result<FlightServiceClient<Channel>, Status> {
    let mut roots = rustls::RootCertStore::empty();
    for der in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots.add(der.expect("PEM")).expect("a CA");
    }
    let builder = rustls::ClientConfig::builder_with_provider(crate::http::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((certificate, key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .map(|c| c.expect("PEM"))
                .collect();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
            builder.with_client_auth_cert(chain, key).expect("key and certificate fit")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let address = base.trim_start_matches("https://").to_owned();
    let connector = tower::service_fn(move |_: tonic::transport::Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let socket = tokio::net::TcpStream::connect(address).await?;
            let name = ServerName::try_from("127.0.0.1").expect("an address");
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, socket).await?))
        }
    });
    let endpoint = Endpoint::from_shared(base.replace("https://", "http://"))
        .map_err(|e| Status::internal(e.to_string()))?;
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|e| Status::unavailable(format!("{e:?}")))?;
    Ok(FlightServiceClient::new(channel).max_decoding_message_size(256 << 20))
}

/// Reads a Flight ticket with a token in the metadata: rows in all, or the status.
pub fn get(client: &Client, ca: &str, ticket: &[u8]) -> Result<usize, Status> {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut flight = connect(&client.base, ca, None).await?;
        let mut request = Request::new(Ticket { ticket: ticket.to_vec().into() });
        if let Some(token) = &client.token {
            let value = format!("Bearer {token}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        let stream = flight.do_get(request).await?.into_inner();
        let stream = stream.map(|m| m.map_err(Into::into));
        let mut batches =
            arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(stream);
        let mut rows = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|e| match e {
                arrow_flight::error::FlightError::Tonic(status) => *status,
                other => Status::data_loss(other.to_string()),
            })?;
            rows += batch.num_rows();
        }
        Ok(rows)
    })
}

/// Opens a DoPut with a token instead of a certificate, or with nothing.
pub fn put_with_token(
    client: &Client,
    ca: &str,
    messages: Vec<FlightData>,
) -> Result<Vec<PutAck>, Status> {
    let runtime = Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let mut flight = connect(&client.base, ca, None).await?;
        let mut request = Request::new(futures::stream::iter(messages));
        if let Some(token) = &client.token {
            let value = format!("Bearer {token}").parse().expect("ASCII");
            request.metadata_mut().insert("authorization", value);
        }
        collect(flight.do_put(request).await?.into_inner()).await
    })
}

/// Line protocol as an Arrow batch, the way a forwarder makes it.
pub fn batch(lines: &str) -> RecordBatch {
    let options = LineOptions {
        precision: Precision::Nanosecond,
        default_time_ns: 0,
        default_time_step_ns: 0,
        limits: RowLimits::default(),
        refusals_max: 10,
    };
    let parsed = line::parse(lines.as_bytes(), &options);
    assert!(parsed.refusals.is_empty(), "{:?}", parsed.refusals);
    plain(&to_record_batch(&parsed.tables[0], "default").expect("a batch"))
}

/// Tags as plain text: a dictionary would be a Flight message of its own, without a header.
fn plain(batch: &RecordBatch) -> RecordBatch {
    let mut columns = Vec::new();
    let mut fields = Vec::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let text = matches!(field.data_type(), DataType::Dictionary(_, _));
        let to = if text { &DataType::Utf8 } else { field.data_type() };
        columns.push(arrow::compute::cast(column, to).expect("text is text"));
        fields.push(field.as_ref().clone().with_data_type(to.clone()));
    }
    let schema = Schema::new_with_metadata(fields, batch.schema().metadata().clone());
    RecordBatch::try_new(Arc::new(schema), columns).expect("the same columns")
}

/// The messages of a DoPut: the schema, then each batch with its header.
pub fn messages(frames: &[(PutHeader, RecordBatch)]) -> Vec<FlightData> {
    let mut out = Vec::new();
    for (n, (header, batch)) in frames.iter().enumerate() {
        let data = batches_to_flight_data(&batch.schema(), vec![batch.clone()]).expect("encodes");
        // A schema and one batch, which carries the header.
        let last = data.len() - 1;
        for (at, mut message) in data.into_iter().enumerate() {
            if at == last {
                message.app_metadata = header.to_bytes().into();
            }
            if at > 0 || n == 0 {
                out.push(message);
            }
        }
    }
    out
}

/// A header of rows `lo..=hi`.
pub fn header(key: &StreamKey, lo: u64, hi: u64) -> PutHeader {
    PutHeader { key: key.clone(), seq_lo: SeqNo(lo), seq_hi: SeqNo(hi) }
}
