//! HTTPS to a running server, for the command line.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use millrace_platform::disk::{Disk, RealDisk, read_file};
use serde_json::Value;
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem},
};

use super::{Failure, Remote};

/// A client with its token.
#[derive(Debug)]
pub(crate) struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// Reads a small text file.
pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    let bytes = read_file(&RealDisk, path, 1 << 20)
        .map_err(|e| Failure(format!("{}: {e}", path.display())))?;
    String::from_utf8(bytes).map_err(|_| Failure(format!("{} is not text", path.display())))
}

/// Where Linux distributions keep the public CAs, one file with all of them.
const SYSTEM_CAS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// All certificates of a PEM file.
fn certificates(path: &Path) -> Result<RootCerts, Failure> {
    let pem = read_text(path)?;
    let all: Vec<Certificate<'static>> = parse_pem(pem.as_bytes())
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if all.is_empty() {
        return Err(Failure(format!("{} holds no PEM certificate", path.display())));
    }
    Ok(RootCerts::Specific(Arc::new(all)))
}

fn system_certificates() -> Result<RootCerts, Failure> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = SYSTEM_CAS.iter().map(PathBuf::from);
    let found = named.into_iter().chain(usual).find(|p| RealDisk.exists(p).unwrap_or(false));
    certificates(&found.ok_or(
        "this system has no list of public CAs; name the server's: --ca FILE (DATA_DIR/tls/ca.pem)",
    )?)
}

impl Remote {
    /// The token from a file or the environment.
    fn token(&self) -> Result<Option<String>, Failure> {
        if let Some(path) = &self.token_file {
            return Ok(Some(read_text(path)?.trim().to_owned()));
        }
        Ok(std::env::var("MILLRACE_TOKEN").ok().map(|t| t.trim().to_owned()))
    }

    /// A client of `--url`.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let base = self.url.as_deref().ok_or("name the server: --url https://HOST:PORT")?;
        if !base.starts_with("https://") {
            return Err(Failure(format!(
                "{base} is not an https:// URL; there is no plaintext port"
            )));
        }
        let roots = match &self.ca {
            Some(path) => certificates(path)?,
            None => system_certificates()?,
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(crate::tls::provider())
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_global(Some(Duration::from_secs(300)))
            .build()
            .new_agent();
        Ok(Client { agent, base: base.trim_end_matches('/').to_owned(), token: self.token()? })
    }
}

impl Client {
    fn bearer(&self) -> String {
        format!("Bearer {}", self.token.as_deref().unwrap_or_default())
    }

    fn unreached(&self, e: &ureq::Error) -> Failure {
        let hint = if e.to_string().contains("certificate") {
            "; if the server has its own CA, name it: --ca FILE (DATA_DIR/tls/ca.pem)"
        } else {
            ""
        };
        Failure(format!("{}: {e}{hint}", self.base))
    }

    fn answer(response: ureq::http::Response<ureq::Body>) -> Result<Vec<u8>, Failure> {
        let status = response.status();
        let body = response.into_body().into_with_config().limit(1 << 30).read_to_vec()?;
        if status.is_success() {
            return Ok(body);
        }
        if status == ureq::http::StatusCode::UNAUTHORIZED {
            return Err(Failure(
                "the server does not know this token; give a valid one in MILLRACE_TOKEN or by --token-file FILE".into(),
            ));
        }
        let problem: Option<Value> = serde_json::from_slice(&body).ok();
        let detail = problem.as_ref().and_then(|p| p.get("detail")).and_then(Value::as_str);
        Err(Failure(match detail {
            Some(detail) => detail.to_owned(),
            None => format!("the server answered {status}"),
        }))
    }

    /// `GET`; the body.
    pub(crate) fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        let url = format!("{}{path}", self.base);
        Self::answer(
            self.agent
                .get(&url)
                .header("authorization", &self.bearer())
                .call()
                .map_err(|e| self.unreached(&e))?,
        )
    }

    /// `POST` of JSON; the body.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<Vec<u8>, Failure> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.post(&url).header("authorization", &self.bearer());
        Self::answer(request.send_json(body).map_err(|e| self.unreached(&e))?)
    }

    /// `PUT` of JSON; the body.
    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<Vec<u8>, Failure> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.put(&url).header("authorization", &self.bearer());
        Self::answer(request.send_json(body).map_err(|e| self.unreached(&e))?)
    }

    /// `DELETE`.
    pub(crate) fn delete(&self, path: &str) -> Result<(), Failure> {
        let url = format!("{}{path}", self.base);
        let request = self.agent.delete(&url).header("authorization", &self.bearer());
        Self::answer(request.call().map_err(|e| self.unreached(&e))?)?;
        Ok(())
    }
}
