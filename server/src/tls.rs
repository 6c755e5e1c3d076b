//! Certificates and the TLS configuration: 1.3 and 1.2, nothing below, nothing in the clear.
//!
//! Owns: the development CA and the server certificate made at first start (`tls/` in the data
//! directory, keys 0600). Client certificates are asked for and, if shown, verified against the
//! device CA; whether they are needed is decided per call. Never: a way to turn verification off.

use std::{path::Path, sync::Arc};

use millrace_platform::{
    clock::Clock,
    disk::{Disk, read_file},
    durable,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};

const PEM_BYTES_MAX: u64 = 1 << 20;
const DAY_S: i64 = 24 * 3600;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("{path}: {detail}")]
    File {
        /// Which.
        path: String,
        /// Why.
        detail: String,
    },
    /// A certificate could not be made.
    #[error("the development certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// Certificate and key do not fit.
    #[error("certificate and key cannot be used: {0}")]
    Config(String),
}

/// The cryptography of every TLS connection.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn file_error(path: &Path, e: impl std::fmt::Display) -> TlsError {
    TlsError::File { path: path.display().to_string(), detail: e.to_string() }
}

/// Makes the development CA and a server certificate in `dir`, unless they are there.
pub fn ensure_dev_certificate(
    disk: &dyn Disk,
    clock: &dyn Clock,
    dir: &Path,
) -> Result<(), TlsError> {
    let (ca_path, cert_path, key_path) =
        (dir.join("ca.pem"), dir.join("server.pem"), dir.join("server.key"));
    disk.create_dir_all(dir).map_err(|e| file_error(dir, e))?;
    let there = |p: &Path| disk.exists(p).map_err(|e| file_error(p, e));
    if there(&ca_path)? && there(&cert_path)? && there(&key_path)? {
        return Ok(());
    }
    let day = |days: i64| {
        let s = clock.now_ns().div_euclid(1_000_000_000) + days * DAY_S;
        time::OffsetDateTime::from_unix_timestamp(s).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
    };
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name = DistinguishedName::new();
    ca.distinguished_name.push(DnType::CommonName, "Millrace development CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (ca.not_before, ca.not_after) = (day(-1), day(3650));
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    let key = KeyPair::generate()?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let mut server = CertificateParams::new(names)?;
    server.distinguished_name = DistinguishedName::new();
    server.distinguished_name.push(DnType::CommonName, "Millrace server");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.use_authority_key_identifier_extension = true;
    (server.not_before, server.not_after) = (day(-1), day(820));
    let certificate = server.signed_by(&key, &issuer)?;
    // The CA's own key is not kept: a new certificate comes with a new CA.
    let put = |path: &Path, text: String| {
        durable::replace(disk, path, text.as_bytes()).map_err(|e| file_error(path, e))
    };
    put(&key_path, key.serialize_pem())?;
    put(&cert_path, certificate.pem())?;
    put(&ca_path, ca_certificate.pem())
}

/// The configuration of the listener.
pub fn server_config(
    disk: &dyn Disk,
    certificate: &Path,
    key: &Path,
    device_ca_pem: &str,
) -> Result<Arc<ServerConfig>, TlsError> {
    let read = |path: &Path| read_file(disk, path, PEM_BYTES_MAX).map_err(|e| file_error(path, e));
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|e| file_error(certificate, e))?;
    let key_der = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|e| file_error(key, e))?;
    let config = |e: &dyn std::fmt::Display| TlsError::Config(e.to_string());
    let mut devices = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(device_ca_pem.as_bytes()).map_err(|e| config(&e))?;
    devices.add(ca).map_err(|e| config(&e))?;
    let provider = provider();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(devices), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|e| config(&e))?;
    let mut out = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| config(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key_der)
        .map_err(|e| config(&e))?;
    out.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(out))
}
