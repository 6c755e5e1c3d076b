//! The bytes of a manifest record (`m/{n}`) and of a root (`c/{n}`).
//!
//! Both are sealed objects under the system key, with an id derived from their name, so a record
//! cannot stand under another number. Plaintext: `u32` length and JSON head, then the sealed
//! leaves back to back. A leaf holds one tenant's part (JSON), sealed under that tenant's key
//! with an id derived from name and tenant: destroying a tenant's key destroys its names, bounds
//! and watermarks here too.
//! Chain: the head carries the SHA-256 of the sealed bytes of the record before it.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use millrace_crypto::{
    key::{KeyError, TenantKeySource},
    sealed_file::{SealError, open_object, seal_object},
};
use millrace_platform::entropy::Entropy;
use millrace_protocol::ids::TenantId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::retention::ClockMark;

/// The owner of the system's own keys.
pub(crate) const SYSTEM: [u8; 16] = [0; 16];
/// 1 had no tombstones; it is still read.
const FORMAT: u32 = 2;

/// SHA-256 of a record's sealed bytes.
pub(crate) type Digest = [u8; 32];

/// The clear part of a record, inside the system seal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub(crate) format: u32,
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    /// Random: tells a writer its own record after an unknown outcome.
    #[serde(with = "crate::text::fixed")]
    pub(crate) nonce: [u8; 16],
    /// Of the record before, or in a root of the record that it stands for.
    #[serde(with = "crate::text::fixed")]
    pub(crate) previous: Digest,
    pub(crate) flushed_lsn: u64,
    /// The trusted clock when it was written; records of format 1 have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) clock: Option<ClockMark>,
    /// Tenants and the lengths of their leaves, in order.
    leaves: Vec<(TenantId, u64)>,
}

/// What the writer says in a head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heading {
    pub(crate) number: u64,
    pub(crate) epoch: u64,
    pub(crate) nonce: [u8; 16],
    pub(crate) previous: Digest,
    pub(crate) flushed_lsn: u64,
    pub(crate) clock: Option<ClockMark>,
}

/// Why a record does not read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Its seal or a leaf's.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Its inside.
    #[error("{0}")]
    Inside(String),
}

pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    let mut out = [0u8; 32];
    out.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    out
}

pub(crate) fn id_of(name: &str, tenant: Option<&TenantId>) -> [u8; 16] {
    let mut input = name.as_bytes().to_vec();
    if let Some(tenant) = tenant {
        input.push(0);
        input.extend_from_slice(&tenant.0);
    }
    let mut out = [0u8; 16];
    out.copy_from_slice(&digest_of(&input)[..16]);
    out
}

/// Seals a record that is stored as `name`.
pub(crate) fn encode<T: Serialize>(
    name: &str,
    head: Heading,
    tenants: &BTreeMap<TenantId, T>,
    keys: &dyn TenantKeySource,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, RecordError> {
    let json = |part| serde_json::to_vec(part).map_err(|e| RecordError::Inside(e.to_string()));
    encode_leaves(name, head, tenants.iter().map(|(id, part)| (*id, json(part))), keys, entropy)
}

/// The same for parts that are JSON already, of which one at a time is in memory.
pub(crate) fn encode_leaves(
    name: &str,
    head: Heading,
    tenants: impl Iterator<Item = (TenantId, Result<Vec<u8>, RecordError>)>,
    keys: &dyn TenantKeySource,
    entropy: &dyn Entropy,
) -> Result<Vec<u8>, RecordError> {
    let mut leaves = Vec::new();
    let mut bodies = Vec::new();
    for (tenant, json) in tenants {
        let tenant_keys = match keys.current(&tenant.0) {
            Ok(keys) => keys,
            // A destroyed tenant has no part in any later manifest.
            Err(KeyError::Gone { .. }) => continue,
            Err(e) => return Err(e.into()),
        };
        let sealed = seal_object(&tenant_keys, entropy, id_of(name, Some(&tenant)), &json?);
        leaves.push((tenant, sealed.len() as u64));
        bodies.push(sealed);
    }
    let Heading { number, epoch, nonce, previous, flushed_lsn, clock } = head;
    let head = Head { format: FORMAT, number, epoch, nonce, previous, flushed_lsn, clock, leaves };
    let json = serde_json::to_vec(&head).map_err(|e| RecordError::Inside(e.to_string()))?;
    let mut plain = (json.len() as u32).to_le_bytes().to_vec();
    plain.extend_from_slice(&json);
    bodies.iter().for_each(|b| plain.extend_from_slice(b));
    let system = keys.current(&SYSTEM)?;
    Ok(seal_object(&system, entropy, id_of(name, None), &plain))
}

/// Opens a record stored as `name`; parts of destroyed tenants are left out.
pub(crate) fn decode<T: DeserializeOwned>(
    name: &str,
    sealed: &[u8],
    keys: &dyn TenantKeySource,
) -> Result<(Head, BTreeMap<TenantId, T>), RecordError> {
    let mut tenants = BTreeMap::new();
    let head = decode_leaves(name, sealed, keys, |tenant, json| {
        let part = serde_json::from_slice(json).map_err(|e| RecordError::Inside(e.to_string()))?;
        tenants.insert(tenant, part);
        Ok(())
    })?;
    Ok((head, tenants))
}

/// The same, giving the JSON of one part at a time to `take`.
pub(crate) fn decode_leaves(
    name: &str,
    sealed: &[u8],
    keys: &dyn TenantKeySource,
    mut take: impl FnMut(TenantId, &[u8]) -> Result<(), RecordError>,
) -> Result<Head, RecordError> {
    let inside = |what: &str| RecordError::Inside(what.to_owned());
    let plain = open_object(keys, &SYSTEM, id_of(name, None), sealed)?;
    let (len, rest) = plain.split_first_chunk::<4>().ok_or_else(|| inside("it ends early"))?;
    let (json, mut rest) = rest
        .split_at_checked(u32::from_le_bytes(*len) as usize)
        .ok_or_else(|| inside("it ends early"))?;
    let head: Head =
        serde_json::from_slice(json).map_err(|e| RecordError::Inside(e.to_string()))?;
    if !(1..=FORMAT).contains(&head.format) {
        return Err(RecordError::Inside(format!(
            "format {}, this server knows {FORMAT}",
            head.format
        )));
    }
    for (tenant, len) in &head.leaves {
        let len = usize::try_from(*len).map_err(|_| inside("a leaf is too long"))?;
        let (leaf, after) = rest.split_at_checked(len).ok_or_else(|| inside("it ends early"))?;
        rest = after;
        match open_object(keys, &tenant.0, id_of(name, Some(tenant)), leaf) {
            Ok(json) => take(*tenant, &json)?,
            Err(SealError::Key(KeyError::Gone { .. })) => {}
            Err(e) => return Err(e.into()),
        }
    }
    if !rest.is_empty() {
        return Err(inside("bytes after the last leaf"));
    }
    Ok(head)
}

#[cfg(test)]
mod tests;
