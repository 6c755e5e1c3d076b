//! Device certificates: the CA that signs them and what they say.
//!
//! Owns: the CA's key (sealed at rest by the catalogue) and the shape of a device certificate:
//! common name = device id, organisation = tenant id, client authentication only, 90 days.
//! Never: sees a device's private key; signs a request whose own signature does not verify.

use millrace_protocol::ids::{DeviceId, TenantId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SerialNumber,
};

/// Life of a device certificate, ns: 90 days.
pub const CERTIFICATE_NS: i64 = 90 * 24 * 3600 * 1_000_000_000;
/// Life of the device CA, ns: 20 years.
const CA_NS: i64 = 20 * 365 * 24 * 3600 * 1_000_000_000;
/// Room for clocks that run behind, ns: 1 h.
const SKEW_NS: i64 = 3600 * 1_000_000_000;

/// Why a certificate was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The request does not parse or its signature is wrong.
    #[error("the signing request is not valid: {0}")]
    Request(String),
    /// The CA cannot sign.
    #[error("the device CA cannot sign: {0}")]
    Ca(String),
}

/// The CA of all devices of one server.
pub struct DeviceCa {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    key_pem: String,
}

impl std::fmt::Debug for DeviceCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeviceCa")
    }
}

fn time_of(ns: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(ns.div_euclid(1_000_000_000))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

fn ca_error(e: impl std::fmt::Display) -> CertificateError {
    CertificateError::Ca(e.to_string())
}

impl DeviceCa {
    /// Makes a new CA.
    pub fn create(now_ns: i64) -> Result<Self, CertificateError> {
        let key = KeyPair::generate().map_err(ca_error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Millrace device CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = time_of(now_ns.saturating_sub(SKEW_NS));
        params.not_after = time_of(now_ns.saturating_add(CA_NS));
        let certificate = params.self_signed(&key).map_err(ca_error)?;
        Self::load(&certificate.pem(), &key.serialize_pem())
    }

    /// Loads a stored CA.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(key_pem).map_err(ca_error)?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key).map_err(ca_error)?;
        Ok(Self {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
            key_pem: key_pem.to_owned(),
        })
    }

    /// The CA's certificate.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's key; to be sealed before it is stored.
    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Signs a device's request; whatever name it asks for is replaced. Returns the certificate
    /// and when it ends (ns).
    pub fn sign(
        &self,
        csr_pem: &str,
        tenant: TenantId,
        device: DeviceId,
        serial: u64,
        now_ns: i64,
    ) -> Result<(String, i64), CertificateError> {
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| CertificateError::Request(e.to_string()))?;
        let end = now_ns.saturating_add(CERTIFICATE_NS);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, device.to_string());
        params.distinguished_name.push(DnType::OrganizationName, tenant.to_string());
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = time_of(now_ns.saturating_sub(SKEW_NS));
        params.not_after = time_of(end);
        params.use_authority_key_identifier_extension = true;
        request.params = params;
        let certificate = request.signed_by(&self.issuer).map_err(ca_error)?;
        Ok((certificate.pem(), end))
    }
}

/// The device and serial number that a certificate (DER) names; the caller has verified it.
pub fn identify(der: &[u8]) -> Option<(DeviceId, u64)> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?;
    let mut serial = 0u64;
    for byte in certificate.raw_serial() {
        serial = serial.checked_mul(256)?.checked_add(u64::from(*byte))?;
    }
    Some((name.parse().ok()?, serial))
}
