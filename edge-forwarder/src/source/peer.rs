//! The other side of a source that dials: where it is, and TLS on the way to it.
//!
//! Owns: URLs of sources, the TLS towards them: 1.3 or 1.2, only the CA of the configuration.
//! Never: listens; turns verification off; dials in plaintext unless the URL's scheme says so.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_platform::{
    disk::{RealDisk, read_file},
    net::{Dialer, Stream},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio_rustls::TlsConnector;

/// Bytes of a file with certificates, a key or a password at most.
const FILE_MAX: u64 = 1 << 20;

/// Files for TLS towards a source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// The only CA that is trusted.
    pub ca: PathBuf,
    /// Our certificate and key, if the peer wants one.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// A source's peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Host name or address.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS; `None`: plaintext, named so by the URL's scheme.
    pub tls: Option<TlsFiles>,
    /// What follows host and port, beginning with `/`, without a `/` at the end.
    pub path: String,
}

/// A scheme and its normal port.
pub type Scheme = (&'static str, u16);

/// Host and port of `host` or `host:port`, with the normal port.
pub fn host_port(address: &str, port: u16) -> Option<(String, u16)> {
    let (host, port) = match address.rsplit_once(':') {
        // An IPv6 address without brackets has no port.
        Some((host, _)) if host.contains(':') && !host.starts_with('[') => (address, port),
        Some(_) if address.ends_with(']') => (address, port),
        Some((host, port)) => (host, port.parse().ok()?),
        None => (address, port),
    };
    let host = host.trim_matches(['[', ']']);
    (!host.is_empty() && port > 0).then(|| (host.to_owned(), port))
}

impl Peer {
    /// Reads a URL of the plain or the TLS scheme.
    pub fn parse(
        url: &str,
        plain: Scheme,
        tls: Scheme,
        files: Option<TlsFiles>,
    ) -> Result<Self, String> {
        let bad = || format!("`{url}` is no {0}://HOST or {1}://HOST", tls.0, plain.0);
        let (scheme, rest) = url.split_once("://").ok_or_else(bad)?;
        let secure = scheme == tls.0;
        if !secure && scheme != plain.0 {
            return Err(bad());
        }
        let (address, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        if address.contains('@') {
            return Err("no name or password in a URL; use user and password_file".to_owned());
        }
        let normal = if secure { tls.1 } else { plain.1 };
        let (host, port) = host_port(address, normal).ok_or_else(bad)?;
        let tls = match (secure, files) {
            (true, Some(files)) => Some(files),
            (true, None) => return Err(format!("ca: {scheme}:// needs the CA's certificate file")),
            (false, None) => None,
            (false, Some(_)) => return Err(format!("ca: {scheme}:// is plaintext and has none")),
        };
        Ok(Self { host, port, tls, path: path.trim_end_matches('/').to_owned() })
    }

    /// Connects, with TLS if there is to be.
    pub async fn dial(&self, dialer: &dyn Dialer) -> std::io::Result<Box<dyn Stream>> {
        let stream = dialer.dial(&self.host, self.port).await?;
        let Some(files) = self.tls.clone() else { return Ok(stream) };
        // Read each time, so that a renewed file needs no restart.
        let config = tokio::task::spawn_blocking(move || client_config(&files)).await??;
        let name = ServerName::try_from(self.host.clone()).map_err(std::io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}

fn certificates(path: &Path) -> std::io::Result<Vec<CertificateDer<'static>>> {
    let named = |e: String| std::io::Error::other(format!("{}: {e}", path.display()));
    let pem = read_file(&RealDisk, path, FILE_MAX).map_err(|e| named(e.to_string()))?;
    let all: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|e| named(e.to_string()))?;
    if all.is_empty() { Err(named("holds no certificate".to_owned())) } else { Ok(all) }
}

fn client_config(files: &TlsFiles) -> std::io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for ca in certificates(&files.ca)? {
        roots.add(ca).map_err(std::io::Error::other)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(std::io::Error::other)?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.own else { return Ok(builder.with_no_client_auth()) };
    let pem = read_file(&RealDisk, key, FILE_MAX)?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(std::io::Error::other)?;
    builder.with_client_auth_cert(certificates(certificate)?, key).map_err(std::io::Error::other)
}

/// A secret of one line in a file.
pub async fn secret(path: &Path) -> std::io::Result<String> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let bytes = read_file(&RealDisk, &path, FILE_MAX)
            .map_err(|e| std::io::Error::other(format!("{}: {e}", path.display())))?;
        let text = String::from_utf8(bytes).map_err(std::io::Error::other)?;
        Ok(text.trim_end_matches(['\r', '\n']).to_owned())
    })
    .await?
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Scheme = ("mqtt", 1883);
    const TLS: Scheme = ("mqtts", 8883);

    #[test]
    fn an_address_is_a_host_with_or_without_a_port() {
        let check = |text: &str, expected: Option<(&str, u16)>| {
            let found = host_port(text, 502);
            assert_eq!(found.as_ref().map(|(h, p)| (h.as_str(), *p)), expected, "{text}");
        };
        check("10.0.0.5", Some(("10.0.0.5", 502)));
        check("plc.local:1502", Some(("plc.local", 1502)));
        check("[fe80::1]:1502", Some(("fe80::1", 1502)));
        check("[fe80::1]", Some(("fe80::1", 502)));
        check("fe80::1", Some(("fe80::1", 502)));
        check("plc:0", None);
        check("plc:x", None);
    }

    #[test]
    fn e2_plaintext_is_only_where_the_scheme_names_it_and_tls_needs_a_ca() {
        let ca = || Some(TlsFiles { ca: "ca.pem".into(), own: None });
        let peer = Peer::parse("mqtt://b:1884", PLAIN, TLS, None).unwrap();
        assert_eq!((peer.host.as_str(), peer.port, peer.tls), ("b", 1884, None));
        let peer = Peer::parse("mqtts://b/x/", PLAIN, TLS, ca()).unwrap();
        assert_eq!((peer.port, peer.path.as_str(), peer.tls), (8883, "/x", ca()));
        for (url, files) in [
            ("mqtts://b", None),
            ("mqtt://b", ca()),
            ("tcp://b", None),
            ("b:1883", None),
            ("mqtt://user:pw@b", None),
            ("mqtt://", None),
        ] {
            assert!(Peer::parse(url, PLAIN, TLS, files).is_err(), "{url}");
        }
    }
}
