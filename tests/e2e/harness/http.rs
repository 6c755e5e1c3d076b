//! An HTTPS client bound to one server and one token.
//!
//! Owns: building requests and reading answers whole. A refused request is an answer; only a
//! broken connection is an error.

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use ureq::{
    Agent,
    http::Request,
    tls::{Certificate, RootCerts, TlsConfig, TlsProvider},
};

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; `Null` if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The stable error code, wherever the endpoint's shape keeps it.
    pub fn code(&self) -> String {
        let json = self.json();
        let code = json.get("code").and_then(Value::as_str).unwrap_or_default();
        code.to_owned()
    }

    /// A header's value, empty if absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Everything as bytes, headers included, for searching.
    pub fn everything(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for (name, value) in &self.headers {
            all.extend_from_slice(name.as_bytes());
            all.extend_from_slice(b": ");
            all.extend_from_slice(value.as_bytes());
            all.push(b'\n');
        }
        all.extend_from_slice(&self.body);
        all
    }
}

/// The crypto library that every TLS connection of the tests uses.
pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A client of one server, speaking with one token or none.
#[derive(Debug, Clone)]
pub struct Client {
    agent: Agent,
    /// `https://127.0.0.1:PORT`.
    pub base: String,
    /// Sent as `Authorization: Bearer`.
    pub token: Option<String>,
}

impl Client {
    /// A client that trusts exactly the given CA.
    pub fn new(base: &str, ca_pem: &str, token: Option<&str>) -> Self {
        let ca = Certificate::from_pem(ca_pem.as_bytes()).expect("the CA file is a certificate");
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider())
            .root_certs(RootCerts::new_with_certs(&[ca]))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .max_redirects(0)
            .timeout_global(Some(Duration::from_secs(60)))
            .proxy(None)
            .build()
            .new_agent();
        Self { agent, base: base.to_owned(), token: token.map(str::to_owned) }
    }

    /// The same server with another token.
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(str::to_owned), ..self.clone() }
    }

    /// Sends a request; `Err` means that no whole answer came back.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let with_body = !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH");
        let answer = if with_body {
            let request = request.body(body.to_vec()).map_err(|e| e.to_string())?;
            let request =
                self.agent.configure_request(request).allow_non_standard_methods(true).build();
            self.agent.run(request)
        } else {
            self.agent.run(request.body(()).map_err(|e| e.to_string())?)
        };
        let mut answer = answer.map_err(|e| e.to_string())?;
        let headers = answer
            .headers()
            .iter()
            .map(|(n, v)| {
                (n.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned())
            })
            .collect();
        let body = answer
            .body_mut()
            .with_config()
            .limit(1 << 30)
            .read_to_vec()
            .map_err(|e| e.to_string())?;
        Ok(Answer { status: answer.status().as_u16(), headers, body })
    }

    /// Opens a stream of server-sent events, with the id of the last one that was seen.
    pub fn stream(&self, path: &str, last: Option<&str>) -> impl std::io::Read + Send + use<> {
        let mut request = Request::builder().uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let answer = self.agent.run(request.body(()).expect("a request"));
        let answer = answer.expect("the server answers");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        answer.into_body().into_reader()
    }

    /// [`Self::send`], once more if the connection was gone: a server that answers before it has
    /// read a body closes the connection, and an idle one may be closed at any time.
    pub fn send_twice(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, String> {
        self.send(method, path, headers, body).or_else(|_| self.send(method, path, headers, body))
    }

    /// A GET.
    pub fn get(&self, path: &str) -> Answer {
        let answer = self.send_twice("GET", path, &[], b"");
        answer.unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// A POST.
    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.send("POST", path, headers, body).expect("the server answers")
    }

    /// Writes line protocol with nanosecond times; whatever the server says.
    pub fn try_write(&self, db: &str, lines: &str) -> Result<Answer, String> {
        let path = format!("/api/v3/write_lp?db={}&precision=nanosecond", encode(db));
        self.send("POST", &path, &[("content-type", "text/plain")], lines.as_bytes())
    }

    /// Writes line protocol that must be taken whole.
    pub fn write(&self, db: &str, lines: &str) {
        let answer = self.try_write(db, lines).expect("the server answers");
        assert!((200..300).contains(&answer.status), "{} {}", answer.status, answer.text());
    }

    /// Runs SQL with any result format.
    pub fn sql_as(&self, db: &str, sql: &str, format: &str) -> Answer {
        let path = format!("/api/v3/query_sql?db={}&format={format}&q={}", encode(db), encode(sql));
        self.get(&path)
    }

    /// Runs SQL that must succeed; its rows as JSON objects.
    pub fn sql(&self, db: &str, sql: &str) -> Vec<Value> {
        let answer = self.sql_as(db, sql, "json");
        assert_eq!(answer.status, 200, "{sql}\n{}", answer.text());
        answer.json().as_array().cloned().unwrap_or_else(|| panic!("not rows: {}", answer.text()))
    }

    /// Runs SQL whose answer is one number in one row; 0 if the table does not exist yet.
    pub fn number(&self, db: &str, sql: &str) -> i64 {
        let answer = self.sql_as(db, sql, "json");
        if answer.status == 404 || (answer.status == 400 && answer.text().contains("not found")) {
            return 0;
        }
        assert_eq!(answer.status, 200, "{sql}\n{}", answer.text());
        let rows = answer.json();
        let first = rows.get(0).and_then(Value::as_object).and_then(|r| r.values().next());
        first.and_then(Value::as_i64).unwrap_or(0)
    }
}

/// Percent-encodes a query parameter.
pub fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
