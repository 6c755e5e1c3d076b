//! New certificates for devices that are known: renewal, and a new box for an old one.
//!
//! Owns: which certificates of a device count. Never: ends a certificate before its successor has
//! been used: an answer may be lost on its way, and the device would be locked out.

use millrace_platform::entropy::random_u64;
use millrace_protocol::ids::DeviceId;

use super::{Catalog, CatalogError, Change, Device};
use crate::{scope::AdminScope, token::Secret};

impl Device {
    /// Whether a certificate with this serial number counts.
    pub(super) fn takes(&self, serial: u64) -> bool {
        !self.revoked && (self.serial == serial || self.renewed == Some(serial))
    }
}

impl Catalog {
    /// A serial number for a certificate: positive and at most 63 bits, as they must be.
    pub(super) fn serial(&self) -> u64 {
        random_u64(self.entropy.as_ref()) >> 1 | 1
    }

    /// Signs a new certificate for a device that shows a good one. The one shown stays good until
    /// the new one is shown at the next renewal. Returns as [`Self::redeem_claim`].
    pub fn renew_device(
        &self,
        id: DeviceId,
        serial: u64,
        csr_pem: &str,
    ) -> Result<(Device, String, i64), CatalogError> {
        let known = self.lock().devices.get(&id.to_string()).filter(|d| d.takes(serial)).cloned();
        let known = known.ok_or(CatalogError::NotFound("device"))?;
        let (next, now) = (self.serial(), self.clock.now_ns());
        let (certificate, end) = self.ca.sign(csr_pem, known.tenant, id, next, now)?;
        let device = self.change(|state| {
            // Revoked or replaced since the look.
            let device = state.devices.get(&id.to_string()).filter(|d| d.takes(serial));
            let device = device.ok_or(CatalogError::NotFound("device"))?;
            let device = Device { serial, renewed: Some(next), ..device.clone() };
            Ok((Change::device(device.clone()), device))
        })?;
        Ok((device, certificate, end))
    }

    /// Makes a claim code with which a new box becomes this device. When it is used, the
    /// certificates of the old box end at once, and a revocation with them.
    pub fn create_replacement(
        &self,
        scope: AdminScope,
        id: DeviceId,
    ) -> Result<(Secret, i64), CatalogError> {
        let own = self
            .lock()
            .devices
            .get(&id.to_string())
            .filter(|d| d.tenant == scope.tenant())
            .cloned();
        let device = own.ok_or(CatalogError::NotFound("device"))?;
        self.make_claim(scope, &device.name, Some(id))
    }
}
