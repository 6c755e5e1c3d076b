//! Enrolment documents: JSON, the same at both ends.
//!
//! Owns: their members. Never: shows a claim code or a signing request in `Debug`; carries a
//! private key, which stays on the device.

use serde::{Deserialize, Serialize};

use crate::ids::{DeviceId, TenantId};

/// `POST /api/v1/device/enrol`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The one-time claim code.
    pub claim_code: String,
    /// A PKCS#10 signing request made with the device's key, PEM.
    pub csr_pem: String,
    /// A name for people, for instance the host name; optional.
    #[serde(default)]
    pub name: String,
    /// The forwarder's version.
    #[serde(default)]
    pub version: String,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

/// `POST /api/v1/device/renew`, with the certificate that is to be renewed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RenewRequest {
    /// A PKCS#10 signing request made with the device's next key, PEM.
    pub csr_pem: String,
}

impl std::fmt::Debug for RenewRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RenewRequest")
    }
}

/// The answer to both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// The device's id.
    pub device_id: DeviceId,
    /// Whose device it is.
    pub tenant_id: TenantId,
    /// The device's certificate, PEM.
    pub certificate_pem: String,
    /// The CA that signed it, PEM.
    pub ca_pem: String,
    /// When the certificate ends, ns since the Unix epoch.
    pub not_after_ns: i64,
}
