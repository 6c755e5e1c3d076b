//! The persisted state: tenants, tokens, claims, devices, the device CA.
//!
//! Format: one sealed object (docs/formats/sealed-object.md) under the system key, holding JSON,
//! written whole by durable::replace after every change. Changes are rare (people and enrolments),
//! so a whole write of a few kilobytes is simpler than a log and as durable.
//! Owns: the state and every change to it. All methods take `&self`; a change that could not be
//! stored did not happen.
//! Never: stores a secret, only its hash; answers "not yours" differently from "not there".

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crypto::{
    key::TenantKeySource,
    ledger::SYSTEM,
    sealed_file::{open_object, seal_object},
};
use millrace_platform::{
    clock::Clock,
    disk::{Disk, read_file},
    durable,
    entropy::{Entropy, random_bytes, random_u64},
};
use millrace_protocol::ids::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    device::{CertificateError, DeviceCa},
    limits::TenantLimits,
    policy::Principal,
    scope::{AdminScope, OperatorScope},
    token::{self, Secret},
};

const OBJECT: [u8; 16] = *b"millrace-catalog";
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Life of a claim code, ns: 24 h.
const CLAIM_NS: i64 = 24 * 3600 * 1_000_000_000;
/// Wrong attempts that a claim survives.
const CLAIM_TRIES: u32 = 5;

/// A customer organisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// Its name, unique.
    pub name: String,
    /// Its plan.
    pub plan: String,
    /// When it was made, ns since the Unix epoch.
    pub created_ns: i64,
    /// What it may send, where that is not the server's default.
    #[serde(default, skip_serializing_if = "TenantLimits::is_default")]
    pub limits: TenantLimits,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its id.
    pub id: String,
    /// Whose; `None` for the operator's.
    pub tenant: Option<TenantId>,
    /// A name for people.
    pub label: String,
    /// May query.
    pub read: bool,
    /// May write rows.
    pub write: bool,
    /// May administer the tenant.
    pub admin: bool,
    /// When it was made, ns.
    pub created_ns: i64,
    /// When it ends, ns; `None` never.
    pub expires_ns: Option<i64>,
    #[serde(default)]
    hash: String,
}

/// What a new token may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenScopes {
    /// Query.
    pub read: bool,
    /// Write rows.
    pub write: bool,
    /// Administer the tenant.
    pub admin: bool,
}

impl std::str::FromStr for TokenScopes {
    type Err = CatalogError;

    fn from_str(s: &str) -> Result<Self, CatalogError> {
        let mut out = Self::default();
        for part in s.split(',').map(str::trim) {
            match part {
                "read" => out.read = true,
                "write" => out.write = true,
                "admin" => out.admin = true,
                other => return Err(CatalogError::Scope(other.chars().take(40).collect())),
            }
        }
        Ok(out)
    }
}

/// A one-time permission to enrol a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    id: String,
    tenant: TenantId,
    name: String,
    hash: String,
    expires_ns: i64,
    tries_left: u32,
}

/// A forwarder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Its id.
    pub id: DeviceId,
    /// Whose.
    pub tenant: TenantId,
    /// A name for people.
    pub name: String,
    /// When it was enrolled, ns.
    pub enrolled_ns: i64,
    /// Serial number of the certificate that counts.
    pub serial: u64,
    /// Whether it was revoked.
    pub revoked: bool,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    version: u32,
    tenants: BTreeMap<String, Tenant>,
    tokens: BTreeMap<String, Token>,
    claims: BTreeMap<String, Claim>,
    devices: BTreeMap<String, Device>,
    ca_certificate_pem: String,
    ca_key_pem: String,
}

/// Why the catalogue cannot do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The file or the keys.
    #[error("the catalogue {path} cannot be used: {detail}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        detail: String,
    },
    /// A bad name.
    #[error(
        "`{0}` is not a valid name: use 1 to 63 characters of a-z 0-9 and -, beginning with a letter"
    )]
    Name(String),
    /// A taken name.
    #[error("there is already a tenant `{0}`")]
    Exists(String),
    /// Not there, or not yours.
    #[error("there is no {0} of this name or id")]
    NotFound(&'static str),
    /// An unknown scope.
    #[error("`{0}` is not a scope: use read, write and admin, separated by commas")]
    Scope(String),
    /// The claim code is wrong, used, expired or out of tries; which of these is not told.
    #[error("the claim code is not valid; ask the tenant's admin for a new one")]
    Claim,
    /// The signing request.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// See the module head.
pub struct Catalog {
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    keys: Arc<dyn TenantKeySource>,
    path: PathBuf,
    state: Mutex<State>,
    ca: DeviceCa,
    /// Counts changes, so that open streams can look again whether they may go on.
    changes: watch::Sender<u64>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("path", &self.path).finish_non_exhaustive()
    }
}

fn valid_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

impl Catalog {
    /// Opens the catalogue in `dir`, or makes it.
    pub fn open(
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
        keys: Arc<dyn TenantKeySource>,
        dir: &Path,
    ) -> Result<Self, CatalogError> {
        let path = dir.join("catalog");
        let fail = |detail: String| CatalogError::File { path: path.clone(), detail };
        disk.create_dir_all(dir).map_err(|e| fail(e.to_string()))?;
        let exists = disk.exists(&path).map_err(|e| fail(e.to_string()))?;
        let mut state = State { version: 1, ..State::default() };
        if exists {
            let sealed =
                read_file(disk.as_ref(), &path, FILE_BYTES_MAX).map_err(|e| fail(e.to_string()))?;
            let json = open_object(keys.as_ref(), &SYSTEM, OBJECT, &sealed)
                .map_err(|e| fail(e.to_string()))?;
            state = serde_json::from_slice(&json).map_err(|e| fail(e.to_string()))?;
        }
        let fresh = state.ca_key_pem.is_empty();
        let ca = if fresh {
            DeviceCa::create(clock.now_ns())?
        } else {
            DeviceCa::load(&state.ca_certificate_pem, &state.ca_key_pem)?
        };
        state.ca_certificate_pem = ca.certificate_pem().to_owned();
        state.ca_key_pem = ca.key_pem().to_owned();
        let (changes, _) = watch::channel(0);
        let state = Mutex::new(state);
        let catalog = Self { disk, clock, entropy, keys, path, state, ca, changes };
        if fresh {
            catalog.change(|_| Ok(()))?;
        }
        Ok(catalog)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a change to a copy, stores it, and only then lets it count.
    fn change<T>(
        &self,
        f: impl FnOnce(&mut State) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut state = self.lock();
        let mut next = state.clone();
        let out = f(&mut next)?;
        let fail = |detail: String| CatalogError::File { path: self.path.clone(), detail };
        let json = serde_json::to_vec(&next).map_err(|e| fail(e.to_string()))?;
        let keys = self.keys.current(&SYSTEM).map_err(|e| fail(e.to_string()))?;
        let sealed = seal_object(&keys, self.entropy.as_ref(), OBJECT, &json);
        durable::replace(self.disk.as_ref(), &self.path, &sealed)
            .map_err(|e| fail(e.to_string()))?;
        *state = next;
        drop(state);
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
        Ok(out)
    }

    /// Ends when the device may no longer stream with this certificate: it was revoked, or it has
    /// a newer one. Costs nothing while nothing changes.
    pub async fn revoked(&self, id: DeviceId, serial: u64) {
        let mut changes = self.changes.subscribe();
        while self.device_principal(id, serial).is_some() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The device CA's certificate.
    pub fn device_ca_pem(&self) -> &str {
        self.ca.certificate_pem()
    }

    /// Whether a tenant may have this name.
    pub fn check_name(name: &str) -> Result<(), CatalogError> {
        if valid_name(name) {
            return Ok(());
        }
        Err(CatalogError::Name(name.chars().take(80).collect()))
    }

    /// Makes a tenant. Its keys must have been made under `id` before: see [`Self::new_tenant_id`].
    pub fn create_tenant(
        &self,
        _scope: OperatorScope,
        id: TenantId,
        name: &str,
    ) -> Result<Tenant, CatalogError> {
        Self::check_name(name)?;
        let created_ns = self.clock.now_ns();
        self.change(|state| {
            if state.tenants.values().any(|t| t.name == name) {
                return Err(CatalogError::Exists(name.to_owned()));
            }
            let tenant = Tenant {
                id,
                name: name.to_owned(),
                plan: "free".to_owned(),
                created_ns,
                limits: TenantLimits::default(),
            };
            state.tenants.insert(id.to_string(), tenant.clone());
            Ok(tenant)
        })
    }

    /// A random id for a new tenant.
    pub fn new_tenant_id(&self) -> TenantId {
        TenantId(random_bytes(self.entropy.as_ref()))
    }

    /// All tenants, by name.
    pub fn tenants(&self, _scope: OperatorScope) -> Vec<Tenant> {
        let mut out: Vec<Tenant> = self.lock().tenants.values().cloned().collect();
        out.sort_by(|a, b| a.name.cmp(&b.name));
        out
    }

    /// The tenant of this name.
    pub fn tenant_by_name(&self, name: &str) -> Result<Tenant, CatalogError> {
        let state = self.lock();
        let found = state.tenants.values().find(|t| t.name == name);
        found.cloned().ok_or(CatalogError::NotFound("tenant"))
    }

    /// The tenant with this id.
    pub fn tenant(&self, id: TenantId) -> Result<Tenant, CatalogError> {
        self.lock().tenants.get(&id.to_string()).cloned().ok_or(CatalogError::NotFound("tenant"))
    }

    /// A tenant's own limits; those of an unknown tenant are the defaults.
    pub fn limits(&self, id: TenantId) -> TenantLimits {
        self.lock().tenants.get(&id.to_string()).map(|t| t.limits).unwrap_or_default()
    }

    /// Tenants whose limits are not the defaults, for whoever keeps a copy.
    pub fn limited(&self) -> Vec<(TenantId, TenantLimits)> {
        let state = self.lock();
        let own = state.tenants.values().filter(|t| !t.limits.is_default());
        own.map(|t| (t.id, t.limits)).collect()
    }

    /// Sets a tenant's own limits, all of them.
    pub fn set_limits(
        &self,
        _scope: OperatorScope,
        name: &str,
        limits: TenantLimits,
    ) -> Result<Tenant, CatalogError> {
        self.change(|state| {
            let tenant = state.tenants.values_mut().find(|t| t.name == name);
            let tenant = tenant.ok_or(CatalogError::NotFound("tenant"))?;
            tenant.limits = limits;
            Ok(tenant.clone())
        })
    }

    /// Makes a token; its text is shown only here.
    pub fn create_token(
        &self,
        scope: AdminScope,
        scopes: TokenScopes,
        label: &str,
        expires_ns: Option<i64>,
    ) -> Result<(Token, Secret), CatalogError> {
        self.tenant(scope.tenant())?;
        self.insert_token(Some(scope.tenant()), scopes, label, expires_ns)
    }

    /// Makes an operator's token; its text is shown only here.
    pub fn create_operator_token(&self, label: &str) -> Result<(Token, Secret), CatalogError> {
        self.insert_token(None, TokenScopes::default(), label, None)
    }

    fn insert_token(
        &self,
        tenant: Option<TenantId>,
        scopes: TokenScopes,
        label: &str,
        expires_ns: Option<i64>,
    ) -> Result<(Token, Secret), CatalogError> {
        let (id, secret, hash) = token::make::<32>("mrt", self.entropy.as_ref());
        let token = Token {
            id: id.clone(),
            tenant,
            label: label.chars().take(100).collect(),
            read: scopes.read,
            write: scopes.write,
            admin: scopes.admin,
            created_ns: self.clock.now_ns(),
            expires_ns,
            hash,
        };
        self.change(|state| {
            state.tokens.insert(id, token.clone());
            Ok(())
        })?;
        Ok((token, secret))
    }

    /// A tenant's tokens, without secrets.
    pub fn tokens(&self, scope: AdminScope) -> Vec<Token> {
        let state = self.lock();
        let own = state.tokens.values().filter(|t| t.tenant == Some(scope.tenant()));
        own.map(|t| Token { hash: String::new(), ..t.clone() }).collect()
    }

    /// Ends a token at once.
    pub fn revoke_token(&self, scope: AdminScope, id: &str) -> Result<(), CatalogError> {
        self.change(|state| {
            let own = state.tokens.get(id).is_some_and(|t| t.tenant == Some(scope.tenant()));
            if !own {
                return Err(CatalogError::NotFound("token"));
            }
            state.tokens.remove(id);
            Ok(())
        })
    }

    /// Who holds this token; `None` for anything that is not a live token.
    pub fn authenticate(&self, text: &str) -> Option<Principal> {
        let (id, secret) = token::parse("mrt", text)?;
        let now = self.clock.now_ns();
        let state = self.lock();
        let token = state.tokens.get(id)?;
        if !token::matches(secret, &token.hash) || token.expires_ns.is_some_and(|end| end <= now) {
            return None;
        }
        Some(match token.tenant {
            None => Principal::Operator,
            Some(tenant) => Principal::Token {
                tenant,
                token: token.id.clone(),
                read: token.read,
                write: token.write,
                admin: token.admin,
            },
        })
    }

    /// Makes a claim code for one device; shown only here. Returns its end (ns).
    pub fn create_claim(
        &self,
        scope: AdminScope,
        name: &str,
    ) -> Result<(Secret, i64), CatalogError> {
        self.tenant(scope.tenant())?;
        let (id, secret, hash) = token::make::<16>("mrc", self.entropy.as_ref());
        let now = self.clock.now_ns();
        let claim = Claim {
            id: id.clone(),
            tenant: scope.tenant(),
            name: name.chars().take(100).collect(),
            hash,
            expires_ns: now.saturating_add(CLAIM_NS),
            tries_left: CLAIM_TRIES,
        };
        let expires_ns = claim.expires_ns;
        self.change(|state| {
            state.claims.retain(|_, c| c.expires_ns > now);
            state.claims.insert(id, claim);
            Ok(())
        })?;
        Ok((secret, expires_ns))
    }

    /// Redeems a claim: signs the device's request and uses the claim up. Returns the device, its
    /// certificate (PEM) and when that ends (ns).
    pub fn redeem_claim(
        &self,
        code: &str,
        csr_pem: &str,
        name: &str,
    ) -> Result<(Device, String, i64), CatalogError> {
        let (id, secret) = token::parse("mrc", code).ok_or(CatalogError::Claim)?;
        let now = self.clock.now_ns();
        let claim = self.lock().claims.get(id).cloned().ok_or(CatalogError::Claim)?;
        if claim.expires_ns <= now || claim.tries_left == 0 {
            return Err(CatalogError::Claim);
        }
        if !token::matches(secret, &claim.hash) {
            self.change(|state| {
                if let Some(claim) = state.claims.get_mut(id) {
                    claim.tries_left = claim.tries_left.saturating_sub(1);
                }
                Ok(())
            })?;
            return Err(CatalogError::Claim);
        }
        let device_id = DeviceId(random_bytes(self.entropy.as_ref()));
        // Positive and at most 63 bits, as certificate serial numbers must be.
        let serial = random_u64(self.entropy.as_ref()) >> 1 | 1;
        let (certificate, end) = self.ca.sign(csr_pem, claim.tenant, device_id, serial, now)?;
        let shown = if claim.name.is_empty() { name } else { &claim.name };
        let device = Device {
            id: device_id,
            tenant: claim.tenant,
            name: shown.chars().take(100).collect(),
            enrolled_ns: now,
            serial,
            revoked: false,
        };
        self.change(|state| {
            // Taken by somebody else between the look and the change: a code works once.
            state.claims.remove(id).ok_or(CatalogError::Claim)?;
            state.devices.insert(device_id.to_string(), device.clone());
            Ok(())
        })?;
        Ok((device, certificate, end))
    }

    /// A tenant's devices.
    pub fn devices(&self, scope: AdminScope) -> Vec<Device> {
        let state = self.lock();
        state.devices.values().filter(|d| d.tenant == scope.tenant()).cloned().collect()
    }

    /// Ends a device's rights at once.
    pub fn revoke_device(&self, scope: AdminScope, id: DeviceId) -> Result<(), CatalogError> {
        self.change(|state| {
            let device = state.devices.get_mut(&id.to_string());
            let device = device.filter(|d| d.tenant == scope.tenant());
            device.ok_or(CatalogError::NotFound("device"))?.revoked = true;
            Ok(())
        })
    }

    /// The live device that a verified certificate names.
    pub fn device_principal(&self, id: DeviceId, serial: u64) -> Option<Principal> {
        let state = self.lock();
        let device = state.devices.get(&id.to_string())?;
        (!device.revoked && device.serial == serial)
            .then_some(Principal::Device { tenant: device.tenant, device: id })
    }
}
