//! The persisted state: tenants and their terms, plans, holds, tokens, claims, devices, the device CA.
//!
//! Format: one sealed object (docs/formats/sealed-object.md) under the system key, holding JSON,
//! and the changes since as one sealed object each (platform's changes.rs) in `changes/`, folded
//! into the whole now and then: a change costs the same however many tenants there are.
//! Owns: the state and every change to it. All methods take `&self`; a change that could not be
//! stored did not happen.
//! Never: stores a secret, only its hash; answers "not yours" differently from "not there".

mod renewal;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_crypto::{
    key::TenantKeySource,
    ledger::SYSTEM,
    sealed_file::{open_object, seal_object},
};
use millrace_platform::{
    changes::Changes,
    clock::Clock,
    disk::{Disk, read_file},
    durable,
    entropy::{Entropy, random_bytes},
};
use millrace_protocol::ids::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    device::{CertificateError, DeviceCa},
    limits::TenantLimits,
    plan::{Hold, Plan, Shorter, Terms, UNLIMITED, add_terms},
    policy::Principal,
    scope::{AdminScope, OperatorScope},
    token::{self, Secret},
};

const OBJECT: [u8; 16] = *b"millrace-catalog";
/// The folder of the changes, beside the catalogue.
const CHANGES: &str = "changes";
/// 1 had no changes beside it, 2 no terms, plans or holds.
const FORMAT: u32 = 3;

/// The id of a change's object: it cannot stand under another number.
fn change_object(number: u64) -> [u8; 16] {
    let mut out = *b"mr-chang\0\0\0\0\0\0\0\0";
    out[8..].copy_from_slice(&number.to_le_bytes());
    out
}

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
    /// What has counted from when on, oldest first; everything is kept if there is nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<Terms>,
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
    /// The device that whoever redeems it becomes; otherwise a new one.
    #[serde(default)]
    replaces: Option<DeviceId>,
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
    /// Serial number of the certificate that was made last, and perhaps not received.
    #[serde(default)]
    pub renewed: Option<u64>,
    /// Whether it was revoked.
    pub revoked: bool,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    version: u32,
    /// The last change that it has.
    #[serde(default)]
    generation: u64,
    tenants: BTreeMap<String, Tenant>,
    tokens: BTreeMap<String, Token>,
    claims: BTreeMap<String, Claim>,
    devices: BTreeMap<String, Device>,
    /// Those that are not built in.
    #[serde(default)]
    plans: BTreeMap<String, Plan>,
    #[serde(default)]
    holds: BTreeMap<String, Hold>,
    ca_certificate_pem: String,
    ca_key_pem: String,
}

/// What one change puts in place of what was there, by id; `None` takes away.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Change {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tenants: BTreeMap<String, Tenant>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tokens: BTreeMap<String, Option<Token>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    claims: BTreeMap<String, Option<Claim>>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    devices: BTreeMap<String, Device>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    plans: BTreeMap<String, Plan>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    holds: BTreeMap<String, Hold>,
}

impl Change {
    fn hold(hold: Hold) -> Self {
        Self { holds: BTreeMap::from([(hold.id.clone(), hold)]), ..Self::default() }
    }

    fn tenant(tenant: Tenant) -> Self {
        Self { tenants: BTreeMap::from([(tenant.id.to_string(), tenant)]), ..Self::default() }
    }

    fn token(id: String, token: Option<Token>) -> Self {
        Self { tokens: BTreeMap::from([(id, token)]), ..Self::default() }
    }

    fn claim(id: String, claim: Option<Claim>) -> Self {
        Self { claims: BTreeMap::from([(id, claim)]), ..Self::default() }
    }

    fn device(device: Device) -> Self {
        Self { devices: BTreeMap::from([(device.id.to_string(), device)]), ..Self::default() }
    }
}

/// Puts or takes away what a change says.
fn merge<T>(map: &mut BTreeMap<String, T>, change: BTreeMap<String, Option<T>>) {
    for (id, value) in change {
        match value {
            Some(value) => map.insert(id, value),
            None => map.remove(&id),
        };
    }
}

impl State {
    fn apply(&mut self, number: u64, change: Change) {
        self.generation = number;
        self.tenants.extend(change.tenants);
        self.devices.extend(change.devices);
        self.plans.extend(change.plans);
        self.holds.extend(change.holds);
        merge(&mut self.tokens, change.tokens);
        merge(&mut self.claims, change.claims);
    }

    fn entries(&self) -> usize {
        self.tenants.len() + self.tokens.len() + self.claims.len() + self.devices.len()
    }

    /// The plan of this name.
    fn plan(&self, name: &str) -> Option<Plan> {
        let own = self.plans.get(name).cloned();
        own.or_else(|| Plan::built_in().into_iter().find(|p| p.name == name))
    }

    /// A tenant's limits, and its plan's where it has none.
    fn limits(&self, tenant: &Tenant) -> TenantLimits {
        // The usual plan is built in and says nothing of limits.
        self.plans.get(&tenant.plan).map_or(tenant.limits, |plan| tenant.limits.or(&plan.limits))
    }
}

/// The state as it is kept in memory.
struct Kept {
    state: State,
    changes: Changes,
    /// Ids of tenants by name.
    names: BTreeMap<String, String>,
}

impl std::ops::Deref for Kept {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Kept {
    fn new(state: State, changes: Changes) -> Self {
        let name = |(id, tenant): (&String, &Tenant)| (tenant.name.clone(), id.clone());
        let names = state.tenants.iter().map(name).collect();
        Self { state, changes, names }
    }

    fn by_name(&self, name: &str) -> Option<&Tenant> {
        self.names.get(name).and_then(|id| self.state.tenants.get(id))
    }

    fn apply(&mut self, number: u64, change: Change) {
        for (id, tenant) in &change.tenants {
            self.names.insert(tenant.name.clone(), id.clone());
        }
        self.state.apply(number, change);
    }
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
    /// A plan, a table's own limit or a hold that cannot be.
    #[error("{0}")]
    Plan(String),
    /// Somebody else's hold.
    #[error("the operator has placed this hold, and only the operator can release it")]
    OperatorHold,
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
    state: Mutex<Kept>,
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
        let mut state = State { version: FORMAT, ..State::default() };
        if exists {
            let sealed =
                read_file(disk.as_ref(), &path, FILE_BYTES_MAX).map_err(|e| fail(e.to_string()))?;
            let json = open_object(keys.as_ref(), &SYSTEM, OBJECT, &sealed)
                .map_err(|e| fail(e.to_string()))?;
            state = serde_json::from_slice(&json).map_err(|e| fail(e.to_string()))?;
            if !(1..=FORMAT).contains(&state.version) {
                return Err(fail(format!("version {} is unknown", state.version)));
            }
        }
        let (stored, list) = Changes::open(disk.as_ref(), &dir.join(CHANGES), state.generation)
            .map_err(|e| fail(e.to_string()))?;
        for (number, sealed) in list {
            let fail = |e: &dyn std::fmt::Display| fail(format!("its change {number}: {e}"));
            let json = open_object(keys.as_ref(), &SYSTEM, change_object(number), &sealed)
                .map_err(|e| fail(&e))?;
            state.apply(number, serde_json::from_slice(&json).map_err(|e| fail(&e))?);
        }
        // Formats before terms named a plan that did nothing.
        for tenant in state.tenants.values_mut().filter(|t| t.terms.is_empty()) {
            tenant.plan = UNLIMITED.to_owned();
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
        let state = Mutex::new(Kept::new(state, stored));
        let catalog = Self { disk, clock, entropy, keys, path, state, ca, changes };
        if fresh {
            catalog.change(|_| Ok((Change::default(), ())))?;
        }
        Ok(catalog)
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, stores it, and only then lets it count.
    fn change<T>(
        &self,
        f: impl FnOnce(&Kept) -> Result<(Change, T), CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut kept = self.lock();
        let (change, out) = f(&kept)?;
        let number = kept.state.generation + 1;
        // The first one makes the file itself; one of an older format does not say that it has
        // changes.
        let whole = number == 1 || kept.state.version < FORMAT;
        if whole || kept.changes.fold_due(kept.state.entries()) {
            self.store_whole(&kept.state, number, change.clone())?;
            kept.state.version = FORMAT;
            // What the whole has counts for nothing any more: the next start removes it, too.
            if let Err(e) = kept.changes.folded(self.disk.as_ref(), number) {
                tracing::warn!(error = %e, "changes of the catalogue stay until the next start");
            }
        } else {
            let sealed = self.seal(change_object(number), &change)?;
            let stored = kept.changes.append(self.disk.as_ref(), number, &sealed);
            stored.map_err(|e| self.fail(&e))?;
        }
        kept.apply(number, change);
        drop(kept);
        self.changes.send_modify(|n| *n = n.wrapping_add(1));
        Ok(out)
    }

    fn store_whole(&self, state: &State, number: u64, change: Change) -> Result<(), CatalogError> {
        let mut next = State { version: FORMAT, ..state.clone() };
        next.apply(number, change);
        let sealed = self.seal(OBJECT, &next)?;
        durable::replace(self.disk.as_ref(), &self.path, &sealed).map_err(|e| self.fail(&e))
    }

    fn seal(&self, object: [u8; 16], value: &impl Serialize) -> Result<Vec<u8>, CatalogError> {
        let json = serde_json::to_vec(value).map_err(|e| self.fail(&e))?;
        let keys = self.keys.current(&SYSTEM).map_err(|e| self.fail(&e))?;
        Ok(seal_object(&keys, self.entropy.as_ref(), object, &json))
    }

    fn fail(&self, e: &dyn std::fmt::Display) -> CatalogError {
        CatalogError::File { path: self.path.clone(), detail: e.to_string() }
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
            if state.by_name(name).is_some() {
                return Err(CatalogError::Exists(name.to_owned()));
            }
            let tenant = Tenant {
                id,
                name: name.to_owned(),
                plan: UNLIMITED.to_owned(),
                created_ns,
                limits: TenantLimits::default(),
                terms: Vec::new(),
            };
            Ok((Change::tenant(tenant.clone()), tenant))
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
        self.lock().by_name(name).cloned().ok_or(CatalogError::NotFound("tenant"))
    }

    /// The tenant with this id.
    pub fn tenant(&self, id: TenantId) -> Result<Tenant, CatalogError> {
        self.lock().tenants.get(&id.to_string()).cloned().ok_or(CatalogError::NotFound("tenant"))
    }

    /// A tenant's own limits, and its plan's; those of an unknown tenant are the defaults.
    pub fn limits(&self, id: TenantId) -> TenantLimits {
        let state = self.lock();
        state.tenants.get(&id.to_string()).map(|t| state.limits(t)).unwrap_or_default()
    }

    /// Tenants whose limits are not the defaults, for whoever keeps a copy.
    pub fn limited(&self) -> Vec<(TenantId, TenantLimits)> {
        let state = self.lock();
        let all = state.tenants.values().map(|t| (t.id, state.limits(t)));
        all.filter(|(_, limits)| !limits.is_default()).collect()
    }

    /// Sets a tenant's own limits, all of them.
    pub fn set_limits(
        &self,
        _scope: OperatorScope,
        name: &str,
        limits: TenantLimits,
    ) -> Result<Tenant, CatalogError> {
        self.change(|state| {
            let tenant = state.by_name(name).ok_or(CatalogError::NotFound("tenant"))?;
            let tenant = Tenant { limits, ..tenant.clone() };
            Ok((Change::tenant(tenant.clone()), tenant))
        })
    }

    /// All plans, by name.
    pub fn plans(&self) -> Vec<Plan> {
        let mut all: Vec<Plan> = Plan::built_in().into();
        all.extend(self.lock().plans.values().cloned());
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Makes a plan, or another one of the same name. What tenants have by it stays as it is until
    /// it is set for them again; its limits count at once.
    pub fn define_plan(&self, _scope: OperatorScope, plan: Plan) -> Result<Plan, CatalogError> {
        Self::check_name(&plan.name)?;
        plan.check()?;
        self.change(|_| {
            let plans = BTreeMap::from([(plan.name.clone(), plan.clone())]);
            Ok((Change { plans, ..Change::default() }, plan))
        })
    }

    /// Sets a tenant's plan from `now_ns` on; without that, from when a server next runs.
    pub fn set_plan(
        &self,
        _scope: OperatorScope,
        name: &str,
        plan: &str,
        by: &str,
        now_ns: Option<i64>,
    ) -> Result<Tenant, CatalogError> {
        self.change(|state| {
            let mut tenant = state.by_name(name).ok_or(CatalogError::NotFound("tenant"))?.clone();
            let plan = state.plan(plan).ok_or(CatalogError::NotFound("plan"))?;
            let terms = Terms::by_plan(&plan, tenant.terms.last(), by);
            add_terms(&mut tenant.terms, terms, now_ns);
            tenant.plan = plan.name;
            Ok((Change::tenant(tenant.clone()), tenant))
        })
    }

    /// Lets a table keep less than its tenant's plan, or with `lift` what the plan says, from
    /// `now_ns` on.
    pub fn shorten(
        &self,
        scope: AdminScope,
        table: Shorter,
        lift: bool,
        by: &str,
        now_ns: Option<i64>,
    ) -> Result<Tenant, CatalogError> {
        self.change(|state| {
            let tenant = state.tenants.get(&scope.tenant().to_string());
            let mut tenant = tenant.ok_or(CatalogError::NotFound("tenant"))?.clone();
            let plan = state.plan(&tenant.plan).ok_or(CatalogError::NotFound("plan"))?;
            let before = tenant.terms.last().cloned();
            let mut terms = before.unwrap_or_else(|| Terms::by_plan(&plan, None, by));
            terms.by = by.to_owned();
            terms.shorten(table, lift)?;
            add_terms(&mut tenant.terms, terms, now_ns);
            Ok((Change::tenant(tenant.clone()), tenant))
        })
    }

    /// Dates what was set while no server ran: it counts from now on.
    pub fn date_terms(&self, now_ns: i64) -> Result<(), CatalogError> {
        let undated = |t: &&Tenant| t.terms.last().is_some_and(|t| t.from_ns.is_none());
        let all: Vec<Tenant> = self.lock().tenants.values().filter(undated).cloned().collect();
        for mut tenant in all {
            if let Some(terms) = tenant.terms.pop() {
                add_terms(&mut tenant.terms, terms, Some(now_ns));
            }
            self.change(|_| Ok((Change::tenant(tenant), ())))?;
        }
        Ok(())
    }

    /// Tenants with terms or holds, for whoever keeps a copy.
    pub fn retained(&self) -> Vec<TenantId> {
        let state = self.lock();
        let terms = state.tenants.values().filter(|t| !t.terms.is_empty()).map(|t| t.id);
        let held = state.holds.values().filter(|h| h.active()).map(|h| h.tenant);
        let all: std::collections::BTreeSet<TenantId> = terms.chain(held).collect();
        all.into_iter().collect()
    }

    /// Places a legal hold on a table, or on everything of a tenant.
    pub fn add_hold(
        &self,
        scope: AdminScope,
        table: Option<(String, String)>,
        reason: &str,
        by: &str,
        operator: bool,
    ) -> Result<Hold, CatalogError> {
        let tenant = self.tenant(scope.tenant())?.id;
        let hold = Hold {
            id: hex::encode(random_bytes::<8>(self.entropy.as_ref())),
            tenant,
            table,
            reason: reason.trim().to_owned(),
            by: by.to_owned(),
            operator,
            since_ns: self.clock.now_ns(),
            released: None,
        };
        hold.check()?;
        self.change(|_| Ok((Change::hold(hold.clone()), hold)))
    }

    /// Releases a hold. One that the operator has placed is the operator's to release.
    pub fn release_hold(
        &self,
        scope: AdminScope,
        id: &str,
        by: &str,
        operator: bool,
    ) -> Result<Hold, CatalogError> {
        let now = self.clock.now_ns();
        self.change(|state| {
            let hold = state.holds.get(id).filter(|h| h.tenant == scope.tenant() && h.active());
            let hold = hold.ok_or(CatalogError::NotFound("hold"))?;
            if hold.operator && !operator {
                return Err(CatalogError::OperatorHold);
            }
            let hold = Hold { released: Some((now, by.to_owned())), ..hold.clone() };
            Ok((Change::hold(hold.clone()), hold))
        })
    }

    /// A tenant's holds, released ones too, oldest first.
    pub fn holds(&self, tenant: TenantId) -> Vec<Hold> {
        let state = self.lock();
        let mut own: Vec<Hold> =
            state.holds.values().filter(|h| h.tenant == tenant).cloned().collect();
        own.sort_by(|a, b| (a.since_ns, &a.id).cmp(&(b.since_ns, &b.id)));
        own
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
        self.change(|_| Ok((Change::token(id, Some(token.clone())), ())))?;
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
            Ok((Change::token(id.to_owned(), None), ()))
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

    /// Whether a token still is what it was when it was shown; true for who came without one.
    pub fn stands(&self, principal: &Principal) -> bool {
        let Principal::Token { tenant, token, read, write, admin } = principal else { return true };
        let now = self.clock.now_ns();
        self.lock().tokens.get(token).is_some_and(|t| {
            t.tenant == Some(*tenant)
                && (t.read, t.write, t.admin) == (*read, *write, *admin)
                && t.expires_ns.is_none_or(|end| now < end)
        })
    }

    /// Ends when a token is revoked, changed or over. Costs nothing while nothing changes.
    pub async fn withdrawn(&self, principal: &Principal) {
        let mut changes = self.changes.subscribe();
        while self.stands(principal) {
            let expires = self.expires_in(principal);
            let over = async {
                match expires {
                    Some(left) => self.clock.sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = changes.changed() => if changed.is_err() {
                    return;
                },
                () = over => {}
            }
        }
    }

    fn expires_in(&self, principal: &Principal) -> Option<Duration> {
        let Principal::Token { token, .. } = principal else { return None };
        let end = self.lock().tokens.get(token)?.expires_ns?;
        let left = u64::try_from(end - self.clock.now_ns()).unwrap_or(0);
        // The wall clock may step; at least once an hour it is looked at again.
        Some(Duration::from_nanos(left.max(1_000_000)).min(Duration::from_secs(3600)))
    }

    /// Makes a claim code for one device; shown only here. Returns its end (ns).
    pub fn create_claim(
        &self,
        scope: AdminScope,
        name: &str,
    ) -> Result<(Secret, i64), CatalogError> {
        self.make_claim(scope, name, None)
    }

    fn make_claim(
        &self,
        scope: AdminScope,
        name: &str,
        replaces: Option<DeviceId>,
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
            replaces,
        };
        let expires_ns = claim.expires_ns;
        self.change(|state| {
            let over = state.claims.iter().filter(|(_, c)| c.expires_ns <= now);
            let over = over.map(|(id, _)| (id.clone(), None));
            let claims = over.chain([(id, Some(claim))]).collect();
            Ok((Change { claims, ..Change::default() }, ()))
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
                let claim = state.claims.get(id).cloned();
                let change = claim.map_or_else(Change::default, |claim| {
                    let tries_left = claim.tries_left.saturating_sub(1);
                    Change::claim(id.to_owned(), Some(Claim { tries_left, ..claim }))
                });
                Ok((change, ()))
            })?;
            return Err(CatalogError::Claim);
        }
        let new = || DeviceId(random_bytes(self.entropy.as_ref()));
        let device_id = claim.replaces.unwrap_or_else(new);
        let serial = self.serial();
        let (certificate, end) = self.ca.sign(csr_pem, claim.tenant, device_id, serial, now)?;
        let shown = if claim.name.is_empty() { name } else { &claim.name };
        let device = Device {
            id: device_id,
            tenant: claim.tenant,
            name: shown.chars().take(100).collect(),
            enrolled_ns: now,
            serial,
            renewed: None,
            revoked: false,
        };
        self.change(|state| {
            // Taken by somebody else between the look and the change: a code works once.
            state.claims.get(id).ok_or(CatalogError::Claim)?;
            let used = Change::claim(id.to_owned(), None);
            Ok((Change { claims: used.claims, ..Change::device(device.clone()) }, ()))
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
            let device = state.devices.get(&id.to_string());
            let device = device.filter(|d| d.tenant == scope.tenant());
            let device = device.ok_or(CatalogError::NotFound("device"))?;
            Ok((Change::device(Device { revoked: true, ..device.clone() }), ()))
        })
    }

    /// The live device that a verified certificate names.
    pub fn device_principal(&self, id: DeviceId, serial: u64) -> Option<Principal> {
        let state = self.lock();
        let device = state.devices.get(&id.to_string())?;
        device.takes(serial).then_some(Principal::Device { tenant: device.tenant, device: id })
    }
}
