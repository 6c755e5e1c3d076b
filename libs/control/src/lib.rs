//! Who may do what: tenants, tokens, devices, claims, and the one table that decides.
//!
//! Owns: identity, scopes, the persisted catalogue. Never: HTTP, SQL, tables, rows.

pub mod catalog;
pub mod device;
pub mod limits;
pub mod plan;
pub mod policy;
pub mod scope;
pub mod token;

pub use catalog::{Catalog, CatalogError, Device, Tenant, Token, TokenScopes};
pub use device::{CertificateError, DeviceCa};
pub use limits::{Limits, TenantLimits};
pub use plan::{Hold, Plan, Shorter, Terms, UNLIMITED};
pub use policy::{Action, Denied, Principal};
pub use scope::{AdminScope, OperatorScope, ReadScope, WriteScope};
pub use token::Secret;

#[cfg(test)]
mod tests;
