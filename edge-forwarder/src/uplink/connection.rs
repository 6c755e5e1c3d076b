//! One TLS connection to the server: Flight for rows, HTTP for the floor, on one port.
//!
//! Owns: the TLS client configuration: 1.3 or 1.2, the enrolled CA only, the device's
//! certificate. Never: a way to turn verification off.

use std::{sync::Arc, time::Duration};

use arrow_flight::flight_service_client::FlightServiceClient;
use hyper_util::rt::TokioIo;
use millrace_platform::net::Dialer;
use millrace_protocol::{
    device::{EnrolAnswer, EnrolRequest, RenewRequest},
    ids::StreamId,
    stream::OpenAnswer,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{identity::Identity, mapping::time::http_date};

/// Bytes of one message.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const CONNECT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The URL.
    #[error("{0} is not an https URL with a host")]
    Url(String),
    /// Certificates or keys.
    #[error("the device's certificate or the server's CA cannot be used: {0}")]
    Tls(String),
    /// The network or the handshake.
    #[error("the server cannot be reached: {0}")]
    Reach(String),
    /// The server's answer to the floor.
    #[error("the server does not say where to go on: {0}")]
    Floor(String),
    /// The certificate proves nothing any more.
    #[error(
        "this device is revoked or unknown to the server, or its certificate has ended; enrol again in a new folder"
    )]
    Refused,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn tls_error(e: impl std::fmt::Display) -> ConnectError {
    ConnectError::Tls(e.to_string())
}

fn client_config(identity: &Identity) -> Result<ClientConfig, ConnectError> {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(identity.ca_pem.as_bytes()) {
        roots.add(ca.map_err(tls_error)?).map_err(tls_error)?;
    }
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(tls_error)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(tls_error)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(tls_error)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(tls_error)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// An open connection.
pub struct Connection {
    channel: Channel,
    agent: ureq::Agent,
    base: String,
}

/// The cause that a person can act on is at the end of the chain.
fn chain(e: &dyn std::error::Error) -> String {
    let mut out = e.to_string();
    let mut source = e.source();
    while let Some(inner) = source {
        let text = inner.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        source = inner.source();
    }
    out
}

impl Connection {
    /// Connects, or says why not.
    pub async fn open(identity: &Identity, dialer: Arc<dyn Dialer>) -> Result<Self, ConnectError> {
        let uri: Uri = identity.url.parse().map_err(|_| ConnectError::Url(identity.url.clone()))?;
        let host = uri.host().ok_or_else(|| ConnectError::Url(identity.url.clone()))?.to_owned();
        let host = host.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let name = ServerName::try_from(host.clone()).map_err(tls_error)?;
        let connector = TlsConnector::from(Arc::new(client_config(identity)?));
        // Tonic must see http: the TLS is ours.
        let endpoint = Endpoint::from_shared(format!("http://{host}:{port}"))
            .map_err(|_| ConnectError::Url(identity.url.clone()))?
            .connect_timeout(CONNECT)
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        let dial = tower::service_fn(move |_: Uri| {
            let (dialer, connector, name, host) =
                (Arc::clone(&dialer), connector.clone(), name.clone(), host.clone());
            async move {
                let stream = dialer.dial(&host, port).await?;
                let stream = connector.connect(name, stream).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = endpoint
            .connect_with_connector(dial)
            .await
            .map_err(|e| ConnectError::Reach(chain(&e)))?;
        Ok(Self {
            channel,
            agent: agent(&identity.ca_pem, Some(identity))?,
            base: identity.url.clone(),
        })
    }

    /// A Flight client on this connection.
    pub fn flight(&self) -> FlightServiceClient<Channel> {
        FlightServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Has the server sign the next key.
    pub async fn renew(&self, csr_pem: &str) -> Result<EnrolAnswer, String> {
        let (url, agent) = (format!("{}/api/v1/device/renew", self.base), self.agent.clone());
        let request = RenewRequest { csr_pem: csr_pem.to_owned() };
        let asked = tokio::task::spawn_blocking(move || post(&agent, &url, &request));
        asked.await.map_err(|e| e.to_string())?
    }

    /// What the server says the time is, ns since the Unix epoch; to the second.
    pub async fn date(&self) -> Option<i64> {
        let (url, agent) = (format!("{}/health", self.base), self.agent.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let answer =
                agent.get(&url).config().http_status_as_error(false).build().call().ok()?;
            http_date(answer.headers().get("date")?.to_str().ok()?)
        });
        asked.await.ok()?
    }

    /// The highest contiguous row that the server has.
    pub async fn floor(&self, stream: &StreamId, epoch: u64) -> Result<u64, ConnectError> {
        let url = format!(
            "{}/api/v1/device/streams?stream={}&epoch={epoch}",
            self.base,
            stream.as_str().replace('/', "%2F")
        );
        let agent = self.agent.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let answer = agent.get(&url).call()?;
            answer.into_body().read_json::<OpenAnswer>()
        });
        let answer =
            asked.await.map_err(|e| ConnectError::Floor(e.to_string()))?.map_err(|e| match e {
                ureq::Error::StatusCode(401 | 403) => ConnectError::Refused,
                e => ConnectError::Floor(e.to_string()),
            })?;
        if answer.key.stream != *stream || answer.key.epoch.0 != epoch {
            return Err(ConnectError::Floor("it names another stream".to_owned()));
        }
        Ok(answer.hi.0)
    }
}

fn agent(ca_pem: &str, identity: Option<&Identity>) -> Result<ureq::Agent, ConnectError> {
    use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig, TlsProvider};
    let roots = vec![Certificate::from_pem(ca_pem.as_bytes()).map_err(tls_error)?];
    let mut tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(provider());
    if let Some(identity) = identity {
        let certificate =
            Certificate::from_pem(identity.certificate_pem.as_bytes()).map_err(tls_error)?;
        let key = PrivateKey::from_pem(identity.key_pem.as_bytes()).map_err(tls_error)?;
        tls = tls.client_cert(Some(ClientCert::new_with_certs(&[certificate], key)));
    }
    Ok(ureq::Agent::config_builder()
        .tls_config(tls.build())
        .timeout_global(Some(CONNECT))
        .build()
        .new_agent())
}

/// Posts an enrolment; the server's own words on refusal.
pub fn post_enrolment(
    url: &str,
    ca_pem: &str,
    request: &EnrolRequest,
) -> Result<EnrolAnswer, String> {
    let agent = agent(ca_pem, None).map_err(|e| e.to_string())?;
    let url = format!("{}/api/v1/device/enrol", url.trim_end_matches('/'));
    post(&agent, &url, request)
}

/// Posts a document; the server's own words on refusal.
fn post(
    agent: &ureq::Agent,
    url: &str,
    request: &impl serde::Serialize,
) -> Result<EnrolAnswer, String> {
    let answer = agent
        .post(url)
        .config()
        .http_status_as_error(false)
        .build()
        .send_json(request)
        .map_err(|e| e.to_string())?;
    let status = answer.status();
    let body = answer.into_body().read_to_vec().map_err(|e| e.to_string())?;
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(|e| format!("its answer does not read: {e}"));
    }
    let problem: Option<millrace_protocol::problem::Problem> = serde_json::from_slice(&body).ok();
    Err(problem.map_or_else(|| format!("status {status}"), |p| p.detail))
}
