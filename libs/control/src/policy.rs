//! The one table that says who may do what. Default: nothing.
//!
//! Owns: [`Principal`], [`Action`] and the table. Every handler turns its principal into a scope
//! here or does nothing.

use millrace_protocol::ids::{DeviceId, TenantId};

use crate::scope::{AdminScope, OperatorScope, ReadScope, WriteScope};

/// Who is calling, proven by a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A token of a tenant.
    Token {
        /// The tenant.
        tenant: TenantId,
        /// The token's id.
        token: String,
        /// May query.
        read: bool,
        /// May write rows.
        write: bool,
        /// May administer the tenant.
        admin: bool,
    },
    /// A forwarder with its certificate.
    Device {
        /// The tenant.
        tenant: TenantId,
        /// The device.
        device: DeviceId,
    },
    /// The server's operator: tenants and their first tokens, never their data.
    Operator,
}

/// What may be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Run SQL.
    Query,
    /// Write rows without a sequence.
    Write,
    /// Write rows of a device's own stream.
    WriteStream,
    /// Tokens, claims and devices of one tenant.
    AdministerTenant,
    /// Create and list tenants.
    AdministerServer,
    /// See the whole server's metrics.
    SeeMetrics,
}

impl Action {
    /// All actions.
    pub const ALL: &'static [Self] = &[
        Self::Query,
        Self::Write,
        Self::WriteStream,
        Self::AdministerTenant,
        Self::AdministerServer,
        Self::SeeMetrics,
    ];
}

/// The action is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this credential does not allow it: {needs}")]
pub struct Denied {
    /// What would.
    pub needs: &'static str,
}

/// The table.
pub fn allowed(principal: &Principal, action: Action) -> bool {
    use Action as A;
    match principal {
        Principal::Token { read, write, admin, .. } => match action {
            A::Query => *read,
            A::Write => *write,
            A::AdministerTenant => *admin,
            A::WriteStream | A::AdministerServer | A::SeeMetrics => false,
        },
        Principal::Device { .. } => matches!(action, A::WriteStream),
        // The operator runs the server and makes first credentials; tenant data is not its own.
        Principal::Operator => {
            matches!(action, A::AdministerServer | A::AdministerTenant | A::SeeMetrics)
        }
    }
}

fn deny<T>(needs: &'static str) -> Result<T, Denied> {
    Err(Denied { needs })
}

/// The right to query, or not.
pub fn to_read(principal: &Principal) -> Result<ReadScope, Denied> {
    match principal {
        Principal::Token { tenant, .. } if allowed(principal, Action::Query) => {
            Ok(ReadScope { tenant: *tenant })
        }
        _ => deny("a token with scope `read` is needed"),
    }
}

/// The right to write rows, or not.
pub fn to_write(principal: &Principal) -> Result<WriteScope, Denied> {
    match principal {
        Principal::Token { tenant, .. } if allowed(principal, Action::Write) => {
            Ok(WriteScope { tenant: *tenant })
        }
        _ => deny("a token with scope `write` is needed"),
    }
}

/// The right to write one device's streams, or not.
pub fn to_write_stream(principal: &Principal, device: DeviceId) -> Result<WriteScope, Denied> {
    match principal {
        Principal::Device { tenant, device: own } if *own == device => {
            Ok(WriteScope { tenant: *tenant })
        }
        _ => deny("the certificate of this very device is needed"),
    }
}

/// The right to administer `tenant`, or not. Another tenant's admin gets the same answer as
/// somebody without any right.
pub fn to_administer(principal: &Principal, tenant: TenantId) -> Result<AdminScope, Denied> {
    let own = match principal {
        Principal::Token { tenant: own, .. } => *own == tenant,
        Principal::Operator => true,
        Principal::Device { .. } => false,
    };
    if own && allowed(principal, Action::AdministerTenant) {
        return Ok(AdminScope { tenant });
    }
    deny("a token of this tenant with scope `admin`, or the operator's token, is needed")
}

/// The right to run the server, or not.
pub fn to_operate(principal: &Principal) -> Result<OperatorScope, Denied> {
    if allowed(principal, Action::AdministerServer) {
        return Ok(OperatorScope { _private: () });
    }
    deny("the operator's token is needed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a2_every_cell_of_the_table_is_as_promised() {
        let tenant = TenantId([1; 16]);
        let token =
            |read, write, admin| Principal::Token { tenant, token: "t".into(), read, write, admin };
        let device = Principal::Device { tenant, device: DeviceId([2; 16]) };
        // Query, Write, WriteStream, AdministerTenant, AdministerServer, SeeMetrics
        let table = [
            (token(true, false, false), [true, false, false, false, false, false]),
            (token(false, true, false), [false, true, false, false, false, false]),
            (token(false, false, true), [false, false, false, true, false, false]),
            (token(false, false, false), [false; 6]),
            (device, [false, false, true, false, false, false]),
            (Principal::Operator, [false, false, false, true, true, true]),
        ];
        for (principal, cells) in &table {
            for (action, expected) in Action::ALL.iter().zip(cells) {
                assert_eq!(allowed(principal, *action), *expected, "{principal:?} {action:?}");
            }
        }
    }

    #[test]
    fn a1_no_scope_is_made_for_another_tenant_or_device() {
        let (a, b) = (TenantId([1; 16]), TenantId([2; 16]));
        let admin =
            Principal::Token { tenant: a, token: "t".into(), read: true, write: true, admin: true };
        assert!(to_administer(&admin, a).is_ok());
        assert!(to_administer(&admin, b).is_err());
        assert_eq!(to_read(&admin).unwrap().tenant(), a);
        let device = Principal::Device { tenant: a, device: DeviceId([1; 16]) };
        assert!(to_write_stream(&device, DeviceId([1; 16])).is_ok());
        assert!(to_write_stream(&device, DeviceId([2; 16])).is_err());
        assert!(to_read(&device).is_err() && to_write(&device).is_err());
        assert!(to_read(&Principal::Operator).is_err(), "A5: operating gives no right to data");
        assert!(to_write(&Principal::Operator).is_err());
    }
}
