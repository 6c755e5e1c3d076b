//! Proofs of permission. Only this crate makes them, so a handler cannot forget the check:
//!
//! ```compile_fail
//! let forged = millrace_control::ReadScope { tenant: millrace_protocol::ids::TenantId([0; 16]) };
//! ```

use millrace_protocol::ids::TenantId;

/// The right to read one tenant's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadScope {
    pub(crate) tenant: TenantId,
}

/// The right to write one tenant's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteScope {
    pub(crate) tenant: TenantId,
}

/// The right to administer one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminScope {
    pub(crate) tenant: TenantId,
}

/// The right to run the server: tenants and their first tokens, never their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperatorScope {
    pub(crate) _private: (),
}

impl ReadScope {
    /// Whose data.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}

impl WriteScope {
    /// Whose data.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}

impl AdminScope {
    /// Which tenant.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}
