//! Keys that are the same in every run.

use std::sync::Arc;

use millrace_crypto::key::{Key256, KeyError, TenantKeySource, TenantKeys};

/// The tenant of every target.
pub const TENANT: [u8; 16] = [7; 16];

/// One version, 1, of every owner's key; keys of owners that begin with `ff` were destroyed.
#[derive(Debug, Clone, Copy)]
pub struct FixedKeys;

/// The keys of an owner.
pub fn of(owner: [u8; 16]) -> TenantKeys {
    let mut key = [0x5a; 32];
    key[..16].copy_from_slice(&owner);
    TenantKeys::new(owner, 1, Key256::new(key))
}

impl TenantKeySource for FixedKeys {
    fn current(&self, tenant: &[u8; 16]) -> Result<Arc<TenantKeys>, KeyError> {
        self.version(tenant, 1)
    }

    fn version(&self, tenant: &[u8; 16], version: u32) -> Result<Arc<TenantKeys>, KeyError> {
        match (tenant, version) {
            ([0xff, ..], _) => Err(KeyError::Gone { tenant: hex(tenant) }),
            (_, 1) => Ok(Arc::new(of(*tenant))),
            _ => Err(KeyError::UnknownVersion { tenant: hex(tenant), version }),
        }
    }
}

/// Bytes as hex digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
