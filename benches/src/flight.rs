//! A device that streams prepared rows through Arrow Flight, as a forwarder does.
//!
//! Owns: enrolment, a connection with the device's certificate, streams whose rows are numbered
//! without holes, the time of each ack. Rows are encoded before the clock starts.
//! Never: takes an ack for rows that it does not name, or one that refuses rows.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arrow::{
    datatypes::{DataType, Schema},
    record_batch::RecordBatch,
};
use arrow_flight::{
    FlightData, flight_service_client::FlightServiceClient, utils::batches_to_flight_data,
};
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use millrace_protocol::{
    arrow::to_record_batch,
    device::{EnrolAnswer, EnrolRequest},
    ids::{Epoch, SeqNo},
    line::{self, LineOptions},
    stream::{PutAck, PutHeader, StreamKey},
};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject,
};
use tokio::sync::Semaphore;
use tonic::transport::{Channel, Endpoint};

use crate::{
    http::{Connection, roots},
    load::Sent,
    server::Failed,
};

/// Bytes of one message, as the server takes them.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// An enrolled device.
#[derive(Debug)]
pub struct Device {
    key_der: Vec<u8>,
    enrolled: EnrolAnswer,
}

impl Device {
    /// Makes a key and redeems a claim code with it.
    pub fn enrol(connection: &mut Connection, code: &str, name: &str) -> Result<Self, Failed> {
        let key = rcgen::KeyPair::generate()?;
        let request = rcgen::CertificateParams::new(Vec::<String>::new())?;
        let request = EnrolRequest {
            claim_code: code.to_owned(),
            csr_pem: request.serialize_request(&key)?.pem()?,
            name: name.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let answer =
            connection.post_json("/api/v1/device/enrol", &serde_json::to_value(request)?)?;
        Ok(Self { key_der: key.serialize_der(), enrolled: serde_json::from_value(answer)? })
    }

    /// A Flight client over a connection of its own.
    async fn connect(
        &self,
        base: &str,
        ca_pem: &str,
    ) -> Result<FlightServiceClient<Channel>, Failed> {
        let chain = CertificateDer::pem_slice_iter(self.enrolled.certificate_pem.as_bytes());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_der.clone()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(ca_pem)?)
            .with_client_auth_cert(chain.collect::<Result<_, _>>()?, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
        let address = base.trim_start_matches("https://").to_owned();
        let name = ServerName::try_from("127.0.0.1")?;
        // Tonic must see http: the TLS is ours.
        let endpoint = Endpoint::from_shared(base.replace("https://", "http://"))?;
        let dial = tower::service_fn(move |_: tonic::transport::Uri| {
            let (tls, address, name) = (tls.clone(), address.clone(), name.clone());
            async move {
                let socket = tokio::net::TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, socket).await?))
            }
        });
        let channel = endpoint.connect_with_connector(dial).await?;
        Ok(FlightServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX))
    }
}

/// Line protocol of one table as a record batch, the way a forwarder makes it.
pub fn record_batch(body: &[u8]) -> Result<RecordBatch, Failed> {
    let parsed = line::parse(body, &LineOptions::default());
    match (parsed.tables.as_slice(), parsed.refused) {
        ([table], 0) => plain(&to_record_batch(table, "default")?),
        _ => Err(Failed("a stream carries rows of one table, all of them good".to_owned())),
    }
}

/// Tags as plain text: a dictionary would be a Flight message of its own, without a header.
fn plain(batch: &RecordBatch) -> Result<RecordBatch, Failed> {
    let schema = batch.schema();
    let mut columns = Vec::new();
    let mut fields = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        let text = matches!(field.data_type(), DataType::Dictionary(_, _));
        let to = if text { &DataType::Utf8 } else { field.data_type() };
        columns.push(arrow::compute::cast(column, to)?);
        fields.push(field.as_ref().clone().with_data_type(to.clone()));
    }
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}

/// Rows of one stream, encoded.
#[derive(Debug)]
pub struct Outgoing {
    key: StreamKey,
    schema: Option<FlightData>,
    messages: VecDeque<(FlightData, u64)>,
    rows: u64,
}

impl Outgoing {
    /// An empty stream of a device.
    pub fn new(device: &Device, name: &str) -> Result<Self, Failed> {
        let key =
            StreamKey { device: device.enrolled.device_id, stream: name.parse()?, epoch: Epoch(1) };
        Ok(Self { key, schema: None, messages: VecDeque::new(), rows: 0 })
    }

    /// Appends rows; all that are sent together have one schema. Their encoded bytes.
    pub fn push(&mut self, batch: &RecordBatch) -> Result<usize, Failed> {
        let rows = batch.num_rows() as u64;
        let mut data = batches_to_flight_data(&batch.schema(), vec![batch.clone()])?.into_iter();
        let (Some(schema), Some(mut message)) = (data.next(), data.next()) else {
            return Err(Failed("a batch is a schema and one message".to_owned()));
        };
        let header = PutHeader {
            key: self.key.clone(),
            seq_lo: SeqNo(self.rows + 1),
            seq_hi: SeqNo(self.rows + rows),
        };
        message.app_metadata = header.to_bytes().into();
        self.schema.get_or_insert(schema);
        self.rows += rows;
        let bytes = message.data_header.len() + message.data_body.len();
        self.messages.push_back((message, rows));
        Ok(bytes)
    }

    /// Sends everything that was appended, `ahead` messages without an ack at a time, and leaves
    /// the stream ready for more. `due` says when after now a message with so many rows before it
    /// is due.
    pub async fn send(
        &mut self,
        device: &Device,
        server: (&str, &str),
        ahead: usize,
        due: impl Fn(u64) -> Option<Duration> + Send + 'static,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Sent, Failed> {
        let mut client = device.connect(server.0, server.1).await?;
        let messages = std::mem::take(&mut self.messages);
        let rows: VecDeque<u64> = messages.iter().map(|(_, rows)| *rows).collect();
        let last = self.rows;
        let mut sent_rows = last - rows.iter().sum::<u64>();
        let window = Arc::new(Semaphore::new(ahead.max(1)));
        let begun = Arc::new(Mutex::new(VecDeque::new()));
        let started = Instant::now();
        let (slots, times) = (Arc::clone(&window), Arc::clone(&begun));
        let data = futures::stream::unfold((messages, 0), move |(mut messages, before)| {
            let (slots, times, due) = (Arc::clone(&slots), Arc::clone(&times), due(before));
            async move {
                let (message, rows) = messages.pop_front()?;
                let due = due.map(|after| started + after);
                if let Some(at) = due {
                    tokio::time::sleep_until(at.into()).await;
                }
                slots.acquire().await.ok()?.forget();
                let at = due.unwrap_or_else(Instant::now);
                times.lock().unwrap_or_else(PoisonError::into_inner).push_back(at);
                Some((message, (messages, before + rows)))
            }
        });
        let request = futures::stream::iter(self.schema.take()).chain(data);
        let mut answers = client.do_put(request).await?.into_inner();
        let mut sent = Sent::default();
        let mut rows = rows.into_iter();
        while let Some(answer) = answers.next().await {
            let answer = answer?;
            // An empty answer is Flight's own "schema taken".
            if answer.app_metadata.is_empty() {
                continue;
            }
            let ack = PutAck::from_bytes(&answer.app_metadata)?;
            let count = rows.next().unwrap_or(0);
            sent_rows += count;
            if ack.hi.0 < sent_rows || ack.refused > 0 {
                return Err(Failed(format!("rows up to {sent_rows} were acked as {ack:?}")));
            }
            let at = begun.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            sent.acks.extend(at.map(|at| at.elapsed()));
            window.add_permits(1);
            progress(count);
        }
        if sent_rows != last {
            return Err(Failed(format!("acks ended at row {sent_rows} of {last}")));
        }
        sent.wall = started.elapsed();
        Ok(sent)
    }

    /// Forgets that the last rows were sent: the next ones are numbered like them.
    pub fn rewind(&mut self, rows: u64) {
        self.rows = self.rows.saturating_sub(rows);
    }
}

/// Sends several streams, each with its device, at the same time.
pub fn send_all(
    server: (&str, &str),
    streams: Vec<(Device, Outgoing)>,
    ahead: usize,
    rows_per_s: Option<f64>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Sent, Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let each = rows_per_s.map(|rate| rate / streams.len().max(1) as f64);
    let due = move |rows: u64| each.map(|rate| Duration::from_secs_f64(rows as f64 / rate));
    let all = streams.into_iter().map(|(device, mut stream)| async move {
        stream.send(&device, server, ahead, due, progress).await
    });
    let started = Instant::now();
    let results = runtime.block_on(futures::future::join_all(all));
    let mut sum = Sent { wall: started.elapsed(), ..Sent::default() };
    for sent in results {
        sum.acks.append(&mut sent?.acks);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_table_become_a_batch_without_dictionaries() {
        let batch = record_batch(b"cpu,host=a v=1i 1\ncpu,host=b v=2i 2\n").unwrap();
        assert_eq!(batch.num_rows(), 2);
        let schema = batch.schema();
        assert!(schema.fields().iter().all(|f| !f.data_type().is_nested()));
        let tag = schema.field_with_name("host").unwrap().data_type().clone();
        assert_eq!(tag, DataType::Utf8);
        assert!(record_batch(b"cpu v=1i 1\nmem v=2i 2\n").is_err(), "two tables");
        assert!(record_batch(b"cpu v=oops 1\n").is_err(), "a refused row");
    }
}
